"""Where the lungs are: found when closed, all around aerated lung when not, and never a lung missed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from scipy import ndimage

from scripts.geometry import apply_affine
from scripts.prepare.phantom import Chest, make_chest
from scripts.scan import ScanError
from scripts.transforms.lungs import (
    OPEN_PIECE_MM3,
    OPEN_ROOM_MM,
    CropToLungsd,
    Lungs,
    _distance_mm,
    find_lungs,
    lungs_of_mask,
)

ONE_MM = np.ones(3)
TISSUE_HU, LUNG_HU = 40.0, -850.0


def _search(image_hu: np.ndarray, voxel_mm: np.ndarray = ONE_MM) -> Lungs:
    return find_lungs(image_hu, voxel_mm)


def _missed_mm(box: np.ndarray, lungs: np.ndarray) -> float:
    """How far the lung voxels reach out of a box, voxels (of 1 mm)."""
    where = np.argwhere(lungs > 0)
    return float(max((box[0] - where.min(axis=0)).max(), (where.max(axis=0) + 1 - box[1]).max()))


def _check_chest(chest: Chest) -> None:
    lungs = _search(chest.image_hu)
    assert lungs.found
    assert _missed_mm(lungs.box, chest.lungs) <= lungs.step.max()
    extent = np.ptp(np.argwhere(chest.lungs > 0), axis=0)
    assert np.all(np.ptp(lungs.box, axis=0)[:2] <= extent[:2] + 2 * lungs.step[:2])  # a box, not the whole body
    for nodule in chest.nodules:
        voxel = apply_affine(np.linalg.inv(chest.affine_ras), nodule.centre_ras_mm)
        coarse = np.rint((voxel - (lungs.step - 1) / 2) / lungs.step).astype(int)
        assert lungs.distance_mm[tuple(coarse)] <= nodule.diameter_mm / 2 + 5


def test_lungs_of_a_miniature_are_found(small_chest: Chest) -> None:
    _check_chest(small_chest)


def test_lungs_of_another_miniature_with_a_pleural_nodule_are_found() -> None:
    _check_chest(make_chest(1, scale=0.4, nodules=2))


def test_lungs_of_a_full_chest_are_found(full_chest: Chest) -> None:
    assert sum(nodule.attachment == "pleura" for nodule in full_chest.nodules) >= 3
    _check_chest(full_chest)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_chest_has_flipped_lungs(small_chest: Chest, axis: int) -> None:
    size = [3 * (n // 3) for n in small_chest.image_hu.shape]  # whole coarse voxels: the flip is then exact
    image = small_chest.image_hu[: size[0], : size[1], : size[2]]
    lungs, flipped = _search(image), _search(np.flip(image, axis))
    assert lungs.found
    assert flipped.found
    np.testing.assert_allclose(np.flip(flipped.distance_mm, axis), lungs.distance_mm, atol=1e-4)
    expected = lungs.box.copy()
    expected[:, axis] = size[axis] - lungs.box[::-1, axis]
    np.testing.assert_array_equal(flipped.box, expected)


def test_other_spacing_gives_the_same_lungs_in_mm(small_chest: Chest) -> None:
    voxel_mm = np.array([0.5, 1.0, 2.0])
    image = np.repeat(small_chest.image_hu, 2, axis=0)[:, :, ::2]
    lungs, other = _search(small_chest.image_hu), _search(image, voxel_mm)
    assert other.found
    assert other.step.tolist() == [6, 3, 2]
    np.testing.assert_allclose(other.box * voxel_mm, lungs.box, atol=4.0)  # one coarse voxel along k
    volumes = [
        (found.distance_mm == 0).sum() * np.prod(found.step * mm) for found, mm in ((lungs, 1), (other, voxel_mm))
    ]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


def test_distance_is_zero_inside_and_grows_by_millimetres_outside(small_chest: Chest) -> None:
    lungs = _search(small_chest.image_hu)
    inside = small_chest.lungs[1::3, 1::3, 1::3] > 0
    distance = lungs.distance_mm[tuple(slice(n) for n in inside.shape)]
    assert np.mean(distance[inside] == 0) > 0.98
    assert distance[inside].max() <= 3.0 * np.sqrt(3)  # the next coarse voxel, across its corner
    steps = np.diff(distance, axis=0)
    assert np.abs(steps).max() <= 3.0 + 1e-4  # neighbours lie 3 mm apart
    assert np.percentile(distance, 99) > 10


def test_lungs_cut_off_by_the_last_slice_are_found_up_to_it(small_chest: Chest) -> None:
    image = small_chest.image_hu[:, :, 40:]
    lungs = _search(image)
    assert lungs.found
    assert lungs.box[0, 2] == 0
    assert _missed_mm(lungs.box, small_chest.lungs[:, :, 40:]) <= 3


def _whole(lungs: Lungs, shape: tuple[int, ...]) -> bool:
    return not lungs.found and lungs.box.tolist() == [[0, 0, 0], list(shape)] and not lungs.distance_mm.any()


def _not_searched_mm3(lungs: Lungs, inside: np.ndarray) -> int:
    """Of a volume of 1 mm voxels that stays whole: how much of what lies inside is said to be outside the lungs."""
    assert not lungs.found
    assert lungs.box.tolist() == [[0, 0, 0], list(inside.shape)]
    fine = lungs.distance_mm
    for axis, step in enumerate(lungs.step):
        fine = np.repeat(fine, step, axis=axis)
    return int((fine[tuple(slice(n) for n in inside.shape)][inside] > 0).sum())


def test_a_cube_from_inside_a_lung_misses_none_of_it(full_chest: Chest) -> None:
    centre = np.rint(np.argwhere(full_chest.lungs == 1).mean(axis=0)).astype(int)
    i, j, k = (slice(c - 50, c + 50) for c in centre)
    assert (full_chest.lungs[i, j, k] > 0).mean() > 0.5
    assert _not_searched_mm3(_search(full_chest.image_hu[i, j, k]), full_chest.lungs[i, j, k] > 0) == 0


@pytest.mark.parametrize("shift_mm", [40, 60, 80, 100])
def test_a_cube_with_parts_of_both_lungs_misses_no_large_piece(full_chest: Chest, shift_mm: int) -> None:
    centre = np.rint(np.argwhere(full_chest.lungs == 1).mean(axis=0)).astype(int)
    other = np.rint(np.argwhere(full_chest.lungs == 2).mean(axis=0)).astype(int)
    centre[0] += shift_mm * np.sign(other[0] - centre[0])
    i, j, k = (slice(c - 50, c + 50) for c in centre)
    assert (full_chest.lungs[i, j, k] > 0).mean() > 0.3
    assert _not_searched_mm3(_search(full_chest.image_hu[i, j, k]), full_chest.lungs[i, j, k] > 0) < OPEN_PIECE_MM3


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slab_along_the_body_misses_no_large_piece(full_chest: Chest, axis: int) -> None:
    middle = int(np.argwhere(full_chest.lungs == 1).mean(axis=0)[axis])
    box = [slice(None)] * 3
    box[axis] = slice(middle - 10, middle + 10)
    assert (
        _not_searched_mm3(_search(full_chest.image_hu[tuple(box)]), full_chest.lungs[tuple(box)] > 0) < OPEN_PIECE_MM3
    )


def test_an_axial_slab_shows_closed_lungs_and_none_is_missed(full_chest: Chest) -> None:
    lungs = _search(full_chest.image_hu[:, :, 150:170])
    assert lungs.found
    assert _missed_mm(lungs.box, full_chest.lungs[:, :, 150:170]) <= 3


def test_an_axial_slab_of_a_small_chest_misses_no_lung(small_chest: Chest) -> None:
    assert _not_searched_mm3(_search(small_chest.image_hu[:, :, 60:80]), small_chest.lungs[:, :, 60:80] > 0) == 0


def test_what_lies_far_from_open_lung_is_not_searched() -> None:
    """Lung-like tissue up to i = 60, open on three sides: 15 mm more count as lung."""
    image, _ = _body()
    image[:60] = LUNG_HU
    lungs = _search(image)
    assert lungs.distance_mm.max() == pytest.approx(100 - OPEN_ROOM_MM, abs=3)
    inside = np.zeros(image.shape, dtype=bool)
    inside[:74] = True
    assert _not_searched_mm3(lungs, inside) == 0
    assert _not_searched_mm3(lungs, ~inside) > 0.95 * (~inside).sum()
    small = np.full_like(image, TISSUE_HU)
    small[:10, :10, :10] = LUNG_HU  # 1 ml: too little to say where the lung is
    assert _whole(_search(small), small.shape)


def test_a_couch_beside_open_lung_is_not_searched(full_chest: Chest) -> None:
    """The middle of the body alone, open on both sides, on a couch of foam in room air."""
    middle = full_chest.image_hu.shape[0] // 2
    body = (slice(middle - 75, middle + 75),)
    air, foam = (np.full((150, 15, full_chest.image_hu.shape[2]), hu, dtype=np.int16) for hu in (-1000, -900))
    couch = [air, foam, air, air]
    lungs = _search(np.concatenate([*couch, full_chest.image_hu[body]], axis=1))
    lung = np.concatenate([*(part > 0 for part in couch), full_chest.lungs[body] > 0], axis=1)
    assert _not_searched_mm3(lungs, lung) < OPEN_PIECE_MM3
    below = np.zeros_like(lung)
    below[:, :42] = True  # the foam and 12 mm of air on both sides
    assert _not_searched_mm3(lungs, below) == below.sum()


def test_lung_beside_a_bulla_is_searched() -> None:
    image, _ = _body()
    image[:60] = LUNG_HU  # 1.1 litres, open on three sides
    image[60:110] = -1000  # most of its border
    image[130:, :80] = LUNG_HU  # a second piece, of 0.3 litre, that does not touch it
    assert _not_searched_mm3(_search(image), image == LUNG_HU) == 0


def test_soft_tissue_is_searched_whole() -> None:
    assert _whole(_search(np.full((50, 61, 70), TISSUE_HU, dtype=np.float32)), (50, 61, 70))


def test_a_single_voxel_is_searched_whole() -> None:
    assert _whole(_search(np.full((1, 1, 1), LUNG_HU, dtype=np.float32)), (1, 1, 1))


def _body(shape: tuple[int, int, int] = (160, 150, 120)) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    return np.full(shape, TISSUE_HU, dtype=np.float32), tuple(np.ogrid[tuple(slice(n) for n in shape)])


def test_trachea_and_bowel_gas_alone_are_no_lung() -> None:
    image, (i, j, k) = _body()
    image[((i - 80) ** 2 + (j - 75) ** 2 + 0 * k) < 9**2] = -1000  # a trachea of 18 mm
    image[((i - 40) ** 2 + (j - 40) ** 2 + (k - 30) ** 2) < 22**2] = -990  # 45 ml of gas
    image[((i - 120) ** 2 + (j - 100) ** 2 + (k - 30) ** 2) < 25**2] = -990
    lungs = _search(image)
    assert not lungs.found
    assert lungs.box.tolist() == [[0, 0, 0], list(image.shape)]


@pytest.mark.parametrize(
    ("axis", "side", "cut"), [(0, 0, 29), (0, 0, 31), (0, 1, 26), (0, 1, 32), (1, 0, 60), (1, 1, 44), (1, 1, 46)]
)
def test_a_narrow_field_of_view_that_opens_a_lung_loses_only_tips(
    full_chest: Chest, axis: int, side: int, cut: int
) -> None:
    """The border of the volume cuts some millimetres off a lung, which is therefore open in many slices."""
    box = [slice(None)] * 3
    box[axis] = slice(cut, None) if side == 0 else slice(None, -cut)
    inside = full_chest.lungs[tuple(box)] > 0
    lungs = _search(full_chest.image_hu[tuple(box)])
    assert _missed_mm(lungs.box, inside) <= 10  # thin tips; the margin of a crop is 15 mm
    coarse = tuple(np.minimum(np.argwhere(inside) // lungs.step, np.array(lungs.distance_mm.shape) - 1).T)
    assert np.mean(lungs.distance_mm[coarse] > 5) < 0.005


def test_a_thick_mattress_does_not_hide_the_lungs(full_chest: Chest) -> None:
    image = full_chest.image_hu
    thick = round(0.25 * (full_chest.lungs > 0).sum() / (image.shape[0] * image.shape[2]))
    mattress = np.full((image.shape[0], thick, image.shape[2]), -800, dtype=np.int16)
    lungs = _search(np.concatenate([mattress, image], axis=1))
    assert lungs.found
    assert lungs.box[0, 1] >= thick
    assert _missed_mm(lungs.box - [0, thick, 0], full_chest.lungs) <= 3


def test_closed_lung_beside_an_open_one_is_not_enough() -> None:
    image, (i, j, k) = _body()
    image[((i - 50) ** 2 + (j - 75) ** 2 + 0 * k < 30**2) & (k > 20) & (k < 90)] = LUNG_HU  # closed, 0.2 l
    assert _search(image).found
    image[100:, 20:130, 10:110] = LUNG_HU  # open at the last i
    assert _not_searched_mm3(_search(image), image == LUNG_HU) == 0


def test_lung_beside_a_thin_shell_of_partial_volume_is_enough() -> None:
    image, (i, j, k) = _body()
    image[((i - 75) ** 2 + (j - 75) ** 2 + 0 * k < 26**2) & (k > 20) & (k < 90)] = LUNG_HU
    image[:6] = -1000  # room air
    image[6:9] = -600  # the skin's partial volume
    assert _search(image).found


# --- CropToLungsd


def _oblique_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    angle = np.deg2rad(7.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.0, 17.5, -204.0)
    return affine


def _item(chest: Chest, affine: np.ndarray) -> dict[str, MetaTensor]:
    image = torch.from_numpy(chest.image_hu)[None].clone()
    mask = torch.from_numpy(chest.mask.astype(np.float32))[None]
    return {
        name: MetaTensor(value, affine=torch.from_numpy(affine)) for name, value in (("image", image), ("mask", mask))
    }


def test_cropping_keeps_every_world_position(small_chest: Chest) -> None:
    affine = _oblique_affine()
    item = _item(small_chest, affine)
    marked = np.array([60, 50, 70])
    item["image"][(0, *marked)] = 3000.0
    cropped = CropToLungsd(["image", "mask"], margin_mm=5)(item)
    assert cropped["lungs_found"] is True
    assert np.all(np.array(cropped["image"].shape) <= np.array(item["image"].shape))
    assert cropped["image"].shape[2] < item["image"].shape[2] - 10
    assert cropped["image"].shape == cropped["mask"].shape
    found = np.argwhere(cropped["image"][0].numpy() == 3000.0)
    assert len(found) == 1
    new = np.asarray(cropped["image"].affine)
    np.testing.assert_allclose(apply_affine(new, found[0]), apply_affine(affine, marked), atol=1e-6)
    np.testing.assert_allclose(np.asarray(cropped["mask"].affine), new)
    nodule = [
        apply_affine(a, np.argwhere(m[0].numpy() == 1).mean(0))
        for a, m in ((affine, item["mask"]), (new, cropped["mask"]))
    ]
    np.testing.assert_allclose(nodule[0], nodule[1], atol=1e-6)
    assert item["image"].shape[1:] == small_chest.image_hu.shape  # the input stays


def test_margin_is_kept_in_millimetres(small_chest: Chest) -> None:
    narrow, wide = (CropToLungsd("image", margin_mm=mm)(_item(small_chest, np.eye(4)))["image"] for mm in (0, 4.5))
    offset = np.asarray(narrow.affine)[:3, 3] - np.asarray(wide.affine)[:3, 3]
    np.testing.assert_allclose(offset, 5)  # whole voxels of 1 mm


def test_whole_volume_stays_without_closed_lungs() -> None:
    image = MetaTensor(torch.full((1, 30, 31, 32), TISSUE_HU), affine=torch.from_numpy(_oblique_affine()))
    cropped = CropToLungsd("image", margin_mm=15)({"image": image})
    assert cropped["lungs_found"] is False
    assert cropped["image"].shape == image.shape
    np.testing.assert_allclose(np.asarray(cropped["image"].affine), np.asarray(image.affine))
    assert not cropped["lung_distance_mm"].any()


@pytest.mark.parametrize("shape", [(30, 30, 30), (31, 32, 30), (32, 29, 31)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.75, 2.5)])
def test_coarse_voxel_lies_at_the_mean_of_its_fine_voxels(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    affine = _oblique_affine(spacing)
    image = MetaTensor(torch.full((1, *shape), TISSUE_HU), affine=torch.from_numpy(affine))
    distance = CropToLungsd("image", margin_mm=0)({"image": image})["lung_distance_mm"]
    step = np.rint(3.0 / np.array(spacing)).astype(int)
    assert distance.shape == (1, *np.ceil(np.array(shape) / step).astype(int))
    for coarse in [(0, 0, 0), (1, 2, 3), tuple(n - 1 for n in distance.shape[1:])]:
        fine = [np.arange(c * s, min((c + 1) * s, n)) for c, s, n in zip(coarse, step, shape, strict=True)]
        mean = apply_affine(affine, [axis.mean() for axis in fine])
        # The last coarse voxel may hold fewer fine ones than its grid says: it then lies closer by up to a fine step.
        short = np.array([s - len(axis) for s, axis in zip(step, fine, strict=True)])
        expected_mm = apply_affine(affine, [axis.mean() + n / 2 for axis, n in zip(fine, short, strict=True)])
        position = apply_affine(np.asarray(distance.affine), coarse)
        np.testing.assert_allclose(position, expected_mm, atol=1e-6)
        assert np.linalg.norm(position - mean) <= np.linalg.norm(short / 2 * np.array(spacing)) + 1e-6


def test_absent_keys_are_skipped_only_when_allowed(small_chest: Chest) -> None:
    item = {"image": _item(small_chest, np.eye(4))["image"]}
    assert "mask" not in CropToLungsd(["image", "mask"], 5, allow_missing_keys=True)(item)
    with pytest.raises(KeyError, match="mask"):
        CropToLungsd(["image", "mask"], 5)(item)


@pytest.mark.parametrize("change", ["size", "affine"])
def test_mask_on_another_grid_is_refused(small_chest: Chest, change: str) -> None:
    item = _item(small_chest, np.eye(4))
    if change == "size":
        item["mask"] = item["mask"][:, :-1]
    else:
        item["mask"].affine = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    item["mask"].meta["filename_or_obj"] = "lesions.nii.gz"
    with pytest.raises(ValueError, match=r"lesions\.nii\.gz: expected the grid of the image"):
        CropToLungsd(["image", "mask"], 5)(item)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLP", "IRA"])
def test_the_scan_may_lie_in_any_orientation(code: str, small_chest: Chest) -> None:
    upright = _item(small_chest, np.eye(4))["image"]
    turned = Orientationd("image", axcodes=code, labels=None)({"image": upright})["image"]
    expected = CropToLungsd("image", margin_mm=5)({"image": upright})
    found = CropToLungsd("image", margin_mm=5)({"image": turned})
    back = Orientationd("image", axcodes="RAS", labels=None)({"image": found["image"]})["image"]
    assert torch.equal(back.as_tensor(), expected["image"].as_tensor())
    np.testing.assert_allclose(np.asarray(back.affine), np.asarray(expected["image"].affine), atol=1e-6)
    assert torch.equal(found["lung_distance_mm"].as_tensor(), expected["lung_distance_mm"].as_tensor())
    np.testing.assert_allclose(
        np.asarray(found["lung_distance_mm"].affine), np.asarray(expected["lung_distance_mm"].affine), atol=1e-6
    )


def test_the_whole_scan_is_kept_and_nothing_is_copied(small_chest: Chest) -> None:
    image = _item(small_chest, np.diag([-1.0, -1.0, 1.0, 1.0]))["image"]
    found = CropToLungsd("image", margin_mm=5, whole_key="scan")({"image": image})
    assert found["scan"] is image
    assert found["image"].untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


@pytest.mark.parametrize("voxel_mm", [(3.0, 3.0, 3.0), (2.8, 3.1, 2.5)])
def test_distances_are_euclidean(voxel_mm: tuple[float, float, float]) -> None:
    inside = np.random.default_rng(0).random((9, 14, 11)) > 0.98
    assert inside.any()
    expected = ndimage.distance_transform_edt(~inside, sampling=voxel_mm)
    np.testing.assert_allclose(_distance_mm(inside, np.array(voxel_mm)), expected, atol=1e-4)


# --- a given lung mask

NEXT_BLOCK_MM = 3.0 * np.sqrt(3) + 1e-4  # across the corner of a block


def _volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine))


def _given(chest: Chest, mask: np.ndarray, mask_affine: np.ndarray, affine: np.ndarray) -> Lungs:
    return lungs_of_mask(_volume(mask, mask_affine), _volume(chest.image_hu, affine))


def test_the_true_mask_gives_the_lungs_that_are_found(small_chest: Chest) -> None:
    found, given = _search(small_chest.image_hu), _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    assert given.found
    assert given.step.tolist() == found.step.tolist()
    assert _missed_mm(given.box, small_chest.lungs) <= 2  # less than half a coarse voxel of lung is none
    assert np.abs(given.box - found.box)[:, :2].max() <= 3
    assert given.box[0, 2] == found.box[0, 2]
    assert given.box[1, 2] <= found.box[1, 2]  # the search takes the trachea in
    inside = small_chest.lungs[1::3, 1::3, 1::3] > 0
    assert np.mean(given.distance_mm[tuple(slice(n) for n in inside.shape)][inside] == 0) > 0.99


@pytest.mark.parametrize(
    ("change", "trachea"), [({1: 3, 2: 4}, 5), ({1: 1, 2: 1}, 0), ({1: 20, 2: 10}, 0)], ids=["LUNA16", "binary", "own"]
)
def test_values_of_a_mask(small_chest: Chest, change: dict[int, int], trachea: int) -> None:
    """LUNA16's trachea is no lung; in any other mask all that is above 0 is."""
    expected = _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    labels = np.zeros(small_chest.lungs.shape, dtype=np.int16)
    for old, new in change.items():
        labels[small_chest.lungs == old] = new
    labels[:9, :9, :9] = trachea
    given = _given(small_chest, labels, np.eye(4), np.eye(4))
    np.testing.assert_array_equal(given.box, expected.box)
    np.testing.assert_array_equal(given.distance_mm, expected.distance_mm)


