"""The LUNA16 evaluation of the bundle's own records: detections and truth of each scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.geometry import FloatArray
from ..core.records import Detection
from .luna16 import Candidates, Findings, Froc, Matches, froc_of, match


@dataclass(frozen=True)
class ScanTruth:
    """Reference of one scan, RAS mm.

    Attributes:
        centres_ras_mm: ``[N, 3]``.
        diameters_mm: ``[N]``.
        is_nodule: ``[N]`` bool; ``False`` for excluded findings.
        name: series UID or another name, unique in the run; a scan seen twice counts once. Without it every
            scan counts.
        lung_litres: volume of the lungs searched; 0 when not known.
    """

    centres_ras_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: np.ndarray
    name: str = ""
    lung_litres: float = 0.0


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
