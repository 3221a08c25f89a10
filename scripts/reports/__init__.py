"""What a user gets per scan, made from a ``ScanResult`` alone: JSON, CSV, NIfTI mask, a page, DICOM objects."""

from .dicom import DicomReport, DicomSegmentation
from .files import OutputError
from .index import RunIndex
from .page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable, summary_table
from .volume import MaskNifti
from .writer import ResultWriter, Writer

__all__ = [
    "DicomReport",
    "DicomSegmentation",
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
