"""Nodule insertion: where the nodule is drawn, there its mask and row are; and what must stay, stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from scripts.core.geometry import sphere_diameter_mm
from scripts.core.labels import IGNORED, NODULE
from scripts.train import InsertNodulesd
from scripts.train.insertion import (
    ABOVE_DONOR_HU,
    FAINTEST_HU,
    FAINTEST_HU_MM,
    LOCAL_SIGMA_VOXEL,
    SOLID_HU,
    size_weight,
)

DONOR_HU, LUNG_HU, WALL_HU, AIR_HU = 40.0, -850.0, 50.0, -1000.0
EDGE = 48
SEEDS = range(6)
Place = slice | np.ndarray | tuple[slice | int, ...]


def _saved(folder: Path, affine: np.ndarray, **volumes: np.ndarray) -> dict[str, Any]:
    """The paths of volumes that are written as NIfTI files."""
    files = {name: str(folder / f"{name}.nii.gz") for name in volumes}
    for name, volume in volumes.items():
        nibabel.save(nibabel.Nifti1Image(volume, affine), files[name])
    return files


def _write_donor(folder: Path, half_axes_mm: tuple[float, float, float], hu: float) -> dict[str, Any]:
    """An ellipsoid on a grid of 0.7 × 0.7 × 1.25 mm, with the narrow margin along z that real donors have."""
    spacing = np.array([0.7, 0.7, 1.25])
    half = np.ceil(np.array(half_axes_mm) / spacing).astype(int) + np.array([5, 5, 1])
    apart_mm = np.moveaxis(np.indices(2 * half + 1), 0, -1) * spacing - half * spacing
    inside = np.square(apart_mm / half_axes_mm).sum(axis=-1) < 1
    image, mask = np.where(inside, hu, -800.0).astype(np.int16), inside.astype(np.uint8)
    files = _saved(folder, np.diag([-0.7, -0.7, 1.25, 1.0]), image=image, mask=mask)
    return {**files, "diameter_mm": 2 * float(np.prod(half_axes_mm)) ** (1 / 3)}


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A round donor, 9 mm across."""
    return _write_donor(tmp_path_factory.mktemp("ball"), (4.5, 4.5, 4.5), DONOR_HU)


