"""A training learns: from four synthetic scans to nodules in two that it has never seen, by the README's commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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


def test_training_finds_nodules_in_scans_it_has_never_seen(chests: Path, tmp_path: Path) -> None:
    run("training", TRAIN, dataset_dir=chests, output_dir=tmp_path / "run", **SHORT)
    weights, scores = tmp_path / "run" / "model.pt", tmp_path / "scores"
    run("evaluating", TRAIN, EVALUATE, dataset_dir=chests, output_dir=scores, checkpoint=weights, resamples=0)
    trained = json.loads((scores / "froc.json").read_text(encoding="utf-8"))["predictions"]
    assert (trained["scans"], trained["nodules"]) == (2, 13)
    assert trained["cpm"] > 0.3  # untrained: below 0.1
    assert trained["sensitivity_at"]["8"] > 0.5
    item = json.loads((chests / "datalist.json").read_text(encoding="utf-8"))["validation"][1]
    scan = chests / item["image"]
    run("inference", INFERENCE, input=scan, output_dir=tmp_path / "out", checkpoint=weights, threshold=0.3)
    found = np.array([n["centre_lps_mm"] for n in nodules(tmp_path / "out", item["name"])]).reshape(-1, 3)
    truth = np.array(item["box"])
    apart_mm = np.linalg.norm(found[:, None] - truth[None, :, :3], axis=2)
    assert (apart_mm < truth[:, 3] / 2.0).any(axis=0).sum() >= 2
