"""One folder per scan, written by the writers the component graph lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..findings import ScanResult
from .dicom import DicomReport, DicomSegmentation
from .files import checked_name, replaced_folder, writable_folder
from .page import HtmlReport
from .tables import NodulesCsv, NodulesJson, PredictionTable
from .volume import MaskNifti

logger = logging.getLogger(__name__)

# What a former result may hold though the present run writes fewer files.
_WRITERS = (NodulesJson, NodulesCsv, MaskNifti, HtmlReport, DicomSegmentation, DicomReport)
_RESULT_FILES = frozenset(writer.filename for writer in _WRITERS)


class Writer(Protocol):
    """Writes one file of a scan's result."""

    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder`` and return the file's path; ``None`` when this scan has no such file."""
        ...


class ResultWriter:
    """Write each scan's result into ``<output_dir>/<name>/``, whole or not at all.

    Args:
        output_dir: made where it is missing.
        writers: called in this order, each writes one file or none.
        predictions: table of the whole run, ``None`` for none; a scan enters it once its folder is complete.

    Raises:
        OutputError: ``output_dir`` cannot be written to.
        ValueError: no writers.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        writers: Sequence[Writer],
        predictions: PredictionTable | None = None,
    ) -> None:
        if not writers:
            raise ValueError("Expected at least one writer, got none. List e.g. NodulesJson in the configuration.")
        self.output_dir = writable_folder(output_dir)
        self.writers = tuple(writers)
        self.predictions = predictions

    def __call__(self, result: ScanResult) -> Path:
        """Write one scan; a former result of that name is replaced once the new one is complete.

        Returns:
            The scan's folder.

        Raises:
            ValueError: the name is not safe, two writers use one file name, or the scan is already in the table.
            OutputError: the disk is full, or a folder of that name holds other files; nothing is left half-written.
        """
        target = self.output_dir / checked_name(result.name)
        with replaced_folder(target, _RESULT_FILES) as folder:
            names = [path.name for writer in self.writers if (path := writer(result, folder)) is not None]
            if len(set(names)) < len(names):
                raise ValueError(f"Expected one writer per file, got {names}. Remove one from the configuration.")
        if self.predictions is not None:
            self.predictions.append(result)
        logger.info("%s: %d nodules, written to %s", result.name, len(result.nodules), target)
        return target
