"""What the DICOM objects copy from the slices that were read: patient, study, frame of reference, geometry.

Fields of type 2 (PS3.5, 7.4.3) that the slices lack are present but empty in the objects, as the standard allows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from ...core.files import stamp
from ...read.dicom_header import floats_of, lenient, read_dicom

logger = logging.getLogger(__name__)

# Type 2 in the modules Patient and General Study: present in every object, possibly empty.
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_OF_EACH_SLICE = ("SOPClassUID", "SOPInstanceUID", "ImagePositionPatient")
_OF_THE_SERIES = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "SliceThickness",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


@dataclass(frozen=True)
class SourceSeries:
    """The source slices, as the DICOM objects refer to them; not to be changed.

    Attributes:
        slices: for each k, what locates the slice (no patient, no pixels); PatientName and the other fields of type 2
            are empty in the first.
        header: the first slice's header without pixels; what cannot be read is left out.
    """

    slices: tuple[Dataset, ...]
    header: Dataset


def read_source(files: Sequence[str]) -> SourceSeries | None:
    """Read the headers of the slices of a scan, in the order of k, and log what they lack.

    Returns:
        ``None``, with a warning in the log, if no object can refer to them.

    Raises:
        ScanError: a file cannot be read again.
    """
    return _read(tuple(map(stamp, files)))


@lru_cache(maxsize=1)  # both objects of a scan need it; what is missing is logged once
def _read(stamps: tuple[tuple[str, int, int], ...]) -> SourceSeries | None:
    """Do the work of :func:`read_source`; the stamps distinguish different contents of a file."""
    files = [path for path, _, _ in stamps]
    with lenient:
        header = _header(files[0])
        gaps = _drop_unreadable(header)
        slices = [_header(file, _OF_EACH_SLICE) for file in files]
        reason = _unfit(slices)
        if reason:
            logger.warning("%s: no DICOM objects are written: %s", files[0], reason)
            return None
        shared, filled = _shared(header, slices)
    stand_ins = [Dataset() for _ in slices]
    for stand_in, one in zip(stand_ins, slices, strict=True):
        stand_in.update(shared)
        stand_in.update({one[keyword].tag: one[keyword] for keyword in _OF_EACH_SLICE})
    for keyword in TYPE_2:
        setattr(stand_ins[0], keyword, None)
    absent = [keyword for keyword in TYPE_2 if keyword not in header]
    if absent:
        gaps.append(f"the slices lack {', '.join(absent)}: left empty")
    if gaps or filled:
        logger.warning("%s: in the DICOM objects of this scan, %s", files[0], "; ".join((*gaps, *filled)))
    return SourceSeries(tuple(stand_ins), header)


def _header(file: str, tags: Sequence[str] | None = None) -> Dataset:
    dataset = read_dicom(file, tags)
    if "SOPInstanceUID" not in dataset and "MediaStorageSOPInstanceUID" in dataset.file_meta:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    return dataset


def _drop_unreadable(header: Dataset) -> list[str]:
    """Remove what cannot be read, at any depth of nesting; return the names in one phrase, or nothing."""
    names = []
    for tag in list(header.keys()):
        try:
            element = header[tag]
            for item in element.value if element.VR == "SQ" else ():
                item.walk(lambda *_: None)
        except Exception:  # pydicom raises almost any type for damaged bytes
            del header[tag]
            names.append(keyword_for_tag(tag) or str(tag))
    return [f"the slices hold values that cannot be read, left out: {', '.join(names)}"] if names else []


def _unfit(slices: Sequence[Dataset]) -> str:
    """Return why no object can refer to these slices; "" if it can."""
    kinds = {str(one.get("SOPClassUID", "none")) for one in slices} - {CTImageStorage}
    if kinds:
        return f"expected slices of SOP class CT Image Storage, got {', '.join(sorted(kinds))}"
    uids = {str(one.get("SOPInstanceUID", "")) for one in slices} - {""}
    if len(uids) < len(slices):
        return f"expected a SOPInstanceUID of its own in each of the {len(slices)} slices, got {len(uids)}"
    return ""


def _shared(header: Dataset, slices: Sequence[Dataset]) -> tuple[Dataset, list[str]]:
    """Return what all slices have in common, completed, and notes on what was filled in.

    Orientations that differ by rounding are replaced by the first slice's. The distance between slices is measured
    along their normal, whatever the header states.
    """
    filled = []
    shared = Dataset({header[keyword].tag: header[keyword] for keyword in _OF_THE_SERIES if keyword in header})
    row, column = np.reshape(np.asarray(header.ImageOrientationPatient, dtype=np.float64), (2, 3))
    ends = np.array([slices[k].ImagePositionPatient for k in (0, -1)], dtype=np.float64)
    step_mm = float(abs((ends[1] - ends[0]) @ np.cross(row, column)) / (len(slices) - 1))
    shared.SpacingBetweenSlices = format_number_as_ds(step_mm)
    if not shared.get("FrameOfReferenceUID"):
        shared.FrameOfReferenceUID = generate_uid(prefix=None)
        filled.append("the slices lack FrameOfReferenceUID: a new one is used")
    thickness_mm = floats_of(shared, "SliceThickness", 1)
    if not thickness_mm or thickness_mm[0] <= 0:
        shared.SliceThickness = format_number_as_ds(step_mm)
        filled.append(f"the slices lack SliceThickness: their distance of {step_mm:.3g} mm is used")
    return shared, filled
