"""Left or right, upper, middle or lower: whatever way the scan is stored, and nothing where lungs cannot be told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation

from scripts.findings import Detection, Location, Nodule
from scripts.geometry import Point, apply_affine
from scripts.location import LocateNodulesd, tell_sides
from scripts.prepare.phantom import Chest
from scripts.reader import ScanReader
from scripts.transforms import CropToLungsd

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUNG_NODULE_DATA") or ROOT / "../shared/data")
REAL = DATA / "scans" / "LIDC-IDRI-0001"


def located(image: MetaTensor, *centres_ras_mm: Point) -> list[Location | None]:
    """What the graph says of nodules at these places."""
    item = CropToLungsd(keys="image", margin_mm=15.0)({"image": Orientation("RAS", labels=None)(image)})
    item["nodules"] = [Nodule(n, Detection(c, 6.0, 0.9), c, None) for n, c in enumerate(centres_ras_mm, start=1)]
    return [nodule.location for nodule in LocateNodulesd()(item)["nodules"]]


def meta(image_hu: np.ndarray, affine_ras: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(image_hu))[None], affine=torch.from_numpy(affine_ras))


@pytest.fixture(scope="module")
def shifted(full_chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """The chest with 60 mm more air on its left: its midline is far from the image's, and from x = 0."""
    image_hu = np.pad(np.rint(full_chest.image_hu).astype(np.int16), ((60, 0), (0, 0), (0, 0)), constant_values=-1000)
    affine = full_chest.affine_ras.copy()
    affine[:3, 3] += [100.0 - affine[0, 0] * 60, 20.0, -400.0]
    return image_hu, affine


def lung_voxels(chest: Chest, affine: np.ndarray) -> dict[str, np.ndarray]:
    """World positions of the voxels of either true lung, in the shifted grid."""
    voxels = np.argwhere(chest.lungs > 0) + np.array([60, 0, 0])
    world = apply_affine(affine, voxels)
    middle = apply_affine(affine, [60 + (chest.lungs.shape[0] - 1) / 2, 0, 0])[0]
    return {"left": world[world[:, 0] < middle - 5], "right": world[world[:, 0] > middle + 5]}


def test_every_place_of_a_chest_off_the_middle_is_right(full_chest: Chest, shifted: tuple) -> None:
    image_hu, affine = shifted
    rng = np.random.default_rng(0)
    for side, world in lung_voxels(full_chest, affine).items():
        points = world[rng.choice(len(world), 200, replace=False)]
        low, high = world[:, 2].min(), world[:, 2].max()
        found = located(meta(image_hu, affine), *(tuple(p.tolist()) for p in points))
        assert {place.side for place in found if place is not None} == {side}
        for point, place in zip(points, found, strict=True):
            share = (point[2] - low) / (high - low)
            if min(abs(share - 1 / 3), abs(share - 2 / 3)) > 0.05:
                assert place is not None
                assert place.level == ("lower", "middle", "upper")[int(share * 3)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_how_the_scan_is_stored_changes_nothing(full_chest: Chest, shifted: tuple, axis: int) -> None:
    image_hu, affine = shifted
    places = [
        tuple(world[n].tolist())
        for world in lung_voxels(full_chest, affine).values()
        for n in np.linspace(0, len(world) - 1, 9).astype(int)
    ]
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1.0, image_hu.shape[axis] - 1
    expected = located(meta(image_hu, affine), *places)
    assert len(set(expected)) >= 4
    assert located(meta(np.flip(image_hu, axis), affine @ turn), *places) == expected


def ball(grid: np.ndarray, centre_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    return np.asarray(np.linalg.norm(grid - np.array(centre_mm), axis=-1) <= radius_mm)


GRID = np.stack(np.meshgrid(*[np.arange(0.0, 200.0, 4.0)] * 3, indexing="ij"), axis=-1)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def test_two_balls_joined_by_a_bridge_are_two_lungs() -> None:
    bridge = (np.abs(GRID[..., 1:] - 100.0) < 12.0).all(axis=-1) & (np.abs(GRID[..., 0] - 100.0) < 60.0)
    lungs = ball(GRID, (50.0, 100.0, 90.0), 40.0) | ball(GRID, (150.0, 100.0, 110.0), 44.0) | bridge
    sides = tell_sides(lungs, AFFINE)
    assert sides is not None
    assert sides.locate((10.0, 100.0, 90.0)) == Location("left", "middle")
    assert sides.locate((95.0, 100.0, 60.0)) == Location("left", "lower")
    assert sides.locate((110.0, 100.0, 150.0)) == Location("right", "upper")
    assert sides.locate((120.0, 100.0, 190.0)) == Location("right", "upper")
    assert sides.locate((120.0, 100.0, 20.0)) == Location("right", "lower")


@pytest.mark.parametrize(
    "lungs",
    [
        np.zeros(GRID.shape[:3], dtype=bool),
        ball(GRID, (50.0, 100.0, 90.0), 40.0),
        ball(GRID, (50.0, 100.0, 50.0), 40.0) | ball(GRID, (60.0, 100.0, 150.0), 40.0),  # one above the other
        ball(GRID, (50.0, 100.0, 90.0), 40.0) | ball(GRID, (150.0, 100.0, 110.0), 14.0),  # no second lung
        np.ones(GRID.shape[:3], dtype=bool),
    ],
    ids=["none", "one", "one above the other", "one and a bubble", "everything"],
)
def test_where_no_two_lungs_lie_side_by_side_nothing_is_said(lungs: np.ndarray) -> None:
    assert tell_sides(lungs, AFFINE) is None


def test_without_lungs_there_is_no_place() -> None:
    cube = np.full((80, 80, 80), -850, dtype=np.int16)
    assert located(meta(cube, np.eye(4)), (40.0, 40.0, 40.0)) == [None]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scan is not at {REAL}")
def test_the_nodule_of_a_real_scan_is_on_the_left() -> None:
    """At LPS (56.2, 86.3, -115.9): x grows to the left."""
    image = LoadImage(reader=ScanReader(), ensure_channel_first=True, image_only=True, dtype=np.int16)(str(REAL))
    (place,) = located(image, (-56.2, -86.3, -115.9))
    assert place == Location("left", "middle")
