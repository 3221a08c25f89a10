"""Several ranks: an evaluation gives what one rank gives, and a training takes turns over the crops."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from scripts.network import CompactNet
from tests.bundle import QUICK, ROOT, command, options, succeeded, typed


def configs(*names: str) -> str:
    return str([str(ROOT / "configs" / f"{name}.json") for name in names])


CALM = {"PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_an_evaluation_on_two_ranks_writes_what_one_rank_writes(small_data: Path, tmp_path: Path) -> None:
    """Of three scans one goes to both ranks, so that they get equally many."""
    shared = options({"dataset_dir": small_data, "section": "training", "precision": "float32", "resamples": 50})
    names = configs("train", "evaluate")
    succeeded(typed("evaluating", "--config_file", names, *shared, "--output_dir", f"{tmp_path}/1", "--device", "cpu"))
    names = configs("train", "evaluate", "multi_gpu_evaluate")
    words = ("evaluating", "--config_file", names, *shared, "--output_dir", f"{tmp_path}/2")
    succeeded(command(*words, launcher=TORCHRUN, **CALM))
    first, second = files_of(tmp_path / "1"), files_of(tmp_path / "2")
    assert {"froc.json", "masks.json", "predictions.csv"} <= set(first)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_training_on_two_ranks_logs_and_saves_once(small_data: Path, tmp_path: Path) -> None:
    settings = options({**QUICK, "max_epochs": 1, "dataset_dir": small_data, "output_dir": tmp_path})
    names = configs("train", "multi_gpu_train")
    result = succeeded(command("training", "--config_file", names, *settings, launcher=TORCHRUN, **CALM))
    assert len(re.findall(r"step \d of 2:", result.stdout)) == 2
    assert len(re.findall(r"epoch 1: val_cpm", result.stdout)) == 1
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == CompactNet().state_dict().keys()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["epoch"] == 1
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["epoch_0001.png"]
