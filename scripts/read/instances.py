"""Nodules in a mask and rows of a datalist: which belongs to which, and the instance mask that says so.

A row's number + 1 is its value in an instance mask. Everything goes by world positions: mask and scan may hold one grid
with their axes in another order or direction (MetaImage and DICOM of one series do), or two different grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..core.geometry import FloatArray, apply_affine, sphere_diameter_mm, swap_lps_ras, voxel_volume_mm3
from .reader import read_labels
from .scan import Grid, ScanError

LEAST_KEPT = 0.9  # of an object's volume must lie inside the scan; rounding to another grid loses far less

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
        value: in the mask.
        centre_lps_mm: of gravity.
        size_lps_mm: extent along x, y, z, a voxel's own included.
        volume_mm3: of its voxels.
        box: the voxels that hold it.
    """

    value: int
    centre_lps_mm: FloatArray
    size_lps_mm: FloatArray
    volume_mm3: float
    box: tuple[slice, slice, slice]

    @property
    def diameter_mm(self) -> float:
        """Of the sphere of its volume."""
        return sphere_diameter_mm(self.volume_mm3)


@dataclass(frozen=True)
class Match:
    """What was found for one row.

    Attributes:
        row: its number.
        thing: the object that belongs to it, ``None`` where there is none.
        distance_mm: from the row's centre to the object's; NaN without one.
        reason: why there is none; empty where there is one.
    """

    row: int
    thing: Thing | None = None
    distance_mm: float = math.nan
    reason: str = ""


def labels_of(path: str | Path) -> Labels:
    """The mask in an image file.

    Raises:
        ScanError: see :func:`.reader.read_labels`; or a value below 0.
    """
    values, affine_ras = read_labels(path)
    if values.min(initial=0) < 0:
        raise ScanError(f"{path}: expected a mask of whole numbers from 0, got {values.min()}; export it as labels")
    return Labels(values, affine_ras)


def separated(labels: Labels) -> Labels:
    """Objects of a mask that knows only inside and outside, each with a value of its own; others stay as they are."""
    if int(labels.values.max(initial=0)) > 1:
        return labels
    numbered, _ = ndimage.label(labels.values, structure=np.ones((3, 3, 3)))
    return Labels(numbered, labels.affine_ras)


def things_of(labels: Labels) -> list[Thing]:
    """The objects of a mask, by rising value."""
    voxel_mm3 = voxel_volume_mm3(labels.affine_ras)
    reach = np.abs(labels.affine_ras[:3, :3]).sum(axis=1)  # of one voxel along x, y, z
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
    """Find the object of each row: the one that its centre lies in, else the nearest one within its radius.

    An object belongs to one row: to one that lies in it before any other, then to the nearest.

    Args:
        labels: the mask.
        rows: row number and (x, y, z, diameter), LPS mm.
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
    """The mask's value at a world position; 0 outside of it."""
    voxel = np.rint(Grid(labels.values.shape, labels.affine_ras).voxels(place_lps_mm)).astype(int)
    is_inside = bool(((voxel >= 0) & (voxel < labels.values.shape)).all())
    return int(labels.values[tuple(voxel)]) if is_inside else 0


def instance_mask(labels: Labels, matches: Sequence[Match], grid: Grid) -> tuple[Values, list[Match]]:
    """The matched objects on a scan's grid, by nearest neighbour, each with its row's number + 1.

    Returns:
        ``[I, J, K]``, and the matches, those whose object does not lie in the scan with a reason.
    """
    most = max((match.row for match in matches), default=0) + 1
    rows = np.zeros(int(labels.values.max(initial=0)) + 1, dtype=np.uint8 if most < 256 else np.uint16)
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
    """A mask on another grid, by nearest neighbour, values and their type as they are: ``[I, J, K]``."""
    mask = np.zeros(grid.shape, dtype=labels.values.dtype)
    box = _box_on(grid, labels)
    start = np.eye(4)
    start[:3, 3] = [part.start for part in box]
    to_source = np.linalg.inv(labels.affine_ras) @ grid.affine_ras @ start
    if mask[box].size:  # "grid-constant": the outermost voxels reach half a step beyond their centres
        ndimage.affine_transform(labels.values, to_source, output=mask[box], order=0, mode="grid-constant")
    return mask


def _box_on(grid: Grid, labels: Labels) -> tuple[slice, ...]:
    """The voxels of a grid that the objects of a mask may reach, cut at its border; empty where they reach none."""
    box, *_ = ndimage.find_objects((labels.values > 0).astype(np.uint8)) or [(slice(0, 0),) * 3]
    corners = np.array(list(product(*((part.start - 1, part.stop) for part in box))))
    voxels = apply_affine(np.linalg.inv(grid.affine_ras) @ labels.affine_ras, corners)
    low = np.clip(np.floor(voxels.min(axis=0)), 0, grid.shape).astype(int)
    high = np.clip(np.ceil(voxels.max(axis=0)) + 1, low, grid.shape).astype(int)
    return tuple(map(slice, low, high))
