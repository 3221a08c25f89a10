"""LIDC-IDRI: outlines and their rules, nodules, masks on the scan, bad downloads, interrupted runs, real data."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.commands import OptionError
from scripts.core.geometry import sphere_diameter_mm
from scripts.core.labels import IGNORED, NODULE
from scripts.prepare.datalists import PrepareError
from scripts.prepare.lidc import outputs
from scripts.prepare.lidc.command import lidc, lidc_xml
from scripts.prepare.lidc.masks import ReaderMasks
from scripts.prepare.lidc.nodules import MARK_MM, group_readings
from scripts.prepare.lidc.outputs import fold_of
from scripts.prepare.lidc.picture import lidc_picture
from scripts.prepare.lidc.readings import (
    NON_NODULE,
    RATINGS,
    SMALL_NODULE,
    LidcError,
    SeriesReadings,
    parse_xml,
    region_of_outlines,
)
from scripts.prepare.lidc.segmentation_objects import read_ratings, region_of_pixels
from scripts.read.datalist import load_datalist
from tests.lidc_files import (
    GOOD_RATINGS,
    SERIES_UID,
    SHAPE,
    Outlines,
    Ring,
    Session,
    outlined,
    ring,
    sop_uid,
    write_ct,
    write_objects,
    write_xml,
    xml_text,
)

DATA = Path(os.environ.get("LUNG_NODULE_DATA") or Path(__file__).resolve().parents[2] / "../shared/data")
OTHER_UID = SERIES_UID + "99"
BOX = ((6, 5, 2), (9, 7, 3))  # voxels of a nodule, first and last: 4 × 3 × 2


def real(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"real data not found at {DATA / path}; set LUNG_NODULE_DATA")
    return DATA / path


def parsed(sessions: list[Session], **options: Any) -> SeriesReadings:
    readings = parse_xml(xml_text(sessions, **options).encode(), "a.xml")
    assert readings is not None
    return readings


def inside(*outlines: tuple[Ring, bool]) -> set[tuple[int, int]]:
    """Pixels (column, row) that the outlines of one slice enclose."""
    region = region_of_outlines("1", 0.0, [(np.array(points), flag) for points, flag in outlines])
    return {(int(i), int(j)) for i, j in np.argwhere(region.inside) + region.corner}


def rectangle(first: tuple[int, int], last: tuple[int, int]) -> set[tuple[int, int]]:
    return {(i, j) for i in range(first[0], last[0] + 1) for j in range(first[1], last[1] + 1)}


def box_mask(first: tuple[int, int, int], last: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return mask


# --- outlines ---------------------------------------------------------------------------------------------------------


def test_the_pixels_of_an_outline_are_not_inside() -> None:
    assert inside((ring((2, 3), (6, 8)), True)) == rectangle((3, 4), (5, 7))
    assert inside(([(5, 4), (6, 5), (5, 6), (4, 5)], True)) == {(5, 5)}


def test_an_exclusion_takes_its_own_pixels_along() -> None:
    outer, hole = ring((0, 0), (8, 8)), ring((2, 2), (5, 6))
    assert inside((hole, False), (outer, True)) == rectangle((1, 1), (7, 7)) - rectangle((2, 2), (5, 6))


def test_outlines_of_one_slice_are_joined() -> None:
    both = inside((ring((0, 0), (4, 4)), True), (ring((3, 3), (8, 8)), True))
    assert both == rectangle((1, 1), (3, 3)) | rectangle((4, 4), (7, 7))


@pytest.mark.parametrize("points", [[(3, 3), (4, 3)], [(3, 3), (4, 4), (5, 5), (4, 4)], [(3, 3), (4, 3), (4, 4)]])
def test_a_thin_outline_encloses_nothing(points: Ring) -> None:
    assert inside((points, True)) == set()


def test_the_hollow_of_a_bent_nodule_stays_outside() -> None:
    # A "C" whose ends nearly meet: the outlines of its two arms run through the same pixels of column 7 and 8.
    letter = [*ring((0, 0), (10, 12))]
    assert (5, 6) in inside((letter, True))
    bent = [(i, 0) for i in range(11)] + [(10, j) for j in range(1, 7)]  # top, right side down to the arms' gap
    bent += [(9, 6), (8, 6), (7, 5), (6, 4), (5, 4), (4, 5), (4, 6), (4, 7), (5, 8), (6, 8), (7, 7), (8, 6), (9, 6)]
    bent += [(10, j) for j in range(6, 13)] + [(i, 12) for i in range(9, -1, -1)] + [(0, j) for j in range(11, 0, -1)]
    found = inside((bent, True))
    assert (5, 6) not in found
    assert {(2, 6), (5, 2), (5, 10)} <= found


@given(st.integers(0, 30), st.booleans(), st.tuples(st.integers(-5, 20), st.integers(-5, 20)))
def test_where_a_walk_begins_and_its_direction_do_not_matter(
    start: int, is_reversed: bool, shift: tuple[int, int]
) -> None:
    points = np.array(ring((0, 0), (6, 4)) + ring((0, 0), (3, 9)))
    walk = np.roll(points[::-1] if is_reversed else points, start, axis=0) + shift
    expected = {(i + shift[0], j + shift[1]) for i, j in inside((points.tolist(), True))}
    assert inside((walk.tolist(), True)) == expected


@given(st.integers(1, 6), st.integers(1, 6))
def test_pixels_give_the_outline_they_came_from(columns: int, rows: int) -> None:
    mask = np.zeros((12, 12), dtype=bool)
    mask[3 : 3 + columns, 2 : 2 + rows] = True
    region = region_of_pixels("1", 0.0, mask)
    assert {(i, j) for i, j in np.argwhere(region.inside) + region.corner} == {(i, j) for i, j in np.argwhere(mask)}
    around = set(ring((2, 1), (3 + columns, 2 + rows)))
    corners = {(2, 1), (2, 2 + rows), (3 + columns, 1), (3 + columns, 2 + rows)}
    assert set(map(tuple, region.border.tolist())) == around - corners


# --- XML --------------------------------------------------------------------------------------------------------------


def test_an_xml_gives_readings_and_marks_of_each_reader() -> None:
    small = Outlines([(4, [(7, 8)], True)], ratings=None)
    found = parsed([Session([Outlines(outlined(*BOX)), small]), Session(others=[(3, 2, 1)])])
    assert found.series_uid == SERIES_UID
    (reading,) = found.readings
    assert (reading.reader, reading.name, reading.ratings) == (1, "Nodule 001", GOOD_RATINGS)
    assert [(region.sop_uid, region.z_mm) for region in reading.regions] == [
        (sop_uid(SERIES_UID, 2), -36.0),
        (sop_uid(SERIES_UID, 3), -34.0),
    ]
    assert [(m.reader, m.kind, m.pixel, m.z_mm) for m in found.marks] == [
        (1, SMALL_NODULE, (7, 8), -32.0),
        (2, NON_NODULE, (3, 2), -38.0),
    ]


def test_ratings_of_zero_are_none_and_an_outline_without_ratings_is_a_nodule() -> None:
    zeros = Outlines([(4, [(7, 8)], True)], ratings=dict.fromkeys(RATINGS, 0))
    found = parsed([Session([Outlines(outlined(*BOX), ratings=None), zeros])])
    assert [reading.ratings for reading in found.readings] == [{}]
    assert [mark.kind for mark in found.marks] == [SMALL_NODULE]


def test_the_reading_of_a_radiograph_is_none_of_a_ct() -> None:
    assert parse_xml(b'<IdriReadMessage xmlns="http://www.nih.gov/idri"/>', "a.xml") is None


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><LidcReadMessage>&b;</LidcReadMessage>'
)
GOOD = xml_text([Session([Outlines(outlined(*BOX))])])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "document type"),
        (GOOD[:300], "damaged"),
        ("", "damaged"),
        ("\0\1", "damaged"),
        ("<html/>", "LidcReadMessage, got <html>"),
        (GOOD.replace("ResponseHeader", "Header"), "without ResponseHeader"),
        (GOOD.replace("SeriesInstanceUid", "Series"), "no SeriesInstanceUid"),
        (GOOD.replace("readingSession", "session"), "without readingSession"),
        (GOOD.replace("<xCoord>5</xCoord>", "<xCoord>five</xCoord>"), "five"),
        (GOOD.replace("<xCoord>5</xCoord>", ""), "invalid literal"),
        (GOOD.replace("TRUE", "MAYBE"), "MAYBE"),
        (GOOD.replace("imageSOP_UID", "uid"), "no imageSOP_UID"),
        (GOOD.replace("<roi>", "<no>").replace("</roi>", "</no>"), "without roi"),
    ],
)
def test_a_damaged_xml_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(LidcError, match=message) as caught:
        parse_xml(text.encode(), "158.xml")
    assert "158.xml" in str(caught.value)


# --- nodules ----------------------------------------------------------------------------------------------------------


def points_at(*x_mm: float) -> np.ndarray:
    return np.array([[x, 0.0, 0.0] for x in x_mm])


def test_readings_within_the_slice_spacing_are_one_nodule() -> None:
    assert group_readings([points_at(0, 1), points_at(3), points_at(5.1), points_at(9)], 2.0) == [[0, 1], [2], [3]]
    assert group_readings([points_at(0), points_at(2)], 2.0) == [[0, 1]]
    assert group_readings([], 2.0) == []


def test_a_group_of_more_than_four_is_taken_apart() -> None:
    # Four readings at 0 … 0.3 and two at 2.1 and 2.2: 1.8 apart, within 2.0 and 0.9 × 2.0, but not within 0.81 × 2.0.
    six = [points_at(x) for x in (0.0, 0.1, 0.2, 0.3, 2.1, 2.2)]
    assert group_readings(six, 2.0) == [[0, 1, 2, 3], [4, 5]]
    assert group_readings(six[2:], 2.0) == [[0, 1, 2, 3]]  # four readings: no reason to look closer
    far = [points_at(50), points_at(51.9)]
    assert group_readings(six + far, 2.0) == [[0, 1, 2, 3], [4, 5], [6, 7]]  # other groups keep their distance


def test_outlines_that_touch_stay_together() -> None:
    assert group_readings([points_at(0)] * 5, 2.0) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("readers", "expected"), [(1, [1, 1, 1, 1]), (2, [1, 1, 1, 0]), (3, [1, 1, 0, 0]), (4, [1, 1, 1, 0])]
)
def test_the_consensus_is_what_at_least_half_of_the_readers_marked(readers: int, expected: list[int]) -> None:
    rows = {1: ["1111"], 2: ["1100", "1010"], 3: ["1110", "1100", "0001"], 4: ["1100", "1100", "1010", "0010"]}[readers]
    masks = np.array([[int(v) for v in row] for row in rows], dtype=bool).reshape(readers, 4, 1, 1)
    found = ReaderMasks(np.zeros(3, dtype=np.int64), tuple(range(1, readers + 1)), masks).consensus()
    assert found.ravel().tolist() == [bool(v) for v in expected]


# --- whole downloads --------------------------------------------------------------------------------------------------


def tiny(folder: Path) -> Path:
    """Three scans of two patients: one nodule of four readers, one of two readers and marks, one without findings."""
    wide = ((6, 5, 2), (11, 7, 3))
    four = [Session([Outlines(outlined(*box), ratings={**GOOD_RATINGS, "malignancy": rating})])
            for box, rating in ((BOX, 1), (BOX, 3), (wide, 4), (wide, 5))]  # fmt: skip
    two = [
        Session([Outlines(outlined(*BOX)), Outlines([(6, [(18, 15)], True)], ratings=None)]),
        Session([Outlines(outlined(*BOX))], others=[(15, 2, 6)]),
        Session([Outlines([(6, [(19, 15)], True)], ratings=None)], others=[(7, 6, 2)]),
        Session(),
    ]
    for name, patient, sessions in (("a", "P-1", four), ("b", "P-2", two), ("c", "P-2", [Session()] * 4)):
        uid = SERIES_UID + str("abc".index(name))
        write_ct(folder / patient / f"study-{name}" / "3", series_uid=uid, patient=patient)
        write_xml(folder / patient / f"study-{name}" / "3", sessions, series_uid=uid)
    return folder


def items_of(output: Path, fold: int = 0) -> dict[str, dict[str, Any]]:
    """All items of a fold's datalist by series, loaded as a training does."""
    path = str(output / f"dataset_fold{fold}.json")
    return {item["name"]: item for part in ("training", "validation") for item in load_datalist(path, part)}


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes by path, without what a killed run leaves under hidden names."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if "/." not in name}


