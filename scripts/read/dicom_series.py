"""DICOM: groups slices into series, ranks the series of a study, and reads the volume of one series.

Order and geometry come only from ImagePositionPatient and ImageOrientationPatient of every slice (PS3.3 C.7.6.2);
SliceLocation and InstanceNumber are not trusted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from ..core.geometry import FloatArray, swap_lps_ras_affine
from .dicom_header import SliceHeader, read_headers
from .dicom_pixels import decode
from .scan import THICK_SLICE_MM, Grid, ScanError, Volume, make_grid, make_volume, thick_slice_note

PROJECTION_TYPES = frozenset({"MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE"})  # not HU of a thin slice
PROJECTION_WORDS = re.compile(r"\b(MIP|MINIP|AVEIP|AIP|MAX ?IP|MIN ?IP|MAXIMUM INT|MINIMUM INT)")
# RescaleType: absent, the standard's name for HU, and "unspecified", which scanners also write for HU.
HU_TYPES = frozenset({"", "HU", "US"})
# In ImageType or the series description: images computed from spectra or several series, screenshots and reports.
COMPUTED_WORDS = re.compile(
    r"IODINE(?! ?CONTRAST)|\bJOD(KARTE|BILD)|\bVNC|VIRTUAL.?(NON|UNENH)|\bVUE\b|Z.?EFF|EFF.?Z|EFF\w*.(Z|ATOMIC)|"
    r"ELECTRON.?DENS|MATERIAL|\bMAT (SPEC|REM|FRAC|VAL|MOD)|WATER.?(MAP|DENS|\()|CALCIUM.?(MAP|SUPP|\()|URIC|OVERLAY|"
    r"\bFUS(ION|ED)|PERFUSION|\bPBV\b|SUBTRACT|COLOU?R|DOSE.?(REPORT|INFO|SHEET|RECORD)|PATIENT.?PROTOCOL|"
    r"SOM\d.?PROT|SCREEN.?(SAVE|SHOT|CAP)|KEY.?IMAGE|\bVRT\b|VOLUME.?REND"
)
CHEST_WORDS = re.compile(
    r"CHEST|THORA|TORA[XC]|LUNG|PULM|POUMON|\bT\.?A\.?P\b|\bC\.?A\.?P\b|\bTHX|\bCTPA\b|WHOLE.?BODY"
)
OTHER_WORDS = re.compile(
    r"HEAD|BRAIN|SKULL|CRANI|CEREBR|SCH(AE|Ä)DEL|KOPF|NECK|HALS|CERVI|FACE|FACIAL|SINUS|ORBIT|TEMPORAL|\bEAR\b|DENTAL|"
    r"\bJAW|MANDIB|MAXILLA|ABDOM|PELVI|BECKEN|LIVER|KIDNEY|RENAL|PANCREA|COLON|LUMB|[CL].?SPINE|SACR|\bHIP\b|FEMUR|KNEE|"
    r"\bLEG|ANKLE|FOOT|EXTREMITY|\bARM\b|ELBOW|WRIST|HAND\b|SHOULDER|PHANTOM"
)
FEW_SLICES = 10  # a series with fewer is a sample or a bolus tracker if the study has a longer one
AXIAL_COSINE = 0.8  # between the normal and the body's axis: 37°, beyond any gantry tilt (30°)
DUPLICATE_MM = 0.01  # two slices closer than this have the same position: no scanner reconstructs so finely
GAP_STEPS = 1.5  # a step longer than this many usual steps means a missing slice
# A slice may lie this far from its place on the regular grid: headers round positions to 0.1 mm, and 5 % of a step
# is less than what resampling to 1 mm can resolve.
JITTER_MM = 0.1
JITTER_STEPS = 0.05
DIRECTION_TOLERANCE = 1e-3  # per direction cosine: 0.06°, or 0.3 mm across a chest
SPACING_TOLERANCE_MM = 1e-4  # per pixel: 0.05 mm across 512 pixels


@dataclass(frozen=True)
class Series:
    """The slices of one series, sorted along their normal if they have positions.

    Attributes:
        uid: SeriesInstanceUID.
        slices: at least one; localizers only if there is nothing else.
        ignored_localizers: number of localizer images of the same series that were left out.
    """

    uid: str
    slices: tuple[SliceHeader, ...]
    ignored_localizers: int

    @property
    def modality(self) -> str:
        return self.slices[0].modality or "unknown modality"

    @property
    def step_mm(self) -> float:
        """Median distance between neighbouring slices, mm; infinite if it is unknown."""
        places = _places_mm(self.slices)
        if places is None or len(places) < 2:
            return float("inf")
        return float(np.median(np.diff(np.sort(places))))

    @property
    def thickness_mm(self) -> float:
        """The larger of slice thickness and slice distance, mm: small nodules are averaged over it or lost in it."""
        return max(self.step_mm, self.slices[0].thickness_mm or 0.0)

    @property
    def other_part(self) -> str:
        """The word that names another part of the body, lower case; "" if there is none or the chest comes first."""
        for words in self.slices[0].words:
            if CHEST_WORDS.search(words):
                return ""
            other = OTHER_WORDS.search(words)
            if other:
                return other[0].strip().lower()
        return ""

    @property
    def is_fit(self) -> bool:
        """Whether the series is CT in HU with positions, even if thick, short or of another part of the body."""
        return not any(self._defects().values())

    def _defects(self) -> dict[str, bool]:
        """Return what would make a series unfit, gravest first, and whether it applies."""
        first = self.slices[0]
        texts = ("/".join(sorted(first.image_type)).replace("_", " "), first.words[0].replace("_", " "))
        is_computed = any(COMPUTED_WORDS.search(text) for text in texts)
        return {
            f"modality {self.modality}, not CT": self.modality != "CT",
            "localizer": first.is_localizer,
            "in colour": any(not one.colour.startswith("MONOCHROME2") for one in self.slices),
            "not HU": is_computed or any(one.rescale_type not in HU_TYPES or one.fault for one in self.slices),
            "without positions": any(one.position_lps_mm is None or one.orientation is None for one in self.slices),
        }

    def _drawbacks(self) -> dict[str, bool]:
        """Return why another fit series would be preferred, gravest first, and whether it applies."""
        first = self.slices[0]
        is_projection = first.image_type & PROJECTION_TYPES or PROJECTION_WORDS.search(first.words[0])
        return {
            f"of the {self.other_part}, not the chest": bool(self.other_part),
            f"fewer than {FEW_SLICES} slices": len(self.slices) < FEW_SLICES,
            "intensity projection": bool(is_projection),
            "not axial": abs(first.normal[2]) < AXIAL_COSINE,
        }

    def shortcomings(self) -> list[str]:
        """Return why the automatic choice would prefer another series; empty for an axial CT stack of the chest."""
        return [phrase for phrase, applies in (self._defects() | self._drawbacks()).items() if applies]

    def rank(self) -> tuple[Any, ...]:
        """Return the sort key of the automatic choice: fewer grave faults first, then thin, closely spaced, long."""
        faults = *self._defects().values(), *self._drawbacks().values()
        return *faults, round(self.thickness_mm, 2), round(self.step_mm, 2), -len(self.slices), self.uid

    def describe(self) -> str:
        """Return one phrase that describes the series in notes and errors."""
        count = f"{len(self.slices)} slice{'s' if len(self.slices) != 1 else ''}"
        thickness = f", {self.thickness_mm:.3g} mm" if np.isfinite(self.thickness_mm) else ""
        return f"{self.uid} ({self.modality}, {count}{thickness})"


def group_series(headers: Sequence[SliceHeader]) -> list[Series]:
    """Group slices by SeriesInstanceUID, in the order of the UIDs.

    Localizers are dropped from a series that has other images.
    """
    groups: dict[str, list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault(header.series_uid, []).append(header)
    result = []
    for uid, members in sorted(groups.items()):
        images = [header for header in members if not header.is_localizer] or members
        result.append(Series(uid, tuple(_sorted_along_normal(images)), len(members) - len(images)))
    return result


def read_series(paths: Sequence[str]) -> Volume:
    """Read one series from its slice files, which may be in any order.

    Args:
        paths: one file per slice, or files with several slices as frames, all of the same series.

    Raises:
        ScanError: anything that would make the volume or its geometry wrong (see the checks below).
    """
    source, ordered, grid, notes = _arranged(paths)
    image_hu, more_notes = decode(source, ordered)
    notes = (*notes, *more_notes)
    thickness_mm = ordered[0].thickness_mm or 0.0
    if thickness_mm > THICK_SLICE_MM >= float(np.linalg.norm(grid.affine_ras[:3, 2])):
        notes = (*notes, thick_slice_note(thickness_mm))
    volume = make_volume(source, image_hu, grid, {"Format": "DICOM", **ordered[0].facts}, notes=notes)
    return replace(volume, source_files=tuple(header.path for header in ordered))


def series_grid(paths: Sequence[str]) -> Grid:
    """Return the size and position of a series from its headers alone.

    Takes the arguments of :func:`read_series` and raises its errors, except those about pixels.
    """
    return _arranged(paths)[2]


def _arranged(paths: Sequence[str]) -> tuple[str, list[SliceHeader], Grid, tuple[str, ...]]:
    """Read and check the headers of a series.

    Returns:
        The name of the series for messages, its slices sorted along their normal, the grid they form, and notes.

    Raises:
        ScanError: the headers do not describe one regular CT volume.
    """
    headers = []
    for path in paths:
        found = read_headers(path)
        if not found:
            raise ScanError(f"{path}: expected a DICOM slice, got a DICOMDIR; leave it out of the list.")
        headers += found
    source = f"{Path(paths[0]).parent} (series {headers[0].series_uid})"
    images = [header for header in headers if not (header.frames > 1 and header.is_localizer)] or headers
    notes = (localizer_note(len(headers) - len(images)),) if len(images) < len(headers) else ()
    _check_kind(source, images)
    _check_origin(source, images)
    _check_alike(source, images)
    ordered = _sorted_along_normal(images)
    _check_steps(source, ordered)
    grid = make_grid(source, (*ordered[0].size, len(ordered)), swap_lps_ras_affine(_affine_lps(ordered)))
    return source, ordered, grid, notes


def localizer_note(count: int) -> str:
    return f"{count} localizer image(s) of the series ignored"


def _places_mm(headers: Sequence[SliceHeader]) -> FloatArray | None:
    """Return the position of each slice along the first one's normal, mm; ``None`` if a header lacks its position."""
    positions = [header.position_lps_mm for header in headers if header.position_lps_mm is not None]
    normal = headers[0].normal
    if len(positions) < len(headers) or not normal.any():
        return None
    return np.array(positions) @ normal


