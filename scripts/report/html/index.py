"""The page of a run: every scan with a link to its report, what was refused and why, how large the findings are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

from ...core.claims import claims_on
from ...core.files import OutputError, is_name, read_record, stamp, writable_folder, write_bytes
from ...core.paths import printable
from ...core.records import ScanResult
from ...read.scan import IMAGE_SUFFIXES
from ..tables import NodulesJson, published_source, source_name
from .page import HtmlReport
from .render import render_page

# By this a page of a former run is told from somebody's own.
_GENERATOR = b'<meta name="generator" content="lung nodule run">'
_REFUSED = re.compile(r"<li><strong>([^<]*)</strong><span>([^<]*)</span></li>")  # of the page's template
_BIN_MM = 2
_LAST_BIN_MM = 30


@dataclass(frozen=True)
class ScanRow:
    """What the page keeps of one scan.

    Attributes:
        name: also the result folder's name.
        source: file or folder, without the folders above it.
        link: to the report, or to the folder where there is none; relative to the page.
        diameters_mm: of the findings, the network's estimate.
        highest: the highest probability of a finding; ``None`` without findings.
        notes: what the report says about the scan.
        seconds: from reading to writing; ``None`` when it was not measured.
    """

    name: str
    source: str
    link: str
    diameters_mm: tuple[float, ...]
    highest: float | None
    notes: tuple[str, ...]
    seconds: float | None


@dataclass(frozen=True)
class Bin:
    """Findings of one size class of the histogram: ``label`` in mm, ``count``."""

    label: str
    count: int


class RunIndex:
    """Collects what became of each scan; writes ``index.html`` when there are several, or one was refused.

    The page lists the scans of this run in their order, then the other results that stand in the folder, and what
    runs that shared the folder meanwhile have refused.

    Args:
        output_dir: the folder of the run.
        date: shown as the day of the run; ``None`` for today (UTC).

    Raises:
        OutputError: ``output_dir`` holds an ``index.html`` that is no page of a former run.
    """

    filename = "index.html"

    def __init__(self, output_dir: str | os.PathLike[str], date: str | None = None) -> None:
        self.path = writable_folder(output_dir) / self.filename
        self.date = date
        self.order: tuple[str, ...] = ()
        self._before = stamp(self.path)
        self._scans: list[ScanRow] = []
        self._failures: list[tuple[str, str]] = []
        if self.path.exists() and not self._is_former():
            raise OutputError(
                f"{self.path}: expected nothing or the page of a former run, got another file. "
                "Move it or choose another output_dir."
            )

    def add(self, result: ScanResult, folder: Path) -> None:
        """A scan was searched and its results lie in ``folder``."""
        probabilities = [nodule.detection.probability for nodule in result.nodules]
        self._scans.append(
            ScanRow(
                name=result.name,
                source=published_source(result),
                link=self._link(folder),
                diameters_mm=tuple(nodule.detection.diameter_mm for nodule in result.nodules),
                highest=max(probabilities, default=None),
                notes=result.notes,
                seconds=result.seconds,
            )
        )

    def add_former(self, folder: Path) -> None:
        """The result of an earlier run in ``folder`` stands for a scan of this one."""
        record = read_record(folder / NodulesJson.filename)
        nodules = record.get("nodules", ())
        self._scans.append(
            ScanRow(
                name=folder.name,
                source=str(record.get("source", "")),
                link=self._link(folder),
                diameters_mm=tuple(float(nodule["diameter_mm"]) for nodule in nodules),
                highest=max((float(nodule["probability"]) for nodule in nodules), default=None),
                notes=("searched by an earlier run", *record.get("notes", ())),
                seconds=None,
            )
        )

    def add_failure(self, name: str, reason: str, source: str = "") -> None:
        """A scan was refused; folders may tell who the patient is and are left out."""
        is_file = source.lower().endswith((*IMAGE_SUFFIXES, ".json"))
        short = source_name(source) if is_file else "the input"
        name, reason = (text.replace(printable(source), short) if source else text for text in (name, reason))
        self._failures.append((name, reason))

    def write(self, seconds: float | None = None) -> Path | None:
        """Write the page; for a single result, not refused, there is none, and a former one is removed.

        Args:
            seconds: the run took.

        Returns:
            The page, or ``None``.

        Raises:
            OutputError: it cannot be written.
        """
        with claims_on(self.path.parent).lock():
            own = self._scans, self._failures
            try:
                self._add_others()
                if len(self._scans) + len(self._failures) < 2 and not self._failures:
                    self.path.unlink(missing_ok=True)
                    return None
                return write_bytes(self.path, self.render(seconds).encode())
            finally:
                self._scans, self._failures = own

    def render(self, seconds: float | None = None) -> str:
        """The page as text."""
        scans = sorted(self._scans, key=lambda scan: self._place(scan.name))
        diameters_mm = [diameter for scan in scans for diameter in scan.diameters_mm]
        return render_page(
            "index",
            scans=scans,
            failures=sorted(self._failures, key=lambda failure: self._place(failure[0])),
            bins=size_bins(diameters_mm),
            findings=len(diameters_mm),
            seconds=seconds,
            date=self.date or datetime.now(UTC).date().isoformat(),
        )

    def _place(self, name: str) -> tuple[int, str]:
        """What rows are sorted by: scans of this run in their order, then others by name."""
        return (self.order.index(name), "") if name in self.order else (len(self.order), name)

    def _add_others(self) -> None:
        """Rows of results that other runs have written, and what those that ran beside this one have refused."""
        self._scans, self._failures = list(self._scans), list(self._failures)
        known = {scan.name for scan in self._scans} | {name for name, _ in self._failures}
        for record in sorted(self.path.parent.glob(f"*/{NodulesJson.filename}")):
            if is_name(record.parent.name) and record.parent.name not in known and read_record(record):
                known.add(record.parent.name)
                self.add_former(record.parent)
        if stamp(self.path) != self._before and self._is_former():
            text = self.path.read_text(encoding="utf-8")
            refused = [(unescape(name), unescape(reason)) for name, reason in _REFUSED.findall(text)]
            self._failures += [(name, reason) for name, reason in refused if name not in known]

    def _link(self, folder: Path) -> str:
        """From the page to a scan's report, or to its folder where there is none."""
        report = folder / HtmlReport.filename
        target = report if report.exists() else folder
        return Path(os.path.relpath(target, self.path.parent)).as_posix()

    def _is_former(self) -> bool:
        return self.path.is_file() and _GENERATOR in self.path.read_bytes()


def size_bins(diameters_mm: Sequence[float]) -> list[Bin]:
    """Counts per 2 mm from 0 to 30 mm, and of all above; empty without findings."""
    if not diameters_mm:
        return []
    edges = range(0, _LAST_BIN_MM, _BIN_MM)
    bins = [Bin(f"{low}–{low + _BIN_MM}", sum(low <= d < low + _BIN_MM for d in diameters_mm)) for low in edges]
    return [*bins, Bin(f"≥ {_LAST_BIN_MM}", sum(d >= _LAST_BIN_MM for d in diameters_mm))]