def skipped(output: Path) -> list[tuple[str, str]]:
    with (output / "skipped.csv").open(newline="", encoding="utf-8") as file:
        return sorted((row["outcome"], row["reason"]) for row in csv.DictReader(file))


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_download_becomes_masks_and_datalists(tmp_path: Path) -> None:
    lidc(str(tiny(tmp_path / "in")), str(tmp_path / "out"), folds=2)
    items = items_of(tmp_path / "out")
    assert set(items) == {SERIES_UID + n for n in "012"}
    first = items[SERIES_UID + "0"]
    # Two of four readers have 4 × 3 × 2 voxels, two 6 × 3 × 2: half of them agree on the larger box.
    mask = nib.Nifti1Image.from_filename(first["mask"])
    assert np.array_equal(np.asarray(mask.dataobj), box_mask((6, 5, 2), (11, 7, 3)).astype(np.uint8))
    assert np.allclose(mask.affine, [[-0.5, 0, 0, 10], [0, -0.5, 0, -5], [0, 0, 2, -40], [0, 0, 0, 1]])
    diameter = round(sphere_diameter_mm(36 * 0.5), 4)
    assert first["box"] == [[-5.75, 8.0, -35.0, diameter, diameter, diameter]]
    assert first["label"] == [NODULE]
    (details,) = first["nodules"]
    expected = {"mask_label": 1, "readers": 4, "volume_mm3": 18.0, "malignancy": 3.5, "subtlety": 5.0}
    assert {key: details[key] for key in expected} == expected
    bits = nib.Nifti1Image.from_filename(tmp_path / "out" / details["reader_masks"])
    assert np.asarray(bits.dataobj)[:, 0, 0].tolist() == [15, 15, 15, 15, 12, 12]  # readers 3 and 4 alone at the end
    assert np.allclose(bits.affine[:3, 3], [10 - 3, -5 - 2.5, -40 + 4])


