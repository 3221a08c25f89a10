"""LIDC-IDRI: outlines and their rules, nodules, masks on the scan, bad downloads, interrupted runs, real data."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.core.errors import SettingError
from scripts.core.files import read_csv
from scripts.core.geometry import apply_affine, sphere_diameter_mm
from scripts.core.labels import IGNORED, NODULE
from scripts.prepare.__main__ import main
from scripts.prepare.datalists import PrepareError
from scripts.prepare.lidc import outputs
from scripts.prepare.lidc.command import lidc, lidc_xml
from scripts.prepare.lidc.nodules import MARK_MM, ReaderMasks, group_readings
from scripts.prepare.lidc.outputs import fold_of
from scripts.prepare.lidc.picture import lidc_picture
from scripts.prepare.lidc.readings import (
    NON_NODULE,
    RATINGS,
    SMALL_NODULE,
    LidcError,
    Region,
    parse_xml,
    region_of_outlines,
)
from scripts.prepare.lidc.scans import xml_files
from scripts.prepare.lidc.segmentation_objects import region_of_pixels
from scripts.read.datalist import load_datalist
from tests.interruption import check_any_kill, contents
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
from tests.luna16_files import reasons
from tests.real_data import real

OTHER_UID = SERIES_UID + "99"
BOX = ((6, 5, 2), (9, 7, 3))  # voxels of a nodule, first and last: 4 × 3 × 2


def inside(*outlines: tuple[Ring, bool]) -> set[tuple[int, int]]:
    """Pixels (column, row) that the outlines of one slice enclose."""
    return pixels_of(region_of_outlines("1", 0.0, [(np.array(points), flag) for points, flag in outlines]))


def pixels_of(region: Region) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in np.argwhere(region.inside) + region.corner}


def rectangle(first: tuple[int, int], last: tuple[int, int]) -> set[tuple[int, int]]:
    return {(i, j) for i in range(first[0], last[0] + 1) for j in range(first[1], last[1] + 1)}


def box_mask(first: tuple[int, int, int], last: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return mask


# --- outlines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outlines", "enclosed"),
    [
        ([(ring((2, 3), (6, 8)), True)], rectangle((3, 4), (5, 7))),  # their own pixels are not inside
        ([([(5, 4), (6, 5), (5, 6), (4, 5)], True)], {(5, 5)}),
        (  # an exclusion takes its own pixels along
            [(ring((2, 2), (5, 6)), False), (ring((0, 0), (8, 8)), True)],
            rectangle((1, 1), (7, 7)) - rectangle((2, 2), (5, 6)),
        ),
        (  # outlines of one slice are joined
            [(ring((0, 0), (4, 4)), True), (ring((3, 3), (8, 8)), True)],
            rectangle((1, 1), (3, 3)) | rectangle((4, 4), (7, 7)),
        ),
        *(  # a thin one encloses nothing
            ([(points, True)], set())
            for points in ([(3, 3), (4, 3)], [(3, 3), (4, 4), (5, 5), (4, 4)], [(3, 3), (4, 3), (4, 4)])
        ),
    ],
)
def test_what_outlines_enclose(outlines: list[tuple[Ring, bool]], enclosed: set[tuple[int, int]]) -> None:
    assert inside(*outlines) == enclosed


def test_the_hollow_of_a_bent_nodule_stays_outside() -> None:
    # A "C" whose ends nearly meet: the outlines of its two arms run through the same pixels of column 7 and 8.
    gap = [(10, j) for j in range(1, 7)], [(10, j) for j in range(6, 13)]  # right side down to the arms' gap, and on
    hollow = [(9, 6), (8, 6), (7, 5), (6, 4), (5, 4), (4, 5), (4, 6), (4, 7), (5, 8), (6, 8), (7, 7), (8, 6), (9, 6)]
    top, left = [(i, 0) for i in range(11)], [(0, j) for j in range(11, 0, -1)]
    bent = [*top, *gap[0], *hollow, *gap[1], *((i, 12) for i in range(9, -1, -1)), *left]
    assert (5, 6) in inside((ring((0, 0), (10, 12)), True))
    assert {(5, 6), (2, 6), (5, 2), (5, 10)} & inside((bent, True)) == {(2, 6), (5, 2), (5, 10)}


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
    assert pixels_of(region) == rectangle((3, 2), (2 + columns, 1 + rows))
    corners = set(product((2, 3 + columns), (1, 2 + rows)))
    assert set(map(tuple, region.border.tolist())) == set(ring((2, 1), (3 + columns, 2 + rows))) - corners


# --- XML --------------------------------------------------------------------------------------------------------------


def test_an_xml_gives_readings_and_marks_of_each_reader() -> None:
    """Ratings of zero are none; an outline without ratings is a nodule, a point without any is a small one."""
    point = [(4, [(7, 8)], True)]
    unrated = [Outlines(outlined(*BOX), ratings=None), Outlines(point, ratings=dict.fromkeys(RATINGS, 0))]
    first = Session([Outlines(outlined(*BOX)), Outlines(point, ratings=None)])
    found = parse_xml(xml_text([first, Session(others=[(3, 2, 1)]), Session(unrated)]).encode(), "a.xml")
    assert found is not None
    assert [(reading.reader, reading.name, reading.ratings) for reading in found.readings] == [
        (1, "Nodule 001", GOOD_RATINGS),
        (3, "Nodule 001", {}),
    ]
    assert (found.series_uid, [(region.sop_uid, region.z_mm) for region in found.readings[0].regions]) == (
        SERIES_UID,
        [(sop_uid(SERIES_UID, 2), -36.0), (sop_uid(SERIES_UID, 3), -34.0)],
    )
    assert [(m.reader, m.kind, m.pixel, m.z_mm) for m in found.marks] == [
        (1, SMALL_NODULE, (7, 8), -32.0),
        (2, NON_NODULE, (3, 2), -38.0),
        (3, SMALL_NODULE, (7, 8), -32.0),
    ]


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


# Four readings at 0 … 0.3 and two at 2.1 and 2.2: 1.8 apart, within 2.0 and 0.9 × 2.0, but not within 0.81 × 2.0.
SIX = [[0.0], [0.1], [0.2], [0.3], [2.1], [2.2]]


@pytest.mark.parametrize(
    ("places_mm", "groups"),
    [
        ([[0, 1], [3], [5.1], [9]], [[0, 1], [2], [3]]),  # within the slice spacing they are one nodule
        ([[0], [2]], [[0, 1]]),
        ([], []),
        (SIX, [[0, 1, 2, 3], [4, 5]]),  # more than four are taken apart
        (SIX[2:], [[0, 1, 2, 3]]),  # four readings: no reason to look closer
        ([*SIX, [50], [51.9]], [[0, 1, 2, 3], [4, 5], [6, 7]]),  # other groups keep their distance
        ([[0]] * 5, [[0, 1, 2, 3, 4]]),  # what touches stays together
    ],
)
def test_which_readings_are_one_nodule(places_mm: list[list[float]], groups: list[list[int]]) -> None:
    assert group_readings([np.array([[x, 0.0, 0.0] for x in places]) for places in places_mm], 2.0) == groups


@pytest.mark.parametrize(
    ("readers", "agreed"),
    [
        (["1111"], "1111"),
        (["1100", "1010"], "1110"),
        (["1110", "1100", "0001"], "1100"),
        (["1100", "1100", "1010", "0010"], "1110"),
    ],
)
def test_the_consensus_is_what_at_least_half_of_the_readers_marked(readers: list[str], agreed: str) -> None:
    masks = np.array([[voxel == "1" for voxel in row] for row in readers])[:, :, np.newaxis, np.newaxis]
    found = ReaderMasks(np.zeros(3, dtype=np.int64), tuple(range(1, len(readers) + 1)), masks).consensus()
    assert found.ravel().tolist() == [voxel == "1" for voxel in agreed]


# --- whole downloads --------------------------------------------------------------------------------------------------


def drawn(first: tuple[int, int, int], last: tuple[int, int, int]) -> list[Session]:
    """One reader's outlines of a box."""
    return [Session([Outlines(outlined(first, last))])]


