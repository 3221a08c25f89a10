"""Run the bundle from tests: in this process, or on the command line as a user does."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import fire
import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import run as monai_run

ROOT = Path(__file__).resolve().parents[1]
TRAIN, EVALUATE, INFERENCE = (str(ROOT / "configs" / f"{name}.json") for name in ("train", "evaluate", "inference"))
PYTHON = (sys.executable, "-W", "ignore")

# A training of steps that take no time.
QUICK = {
    **{"epoch_length": 2, "batch_size": 2, "crop_size": 32, "num_workers": 0, "val_interval": 1, "log_interval": 1},
    **{"precision": "float32", "nodule_share": 0.8, "tile_size": "[64,64,64]"},
}


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


def _process(folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Where a process runs: on one thread, since the tests' networks are too small to gain from more.

    Run times then also depend less on other load.
    """
    return {"cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1"} | environment, "text": True}


def python(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a separate process, in a given working folder."""
    place = _process(folder, environment)
    return subprocess.run([*PYTHON, *words], capture_output=True, timeout=900, check=False, **place)


def started(*words: str) -> subprocess.Popen[str]:
    """Start what :func:`python` runs, in the project's folder."""
    return subprocess.Popen([*PYTHON, *words], stdout=subprocess.PIPE, **_process(ROOT, {}))


def command(
    *arguments: str, launcher: tuple[str, ...] = (), folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m monai.bundle run …``, in the project's folder by default.

    ``launcher`` is a module with its options that starts it, if any.
    """
    line = ["-m", *launcher, *(["-m"] if launcher else []), "monai.bundle", "run", *arguments]
    return python(*line, folder=folder, **environment)


@contextlib.contextmanager
def _as_process(words: list[str], folder: Path) -> Iterator[None]:
    """Make this process one that was started as ``python -W ignore -m monai.bundle …`` on one thread, for a while."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    level, handlers = root.level, list(root.handlers)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["monai.bundle", *words])
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "excepthook", sys.__excepthook__)
        patch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("monai.bundle.__main__", None))
        patch.chdir(folder)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            root.setLevel(level)
            root.handlers[:] = handlers
            gc.collect()  # engines are circles: what they leave open is closed here, where no warning is an error


def typed(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run what :func:`command` runs, by the same functions but in this process, which saves the start of PyTorch.

    Errors end it as they end a process: by the hook that the bundle has set, with exit status 1.
    """
    words, status, out, err = ["run", *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _as_process(words, folder):
        try:
            fire.Fire({"run": monai_run}, command=words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def options(settings: Mapping[str, Any]) -> list[str]:
    """The words of a command line that give these settings."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def run(task: str, *configs: str, **settings: Any) -> str:
    """Run a task of configurations laid over each other; assert that it succeeds, and return what it prints."""
    return succeeded(typed(task, "--config_file", str(list(configs)), *options(settings))).stdout


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stdout + result.stderr
    return result


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