def test_marks_are_neither_nodules_nor_background(tmp_path: Path) -> None:
    lidc(str(tiny(tmp_path / "in")), str(tmp_path / "out"), folds=2)
    second = items_of(tmp_path / "out")[SERIES_UID + "1"]
    kinds = [(details["kind"], details["readers"]) for details in second["nodules"]]
    # Two readers' points 0.5 mm apart are one finding; a non-nodule within the nodule says nothing about another place.
    assert kinds == [("nodule >= 3 mm", 2), (SMALL_NODULE, 2), (NON_NODULE, 1)]
    assert second["label"] == [NODULE, IGNORED, IGNORED]
    assert [box[3] for box in second["box"][1:]] == [MARK_MM, MARK_MM]
    assert second["box"][1][:3] == [-1.0, 12.5, -28.0]
    assert np.asarray(nib.Nifti1Image.from_filename(second["mask"]).dataobj).max() == 1
    assert items_of(tmp_path / "out")[SERIES_UID + "2"]["box"] == []


def test_a_nodule_within_another_keeps_its_voxels(tmp_path: Path) -> None:
    core, mass = ((11, 8, 4), (12, 9, 4)), ((4, 3, 1), (19, 15, 7))  # more than a slice step apart on all sides
    write_ct(tmp_path / "in")
    write_xml(tmp_path / "in", [Session([Outlines(outlined(*core))]), Session([Outlines(outlined(*mass))])])
    lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2)
    item = items_of(tmp_path / "out")[SERIES_UID]
    mask = np.asarray(nib.Nifti1Image.from_filename(item["mask"]).dataobj)
    assert [details["readers"] for details in item["nodules"]] == [1, 1]
    assert sorted(np.bincount(mask.ravel())[1:].tolist()) == [4, 16 * 13 * 7 - 4]
    assert max(details["volume_mm3"] for details in item["nodules"]) == 16 * 13 * 7 * 0.5


