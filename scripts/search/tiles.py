"""Which tiles of a volume the network has to see to cover everything that is wanted, and little else.

The volume is cut in two, each part is cut in two again, and so on. Each final part gets one tile, around what is wanted
in it. Where the wanted region continues across a cut, the tile above the cut reaches back, so that neighbours overlap
there and nowhere else. At each step the best cut along each axis, and no cut, are compared, and the one that computes
the fewest blocks in the end is chosen.

All lengths are counted in *blocks* of :data:`BLOCK` voxels. The length of a tile is a whole number of cells of the
network's coarsest level, but it may begin in the middle of such a cell, to follow the border of a lung more closely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy import ndimage

from ..core.geometry import BoolArray, FloatArray
from ..network.blocks import COARSEST_STRIDE

STEP = 2  # the length of a tile is a multiple of so many blocks: one cell of the coarsest level
BLOCK = COARSEST_STRIDE // STEP  # voxels

Ints = npt.NDArray[np.int64]
Place = tuple[int, ...]
Box = tuple[slice, ...]
SAME_AXES = 1e-6  # elements of the matrix between two grids up to this are no rotation
NOWHERE = 1 << 20  # first block where nothing is wanted; the end is then -NOWHERE


@dataclass(frozen=True)
class Tiling:
    """How tiles may be laid, in blocks.

    Attributes:
        size: ``[3]`` size of the largest tile. If tiles may be cut, one may be longer along one axis and shorter along
            another, as long as it contains no more blocks.
        overlap: ``[3]`` smallest overlap of neighbouring tiles.
        least: ``[3]`` size of the smallest tile. If it equals ``size``, all tiles have that size.
    """

    size: Place
    overlap: Place
    least: Place

    def fits(self, blocks: int) -> bool:
        """Whether one tile may contain this many blocks."""
        return blocks <= math.prod(self.size)

    def lengths(self, seen: Ints, shape: Place) -> Ints:
        """Return the lengths ``[..., 3]`` of the tile that covers extents ``seen`` ``[..., 3]`` in a volume ``shape``.

        If all tiles have one size, these are the summed lengths of as many tiles as are needed along each axis.
        """
        if self.least == self.size:
            new = np.array(self.size) - self.overlap
            return np.asarray(np.maximum(-(-(seen - self.overlap) // new), 1) * self.size, dtype=np.int64)
        return np.minimum(np.maximum(-(-seen // STEP) * STEP, self.least), shape)


class Cut(NamedTuple):
    """Where a section may be cut in two; of two cuts, the one with fewer blocks is less."""

    blocks: int  # of the tiles of both halves
    axis: int
    at: int  # first block of the upper half


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the volume, reduced to the box around what is wanted in it.

    Attributes:
        low, high: ``[3]`` first and one-past-last block.
        tile: the tile that covers the section if it is not cut further.
        blocks: number of blocks of that tile, or of several tiles if they have one size and a single one is too short.
        cuts: the best cut along each axis, the best of all first.
    """

    low: Place
    high: Place
    tile: Box
    blocks: int
    cuts: tuple[Cut, ...]


def plan_tiles(wanted: BoolArray, tiling: Tiling) -> list[Box]:
    """Cover the wanted blocks with tiles.

    Args:
        wanted: ``[I, J, K]`` blocks, along each axis at least as long as a tile.
        tiling: which tiles are allowed.

    Returns:
        Tiles, in blocks. Every wanted block lies in a tile that also contains the wanted blocks up to the overlap below
        it along each axis. Empty if nothing is wanted.
    """

    @cache
    def section(low: Place, high: Place) -> Section | None:
        return _section(wanted, tiling, low, high)

    def halves(of: Section, cut: Cut) -> list[Section]:
        lower = section(of.low, (*of.high[: cut.axis], cut.at, *of.high[cut.axis + 1 :]))
        upper = section((*of.low[: cut.axis], cut.at, *of.low[cut.axis + 1 :]), of.high)
        return [half for half in (lower, upper) if half is not None]

    @cache
    def cost(of: Section) -> int:
        """Return the blocks computed if the best cut is made, and so on in each half, as long as cutting saves any.

        Only the first cut is followed: following all three would take far longer.
        """
        if tiling.fits(of.blocks) and (not of.cuts or of.cuts[0].blocks >= of.blocks):
            return of.blocks
        cut = sum(cost(half) for half in halves(of, of.cuts[0]))
        return min(cut, of.blocks) if tiling.fits(of.blocks) else cut

    def tiles(of: Section) -> Iterator[Box]:
        choices = [halves(of, cut) for cut in of.cuts]
        best = min(choices, key=lambda two: sum(map(cost, two)), default=[])
        if tiling.fits(of.blocks) and (not best or sum(map(cost, best)) >= of.blocks):
            yield of.tile
        else:
            for half in best:
                yield from tiles(half)

    whole = section((0, 0, 0), wanted.shape)
    return [] if whole is None else list(tiles(whole))


