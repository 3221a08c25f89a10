"""Reads the tables of LUNA16: results, annotations, the list of scans, and the scans of each fold.

Positions are LPS mm. Folds are accepted in three forms: a CSV with the columns ``seriesuid`` and ``fold``; one datalist
(JSON) for each fold, whose ``validation`` list contains the fold's scans, as MONAI publishes them for LUNA16; or a
folder with a sub-folder of scans for each fold (``subset0`` … ``subset9`` of LUNA16).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.errors import UserError
from ..core.files import read_csv
from ..core.geometry import FloatArray
from ..core.text import number_in
from ..read.discovery import is_image_file, scan_stem
from ..report.tables import LUNA16_COLUMNS

SERIES_COLUMN, *POSITION_COLUMNS, SCORE_COLUMN = LUNA16_COLUMNS
DIAMETER_COLUMN, FOLD_COLUMN = "diameter_mm", "fold"
FINDING_COLUMNS = (SERIES_COLUMN, *POSITION_COLUMNS, DIAMETER_COLUMN)


class TableError(UserError, ValueError):
    """A table cannot be used; the message names the file and, where possible, the row."""


@dataclass(frozen=True)
class Table:
    """Rows of a LUNA16 table.

    Attributes:
        path: the file.
        series_uids: ``[R]``, one per row.
        positions_lps_mm: ``[R, 3]``.
        values: ``[R]``, the last column: probability, or diameter in mm.
    """

    path: Path
    series_uids: tuple[str, ...]
    positions_lps_mm: FloatArray
    values: FloatArray

    def scans(self, index: dict[str, int], unknown: int) -> npt.NDArray[np.int64]:
        """Return the index ``[R]`` of each row's series; ``unknown`` for a series that is not in ``index``."""
        return np.array([index.get(uid, unknown) for uid in self.series_uids], dtype=np.int64)

    def of(self, series_uids: Iterable[str]) -> Table:
        """Return the table with only the rows of some series."""
        wanted = frozenset(series_uids)  # there may be hundreds of series and hundreds of thousands of rows
        kept = [n for n, uid in enumerate(self.series_uids) if uid in wanted]
        uids = tuple(self.series_uids[n] for n in kept)
        return Table(self.path, uids, self.positions_lps_mm[kept], self.values[kept])


def read_results(path: str | Path) -> Table:
    """Read candidates with their probabilities; an empty file has none.

    Raises:
        TableError: the file does not exist, a column is missing, or a value is not a finite number.
    """
    file = Path(path)
    if file.is_file() and not file.read_bytes().strip():
        return no_rows(file)
    return _read_table(file, SCORE_COLUMN)


def no_rows(path: Path) -> Table:
    """Return a table without rows."""
    return Table(path, (), np.zeros((0, 3)), np.zeros(0))


def pooled(tables: Sequence[Table]) -> Table:
    """Join the tables of the parts of one system, at least one, each of which has different scans.

    Raises:
        TableError: a series is in two parts.
    """
    first: dict[str, Path] = {}
    for table in tables:
        for uid in sorted(set(table.series_uids)):
            if uid in first:
                raise TableError(
                    f"--pool: expected every series in one results file, got {uid} in {first[uid]} and {table.path}; "
                    "name the results of each fold once, or omit --pool to compare systems"
                )
            first[uid] = table.path
    uids = tuple(uid for table in tables for uid in table.series_uids)
    positions_lps_mm = np.concatenate([table.positions_lps_mm for table in tables])
    return Table(tables[0].path.parent, uids, positions_lps_mm, np.concatenate([table.values for table in tables]))


def read_findings(path: str | Path) -> Table:
    """Read nodules or excluded findings with their diameters, mm, negative if unknown.

    Raises:
        TableError: the file does not exist or is empty, a column is missing, or a value is not a finite number.
    """
    return _read_table(Path(path), DIAMETER_COLUMN)


