"""Nodules and candidates as JSON, CSV and text. Only here are the column names of LUNA16 (LPS mm) defined."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np

from ..core.claims import claims_on
from ..core.files import OutputError, csv_text, is_name, read_record, stamp, writable_folder, write_bytes, write_csv
from ..core.geometry import spacing_mm
from ..core.paths import printable
from ..core.records import LUNG_SIDES, Detection, Nodule, ScanResult
from ..core.text import DISCLAIMER
from .base import Writer

SCHEMA_VERSION = "1.2.0"
CAUTION = f"{DISCLAIMER} A report without findings does not exclude nodules."

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")
NODULE_COLUMNS = (*LUNA16_COLUMNS, "label", "diameter_mm")
# Measurement → decimals.
MEASUREMENTS = {"volume_mm3": 2, "effective_diameter_mm": 2, "long_axis_mm": 2, "short_axis_mm": 2, "mean_hu": 1}
DESCRIPTIONS = ("type_hint", "side", "level")

# A micrometre: far below a voxel, and precise enough to distinguish two candidates.
_MM_DECIMALS = 3
# Enough for float32, so that rounding never makes two candidates tie on the FROC curve.
_PROBABILITY_DIGITS = 9


class NodulesJson(Writer):
    """Write ``nodules.json``: nodules with their measurements, candidates, the scan's geometry, model and settings."""

    filename = "nodules.json"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has an empty list.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_bytes(folder / self.filename, _json_text(scan_record(result)).encode())


class NodulesCsv(Writer):
    """Write ``nodules.csv``: LUNA16's five columns (LPS mm), then label, diameter, measurements, type, side, level."""

    filename = "nodules.csv"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; without nodules there is only the header, and a missing measurement is an empty cell.

        Raises:
            OutputError: the file cannot be written.
        """
        rows = []
        for record in map(nodule_record, result.nodules):
            location = record["location"] or {"side": None, "level": None}
            values = [record[name] for name in ("label", "diameter_mm", *MEASUREMENTS, "type_hint")]
            rows.append([*_luna16_row(result.name, record), *values, location["side"], location["level"]])
        return write_csv(folder / self.filename, [[*NODULE_COLUMNS, *MEASUREMENTS, *DESCRIPTIONS], *rows])


class PredictionTable:
    """The candidates of all scans that have a result in the table's folder; FROC curves are computed from it.

    Whenever a result is added, the table is rebuilt from the ``nodules.json`` of all results in the folder. A run that
    was resumed, and several runs that share the folder, thus end with the same table as one uninterrupted run. Rows are
    sorted by scan name.

    Args:
        path: the CSV file.

    Raises:
        OutputError: the file cannot be written, or exists and is not such a table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._claims = claims_on(writable_folder(self.path.parent))
        with self._claims.lock():
            _lines_of(self.path)  # raises for a file that is not such a table
            self._write(self._stored())

    def update(self) -> None:
        """Add the results that are now in the folder.

        Raises:
            OutputError: the rows cannot be written; the table then stays as it was.
        """
        with self._claims.lock():
            # A folder just written by another machine may not be visible here yet, so its rows are kept.
            self._write({**_lines_of(self.path), **self._stored()})

    def _stored(self) -> dict[str, str]:
        """Return the rows of the results in the folder, by scan name."""
        folder = self.path.parent
        names = {path.parent.name for path in folder.glob(f"*/{NodulesJson.filename}")} | _lines_of(self.path).keys()
        rows = {name: _stored_lines(*stamp(folder / name / NodulesJson.filename)) for name in filter(is_name, names)}
        return {name: lines for name, lines in rows.items() if lines is not None}

    def _write(self, rows: Mapping[str, str]) -> None:
        write_bytes(self.path, "".join([csv_text([LUNA16_COLUMNS]), *(rows[n] for n in sorted(rows))]).encode())


def _lines_of(path: Path) -> dict[str, str]:
    """Return the rows of a table that have all columns, by scan name; nothing if there is no table.

    Raises:
        OutputError: the file is not a table of candidates.
    """
    if not path.exists():
        return {}
    header, *rows = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if header != ",".join(LUNA16_COLUMNS):
        raise OutputError(
            f"{path}: expected nothing or a table of candidates ({','.join(LUNA16_COLUMNS)}), got another file. "
            "Move it or choose another output_dir."
        )
    lines: dict[str, str] = {}
    for row in rows:
        if row.count(",") == len(LUNA16_COLUMNS) - 1:
            name = row.split(",", 1)[0]
            lines[name] = lines.get(name, "") + row + "\n"
    return lines


@cache  # a record is read again only after it has changed
def _stored_lines(record: str, *_: int) -> str | None:
    """Return the CSV lines of a stored result; ``None`` if there is none, or if it lists no candidates.

    Args:
        record: path of its ``nodules.json``; its size and time follow, see :func:`..core.files.stamp`.
    """
    path = Path(record)
    try:
        return csv_text(_luna16_row(path.parent.name, candidate) for candidate in read_record(path)["candidates"])
    except (KeyError, TypeError):
        return None


def _luna16_row(name: str, candidate: Mapping[str, Any]) -> list[Any]:
    """Return the first five columns for the record of a candidate or nodule."""
    return [name, *candidate["centre_lps_mm"], candidate["probability"]]


