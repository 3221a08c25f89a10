"""The whole command, start included, for one scan or several; and a synthetic scan to search."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from scripts.core.errors import DataError
from scripts.phantom.command import phantom

from .search import ROOT

SCANS = (1, 2, 4, 8)
MESSAGE_LINES = 5  # of a failed command, shown
SEED = 3  # of synthetic scans


def synthetic(folder: Path) -> str:
    """Make a synthetic scan as DICOM, a chest of about 300 mm; where it is."""
    phantom(str(folder), scans=1, seed=SEED, format="dicom")
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
