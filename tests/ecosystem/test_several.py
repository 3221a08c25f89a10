"""Several ranks share a run: what they leave is what one process leaves, a refused scan included."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from scripts.core.files import write_json
from scripts.evaluate import cross_validation
from scripts.evaluate.__main__ import main as evaluate
from tests.bundle import typed
from tests.ecosystem.conftest import NAME, Program

VARIES = re.compile(r'"seconds": [\d.]+')


def command(output: str, *overlays: str) -> tuple[str, ...]:
    configs = [f"bundles/{NAME}/configs/{name}.json" for name in ("inference", *overlays)]
    where = ("--input", "several", "--output_dir", output, "--precision", "float32")
    return ("inference", "--config_file", str(configs), *where)


def files(folder: Path) -> dict[str, str]:
    """Text of the tables, without times."""
    wanted = sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".json"))
    return {path.relative_to(folder).as_posix(): VARIES.sub("", path.read_text(encoding="utf-8")) for path in wanted}


def test_two_ranks_leave_what_one_process_leaves(program: Program, elsewhere: Path) -> None:
    (elsewhere / "several").mkdir()
    for number in range(3):
        shutil.copy(elsewhere / f"data/images/phantom_{number:04d}.nii.gz", elsewhere / "several")
    (elsewhere / "several/broken.nii.gz").write_bytes(b"no image")
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run")
    two = program(*launcher, *command("found2", "multi_gpu_inference"), fails=True)
    one = typed(*command("found1"), folder=elsewhere)
    assert one.returncode == 1
    assert "3 scans searched, 1 refused (broken)" in one.stdout
    counts = [int(count) for count in re.findall(r"^(\d+) scans? searched", two.stdout, re.MULTILINE)]
    assert sum(counts) == 3
    first, second = files(elsewhere / "found1"), files(elsewhere / "found2")
    assert {"predictions.csv", "phantom_0000/nodules.json"} <= set(first)
    assert first == second
    pages = [(elsewhere / name / "index.html").read_text() for name in ("found1", "found2")]
    rows = [re.findall(r"phantom_\d+|broken", page) for page in pages]
    assert rows[0] == rows[1]


class Processes:
    """In the place of ``subprocess.run``: what each fold runs on which device; the first two must meet."""

    def __init__(self, failing: str = "", meet: bool = False) -> None:
        self.failing, self.calls = failing, list[tuple[str, str, str]]()
        self.busy, self.most = Counter[str](), Counter[str]()
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(2) if meet else None

    def __call__(self, words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        options = dict(zip(words[5::2], words[6::2], strict=True))
        task, device, folder = words[4], options["--device"], Path(options["--output_dir"])
        fold = re.findall(r"fold\d", options["--datalists"])[0]
        self.calls.append((task, fold, device))
        with self.lock:
            self.busy[device] += 1
            self.most |= self.busy
        if self.barrier is not None and fold in ("fold0", "fold1") and task == "training":
            self.barrier.wait(timeout=20)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*cross_validation.SCORED, "froc.json") if task == "evaluating" else ():
            (folder / name).write_text("seriesuid\n")
        with self.lock:
            self.busy[device] -= 1
        return subprocess.CompletedProcess(words, int(fold == self.failing))


def test_folds_share_the_devices_and_a_scored_fold_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [str(write_json(tmp_path / f"fold{number}.json", {})) for number in range(4)]
    devices = ("--devices", "cuda:0", "cuda:1")
    words = ["cross_validate", "--datalists", *lists, "--output_dir", str(tmp_path / "runs"), *devices]
    pooled: list[list[str]] = []
    monkeypatch.setattr(cross_validation, "luna16", lambda **given: pooled.append(given["results"]))
    first, second = Processes(failing="fold3", meet=True), Processes()
    monkeypatch.setattr(subprocess, "run", first)
    assert evaluate(words) == 1
    assert first.most == {"cuda:0": 1, "cuda:1": 1}  # both at work, never with two folds
    assert pooled == []
    monkeypatch.setattr(subprocess, "run", second)
    assert evaluate(words) == 0
    assert [(task, fold) for task, fold, _ in second.calls] == [("training", "fold3"), ("evaluating", "fold3")]
    assert [len(results) for results in pooled] == [4]
