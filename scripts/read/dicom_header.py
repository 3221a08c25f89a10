"""DICOM: reads what is needed from the header of each slice, whether a file of its own or a frame of an enhanced CT.

For an enhanced CT (PS3.3 A.38), the functional groups shared by all frames and those of the frame override the
attributes of the whole object. The result has the attributes of a single slice and passes the same checks.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.uid import MediaStorageDirectoryStorage as DICOMDIR

from ..core.geometry import FloatArray, Point
from ..core.paths import unreadable
from .scan import ScanError

LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"})  # values seen in ImageType
LARGEST_SIDE = 16384  # pixels of a row or column; a header that claims more is damaged
UNDEFINED_LENGTH = 0xFFFFFFFF

_FACTS = {
    "Modality": "Modality",
    "Series UID": "SeriesInstanceUID",
    "Slice thickness": "SliceThickness",
    "Manufacturer": "Manufacturer",
    "Model": "ManufacturerModelName",
    "Tube voltage": "KVP",
    "Convolution kernel": "ConvolutionKernel",
}
_IDENTITY = {
    "Patient name": "PatientName",
    "Patient ID": "PatientID",
    "Birth date": "PatientBirthDate",
    "Sex": "PatientSex",
    "Study date": "StudyDate",
    "Accession number": "AccessionNumber",
}
_UNITS = {"Slice thickness": " mm", "Tube voltage": " kV"}
_ORIGIN = ("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "SpecificCharacterSet")
_KIND = ("ImageType", "SeriesDescription", "BodyPartExamined", "ProtocolName", "RescaleType", "ModalityLUTSequence")
_GRID = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames")
_BITS = ("BitsAllocated", "BitsStored", "HighBit")
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
PIXEL_FORMAT = ("SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", *_BITS)
_TAGS = [*_FACTS.values(), *_ORIGIN, *_KIND, *_GRID, *PIXEL_FORMAT, *_RESCALE, *_PADDING, *_GROUPS]


@dataclass(frozen=True)
class SliceHeader:
    """The header of one DICOM slice, as far as it is needed; ``None`` for values that the header lacks.

    Attributes:
        path: the file.
        frame: index of the frame in the file, from 0.
        frames: number of frames in the file.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        origin: values that all slices of a volume must share, by the name of the attribute; "" if absent. They are only
            compared, never shown.
        modality: "CT", "MR", …; "" if absent.
        image_type: the values of ImageType (for a frame, of FrameType), upper case.
        words: series description, body part, region and protocol, the most informative first, upper case. They are only
            searched.
        position_lps_mm: centre of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        pixel_spacing_mm: distance between rows, then between columns.
        thickness_mm: SliceThickness.
        size: columns, rows (i, j); 0 if absent.
        colour: PhotometricInterpretation; "MONOCHROME2" if absent.
        rescale_type: RescaleType, upper case; "" if absent.
        syntax: transfer syntax.
        bits: BitsAllocated, BitsStored and HighBit; ``None`` if the header lacks one of them.
        signed: whether the pixels are in two's complement.
        rescale: slope and intercept; ``None`` unless the header has both.
        padding: smallest and largest stored value that mark pixels outside the image; ``None`` if there are none.
        has_all_pixels: whether the file contains all the pixels that its header announces.
        fault: what makes the pixel values uncertain, as "expected …, got …"; "" for nothing.
        facts: header values to show, without any that identify the patient.
    """

    path: str
    frame: int
    frames: int
    study_uid: str
    series_uid: str
    origin: dict[str, str] = field(repr=False)
    modality: str
    image_type: frozenset[str]
    words: tuple[str, ...] = field(repr=False)
    position_lps_mm: Point | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    size: tuple[int, int]
    colour: str
    rescale_type: str
    syntax: UID
    bits: tuple[int, int, int] | None
    signed: bool
    rescale: tuple[float, float] | None
    padding: tuple[int, int] | None
    has_all_pixels: bool
    fault: str
    facts: dict[str, str]

    @property
    def name(self) -> str:
        """The file name for messages, with the frame's number if the file has several."""
        name = Path(self.path).name
        return name if self.frames == 1 else f"{name} frame {self.frame + 1}"

    @property
    def is_localizer(self) -> bool:
        """Whether ImageType marks the slice as a localizer."""
        return bool(self.image_type & LOCALIZER_TYPES)

    @property
    def normal(self) -> FloatArray:
        """Unit normal of the slice, LPS; zeros if the orientation is missing or meaningless."""
        if self.orientation is None:
            return np.zeros(3)
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        length = np.linalg.norm(normal)
        return normal / length if length > 0.5 else np.zeros(3)


