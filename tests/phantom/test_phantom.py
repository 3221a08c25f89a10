"""The synthetic chest: what it promises about nodules, tissues, determinism and files."""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from itertools import combinations, product
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage

from scripts.core.files import OutputError
from scripts.core.geometry import apply_affine, sphere_diameter_mm, swap_lps_ras, voxel_volume_mm3
from scripts.phantom.anatomy import draw_patient, make_frame, trunk
from scripts.phantom.chest import Chest, Style, draw_scan_affine, make_chest, scan_chest
from scripts.phantom.files import write_dicom_series, write_image
from scripts.phantom.nodules import DIAMETER_RANGE_MM, draw_diameter_mm
from scripts.phantom.surroundings import ARMS_DOWN_SHARE, surround
from scripts.prepare.__main__ import main
from scripts.read.reader import read_scan


@cache
def miniature(seed: int) -> Chest:
    return make_chest(seed, scale=0.4, nodules=3)


@pytest.fixture(params=(0, 1, 2))
def chest(request: pytest.FixtureRequest) -> Chest:
    return miniature(request.param)


# --- the chest --------------------------------------------------------------------------------------------------------


def test_truth_of_each_nodule_agrees_with_its_mask_in_the_lungs(chest: Chest) -> None:
    assert 1 <= len(chest.nodules) <= 3
    assert set(np.unique(chest.mask)) == {0, *(n.label for n in chest.nodules)}
    assert np.all(chest.lungs[chest.mask > 0] > 0)
    for nodule in chest.nodules:
        own = chest.mask == nodule.label
        centre = apply_affine(np.linalg.inv(chest.affine_ras), nodule.centre_ras_mm)
        assert own[tuple(np.rint(centre).astype(int))]
        np.testing.assert_allclose(np.argwhere(own).mean(axis=0), centre, atol=0.25)
        # a voxel more or less on the surface: 1 mm voxels decide a small nodule's diameter to some percent
        tolerance = 0.03 + 0.25 / nodule.diameter_mm
        assert sphere_diameter_mm(own.sum()) == pytest.approx(nodule.diameter_mm, rel=tolerance)
        assert ndimage.label(own, np.ones((3, 3, 3)))[1] == 1
    for a, b in combinations(chest.nodules, 2):
        apart_mm = np.linalg.norm(np.subtract(a.centre_ras_mm, b.centre_ras_mm))
        assert apart_mm > (a.diameter_mm + b.diameter_mm) / 2


def test_both_lungs_are_closed_and_single(chest: Chest) -> None:
    np.testing.assert_array_equal(np.pad(chest.lungs[2:-2, 2:-2, 2:-2], 2), chest.lungs)
    sides = [chest.lungs == side for side in (1, 2)]
    assert [ndimage.label(side)[1] for side in sides] == [1, 1]
    right, left = (apply_affine(chest.affine_ras, ndimage.center_of_mass(side))[0] for side in sides)
    assert right > left  # +x in RAS


def test_tissues_have_their_hu(chest: Chest) -> None:
    image = chest.image_hu
    assert image.dtype == np.float32
    assert -1024 <= image.min() <= -1000 <= image.max() <= 3071  # and none is NaN
    deep = image[ndimage.binary_erosion(chest.lungs > 0, iterations=3) & (chest.mask == 0)]
    wall = image[(image > -200) & (chest.lungs == 0)]
    assert -910 < np.median(deep) < -840
    for values, low, high, share in (
        (deep, -500, np.inf, 0.01),  # vessels
        (wall, -130, -80, 0.05),  # fat
        (wall, 20, 90, 0.1),  # muscle, liver
        (wall, 300, np.inf, 0.01),  # bone
        (image, 500, 1600, 0.001),  # compact bone
    ):
        assert np.mean((values > low) & (values < high)) > share, (low, high)