@pytest.fixture(scope="module")
def rod(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A long donor: it reaches farther than the sphere of its volume."""
    return _write_donor(tmp_path_factory.mktemp("rod"), (3.0, 3.0, 16.0), DONOR_HU)


def _lung(edge: int = EDGE, *, where: Place = np.s_[:0], hu: float = 0.0, **more: np.ndarray) -> dict[str, Any]:
    """A crop of noisy parenchyma, with other tissue of these HU ``where``; without nodules unless ``more`` says so."""
    image = np.random.default_rng(0).normal(LUNG_HU, 15, (1, edge, edge, edge)).astype(np.float32)
    image[0][where] = hu
    return {"image": image, "nodule": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64), **more}


def _marked(*where: slice | int) -> np.ndarray:
    """A mask ``[1, I, J, K]`` of a part of the crop."""
    mask = np.zeros((1, EDGE, EDGE, EDGE), dtype=np.uint8)
    mask[(0, *where)] = 1
    return mask


def _inserter(donors: list[dict[str, Any]], seed: int = 0, **changes: Any) -> InsertNodulesd:
    insert = InsertNodulesd(donors, **{"prob": 1.0, "most": 1, "scale": (1.0, 1.0), **changes})
    insert.set_random_state(seed)
    return insert


def _is_cut(own: np.ndarray) -> bool:
    """Whether a nodule reaches the crop's border."""
    return bool(own.sum() > own[1:-1, 1:-1, 1:-1].sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_mask_row_and_image_agree(ball: dict[str, Any], seed: int) -> None:
    before = _lung()
    out = _inserter([ball], seed)(before)
    assert out["label"].tolist() == [NODULE]
    assert set(np.unique(out["mask"])) == {0, 1}
    own = out["mask"][0] == 1
    if _is_cut(own):  # then the row tells of the whole nodule
        assert out["nodule"][0, 3] >= np.float32(sphere_diameter_mm(own.sum()))
        assert out["nodule"][0, 3] == pytest.approx(9.0, rel=0.04)
    else:
        np.testing.assert_allclose(np.argwhere(own).mean(axis=0), out["nodule"][0, :3], atol=1e-4)
        assert out["nodule"][0, 3] == pytest.approx(sphere_diameter_mm(own.sum()), rel=1e-5)
    changed = np.abs(out["image"][0] - before["image"][0]) > 1.0
    assert changed[own].all()
    assert not changed[~ndimage.binary_dilation(own, iterations=5)].any()
    core = out["image"][0][ndimage.binary_erosion(own, iterations=2)]
    assert core.size > 20
    np.testing.assert_allclose(core, DONOR_HU, atol=20)
    assert out["image"][0][own].mean() > DONOR_HU - 300  # its edge is soft


def test_rows_are_appended_and_numbered_on_and_inputs_stay(ball: dict[str, Any]) -> None:
    rows = np.array([[8, 8, 8, 6], [40, 40, 40, 6]], dtype=np.float32)
    data = _lung(nodule=rows, label=np.array([NODULE, IGNORED]), mask=_marked(*[slice(6, 11)] * 3))
    before = copy.deepcopy(data)
    out = _inserter([ball])(data)
    assert out["label"].tolist() == [NODULE, IGNORED, NODULE]
    assert set(np.unique(out["mask"])) == {0, 1, 3}
    np.testing.assert_array_equal(out["nodule"][:2], rows)
    np.testing.assert_allclose(np.argwhere(out["mask"][0] == 3).mean(axis=0), out["nodule"][2, :3], atol=1e-4)
    np.testing.assert_equal(data, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_new_nodules_keep_their_distance_to_all_that_are_there(ball: dict[str, Any], seed: int) -> None:
    data = _lung(40, nodule=np.array([[20, 20, 20, 14]], dtype=np.float32), label=np.array([IGNORED]))
    for turn in range(5):
        data = _inserter([ball], 100 * seed + turn)(data)
    rows = data["nodule"]
    assert len(rows) >= 3
    for n, row in enumerate(rows[1:], start=1):
        apart = np.linalg.norm(rows[:n, :3] - row[:3], axis=1) - rows[:n, 3] / 2 - 4.5
        # 3 voxels from the place that was drawn; a nodule cut by the crop's border lies farther in by up to its half
        assert apart.min() > (2.5 if row[:3].min() > 5 and row[:3].max() < 34 else 0)


@pytest.mark.parametrize("seed", range(12))
def test_nodules_of_the_host_are_never_overwritten(rod: dict[str, Any], seed: int) -> None:
    """Ground glass is not massive, so that only its mask protects it where it is longer than the sphere of its row."""
    own = np.square(np.indices((32, 32, 32))[:2] - 16).sum(axis=0) < 3**2
    rows = {"nodule": np.array([[16, 16, 16, 12]], dtype=np.float32), "label": np.array([NODULE])}
    data = _lung(32, where=own, hu=-300.0, mask=own[None].astype(np.uint8), **rows)
    for turn in range(3):
        data = _inserter([rod], 10 * seed + turn)(data)
    assert len(data["label"]) > 1
    np.testing.assert_array_equal(data["image"][0][own], -300.0)
    np.testing.assert_array_equal(data["mask"][0] == 1, own)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("where", "hu"), [(np.s_[:24], WALL_HU), (np.s_[22:26], 300.0)], ids=["wall", "plate"])
def test_massive_tissue_stays_and_never_leaves_a_nodule_in_two_pieces(
    rod: dict[str, Any], where: slice, hu: float, seed: int
) -> None:
    data = _lung(where=where, hu=hu)
    massive = ndimage.gaussian_filter(data["image"][0], LOCAL_SIGMA_VOXEL) > SOLID_HU
    out = _inserter([rod], seed, most=3)(data)
    assert len(out["label"]) >= 1
    np.testing.assert_array_equal(out["image"][0][massive], data["image"][0][massive])
    assert not out["mask"][0][massive].any()
    for number in range(1, len(out["label"]) + 1):
        assert ndimage.label(out["mask"][0] == number, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("other_hu", [LUNG_HU, AIR_HU, WALL_HU])
def test_nodules_lie_in_parenchyma_inside_the_lung_mask(ball: dict[str, Any], seed: int, other_hu: float) -> None:
    data = _lung(where=np.s_[:, :, :24], hu=other_hu, lung=_marked(slice(None), slice(30, 38)))
    out = _inserter([ball], seed)(data)
    assert out["label"].tolist() == [NODULE]
    assert 29.5 <= out["nodule"][0, 1] <= 37.5  # its centre; its border may lie beyond
    assert other_hu == LUNG_HU or out["nodule"][0, 2] >= 23
    np.testing.assert_array_equal(out["lung"], data["lung"])


@pytest.mark.parametrize(
    ("donors", "hu", "rows"),
    [(0, LUNG_HU, []), (1, AIR_HU, []), (1, WALL_HU, []), (1, LUNG_HU, [[12, 12, 12, 60]])],
    ids=["no donors", "air", "wall", "a large nodule"],
)
def test_without_donors_or_room_in_parenchyma_a_crop_gets_only_an_empty_mask(
    ball: dict[str, Any], donors: int, hu: float, rows: list[list[float]]
) -> None:
    nodule = np.array(rows, np.float32).reshape(-1, 4)
    data = _lung(24, where=np.s_[:], hu=hu, nodule=nodule, label=np.full(len(rows), IGNORED))
    out = _inserter([ball] * donors, most=3)(data)
    for name, expected in {**data, "mask": np.zeros((1, 24, 24, 24), np.uint8)}.items():
        np.testing.assert_array_equal(out[name], expected, strict=True)


def test_same_random_state_gives_the_same_result(ball: dict[str, Any], rod: dict[str, Any]) -> None:
    first, second, other = (_inserter([ball, rod], seed, most=3)(_lung()) for seed in (1, 1, 2))
    np.testing.assert_equal(first, second)
    assert not np.array_equal(first["image"], other["image"])


@pytest.mark.parametrize(("prob", "numbers"), [(0.0, {0}), (0.5, {0, 1, 2}), (1.0, {1, 2})])
def test_prob_is_the_share_of_crops_and_most_the_largest_number(
    ball: dict[str, Any], prob: float, numbers: set[int]
) -> None:
    insert = _inserter([ball], prob=prob, most=2)
    assert {len(insert(_lung(32))["label"]) for _ in range(20)} == numbers


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("shift", [0, 9])
def test_a_nodule_has_the_size_of_its_donor_zoomed_also_where_the_border_cuts_it(
    ball: dict[str, Any], shift: int, scale: float, seed: int
) -> None:
    """Its centre lies ``shift`` + 2 voxels before the border of the third axis; beyond it the nodule goes on."""
    plane = EDGE - 3 - shift
    out = _inserter([ball], seed, scale=(scale, scale))(_lung(lung=_marked(*[slice(12, -12)] * 2, plane)))
    assert out["label"].tolist() == [NODULE]
    assert out["nodule"][0, 2] == pytest.approx(plane, abs=0.6)
    assert out["nodule"][0, 3] == pytest.approx(9.0 * scale, rel=0.06)
    assert _is_cut(out["mask"][0] == 1) == (shift == 0)


@pytest.mark.parametrize("axis", range(3))
def test_a_donor_gets_the_blur_of_thicker_slices_along_their_axis(ball: dict[str, Any], axis: int) -> None:
    def slopes(**more: Any) -> np.ndarray:
        """Mean steepness along each axis."""
        out = _inserter([ball], added=0.0)(_lung(**more))
        own = ndimage.binary_dilation(out["mask"][0] == 1, iterations=3)
        return np.array([np.abs(np.gradient(out["image"][0], axis=n))[own].mean() for n in range(3)])

    np.testing.assert_array_equal(slopes(voxel_mm=np.full(3, 0.7)), slopes())  # its own voxels are no finer
    change = slopes(voxel_mm=np.where(np.arange(3) == axis, 5.0, 0.7)) / slopes()
    assert change[axis] < 0.75
    assert np.delete(change, axis).min() > change[axis] + 0.1


def test_empty_donor_mask_is_refused(ball: dict[str, Any], tmp_path: Path) -> None:
    empty = _saved(tmp_path, np.eye(4), mask=np.zeros((9, 9, 9), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mask\.nii\.gz: expected the mask of a nodule, got an empty one"):
        _inserter([{**ball, **empty}])(_lung(24))


@pytest.mark.parametrize(
    ("diameter_mm", "repeats"), [(3, 1), (10, 1), (10.1, 3), (20, 3), (25, 7), (30, 7), (30.1, 15), (60, 15)]
)
def test_larger_nodules_weigh_more(diameter_mm: float, repeats: float) -> None:
    assert size_weight(diameter_mm) ** 2 == pytest.approx(repeats)
    assert [size_weight(diameter_mm, power) for power in (1.0, 0.0)] == [repeats, 1.0]


@pytest.mark.parametrize(("changes", "expected"), [({}, 78.7), ({"size_power": 1.0}, 126.3), ({"size_power": 0.0}, 32)])
def test_donors_are_drawn_by_size_and_weight(
    ball: dict[str, Any], tmp_path: Path, changes: dict[str, float], expected: float
) -> None:
    """One donor of 35 mm (15 repeats) and weight 1/4 against one of 5 mm; the files differ in their HU."""
    large = {**_write_donor(tmp_path, (4, 4, 4), 200.0), "diameter_mm": 35.0, "weight": 0.25}
    small = {**ball, "diameter_mm": 5.0}
    insert = _inserter([small, large], **changes)
    bright = [bool((insert(_lung(20))["image"] > 60).any()) for _ in range(160)]
    assert sum(bright) == pytest.approx(expected, abs=15)  # standard deviation 5 to 6


@pytest.mark.parametrize("opacity", [0.3, 1.0])
def test_added_density_is_the_donors_share_above_the_lung(ball: dict[str, Any], opacity: float) -> None:
    out = _inserter([ball], added=1.0, opacity=(opacity, opacity))(_lung())
    core = ndimage.binary_erosion(out["mask"][0] == 1, iterations=2)
    assert out["image"][0][core].mean() == pytest.approx(LUNG_HU + opacity * (DONOR_HU - LUNG_HU), abs=8)


@pytest.mark.parametrize("seed", SEEDS)
def test_vessels_go_on_through_a_nodule(ball: dict[str, Any], seed: int) -> None:
    """Thin plates of 60 HU everywhere: no nodule darkens them, and what is added lifts them little above either."""
    data = _lung(where=np.s_[::6], hu=60.0)
    out = _inserter([ball], seed, added=1.0, opacity=(0.3, 0.3))(data)
    own = out["mask"][0] == 1
    vessel = own & (data["image"][0] == 60.0)
    assert (out["image"][0] >= data["image"][0] - 1e-3).all()
    assert out["image"][0][vessel].max() <= DONOR_HU + ABOVE_DONOR_HU + 1e-3
    replaced = _inserter([ball], seed, added=0.0)(data)["image"][0]
    assert (replaced[::6] >= 60.0 - 1e-3).all()
    assert (replaced > LUNG_HU + 300.0)[own & ~vessel].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bordering_nodule_abuts_tissue(ball: dict[str, Any], seed: int) -> None:
    out = _inserter([ball], seed, bordering=1.0)(_lung(where=np.s_[:, :, 30:], hu=40.0))
    assert 30 - out["nodule"][0, 2] < 4.5  # the radius
    assert not out["mask"][0, :, :, 32:].any()


@pytest.fixture(scope="module")
def dome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A nodule that grew at a wall: half a ball of 16 mm whose base lies on tissue."""
    i, j, k = np.indices((29, 29, 29)) - 14
    inside = (i**2 + j**2 + k**2 <= 64) & (i >= 0)
    image, mask = np.where(inside | (i < 0), DONOR_HU, -800.0).astype(np.int16), inside.astype(np.uint8)
    return {**_saved(tmp_path_factory.mktemp("dome"), np.eye(4), image=image, mask=mask), "diameter_mm": 12.7}


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("seed", SEEDS)
def test_what_grew_at_a_wall_is_put_on_one_with_its_base(dome: dict[str, Any], axis: int, seed: int) -> None:
    """Of half a ball the layers shrink with the distance from the wall, and the first is a disc of 16 mm."""
    wall = (*[slice(None)] * axis, slice(30, None))
    out = _inserter([dome], seed)(_lung(where=wall, hu=40.0, lung=_marked(*[slice(12, 36)] * 3)))  # no border cuts it
    layers = np.moveaxis(out["mask"][0] > 0, axis, 0).sum((1, 2))
    assert layers[28:32].max() == layers.max() == pytest.approx(np.pi * 64, rel=0.15)
    assert layers[:20].sum() == 0
    assert layers[23] < layers.max() / 3


AMID = _marked(*[slice(14, 34)] * 3)  # as a lung: the crop's border cuts no nodule


@pytest.mark.parametrize(("radius", "least_hu"), [(2.5, FAINTEST_HU_MM / 5.0), (9.0, FAINTEST_HU)])
def test_no_added_nodule_is_invisible(tmp_path: Path, radius: float, least_hu: float) -> None:
    donor, data = _write_donor(tmp_path, (radius, radius, radius), DONOR_HU), _lung(lung=AMID)
    out = _inserter([donor], 1, added=1.0, opacity=(0.02, 0.02))(data)
    change = (out["image"] - data["image"])[0][out["mask"][0] == 1]
    assert change.mean() == pytest.approx(least_hu, rel=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cored_nodule_is_dense_inside_and_faint_around(tmp_path: Path, seed: int) -> None:
    donor = _write_donor(tmp_path, (9.0, 9.0, 9.0), DONOR_HU)
    out = _inserter([donor], seed, added=1.0, opacity=(0.3, 0.3), cored=1.0)(_lung(lung=AMID))
    own = out["mask"][0] == 1
    depth = ndimage.distance_transform_edt(np.pad(own, 1))[1:-1, 1:-1, 1:-1]
    middle, rim = (depth > 0.95 * depth.max()), own & (depth < 0.2 * depth.max()) & (depth > 1)
    assert out["image"][0][middle].mean() > -350.0  # 40 HU but for the core's soft edge
    assert out["image"][0][rim].mean() < -500.0