GOOD_SESSIONS = drawn(*BOX)


def read_scan(
    folder: Path, sessions: Sequence[Session] = GOOD_SESSIONS, uid: str = SERIES_UID, patient: str = "P-1", **tags: Any
) -> None:
    """A CT series and the XML of its readings in one folder."""
    write_ct(folder, series_uid=uid, patient=patient, **tags)
    write_xml(folder, sessions, f"{uid}.xml", series_uid=uid)


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
    for number, (patient, sessions) in enumerate((("P-1", four), ("P-2", two), ("P-2", [Session()] * 4))):
        read_scan(folder / patient / f"study-{number}" / "3", sessions, f"{SERIES_UID}{number}", patient)
    return folder


def prepared(source: Path, output: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Run the command; return the items of its first datalist by series, loaded as a training does."""
    lidc(str(source), str(output), **{"folds": 2, **options})
    path = str(output / "dataset_fold0.json")
    return {item["name"]: item for part in ("training", "validation") for item in load_datalist(path, part)}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Items of the tiny download, nothing left out, though there is a copy of the third scan's XML."""
    folder = tmp_path_factory.mktemp("tiny")
    write_xml(tiny(folder / "in") / "copy", [Session()] * 4, series_uid=SERIES_UID + "2")
    return prepared(folder / "in", folder / "out", strict=True)


def array_of(path: str | Path) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj)


