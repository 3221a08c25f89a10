"""Matches the objects of a mask to the rows of a datalist, and makes the instance mask of the matched rows.

In an instance mask, the value of a row's object is the row's number + 1. Objects are matched by world position, because
mask and scan may store the same grid with its axes in a different order or direction (as MetaImage and DICOM of one
series do), or may have different grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..core.geometry import (
    FloatArray,
    apply_affine,
    bounds_of,
    box_between,
    sphere_diameter_mm,
    swap_lps_ras,
    voxel_volume_mm3,
)
from .reader import read_labels
from .scan import Grid, ScanError

LEAST_KEPT = 0.9  # share of an object's volume that must lie inside the scan; resampling to its grid loses far less

Values = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Labels:
    """A mask as read.

    Attributes:
        values: ``[I, J, K]``, 0 outside.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
    """

    values: Values
    affine_ras: FloatArray


@dataclass(frozen=True)
class Thing:
    """One object of a mask.

    Attributes:
        value: its value in the mask.
        centre_lps_mm: ``[3]`` centre of gravity.
        size_lps_mm: ``[3]`` extent along x, y, z, including that of the outermost voxels.
        volume_mm3: volume of its voxels.
        box: its bounding box in the mask's array.
    """

    value: int
    centre_lps_mm: FloatArray
    size_lps_mm: FloatArray
    volume_mm3: float
    box: tuple[slice, slice, slice]

    @property
    def diameter_mm(self) -> float:
        """Diameter of the sphere of the same volume."""
        return sphere_diameter_mm(self.volume_mm3)


@dataclass(frozen=True)
class Match:
    """The object found for one row.

    Attributes:
        row: the row's number.
        thing: the object matched to it; ``None`` if there is none.
        distance_mm: from the row's centre to the object's; NaN if none was found.
        reason: why there is no object; empty if there is one.
    """

    row: int
    thing: Thing | None = None
    distance_mm: float = math.nan
    reason: str = ""


def labels_of(path: str | Path) -> Labels:
    """Read the mask in an image file.

    Raises:
        ScanError: see :func:`.reader.read_labels`; or there is a value below 0.
    """
    values, affine_ras = read_labels(path)
    if values.min(initial=0) < 0:
        raise ScanError(f"{path}: expected a mask of whole numbers from 0, got {values.min()}; export it as labels")
    return Labels(values, affine_ras)


def separated(labels: Labels) -> Labels:
    """Number the connected objects of a binary mask (26 neighbours); return any other mask unchanged."""
    if int(labels.values.max(initial=0)) > 1:
        return labels
    numbered, _ = ndimage.label(labels.values, structure=np.ones((3, 3, 3)))
    return Labels(numbered, labels.affine_ras)


def things_of(labels: Labels) -> list[Thing]:
    """Return the objects of a mask, one for each value above 0, in the order of their values."""
    voxel_mm3 = voxel_volume_mm3(labels.affine_ras)
    reach = np.abs(labels.affine_ras[:3, :3]).sum(axis=1)  # extent of one voxel along x, y, z
    things = []
    for value, box in enumerate(ndimage.find_objects(labels.values), start=1):
        if box is None:
            continue
        voxels = np.argwhere(labels.values[box] == value) + [part.start for part in box]
        places = swap_lps_ras(apply_affine(labels.affine_ras, voxels))
        size = places.max(axis=0) - places.min(axis=0) + reach
        things.append(Thing(value, places.mean(axis=0), size, len(voxels) * voxel_mm3, box))
    return things


def match_rows(labels: Labels, rows: Sequence[tuple[int, Sequence[float]]]) -> list[Match]:
    """Find the object of each row: the one that contains the row's centre, otherwise the nearest within its radius.

    An object is matched to at most one row; rows whose centre it contains come first, then the nearest.

    Args:
        labels: the mask.
        rows: row number and (x, y, z, diameter), LPS mm.

    Returns:
        One match per row, in the order of the rows.
    """
    things = things_of(labels)
    pairs = []
    for number, (_, place) in enumerate(rows):
        inside = _value_at(labels, place[:3])
        for thing in things:
            apart = float(np.linalg.norm(thing.centre_lps_mm - np.asarray(place[:3])))
            if inside == thing.value or apart <= place[3] / 2.0:
                pairs.append((inside != thing.value, apart, number, thing))
    nothing = "the mask has no object at its centre or within its radius" if things else "the mask is empty"
    matches = [Match(row, reason=nothing) for row, _ in rows]
    used: set[int] = set()
    for _, apart, number, thing in sorted(pairs, key=lambda pair: pair[:3]):
        if matches[number].thing is None and thing.value not in used:
            matches[number] = Match(rows[number][0], thing, apart)
            used.add(thing.value)
        elif matches[number].thing is None:
            reason = "its object in the mask belongs to another nodule"
            matches[number] = replace(matches[number], reason=reason)
    return matches


def _value_at(labels: Labels, place_lps_mm: Sequence[float]) -> int:
    """Return the mask's value at a world position; 0 outside the mask's grid."""
    voxel = np.rint(Grid(labels.values.shape, labels.affine_ras).voxels(place_lps_mm)).astype(int)
    is_inside = bool(((voxel >= 0) & (voxel < labels.values.shape)).all())
    return int(labels.values[tuple(voxel)]) if is_inside else 0


def instance_mask(labels: Labels, matches: Sequence[Match], grid: Grid) -> tuple[Values, list[Match]]:
    """Resample the matched objects to a scan's grid by nearest neighbour, each with its row's number + 1 as value.

    Returns:
        ``[I, J, K]`` uint8, or uint16 for more than 255 rows, and the matches. An object that lies less than
        :data:`LEAST_KEPT` inside the scan is left out, and its match has a reason instead.
    """
    most = max((match.row for match in matches), default=0) + 1
    rows = np.zeros(int(labels.values.max(initial=0)) + 1, dtype=np.min_scalar_type(most))
    moved = on_grid(labels, grid)
    kept_mm3 = np.bincount(moved[moved > 0], minlength=len(rows)) * voxel_volume_mm3(grid.affine_ras)
    results = []
    for match in matches:
        if match.thing is not None and kept_mm3[match.thing.value] < LEAST_KEPT * match.thing.volume_mm3:
            match = Match(match.row, None, match.distance_mm, "its object lies partly outside the scan's grid")
        elif match.thing is not None:
            rows[match.thing.value] = match.row + 1
        results.append(match)
    return np.asarray(rows[moved], dtype=rows.dtype), results


def on_grid(labels: Labels, grid: Grid) -> Values:
    """Resample a mask to another grid by nearest neighbour; return ``[I, J, K]`` with values and type unchanged."""
    mask = np.zeros(grid.shape, dtype=labels.values.dtype)
    box = _box_on(grid, labels)
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    to_source = np.linalg.inv(labels.affine_ras) @ grid.affine_ras @ start
    if mask[box].size:  # "grid-constant": the outermost voxels reach half a step beyond their centres
        ndimage.affine_transform(labels.values, to_source, output=mask[box], order=0, mode="grid-constant")
    return mask


def _box_on(grid: Grid, labels: Labels) -> tuple[slice, ...]:
    """Return the box of a grid that contains all objects of a mask, clipped to the grid; empty if none reaches it."""
    box, *_ = ndimage.find_objects((labels.values > 0).astype(np.uint8)) or [(slice(0, 0),) * 3]
    to_grid = np.linalg.inv(grid.affine_ras) @ labels.affine_ras
    return box_between(*bounds_of(to_grid, [part.start - 1 for part in box], [part.stop for part in box]), grid.shape)