def scan_record(result: ScanResult) -> dict[str, Any]:
    """Return the content of ``nodules.json`` as plain values: no NaN, no path, ``None`` for what does not exist."""
    affine, region = np.asarray(result.affine_ras, dtype=np.float64), result.region
    litres = None
    if region is not None and region.lungs_found:
        litres = {side: _rounded(region.lung_volume_l(side)) for side in LUNG_SIDES}
    record = {
        "schema_version": SCHEMA_VERSION,
        "disclaimer": CAUTION,
        "name": result.name,
        "source": published_source(result),
        "input_digest": result.input_digest,
        "bundle": result.model,
        "settings": result.settings,
        "scan": {
            "facts": result.facts,
            "shape": result.image_hu.shape,
            "spacing_mm": [round(value, 6) for value in spacing_mm(affine).tolist()],
            "affine_ras": affine,
        },
        "search": {
            "region": None if region is None else region.kind,
            "lungs_found": litres is not None,
            "lung_volume_l": litres,
            "candidates_outside_lungs": result.outside_lungs,
            "candidates": len(result.candidates),
        },
        "notes": result.notes,
        "nodules": [nodule_record(nodule) for nodule in result.nodules],
        "candidates": [candidate_record(candidate) for candidate in result.candidates],
    }
    return plain(record)


def nodule_record(nodule: Nodule) -> dict[str, Any]:
    """Return one nodule as rounded plain values: mm in LPS and RAS, and voxel (i, j, k) on the scan's own grid."""
    measured = nodule.measurement
    return {
        "label": int(nodule.label),
        **candidate_record(nodule.detection),
        "centre_ras_mm": [_rounded(value) for value in nodule.detection.centre_ras_mm],
        "centre_voxel": [_rounded(value) for value in nodule.centre_voxel],
        **{name: measured and _rounded(getattr(measured, name), places) for name, places in MEASUREMENTS.items()},
        "type_hint": measured and measured.type_hint,
        "location": nodule.location and dataclasses.asdict(nodule.location),
    }


def candidate_record(candidate: Detection) -> dict[str, Any]:
    """Return one candidate as rounded plain values, in LPS mm."""
    return {
        "centre_lps_mm": [_rounded(value) for value in candidate.centre_lps_mm],
        "diameter_mm": _rounded(candidate.diameter_mm),
        "probability": float(f"{candidate.probability:.{_PROBABILITY_DIGITS}g}"),
    }


def source_name(source: str) -> str:
    """Return the last part of a path of any operating system: the folders above it may identify the patient."""
    path = PureWindowsPath(source) if "\\" in source else PurePath(source)
    return printable(path.name)


def published_source(result: ScanResult) -> str:
    """Return what a result states as its source.

    For DICOM it is the series UID, because folders are often named after patients (the folder's name if identity is to
    be shown); otherwise it is the name of the file.
    """
    if result.source_files and not result.identity:
        return result.facts.get("Series UID", "")
    return source_name(result.source)


def summary(result: ScanResult) -> str:
    """Return the nodules of a scan as aligned text for a terminal, one per line; positions in LPS mm."""
    count = len(result.nodules)
    lines = [f"{result.name}: {count or 'no'} nodule{'' if count == 1 else 's'}"]
    if count:
        lines.append(f"  {'label':>5}  {'probability':>11}  {'centre LPS mm':^26}  {'diameter mm':>11}  volume mm³")
    for nodule in result.nodules:
        detection = nodule.detection
        x, y, z = detection.centre_lps_mm
        volume = "-" if nodule.measurement is None else f"{nodule.measurement.volume_mm3:.0f}"
        lines.append(
            f"  {nodule.label:>5}  {detection.probability:>11.3f}  {x:>8.1f} {y:>8.1f} {z:>8.1f}"
            f"  {detection.diameter_mm:>11.1f}  {volume:>10}"
        )
    return "\n".join(lines)


def _rounded(value: float, decimals: int = _MM_DECIMALS) -> float | None:
    """Round a value; ``None`` for NaN and infinity, which JSON does not have; never ``-0.0``."""
    return round(float(value), decimals) + 0.0 if math.isfinite(value) else None


def _json_text(record: Mapping[str, Any]) -> str:
    """Return JSON with one line per field and per list item, so that hundreds of candidates stay readable."""
    line = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    fields = []
    for name, value in record.items():
        items = ",\n    ".join(map(line, value)) if isinstance(value, list) else ""
        fields.append(f"  {line(name)}: " + (f"[\n    {items}\n  ]" if items else line(value)))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def plain(value: Any, digits: int | None = None) -> Any:
    """Convert the values of a record (NumPy values, tuples, paths) to what strict JSON allows.

    Args:
        value: any value of a record; NaN and infinity become ``None``, a path its last part.
        digits: decimals to which floats are rounded; ``None`` leaves them unrounded.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, digits) for item in value]
    if isinstance(value, float):
        return None if not math.isfinite(value) else value if digits is None else round(value, digits)
    if isinstance(value, os.PathLike):
        return source_name(str(os.fspath(value)))
    return value if value is None or isinstance(value, str | bool | int) else str(value)
