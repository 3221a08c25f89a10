"""The training graph runs: a few iterations on small synthetic chests, validation, checkpoint, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.network import compact
from tests.bundle import ROOT, command

QUICK = [
    "--epoch_length",
    "2",
    "--batch_size",
    "2",
    "--num_workers",
    "0",
    "--val_interval",
    "1",
    "--precision",
    "float32",
]


def _train(data: Path, output: Path, *more: str) -> Any:
    paths = ("--dataset_dir", str(data), "--output_dir", str(output))
    return command("training", "--config_file", str(ROOT / "configs" / "train.json"), *paths, *QUICK, *more)


def test_training_runs_validates_saves_and_goes_on(small_data: Path, tmp_path: Path) -> None:
    first = _train(small_data, tmp_path, "--max_epochs", "1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "val_cpm" in first.stdout
    network = compact()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))  # the best by val_cpm
    again = _train(small_data, tmp_path, "--max_epochs", "2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on from" in again.stdout
    assert "Epoch: 2/2" in again.stdout
    assert "Epoch: 1/2" not in again.stdout


def test_an_empty_training_list_is_refused(tmp_path: Path) -> None:
    result = _train(tmp_path, tmp_path / "out", "--max_epochs", "1")
    assert result.returncode != 0
    assert "expected at least one scan, got none" in result.stderr


@pytest.mark.parametrize("option", ["--learning_rat", "--train#trainer#max_epoch"])
def test_an_unknown_override_is_refused(option: str, tmp_path: Path) -> None:
    result = _train(tmp_path, tmp_path / "out", option, "1")
    assert result.returncode != 0
    assert option in result.stderr
    assert "Traceback" not in result.stderr


def test_evaluation_writes_its_readings(small_data: Path, tmp_path: Path) -> None:
    configs = str([str(ROOT / "configs" / name) for name in ("train.json", "evaluate.json")])
    paths = ("--dataset_dir", str(small_data), "--output_dir", str(tmp_path))
    result = command("evaluating", "--config_file", configs, *paths)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads((tmp_path / "froc.json").read_text(encoding="utf-8"))
    truth = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["validation"]
    assert content["scans"] == len(truth)
    assert content["nodules"] == sum(len(item["box"]) for item in truth)
    readings = list(content["sensitivity_at_false_positives_per_scan"].values())
    assert readings == sorted(readings)
    assert content["cpm"] == pytest.approx(sum(readings) / 7, abs=1e-3)
