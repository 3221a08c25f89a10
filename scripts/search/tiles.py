"""Which tiles of a volume the network has to see, so that all that is wanted is covered and little else is.

The volume is cut in two, each part in two again, and so on. A part gets one tile, around what is wanted in it; where
something wanted goes on across a cut, the tile above it reaches back, so that neighbours overlap there and nowhere
else. Of the best cuts along each axis, and none, the one is made that computes the least in the end.

All of it is counted in *blocks* of :data:`BLOCK` voxels. A tile is whole cells of the network's coarsest level long,
but may begin in the middle of one: so it follows the border of a lung more closely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy import ndimage

from ..core.geometry import FloatArray
from ..network.blocks import COARSEST_STRIDE

STEP = 2  # blocks that the length of a tile is a multiple of: one cell of the coarsest level
BLOCK = COARSEST_STRIDE // STEP  # voxels

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Place = tuple[int, ...]
Box = tuple[slice, ...]
SAME_AXES = 1e-6  # of a matrix between two grids: less is no turn
NOWHERE = 1 << 20  # first block of what is empty; less nothing is its end


@dataclass(frozen=True)
class Tiling:
    """How tiles are laid, in blocks.

    Attributes:
        size: ``[3]`` of the largest tile. One that may be cut may also be longer along one axis and shorter along
            another, but holds no more blocks.
        overlap: ``[3]``, that a tile has at least in common with the next.
        least: ``[3]`` of the smallest one. Where it is ``size``, all have that size.
    """

    size: Place
    overlap: Place
    least: Place

    def fits(self, blocks: int) -> bool:
        """Whether one tile holds so many blocks."""
        return blocks <= math.prod(self.size)

    def lengths(self, seen: Ints, shape: Place) -> Ints:
        """Of the tile around ``[..., 3]`` blocks; of several together where their only size is too short."""
        if self.least == self.size:
            new = np.array(self.size) - self.overlap
            return np.asarray(np.maximum(-(-(seen - self.overlap) // new), 1) * self.size, dtype=np.int64)
        return np.minimum(np.maximum(-(-seen // STEP) * STEP, self.least), shape)


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the volume, cut to what is wanted in it.

    Attributes:
        low, high: ``[3]`` first and one-past-last block.
        tile: what it needs if it is not cut.
        blocks: of that tile, or of several where one of their only size is too short.
        cuts: the best one along each axis, best first: blocks of the tiles of both halves, axis, and first block of
            the upper half.
    """

    low: Place
    high: Place
    tile: Box
    blocks: int
    cuts: tuple[tuple[int, int, int], ...]


def plan_tiles(wanted: Mask, tiling: Tiling) -> list[Box]:
    """Lay tiles over the wanted blocks.

    Args:
        wanted: ``[I, J, K]``, along each axis at least a tile long.
        tiling: see there.

    Returns:
        Tiles that together hold every wanted block, and with it in the same one what is wanted up to the overlap
        below it along each axis; none where nothing is wanted.
    """

    @cache
    def part(low: Place, high: Place) -> Part | None:
        return _part(wanted, tiling, low, high)

    def halves(of: Part, cut: tuple[int, int, int]) -> list[Part]:
        _, axis, at = cut
        lower = part(of.low, (*of.high[:axis], at, *of.high[axis + 1 :]))
        upper = part((*of.low[:axis], at, *of.low[axis + 1 :]), of.high)
        return [half for half in (lower, upper) if half is not None]

    @cache
    def followed(of: Part) -> int:
        """Blocks computed if the best cut is made, in each half again, as long as that saves something."""
        if tiling.fits(of.blocks) and (not of.cuts or of.cuts[0][0] >= of.blocks):
            return of.blocks
        cut = sum(followed(half) for half in halves(of, of.cuts[0]))
        return min(cut, of.blocks) if tiling.fits(of.blocks) else cut

    def tiles(of: Part) -> Iterator[Box]:
        choices = [halves(of, cut) for cut in of.cuts]
        best = min(choices, key=lambda two: sum(map(followed, two)), default=[])
        if tiling.fits(of.blocks) and (not best or sum(map(followed, best)) >= of.blocks):
            yield of.tile
        else:
            for half in best:
                yield from tiles(half)

    whole = part((0, 0, 0), wanted.shape)
    return [] if whole is None else list(tiles(whole))


