"""Habits from other bundles of the zoo that do not fit here are refused with a line that names what does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundle import ROOT, typed

HINTS = {"ckpt_path": "checkpoint", "ckpt_dir": "output_dir", "epochs": "max_epochs", "amp": "precision"}


def refusal(folder: Path, run_id: str, config: str, *words: str) -> str:
    """What ``python -m monai.bundle run …`` says in a folder that is not the bundle's, where it leaves nothing."""
    result = typed(run_id, "--config_file", str(ROOT / "configs" / config), *words, folder=folder)
    assert (result.returncode, list(folder.iterdir())) == (1, [])
    return result.stderr


@pytest.mark.parametrize("run_id", ["train", "validate"])
def test_a_section_of_the_graph_is_no_run(run_id: str, tmp_path: Path) -> None:
    """MONAI alone would end with exit status 0 and nothing done."""
    said = refusal(tmp_path, run_id, "train.json")
    assert f"expected something to run (run, training, caching), got '{run_id}'" in said


@pytest.mark.parametrize("run_id", ["run", "evaluating"])
def test_the_overlay_of_evaluation_does_not_run_alone(run_id: str, tmp_path: Path) -> None:
    assert "\"['configs/train.json', 'configs/evaluate.json']\"" in refusal(tmp_path, run_id, "evaluate.json")


def test_names_that_other_bundles_use_lead_to_those_of_this_one(tmp_path: Path) -> None:
    said = refusal(tmp_path, "training", "train.json", *(word for name in HINTS for word in (f"--{name}", "1")))
    for name, ours in HINTS.items():
        assert f"--{name} (did you mean {ours}?)" in said