def test_a_download_becomes_masks_and_datalists(items: dict[str, dict[str, Any]]) -> None:
    assert set(items) == {SERIES_UID + n for n in "012"}
    first, output = items[SERIES_UID + "0"], Path(items[SERIES_UID + "0"]["mask"]).parents[2]
    # Two of four readers have 4 × 3 × 2 voxels, two 6 × 3 × 2: half of them agree on the larger box.
    assert np.array_equal(array_of(first["mask"]), box_mask((6, 5, 2), (11, 7, 3)).astype(np.uint8))
    affine = nib.Nifti1Image.from_filename(first["mask"]).affine
    assert np.allclose(affine, [[-0.5, 0, 0, 10], [0, -0.5, 0, -5], [0, 0, 2, -40], [0, 0, 0, 1]])
    diameter = round(sphere_diameter_mm(36 * 0.5), 4)
    assert (first["box"], first["label"]) == ([[-5.75, 8.0, -35.0, diameter, diameter, diameter]], [NODULE])
    (details,) = first["nodules"]
    expected = {"mask_label": 1, "readers": 4, "volume_mm3": 18.0, "malignancy": 3.5, "subtlety": 5.0}
    assert details == details | expected
    bits = nib.Nifti1Image.from_filename(output / details["reader_masks"])
    assert np.asarray(bits.dataobj)[:, 0, 0].tolist() == [15, 15, 15, 15, 12, 12]  # readers 3 and 4 alone at the end
    assert np.allclose(bits.affine[:3, 3], [10 - 3, -5 - 2.5, -40 + 4])
    rows = [(row["series_uid"][-1], row["malignancy"]) for _, row in read_csv(output / "nodules.csv")]
    assert rows == [("0", "3.5"), ("1", "3.0"), ("1", ""), ("1", "")]


def test_marks_are_neither_nodules_nor_background(items: dict[str, dict[str, Any]]) -> None:
    second = items[SERIES_UID + "1"]
    # Two readers' points 0.5 mm apart are one finding; a non-nodule within the nodule says nothing about another place.
    kinds = [(details["kind"], details["readers"]) for details in second["nodules"]]
    assert kinds == [("nodule >= 3 mm", 2), (SMALL_NODULE, 2), (NON_NODULE, 1)]
    assert second["label"] == [NODULE, IGNORED, IGNORED]
    assert second["box"][1] == [-1.0, 12.5, -28.0, MARK_MM, MARK_MM, MARK_MM]
    assert (second["box"][2][3], array_of(second["mask"]).max()) == (MARK_MM, 1)
    assert items[SERIES_UID + "2"]["box"] == []


def test_a_nodule_within_another_keeps_its_voxels(tmp_path: Path) -> None:
    core, mass = ((11, 8, 4), (12, 9, 4)), ((4, 3, 1), (19, 15, 7))  # more than a slice step apart on all sides
    read_scan(tmp_path / "in", [*drawn(*core), *drawn(*mass)])
    item = prepared(tmp_path / "in", tmp_path / "out")[SERIES_UID]
    assert [details["readers"] for details in item["nodules"]] == [1, 1]
    assert sorted(np.bincount(array_of(item["mask"]).ravel())[1:].tolist()) == [4, 16 * 13 * 7 - 4]
    assert max(details["volume_mm3"] for details in item["nodules"]) == 16 * 13 * 7 * 0.5


