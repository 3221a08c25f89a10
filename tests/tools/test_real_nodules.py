"""Real nodules to validate with: readings of a whole scan laid on crops whose place in it is not known."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.core.files import write_csv
from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.core.labels import IGNORED, NODULE
from scripts.core.nifti import write_nifti
from scripts.prepare.lidc.nodules import ReaderMasks
from scripts.prepare.lidc.readings import LidcError, Reading, SeriesReadings, region_of_outlines
from tests.lidc_files import ring
from tools import development
from tools.development import chest_item
from tools.real_nodules import _context_item, _lungs_in_crops, cube_items, findings_on_crops, reader_dice, thick_item

AFFINE = np.array([[-0.7, 0, 0, 80.0], [0, -0.7, 0, 90.0], [0, 0, 2.5, -200.0], [0, 0, 0, 1.0]])
FIRST = (136, 152)  # column and row of voxel (0, 0) of the crops in the scan's slices
SHAPE = (40, 36, 12)
CENTRE, BEYOND = np.array([20, 15, 5]), np.array([33, 15, 5])
CENTRE_LPS_MM, BEYOND_LPS_MM = (swap_lps_ras(apply_affine(AFFINE, voxel)) for voxel in (CENTRE, BEYOND))


def _reading(reader: int, centre: np.ndarray) -> Reading:
    column, row = np.add(FIRST, centre[:2]).tolist()
    outline = np.array(ring((column - 4, row - 4), (column + 4, row + 4)))  # just outside of the nodule
    heights_mm = [-200.0 + 2.5 * (float(centre[2]) + k) for k in (-1, 0, 1)]
    regions = [region_of_outlines("", z_mm, [(outline, True)]) for z_mm in heights_mm]
    return Reading(reader, "n", tuple(regions), {"texture": 5})


def _series(*readings: Reading) -> SeriesReadings:
    return SeriesReadings("1.2.3", tuple(readings))


def _crops() -> np.ndarray:
    """Lung with one nodule; the last columns are not known."""
    hu = np.full(SHAPE, -850.0, dtype=np.float32)
    hu[17:24, 12:19, 4:7] = 20.0
    hu[34:] = -2048.0
    return hu


@pytest.mark.parametrize("error_mm", [0.0, 0.6])
def test_readings_come_to_lie_on_the_nodule(error_mm: float) -> None:
    """Also when the centre that is known for it is a pixel off."""
    known = CENTRE_LPS_MM + np.array([error_mm, -error_mm, 0.0])
    (found,) = findings_on_crops(_series(_reading(1, CENTRE), _reading(2, CENTRE)), _crops(), AFFINE, known[None])
    assert found.readers == 2
    np.testing.assert_allclose(found.centre_lps_mm, CENTRE_LPS_MM, atol=1e-6)


def test_readings_where_nothing_is_known_are_left_out() -> None:
    series = _series(_reading(1, CENTRE), _reading(2, CENTRE), _reading(1, BEYOND))
    assert len(findings_on_crops(series, _crops(), AFFINE, CENTRE_LPS_MM[None])) == 1
    with pytest.raises(LidcError, match=r"1\.2\.3: expected outlines that fit lidc_context, got none"):
        findings_on_crops(_series(_reading(1, BEYOND)), _crops(), AFFINE, BEYOND_LPS_MM[None])


def test_each_reader_is_compared_with_the_consensus_of_the_others() -> None:
    corner, inside = np.zeros(3, dtype=int), np.zeros((3, 4, 4, 4), dtype=bool)
    inside[0, :2], inside[1, :2], inside[2, 1:3] = True, True, True
    # the first two differ from the union of the others in one of three layers, the third shares one layer with them
    assert reader_dice(ReaderMasks(corner, (1, 2, 3), inside)) == pytest.approx((0.8 + 0.8 + 0.5) / 3, abs=1e-4)
    assert reader_dice(ReaderMasks(corner, (1,), inside[:1])) is None


@pytest.mark.parametrize(("readers", "label"), [(1, IGNORED), (2, NODULE)])
def test_what_one_reader_alone_marked_is_ignored(readers: int, label: int, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image.from_filename(write_nifti(tmp_path / "crops.nii.gz", _crops(), AFFINE))
    series = _series(*(_reading(reader + 1, CENTRE) for reader in range(readers)))
    item = _context_item("LIDC-IDRI-0001", image, series, CENTRE_LPS_MM[None], tmp_path)
    assert (item["label"], item["readers"], item["texture"]) == ([label], [readers], [5.0])


def test_a_nodule_belongs_to_the_lung_and_the_unknown_does_not() -> None:
    lung = _lungs_in_crops(_crops(), AFFINE)
    assert lung[tuple(CENTRE)]
    assert not lung[34:].any()


@pytest.fixture
def chest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chest with two masked lesions, of which one is listed, and three findings that were read."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    mask = np.zeros((40, 40, 20), dtype=np.uint8)
    mask[18:23, 18:23, 9:12] = 2
    mask[2:5, 2:5, 2:4] = 1
    for folder, volume in (("chests", np.full(mask.shape, -850, np.int16)), ("chests/lesion_masks", mask)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_nifti(tmp_path / folder / "one.nii.gz", volume, affine)
    columns = ("name", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "verdict")
    rows = [
        ("one", -20, -20, 20, 6, "nodule"),  # inside the listed lesion
        ("one", -30, -30, 20, 5, "nodule"),
        ("one", -30, -10, 20, 5, "doubt"),
        ("one", -10, -30, 20, 5, "false, in the lungs"),
        ("two", -5, -30, 20, 5, "nodule"),
    ]
    write_csv(tmp_path / "read_findings.csv", [columns, *rows])
    monkeypatch.setattr(development, "READINGS", tmp_path / "read_findings.csv")
    return tmp_path


@pytest.mark.parametrize("margin_mm", [0.0, 3.0])
def test_a_chest_lists_what_is_known_and_what_was_read(chest: Path, margin_mm: float) -> None:
    row = {"name": "one", "known_lesions_lps_mm_diameter_mm": "-20 -20 20 6 -90 -90 90 5"}
    item = json.loads(json.dumps(chest_item(row, chest, chest / "out", margin_mm)))
    assert item["label"] == [IGNORED, NODULE, NODULE, IGNORED]  # not listed, listed, read as nodule, doubt
    centres, sizes = np.hsplit(np.array(item["box"]), 2)
    np.testing.assert_allclose(centres, [[-3, -3, 5], [-20, -20, 20], [-30, -30, 20], [-30, -10, 20]])
    np.testing.assert_allclose(sizes[2:], [[5.0] * 3, [5.0 + margin_mm] * 3])
    mask = np.asarray(nibabel.Nifti1Image.from_filename(item["mask"]).dataobj)
    assert np.bincount(mask.ravel())[1:].tolist() == [18, 75]


def test_cubes_keep_their_place_and_the_findings_inside(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 60.0], [0, -1.0, 0, 20.0], [0, 0, 2.0, -100.0], [0, 0, 0, 1.0]])
    hu = np.random.default_rng(0).integers(-900, 100, (150, 60, 80), dtype=np.int16)
    write_nifti(tmp_path / "chest.nii.gz", hu, affine)
    centres_voxel = [[20, 30, 40], [60, 30, 40], [140, 30, 10]]
    boxes = [[*swap_lps_ras(apply_affine(affine, [c]))[0].tolist(), 8.0, 8.0, 8.0] for c in centres_voxel]
    chest = {"name": "one", "image": str(tmp_path / "chest.nii.gz"), "box": boxes, "label": [NODULE, IGNORED, NODULE]}

    first, second = cube_items(chest, tmp_path / "cubes")
    assert (first["name"], first["box"], first["label"]) == ("one-0", boxes[:2], [NODULE, IGNORED])
    assert (second["name"], second["box"], second["label"]) == ("one-2", boxes[2:], [NODULE])
    cube = nibabel.Nifti1Image.from_filename(first["image"])
    assert cube.shape == (71, 60, 51)  # cut by the chest's border on three sides
    np.testing.assert_array_equal(np.asarray(cube.dataobj), hu[:71, :, 15:66])
    np.testing.assert_allclose(apply_affine(cube.affine, [[20, 30, 25]]), apply_affine(affine, [[20, 30, 40]]))


def test_thick_slices_are_means_at_the_place_of_their_voxels(tmp_path: Path) -> None:
    """A ramp along the last axis stays the same function of the position; what does not fill a slice is dropped."""
    ramp = np.tile(np.arange(11, dtype=np.int16) * 10, (4, 4, 1))
    path = write_nifti(tmp_path / "a.nii.gz", ramp, AFFINE)
    scan = {"name": "a", "image": str(path), "box": [[0.0] * 6], "label": [NODULE]}
    item = thick_item(scan, 8.0, tmp_path / "thick")  # three slices of 2.5 mm
    thick = nibabel.Nifti1Image.from_filename(item["image"])
    assert (thick.shape, item["box"], item["label"]) == ((4, 4, 3), [[0.0] * 6], [NODULE])
    places = apply_affine(np.linalg.inv(AFFINE) @ thick.affine, np.array([[2, 2, k] for k in range(3)]))
    np.testing.assert_allclose(np.asarray(thick.dataobj)[2, 2], 10 * places[:, 2])
    as_it_is = thick_item(scan, 3.0, tmp_path / "thin")
    np.testing.assert_array_equal(nibabel.Nifti1Image.from_filename(as_it_is["image"]).dataobj, ramp)
