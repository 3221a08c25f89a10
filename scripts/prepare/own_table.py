"""Annotations as people have them: one row a finding, with the columns of LUNA16 or plainer ones, in LPS or RAS mm."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.geometry import swap_lps_ras
from .datalists import PrepareError

FRAMES = ("lps", "ras")
# What a column may be called, without regard to case; the first that is there counts.
SCAN_COLUMNS = ("seriesuid", "series_uid", "seriesinstanceuid", "scan", "image", "file", "filename", "name")
PLACE_COLUMNS = (("coordx", "coordy", "coordz"), ("x", "y", "z"), ("x_mm", "y_mm", "z_mm"))
DIAMETER_COLUMNS = ("diameter_mm", "diameter")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid")


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        line: in the file, from 1.
        scan: what names its scan.
        centre_lps_mm: its centre.
        diameter_mm: negative where unknown.
        patient: whose scan it is; empty where the table does not say.
    """

    line: int
    scan: str
    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float
    patient: str


def read_rows(path: Path, frame: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of a table, and those that cannot be used: (where, reason).

    Commas, semicolons and tabs may part the columns; a point is the decimal sign.

    Args:
        path: of the CSV.
        frame: "lps" or "ras", of its positions.

    Raises:
        PrepareError: no such file, no text, or columns that are not there.
    """
    names, lines = _read(path)
    scan, place, diameter = _columns(path, names)
    patient = next((name for name in PATIENT_COLUMNS if name in names), "")
    rows, bad = [], []
    for number, values in lines:
        numbers = [_number(values.get(name)) for name in (*place, diameter)]
        name = values.get(scan) or ""
        if not name:
            bad.append((f"{path.name}, row {number}", "the row names no scan"))
        elif not all(map(math.isfinite, numbers)):
            bad.append((f"{path.name}, row {number}", "position and diameter are not all numbers"))
        else:
            x, y, z = swap_lps_ras(numbers[:3]).tolist() if frame == "ras" else numbers[:3]
            rows.append(Row(number, name, (x, y, z), numbers[3], values.get(patient) or ""))
    return rows, bad


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names in lower case, and the rows that are not blank with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path}: expected a CSV (UTF-8), got none ({error}); check --annotations") from error
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    lines = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    names = [name.strip().lower() for name in next(lines, [])]
    rows = [
        (lines.line_num, {name: value.strip() for name, value in zip(names, line, strict=False)})
        for line in lines
        if any(value.strip() for value in line)
    ]
    return names, rows


def _columns(path: Path, names: Sequence[str]) -> tuple[str, tuple[str, ...], str]:
    scan = next((name for name in SCAN_COLUMNS if name in names), "")
    place: tuple[str, ...] = next((columns for columns in PLACE_COLUMNS if set(columns) <= set(names)), ())
    diameter = next((name for name in DIAMETER_COLUMNS if name in names), "")
    if not (scan and place and diameter):
        raise PrepareError(
            f"{path}: expected the columns seriesuid, coordX, coordY, coordZ, diameter_mm (or scan, x, y, z, "
            f"diameter_mm), got {', '.join(names)[:200] or 'an empty file'}; name them so in the first row"
        )
    return scan, place, diameter


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def by_scan(rows: Sequence[Row], keys: Mapping[str, int]) -> tuple[dict[int, list[Row]], list[Row]]:
    """Rows of each scan, by the scan's number, and those whose scan is not there.

    Args:
        rows: of a table.
        keys: what a table may call a scan to its number; -1 for what two scans could be called.
    """
    found: dict[int, list[Row]] = {}
    lost = []
    for row in rows:
        number = keys.get(row.scan, keys.get(row.scan.replace("\\", "/"), -1))
        if number < 0:
            lost.append(row)
        else:
            found.setdefault(number, []).append(row)
    return found, lost
