"""What the commands that make datalists share: paths, checks of findings, folds, and the list of what is left out."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import write_csv, write_json
from ..core.geometry import Point
from ..core.labels import IGNORED, NODULE
from ..metrics.froc import UNKNOWN_DIAMETER_MM
from ..read.datalist import FILES, LARGEST_NODULE_MM, SAME_PLACE_MM, load_datalist
from ..read.discovery import read_datalist
from ..read.scan import Grid

logger = logging.getLogger(__name__)

LEFT_OUT_FILE = "left_out.csv"
SHOWN = 5  # subjects shown for each reason; the file lists all of them


class PrepareError(UserError, ValueError):
    """No datalist can be made from the data."""


@dataclass(frozen=True, order=True)
class LeftOut:
    """Something that is missing from the datalist although it might be expected there.

    Attributes:
        reason: why it is missing; the same cause always has the same wording.
        subject: the file, scan or row.
        advice: what to do about it.
    """

    reason: str
    subject: str
    advice: str = ""


@dataclass(frozen=True)
class Annotation:
    """The reference for one nodule or excluded finding.

    Attributes:
        centre_lps_mm: its centre.
        diameter_mm: its diameter; negative if unknown.
        label: :data:`NODULE` or :data:`IGNORED`.
        subject: what it is called in messages: the row of a table, or the file of a mask.
    """

    centre_lps_mm: Point
    diameter_mm: float
    label: int
    subject: str


def path_in_datalist(path: Path, folder: Path) -> str:
    """Return a path for a datalist in ``folder``: relative with ``/`` if possible, absolute on another drive.

    Links to folders are resolved, since ``..`` would be wrong across them; a link to the file itself is not, because
    the data of a linked MetaImage header lie beside the link.
    """
    target = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(target, folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return str(target)


def read_lists(datalists: str | Sequence[str]) -> dict[Path, dict[str, list[dict[str, Any]]]]:
    """Return the sections of datalists by path; their items are checked, and paths in them are complete.

    Raises:
        PrepareError: a file is not a datalist, or two have the same name, which their successors would share.
        DatalistError: items cannot be used.
    """
    paths = [Path(path) for path in ([datalists] if isinstance(datalists, str) else datalists)]
    twice = sorted(name for name, count in Counter(path.name for path in paths).items() if count > 1)
    if twice:
        raise PrepareError(
            f"--datalists: expected different file names, got {', '.join(twice)} again; run them separately"
        )
    contents = {path: read_datalist(path, PrepareError) for path in paths}
    for path, content in contents.items():
        if not content or not isinstance(content, dict):
            raise PrepareError(f"{path}: expected a datalist (JSON with sections), got none; check --datalists")
    return {path: {name: load_datalist(str(path), name) for name in content} for path, content in contents.items()}


def moved_item(item: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an item of another datalist with its paths as a datalist in ``folder`` names them."""
    return {**item, **{key: path_in_datalist(Path(item[key]), folder) for key in FILES if item.get(key)}}


def refuse_if_strict(left_out: Sequence[LeftOut], strict: bool) -> None:
    """Treat anything left out as an error if ``strict``; called before the datalists are written.

    Raises:
        PrepareError: ``strict`` is set, and something was left out.
    """
    if left_out and strict:
        raise PrepareError(
            f"--strict: expected nothing to be left out, got {len(left_out)}; correct it or omit --strict:\n"
            + "\n".join(_lines(left_out))
        )


def account_for(left_out: Sequence[LeftOut], folder: Path) -> None:
    """Log what was left out, by reason, and write all of it to ``left_out.csv``; if nothing was, remove that file."""
    path = folder / LEFT_OUT_FILE
    if not left_out:
        path.unlink(missing_ok=True)
        logger.info("left out: nothing")
        return
    rows = [(one.subject, one.reason, one.advice) for one in sorted(left_out)]
    write_csv(path, [("subject", "reason", "advice"), *rows])
    logger.warning("left out: %d, all of them in %s", len(left_out), path)
    for line in _lines(left_out):
        logger.warning("%s", line)


def _lines(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason: the number of subjects, the first of them, and the advice."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in sorted(left_out):
        groups.setdefault((one.reason, one.advice), []).append(one.subject)
    return [
        f"  {len(names):5d} × {reason}: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
        + (f"; {advice}" if advice else "")
        for (reason, advice), names in groups.items()
    ]


def usable(annotations: Iterable[Annotation], grid: Grid, advice: str) -> tuple[dict[str, list[Any]], list[LeftOut]]:
    """Return the boxes and labels of a scan's usable annotations as ``box`` and ``label``, and the others.

    An excluded finding of unknown size gets the diameter that LUNA16 assumes for it.

    Args:
        annotations: the annotations of the scan.
        grid: the scan's grid.
        advice: what to do about annotations that cannot be used.
    """
    kept: list[Annotation] = []
    left_out = []
    for one in annotations:
        if one.label == IGNORED and one.diameter_mm < 0:
            one = replace(one, diameter_mm=UNKNOWN_DIAMETER_MM)
        nodules = [other.centre_lps_mm for other in kept if other.label == NODULE == one.label]
        faults = {
            "a finding's centre lies outside its scan": not grid.holds(one.centre_lps_mm),
            "a finding has no size": one.diameter_mm <= 0,
            f"a finding is larger than {LARGEST_NODULE_MM:g} mm": one.diameter_mm > LARGEST_NODULE_MM,
            "a nodule is listed twice": any(math.dist(one.centre_lps_mm, other) < SAME_PLACE_MM for other in nodules),
        }
        fault = next((words for words, holds in faults.items() if holds), "")
        if fault:
            left_out.append(LeftOut(fault, f"{one.subject} at {shown_place(one.centre_lps_mm)}", advice))
        else:
            kept.append(one)
    boxes = [[*one.centre_lps_mm, *[one.diameter_mm] * 3] for one in kept]
    return {"box": boxes, "label": [one.label for one in kept]}, left_out


def shown_place(point_lps_mm: Sequence[float]) -> str:
    """Return a position as text for messages."""
    return f"({', '.join(f'{value:.1f}' for value in point_lps_mm)}) LPS mm"


def write_folds(folder: Path, folds: Iterable[int], items: Sequence[tuple[int, dict[str, Any]]]) -> None:
    """Write ``dataset_fold0.json`` …, each with all items: those of its fold under ``validation``, others to train on.

    Args:
        folder: where to write the datalists; existing ones are replaced.
        folds: numbers of the folds.
        items: the number of its fold, and the item.

    Raises:
        OutputError: the folder cannot be written to.
    """
    for fold in folds:
        training, validation = ([one for own, one in items if (own == fold) is chosen] for chosen in (False, True))
        path = write_json(folder / f"dataset_fold{fold}.json", {"training": training, "validation": validation})
        logger.info("%s: %d scans to train on, %d to validate on", path, len(training), len(validation))