def _part(wanted: Mask, tiling: Tiling, low: Place, high: Place) -> Part | None:
    """The part between two ends; ``None`` where nothing is wanted."""
    own = _ends(_shadows(wanted[_box(low, high)]), 0)
    first, end = own[0].min(axis=0) + low, own[1].max(axis=0) + low
    if first[0] >= NOWHERE:
        return None
    back = np.maximum(first - tiling.overlap, 0)  # what the tile reaches back over
    shadows = _shadows(wanted[_box(back, end)])
    cuts = []
    for axis in range(3):
        starts, stops = _ends(shadows, axis)
        at = np.arange(first[axis] - back[axis] + 1, end[axis] - back[axis])
        if not len(at):
            continue
        below, above = at - 1, np.maximum(at - tiling.overlap[axis], 0)
        lower = np.maximum.accumulate(stops)[below] - np.minimum.accumulate(starts)[below]
        upper = (np.maximum.accumulate(stops[::-1]) - np.minimum.accumulate(starts[::-1]))[::-1][above]
        blocks = sum(tiling.lengths(np.maximum(seen, 0), wanted.shape).prod(axis=1) for seen in (lower, upper))
        best = int(blocks.argmin())
        cuts.append((int(blocks[best]), axis, int(at[best] + back[axis])))
    starts, stops = _ends(shadows, 0)
    start, stop = starts.min(axis=0) + back, stops.max(axis=0) + back
    lengths = tiling.lengths(stop - start, wanted.shape)
    place = np.clip(start - (lengths - (stop - start)) // 2, 0, np.maximum(wanted.shape - lengths, 0))
    return Part(
        tuple(first.tolist()),
        tuple(end.tolist()),
        tile=_box(place, place + lengths),
        blocks=int(lengths.prod()),
        cuts=tuple(sorted(cuts)),
    )


def _shadows(mask: Mask) -> list[Mask]:
    """Whether anything is true along each axis: ``[J, K]``, ``[I, K]`` and ``[I, J]``."""
    return [np.asarray(mask.any(axis=axis)) for axis in range(3)]


def _ends(shadows: Sequence[Mask], axis: int) -> tuple[Ints, Ints]:
    """First and one-past-last block that is true in each plane across an axis, ``[N, 3]`` each; see :data:`NOWHERE`."""
    others = [other for other in range(3) if other != axis]
    planes = [shadows[3 - axis - other] if axis < other else shadows[3 - axis - other].T for other in others]
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


def _any_between(mask: Mask, pieces: Sequence[tuple[int, int]], axis: int) -> Mask:
    """Whether anything is true between each pair of ends along an axis, which they take the place of."""
    counts = np.cumsum(np.insert(mask.astype(np.int32), 0, 0, axis=axis), axis=axis)
    starts, stops = np.array(pieces).T
    return np.asarray(counts.take(stops, axis) > counts.take(starts, axis))


def volume(tiles: Sequence[Box]) -> int:
    """Blocks of all tiles together; those in several count as often."""
    return sum(math.prod(part.stop - part.start for part in tile) for tile in tiles)


def batches(tiles: Sequence[Box], at_once: int) -> Iterator[list[Box]]:
    """Tiles in groups of at most ``at_once`` that follow each other and have one size."""
    for _, alike in itertools.groupby(tiles, key=lambda tile: [part.stop - part.start for part in tile]):
        same = list(alike)
        yield from (same[n : n + at_once] for n in range(0, len(same), at_once))


def blocks_near(
    lung_distance_mm: MetaTensor, reach_mm: float, affine: npt.ArrayLike, shape: Sequence[int], edge: int
) -> Mask:
    """Blocks with a voxel that lies in the scan and within ``reach_mm`` of the lungs.

    Args:
        lung_distance_mm: ``[…, I', J', K']``, on a grid of its own (:class:`..preprocess.CropToLungsd`).
        reach_mm: how far.
        affine: ``[4, 4]``, of the network's input, voxel to RAS mm.
        shape: ``(I, J, K)`` of that input, multiples of ``edge``.
        edge: voxels of a block along each axis.

    Returns:
        ``[I / edge, J / edge, K / edge]``.
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
    """First and one-past-last of ``count`` cells that the voxels of each block lie in: ``[blocks, edge]``, rising."""
    low, high = np.clip(cells[:, 0], 0, count), np.clip(cells[:, -1] + 1, 0, count)
    return list(zip(low.tolist(), np.maximum(high, low).tolist(), strict=True))


def _single(affine: npt.ArrayLike) -> FloatArray:
    """``[4, 4]`` of the affine of one image or of a batch of one."""
    return np.asarray(affine, dtype=np.float64).reshape(4, 4)
