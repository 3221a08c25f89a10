"""One inference run over many scans: which scans there are, what is written, what failed, how it ends.

A scan that cannot be read or written is named in one line and the others go on; the run then ends with exit code 1.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.transforms import Transform
from torch.utils.data import IterableDataset

from .dicom_series import read_identity
from .errors import UserError, checked_switch, reason_of, user_error_in
from .findings import LungRegion, ScanResult
from .reader import FILE_SEPARATOR, find_scans
from .reports import ResultWriter, RunIndex, summary_table

logger = logging.getLogger(__name__)


class OverrideError(UserError, ValueError):
    """A command-line override that names nothing in the configuration."""


class RunLog:
    """What became of each scan of a run.

    Args:
        index: the page that lists them, written at the end; ``None`` for none.
    """

    def __init__(self, index: RunIndex | None = None) -> None:
        self.index = index
        self.folders: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        self._begun: dict[str, float] = {}

    def begun(self, name: str) -> None:
        """A scan is about to be read."""
        self._begun[name] = time.monotonic()

    def seconds_since_begun(self, name: str) -> float | None:
        """``None`` for a scan whose begin was not told."""
        return time.monotonic() - self._begun[name] if name in self._begun else None

    def finished(self, result: ScanResult, folder: Path) -> None:
        self.folders[result.name] = folder
        if self.index is not None:
            self.index.add(result, folder)
        logger.info("%s\n%s\nreport: %s", result.name, summary_table([result]), folder / "report.html")

    def failed(self, name: str, error: Exception, source: str = "") -> None:
        """Keep and show the message, once; an error that is not the user's is logged with its traceback.

        ``source`` is the scan's file or folder, which the page of the run shows without the folders above it.
        """
        self.failures[name] = reason_of(error)
        if self.index is not None:
            self.index.add_failure(name, self.failures[name], source)
        if user_error_in(error) is None:
            logger.error("%s: unexpected error", name, exc_info=error)
        print(f"error: {name}: {self.failures[name]}", file=sys.stderr)

    def close(self) -> None:
        """Write the page of the run and say how it went.

        Raises:
            SystemExit: code 1, when a scan failed or there was none.
            OutputError: the page cannot be written.
        """
        page = self.index.write(self._seconds()) if self.index is not None else None
        refused = f" ({', '.join(self.failures)})" if self.failures else ""
        see = f"; see {page}" if page else ""
        print(f"{len(self.folders)} scans searched, {len(self.failures)} refused{refused}{see}")
        if self.failures or not self.folders:
            raise SystemExit(1)

    def _seconds(self) -> float | None:
        return time.monotonic() - min(self._begun.values()) if self._begun else None


class ScanStream(IterableDataset):
    """The scans below an input, one after the other, preprocessed; a refused scan is logged and left out.

    Args:
        source: what :func:`.reader.find_scans` takes: file, folder or datalist.
        series: which DICOM series of a study ("auto", "all" or a SeriesInstanceUID).
        transform: preprocessing of one item.
        log: where failures go.
    """

    def __init__(self, source: str, series: str, transform: Callable[[Any], Any], log: RunLog) -> None:
        self.source, self.series, self.transform, self.log = str(source), str(series), transform, log

    def __iter__(self) -> Iterator[Any]:
        try:
            items = find_scans(self.source, series=self.series)
        except UserError as error:
            self.log.failed(self.source, error, self.source)
            return
        for number, item in enumerate(items, start=1):
            logger.info("scan %d of %d: %s", number, len(items), item["name"])
            self.log.begun(item["name"])
            try:
                ready = self.transform(item)
            except Exception as error:
                self.log.failed(item["name"], error, str(item["source"]))
            else:
                yield ready


class WriteResultd(Transform):
    """Make a :class:`.findings.ScanResult` of an item and write it; a failure is logged and the run goes on.

    Reads ``name``, ``source``, ``notes`` (of the list), ``scan`` (with ``facts``, ``notes`` and ``source_files`` in
    its meta), ``nodules``, ``mask``, ``candidates``, ``outside_lungs``, ``lungs_found``, ``lung_distance_mm`` (with its
    affine).

    Args:
        writer: writes all files of a scan.
        log: told about each scan.
        model: facts about bundle and weights, shown in the reports.
        settings: of this run, shown in the reports.
        show_identity: whether the reports may say who was examined (known of DICOM only).
    """

    def __init__(
        self,
        writer: ResultWriter,
        log: RunLog,
        model: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        show_identity: bool = False,
    ) -> None:
        self.writer, self.log = writer, log
        self.model, self.settings = dict(model), dict(settings)
        self.show_identity = checked_switch("show_identity", show_identity)

    def result(self, item: Mapping[Hashable, Any]) -> ScanResult:
        """The record of one scan."""
        scan = item["scan"]
        source_files = tuple(file for file in scan.meta["source_files"].split(FILE_SEPARATOR) if file)
        notes = [n for text in (item["notes"], scan.meta["notes"]) for n in str(text).split("\n") if n]
        return ScanResult(
            name=str(item["name"]),
            source=str(item["source"]),
            image_hu=np.asarray(scan.as_tensor()[0]),
            affine_ras=np.asarray(scan.affine, dtype=np.float64),
            mask=item["mask"],
            nodules=tuple(item["nodules"]),
            candidates=tuple(item["candidates"]),
            outside_lungs=int(item["outside_lungs"]),
            lungs_found=bool(item["lungs_found"]),
            facts={str(k): str(v) for k, v in scan.meta["facts"].items()},
            notes=tuple(dict.fromkeys(notes)),
            model=self.model,
            settings=self.settings,
            seconds=self.log.seconds_since_begun(str(item["name"])),
            lungs=_lung_region(item),
            identity=read_identity(source_files[0]) if self.show_identity and source_files else {},
            source_files=source_files,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        try:
            result = self.result(item)
            self.log.finished(result, self.writer(result))
        except Exception as error:
            self.log.failed(str(item["name"]), error, str(item["source"]))
        return {"name": item["name"]}


def _lung_region(item: Mapping[Hashable, Any]) -> LungRegion | None:
    if not item["lungs_found"]:
        return None
    distance = item["lung_distance_mm"]
    affine_ras = np.asarray(distance.affine, dtype=np.float64)
    return LungRegion(np.asarray(distance.as_tensor()[0], dtype=np.float32), affine_ras)


def bundle_facts(bundle_root: str, checkpoint: str) -> dict[str, str]:
    """Name and version of the bundle, and which weights: for the reports."""
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights = Path(checkpoint)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12] if weights.is_file() else "none"
    return {"name": metadata["name"], "version": metadata["version"], "weights": f"{weights.name} (sha256 {digest})"}


def check_overrides(arguments: Sequence[str] | None = None) -> None:
    """Refuse an override on the command line of ``monai.bundle run`` that names nothing in its configuration.

    MONAI adds such a name to the configuration, where nothing reads it.

    Args:
        arguments: the command line; default this process's. Without ``--config_file`` nothing is checked.

    Raises:
        OverrideError: unknown names, each with the closest known one.
    """
    own = {n for n, p in inspect.signature(monai.bundle.run).parameters.items() if p.kind is not p.VAR_KEYWORD}
    given = _options(sys.argv[1:] if arguments is None else arguments)
    if "config_file" not in given:
        return
    parser = ConfigParser(ConfigParser.load_config_files(DefaultParseValue(given["config_file"])))
    unknown = [name for name in given if name not in own and name.replace("#", "::") not in parser]
    if unknown:
        known = [str(name) for name in parser.get() if not str(name).startswith("_")]
        hints = [f"--{n} (did you mean {', '.join(difflib.get_close_matches(n, known, 2)) or '…'}?)" for n in unknown]
        raise OverrideError(
            f"expected overrides that exist in {given['config_file']}, got {'; '.join(hints)}. "
            f"Top-level names: {', '.join(known)}."
        )


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` of a command line; a value may begin with a single dash."""
    options: dict[str, str] = {}
    for position, word in enumerate(arguments):
        if re.match("--?[A-Za-z_]", word):  # fire takes one dash or two; "-3" is a value
            name, equals, value = word.lstrip("-").partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            options[name.replace("-", "_")] = value if equals else following
    return options
