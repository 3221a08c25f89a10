"""The examples of CONTRIBUTING.md run as they stand there: one new file and a few lines of configuration each."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scripts.network import CompactNet
from tests.bundle import INFERENCE, QUICK, ROOT, TRAIN, nodules, options, run, succeeded, typed

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(heading: str) -> dict[str, str]:
    """The files of one example, by path."""
    (part,) = re.findall(rf"^### {heading}\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)
    return {
        name: text for name, _, text in re.findall(r"^`(\S+)`:\n\n```(\w+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    }


@contextmanager
def added(files: Mapping[str, str], folder: Path) -> Iterator[str]:
    """Write files into a folder, as if it were the bundle's; the path of their ``configs/mine.json``."""
    modules = [name.removesuffix(".py").replace("/", ".") for name in files if name.endswith(".py")]
    for name, text in files.items():
        assert (ROOT / name).parent.is_dir()
        assert not (ROOT / name).exists(), "an example adds files and changes none"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            package = importlib.import_module(module.rpartition(".")[0])
            patch.setattr(package, "__path__", [*package.__path__, str(folder / package.__name__.replace(".", "/"))])
        try:
            yield str(folder / "configs" / "mine.json")
        finally:
            for module in modules:
                sys.modules.pop(module, None)


def train(files: Mapping[str, str], folder: Path, small_data: Path) -> subprocess.CompletedProcess[str]:
    """Train with files that lie in a folder as if they lay in the bundle's; the results are in its ``run``."""
    settings = {**QUICK, "dataset_dir": small_data, "output_dir": folder / "run", "max_epochs": 1}
    with added(files, folder) as mine:
        return typed("training", "--config_file", str([TRAIN, mine]), *options(settings))


@pytest.mark.parametrize(
    ("heading", "sign"), [("A transform", "RandBlackoutd"), ("A loss", "TverskyMaskLoss"), ("A network", "TinyNet")]
)
def test_an_example_trains_as_it_is_written(heading: str, sign: str, small_data: Path, tmp_path: Path) -> None:
    files = example(heading)
    assert len(files) == 2
    succeeded(train(files, tmp_path / "written", small_data))
    state = torch.load(tmp_path / "written" / "run" / "model.pt", weights_only=True)
    assert (state.keys() == CompactNet().state_dict().keys()) == (sign != "TinyNet")
    renamed = {name: text.replace(sign, "Renamed") if name.endswith(".py") else text for name, text in files.items()}
    again = train(renamed, tmp_path / "renamed", small_data)
    assert again.returncode != 0, "the example's file is not what the training used"
    assert sign in again.stderr


def test_the_example_of_a_writer_adds_its_file(small_data: Path, tmp_path: Path) -> None:
    scan = sorted((small_data / "images").iterdir())[0]
    with added(example("A writer"), tmp_path) as mine:
        run("inference", INFERENCE, mine, input=scan, output_dir=tmp_path / "out", threshold=0.01)
    (file,) = (tmp_path / "out").glob("*/nodules.jsonl")
    found = nodules(tmp_path / "out", file.parent.name)
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == found
    assert found


@pytest.mark.parametrize(("task", "graph"), [("training", "train"), ("inference", "inference")])
def test_the_command_of_the_examples_is_the_one_shown(task: str, graph: str) -> None:
    (line,) = re.findall(rf"^python -m monai\.bundle run {task} .*mine.*$", TEXT, re.MULTILINE)
    assert line.endswith(f"--config_file \"['configs/{graph}.json', 'configs/mine.json']\"")
