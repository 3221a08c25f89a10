"""Metrics: detection as LUNA16 scores it (FROC, CPM), overlap of masks, calibration."""

from __future__ import annotations

from .bootstrap import BAND_RATES, Confidence, Interval, confidence_of
from .calibration import BINS, Calibration, Reliability, ReliabilityBin, calibration_of
from .cpm import ScanTruth, ScoredScan, match_scans
from .luna16 import (
    MAX_CANDIDATES,
    RATES,
    SIZE_CLASSES,
    UNKNOWN_SCAN,
    Candidates,
    Counts,
    Findings,
    Froc,
    Matches,
    SizeReadings,
    froc_of,
    match,
    size_class,
)
from .masks import MaskScores, NoduleOverlap, join_mask_scores, score_masks, summarise
from .overlap import MISSED, Overlap, compare_masks
from .per_litre import LITRE_RATES, PerLitre, per_litre_of
from .running import FrocMetric, MaskMetric

__all__ = [
    "BAND_RATES",
    "BINS",
    "LITRE_RATES",
    "MAX_CANDIDATES",
    "MISSED",
    "RATES",
    "SIZE_CLASSES",
    "UNKNOWN_SCAN",
    "Calibration",
    "Candidates",
    "Confidence",
    "Counts",
    "Findings",
    "Froc",
    "FrocMetric",
    "Interval",
    "MaskMetric",
    "MaskScores",
    "Matches",
    "NoduleOverlap",
    "Overlap",
    "PerLitre",
    "Reliability",
    "ReliabilityBin",
    "ScanTruth",
    "ScoredScan",
    "SizeReadings",
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
