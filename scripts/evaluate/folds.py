"""Which scans belong to which fold of a cross-validation.

Three forms are read: a CSV with the columns ``seriesuid`` and ``fold``; one datalist (JSON) for each fold, whose
``validation`` list holds the fold's scans, as MONAI publishes them for LUNA16; or a folder with one sub-folder for each
fold that holds its scans (``subset0`` … ``subset9`` of LUNA16).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..core.files import read_csv
from ..read.discovery import is_image_file, scan_stem
from .tables import SERIES_COLUMN, TableError

FOLD_COLUMN = "fold"


def read_folds(paths: Sequence[str | Path]) -> dict[str, list[str]]:
    """Series UIDs of each fold, by the fold's name: its value in the CSV, or the name of its datalist or folder.

    Raises:
        TableError: a form that is not known, an empty fold, a series in two folds.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        inside = sorted(p for p in files[0].iterdir() if not p.name.startswith("."))
        files = [p for p in inside if p.suffix == ".json"] or [p for p in inside if p.is_dir()] or files
    folds: dict[str, list[str]] = {}
    first: dict[str, str] = {}  # the fold of each series
    for file in files:
        for name, uids in _read_one(file).items():
            if name in folds:
                raise TableError(f"{file}: expected a fold of its own, got {name} again; name every fold once")
            folds[name] = sorted(set(uids))
            for uid in folds[name]:
                if uid in first:
                    raise TableError(
                        f"series {uid}: expected in one fold, got it in {first[uid]} and {name}; check --folds"
                    )
                first[uid] = name
    return folds


def _read_one(path: Path) -> dict[str, list[str]]:
    if path.is_dir():
        folds = {path.name: [scan_stem(p) for p in path.iterdir() if is_image_file(p)]}
    elif not path.is_file():
        raise TableError(f"{path}: expected a CSV, a datalist or a folder of folds, got nothing; check --folds")
    else:
        folds = _from_datalist(path) if path.suffix == ".json" else _from_csv(path)
    if not folds or not all(folds.values()):
        raise TableError(f"{path}: expected scans in every fold, got none; check --folds")
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
    """The series UID of an item is its name where it has one, otherwise that of its image."""
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["validation"]
        return {path.stem: [str(item.get("name") or scan_stem(Path(str(item["image"])))) for item in items]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path}: expected a datalist with a list 'validation' of items with an image, got something else "
            f"({type(error).__name__}: {error}); give one datalist for each fold"
        ) from error
