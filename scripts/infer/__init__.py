"""Runs the search on many scans, or inside other programs: Python (in memory), MONAI Label, MONAI Deploy."""

from .hosts import BoxesForLabeld, LabelDetector, MaskAsPredictiond, PreprocessRequestd, ScanFromArrayd, ScanSearch
from .log import RefusedScansError, RunLog
from .run import ScanEvaluator, WriteResultd, bundle_facts
from .stream import FinishedResults, ScanLoader, ScanStream

__all__ = [
    "BoxesForLabeld",
    "FinishedResults",
    "LabelDetector",
    "MaskAsPredictiond",
    "PreprocessRequestd",
    "RefusedScansError",
    "RunLog",
    "ScanEvaluator",
    "ScanFromArrayd",
    "ScanLoader",
    "ScanSearch",
    "ScanStream",
    "WriteResultd",
    "bundle_facts",
]
