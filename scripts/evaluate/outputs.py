"""Writes the results of an evaluation: ``froc.json``, ``froc.csv``, ``froc.png``, and a short table as text.

The picture shows false positives per scan on a log-2 axis and a confidence band around each curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..core.files import writable_folder, write_csv, write_figure, write_json
from ..metrics import BAND_RATES, RATES, SIZE_CLASSES, Confidence
from ..report.tables import plain
from .system import Score, System

UNDEFINED = "undefined: there is no nodule to find"
CURVE_COLUMNS = ("system", "fold", "false_positives_per_scan", "sensitivity", "threshold")
MOST_NAMED = 5  # scans in a line of the log
ALL_SCANS = "all"  # value of the column "fold" for all scans together

# Distinct in lightness and hue, also for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", "-.", ":")

_DIGITS = 9  # decimals written; more than a sensitivity needs


def write_evaluation(folder: str | Path, systems: Sequence[System]) -> list[Path]:
    """Write ``froc.json``, ``froc.csv`` and ``froc.png``; each file appears complete or not at all.

    Returns:
        The paths of the three files.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = writable_folder(folder)
    records = {system.name: plain(system_record(system), _DIGITS) for system in systems}
    return [
        write_json(path / "froc.json", records),
        write_csv(path / "froc.csv", [CURVE_COLUMNS, *_curve_rows(systems)]),
        write_figure(path / "froc.png", draw_froc(systems), metadata={"Software": None}),
    ]


def system_record(system: System) -> dict[str, Any]:
    """Return a system's results for JSON: the pooled score, scans without candidates or not in the list, each fold."""
    record = score_record(system.pooled)
    record["listed"] = {
        "scans_without_candidates": system.scans_without_candidates,
        "candidates_of_unknown_scans": system.unknown_scans,
    }
    if system.folds:
        record["folds"] = {name: score_record(score) for name, score in system.folds.items()}
    return record


def score_record(score: Score) -> dict[str, Any]:
    """Return sensitivities, CPM, counts, intervals and size classes of a score.

    Undefined values are NaN or ``None``, and a note gives the reason.
    """
    curve = score.froc
    record: dict[str, Any] = {
        "sensitivity_at": _by_rate(curve.readings),
        "cpm": curve.cpm,
        **asdict(curve.counts),
        "interval": None if score.confidence is None else _interval_record(score.confidence),
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


def _interval_record(drawn: Confidence) -> dict[str, Any]:
    return {
        "level": drawn.level,
        "resamples": drawn.resamples,
        "undefined_resamples": drawn.undefined,
        "seed": drawn.seed,
        "cpm": astuple(drawn.cpm),
        "sensitivity_at": _by_rate([astuple(bounds) for bounds in drawn.readings]),
    }


def _by_rate(readings: Sequence[Any]) -> dict[str, Any]:
    return {f"{rate:g}": reading for rate, reading in zip(RATES, readings, strict=True)}


def text_table(systems: Iterable[System]) -> str:
    """Return a table of sensitivities, CPM and its interval, with one row for each system and fold."""
    rows = [("system", "fold", "scans", "nodules", *map(rate_name, RATES), "CPM", "95 % interval")]
    for system in systems:
        scores = {ALL_SCANS: system.pooled, **system.folds}
        rows += [(system.name, fold, *_cells(score)) for fold, score in scores.items()]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    sides = [str.ljust] * 2 + [str.rjust] * (len(widths) - 2)
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    )


def scan_lists(system: System) -> Iterator[str]:
    """Yield a line on the scans without candidates and one on those not in the list, if there are such scans."""
    empty, unknown = system.scans_without_candidates, system.unknown_scans
    if empty:
        yield f"{system.name}: {len(empty)} scans without candidates: {_first(empty)}"
    if unknown:
        total = sum(unknown.values())
        yield (
            f"{system.name}: {total} candidates of {len(unknown)} scans that are not in the list, not counted: "
            f"{_first(list(unknown))}"
        )


def _first(uids: Sequence[str]) -> str:
    more = f" … and {len(uids) - MOST_NAMED} more (froc.json)" if len(uids) > MOST_NAMED else ""
    return ", ".join(uids[:MOST_NAMED]) + more


def _cells(score: Score) -> tuple[str, ...]:
    curve, drawn = score.froc, score.confidence
    readings = [_short(r) for r in curve.readings]
    interval = "-" if drawn is None else f"{_short(drawn.cpm.low)} to {_short(drawn.cpm.high)}"
    cpm = "undefined" if curve.cpm is None else _short(curve.cpm)
    return (str(curve.counts.scans), str(curve.counts.nodules), *readings, cpm, interval)


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _curve_rows(systems: Iterable[System]) -> Iterator[list[object]]:
    """Yield a row for every point of every curve; the threshold of the first point, (0, 0), is empty."""
    for system in systems:
        for fold, score in {ALL_SCANS: system.pooled, **system.folds}.items():
            curve = score.froc
            for x, y, t in zip(curve.false_positives_per_scan, curve.sensitivity, curve.thresholds, strict=True):
                yield [system.name, fold, *plain([x, y], _DIGITS), plain(t)]


def rate_name(rate: float) -> str:
    """Return a rate as text: 1/8, 1/4, 1/2, 1, …"""
    return f"1/{1.0 / rate:g}" if rate < 1.0 else f"{rate:g}"


def draw_froc(systems: Sequence[System]) -> Figure:
    """Draw the pooled curve of each system; without nodules there is no curve, which the legend states."""
    figure = Figure(figsize=(7.5, 5.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for number, system in enumerate(systems):
        _draw(axes, system, _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)])
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATES, [*map(rate_name, RATES)])
    axes.set_xticks([], minor=True)
    axes.set(xlim=(RATES[0], RATES[-1]), ylim=(0.0, 1.0), xlabel="false positives per scan", ylabel="sensitivity")
    axes.grid(True, color="#dddddd")
    axes.legend(loc="lower right", title="CPM (95 % interval)")
    return figure


def _draw(axes: Any, system: System, colour: str, dashes: str) -> None:
    curve, drawn = system.pooled.froc, system.pooled.confidence
    if curve.cpm is None:
        axes.plot([], [], color=colour, linestyle=dashes, label=f"{system.name}: undefined, no nodules")
        return
    interval = "" if drawn is None else f" ({drawn.cpm.low:.3f} to {drawn.cpm.high:.3f})"
    read = np.interp(BAND_RATES, curve.false_positives_per_scan, curve.sensitivity)
    axes.plot(
        BAND_RATES, read, color=colour, linestyle=dashes, label=f"{system.name}: {curve.cpm:.3f}{interval}", zorder=3
    )
    axes.plot(RATES, curve.readings, color=colour, linestyle="none", marker="o", markersize=4, zorder=3, clip_on=False)
    if drawn is not None:
        axes.fill_between(BAND_RATES, drawn.band_low, drawn.band_high, color=colour, alpha=0.2, linewidth=0)