# Seed, nodules (RAS mm and diameter), and HU along a line through the chest (every seventh voxel of ``[start:, j, k]``
# in the trunk's box) as the first version that drew chests made them.
_AS_EVER = {
    0: (
        [(29.061, -6.338, -176.743, 8.342), (23.537, 11.718, -177.985, 7.079), (41.572, -4.293, -206.275, 10.168)],
        (23, 116, 63, 72),
        [47.49, -858.32, -893.39, -902.36, -897.93, -899.85, -909.63, 184.6, 184.6, -595.86, -901.27, -900.67, -920.15,
         63.73],
    ),
    1: (
        [(21.012, -21.076, 33.515, 4.138), (46.692, 3.886, -5.223, 5.673), (-27.736, -16.356, 44.773, 4.810)],
        (15, 116, 56, 60),
        [56.16, -934.18, -874.5, -854.28, -892.43, -177.76, -836.23, -97.6, -787.48, -985.0, -818.94, -908.59, -908.96,
         -881.62, -660.53],
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", _AS_EVER)
def test_chest_and_nodules_of_a_seed_stay_as_they_are(seed: int) -> None:
    chest, (nodules, (start, stop, j, k), hu) = miniature(seed), _AS_EVER[seed]
    np.testing.assert_allclose([(*n.centre_ras_mm, n.diameter_mm) for n in chest.nodules], nodules, atol=0.002)
    np.testing.assert_allclose(chest.image_hu[chest.trunk_box][start:stop:7, j, k], hu, atol=0.05)


def test_a_chest_may_have_no_nodules() -> None:
    without = make_chest(4, scale=0.4, nodules=0)
    assert (without.nodules, without.mask.any(), scan_chest(without, 0).mask.any()) == ((), False, False)


@pytest.mark.parametrize("arguments", [{"nodules": 9}, {"nodules": -1}, {"scale": 0.1}])
def test_make_chest_refuses_what_it_cannot_make(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"(nodules|scale): expected"):
        make_chest(0, **arguments)


def test_nodule_kinds_differ_in_hu() -> None:
    by_kind: dict[str, list[float]] = {"solid": [], "part-solid": [], "ground-glass": []}
    for chest in map(miniature, range(3)):
        for nodule in chest.nodules:
            core = ndimage.binary_erosion(chest.mask == nodule.label)
            if core.sum() >= 5:
                by_kind[nodule.kind].append(float(np.median(chest.image_hu[core])))
    assert max(by_kind["ground-glass"]) < -300 < -150 < min(by_kind["solid"])


def test_diameters_match_their_source() -> None:
    rng = np.random.default_rng(0)
    diameters = np.array([draw_diameter_mm(rng) for _ in range(4000)])
    assert DIAMETER_RANGE_MM[0] <= diameters.min() < diameters.max() <= DIAMETER_RANGE_MM[1]
    np.testing.assert_allclose(np.percentile(diameters, (25, 50, 75)), (5.11, 6.43, 9.70), rtol=0.06)


# --- what surrounds it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_down", [False, True])
def test_nothing_below_the_skin_of_the_trunk_changes(is_down: bool) -> None:
    patient = draw_patient(np.random.default_rng(0), 0.4)
    frame = make_frame(patient, np.random.default_rng(1))
    image = np.random.default_rng(2).uniform(-1000, 1000, frame.shape).astype(np.float32)
    seed = next(s for s in range(99) if (np.random.default_rng(s).random() < ARMS_DOWN_SHARE) == is_down)
    wide, box = surround(image, frame, patient, np.random.default_rng(seed))
    deep = trunk(frame, frame.model_coordinates(), patient) * np.mean(frame.stretch) < -3.5
    assert deep.mean() > 0.4
    np.testing.assert_array_equal(wide[box][deep], image[deep])


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask."""
    pieces = ndimage.label(mask)[0]
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def test_the_body_lies_on_a_couch_in_room_air(chest: Chest) -> None:
    in_front, plane = chest.image_hu[:, -3:], chest.image_hu[:, :, chest.image_hu.shape[2] // 2]
    assert np.median(in_front) == -1000
    assert np.mean(in_front > -500) < 0.02
    middle = slice(len(plane) // 4, len(plane) * 3 // 4)
    for row, body in zip(plane[middle], largest(plane > -300)[middle], strict=True):
        behind = row[: body.argmax()]
        assert behind.max() > 0  # the shell, behind the skin
        assert np.any((behind > -970) & (behind < -940))  # the mattress


def test_metal_of_the_electrodes_lies_on_the_skin(chest: Chest) -> None:
    metal = chest.image_hu > 2000
    body = largest(ndimage.binary_opening((chest.image_hu > -300) & ~metal, iterations=2))
    body = ndimage.binary_fill_holes(body | (chest.lungs > 0))
    depth = ndimage.distance_transform_edt(body) - ndimage.distance_transform_edt(~body)
    assert -4 < depth[metal].max() <= 3


def test_gas_in_the_stomach_lies_over_its_contents_below_the_left_lung(chest: Chest) -> None:
    left = ndimage.binary_dilation(chest.lungs == 2, iterations=2)
    top = np.where(left.any(axis=2), left.argmax(axis=2), 0)  # of the diaphragm, the first lung voxel from below
    gas = largest((np.arange(left.shape[2]) < top[:, :, None]) & (chest.image_hu < -900))
    assert gas.sum() / 1000 / 0.4**3 > 8  # ml of an adult
    i, j, k = np.rint(ndimage.center_of_mass(gas)).astype(int)
    behind = chest.image_hu[i, j - 12 : j, k]  # the patient lies on the back
    assert np.any((behind > -20) & (behind < 90))


def test_arms_lie_beside_the_body_or_over_the_head() -> None:
    low, high = 3, -12
    for seed, k, sides in ((1, low, 2), (0, low, 0), (0, high, 2)):
        bones = miniature(seed).image_hu[:, :, k].max(axis=1) > 500
        tenth = len(bones) // 10
        assert sum([bones[:tenth].any(), bones[-tenth:].any()]) == sides, (seed, k)


# --- the scan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_a_scan_shows_what_surrounds_the_body_and_nothing_else(seed: int) -> None:
    chest = miniature(1)
    affine_ras, shape, grown = draw_scan_affine(np.random.default_rng(seed), chest, "axial")
    corners = np.array(list(product(*[(0, n - 1) for n in shape])))
    found = apply_affine(np.linalg.inv(chest.affine_ras) @ affine_ras, corners)
    spacing = np.linalg.norm(affine_ras[:3, :3], axis=0)
    oblique = 0.12 * max(shape * spacing) * (np.count_nonzero(np.abs(affine_ras[:3, :3]) > 1e-9) > 3)
    off = np.array([found.min(axis=0), found.max(axis=0) - chest.image_hu.shape + 1])
    assert np.all(np.abs(off) < 2 * spacing + oblique)
    assert grown[2] == [0, 0]
    assert min(grown[0] + grown[1]) > 0


@pytest.mark.parametrize("style", ["axial", "any"])
@pytest.mark.parametrize("seed", [0, 3, 8])
def test_scan_shows_each_nodule_where_the_truth_says(style: Style, seed: int) -> None:
    scan = scan_chest(miniature(1), seed, style=style)
    assert scan.image_hu.dtype == np.int16
    volume = voxel_volume_mm3(scan.affine_ras)
    for nodule in miniature(1).nodules:
        own = scan.mask == nodule.label
        centre = apply_affine(scan.affine_ras, ndimage.center_of_mass(own))
        np.testing.assert_allclose(centre, nodule.centre_ras_mm, atol=0.6 * np.cbrt(volume))
        assert sphere_diameter_mm(own.sum() * volume) == pytest.approx(nodule.diameter_mm, rel=0.2)
        assert np.median(scan.image_hu[own]) > -760  # brighter than lung


# --- files ------------------------------------------------------------------------------------------------------------

_TURN = sitk.Euler3DTransform((0, 0, 0), np.deg2rad(20), 0, np.deg2rad(10)).GetMatrix()
AFFINES = {
    "oblique": np.block(
        [[np.reshape(_TURN, (3, 3)) * [-0.7, -0.8, 2.0], np.array([[31.25], [-12.5], [-203.0]])], [np.eye(4)[3:]]]
    ),
    "permuted": np.array([[0, 0, -2.0, 40], [0.7, 0, 0, -60], [0, -0.8, 0, 11], [0, 0, 0, 1]]),
}


def write(path: Path, image_hu: np.ndarray, affine_ras: np.ndarray) -> Path:
    """Write a scan: files by their suffix, else a DICOM series."""
    return (write_image if path.suffix else write_dicom_series)(path, image_hu, affine_ras)


def read_by_itk(path: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a.mha", "a.nrrd", "series"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_written_voxel_keeps_its_value_and_world_position(tmp_path: Path, name: str, affine: np.ndarray) -> None:
    array = np.random.default_rng(0).integers(-1024, 2000, (7, 8, 9)).astype(np.int16)
    array[5, 2, 6] = 2001
    image = read_by_itk(write(tmp_path / "sub" / name, array, affine))
    values = sitk.GetArrayFromImage(image).T
    found_lps_mm = image.TransformIndexToPhysicalPoint(np.argwhere(values == 2001)[0].tolist())
    np.testing.assert_allclose(swap_lps_ras(found_lps_mm), apply_affine(affine, (5, 2, 6)), atol=1e-3)
    assert sorted(values.ravel()) == sorted(array.ravel())
    assert not list((tmp_path / "sub").glob(".*"))


def test_dicom_series_are_slices_of_one_series(tmp_path: Path) -> None:
    folder = write_dicom_series(tmp_path / "ct", np.zeros((7, 8, 5), dtype=np.int16), np.eye(4), uid_seed=7)
    slices = [pydicom.dcmread(folder / f"{n:04d}.dcm") for n in range(1, 6)]
    assert len(list(folder.iterdir())) == len({s.SOPInstanceUID for s in slices}) == 5
    assert len({s.SeriesInstanceUID for s in slices}) == 1


@pytest.mark.parametrize(
    ("name", "moves", "is_there"),
    [("series", 0, True), ("a.nii.gz", 0, True), ("a.mhd", 0, False), ("a.mhd", 1, False)],
)
def test_a_scan_that_is_replaced_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moves: int, is_there: bool
) -> None:
    """Stopped before the first or between two moves: the former scan, the new one, or none."""
    array = np.full((7, 8, 9), 10, dtype=np.int16)
    array[0] = -900  # air: what has one value alone is no scan
    write(tmp_path / name, array, np.eye(4))
    move = Mock(wraps=os.replace, side_effect=[DEFAULT] * moves + [KeyboardInterrupt] * 9)
    monkeypatch.setattr("os.replace", move)
    monkeypatch.setattr("os.rename", move)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, array + 10, np.eye(4))
    assert (tmp_path / name).exists() == is_there
    if is_there:
        assert np.count_nonzero(read_scan(tmp_path / name).image_hu == 10) == 6 * 8 * 9
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a.nrrd"])
def test_a_disk_that_is_full_gives_one_message_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    resource = pytest.importorskip("resource")  # limits the size of a file, on POSIX
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0).integers(-1000, 1000, (32, 32, 32), dtype=np.int16)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    try:
        with pytest.raises(OutputError, match=rf"{name}: expected room in a writable folder, got: .*Free disk space"):
            write_image(tmp_path / name, noise, np.eye(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert list(tmp_path.iterdir()) == []


# --- the command ------------------------------------------------------------------------------------------------------


def _run(folder: Path, *extra: str) -> int:
    size = () if "--scale" in extra else ("--scale", "0.4")
    return main(["phantom", "--output_dir", str(folder), *size, *extra])


def test_command_writes_a_datalist_whose_files_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert _run(tmp_path, "--scans", "3") == 0
    datalist = json.loads((tmp_path / "datalist.json").read_text())
    assert {part: len(items) for part, items in datalist.items()} == {"training": 2, "validation": 1}
    items = [*datalist["training"], *datalist["validation"]]
    assert [Path(item["image"]).suffix for item in items] == ["", ".mhd", ".gz"]
    for item in items:
        assert len(item["box"]) == len(item["label"]) == len(item["nodules"])
        mask = nib.load(tmp_path / item["mask"])
        labels = np.asarray(mask.dataobj)
        assert read_by_itk(tmp_path / item["image"]).GetSize() == labels.shape
        for box, details in zip(item["box"], item["nodules"], strict=True):
            centre = apply_affine(mask.affine, ndimage.center_of_mass(labels == details["mask_label"]))
            np.testing.assert_allclose(swap_lps_ras(centre), box[:3], atol=1.3)
            assert box[3:] == [details["diameter_mm"]] * 3
    assert "MB" in caplog.text
    assert not list(tmp_path.rglob(".*"))


def test_second_call_gives_the_same_pixels(tmp_path: Path) -> None:
    for folder in ("a", "b", "b"):  # the last call replaces what is there
        assert _run(tmp_path / folder, "--scans", "1", "--format", "mhd", "--seed", "3") == 0
    first, second = (tmp_path / f / "images" / "phantom_0000.raw" for f in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--scans", "0"), "--scans: expected"),
        (("--format", "jpeg"), "--format: expected one of"),
        (("--validation_fraction", "1"), "--validation_fraction: expected"),
        (("--scale", "2"), "--scale: expected 0.35 to 1.2"),
        (("--seed", "-1"), "--seed: expected"),
        ((), "expected a folder that can be written to"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: tuple[str, ...], message: str
) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    assert _run(tmp_path / "taken", *extra) == 1
    assert message in caplog.text
