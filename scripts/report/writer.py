"""One folder per scan, written by the writers the component graph lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..core.claims import claims_on
from ..core.files import (
    OutputError,
    beside,
    check_replaceable,
    checked_name,
    output_error,
    put_back,
    put_in_place,
    read_record,
    remove_abandoned,
    writable_folder,
)
from ..core.records import ScanResult
from ..core.text import parse_bool
from .fingerprint import Fingerprint
from .tables import NodulesJson, PredictionTable

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

    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder`` and return the file's path; ``None`` when this scan has no such file."""
        ...


class ResultWriter:
    """Write each scan's result into ``<output_dir>/<name>/``, whole or not at all.

    Several processes may write into one ``output_dir``, each scan by the one that claims it.

    Args:
        output_dir: made where it is missing.
        writers: called in this order, each writes one file or none.
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
        self.overwrite = parse_bool("overwrite", overwrite)
        self.output_dir = writable_folder(output_dir)
        self.writers = tuple(writers)
        self.predictions = predictions
        self._files = _RESULT_FILES | {writer.filename for writer in writers}
        self.claims = claims_on(self.output_dir)
        self.claims.sweep()
        remove_abandoned(self.output_dir)

    def folder(self, name: str) -> Path:
        """Where the result of a scan belongs.

        Raises:
            ValueError: the name is not safe.
        """
        return self.output_dir / checked_name(name)

    def finished(self, name: str, fingerprint: Fingerprint, *, is_new: bool = False) -> bool:
        """Whether the result of a scan stands there already, whole and made from the same input, model and settings.

        Args:
            name: of the scan.
            fingerprint: what this run makes its result from.
            is_new: another run has written it since this one began, so that ``overwrite`` asks for no second search.

        Returns:
            ``True``: nothing is left to do. ``False``: nothing is there, or something that may be replaced: a result
            with files missing, or any result where ``overwrite`` is set.

        Raises:
            OutputError: a result made from something else, a folder with other files, or a file stands there.
            ValueError: the name is not safe.
        """
        target = self.folder(name)
        if not target.exists():
            with self.claims.lock():
                put_back(target)
        check_replaceable(target, self._files)
        present = {entry.name for entry in target.iterdir()} & self._files if target.is_dir() else set()
        if not present or (self.overwrite and not is_new):
            return False
        there = Fingerprint.of_record(read_record(target / NodulesJson.filename))
        differences = fingerprint.differences(there)
        if differences and self.overwrite:
            return False
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
            BusyError, OtherClaimError: another process searches this scan, or another one of its name.
        """
        name, target, made_from = result.name, self.folder(result.name), Fingerprint.of_result(result)
        self.claims.take(name, result.input_digest)
        try:
            self.finished(name, made_from)
            with beside(target) as folder:
                folder.mkdir()
                names = [path.name for writer in self.writers if (path := writer(result, folder)) is not None]
                if len(set(names)) < len(names):
                    raise ValueError(f"Expected one writer per file, got {names}. Remove one from the configuration.")
                with self.claims.lock():
                    if not self.claims.holds(name):
                        raise OutputError(
                            f"{target}: expected a scan that this run alone searches, got one that another run took "
                            "over, since this one stood still too long. Search it again."
                        )
                    self.finished(name, made_from)  # something else may have come to stand there meanwhile
                    put_in_place(folder, target)
                    if self.predictions is not None:
                        self.predictions.update()
        except OSError as error:
            raise output_error(target, "a result folder that can be written", error) from error
        finally:
            self.claims.release(name)
        logger.info("%s: %d nodules, written to %s", name, len(result.nodules), target)
        return target
