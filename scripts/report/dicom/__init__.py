"""DICOM in, DICOM out: a Segmentation and a Structured Report that belong to the study of the scan."""

from .writers import DicomReport, DicomSegmentation

__all__ = ["DicomReport", "DicomSegmentation"]