def read_series_uids(path: str | Path) -> tuple[list[str], int]:
    """Read the list of scans; return the series UIDs, unique and sorted, and the number of rows that repeat one.

    The file has no header; rows ``seriesuid`` are ignored.

    Raises:
        TableError: the file cannot be read or lists no series.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{path}: expected a readable list of series UIDs, got: {error}; check the path") from error
    uids = [uid for line in lines if (uid := line.partition(",")[0].strip(' "')) and uid.lower() != SERIES_COLUMN]
    if not uids:
        raise TableError(f"{path}: expected one series UID per row, got an empty file; list the scans to evaluate")
    return sorted(set(uids)), len(uids) - len(set(uids))


def _read_table(path: Path, last: str) -> Table:
    columns = (SERIES_COLUMN, *POSITION_COLUMNS, last)
    uids, numbers = [], []
    for number, row in read_csv(path, columns, TableError):
        if not row[SERIES_COLUMN]:
            raise TableError(f"{path}, row {number}: expected a series UID, got nothing; complete the row")
        uids.append(row[SERIES_COLUMN])
        numbers.append([_number(row.get(name, ""), f"{path}, row {number}, {name}") for name in columns[1:]])
    values = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    return Table(path, tuple(uids), values[:, :3], values[:, 3])


def _number(text: str, place: str) -> float:
    value = number_in(text)
    if not math.isfinite(value):
        got = repr(text) if text else "nothing"
        raise TableError(f"{place}: expected a finite number, got {got}; correct or remove the row")
    return value


def read_folds(paths: Sequence[str | Path]) -> dict[str, list[str]]:
    """Return the series UIDs of each fold, by its name: the value in the CSV, or the name of its datalist or folder.

    Args:
        paths: in one of the forms above; empty for none.

    Raises:
        TableError: the form is unknown, a fold is empty or given twice, or a series is in two folds.
    """
    folds: dict[str, list[str]] = {}
    first: dict[str, str] = {}  # the fold of each series
    for file in map(Path, paths):
        for name, uids in _read_one(file).items():
            if name in folds:
                raise TableError(f"{file}: expected each fold once, got {name} again; remove one of them")
            folds[name] = sorted(set(uids))
            for uid in folds[name]:
                if uid in first:
                    raise TableError(
                        f"series {uid}: expected it in one fold, got it in {first[uid]} and {name}; check --folds"
                    )
                first[uid] = name
    return folds


def _read_one(path: Path) -> dict[str, list[str]]:
    if path.is_dir():
        inside = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
        folds = {one.name: [scan_stem(scan) for scan in one.iterdir() if is_image_file(scan)] for one in inside}
    else:
        folds = _from_datalist(path) if path.suffix == ".json" else _from_csv(path)
    empty = [name for name, uids in folds.items() if not uids]
    if empty or not folds:
        raise TableError(
            f"{path}: expected scans in every fold, got none in {', '.join(empty) or 'it'}; give --folds a CSV "
            "with seriesuid and fold, a datalist (.json) for each fold, or a folder with a sub-folder of scans for each"
        )
    return folds


def _from_csv(path: Path) -> dict[str, list[str]]:
    folds: dict[str, list[str]] = {}
    for number, row in read_csv(path, (SERIES_COLUMN, FOLD_COLUMN), TableError):
        uid, fold = row[SERIES_COLUMN], row.get(FOLD_COLUMN, "")
        if not uid or not fold:
            raise TableError(f"{path}, row {number}: expected series and fold, got '{uid}', '{fold}'; complete the row")
        folds.setdefault(fold, []).append(uid)
    return dict(sorted(folds.items(), key=lambda item: (len(item[0]), item[0])))


def _from_datalist(path: Path) -> dict[str, list[str]]:
    """Read the fold of a datalist; the series UID of an item is its name if it has one, otherwise its image's name."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["validation"]
        return {path.stem: [str(item.get("name") or scan_stem(Path(str(item["image"])))) for item in items]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path}: expected a datalist with a list 'validation' of items with an image, got something else "
            f"({type(error).__name__}: {error}); give one datalist for each fold"
        ) from error
