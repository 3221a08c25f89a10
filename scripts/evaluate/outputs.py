"""What an evaluation leaves behind: ``froc.json``, ``froc.csv``, ``froc.png``, and a short table to read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.files import writable_folder, write_csv, write_figure, write_json
from ..metrics import RATES, SIZE_CLASSES, Confidence, Interval
from .plot import draw_froc, rate_name
from .system import Score, System

UNDEFINED = "undefined: there is no nodule to find"
CURVE_COLUMNS = ("system", "fold", "false_positives_per_scan", "sensitivity", "threshold")
ALL_SCANS = "all"  # in the column "fold"

_DIGITS = 9  # of what is written; more than a sensitivity needs


def write_evaluation(folder: str | Path, systems: Sequence[System]) -> list[Path]:
    """Write ``froc.json``, ``froc.csv`` and ``froc.png``; each appears whole or not at all.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = writable_folder(folder)
    return [
        write_json(path / "froc.json", {system.name: system_record(system) for system in systems}),
        write_csv(path / "froc.csv", [CURVE_COLUMNS, *_curve_rows(systems)]),
        write_figure(path / "froc.png", draw_froc(systems), metadata={"Software": None}),
    ]


def system_record(system: System) -> dict[str, Any]:
    """All of a system for JSON: the pooled score, what the lists of scans do not share, and each fold."""
    record = score_record(system.pooled)
    record["listed"] = {
        "scans_without_candidates": list(system.scans_without_candidates),
        "candidates_of_unknown_scans": system.unknown_scans,
    }
    if system.folds:
        record["folds"] = {name: score_record(score) for name, score in system.folds.items()}
    return record


def score_record(score: Score) -> dict[str, Any]:
    """Readings, CPM, counts, intervals and size classes; what is undefined is ``None``, and a note says why."""
    curve = score.froc
    record: dict[str, Any] = {
        "sensitivity_at": _by_rate(curve.readings),
        "cpm": _rounded(curve.cpm),
        **asdict(curve.counts),
        "interval": _interval_record(score.confidence),
        "by_size_mm": {
            size.name: {
                "nodules": size.nodules,
                "true_positives": size.true_positives,
                "sensitivity_at": _by_rate(size.readings),
            }
            for size in curve.sizes
            if size.nodules or size.name != SIZE_CLASSES[0]
        },
    }
    if curve.cpm is None:
        record["note"] = UNDEFINED
    return record


def text_table(systems: Iterable[System]) -> str:
    """Readings, CPM and its interval: one row for each system and fold."""
    rows = [("system", "fold", "scans", "nodules", *map(rate_name, RATES), "CPM", "95 % interval")]
    for system in systems:
        scores = {ALL_SCANS: system.pooled, **system.folds}
        rows += [(system.name, fold, *_cells(score)) for fold, score in scores.items()]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (c.ljust(w) if n < 2 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def scan_lists(system: System, most: int = 5) -> list[str]:
    """Which scans have no candidates and which are unknown, in a line each; none gives no line."""
    lines = []
    empty, unknown = system.scans_without_candidates, system.unknown_scans
    if empty:
        lines.append(f"{system.name}: {len(empty)} scans without candidates: {_first(empty, most)}")
    if unknown:
        total = sum(unknown.values())
        lines.append(
            f"{system.name}: {total} candidates of {len(unknown)} scans that are not in the list, not counted: "
            f"{_first(list(unknown), most)}"
        )
    return lines


def _first(uids: Sequence[str], most: int) -> str:
    more = f" … and {len(uids) - most} more (froc.json)" if len(uids) > most else ""
    return ", ".join(uids[:most]) + more


def _cells(score: Score) -> tuple[str, ...]:
    curve, drawn = score.froc, score.confidence
    readings = [_short(r) for r in curve.readings]
    interval = "-" if drawn is None else f"{_short(drawn.cpm.low)} to {_short(drawn.cpm.high)}"
    cpm = "undefined" if curve.cpm is None else _short(curve.cpm)
    return (str(curve.counts.scans), str(curve.counts.nodules), *readings, cpm, interval)


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _by_rate(readings: Sequence[float]) -> dict[str, float | None]:
    return {f"{rate:g}": _rounded(reading) for rate, reading in zip(RATES, readings, strict=True)}


def _interval_record(drawn: Confidence | None) -> dict[str, Any] | None:
    if drawn is None:
        return None
    return {
        "level": drawn.level,
        "resamples": drawn.resamples,
        "undefined_resamples": drawn.undefined,
        "seed": drawn.seed,
        "cpm": _pair(drawn.cpm),
        "sensitivity_at": {f"{rate:g}": _pair(bounds) for rate, bounds in zip(RATES, drawn.readings, strict=True)},
    }


def _pair(bounds: Interval) -> list[float | None]:
    return [_rounded(bounds.low), _rounded(bounds.high)]


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, _DIGITS)


def _curve_rows(systems: Iterable[System]) -> Iterator[tuple[object, ...]]:
    """Every point of every curve; the threshold of the first point, (0, 0), is empty."""
    for system in systems:
        for fold, score in {ALL_SCANS: system.pooled, **system.folds}.items():
            curve = score.froc
            for x, y, t in zip(curve.false_positives_per_scan, curve.sensitivity, curve.thresholds, strict=True):
                yield system.name, fold, _rounded(float(x)), _rounded(float(y)), float(t) if t < math.inf else None
