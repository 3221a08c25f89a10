"""Command lines: options from a signature, refused before anything runs; the same for every package."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.core.commands import read_options, run_command
from scripts.core.errors import SettingError, UserError
from scripts.evaluate.__main__ import COMMANDS as EVALUATE
from scripts.evaluate.__main__ import main as evaluate
from scripts.prepare.__main__ import COMMANDS as PREPARE
from scripts.prepare.__main__ import main as prepare
from tools.development import make_development_datalist
from tools.network.__main__ import COMMANDS as NETWORK
from tools.network.__main__ import main as network
from tools.real_nodules import real_nodules

ROOT = Path(__file__).resolve().parents[2]
CALLS: list[dict[str, Any]] = []


def job(
    *, output_dir: str, count: int = 3, share: float = 0.5, files: str | Sequence[str] = (), strict: bool = False
) -> None:
    """Do a thing.

    Args:
        output_dir: gets it.
    """
    CALLS.append({"output_dir": output_dir, "count": count, "share": share, "files": files, "strict": strict})
    if count < 0:
        raise SettingError(f"--count: expected at least 0, got {count}")
    if count == 404:
        raise FileNotFoundError("no such thing")
    if count == 500:
        raise KeyError("a fault of the code")


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package ``fake`` whose module ``jobs`` holds the command."""
    module = ModuleType("fake.jobs")
    module.job = job  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake", ModuleType("fake"))
    monkeypatch.setitem(sys.modules, "fake.jobs", module)
    CALLS.clear()


def run(*arguments: str) -> int:
    return run_command("fake", {"job": "jobs:job"}, arguments)


def test_options_come_from_the_signature_with_their_types() -> None:
    assert run("job", "--output_dir", "1001", "--count=7", "--share", "1e-3") == 0
    assert CALLS == [{"output_dir": "1001", "count": 7, "share": 1e-3, "files": (), "strict": False}]


@pytest.mark.parametrize(
    "words",
    [
        ["--files", "a", "b c"],
        ["--files", "a", "--files", "b c"],
        ["--files", "['a', 'b c']"],
        ["--files=['a']", "--files=b c"],
    ],
)
def test_several_values_may_be_given_in_any_spelling(words: list[str]) -> None:
    assert run("job", *words, "--output_dir", "x") == 0
    assert CALLS[0]["files"] == ["a", "b c"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--strict"], True),
        (["--strict", "True"], True),
        (["--strict=false"], False),
        (["--strict", "--count", "1"], True),
    ],
)
def test_booleans_need_no_value(words: list[str], expected: bool) -> None:
    assert run("job", "--output_dir", "x", *words) == 0
    assert CALLS[0]["strict"] is expected


@pytest.mark.parametrize(
    "wrong",
    [
        ["--stric"],
        ["--strict", "maybe"],
        ["--strict", "--strict"],
        ["--count", "two"],
        ["--count", "1.5"],
        ["--count", "1", "--count", "2"],
        ["--files"],
        ["extra"],
        ["-count", "1"],
    ],
)
def test_a_wrong_command_line_runs_nothing(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("job", "--output_dir", "x", *wrong) == 2
    assert "error:" in capsys.readouterr().err
    assert run("job") == 2
    assert "--output_dir" in capsys.readouterr().err
    assert CALLS == []


def test_errors_of_the_user_are_one_line_and_faults_of_the_code_are_not_hidden(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert run("job", "--output_dir", "x", "--count", "-1") == 1
    assert run("job", "--output_dir", "x", "--count", "404") == 1
    assert caplog.messages == ["error: --count: expected at least 0, got -1", "error: no such thing"]
    with pytest.raises(KeyError):
        run("job", "--output_dir", "x", "--count", "500")
    assert issubclass(SettingError, UserError)
    assert issubclass(SettingError, ValueError)


@pytest.mark.parametrize(("main", "commands"), [(evaluate, EVALUATE), (network, NETWORK), (prepare, PREPARE)])
def test_every_package_has_the_same_command_line(
    main: Any, commands: dict[str, str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The help is the docstring."""
    package = main.__module__.removesuffix(".__main__")
    for name in commands:
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"python -m {package} {name}" in shown
        assert str(function_of(package, name).__doc__).splitlines()[0] in shown
        assert main([name, "--no_such_option", "1"]) == 2
        assert "error:" in capsys.readouterr().err
    assert main(["none"]) == 2
    assert main([]) == 2
    assert f"one of: {', '.join(commands)}; got: nothing" in caplog.text


PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
PACKAGES = {"scripts.evaluate": EVALUATE, "scripts.prepare": PREPARE, "tools.network": NETWORK}
ALONE: dict[str, Any] = {"tools.development": make_development_datalist, "tools.real_nodules": real_nodules}
SHOWN = [
    (page.name, module, words)
    for page in PAGES
    for module, words in re.findall(r"^ *python -m ([a-z_.]+) (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    if module in (*PACKAGES, *ALONE)
]


def function_of(module: str, command: str) -> Any:
    """A package's command, or the function of a module that has only one."""
    if module in ALONE:
        return ALONE[module]
    name, function = PACKAGES[module][command].split(":")
    return getattr(importlib.import_module(f".{name}", module), function)


@pytest.mark.parametrize(("page", "module", "words"), SHOWN, ids=lambda text: str(text)[:40])
def test_the_commands_of_the_docs_are_understood(page: str, module: str, words: str) -> None:
    command, *options = shlex.split(words)
    given = [command, *options] if module in ALONE else options
    assert read_options(page, function_of(module, command), given)
    assert {module for _, module, _ in SHOWN} == {*PACKAGES, *ALONE}
