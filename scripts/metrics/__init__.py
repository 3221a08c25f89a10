"""Metrics: detection as LUNA16 scores it (FROC, CPM), overlap of masks, calibration."""

from __future__ import annotations

from .bootstrap import BAND_RATES, Confidence, confidence_of
from .calibration import Calibration, Reliability, calibration_of
from .cpm import ScanTruth, ScoredScan, match_scans
from .froc import RATES, SIZE_CLASSES, UNKNOWN_SCAN, Candidates, Findings, Froc, Matches, froc_of, match, size_class
from .masks import MaskScores, join_mask_scores, score_masks, summarise
from .overlap import MISSED, Overlap, compare_masks
from .per_litre import LITRE_RATES, per_litre_of
from .running import FrocMetric, MaskMetric

__all__ = [
    "BAND_RATES",
    "LITRE_RATES",
    "MISSED",
    "RATES",
    "SIZE_CLASSES",
    "UNKNOWN_SCAN",
    "Calibration",
    "Candidates",
    "Confidence",
    "Findings",
    "Froc",
    "FrocMetric",
    "MaskMetric",
    "MaskScores",
    "Matches",
    "Overlap",
    "Reliability",
    "ScanTruth",
    "ScoredScan",
    "calibration_of",
    "compare_masks",
    "confidence_of",
    "froc_of",
    "join_mask_scores",
    "match",
    "match_scans",
    "per_litre_of",
    "score_masks",
    "size_class",
    "summarise",
]
