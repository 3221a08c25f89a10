"""Volume, diameters and mean of an outline: exact on hand-made masks, within stated bounds on spheres, ellipsoids."""

from __future__ import annotations

import csv
import itertools
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from scripts.core.geometry import slice_axis
from scripts.core.records import Measurement
from scripts.decode.measurements import axial_axes_mm, measure, type_hint

Array = npt.NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[2]
LIDC_NODULES = Path(os.environ.get("LUNG_NODULE_DATA") or ROOT / "../shared/data") / "lidc_nodules"

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]]
)
SHEAR = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.35], [0.0, 0.0, 1.0]])  # gantry tilted by 19°
AXIAL_GRIDS = {  # world step of i, j, k in columns; slices lie in the world's axial plane
    "1 mm": np.eye(3),
    "0.6 mm": np.diag([0.6, -0.6, 0.6]),
    "thin slices": np.diag([-0.7, 0.72, 1.25]),
    "flipped": np.diag([0.8, -0.8, -1.0]),
    "permuted": np.array([[0.0, 0.0, 0.7], [0.0, -0.7, 0.0], [1.25, 0.0, 0.0]]),
    "sheared": SHEAR @ np.diag([-0.7, -0.7, 1.5]),
    "2.5 mm slices": np.diag([-0.7, -0.7, 2.5]),
}
GRIDS = {**AXIAL_GRIDS, "oblique": TURN @ np.diag([0.7, -0.7, 1.25])}


def affine_of(steps_mm: Array) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = steps_mm
    return affine


def ellipsoid(steps_mm: Array, axes_mm: Array, shift: Array, turn: Array | None = None) -> npt.NDArray[np.bool_]:
    """Voxels whose centre lies in an ellipsoid of these full axes, centred ``shift`` voxels off the middle voxel."""
    # Far enough on a sheared grid too: a world distance d is at most d / smallest singular value in voxels.
    half = math.ceil(float(axes_mm.max()) / 2.0 / float(np.linalg.svd(steps_mm)[1].min())) + 2
    voxels = np.stack(np.meshgrid(*[np.arange(-half, half + 1.0)] * 3, indexing="ij"), axis=-1)
    world = (voxels - shift) @ steps_mm.T
    own = world if turn is None else world @ turn
    return np.asarray(np.square(own / (axes_mm / 2.0)).sum(axis=-1) < 1.0)


def measured(inside: npt.NDArray[np.bool_], steps_mm: Array, image_hu: npt.ArrayLike = 0) -> Measurement:
    found = measure(inside, np.broadcast_to(np.int16(image_hu), inside.shape), affine_of(steps_mm))
    assert found is not None
    return found


def pixel_diagonal_mm(steps_mm: Array) -> float:
    in_plane = [axis for axis in range(3) if axis != slice_axis(affine_of(steps_mm))]
    return float(np.linalg.norm(np.linalg.norm(steps_mm[:, in_plane], axis=0)))


# --- spheres and ellipsoids -------------------------------------------------------------------------------------------

SHIFTS = list(itertools.product((0.0, 0.13, 0.25, 0.5), repeat=3))  # voxels; aligned grids are the worst


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("diameter_mm", "volume_share", "diameter_share"), [(6.0, 0.21, 0.065), (12.0, 0.05, 0.017), (25.0, 0.015, 0.005)]
)
def test_a_sphere_is_measured_within_bounds(
    name: str, diameter_mm: float, volume_share: float, diameter_share: float
) -> None:
    """Voxels to 1 mm in plane, slices to 2.5 mm, counted whole wherever the sphere lies between them.

    Volume within 21 % at 6 mm, 5 % at 12 mm, 1.5 % at 25 mm; effective diameter within 6.5, 1.7, 0.5 %. The axes err
    upwards, by at most 0.7 of a pixel's diagonal (the farthest of many pairs of edges counts), and downwards by at most
    a quarter of it, and where the slices miss the equator.
    """
    steps_mm = GRIDS[name]
    diagonal_mm = pixel_diagonal_mm(steps_mm)
    slice_mm = abs(float(steps_mm[2, slice_axis(affine_of(steps_mm))]))
    missed_mm = diameter_mm - math.sqrt(diameter_mm**2 - slice_mm**2)  # what the chord half a slice off lacks
    for shift in SHIFTS:
        found = measured(ellipsoid(steps_mm, np.full(3, diameter_mm), np.array(shift)), steps_mm)
        assert found.volume_mm3 == pytest.approx(math.pi / 6 * diameter_mm**3, rel=volume_share)
        assert found.effective_diameter_mm == pytest.approx(diameter_mm, rel=diameter_share)
        for axis_mm in (found.long_axis_mm, found.short_axis_mm):
            assert -missed_mm - 0.25 * diagonal_mm <= axis_mm - diameter_mm <= 0.7 * diagonal_mm
        assert found.short_axis_mm <= found.long_axis_mm + 1e-9