def test_patients_do_not_cross_folds_and_folds_do_not_depend_on_the_others(tmp_path: Path) -> None:
    source = tiny(tmp_path / "in")
    lidc(str(source), str(tmp_path / "out"), folds=3)
    for fold in range(3):
        parts = json.loads((tmp_path / "out" / f"dataset_fold{fold}.json").read_text())
        validated = {item["patient"] for item in parts["validation"]}
        assert validated == {patient for patient in ("P-1", "P-2") if fold_of(patient, 3) == fold}
        assert not validated & {item["patient"] for item in parts["training"]}
    before = {item["name"]: item["patient"] for item in items_of(tmp_path / "out").values()}
    shutil.rmtree(source / "P-1")
    lidc(str(source), str(tmp_path / "out"), folds=2)
    assert {n: i["patient"] for n, i in items_of(tmp_path / "out").items()} == {
        name: patient for name, patient in before.items() if patient == "P-2"
    }
    assert not (tmp_path / "out/dataset_fold2.json").exists()


def test_the_luna16_selection(tmp_path: Path) -> None:
    source = tiny(tmp_path / "in")
    write_ct(source / "thick", series_uid=SERIES_UID + "7", patient="P-3", SliceThickness="3")
    write_xml(source / "thick", [Session([Outlines(outlined(*BOX))])] * 4, series_uid=SERIES_UID + "7")
    lidc(str(source), str(tmp_path / "out"), folds=2, selection="luna16")
    items = items_of(tmp_path / "out")
    assert {name: item["label"] for name, item in items.items()} == {
        SERIES_UID + "0": [NODULE],
        SERIES_UID + "1": [IGNORED] * 3,  # two readers are too few
        SERIES_UID + "2": [],
    }
    assert ("left out", "slices thicker than the selection luna16 allows") in skipped(tmp_path / "out")


