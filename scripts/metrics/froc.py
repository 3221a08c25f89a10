"""The LUNA16 evaluation: which candidates count, the FROC curve, its seven readings and their mean (CPM).

Source: the LUNA16 challenge (Setio et al., Medical Image Analysis 2017) and its published rules:

1. Only the listed scans count; a scan without candidates stays in the denominator.
2. A scan with more than 100 candidates keeps those scored strictly above its 101st highest score.
3. A candidate hits a finding if it lies strictly inside the sphere of the finding's diameter. A negative diameter means
   10 mm.
4. A nodule's score is the highest of all candidates inside it; the others inside it are neither hit nor false. A
   candidate inside two nodules counts for both.
5. A candidate inside an excluded finding but inside no nodule is neither hit nor false. A candidate inside no finding
   is false.
6. The curve starts at (0, 0) and steps through the scores from high to low, with equal scores in one step. Missed
   nodules are not on the curve but stay in the denominator.
7. Sensitivity is read at 1/8, 1/4, … 8 false positives per scan by linear interpolation; beyond the last point it is
   constant. Where the curve rises vertically at a rate, the upper end is read.

Added here, for cases in which the challenge's rules divide by zero: without hits the sensitivity is 0; without false
positives all hits are at rate 0; without nodules the readings and the CPM are undefined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..core.geometry import BoolArray, FloatArray

IntArray = npt.NDArray[np.int64]

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan at which sensitivity is read
MAX_CANDIDATES = 100  # per scan
UNKNOWN_DIAMETER_MM = 10.0  # of findings whose diameter is unknown and is given as negative
UNKNOWN_SCAN = -1  # index of a scan that is not in the list

# Size classes: d < 3, 3 <= d < 6, 6 <= d <= 10, d > 10 mm. LUNA16 has no nodule below 3 mm, but other data may.
SIZE_CLASSES = ("<3", "3-6", "6-10", ">10")


@dataclass(frozen=True)
class Candidates:
    """What a system proposes, in any order.

    Attributes:
        scans: ``[C]`` index of each candidate's scan, or :data:`UNKNOWN_SCAN`.
        positions_mm: ``[C, 3]`` world positions, in LPS or RAS like those of the findings.
        scores: ``[C]`` finite; usually probabilities, but only their order counts.
    """

    scans: IntArray
    positions_mm: FloatArray
    scores: FloatArray


@dataclass(frozen=True)
class Findings:
    """The reference, in any order.

    Attributes:
        scans: ``[F]`` index of each finding's scan, or :data:`UNKNOWN_SCAN`.
        positions_mm: ``[F, 3]`` world positions, in LPS or RAS like those of the candidates.
        diameters_mm: ``[F]``; negative if unknown.
        is_nodule: ``[F]``; ``False`` for excluded findings.
    """

    scans: IntArray
    positions_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: BoolArray


@dataclass(frozen=True)
class Counts:
    """Numbers of nodules, candidates and scans; the first eight are those that the challenge reports.

    Attributes:
        true_positives: nodules hit.
        false_positives: candidates inside no finding.
        false_negatives: nodules missed.
        candidates_scored: candidates of listed scans that remain after the limit per scan.
        nodules: included findings of listed scans.
        ignored_on_excluded: candidates inside an excluded finding but inside no nodule.
        ignored_double: hits of a nodule beyond its first, summed over nodules.
        scans: listed scans.
        scans_without_candidates: listed scans without any candidate.
        candidates_of_unknown_scans: candidates of scans that are not listed.
        candidates_over_limit: candidates that the limit per scan removed.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    candidates_scored: int
    nodules: int
    ignored_on_excluded: int
    ignored_double: int
    scans: int
    scans_without_candidates: int
    candidates_of_unknown_scans: int
    candidates_over_limit: int


@dataclass(frozen=True)
class Matches:
    """The outcome for nodules and candidates: everything that curve, size classes and resampling need.

    Attributes:
        nodule_scans, nodule_diameters_mm: ``[N]`` scan index and diameter of every nodule of the listed scans.
        nodule_scores: ``[N]`` highest score inside the nodule; -inf if it is missed.
        false_scans, false_scores: ``[P]`` scan index and score of every false positive.
        counts: see :class:`Counts`.
    """

    nodule_scans: IntArray
    nodule_diameters_mm: FloatArray
    nodule_scores: FloatArray
    false_scans: IntArray
    false_scores: FloatArray
    counts: Counts

    @cached_property
    def steps(self) -> Steps:
        """The steps of the curve."""
        return Steps.of(self)


