"""A miniature LUNA16 download for the tests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
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


def write_tree(folder: Path, subsets: Iterable[int] = range(10)) -> Path:
    """Write subsets of two scans with lung masks; the first of each has a nodule at voxel (4, 5, 6).

    The second of each is flipped and has two excluded findings, one of them without a diameter.
    """
    for subset, number in product(subsets, (0, 1)):
        name, flipped = uid(subset, number), number == 1
        write_mhd(folder / f"subset{subset}" / f"{name}.mhd", scan_hu(subset * 10 + number), flipped=flipped)
        lung = np.full(SHAPE, 3, np.uint8)
        write_mhd(folder / "seg-lungs-LUNA16" / f"{name}.mhd", lung, flipped=flipped, compressed=True)
    write_csv(folder / "annotations.csv", [(uid(s, 0), *centre_lps_mm((4, 5, 6)), 6.5) for s in range(10)])
    others = [((5, 5, 5), -1.0), ((2, 8, 3), 4.0)]
    excluded = [(uid(s, 1), *centre_lps_mm(voxel, flipped=True), size) for voxel, size in others for s in range(10)]
    write_csv(folder / "evaluationScript" / "annotations" / "annotations_excluded.csv", excluded)
    listed = "".join(f"{uid(s, n)}{os.linesep}" for s in range(10) for n in (0, 1))
    (folder / "evaluationScript" / "annotations" / "seriesuids.csv").write_text(listed, encoding="utf-8")
    return folder
