"""Nodules and candidates as JSON, CSV and text. The column names of LUNA16 (LPS mm) live here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np

from ..core.claims import claims_on
from ..core.files import OutputError, csv_text, is_name, read_record, stamp, writable_folder, write_bytes, write_csv
from ..core.geometry import spacing_mm
from ..core.paths import printable
from ..core.records import LUNG_SIDES, Detection, Nodule, ScanResult, SearchRegion

SCHEMA_VERSION = "1.2.0"
DISCLAIMER = "Academic research only. Not a medical device, not for diagnosis. No finding does not mean no nodule."

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")
NODULE_COLUMNS = (*LUNA16_COLUMNS, "label", "diameter_mm")
MEASUREMENTS = ("volume_mm3", "effective_diameter_mm", "long_axis_mm", "short_axis_mm", "mean_hu")
DESCRIPTIONS = ("type_hint", "side", "level")

# A micrometre: far below a voxel, and enough digits to tell two candidates apart.
_MM_DECIMALS = 3
# What float32 carries, so that rounding never makes two candidates tie on the FROC curve.
_PROBABILITY_DIGITS = 9


class NodulesJson:
    """Write ``nodules.json``: every nodule with its measurements, the scan's geometry, model and settings."""

    filename = "nodules.json"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has an empty list.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_bytes(folder / self.filename, _json_text(scan_record(result)).encode())


class NodulesCsv:
    """Write ``nodules.csv``: LUNA16's five columns (LPS mm), then label, diameter, measurements, type, side, level."""

    filename = "nodules.csv"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules gives the header alone, a missing measurement an empty cell.

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
    """Every candidate of every scan that has a result in the table's folder; FROC curves are drawn from it.

    It is made anew from the ``nodules.json`` of the results that stand there each time that one is added: a run that
    goes on after a stop, or several that share the folder, end with the same table as one that never stopped. Rows are
    in the order of the names.

    Args:
        path: the CSV file.

    Raises:
        OutputError: it cannot be written, or a file of that name is no such table.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._claims = claims_on(writable_folder(self.path.parent))
        self._read: dict[str, tuple[Any, str | None]] = {}  # by name: stamp of the record, rows
        with self._claims.lock():
            _check_predictions(self.path)
            self._write(self._stored())

    def update(self) -> None:
        """Take in the results that stand in the folder now.

        Raises:
            OutputError: the rows cannot be written; the table stays as it was.
        """
        with self._claims.lock():
            # A folder that another machine has just written may not be seen here yet: its rows stay.
            self._write({**_lines_of(self.path), **self._stored()})

    def _stored(self) -> dict[str, str]:
        """The rows of the results in the folder, by name; records are read when they are new or have changed."""
        names = {path.parent.name for path in self.path.parent.glob(f"*/{NodulesJson.filename}")}
        for name in filter(is_name, names | _lines_of(self.path).keys()):
            record = self.path.parent / name / NodulesJson.filename
            now = stamp(record)
            if self._read.get(name, (None, None))[0] != now:
                self._read[name] = (now, _stored_lines(record))
        return {name: rows for name, (_, rows) in self._read.items() if rows is not None}

    def _write(self, rows: Mapping[str, str]) -> None:
        write_bytes(self.path, "".join([csv_text([LUNA16_COLUMNS]), *(rows[n] for n in sorted(rows))]).encode())


def _lines_of(path: Path) -> dict[str, str]:
    """The whole rows of a table by the scan's name; none where there is no table."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines: dict[str, str] = {}
    for line in text.splitlines(keepends=True)[1:]:
        if line.endswith("\n") and line.count(",") == len(LUNA16_COLUMNS) - 1:
            name = line.split(",", 1)[0]
            lines[name] = lines.get(name, "") + line
    return lines


