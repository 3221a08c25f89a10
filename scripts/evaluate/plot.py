"""The picture of FROC curves: false positives per scan on a log-2 axis, a confidence band around each curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..metrics import BAND_RATES, RATES
from .system import System

# Apart in lightness and hue, also for colour-blind eyes (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def rate_name(rate: float) -> str:
    """1/8, 1/4, 1/2, 1, …"""
    return f"1/{1.0 / rate:g}" if rate < 1.0 else f"{rate:g}"


def draw_froc(systems: Sequence[System]) -> Figure:
    """Draw the pooled curve of each system; one without nodules has no curve, and the legend says so."""
    figure = Figure(figsize=(7.5, 5.0), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for number, system in enumerate(systems):
        _draw(axes, system, _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)])
    axes.set_xscale("log", base=2)
    axes.set_xlim(RATES[0], RATES[-1])
    axes.set_ylim(0.0, 1.0)
    axes.xaxis.set_major_locator(FixedLocator(RATES))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_name(rate)))
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
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
