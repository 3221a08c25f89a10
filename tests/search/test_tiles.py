"""Tiles: all that is wanted lies in them, and little else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from nibabel.affines import from_matvec

from scripts.core.geometry import apply_affine
from scripts.search.tiles import STEP, Box, Tiling, batches, blocks_near, plan_tiles


def sizes(tiles: Sequence[Box]) -> np.ndarray:
    """Return the blocks of each tile along each axis, ``[N, 3]``."""
    return np.array([[part.stop - part.start for part in tile] for tile in tiles])


@st.composite
def wanted_blocks(draw: st.DrawFn) -> np.ndarray:
    """Scattered boxes in a volume of at least a tile of 4 blocks."""
    wanted = np.zeros([STEP * draw(st.integers(2, 7)) for _ in range(3)], dtype=bool)
    for _ in range(draw(st.integers(1, 4))):
        low = [draw(st.integers(0, n - 1)) for n in wanted.shape]
        high = [draw(st.integers(a + 1, n)) for a, n in zip(low, wanted.shape, strict=True)]
        wanted[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return wanted


@given(wanted=wanted_blocks(), overlap=st.integers(0, 2), least=st.sampled_from([2, 4]))
def test_every_wanted_block_is_in_a_tile_with_what_it_borders_on(wanted: np.ndarray, overlap: int, least: int) -> None:
    """Together with all that is wanted up to the overlap below it, along each axis and across."""
    tiles = plan_tiles(wanted, Tiling((4, 4, 4), (overlap,) * 3, (least,) * 3))
    assert all(wanted[tile].any() for tile in tiles)
    assert all(0 <= part.start <= part.stop <= n for tile in tiles for part, n in zip(tile, wanted.shape, strict=True))
    assert set(sizes(tiles).ravel()) <= ({4} if least == 4 else set(range(least, 65, STEP)))
    assert sizes(tiles).prod(axis=1).max() <= 64
    for block in np.argwhere(wanted):
        back = np.maximum(block - overlap, 0)
        near = np.argwhere(wanted[tuple(slice(a, b + 1) for a, b in zip(back, block, strict=True))]) + back
        lowest = near.min(axis=0)
        assert any(
            all(part.start <= a and b < part.stop for part, a, b in zip(tile, lowest, block, strict=True))
            for tile in tiles
        )


@pytest.mark.parametrize(
    ("wanted", "least", "overlap", "expected"),
    [
        ([(0, 4)], 4, 1, [(0, 4)]),
        ([(2, 5)], 2, 1, [(2, 6)]),  # cut to what it covers, in whole steps
        ([(0, 7)], 4, 1, [(0, 4), (3, 7)]),
        ([(3, 9)], 4, 1, [(3, 7), (5, 9)]),
        ([(0, 10)], 4, 0, [(0, 4), (2, 6), (6, 10)]),
        ([(9, 10)], 4, 1, [(6, 10)]),  # in the volume
        ([(4, 5)], 4, 1, [(3, 7)]),  # in its middle
        ([(0, 1), (9, 10)], 4, 1, [(0, 4), (6, 10)]),  # nothing between
        ([(0, 10)], 2, 1, [(0, 10)]),  # longer than a tile, and thinner
    ],
)
def test_tiles_along_an_axis(
    wanted: list[tuple[int, int]], least: int, overlap: int, expected: list[tuple[int, int]]
) -> None:
    """Along each axis of a volume one tile wide."""
    for axis in range(3):
        line = np.zeros((10, 4, 4), dtype=bool)
        for low, high in wanted:
            line[low:high, :least, :least] = True
        tiles = plan_tiles(np.moveaxis(line, 0, axis), Tiling((4, 4, 4), (overlap,) * 3, (least,) * 3))
        assert sorted((tile[axis].start, tile[axis].stop) for tile in tiles) == expected
        assert (np.delete(sizes(tiles), axis, axis=1) == least).all()


def test_two_lungs_cost_less_than_the_box_around_them_and_none_cost_nothing() -> None:
    """One ends where the other begins along k, as lungs do not; tiles of their own are then the smallest."""
    wanted = np.zeros((14, 8, 12), dtype=bool)
    wanted[:4, :, :6], wanted[10:, :, 6:] = True, True
    tiling = Tiling((6, 8, 6), (0, 0, 0), (2, 2, 2))
    assert sizes(plan_tiles(wanted, tiling)).prod(axis=1).sum() == wanted.sum()
    assert plan_tiles(np.zeros_like(wanted), tiling) == []  # nothing wanted


def test_batches_hold_tiles_of_one_size_in_order() -> None:
    tiles = [tuple(slice(a, a + size) for a in (n, 0, 0)) for n, size in enumerate((4, 4, 4, 3, 4))]
    assert list(batches(tiles, 2)) == [tiles[:2], tiles[2:3], tiles[3:4], tiles[4:]]


@pytest.mark.parametrize("reach_mm", [0.0, 4.0, 9.0])
@pytest.mark.parametrize(("degrees", "step"), [(20.0, -3.0), (0.0, 3.0), (0.0, 0.7)])
def test_blocks_near_the_lungs_are_those_with_a_voxel_there(reach_mm: float, degrees: float, step: float) -> None:
    """Against a loop over voxels: an oblique scan whose distances lie on a coarse, turned grid; and parallel grids."""
    edge, shape = 4, (12, 8, 16)
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = from_matvec([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    coarse = from_matvec(np.diag([step, 2.5, 3.0]), (9.5 if step < 0 else 1.2, -3.0, 1.0))
    distance = np.random.default_rng(0).uniform(0, 12, (5, 4, 4)).astype(np.float32)
    given_distance = MetaTensor(torch.from_numpy(distance)[None], affine=torch.from_numpy(coarse))
    expected = np.zeros([n // edge for n in shape], dtype=bool)
    for voxel in np.ndindex(*shape):
        at = np.rint(apply_affine(np.linalg.inv(coarse), apply_affine(affine, voxel))).astype(int)
        if (at >= 0).all() and (at < distance.shape).all() and distance[tuple(at)] <= reach_mm:
            expected[tuple(v // edge for v in voxel)] = True
    np.testing.assert_array_equal(blocks_near(given_distance, reach_mm, affine, shape, edge), expected)
    assert 0 < expected.sum() < expected.size or reach_mm == 0.0
