"""A training learns: from four synthetic scans to nodules in two that it has never seen, by the README's commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.network import CompactNet, save_weights
from scripts.phantom.command import phantom
from tests.bundle import EVALUATE, INFERENCE, TRAIN, nodules, run

# Small crops and a high learning rate: a minute or two on two cores instead of an hour.
SHORT = {
    **{"crop_size": 48, "batch_size": 4, "epoch_length": 50, "max_epochs": 2, "val_interval": 2, "num_workers": 0},
    **{"nodule_share": 0.7, "learning_rate": 0.002, "warmup_iterations": 20, "average_decay": 0.9},
}


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six half-size chests: four to train on, two to validate."""
    folder = tmp_path_factory.mktemp("chests")
    phantom(str(folder), scans=6, seed=11, format="nifti", scale=0.5, validation_fraction=0.34)
    return folder


def evaluate(chests: Path, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Score the two unseen scans."""
    run("evaluating", TRAIN, EVALUATE, dataset_dir=chests, output_dir=output, checkpoint=checkpoint, resamples=0)
    return dict(json.loads((output / "froc.json").read_text(encoding="utf-8"))["predictions"])


def test_training_finds_nodules_in_scans_it_has_never_seen(chests: Path, tmp_path: Path) -> None:
    save_weights(CompactNet(), tmp_path / "untrained.pt")
    untrained = evaluate(chests, tmp_path / "untrained.pt", tmp_path / "before")
    run("training", TRAIN, dataset_dir=chests, output_dir=tmp_path / "run", **SHORT)
    trained = evaluate(chests, tmp_path / "run" / "model.pt", tmp_path / "after")
    assert (trained["scans"], trained["nodules"]) == (2, 13)
    assert untrained["cpm"] < 0.1
    assert trained["cpm"] > untrained["cpm"] + 0.3
    assert trained["sensitivity_at"]["8"] > 0.5
    item = json.loads((chests / "datalist.json").read_text(encoding="utf-8"))["validation"][1]
    scan, weights = chests / item["image"], tmp_path / "run" / "model.pt"
    run("inference", INFERENCE, input=scan, output_dir=tmp_path / "out", checkpoint=weights, threshold=0.3)
    found = np.array([n["centre_lps_mm"] for n in nodules(tmp_path / "out", item["name"])]).reshape(-1, 3)
    truth = np.array(item["box"])
    apart_mm = np.linalg.norm(found[:, None] - truth[None, :, :3], axis=2)
    assert (apart_mm < truth[:, 3] / 2.0).any(axis=0).sum() >= 2
