"""The DICOM objects lie on the right voxels, say what nodules.json says, and break no rule the slices keep."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from scripts.core.geometry import FloatArray, apply_affine, swap_lps_ras, swap_lps_ras_affine
from scripts.core.records import Detection, Location, Nodule, ScanResult
from scripts.decode.measurements import measure
from scripts.phantom.files import write_dicom_series
from scripts.read.discovery import find_scans
from scripts.read.reader import read_scan
from scripts.report import DicomReport, DicomSegmentation, NodulesJson, ResultWriter
from scripts.report.dicom.objects import frames
from scripts.report.tables import scan_record
from tests.dicom_files import STUDY_UID, set_raw, write_enhanced, write_series

ROOT = Path(__file__).resolve().parents[2]
FRAME_UID = f"{STUDY_UID}.9"
SHAPE = (40, 36, 24)
AXIAL = np.array([[0.7, 0, 0, -12.0], [0, 0.8, 0, 9.0], [0, 0, 1.5, -140.0], [0, 0, 0, 1.0]])
MODEL = {"name": "Lung nodules", "version": "1.2.3", "weights": "model.pt (sha256 0123456789ab)"}
SETTINGS = {"threshold": 0.5, "tile_size": [96, 96, 96], "weights": Path("secret") / "model.pt"}
Box = tuple[slice, slice, slice]
TWO_BOXES: tuple[Box, ...] = (np.s_[5:12, 20:31, 3:9], np.s_[25:33, 4:8, 8:20])
SIXTY_BOXES: tuple[Box, ...] = tuple(
    np.s_[4 * a : 4 * a + 3, 6 * b : 6 * b + 5, 2 * a : 2 * a + 3] for a in range(10) for b in range(6)
)

needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")


# --- scans and results ------------------------------------------------------------------------------------------------


def complete(dataset: Dataset, k: int) -> None:
    """The fields that a scanner fills in, so that a slice passes a validator."""
    values = {
        **{"PatientName": "Doe^Jane", "PatientID": "ID-1", "PatientBirthDate": "19600229", "PatientSex": "F"},
        **{"StudyDate": "20200101", "StudyTime": "120000", "StudyID": "7", "AccessionNumber": "A-1"},
        **{"ReferringPhysicianName": "Who^Doctor", "FrameOfReferenceUID": FRAME_UID, "PositionReferenceIndicator": ""},
        **{"SeriesNumber": 3, "AcquisitionNumber": 1, "InstanceNumber": k + 1},
        **{"SliceThickness": "1.5", "PatientPosition": "HFS"},
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)


def setting(values: dict[str, Any]) -> Callable[[Dataset, int], None]:
    """A complete slice with other values; ``None`` takes one away."""

    def change(dataset: Dataset, k: int) -> None:
        complete(dataset, k)
        for keyword, value in values.items():
            dataset.pop(keyword, None)
            if value is not None:
                setattr(dataset, keyword, value)

    return change


def result_of(
    folder: Path, boxes: Sequence[Box] = TWO_BOXES, *, affine_lps: FloatArray = AXIAL, change: Any = complete
) -> ScanResult:
    """Write a series, read it back, and outline one nodule for each box of the grid as read."""
    image = np.random.default_rng(0).integers(-900, -500, SHAPE).astype(np.int16)
    write_series(folder, image, affine_lps, change=change)
    volume = read_scan(folder)
    mask = np.zeros(volume.image_hu.shape, np.uint16)
    for label, box in enumerate(boxes, start=1):
        mask[box] = label
        mask[box][-1, -1, -1] = 0  # no symmetry that could hide a flip
    nodules = tuple(
        nodule_of(label, mask == label, volume.image_hu, volume.affine_ras, box)
        for label, box in enumerate(boxes, start=1)
    )
    return ScanResult(
        name="scan",
        source=str(folder),
        image_hu=volume.image_hu,
        affine_ras=volume.affine_ras,
        mask=mask,
        nodules=nodules,
        candidates=(),
        outside_lungs=0,
        model=MODEL,
        settings=SETTINGS,
        source_files=volume.source_files,
    )


def nodule_of(label: int, inside: np.ndarray, image_hu: np.ndarray, affine: FloatArray, box: Box) -> Nodule:
    centre = tuple((s.start + s.stop - 1) / 2 for s in box)
    detection = Detection(tuple(apply_affine(affine, centre).tolist()), 5.0 + label, 0.987654321 / label)
    return Nodule(label, detection, centre, measure(inside, image_hu, affine))


def written(result: ScanResult, folder: Path) -> tuple[Path, Path]:
    """Both objects, in the order of the configuration."""
    folder.mkdir(exist_ok=True)
    segmentation, report = both(result, folder)
    assert segmentation is not None
    assert report is not None
    return segmentation, report


def both(result: ScanResult, folder: Path) -> list[Path | None]:
    """What both writers return, in the order of the configuration."""
    return [writer(result, folder) for writer in (DicomSegmentation(), DicomReport())]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScanResult, Path, Path]:
    """A result with two nodules, its Segmentation and its report."""
    folder = tmp_path_factory.mktemp("made")
    result = result_of(folder / "scan")
    return (result, *written(result, folder))


Made = tuple[ScanResult, Path, Path]


def groups_of(report: Path) -> list[Any]:
    """The measurement groups that refer to a segment."""
    return list(highdicom.sr.srread(report).content.get_volumetric_roi_measurement_groups())


def other_groups_of(report: Path) -> list[Any]:
    """The measurement groups that do not."""
    return list(highdicom.sr.srread(report).content.get_image_measurement_groups())


# --- where the segments lie -------------------------------------------------------------------------------------------


def _turned(degrees: float, axes: tuple[int, int]) -> FloatArray:
    turn = np.eye(4)
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turn[np.ix_(axes, axes)] = [[cosine, -sine], [sine, cosine]]
    return turn


GRIDS = {
    "axial": AXIAL,
    "mirrored rows": AXIAL @ np.diag([1.0, -1.0, 1.0, 1.0]),
    "head first": AXIAL @ np.diag([-1.0, -1.0, -1.0, 1.0]),
    "coronal": AXIAL[[0, 2, 1, 3]],
    "sagittal": AXIAL[[2, 0, 1, 3]],
    "oblique": _turned(25.0, (1, 2)) @ _turned(-10.0, (0, 1)) @ AXIAL,
    "tilted gantry": np.array([[1, 0, 0, 0], [0, 1, np.tan(np.radians(18.0)), 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AXIAL,
}


def _positions_lps_mm(segmentation: Path) -> dict[int, np.ndarray]:
    """World positions of each segment's pixels, sorted, from the frames alone: ``[N, 3]``, LPS mm."""
    data = pydicom.dcmread(segmentation)
    shared = data.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    found: dict[int, list[np.ndarray]] = {}
    pixels = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    for image, group in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        j, i = np.nonzero(image)
        assert len(j) > 0, "no frame is empty"
        where = origin + i[:, None] * between_columns * row + j[:, None] * between_rows * column
        number = shared if "SegmentIdentificationSequence" in shared else group
        found.setdefault(number.SegmentIdentificationSequence[0].ReferencedSegmentNumber, []).append(where)
    return {number: _sorted(np.concatenate(parts)) for number, parts in found.items()}


