"""Small LIDC-IDRI downloads for the tests: CT series, the readers' XML, and the same readings as DICOM objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import jinja2
import numpy as np
import numpy.typing as npt
import pydicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from tests.dicom_files import STUDY_UID, with_values, write_series

SERIES_UID = "1.3.6.1.4.1.14519.5.2.1.1"
SHAPE = (24, 20, 8)
# 0.5 × 0.5 × 2 mm, first pixel at (-10, 5, -40) LPS: the centre of voxel (i, j, k) is (-10 + i/2, 5 + j/2, -40 + 2k).
AFFINE_LPS = np.array([[0.5, 0, 0, -10.0], [0, 0.5, 0, 5.0], [0, 0, 2.0, -40.0], [0, 0, 0, 1]])
GOOD_RATINGS = {
    **{"subtlety": 5, "internalStructure": 1, "calcification": 6, "sphericity": 4, "margin": 5},
    **{"lobulation": 2, "spiculation": 1, "texture": 5, "malignancy": 3},
}

Ring = list[tuple[int, int]]


def ring(first: tuple[int, int], last: tuple[int, int]) -> Ring:
    """Return the border of the rectangle of pixels from first to last (columns, rows), walking around it."""
    (a, c), (b, d) = first, last
    top, right = [(i, c) for i in range(a, b + 1)], [(b, j) for j in range(c + 1, d + 1)]
    bottom, left = [(i, d) for i in range(b - 1, a - 1, -1)], [(a, j) for j in range(d - 1, c, -1)]
    return top + right + bottom + left


def outlined(first: tuple[int, int, int], last: tuple[int, int, int]) -> list[tuple[int, Ring, bool]]:
    """Return outlines, one pixel outside, of the box of voxels from first to last: (k, ring, is inclusion)."""
    around = ring((first[0] - 1, first[1] - 1), (last[0] + 1, last[1] + 1))
    return [(k, around, True) for k in range(first[2], last[2] + 1)]


@dataclass
class Outlines:
    """A nodule as drawn by one reader: (k, points, is inclusion); a single point in all is a nodule below 3 mm."""

    rings: list[tuple[int, Ring, bool]]
    ratings: Mapping[str, int] | None = field(default_factory=lambda: dict(GOOD_RATINGS))
    name: str = "Nodule 001"


@dataclass
class Session:
    """What one reader marked: nodules, and points (i, j, k) of non-nodules."""

    nodules: list[Outlines] = field(default_factory=list)
    others: list[tuple[int, int, int]] = field(default_factory=list)


def sop_uid(series_uid: str, k: int) -> str:
    """Return the SOPInstanceUID of a slice."""
    return f"{series_uid}.{k + 1}"


def write_ct(
    folder: Path,
    *,
    series_uid: str = SERIES_UID,
    patient: str = "LIDC-IDRI-0001",
    missing: Sequence[int] = (),
    **tags: Any,
) -> list[Path]:
    """Write a CT series of lung (-800) in air (-1000); return its files by k."""
    image = np.full(SHAPE, -1000, dtype=np.int16)
    image[4:20, 4:16] = -800

    def change(dataset: Dataset, k: int) -> bool:
        values = {
            **{"SOPInstanceUID": sop_uid(series_uid, k), "PatientID": patient, "PatientName": f"{patient}^"},
            **{"StudyInstanceUID": f"{STUDY_UID}.{patient[-1]}", "FrameOfReferenceUID": f"{STUDY_UID}.9"},
            **{"SliceThickness": "2", "SeriesNumber": 1, "InstanceNumber": k + 1},
            **dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"), ""),
            **dict.fromkeys(("StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"), ""),
        }
        with_values(dataset, **values | tags)
        return k not in missing

    return write_series(folder, image, AFFINE_LPS, change=change, series_uid=series_uid)


XML = jinja2.Template(
    """<?xml version="1.0"?>
{% macro points(name, ring) -%}
{% for i, j in ring %}<{{ name }}><xCoord>{{ i }}</xCoord><yCoord>{{ j }}</yCoord></{{ name }}>{% endfor %}
{%- endmacro %}
<LidcReadMessage xmlns="http://www.nih.gov">
<ResponseHeader><SeriesInstanceUid>{{ series_uid }}</SeriesInstanceUid></ResponseHeader>
{% for session in sessions %}<readingSession><annotationVersion>3.12</annotationVersion>
<servicingRadiologistID>anon</servicingRadiologistID>
{% for nodule in session.nodules %}<unblindedReadNodule><noduleID>{{ nodule.name | e }}</noduleID>
{% if nodule.ratings %}<characteristics>
{% for name, value in nodule.ratings.items() %}<{{ name }}>{{ value }}</{{ name }}>{% endfor %}
</characteristics>{% endif %}
{% for k, around, is_inclusion in nodule.rings %}<roi>{{ place(k) }}
<inclusion>{{ (is_inclusion | string).upper() }}</inclusion>{{ points("edgeMap", around) }}</roi>{% endfor %}
</unblindedReadNodule>{% endfor %}
{% for i, j, k in session.others %}<nonNodule><nonNoduleID>1</nonNoduleID>{{ place(k) }}
{{ points("locus", [(i, j)]) }}</nonNodule>{% endfor %}
</readingSession>{% endfor %}
</LidcReadMessage>
"""
)


def xml_text(
    sessions: Sequence[Session],
    *,
    series_uid: str = SERIES_UID,
    z_shift_mm: float = 0.0,
    places: Sequence[tuple[str, float]] | None = None,
) -> str:
    """Return LIDC's XML of a CT reading.

    Args:
        sessions: one per reader.
        series_uid: of the CT.
        z_shift_mm: shifts outlines to a wrong height.
        places: SOPInstanceUID and z of each slice; by default those of :func:`write_ct`.
    """

    def place(k: int) -> str:
        uid, z_mm = places[k] if places else (sop_uid(series_uid, k), AFFINE_LPS[2, 3] + k * AFFINE_LPS[2, 2])
        return f"<imageZposition>{z_mm + z_shift_mm:.6f} </imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"

    return XML.render(series_uid=series_uid, sessions=sessions, place=place)


def write_xml(folder: Path, sessions: Sequence[Session], name: str = "158.xml", **options: Any) -> Path:
    """Write :func:`xml_text` to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(xml_text(sessions, **options), encoding="utf-8")
    return path