def test_a_five_beside_other_values_is_lung(small_chest: Chest) -> None:
    """Lobes 1 to 5, or a lone 5, are not LUNA16's."""
    expected = _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    for labels in (np.where(small_chest.lungs == 1, 5, small_chest.lungs), 5 * (small_chest.lungs > 0)):
        given = _given(small_chest, labels.astype(np.int16), np.eye(4), np.eye(4))
        np.testing.assert_array_equal(given.distance_mm, expected.distance_mm)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mask_stored_in_another_direction_is_the_same_mask(small_chest: Chest, axis: int) -> None:
    affine = _oblique_affine()
    turned = np.eye(4)
    turned[axis, axis], turned[axis, 3] = -1.0, small_chest.lungs.shape[axis] - 1
    given = _given(small_chest, small_chest.lungs, affine, affine)
    flipped = _given(small_chest, np.flip(small_chest.lungs, axis), affine @ turned, affine)
    np.testing.assert_allclose(flipped.box, given.box, atol=3)  # blocks begin at the other end
    assert np.abs(flipped.distance_mm - given.distance_mm).max() <= NEXT_BLOCK_MM


def test_a_coarser_mask_of_a_part_of_the_grid_is_the_same_mask(small_chest: Chest) -> None:
    affine = _oblique_affine()
    where = np.argwhere(small_chest.lungs)
    low = where.min(0) - 1
    part = small_chest.lungs[tuple(slice(a, b) for a, b in zip(low, where.max(0) + 2, strict=True))][::2, ::2, ::2]
    part_affine = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    part_affine[:3, 3] = apply_affine(affine, low)
    whole = _given(small_chest, small_chest.lungs, affine, affine)
    given = _given(small_chest, part, part_affine, affine)
    np.testing.assert_allclose(given.box, whole.box, atol=3)
    first, second = given.distance_mm == 0, whole.distance_mm == 0
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert dice > 0.95  # moved or grown by one block: 0.90, 0.86


