"""The examples of CONTRIBUTING.md run as they stand there: one new file and a few lines of configuration each."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from scripts.network import CompactNet
from tests.bundle import ROOT, command

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(heading: str) -> dict[str, str]:
    """The files of one example, by path."""
    (part,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    return {
        name: text for name, _, text in re.findall(r"^`(\S+)`:\n\n```(\w+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    }


@pytest.mark.parametrize(
    ("heading", "sign"), [("A transform", "RandBlackoutd"), ("A loss", "TverskyMaskLoss"), ("A network", "TinyNet")]
)
def test_an_example_trains_as_it_is_written(heading: str, sign: str, small_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    for folder in ("configs", "scripts"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "models").mkdir()
    shutil.copy(ROOT / "models" / "lung_search.pt", root / "models")
    files = example(heading)
    assert len(files) == 2
    for name, text in files.items():
        assert not (root / name).exists(), "an example adds files and changes none"
        (root / name).write_text(text, encoding="utf-8")
    configs = str([str(root / "configs" / "train.json"), str(root / "configs" / "mine.json")])
    settings = [
        "--max_epochs",
        "1",
        "--epoch_length",
        "2",
        "--batch_size",
        "2",
        "--crop_size",
        "32",
        "--num_workers",
        "0",
    ]
    paths = ["--dataset_dir", str(small_data), "--output_dir", str(tmp_path / "run"), "--bundle_root", str(root)]
    result = command("training", "--config_file", configs, *paths, *settings, "--precision", "float32", folder=root)
    assert result.returncode == 0, result.stdout + result.stderr
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert (state.keys() == CompactNet().state_dict().keys()) == (sign != "TinyNet")
    broken = next(name for name in files if name.endswith(".py"))
    (root / broken).write_text(files[broken].replace(sign, "Renamed"), encoding="utf-8")
    again = command("training", "--config_file", configs, *paths, "--max_epochs", "2", folder=root)
    assert again.returncode != 0, "the example's file is not what the training used"
    assert sign in again.stderr


def test_the_command_of_the_examples_is_the_one_shown() -> None:
    (line,) = re.findall(r"^python -m monai\.bundle run training .*$", TEXT, re.MULTILINE)
    assert line.endswith("--config_file \"['configs/train.json', 'configs/mine.json']\"")