def test_on_slices_of_5_mm_a_sphere_of_12_mm_is_measured_within_wider_bounds() -> None:
    """Volume within 9 %; the axes up to 0.7 mm long or 1.1 mm (the equator missed by half a slice) short."""
    steps_mm = np.diag([0.7, -0.7, 5.0])
    for shift in SHIFTS:
        found = measured(ellipsoid(steps_mm, np.full(3, 12.0), np.array(shift)), steps_mm)
        assert found.volume_mm3 == pytest.approx(math.pi / 6 * 12.0**3, rel=0.09)
        assert -1.1 <= found.short_axis_mm - 12.0 <= found.long_axis_mm - 12.0 + 1e-9 <= 0.7


def slice_axes_mm(axes_mm: Array, turn: Array, steps_mm: Array) -> tuple[float, float]:
    """Full axes of the ellipse in which a slice of a grid cuts an ellipsoid through its centre, the longer first."""
    plane = np.linalg.qr(np.delete(steps_mm, slice_axis(affine_of(steps_mm)), axis=1))[0]
    form = turn @ np.diag(4.0 / axes_mm**2) @ turn.T
    smaller, larger = np.linalg.eigvalsh(plane.T @ form @ plane)
    return 2.0 / math.sqrt(smaller), 2.0 / math.sqrt(larger)


