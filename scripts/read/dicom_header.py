"""DICOM: what is needed of the header of each slice, be it a file of its own or a frame of an enhanced CT.

Of an enhanced CT (PS3.3 A.38), the functional groups of a frame and those shared by all frames are laid over the
attributes of the whole object; what comes out has the attributes of a single slice and passes the same checks.
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

from ..core.errors import refuse
from ..core.geometry import FloatArray, Point
from ..core.paths import unreadable
from .scan import ScanError

LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"})  # values seen in ImageType
LARGEST_SIDE = 16384  # pixels of a row or column; what claims more is damaged
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
_RESCALE = ("RescaleSlope", "RescaleIntercept")
_UNITS = {"Slice thickness": " mm", "Tube voltage": " kV"}
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS: list[Any] = [
    *_FACTS.values(),
    *("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "SpecificCharacterSet"),
    *("ImageType", "SeriesDescription", "BodyPartExamined", "ProtocolName"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *(*_RESCALE, "RescaleType", "ModalityLUTSequence"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *_GROUPS,
]


@dataclass(frozen=True)
class SliceHeader:
    """What is needed of one DICOM slice; ``None`` where the header lacks it.

    Attributes:
        path: the file.
        frame: number in the file, from 0.
        frames: of the file.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        origin: what slices of one volume have in common, by its name; "" where absent. It is only compared.
        modality: "CT", "MR", …; "" where absent.
        image_type: the values of ImageType (of a frame, FrameType), upper case.
        words: what description, body part and protocol say, the most telling first, upper case; only searched.
        position_lps_mm: centre of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        pixel_spacing_mm: between rows, then between columns.
        thickness_mm: SliceThickness.
        size: columns, rows (i, j).
        colour: PhotometricInterpretation.
        rescale_type: RescaleType, upper case; "" where absent.
        syntax: transfer syntax.
        bits: allocated, stored, high bit; ``None`` where the header lacks one of them.
        signed: whether the pixels are in two's complement.
        rescale: slope and intercept; ``None`` where the header has neither.
        padding: least and largest stored value that stands for no image; ``None`` for none.
        has_all_pixels: whether the file is long enough for the pixels it announces.
        fault: what makes the pixels' values uncertain; "" for nothing.
        facts: header facts free of identity.
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
        """File name, and frame of several, for messages."""
        name = Path(self.path).name
        return name if self.frames == 1 else f"{name} frame {self.frame + 1}"

    @property
    def is_localizer(self) -> bool:
        """Whether ImageType calls it a localizer."""
        return bool(self.image_type & LOCALIZER_TYPES)

    @property
    def normal(self) -> FloatArray:
        """Unit normal of the slice, LPS; zeros where the orientation is missing or meaningless."""
        if self.orientation is None:
            return np.zeros(3)
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        length = np.linalg.norm(normal)
        return normal / length if length > 0.5 else np.zeros(3)


class _Lenient:
    """See :data:`lenient`: entered by the first of several threads, left by the last."""

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
"""Where it is entered, pydicom neither judges values nor warns of formalities (padded UIDs, odd value lengths).

Both are settings of the process; other threads may enter it meanwhile, and they are put back when the last has left.
"""


def read_headers(path: str | Path) -> list[SliceHeader]:
    """Read the headers of the slices of one DICOM file, pixels left out.

    Returns:
        One, or one for each frame; none for a DICOMDIR, which holds no image.

    Raises:
        ScanError: the file is missing, truncated in its header, or not DICOM.
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
    """Read a file with or without the DICOM mark after its preamble; its transfer syntax is known afterwards.

    Raises:
        InvalidDicomError: neither mark nor the beginning of a data set.
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
    """Read a DICOM file, with or without the mark after its preamble, without judging formalities.

    Values are decoded when they are first asked for; where that must not warn either, do it inside :data:`lenient`.

    Args:
        path: the file.
        tags: keywords of what is needed; ``None``: all.
        pixels: whether to read the pixel data.

    Raises:
        ScanError: the file is missing, damaged, or no DICOM.
    """
    try:
        with lenient, open(path, "rb") as file:
            return read_dataset(file, stop_before_pixels=not pixels, specific_tags=list(tags) if tags else None)
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise ScanError(f"{path}: expected a DICOM file, cannot read it ({error}); copy it again.") from error


def begins_as_dataset(start: bytes) -> bool:
    """Whether a file begins with an element of group 0002 or 0008, as DICOM without its preamble does."""
    return start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def read_identity(path: str | Path) -> dict[str, str]:
    """Who was examined and when, as text to show; what the slice does not say is left out.

    Raises:
        ScanError: the file cannot be read.
    """
    with lenient:
        dataset = read_dicom(path, [*_IDENTITY.values(), "SpecificCharacterSet"])
        texts = {name: _text(dataset, keyword) for name, keyword in _IDENTITY.items()}
    return {name: _shown_identity(name, text) for name, text in texts.items() if text}