def _check_predictions(path: Path) -> None:
    """Refuse to write over a file that is no table of candidates."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline().rstrip("\r\n")
    if first != ",".join(LUNA16_COLUMNS):
        raise OutputError(
            f"{path}: expected nothing or a table of candidates ({','.join(LUNA16_COLUMNS)}), got another file. "
            "Move it or choose another output_dir."
        )


def _stored_lines(path: Path) -> str | None:
    """CSV lines of a result that stands in its folder; ``None`` where there is none, or it lists no candidates."""
    try:
        return csv_text(_luna16_row(path.parent.name, candidate) for candidate in read_record(path)["candidates"])
    except (KeyError, TypeError):
        return None


def _luna16_row(name: str, candidate: Mapping[str, Any]) -> list[Any]:
    """The first five columns, of the record of a candidate or nodule."""
    return [name, *candidate["centre_lps_mm"], candidate["probability"]]


def scan_record(result: ScanResult) -> dict[str, Any]:
    """Everything ``nodules.json`` says, as plain values: no NaN, no path, ``None`` for what does not exist."""
    affine = np.asarray(result.affine_ras, dtype=np.float64)
    record = {
        "schema_version": SCHEMA_VERSION,
        "disclaimer": DISCLAIMER,
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
            **_region_record(result.region),
            "candidates_outside_lungs": result.outside_lungs,
            "candidates": len(result.candidates),
        },
        "notes": result.notes,
        "nodules": [nodule_record(nodule) for nodule in result.nodules],
        "candidates": [candidate_record(candidate) for candidate in result.candidates],
    }
    return plain(record)


def _region_record(region: SearchRegion | None) -> dict[str, Any]:
    """Where the scan was searched, and how large its lungs are; ``None`` for what is not known."""
    if region is None:
        return {"region": None, "lungs_found": False, "lung_volume_l": None}
    litres = {side: _rounded(region.lung_volume_l(side)) for side in LUNG_SIDES} if region.lungs_found else None
    return {"region": region.kind, "lungs_found": region.lungs_found, "lung_volume_l": litres}


def nodule_record(nodule: Nodule) -> dict[str, Any]:
    """One nodule as rounded plain values; mm in LPS, RAS and voxel (i, j, k) of the scan's own grid."""
    detection = nodule.detection
    return {
        "label": int(nodule.label),
        **candidate_record(detection),
        "centre_ras_mm": [_rounded(value) for value in detection.centre_ras_mm],
        "centre_voxel": [_rounded(value) for value in nodule.centre_voxel],
        **_measurement_record(nodule),
        "type_hint": None if nodule.measurement is None else nodule.measurement.type_hint,
        "location": None if nodule.location is None else dataclasses.asdict(nodule.location),
    }


def candidate_record(candidate: Detection) -> dict[str, Any]:
    """One candidate as rounded plain values, LPS mm."""
    return {
        "centre_lps_mm": [_rounded(value) for value in candidate.centre_lps_mm],
        "diameter_mm": _rounded(candidate.diameter_mm),
        "probability": _rounded_probability(candidate.probability),
    }


def source_name(source: str) -> str:
    """The last part of a path of any system: folders above it may tell who the patient is."""
    path = PureWindowsPath(source) if "\\" in source else PurePath(source)
    return printable(path.name)


def published_source(result: ScanResult) -> str:
    """What a result says of where it came from: the file's name, or the series, as folders are named after patients.

    Where identity is asked for, the folder's name.
    """
    if result.source_files and not result.identity:
        return result.facts.get("Series UID", "")
    return source_name(result.source)


def summary(result: ScanResult) -> str:
    """The nodules of a scan as aligned text for a terminal, one a line; positions in LPS mm."""
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


def _measurement_record(nodule: Nodule) -> dict[str, float | None]:
    measurement = nodule.measurement
    return {
        name: None if measurement is None else _rounded(getattr(measurement, name), 2 if name != "mean_hu" else 1)
        for name in MEASUREMENTS
    }


def _rounded(value: float, decimals: int = _MM_DECIMALS) -> float | None:
    """``None`` for NaN and infinity, which JSON does not know; never ``-0.0``."""
    return round(float(value), decimals) + 0.0 if math.isfinite(value) else None


def _rounded_probability(probability: float) -> float:
    return float(f"{probability:.{_PROBABILITY_DIGITS}g}")


def _json_text(record: Mapping[str, Any]) -> str:
    """A line for each field, and for each item of a list: hundreds of candidates stay readable."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    fields = []
    for name, value in record.items():
        items = ",\n    ".join(map(line, value)) if isinstance(value, list) else ""
        fields.append(f"  {line(name)}: " + (f"[\n    {items}\n  ]" if items else line(value)))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def plain(value: Any) -> Any:
    """Turn what a record may hold (NumPy values, tuples, paths) into what strict JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, os.PathLike):
        return source_name(str(os.fspath(value)))
    return str(value)
