"""What each cell should say: tiny grids worked out by hand, and laws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scripts.train.targets import BACKGROUND, IGNORE, POSITIVE, CellTargets, cell_positions, cell_targets

SHAPE = (6, 5, 7)  # of the output grid: 12 × 10 × 14 voxels at stride 2
Row = tuple[float, float, float, float]
# Multiples of 1/8 voxel: sums of squares are exact in float32, so that ties are ties in every order.
coordinate = st.integers(0, 72).map(lambda n: n / 8)
rows = st.lists(st.tuples(coordinate, coordinate, coordinate, st.integers(8, 80).map(lambda n: n / 8)), max_size=3)


def targets(
    nodules: list[Row], ignored: list[Row] | None = None, *, padding: int = 0, positives: int = 7, stride: int = 2
) -> CellTargets:
    """Of a batch of one, on :data:`SHAPE`."""
    found = [*nodules, *(ignored or [])]
    nodule = torch.tensor([*found, *[(0.0, 0.0, 0.0, 0.0)] * padding]).reshape(1, -1, 4)
    number = torch.arange(nodule.shape[1])[None]
    return cell_targets(nodule, number < len(nodules), number < len(found), SHAPE, stride=stride, positives=positives)


def cells(state: Tensor, value: int) -> set[tuple[int, ...]]:
    return {tuple(cell) for cell in torch.nonzero(state[0] == value).tolist()}


def cross(i: int, j: int, k: int) -> set[tuple[int, ...]]:
    """A cell and its six neighbours."""
    return {
        (i + di, j + dj, k + dk) for di, dj, dk in itertools.product((-1, 0, 1), repeat=3) if di**2 + dj**2 + dk**2 < 2
    }


def maps_of(answer: CellTargets) -> Tensor:
    """State, log diameter and offset ``[B, 5, I, J, K]``, zero where they mean nothing."""
    positive = (answer.state == POSITIVE)[:, None]
    return torch.cat([answer.state[:, None], positive * answer.log_diameter[:, None], positive * answer.offset_mm], 1)


def test_cell_positions_are_the_centres_of_the_voxels_a_cell_covers() -> None:
    positions = cell_positions((2, 3, 4), 2, torch.device("cpu"))
    assert positions.shape == (3, 2, 3, 4)
    assert positions[:, 0, 0, 0].tolist() == [0.5, 0.5, 0.5]
    assert positions[:, 1, 2, 3].tolist() == [2.5, 4.5, 6.5]
    assert cell_positions((1, 2, 1), 1, torch.device("cpu"))[:, 0, 1, 0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_seven_cells_nearest_a_nodule_answer(stride: int) -> None:
    """At the centre of cell (2, 1, 3), with diameter e cells, or one below 1 mm."""
    i, j, k = (stride * n + (stride - 1) / 2 for n in (2, 1, 3))
    answer = targets([(i, j, k, math.e * stride)], stride=stride)
    assert cells(answer.state, POSITIVE) == cross(2, 1, 3)
    found = [answer.offset_mm[0, :, *cell].tolist() for cell in ((2, 1, 3), (1, 1, 3), (2, 2, 3), (2, 1, 4))]
    assert found == [[0.0, 0.0, 0.0], [stride, 0.0, 0.0], [0.0, -stride, 0.0], [0.0, 0.0, -stride]]
    assert answer.log_diameter[0, 2, 1, 3].item() == pytest.approx(1.0 + math.log(stride))
    assert targets([(i, j, k, 0.2)], stride=stride).log_diameter[0, 2, 1, 3].item() == 0.0


@pytest.mark.parametrize(("positives", "expected"), [(1, 1), (2, 7), (7, 7), (8, 19), (19, 19), (20, 27), (10**6, 210)])
def test_cells_as_near_as_the_last_one_join(positives: int, expected: int) -> None:
    answer = targets([(4.5, 4.5, 6.5, 3.0)], positives=positives)
    assert len(cells(answer.state, POSITIVE)) == expected


@pytest.mark.parametrize("diameter", [9.0, 6.0, 5.8])
def test_other_cells_of_a_nodule_are_ignored(diameter: float) -> None:
    """Up to half a cell, 1 voxel, beyond its radius; an ignored finding has no positive cell."""
    squared = {
        cell: sum((a - b) ** 2 for a, b in zip(cell, (2, 2, 3), strict=True))
        for cell in itertools.product(*(range(n) for n in SHAPE))
    }
    reached = {cell for cell, s in squared.items() if s <= ((diameter / 2 + 1) / 2) ** 2}
    answer, ignored = targets([(4.5, 4.5, 6.5, diameter)]), targets([], ignored=[(4.5, 4.5, 6.5, diameter)])
    assert cells(answer.state, POSITIVE) == cross(2, 2, 3)
    assert cells(answer.state, IGNORE) == reached - cross(2, 2, 3)
    assert cells(answer.state, BACKGROUND) == squared.keys() - reached
    assert cells(ignored.state, IGNORE) == reached
    assert not cells(ignored.state, POSITIVE)


def test_cells_that_two_nodules_want_go_to_the_nearer() -> None:
    """Nodules on the cells (2, 2, 2) and (2, 2, 3) both want both; each gets its own, also within a third one."""
    answer = targets([(4.5, 4.5, 4.5, 3.0), (4.5, 4.5, 6.5, 5.0), (4.5, 4.5, 10.5, 17.0)])
    assert cells(answer.state, POSITIVE) == cross(2, 2, 2) | cross(2, 2, 3) | cross(2, 2, 5)
    assert answer.log_diameter[0, 2, 2, 1:5].exp().tolist() == pytest.approx([3.0, 3.0, 5.0, 5.0])
    assert answer.offset_mm[0, 2, 2, 2, 1:5].tolist() == [2.0, 0.0, 0.0, -2.0]


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_without_nodules_everything_is_background(padding: int) -> None:
    answer = targets([], padding=padding)
    assert torch.equal(answer.state, torch.full((1, *SHAPE), BACKGROUND, dtype=torch.int8))
    assert answer.state.dtype == torch.int8
    assert answer.offset_mm.shape == (1, 3, *SHAPE)
    assert answer.log_diameter.isfinite().all()


def test_ignored_finding_takes_no_cell_from_a_nodule() -> None:
    answer = maps_of(targets([(4.5, 4.5, 6.5, 3.0)], ignored=[(4.5, 4.5, 6.5, 3.0), (4.5, 4.5, 8.5, 4.0)]))
    alone = maps_of(targets([(4.5, 4.5, 6.5, 3.0)]))
    assert torch.equal(answer[:, 0] == POSITIVE, alone[:, 0] == POSITIVE)
    assert torch.equal(answer[:, 1:], alone[:, 1:])


@given(rows, rows, st.integers(1, 3))
def test_padding_rows_change_nothing(nodules: list[Row], ignored: list[Row], padding: int) -> None:
    padded = targets(nodules, ignored, padding=padding)
    assert torch.equal(maps_of(padded), maps_of(targets(nodules, ignored)))


@given(rows, rows, st.sets(st.integers(0, 2)))
def test_flipping_the_nodules_flips_the_targets(nodules: list[Row], ignored: list[Row], axes: set[int]) -> None:
    """A flip is n - 1 - x in voxels of the input; the flipped axes' offsets change sign."""

    def flip(found: list[Row]) -> list[Row]:
        i, j, k = (2 * n - 1 if axis in axes else 0 for axis, n in enumerate(SHAPE))
        return [(abs(i - a), abs(j - b), abs(k - c), d) for a, b, c, d in found]  # all coordinates lie in [0, n - 1]

    plain, flipped = maps_of(targets(nodules, ignored)), maps_of(targets(flip(nodules), flip(ignored)))
    sign = torch.tensor([1.0, 1.0, *(-1.0 if axis in axes else 1.0 for axis in range(3))])[:, None, None, None]
    assert torch.equal(flipped, sign * plain.flip([axis + 2 for axis in axes]))


@given(rows.filter(bool))
def test_positive_cells_decode_to_centres_and_diameters_of_nodules(nodules: list[Row]) -> None:
    """And the cell that holds a lone nodule is one of them; items of a batch are apart."""
    answer = targets(nodules)
    decoded = cell_positions(SHAPE, 2, torch.device("cpu")) + answer.offset_mm[0]
    expected = {(*row[:3], round(row[3], 4)) for row in nodules}
    for cell in cells(answer.state, POSITIVE):
        assert (*decoded[:, *cell].tolist(), round(answer.log_diameter[0, *cell].exp().item(), 4)) in expected
    first, last = targets(nodules[:1]), targets(nodules[-1:])
    assert tuple(int((c + 0.5) / 2) for c in nodules[0][:3]) in cells(first.state, POSITIVE)
    nodule, there = torch.tensor([nodules[:1], nodules[-1:]]), torch.ones(2, 1, dtype=torch.bool)
    both = cell_targets(nodule, there, there, SHAPE, stride=2, positives=7)
    assert torch.equal(both.state, torch.cat([first.state, last.state]))
