"""The files for each scan, made from a ``ScanResult`` alone: tables, masks, files for viewers, pages, DICOM objects."""

from .base import Writer
from .dicom.writers import DicomReport, DicomSegmentation
from .html.index import RunIndex
from .html.page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable, summary
from .viewers import ItkSnapLabels, MaskNifti, SlicerLabels, SlicerMarkups
from .writer import Fingerprint, ResultWriter, input_digest

__all__ = [
    "DicomReport",
    "DicomSegmentation",
    "Fingerprint",
    "HtmlReport",
    "ItkSnapLabels",
    "MaskNifti",
    "NodulesCsv",
    "NodulesJson",
    "PredictionTable",
    "ResultWriter",
    "RunIndex",
    "SlicerLabels",
    "SlicerMarkups",
    "Writer",
    "input_digest",
    "summary",
]
