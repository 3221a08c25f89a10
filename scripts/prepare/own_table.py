"""Annotations as people have them: one row a finding, with the columns of LUNA16 or plainer ones, in LPS or RAS mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..core.files import read_csv
from ..core.geometry import swap_lps_ras
from .datalists import PrepareError, Row

FRAMES = ("lps", "ras")
# What a column may be called, without regard to case; the first that is there counts.
SCAN_COLUMNS = ("seriesuid", "series_uid", "seriesinstanceuid", "scan", "image", "file", "filename", "name")
PLACE_COLUMNS = (("coordx", "coordy", "coordz"), ("x", "y", "z"), ("x_mm", "y_mm", "z_mm"))
DIAMETER_COLUMNS = ("diameter_mm", "diameter")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid")


TableRow = tuple[str, str, Row, str]  # file and row, for messages; what names the scan; finding; patient, if named


def read_rows(path: Path, frame: str) -> tuple[list[TableRow], list[tuple[str, str]]]:
    """The rows of a table, and those that cannot be used: (where, reason).

    Commas, semicolons and tabs may part the columns; a point is the decimal sign.

    Args:
        path: of the CSV.
        frame: "lps" or "ras", of its positions.

    Raises:
        PrepareError: no such file, no text, columns that are not there, or no row at all.
    """
    table = [
        (f"{path.name}, row {number}", {name.lower(): value for name, value in values.items()})
        for number, values in read_csv(path, error=PrepareError)
    ]
    if not table:
        raise PrepareError(f"{path}: expected a row for each finding, got none; add them or leave the table out")
    names = max((list(values) for _, values in table), key=len)
    scan, diameter, patient = (_first(columns, names) for columns in (SCAN_COLUMNS, DIAMETER_COLUMNS, PATIENT_COLUMNS))
    place: Sequence[str] = next((columns for columns in PLACE_COLUMNS if set(columns) <= set(names)), ())
    if not (scan and place and diameter):
        raise PrepareError(
            f"{path}: expected the columns seriesuid, coordX, coordY, coordZ, diameter_mm (or scan, x, y, z, "
            f"diameter_mm), got {', '.join(names)[:200]}; name them so in the first row"
        )
    rows: list[TableRow] = []
    bad = []
    for where, values in table:
        *position, size = [_number(values.get(name, "")) for name in (*place, diameter)]
        name = values.get(scan, "")
        if not name:
            bad.append((where, "the row names no scan"))
        elif not all(map(math.isfinite, (*position, size))):
            bad.append((where, "position and diameter are not all numbers"))
        else:
            x, y, z = swap_lps_ras(position).tolist() if frame == "ras" else position
            rows.append((where, name, (x, y, z, size), values.get(patient, "")))
    return rows, bad


def _first(columns: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in columns if name in names), "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