def _section(wanted: BoolArray, tiling: Tiling, low: Place, high: Place) -> Section | None:
    """Return the section between ``low`` and ``high``; ``None`` if nothing is wanted there."""
    own = _ends(_projections(wanted[_box(low, high)]), 0)
    first, end = own[0].min(axis=0) + low, own[1].max(axis=0) + low
    if first[0] >= NOWHERE:
        return None
    back = np.maximum(first - tiling.overlap, 0)  # the tile reaches back over the overlap
    projections = _projections(wanted[_box(back, end)])
    cuts = []
    for axis in range(3):
        starts, stops = _ends(projections, axis)
        at = np.arange(first[axis] - back[axis] + 1, end[axis] - back[axis])
        if not len(at):
            continue
        below, above = at - 1, np.maximum(at - tiling.overlap[axis], 0)
        lower = np.maximum.accumulate(stops)[below] - np.minimum.accumulate(starts)[below]
        upper = (np.maximum.accumulate(stops[::-1]) - np.minimum.accumulate(starts[::-1]))[::-1][above]
        blocks = sum(tiling.lengths(np.maximum(seen, 0), wanted.shape).prod(axis=1) for seen in (lower, upper))
        best = int(blocks.argmin())
        cuts.append(Cut(int(blocks[best]), axis, int(at[best] + back[axis])))
    starts, stops = _ends(projections, 0)
    start, stop = starts.min(axis=0) + back, stops.max(axis=0) + back
    lengths = tiling.lengths(stop - start, wanted.shape)
    place = np.clip(start - (lengths - (stop - start)) // 2, 0, np.maximum(wanted.shape - lengths, 0))
    return Section(
        tuple(first.tolist()),
        tuple(end.tolist()),
        tile=_box(place, place + lengths),
        blocks=int(lengths.prod()),
        cuts=tuple(sorted(cuts)),
    )


def _projections(mask: BoolArray) -> list[BoolArray]:
    """Return whether any block is true along each axis: ``[J, K]``, ``[I, K]`` and ``[I, J]``."""
    return [np.asarray(mask.any(axis=axis)) for axis in range(3)]


def _ends(projections: Sequence[BoolArray], axis: int) -> tuple[Ints, Ints]:
    """Return the first and one-past-last true block in each plane across an axis, ``[N, 3]`` each.

    A plane without a true block has :data:`NOWHERE` and its negative.
    """
    others = [other for other in range(3) if other != axis]
    planes = [projections[3 - axis - other] if axis < other else projections[3 - axis - other].T for other in others]
    starts = np.full((len(planes[0]), 3), NOWHERE)
    stops = -starts
    filled = np.flatnonzero(planes[0].any(axis=1))
    starts[filled, axis], stops[filled, axis] = filled, filled + 1
    for other, plane in zip(others, planes, strict=True):
        starts[filled, other] = plane[filled].argmax(axis=1)
        stops[filled, other] = plane.shape[1] - plane[filled, ::-1].argmax(axis=1)
    return starts, stops


def _box(low: Sequence[int] | Ints, high: Sequence[int] | Ints) -> Box:
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _any_between(mask: BoolArray, pieces: Sequence[tuple[int, int]], axis: int) -> BoolArray:
    """Reduce an axis to whether the mask is true anywhere between each pair of first and one-past-last index."""
    counts = np.cumsum(np.insert(mask.astype(np.int32), 0, 0, axis=axis), axis=axis)
    starts, stops = np.array(pieces).T
    return np.asarray(counts.take(stops, axis) > counts.take(starts, axis))


def batches(tiles: Sequence[Box], at_once: int) -> Iterator[list[Box]]:
    """Yield groups of at most ``at_once`` consecutive tiles of the same size."""
    for _, alike in itertools.groupby(tiles, key=lambda tile: [part.stop - part.start for part in tile]):
        same = list(alike)
        yield from (same[n : n + at_once] for n in range(0, len(same), at_once))


def blocks_near(
    lung_distance_mm: MetaTensor, reach_mm: float, affine: npt.ArrayLike, shape: Sequence[int], edge: int
) -> BoolArray:
    """Return which blocks contain a voxel that lies in the scan and within ``reach_mm`` of the lungs.

    Args:
        lung_distance_mm: ``[…, I', J', K']``, on a grid of its own (:class:`..preprocess.CropToLungsd`), which covers
            the scan.
        reach_mm: largest distance.
        affine: ``[4, 4]``, of the network's input, voxel to RAS mm.
        shape: ``(I, J, K)`` of that input, multiples of ``edge``.
        edge: voxels of a block along each axis.

    Returns:
        ``[I / edge, J / edge, K / edge]`` bool.
    """
    to_distance = np.linalg.inv(_single(lung_distance_mm.affine)) @ _single(affine)
    distance_mm = lung_distance_mm.as_tensor().cpu().numpy().reshape(lung_distance_mm.shape[-3:])
    is_near = distance_mm <= reach_mm
    if np.count_nonzero(np.abs(to_distance[:3, :3]) > SAME_AXES) == 3 and np.all(np.diag(to_distance)[:3] > 0):
        for axis, count in enumerate(shape):
            cells = np.floor(to_distance[axis, axis] * np.arange(count) + to_distance[axis, 3] + 0.5).astype(int)
            is_near = _any_between(is_near, _cells_of_blocks(cells.reshape(-1, edge), is_near.shape[axis]), axis)
        return is_near
    near = ndimage.affine_transform(
        is_near.astype(np.uint8),
        to_distance[:3, :3],
        to_distance[:3, 3],
        output_shape=tuple(shape),
        order=0,
        mode="grid-constant",
    )
    i, j, k = (n // edge for n in shape)
    return np.asarray(near.reshape(i, edge, j, edge, k, edge).any(axis=(1, 3, 5)))


def _cells_of_blocks(cells: npt.NDArray[np.integer], count: int) -> list[tuple[int, int]]:
    """Return each block's first and one-past-last cell, up to ``count``; ``cells`` are rising, ``[blocks, edge]``."""
    low, high = np.clip(cells[:, 0], 0, count), np.clip(cells[:, -1] + 1, 0, count)
    return list(zip(low.tolist(), np.maximum(high, low).tolist(), strict=True))


def _single(affine: npt.ArrayLike) -> FloatArray:
    """Return the affine of one image, or of a batch of one, as ``[4, 4]``."""
    return np.asarray(affine, dtype=np.float64).reshape(4, 4)