def test_patients_do_not_cross_folds_and_folds_do_not_depend_on_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source, folds = tiny(tmp_path / "in"), {patient: fold_of(patient, 3) for patient in ("P-1", "P-2")}
    before = prepared(source, tmp_path / "out", folds=3)
    assert "patients with several series, all in the same fold: 1" in caplog.text
    for fold in range(3):
        parts = json.loads((tmp_path / "out" / f"dataset_fold{fold}.json").read_text())
        assert {part: {item["patient"] for item in items} for part, items in parts.items()} == {
            "validation": {patient for patient, own in folds.items() if own == fold},
            "training": {patient for patient, own in folds.items() if own != fold},
        }
    shutil.rmtree(source / "P-1")
    after = prepared(source, tmp_path / "out")
    assert after == {name: item for name, item in before.items() if item["patient"] == "P-2"}
    assert not (tmp_path / "out/dataset_fold2.json").exists()


def test_the_luna16_selection(tmp_path: Path) -> None:
    source = tiny(tmp_path / "in")
    read_scan(source / "thick", GOOD_SESSIONS * 4, SERIES_UID + "7", "P-3", SliceThickness="3")
    items = prepared(source, tmp_path / "out", selection="luna16")
    assert {name: item["label"] for name, item in items.items()} == {
        SERIES_UID + "0": [NODULE],
        SERIES_UID + "1": [IGNORED] * 3,  # two readers are too few
        SERIES_UID + "2": [],
    }
    assert reasons(tmp_path / "out") == {"slices thicker than the selection luna16 allows": 1}


def test_a_series_in_or_around_the_folder_of_another_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    folders = {"1": "around", "2": "around/alone", "3": "flat", "4": "flat"}
    for number, folder in folders.items():
        read_scan(tmp_path / "in" / folder, GOOD_SESSIONS, SERIES_UID + number, f"P-{number}")
    items = prepared(tmp_path / "in", tmp_path / "out")
    for number, folder in folders.items():
        item = items[SERIES_UID + number]
        assert array_of(item["mask"]).sum() == 4 * 3 * 2
        if folder == "around/alone":
            assert Path(item["image"]) == tmp_path / "in" / folder
        else:
            assert item["image"].endswith(f"{SERIES_UID}{number}/image.nii.gz")
            assert set(np.unique(array_of(item["image"]))) == {-1000, -800}


def test_xml_files_may_lie_elsewhere_even_in_an_archive(tmp_path: Path) -> None:
    write_ct(tmp_path / "in")
    write_xml(tmp_path / "xml/tcia/157", GOOD_SESSIONS)
    shutil.make_archive(str(tmp_path / "xml"), "zip", tmp_path / "xml")
    for xml in ("xml", "xml.zip"):
        items = prepared(tmp_path / "in", tmp_path / f"out-{xml}", xml=str(tmp_path / xml))
        assert len(items[SERIES_UID]["box"]) == 1


# --- DICOM objects ----------------------------------------------------------------------------------------------------


def test_xml_and_dicom_objects_of_the_same_readings_give_the_same(tmp_path: Path) -> None:
    other = ((5, 5, 2), (9, 8, 4))
    hollow = [*outlined(*other), (3, ring((6, 6), (7, 7)), False)]  # an exclusion of 2 × 2 pixels in one slice
    hollow_mask = box_mask(*other)
    hollow_mask[6:8, 6:8, 3] = False
    read_scan(tmp_path / "xml", [*GOOD_SESSIONS, Session([Outlines(hollow)])])
    ct = write_ct(tmp_path / "dicom" / "CT", patient="P-1")
    write_objects(tmp_path / "dicom" / "objects", ct, [box_mask(*BOX), hollow_mask])
    found = []
    for form in ("xml", "dicom"):
        item = prepared(tmp_path / form, tmp_path / f"out-{form}", strict=True)[SERIES_UID]
        masks = array_of(item.pop("mask")), array_of(tmp_path / f"out-{form}" / item["nodules"][0]["reader_masks"])
        found.append(([mask.tolist() for mask in masks], item | {"image": ""}))
    assert found[0] == found[1]
    assert np.array_equal(np.array(found[0][0][0], dtype=bool), box_mask(*BOX) | hollow_mask)
    assert found[1][1]["nodules"][0].items() >= GOOD_RATINGS.items()


