"""One system's results, evaluated: all scans together and, where there are folds, each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..metrics import UNKNOWN_SCAN, Candidates, Confidence, Findings, Froc, Matches, confidence_of, froc_of, match
from .tables import Table


@dataclass(frozen=True)
class Resampling:
    """The bootstrap: how many resamples (0 for none) and the seed of the draw."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Score:
    """Curve and intervals of a set of scans; without resampling or nodules there are no intervals."""

    froc: Froc
    confidence: Confidence | None

    @classmethod
    def of(cls, matches: Matches, resampling: Resampling) -> Score:
        drawn = None
        if resampling.resamples > 0:
            drawn = confidence_of(matches, resamples=resampling.resamples, seed=resampling.seed)
        return cls(froc_of(matches), drawn)


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


@dataclass(frozen=True)
class Reference:
    """The listed scans and what there is to find in them.

    Attributes:
        series_uids: each once, sorted; a scan's place is its index.
        findings: nodules and excluded findings.
        folds: series UIDs by the fold's name; empty without folds.
    """

    series_uids: tuple[str, ...]
    findings: Findings
    folds: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, series_uids: Sequence[str], nodules: Table, excluded: Table | None) -> Reference:
        index = {uid: n for n, uid in enumerate(series_uids)}
        tables = [nodules] if excluded is None else [nodules, excluded]
        findings = Findings(
            np.concatenate([t.scans(index, UNKNOWN_SCAN) for t in tables]),
            np.concatenate([t.positions_lps_mm for t in tables]),
            np.concatenate([t.values for t in tables]),
            np.concatenate([np.full(len(t.values), t is nodules) for t in tables]),
        )
        return cls(tuple(series_uids), findings)


def evaluate(name: str, results: Table, reference: Reference, resampling: Resampling) -> System:
    """Score a system's results, all scans together and each fold."""
    index = {uid: n for n, uid in enumerate(reference.series_uids)}
    candidates = Candidates(results.scans(index, UNKNOWN_SCAN), results.positions_lps_mm, results.values)
    pooled = Score.of(match(candidates, reference.findings, len(index)), resampling)
    with_candidates = set(results.series_uids)
    return System(
        name,
        pooled,
        {
            fold: Score.of(_of_scans(candidates, reference.findings, [index[u] for u in uids], len(index)), resampling)
            for fold, uids in reference.folds.items()
        },
        tuple(uid for uid in reference.series_uids if uid not in with_candidates),
        dict(sorted(Counter(uid for uid in results.series_uids if uid not in index).items())),
    )


def with_folds(reference: Reference, folds: Mapping[str, Sequence[str]]) -> tuple[Reference, int, int]:
    """A reference with folds, the number of their series that are not listed, and of listed ones that are in none."""
    listed = set(reference.series_uids)
    kept = {name: [u for u in uids if u in listed] for name, uids in folds.items()}
    given = sum(len(uids) for uids in folds.values())
    inside = sum(len(uids) for uids in kept.values())
    return replace(reference, folds=kept), given - inside, len(listed) - inside


def _of_scans(candidates: Candidates, findings: Findings, chosen: Sequence[int], scans: int) -> Matches:
    """Matches of some of the scans alone."""
    number = np.full(scans + 1, UNKNOWN_SCAN, dtype=np.int64)  # the last place is that of unknown scans
    number[np.asarray(chosen, dtype=np.int64)] = np.arange(len(chosen))
    ours, theirs = (number[table.scans] != UNKNOWN_SCAN for table in (candidates, findings))
    return match(
        Candidates(number[candidates.scans[ours]], candidates.positions_mm[ours], candidates.scores[ours]),
        Findings(
            number[findings.scans[theirs]],
            findings.positions_mm[theirs],
            findings.diameters_mm[theirs],
            findings.is_nodule[theirs],
        ),
        len(chosen),
    )
