"""Run the bundle from tests: in this process, or on the command line as a user does."""

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
    """Parse configuration files on the CPU, laid over each other: names in ``configs``, or paths of other files."""
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
    """Run Python in a separate process, in a given working folder.

    It uses one thread: the tests' networks are too small to gain from more, and run times then depend less on other
    load.
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
    """Run ``python -m monai.bundle run …``, in the project's folder by default.

    ``launcher`` is a module with its options that starts it, if any.
    """
    line = ["-m", *launcher, *(["-m"] if launcher else []), "monai.bundle", "run", *arguments]
    return python(*line, folder=folder, **environment)


def run(task: str, *configs: str, **options: Any) -> str:
    """Run a task of configurations laid over each other; assert that it succeeds, and return what it prints."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = command(task, "--config_file", str(list(configs)), *words)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def candidates(output: Path) -> np.ndarray:
    """Return ``[N, 4]``: x, y, z (LPS mm) and probability of all candidates of a run."""
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = [[float(r[c]) for c in ("coordX", "coordY", "coordZ", "probability")] for r in csv.DictReader(file)]
    return np.array(rows).reshape(-1, 4)


def assert_found(expected: npt.ArrayLike, found: np.ndarray, *, apart_mm: float, apart: float) -> None:
    """Assert that each expected candidate was found, within ``apart_mm`` and with a probability within ``apart``."""
    for *centre, probability in np.asarray(expected):
        away_mm = np.linalg.norm(found[:, :3] - centre, axis=1)
        assert away_mm.min() < apart_mm
        assert abs(found[away_mm.argmin(), 3] - probability) <= apart


def nodules(output: Path, name: str) -> list[dict[str, Any]]:
    """Return the nodules in the nodules.json of one scan."""
    return list(json.loads((output / name / "nodules.json").read_text(encoding="utf-8"))["nodules"])
