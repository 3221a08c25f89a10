"""The page of a run: every scan with a link to its report, what was refused and why, and the sizes of the nodules."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np

from ...core.claims import claims_on
from ...core.files import OutputError, is_name, read_record, stamp, writable_folder, write_bytes
from ...core.paths import printable
from ...core.records import ScanResult
from ...read.scan import IMAGE_SUFFIXES
from ..tables import NodulesJson, scan_record, source_name
from .page import HtmlReport
from .render import render_page

# Distinguishes the page of an earlier run from a page written by someone else.
_GENERATOR = b'<meta name="generator" content="lung nodule run">'
_REFUSED = re.compile(r"<li><strong>([^<]*)</strong><span>([^<]*)</span></li>")  # as written by the page's template
# Fields used of each nodules.json, with the default for an older one that lacks the field.
_KEPT: dict[str, Any] = {"name": "", "source": "", "notes": (), "nodules": ()}
_BIN_MM = 2
_LAST_BIN_MM = 30


class RunIndex:
    """Collect the outcome of each scan; write ``index.html`` if there are several scans, or one was refused.

    The page lists the scans of this run in their order, then the other results in the folder, and finally what was
    refused by runs that shared the folder in the meantime.

    Args:
        output_dir: the folder of the run.
        date: shown as the day of the run; ``None`` for today (UTC).

    Raises:
        OutputError: ``output_dir`` contains an ``index.html`` that is not the page of an earlier run.
    """

    filename = "index.html"

    def __init__(self, output_dir: str | os.PathLike[str], date: str | None = None) -> None:
        self.path = writable_folder(output_dir) / self.filename
        self.date = date
        self.order: tuple[str, ...] = ()
        self._before = stamp(self.path)
        self._scans: list[dict[str, Any]] = []
        self._failures: list[tuple[str, str]] = []
        if self.path.exists() and not self._is_former():
            raise OutputError(
                f"{self.path}: expected nothing or the page of an earlier run, got another file. "
                "Move it or choose another output_dir."
            )

    def add(self, result: ScanResult, folder: Path) -> None:
        """Add a scan that was searched and whose results are in ``folder``."""
        self._scans.append(self._row(folder, scan_record(result), result.seconds))

    def add_former(self, folder: Path) -> None:
        """Add a scan that was not searched because ``folder`` has its result from an earlier run."""
        self._scans.append(self._former(folder))

    def _former(self, folder: Path) -> dict[str, Any]:
        record = read_record(folder / NodulesJson.filename)
        notes = ["searched by an earlier run", *record.get("notes", ())]
        return self._row(folder, {**record, "name": folder.name, "notes": notes})

    def _row(self, folder: Path, record: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Return what the page needs of a ``nodules.json``, with a link to the report, or else to the folder.

        ``seconds`` from reading to writing are ``None`` if they were not measured.
        """
        report = folder / HtmlReport.filename
        link = Path(os.path.relpath(report if report.exists() else folder, self.path.parent)).as_posix()
        kept = {name: record.get(name, absent) for name, absent in _KEPT.items()}
        return {**kept, "link": link, "seconds": seconds}

    def add_failure(self, name: str, reason: str, source: str = "") -> None:
        """Add a scan that was refused; parent folders, which may identify the patient, are removed from the texts."""
        is_file = source.lower().endswith((*IMAGE_SUFFIXES, ".json"))
        short = source_name(source) if is_file else "the input"
        name, reason = (text.replace(printable(source), short) if source else text for text in (name, reason))
        self._failures.append((name, reason))

    def write(self, seconds: float | None = None) -> Path | None:
        """Write the page; for a single result without failures there is no page, and an earlier one is removed.

        Args:
            seconds: duration of the run; ``None`` if unknown.

        Returns:
            The page, or ``None``.

        Raises:
            OutputError: it cannot be written.
        """
        with claims_on(self.path.parent).lock():
            others, refused = self._others()
            scans, failures = [*self._scans, *others], [*self._failures, *refused]
            if len(scans) < 2 and not failures:
                self.path.unlink(missing_ok=True)
                return None
            return write_bytes(self.path, self._page(scans, failures, seconds).encode())

    def render(self, seconds: float | None = None) -> str:
        """Return the page of this run's own scans as text."""
        return self._page(self._scans, self._failures, seconds)

    def _page(
        self, scans: Sequence[Mapping[str, Any]], failures: Sequence[tuple[str, str]], seconds: float | None
    ) -> str:
        diameters_mm = [nodule["diameter_mm"] for scan in scans for nodule in scan["nodules"]]
        edges = [*range(0, _LAST_BIN_MM + 1, _BIN_MM)]
        counts, _ = np.histogram(diameters_mm, [*edges, np.inf])
        labels = [*(f"{low}–{low + _BIN_MM}" for low in edges[:-1]), f"≥ {_LAST_BIN_MM}"]
        return render_page(
            "index",
            scans=sorted(scans, key=lambda scan: self._place(scan["name"])),
            failures=sorted(failures, key=lambda failure: self._place(failure[0])),
            bins=dict(zip(labels, counts.tolist(), strict=True)),
            nodules=len(diameters_mm),
            seconds=seconds,
            date=self.date or datetime.now(UTC).date().isoformat(),
        )

    def _place(self, name: str) -> tuple[int, str]:
        """Return the sort key of a row: scans of this run in their order, then others by name."""
        return (self.order.index(name), "") if name in self.order else (len(self.order), name)

    def _others(self) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        """Return rows of other runs' results, and what was refused by runs that wrote the page in the meantime."""
        known = {scan["name"] for scan in self._scans} | {name for name, _ in self._failures}
        folders = [path.parent for path in self.path.parent.glob(f"*/{NodulesJson.filename}") if read_record(path)]
        scans = [self._former(f) for f in folders if is_name(f.name) and f.name not in known]
        if stamp(self.path) == self._before or not self._is_former():
            return scans, []
        known |= {scan["name"] for scan in scans}
        found = _REFUSED.findall(self.path.read_text(encoding="utf-8"))
        return scans, [(unescape(name), unescape(reason)) for name, reason in found if unescape(name) not in known]

    def _is_former(self) -> bool:
        return self.path.is_file() and _GENERATOR in self.path.read_bytes()