def test_the_table_has_a_row_for_each_row_of_the_datalists(tmp_path: Path) -> None:
    lidc(str(tiny(tmp_path / "in")), str(tmp_path / "out"), folds=2)
    with (tmp_path / "out/nodules.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = items_of(tmp_path / "out")
    assert Counter(row["series_uid"] for row in rows) == {n: len(i["box"]) for n, i in items.items() if i["box"]}
    assert rows[0]["malignancy"] == "3.5"
    assert rows[-1]["malignancy"] == ""


def test_series_that_share_a_folder_become_files_of_their_own(tmp_path: Path) -> None:
    for uid, patient in ((SERIES_UID, "P-1"), (OTHER_UID, "P-2")):
        for path in write_ct(tmp_path / "parts", series_uid=uid, patient=patient):
            (tmp_path / "flat").mkdir(exist_ok=True)
            path.rename(tmp_path / "flat" / f"{uid[-1]}-{path.name}")
        write_xml(tmp_path / "flat", [Session([Outlines(outlined(*BOX))])], f"{uid}.xml", series_uid=uid)
    lidc(str(tmp_path / "flat"), str(tmp_path / "out"), folds=2)
    for item in items_of(tmp_path / "out").values():
        assert item["image"].endswith("image.nii.gz")
        image = np.asarray(nib.Nifti1Image.from_filename(item["image"]).dataobj)
        assert set(np.unique(image)) == {-1000, -800}
        assert np.asarray(nib.Nifti1Image.from_filename(item["mask"]).dataobj).sum() == 4 * 3 * 2


def test_xml_files_may_lie_elsewhere_even_in_an_archive(tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    path = write_xml(tmp_path / "xml", [Session([Outlines(outlined(*BOX))])])
    with zipfile.ZipFile(tmp_path / "xml.zip", "w") as archive:
        archive.write(path, "tcia/157/158.xml")
    for number, xml in enumerate((tmp_path / "xml", tmp_path / "xml.zip")):
        lidc(str(tmp_path / "in"), str(tmp_path / f"out{number}"), str(xml), 2)
        assert len(items_of(tmp_path / f"out{number}")[SERIES_UID]["box"]) == 1


# --- DICOM objects ----------------------------------------------------------------------------------------------------


def test_xml_and_dicom_objects_of_the_same_readings_give_the_same(tmp_path: Path) -> None:
    other = ((5, 5, 2), (9, 8, 4))
    hollow = [*outlined(*other), (3, ring((6, 6), (7, 7)), False)]  # an exclusion of 2 × 2 pixels in one slice
    write_ct(tmp_path / "xml")
    write_xml(tmp_path / "xml", [Session([Outlines(outlined(*BOX))]), Session([Outlines(hollow)])])
    ct = write_ct(tmp_path / "dicom" / "CT")
    hollow_mask = box_mask(*other)
    hollow_mask[6:8, 6:8, 3] = False
    write_objects(tmp_path / "dicom" / "objects", ct, [box_mask(*BOX), hollow_mask])
    found = []
    for form in ("xml", "dicom"):
        lidc(str(tmp_path / form), str(tmp_path / f"out-{form}"), folds=2)
        item = items_of(tmp_path / f"out-{form}")[SERIES_UID]
        item["mask"] = np.asarray(nib.Nifti1Image.from_filename(item["mask"]).dataobj).tolist()
        masks = tmp_path / f"out-{form}" / item["nodules"][0]["reader_masks"]
        readers = np.asarray(nib.Nifti1Image.from_filename(masks).dataobj).tolist()
        found.append((readers, {key: value for key, value in item.items() if key != "image"}))
        assert skipped(tmp_path / f"out-{form}") == []
    assert found[0] == found[1]
    assert {name: found[1][1]["nodules"][0][name] for name in RATINGS} == GOOD_RATINGS
    assert np.array_equal(np.array(found[0][1]["mask"], dtype=bool), box_mask(*BOX) | hollow_mask)


def test_xml_counts_more_than_dicom_objects_of_the_same_series(tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "in/CT")
    write_objects(tmp_path / "in/objects", ct, [box_mask(*BOX)])
    write_xml(tmp_path / "in", [Session()])
    lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2)
    assert items_of(tmp_path / "out")[SERIES_UID]["box"] == []


def test_ratings_are_read_from_a_report(tmp_path: Path) -> None:
    write_objects(tmp_path, write_ct(tmp_path / "CT"), [box_mask(*BOX)])
    ((key, ratings),) = read_ratings(tmp_path / "sr1.dcm").items()
    assert key[1] == 1
    assert ratings == GOOD_RATINGS


def test_a_scan_with_a_damaged_segmentation_is_not_given_fewer_readers(tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "in/CT")
    write_objects(tmp_path / "in/objects", ct, [box_mask(*BOX)] * 3)
    path = tmp_path / "in/objects/seg2.dcm"
    path.write_bytes(path.read_bytes()[:-8])  # the last pixels are missing
    with pytest.raises(PrepareError, match=r"seg2\.dcm"):
        lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2, strict=True)


