"""Confidence intervals of a FROC curve by bootstrap: the scans are resampled with replacement.

Source: the LUNA16 challenge: 1000 resamples of scans, each with its own number of nodules in the denominator. Added
here: a seed, an interval for the CPM, and resamples without any nodule are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.geometry import FloatArray
from .froc import RATES, IntArray, Matches, curve

# Where the confidence band of a plot is read: from 1/8 to 8 false positives per scan, in steps of 1/32 octave.
BAND_RATES = tuple(float(2.0**exponent) for exponent in np.linspace(-3.0, 3.0, 193))


@dataclass(frozen=True)
class Interval:
    """The bounds of an interval, both inclusive."""

    low: float
    high: float


@dataclass(frozen=True)
class Confidence:
    """Bootstrap intervals.

    Attributes:
        readings: intervals of the sensitivity at :data:`.luna16.RATES`.
        cpm: interval of the CPM.
        band_low, band_high: ``[193]`` bounds of the sensitivity at :data:`BAND_RATES`.
        level: share of the resamples between the bounds, 0.95 for 95 %.
        resamples: number of resamples drawn.
        undefined: number of resamples without a nodule, which were left out.
        seed: seed of the random numbers.
    """

    readings: tuple[Interval, ...]
    cpm: Interval
    band_low: FloatArray
    band_high: FloatArray
    level: float
    resamples: int
    undefined: int
    seed: int


def confidence_of(matches: Matches, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Confidence | None:
    """Resample the scans and compute percentile intervals.

    The result depends on the seed and on the order of the scans' indices, not on the order of candidates or findings.

    Args:
        matches: the matches of all scans.
        resamples: number of resamples, at least 1.
        level: share of the resamples between the bounds, between 0 and 1.
        seed: seed of the random numbers.

    Returns:
        The intervals; ``None`` if no resample has a nodule to find.
    """
    scans = matches.counts.scans
    rng = np.random.default_rng(seed)
    per_scan = np.bincount(matches.nodule_scans, minlength=scans)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, max(scans, 1), size=scans), minlength=scans)
        nodules = int(weights @ per_scan)
        if nodules:
            drawn.append(_readings(matches, weights, nodules))
    if not drawn:
        return None
    read = np.stack(drawn)
    cpm = read[:, : len(RATES)].mean(axis=1)
    low, high = np.quantile(np.column_stack([read, cpm]), [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    bounds = tuple(Interval(*pair) for pair in zip(low.tolist(), high.tolist(), strict=True))
    band = slice(len(RATES), -1)
    undefined = resamples - len(drawn)
    return Confidence(bounds[: len(RATES)], bounds[-1], low[band], high[band], level, resamples, undefined, seed)


def _readings(matches: Matches, weights: IntArray, nodules: int) -> FloatArray:
    """Return the sensitivity at RATES, then at BAND_RATES, if each scan counts ``weights`` ``[S]`` times."""
    steps = matches.steps
    of_event = weights[steps.scans].astype(np.float64)
    false, hits = (steps.totals(np.where(kind, of_event, 0.0)) for kind in (~steps.is_hit, steps.is_hit))
    return np.interp((*RATES, *BAND_RATES), *curve(false, hits, matches.counts.scans, nodules))