TURNS = [np.eye(3), *Rotation.random(4, rng=0).as_matrix()]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("axes_mm", "volume_share", "diameter_share"),
    [((9.0, 6.0, 7.5), 0.12, 0.04), ((14.0, 10.0, 12.0), 0.045, 0.016), ((18.0, 9.0, 25.0), 0.025, 0.009)],
)
def test_a_turned_ellipsoid_is_measured_within_bounds(
    name: str, axes_mm: tuple[float, float, float], volume_share: float, diameter_share: float
) -> None:
    """Volume within 12, 4.5, 2.5 %; effective diameter within 4, 1.6, 0.9 %.

    The long axis within 0.7, the short one within 1.2 of a pixel's diagonal: where the long one is a few degrees off,
    more of it shows across.
    """
    steps_mm, axes = GRIDS[name], np.array(axes_mm)
    diagonal_mm = pixel_diagonal_mm(steps_mm)
    for turn, shift in itertools.product(TURNS, [(0.0, 0.0, 0.0), (0.2, -0.3, 0.1), (0.5, 0.5, 0.5)]):
        long_mm, short_mm = slice_axes_mm(axes, turn, steps_mm)
        found = measured(ellipsoid(steps_mm, axes, np.array(shift), turn), steps_mm)
        assert found.volume_mm3 == pytest.approx(math.pi / 6 * float(axes.prod()), rel=volume_share)
        assert found.effective_diameter_mm == pytest.approx(float(np.cbrt(axes.prod())), rel=diameter_share)
        assert found.long_axis_mm == pytest.approx(long_mm, abs=0.7 * diagonal_mm)
        assert found.short_axis_mm == pytest.approx(short_mm, abs=1.2 * diagonal_mm)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_how_the_array_is_stored_does_not_change_the_measurement(
    order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    steps_mm = np.diag([0.7, 0.9, 2.0])
    inside = ellipsoid(steps_mm, np.array([16.0, 9.0, 12.0]), np.array([0.2, -0.3, 0.1]))
    image_hu = np.random.default_rng(0).integers(-1000, 400, inside.shape).astype(np.int16)
    way = tuple(slice(None, None, sign) for sign in flips)
    stored_inside, stored_hu = inside.transpose(order)[way], image_hu.transpose(order)[way]
    stored = measured(stored_inside, steps_mm[:, order] * np.array(flips), stored_hu)
    assert vars(stored) == pytest.approx(vars(measured(inside, steps_mm, image_hu)))


# --- small masks, by hand ---------------------------------------------------------------------------------------------


def mask_of(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = (7, 8, 9)) -> npt.NDArray[np.bool_]:
    inside = np.zeros(shape, dtype=bool)
    inside[tuple(np.array(voxels).T)] = True
    return inside


def test_an_empty_mask_has_no_measurement() -> None:
    assert measure(np.zeros((3, 4, 5), dtype=bool), np.zeros((3, 4, 5), dtype=np.int16), np.eye(4)) is None


@pytest.mark.parametrize(
    ("voxels", "axes_mm"),
    [
        ([(3, 4, 5)], (0.9, 0.7)),
        ([(2, 4, 5), (3, 4, 5), (4, 4, 5)], (3 * 0.7, 0.9)),  # a row
        ([(3, 4, k) for k in range(1, 8)], (0.9, 0.7)),  # a column along the body is as wide as a voxel
    ],
)
def test_few_voxels_in_a_line(voxels: list[tuple[int, int, int]], axes_mm: tuple[float, float]) -> None:
    found = measured(mask_of(*voxels), np.diag([0.7, -0.9, 2.5]))
    volume_mm3 = len(voxels) * 0.7 * 0.9 * 2.5
    assert found.volume_mm3 == pytest.approx(volume_mm3)
    assert found.effective_diameter_mm == pytest.approx((6 * volume_mm3 / math.pi) ** (1 / 3))
    assert (found.long_axis_mm, found.short_axis_mm) == pytest.approx(axes_mm)


SQUARE = [(i, j, 4) for i in range(5) for j in range(5)]


@pytest.mark.parametrize(
    ("voxels", "axes_mm"),
    [
        # 4 × 2 pixels of 1 mm. Farthest middles of edges: (-0.5, 0) and (3.5, 1), 4 along and 1 across. Perpendicular
        # to (4, 1) the edges reach from (3, -0.5) to (0, 1.5): 11 / √17.
        ([(i, j, 4) for i in range(4) for j in range(2)], (math.sqrt(17.0), 11.0 / math.sqrt(17.0))),
        # (-0.5, 0) and (4.5, 4), 5 along and 4 across, and as much perpendicular to it
        (SQUARE, (math.sqrt(41.0), math.sqrt(41.0))),
        ([(i, j, 4) for i, j, _ in SQUARE if not (1 <= i <= 3 and j >= 1)], (math.sqrt(41.0), math.sqrt(41.0))),
        # wider, but shorter than the row on another slice
        ([*[(i, j, 3) for i in range(4) for j in range(4)], *[(i, 2, 5) for i in range(7)]], (7.0, 1.0)),
        # of equally long ones the wider counts
        ([*[(i, 2, k) for i in range(5) for k in (3, 5)], (2, 1, 5), (2, 3, 5)], (5.0, 3.0)),
    ],
    ids=["from edge to edge", "square", "a gap does not shorten", "longest slice", "of equally long ones the wider"],
)
def test_axes_reach_from_edge_to_edge_on_the_slice_where_the_long_one_is_largest(
    voxels: list[tuple[int, int, int]], axes_mm: tuple[float, float]
) -> None:
    inside = mask_of(*voxels)
    assert axial_axes_mm(inside, np.eye(4)) == pytest.approx(axes_mm)
    assert axial_axes_mm(inside[:, :, ::-1], np.eye(4)) == pytest.approx(axes_mm)


def test_on_a_sheared_grid_slices_are_measured_in_their_plane_and_the_volume_by_its_cells() -> None:
    inside = mask_of(*[(i, 4, k) for i in range(1, 4) for k in (2, 3, 4)])
    straight, sheared = np.diag([0.7, 0.7, 2.0]), SHEAR @ np.diag([0.7, 0.7, 2.0])
    assert vars(measured(inside, sheared)) == pytest.approx(vars(measured(inside, straight)))
    assert measured(inside, sheared).volume_mm3 == pytest.approx(9 * 0.7 * 0.7 * 2.0)


def test_the_mean_is_that_of_the_outline_alone() -> None:
    image_hu = np.full((7, 8, 9), -1000, dtype=np.int16)
    image_hu[3, 4, 5], image_hu[3, 4, 6] = 32767, 32766  # their sum does not fit the image's type
    assert measured(mask_of((3, 4, 5), (3, 4, 6)), np.eye(3), image_hu).mean_hu == 32766.5


# --- type hint --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solid", "expected"),
    [(0, "ground-glass"), (3, "ground-glass"), (4, "part-solid"), (23, "part-solid"), (24, "solid"), (40, "solid")],
)
@pytest.mark.parametrize("background", [-850, 40], ids=["dark rim, as partial volume", "bright rim, as at the pleura"])
def test_the_type_is_judged_by_the_share_of_solid_voxels_without_the_rim(
    solid: int, expected: str, background: int
) -> None:
    """A plate of 4 × 10 voxels with a rim of one voxel around it, ``solid`` of them above the threshold."""
    image_hu = np.full((10, 14, 5), background, dtype=np.int16)
    inside = np.zeros(image_hu.shape, dtype=bool)
    inside[2:8, 2:14, 2] = True
    image_hu[3:7, 3:13, 2] = np.where(np.arange(40) < solid, -300, -301).reshape(4, 10)
    assert measured(inside, np.diag([0.7, 0.7, 2.0]), image_hu).type_hint == expected


