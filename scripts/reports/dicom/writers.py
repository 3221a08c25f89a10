"""The writers of the two DICOM objects; highdicom is imported when the first one is made, not before."""

from __future__ import annotations

from pathlib import Path

from ...findings import ScanResult
from ..files import write_bytes
from .source import SourceSeries, read_source


class DicomSegmentation:
    """Write ``segmentation.dcm``: a BINARY Segmentation on the source slices, one segment for each outlined nodule.

    No file for a scan that was not read from DICOM, nor for one without an outline: a Segmentation has at least one
    segment with at least one frame; the Structured Report then tells that nothing was found.
    """

    filename = "segmentation.dcm"
    optional = True  # of a scan that was no DICOM

    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder``.

        Raises:
            OutputError: the file cannot be written.
            ScanError: the source slices cannot be read again.
        """
        source = _source(result)
        if source is None or all(nodule.measurement is None for nodule in result.nodules):
            return None
        from .segmentation import segmentation_of

        return write_bytes(folder / self.filename, segmentation_of(result, source))


class DicomReport:
    """Write ``report.dcm``: a Comprehensive 3D SR (TID 1500) with the measurements of each nodule.

    It refers to the segments of the ``segmentation.dcm`` in the same folder, if :class:`DicomSegmentation` wrote one
    before, and to the source slices otherwise. No file for a scan that was not read from DICOM.
    """

    filename = "report.dcm"
    optional = True  # of a scan that was no DICOM

    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder``; a scan without nodules gives a report that says so.

        Raises:
            OutputError: the file cannot be written.
            ScanError: the source slices cannot be read again.
        """
        source = _source(result)
        if source is None:
            return None
        from .report import report_of

        return write_bytes(folder / self.filename, report_of(result, source, folder / DicomSegmentation.filename))


def _source(result: ScanResult) -> SourceSeries | None:
    return read_source(result.source_files) if result.source_files else None
