"""How the cost grows: with the number of scans, as whole commands; with the lungs' size, on bodies of several sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.core.errors import DataError
from scripts.phantom.command import phantom

from .search import ROOT, Searched, median_search

SCANS, SCALES = (1, 2, 4, 8), (0.5, 0.75, 1.0)
MESSAGE_LINES = 5  # of a failed command, shown
SEED = 3  # of synthetic scans


def synthetic(folder: Path, scale: float = 1.0) -> str:
    """Make a synthetic scan as DICOM, a chest of about 300 mm times ``scale``; where it is."""
    phantom(str(folder), scans=1, seed=SEED, format="dicom", scale=scale)
    return str(folder / "images")


def time_command(source: str, scans: int, options: Sequence[str]) -> float:
    """Wall time of the whole inference command for one scan given ``scans`` times.

    Args:
        source: the scan.
        scans: how often it is listed.
        options: of the command line, behind input and output.

    Raises:
        DataError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "scans.json"
        listed.write_text(json.dumps([{"image": str(Path(source).resolve())}] * scans), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", *options]
        begun = time.perf_counter()
        run = subprocess.run(
            [*command, "--input", str(listed), "--output_dir", str(Path(folder) / "results")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
    if run.returncode:
        said = "\n".join(run.stderr.strip().splitlines()[-MESSAGE_LINES:])
        raise DataError(
            f"{' '.join(command)}: expected {scans} scans to be searched, got exit {run.returncode}: {said}"
        )
    return seconds


def search_sizes(config_files: Sequence[str], repeats: int, **overrides: Any) -> dict[float, Searched]:
    """Search synthetic bodies of several sizes."""
    found = {}
    for scale in SCALES:
        with tempfile.TemporaryDirectory() as folder:
            source = synthetic(Path(folder), scale)
            found[scale] = median_search(config_files, repeats, **{**overrides, "input": source})
    return found