def test_xml_counts_more_than_dicom_objects_of_the_same_series(tmp_path: Path) -> None:
    write_objects(tmp_path / "in/objects", write_ct(tmp_path / "in/CT"), [box_mask(*BOX)])
    write_xml(tmp_path / "in", [Session()])
    assert prepared(tmp_path / "in", tmp_path / "out")[SERIES_UID]["box"] == []


@pytest.mark.parametrize(
    ("position", "lost", "message"), [("-10", 8, r"seg2\.dcm"), ("-9", 0, "pixels of the scan's slices")]
)
def test_a_segmentation_that_is_damaged_or_on_other_pixels_is_refused(
    position: str, lost: int, message: str, tmp_path: Path
) -> None:
    """Nor is a scan with a damaged one given fewer readers."""
    write_ct(tmp_path / "in/CT")
    ct = write_ct(tmp_path / "other", ImagePositionPatient=[position, "5", "-40"])
    write_objects(tmp_path / "in/objects", ct[:1], [box_mask((6, 5, 0), (9, 7, 0))[:, :, :1]] * 3)
    path = tmp_path / "in/objects/seg2.dcm"
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - lost])
    with pytest.raises(PrepareError, match=message):
        prepared(tmp_path / "in", tmp_path / "out", strict=True)


def test_segments_that_are_no_nodules_are_told(tmp_path: Path) -> None:
    write_objects(tmp_path / "in/objects", write_ct(tmp_path / "in/CT"), [box_mask(*BOX)], nodule=False)
    with pytest.raises(LidcError, match="none that can be used"):
        prepared(tmp_path / "in", tmp_path / "out")
    assert reasons(tmp_path / "out") == {"segmentation without nodules": 1, "series without readings": 1}


# --- bad downloads ----------------------------------------------------------------------------------------------------


