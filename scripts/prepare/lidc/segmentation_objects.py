"""DICOM Segmentations and Structured Reports of the Imaging Data Commons become the same readings as LIDC's XML.

Source: Fedorov A et al., DICOM re-encoding of volumetrically annotated LIDC nodules, Medical Physics 47:5953-5965,
2020, doi:10.1002/mp.14445 (analysis result DICOM-LIDC-IDRI-Nodules). One segment holds one reader's nodule, without the
outline's own pixels; a measurement group of a report refers to the segment and holds the ratings as codes.

What these objects do not hold: which readings are of one reader (each counts as a reader of its own), nodules below
3 mm and non-nodules. Plain pydicom reads them: no check of a library on top may refuse a published file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from scipy import ndimage

from ...core.geometry import FloatArray
from .readings import LidcError, Reading, Region

SAME_PLACE_MM = 0.2  # a frame may lie this far from its slice: slices jitter by 0.1 mm, pixels are 0.4 mm or more
SAME_DIRECTION = 1e-3  # of direction cosines: rounding of headers
NODULE_CODES = frozenset({"27925004", "M-03010"})  # SNOMED CT and its older form SRT

# Code values of the ratings' names and, where they do not end in the rating itself (99LIDCQIICR "103": 3), of values.
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
    **{"C12471": 1, "C25278": 2, "C12472": 3, "C73434": 4},  # internal structure: soft tissue, fluid, fat, air
    **{"RID35453": 1, "RID5741": 3, "RID5827": 5, "RID28473": 6},  # calcification: popcorn, solid, central, absent
    **{"RID5811": 1, "RID5800": 3, "RID5799": 5},  # sphericity: linear, ovoid, round
    **{"RID5709": 1, "RID5707": 5},  # margin: indistinct, circumscribed
    **{"RID50153": 1, "RID50152": 3, "RID50151": 5},  # texture: non-solid, part-solid, solid
}

SegmentKey = tuple[str, int]  # SOPInstanceUID of the segmentation, number of the segment


@dataclass(frozen=True)
class Frame:
    """Where one frame of a segmentation lies.

    Attributes:
        sop_uid: of its slice; "" where it does not name one: its position then tells.
        position_lps_mm: of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        size: columns, rows.
    """

    sop_uid: str
    position_lps_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """One reader's nodule, not yet rated.

    Attributes:
        key: names it.
        series_uid: SeriesInstanceUID of the CT.
        name: the tracking identifier and label.
        regions: its slices; at least one.
        frames: where they lie, in the same order.
    """

    key: SegmentKey
    series_uid: str
    name: str
    regions: tuple[Region, ...]
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class SegmentationHeader:
    """What pairing needs of one DICOM Segmentation: its file, the CT's SeriesInstanceUID, the segments with nodules."""

    path: Path
    series_uid: str
    keys: tuple[SegmentKey, ...]


def read_segmentation_header(path: Path) -> SegmentationHeader:
    """Which nodules of which CT series a DICOM Segmentation holds, without its pixels.

    Raises:
        LidcError: it cannot be read, or does not say.
    """
    dataset = _read(path, stop_before_pixels=True)
    with _damage_told(path):
        keys = [(str(dataset.SOPInstanceUID), int(s.SegmentNumber)) for s in dataset.SegmentSequence if _is_nodule(s)]
        return SegmentationHeader(path, str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID), tuple(keys))


def read_segments(path: Path) -> list[Segment]:
    """The nodules of one DICOM Segmentation; segments that are no nodules give none.

    Raises:
        LidcError: it cannot be read, is fractional, or does not name its slices.
    """
    dataset = _read(path)
    if dataset.get("SegmentationType") != "BINARY":
        raise LidcError(f"{path}: expected a binary segmentation, got {dataset.get('SegmentationType')}; leave it out")
    with _damage_told(path):
        nodules = {int(s.SegmentNumber): s for s in dataset.SegmentSequence if _is_nodule(s)}
        if not nodules:
            return []
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns) > 0
        return [_segment(dataset, pixels, number, item) for number, item in nodules.items()]


def read_ratings(path: Path) -> dict[SegmentKey, dict[str, int]]:
    """Ratings of segments in one Structured Report; empty where it rates none.

    Raises:
        LidcError: it cannot be read.
    """
    found: dict[SegmentKey, dict[str, int]] = {}
    report = _read(path)
    with _damage_told(path):
        for group in _containers(report):
            keys, ratings = [], {}
            for item in group.get("ContentSequence", []):
                if item.get("ValueType") == "IMAGE":
                    keys += _segment_keys(item)
                elif item.get("ValueType") == "CODE":
                    ratings.update(_rating(item))
            for key in keys if ratings else []:
                found.setdefault(key, {}).update(ratings)
    return found


def segment_readings(segments: Sequence[Segment], ratings: dict[SegmentKey, dict[str, int]]) -> tuple[Reading, ...]:
    """Readings of one series, numbered in the order of their names; the number stands for the reader."""
    ordered = sorted(segments, key=lambda segment: (segment.name, segment.key))
    return tuple(
        Reading(number, segment.name, segment.regions, ratings.get(segment.key, {}))
        for number, segment in enumerate(ordered, start=1)
    )


