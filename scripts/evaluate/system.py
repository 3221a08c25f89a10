"""Evaluates the results of one system: all scans together and, if there are folds, each fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..metrics import UNKNOWN_SCAN, Candidates, Confidence, Findings, Froc, Matches, confidence_of, froc_of, match
from .tables import Table


class Resampling(NamedTuple):
    """Settings of the bootstrap: the number of resamples (0 for none) and the seed."""

    resamples: int = 1000
    seed: int = 0


class Score(NamedTuple):
    """Curve and intervals of a set of scans; there are no intervals without resampling or nodules."""

    froc: Froc
    confidence: Confidence | None

    @classmethod
    def of(cls, matches: Matches, how: Resampling) -> Score:
        return cls(froc_of(matches), confidence_of(matches, **how._asdict()) if how.resamples > 0 else None)


@dataclass(frozen=True)
class System:
    """The evaluated results of a system.

    Attributes:
        name: name in table and plot, and key in ``froc.json``.
        pooled: score of all scans together.
        folds: score of each fold, by name; empty without folds.
        scans_without_candidates: their series UIDs, sorted.
        unknown_scans: number of candidates for each series that is not in the list, by series UID.
    """

    name: str
    pooled: Score
    folds: dict[str, Score] = field(default_factory=dict)
    scans_without_candidates: tuple[str, ...] = ()
    unknown_scans: dict[str, int] = field(default_factory=dict)


class Reference(NamedTuple):
    """The listed scans and their annotations.

    Attributes:
        series_uids: series UIDs, unique and sorted; the position of a scan is its index.
        nodules: the nodules to find.
        excluded: excluded findings, which count neither as nodule nor as false positive; may be empty.
        folds: series UIDs by name of the fold; empty without folds.
    """

    series_uids: Sequence[str]
    nodules: Table
    excluded: Table
    folds: dict[str, list[str]]

    def match(self, results: Table, series_uids: Sequence[str]) -> Matches:
        """Match results to the annotations of some of the scans; rows of other series belong to unknown scans."""
        index = {uid: n for n, uid in enumerate(series_uids)}
        parts = (self.nodules, self.excluded)
        findings = Findings(
            np.concatenate([part.scans(index, UNKNOWN_SCAN) for part in parts]),
            np.concatenate([part.positions_lps_mm for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.repeat([True, False], [len(part.values) for part in parts]),
        )
        candidates = Candidates(results.scans(index, UNKNOWN_SCAN), results.positions_lps_mm, results.values)
        return match(candidates, findings, len(index))


def evaluate(name: str, results: Table, reference: Reference, how: Resampling) -> System:
    """Score a system's results: all scans together and each fold."""
    listed, with_candidates = set(reference.series_uids), set(results.series_uids)
    folds = {
        fold: Score.of(reference.match(results.of(chosen), chosen), how) for fold, chosen in reference.folds.items()
    }
    return System(
        name,
        Score.of(reference.match(results, reference.series_uids), how),
        folds,
        tuple(uid for uid in reference.series_uids if uid not in with_candidates),
        dict(sorted(Counter(uid for uid in results.series_uids if uid not in listed).items())),
    )
