"""What a user gets per scan, made from a ``ScanResult`` alone: JSON, CSV, NIfTI mask and a page to look at."""

from .files import OutputError
from .index import RunIndex
from .page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable, summary_table
from .volume import MaskNifti
from .writer import ResultWriter, Writer

__all__ = [
    "HtmlReport",
    "MaskNifti",
    "NodulesCsv",
    "NodulesJson",
    "OutputError",
    "PredictionTable",
    "ResultWriter",
    "RunIndex",
    "Writer",
    "summary_table",
]
