"""Compare networks by their evaluations of the sections that :mod:`.real_nodules` lists, with one row per network.

The whole chests determine which threshold gives how many false findings per scan. At these thresholds, nodules are
counted in the chests and in the crops of LIDC-IDRI, and at one false finding per scan also by density and size. Cubes,
patches, and patches and chests in thick slices have thresholds of their own, from their own false findings. Findings in
the rim of a patch do not count: there its faces cut vessels, whose ends look like nodules. Masks are compared for the
nodules that every network found from the evaluation's own ``--threshold`` on. Of those in ``context``, one more column
says how well a reader's mask agrees with the consensus of the nodule's other readers.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from scripts.core.commands import run_function
from scripts.core.geometry import FloatArray, spacing_mm
from scripts.evaluate.system import Reference
from scripts.evaluate.tables import Table, read_findings, read_results, read_series_uids
from scripts.metrics import Matches
from scripts.read import load_datalist
from scripts.read.reader import read_grid
from scripts.read.scan import Grid

from .tables import table

logger = logging.getLogger(__name__)

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
RATE_OF_KINDS = 1.0
RATES_IN_CUBES = (0.0625, 0.25, 1.0, 4.0)  # also in patches
CROPS = ("context", "patches")
PATCHES = ("patches", "thick", "thicker")
RIM_MM = 5.0  # of a patch; findings at the ends of cut vessels lie at most 3 mm from its faces
SMALL_MM = 10.0
DENSE_HU = -450.0  # mean inside the reference mask; below it a nodule is faint
MASKS = ("Dice", "Dice in context", "Readers' Dice")
KINDS = ("dense, 10 mm or more", "dense, below 10 mm", "faint, 10 mm or more", "faint, below 10 mm")


def real_table(evaluations: Sequence[str], datalist: str, chests: str = "") -> str:
    """Log the rows as a Markdown table and return it.

    Args:
        evaluations: a folder for each network, with the evaluation of each section in a folder of the section's name.
        datalist: of :mod:`.real_nodules`; its masks distinguish dense nodules from faint ones.
        chests: only chests and cubes whose names begin with this count, for networks that were trained on the others.

    Returns:
        Nodules found at each rate of false findings per chest: of ``context`` and ``patches``, at one rate also by
        kind, then of the chests, as they are and in thick slices; of the cubes and of the patches, as they are and in
        slices of two thicknesses, at each rate per cube or patch; mean Dice of the nodules that all rows found, all
        and below 10 mm, with the number of masks; the same of ``context`` alone, and that of its readers.

    Raises:
        FileNotFoundError, TableError: an evaluation without its tables.
    """
    rates = [f"{rate:g}" for rate in RATES]
    chest_parts = [f"in {part} at {rate}" for part in ("chests", "thicker chests") for rate in rates]
    parts = [f"in {part} at {rate:g}" for part in ("cubes", *PATCHES) for rate in RATES_IN_CUBES]
    heads = ["Weights", *rates, *KINDS, *chest_parts, *parts, *MASKS]
    kinds = [kind for name in CROPS for kind in _kinds(Path(evaluations[0]) / name, Path(datalist), name)]
    masks = [_masks(Path(folder)) for folder in evaluations]
    shared = sorted(set.intersection(*map(set, masks)))
    readers = _readers(Path(datalist))
    rows = [
        [
            Path(folder).name,
            *_cells(Path(folder), Path(datalist), np.array(kinds), chests),
            _dice([own[nodule] for nodule in shared]),
            _dice([own[nodule] for nodule in shared if nodule in readers]),
            _dice([readers[nodule] for nodule in shared if nodule in readers]),
        ]
        for folder, own in zip(evaluations, masks, strict=True)
    ]
    text = table(heads, rows)
    logger.info("%s", text)
    return text


def _cells(folder: Path, datalist: Path, kinds: np.ndarray, chests: str) -> Iterator[str]:
    whole = _matches(folder / "chests", chests)
    scores = np.concatenate([_matches(folder / name).nodule_scores for name in CROPS])
    thresholds = {rate: threshold_at(whole, rate) for rate in RATES}
    yield from (_share(scores, limit) for limit in thresholds.values())
    yield from (_share(scores[kinds == kind], thresholds[RATE_OF_KINDS]) for kind in range(len(KINDS)))
    for part in (whole, _matches(folder / "thicker_chests", chests)):
        yield from (_share(part.nodule_scores, threshold_at(part, rate)) for rate in RATES)
    patches = [_matches(folder / name, rim_of=load_datalist([str(datalist)], name)) for name in PATCHES]
    for part in (_matches(folder / "cubes", chests), *patches):
        yield from (_share(part.nodule_scores, threshold_at(part, rate)) for rate in RATES_IN_CUBES)


def _share(scores: FloatArray, limit: float) -> str:
    return f"{(scores > limit).sum()} of {len(scores)}"


def _matches(folder: Path, beginning: str = "", rim_of: Sequence[Mapping[str, Any]] = ()) -> Matches:
    """Match the candidates and nodules of an evaluation, or of those of its scans whose names begin so.

    Candidates in the rim of the scans of the datalist items ``rim_of`` do not count.
    """
    uids = [uid for uid in read_series_uids(folder / "seriesuids.csv")[0] if uid.startswith(beginning)]
    nodules, excluded = (read_findings(folder / f"{name}.csv") for name in ("annotations", "annotations_excluded"))
    found = read_results(folder / "predictions.csv")
    if rim_of:
        grids = {item["name"]: read_grid(item["image"]) for item in rim_of}
        places = zip(found.series_uids, found.positions_lps_mm, strict=True)
        inner = np.array([_depth_mm(grids[uid], place) >= RIM_MM for uid, place in places], dtype=bool)
        found = replace(
            found,
            series_uids=tuple(itertools.compress(found.series_uids, inner)),
            positions_lps_mm=found.positions_lps_mm[inner],
            values=found.values[inner],
        )
    return Reference(uids, nodules, excluded, {}).match(found, uids)


def _depth_mm(grid: Grid, place_lps_mm: FloatArray) -> float:
    """Return the distance of a place from the nearest face of a scan, negative outside."""
    voxel = grid.voxels(place_lps_mm)
    return float((np.minimum(voxel + 0.5, np.array(grid.shape) - 0.5 - voxel) * spacing_mm(grid.affine_ras)).min())


def threshold_at(matches: Matches, rate: float) -> float:
    """Return the probability above which there are at most ``rate`` false findings per scan."""
    descending = np.sort(matches.false_scores)[::-1]
    allowed = int(rate * matches.counts.scans)
    return float(descending[allowed]) if allowed < len(descending) else 0.0


def _kinds(folder: Path, datalist: Path, section: str) -> Iterator[int]:
    """Yield the index in :data:`KINDS` of each annotated nodule of an evaluation, in the order of its table."""
    items = {item["name"]: item for item in load_datalist([str(datalist)], section)}
    nodules: Table = read_findings(folder / "annotations.csv")
    for uid, place_lps_mm, diameter_mm in zip(
        nodules.series_uids, nodules.positions_lps_mm, nodules.values, strict=True
    ):
        item = items[uid]
        hu, mask = (np.asarray(nibabel.Nifti1Image.from_filename(item[key]).dataobj) for key in ("image", "mask"))
        row = np.linalg.norm(np.reshape(item["box"], (-1, 6))[:, :3] - place_lps_mm, axis=1).argmin()
        faint = hu[mask == row + 1].mean() < DENSE_HU
        yield 2 * int(faint) + int(diameter_mm < SMALL_MM)


def _masks(folder: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Return diameter (mm) and Dice of each found nodule of ``context`` and ``patches``, by scan and label."""
    return {
        (nodule["scan"], nodule["label"]): (nodule["diameter_mm"], nodule["overlap"]["dice"])
        for name in CROPS
        for nodule in json.loads((folder / name / "masks.json").read_text(encoding="utf-8"))["nodules"]["matched"]
    }


def _readers(datalist: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Return diameter (mm) and the readers' Dice of the nodules of ``context`` that several readers marked."""
    return {
        (item["name"], row + 1): (item["box"][row][3], dice)
        for item in load_datalist([str(datalist)], "context")
        for row, dice in enumerate(item.get("reader_dice", []))
        if dice is not None
    }


def _dice(masks: Sequence[tuple[float, float]]) -> str:
    """Return the mean Dice of all and of small nodules, with their numbers."""
    if not masks:
        return "–"
    diameters_mm, dice = np.array(masks).T
    small = diameters_mm < SMALL_MM
    return f"{dice.mean():.3f} ({len(dice)}), {dice[small].mean():.3f} ({small.sum()})"


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.real_table", real_table))
