"""Where a scan is searched: grid of the search, distances, what is never searched, and what the weights find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from scipy import ndimage

from scripts.core.errors import SettingError
from scripts.core.geometry import apply_affine
from scripts.core.labels import Part, Parts, is_lung
from scripts.phantom.chest import Chest
from scripts.preprocess.lung_search import CELL_MM, CoarseScan, LungSearch, LungWeightsError, coarse_scan
from scripts.preprocess.lungs import CUT_OUT_ROOM_MM, NEVER_MM, CropToLungsd, Lungs, _distance_mm, find_lungs
from scripts.read.scan import ScanError
from tests.parts import PartsByDensity, TrueParts

TISSUE_HU, LUNG_HU, AIR_HU = 40, -850, -1000
BY_DENSITY = PartsByDensity()


# --- the grid of the search


@pytest.mark.parametrize("spacing", [(0.6, 0.7, 1.0), (2.0, 2.0, 2.0), (0.9, 0.9, 5.0), (4.0, 4.0, 8.0)])
def test_cells_lie_where_the_affine_says_and_keep_the_mean(spacing: tuple[float, float, float]) -> None:
    """Of a ramp in world millimetres each cell holds its own position, and the whole keeps its mean."""
    affine = _oblique_affine(spacing)
    shape = tuple(np.round(np.array([93, 101, 120]) / spacing).astype(int))
    world = apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1))
    for axis in range(3):
        scan = coarse_scan(world[..., axis].astype(np.float32), affine)
        cells = np.stack(np.meshgrid(*map(np.arange, scan.hu.shape), indexing="ij"), axis=-1)
        inner = (slice(1, -1),) * 3
        np.testing.assert_allclose(scan.hu[inner], apply_affine(scan.affine_ras, cells)[..., axis][inner], atol=0.35)
        assert scan.hu.mean() == pytest.approx(world[..., axis].mean(), abs=0.1)
    np.testing.assert_allclose(scan.hu.shape * scan.cell_mm, np.array(shape) * spacing, rtol=1e-9)
    assert np.all(np.abs(scan.cell_mm - CELL_MM) < 0.1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_order_in_memory_and_flips_change_nothing(order: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(-1000, 100, (40, 44, 36)).astype(np.int16)
    stored = np.ascontiguousarray(image.transpose(order)).transpose(np.argsort(order))
    expected = coarse_scan(image, np.eye(4)).hu
    np.testing.assert_allclose(coarse_scan(stored, np.eye(4)).hu, expected, atol=1e-3)
    np.testing.assert_allclose(np.flip(coarse_scan(np.flip(image, 1), np.eye(4)).hu, 1), expected, atol=1e-3)


def test_other_weights_are_refused(tmp_path: Any) -> None:
    with pytest.raises(LungWeightsError, match=r"got no such file; give models/lung_search\.pt"):
        LungSearch(str(tmp_path / "none.pt"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(LungWeightsError, match="expected the weights of the lung network"):
        LungSearch(str(tmp_path / "other.pt"))
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(LungWeightsError, match="got: EOFError; give"):
        LungSearch(str(tmp_path / "empty.pt"))


# --- where is searched


def _body(shape: tuple[int, int, int] = (200, 160, 120)) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """An elliptic cylinder of tissue with a lung of 0.3 litre on either side, in room air."""
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    image = np.full(shape, AIR_HU, dtype=np.int16)
    image[((i - 100) / 90) ** 2 + ((j - 80) / 70) ** 2 + 0 * k < 1] = TISSUE_HU
    for middle in (60, 140):
        image[((i - middle) / 24) ** 2 + ((j - 80) / 40) ** 2 + ((k - 60) / 50) ** 2 < 1] = LUNG_HU
    return image, (i, j, k)


def _at(lungs: Lungs, voxel: tuple[int, int, int]) -> float:
    """Distance of a voxel of a 1 mm grid, mm."""
    cell = np.rint(apply_affine(np.linalg.inv(lungs.affine_ras), voxel)).astype(int)
    return float(lungs.distance_mm[tuple(cell)])


def test_distance_grows_in_the_body_and_ends_at_its_border() -> None:
    image, _ = _body()
    lungs = find_lungs(image, np.eye(4), BY_DENSITY)
    assert lungs.kind == "lungs"
    assert _at(lungs, (60, 80, 60)) == 0
    assert _at(lungs, (60, 80, 118)) == pytest.approx(8, abs=CELL_MM)  # 58 above the middle of a lung of 50
    assert _at(lungs, (100, 80, 8)) > 10
    assert {_at(lungs, voxel) for voxel in ((2, 2, 60), (198, 80, 60), (100, 2, 60))} == {NEVER_MM}
    np.testing.assert_allclose(lungs.box, [[36, 40, 10], [165, 121, 111]], atol=CELL_MM + 1)


def test_what_lies_between_is_closed() -> None:
    """Two lungs of 1 cm between them and a mass cut into one from the pleura."""
    image, (i, j, k) = _body()
    image[(np.abs(i - 100) >= 5) & (((i - 100) / 64) ** 2 + ((j - 80) / 40) ** 2 + ((k - 60) / 50) ** 2 < 1)] = LUNG_HU
    image[(i - 36) ** 2 + (j - 80) ** 2 + (k - 60) ** 2 < 15**2] = TISSUE_HU  # a ball of CLOSING_MM enters it by 5 mm
    lungs = find_lungs(image, np.eye(4), BY_DENSITY)
    assert _at(lungs, (100, 80, 60)) == 0
    assert _at(lungs, (44, 80, 60)) == 0


class WithAirway(PartsByDensity):
    """Knows the gas in the middle as an airway."""

    def __call__(self, scan: CoarseScan) -> Parts:
        parts = super().__call__(scan)
        parts[22:28, 17:23][scan.hu[22:28, 17:23] < -500] = Part.AIRWAY
        return parts


@pytest.mark.parametrize(("search", "wall_is_searched"), [(WithAirway(), True), (BY_DENSITY, False)])
def test_gas_that_is_no_lung_is_never_searched(search: LungSearch, wall_is_searched: bool) -> None:
    """Nor is the wall of a bowel; a tumour may grow in that of an airway."""
    image, (i, j, k) = _body()
    image[(i - 100) ** 2 + (j - 80) ** 2 + 0 * k < 9**2] = AIR_HU
    lungs = find_lungs(image, np.eye(4), search)
    assert _at(lungs, (100, 80, 60)) == NEVER_MM
    assert (_at(lungs, (88, 80, 60)) <= 10) is wall_is_searched


def test_the_throat_is_no_lung_though_an_airway_joins_them() -> None:
    image, (i, j, k) = _body((200, 160, 160))
    image[(i - 100) ** 2 + (j - 80) ** 2 + 0 * k < 9**2] = AIR_HU
    image[80:120, 76:84, 56:64] = AIR_HU  # the main bronchi
    image[((i - 100) ** 2 + (j - 80) ** 2 < 20**2) & (k > 120)] = AIR_HU
    lungs = find_lungs(image, np.eye(4), WithAirway())
    assert not is_lung(lungs.parts)[:, :, 30:].any()
    assert _at(lungs, (115, 80, 140)) == NEVER_MM
    assert _at(lungs, (60, 80, 60)) == 0


def test_small_pieces_and_clothes_are_settled() -> None:
    image, (i, j, k) = _body()
    image[(i - 100) ** 2 + (j - 130) ** 2 + (k - 20) ** 2 < 7**2] = LUNG_HU  # 1.4 ml of bowel gas
    image[0:6, 0:6] = TISSUE_HU  # a fold of clothing
    lungs = find_lungs(image, np.eye(4), BY_DENSITY)
    assert _at(lungs, (100, 130, 20)) > 10
    assert _at(lungs, (3, 3, 60)) == NEVER_MM
    assert set(np.unique(lungs.parts)) == {Part.OUTSIDE, Part.BODY, Part.LEFT_LUNG, Part.RIGHT_LUNG}


def test_all_of_the_body_on_request() -> None:
    image, _ = _body()
    lungs = find_lungs(image, np.eye(4), BY_DENSITY, region="body")
    assert lungs.kind == "body"
    assert _at(lungs, (100, 80, 2)) == _at(lungs, (60, 80, 60)) == 0
    assert _at(lungs, (2, 2, 60)) == NEVER_MM
    with pytest.raises(SettingError, match="region: expected lungs or body, got 'all'"):
        find_lungs(image, np.eye(4), BY_DENSITY, region="all")


@pytest.mark.parametrize("gas", [False, True])
def test_a_whole_body_without_lungs_is_refused(gas: bool) -> None:
    image, (i, j, k) = _body()
    image[image == LUNG_HU] = TISSUE_HU
    if gas:
        image[(i - 100) ** 2 + (j - 120) ** 2 + (k - 60) ** 2 < 20**2] = LUNG_HU  # 33 ml
    with pytest.raises(ScanError, match=r"abdomen: expected a chest CT, got a body without lungs .*give the series of"):
        find_lungs(image, np.eye(4), BY_DENSITY, source="abdomen")


def test_a_cut_out_has_more_room() -> None:
    """A cube of tissue with lung up to i = 60: nobody knows where that lung ends."""
    image = np.full((100, 100, 100), TISSUE_HU, dtype=np.int16)
    image[:60] = LUNG_HU
    lungs = find_lungs(image, np.eye(4), BY_DENSITY)
    assert lungs.kind == "cut-out"
    assert _at(lungs, (60 + int(CUT_OUT_ROOM_MM) - 4, 50, 50)) == 0
    assert _at(lungs, (98, 50, 50)) == pytest.approx(38 - CUT_OUT_ROOM_MM, abs=CELL_MM)


def test_a_cut_out_of_tissue_is_searched_whole() -> None:
    lungs = find_lungs(np.full((50, 61, 70), TISSUE_HU, dtype=np.int16), np.eye(4), BY_DENSITY)
    assert lungs.kind == "body"
    assert lungs.box.tolist() == [[0, 0, 0], [50, 61, 70]]
    assert not lungs.distance_mm.any()


def test_a_cube_too_small_to_tell_lung_from_room_air_is_searched_whole() -> None:
    """Emphysema and a piece of the chest wall: seen alone, that is room air and the whole of a small body."""
    image = np.full((51, 51, 51), -950, dtype=np.int16)
    image[10:41, 40:] = TISSUE_HU
    lungs = find_lungs(image, np.eye(4), RELEASED_SEARCH)
    assert lungs.kind == "body"
    assert not lungs.distance_mm.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 90, 3)])
def test_tiny_volumes_are_searched(shape: tuple[int, int, int]) -> None:
    assert not find_lungs(np.full(shape, TISSUE_HU, dtype=np.int16), np.eye(4), BY_DENSITY).distance_mm.any()


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
    cropped = CropToLungsd(["image", "mask"], TrueParts(small_chest), margin_mm=5)(item)
    assert cropped["region"] == "lungs"
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
    narrow, wide = (
        CropToLungsd("image", TrueParts(small_chest), margin_mm=mm)(_item(small_chest, np.eye(4)))["image"]
        for mm in (0, 4.5)
    )
    offset = np.asarray(narrow.affine)[:3, 3] - np.asarray(wide.affine)[:3, 3]
    np.testing.assert_allclose(offset, 5)  # whole voxels of 1 mm


def test_absent_keys_are_skipped_only_when_allowed(small_chest: Chest) -> None:
    item = {"image": _item(small_chest, np.eye(4))["image"]}
    assert "mask" not in CropToLungsd(["image", "mask"], TrueParts(small_chest), 5, allow_missing_keys=True)(item)
    with pytest.raises(KeyError, match="mask"):
        CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(item)


@pytest.mark.parametrize("change", ["size", "affine"])
def test_mask_on_another_grid_is_refused(small_chest: Chest, change: str) -> None:
    item = _item(small_chest, np.eye(4))
    if change == "size":
        item["mask"] = item["mask"][:, :-1]
    else:
        item["mask"].affine = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    item["mask"].meta["filename_or_obj"] = "lesions.nii.gz"
    with pytest.raises(ValueError, match=r"lesions\.nii\.gz: expected the grid of its scan"):
        CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(item)


@pytest.mark.parametrize("code", ["LPS", "SLP", "IRA"])
def test_a_mask_may_hold_the_axes_of_its_scan_in_another_order(code: str, small_chest: Chest) -> None:
    item = _item(small_chest, np.eye(4))
    expected = CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(item)
    turned = {**item, "mask": Orientationd("mask", axcodes=code, labels=None)(item)["mask"]}
    found = CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(turned)
    assert torch.equal(found["mask"].as_tensor(), expected["mask"].as_tensor())
    np.testing.assert_allclose(np.asarray(found["mask"].affine), np.asarray(found["image"].affine), atol=1e-9)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLP", "IRA"])
def test_the_scan_may_lie_in_any_orientation(code: str, small_chest: Chest) -> None:
    upright = _item(small_chest, np.eye(4))["image"]
    turned = Orientationd("image", axcodes=code, labels=None)({"image": upright})["image"]
    expected = CropToLungsd("image", TrueParts(small_chest), margin_mm=5)({"image": upright})
    found = CropToLungsd("image", TrueParts(small_chest), margin_mm=5)({"image": turned})
    back = Orientationd("image", axcodes="RAS", labels=None)({"image": found["image"]})["image"]
    assert torch.equal(back.as_tensor(), expected["image"].as_tensor())
    np.testing.assert_allclose(np.asarray(back.affine), np.asarray(expected["image"].affine), atol=1e-6)
    assert torch.equal(found["lung_distance_mm"].as_tensor(), expected["lung_distance_mm"].as_tensor())
    np.testing.assert_allclose(
        np.asarray(found["lung_distance_mm"].affine), np.asarray(expected["lung_distance_mm"].affine), atol=1e-6
    )


def test_the_whole_scan_is_kept_and_nothing_is_copied(small_chest: Chest) -> None:
    image = _item(small_chest, np.diag([-1.0, -1.0, 1.0, 1.0]))["image"]
    found = CropToLungsd("image", TrueParts(small_chest), margin_mm=5, whole_key="scan")({"image": image})
    assert found["scan"] is image
    assert found["image"].untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


@pytest.mark.parametrize("voxel_mm", [(3.0, 3.0, 3.0), (2.8, 3.1, 2.5)])
def test_distances_are_euclidean(voxel_mm: tuple[float, float, float]) -> None:
    inside = np.random.default_rng(0).random((9, 14, 11)) > 0.98
    assert inside.any()
    expected = ndimage.distance_transform_edt(~inside, sampling=voxel_mm)
    np.testing.assert_allclose(_distance_mm(inside, np.array(voxel_mm)), expected, atol=1e-4)


# --- a given lung mask

NEXT_CELL_MM = CELL_MM * np.sqrt(3) + 0.1  # across the corner of a cell


def _volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine))


def _given(chest: Chest, mask: np.ndarray, mask_affine: np.ndarray, affine: np.ndarray) -> Lungs:
    return find_lungs(chest.image_hu, affine, TrueParts(chest), lung_mask=_volume(mask, mask_affine))


def test_the_true_mask_gives_the_lungs_that_are_found(small_chest: Chest) -> None:
    given = _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    found = find_lungs(small_chest.image_hu, np.eye(4), TrueParts(small_chest))
    assert given.kind == "lungs"
    assert np.mean((given.parts == found.parts)[found.parts > Part.BODY]) > 0.99
    first, second = given.distance_mm == 0, found.distance_mm == 0
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.97


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
    np.testing.assert_allclose(flipped.box, given.box, atol=1)
    searched = (flipped.distance_mm < NEVER_MM) & (given.distance_mm < NEVER_MM)
    assert np.abs(flipped.distance_mm - given.distance_mm)[searched].max() <= NEXT_CELL_MM


def test_a_coarser_mask_of_a_part_of_the_grid_is_the_same_mask(small_chest: Chest) -> None:
    affine = _oblique_affine()
    where = np.argwhere(small_chest.lungs)
    low = where.min(0) - 1
    part = small_chest.lungs[tuple(slice(a, b) for a, b in zip(low, where.max(0) + 2, strict=True))][::2, ::2, ::2]
    part_affine = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    part_affine[:3, 3] = apply_affine(affine, low)
    whole = _given(small_chest, small_chest.lungs, affine, affine)
    given = _given(small_chest, part, part_affine, affine)
    np.testing.assert_allclose(given.box, whole.box, atol=4)
    first, second = given.distance_mm == 0, whole.distance_mm == 0
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert dice > 0.95


@pytest.mark.parametrize(
    ("shift_mm", "words"), [((0, 0, 500), "0% lies in the scan"), ((0, 0, -60), "of that in air"), (None, "got one of")]
)
def test_a_mask_that_does_not_lie_on_the_lungs_is_refused(
    small_chest: Chest, shift_mm: tuple[float, ...] | None, words: str
) -> None:
    affine = np.eye(4)
    affine[:3, 3] = shift_mm or 0
    mask = _volume(small_chest.lungs if shift_mm else np.zeros_like(small_chest.lungs), affine)
    mask.meta["filename_or_obj"] = "lungs.mhd"
    with pytest.raises(ScanError, match=rf"lungs\.mhd: expected a mask of the lungs of the scan, .*{words}"):
        find_lungs(small_chest.image_hu, np.eye(4), TrueParts(small_chest), lung_mask=mask, source="the scan")


def test_a_mask_that_lies_beside_the_lungs_is_worth_a_warning(small_chest: Chest, caplog: Any) -> None:
    affine = np.eye(4)
    affine[0, 3] = 12.0
    _given(small_chest, small_chest.lungs, affine, np.eye(4))
    assert "of the lung mask lies in air; is it flipped?" in caplog.text
    caplog.clear()
    _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    assert caplog.text == ""


def test_cropping_takes_the_mask_and_lets_it_go(small_chest: Chest) -> None:
    """One lung alone: the box is its own."""
    item = _item(small_chest, _oblique_affine())
    right = (small_chest.lungs == 1).astype(np.int16)
    search = TrueParts(small_chest)
    cropped = CropToLungsd("image", search, margin_mm=0)({**item, "lung_mask": _volume(right, _oblique_affine())})
    assert "lung_mask" not in cropped
    assert cropped["region"] == "lungs"
    where = np.argwhere(right)
    np.testing.assert_allclose(cropped["image"].shape[1:], np.ptp(where, axis=0) + 1, atol=6)
    first = apply_affine(np.linalg.inv(_oblique_affine()), np.asarray(cropped["image"].affine)[:3, 3])
    np.testing.assert_allclose(first, where.min(0), atol=3)


# --- the released weights


RELEASED_SEARCH = LungSearch()


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def _truth(chest: Chest, affine: np.ndarray, lungs: Lungs) -> np.ndarray:
    """Which cells of a result lie in the true lungs; ``affine`` is where the chest's own grid lies."""
    cells = np.stack(np.meshgrid(*map(np.arange, lungs.parts.shape), indexing="ij"), axis=-1)
    voxels = np.rint(apply_affine(np.linalg.inv(affine) @ lungs.affine_ras, cells)).astype(int)
    inside = np.all((voxels >= 0) & (voxels < chest.lungs.shape), axis=-1)
    found = chest.lungs[tuple(np.clip(voxels, 0, np.array(chest.lungs.shape) - 1).reshape(-1, 3).T)] > 0
    return np.asarray(found.reshape(inside.shape) & inside)


