"""DICOM: slice headers, series and their choice, and the volume of one series.

Order and geometry come from ImagePositionPatient and ImageOrientationPatient of every slice alone (PS3.3 C.7.6.2);
SliceLocation and InstanceNumber are not trusted. Pixels are decoded slice by slice, because ITK's series reader takes
the pixel type of the first slice and cuts off the fraction where a later slice has a fractional rescale slope.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.config import disable_value_validation
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from .geometry import FloatArray, Point, swap_lps_ras_affine
from .scan import THICK_SLICE_MM, Grid, ScanError, Volume, make_grid, make_volume, quiet_itk, thick_slice_note, to_hu

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})  # such a file is meant to be DICOM, even a broken one
LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM"})  # values seen in ImageType
PROJECTION_TYPES = frozenset({"MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE"})  # not HU of a thin slice
FEW_SLICES = 10  # a series with fewer is a sample or a bolus tracker when a longer one exists
AXIAL_COSINE = 0.8  # of the normal with the body's axis: 37°, beyond any gantry tilt (30°)
DUPLICATE_MM = 0.01  # two slices closer than this lie on each other: no scanner reconstructs so finely
GAP_STEPS = 1.5  # a step longer than this many usual ones is a missing slice
# A slice may lie this far from its place on the regular grid: headers round positions to 0.1 mm, and 5 % of a step
# is less than what resampling to 1 mm can resolve.
JITTER_MM = 0.1
JITTER_STEPS = 0.05
DIRECTION_TOLERANCE = 1e-3  # of a direction cosine: 0.06°, i.e. 0.3 mm across a chest
SPACING_TOLERANCE_MM = 1e-4  # of a pixel: 0.05 mm across 512 pixels
UNDEFINED_LENGTH = 0xFFFFFFFF
SLICES_TURNED = 16  # that go into [I, J, K] together: several times as fast as one, and as all
DECODING_THREADS = 4  # ITK releases the interpreter lock; more do not help, the disk is the limit

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
_TAGS: list[Any] = [
    *_FACTS.values(),
    "StudyInstanceUID",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
]


@dataclass(frozen=True)
class SliceHeader:
    """What is needed of one DICOM file; ``None`` where the header lacks it.

    Attributes:
        path: the file.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        modality: "CT", "MR", …; "" where absent.
        image_type: the values of ImageType, upper case.
        position_lps_mm: centre of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        pixel_spacing_mm: between rows, then between columns.
        size: columns, rows (i, j).
        frames: number of frames in the file.
        colour: PhotometricInterpretation.
        has_all_pixels: whether the file is long enough for the pixels it announces.
        facts: header facts free of identity.
    """

    path: str
    study_uid: str
    series_uid: str
    modality: str
    image_type: frozenset[str]
    position_lps_mm: Point | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    size: tuple[int, int]
    frames: int
    colour: str
    has_all_pixels: bool
    facts: dict[str, str]

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


@dataclass(frozen=True)
class Series:
    """The slices of one series, sorted along their normal where positions allow; localizers apart.

    Attributes:
        uid: SeriesInstanceUID.
        slices: at least one.
        ignored_localizers: how many localizer images of the same series were left out.
    """

    uid: str
    slices: tuple[SliceHeader, ...]
    ignored_localizers: int

    @property
    def modality(self) -> str:
        return self.slices[0].modality or "unknown modality"

    @property
    def step_mm(self) -> float:
        """Usual distance between neighbouring slices, mm; infinite where it cannot be told."""
        places = _places_mm(self.slices)
        if places is None or len(places) < 2:
            return float("inf")
        return float(np.median(np.diff(np.sort(places))))

    @property
    def thickness_mm(self) -> float:
        """Slice thickness or distance, whichever is larger: what a small nodule is averaged over or lost between."""
        return max(self.step_mm, _thickness_mm(self.slices[0]) or 0.0)

    @property
    def is_axial(self) -> bool:
        return bool(abs(self.slices[0].normal[2]) >= AXIAL_COSINE)

    @property
    def is_projection(self) -> bool:
        return bool(self.slices[0].image_type & PROJECTION_TYPES)

    def _faults(self) -> dict[str, bool]:
        """What speaks against a series, gravest first, and whether it does."""
        return {
            f"modality {self.modality}, not CT": self.modality != "CT",
            "localizer": self.slices[0].is_localizer,
            f"fewer than {FEW_SLICES} slices": len(self.slices) < FEW_SLICES,
            "intensity projection": self.is_projection,
            "not axial": not self.is_axial,
        }

    def shortcomings(self) -> list[str]:
        """Why the automatic choice would rather take another series; empty for an axial CT stack."""
        return [fault for fault, holds in self._faults().items() if holds]

    def rank(self) -> tuple[Any, ...]:
        """Sort key of the automatic choice, best first: without faults, thin, closely spaced, long."""
        thickness_mm, step_mm = round(self.thickness_mm, 2), round(self.step_mm, 2)
        return *self._faults().values(), thickness_mm, step_mm, -len(self.slices), self.uid

    def describe(self) -> str:
        """One phrase for notes and errors."""
        count = f"{len(self.slices)} slice{'s' if len(self.slices) != 1 else ''}"
        thickness = f", {self.thickness_mm:.3g} mm" if np.isfinite(self.thickness_mm) else ""
        return f"{self.uid} ({self.modality}, {count}{thickness})"


def looks_like_dicom(path: Path) -> bool:
    """Whether the file has the DICOM mark after its 128-byte preamble, or a suffix that promises it."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: str | Path) -> SliceHeader | None:
    """Read the header of one DICOM file, pixels left out.

    Returns:
        ``None`` for a DICOMDIR, which holds no image.

    Raises:
        ScanError: the file is missing, truncated in its header, or not DICOM.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of harmless formalities (padded UIDs, odd value lengths)
            with open(path, "rb") as file:
                dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
                if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
                    return None
                return _slice_header(str(path), dataset, has_all_pixels=_has_all_pixels(file, dataset))
    except FileNotFoundError as error:
        raise ScanError(f"{path}: expected a DICOM slice, found no such file; check the path.") from error
    except InvalidDicomError as error:
        raise ScanError(
            f"{path}: expected a DICOM file, got something else or an empty file; copy the series again or remove it."
        ) from error
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected a DICOM header, got a truncated or damaged one ({error}); copy the series again."
        ) from error


def group_series(headers: Sequence[SliceHeader]) -> list[Series]:
    """Group slices by SeriesInstanceUID, in the order of the UIDs; localizers leave a series that has other images."""
    groups: dict[str, list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    result = []
    for uid, members in sorted(groups.items()):
        images = [header for header in members if not header.is_localizer] or members
        result.append(Series(uid, tuple(_sorted_along_normal(images)), len(members) - len(images)))
    return result


def read_series(paths: Sequence[str]) -> Volume:
    """Read one series from its slice files, in any order.

    Args:
        paths: one file per slice, all of the same series.

    Raises:
        ScanError: anything that would make the volume or its geometry wrong (see the checks below).
    """
    source, ordered = _ordered_slices(paths)
    affine_ras = swap_lps_ras_affine(_affine_lps(ordered))
    thickness_mm = _thickness_mm(ordered[0]) or 0.0
    step_mm = float(np.linalg.norm(affine_ras[:3, 2]))
    notes: tuple[str, ...] = ()
    if thickness_mm > THICK_SLICE_MM >= step_mm:
        notes = (thick_slice_note(thickness_mm),)
    facts = {"Format": "DICOM", **ordered[0].facts}
    volume = make_volume(source, _decode(ordered), affine_ras, facts, notes=notes)
    return replace(volume, source_files=tuple(header.path for header in ordered))


def series_grid(paths: Sequence[str]) -> Grid:
    """Size and position of a series from its headers alone; arguments and errors as :func:`read_series`."""
    source, ordered = _ordered_slices(paths)
    columns, rows = ordered[0].size
    return make_grid(source, (columns, rows, len(ordered)), swap_lps_ras_affine(_affine_lps(ordered)))


def read_identity(path: str | Path) -> dict[str, str]:
    """Who was examined and when, as text to show; what the slice does not say is left out.

    Raises:
        ScanError: the file cannot be read.
    """
    try:
        with disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in read_header
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_IDENTITY.values()])
            texts = {name: _text(dataset, keyword) for name, keyword in _IDENTITY.items()}
    except Exception as error:  # pydicom raises almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected the DICOM slice read before, cannot read it again ({error}); keep it in place."
        ) from error
    return {name: _shown_identity(name, text) for name, text in texts.items() if text}


def _shown_identity(name: str, text: str) -> str:
    """A date as 2020-01-31; a name without the marks between its parts, its other scripts after a slash."""
    if name.endswith("date") and re.fullmatch(r"\d{8}", text):
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    if name == "Patient name":
        return " / ".join(" ".join(group.replace("^", " ").split()) for group in text.split("=") if group.strip("^ "))
    return text


def _ordered_slices(paths: Sequence[str]) -> tuple[str, list[SliceHeader]]:
    """The name of a series for messages, and its slices along their normal, checked to make one volume."""
    headers = []
    for path in paths:
        header = read_header(path)
        if header is None:
            raise ScanError(f"{path}: expected a DICOM slice, got a DICOMDIR; leave it out of the list.")
        headers.append(header)
    source = f"{Path(paths[0]).parent} (series {headers[0].series_uid})"
    _check_kind(source, headers)
    _check_alike(source, headers)
    ordered = _sorted_along_normal(headers)
    _check_steps(source, ordered)
    return source, ordered


def _slice_header(path: str, dataset: pydicom.Dataset, *, has_all_pixels: bool) -> SliceHeader:
    series_uid, study_uid = str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("StudyInstanceUID", ""))
    if not series_uid or not study_uid:
        raise ValueError("no StudyInstanceUID or SeriesInstanceUID")
    position = _floats(dataset, "ImagePositionPatient", 3)
    image_type = dataset.get("ImageType") or []
    facts = {name: _text(dataset, keyword) for name, keyword in _FACTS.items()}
    return SliceHeader(
        path=path,
        study_uid=study_uid,
        series_uid=series_uid,
        modality=str(dataset.get("Modality", "")),
        image_type=frozenset(str(v).upper() for v in ([image_type] if isinstance(image_type, str) else image_type)),
        position_lps_mm=None if position is None else (position[0], position[1], position[2]),
        orientation=_floats(dataset, "ImageOrientationPatient", 6),
        pixel_spacing_mm=_floats(dataset, "PixelSpacing", 2),
        size=(int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)),
        frames=int(dataset.get("NumberOfFrames") or 1),
        colour=str(dataset.get("PhotometricInterpretation", "MONOCHROME2")),
        has_all_pixels=has_all_pixels,
        facts={name: text + _UNITS.get(name, "") for name, text in facts.items() if text},
    )


def _has_all_pixels(file: BinaryIO, dataset: pydicom.FileDataset) -> bool:
    """Whether the pixel data that starts at the file's position is all there.

    GDCM fills what is missing with whatever it finds, so the lengths are counted here (PS3.5, 7.1 and A.4).
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_deflated:  # one compressed stream, already unpacked to its end
        return True
    order = "<" if syntax.is_little_endian else ">"
    head = file.read(8 if syntax.is_implicit_VR else 12)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != (0x7FE0, 0x0010):
        return False
    (length,) = struct.unpack(order + "I", head[-4:])
    if length == UNDEFINED_LENGTH:
        return _has_all_items(file)
    left = os.fstat(file.fileno()).st_size - file.tell()
    needed = (dataset.get("Rows") or 0) * (dataset.get("Columns") or 0) * ((dataset.get("BitsAllocated") or 0) // 8)
    return needed <= length <= left


def _has_all_items(file: BinaryIO) -> bool:
    """Whether the items of encapsulated pixel data run up to their delimiter."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000) or file.tell() + length > size:
            return False
        file.seek(length, os.SEEK_CUR)
    return False


def _floats(dataset: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Read a multi-valued number; ``None`` where it is absent, malformed, not finite or of another length."""
    try:
        values = tuple(float(value) for value in dataset.get(keyword) or ())
    except (TypeError, ValueError):
        return None
    return values if len(values) == count and bool(np.isfinite(values).all()) else None


def _text(dataset: pydicom.Dataset, keyword: str) -> str:
    """A header value on one line; "" where absent or malformed."""
    try:
        value = dataset.get(keyword)
    except (TypeError, ValueError):
        return ""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        value = "/".join(str(part) for part in value)
    if isinstance(value, float):  # a decimal string keeps its trailing zeros
        value = f"{value:g}"
    return " ".join(str(value if value is not None else "").split())


def _thickness_mm(header: SliceHeader) -> float | None:
    text = header.facts.get("Slice thickness", "").removesuffix(" mm")
    try:
        return float(text)
    except ValueError:
        return None


def _places_mm(headers: Sequence[SliceHeader]) -> FloatArray | None:
    """Distance of each slice along the first one's normal, mm; ``None`` where a header does not tell."""
    positions = [header.position_lps_mm for header in headers if header.position_lps_mm is not None]
    normal = headers[0].normal
    if len(positions) < len(headers) or not normal.any():
        return None
    return np.array(positions) @ normal


def _sorted_along_normal(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Sort along the normal; where positions are missing, by path (such a series is refused when it is read)."""
    places = _places_mm(headers)
    if places is None:
        return sorted(headers, key=lambda header: header.path)
    return [headers[n] for n in np.argsort(places, kind="stable")]


def _check_kind(source: str, headers: Sequence[SliceHeader]) -> None:
    """Refuse what is no stack of single-frame grey CT slices of one series."""
    series = sorted({header.series_uid for header in headers})
    if len(series) > 1:
        raise ScanError(f"{source}: expected one series, got {len(series)}: {', '.join(series)}; name one of them.")
    for header in headers:
        where = f"{source}, file {Path(header.path).name}"
        if header.modality != "CT":
            raise ScanError(f"{where}: expected modality CT, got {header.modality or 'none'}; choose a CT series.")
        if header.is_localizer:
            raise ScanError(f"{where}: expected CT slices, got a localizer; choose the scan's own series.")
        if header.frames > 1:
            raise ScanError(
                f"{where}: expected one slice per file, got {header.frames} frames (enhanced multi-frame CT); "
                "convert it to single-frame CT, e.g. with dcm4che's emf2sf."
            )
        if not header.colour.startswith("MONOCHROME2"):
            raise ScanError(
                f"{where}: expected grey CT values (MONOCHROME2), got {header.colour}; export the CT itself."
            )
        if not header.has_all_pixels:
            raise ScanError(f"{where}: expected all pixels, got a truncated or damaged file; copy the series again.")
    if len(headers) < 2:
        raise ScanError(
            f"{source}: expected a 3-D scan, got a single 2-D slice; give the folder with the whole series."
        )


def _check_alike(source: str, headers: Sequence[SliceHeader]) -> None:
    """Refuse slices without geometry, or whose size, spacing or orientation differ."""
    first = headers[0]
    for header in headers:
        where = f"{source}, file {Path(header.path).name}"
        for name, value in (
            ("ImagePositionPatient", header.position_lps_mm),
            ("ImageOrientationPatient", header.orientation),
            ("PixelSpacing", header.pixel_spacing_mm),
        ):
            if value is None:
                raise ScanError(f"{where}: expected {name}, found none that is valid; export the original series.")
        for name, mine, others, tolerance in (
            ("size", header.size, first.size, 0.0),
            ("pixel spacing", header.pixel_spacing_mm, first.pixel_spacing_mm, SPACING_TOLERANCE_MM),
            ("orientation", header.orientation, first.orientation, DIRECTION_TOLERANCE),
        ):
            if not np.allclose(mine or (), others or (), rtol=0, atol=tolerance):
                raise ScanError(
                    f"{where}: expected the {name} {others} of {Path(first.path).name}, got {mine}; keep only the "
                    "slices that belong together."
                )
    axes = np.reshape(first.orientation or (), (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=DIRECTION_TOLERANCE):
        raise ScanError(
            f"{source}: expected two perpendicular unit vectors in ImageOrientationPatient, got {first.orientation}; "
            "export the original series."
        )


def _check_steps(source: str, ordered: Sequence[SliceHeader]) -> None:
    """Refuse duplicated positions, missing slices and uneven spacing.

    Missing first or last slices cannot be seen in the headers.
    """
    places = _places_mm(ordered)
    if places is None:
        raise ScanError(f"{source}: expected slice positions, found none; export the original series.")
    steps = np.diff(places)
    names = [Path(header.path).name for header in ordered]
    n = int(np.argmin(steps))
    if steps[n] < DUPLICATE_MM:
        raise ScanError(
            f"{source}: expected one slice per position, got two at {places[n]:.2f} mm ({names[n]}, {names[n + 1]}): "
            "copies, or several phases in one series; keep one of each."
        )
    usual, n = float(np.median(steps)), int(np.argmax(steps))
    if steps[n] > GAP_STEPS * usual:
        raise ScanError(
            f"{source}: expected a slice every {usual:.2f} mm, got a gap of {steps[n]:.2f} mm between {names[n]} and "
            f"{names[n + 1]}: slices are missing; copy the whole series again."
        )
    positions = np.array([header.position_lps_mm for header in ordered])
    regular = positions[0] + np.linspace(0, 1, len(ordered))[:, None] * (positions[-1] - positions[0])
    errors_mm = np.linalg.norm(positions - regular, axis=1)
    n = int(np.argmax(errors_mm))
    if errors_mm[n] > max(JITTER_MM, JITTER_STEPS * usual):
        raise ScanError(
            f"{source}: expected evenly spaced slices, got {names[n]} {errors_mm[n]:.2f} mm beside its place (steps of "
            f"{steps.min():.2f} to {steps.max():.2f} mm): slices are missing or the spacing changes; export the series "
            "with one spacing."
        )


def _affine_lps(ordered: Sequence[SliceHeader]) -> FloatArray:
    """Voxel (i = column, j = row, k = slice) to LPS mm; the third axis joins first and last slice, tilt included."""
    first, last = ordered[0], ordered[-1]
    orientation, spacing = np.array(first.orientation), first.pixel_spacing_mm or (np.nan, np.nan)
    origin = np.array(first.position_lps_mm)
    affine = np.eye(4)
    affine[:3, 0] = orientation[:3] * spacing[1]
    affine[:3, 1] = orientation[3:] * spacing[0]
    affine[:3, 2] = (np.array(last.position_lps_mm) - origin) / (len(ordered) - 1)
    affine[:3, 3] = origin
    return affine


def _decode(ordered: Sequence[SliceHeader]) -> npt.NDArray[np.int16]:
    """Pixels of all slices in HU: ``[I, J, K]`` int16, contiguous."""
    columns, rows = ordered[0].size
    image_hu = np.empty((columns, rows, len(ordered)), dtype=np.int16)
    with quiet_itk(), ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
        for first in range(0, len(ordered), SLICES_TURNED):
            some = list(pool.map(_decode_slice, ordered[first : first + SLICES_TURNED]))
            image_hu[:, :, first : first + len(some)] = np.stack(some).transpose(2, 1, 0)
    return image_hu


def _decode_slice(header: SliceHeader) -> npt.NDArray[np.int16]:
    """Pixels of one slice in HU (rescale slope and intercept applied by GDCM): ``[J, I]`` int16."""
    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(header.path, imageIO="GDCMImageIO"))
    except RuntimeError as error:
        raise ScanError(
            f"{header.path}: expected readable pixels, got a truncated or damaged file; copy the series again."
        ) from error
    columns, rows = header.size
    if pixels.shape != (1, rows, columns):
        raise ScanError(
            f"{header.path}: expected one slice of {columns} × {rows} grey pixels, got an array of {pixels.shape}; "
            "export the series again."
        )
    return to_hu(header.path, pixels[0])
