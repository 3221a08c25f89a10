"""The synthetic chest: what it promises about nodules, tissues, determinism and files."""

from __future__ import annotations

import json
import logging
import os
from itertools import combinations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scipy import ndimage

from scripts.core.geometry import apply_affine, sphere_diameter_mm, swap_lps_ras, voxel_volume_mm3
from scripts.phantom.anatomy import draw_patient, make_frame, trunk
from scripts.phantom.chest import Chest, draw_scan_affine, make_chest, scan_chest
from scripts.phantom.files import write_dicom_series, write_image
from scripts.phantom.nodules import DIAMETER_RANGE_MM, draw_count, draw_diameter_mm
from scripts.phantom.surroundings import ARMS_DOWN_SHARE, surround
from scripts.prepare.__main__ import main
from scripts.read.reader import read_scan

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def chests() -> dict[int, Chest]:
    """Miniature chests with up to three nodules each."""
    return {seed: make_chest(seed, scale=0.4, nodules=3) for seed in SEEDS}


def _oblique_affine() -> np.ndarray:
    """Spacing 0.7 × 0.8 × 2 mm, axes flipped and turned by 20° about x and 10° about z."""
    a, b = np.deg2rad(20.0), np.deg2rad(10.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ np.diag([-0.7, -0.8, 2.0])
    affine[:3, 3] = (31.25, -12.5, -203.0)
    return affine


def _permuted_affine() -> np.ndarray:
    affine = np.array([[0, 0, -2.0, 40], [0.7, 0, 0, -60], [0, -0.8, 0, 11], [0, 0, 0, 1]], dtype=np.float64)
    return affine


@pytest.mark.parametrize("seed", SEEDS)
def test_nodules_lie_in_the_lungs(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[seed]
    assert 1 <= len(chest.nodules) <= 3
    assert set(np.unique(chest.mask)) == {0, *(n.label for n in chest.nodules)}
    assert np.all(chest.lungs[chest.mask > 0] > 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_of_each_nodule_agrees_with_its_mask(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[seed]
    for nodule in chest.nodules:
        own = chest.mask == nodule.label
        centre = apply_affine(np.linalg.inv(chest.affine_ras), nodule.centre_ras_mm)
        assert own[tuple(np.rint(centre).astype(int))]
        np.testing.assert_allclose(np.argwhere(own).mean(axis=0), centre, atol=0.25)
        # a voxel more or less on the surface: 1 mm voxels decide a small nodule's diameter to some percent
        tolerance = 0.03 + 0.25 / nodule.diameter_mm
        assert sphere_diameter_mm(own.sum()) == pytest.approx(nodule.diameter_mm, rel=tolerance)
        assert ndimage.label(own, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_nodules_keep_apart(chests: dict[int, Chest], seed: int) -> None:
    for a, b in combinations(chests[seed].nodules, 2):
        gap = np.linalg.norm(np.subtract(a.centre_ras_mm, b.centre_ras_mm)) - (a.diameter_mm + b.diameter_mm) / 2
        assert gap > 0
    sizes = [int((chests[seed].mask == n.label).sum()) for n in chests[seed].nodules]
    assert sum(sizes) == int((chests[seed].mask > 0).sum())
    assert min(sizes) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_both_lungs_are_closed_and_single(chests: dict[int, Chest], seed: int) -> None:
    lungs = chests[seed].lungs
    for side in (1, 2):
        assert ndimage.label(lungs == side)[1] == 1
    border = np.ones(lungs.shape, dtype=bool)
    border[2:-2, 2:-2, 2:-2] = False
    assert not lungs[border].any()
    x = apply_affine(chests[seed].affine_ras, np.argwhere(lungs == 1)).mean(axis=0)[0]
    assert x > apply_affine(chests[seed].affine_ras, np.argwhere(lungs == 2)).mean(axis=0)[0]  # right is +x in RAS


@pytest.mark.parametrize("seed", SEEDS)
def test_tissues_have_their_hu(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[seed]
    image = chest.image_hu
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert -1024 <= image.min() <= -1000
    assert image.max() <= 3071
    deep = ndimage.binary_erosion(chest.lungs > 0, iterations=3) & (chest.mask == 0)
    assert -910 < np.median(image[deep]) < -840
    assert np.mean(image[deep] > -500) > 0.01  # vessels
    wall = (image > -200) & (chest.lungs == 0)
    assert np.mean((image[wall] > -130) & (image[wall] < -80)) > 0.05  # fat
    assert np.mean((image[wall] > 20) & (image[wall] < 90)) > 0.1  # muscle, liver
    assert np.mean(image[wall] > 300) > 0.01  # bone
    assert np.mean((image > 500) & (image < 1600)) > 0.001  # compact bone


# Seed, nodules (RAS mm and diameter), and HU along a line through the chest (every seventh voxel of ``[start:, j, k]``
# in the trunk's box) as the first version that drew chests made them.
_AS_EVER = {
    0: (
        [(29.061, -6.338, -176.743, 8.342), (23.537, 11.718, -177.985, 7.079), (41.572, -4.293, -206.275, 10.168)],
        (
            23,
            116,
            63,
            72,
            [
                47.49,
                -858.32,
                -893.39,
                -902.36,
                -897.93,
                -899.85,
                -909.63,
                184.6,
                184.6,
                -595.86,
                -901.27,
                -900.67,
                -920.15,
                63.73,
            ],
        ),
    ),
    1: (
        [(21.012, -21.076, 33.515, 4.138), (46.692, 3.886, -5.223, 5.673), (-27.736, -16.356, 44.773, 4.810)],
        (
            15,
            116,
            56,
            60,
            [
                56.16,
                -934.18,
                -874.5,
                -854.28,
                -892.43,
                -177.76,
                -836.23,
                -97.6,
                -787.48,
                -985.0,
                -818.94,
                -908.59,
                -908.96,
                -881.62,
                -660.53,
            ],
        ),
    ),
}


@pytest.mark.parametrize("seed", _AS_EVER)
def test_chest_and_nodules_of_a_seed_stay_as_they_are(chests: dict[int, Chest], seed: int) -> None:
    nodules, (start, stop, j, k, hu) = _AS_EVER[seed]
    found = [(*n.centre_ras_mm, n.diameter_mm) for n in chests[seed].nodules]
    np.testing.assert_allclose(found, nodules, atol=0.002)
    trunk = chests[seed].image_hu[chests[seed].trunk_box]
    np.testing.assert_allclose(trunk[start:stop:7, j, k], hu, atol=0.05)


@pytest.mark.parametrize("posture", ["up", "down"])
def test_nothing_below_the_skin_of_the_trunk_changes(posture: str) -> None:
    patient = draw_patient(np.random.default_rng(0), 0.4)
    frame = make_frame(patient, np.random.default_rng(1))
    image = np.random.default_rng(2).uniform(-1000, 1000, frame.shape).astype(np.float32)
    seed = next(s for s in range(99) if (np.random.default_rng(s).random() < ARMS_DOWN_SHARE) == (posture == "down"))
    wide, box = surround(image, frame, patient, np.random.default_rng(seed))
    deep = trunk(frame, frame.model_coordinates(), patient) * np.mean(frame.stretch) < -3.5
    assert deep.mean() > 0.4
    np.testing.assert_array_equal(wide[box][deep], image[deep])
    assert np.all(np.array(wide.shape) >= frame.shape)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_body_lies_on_a_couch_in_room_air(chests: dict[int, Chest], seed: int) -> None:
    image = chests[seed].image_hu
    in_front = image[:, -3:]
    assert np.median(in_front) == -1000
    assert np.mean(in_front > -500) < 0.02
    plane = image[:, :, image.shape[2] // 2]
    pieces, _count = ndimage.label(plane > -300)
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    back = np.array([np.flatnonzero(row)[0] if row.any() else plane.shape[1] for row in body])
    middle = slice(plane.shape[0] // 4, -plane.shape[0] // 4)
    for row, first in zip(plane[middle], back[middle], strict=True):
        assert row[:first].max() > 0  # the shell, behind the skin
        assert np.any((row[:first] > -970) & (row[:first] < -940))  # the mattress


@pytest.mark.parametrize("seed", SEEDS)
def test_metal_of_the_electrodes_lies_on_the_skin(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[seed]
    metal = chest.image_hu > 2000
    assert metal.any()
    pieces, _count = ndimage.label(ndimage.binary_opening((chest.image_hu > -300) & ~metal, iterations=2))
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    body = ndimage.binary_fill_holes(body | (chest.lungs > 0))
    assert not np.any(metal & ndimage.binary_erosion(body, iterations=3))
    assert ndimage.distance_transform_edt(~body)[metal].min() < 4


@pytest.mark.parametrize("seed", SEEDS)
def test_gas_in_the_stomach_lies_over_its_contents_below_the_left_lung(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[seed]
    left = ndimage.binary_dilation(chest.lungs == 2, iterations=2)
    top = np.where(left.any(axis=2), left.argmax(axis=2), 0)  # of the diaphragm, the first lung voxel from below
    below = np.arange(left.shape[2]) < top[:, :, None]
    gas, _count = ndimage.label(below & (chest.image_hu < -900))
    volumes_ml = np.bincount(gas.ravel())[1:] / 1000 / 0.4**3
    assert volumes_ml.max() > 8
    i, j, k = np.rint(ndimage.center_of_mass(gas == 1 + volumes_ml.argmax())).astype(int)
    behind = chest.image_hu[i, j - 12 : j, k]  # the patient lies on the back
    assert np.any((behind > -20) & (behind < 90))


def test_arms_lie_beside_the_body_or_over_the_head(chests: dict[int, Chest]) -> None:
    def bones_aside(chest: Chest, k: int) -> int:
        plane = chest.image_hu[:, :, k]
        width = plane.shape[0]
        return sum(bool((part > 500).any()) for part in (plane[: width // 10], plane[-(width // 10) :]))

    low, high = 3, -12
    assert bones_aside(chests[1], low) == 2
    assert bones_aside(chests[0], low) == 0
    assert bones_aside(chests[0], high) == 2


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_a_scan_shows_what_surrounds_the_body_and_nothing_else(chests: dict[int, Chest], seed: int) -> None:
    chest = chests[1]
    affine_ras, shape, grown = draw_scan_affine(np.random.default_rng(seed), chest, "axial")
    corners = np.array(list(product(*[(0, n - 1) for n in shape])))
    found = apply_affine(np.linalg.inv(chest.affine_ras) @ affine_ras, corners)
    low, high = found.min(axis=0), found.max(axis=0)
    spacing = np.linalg.norm(affine_ras[:3, :3], axis=0)
    oblique = 0.12 * max(shape * spacing) * (np.count_nonzero(np.abs(affine_ras[:3, :3]) > 1e-9) > 3)
    assert np.all(np.abs(low) < 2 * spacing + oblique)
    assert np.all(np.abs(high - np.array(chest.image_hu.shape) + 1) < 2 * spacing + oblique)
    assert grown[2] == (0, 0)
    assert min(grown[0] + grown[1]) > 0


def test_nodule_kinds_differ_in_hu() -> None:
    by_kind: dict[str, list[float]] = {}
    for seed in range(6):
        chest = make_chest(seed + 20, scale=0.4, nodules=4)
        for nodule in chest.nodules:
            core = ndimage.binary_erosion(chest.mask == nodule.label)
            if core.sum() >= 5:
                by_kind.setdefault(nodule.kind, []).append(float(np.median(chest.image_hu[core])))
    assert by_kind["solid"]
    assert by_kind["ground-glass"]
    assert min(by_kind["solid"]) > -150
    assert max(by_kind["ground-glass"]) < -300


def test_same_seed_same_chest_and_another_seed_another(chests: dict[int, Chest]) -> None:
    again = make_chest(0, scale=0.4, nodules=3)
    np.testing.assert_array_equal(again.image_hu, chests[0].image_hu)
    assert again.nodules == chests[0].nodules
    first, second = scan_chest(again, 5), scan_chest(chests[0], 5)
    np.testing.assert_array_equal(first.image_hu, second.image_hu)
    assert chests[1].nodules != chests[0].nodules


def test_no_nodules_is_a_chest_too() -> None:
    chest = make_chest(4, scale=0.4, nodules=0)
    assert chest.nodules == ()
    assert not chest.mask.any()
    assert not scan_chest(chest, 0).mask.any()


def test_distributions_match_their_source() -> None:
    rng = np.random.default_rng(0)
    diameters = np.array([draw_diameter_mm(rng) for _ in range(4000)])
    assert diameters.min() >= DIAMETER_RANGE_MM[0]
    assert diameters.max() <= DIAMETER_RANGE_MM[1]
    np.testing.assert_allclose(np.percentile(diameters, (25, 50, 75)), (5.11, 6.43, 9.70), rtol=0.06)
    counts = np.array([draw_count(rng) for _ in range(2000)])
    assert set(counts) == set(range(9))
    assert 0.15 < np.mean(counts == 0) < 0.3


@pytest.mark.parametrize("style", ["axial", "any"])
@pytest.mark.parametrize("seed", [0, 3, 8])
def test_scan_shows_each_nodule_where_the_truth_says(chests: dict[int, Chest], style: str, seed: int) -> None:
    chest = chests[1]
    scan = scan_chest(chest, seed, style=style)
    assert scan.image_hu.dtype == np.int16
    volume = voxel_volume_mm3(scan.affine_ras)
    voxel_mm = float(np.cbrt(volume))
    for nodule in chest.nodules:
        own = np.argwhere(scan.mask == nodule.label)
        centre = apply_affine(scan.affine_ras, own.mean(axis=0))
        np.testing.assert_allclose(centre, nodule.centre_ras_mm, atol=0.6 * voxel_mm)
        assert sphere_diameter_mm(len(own) * volume) == pytest.approx(nodule.diameter_mm, rel=0.2)
        inner = scan.image_hu[scan.mask == nodule.label]
        assert np.median(inner) > -760  # brighter than lung


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mhd", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("affine", [_oblique_affine(), _permuted_affine()], ids=["oblique", "permuted"])
def test_written_voxel_keeps_its_world_position(tmp_path: Path, name: str, affine: np.ndarray) -> None:
    array = np.full((7, 8, 9), -1000, dtype=np.int16)
    array[5, 2, 6] = 321
    path = write_image(tmp_path / "sub" / name, array, affine)
    expected = apply_affine(affine, (5, 2, 6))
    image = sitk.ReadImage(str(path))
    found = np.argwhere(sitk.GetArrayFromImage(image) == 321)[0][::-1]
    np.testing.assert_allclose(swap_lps_ras(image.TransformIndexToPhysicalPoint(found.tolist())), expected, atol=1e-3)
    if name.endswith(".nii.gz"):
        loaded = nib.load(path)
        marked = np.argwhere(np.asarray(loaded.dataobj) == 321)[0]
        np.testing.assert_allclose(apply_affine(loaded.affine, marked), expected, atol=1e-3)
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("name", "moves", "is_there"),
    [("series", 0, True), ("a.nii.gz", 0, True), ("a.mhd", 0, False), ("a.mhd", 1, False)],
)
def test_a_scan_that_is_replaced_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moves: int, is_there: bool
) -> None:
    """Stopped before the first or between two moves: the former scan, the new one, or none."""

    def write(value: int) -> None:
        array = np.full((7, 8, 9), value, dtype=np.int16)
        array[0] = -900  # air: what has one value alone is no scan
        if "." in name:
            write_image(tmp_path / name, array, np.eye(4))
        else:
            write_dicom_series(tmp_path / name, array, np.eye(4), uid_seed=1)

    write(10)
    left, move = [moves], os.replace

    def stop(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        move(source, target)

    monkeypatch.setattr("os.replace", stop)
    monkeypatch.setattr("os.rename", stop)
    with pytest.raises(KeyboardInterrupt):
        write(20)
    assert (tmp_path / name).exists() == is_there
    if is_there:
        assert np.count_nonzero(read_scan(tmp_path / name).image_hu == 10) == 6 * 8 * 9
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("affine", [_oblique_affine(), _permuted_affine()], ids=["oblique", "permuted"])
def test_dicom_series_keeps_values_and_positions(tmp_path: Path, affine: np.ndarray, compress: bool) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1024, 2000, (7, 8, 5)).astype(np.int16)
    array[5, 2, 3] = 3000
    folder = write_dicom_series(tmp_path / "ct", array, affine, uid_seed=7, compress=compress)
    files = sorted(folder.iterdir())
    assert [f.name for f in files] == [f"{n:04d}.dcm" for n in range(1, 6)]
    slices = [pydicom.dcmread(f) for f in files]
    assert len({s.SOPInstanceUID for s in slices}) == 5
    assert len({s.SeriesInstanceUID for s in slices}) == 1
    for k, ds in enumerate(slices):
        hu = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
        np.testing.assert_array_equal(hu, array[:, :, k].T)
    position = np.array(slices[3].ImagePositionPatient, dtype=float)
    row, column = np.array(slices[3].ImageOrientationPatient, dtype=float).reshape(2, 3)
    down, right = (float(v) for v in slices[3].PixelSpacing)
    marked = position + 5 * right * row + 2 * down * column
    np.testing.assert_allclose(swap_lps_ras(marked), apply_affine(affine, (5, 2, 3)), atol=1e-6)


def test_dicom_series_reads_back_in_itk(tmp_path: Path) -> None:
    affine = np.array([[-0.7, 0, 0, 50], [0, -0.8, 0, 60], [0, 0, 1.25, -300], [0, 0, 0, 1]])
    array = np.full((6, 7, 5), -900, dtype=np.int16)
    array[1, 4, 3] = 77
    folder = write_dicom_series(tmp_path / "ct", array, affine)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    i, j, k = np.argwhere(sitk.GetArrayFromImage(image) == 77)[0][::-1].tolist()
    found = swap_lps_ras(image.TransformIndexToPhysicalPoint((i, j, k)))
    np.testing.assert_allclose(found, apply_affine(affine, (1, 4, 3)), atol=1e-4)


def test_sheared_axes_are_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.3
    array = np.zeros((3, 3, 3), dtype=np.int16)
    with pytest.raises(ValueError, match="perpendicular"):
        write_dicom_series(tmp_path / "ct", array, affine)
    with pytest.raises(ValueError, match="perpendicular"):
        write_image(tmp_path / "a.mha", array, affine)
    with pytest.raises(ValueError, match="ends in one of"):
        write_image(tmp_path / "a.png", array, np.eye(4))
    assert not list(tmp_path.iterdir())


def _run(folder: Path, *extra: str) -> int:
    scans = [] if "--scans" in extra else ["--scans", "3"]
    return main(["phantom", "--output_dir", str(folder), "--scale", "0.4", *scans, *extra])


def test_command_writes_a_datalist_whose_files_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert _run(tmp_path) == 0
    datalist = json.loads((tmp_path / "datalist.json").read_text())
    assert [len(datalist[part]) for part in ("training", "validation")] == [2, 1]
    items = [*datalist["training"], *datalist["validation"]]
    assert [Path(item["image"]).suffix for item in items] == ["", ".mhd", ".gz"]
    for item in items:
        assert len(item["box"]) == len(item["label"]) == len(item["nodules"])
        mask = nib.load(tmp_path / item["mask"])
        labels = np.asarray(mask.dataobj)
        image = tmp_path / item["image"]
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(image)) if image.is_dir() else [str(image)]
        assert sitk.ReadImage(names if len(names) > 1 else names[0]).GetSize() == labels.shape
        for box, details in zip(item["box"], item["nodules"], strict=True):
            own = np.argwhere(labels == details["mask_label"])
            centre = swap_lps_ras(apply_affine(mask.affine, own.mean(axis=0)))
            np.testing.assert_allclose(centre, box[:3], atol=1.3)
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
        (("--validation_fraction", "1"), "--validation_fraction"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, extra: tuple[str, ...], message: str
) -> None:
    assert _run(tmp_path / "out", *extra) == 1
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_unwritable_output_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file, no folder")
    assert _run(tmp_path / "taken") == 1
    assert "expected a folder that can be written to" in caplog.text


def test_unknown_command_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["phantoms"]) == 2
    assert "phantom" in caplog.text


@pytest.mark.parametrize("arguments", [{"nodules": 9}, {"nodules": -1}, {"scale": 0.1}])
def test_make_chest_refuses_what_it_cannot_make(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        make_chest(0, **arguments)
