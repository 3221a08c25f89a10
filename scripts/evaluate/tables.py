"""The tables of LUNA16: results, annotations, the list of scans. Positions are LPS mm."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import UserError
from ..core.files import write_bytes
from ..core.geometry import FloatArray
from ..report.tables import LUNA16_COLUMNS

SERIES_COLUMN, *POSITION_COLUMNS, SCORE_COLUMN = LUNA16_COLUMNS
DIAMETER_COLUMN = "diameter_mm"
FINDING_COLUMNS = (SERIES_COLUMN, *POSITION_COLUMNS, DIAMETER_COLUMN)


class TableError(UserError, ValueError):
    """A table that cannot be evaluated; the message names file and row."""


@dataclass(frozen=True)
class Table:
    """Rows of a LUNA16 table.

    Attributes:
        path: of the file.
        series_uids: ``[R]``.
        positions_lps_mm: ``[R, 3]``.
        values: ``[R]`` the last column: probability, or diameter in mm.
    """

    path: Path
    series_uids: tuple[str, ...]
    positions_lps_mm: FloatArray
    values: FloatArray

    def scans(self, index: dict[str, int], unknown: int) -> npt.NDArray[np.int64]:
        """``[R]`` index of each row's series, ``unknown`` where it is not in the list."""
        return np.array([index.get(uid, unknown) for uid in self.series_uids], dtype=np.int64)


def read_results(path: str | Path) -> Table:
    """Candidates with their probabilities; an empty file has none.

    Raises:
        TableError: no such file, a missing column, a value that is no finite number.
    """
    return _read_table(Path(path), SCORE_COLUMN, "a results file", may_be_empty=True)


def pooled(tables: Sequence[Table]) -> Table:
    """One table of the parts of one system, each of which has scans of its own.

    Raises:
        TableError: a series in two parts.
    """
    first: dict[str, Path] = {}
    for table in tables:
        for uid in sorted(set(table.series_uids)):
            if uid in first:
                raise TableError(
                    f"--pool: expected every series in one results file, got {uid} in {first[uid]} and {table.path}; "
                    "name the results of each fold once, or leave --pool away to compare systems"
                )
            first[uid] = table.path
    uids = tuple(uid for table in tables for uid in table.series_uids)
    positions_lps_mm = np.concatenate([table.positions_lps_mm for table in tables])
    return Table(tables[0].path.parent, uids, positions_lps_mm, np.concatenate([table.values for table in tables]))


def read_findings(path: str | Path) -> Table:
    """Nodules or excluded findings with their diameters, mm, negative where unknown.

    Raises:
        TableError: no such file, a missing column, a value that is no finite number, an empty file.
    """
    return _read_table(Path(path), DIAMETER_COLUMN, "an annotation file", may_be_empty=False)


def read_series_uids(path: str | Path) -> tuple[list[str], int]:
    """The listed scans, each once, sorted, and how many rows repeat one.

    The file has no header; a first row ``seriesuid`` is taken for one.

    Raises:
        TableError: no such file, no series in it.
    """
    rows = [row[0].strip() for _, row in _rows(Path(path), "a list of series UIDs") if row[0].strip()]
    if rows and rows[0].lower() == SERIES_COLUMN:
        rows = rows[1:]
    if not rows:
        raise TableError(f"{path}: expected one series UID per row, got an empty file; list the scans to evaluate")
    return sorted(set(rows)), len(rows) - len(set(rows))


def table_bytes(columns: Sequence[str] | None, rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV, with its column names unless they are ``None``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if columns is not None:
        writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def write_table(path: Path, columns: Sequence[str] | None, rows: Iterable[Iterable[object]]) -> Path:
    """Write a CSV whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_bytes(path, table_bytes(columns, rows))


def _read_table(path: Path, last: str, kind: str, *, may_be_empty: bool) -> Table:
    rows = _rows(path, kind)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    columns = (SERIES_COLUMN, *POSITION_COLUMNS, last)
    if not header and may_be_empty:
        return Table(path, (), np.zeros((0, 3)), np.zeros(0))
    missing = [name for name in columns if name not in header]
    if missing:
        raise TableError(
            f"{path}: expected {kind} with the columns {', '.join(columns)}; missing: {', '.join(missing)}; "
            f"got {', '.join(header)[:200] or 'an empty file'}; name the columns in the first row"
        )
    places = [header.index(name) for name in columns]
    uids, numbers = [], []
    for number, row in rows:
        if len(row) <= max(places):
            raise TableError(
                f"{path}, row {number}: expected {len(header)} values as in the first row, got {len(row)}; "
                "complete or remove the row"
            )
        uids.append(_series_uid(row[places[0]], path, number))
        numbers.append([_number(row[p], path, number, name) for p, name in zip(places[1:], columns[1:], strict=True)])
    values = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    return Table(path, tuple(uids), values[:, :3], values[:, 3])


def _rows(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with its number in the file, from 1."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing"
        raise TableError(f"{path}: expected {kind} (CSV), got {got}; check the path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: expected {kind} (CSV, UTF-8), got other content ({error}); convert it") from error


def _series_uid(text: str, path: Path, row: int) -> str:
    uid = text.strip()
    if not uid:
        raise TableError(f"{path}, row {row}, {SERIES_COLUMN}: expected a series UID, got nothing; complete the row")
    return uid


def _number(text: str, path: Path, row: int, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        got = repr(text) if text.strip() else "nothing"
        raise TableError(f"{path}, row {row}, {column}: expected a finite number, got {got}; correct or remove the row")
    return value
