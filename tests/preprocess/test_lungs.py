"""Where a scan is searched: grid of the search, distances, what is never searched, and what the weights find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from nibabel.affines import from_matvec
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
BY_DENSITY, RELEASED = PartsByDensity(), LungSearch()


def _oblique_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    angle = np.deg2rad(7.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return from_matvec(turn @ np.diag(spacing_mm), (-31.0, 17.5, -204.0))


def _world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The position of each voxel of a grid, ``[I, J, K, 3]``."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


# --- the grid of the search


@pytest.mark.parametrize("spacing", [(0.6, 0.7, 1.0), (2.0, 2.0, 2.0), (0.9, 0.9, 5.0), (4.0, 4.0, 8.0)])
def test_cells_lie_where_the_affine_says_and_keep_the_mean(spacing: tuple[float, float, float]) -> None:
    """Of a ramp in world millimetres each cell holds its own position, and the whole keeps its mean."""
    affine, inner = _oblique_affine(spacing), (slice(1, -1),) * 3
    shape = tuple(np.round(np.array([93, 101, 120]) / spacing).astype(int))
    for axis, ramp in enumerate(np.moveaxis(_world(affine, shape), -1, 0)):
        scan = coarse_scan(ramp.astype(np.float32), affine)
        expected = _world(scan.affine_ras, scan.hu.shape)[..., axis]
        np.testing.assert_allclose(scan.hu[inner], expected[inner], atol=0.35)
        assert scan.hu.mean() == pytest.approx(ramp.mean(), abs=0.1)
    np.testing.assert_allclose(scan.hu.shape * scan.cell_mm, np.array(shape) * spacing, rtol=1e-9)
    assert np.all(np.abs(scan.cell_mm - CELL_MM) < 0.1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_order_in_memory_and_flips_change_nothing(order: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(-1000, 100, (40, 44, 36)).astype(np.int16)
    stored = np.ascontiguousarray(image.transpose(order)).transpose(np.argsort(order))
    plain, found, flipped = (coarse_scan(one, np.eye(4)).hu for one in (image, stored, np.flip(image, 1)))
    np.testing.assert_allclose([found, np.flip(flipped, 1)], [plain, plain], atol=1e-3)


def test_other_weights_are_refused(tmp_path: Any) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, words in (
        ("none.pt", r"got no such file; give models/lung_search\.pt"),
        ("other.pt", "expected the weights of the lung network"),
        ("empty.pt", "got: EOFError; give"),
    ):
        with pytest.raises(LungWeightsError, match=rf"{name}: .*{words}"):
            LungSearch(str(tmp_path / name))


# --- where is searched

X, Y, Z = np.ogrid[:200, :160, :160]  # mm


def _body() -> np.ndarray:
    """An elliptic cylinder of tissue with a lung of 0.3 litre on either side, in room air; voxels of 1 mm."""
    image = np.full((200, 160, 160), AIR_HU, dtype=np.int16)
    image[((X - 100) / 90) ** 2 + ((Y - 80) / 70) ** 2 + 0 * Z < 1] = TISSUE_HU
    for middle in (60, 140):
        image[((X - middle) / 24) ** 2 + ((Y - 80) / 40) ** 2 + ((Z - 60) / 50) ** 2 < 1] = LUNG_HU
    return image


def _ball(x: int, y: int, z: int, radius: int) -> np.ndarray:
    return np.asarray((X - x) ** 2 + (Y - y) ** 2 + (Z - z) ** 2 < radius**2)


def _tube(radius: int) -> np.ndarray:
    return np.asarray(np.hypot(X - 100, Y - 80) + 0 * Z < radius)


def _at(lungs: Lungs, place: tuple[float, ...]) -> float:
    """Distance of a position, mm."""
    cell = np.rint(apply_affine(np.linalg.inv(lungs.affine_ras), place)).astype(int)
    return float(lungs.distance_mm[tuple(cell)])


class WithAirway(PartsByDensity):
    """Knows the gas in the middle as an airway."""

    def __call__(self, scan: CoarseScan) -> Parts:
        parts = super().__call__(scan)
        parts[22:28, 17:23][scan.hu[22:28, 17:23] < -500] = Part.AIRWAY
        return parts


# Least and greatest distance, mm.
ZERO, NEAR, FAR, NEVER = (0.0, 0.0), (0.0, 10.0), (10.001, NEVER_MM), (NEVER_MM, NEVER_MM)
IN_LUNG, MIDDLE = (60, 80, 60), (100, 80, 60)
WIDE_LUNGS = (np.abs(X - 100) >= 5) & (((X - 100) / 64) ** 2 + ((Y - 80) / 40) ** 2 + ((Z - 60) / 50) ** 2 < 1)
BRONCHI = (np.abs(X - 100) <= 20) & (np.abs(Y - 80) <= 4) & (np.abs(Z - 60) <= 4)


@pytest.mark.parametrize(
    ("changes", "search", "distances"),
    [
        (
            [],
            BY_DENSITY,
            # the third lies 58 above the middle of a lung of 50
            {IN_LUNG: ZERO, (100, 80, 8): FAR, (60, 80, 118): (8 - CELL_MM, 8 + CELL_MM)}
            | dict.fromkeys([(2, 2, 60), (198, 80, 60), (100, 2, 60)], NEVER),
        ),
        # a ball of CLOSING_MM enters the mass by 5 mm
        ([(WIDE_LUNGS, LUNG_HU), (_ball(36, 80, 60, 15), TISSUE_HU)], BY_DENSITY, {MIDDLE: ZERO, (44, 80, 60): ZERO}),
        ([(_tube(9), AIR_HU)], BY_DENSITY, {MIDDLE: NEVER, (88, 80, 60): FAR}),
        ([(_tube(9), AIR_HU)], WithAirway(), {MIDDLE: NEVER, (88, 80, 60): NEAR}),
        (
            [(_tube(9) | BRONCHI | (_tube(20) & (Z > 120)), AIR_HU)],
            WithAirway(),
            {(115, 80, 140): NEVER, IN_LUNG: ZERO},
        ),
        ([(_ball(100, 130, 20, 7), LUNG_HU)], BY_DENSITY, {(100, 130, 20): FAR}),  # 1.4 ml
        ([((X < 6) & (Y < 6) & (Z >= 0), TISSUE_HU)], BY_DENSITY, {(3, 3, 60): NEVER}),
    ],
    ids=[
        "distance grows in the body and ends at its border",
        "1 cm between the lungs and a mass cut into one from the pleura are closed",
        "gas of a bowel is never searched, nor is its wall",
        "gas of an airway is never searched, but a tumour may grow in its wall",
        "the throat is no lung, though an airway joins them",
        "a small piece of bowel gas is no lung",
        "a fold of clothing is no body",
    ],
)
def test_how_far_the_lungs_are(
    changes: list[tuple[np.ndarray, int]], search: LungSearch, distances: dict[tuple[float, ...], tuple[float, float]]
) -> None:
    image = _body()
    for where, hu in changes:
        image[where] = hu
    lungs = find_lungs(image, np.eye(4), search)
    assert lungs.kind == "lungs"
    assert not is_lung(lungs.parts)[:, :, 30:].any()
    for place, (least, greatest) in distances.items():
        assert least <= _at(lungs, place) <= greatest, place


@pytest.mark.parametrize(
    ("region", "box"), [("lungs", [[36, 40, 10], [165, 121, 111]]), ("body", [[10, 10, 0], [191, 151, 160]])]
)
def test_the_box_holds_the_lungs_or_on_request_all_of_the_body(region: str, box: list[list[int]]) -> None:
    lungs = find_lungs(_body(), np.eye(4), BY_DENSITY, region=region)
    assert lungs.kind == region
    np.testing.assert_allclose(lungs.box, box, atol=CELL_MM + 1)
    assert (_at(lungs, IN_LUNG), _at(lungs, (100, 80, 2)) == 0, _at(lungs, (2, 2, 60))) == (
        0,
        region == "body",
        NEVER_MM,
    )


def test_other_regions_are_refused() -> None:
    with pytest.raises(SettingError, match="region: expected lungs or body, got 'all'"):
        find_lungs(_body(), np.eye(4), BY_DENSITY, region="all")


@pytest.mark.parametrize("gas_mm", [0, 20])  # 20 are 33 ml
def test_a_whole_body_without_lungs_is_refused(gas_mm: int) -> None:
    image = np.where(_body() == LUNG_HU, TISSUE_HU, _body())
    image[_ball(100, 120, 60, gas_mm)] = LUNG_HU
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


@pytest.mark.parametrize(
    ("image", "search"),
    [
        (np.full((50, 61, 70), TISSUE_HU), BY_DENSITY),
        (np.full((1, 1, 1), TISSUE_HU), BY_DENSITY),
        (np.full((2, 90, 3), TISSUE_HU), BY_DENSITY),
        # seen alone, that is room air and the whole of a small body
        (np.pad(np.full((31, 11, 51), TISSUE_HU), [(10, 10), (40, 0), (0, 0)], constant_values=-950), RELEASED),
    ],
    ids=["tissue", "one voxel", "thin", "emphysema and a piece of the chest wall"],
)
def test_a_cut_out_in_which_no_lung_can_be_told_is_searched_whole(image: np.ndarray, search: LungSearch) -> None:
    lungs = find_lungs(image.astype(np.int16), np.eye(4), search)
    assert (lungs.kind, lungs.box.tolist()) == ("body", [[0, 0, 0], [*image.shape]])
    assert not lungs.distance_mm.any()


@pytest.mark.parametrize("voxel_mm", [(3.0, 3.0, 3.0), (2.8, 3.1, 2.5)])
def test_distances_are_euclidean(voxel_mm: tuple[float, float, float]) -> None:
    inside = np.random.default_rng(0).random((9, 14, 11)) > 0.98
    expected = ndimage.distance_transform_edt(~inside, sampling=voxel_mm)
    np.testing.assert_allclose(_distance_mm(inside, np.array(voxel_mm)), expected, atol=1e-4)


# --- CropToLungsd


def _volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine))


def _item(chest: Chest, affine: np.ndarray) -> dict[str, MetaTensor]:
    return {"image": _volume(chest.image_hu.copy(), affine), "mask": _volume(chest.mask, affine)}


def _place_of(value: float, volume: MetaTensor) -> np.ndarray:
    """Mean world position of the voxels of a value."""
    return apply_affine(np.asarray(volume.affine), np.argwhere(volume[0].numpy() == value).mean(axis=0))


def test_cropping_keeps_every_world_position(small_chest: Chest) -> None:
    item = _item(small_chest, _oblique_affine())
    item["image"][0, 60, 50, 70] = 3000.0
    cropped = CropToLungsd(["image", "mask"], TrueParts(small_chest), margin_mm=5)(item)
    assert cropped["region"] == "lungs"
    whole, shape = small_chest.image_hu.shape, cropped["image"].shape[1:]
    assert cropped["mask"].shape[1:] == shape
    assert np.all(np.subtract(whole, shape) >= [0, 11, 0])
    assert item["image"].shape[1:] == whole  # the input stays
    for key, value in (("image", 3000.0), ("mask", 1)):
        np.testing.assert_allclose(_place_of(value, cropped[key]), _place_of(value, item[key]), atol=1e-6)
    np.testing.assert_allclose(np.asarray(cropped["mask"].affine), np.asarray(cropped["image"].affine))


def test_margin_is_kept_in_millimetres(small_chest: Chest) -> None:
    item = _item(small_chest, np.eye(4))
    narrow, wide = (CropToLungsd("image", TrueParts(small_chest), margin_mm=mm)(item)["image"] for mm in (0, 4.5))
    np.testing.assert_allclose((narrow.affine - wide.affine)[:3, 3], 5)  # whole voxels of 1 mm


def test_absent_keys_are_skipped_only_when_allowed(small_chest: Chest) -> None:
    item = {"image": _item(small_chest, np.eye(4))["image"]}
    assert "mask" not in CropToLungsd(["image", "mask"], TrueParts(small_chest), 5, allow_missing_keys=True)(item)
    with pytest.raises(KeyError, match="mask"):
        CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(item)


@pytest.mark.parametrize(("end", "direction"), [(-1, 1.0), (None, -1.0)], ids=["size", "affine"])
def test_mask_on_another_grid_is_refused(small_chest: Chest, end: int | None, direction: float) -> None:
    item = _item(small_chest, np.eye(4))
    item["mask"] = _volume(small_chest.mask[:end], np.diag([direction, 1.0, 1.0, 1.0]))
    item["mask"].meta["filename_or_obj"] = "lesions.nii.gz"
    with pytest.raises(ValueError, match=r"lesions\.nii\.gz: expected the grid of its scan"):
        CropToLungsd(["image", "mask"], TrueParts(small_chest), 5)(item)


@pytest.mark.parametrize("code", ["LPS", "RAS", "SLP", "IRA"])
def test_the_scan_may_lie_in_any_orientation_and_its_mask_in_another(code: str, small_chest: Chest) -> None:
    item, crop = _item(small_chest, np.eye(4)), CropToLungsd(["image", "mask"], TrueParts(small_chest), margin_mm=5)
    expected, found = crop(item), crop(Orientationd("image", axcodes=code, labels=None)(item))
    np.testing.assert_allclose(np.asarray(found["mask"].affine), np.asarray(found["image"].affine), atol=1e-9)
    back = Orientationd(["image", "mask"], axcodes="RAS", labels=None)(found)
    for key in ("image", "mask", "lung_distance_mm"):
        assert torch.equal(back[key].as_tensor(), expected[key].as_tensor()), key
        np.testing.assert_allclose(np.asarray(back[key].affine), np.asarray(expected[key].affine), atol=1e-6)


def test_the_whole_scan_is_kept_and_nothing_is_copied(small_chest: Chest) -> None:
    image = _item(small_chest, np.diag([-1.0, -1.0, 1.0, 1.0]))["image"]
    found = CropToLungsd("image", TrueParts(small_chest), margin_mm=5, whole_key="scan")({"image": image})
    assert found["scan"] is image
    assert found["image"].untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


# --- a given lung mask

NEXT_CELL_MM = CELL_MM * np.sqrt(3) + 0.1  # across the corner of a cell


def _given(chest: Chest, mask: np.ndarray, mask_affine: np.ndarray, affine: np.ndarray) -> Lungs:
    return find_lungs(chest.image_hu, affine, TrueParts(chest), lung_mask=_volume(mask, mask_affine))


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_the_true_mask_gives_the_lungs_that_are_found(small_chest: Chest) -> None:
    given = _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    found = find_lungs(small_chest.image_hu, np.eye(4), TrueParts(small_chest))
    assert given.kind == "lungs"
    assert np.mean((given.parts == found.parts)[found.parts > Part.BODY]) > 0.99
    assert _dice(given.distance_mm == 0, found.distance_mm == 0) > 0.97


@pytest.mark.parametrize(
    ("values", "trachea"),
    [((3, 4), 5), ((1, 1), 0), ((20, 10), 0), ((5, 2), 0), ((5, 5), 0)],
    ids=["LUNA16", "binary", "own", "lobes 1 to 5", "a lone 5"],
)
def test_values_of_a_mask(small_chest: Chest, values: tuple[int, int], trachea: int) -> None:
    """LUNA16's trachea is no lung; in any other mask all that is above 0 is."""
    expected = _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    labels = np.array([0, *values], dtype=np.int16)[small_chest.lungs]
    labels[:9, :9, :9] = trachea
    given = _given(small_chest, labels, np.eye(4), np.eye(4))
    np.testing.assert_array_equal(given.box, expected.box)
    np.testing.assert_array_equal(given.distance_mm, expected.distance_mm)