def _sorted_along_normal(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Sort along the normal; if positions are missing, by path and frame (reading such a series is refused)."""
    places = _places_mm(headers)
    if places is None:
        return sorted(headers, key=lambda header: (header.path, header.frame))
    return [headers[n] for n in np.argsort(places, kind="stable")]


def _check_kind(source: str, headers: Sequence[SliceHeader]) -> None:
    """Refuse anything but at least two complete grey CT slices in HU of one series, each a file or a placed frame."""
    series = sorted({header.series_uid for header in headers})
    if len(series) > 1:
        raise ScanError(f"{source}: expected one series, got {len(series)}: {', '.join(series)}; name one of them.")
    for header in headers:
        where = f"{source}, file {header.name}"
        if header.modality != "CT":
            raise ScanError(f"{where}: expected modality CT, got {header.modality or 'none'}; choose a CT series.")
        if header.is_localizer:
            raise ScanError(f"{where}: expected CT slices, got a localizer; choose the scan's own series.")
        if header.frames > 1 and "stack" not in header.origin:
            raise ScanError(
                f"{where}: expected one slice per file, or an enhanced (multi-frame) CT with a position for "
                f"each of its {header.frames} frames, got frames without positions; export the original series."
            )
        if not header.colour.startswith("MONOCHROME2"):
            raise ScanError(
                f"{where}: expected grey CT values (MONOCHROME2), got {header.colour}; export the CT itself."
            )
        if header.rescale_type not in HU_TYPES:
            raise ScanError(f"{where}: expected HU, got RescaleType {header.rescale_type}; choose the CT itself.")
        if header.fault:
            raise ScanError(f"{where}: {header.fault}; export the original series.")
        if not header.has_all_pixels:
            raise ScanError(f"{where}: expected all pixels, got a truncated or damaged file; copy the series again.")
    if len(headers) < 2:
        raise ScanError(
            f"{source}: expected a 3-D scan, got a single 2-D slice; give the folder with the whole series."
        )


def _check_origin(source: str, headers: Sequence[SliceHeader]) -> None:
    """Refuse slices of several patients, studies, frames of reference, stacks, time points or kinds of image.

    A value that a slice lacks is not a contradiction. Messages never contain the values themselves, which may identify
    a patient. Slices of which only some give a rescale slope and intercept are refused too.
    """
    for what in dict.fromkeys(what for header in headers for what in header.origin):
        first: dict[str, str] = {}
        for header in headers:
            first.setdefault(header.origin.get(what, ""), header.name)
        first.pop("", None)
        names = ", ".join(list(first.values())[:2])
        if len(first) > 1:
            raise ScanError(
                f"{source}: expected slices of one {what}, got {len(first)} ({names}); split them into separate series."
            )
    if len({header.rescale is None for header in headers}) > 1:
        raise ScanError(
            f"{source}: expected RescaleSlope and RescaleIntercept in each slice, found none in some; export the "
            "original series."
        )


def _check_alike(source: str, headers: Sequence[SliceHeader]) -> None:
    """Refuse slices without geometry, slices that differ in size, spacing or orientation, and skewed orientations."""
    first = headers[0]
    for header in headers:
        where = f"{source}, file {header.name}"
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
                    f"{where}: expected the {name} {others} of {first.name}, got {mine}; keep only the slices that "
                    "belong together."
                )
    axes = np.reshape(first.orientation or (), (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), rtol=0, atol=DIRECTION_TOLERANCE):
        raise ScanError(
            f"{source}: expected two perpendicular unit vectors in ImageOrientationPatient, got {first.orientation}; "
            "export the original series."
        )


def _check_steps(source: str, ordered: Sequence[SliceHeader]) -> None:
    """Refuse duplicate positions, missing slices and uneven spacing.

    Missing slices at either end cannot be detected from the headers.
    """
    places = _places_mm(ordered)
    if places is None:
        raise ScanError(f"{source}: expected slice positions, found none; export the original series.")
    steps, names = np.diff(places), _names(ordered)
    usual, least, most = float(np.median(steps)), int(np.argmin(steps)), int(np.argmax(steps))
    positions = np.array([header.position_lps_mm for header in ordered])
    regular = positions[0] + np.linspace(0, 1, len(ordered))[:, None] * (positions[-1] - positions[0])
    errors_mm = np.linalg.norm(positions - regular, axis=1)
    odd = int(np.argmax(errors_mm))
    if steps[least] < DUPLICATE_MM:
        raise ScanError(
            f"{source}: expected one slice per position, got two at {places[least]:.2f} mm "
            f"({names[least]}, {names[least + 1]}): copies, or several phases in one series; keep one of each."
        )
    if steps[most] > GAP_STEPS * usual:
        raise ScanError(
            f"{source}: expected a slice every {usual:.2f} mm, got a gap of {steps[most]:.2f} mm between {names[most]} "
            f"and {names[most + 1]}: slices are missing; copy the whole series again."
        )
    if errors_mm[odd] > max(JITTER_MM, JITTER_STEPS * usual):
        raise ScanError(
            f"{source}: expected evenly spaced slices, got {names[odd]} {errors_mm[odd]:.2f} mm out of place "
            f"(steps of {steps.min():.2f} to {steps.max():.2f} mm): slices are missing or the spacing changes; export "
            "the series with one spacing."
        )


def _names(headers: Sequence[SliceHeader]) -> list[str]:
    """Return the slices' names for messages, each with its folders below the one that contains all of them."""
    folders = [Path(header.path).parent.parts for header in headers]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))))
    return [Path(*own[shared:], header.name).as_posix() for own, header in zip(folders, headers, strict=True)]


def _affine_lps(ordered: Sequence[SliceHeader]) -> FloatArray:
    """Return the affine from voxel (i = column, j = row, k = slice) to LPS mm.

    The third axis runs from the first slice's position to the last one's, so that it includes the gantry tilt.
    """
    first, (origin, end) = ordered[0], np.array([ordered[0].position_lps_mm, ordered[-1].position_lps_mm])
    between_rows, between_columns = first.pixel_spacing_mm or (np.nan, np.nan)
    along_row, along_column = np.reshape(first.orientation or (), (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * between_columns, along_column * between_rows
    affine[:3, 2], affine[:3, 3] = (end - origin) / (len(ordered) - 1), origin
    return affine
