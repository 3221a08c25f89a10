"""The LUNA16 evaluation applied to the bundle's own records: detections and reference of each scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.geometry import BoolArray, FloatArray
from ..core.records import Detection
from .froc import Candidates, Findings, Matches, inside_findings, match


@dataclass(frozen=True)
class ScanTruth:
    """Reference of one scan.

    Attributes:
        centres_ras_mm: ``[N, 3]``, RAS mm.
        diameters_mm: ``[N]``; negative if unknown.
        is_nodule: ``[N]`` bool; ``False`` for excluded findings.
        name: series UID or another name, unique in the run; scans of the same name count once, scans without a name
            all count.
        lung_litres: volume of the lungs searched; 0 if unknown.
    """

    centres_ras_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: np.ndarray
    name: str = ""
    lung_litres: float = 0.0


class ScoredScan(NamedTuple):
    """One scan of a run: its detections and its reference."""

    detections: tuple[Detection, ...]
    truth: ScanTruth

    def centres_ras_mm(self) -> FloatArray:
        """Return the centres of the detections, ``[D, 3]``, RAS mm."""
        return np.array([d.centre_ras_mm for d in self.detections], dtype=np.float64).reshape(-1, 3)

    def hits(self) -> BoolArray:
        """Return which detection lies strictly inside which finding, ``[D, N]``."""
        centres_ras_mm = np.reshape(self.truth.centres_ras_mm, (-1, 3))
        return inside_findings(self.centres_ras_mm(), centres_ras_mm, self.truth.diameters_mm)


def match_scans(scans: Sequence[ScoredScan]) -> Matches:
    """Apply the hit rule to all scans together; scans without detections stay in the denominator."""
    candidates = Candidates(
        np.repeat(np.arange(len(scans)), [len(scan.detections) for scan in scans]),
        np.concatenate([np.zeros((0, 3)), *(scan.centres_ras_mm() for scan in scans)]),
        np.array([d.probability for scan in scans for d in scan.detections], dtype=np.float64),
    )
    truths = [scan.truth for scan in scans]
    findings = Findings(
        np.repeat(np.arange(len(truths)), [len(t.diameters_mm) for t in truths]),
        np.concatenate([np.zeros((0, 3)), *(np.reshape(t.centres_ras_mm, (-1, 3)) for t in truths)]),
        np.concatenate([np.zeros(0), *(t.diameters_mm for t in truths)]),
        np.concatenate([np.zeros(0, dtype=bool), *(np.asarray(t.is_nodule, dtype=bool) for t in truths)]),
    )
    return match(candidates, findings, len(scans))
