"""What a user gets per scan, made from a ``ScanResult`` alone: JSON, CSV, NIfTI mask, viewers' files and a page."""

from .files import OutputError
from .fingerprint import Fingerprint, input_digest
from .page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable, summary_table
from .viewers import ItkSnapLabels, SlicerLabels, SlicerMarkups
from .volume import MaskNifti
from .writer import ResultWriter, Writer

__all__ = [
    "Fingerprint",
    "HtmlReport",
    "ItkSnapLabels",
    "MaskNifti",
    "NodulesCsv",
    "NodulesJson",
    "OutputError",
    "PredictionTable",
    "ResultWriter",
    "SlicerLabels",
    "SlicerMarkups",
    "Writer",
    "input_digest",
    "summary_table",
]
