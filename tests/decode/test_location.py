"""Left or right, upper, middle or lower: whatever way the scan is stored, and nothing where lungs cannot be told."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation

from scripts.core.geometry import Point, apply_affine
from scripts.core.labels import Part
from scripts.core.records import Detection, Location, Nodule, SearchRegion
from scripts.decode.location import LocateNodulesd, locate
from scripts.phantom.chest import Chest
from scripts.preprocess import CropToLungsd, LungSearch
from scripts.read.reader import ScanReader

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUNG_NODULE_DATA") or ROOT / "../shared/data")
REAL = DATA / "scans" / "LIDC-IDRI-0001"


def searched(image: MetaTensor) -> dict[str, Any]:
    """The scan with what the graph has found of its lungs."""
    return CropToLungsd("image", LungSearch(), 15.0)({"image": Orientation("RAS", labels=None)(image)})


def located(item: dict[str, Any], *centres_ras_mm: Point) -> list[Location | None]:
    """What the graph says of nodules at these places."""
    nodules = [Nodule(n, Detection(c, 6.0, 0.9), c, None) for n, c in enumerate(centres_ras_mm, start=1)]
    return [nodule.location for nodule in LocateNodulesd()({**item, "nodules": nodules})["nodules"]]


def meta(image_hu: np.ndarray, affine_ras: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(image_hu))[None], affine=torch.from_numpy(affine_ras))


@pytest.fixture(scope="module")
def shifted(full_chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """The chest with 60 mm more air on its left: its midline is far from the image's, and from x = 0."""
    image_hu = np.pad(np.rint(full_chest.image_hu).astype(np.int16), ((60, 0), (0, 0), (0, 0)), constant_values=-1000)
    affine = full_chest.affine_ras.copy()
    affine[:3, 3] += [100.0 - affine[0, 0] * 60, 20.0, -400.0]
    return image_hu, affine


@pytest.fixture(scope="module")
def plain(shifted: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """This chest, searched as it is stored here."""
    return searched(meta(*shifted))


def lung_voxels(chest: Chest, affine: np.ndarray) -> dict[str, np.ndarray]:
    """World positions of the voxels of either true lung, in the shifted grid."""
    voxels = np.argwhere(chest.lungs > 0) + np.array([60, 0, 0])
    world = apply_affine(affine, voxels)
    middle = apply_affine(affine, [60 + (chest.lungs.shape[0] - 1) / 2, 0, 0])[0]
    return {"left": world[world[:, 0] < middle - 5], "right": world[world[:, 0] > middle + 5]}


def test_every_place_of_a_chest_off_the_middle_is_right(
    full_chest: Chest, shifted: tuple, plain: dict[str, Any]
) -> None:
    _, affine = shifted
    rng = np.random.default_rng(0)
    for side, world in lung_voxels(full_chest, affine).items():
        points = world[rng.choice(len(world), 200, replace=False)]
        low, high = world[:, 2].min(), world[:, 2].max()
        found = located(plain, *(tuple(p.tolist()) for p in points))
        assert {place.side for place in found if place is not None} == {side}
        for point, place in zip(points, found, strict=True):
            share = (point[2] - low) / (high - low)
            if min(abs(share - 1 / 3), abs(share - 2 / 3)) > 0.05:
                assert place is not None
                assert place.level == ("lower", "middle", "upper")[int(share * 3)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_how_the_scan_is_stored_changes_nothing(
    full_chest: Chest, shifted: tuple, plain: dict[str, Any], axis: int
) -> None:
    image_hu, affine = shifted
    places = [
        tuple(world[n].tolist())
        for world in lung_voxels(full_chest, affine).values()
        for n in np.linspace(0, len(world) - 1, 9).astype(int)
    ]
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1.0, image_hu.shape[axis] - 1
    expected = located(plain, *places)
    assert len(set(expected)) >= 4
    assert located(searched(meta(np.flip(image_hu, axis), affine @ turn)), *places) == expected


AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def _region(**cells: slice) -> SearchRegion:
    """Columns of lung along k, 20 cells wide."""
    parts = np.full((50, 50, 50), Part.BODY, dtype=np.uint8)
    for (side, height), start in zip(cells.items(), (2, 28), strict=False):
        parts[start : start + 20, 10:40, height] = {"left": Part.LEFT_LUNG, "right": Part.RIGHT_LUNG}[side]
    return SearchRegion("lungs", np.zeros(parts.shape, np.float32), parts, AFFINE)


@pytest.mark.parametrize(
    ("region", "places"),
    [
        (
            _region(left=slice(0, 30), right=slice(20, 50)),
            {
                (10.0, 100.0, 90.0): Location("left", "upper"),
                (90.0, 100.0, 60.0): Location("left", "middle"),
                (110.0, 100.0, 90.0): Location("right", "lower"),
                (120.0, 100.0, 190.0): Location("right", "upper"),
                (180.0, 100.0, 1.0): Location("right", "lower"),  # below it
            },
        ),
        (_region(left=slice(0, 50)), {(190.0, 100.0, 100.0): Location("left", "middle")}),  # one lung has all nodules
        (dataclasses.replace(_region(left=slice(0, 50)), kind="cut-out"), {(40.0, 40.0, 40.0): None}),
        (_region(), {(40.0, 40.0, 40.0): None}),
    ],
    ids=["two lungs", "one lung", "cut-out", "no lung"],
)
def test_thirds_are_those_of_the_lung_itself(region: SearchRegion, places: dict[Point, Location | None]) -> None:
    assert locate(list(places), region) == list(places.values())


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real scan is not at {REAL}")
def test_the_nodule_of_a_real_scan_is_on_the_left() -> None:
    """At LPS (56.2, 86.3, -115.9): x grows to the left."""
    image = LoadImage(reader=ScanReader(), ensure_channel_first=True, image_only=True, dtype=np.int16)(str(REAL))
    (place,) = located(searched(image), (-56.2, -86.3, -115.9))
    assert place == Location("left", "middle")
