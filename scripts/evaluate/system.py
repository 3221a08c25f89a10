"""One system's results, evaluated: all scans together and, where there are folds, each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..metrics import UNKNOWN_SCAN, Candidates, Confidence, Findings, Froc, Matches, confidence_of, froc_of, match
from .tables import Table


class Resampling(NamedTuple):
    """The bootstrap: how many resamples (0 for none) and the seed of the draw."""

    resamples: int = 1000
    seed: int = 0


class Score(NamedTuple):
    """Curve and intervals of a set of scans; without resampling or nodules there are no intervals."""

    froc: Froc
    confidence: Confidence | None

    @classmethod
    def of(cls, matches: Matches, how: Resampling) -> Score:
        return cls(froc_of(matches), confidence_of(matches, **how._asdict()) if how.resamples > 0 else None)


@dataclass(frozen=True)
class System:
    """A system's results.

    Attributes:
        name: shown in table and plot; the key in ``froc.json``.
        pooled: all scans together.
        folds: by name; empty without folds.
        scans_without_candidates: series UIDs, sorted.
        unknown_scans: how many candidates each series has that is not in the list.
    """

    name: str
    pooled: Score
    folds: dict[str, Score] = field(default_factory=dict)
    scans_without_candidates: tuple[str, ...] = ()
    unknown_scans: dict[str, int] = field(default_factory=dict)


class Reference(NamedTuple):
    """The listed scans and what there is to find in them.

    Attributes:
        series_uids: each once, sorted; a scan's place is its index.
        nodules: findings that count.
        excluded: findings that are neither hit nor false; empty where there are none.
        folds: series UIDs by the fold's name; empty without folds.
    """

    series_uids: Sequence[str]
    nodules: Table
    excluded: Table
    folds: dict[str, list[str]]

    def match(self, results: Table, series_uids: Sequence[str]) -> Matches:
        """What becomes of results in some of the scans; rows of other series are of unknown scans."""
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
    """Score a system's results, all scans together and each fold."""
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
