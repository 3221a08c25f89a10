"""Laws of scripts/core/geometry.py, and small cases worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scripts.core.geometry import (
    FloatArray,
    apply_affine,
    box_around,
    slice_axis,
    spacing_mm,
    sphere_diameter_mm,
    swap_lps_ras,
    swap_lps_ras_affine,
    voxel_volume_mm3,
)

SHEARED = np.array([[0.0, -0.7, 0.0, 12.0], [0.7, 0.0, 0.9, -30.0], [0.0, 0.0, -2.5, 100.0], [0.0, 0.0, 0.0, 1.0]])


@st.composite
def affines(draw: st.DrawFn) -> FloatArray:
    """Voxel-to-world affines of scanners: any axis order and direction, rotated, sheared up to 30°, 0.3–6 mm."""
    spacing = draw(hnp.arrays(float, 3, elements=st.floats(0.3, 6.0)))
    order = list(draw(st.permutations(range(3))))
    signs = draw(hnp.arrays(float, 3, elements=st.sampled_from([-1.0, 1.0])))
    shear = np.eye(3)
    shear[1, 2] = np.tan(np.deg2rad(draw(st.floats(-30, 30))))
    angle = np.deg2rad(draw(st.floats(-180, 180)))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ (np.eye(3)[:, order] * signs * spacing)
    affine[:3, 3] = draw(hnp.arrays(float, 3, elements=st.floats(-500, 500)))
    return affine


def points(limit: float = 500.0) -> st.SearchStrategy[FloatArray]:
    """Between none and five points ``[N, 3]``."""
    return st.integers(0, 5).flatmap(lambda n: hnp.arrays(float, (n, 3), elements=st.floats(-limit, limit)))


def test_a_point_on_the_left_and_back_is_positive_in_lps_and_negative_in_ras() -> None:
    np.testing.assert_array_equal(swap_lps_ras([56.2, 86.3, -115.9]), [-56.2, -86.3, -115.9])


@given(affines(), points())
def test_swapping_the_affine_or_its_points_is_the_same(affine: FloatArray, voxels: FloatArray) -> None:
    swapped, here = swap_lps_ras_affine(affine), apply_affine(affine, voxels)
    np.testing.assert_array_equal(apply_affine(swapped, voxels), swap_lps_ras(here))
    np.testing.assert_array_equal(swap_lps_ras(swap_lps_ras(here)), here)
    np.testing.assert_allclose(apply_affine(np.linalg.inv(affine), here), voxels, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(spacing_mm(swapped), spacing_mm(affine))


def test_a_sheared_and_permuted_grid() -> None:
    # x = -0.7 j + 12, y = 0.7 i + 0.9 k - 30, z = -2.5 k + 100
    np.testing.assert_allclose(apply_affine(SHEARED, [10, 20, 4]), [-2.0, -19.4, 90.0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(spacing_mm(SHEARED), [0.7, 0.7, np.hypot(0.9, 2.5)], rtol=1e-12)
    # The shear moves slices along themselves: 0.7 · 0.7 · 2.5, not the product of the spacings.
    assert (
        voxel_volume_mm3(SHEARED) == voxel_volume_mm3(swap_lps_ras_affine(SHEARED)) == pytest.approx(1.225, rel=1e-12)
    )


@given(affines())
def test_spacing_is_the_distance_between_neighbours(affine: FloatArray) -> None:
    origin, *neighbours = apply_affine(affine, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(spacing_mm(affine), [np.linalg.norm(n - origin) for n in neighbours], rtol=1e-9)


@pytest.mark.parametrize(
    ("steps_mm", "expected"),
    [
        (np.eye(3), 2),
        (np.diag([0.7, -0.7, -5.0]), 2),
        (np.diag([3.0, 3.0, 0.5]), 2),  # direction counts, not the length of the step
        (np.array([[0.0, 0.0, 0.7], [0.0, -0.7, 0.0], [1.25, 0.0, 0.0]]), 0),
        (np.array([[0.7, 0.0, 0.0], [0.0, 0.0, 0.7], [0.0, -0.3, 0.0]]), 1),
        (np.array([[0.56, 0.42, 0.21], [0.42, -0.54, -0.28], [0.0, -0.2, 1.2]]), 2),
        (SHEARED[:3, :3], 2),
    ],
    ids=["RAS", "flipped", "fine slices", "permuted to i", "permuted to j", "oblique", "sheared"],
)
def test_slices_are_stacked_along_the_body(steps_mm: FloatArray, expected: int) -> None:
    assert slice_axis(np.pad(steps_mm, (0, 1))) == expected


def test_the_worked_example_of_the_docs() -> None:
    affine_lps = np.diag([0.7, 0.7, 2.5, 1.0])
    affine_lps[:3, 3] = -180, -170, -300
    affine = swap_lps_ras_affine(affine_lps)
    expected = np.diag([-0.7, -0.7, 2.5, 1.0])
    expected[:3, 3] = 180, 170, -300
    np.testing.assert_array_equal(affine, expected)
    np.testing.assert_allclose(apply_affine(affine, [100, 200, 40]), [110, 30, -200], rtol=0, atol=1e-10)
    reversed_i = np.diag([0.7, -0.7, 2.5, 1.0])
    reversed_i[:3, 3] = 180 - 0.7 * 511, 170, -300
    np.testing.assert_allclose(apply_affine(reversed_i, [411, 200, 40]), [110, 30, -200], rtol=0, atol=1e-10)


@pytest.mark.parametrize("diameter_mm", [0.0, 1.0, 6.0, 32.27])
def test_sphere_diameter_inverts_the_volume_of_a_sphere(diameter_mm: float) -> None:
    assert sphere_diameter_mm(4 / 3 * np.pi * (diameter_mm / 2) ** 3) == pytest.approx(diameter_mm, abs=1e-12)


@pytest.mark.parametrize(
    ("matrix", "origin", "centre", "half", "box"),
    [
        # 10 ± 3 along i; 2 ± 3 is cut at 0 along j; 19 ± 3 is cut at the last voxel, 19, along k.
        (np.eye(3), [0, 0, 0], [10, 2, 19], 3, [(7, 14), (0, 6), (16, 20)]),
        (np.eye(3), [0, 0, 0], [10.5, 10.5, 10.5], 2.2, [(8, 14)] * 3),  # 8.3 … 12.7: voxels 8 … 13
        # Flipped: i is (20 - x) / 0.5, 2 … 18 for x = 11 … 19; j: 6 … 14 mm is 3 … 7; k: 6 … 14.
        (np.diag([-0.5, 2, 1]), [20, 0, 0], [15, 10, 10], 4, [(2, 19), (3, 8), (6, 15)]),
        # Permuted: i is y / 1, j is z / 4, k is x / 2.
        ([[0, 0, 2], [1, 0, 0], [0, 4, 0]], [0, 0, 0], [20, 10, 40], 4, [(6, 15), (9, 12), (8, 13)]),
        # Sheared, y = j + k / 2: k = z is 6 … 14; j = y - k / 2 is -1 at y = 6, k = 14 and 11 at y = 14, k = 6.
        ([[1, 0, 0], [0, 1, 0.5], [0, 0, 1]], [0, 0, 0], [10, 10, 10], 4, [(6, 15), (0, 12), (6, 15)]),
        (np.eye(3), [0, 0, 0], [-50, 50, 19], 0, [(0, 1), (19, 20), (19, 20)]),  # outside: the nearest voxel
    ],
)
def test_box_around_by_hand(
    matrix: Any, origin: list[float], centre: list[float], half: float, box: list[tuple[int, int]]
) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix, origin
    assert box_around(affine, (20, 20, 20), centre, half) == tuple(slice(*ends) for ends in box)


@given(affines(), hnp.arrays(float, 3, elements=st.floats(-5, 25)), st.floats(0, 15))
def test_box_around_holds_every_voxel_of_the_cube(affine: FloatArray, centre_voxel: FloatArray, half: float) -> None:
    shape = (16, 20, 12)
    centre_mm = apply_affine(affine, centre_voxel)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    inside = np.asarray(np.abs(apply_affine(affine, voxels) - centre_mm).max(axis=-1) <= half - 1e-9)
    box = box_around(affine, shape, centre_mm, half)
    assert inside[box].sum() == inside.sum()
    assert all(0 <= s.start < s.stop <= n for s, n in zip(box, shape, strict=True))
