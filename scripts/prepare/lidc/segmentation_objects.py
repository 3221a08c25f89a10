"""Reads DICOM Segmentations and Structured Reports of the Imaging Data Commons as the same readings as LIDC's XML.

Source: Fedorov A et al., DICOM re-encoding of volumetrically annotated LIDC nodules, Medical Physics 47:5953-5965,
2020, doi:10.1002/mp.14445 (analysis result DICOM-LIDC-IDRI-Nodules). Each segment contains one reader's nodule, without
the pixels of the outline itself; a measurement group of a report refers to the segment and contains the ratings as
codes.

These objects do not contain: which readings are by the same reader (each counts as a reader of its own), nodules below
3 mm, and non-nodules. They are read with plain pydicom, so that the checks of a higher-level library cannot refuse a
published file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from scipy import ndimage

from ...core.geometry import BoolArray
from ...read.dicom_header import lenient, read_dicom
from .readings import Frame, LidcError, Reading, Region, SeriesReadings, cut

NODULE_CODES = frozenset({"27925004", "M-03010"})  # SNOMED CT and its older form SRT

# Code values of the ratings' names, and of their values, unless these end in the rating itself (99LIDCQIICR "103": 3).
_NAMES = {
    "C45992": "subtlety",
    "200": "internalStructure",
    "C3672": "calcification",
    "400": "sphericity",
    "C25563": "margin",
    "C62175": "lobulation",
    "C28749": "spiculation",
    "C41144": "texture",
    "RID36042": "malignancy",
}
_OWN_SCHEME = "99LIDCQIICR"
_VALUES = {
    "C12471": 1,  # internal structure: soft tissue
    "C25278": 2,  # internal structure: fluid
    "C12472": 3,  # internal structure: fat
    "C73434": 4,  # internal structure: air
    "RID35453": 1,  # calcification: popcorn
    "RID5741": 3,  # calcification: solid
    "RID5827": 5,  # calcification: central
    "RID28473": 6,  # calcification: absent
    "RID5811": 1,  # sphericity: linear
    "RID5800": 3,  # sphericity: ovoid
    "RID5799": 5,  # sphericity: round
    "RID5709": 1,  # margin: indistinct
    "RID5707": 5,  # margin: circumscribed
    "RID50153": 1,  # texture: non-solid
    "RID50152": 3,  # texture: part-solid
    "RID50151": 5,  # texture: solid
}

SegmentKey = tuple[str, int]  # SOPInstanceUID of the segmentation, and number of the segment
Ratings = dict[SegmentKey, dict[str, int]]


def nodule_keys(segmentation: pydicom.Dataset, path: Path) -> tuple[str, list[SegmentKey]]:
    """Return the UID of the CT series of a DICOM Segmentation, and its segments that are nodules; needs no pixels.

    Args:
        segmentation: the object; may be without pixels.
        path: its file, for messages.

    Raises:
        LidcError: the series or the type of a segment is missing.
    """
    with _refusing_damaged(path):
        uid = str(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID)
        nodules = [item for item in segmentation.SegmentSequence if _is_nodule(item)]
        return uid, [(str(segmentation.SOPInstanceUID), int(item.SegmentNumber)) for item in nodules]


def read_ratings(path: Path) -> Ratings:
    """Return the ratings of segments in one Structured Report; empty if it contains none.

    Raises:
        LidcError: the file cannot be read, or is not a report.
    """
    found: Ratings = {}
    with _refusing_damaged(path):
        for group in _containers(read_dicom(path)):
            codes, images = (
                [item for item in group.ContentSequence if item.get("ValueType") == kind] for kind in ("CODE", "IMAGE")
            )
            ratings = dict(rating for item in codes for rating in _rating(item))
            for key in [key for item in images for key in _segment_keys(item)] if ratings else []:
                found.setdefault(key, {}).update(ratings)
    return found


def read_objects(series_uid: str, paths: Sequence[Path], ratings: Ratings) -> SeriesReadings:
    """Return the readings of one series from its DICOM Segmentations.

    Readings are numbered in the order of their names, and each number counts as a reader.

    Args:
        series_uid: SeriesInstanceUID of the CT.
        paths: the segmentations.
        ratings: ratings of their segments; segments without any are possible.

    Raises:
        LidcError: a segmentation cannot be read or is not binary, or one of its segments is empty.
    """
    segments = sorted(
        (segment for path in paths for segment in _segments(path)), key=lambda segment: (segment[1], segment[0])
    )
    readings = [
        Reading(number, name, regions, ratings.get(key, {})) for number, (key, name, regions) in enumerate(segments, 1)
    ]
    return SeriesReadings(series_uid, tuple(readings))


def _segments(path: Path) -> Iterator[tuple[SegmentKey, str, tuple[Region, ...]]]:
    """Yield key, name and regions of each nodule of one DICOM Segmentation.

    Raises:
        LidcError: see :func:`read_objects`.
    """
    with _refusing_damaged(path):
        dataset = read_dicom(path, pixels=True)
        if dataset.SegmentationType != "BINARY":
            raise ValueError(f"its type is {dataset.SegmentationType}")
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns) > 0
        for item in filter(_is_nodule, dataset.SegmentSequence):
            regions = tuple(_regions(dataset, pixels, item.SegmentNumber))
            if not regions:
                raise ValueError(f"segment {item.SegmentNumber} is empty")
            name = f"{item.get('TrackingID', '')} {item.get('SegmentLabel', '')}".strip()
            yield (str(dataset.SOPInstanceUID), int(item.SegmentNumber)), name, regions


@contextmanager
def _refusing_damaged(path: Path) -> Iterator[None]:
    """Turn the errors that a damaged or different object causes into a :class:`LidcError` that names the file."""
    try:
        with lenient:
            yield
    except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise LidcError(
            f"{path}: expected a binary segmentation or a report, got a damaged or another object ({error}); copy it "
            "again or leave it out"
        ) from error


def _is_nodule(segment: pydicom.Dataset) -> bool:
    return segment.SegmentedPropertyTypeCodeSequence[0].get("CodeValue") in NODULE_CODES


def _regions(dataset: pydicom.Dataset, pixels: BoolArray, number: int) -> Iterator[Region]:
    """Yield the regions of one segment, one per frame; frames without a pixel inside are left out."""
    for groups, mask in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        if (
            _macro(dataset, groups, "SegmentIdentificationSequence")[0].ReferencedSegmentNumber != number
            or not mask.any()
        ):
            continue
        derivations = _macro(dataset, groups, "DerivationImageSequence") or []
        sources = [image for part in derivations for image in part.get("SourceImageSequence", [])]
        frame = Frame(
            tuple(map(float, _macro(dataset, groups, "PlanePositionSequence")[0].ImagePositionPatient)),
            tuple(map(float, _macro(dataset, groups, "PlaneOrientationSequence")[0].ImageOrientationPatient)),
            (int(dataset.Columns), int(dataset.Rows)),
        )
        sop_uid = str(sources[0].ReferencedSOPInstanceUID) if len(sources) == 1 else ""
        yield region_of_pixels(sop_uid, frame.position_lps_mm[2], mask.T, frame)


def _macro(dataset: pydicom.Dataset, groups: pydicom.Dataset, name: str) -> Any:
    """Return a functional group of one frame: its own, otherwise the shared one, or ``None`` (PS3.3, C.7.6.16)."""
    return groups.get(name) or dataset.SharedFunctionalGroupsSequence[0].get(name)


def region_of_pixels(sop_uid: str, z_mm: float, mask: BoolArray, frame: Frame | None = None) -> Region:
    """Return a region from its pixels; its border consists of their outer neighbours along rows and columns.

    Args:
        sop_uid: SOPInstanceUID of the slice; "" if unknown.
        z_mm: z of the slice, LPS.
        mask: ``[I, J]`` bool, of the whole slice; at least one pixel is true.
        frame: position of the slice; ``None`` if unknown.
    """
    corner, inside = cut(mask, np.zeros(2, dtype=np.int64))
    wide = np.pad(inside, 1)
    border = np.argwhere(ndimage.binary_dilation(wide) & ~wide) + corner - 1
    within = ((border >= 0) & (border < mask.shape)).all(axis=1)
    return Region(sop_uid, z_mm, corner, inside, border[within], frame)


def _containers(item: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Yield a content item and all items below it, as far as they contain other items."""
    if "ContentSequence" in item:
        yield item
        for child in item.ContentSequence:
            yield from _containers(child)


def _segment_keys(item: pydicom.Dataset) -> Iterator[SegmentKey]:
    """Yield the segments that an image item refers to; none if it refers to something else."""
    for reference in item.get("ReferencedSOPSequence", []):
        for number in np.atleast_1d(reference.get("ReferencedSegmentNumber", [])):
            yield str(reference.ReferencedSOPInstanceUID), int(number)


def _rating(item: pydicom.Dataset) -> Iterator[tuple[str, int]]:
    """Yield a rating if the code item is one of the nine and its value is known."""
    name = _NAMES.get(str(item.ConceptNameCodeSequence[0].get("CodeValue")))
    code = item.ConceptCodeSequence[0]
    text = str(code.get("CodeValue"))
    value = int(text[-1]) if code.get("CodingSchemeDesignator") == _OWN_SCHEME else _VALUES.get(text)
    if name and value:
        yield name, value
