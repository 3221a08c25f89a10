"""How good a result is: detection as LUNA16 counts it (FROC, CPM), outlines by their overlap."""

from __future__ import annotations

from .bootstrap import BAND_RATES, Confidence, Interval, confidence_of
from .cpm import ScanTruth, ScoredScan, froc, match_scans
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
    luna16_froc,
    match,
    size_class,
)
from .outlines import (
    NoduleOverlap,
    OutlinedDetections,
    OutlinedTruth,
    OutlineScores,
    OutlineSummary,
    Statistic,
    join_outlines,
    score_outlines,
    summarise,
)
from .overlap import MISSED, Overlap, compare_masks
from .running import FrocMetric, OutlineMetric

__all__ = [
    "BAND_RATES",
    "MAX_CANDIDATES",
    "MISSED",
    "RATES",
    "SIZE_CLASSES",
    "UNKNOWN_SCAN",
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
    "OutlineSummary",
    "OutlinedDetections",
    "OutlinedTruth",
    "Overlap",
    "ScanTruth",
    "ScoredScan",
    "SizeReadings",
    "Statistic",
    "compare_masks",
    "confidence_of",
    "froc",
    "froc_of",
    "join_outlines",
    "luna16_froc",
    "match",
    "match_scans",
    "score_outlines",
    "size_class",
    "summarise",
]
