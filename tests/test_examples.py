"""The examples in docstrings run and print what they show."""

import doctest
import importlib

import pytest

from tests.bundle import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "scripts").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)

    assert result.attempted
    assert not result.failed


def test_each_step_of_a_scan_has_an_example() -> None:
    packages = {module.split(".")[1] for module in MODULES}

    assert packages >= {"core", "read", "preprocess", "network", "search", "decode", "metrics", "train"}