@pytest.mark.parametrize(
    ("shift_mm", "words"), [((0, 0, 500), "0% lies in the scan"), ((0, -60, 0), "of that on air"), (None, "got one of")]
)
def test_a_mask_that_does_not_lie_on_the_lungs_is_refused(
    small_chest: Chest, shift_mm: tuple[float, ...] | None, words: str
) -> None:
    affine = np.eye(4)
    affine[:3, 3] = shift_mm or 0
    mask = _volume(small_chest.lungs if shift_mm else np.zeros_like(small_chest.lungs), affine)
    mask.meta["filename_or_obj"] = "lungs.mhd"
    with pytest.raises(ScanError, match=rf"lungs\.mhd: expected a mask of the lungs of the scan, .*{words}"):
        lungs_of_mask(mask, _volume(small_chest.image_hu, np.eye(4)))


def test_a_mask_that_lies_beside_the_lungs_is_worth_a_warning(small_chest: Chest, caplog: Any) -> None:
    affine = np.eye(4)
    affine[0, 3] = 12.0
    _given(small_chest, small_chest.lungs, affine, np.eye(4))
    assert "of the lung mask lie on air; is it flipped?" in caplog.text
    caplog.clear()
    _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    assert caplog.text == ""


def test_cropping_takes_the_mask_and_lets_it_go(small_chest: Chest) -> None:
    """One lung alone: the box is its own."""
    item = _item(small_chest, _oblique_affine())
    right = (small_chest.lungs == 1).astype(np.int16)
    cropped = CropToLungsd("image", margin_mm=0)({**item, "lung_mask": _volume(right, _oblique_affine())})
    assert "lung_mask" not in cropped
    assert cropped["lungs_found"] is True
    where = np.argwhere(right)
    np.testing.assert_allclose(cropped["image"].shape[1:], np.ptp(where, axis=0) + 1, atol=6)
    first = apply_affine(np.linalg.inv(_oblique_affine()), np.asarray(cropped["image"].affine)[:3, 3])
    np.testing.assert_allclose(first, where.min(0), atol=3)