def _sorted(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.rint(points / 0.01).T)]


def expected_lps_mm(result: ScanResult, label: int) -> np.ndarray:
    return _sorted(swap_lps_ras(apply_affine(result.affine_ras, np.argwhere(result.mask == label))))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_voxel_of_a_segment_is_a_voxel_of_the_mask(grid: str, tmp_path: Path) -> None:
    result = result_of(tmp_path / "scan", affine_lps=GRIDS[grid])
    segmentation, _ = written(result, tmp_path)
    found = _positions_lps_mm(segmentation)
    assert set(found) == {1, 2}
    for label, positions in found.items():
        np.testing.assert_allclose(positions, expected_lps_mm(result, label), atol=2e-3)
    # As a viewer reads it: by the SOPInstanceUID of each slice, in the order in which the scan was read.
    places = {one.SOPInstanceUID: list(one.ImagePositionPatient) for one in map(pydicom.dcmread, result.source_files)}
    read = highdicom.seg.segread(segmentation)
    pixels = read.get_pixels_by_source_instance(
        list(places), combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels, result.mask.transpose(2, 1, 0))
    for group in read.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.SpatialLocationsPreserved == "YES"
        assert list(group.PlanePositionSequence[0].ImagePositionPatient) == places[reference.ReferencedSOPInstanceUID]
    assert read.NumberOfFrames == 6 + 12  # one for each slice that a nodule touches
    (measures,) = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SpacingBetweenSlices == pytest.approx(1.5, abs=1e-6)  # along the normal
    assert measures.SliceThickness == 1.5


