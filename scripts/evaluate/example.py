"""The command ``example``: makes up results of two systems to try the evaluation on."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from ..core.files import writable_folder, write_csv
from ..core.geometry import FloatArray
from .tables import FINDING_COLUMNS, LUNA16_COLUMNS

logger = logging.getLogger(__name__)

Row = tuple[str, float, float, float, float]

_SYSTEMS = {"system_a": (0.95, 2.2), "system_b": (0.85, 1.4)}  # share of nodules found, mean logit of these candidates
_FALSE_PER_SCAN = 12.0


def example(*, output_dir: str, scans: int = 200, seed: int = 0) -> None:
    """Make up a reference and the results of two systems, as files for the command luna16.

    Args:
        output_dir: folder for annotations.csv, annotations_excluded.csv, seriesuids.csv, system_a.csv and system_b.csv.
        scans: number of scans, each with one nodule on average.
        seed: the same seed gives the same files.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = writable_folder(output_dir)
    rng = np.random.default_rng(seed)
    uids = [f"scan_{n:04d}" for n in range(max(scans, 1))]
    nodules = _findings(uids, rng, mean=1.0)
    excluded = [(*row[:4], -1.0) for row in _findings(uids, rng, mean=3.0)]
    write_csv(folder / "annotations.csv", [FINDING_COLUMNS, *nodules])
    write_csv(folder / "annotations_excluded.csv", [FINDING_COLUMNS, *excluded])
    write_csv(folder / "seriesuids.csv", [(uid,) for uid in uids])
    for name, (seen, apart) in _SYSTEMS.items():
        write_csv(folder / f"{name}.csv", [LUNA16_COLUMNS, *_results(uids, nodules, rng, seen, apart)])
    logger.info("%s: %d scans, %d nodules, results of %s", folder, len(uids), len(nodules), ", ".join(_SYSTEMS))


def _findings(uids: list[str], rng: np.random.Generator, mean: float) -> list[Row]:
    return [
        _row(uid, rng.uniform(-150.0, 150.0, 3), min(3.25 + rng.gamma(1.5, 3.3), 30.0))
        for uid in uids
        for _ in range(rng.poisson(mean))
    ]


def _results(uids: list[str], nodules: list[Row], rng: np.random.Generator, seen: float, apart: float) -> Iterator[Row]:
    """Yield candidates near the centres of some nodules, and false positives anywhere."""
    for uid, x, y, z, diameter_mm in nodules:
        if rng.random() < seen:
            yield _row(uid, np.array([x, y, z]) + rng.normal(0.0, diameter_mm / 12.0, 3), _score(rng, apart))
    for uid in uids:
        for _ in range(rng.poisson(_FALSE_PER_SCAN)):
            yield _row(uid, rng.uniform(-150.0, 150.0, 3), _score(rng, -1.5))


def _score(rng: np.random.Generator, mean_logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-rng.normal(mean_logit, 1.4))))


def _row(uid: str, position_mm: FloatArray, last: float) -> Row:
    x, y, z = (round(float(v), 2) for v in position_mm)
    return uid, x, y, z, round(float(last), 4)
