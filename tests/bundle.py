"""Running the bundle from tests: in this process, or as a user does on the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.bundle import ConfigParser, ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]
TRAIN, EVALUATE, INFERENCE = (str(ROOT / "configs" / f"{name}.json") for name in ("train", "evaluate", "inference"))


def graph(*names: str | Path, **settings: Any) -> ConfigParser:
    """Graphs of ``configs`` laid over each other, or other files, on the CPU."""
    files = [str(ROOT / "configs" / f"{name}.json") if isinstance(name, str) else str(name) for name in names]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(ROOT), "device": "cpu", **settings})
    parser.parse()
    return parser


def run_inference(source: Path, output: Path, **overrides: Any) -> None:
    """Run the inference graph in this process."""
    workflow = ConfigWorkflow(
        str(ROOT / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=str(ROOT / "configs" / "logging.conf"),
        bundle_root=str(ROOT),
        input=str(source),
        output_dir=str(output),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def python(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, in a working folder.

    On one thread: the tests' networks are too small for more, and times no longer depend on what else runs.
    """
    return subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def command(
    *arguments: str, launcher: tuple[str, ...] = (), folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run …`` from the project's folder, by a launcher (module, options) if given."""
    line = ["-m", *launcher, *(["-m"] if launcher else []), "monai.bundle", "run", *arguments]
    return python(*line, folder=folder, **environment)


def run(task: str, *configs: str, **options: Any) -> str:
    """What a command that must succeed prints: a task of the configurations laid over each other."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = command(task, "--config_file", str(list(configs)), *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def candidates(output: Path) -> np.ndarray:
    """``[N, 4]`` x, y, z (LPS mm) and probability of all candidates of a run."""
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [[float(r[c]) for c in ("coordX", "coordY", "coordZ", "probability")] for r in csv.DictReader(file)]
    return np.array(rows).reshape(-1, 4)


def assert_found(expected: npt.ArrayLike, found: np.ndarray, *, apart_mm: float, apart: float) -> None:
    """Each of some candidates is among others, at most so far from them, with much the same probability."""
    for *centre, probability in np.asarray(expected):
        away_mm = np.linalg.norm(found[:, :3] - centre, axis=1)
        assert away_mm.min() < apart_mm
        assert abs(found[away_mm.argmin(), 3] - probability) <= apart


def nodules(output: Path, name: str) -> list[dict[str, Any]]:
    """The nodules of one scan's nodules.json."""
    return list(json.loads((output / name / "nodules.json").read_text(encoding="utf-8"))["nodules"])
