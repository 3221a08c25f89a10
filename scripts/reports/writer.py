"""One folder per scan, written by the writers the component graph lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..errors import checked_switch
from ..findings import ScanResult
from .files import OutputError, check_replaceable, checked_name, put_back, replaced_folder, writable_folder
from .fingerprint import Fingerprint
from .tables import NodulesJson, PredictionTable, read_record

logger = logging.getLogger(__name__)

# What a former result may hold though the present run writes fewer files.
_RESULT_FILES = frozenset(
    {
        *("nodules.json", "nodules.csv", "nodules.mrk.json", "mask.nii.gz", "mask.ctbl", "mask.label.txt"),
        *("report.html", "segmentation.dcm", "report.dcm"),
    }
)


class Writer(Protocol):
    """Writes one file of a scan's result.

    A writer that has nothing to write for some scans says ``optional = True``.
    """

    filename: str

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder`` and return the file's path."""
        ...


class ResultWriter:
    """Write each scan's result into ``<output_dir>/<name>/``, whole or not at all.

    Args:
        output_dir: made where it is missing.
        writers: called in this order, each writes one file.
        predictions: table of all scans, ``None`` for none; a scan enters it once its folder is complete.
        overwrite: whether a result that was made from something else may be replaced ("true" and "false" as well).

    Raises:
        OutputError: ``output_dir`` cannot be written to.
        SettingError: ``overwrite`` is neither true nor false.
        ValueError: no writers.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        writers: Sequence[Writer],
        predictions: PredictionTable | None = None,
        overwrite: bool = False,
    ) -> None:
        if not writers:
            raise ValueError("Expected at least one writer, got none. List e.g. NodulesJson in the configuration.")
        self.overwrite = checked_switch("overwrite", overwrite)
        self.output_dir = writable_folder(output_dir)
        self.writers = tuple(writers)
        self.predictions = predictions
        self._files = _RESULT_FILES | {writer.filename for writer in writers}

    def folder(self, name: str) -> Path:
        """Where the result of a scan belongs.

        Raises:
            ValueError: the name is not safe.
        """
        return self.output_dir / checked_name(name)

    def finished(self, name: str, fingerprint: Fingerprint) -> bool:
        """Whether the result of a scan stands there already, whole and made from the same input, model and settings.

        Returns:
            ``True``: nothing is left to do. ``False``: nothing is there, or something that may be replaced: a result
            with files missing, or any result where ``overwrite`` is set.

        Raises:
            OutputError: a result made from something else, a folder with other files, or a file stands there.
            ValueError: the name is not safe.
        """
        target = self.folder(name)
        put_back(target)
        check_replaceable(target, self._files)
        present = {entry.name for entry in target.iterdir()} & self._files if target.is_dir() else set()
        if self.overwrite or not present:
            return False
        there = Fingerprint.of_record(read_record(target / NodulesJson.filename))
        differences = fingerprint.differences(there)
        if differences:
            raise OutputError(
                f"{target}: expected nothing or a result of the same scan and settings, got another one: "
                f"{'; '.join(differences)}. Set --overwrite true to replace it, or choose another output_dir."
            )
        return {writer.filename for writer in self.writers if not getattr(writer, "optional", False)} <= present

    def __call__(self, result: ScanResult) -> Path:
        """Write one scan; a former result that may be replaced is, once the new one is complete.

        Returns:
            The scan's folder.

        Raises:
            ValueError: the name is not safe, two writers use one file name, or the scan is already in the table.
            OutputError: see :meth:`finished`, or the disk is full; nothing is left half-written.
        """
        self.finished(result.name, Fingerprint.of_result(result))
        target = self.folder(result.name)
        with replaced_folder(target, self._files) as folder:
            names = [writer(result, folder).name for writer in self.writers]
            if len(set(names)) < len(names):
                raise ValueError(f"Expected one writer per file, got {names}. Remove one from the configuration.")
        if self.predictions is not None:
            self.predictions.append(result)
        logger.info("%s: %d nodules, written to %s", result.name, len(result.nodules), target)
        return target
