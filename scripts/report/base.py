"""What all writers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from ..core.records import ScanResult


class Writer(ABC):
    """Writes one file of a scan's result.

    Attributes:
        filename: the file's name in the folder of the result.
        optional: whether a result may be complete without the file, because some scans have none.
        filenames: the names of all writers: an earlier result may hold such files even if this run writes fewer.
    """

    filename: ClassVar[str]
    optional: ClassVar[bool] = False
    filenames: ClassVar[set[str]] = set()

    def __init_subclass__(cls) -> None:
        if "filename" in vars(cls):
            Writer.filenames.add(cls.filename)

    @abstractmethod
    def __call__(self, result: ScanResult, folder: Path) -> Path | None:
        """Write into ``folder`` and return the file's path; ``None`` if this scan has no such file."""