def test_slices_whose_orientation_differs_by_rounding(tmp_path: Path) -> None:
    def jitter(dataset: Dataset, k: int) -> None:
        complete(dataset, k)
        dataset.ImageOrientationPatient = [1, 0.0001 * (k % 2), 0, 0, 1, 0]

    result = result_of(tmp_path / "scan", change=jitter)
    segmentation, _ = written(result, tmp_path)
    assert len(_positions_lps_mm(segmentation)[1]) == (result.mask == 1).sum()


@pytest.mark.parametrize("boxes", [SIXTY_BOXES, [tuple(slice(0, n) for n in SHAPE)]], ids=["sixty", "to the border"])
def test_many_and_large_nodules_keep_their_numbers(boxes: Sequence[Box], tmp_path: Path) -> None:
    result = result_of(tmp_path / "scan", boxes)
    segmentation, report = written(result, tmp_path)
    found = _positions_lps_mm(segmentation)
    assert sorted(found) == list(range(1, len(boxes) + 1))
    for label in {1, 2, 59, 60} & set(found):
        np.testing.assert_allclose(found[label], expected_lps_mm(result, label), atol=2e-3)
    assert [group.tracking_identifier for group in groups_of(report)] == [f"Nodule {n}" for n in sorted(found)]


def test_frames_number_segments_without_gaps_and_beyond_a_byte() -> None:
    mask, numbered = np.zeros((3, 2, 2), np.uint16), np.zeros((2, 2, 3), np.uint8)
    mask[0, 1, 0], mask[2, 0, 1] = 2, 5
    numbered[0, 1, 0], numbered[1, 0, 2] = 1, 2
    np.testing.assert_array_equal(frames(mask, [2, 5]), numbered, strict=True)
    many = np.arange(1, 301, dtype=np.uint16).reshape(10, 10, 3)
    np.testing.assert_array_equal(frames(many, list(range(1, 301))), many.transpose(2, 1, 0))


# --- what the objects say ---------------------------------------------------------------------------------------------


def test_segments_are_described_by_codes(made: Made) -> None:
    data = pydicom.dcmread(made[1])
    assert (data.Modality, data.SegmentationType, data.BitsAllocated) == ("SEG", "BINARY", 1)
    for number, segment in enumerate(data.SegmentSequence, start=1):
        coded = ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence")
        found = [[(c.CodeValue, c.CodingSchemeDesignator) for c in segment[keyword]] for keyword in coded]
        assert found == [[("49755003", "SCT")], [("27925004", "SCT")], [("39607008", "SCT")]]
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (MODEL["name"], MODEL["version"])
        assert algorithm.AlgorithmParameters == "threshold=0.5,tile_size=[96, 96, 96]"
        assert (segment.SegmentLabel, segment.TrackingID) == (f"Nodule {number}", f"Nodule {number}")
    first, second = data.SegmentSequence
    assert first.SegmentDescription == "Probability 0.988"
    for own in ("TrackingUID", "RecommendedDisplayCIELabValue"):
        assert first[own].value != second[own].value