@dataclass(frozen=True)
class Steps:
    """Events (hits and false positives) in descending order of score; events of equal score are one step.

    Attributes:
        scans: ``[E]`` scan index of each event.
        is_hit: ``[E]`` whether it is a hit.
        size_class: ``[E]`` index into :data:`SIZE_CLASSES`; meaningful for hits only.
        ends: ``[L]`` index of the last event of each step.
        thresholds: ``[L]`` score of each step.
    """

    scans: IntArray
    is_hit: BoolArray
    size_class: IntArray
    ends: IntArray
    thresholds: FloatArray

    @classmethod
    def of(cls, matches: Matches) -> Steps:
        """Sort the hits and false positives of the matches by score."""
        hit = np.isfinite(matches.nodule_scores)
        scores = np.concatenate([matches.nodule_scores[hit], matches.false_scores])
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        scans = np.concatenate([matches.nodule_scans[hit], matches.false_scans])[order]
        classes = np.concatenate(
            [size_class(matches.nodule_diameters_mm[hit]), np.zeros(len(matches.false_scores), dtype=np.int64)]
        )[order]
        last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
        ends = np.flatnonzero(last)
        return cls(scans, order < int(hit.sum()), classes, ends, falling[ends])

    def totals(self, weights: FloatArray) -> FloatArray:
        """Return the cumulative sum of the weights ``[E]`` at each point of the curve: ``[L + 1]``, from 0."""
        return np.concatenate([[0.0], np.cumsum(weights)[self.ends]])


@dataclass(frozen=True)
class SizeReadings:
    """Sensitivity for the nodules of one size class, at the false-positive rates of the whole system.

    Attributes:
        name: one of :data:`SIZE_CLASSES`, mm.
        nodules, true_positives: numbers of nodules and of hits in this class.
        readings: sensitivity at :data:`RATES`; NaN if the class is empty.
    """

    name: str
    nodules: int
    true_positives: int
    readings: tuple[float, ...]


@dataclass(frozen=True)
class Froc:
    """A FROC curve, its readings and what was counted.

    Attributes:
        false_positives_per_scan, sensitivity: ``[L + 1]`` the curve's points, from (0, 0), neither ever decreasing.
        thresholds: ``[L + 1]`` the lowest score that counts at each point; the first is inf.
        readings: sensitivity at :data:`RATES`; NaN if there is no nodule to find.
        cpm: their mean; ``None`` if there is no nodule to find.
        counts: see :class:`Counts`.
        sizes: one entry for each of :data:`SIZE_CLASSES`, in that order.
    """

    false_positives_per_scan: FloatArray
    sensitivity: FloatArray
    thresholds: FloatArray
    readings: tuple[float, ...]
    cpm: float | None
    counts: Counts
    sizes: tuple[SizeReadings, ...]


def size_class(diameters_mm: FloatArray) -> IntArray:
    """Return the index into :data:`SIZE_CLASSES` of each diameter; 6 mm and 10 mm both belong to 6-10."""
    d = np.asarray(diameters_mm)
    return (d >= 3.0).astype(np.int64) + (d >= 6.0) + (d > 10.0)


def match(candidates: Candidates, findings: Findings, scans: int, *, max_candidates: int = MAX_CANDIDATES) -> Matches:
    """Apply the limit per scan and the hit rule.

    Args:
        candidates: candidates of all scans.
        findings: nodules and excluded findings of all scans.
        scans: number of listed scans; their indices run from 0 to ``scans - 1``.
        max_candidates: limit per scan.

    Raises:
        ValueError: a scan index is out of range.

    Example:
        >>> places_mm = np.array([[1, 0, 0], [50, 0, 0], [0, 2, 0]])
        >>> candidates = Candidates(np.array([0, 0, 1]), places_mm, np.array([0.9, 0.8, 0.3]))
        >>> findings = Findings(np.array([0, 1]), np.zeros((2, 3)), np.array([8.0, 6.0]), np.array([True, True]))
        >>> matches = match(candidates, findings, scans=2)
        >>> matches.nodule_scores, matches.false_scores
        (array([0.9, 0.3]), array([0.8]))
        >>> round(froc_of(matches).cpm, 3)
        0.857
    """
    _check(candidates.scans, scans)
    _check(findings.scans, scans)
    is_kept, in_nodule, in_excluded = np.zeros((3, len(candidates.scans)), dtype=bool)
    best, hits = np.full(len(findings.scans), -np.inf), np.zeros(len(findings.scans), dtype=np.int64)
    proposed = _rows_of_scans(candidates.scans, scans)
    for rows, own in zip(proposed, _rows_of_scans(findings.scans, scans), strict=True):
        kept = rows[_within_limit(candidates.scores[rows], max_candidates)]
        inside = inside_findings(candidates.positions_mm[kept], findings.positions_mm[own], findings.diameters_mm[own])
        is_kept[kept] = True
        in_nodule[kept] = inside[:, findings.is_nodule[own]].any(axis=1)
        in_excluded[kept] = inside[:, ~findings.is_nodule[own]].any(axis=1)
        best[own] = np.where(inside, candidates.scores[kept, None], -np.inf).max(axis=0, initial=-np.inf)
        hits[own] = inside.sum(axis=0)
    is_false = is_kept & ~in_nodule & ~in_excluded
    is_nodule = findings.is_nodule & (findings.scans != UNKNOWN_SCAN)
    known = sum(map(len, proposed))
    counts = Counts(
        true_positives=int((hits[is_nodule] > 0).sum()),
        false_positives=int(is_false.sum()),
        false_negatives=int((hits[is_nodule] == 0).sum()),
        candidates_scored=int(is_kept.sum()),
        nodules=int(is_nodule.sum()),
        ignored_on_excluded=int((in_excluded & ~in_nodule).sum()),
        ignored_double=int(np.maximum(hits[is_nodule] - 1, 0).sum()),
        scans=scans,
        scans_without_candidates=sum(not len(rows) for rows in proposed),
        candidates_of_unknown_scans=len(candidates.scans) - known,
        candidates_over_limit=known - int(is_kept.sum()),
    )
    return Matches(
        findings.scans[is_nodule],
        known_diameters_mm(findings.diameters_mm[is_nodule]),
        best[is_nodule],
        candidates.scans[is_false],
        candidates.scores[is_false],
        counts,
    )


