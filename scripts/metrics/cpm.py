"""The LUNA16 evaluation of detections while the bundle runs: plain records in, and an ignite metric."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.metrics import Metric

from ..findings import Detection
from ..geometry import FloatArray
from .luna16 import Candidates, Findings, Froc, Matches, froc_of, match

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanTruth:
    """Reference of one scan, RAS mm.

    Attributes:
        centres_ras_mm: ``[N, 3]``.
        diameters_mm: ``[N]``.
        is_nodule: ``[N]`` bool; ``False`` for excluded findings.
        name: series UID or another name, unique in the run; a scan seen twice counts once. Without it every
            scan counts.
    """

    centres_ras_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: np.ndarray
    name: str = ""


@dataclass(frozen=True)
class ScoredScan:
    """One scan of a run: what was found in it, and what there was to find."""

    detections: tuple[Detection, ...]
    truth: ScanTruth


def candidates_of(detections: Sequence[Sequence[Detection]]) -> Candidates:
    """Detections of each scan as arrays, RAS mm."""
    found = [d for scan in detections for d in scan]
    return Candidates(
        np.repeat(np.arange(len(detections)), [len(scan) for scan in detections]),
        np.array([d.centre_ras_mm for d in found], dtype=np.float64).reshape(-1, 3),
        np.array([d.probability for d in found], dtype=np.float64),
    )


def findings_of(truths: Sequence[ScanTruth]) -> Findings:
    """The reference of each scan as arrays, RAS mm."""
    return Findings(
        np.repeat(np.arange(len(truths)), [len(t.diameters_mm) for t in truths]),
        np.concatenate([np.zeros((0, 3)), *(np.reshape(t.centres_ras_mm, (-1, 3)) for t in truths)]),
        np.concatenate([np.zeros(0), *(t.diameters_mm for t in truths)]),
        np.concatenate([np.zeros(0, dtype=bool), *(np.asarray(t.is_nodule, dtype=bool) for t in truths)]),
    )


def match_scans(detections: Sequence[Sequence[Detection]], truths: Sequence[ScanTruth]) -> Matches:
    """Apply the hit rule to all scans together.

    Args:
        detections: per scan; scans without any stay in the denominator.
        truths: per scan, same order.
    """
    if len(detections) != len(truths):
        raise ValueError(
            f"expected detections and truth of the same scans, got {len(detections)} and {len(truths)}; "
            "give one entry for each scan to both"
        )
    return match(candidates_of(detections), findings_of(truths), len(truths))


def froc(detections: Sequence[Sequence[Detection]], truths: Sequence[ScanTruth]) -> Froc:
    """Score all scans together; arguments as in :func:`match_scans`."""
    return froc_of(match_scans(detections, truths))


class FrocMetric(Metric):
    """CPM over the scans of a validation run, as an ignite metric.

    Update with ``(detections, truth)`` of each scan of the batch. The value is the same on every rank and for any
    number of ranks: the scans of all ranks are gathered, and one that a sampler gave twice to fill up counts once, by
    its name. Without any nodule to find the CPM is undefined: the value is NaN, and a warning says so.

    Attributes:
        froc: curve, readings and counts of the last run; ``None`` before.
        matches: what they were made of, for the bootstrap; ``None`` before.
        scans: the scored scans of the last run, by name.
    """

    def reset(self) -> None:
        self._seen: list[ScoredScan] = []
        self.froc: Froc | None = None
        self.matches: Matches | None = None
        self.scans: tuple[ScoredScan, ...] = ()

    def update(self, output: Iterable[tuple[Sequence[Detection], ScanTruth]]) -> None:
        self._seen += [ScoredScan(tuple(detections), truth) for detections, truth in output]

    def compute(self) -> float:
        gathered: Any = idist.all_gather(self._seen) if idist.get_world_size() > 1 else [self._seen]
        self.scans = _unique_scans([scan for part in gathered for scan in part])
        self.matches = match_scans([s.detections for s in self.scans], [s.truth for s in self.scans])
        self.froc = froc_of(self.matches)
        if self.froc.cpm is None:
            logger.warning("The CPM of %d scans is undefined: they have no nodule to find.", len(self.scans))
            return math.nan
        return self.froc.cpm


CpmMetric = FrocMetric


def _unique_scans(scans: Iterable[ScoredScan]) -> tuple[ScoredScan, ...]:
    """Each named scan once, by name; scans without a name as they came.

    Raises:
        ValueError: one name stands for two different scans.
    """
    unique: dict[str, ScoredScan] = {}
    nameless = []
    for scan in scans:
        if not scan.truth.name:
            nameless.append(scan)
        elif not _same_truth(unique.setdefault(scan.truth.name, scan).truth, scan.truth):
            raise ValueError(
                f"expected one scan of the name {scan.truth.name!r}, got two with different findings; "
                "give every scan of the run a name of its own"
            )
    return (*(unique[name] for name in sorted(unique)), *nameless)


def _same_truth(first: ScanTruth, second: ScanTruth) -> bool:
    return all(
        np.array_equal(getattr(first, part), getattr(second, part))
        for part in ("centres_ras_mm", "diameters_mm", "is_nodule")
    )
