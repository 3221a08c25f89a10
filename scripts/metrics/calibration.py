"""Calibration: the reliability of the probabilities, and the line that would correct them.

A candidate counts as true if it is the best one inside a nodule, and as false if it lies in no finding; all others are
left out (:mod:`.luna16`). The correction is a slope and an intercept of the logit, fitted by maximum likelihood (Platt,
Probabilistic outputs for support vector machines, 1999). It keeps the order of the scores, so the FROC curve does not
change. Deviation: not a temperature alone (Guo et al., 2017), which cannot lower probabilities that are too high
throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..core.geometry import BoolArray, FloatArray

BINS = 10  # of equal width
LARGEST_LOGIT = 30.0  # of probabilities of 0 and 1, whose logits are infinite
LARGEST_SLOPE = 20.0  # 1/20 is the smallest; if true and false scores do not overlap, the fit would diverge


@dataclass(frozen=True)
class ReliabilityBin:
    """The candidates whose probability lies between two bounds.

    Attributes:
        low, high: the bounds; the upper bound belongs to the next bin, except 1, which belongs to the last bin.
        candidates: number of candidates.
        mean_probability, true_share: their mean probability, and the share of true ones; NaN for an empty bin.
    """

    low: float
    high: float
    candidates: int
    mean_probability: float
    true_share: float


@dataclass(frozen=True)
class Reliability:
    """Reliability of a set of probabilities.

    Attributes:
        bins: :data:`BINS` bins of equal width.
        expected_error: expected calibration error: the difference between a bin's mean probability and its share of
            true candidates, averaged over the candidates; 0 without any.
    """

    bins: tuple[ReliabilityBin, ...]
    expected_error: float

    @classmethod
    def of(cls, probabilities: FloatArray, true: BoolArray) -> Reliability:
        """Compute the reliability from ``[C]`` probabilities and ``[C]`` bools, whether each belongs to a nodule."""
        number = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        bins, error = [], 0.0
        for n in range(BINS):
            inside = number == n
            count = int(inside.sum())
            mean, share = (float(v[inside].mean()) if count else float("nan") for v in (probabilities, true))
            bins.append(ReliabilityBin(n / BINS, (n + 1) / BINS, count, mean, share))
            error += abs(mean - share) * count if count else 0.0
        return cls(tuple(bins), error / max(len(probabilities), 1))


@dataclass(frozen=True)
class Calibration:
    """Reliability of the probabilities as they are, and as they would be with ``slope · logit + intercept``.

    Attributes:
        slope: 1, with an intercept of 0, leaves the probabilities unchanged; above 1, they were underconfident.
        intercept: below 0, the probabilities were too high.
        before, after: reliability before and after the correction.
    """

    slope: float
    intercept: float
    before: Reliability
    after: Reliability


def calibration_of(nodule_scores: FloatArray, false_scores: FloatArray) -> Calibration | None:
    """Compute the reliability and fit the correction; ``None`` unless there are both true and false candidates.

    Args:
        nodule_scores: ``[N]`` probability of the best candidate inside each nodule; -inf, a missed one, is left out.
        false_scores: ``[P]`` probability of each false candidate.

    Raises:
        ValueError: the scores are not probabilities.
    """
    found = nodule_scores[np.isfinite(nodule_scores)]
    probabilities = np.concatenate([found, false_scores])
    true = np.arange(len(probabilities)) < len(found)
    if true.all() or not true.any():
        return None
    if probabilities.min() < 0.0 or probabilities.max() > 1.0:
        raise ValueError(
            f"expected probabilities, got scores from {probabilities.min():g} to {probabilities.max():g}; "
            "only those from 0 to 1 can be calibrated"
        )
    logits = np.clip(special.logit(probabilities), -LARGEST_LOGIT, LARGEST_LOGIT)
    signed = np.where(true, 1.0, -1.0)

    def loss(line: FloatArray) -> float:
        return float(np.logaddexp(0.0, -signed * (np.exp(line[0]) * logits + line[1])).mean())

    steepest = np.log(LARGEST_SLOPE)
    bounds = [(-steepest, steepest), (-LARGEST_LOGIT, LARGEST_LOGIT)]
    log_slope, intercept = optimize.minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds).x
    slope = float(np.exp(log_slope))
    corrected = special.expit(slope * logits + intercept)
    return Calibration(slope, float(intercept), Reliability.of(probabilities, true), Reliability.of(corrected, true))
