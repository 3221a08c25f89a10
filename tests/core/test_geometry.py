"""Laws of scripts/core/geometry.py, and small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scripts.core.geometry import (
    FloatArray,
    apply_affine,
    box_around,
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


@given(points())
def test_swapping_frames_twice_changes_nothing(points_mm: FloatArray) -> None:
    np.testing.assert_array_equal(swap_lps_ras(swap_lps_ras(points_mm)), points_mm)


@given(affines())
def test_swapping_an_affine_twice_changes_nothing(affine: FloatArray) -> None:
    np.testing.assert_array_equal(swap_lps_ras_affine(swap_lps_ras_affine(affine)), affine)


@given(affines(), points())
def test_swapping_the_affine_or_its_points_is_the_same(affine: FloatArray, voxels: FloatArray) -> None:
    np.testing.assert_array_equal(
        apply_affine(swap_lps_ras_affine(affine), voxels), swap_lps_ras(apply_affine(affine, voxels))
    )


@given(affines(), points())
def test_an_affine_and_its_inverse_cancel(affine: FloatArray, voxels: FloatArray) -> None:
    back = apply_affine(np.linalg.inv(affine), apply_affine(affine, voxels))
    assert back.shape == voxels.shape
    np.testing.assert_allclose(back, voxels, rtol=0, atol=1e-8)


@given(affines(), affines(), points())
def test_affines_compose_like_matrices(outer: FloatArray, inner: FloatArray, voxels: FloatArray) -> None:
    np.testing.assert_allclose(
        apply_affine(outer @ inner, voxels), apply_affine(outer, apply_affine(inner, voxels)), rtol=0, atol=1e-7
    )


def test_apply_affine_on_a_sheared_and_permuted_grid() -> None:
    # x = -0.7 j + 12, y = 0.7 i + 0.9 k - 30, z = -2.5 k + 100
    np.testing.assert_allclose(apply_affine(SHEARED, [10, 20, 4]), [-2.0, -19.4, 90.0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 5, 3)])
def test_apply_affine_keeps_the_shape(shape: tuple[int, ...]) -> None:
    assert apply_affine(np.eye(4), np.zeros(shape)).shape == shape


def test_nothing_is_changed_in_place() -> None:
    affine, voxels = SHEARED.copy(), np.arange(6.0).reshape(2, 3)
    apply_affine(affine, voxels)
    swap_lps_ras(voxels)
    swap_lps_ras_affine(affine)
    np.testing.assert_array_equal(affine, SHEARED)
    np.testing.assert_array_equal(voxels, np.arange(6.0).reshape(2, 3))


def test_spacing_and_volume_of_a_sheared_grid() -> None:
    np.testing.assert_allclose(spacing_mm(SHEARED), [0.7, 0.7, np.hypot(0.9, 2.5)], rtol=1e-12)
    # The shear moves slices along themselves: 0.7 · 0.7 · 2.5, not the product of the spacings.
    assert voxel_volume_mm3(SHEARED) == pytest.approx(1.225, rel=1e-12)


@given(affines())
def test_spacing_is_the_distance_between_neighbours(affine: FloatArray) -> None:
    origin, *neighbours = apply_affine(affine, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(spacing_mm(affine), [np.linalg.norm(n - origin) for n in neighbours], rtol=1e-9)


@given(affines())
def test_spacing_and_volume_do_not_see_the_frame(affine: FloatArray) -> None:
    np.testing.assert_array_equal(spacing_mm(swap_lps_ras_affine(affine)), spacing_mm(affine))
    assert voxel_volume_mm3(swap_lps_ras_affine(affine)) == pytest.approx(voxel_volume_mm3(affine), rel=1e-12)


def test_the_worked_example_of_the_docs() -> None:
    affine_lps = np.diag([0.7, 0.7, 2.5, 1.0])
    affine_lps[:3, 3] = -180, -170, -300
    affine = swap_lps_ras_affine(affine_lps)
    expected = np.diag([-0.7, -0.7, 2.5, 1.0])
    expected[:3, 3] = 180, 170, -300
    np.testing.assert_array_equal(affine, expected)
    np.testing.assert_allclose(apply_affine(affine, [100, 200, 40]), [110, 30, -200], rtol=0, atol=1e-10)
    reversed_i = affine.copy()
    reversed_i[:, 0] = 0.7, 0, 0, 0
    reversed_i[0, 3] = 180 - 0.7 * 511
    np.testing.assert_allclose(apply_affine(reversed_i, [411, 200, 40]), [110, 30, -200], rtol=0, atol=1e-10)


@pytest.mark.parametrize("diameter_mm", [0.0, 1.0, 6.0, 32.27])
def test_sphere_diameter_inverts_the_volume_of_a_sphere(diameter_mm: float) -> None:
    assert sphere_diameter_mm(4 / 3 * np.pi * (diameter_mm / 2) ** 3) == pytest.approx(diameter_mm, abs=1e-12)


def test_box_around_on_a_grid_of_one_millimetre() -> None:
    # 10 ± 3 along i; 2 ± 3 is cut at 0 along j; 19 ± 3 is cut at the last voxel, 19, along k.
    box = box_around(np.eye(4), (20, 20, 20), [10, 2, 19], 3)
    assert box == (slice(7, 14), slice(0, 6), slice(16, 20))


def test_box_around_holds_the_whole_cube_between_voxels() -> None:
    # 10.5 ± 2.2 is 8.3 … 12.7: voxels 8 … 13.
    box = box_around(np.eye(4), (20, 20, 20), [10.5, 10.5, 10.5], 2.2)
    assert box == (slice(8, 14),) * 3


def test_box_around_on_a_flipped_and_anisotropic_grid() -> None:
    affine = np.diag([-0.5, 2.0, 1.0, 1.0])
    affine[:3, 3] = 50, 0, 0
    # i: (50 - x) / 0.5 for x in 36 … 44 is 12 … 28; j: 6 … 14 mm is 3 … 7; k: 6 … 14.
    box = box_around(affine, (100, 100, 100), [40, 10, 10], 4)
    assert box == (slice(12, 29), slice(3, 8), slice(6, 15))


def test_box_around_on_a_permuted_grid() -> None:
    affine = np.array([[0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
    # i is y / 1, j is z / 4, k is x / 2.
    assert box_around(affine, (50, 50, 50), [20, 10, 40], 4) == (slice(6, 15), slice(9, 12), slice(8, 13))


def test_box_around_on_a_sheared_grid_is_wider_than_the_cube() -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.5  # y = j + k / 2
    # k = z is 6 … 14; j = y - k / 2 is lowest at y = 6, k = 14: -1, and highest at y = 14, k = 6: 11.
    box = box_around(affine, (20, 20, 20), [10, 10, 10], 4)
    assert box == (slice(6, 15), slice(0, 12), slice(6, 15))


@pytest.mark.parametrize(
    ("centre", "expected"), [([-50, 5, 5], slice(0, 1)), ([50, 5, 5], slice(9, 10)), ([9, 5, 5], slice(9, 10))]
)
def test_box_around_outside_the_grid_is_its_nearest_voxel(centre: list[float], expected: slice) -> None:
    assert box_around(np.eye(4), (10, 10, 10), centre, 0)[0] == expected


@given(affines(), hnp.arrays(float, 3, elements=st.floats(-5, 25)), st.floats(0, 15))
def test_box_around_holds_every_voxel_of_the_cube(affine: FloatArray, centre_voxel: FloatArray, half: float) -> None:
    shape = (16, 20, 12)
    centre_mm = apply_affine(affine, centre_voxel)
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    inside = np.asarray(np.abs(apply_affine(affine, voxels) - centre_mm).max(axis=-1) <= half - 1e-9)
    box = box_around(affine, shape, centre_mm, half)
    assert inside[box].sum() == inside.sum()
    assert all(0 <= s.start < s.stop <= n for s, n in zip(box, shape, strict=True))