def test_measurements_are_those_of_nodules_json(made: Made) -> None:
    for group, record in zip(groups_of(made[2]), scan_record(made[0])["nodules"], strict=True):
        found = {m.name.meaning: (m.value, m.unit.value, m.unit.scheme_designator) for m in group.get_measurements()}
        assert found == {
            "Volume": (record["volume_mm3"], "mm3", "UCUM"),
            "Long axis": (record["long_axis_mm"], "mm", "UCUM"),
            "Short axis": (record["short_axis_mm"], "mm", "UCUM"),
            "Attenuation Coefficient": (record["mean_hu"], "[hnsf'U]", "UCUM"),
            "Certainty of Finding": (pytest.approx(100 * record["probability"]), "%", "UCUM"),
        }
        (mean,) = group.get_measurements(codes.DCM.AttenuationCoefficient)
        assert (mean.derivation, group.finding_type) == (codes.SCT.Mean, codes.SCT.Nodule)
        assert group.tracking_identifier == f"Nodule {record['label']}"
        assert [site.value for site in group.finding_sites] == [codes.SCT.Lung]


def test_the_report_refers_to_the_segments_and_to_the_series(made: Made) -> None:
    result, segmentation, report = made
    data, slices = pydicom.dcmread(segmentation), [pydicom.dcmread(file) for file in result.source_files]
    for group, segment in zip(groups_of(report), data.SegmentSequence, strict=True):
        assert group.tracking_uid == segment.TrackingUID
        reference = group.referenced_segment
        (item,) = reference[0].ReferencedSOPSequence
        assert item.ReferencedSOPInstanceUID == data.SOPInstanceUID
        assert item.ReferencedSegmentNumber == segment.SegmentNumber
        assert reference.source_series_for_segmentation.value == slices[0].SeriesInstanceUID
    (evidence,) = pydicom.dcmread(report).CurrentRequestedProcedureEvidenceSequence
    named = {i.ReferencedSOPInstanceUID for s in evidence.ReferencedSeriesSequence for i in s.ReferencedSOPSequence}
    assert named == {one.SOPInstanceUID for one in (data, *slices)}


def test_hints_are_coded(made: Made, tmp_path: Path) -> None:
    hints = [("part-solid", Location("left", "upper")), ("ground-glass", Location("right", "middle"))]
    nodules = tuple(
        dataclasses.replace(nodule, measurement=dataclasses.replace(nodule.measurement, type_hint=hint), location=place)
        for nodule, (hint, place) in zip(made[0].nodules, hints, strict=True)
    )
    _, report = written(dataclasses.replace(made[0], nodules=nodules), tmp_path)
    coded = []
    for group in groups_of(report):
        (texture,) = [e.value.value for e in group.get_qualitative_evaluations() if e.name.value == "C41144"]
        coded.append((texture, group.finding_sites[0].laterality, group.finding_sites[0].topographical_modifier))
    assert coded == [
        ("RID50152", codes.SCT.Left, codes.SCT.Superior),
        ("RID50153", codes.SCT.Right, codes.SCT.Intermediate),
    ]


def test_both_say_what_they_are_not_for(made: Made) -> None:
    segmentation, report = map(pydicom.dcmread, made[1:])
    assert ["research" in one.SeriesDescription for one in (segmentation, report)] == [True, True]
    assert "not for diagnosis" in segmentation.ContentDescription
    flags = report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    comment = report.ContentSequence[-1]
    assert comment.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    assert "not for diagnosis" in comment.TextValue


def test_no_finding_is_a_report_without_a_segmentation(tmp_path: Path) -> None:
    segmentation, report = both(result_of(tmp_path / "scan", []), tmp_path)
    assert (segmentation, report) == (None, tmp_path / "report.dcm")
    assert not (tmp_path / DicomSegmentation.filename).exists()
    (group,) = other_groups_of(tmp_path / "report.dcm")
    (summary,) = group.get_qualitative_evaluations()
    assert summary.name == codes.DCM.CADProcessingAndFindingsSummary
    assert summary.value == codes.DCM.AllAlgorithmsSucceededWithoutFindings
    assert (group.get_measurements(), groups_of(tmp_path / "report.dcm")) == ([], [])


