"""The writers of the two DICOM objects; highdicom is imported only when the first object is made."""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path

from ...core.files import write_bytes
from ...core.records import ScanResult
from ..base import Writer
from .source import SourceSeries, read_source

logger = logging.getLogger(__name__)


class _DicomWriter(Writer):
    """Write one object for a scan that was read from DICOM."""

    optional = True  # a scan that was not DICOM has none

    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder``. If it cannot be made, the log says why: an optional file must not cost the result.

        Returns:
            The file; ``None`` if there is none.

        Raises:
            OutputError: the file cannot be written.
        """
        path = folder / self.filename
        try:
            source = read_source(result.source_files) if result.source_files else None
            content = None if source is None else self.make(result, source, folder)
        except Exception as error:  # pydicom and highdicom raise almost any type for what slices may contain
            logger.warning("%s: %s is left out: %s: %s", result.name, path.name, type(error).__name__, error)
            return None
        return None if content is None else write_bytes(path, content)

    @abstractmethod
    def make(self, result: ScanResult, source: SourceSeries, folder: Path) -> bytes | None:
        """Return the object as the content of a file; ``None`` if the result has none."""


class DicomSegmentation(_DicomWriter):
    """Write ``segmentation.dcm``: a BINARY Segmentation on the source slices, one segment for each nodule with a mask.

    There is no file for a scan that was not read from DICOM, nor for one without any mask, as a Segmentation has at
    least one segment with at least one frame; the Structured Report is written nevertheless.
    """

    filename = "segmentation.dcm"

    def make(self, result: ScanResult, source: SourceSeries, folder: Path) -> bytes | None:
        from .objects import segmentation_of

        outlined = any(nodule.measurement is not None for nodule in result.nodules)
        return segmentation_of(result, source) if outlined else None


class DicomReport(_DicomWriter):
    """Write ``report.dcm``: a Comprehensive 3D SR (TID 1500) with the measurements of each nodule.

    It refers to the segments of ``segmentation.dcm`` in the same folder if :class:`DicomSegmentation` has written one
    before, and to the source slices otherwise. There is no file for a scan that was not read from DICOM; the report of
    a scan without nodules says so.
    """

    filename = "report.dcm"

    def make(self, result: ScanResult, source: SourceSeries, folder: Path) -> bytes:
        from .objects import report_of

        return report_of(result, source, folder / DicomSegmentation.filename)