def inside_findings(positions_mm: FloatArray, centres_mm: FloatArray, diameters_mm: FloatArray) -> BoolArray:
    """Apply the hit rule: return which position lies strictly inside which finding, ``[C, F]``.

    Args:
        positions_mm: ``[C, 3]``, in the frame of the findings.
        centres_mm: ``[F, 3]``.
        diameters_mm: ``[F]``; negative if unknown.
    """
    apart_mm = positions_mm[:, None] - centres_mm
    squared = apart_mm[..., 0] ** 2 + apart_mm[..., 1] ** 2 + apart_mm[..., 2] ** 2  # summed in the challenge's order
    return np.asarray(squared < np.square(known_diameters_mm(diameters_mm) / 2.0))


def known_diameters_mm(diameters_mm: FloatArray) -> FloatArray:
    """Return the diameters with :data:`UNKNOWN_DIAMETER_MM` in place of negative ones."""
    return np.where(diameters_mm < 0.0, UNKNOWN_DIAMETER_MM, diameters_mm)


def froc_of(matches: Matches) -> Froc:
    """Compute the curve, its readings and those of the size classes."""
    steps, counts = matches.steps, matches.counts
    false = steps.totals((~steps.is_hit).astype(np.float64))
    x, y = curve(false, steps.totals(steps.is_hit.astype(np.float64)), counts.scans, counts.nodules)
    readings = np.interp(RATES, x, y)
    sizes = []
    of_nodule = size_class(matches.nodule_diameters_mm)
    for index, name in enumerate(SIZE_CLASSES):
        hits = steps.totals((steps.is_hit & (steps.size_class == index)).astype(np.float64))
        nodules = int((of_nodule == index).sum())
        part = np.interp(RATES, *curve(false, hits, counts.scans, nodules))
        sizes.append(SizeReadings(name, nodules, int(hits[-1]), tuple(part.tolist())))
    thresholds = np.concatenate([[np.inf], steps.thresholds])
    cpm = float(np.mean(readings)) if counts.nodules else None
    return Froc(x, y, thresholds, tuple(readings.tolist()), cpm, counts, tuple(sizes))


def curve(false: FloatArray, hits: FloatArray, scans: float, nodules: float) -> tuple[FloatArray, FloatArray]:
    """Return false positives per scan and sensitivity at each point of the curve, for reading with ``numpy.interp``.

    Both are computed from shares of the total, in this order of operations, as the challenge and scikit-learn's
    ``roc_curve`` do. The order matters: with 888 scans every rate is a whole number of false positives (1/8 is 111),
    the curve often rises exactly there, and the last bit decides which end of the rise is read.

    Args:
        false: ``[L + 1]`` cumulative false positives at each point, from 0.
        hits: ``[L + 1]`` cumulative hits, from 0.
        scans: number of scans; or litres, for a rate per litre.
        nodules: number of nodules; with none the sensitivity is NaN.
    """
    x = false / false[-1] * false[-1] / scans if false[-1] > 0 else np.zeros(len(false))
    if nodules <= 0:
        return x, np.full(len(hits), np.nan)
    y = hits / hits[-1] * hits[-1] / nodules if hits[-1] > 0 else np.zeros(len(hits))
    return x, y


def _check(indices: IntArray, scans: int) -> None:
    if len(indices) and (indices.min() < UNKNOWN_SCAN or indices.max() >= scans):
        got = f"{indices.min()} to {indices.max()}"
        raise ValueError(f"expected scan indices from {UNKNOWN_SCAN} to {scans - 1}, got {got}; index the scan list")


def _rows_of_scans(indices: IntArray, scans: int) -> list[IntArray]:
    """Return the positions in ``indices`` of each scan's rows, in ascending order."""
    order = np.argsort(indices, kind="stable")
    return np.split(order, np.searchsorted(indices[order], np.arange(scans + 1)))[1:-1]  # the first are of no scan


def _within_limit(scores: FloatArray, limit: int) -> BoolArray:
    """Return which of one scan's candidates stay: of more than ``limit``, those above the next highest score."""
    return scores > (np.sort(scores)[-limit - 1] if len(scores) > limit else -np.inf)
