"""How the cost grows: with the number of scans, as whole commands; with the lungs' size, on bodies of several sizes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.core.errors import DataError
from scripts.phantom.command import phantom

from .search import NETWORK, ROOT, Searched, median_search
from .stopwatch import Stage

logger = logging.getLogger(__name__)

MESSAGE_LINES = 5  # of a failed command, shown


@dataclass(frozen=True)
class Sized:
    """One body: its size, and what it took.

    Attributes:
        scale: of the synthetic body, see ``python -m scripts.prepare phantom``.
        litres: of lung.
        windows: of the network.
        network_seconds, seconds: of the network's stage; of all.
        peak_process_bytes: the most of all stages.
    """

    scale: float
    litres: float
    windows: int
    network_seconds: float
    seconds: float
    peak_process_bytes: int


@dataclass(frozen=True)
class Line:
    """Seconds as ``start + each × scans``, by least squares; ``off`` is the largest deviation, as a share."""

    start: float
    each: float
    off: float


def synthetic(folder: Path, seed: int, scale: float = 1.0, scans: int = 1) -> Path:
    """Make synthetic scans as DICOM; returns the folder of images (the datalist lies beside it)."""
    phantom(str(folder), scans=scans, seed=seed, format="dicom", scale=scale)
    return folder / "images"


def time_command(source: str, scans: int, options: Sequence[str], threads: int) -> float:
    """Wall time of the whole inference command for one scan given ``scans`` times.

    Args:
        source: the scan.
        scans: how often it is listed.
        options: of the command line, behind input and output.
        threads: of the command.

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
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
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


def line_through(counts: Sequence[int], seconds: Sequence[float]) -> Line:
    """Fit of two or more different counts; with two, nothing is off."""
    each, start = np.polyfit(counts, seconds, 1).tolist()
    fitted = start + each * np.asarray(counts)
    return Line(start, each, float(np.max(np.abs(fitted - seconds) / np.asarray(seconds))))


def search_sizes(
    scales: Sequence[float], seed: int, config_files: Sequence[str], repeats: int, **overrides: Any
) -> list[Sized]:
    """Search synthetic bodies of several sizes."""
    logger.info("searching bodies of %s times the size …", ", ".join(map(str, scales)))
    rows = []
    for scale in scales:
        with tempfile.TemporaryDirectory() as folder:
            source = synthetic(Path(folder), seed, scale)
            rows.append(_sized(scale, *median_search(config_files, repeats, input=str(source), **overrides)))
    return rows


def _sized(scale: float, stages: dict[str, Stage], about: Searched) -> Sized:
    return Sized(
        scale,
        about.litres,
        about.windows,
        stages[NETWORK].seconds,
        sum(stage.seconds for stage in stages.values()),
        max(stage.peak_process_bytes for stage in stages.values()),
    )
