"""How well detections match nodules: the LUNA16 FROC curve and its mean sensitivity (CPM).

Source: the LUNA16 challenge (Setio et al., 2017): hits inside a nodule's radius, excluded findings neither hit nor
false, readings at seven false-positive rates by linear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ignite.metrics import Metric

from .findings import Detection
from .geometry import FloatArray

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan at which sensitivity is read


@dataclass(frozen=True)
class ScanTruth:
    """Reference of one scan, RAS mm.

    Attributes:
        centres_ras_mm: ``[N, 3]``.
        diameters_mm: ``[N]``.
        is_nodule: ``[N]`` bool; ``False`` for excluded findings.
    """

    centres_ras_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: np.ndarray


@dataclass(frozen=True)
class Froc:
    """A FROC curve and its readings.

    Attributes:
        false_positives_per_scan, sensitivity: the curve's points, from (0, 0), both rising.
        readings: sensitivity at :data:`RATES`.
        cpm: their mean; ``None`` when there is no nodule to find.
        nodules, scans: denominators.
    """

    false_positives_per_scan: FloatArray
    sensitivity: FloatArray
    readings: tuple[float, ...]
    cpm: float | None
    nodules: int
    scans: int


def _score_scan(detections: Sequence[Detection], truth: ScanTruth) -> tuple[list[float], list[float], int]:
    """Scores of the nodules hit, scores of the false positives, number of nodules."""
    centres = np.array([d.centre_ras_mm for d in detections], dtype=np.float64).reshape(-1, 3)
    scores = np.array([d.probability for d in detections], dtype=np.float64)
    apart = np.square(centres[:, None] - truth.centres_ras_mm.reshape(-1, 3)[None]).sum(-1)  # [D, N]
    inside = apart < np.square(truth.diameters_mm / 2.0)
    hits = [float(scores[inside[:, n]].max()) for n in np.flatnonzero(truth.is_nodule) if inside[:, n].any()]
    return hits, scores[~inside.any(axis=1)].tolist(), int(truth.is_nodule.sum())


def froc(detections: Sequence[Sequence[Detection]], truths: Sequence[ScanTruth]) -> Froc:
    """Score all scans together.

    Args:
        detections: per scan; scans without any stay in the denominator.
        truths: per scan, same order.

    Returns:
        The curve; without nodules every reading is 0 and ``cpm`` is ``None``.
    """
    hits: list[float] = []
    misses: list[float] = []
    nodules = 0
    for found, truth in zip(detections, truths, strict=True):
        scan_hits, scan_false, count = _score_scan(found, truth)
        hits += scan_hits
        misses += scan_false
        nodules += count
    levels = np.unique(hits + misses)[::-1]  # equal scores enter the curve as one step
    above_hits = np.searchsorted(np.sort(hits), levels, side="left")
    above_false = np.searchsorted(np.sort(misses), levels, side="left")
    x = np.concatenate([[0.0], (len(misses) - above_false) / max(len(truths), 1)])
    y = np.concatenate([[0.0], (len(hits) - above_hits) / max(nodules, 1)])
    readings = tuple(float(np.interp(rate, x, y)) for rate in RATES)
    return Froc(x, y, readings, float(np.mean(readings)) if nodules else None, nodules, len(truths))


class CpmMetric(Metric):
    """CPM over the scans of a validation run, as an ignite metric; 0 when there is no nodule to find.

    Update with ``(detections, truth)`` of each scan of the batch. The last curve stays in :attr:`froc`.
    """

    def reset(self) -> None:
        self._detections: list[Sequence[Detection]] = []
        self._truths: list[ScanTruth] = []
        self.froc: Froc | None = None

    def update(self, output: Sequence[tuple[Sequence[Detection], ScanTruth]]) -> None:
        for detections, truth in output:
            self._detections.append(detections)
            self._truths.append(truth)

    def compute(self) -> float:
        self.froc = froc(self._detections, self._truths)
        return self.froc.cpm or 0.0
