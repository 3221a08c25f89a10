"""Metrics for ignite that collect records scan by scan during an evaluation and score all of them at the end.

The value is the same on every rank and for any number of ranks: the scans of all ranks are gathered, and a scan that a
sampler repeats to fill up its ranks counts once, by its name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.metrics import Metric

from ..core.errors import DataError
from .cpm import ScanTruth, ScoredScan, match_scans
from .froc import Froc, Matches, froc_of
from .masks import MaskScores, join_mask_scores

logger = logging.getLogger(__name__)


class FrocMetric(Metric):
    """CPM over the scans of a validation run.

    Update with the :class:`.cpm.ScoredScan` of each scan of the batch. Without any nodule to find, the CPM is
    undefined: the value is NaN, and a warning is logged.

    Attributes:
        froc: curve, readings and counts of the last run; ``None`` before.
        matches: the matches that they were computed from, for the bootstrap; ``None`` before.
        scans: the scored scans of the last run, ordered by name; empty before.
    """

    def reset(self) -> None:
        self._seen: list[ScoredScan] = []
        self.froc: Froc | None = None
        self.matches: Matches | None = None
        self.scans: tuple[ScoredScan, ...] = ()

    def update(self, output: Iterable[ScoredScan]) -> None:
        self._seen += output

    def compute(self) -> float:
        self.scans = _unique_scans(_of_all_ranks(self._seen))
        self.matches = match_scans(self.scans)
        self.froc = froc_of(self.matches)
        if self.froc.cpm is None:
            logger.warning("The CPM of %d scans is undefined: they have no nodule to find.", len(self.scans))
            return math.nan
        return self.froc.cpm


class MaskMetric(Metric):
    """Mean Dice of the masks of all reference nodules, with 0 for a missed one; NaN without any nodule.

    Update with ``(scan, scores)`` of each scan of the batch: its name and its :class:`.masks.MaskScores`.

    Attributes:
        scores: the scores of all scans of the last run, in the three settings; ``None`` before.
    """

    def reset(self) -> None:
        self._seen: list[tuple[str, MaskScores]] = []
        self.scores: MaskScores | None = None

    def update(self, output: Iterable[tuple[str, MaskScores]]) -> None:
        self._seen += output

    def compute(self) -> float:
        seen = _of_all_ranks(self._seen)
        by_name = dict(seen)
        self.scores = join_mask_scores([by_name[name] for name in sorted(by_name)])
        dices = [n.overlap.dice for n in self.scores.every_nodule if n.overlap.dice is not None]
        return float(np.mean(dices)) if dices else math.nan


def _of_all_ranks(seen: list[Any]) -> list[Any]:
    """Join the records that all ranks have collected."""
    gathered: Any = idist.all_gather(seen) if idist.get_world_size() > 1 else [seen]
    return [record for part in gathered for record in part]


def _unique_scans(scans: Iterable[ScoredScan]) -> tuple[ScoredScan, ...]:
    """Return each named scan once, ordered by name, then the scans without a name in their original order.

    Raises:
        DataError: two scans of the same name have different references.
    """
    unique: dict[str, ScoredScan] = {}
    nameless = []
    for scan in scans:
        if not scan.truth.name:
            nameless.append(scan)
        elif not _same_truth(unique.setdefault(scan.truth.name, scan).truth, scan.truth):
            raise DataError(
                f"expected one scan named {scan.truth.name!r}, got two with different findings; "
                "give every scan of the run a different name"
            )
    return (*(unique[name] for name in sorted(unique)), *nameless)


def _same_truth(first: ScanTruth, second: ScanTruth) -> bool:
    return all(
        np.array_equal(getattr(first, part), getattr(second, part))
        for part in ("centres_ras_mm", "diameters_mm", "is_nodule")
    )
