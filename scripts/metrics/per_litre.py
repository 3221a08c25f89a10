"""Sensitivity against false findings per litre of lung, for few lungs, where a rate per scan is not informative.

The curve is LUNA16's, with litres searched instead of scans. Its intervals come from resampling the nodules with
replacement while the false findings stay the same: they describe the uncertainty of the sensitivity in *these* lungs,
not in others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..core.geometry import FloatArray
from .bootstrap import Interval
from .froc import Matches, curve

LITRE_RATES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)  # false findings per litre; a pair of lungs holds 4 to 6 litres


@dataclass(frozen=True)
class PerLitre:
    """Sensitivities read from the curve.

    Attributes:
        litres: volume of lung in all scans.
        readings: sensitivity at :data:`LITRE_RATES`; NaN without nodules.
        intervals: one for each reading; empty without resamples or nodules.
    """

    litres: float
    readings: tuple[float, ...]
    intervals: tuple[Interval, ...]


def per_litre_of(matches: Matches, litres: float, *, resamples: int = 1000, seed: int = 0) -> PerLitre:
    """Read the sensitivity at :data:`LITRE_RATES` from the curve, with intervals.

    Args:
        matches: the matches of all scans.
        litres: volume of lung in them, above 0.
        resamples: number of resamples of the nodules; 0 for no intervals.
        seed: seed of the random numbers.
    """
    readings = tuple(_readings(matches, litres).tolist())
    nodules = len(matches.nodule_scores)
    if not nodules or not resamples:
        return PerLitre(litres, readings, ())
    rng = np.random.default_rng(seed)
    drawn = [_readings(_with(matches, rng.integers(0, nodules, nodules)), litres) for _ in range(resamples)]
    bounds = np.quantile(np.stack(drawn), [0.025, 0.975], axis=0)
    return PerLitre(litres, readings, tuple(Interval(*pair) for pair in bounds.T.tolist()))


def _readings(matches: Matches, litres: float) -> FloatArray:
    steps = matches.steps
    false, hits = (steps.totals(kind.astype(np.float64)) for kind in (~steps.is_hit, steps.is_hit))
    return np.interp(LITRE_RATES, *curve(false, hits, litres, len(matches.nodule_scores)))


def _with(matches: Matches, nodules: np.ndarray) -> Matches:
    """Return the matches with the same false findings and only the nodules of these indices, which may repeat."""
    names = ("nodule_scans", "nodule_diameters_mm", "nodule_scores")
    return replace(matches, **{name: getattr(matches, name)[nodules] for name in names})