# Codes of the analysis result DICOM-LIDC-IDRI-Nodules for GOOD_RATINGS: name and value, each (code, scheme, meaning)
_CODES = {
    "subtlety": (("C45992", "NCIt", "Subtlety score"), ("105", "99LIDCQIICR", "5 out of 5 (Obvious)")),
    "internalStructure": (("200", "99LIDCQIICR", "Internal structure"), ("C12471", "NCIt", "Soft tissue")),
    "calcification": (("C3672", "NCIt", "Calcification"), ("RID28473", "RadLex", "Absent")),
    "sphericity": (("400", "99LIDCQIICR", "Sphericity"), ("004", "99LIDCQIICR", "4 out of 5")),
    "margin": (("C25563", "NCIt", "Margin"), ("RID5707", "RadLex", "Circumscribed margin")),
    "lobulation": (("C62175", "NCIt", "Lobular Pattern"), ("002", "99LIDCQIICR", "2 out of 5")),
    "spiculation": (("C28749", "NCIt", "Spiculation"), ("701", "99LIDCQIICR", "1 out of 5 (No spiculation)")),
    "texture": (("C41144", "NCIt", "Texture"), ("RID50151", "RadLex", "solid pulmonary nodule")),
    "malignancy": (("RID36042", "RadLex", "Malignancy"), ("903", "99LIDCQIICR", "3 out of 5 (Indeterminate)")),
}


def write_objects(
    folder: Path, ct: Sequence[Path], masks: Sequence[npt.NDArray[np.bool_]], *, nodule: bool = True
) -> None:
    """Write one DICOM Segmentation and one Structured Report per reading, as in the Imaging Data Commons.

    Args:
        folder: receives the files.
        ct: files of the series.
        masks: one per reading, ``[I, J, K]``; all are rated :data:`GOOD_RATINGS`.
        nodule: whether the segments are labelled as nodules, otherwise as something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slices = [pydicom.dcmread(path) for path in ct]
    kind = codes.SCT.Nodule if nodule else codes.SCT.Lung
    for number, mask in enumerate(masks, start=1):
        nodule_uid = hd.UID()
        seg = _segmentation(slices, mask, number, nodule_uid, kind)
        seg.save_as(folder / f"seg{number}.dcm")
        _report(slices, seg, number, nodule_uid).save_as(folder / f"sr{number}.dcm")


def _segmentation(
    slices: list[Dataset], mask: npt.NDArray[np.bool_], number: int, nodule_uid: str, kind: Any
) -> hd.seg.Segmentation:
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"Nodule 1 - Annotation {number}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        tracking_uid=nodule_uid,
        tracking_id="Nodule 1",
    )
    return hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=100 + number,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Maker",
        manufacturer_model_name="Model",
        software_versions="1",
        device_serial_number="1",
    )


def _report(slices: list[Dataset], seg: Dataset, number: int, nodule_uid: str) -> Dataset:
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=nodule_uid, identifier="Nodule 1"),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=1,
            source_series=sr.SourceSeriesForSegmentation.from_source_image(slices[0]),
        ),
        finding_type=codes.SCT.Nodule,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(sr.CodedConcept(*name), sr.CodedConcept(*value)) for name, value in _CODES.values()
        ],
    )
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name="anonymous^observer"),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_person_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=[group],
    )
    return sr.Comprehensive3DSR(
        evidence=[*slices, seg],
        content=report[0],
        series_number=200 + number,
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Maker",
    )