def first_without_outline(result: ScanResult) -> ScanResult:
    """Of two nodules the first has none."""
    bare = dataclasses.replace(result.nodules[0], measurement=None)
    mask = np.where(result.mask == 2, 2, 0).astype(np.uint16)
    return dataclasses.replace(result, mask=mask, nodules=(bare, result.nodules[1]))


def test_a_nodule_without_an_outline_refers_to_its_slice(made: Made, tmp_path: Path) -> None:
    """It has no segment, so the numbers of the segments behind it do not follow the labels."""
    result = first_without_outline(made[0])
    segmentation, report = written(result, tmp_path)
    (segment,) = pydicom.dcmread(segmentation).SegmentSequence
    assert (segment.SegmentNumber, segment.TrackingID) == (1, "Nodule 2")
    assert list(_positions_lps_mm(segmentation)) == [1]
    (outlined,), (other,) = groups_of(report), other_groups_of(report)
    assert (outlined.tracking_identifier, outlined.tracking_uid) == ("Nodule 2", segment.TrackingUID)
    assert other.tracking_identifier == "Nodule 1"
    assert {m.name.meaning: m.value for m in other.get_measurements()} == {
        "Diameter": 6.0,
        "Certainty of Finding": pytest.approx(98.7654321),
    }
    nearest = pydicom.dcmread(result.source_files[round(result.nodules[0].centre_voxel[2])])
    assert [image.referenced_sop_instance_uid for image in other.source_images] == [nearest.SOPInstanceUID]


def test_without_the_segmentation_the_report_holds_the_measurements_all_the_same(made: Made, tmp_path: Path) -> None:
    DicomReport()(made[0], tmp_path)
    assert [len(group.get_measurements()) for group in other_groups_of(tmp_path / "report.dcm")] == [5, 5]


# --- patient, study, identifiers --------------------------------------------------------------------------------------


SCRIPTS = {
    "latin 1": ("ISO_IR 100", "Müller^Jürgen"),
    "cyrillic": ("ISO_IR 144", "Люкceмбypг"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "utf-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
}
TAKEN_OVER: dict[str, dict[str, Any]] = {
    "plain": {"PatientAge": "060Y"},
    "breaks rules": {
        **{"PatientSex": "female", "PatientBirthDate": "29.2.1960", "PatientName": "No carets " * 8},
        **{"StudyTime": "noon", "StudyInstanceUID": "1.02.003"},
    },
    **{script: {"SpecificCharacterSet": text, "PatientName": name} for script, (text, name) in SCRIPTS.items()},
}
KEYWORDS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyDate"),
    *("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet"),
)


@pytest.mark.parametrize("case", TAKEN_OVER)
def test_patient_and_study_are_those_of_the_slices(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pydicom.config.disable_value_validation():
        result = result_of(tmp_path / "scan", change=setting(TAKEN_OVER[case]))
    with caplog.at_level(logging.WARNING):
        paths = written(result, tmp_path)
    assert caplog.records == []
    with pydicom.config.disable_value_validation():
        source = pydicom.dcmread(result.source_files[0])
        for made in map(pydicom.dcmread, paths):
            assert [made.get(keyword) for keyword in KEYWORDS] == [source.get(keyword) for keyword in KEYWORDS]
            assert made.PatientName == TAKEN_OVER[case].get("PatientName", "Doe^Jane").strip()
            assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert pydicom.dcmread(paths[0]).FrameOfReferenceUID == FRAME_UID


def _uids(data: Dataset) -> set[str]:
    """Every UID in a data set but those of SOP classes and transfer syntaxes."""
    found: set[str] = set()
    data.walk(lambda _, e: found.update([str(e.value)]) if e.VR == "UI" and "Class" not in e.keyword else None)
    return found


def test_new_uids_are_made_of_uuids_and_never_used_twice(made: Made, tmp_path: Path) -> None:
    known = set().union(*(_uids(pydicom.dcmread(file)) for file in made[0].source_files))
    first, second = (
        (_uids(pydicom.dcmread(segmentation)) | _uids(pydicom.dcmread(report))) - known
        for segmentation, report in (made[1:], written(made[0], tmp_path))
    )
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid) for uid in first | second)
    assert len(first) >= 8  # two objects, two series, two nodules, the organisation of dimensions, the program
    assert len(first & second) == 1  # the program that made them


