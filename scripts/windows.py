"""Which windows of a volume the network has to see, so that all that is wanted is covered and little else is.

The volume is cut along one axis into slabs, each slab along the next axis into rows, each row into windows; each time
only the extent of what is wanted there counts. Windows overlap, and are spread evenly over that extent.

All of it is counted in *blocks*: cells of the network's coarsest level. Windows that begin at whole blocks see the scan
on the same coarse grid, so that where two of them overlap they say nearly the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy import ndimage

from .geometry import FloatArray

Mask = npt.NDArray[np.bool_]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Tiling:
    """How windows are laid, in blocks.

    Attributes:
        size: ``[3]`` of the largest window.
        overlap: ``[3]``, that a window has at least in common with the next.
        least: ``[3]`` of the smallest one; windows are cut to what they have to cover, but not beyond.
    """

    size: tuple[int, ...]
    overlap: tuple[int, ...]
    least: tuple[int, ...]

    def along(self, axis: int, low: int, high: int, length: int) -> Iterator[slice]:
        """Windows over ``[low, high)`` of an axis of ``length`` blocks, which is at least one window long."""
        size, overlap = self.size[axis], self.overlap[axis]
        count = max(1, math.ceil((high - low - overlap) / (size - overlap)))
        size = min(size, max(self.least[axis], math.ceil((high - low + (count - 1) * overlap) / count)))
        first = low if count > 1 else low - (size - (high - low)) // 2
        first = min(max(first, 0), length - size)
        last = min(max(high - size, first), length - size)
        for n in range(count):
            start = first + (last - first) * n // max(count - 1, 1)
            yield slice(start, start + size)


def plan_windows(wanted: Mask, tiling: Tiling) -> list[Box]:
    """Lay windows over the wanted blocks.

    Args:
        wanted: ``[I, J, K]``, along each axis at least a window long.
        tiling: see there.

    Returns:
        Windows that together hold every wanted block, in the order of axes (slabs, rows, windows) that computes the
        least; none where nothing is wanted.
    """
    plans = [list(_cut(wanted, tiling, order, (slice(None),) * 3)) for order in itertools.permutations(range(3))]
    return min(plans, key=volume)


def _cut(wanted: Mask, tiling: Tiling, order: Sequence[int], box: Box) -> Iterator[Box]:
    """Windows within ``box``, which is cut along the axes of ``order``, the first one first."""
    axis, *rest = order
    filled = np.flatnonzero(wanted[box].any(axis=tuple(n for n in range(3) if n != axis)))
    if not filled.size:
        return
    for part in tiling.along(axis, int(filled[0]), int(filled[-1]) + 1, wanted.shape[axis]):
        smaller = (*box[:axis], part, *box[axis + 1 :])
        if rest:
            yield from _cut(wanted, tiling, rest, smaller)
        elif wanted[smaller].any():
            yield smaller


def volume(windows: Sequence[Box]) -> int:
    """Blocks of all windows together; those in several count as often."""
    return sum(math.prod(part.stop - part.start for part in window) for window in windows)


def batches(windows: Sequence[Box], at_once: int) -> Iterator[list[Box]]:
    """Windows in groups of at most ``at_once`` that follow each other and have one size."""
    for _, alike in itertools.groupby(windows, key=lambda window: [part.stop - part.start for part in window]):
        same = list(alike)
        yield from (same[n : n + at_once] for n in range(0, len(same), at_once))


def blocks_near(
    lung_distance_mm: MetaTensor, reach_mm: float, affine: npt.ArrayLike, shape: Sequence[int], edge: int
) -> Mask:
    """Blocks with a voxel that lies in the scan and within ``reach_mm`` of the lungs.

    Args:
        lung_distance_mm: ``[…, I', J', K']``, on a grid of its own (:class:`.transforms.CropToLungsd`).
        reach_mm: how far.
        affine: ``[4, 4]``, of the network's input, voxel to RAS mm.
        shape: ``(I, J, K)`` of that input, multiples of ``edge``.
        edge: voxels of a block along each axis.

    Returns:
        ``[I / edge, J / edge, K / edge]``.
    """
    to_distance = np.linalg.inv(_single(lung_distance_mm.affine)) @ _single(affine)
    distance_mm = lung_distance_mm.as_tensor().cpu().numpy().reshape(lung_distance_mm.shape[-3:])
    near = ndimage.affine_transform(
        (distance_mm <= reach_mm).astype(np.uint8),
        to_distance[:3, :3],
        to_distance[:3, 3],
        output_shape=tuple(shape),
        order=0,
        mode="grid-constant",
    )
    i, j, k = (n // edge for n in shape)
    return np.asarray(near.reshape(i, edge, j, edge, k, edge).any(axis=(1, 3, 5)))


def _single(affine: npt.ArrayLike) -> FloatArray:
    """``[4, 4]`` of the affine of one image or of a batch of one."""
    return np.asarray(affine, dtype=np.float64).reshape(4, 4)
