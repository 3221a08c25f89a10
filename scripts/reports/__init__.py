"""What a user gets per scan, made from a ``ScanResult`` alone: tables, masks, viewers' files, a page, DICOM objects."""

from .claims import BusyError, OtherClaimError
from .dicom import DicomReport, DicomSegmentation
from .files import OutputError
from .fingerprint import Fingerprint, input_digest
from .index import RunIndex
from .page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable, summary_table
from .viewers import ItkSnapLabels, SlicerLabels, SlicerMarkups
from .volume import MaskNifti
from .writer import ResultWriter, Writer

__all__ = [
    "BusyError",
    "DicomReport",
    "DicomSegmentation",
    "Fingerprint",
    "HtmlReport",
    "ItkSnapLabels",
    "MaskNifti",
    "NodulesCsv",
    "NodulesJson",
    "OtherClaimError",
    "OutputError",
    "PredictionTable",
    "ResultWriter",
    "RunIndex",
    "SlicerLabels",
    "SlicerMarkups",
    "Writer",
    "input_digest",
    "summary_table",
]
