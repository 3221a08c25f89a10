"""One inference run over many scans: which scans there are, what is written, what failed, how it ends.

A scan that cannot be read, searched or written is named in one line and the others go on; the run then ends with exit
code 1. While one scan is searched, the next is read and the last is written: three are in memory, never more (unless
more are asked for by ``num_workers``). Several runs may share an output folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.transforms import Transform
from monai.utils import CommonKeys
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from ..core.claims import BusyError
from ..core.errors import SettingError, UserError, is_command_line, reason_of, user_error_in
from ..core.paths import printable
from ..core.records import ScanResult, SearchRegion
from ..core.text import parse_bool
from ..read.dicom_header import read_identity
from ..read.reader import FILE_SEPARATOR, find_scans
from ..read.scan import published_reason
from ..report import Fingerprint, ResultWriter, RunIndex, input_digest, summary

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # between two looks at scans that another process searches


class RefusedScansError(UserError, RuntimeError):
    """A run that left scans out, or found none."""


class RunLog:
    """What became of each scan of a run.

    Args:
        index: the page that lists them, written at the end; ``None`` for none.
    """

    def __init__(self, index: RunIndex | None = None) -> None:
        self.index = index
        self.folders: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        self.found: list[str] = []
        self.writing: Future[None] | None = None  # of a scan, in another thread
        self.when_failed: Callable[[str], object] | None = None  # told the name of each scan that is given up
        self._order: tuple[str, ...] = ()
        self._begun: dict[str, float] = {}

    def expect(self, names: Sequence[str]) -> None:
        """The scans of the run, in the order in which they are to be listed."""
        self._order = tuple(names)
        if self.index is not None:
            self.index.order = self._order

    def begun(self, name: str) -> None:
        """A scan is about to be read."""
        self._begun[name] = time.monotonic()

    def seconds_since_begun(self, name: str) -> float | None:
        """``None`` for a scan whose begin was not told."""
        return time.monotonic() - self._begun[name] if name in self._begun else None

    def wait(self) -> None:
        """Until everything is written."""
        if self.writing is not None:
            self.writing.result()

    def finished(self, result: ScanResult, folder: Path) -> None:
        self.folders[result.name] = folder
        if self.index is not None:
            self.index.add(result, folder)
        logger.info("%s\n%s\nreport: %s", result.name, summary(result), folder / "report.html")

    def skipped(self, name: str, folder: Path) -> None:
        """A scan whose result stands there already, in ``folder``."""
        self.found.append(name)
        if self.index is not None:
            self.index.add_former(folder)
        logger.info("%s: searched before, with the same settings; --overwrite true searches it again", name)

    def failed(self, name: str, error: Exception, source: str = "") -> None:
        """Keep and show the message, once; an error that is not the user's is logged with its traceback.

        ``source`` is the scan's file or folder, which the page of the run shows without the folders above it.
        """
        self.failures[name] = reason_of(error)
        if self.when_failed is not None:
            self.when_failed(name)
        if self.index is not None:
            self.index.add_failure(name, published_reason(error), source)
        if user_error_in(error) is None:
            logger.error("%s: unexpected error", name, exc_info=error)
        print(f"error: {name}: {self.failures[name]}", file=sys.stderr)

    def close(self) -> None:
        """Write the page of the run and say how it went, once everything is written.

        Raises:
            SystemExit: code 1 on the command line, when a scan failed or there was none.
            RefusedScansError: the same in any other program.
            OutputError: the page cannot be written.
        """
        self.wait()
        page = self.index.write(self._seconds()) if self.index is not None else None
        ordered = sorted(self.failures, key=lambda name: self._order.index(name) if name in self._order else -1)
        refused = f" ({', '.join(ordered)})" if ordered else ""
        found = f" {len(self.found)} searched before," if self.found else ""
        see = f"; see {page}" if page else ""
        print(printable(f"{len(self.folders)} scans searched,{found} {len(self.failures)} refused{refused}{see}"))
        if self.failures or not (self.folders or self.found):
            if is_command_line():
                raise SystemExit(1)
            raise RefusedScansError(
                "; ".join(f"{name}: {reason}" for name, reason in self.failures.items()) or "no scan"
            )

    def _seconds(self) -> float | None:
        return time.monotonic() - min(self._begun.values()) if self._begun else None


class FinishedResults:
    """Tells scans that need no search: their result stands there already, made from the same input, model and settings.

    All others are claimed for this process; several that share an output folder share the scans.

    Args:
        writer: where results are.
        model, settings: of this run, as :class:`WriteResultd` gets them.
    """

    def __init__(self, writer: ResultWriter, model: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.writer, self.model, self.settings = writer, model, settings
        self._met: set[str] = set()  # scans that another process was searching

    def __call__(self, name: str, digest: str) -> Path | None:
        """The folder of a finished result, ``None`` for none; see :meth:`..report.ResultWriter.finished`.

        Raises:
            BusyError: another process searches the scan at the moment.
            OtherClaimError: another process searches another scan of this name at the moment.
        """
        claims = self.writer.claims
        try:
            claims.take(name, digest)
        except BusyError:
            self._met.add(name)
            raise
        try:
            mine = Fingerprint(digest, self.model, self.settings)
            finished = self.writer.finished(name, mine, is_new=name in self._met)
        except BaseException:
            claims.release(name)
            raise
        if finished:
            claims.release(name)
        return self.writer.folder(name) if finished else None

    def release(self, name: str) -> None:
        """Leave a scan to other processes."""
        self.writer.claims.release(name)


class ScanStream(IterableDataset):
    """The scans below an input, one after the other, preprocessed; refused and finished ones are logged and left out.

    Args:
        source: what :func:`..read.reader.find_scans` takes: file, folder or datalist.
        series: which DICOM series of a study ("auto", "all" or a SeriesInstanceUID).
        transform: preprocessing of one item, which has its ``input_digest`` (:func:`..report.input_digest`).
        log: where failures go.
        ahead: so many scans are prepared in as many threads while one is searched.
        finished: the result folder of a scan of this name and digest that needs no search; ``None``: all need one.
    """

    def __init__(
        self,
        source: str,
        series: str,
        transform: Callable[[Any], Any],
        log: RunLog,
        *,
        ahead: int = 0,
        finished: Callable[[str, str], Path | None] | None = None,
    ) -> None:
        self.source, self.series, self.transform, self.log = str(source), str(series), transform, log
        self.ahead, self.finished = int(ahead), finished
        self._left: list[Any] = []  # items that another process searches
        if isinstance(finished, FinishedResults):
            log.when_failed = finished.release

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise SettingError(
                "dataloader: expected scans to be read in this process, got worker processes; use the num_workers of "
                "scripts.infer.run.ScanLoader, which are threads."
            )
        try:
            items = find_scans(self.source, series=self.series)
        except UserError as error:
            self.log.failed(printable(self.source), error, self.source)
            return
        self.log.expect([item["name"] for item in items])
        yield from (item for item in tqdm(self._all(items), "scans", len(items), disable=None) if item is not None)

    def _all(self, items: Sequence[Any]) -> Iterator[Any]:
        """What :meth:`_prepare` makes of the items; those of other processes last, when these are done or gone."""
        while items:
            self._left = []
            yield from self._prepared_ahead(items) if self.ahead else map(self._prepare, items)
            items = self._left
            if items:
                time.sleep(WAIT_S)

    def _prepared_ahead(self, items: Sequence[Any]) -> Iterator[Any]:
        """The items as :meth:`_prepare` leaves them; some are prepared while the one before them is in use."""
        pool = ThreadPoolExecutor(self.ahead, "read")
        coming: deque[Future[Any]] = deque()
        try:
            for item in items:
                coming.append(pool.submit(self._prepare, item))
                if len(coming) > self.ahead:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, item: Any) -> Any:
        """One preprocessed item, ``None`` for a scan that is refused, finished or searched by another process."""
        images = [item["image"]] if isinstance(item["image"], str) else item["image"]
        try:
            digest = input_digest([*images, *([item["lung_mask"]] if "lung_mask" in item else [])])
            if self.finished is not None and (folder := self.finished(item["name"], digest)) is not None:
                self.log.skipped(item["name"], folder)
                return None
            logger.info("reading %s", item["name"])
            self.log.begun(item["name"])
            return self.transform({**item, "input_digest": digest})
        except BusyError:
            self._left.append(item)
            return None
        except Exception as error:
            self.log.failed(item["name"], error, str(item["source"]))
            return None


def one_scan(items: Sequence[Any]) -> Any:
    """What the data loader makes of a batch of one item: the item, nothing is copied."""
    (item,) = items
    return item


class ScanLoader(DataLoader):
    """Hands over one scan a time, as the stream prepares them.

    Args:
        dataset: the scans.
        num_workers: so many scans at least are prepared ahead, in threads: a process of its own would have to copy
            each scan, and what became of it.
    """

    def __init__(self, dataset: ScanStream, num_workers: int = 0) -> None:
        dataset.ahead = max(dataset.ahead, num_workers)
        super().__init__(dataset, batch_size=1, num_workers=0, collate_fn=one_scan)


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, one preprocessed scan a time; a failure of network or postprocessing leaves that scan out.

    Batches are single items (:func:`one_scan`), ``decollate`` is off. The inferer gets ``lung_distance_mm``; what it
    remarks joins the item as ``remarks``.

    Args:
        log: where failures go.
        settings: of :class:`monai.engines.SupervisedEvaluator`.
    """

    def __init__(self, *, log: RunLog, **settings: Any) -> None:
        super().__init__(**settings, decollate=False)
        self.log = log

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        try:
            image = batchdata["image"][None].to(engine.state.device)
            with engine.mode(engine.network):
                pred = engine.inferer(image, engine.network, lung_distance_mm=batchdata["lung_distance_mm"])[0]
            remarks = getattr(engine.inferer, "remarks", ())
            engine.state.output = {CommonKeys.PRED: pred, "remarks": remarks}
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.MODEL_COMPLETED)
        except Exception as error:
            self.log.failed(str(batchdata["name"]), error, str(batchdata["source"]))
        engine.state.batch = {}  # room for the scan after the next
        return {}


