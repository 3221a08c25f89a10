"""How good a result is: detection as LUNA16 counts it (FROC, CPM), outlines by their overlap."""

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
from .outlines import NoduleOverlap, OutlineScores, join_outlines, score_outlines, summarise
from .overlap import MISSED, Overlap, compare_masks
from .per_litre import LITRE_RATES, PerLitre, per_litre_of
from .running import FrocMetric, OutlineMetric

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
    "Matches",
    "NoduleOverlap",
    "OutlineMetric",
    "OutlineScores",
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
    "join_outlines",
    "match",
    "match_scans",
    "per_litre_of",
    "score_outlines",
    "size_class",
    "summarise",
]