def test_a_synthetic_chest_has_two_lungs_and_nothing_else(full_chest: Chest) -> None:
    lungs = find_lungs(full_chest.image_hu, full_chest.affine_ras, RELEASED_SEARCH)
    truth = _truth(full_chest, full_chest.affine_ras, lungs)
    assert lungs.kind == "lungs"
    assert _dice(is_lung(lungs.parts), truth) > 0.95
    left, right = (np.argwhere(lungs.parts == side)[:, 0].mean() for side in (Part.LEFT_LUNG, Part.RIGHT_LUNG))
    assert left < right
    assert np.mean(lungs.distance_mm[truth] <= 10) > 0.99
    scan = coarse_scan(full_chest.image_hu, full_chest.affine_ras)
    assert np.all(lungs.distance_mm[scan.hu < -985] > 10)  # room air
    for nodule in full_chest.nodules:
        cell = np.rint(apply_affine(np.linalg.inv(lungs.affine_ras), nodule.centre_ras_mm)).astype(int)
        assert lungs.distance_mm[tuple(cell)] <= 10


@pytest.mark.parametrize("change", ["thick slices", "noise", "much room", "slab", "fluid in one lung"])
def test_changes_of_a_scan_leave_the_lungs(full_chest: Chest, change: str) -> None:
    image, affine = full_chest.image_hu.astype(np.float32), full_chest.affine_ras.copy()
    if change == "thick slices":
        image = image[:, :, : image.shape[2] // 5 * 5].reshape(*image.shape[:2], -1, 5).mean(axis=3)
        affine = affine @ np.diag([1, 1, 5, 1.0])
        affine[:3, 3] += full_chest.affine_ras[:3, 2] * 2
    elif change == "noise":
        image = image + np.random.default_rng(0).normal(0, 150, image.shape).astype(np.float32)
    elif change == "much room":
        image = np.pad(image, [(100, 100), (100, 100), (0, 0)], constant_values=-1000)
        affine[:3, 3] -= affine[:3, :3] @ np.array([100, 100, 0])
    elif change == "slab":
        image, affine[:3, 3] = image[:, :, 140:180], apply_affine(affine, [0, 0, 140])
    else:
        low = full_chest.lungs == 1
        low[:, int(np.argwhere(low)[:, 1].mean()) :] = False
        image[low] = 15.0
    lungs = find_lungs(image, affine, RELEASED_SEARCH)
    truth = _truth(full_chest, full_chest.affine_ras, lungs)
    assert lungs.kind == "lungs"
    assert np.mean(lungs.distance_mm[truth] <= 10) > (0.9 if change == "fluid in one lung" else 0.99)
    assert np.mean(truth[is_lung(lungs.parts)]) > 0.9


def test_a_cube_from_a_lung_is_searched(full_chest: Chest) -> None:
    centre = np.rint(np.argwhere(full_chest.lungs == 1).mean(axis=0)).astype(int)
    for shift in (0, 35, 70):
        low = np.maximum(centre - 50 + [shift, 0, 0], 0)
        affine = full_chest.affine_ras.copy()
        affine[:3, 3] = apply_affine(affine, low)
        cube = full_chest.image_hu[tuple(slice(a, a + 100) for a in low)]
        lungs = find_lungs(cube, affine, RELEASED_SEARCH)
        assert lungs.kind == "cut-out"
        assert np.mean(lungs.distance_mm[_truth(full_chest, full_chest.affine_ras, lungs)] <= 10) > 0.97


def test_a_chest_without_lungs_is_refused(full_chest: Chest) -> None:
    """An abdomen: the synthetic chest from the diaphragm down, and a cylinder of water."""
    below = full_chest.image_hu[:, :, :14].copy()
    below[full_chest.lungs[:, :, :14] > 0] = 40
    i, j = np.ogrid[-100:100, -100:100]
    water = np.where((i**2 + j**2 < 80**2)[:, :, None], 0, -1000).astype(np.int16) * np.ones((1, 1, 150), np.int16)
    for image in (below, water):
        with pytest.raises(ScanError, match="got a body without lungs"):
            find_lungs(image, full_chest.affine_ras, RELEASED_SEARCH)
