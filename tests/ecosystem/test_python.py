"""docs/python.md as it is written, from another folder than the bundle's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.bundle import ROOT
from tests.ecosystem.conftest import NAME, Program

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SEARCH, LOAD, TRAIN, ITEMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CONFIG = f"bundles/{NAME}/configs"

# A host program: what it has set stays, and a refused scan is an exception of its own.
HOST = f"""
import sys, logging
def mine(*error): sys.__excepthook__(*error)
sys.excepthook, handlers = mine, list(logging.getLogger().handlers)
{SEARCH}
assert sys.excepthook is mine and logging.getLogger().handlers == handlers
from scripts.core.errors import reason_of, user_error_in
try:
    search("{NAME}.txt")
except Exception as error:
    print("REASON", reason_of(error))
workflow.parser.update({{"input": "nothing", "output_dir": "found"}})
workflow.initialize()
try:
    workflow.run()
except Exception as error:
    print("RUN", type(user_error_in(error)).__name__)
{LOAD}
print("NETWORK", tuple(network.eval()(__import__("torch").zeros(1, 1, 32, 32, 48)).shape))
train = monai.bundle.load("{NAME}", bundle_dir="bundles", workflow_type="train")
assert sys.excepthook is mine
monai.bundle.verify_net_in_out(
    "network_def", config_file="{CONFIG}/inference.json", meta_file="{CONFIG}/metadata.json"
)
"""


def test_a_host_program_searches_loads_and_verifies_from_another_folder(program: Program, bundle: Path) -> None:
    result = program(code=HOST)
    assert re.search(r"^\(-?[\d.]+, -?[\d.]+, -?[\d.]+\) [\d.]+ mm 0\.\d{3} ", result.stdout, re.MULTILINE)
    assert "REASON " in result.stdout
    assert "expected a scan, a folder or a datalist, found nothing there" in result.stdout
    assert "RUN RefusedScansError" in result.stdout
    assert "NETWORK (1, 13, 16, 16, 24)" in result.stdout
    assert not (bundle / "outputs").exists(), "loading writes nothing into the bundle"


def test_trainings_run_from_another_folder(program: Program, elsewhere: Path) -> None:
    """From a datalist, and from items that the program holds: of these alone, one to train on and one to validate."""
    small = {"batch_size": 1, "crop_size": 32, "num_workers": 0, "cache_workers": 0}
    code = TRAIN.replace("epoch_length=2", f"epoch_length=2, **{small}") + ITEMS.replace(
        "**items", f"**{small}, **items"
    )
    code += "assert [len(workflow.parser.get_parsed_content(name)) for name in items] == [1, 1]\n"
    result = program(code=code)
    assert "got none in 1 scans" in result.stdout, "the page's own scan validates, not the datalist's"
    for name in ("mine", "items"):
        assert (elsewhere / "runs" / name / "model.pt").exists()
        assert (elsewhere / "runs" / name / "model_final.pt").exists()


def _unready(node: Any, path: str = "", ready: bool = False) -> list[str]:
    """Components of ``scripts`` that may be built before the bundle is on the path."""
    if isinstance(node, list):
        found = []
        for number, part in enumerate(node):
            found += _unready(part, f"{path}#{number}", ready)
            ready = ready or (isinstance(part, dict) and "_requires_" in part)  # members are built in their order
        return found
    if not isinstance(node, dict):
        return []
    ready = ready or "_requires_" in node
    own = [path] if str(node.get("_target_", "")).startswith("scripts.") and not ready else []
    return own + [name for key, part in node.items() for name in _unready(part, f"{path}#{key}", ready)]


@pytest.mark.parametrize("name", ["train", "inference"])
def test_every_component_of_the_bundle_says_that_it_needs_its_path(name: str) -> None:
    config = json.loads((ROOT / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    graph = {key: part for key, part in config.items() if key not in ("initialize", "run")}
    assert _unready(graph) == []
