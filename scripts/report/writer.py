"""One folder per scan, written by the writers in the component graph, with a record of what its result was made from.

If input files, model and settings are the same, a scan needs no second search.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.claims import claims_on
from ..core.files import (
    OutputError,
    beside,
    check_replaceable,
    checked_name,
    digest_of,
    output_error,
    put_back,
    put_in_place,
    read_record,
    remove_abandoned,
    stamp,
    writable_folder,
)
from ..core.records import ScanResult
from ..core.text import parse_bool
from ..read.text_headers import files_of
from .base import Writer
from .tables import NodulesJson, PredictionTable, plain

logger = logging.getLogger(__name__)


def input_digest(files: Iterable[str | os.PathLike[str]]) -> str:
    """Return a digest of path, size and modification time of one scan's files; a folder stands for all files below it.

    The data files named by a ``.mhd`` or ``.nhdr`` are included. The voxels are not read: that would take as long as
    reading the scan.

    Args:
        files: in any order; one that does not exist counts by its path.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    return digest_of(sorted(stamp(part) for file in files for part in files_of(Path(os.path.abspath(file)))))


class Fingerprint(NamedTuple):
    """What a result was made from.

    Attributes:
        input_digest: see :func:`input_digest`; the empty string means unknown, and equals nothing.
        model: facts about bundle and weights.
        settings: of the run.
    """

    input_digest: str
    model: Mapping[str, str]
    settings: Mapping[str, Any]

    @classmethod
    def of_result(cls, result: ScanResult) -> Fingerprint:
        return cls(result.input_digest, result.model, result.settings)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint in a ``nodules.json``; an unknown one if the record has none."""
        digest, model, settings = (record.get(key) for key in ("input_digest", "bundle", "settings"))
        if isinstance(digest, str) and isinstance(model, dict) and isinstance(settings, dict):
            return cls(digest, model, settings)
        return cls("", {}, {})

    def differences(self, other: Fingerprint) -> list[str]:
        """Describe what differs, with this fingerprint's value first; an empty list if both are equal."""
        if not other.input_digest:
            return ["it does not say what it was made from"]
        found = [] if self.input_digest == other.input_digest else ["other input files, or files changed since"]
        ours, stored = (plain({**one.model, **one.settings}) for one in (self, other))
        changed = [key for key in sorted({*ours, *stored}) if ours.get(key, ...) != stored.get(key, ...)]
        return found + [f"{key} {_shown(ours.get(key))} now, {_shown(stored.get(key))} there" for key in changed]


def _shown(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)


def _differences(fingerprint: Fingerprint, folder: Path) -> list[str]:
    """Describe how what a result in ``folder`` was made from differs from ``fingerprint``."""
    return fingerprint.differences(Fingerprint.of_record(read_record(folder / NodulesJson.filename)))


class ResultWriter:
    """Write each scan's result into ``<output_dir>/<name>/``, completely or not at all.

    Several processes may write into one ``output_dir``; each scan is written by the process that has claimed it.

    Args:
        output_dir: created if it is missing.
        writers: called in this order; each writes one file or none.
        predictions: table of all scans, ``None`` for none; it is updated once a scan's folder is complete.
        overwrite: whether a result that was made from something else may be replaced; the texts "true" and "false" are
            accepted as well.

    Raises:
        OutputError: ``output_dir`` cannot be written to.
        SettingError: ``overwrite`` is neither true nor false.
        ValueError: there are no writers.
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
        self._files = Writer.filenames | {writer.filename for writer in writers}
        self.claims = claims_on(self.output_dir)
        self.claims.sweep()
        remove_abandoned(self.output_dir)

    def folder(self, name: str) -> Path:
        """Return the folder for the result of a scan.

        Raises:
            ValueError: the name is not safe.
        """
        return self.output_dir / checked_name(name)

    def refuse_another(self, name: str, fingerprint: Fingerprint) -> None:
        """Refuse a scan whose folder holds what must not be replaced; a previous result that was set aside is put back.

        A result that was made from something else may be replaced if ``overwrite`` is set, other files never.

        Args:
            name: of the scan.
            fingerprint: what this run would make its result from.

        Raises:
            OutputError: there is a result made from something else, a folder with other files, or a file.
            ValueError: the name is not safe.
        """
        target = self.folder(name)
        if not target.exists():
            with self.claims.lock():
                put_back(target)
        check_replaceable(target, self._files)
        if self.overwrite or not self._present(target):
            return
        if differences := _differences(fingerprint, target):
            raise OutputError(
                f"{target}: expected nothing or a result of the same scan and settings, got another one: "
                f"{'; '.join(differences)}. Set --overwrite true to replace it, or choose another output_dir."
            )

    def is_complete(self, name: str, fingerprint: Fingerprint) -> bool:
        """Whether a scan has a result with all files, made from the same input, model and settings.

        Raises:
            ValueError: the name is not safe.
        """
        target = self.folder(name)
        required = {writer.filename for writer in self.writers if not writer.optional}
        return required <= self._present(target) and not _differences(fingerprint, target)

    def _present(self, target: Path) -> set[str]:
        """Return which files of a result a folder holds; none if it is missing."""
        return {entry.name for entry in target.iterdir()} & self._files if target.is_dir() else set()

    def __call__(self, result: ScanResult) -> Path:
        """Write one scan; an existing result that may be replaced is replaced once the new one is complete.

        Returns:
            The scan's folder.

        Raises:
            ValueError: the name is not safe, or two writers use one file name.
            OutputError: see :meth:`refuse_another`; also if the disk is full or another run has taken over the scan.
                Nothing is left half-written.
            BusyError, OtherClaimError: another process is searching this scan, or another scan of the same name.
        """
        name, target, made_from = result.name, self.folder(result.name), Fingerprint.of_result(result)
        self.claims.take(name, result.input_digest)
        try:
            self.refuse_another(name, made_from)
            with beside(target) as folder:
                folder.mkdir()
                names = [path.name for writer in self.writers if (path := writer(result, folder)) is not None]
                if len(set(names)) < len(names):
                    raise ValueError(f"Expected one writer per file, got {names}. Remove one from the configuration.")
                with self.claims.lock():
                    if not self.claims.holds(name):
                        raise OutputError(
                            f"{target}: expected a scan that this run alone searches, got one that another run took "
                            "over because this one stalled for too long. Search it again."
                        )
                    self.refuse_another(name, made_from)  # it may have been written meanwhile
                    put_in_place(folder, target)
                    if self.predictions is not None:
                        self.predictions.update()
        except OSError as error:
            raise output_error(target, "a result folder that can be written", error) from error
        finally:
            self.claims.release(name)
        logger.info("%s: written to %s", name, target)
        return target
