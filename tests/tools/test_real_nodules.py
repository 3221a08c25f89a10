"""Real nodules to validate with: readings of a whole scan laid on crops whose place in it is not known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.core.labels import IGNORED, NODULE
from scripts.core.nifti import write_nifti
from scripts.prepare.lidc.nodules import ReaderMasks
from scripts.prepare.lidc.readings import LidcError, Reading, Region, SeriesReadings, region_of_outlines
from tests.lidc_files import ring
from tools import development
from tools.development import chest_item
from tools.real_nodules import _context_item, _lungs_in_crops, cube_items, findings_on_crops, reader_dice, thick_item

AFFINE = np.array([[-0.7, 0, 0, 80.0], [0, -0.7, 0, 90.0], [0, 0, 2.5, -200.0], [0, 0, 0, 1.0]])
FIRST = (136, 152)  # column and row of voxel (0, 0) of the crops in the scan's slices
SHAPE = (40, 36, 12)
CENTRE = np.array([20, 15, 5])


def _reading(reader: int, centre: np.ndarray) -> Reading:
    regions: list[Region] = []
    for k in (-1, 0, 1):
        column, row = FIRST[0] + int(centre[0]), FIRST[1] + int(centre[1])
        outline = np.array(ring((column - 4, row - 4), (column + 4, row + 4)))  # just outside of the nodule
        regions.append(region_of_outlines("", -200.0 + 2.5 * (float(centre[2]) + k), [(outline, True)]))
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
    known = swap_lps_ras(apply_affine(AFFINE, CENTRE)) + np.array([error_mm, -error_mm, 0.0])
    found = findings_on_crops(_series(_reading(1, CENTRE), _reading(2, CENTRE)), _crops(), AFFINE, known[None])
    assert [f.readers for f in found] == [2]
    np.testing.assert_allclose(found[0].centre_lps_mm, swap_lps_ras(apply_affine(AFFINE, CENTRE)), atol=1e-6)


def test_readings_where_nothing_is_known_are_left_out() -> None:
    beyond = np.array([33, 15, 5])
    known = swap_lps_ras(apply_affine(AFFINE, CENTRE))[None]
    series = _series(_reading(1, CENTRE), _reading(2, CENTRE), _reading(1, beyond))
    assert len(findings_on_crops(series, _crops(), AFFINE, known)) == 1
    with pytest.raises(LidcError, match=r"1\.2\.3: expected outlines that fit lidc_context, got none"):
        findings_on_crops(
            _series(_reading(1, beyond)), _crops(), AFFINE, swap_lps_ras(apply_affine(AFFINE, beyond))[None]
        )


def test_each_reader_is_compared_with_the_consensus_of_the_others() -> None:
    corner, inside = np.zeros(3, dtype=int), np.zeros((3, 4, 4, 4), dtype=bool)
    inside[0, :2], inside[1, :2], inside[2, 1:3] = True, True, True
    # the first two differ from the union of the others in one of three layers, the third shares one layer with them
    assert reader_dice(ReaderMasks(corner, (1, 2, 3), inside)) == pytest.approx((0.8 + 0.8 + 0.5) / 3, abs=1e-4)
    assert reader_dice(ReaderMasks(corner, (1,), inside[:1])) is None


@pytest.mark.parametrize(("readers", "label"), [(1, IGNORED), (2, NODULE)])
def test_what_one_reader_alone_marked_is_ignored(readers: int, label: int, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(_crops(), AFFINE), tmp_path / "crops.nii.gz")
    image = nibabel.Nifti1Image.from_filename(tmp_path / "crops.nii.gz")
    series = _series(*(_reading(reader + 1, CENTRE) for reader in range(readers)))
    known = swap_lps_ras(apply_affine(AFFINE, CENTRE))[None]
    item = _context_item("LIDC-IDRI-0001", image, series, known, tmp_path)
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
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / folder / "one.nii.gz")
    readings = tmp_path / "findings_1.csv"
    rows = [
        ("one", -20, -20, 20, 6, "nodule"),  # inside the listed lesion
        ("one", -30, -30, 20, 5, "nodule"),
        ("one", -30, -10, 20, 5, "doubt"),
        ("one", -10, -30, 20, 5, "false, in the lungs"),
        ("two", -5, -30, 20, 5, "nodule"),
    ]
    with readings.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "verdict"])
        writer.writerows(rows)
    monkeypatch.setattr(development, "READINGS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("margin_mm", [0.0, 3.0])
def test_a_chest_lists_what_is_known_and_what_was_read(chest: Path, margin_mm: float) -> None:
    row = {"name": "one", "known_lesions_lps_mm_diameter_mm": "-20 -20 20 6 -90 -90 90 5"}
    item = json.loads(json.dumps(chest_item(row, chest, chest / "out", margin_mm)))
    assert item["label"] == [IGNORED, NODULE, NODULE, IGNORED]  # not listed, listed, read as nodule, doubt
    np.testing.assert_allclose(
        np.array(item["box"])[:, :3], [[-3, -3, 5], [-20, -20, 20], [-30, -30, 20], [-30, -10, 20]]
    )
    np.testing.assert_allclose(np.array(item["box"])[2:, 3:], [[5.0] * 3, [5.0 + margin_mm] * 3])
    mask = np.asarray(nibabel.Nifti1Image.from_filename(item["mask"]).dataobj)
    assert {value: int((mask == value).sum()) for value in (1, 2)} == {1: 18, 2: 75}


def test_cubes_keep_their_place_and_the_findings_inside(tmp_path: Path) -> None:
    affine = np.array([[-1.0, 0, 0, 60.0], [0, -1.0, 0, 20.0], [0, 0, 2.0, -100.0], [0, 0, 0, 1.0]])
    hu = np.random.default_rng(0).integers(-900, 100, (150, 60, 80), dtype=np.int16)
    write_nifti(tmp_path / "chest.nii.gz", hu, affine)
    centres_voxel = [[20, 30, 40], [60, 30, 40], [140, 30, 10]]
    boxes = [[*swap_lps_ras(apply_affine(affine, [c]))[0].tolist(), 8.0, 8.0, 8.0] for c in centres_voxel]
    chest = {"name": "one", "image": str(tmp_path / "chest.nii.gz"), "box": boxes, "label": [NODULE, IGNORED, NODULE]}

    first, second = cube_items(chest, tmp_path / "cubes")
    assert (first["name"], second["name"]) == ("one-0", "one-2")
    assert (first["box"], first["label"]) == (boxes[:2], [NODULE, IGNORED])
    assert (second["box"], second["label"]) == (boxes[2:], [NODULE])
    cube = nibabel.Nifti1Image.from_filename(first["image"])
    assert cube.shape == (71, 60, 51)  # cut by the chest's border on three sides
    np.testing.assert_array_equal(np.asarray(cube.dataobj), hu[:71, :, 15:66])
    np.testing.assert_allclose(apply_affine(cube.affine, [[20, 30, 25]]), apply_affine(affine, [[20, 30, 40]]))


def test_thick_slices_are_means_at_the_place_of_their_voxels(tmp_path: Path) -> None:
    """A ramp along the last axis stays the same function of the position; what does not fill a slice is dropped."""
    ramp = np.tile(np.arange(11, dtype=np.int16) * 10, (4, 4, 1))
    path = write_nifti(tmp_path / "a.nii.gz", ramp, AFFINE)
    item = thick_item({"name": "a", "image": str(path), "box": [[0.0] * 6], "label": [NODULE]}, tmp_path / "thick")
    thick = nibabel.Nifti1Image.from_filename(item["image"])
    assert thick.shape == (4, 4, 3)
    places = apply_affine(np.linalg.inv(AFFINE) @ thick.affine, np.array([[2, 2, k] for k in range(3)]))
    np.testing.assert_allclose(np.asarray(thick.dataobj)[2, 2], 10 * places[:, 2])
    assert (item["box"], item["label"]) == ([[0.0] * 6], [NODULE])
