"""Which windows of a volume the network has to see, so that all that is wanted is covered and little else is.

The volume is cut along one axis into slabs, each slab along the next axis into rows, each row into windows. Slabs, rows
and windows may be of any length up to the largest; dynamic programming finds the cuts that compute the least. Where
something wanted goes on, neighbours overlap; where nothing is wanted between them, they do not.

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

from ..core.geometry import FloatArray

Mask = npt.NDArray[np.bool_]
SAME_AXES = 1e-6  # of a matrix between two grids: less is no turn
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

    def turned(self, order: Sequence[int]) -> Tiling:
        """The same for axes in another order."""
        return Tiling(*(tuple(values[n] for n in order) for values in (self.size, self.overlap, self.least)))

    def pieces(self, axis: int, length: int) -> list[tuple[int, int]]:
        """Ends of all slabs or rows that an axis of ``length`` blocks can be cut into."""
        spans = range(min(self.least[axis], length), min(self.size[axis], length) + 1)
        return [(start, start + span) for span in spans for start in range(length - span + 1)]

    def _of_run(self, axis: int, run: int) -> tuple[int, int]:
        """How many windows a run of wanted blocks needs, and how long they are."""
        size, overlap = self.size[axis], self.overlap[axis]
        count = max(1, math.ceil((run - overlap) / (size - overlap)))
        return count, min(size, max(self.least[axis], math.ceil((run + (count - 1) * overlap) / count)))

    def cost_along(self, axis: int, wanted: Mask) -> npt.NDArray[np.float64]:
        """Blocks of all windows over each line along the last axis of ``wanted``."""
        of_run = np.array([0, *(math.prod(self._of_run(axis, n)) for n in range(1, wanted.shape[-1] + 1))], float)
        total = np.zeros(wanted.shape[:-1])
        run = np.zeros(wanted.shape[:-1], dtype=np.int64)
        for n in range(wanted.shape[-1]):
            total += np.where(wanted[..., n], 0.0, of_run[run])
            run = np.where(wanted[..., n], run + 1, 0)
        return np.asarray(total + of_run[run])

    def along(self, axis: int, wanted: npt.NDArray[np.bool_]) -> Iterator[slice]:
        """Windows over the runs of wanted blocks of a line, which is at least one window long."""
        ends = np.flatnonzero(np.diff(np.pad(wanted, 1).astype(np.int8)))
        for low, high in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True):
            count, size = self._of_run(axis, high - low)
            first = low if count > 1 else low - (size - (high - low)) // 2
            first = min(max(first, 0), len(wanted) - size)
            last = min(max(high - size, first), len(wanted) - size)
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
    if not wanted.any():
        return []
    plans = [_plan(wanted.transpose(order), tiling.turned(order)) for order in itertools.permutations(range(3))]
    order, best = min(zip(itertools.permutations(range(3)), plans, strict=True), key=lambda plan: volume(plan[1]))
    back = np.argsort(order)
    return [tuple(box[n] for n in back) for box in best]


def _plan(wanted: Mask, tiling: Tiling) -> list[Box]:
    """Windows of slabs along the first axis and rows along the second one, which compute the least."""
    slabs, rows = (tiling.pieces(axis, wanted.shape[axis]) for axis in (0, 1))
    line: Mask = _any_between(_any_between(wanted, slabs, 0), rows, 1)  # [slabs, rows, blocks of the last axis]
    lengths = [np.array([b - a for a, b in pieces]) for pieces in (slabs, rows)]
    cost = tiling.cost_along(2, line) * lengths[0][:, None] * lengths[1]
    row_wanted = _any_between(np.asarray(wanted.any(axis=2)), slabs, 0)
    slab_cost, _ = _cover(cost, row_wanted, rows, tiling.overlap[1])
    _, chosen = _cover(slab_cost[None], np.asarray(wanted.any(axis=(1, 2)))[None], slabs, tiling.overlap[0])
    boxes: list[Box] = []
    for slab in chosen[0]:
        _, own_rows = _cover(cost[slab][None], row_wanted[slab][None], rows, tiling.overlap[1])
        for row in own_rows[0]:
            ends = slice(*slabs[slab]), slice(*rows[row])
            boxes += [(*ends, part) for part in tiling.along(2, line[slab, row])]
    return boxes


def _any_between(mask: Mask, pieces: Sequence[tuple[int, int]], axis: int) -> Mask:
    """Whether anything is true between each pair of ends along an axis, which they take the place of."""
    counts = np.cumsum(np.insert(mask.astype(np.int32), 0, 0, axis=axis), axis=axis)
    starts, stops = np.array(pieces).T
    return np.asarray(counts.take(stops, axis) > counts.take(starts, axis))


def _cover(
    cost: npt.NDArray[np.float64], wanted: Mask, pieces: Sequence[tuple[int, int]], overlap: int
) -> tuple[npt.NDArray[np.float64], list[list[int]]]:
    """Choose pieces that cover what is wanted along one axis at the least cost, for many lines at once.

    Args:
        cost: ``[L, P]`` of each piece in each line.
        wanted: ``[L, N]``.
        pieces: P pairs of ends in ``[0, N]``.
        overlap: of two pieces between which something wanted goes on.

    Returns:
        ``[L]`` costs, and for each line the numbers of its pieces.
    """
    lines, length = wanted.shape
    by_stop: dict[int, list[int]] = {}
    for number, (_, stop) in enumerate(pieces):
        by_stop.setdefault(stop, []).append(number)
    ended = np.full((lines, length + 1), np.inf)  # all before is covered, and a piece ends here
    clear = np.full((lines, length + 1), np.inf)  # all before is covered, and nothing wanted has to overlap from here
    last = np.full((lines, length + 1), -1)
    clear[:, 0] = 0.0
    for stop in range(1, length + 1):
        for number in by_stop.get(stop, ()):
            start = pieces[number][0]
            before = np.minimum(clear[:, start], ended[:, start + overlap : stop].min(axis=1, initial=np.inf))
            total = before + cost[:, number]
            better = total < ended[:, stop]
            ended[better, stop], last[better, stop] = total[better], number
        clear[:, stop] = np.where(wanted[:, stop - 1], np.inf, clear[:, stop - 1])
        ends_run = np.ones(lines, bool) if stop == length else ~wanted[:, stop]
        clear[:, stop] = np.where(ends_run, np.minimum(clear[:, stop], ended[:, stop]), clear[:, stop])
    return clear[:, length], [_traced(ended[n], clear[n], last[n], pieces, wanted[n], overlap) for n in range(lines)]


def _traced(
    ended: npt.NDArray[np.float64],
    clear: npt.NDArray[np.float64],
    last: npt.NDArray[np.int64],
    pieces: Sequence[tuple[int, int]],
    wanted: npt.NDArray[np.bool_],
    overlap: int,
) -> list[int]:
    """The pieces behind the cost at the end of a line, first one first."""
    chosen: list[int] = []
    at = len(wanted)
    while at > 0:
        if clear[at] == clear[at - 1] and not wanted[at - 1]:
            at -= 1
            continue
        while True:
            number = int(last[at])
            chosen.append(number)
            start = pieces[number][0]
            inner = ended[start + overlap : at]
            if inner.size and inner.min() < clear[start]:
                at = start + overlap + int(inner.argmin())
            else:
                at = start
                break
    return chosen[::-1]


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
