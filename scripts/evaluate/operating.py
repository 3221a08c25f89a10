"""Operating points and calibration: thresholds, reliability of probabilities, and sensitivity per litre of lung."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..core.files import write_figure, write_json
from ..metrics import LITRE_RATES, RATES, Calibration, Froc, Matches, ScoredScan, calibration_of, per_litre_of
from ..report.tables import plain
from .system import Resampling

_DIGITS = 6


def write_operating(
    folder: Path, froc: Froc, matches: Matches, scans: Mapping[str, ScoredScan], how: Resampling
) -> Any:
    """Write ``operating.json`` and, if there are true and false candidates, ``reliability.png``.

    Args:
        folder: an existing folder.
        froc, matches: curve and matches of the scans.
        scans: the scans by name, in the order of the matches' indices.
        how: the bootstrap.

    Returns:
        The content of ``operating.json``.

    Raises:
        OutputError: the folder cannot be written to.
    """
    calibration = calibration_of(matches.nodule_scores, matches.false_scores)
    record = {
        "threshold_at": {f"{rate:g}": threshold_at(froc, rate) for rate in RATES},
        "calibration": calibration and asdict(calibration),
        "per_litre": _per_litre(matches, scans, how),
    }
    rounded = plain(record, _DIGITS)
    write_json(folder / "operating.json", rounded)
    if calibration is not None:
        write_figure(folder / "reliability.png", draw_reliability(calibration), dpi=110, metadata={"Software": None})
    return rounded


def threshold_at(froc: Froc, rate: float) -> float | None:
    """Return the lowest threshold with at most ``rate`` false positives per scan; ``None`` if there is none.

    A candidate counts if its probability is at least the threshold.
    """
    last = int(np.flatnonzero(froc.false_positives_per_scan <= rate)[-1])
    threshold = float(froc.thresholds[last])
    return threshold if math.isfinite(threshold) else None


def draw_reliability(calibration: Calibration) -> Figure:
    """Draw the share of true candidates against probability, before and after calibration.

    The markers are larger for more candidates.
    """
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    line = f"{calibration.slope:.2f} · logit {calibration.intercept:+.2f}"
    for part, colour, name in ((calibration.before, "#0072b2", "as it is"), (calibration.after, "#d55e00", line)):
        there = [one for one in part.bins if one.candidates]
        x, y = [one.mean_probability for one in there], [one.true_share for one in there]
        sizes = [20.0 + 8.0 * math.sqrt(one.candidates) for one in there]
        label = f"{name} (expected error {part.expected_error:.3f})"
        axes.scatter(x, y, s=sizes, color=colour, label=label, alpha=0.7, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share of nodules among the candidates")
    axes.grid(True, color="#dddddd")
    axes.legend(loc="lower right")
    return figure


def summary(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the record of :func:`write_operating` as a few lines of text."""
    thresholds = ", ".join(f"{rate}: {value}" for rate, value in record["threshold_at"].items())
    yield f"threshold by false positives per scan: {thresholds}"
    if record["calibration"] is not None:
        before, after = (record["calibration"][name]["expected_error"] for name in ("before", "after"))
        slope, intercept = record["calibration"]["slope"], record["calibration"]["intercept"]
        yield f"expected calibration error {before:.3f}; {after:.3f} with {slope:.3f} · logit {intercept:+.3f}"
    if record["per_litre"] is not None:
        read = ", ".join(f"{rate}: {value}" for rate, value in record["per_litre"]["sensitivity_at"].items())
        yield f"sensitivity by false findings per litre ({record['per_litre']['litres']:.2f} litres): {read}"


def _per_litre(matches: Matches, scans: Mapping[str, ScoredScan], how: Resampling) -> dict[str, Any] | None:
    """Return sensitivity by false positives per litre of lung over all scans, and litres and nodules of each scan.

    ``None`` if there are no scans, or if the lung volume of any scan is unknown.
    """
    litres = [scan.truth.lung_litres for scan in scans.values()]
    if not litres or min(litres) <= 0:
        return None
    read = per_litre_of(matches, sum(litres), **how._asdict())
    rates = [f"{rate:g}" for rate in LITRE_RATES]
    return {
        "litres": read.litres,
        "sensitivity_at": dict(zip(rates, read.readings, strict=True)),
        "interval": {rate: astuple(bounds) for rate, bounds in zip(rates, read.intervals, strict=False)},
        "scans": {
            name: {"litres": scan.truth.lung_litres, "nodules": int((matches.nodule_scans == n).sum())}
            for n, (name, scan) in enumerate(scans.items())
        },
    }