def check_frames(
    segment: Segment, shape: Sequence[int], positions_lps_mm: Mapping[str, FloatArray], axes: FloatArray
) -> None:
    """Refuse a segment whose pixels are not those of the scan: regions carry columns and rows only.

    Args:
        segment: to check; a slice that the scan lacks is not judged here.
        shape: of the scan's grid.
        positions_lps_mm: of the first pixel of each slice, by SOPInstanceUID.
        axes: ``[3, 2]`` unit vectors along columns' index i and rows' index j, LPS.

    Raises:
        LidcError: another size, position or orientation.
    """
    for frame in segment.frames:
        if frame.sop_uid and frame.sop_uid not in positions_lps_mm:
            continue
        candidates = [positions_lps_mm[frame.sop_uid]] if frame.sop_uid else list(positions_lps_mm.values())
        apart_mm = min(float(np.linalg.norm(place - frame.position_lps_mm)) for place in candidates)
        turned = float(np.abs(np.reshape(frame.orientation, (2, 3)).T - axes).max())
        if frame.size != tuple(shape[:2]) or apart_mm > SAME_PLACE_MM or turned > SAME_DIRECTION:
            raise LidcError(
                f"segmentation {segment.key[0]}: expected frames on the pixels of the scan's slices, got one of "
                f"{frame.size} pixels, {apart_mm:.2f} mm away; resample it to the scan"
            )


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise LidcError(f"{path}: expected a whole DICOM object, got a damaged one ({error}); copy it again") from error


def _read(path: Path, *, stop_before_pixels: bool = False) -> pydicom.Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harmless formalities, as in .dicom_series
            return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise LidcError(f"{path}: expected a DICOM object, got a damaged file ({error}); copy it again") from error


def _is_nodule(segment: pydicom.Dataset) -> bool:
    return segment.SegmentedPropertyTypeCodeSequence[0].get("CodeValue") in NODULE_CODES


def _segment(dataset: pydicom.Dataset, pixels: npt.NDArray[np.bool_], number: int, item: pydicom.Dataset) -> Segment:
    regions, frames = [], []
    for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        identification = _macro(dataset, groups, "SegmentIdentificationSequence")[0]
        if identification.ReferencedSegmentNumber != number or not pixels[index].any():
            continue
        frame = _frame(dataset, groups)
        regions.append(region_of_pixels(frame.sop_uid, frame.position_lps_mm[2], pixels[index].T))
        frames.append(frame)
    if not regions:
        raise ValueError(f"segment {number} is empty")
    name = f"{item.get('TrackingID', '')} {item.get('SegmentLabel', '')}".strip()
    series_uid = str(dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
    return Segment((str(dataset.SOPInstanceUID), number), series_uid, name, tuple(regions), tuple(frames))


def _frame(dataset: pydicom.Dataset, groups: pydicom.Dataset) -> Frame:
    derivations = _macro(dataset, groups, "DerivationImageSequence") or []
    sources = [image for part in derivations for image in part.get("SourceImageSequence", [])]
    position = _macro(dataset, groups, "PlanePositionSequence")[0].ImagePositionPatient
    orientation = _macro(dataset, groups, "PlaneOrientationSequence")[0].ImageOrientationPatient
    return Frame(
        str(sources[0].ReferencedSOPInstanceUID) if len(sources) == 1 else "",
        tuple(float(value) for value in position),
        tuple(float(value) for value in orientation),
        (int(dataset.Columns), int(dataset.Rows)),
    )


def _macro(dataset: pydicom.Dataset, groups: pydicom.Dataset, name: str) -> Any:
    """A functional group of one frame: its own, or the one that all frames share, or ``None`` (PS3.3, C.7.6.16)."""
    return groups.get(name) or dataset.SharedFunctionalGroupsSequence[0].get(name)


def region_of_pixels(sop_uid: str, z_mm: float | None, mask: npt.NDArray[np.bool_]) -> Region:
    """A region from the pixels inside: its border are their neighbours along rows and columns.

    Args:
        sop_uid: the slice.
        z_mm: its z, LPS.
        mask: ``[I, J]`` of the whole slice, at least one pixel inside.
    """
    inside = np.argwhere(mask)
    corner, end = inside.min(axis=0), inside.max(axis=0) + 1
    cut = mask[corner[0] : end[0], corner[1] : end[1]]
    wide = np.pad(cut, 1)
    border = np.argwhere(ndimage.binary_dilation(wide) & ~wide) + corner - 1
    within = ((border >= 0) & (border < np.array(mask.shape))).all(axis=1)
    return Region(sop_uid, z_mm, (int(corner[0]), int(corner[1])), cut.copy(), border[within])


def _containers(item: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """A content item and all below it that contain others."""
    if "ContentSequence" in item:
        yield item
        for child in item.ContentSequence:
            yield from _containers(child)


def _segment_keys(item: pydicom.Dataset) -> list[SegmentKey]:
    """The segments that an image item refers to; none where it refers to something else."""
    keys: list[SegmentKey] = []
    for reference in item.get("ReferencedSOPSequence", []):
        numbers: Any = reference.get("ReferencedSegmentNumber")
        for number in [] if numbers is None else np.atleast_1d(numbers):
            keys.append((str(reference.ReferencedSOPInstanceUID), int(number)))
    return keys


def _rating(item: pydicom.Dataset) -> dict[str, int]:
    """A rating, if the code item is one of the nine and its value is known."""
    name = _NAMES.get(str(item.ConceptNameCodeSequence[0].get("CodeValue")))
    code = item.ConceptCodeSequence[0]
    text = str(code.get("CodeValue"))
    value = int(text[-1]) if code.get("CodingSchemeDesignator") == _OWN_SCHEME else _VALUES.get(text)
    return {name: value} if name and value else {}
