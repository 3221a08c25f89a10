"""How far a probability can be taken at its word: reliability of the scores, and the line that would mend them.

A candidate counts as true when it is the best one inside a nodule, as false when it lies in no finding; all others are
left out (:mod:`.luna16`). The mending is a slope and an intercept of the logit, fitted by maximum likelihood (Platt,
Probabilistic outputs for support vector machines, 1999). It keeps the order of the scores, so the FROC curve stays.
Deviation: no temperature alone (Guo et al., 2017), for that cannot lower probabilities that are too high throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ..core.geometry import FloatArray
from .luna16 import BoolArray, Matches

BINS = 10  # of equal width
LARGEST_LOGIT = 30.0  # a probability of 0 or 1 has none
LARGEST_SLOPE = 20.0  # either way: true and false ones that do not overlap would make it endless


@dataclass(frozen=True)
class ReliabilityBin:
    """The candidates whose probability lies between two bounds.

    Attributes:
        low, high: the bounds; the upper one belongs to the next bin, 1 to the last.
        candidates: how many.
        mean_probability, true_share: of them; NaN without any.
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
        bins: :data:`BINS` of them.
        expected_error: mean distance between probability and share of true ones, over the candidates.
    """

    bins: tuple[ReliabilityBin, ...]
    expected_error: float

    @classmethod
    def of(cls, probabilities: FloatArray, true: BoolArray) -> Reliability:
        """Of ``[C]`` probabilities and whether each belongs to a nodule."""
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
    """Reliability as it is, and as it would be with ``slope · logit + intercept``.

    Attributes:
        slope: 1 and an intercept of 0 leave the probabilities as they are; above 1 they were not sure enough.
        intercept: below 0 the probabilities were too high.
        before, after: it is applied.
    """

    slope: float
    intercept: float
    before: Reliability
    after: Reliability


def calibration_of(matches: Matches) -> Calibration | None:
    """Reliability and the fit; ``None`` unless there are true and false candidates.

    Raises:
        ValueError: scores that are no probabilities.
    """
    hit = np.isfinite(matches.nodule_scores)
    probabilities = np.concatenate([matches.nodule_scores[hit], matches.false_scores])
    true = np.arange(len(probabilities)) < int(hit.sum())
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
    mended = special.expit(slope * logits + intercept)
    return Calibration(slope, float(intercept), Reliability.of(probabilities, true), Reliability.of(mended, true))
