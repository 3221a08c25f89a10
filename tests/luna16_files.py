"""A miniature LUNA16 download for the tests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from scripts.core import files
from tests.image_files import write_image

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
SHAPE = (12, 14, 10)  # I, J, K
SPACING_MM = (2.0, 2.0, 2.5)
ORIGIN_LPS_MM = (-30.0, -40.0, -120.0)
Row = tuple[str, float, float, float, float]


def uid(subset: int, number: int) -> str:
    return f"1.3.6.1.4.1.14519.{subset}.{number}"


def centre_lps_mm(voxel: Sequence[float], *, flipped: bool = False) -> tuple[float, float, float]:
    """Return the position of a voxel; in a flipped scan x and y fall along i and j."""
    sign = (-1.0, -1.0, 1.0) if flipped else (1.0, 1.0, 1.0)
    x, y, z = (o + s * step * v for o, s, step, v in zip(ORIGIN_LPS_MM, sign, SPACING_MM, voxel, strict=True))
    return x, y, z


def write_mhd(path: Path, volume: np.ndarray, *, flipped: bool = False, compressed: bool = False) -> Path:
    """Write ``[I, J, K]`` as a MetaImage header with its data in a separate file."""
    affine_lps = np.diag([*np.multiply(SPACING_MM, (-1, -1, 1) if flipped else 1), 1.0])
    affine_lps[:3, 3] = ORIGIN_LPS_MM
    return write_image(path, volume, affine_lps, compressed=compressed)


def reasons(output: Path) -> Counter[str]:
    """Return how often each reason stands in ``left_out.csv``; empty without this file."""
    path = output / "left_out.csv"
    return Counter(row["reason"] for _, row in files.read_csv(path)) if path.exists() else Counter()


def scan_hu(seed: int) -> np.ndarray:
    """Return noise in the range of a CT: air, lung and tissue."""
    return np.random.default_rng(seed).integers(-1000, 400, SHAPE).astype(np.int16)


def write_csv(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write_csv(path, [COLUMNS, *rows])


def write_tree(folder: Path, subsets: Iterable[int] = range(10), *, scans: int = 2, lungs: bool = True) -> Path:
    """Write subsets of ``scans`` scans; the first of each has a nodule at voxel (4, 5, 6), the last has none.

    Scan 1 of each subset is flipped and has two excluded findings, one of them without a diameter.
    """
    subsets = list(subsets)
    for subset in subsets:
        for number in range(scans):
            name, flipped = uid(subset, number), number == 1
            write_mhd(folder / f"subset{subset}" / f"{name}.mhd", scan_hu(subset * 10 + number), flipped=flipped)
            if lungs:
                lung = np.full(SHAPE, 3, np.uint8)
                write_mhd(folder / "seg-lungs-LUNA16" / f"{name}.mhd", lung, flipped=flipped, compressed=True)
    nodules = [(uid(s, 0), *centre_lps_mm((4, 5, 6)), 6.5) for s in range(10)]
    excluded = []
    if scans > 1:
        excluded = [(uid(s, 1), *centre_lps_mm((5, 5, 5), flipped=True), -1.0) for s in range(10)]
        excluded += [(uid(s, 1), *centre_lps_mm((2, 8, 3), flipped=True), 4.0) for s in range(10)]
    write_csv(folder / "annotations.csv", nodules)
    write_csv(folder / "evaluationScript" / "annotations" / "annotations_excluded.csv", excluded)
    listed = "".join(f"{uid(s, n)}{os.linesep}" for s in range(10) for n in range(scans))
    (folder / "evaluationScript" / "annotations" / "seriesuids.csv").write_text(listed, encoding="utf-8")
    return folder