class _Lenient:
    """The context manager :data:`lenient`: the first of several threads enters it, the last one leaves it."""

    def __init__(self) -> None:
        self._lock, self._users, self._settings = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._settings.enter_context(disable_value_validation())
                self._settings.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._settings.close()


lenient = _Lenient()
"""Context manager in which pydicom neither validates values nor warns of formalities (padded UIDs, odd value lengths).

Both are settings of the whole process. Several threads may be inside at once; the settings are restored when the last
one leaves.
"""


def read_headers(path: str | Path) -> list[SliceHeader]:
    """Read the headers of the slices in one DICOM file, without the pixels.

    Returns:
        One header, or one for each frame; empty for a DICOMDIR, which contains no image.

    Raises:
        ScanError: the file is missing, not DICOM, or its header is truncated or damaged.
    """
    reason = unreadable(path)
    if reason:
        raise ScanError(f"{path}: expected a DICOM slice, found {reason}; copy the series again, or remove it.")
    try:
        with lenient, open(path, "rb") as file:
            dataset = read_dataset(file, stop_before_pixels=True, specific_tags=_TAGS)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
                return []
            return list(_slice_headers(str(path), file, dataset))
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected a DICOM header, got a truncated or damaged one ({error}); copy the series again, or "
            "remove the file."
        ) from error


def read_dataset(file: BinaryIO, **options: Any) -> pydicom.FileDataset:
    """Read a DICOM file with or without preamble and DICOM mark, and set the transfer syntax if the file lacks it.

    Raises:
        InvalidDicomError: the file has no DICOM mark and does not begin with a data set either.
    """
    start = file.read(132)
    file.seek(0)
    if start[128:] != b"DICM" and not begins_as_dataset(start):
        raise InvalidDicomError("no DICOM mark")
    dataset = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return dataset


def read_dicom(path: str | Path, tags: Sequence[str] | None = None, *, pixels: bool = False) -> pydicom.FileDataset:
    """Read a DICOM file with or without preamble and DICOM mark, without validating values.

    Values are decoded on first access; access them inside :data:`lenient` if that must not warn either.

    Args:
        path: the file.
        tags: keywords of the elements to read; ``None`` for all.
        pixels: whether to read the pixel data.

    Raises:
        ScanError: the file is missing, damaged, or not DICOM.
    """
    try:
        with lenient, open(path, "rb") as file:
            return read_dataset(file, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None)
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected a DICOM file, got one that cannot be read ({error}); copy it again."
        ) from error


def begins_as_dataset(start: bytes) -> bool:
    """Whether a file begins with an element of group 0002 or 0008, as DICOM without a preamble does."""
    return start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def read_identity(path: str | Path) -> dict[str, str]:
    """Return who was examined and when, as text to display; values missing from the slice are left out.

    Raises:
        ScanError: the file cannot be read.
    """
    with lenient:
        dataset = read_dicom(path, [*_IDENTITY.values(), "SpecificCharacterSet"])
        texts = {name: _text(dataset, keyword) for name, keyword in _IDENTITY.items()}
    return {name: _shown_identity(name, text) for name, text in texts.items() if text}


def _shown_identity(name: str, text: str) -> str:
    """Return a date as 2020-01-31, or a name without ``^``, its spellings in other scripts after a slash."""
    if name.endswith("date") and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if name == "Patient name":
        return " / ".join(" ".join(group.replace("^", " ").split()) for group in text.split("=") if group.strip("^ "))
    return text


def _slice_headers(path: str, file: BinaryIO, dataset: pydicom.FileDataset) -> Iterator[SliceHeader]:
    """Yield one header for each slice; a single one for a file with several frames but no functional groups.

    Raises:
        ValueError: there are not as many functional groups as frames, or a size is impossible.
    """
    frames = _int(dataset, "NumberOfFrames") or 1
    has_all_pixels = _has_all_pixels(file, dataset, frames)
    groups = dataset.get(_GROUPS[1])
    if groups is None:
        yield _slice_header(path, dataset, dataset, (0, frames), has_all_pixels)
        return
    if len(groups) != frames:
        raise ValueError(f"{frames} frames, {len(groups)} functional groups")
    shared = dataset.get(_GROUPS[0]) or [pydicom.Dataset()]
    for number, group in enumerate(groups):
        one = pydicom.Dataset()
        one.update({element.tag: element for element in dataset if element.keyword not in _GROUPS})
        for part in (shared[0], group):
            for sequence in part:
                if sequence.VR == "SQ" and len(sequence.value):
                    one.update(sequence.value[0])
        if "FrameType" in one:
            one.ImageType = one.FrameType
        yield _slice_header(path, dataset, one, (number, frames), has_all_pixels)