@pytest.mark.parametrize(("hu", "expected"), [(-300, "solid"), (-301, "ground-glass")])
def test_an_outline_that_is_all_rim_is_judged_whole(hu: int, expected: str) -> None:
    assert measured(mask_of((3, 4, 5), (3, 5, 5)), np.diag([0.7, 0.7, 2.0]), hu).type_hint == expected


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_rim_is_that_of_the_slices_however_the_array_is_stored(order: tuple[int, int, int]) -> None:
    """Two slices without a rim between them: a nodule of two slices keeps its middle."""
    image_hu = np.full((7, 8, 9), -850, dtype=np.int16)
    inside = np.zeros(image_hu.shape, dtype=bool)
    inside[2:5, 2:5, 4:6] = True
    image_hu[3, 3, 4:6] = 0
    affine = affine_of(np.diag([0.7, 0.7, 2.0])[:, order])
    assert type_hint(inside.transpose(order), image_hu.transpose(order), affine) == "solid"


@pytest.mark.skipif(not LIDC_NODULES.is_dir(), reason=f"the nodules with readings are not at {LIDC_NODULES}")
def test_the_type_agrees_with_the_readings_of_texture_as_often_as_the_docs_say() -> None:
    """Texture 1 is ground-glass, 5 solid, 2 to 4 lie between (4 counts as solid); 895 nodules of LIDC-IDRI."""
    agreed: dict[str, list[bool]] = {"ground-glass": [], "part-solid": [], "solid": []}
    with (LIDC_NODULES / "nodules.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            image = nibabel.load(LIDC_NODULES / "image" / f"{row['name']}.nii.gz")
            inside = np.asarray(nibabel.load(LIDC_NODULES / "mask" / f"{row['name']}.nii.gz").dataobj) > 0
            texture = float(row["texture"])
            reading = "ground-glass" if texture < 2 else "part-solid" if texture < 4 else "solid"
            hint = type_hint(inside, np.asarray(image.dataobj), image.affine)
            agreed[reading].append(hint == reading)
    assert [len(found) for found in agreed.values()] == [65, 39, 791]
    assert [round(float(np.mean(found)), 2) for found in agreed.values()] == [0.72, 0.59, 0.89]