def _shown_identity(name: str, text: str) -> str:
    """A date as 2020-01-31; a name without the marks between its parts, its other scripts after a slash."""
    if name.endswith("date") and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if name == "Patient name":
        return " / ".join(" ".join(group.replace("^", " ").split()) for group in text.split("=") if group.strip("^ "))
    return text


def _slice_headers(path: str, file: BinaryIO, dataset: pydicom.FileDataset) -> Iterator[SliceHeader]:
    """One header for each slice; of a file with frames but without functional groups, a single one."""
    frames = _int(dataset, "NumberOfFrames") or 1
    has_all_pixels = _has_all_pixels(file, dataset, frames)
    groups = dataset.get(_GROUPS[1])
    if groups is None:
        yield _slice_header(path, dataset, dataset, (0, frames), has_all_pixels)
        return
    refuse(ValueError, (len(groups) != frames, f"{frames} frames, {len(groups)} functional groups"))
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
    """The header of one slice, by the attributes ``one`` that hold for it; ``frame``: its number, of how many."""
    series_uid, study_uid = _text(one, "SeriesInstanceUID"), _text(one, "StudyInstanceUID")
    refuse(ValueError, (not series_uid or not study_uid, "no StudyInstanceUID or SeriesInstanceUID"))
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
    allocated, stored, high = (_int(one, keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    return (allocated, stored, high) if allocated and stored and high is not None else None


def _fault(one: pydicom.Dataset, bits: Any, is_signed: int | None, slope: Any, intercept: Any) -> str:
    """What about the storage of the pixels is uncertain; "" for nothing."""
    if "ModalityLUTSequence" in one:
        return "RescaleSlope and RescaleIntercept, got a Modality LUT"
    is_rescaled = any(keyword in one and one[keyword].value not in (None, "") for keyword in _RESCALE)
    if is_rescaled and not (slope and intercept and slope[0]):
        return "RescaleSlope and RescaleIntercept as one number each, found something else"
    if bits is None or is_signed not in (0, 1):
        return "BitsAllocated, BitsStored, HighBit and PixelRepresentation, found not all of them"
    if bits[0] not in (8, 16, 32) or not 1 <= bits[1] <= bits[2] + 1 <= bits[0]:
        return f"pixels of 8, 16 or 32 bits, got BitsAllocated, BitsStored and HighBit {bits}"
    return ""


def _padding(one: pydicom.Dataset, bits: tuple[int, int, int] | None, signed: bool) -> tuple[int, int] | None:
    """The range of values that stand for no image, as stored values with their sign."""
    ends = [_int(one, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None or bits is None:
        return None
    low, high = sorted((ends[0], ends[0] if ends[1] is None else ends[1]))
    if signed and low >= 1 << (bits[1] - 1):  # written as if it had no sign
        low, high = low - (1 << bits[1]), high - (1 << bits[1])
    return low, high


def _has_all_pixels(file: BinaryIO, dataset: pydicom.FileDataset, frames: int) -> bool:
    """Whether the pixel data that starts at the file's position is all there.

    Decoders fill what is missing with whatever they find, so the lengths are counted here (PS3.5, 7.1 and A.4).
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    sides = [_int(dataset, keyword) or 0 for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    is_odd = not all(0 <= side <= LARGEST_SIDE for side in sides) or frames < 1
    refuse(ValueError, (is_odd, f"{sides[0]} × {sides[1]} pixels, {frames} frames"))
    if syntax.is_deflated:  # one compressed stream, already unpacked to its end
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
    """Whether the items of encapsulated pixel data, a table and at least one a frame, run up to their delimiter."""
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
    """A whole number; ``None`` where it is absent or malformed."""
    numbers = floats_of(dataset, keyword, 1, is_word=True)
    return int(numbers[0]) if numbers else None


def floats_of(dataset: pydicom.Dataset, keyword: str, count: int, *, is_word: bool = False) -> tuple[float, ...] | None:
    """Read ``count`` numbers; ``None`` where they are absent, malformed, not finite or another number of them.

    ``is_word``: bytes are a word of 16 bits; its kind depends on an element that pydicom did not look at.
    """
    try:
        value = dataset.get(keyword)
        value = int.from_bytes(value[:2], "little") if is_word and isinstance(value, bytes) else value
        values = tuple(float(v) for v in (value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]))
    except Exception:  # pydicom converts when asked, and raises almost any type
        return None
    return values if len(values) == count and bool(np.isfinite(values).all()) else None


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """A header value on one line, several joined by "/"; "" where absent or malformed."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, (list, pydicom.multival.MultiValue)):
            value = "/".join(str(part) for part in value)
        if isinstance(value, float):  # a decimal string keeps its trailing zeros
            value = f"{value:g}"
        text = str(value if value is not None else "")
    except Exception:  # pydicom converts when asked, and raises almost any type
        return ""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