def _slice_header(
    path: str, dataset: pydicom.FileDataset, one: pydicom.Dataset, frame: tuple[int, int], has_all_pixels: bool
) -> SliceHeader:
    """Return the header of one slice.

    Args:
        path: the file.
        dataset: the whole object.
        one: the attributes that apply to this slice; the same as ``dataset`` for an object without functional groups.
        frame: index of the frame, and the number of frames.
        has_all_pixels: whether the file contains all its pixels.

    Raises:
        ValueError: StudyInstanceUID or SeriesInstanceUID is missing.
    """
    series_uid, study_uid = _text(one, "SeriesInstanceUID"), _text(one, "StudyInstanceUID")
    if not series_uid or not study_uid:
        raise ValueError("no StudyInstanceUID or SeriesInstanceUID")
    position = floats_of(one, "ImagePositionPatient", 3)
    spacing, thickness = floats_of(one, "PixelSpacing", 2), floats_of(one, "SliceThickness", 1)
    facts = {name: _text(one, keyword) for name, keyword in _FACTS.items()}
    facts["Slice thickness"] = f"{thickness[0]:g}" if thickness and thickness[0] > 0 else ""
    image_type = frozenset(_text(one, "ImageType").upper().split("/")) - {""}
    bits, is_signed = _bits(one), _int(one, "PixelRepresentation")
    slope, intercept = (floats_of(one, keyword, 1) for keyword in _RESCALE)
    return SliceHeader(
        path=path,
        frame=frame[0],
        frames=frame[1],
        study_uid=study_uid,
        series_uid=series_uid,
        origin=_origin(one, image_type, is_frame=one is not dataset),
        modality=_text(one, "Modality"),
        image_type=image_type,
        words=_words(one),
        position_lps_mm=None if position is None else (position[0], position[1], position[2]),
        orientation=floats_of(one, "ImageOrientationPatient", 6),
        pixel_spacing_mm=spacing if spacing and min(spacing) > 0 else None,
        thickness_mm=thickness[0] if thickness and thickness[0] > 0 else None,
        size=(_int(one, "Columns") or 0, _int(one, "Rows") or 0),
        colour=_text(one, "PhotometricInterpretation") or "MONOCHROME2",
        rescale_type=_text(one, "RescaleType").upper(),
        syntax=dataset.file_meta.TransferSyntaxUID,
        bits=bits,
        signed=is_signed == 1,
        rescale=(slope[0], intercept[0]) if slope and intercept else None,
        padding=_padding(one, bits, is_signed == 1),
        has_all_pixels=has_all_pixels,
        fault=_fault(one, bits, is_signed, slope, intercept),
        facts={name: text + _UNITS.get(name, "") for name, text in facts.items() if text},
    )


def _origin(one: pydicom.Dataset, image_type: frozenset[str], *, is_frame: bool) -> dict[str, str]:
    origin = {
        "patient (PatientID)": _text(one, "PatientID"),
        "patient (PatientName)": " ".join(_text(one, "PatientName").replace("^", " ").upper().split()),
        "study": _text(one, "StudyInstanceUID"),
        "frame of reference": _text(one, "FrameOfReferenceUID"),
    }
    of_frame = {
        "stack": _text(one, "StackID"),
        "time point": _text(one, "TemporalPositionIndex"),
        "kind of image": "/".join(sorted(image_type)),
    }
    return origin | (of_frame if is_frame else {})


def _words(one: pydicom.Dataset) -> tuple[str, ...]:
    region = one.get("AnatomicRegionSequence") or [pydicom.Dataset()]
    texts = [_text(one, "SeriesDescription"), _text(one, "BodyPartExamined"), _text(region[0], "CodeMeaning")]
    return tuple(text.upper() for text in (*texts, _text(one, "ProtocolName")))


def _bits(one: pydicom.Dataset) -> tuple[int, int, int] | None:
    allocated, stored, high = (_int(one, keyword) for keyword in _BITS)
    return (allocated, stored, high) if allocated and stored and high is not None else None


