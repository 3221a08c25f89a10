"""The graphs inside other programs: a search in memory for Python, and what MONAI's tools ask for."""

from .deploy import MaskAsPredictiond, ScanFromArrayd
from .label import BoxesForLabeld, LabelDetector, PreprocessRequestd
from .search import ScanSearch

__all__ = [
    "BoxesForLabeld",
    "LabelDetector",
    "MaskAsPredictiond",
    "PreprocessRequestd",
    "ScanFromArrayd",
    "ScanSearch",
]
