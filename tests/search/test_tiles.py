"""Windows: all that is wanted lies in them, and little else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from scripts.core.geometry import apply_affine
from scripts.search.tiles import Tiling, batches, blocks_near, plan_windows, volume

ONE = (1, 1, 1)
SHRINKING = Tiling((4, 4, 4), ONE, ONE)


@st.composite
def wanted_blocks(draw: st.DrawFn) -> np.ndarray:
    """Scattered boxes in a volume of at least a window of 4 blocks."""
    wanted = np.zeros([draw(st.integers(4, 14)) for _ in range(3)], dtype=bool)
    for _ in range(draw(st.integers(1, 4))):
        low = [draw(st.integers(0, n - 1)) for n in wanted.shape]
        high = [draw(st.integers(a + 1, n)) for a, n in zip(low, wanted.shape, strict=True)]
        wanted[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return wanted


@given(wanted=wanted_blocks(), overlap=st.integers(0, 2), least=st.integers(1, 4))
def test_every_wanted_block_is_in_a_window(wanted: np.ndarray, overlap: int, least: int) -> None:
    covered = np.zeros_like(wanted)
    for window in plan_windows(wanted, Tiling((4, 4, 4), (overlap,) * 3, (least,) * 3)):
        assert wanted[window].any()
        assert all(least <= part.stop - part.start <= 4 for part in window)
        assert all(part.start >= 0 and part.stop <= n for part, n in zip(window, wanted.shape, strict=True))
        covered[window] = True
    assert covered[wanted].all()


@pytest.mark.parametrize(
    ("low", "high", "length", "size", "overlap", "expected"),
    [
        (0, 4, 9, 4, 1, [(0, 4)]),
        (2, 5, 9, 4, 1, [(2, 5)]),  # cut to what it covers
        (0, 7, 9, 4, 1, [(0, 4), (3, 7)]),
        (0, 8, 9, 4, 1, [(0, 4), (2, 6), (4, 8)]),  # three, spread evenly
        (3, 9, 9, 4, 1, [(3, 7), (5, 9)]),
        (0, 9, 9, 5, 0, [(0, 5), (4, 9)]),
    ],
)
def test_windows_along_an_axis(
    low: int, high: int, length: int, size: int, overlap: int, expected: list[tuple[int, int]]
) -> None:
    tiling = Tiling((size,) * 3, (overlap,) * 3, ONE)
    wanted = np.zeros(length, dtype=bool)
    wanted[low:high] = True
    assert [(part.start, part.stop) for part in tiling.along(0, wanted)] == expected
    assert tiling.cost_along(0, wanted[None]).tolist() == [sum(stop - start for start, stop in expected)]


@pytest.mark.parametrize(("wanted", "expected"), [({8}, [(5, 9)]), ({4}, [(3, 7)]), ({0, 8}, [(0, 4), (5, 9)])])
def test_windows_that_keep_their_size_lie_in_the_volume(wanted: set[int], expected: list[tuple[int, int]]) -> None:
    line = np.isin(np.arange(9), list(wanted))
    assert [(p.start, p.stop) for p in Tiling((4, 4, 4), ONE, (4, 4, 4)).along(0, line)] == expected


def test_two_lungs_cost_less_than_the_box_around_them_and_nothing_costs_nothing() -> None:
    """One ends where the other begins along k, as lungs do not; rows of their own are then the shortest."""
    wanted = np.zeros((14, 8, 12), dtype=bool)
    tiling = Tiling((6, 8, 6), (0, 0, 0), ONE)
    assert plan_windows(wanted, tiling) == []
    wanted[:4, :, :6], wanted[10:, :, 6:] = True, True
    assert volume(plan_windows(wanted, tiling)) == wanted.sum()


@given(wanted=wanted_blocks())
def test_what_goes_on_from_one_window_to_the_next_overlaps(wanted: np.ndarray) -> None:
    """Two wanted neighbours lie in one window: nothing is seen at a window's border alone."""
    windows = plan_windows(wanted, SHRINKING)
    for axis in range(3):
        ahead = (slice(None),) * axis
        for block in np.argwhere(wanted[(*ahead, slice(1, None))] & wanted[(*ahead, slice(None, -1))]):
            other = block + np.eye(3, dtype=int)[axis]
            assert any(
                all(part.start <= a and b < part.stop for part, a, b in zip(window, block, other, strict=True))
                for window in windows
            )


def test_no_cut_computes_less() -> None:
    """Of all ways to cut a small line of slabs: against trying them."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = np.zeros((1, 1, 9), dtype=bool)
        wanted[0, 0] = rng.random(9) < 0.6
        if not wanted.any():
            continue
        turned = wanted.transpose(2, 0, 1)  # the line is cut as slabs, not as runs
        tiling = Tiling((4, 1, 1), (1, 0, 0), (1, 1, 1))
        pieces = [(a, b) for a in range(9) for b in range(a + 1, min(a + 4, 9) + 1)]
        best = min(
            sum(b - a for a, b in chosen)
            for count in range(1, 5)
            for chosen in itertools.combinations(pieces, count)
            if _covers(chosen, wanted[0, 0])
        )
        assert volume(plan_windows(turned, tiling)) <= best


def _covers(chosen: tuple[tuple[int, int], ...], wanted: np.ndarray) -> bool:
    inside = [set(range(a, b)) for a, b in chosen]
    pairs = [(n, n + 1) for n in range(len(wanted) - 1) if wanted[n] and wanted[n + 1]]
    return all(any(n in one for one in inside) for n in np.flatnonzero(wanted)) and all(
        any(set(pair) <= one for one in inside) for pair in pairs
    )


def test_batches_hold_windows_of_one_size_in_order() -> None:
    windows = [tuple(slice(a, a + size) for a in (n, 0, 0)) for n, size in enumerate((4, 4, 4, 3, 4))]
    groups = list(batches(windows, 2))
    assert [len(group) for group in groups] == [2, 1, 1, 1]
    assert list(itertools.chain(*groups)) == windows


@pytest.mark.parametrize("reach_mm", [0.0, 4.0, 9.0])
@pytest.mark.parametrize(("degrees", "step"), [(20.0, -3.0), (0.0, 3.0), (0.0, 0.7)])
def test_blocks_near_the_lungs_are_those_with_a_voxel_there(reach_mm: float, degrees: float, step: float) -> None:
    """Against a loop over voxels: an oblique scan whose distances lie on a coarse, turned grid; and parallel grids."""
    edge, shape = 4, (12, 8, 16)
    angle = np.deg2rad(degrees)
    affine, coarse = np.eye(4), np.diag([step, 2.5, 3.0, 1.0])
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    coarse[:3, 3] = (9.5 if step < 0 else 1.2, -3.0, 1.0)
    distance = np.random.default_rng(0).uniform(0, 12, (5, 4, 4)).astype(np.float32)
    given_distance = MetaTensor(torch.from_numpy(distance)[None], affine=torch.from_numpy(coarse))
    expected = np.zeros([n // edge for n in shape], dtype=bool)
    for voxel in np.ndindex(*shape):
        at = np.rint(apply_affine(np.linalg.inv(coarse), apply_affine(affine, voxel))).astype(int)
        if (at >= 0).all() and (at < distance.shape).all() and distance[tuple(at)] <= reach_mm:
            expected[tuple(v // edge for v in voxel)] = True
    np.testing.assert_array_equal(blocks_near(given_distance, reach_mm, affine, shape, edge), expected)
    assert 0 < expected.sum() < expected.size or reach_mm == 0.0
