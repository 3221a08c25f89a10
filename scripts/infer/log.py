"""The outcome of each scan of a run, and how the run ends."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from ..core.errors import UserError, is_command_line, reason_of, user_error_in
from ..core.paths import printable
from ..core.records import ScanResult
from ..read.scan import published_reason
from ..report import HtmlReport, RunIndex, summary

logger = logging.getLogger(__name__)


class RefusedScansError(UserError, RuntimeError):
    """A run has left out scans, or found none."""


class RunLog:
    """The outcome of each scan of a run.

    Args:
        index: the page that lists the scans, written at the end; ``None`` for no page.

    Attributes:
        writing: what :meth:`wait` waits for: the last scan's result, which another thread writes; ``None`` for nothing.
        on_failure: is called with the name of each scan that is given up; ``None`` for no call.
    """

    def __init__(self, index: RunIndex | None = None) -> None:
        self.index = index
        self.folders: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        self.found: list[str] = []
        self.writing: Future[None] | None = None
        self.on_failure: Callable[[str], object] | None = None
        self._order: tuple[str, ...] = ()
        self._begun: dict[str, float] = {}

    def expect(self, names: Sequence[str]) -> None:
        """Set the names of the run's scans, in the order in which they are to be listed."""
        self._order = tuple(names)
        if self.index is not None:
            self.index.order = self._order

    def begun(self, name: str) -> None:
        """Start the clock of a scan, which is about to be read."""
        self._begun[name] = time.monotonic()

    def seconds_since_begun(self, name: str) -> float | None:
        """Return the time since :meth:`begun` was called for a scan; ``None`` if it was not."""
        return time.monotonic() - self._begun[name] if name in self._begun else None

    def wait(self) -> None:
        """Wait until everything is written."""
        if self.writing is not None:
            self.writing.result()

    def finished(self, result: ScanResult, folder: Path) -> None:
        self.folders[result.name] = folder
        if self.index is not None:
            self.index.add(result, folder)
        report = folder / HtmlReport.filename
        logger.info("%s\n%s\nreport: %s", result.name, summary(result), report if report.is_file() else folder)

    def skipped(self, name: str, folder: Path) -> None:
        """Record a scan that is not searched because its result already exists in ``folder``."""
        self.found.append(name)
        if self.index is not None:
            self.index.add_former(folder)
        logger.info("%s: searched before, with the same settings; --overwrite true searches it again", name)

    def failed(self, name: str, error: Exception, source: str = "") -> None:
        """Record and print the error of a scan that is given up; an unexpected error is logged with its traceback.

        ``source`` is the scan's file or folder; the page of the run shows it without its parent folders.
        """
        self.failures[name] = reason_of(error)
        if self.on_failure is not None:
            self.on_failure(name)
        if self.index is not None:
            self.index.add_failure(name, published_reason(error), source)
        if user_error_in(error) is None:
            logger.error("%s: unexpected error", name, exc_info=error)
        print(f"error: {_told(name, self.failures[name])}", file=sys.stderr)

    def close(self) -> None:
        """Wait until everything is written, write the page of the run and print a summary.

        Raises:
            SystemExit: code 1 on the command line, if a scan failed or there was none.
            RefusedScansError: the same in any other program.
            OutputError: the page cannot be written.
        """
        self.wait()
        seconds = time.monotonic() - min(self._begun.values()) if self._begun else None
        page = self.index.write(seconds) if self.index is not None else None
        ordered = sorted(self.failures, key=lambda name: self._order.index(name) if name in self._order else -1)
        refused = f" ({', '.join(ordered)})" if ordered else ""
        found = f" {len(self.found)} searched before," if self.found else ""
        scans = "scan" if len(self.folders) == 1 else "scans"
        see = f"; see {page}" if page else ""
        print(printable(f"{len(self.folders)} {scans} searched,{found} {len(self.failures)} refused{refused}{see}"))
        if self.failures or not (self.folders or self.found):
            if is_command_line():
                raise SystemExit(1)
            raise RefusedScansError(
                "; ".join(_told(name, reason) for name, reason in self.failures.items()) or "no scan"
            )


def _told(name: str, reason: str) -> str:
    """Return the reason, preceded by the name unless it begins with it, as for a path without a scan."""
    return reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
