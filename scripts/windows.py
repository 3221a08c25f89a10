"""Which windows of a volume the network has to see, so that all that is wanted is covered and little else is.

The volume is cut along one axis into slabs, each slab along the next axis into rows, each row into windows; each time
only the extent of what is wanted there counts. Windows overlap, and are spread evenly over that extent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy import ndimage

from .geometry import FloatArray

Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Tiling:
    """How windows are laid, in cells of the network's output.

    Attributes:
        size: ``[3]``, of a window; the largest where ``grain`` is given.
        overlap: ``[3]``, that a window has at least in common with the next.
        grain: windows may be smaller than ``size``, by multiples of this; 0: they may not.
    """

    size: tuple[int, ...]
    overlap: tuple[int, ...]
    grain: int = 0

    def along(self, axis: int, low: int, high: int, length: int) -> Iterator[slice]:
        """Windows over ``[low, high)`` of an axis of ``length`` cells, which is at least one window long."""
        size, overlap = self.size[axis], self.overlap[axis]
        count = max(1, math.ceil((high - low - overlap) / (size - overlap)))
        if self.grain:
            needed = (high - low + (count - 1) * overlap) / count
            size = min(size, self.grain * math.ceil(needed / self.grain))
        first = low if count > 1 else low - (size - (high - low)) // 2
        first = min(max(first, 0), length - size)
        last = min(max(high - size, first), length - size)
        for n in range(count):
            start = first + (last - first) * n // max(count - 1, 1)
            yield slice(start, start + size)


def plan_windows(wanted: Mask, tiling: Tiling) -> list[Box]:
    """Lay windows over the wanted cells.

    Args:
        wanted: ``[I, J, K]`` cells, along each axis at least a window long.
        tiling: see there.

    Returns:
        Windows that together hold every wanted cell, in the order of axes (slabs, rows, windows) that computes the
        fewest cells; none where nothing is wanted.
    """
    plans = [list(_cut(wanted, tiling, order)) for order in itertools.permutations(range(3))]
    return min(plans, key=volume)


def cells_near(
    lung_distance_mm: MetaTensor, reach_mm: float, affine: npt.ArrayLike, shape: tuple[int, ...], stride: int
) -> Mask:
    """Output cells whose centre lies within ``reach_mm`` of the lungs, and in the scan.

    Args:
        lung_distance_mm: ``[…, I', J', K']``, on a grid of its own (:class:`.transforms.CropToLungsd`).
        reach_mm: how far.
        affine: ``[4, 4]``, of the network's input, voxel (not cell) to RAS mm.
        shape: ``(I, J, K)`` of the cells.
        stride: input voxels per cell.
    """
    cell = np.diag([stride, stride, stride, 1.0])
    cell[:3, 3] = (stride - 1) / 2.0
    to_distance = np.linalg.inv(_single(lung_distance_mm.affine)) @ _single(affine) @ cell
    distance_mm = lung_distance_mm.as_tensor().cpu().numpy().reshape(lung_distance_mm.shape[-3:])
    near = (distance_mm <= reach_mm).astype(np.uint8)
    where = to_distance[:3, :3], to_distance[:3, 3]
    return np.asarray(ndimage.affine_transform(near, *where, output_shape=shape, order=0, mode="grid-constant") > 0)


def _single(affine: npt.ArrayLike) -> FloatArray:
    """``[4, 4]`` of the affine of one image or of a batch of one."""
    return np.asarray(affine, dtype=np.float64).reshape(4, 4)


def batches(windows: Sequence[Box], at_once: int) -> Iterator[list[Box]]:
    """Windows in groups of at most ``at_once`` that follow each other and have one size."""
    for _, alike in itertools.groupby(windows, key=lambda window: [part.stop - part.start for part in window]):
        same = list(alike)
        yield from (same[n : n + at_once] for n in range(0, len(same), at_once))


def volume(windows: Sequence[Box]) -> int:
    """Cells of all windows together; those in several count as often."""
    return sum(math.prod(part.stop - part.start for part in window) for window in windows)


def _cut(wanted: Mask, tiling: Tiling, order: Sequence[int], box: tuple[slice, ...] = (slice(None),) * 3) -> Any:
    """Windows within ``box``, which is cut along the axes of ``order``, the first one first."""
    inside = wanted[box]
    axis, *rest = order
    filled = np.flatnonzero(inside.any(axis=tuple(n for n in range(3) if n != axis)))
    if not filled.size:
        return
    for part in tiling.along(axis, int(filled[0]), int(filled[-1]) + 1, wanted.shape[axis]):
        smaller = (*box[:axis], part, *box[axis + 1 :])
        if rest:
            yield from _cut(wanted, tiling, rest, smaller)
        elif wanted[smaller].any():
            yield smaller