class WriteResultd(Transform):
    """Make a :class:`..core.records.ScanResult` of an item and write it; a failure is logged and the run goes on.

    Reads ``name``, ``source``, ``notes`` (of the list), ``scan`` (with ``facts``, ``notes`` and ``source_files`` in
    its meta), ``nodules``, ``mask``, ``candidates``, ``outside_lungs``, ``region``, ``lung_distance_mm`` (with its
    affine), ``lung_parts``; ``remarks`` where there are any.

    Args:
        writer: writes all files of a scan.
        log: told about each scan.
        model: facts about bundle and weights, shown in the reports.
        settings: of this run, shown in the reports.
        show_identity: whether the reports may say who was examined (known of DICOM only).
        behind: write in a thread, in the order of the scans; ``log`` waits for it.
    """

    def __init__(
        self,
        writer: ResultWriter,
        log: RunLog,
        model: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        show_identity: bool = False,
        behind: bool = False,
    ) -> None:
        self.writer, self.log = writer, log
        self.model, self.settings = dict(model), dict(settings)
        self.show_identity = parse_bool("show_identity", show_identity)
        self._pool = ThreadPoolExecutor(1, "write") if behind else None

    def result(self, item: Mapping[Hashable, Any]) -> ScanResult:
        """The record of one scan."""
        result = scan_result(item, self.model, self.settings)
        files = result.source_files
        return dataclasses.replace(
            result,
            identity=read_identity(files[0]) if self.show_identity and files else {},
            seconds=self.log.seconds_since_begun(result.name),
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        try:
            result = self.result(data)
        except Exception as error:
            self.log.failed(str(data["name"]), error, str(data["source"]))
        else:
            self._hand_over(result)
        return {"name": data["name"]}

    def _hand_over(self, result: ScanResult) -> None:
        if self._pool is None:
            self._write(result)
        else:
            self.log.wait()
            self.log.writing = self._pool.submit(self._write, result)

    def _write(self, result: ScanResult) -> None:
        try:
            self.log.finished(result, self.writer(result))
        except Exception as error:
            self.log.failed(result.name, error, result.source)


def scan_result(item: Mapping[Hashable, Any], model: Mapping[str, str], settings: Mapping[str, Any]) -> ScanResult:
    """The record of a searched item; see :class:`WriteResultd` for what it holds."""
    scan = item["scan"]
    notes = [n for text in (item["notes"], scan.meta["notes"]) for n in str(text).split("\n") if n]
    notes += item.get("remarks", ())
    return ScanResult(
        name=str(item["name"]),
        source=str(item["source"]),
        image_hu=np.asarray(scan.as_tensor()[0]),
        affine_ras=np.asarray(scan.affine, dtype=np.float64),
        mask=item["mask"],
        nodules=tuple(item["nodules"]),
        candidates=tuple(item["candidates"]),
        outside_lungs=int(item["outside_lungs"]),
        facts={str(k): str(v) for k, v in scan.meta["facts"].items()},
        notes=tuple(dict.fromkeys(notes)),
        model=dict(model),
        settings=dict(settings),
        region=SearchRegion.of(item),
        source_files=tuple(file for file in scan.meta["source_files"].split(FILE_SEPARATOR) if file),
        input_digest=str(item.get("input_digest", "")),
    )


def bundle_facts(bundle_root: str, checkpoint: str, lung_checkpoint: str = "") -> dict[str, str]:
    """Name and version of the bundle, and which weights: for the reports, and to tell results of other weights."""
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    facts = {"name": metadata["name"], "version": metadata["version"], "weights": _named_weights(checkpoint)}
    return facts | ({"lung_weights": _named_weights(lung_checkpoint)} if lung_checkpoint else {})


def _named_weights(checkpoint: str) -> str:
    weights = Path(checkpoint)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12] if weights.is_file() else "none"
    return f"{weights.name} (sha256 {digest})"