def _fault(one: pydicom.Dataset, bits: Any, is_signed: int | None, slope: Any, intercept: Any) -> str:
    """Return what makes the pixel values uncertain, as "expected …, got …"; "" for nothing."""
    if "ModalityLUTSequence" in one:
        return "expected RescaleSlope and RescaleIntercept, got a Modality LUT"
    is_rescaled = any(keyword in one and one[keyword].value not in (None, "") for keyword in _RESCALE)
    if is_rescaled and not (slope and intercept and slope[0]):
        return "expected RescaleSlope and RescaleIntercept as one number each, found something else"
    if bits is None or is_signed not in (0, 1):
        return "expected BitsAllocated, BitsStored, HighBit and PixelRepresentation, found only some of them"
    if bits[0] not in (8, 16, 32) or not 1 <= bits[1] <= bits[2] + 1 <= bits[0]:
        return f"expected pixels of 8, 16 or 32 bits, got BitsAllocated, BitsStored and HighBit {bits}"
    return ""


def _padding(one: pydicom.Dataset, bits: tuple[int, int, int] | None, signed: bool) -> tuple[int, int] | None:
    """Return the range of stored values, with their sign, that mark padding; ``None`` if there is none."""
    ends = [_int(one, keyword) for keyword in _PADDING]
    if ends[0] is None or bits is None:
        return None
    low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
    if signed and low >= 1 << (bits[1] - 1):  # written as unsigned
        low, high = low - (1 << bits[1]), high - (1 << bits[1])
    return low, high


def _has_all_pixels(file: BinaryIO, dataset: pydicom.FileDataset, frames: int) -> bool:
    """Whether the pixel data that starts at the file's current position is complete.

    Decoders fill missing pixels with arbitrary values, so the lengths are checked here (PS3.5, 7.1 and A.4).

    Raises:
        ValueError: the header gives an impossible size or number of frames.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    sides = [_int(dataset, keyword) or 0 for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    if not all(0 <= side <= LARGEST_SIDE for side in sides) or frames < 1:
        raise ValueError(f"{sides[0]} × {sides[1]} pixels, {frames} frames")
    if syntax.is_deflated:  # one compressed stream, which has already been unpacked to its end
        return True
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8 if syntax.is_implicit_VR else 12)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != (0x7FE0, 0x0010):
        return False
    (length,) = struct.unpack(order + "I", head[-4:])
    if length == UNDEFINED_LENGTH:
        return _has_all_items(file, frames)
    needed = sides[0] * sides[1] * max(sides[2], 1) * (sides[3] // 8) * frames
    return not syntax.is_compressed and needed <= length <= os.fstat(file.fileno()).st_size - file.tell()


def _has_all_items(file: BinaryIO, frames: int) -> bool:
    """Whether encapsulated pixel data has an offset table, at least one item per frame, and the final delimiter."""
    size = os.fstat(file.fileno()).st_size
    items = 0
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return items > frames
        if (group, element) != (0xFFFE, 0xE000) or file.tell() + length > size:
            return False
        items += 1
        file.seek(length, os.SEEK_CUR)
    return False


def _int(dataset: pydicom.Dataset, keyword: str) -> int | None:
    """Return a whole number; ``None`` if it is absent or malformed."""
    numbers = floats_of(dataset, keyword, 1, is_word=True)
    return int(numbers[0]) if numbers else None


def floats_of(dataset: pydicom.Dataset, keyword: str, count: int, *, is_word: bool = False) -> tuple[float, ...] | None:
    """Return ``count`` numbers; ``None`` if they are absent, malformed or not finite, or if their number differs.

    With ``is_word``, a value of type bytes is read as a 16-bit word: pydicom leaves it undecoded because its type
    depends on an element that was not read.
    """
    try:
        value = dataset.get(keyword)
        value = int.from_bytes(value[:2], "little") if is_word and isinstance(value, bytes) else value
        values = tuple(float(v) for v in (value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]))
    except Exception:  # pydicom converts on access, and raises almost any type
        return None
    return values if len(values) == count and bool(np.isfinite(values).all()) else None


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """Return a header value as one line of text, several values joined by "/"; "" if absent or malformed."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = "/".join(str(part) for part in value)
        if isinstance(value, float):  # a decimal string keeps its trailing zeros
            value = f"{value:g}"
        text = str(value if value is not None else "")
    except Exception:  # pydicom converts on access, and raises almost any type
        return ""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