def test_segments_that_are_no_nodules_are_told(tmp_path: Path) -> None:
    ct = write_ct(tmp_path / "in/CT")
    write_objects(tmp_path / "in/objects", ct, [box_mask(*BOX)], nodule=False)
    with pytest.raises(LidcError, match="none that can be used"):
        lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2)
    assert skipped(tmp_path / "out") == [
        ("skipped", "segmentation without nodules"),
        ("skipped", "series without readings"),
    ]


def test_a_segmentation_on_other_pixels_is_refused(tmp_path: Path) -> None:
    moved = write_ct(tmp_path / "moved", ImagePositionPatient=["-9", "5", "-40"])
    write_ct(tmp_path / "in/CT")
    write_objects(tmp_path / "in/objects", moved[:1], [box_mask((6, 5, 0), (9, 7, 0))[:, :, :1]])
    with pytest.raises(PrepareError, match="pixels of the scan's slices"):
        lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2, strict=True)


# --- bad downloads ----------------------------------------------------------------------------------------------------


def drawn(first: tuple[int, int, int], last: tuple[int, int, int]) -> list[Session]:
    """One reader's outlines of a box."""
    return [Session([Outlines(outlined(first, last))])]


GOOD_SESSIONS = drawn(*BOX)


def no_xml(folder: Path) -> None:
    write_ct(folder, series_uid=OTHER_UID, patient="P-9")


def no_series(folder: Path) -> None:
    write_xml(folder, GOOD_SESSIONS, series_uid=OTHER_UID)


def radiograph(folder: Path) -> None:
    write_ct(folder, series_uid=OTHER_UID, patient="P-9", Modality="DX")


