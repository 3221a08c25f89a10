"""Habits from other bundles of the zoo that do not fit here are refused with a line that names what does."""

from __future__ import annotations

import sys
from pathlib import Path

import fire
import pytest
from monai.bundle.scripts import run

from scripts.core.errors import user_error_in
from tests.bundle import ROOT

HINTS = {"ckpt_path": "checkpoint", "ckpt_dir": "output_dir", "epochs": "max_epochs", "amp": "precision"}


def refusal(run_id: str, config: str, *words: str) -> str:
    """What ``python -m monai.bundle run …`` says before anything is read or written."""
    command = ["run", run_id, "--config_file", str(ROOT / "configs" / config), *words]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps the error in one of its own
        fire.Fire({"run": run}, command=command)
    return str(user_error_in(caught.value))


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder that is not the bundle's; the hook for plain messages is the process's."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("run_id", ["train", "validate"])
def test_a_section_of_the_graph_is_no_run(run_id: str, tmp_path: Path) -> None:
    """MONAI alone would end with exit status 0 and nothing done."""
    said = refusal(run_id, "train.json")
    assert f"expected something to run (run, training, caching), got '{run_id}'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Can't merge entry")  # MONAI's, of the graph that is missing
@pytest.mark.parametrize("run_id", ["run", "evaluating"])
def test_the_overlay_of_evaluation_does_not_run_alone(run_id: str) -> None:
    assert "\"['configs/train.json', 'configs/evaluate.json']\"" in refusal(run_id, "evaluate.json")


def test_names_that_other_bundles_use_lead_to_those_of_this_one() -> None:
    said = refusal("training", "train.json", *(word for name in HINTS for word in (f"--{name}", "1")))
    for name, ours in HINTS.items():
        assert f"--{name} (did you mean {ours}?)" in said