def file(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


other_scan = partial(read_scan, uid=OTHER_UID, patient="P-9")
radiograph_xml = partial(file, name="x.xml", content=b'<IdriReadMessage xmlns="http://www.nih.gov/idri"/>')
damaged_xml = partial(file, name="x.xml", content=GOOD[:200].encode())
damaged_dicom = partial(file, name="x.dcm", content=b"\0" * 128 + b"DICM" + b"\1" * 50)
other_xml = partial(write_xml, sessions=GOOD_SESSIONS, name="second.xml", series_uid=OTHER_UID)


@pytest.mark.parametrize(
    ("makers", "reason", "detail"),
    [
        ([partial(write_ct, series_uid=OTHER_UID)], "series without readings", OTHER_UID),
        ([other_xml], "XML without series", OTHER_UID),
        ([partial(write_ct, series_uid=OTHER_UID, Modality="DX")], "wrong modality: DX instead of CT", OTHER_UID),
        ([radiograph_xml], "wrong modality: XML of a radiograph", "x.xml"),
        ([damaged_xml], "damaged or foreign XML", "copy it again"),
        ([damaged_dicom], "damaged DICOM file", "x.dcm"),
        ([damaged_dicom, other_scan], "unusable scan", "x.dcm"),
        (
            [partial(other_scan, sessions=drawn((21, 5, 2), (23, 7, 2)))],
            "readings do not fit the scan",
            "column 24, row 4",
        ),
        ([partial(other_scan, missing=(5,))], "unusable scan", "slices are missing"),
        (
            [partial(other_scan, sessions=drawn((6, 5, 6), (9, 7, 7)), missing=(7,))],
            "readings do not fit the scan",
            "slices are missing",
        ),
        (
            [partial(write_ct, series_uid=OTHER_UID), partial(other_xml, z_shift_mm=1.0)],
            "readings do not fit the scan",
            "z = -35 mm",
        ),
        ([other_scan, partial(other_xml, sessions=[Session()])], "several XML that differ", "second.xml"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_reason_and_an_error_when_strict(
    makers: Iterable[Callable[[Path], object]],
    reason: str,
    detail: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for make in makers:
        make(tmp_path / "in/bad")
    with pytest.raises(PrepareError, match=f"(?s)--strict.*{reason}"):
        prepared(tmp_path / "in", tmp_path / "strict", strict=True)
    assert contents(tmp_path / "strict") == {}
    read_scan(tmp_path / "in/good")
    assert set(prepared(tmp_path / "in", tmp_path / "out")) == {SERIES_UID}
    assert reasons(tmp_path / "out") == {reason: 1}
    assert detail in (tmp_path / "out/left_out.csv").read_text(encoding="utf-8")
    assert f"1 × {reason}" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"folds": 1}, "--folds"), ({"selection": "lndb"}, "--selection"), ({"dicom_dir": "nowhere"}, "--dicom_dir")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=message):
        lidc(**{"dicom_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **options})


# --- interrupted runs -------------------------------------------------------------------------------------------------


def test_a_run_killed_anywhere_and_started_again_ends_in_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny(tmp_path / "in")

    def former(output: Path) -> None:
        prepared(source, output, selection="luna16")
        (output / f"scans/{SERIES_UID}0/scan.json").write_text("{}")  # one of the scans must be replaced

    options = ["lidc", "--dicom_dir", str(source), "--folds", "2", "--output_dir"]
    check_any_kill(lambda output: main([*options, str(output)]), tmp_path, monkeypatch, former)


def test_only_what_changed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, made = tiny(tmp_path / "in"), Mock(wraps=outputs.write_scan)
    prepared(source, tmp_path / "out")
    expected = contents(tmp_path / "out")
    monkeypatch.setattr("scripts.prepare.lidc.command.write_scan", made)
    prepared(source, tmp_path / "out")
    assert (made.call_count, contents(tmp_path / "out")) == (0, expected)
    write_xml(source / "P-1/study-0/3", GOOD_SESSIONS, f"{SERIES_UID}0.xml", series_uid=SERIES_UID + "0")
    items = prepared(source, tmp_path / "out")
    assert [call.args[0].name for call in made.call_args_list] == [SERIES_UID + "0"]
    assert items[SERIES_UID + "0"]["nodules"][0]["readers"] == 1


# --- pictures and counts ----------------------------------------------------------------------------------------------


def test_a_prepared_nodule_is_drawn(items: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    mask, picture = items[SERIES_UID + "0"]["mask"], tmp_path / "a.png"
    lidc_picture(str(Path(mask).parents[2]), str(picture), reference=mask)
    assert picture.stat().st_size > 1000
    for folder, message in ((Path(mask).parents[2], "mask value 5"), (tmp_path, "run the command lidc first")):
        with pytest.raises(LidcError, match=message):
            lidc_picture(str(folder), str(picture), nodule=5)


def test_counts_of_xml_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("158.xml", "copy.xml"):
        write_xml(tmp_path, [*GOOD_SESSIONS, Session(others=[(1, 1, 1)])], name)
    radiograph_xml(tmp_path / "more")
    lidc_xml(str(tmp_path))
    words = ["3 XML files: 2 of CT, 1 of radiographs", "1 CT series; 1 further", "1 readings", "1 marks of non-"]
    assert [one for one in words if one not in caplog.text] == []
    damaged_xml(tmp_path / "damaged")
    with pytest.raises(LidcError, match=r"x\.xml"):
        lidc_xml(str(tmp_path))


# --- real data --------------------------------------------------------------------------------------------------------


def test_a_real_scan_gives_the_known_mask(tmp_path: Path) -> None:
    reference = nib.Nifti1Image.from_filename(real("lidc_nodules/mask/LIDC-IDRI-0001_R_1.nii.gz"))
    (item,) = prepared(real("scans/LIDC-IDRI-0001"), tmp_path, strict=True).values()
    found, expected = array_of(item["mask"]) == 1, np.argwhere(np.asarray(reference.dataobj))
    to_ours = np.linalg.inv(nib.Nifti1Image.from_filename(item["mask"]).affine) @ reference.affine
    shared = np.count_nonzero(found[tuple(np.rint(apply_affine(to_ours, expected)).astype(int).T)])
    assert abs(np.count_nonzero(found) / len(expected) - 1) < 0.02
    assert 2 * shared / (np.count_nonzero(found) + len(expected)) >= 0.98
    assert item["label"].count(NODULE) == 1
    assert item["nodules"][0]["readers"] == 4


def test_every_real_xml_is_read() -> None:
    files = list(xml_files(real("lidc_xml/tcia-lidc-xml.zip")))
    found = [readings for name, content in files if (readings := parse_xml(content, name))]
    assert (len(found), len(files) - len(found)) == (1035, 283)
    series = {one.series_uid: one for one in found}
    assert (len(series), sum(len(one.readings) for one in series.values())) == (1018, 6862)