def radiograph_xml(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')


def damaged_xml(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.xml").write_text(GOOD[:200])


def damaged_dicom(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 50)


def damaged_beside(folder: Path) -> None:
    with_xml(folder)
    damaged_dicom(folder / "more")
    (folder / "more/x.dcm").rename(folder / "x.dcm")


def with_xml(
    folder: Path, sessions: list[Session] | None = None, missing: tuple[int, ...] = (), **options: Any
) -> None:
    write_ct(folder, series_uid=OTHER_UID, patient="P-9", missing=missing)
    write_xml(folder, sessions or GOOD_SESSIONS, series_uid=OTHER_UID, **options)


def contradiction(folder: Path) -> None:
    with_xml(folder)
    write_xml(folder, [Session()], "second.xml", series_uid=OTHER_UID)


BAD: list[tuple[Callable[[Path], None], str, str]] = [
    (no_xml, "series without readings", "P-9"),
    (no_series, "XML without series", OTHER_UID),
    (radiograph, "wrong modality: DX instead of CT", "P-9"),
    (radiograph_xml, "wrong modality: XML of a radiograph", "x.xml"),
    (damaged_xml, "damaged or foreign XML", "copy it again"),
    (damaged_dicom, "damaged DICOM file", "x.dcm"),
    (damaged_beside, "unusable scan", "x.dcm"),
    (partial(with_xml, sessions=drawn((21, 5, 2), (23, 7, 2))), "readings do not fit the scan", "column 24, row 4"),
    (partial(with_xml, missing=(5,)), "unusable scan", "slices are missing"),
    (
        partial(with_xml, sessions=drawn((6, 5, 6), (9, 7, 7)), missing=(7,)),
        "readings do not fit the scan",
        "slices are missing",
    ),
    (partial(with_xml, z_shift_mm=1.0), "readings do not fit the scan", "z = -35 mm"),
    (contradiction, "several XML that differ", "second.xml"),
]


@pytest.mark.parametrize(("make", "reason", "detail"), BAD)
def test_what_cannot_be_used_is_skipped_with_its_reason(
    make: Callable[[Path], None], reason: str, detail: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_ct(tmp_path / "in/good")
    write_xml(tmp_path / "in/good", GOOD_SESSIONS)
    make(tmp_path / "in/bad")
    lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2)
    assert set(items_of(tmp_path / "out")) == {SERIES_UID}
    assert skipped(tmp_path / "out") == [("skipped", reason)]
    assert detail in (tmp_path / "out/skipped.csv").read_text(encoding="utf-8")
    assert f"1 × {reason}" in caplog.text


@pytest.mark.parametrize(("make", "reason", "detail"), BAD)
def test_strict_makes_it_an_error(make: Callable[[Path], None], reason: str, detail: str, tmp_path: Path) -> None:
    make(tmp_path / "in")
    with pytest.raises(PrepareError, match="--strict") as caught:
        lidc(str(tmp_path / "in"), str(tmp_path / "out"), folds=2, strict=True)
    assert reason in str(caught.value)
    assert contents(tmp_path / "out") == {}


def test_two_series_of_one_patient_and_copies_of_an_xml_are_kept_and_told(tmp_path: Path) -> None:
    source = tiny(tmp_path / "in")
    write_xml(source / "copy", [Session()] * 4, series_uid=SERIES_UID + "2")
    lidc(str(source), str(tmp_path / "out"), folds=2, strict=True)
    assert skipped(tmp_path / "out") == [
        ("kept", "several XML with the same readings"),
        ("kept", "several series of one patient"),
        ("kept", "several series of one patient"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"folds": 1}, "--folds"), ({"selection": "lndb"}, "--selection"), ({"dicom_dir": "nowhere"}, "--dicom_dir")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        lidc(**{"dicom_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **options})


# --- interrupted runs -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run where it stands, as a signal does."""


def killing(calls: list[int], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, but the run dies just before its n-th use, n = ``calls[0]``; all such functions count together."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] -= 1
        if calls[0] == 0:
            raise Killed
        return call(*args, **kwargs)

    return wrapped


def test_a_run_killed_anywhere_and_started_again_ends_in_the_same_files(tmp_path: Path) -> None:
    source = tiny(tmp_path / "in")
    lidc(str(source), str(tmp_path / "whole"), folds=2)
    expected = contents(tmp_path / "whole")
    number, was_killed = 0, True
    while was_killed:
        number += 1
        output = tmp_path / f"out{number}"
        lidc(str(source), str(output), folds=2, selection="luna16")
        (output / f"scans/{SERIES_UID}0/scan.json").write_text("{}")  # one of the scans must be replaced
        with pytest.MonkeyPatch.context() as patch:
            calls = [number]
            for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree"), (outputs, "write_nifti")):
                patch.setattr(owner, name, killing(calls, getattr(owner, name)))
            try:
                lidc(str(source), str(output), folds=2)
                was_killed = False
            except Killed:
                pass
        lidc(str(source), str(output), folds=2)
        assert contents(output) == expected
    assert number > 10


def test_only_what_changed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny(tmp_path / "in")
    lidc(str(source), str(tmp_path / "out"), folds=2)
    expected = contents(tmp_path / "out")
    made: list[str] = []
    write = outputs.write_scan

    def counted(folder: Path, *args: Any, **kwargs: Any) -> Any:
        made.append(folder.name)
        return write(folder, *args, **kwargs)

    monkeypatch.setattr("scripts.prepare.lidc.command.write_scan", counted)
    lidc(str(source), str(tmp_path / "out"), folds=2)
    assert (made, contents(tmp_path / "out")) == ([], expected)
    write_xml(source / "P-1/study-a/3", GOOD_SESSIONS, series_uid=SERIES_UID + "0")
    lidc(str(source), str(tmp_path / "out"), folds=2)
    assert made == [SERIES_UID + "0"]
    assert items_of(tmp_path / "out")[SERIES_UID + "0"]["nodules"][0]["readers"] == 1


# --- pictures and counts ----------------------------------------------------------------------------------------------


def test_a_prepared_nodule_is_drawn(tmp_path: Path) -> None:
    lidc(str(tiny(tmp_path / "in")), str(tmp_path / "out"), folds=2)
    mask = next((tmp_path / "out").glob("scans/*/mask.nii.gz"))
    lidc_picture(str(tmp_path / "out"), str(tmp_path / "a.png"), reference=str(mask))
    assert (tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(LidcError, match="mask value 5"):
        lidc_picture(str(tmp_path / "out"), str(tmp_path / "a.png"), nodule=5)
    with pytest.raises(LidcError, match="run the command lidc first"):
        lidc_picture(str(tmp_path / "in"), str(tmp_path / "a.png"))


def test_counts_of_xml_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_xml(tmp_path, [*GOOD_SESSIONS, Session(others=[(1, 1, 1)])])
    write_xml(tmp_path, [*GOOD_SESSIONS, Session(others=[(1, 1, 1)])], "copy.xml")
    radiograph_xml(tmp_path / "more")
    lidc_xml(str(tmp_path))
    for words in ("3 XML files: 2 of CT, 1 of radiographs", "1 CT series; 1 further", "1 readings", "1 marks of non-"):
        assert words in caplog.text
    damaged_xml(tmp_path / "damaged")
    with pytest.raises(LidcError, match=r"x\.xml"):
        lidc_xml(str(tmp_path))


# --- real data --------------------------------------------------------------------------------------------------------


def test_a_real_scan_gives_the_known_mask(tmp_path: Path) -> None:
    reference = nib.Nifti1Image.from_filename(real("lidc_nodules/mask/LIDC-IDRI-0001_R_1.nii.gz"))
    lidc(str(real("scans/LIDC-IDRI-0001")), str(tmp_path), folds=2, strict=True)
    (item,) = items_of(tmp_path).values()
    mask = nib.Nifti1Image.from_filename(item["mask"])
    found = np.asarray(mask.dataobj) == 1
    expected = np.argwhere(np.asarray(reference.dataobj))
    onto = np.linalg.inv(mask.affine) @ reference.affine
    voxels = np.rint(expected @ onto[:3, :3].T + onto[:3, 3]).astype(int)
    shared = np.count_nonzero(found[tuple(voxels.T)])
    assert abs(np.count_nonzero(found) / len(expected) - 1) < 0.02
    assert 2 * shared / (np.count_nonzero(found) + len(expected)) >= 0.98
    assert item["label"].count(NODULE) == 1
    assert item["nodules"][0]["readers"] == 4


def test_every_real_xml_is_read() -> None:
    series: dict[str, SeriesReadings] = {}
    kinds: Counter[bool] = Counter()
    with zipfile.ZipFile(real("lidc_xml/tcia-lidc-xml.zip")) as archive:
        for name in archive.namelist():
            if name.endswith(".xml"):
                found = parse_xml(archive.read(name), name)
                kinds[found is not None] += 1
                if found is not None:
                    series[found.series_uid] = found
    assert kinds == {True: 1035, False: 283}
    assert len(series) == 1018
    assert sum(len(one.readings) for one in series.values()) == 6862