@pytest.mark.parametrize(("steps", "box_atol"), [((-1, 1, 1), 1), ((1, -1, 1), 1), ((1, 1, -1), 1), ((2, 2, 2), 4)])
def test_a_mask_in_another_direction_or_coarser_of_a_part_of_the_grid_is_the_same_mask(
    small_chest: Chest, steps: tuple[int, int, int], box_atol: int
) -> None:
    affine, where = _oblique_affine(), np.argwhere(small_chest.lungs)
    low, high = where.min(axis=0) - 1, where.max(axis=0) + 2
    part = small_chest.lungs[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    stored = part[:: steps[0], :: steps[1], :: steps[2]]
    to_scan = from_matvec(np.diag(steps), np.where(np.array(steps) < 0, high - 1, low))
    whole = _given(small_chest, small_chest.lungs, affine, affine)
    given = _given(small_chest, stored, affine @ to_scan, affine)
    np.testing.assert_allclose(given.box, whole.box, atol=box_atol)
    assert _dice(given.distance_mm == 0, whole.distance_mm == 0) > 0.95
    searched = (given.distance_mm < NEVER_MM) & (whole.distance_mm < NEVER_MM)
    assert np.abs(given.distance_mm - whole.distance_mm)[searched].max() <= NEXT_CELL_MM


@pytest.mark.parametrize(
    ("factor", "shift_mm", "words"),
    [(1, 500.0, "0% lies in the scan"), (1, -60.0, "of that in air"), (0, 0.0, "got one of")],
    ids=["outside", "beside", "empty"],
)
def test_a_mask_that_does_not_lie_on_the_lungs_is_refused(
    small_chest: Chest, factor: int, shift_mm: float, words: str
) -> None:
    mask = _volume(small_chest.lungs * np.uint8(factor), from_matvec(np.eye(3), (0.0, 0.0, shift_mm)))
    mask.meta["filename_or_obj"] = "lungs.mhd"
    with pytest.raises(ScanError, match=rf"lungs\.mhd: expected a mask of the lungs of the scan, .*{words}"):
        find_lungs(small_chest.image_hu, np.eye(4), TrueParts(small_chest), lung_mask=mask, source="the scan")


def test_a_mask_that_lies_beside_the_lungs_is_worth_a_warning(small_chest: Chest, caplog: Any) -> None:
    _given(small_chest, small_chest.lungs, np.eye(4), np.eye(4))
    assert caplog.text == ""
    _given(small_chest, small_chest.lungs, from_matvec(np.eye(3), (12.0, 0.0, 0.0)), np.eye(4))
    assert "of the lung mask lies in air; is it flipped?" in caplog.text


def test_cropping_takes_the_mask_and_lets_it_go(small_chest: Chest) -> None:
    """One lung alone: the box is its own."""
    affine, right = _oblique_affine(), (small_chest.lungs == 1).astype(np.int16)
    item = {**_item(small_chest, affine), "lung_mask": _volume(right, affine)}
    cropped = CropToLungsd("image", TrueParts(small_chest), margin_mm=0)(item)
    assert "lung_mask" not in cropped
    assert cropped["region"] == "lungs"
    where = np.argwhere(right)
    np.testing.assert_allclose(cropped["image"].shape[1:], np.ptp(where, axis=0) + 1, atol=6)
    first = apply_affine(np.linalg.inv(affine), np.asarray(cropped["image"].affine)[:3, 3])
    np.testing.assert_allclose(first, where.min(0), atol=3)


# --- the released weights


def _truth(chest: Chest, lungs: Lungs) -> np.ndarray:
    """Which cells of a result lie in the true lungs."""
    to_chest = np.linalg.inv(chest.affine_ras) @ lungs.affine_ras
    voxels = np.rint(_world(to_chest, lungs.parts.shape)).astype(int)
    inside = np.all((voxels >= 0) & (voxels < chest.lungs.shape), axis=-1)
    found = chest.lungs[tuple(np.moveaxis(np.clip(voxels, 0, np.array(chest.lungs.shape) - 1), -1, 0))] > 0
    return np.asarray(found & inside)


def test_a_synthetic_chest_has_two_lungs_and_nothing_else(full_chest: Chest) -> None:
    lungs = find_lungs(full_chest.image_hu, full_chest.affine_ras, RELEASED)
    truth = _truth(full_chest, lungs)
    assert lungs.kind == "lungs"
    assert _dice(is_lung(lungs.parts), truth) > 0.95
    left, right = (np.argwhere(lungs.parts == side)[:, 0].mean() for side in (Part.LEFT_LUNG, Part.RIGHT_LUNG))
    assert left < right
    assert np.mean(lungs.distance_mm[truth] <= 10) > 0.99
    scan = coarse_scan(full_chest.image_hu, full_chest.affine_ras)
    assert np.all(lungs.distance_mm[scan.hu < -985] > 10)  # room air
    assert max(_at(lungs, nodule.centre_ras_mm) for nodule in full_chest.nodules) <= 10


def _changed(chest: Chest, change: str) -> tuple[np.ndarray, np.ndarray]:
    """The image of a chest after a change, and the affine from its voxels to those of the chest."""
    image = chest.image_hu.astype(np.float32)
    if change == "thick slices":
        image = image[:, :, : image.shape[2] // 5 * 5].reshape(*image.shape[:2], -1, 5).mean(axis=3)
        return image, from_matvec(np.diag([1, 1, 5]), (0, 0, 2))
    if change == "much room":
        image = np.pad(image, [(100, 100), (100, 100), (0, 0)], constant_values=-1000)
        return image, from_matvec(np.eye(3), (-100, -100, 0))
    if change == "slab":
        return image[:, :, 140:180], from_matvec(np.eye(3), (0, 0, 140))
    if change == "noise":
        return image + np.random.default_rng(0).normal(0, 150, image.shape).astype(np.float32), np.eye(4)
    i, j, k = np.nonzero(chest.lungs == 1)
    low = j < int(j.mean())
    image[i[low], j[low], k[low]] = 15.0
    return image, np.eye(4)


@pytest.mark.parametrize("change", ["thick slices", "noise", "much room", "slab", "fluid in one lung"])
def test_changes_of_a_scan_leave_the_lungs(full_chest: Chest, change: str) -> None:
    image, to_chest = _changed(full_chest, change)
    lungs = find_lungs(image, full_chest.affine_ras @ to_chest, RELEASED)
    truth = _truth(full_chest, lungs)
    assert lungs.kind == "lungs"
    assert np.mean(lungs.distance_mm[truth] <= 10) > (0.9 if change == "fluid in one lung" else 0.99)
    assert np.mean(truth[is_lung(lungs.parts)]) > 0.9


@pytest.mark.parametrize("shift", [0, 35, 70])
def test_a_cube_from_a_lung_is_searched(full_chest: Chest, shift: int) -> None:
    centre = np.rint(np.argwhere(full_chest.lungs == 1).mean(axis=0)).astype(int)
    low = np.maximum(centre - [50 - shift, 50, 50], 0)
    cube = full_chest.image_hu[tuple(slice(a, a + 100) for a in low)]
    lungs = find_lungs(cube, full_chest.affine_ras @ from_matvec(np.eye(3), low), RELEASED)
    assert lungs.kind == "cut-out"
    assert np.mean(lungs.distance_mm[_truth(full_chest, lungs)] <= 10) > 0.97


def test_a_chest_without_lungs_is_refused(full_chest: Chest) -> None:
    """An abdomen: the synthetic chest from the diaphragm down, and a cylinder of water."""
    below = np.where(full_chest.lungs > 0, 40, full_chest.image_hu)[:, :, :14]
    i, j, k = np.ogrid[-100:100, -100:100, :150]
    water = np.where(i**2 + j**2 + 0 * k < 80**2, 0, -1000)
    for image in (below, water):
        with pytest.raises(ScanError, match="got a body without lungs"):
            find_lungs(image.astype(np.int16), full_chest.affine_ras, RELEASED)