def test_what_is_missing_is_empty_or_made_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = ("PatientID", "PatientSex", "StudyDate", "AccessionNumber")
    change = setting(dict.fromkeys((*empty, "FrameOfReferenceUID", "SliceThickness")))
    with caplog.at_level(logging.WARNING):
        paths = written(result_of(tmp_path / "scan", change=change), tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.split(", ", 1)[1].split("; ") == [
        "the slices lack PatientID, PatientSex, StudyDate, AccessionNumber: left empty",
        "the slices lack FrameOfReferenceUID: a new one is used",
        "the slices lack SliceThickness: their distance of 1.5 mm is used",
    ]
    for made in map(pydicom.dcmread, paths):
        assert all(made[keyword].is_empty for keyword in empty)
        assert made.PatientName == "Doe^Jane"
    segmentation = pydicom.dcmread(paths[0])
    assert segmentation.FrameOfReferenceUID.startswith("2.25.")
    assert segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 1.5


def test_a_value_that_cannot_be_read_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = result_of(tmp_path / "scan", change=setting({"PatientWeight": "61.25"}))
    for file in map(Path, result.source_files):
        before, weight, after = file.read_bytes().partition(b"\x10\x00\x30\x10DS")
        file.write_bytes(before + weight[:4] + b"FD" + after)  # 6 bytes are no double
    with caplog.at_level(logging.WARNING):
        segmentation, _ = written(result, tmp_path)
    assert "PatientWeight" not in pydicom.dcmread(segmentation)
    assert "cannot be read, left out: PatientWeight" in caplog.text


# --- no object --------------------------------------------------------------------------------------------------------


def test_objects_of_a_former_result_are_replaced(made: Made, tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path / "out", [NodulesJson(), DicomSegmentation(), DicomReport()], overwrite=True)
    nothing = dataclasses.replace(made[0], nodules=(), mask=np.zeros_like(made[0].mask))
    no_dicom = dataclasses.replace(made[0], source_files=())
    for result, objects in (
        (made[0], {"segmentation.dcm", "report.dcm"}),
        (nothing, {"report.dcm"}),
        (no_dicom, set()),
    ):
        assert {file.name for file in writer(result).iterdir()} == {"nodules.json", *objects}


def one_is_gone(folder: Path) -> tuple[str, ...]:
    files = result_of(folder).source_files
    Path(files[3]).unlink()
    return files


def enhanced(folder: Path) -> tuple[str, ...]:
    image = np.random.default_rng(0).integers(-900, -500, SHAPE).astype(np.int16)
    return read_scan(write_enhanced(folder / "enhanced.dcm", image, AXIAL)).source_files


UNFIT: dict[str, tuple[Callable[[Path], tuple[str, ...]], list[str]]] = {
    "one UID for all": (
        lambda folder: result_of(folder, change=setting({"SOPInstanceUID": "1.2.3"})).source_files,
        ["no DICOM objects are written: expected a SOPInstanceUID of its own in each of the 24 slices, got 1"],
    ),
    "secondary capture": (
        lambda folder: result_of(folder, change=setting({"SOPClassUID": SecondaryCaptureImageStorage})).source_files,
        ["no DICOM objects are written: expected slices of SOP class CT Image Storage, got 1.2.840"],
    ),
    "enhanced CT": (enhanced, ["no DICOM objects are written: expected slices of SOP class CT Image Storage"]),
    "one slice is gone": (
        one_is_gone,
        [f"{name} is left out: .* got one that cannot be read" for name in ("segmentation.dcm", "report.dcm")],
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_slices_that_nothing_can_refer_to_have_no_objects_and_the_log_says_why(
    case: str, made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files_of, reasons = UNFIT[case]
    result = dataclasses.replace(made[0], source_files=files_of(tmp_path / "scan"))
    with caplog.at_level(logging.WARNING):
        assert both(result, tmp_path) == [None, None]
    for record, reason in zip(caplog.records, reasons, strict=True):
        assert re.search(reason, record.getMessage())


@pytest.mark.parametrize(
    "tags",
    [
        {"SliceThickness": "2,5"},
        {"SliceThickness": "2.5 mm"},
        {"SliceThickness": "2.5\\2.5"},
        {"SliceThickness": "-1"},
        {"SliceThickness": "nan"},
        {"KVP": "120 kV", "StudyDate": "31.01.2020", "StudyTime": "noon", "PatientBirthDate": "1950"},
        {"PatientName": "M\xfcller^" + "x" * 70, "PatientID": "7" * 80, "PatientSex": "unknown"},
        {"SpecificCharacterSet": "ISO_IR 999", "AccessionNumber": "no. 12345678901234567890"},
        {"FrameOfReferenceUID": "1.2." + "3" * 70},
        {"LossyImageCompression": "yes", "LossyImageCompressionRatio": "10,5", "PositionReferenceIndicator": "x" * 90},
    ],
    ids=str,
)
def test_odd_header_values_cost_neither_scan_nor_objects(tags: dict[str, str], tmp_path: Path) -> None:
    def change(dataset: Dataset, k: int) -> None:
        complete(dataset, k)
        for keyword, value in tags.items():
            set_raw(dataset, keyword, value)

    found = both(result_of(tmp_path / "scan", change=change), tmp_path)
    assert found == [tmp_path / "segmentation.dcm", tmp_path / "report.dcm"]


def test_a_study_that_holds_former_results_is_read_as_before(tmp_path: Path) -> None:
    result = result_of(tmp_path / "scan")
    written(result, tmp_path / "scan")
    assert [tuple(scan["image"]) for scan in find_scans(tmp_path / "scan")] == [result.source_files]
    np.testing.assert_array_equal(read_scan(tmp_path / "scan").image_hu, result.image_hu)


def test_highdicom_is_imported_when_it_is_needed_and_not_before() -> None:
    code = "import sys, scripts.report; sys.exit('highdicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- other programs ---------------------------------------------------------------------------------------------------


def _errors(path: Path | str) -> set[str]:
    """The errors that dciodvfy finds in a file."""
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, errors="replace", check=False)
    return {line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")}


@needs_dciodvfy
@pytest.mark.parametrize("form", ["two", "sixty", "none", "bare", "tilted gantry", "japanese"])
def test_the_validator_finds_no_error(form: str, tmp_path: Path) -> None:
    boxes = {"sixty": SIXTY_BOXES, "none": ()}.get(form, TWO_BOXES)
    change = setting(TAKEN_OVER.get(form, {}))
    result = result_of(tmp_path / "scan", boxes, affine_lps=GRIDS.get(form, AXIAL), change=change)
    paths = both(first_without_outline(result) if form == "bare" else result, tmp_path)
    assert [path is None for path in paths] == [form == "none", False]
    assert [_errors(path) for path in paths if path] == [set()] * (1 if form == "none" else 2)


@needs_dciodvfy
def test_the_validator_finds_an_error_when_there_is_one(made: Made, tmp_path: Path) -> None:
    data = pydicom.dcmread(made[1])
    del data.SegmentSequence[0].SegmentAlgorithmType
    data.save_as(tmp_path / "broken.dcm")
    assert any("SegmentAlgorithmType" in error for error in _errors(tmp_path / "broken.dcm"))


@needs_dciodvfy
def test_the_synthetic_chest_has_no_error_of_its_own(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-900, -500, SHAPE).astype(np.int16)
    write_dicom_series(tmp_path / "series", image, swap_lps_ras_affine(AXIAL))
    assert _errors(next((tmp_path / "series").iterdir())) == set()


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dcmtk is not installed")
def test_dcmtk_reads_the_report(made: Made) -> None:
    run = subprocess.run(["dsrdump", str(made[2])], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Certainty of Finding" in run.stdout
