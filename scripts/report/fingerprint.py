"""What a result was made from: input files, model and settings. Equal ones need no second search."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import digest_of, stamp
from ..core.paths import kind_of
from ..core.records import ScanResult
from ..read.text_headers import data_files
from .tables import plain


def input_digest(files: Iterable[str | os.PathLike[str]]) -> str:
    """Digest of path, size and time of change of the files of one scan; a folder stands for all files below it.

    To a ``.mhd`` or ``.nhdr`` belong the files that it names. What the voxels are is not read: that would take as long
    as reading the scan.

    Args:
        files: in any order; one that does not exist counts by its path.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    marks = sorted(mark for file in files for mark in _marks(Path(os.path.abspath(file))))
    return digest_of(marks)


def _marks(path: Path) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time in ns of a file and of those it names, or of every file below a folder."""
    if kind_of(path) == "folder":
        return [mark for entry in path.rglob("*") if not entry.is_dir() for mark in _marks(entry)]
    return [stamp(file) for file in (path, *data_files(path))]


@dataclass(frozen=True)
class Fingerprint:
    """What a result was made from.

    Attributes:
        input_digest: see :func:`input_digest`; the empty string is unknown, and equal to nothing.
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
        """That of a ``nodules.json``; unknown where the record is none."""
        digest, model, settings = (record.get(key) for key in ("input_digest", "bundle", "settings"))
        if isinstance(digest, str) and isinstance(model, dict) and isinstance(settings, dict):
            return cls(digest, model, settings)
        return cls("", {}, {})

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, in words, this one's value first; none for equal fingerprints."""
        if not other.input_digest:
            return ["it does not say what it was made from"]
        found = [] if self.input_digest == other.input_digest else ["other input files, or files changed since"]
        ours, stored = (plain({**one.model, **one.settings}) for one in (self, other))
        changed = [key for key in sorted({*ours, *stored}) if ours.get(key, ...) != stored.get(key, ...)]
        return found + [f"{key} {_shown(ours.get(key))} now, {_shown(stored.get(key))} there" for key in changed]


def _shown(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
