"""The scans of a run, one after another: while one is searched, the next is read.

A scan that cannot be read is reported in one line and left out; the others continue. Several runs may share an output
folder.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from ..core.claims import BusyError
from ..core.errors import SettingError, UserError
from ..core.paths import printable
from ..read.discovery import find_scans
from ..report import Fingerprint, ResultWriter, input_digest
from .log import RunLog

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # between two checks of the scans that another process is searching


class FinishedResults:
    """Find scans that need no search because a result from the same input, model and settings already exists.

    Each call that returns ``None`` also claims the scan for this process, so that several runs with one output folder
    share the scans. The writer releases the claim once the result is written; whoever gives a scan up before releases
    it with ``writer.claims.release``.

    Args:
        writer: knows where the results are.
        model, settings: of this run, as given to :class:`WriteResultd`.
    """

    def __init__(self, writer: ResultWriter, model: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.writer, self.model, self.settings = writer, model, settings
        self._met: set[str] = set()  # scans that another process was searching at some point

    def __call__(self, name: str, digest: str) -> Path | None:
        """Return the folder of a complete result; otherwise claim the scan and return ``None``.

        If results are to be replaced, only one that another process was writing when this one came to it counts.

        Raises:
            BusyError: another process is searching the scan.
            OtherClaimError: another process is searching a different scan of this name.
            OutputError: a result made from something else, or other files, are in the way.
        """
        try:
            self.writer.claims.take(name, digest)
        except BusyError:
            self._met.add(name)
            raise
        mine = Fingerprint(digest, self.model, self.settings)
        needs_search = False
        try:
            self.writer.refuse_another(name, mine)
            is_to_replace = self.writer.overwrite and name not in self._met
            needs_search = is_to_replace or not self.writer.is_complete(name, mine)
        finally:
            if not needs_search:
                self.writer.claims.release(name)
        return None if needs_search else self.writer.folder(name)


class ScanStream(IterableDataset):
    """The scans of an input, preprocessed one after another; refused and finished ones are logged and left out.

    Args:
        source: what :func:`..read.discovery.find_scans` takes: file, folder or datalist.
        series: which DICOM series of a study ("auto", "all" or a SeriesInstanceUID).
        transform: preprocessing of one item, which includes its ``input_digest`` (:func:`..report.input_digest`).
        log: records failures.
        ahead: number of scans that are prepared, in as many threads, while one is searched.
        finished: leaves out scans that need no search and claims the others; those that the log records as failures, in
            whichever step, are released. With ``None``, all scans are searched and none is claimed.
    """

    def __init__(
        self,
        source: str,
        series: str,
        transform: Callable[[Any], Any],
        log: RunLog,
        *,
        ahead: int = 0,
        finished: FinishedResults | None = None,
    ) -> None:
        self.source, self.series, self.transform, self.log = str(source), str(series), transform, log
        self.ahead, self.finished = int(ahead), finished
        self._left: list[Any] = []  # items that another process is searching
        if finished is not None:
            log.on_failure = finished.writer.claims.release

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise SettingError(
                "dataloader: expected scans to be read in this process, got worker processes; use the num_workers of "
                "scripts.infer.ScanLoader, which are threads."
            )
        try:
            items = find_scans(self.source, series=self.series)
        except UserError as error:
            self.log.failed(printable(self.source), error, self.source)
            return
        self.log.expect([item["name"] for item in items])
        yield from (item for item in tqdm(self._all(items), "scans", len(items), disable=None) if item is not None)

    def _all(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yield what :meth:`_prepare` returns; scans of other processes come last, once those have finished or died."""
        yield from self._prepared_ahead(items) if self.ahead else map(self._prepare, items)
        while self._left:
            time.sleep(WAIT_S)
            items, self._left = self._left, []
            yield from map(self._prepare, items)

    def _prepared_ahead(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yield what :meth:`_prepare` returns for each item, preparing some while an earlier one is in use."""
        coming: deque[Future[Any]] = deque()
        pool = ThreadPoolExecutor(self.ahead, "read")
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
        """Preprocess one item; ``None`` for a scan that is refused, finished or being searched by another process."""
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


class ScanLoader(DataLoader):
    """Pass on one scan at a time, as prepared by the stream.

    Args:
        dataset: the scans.
        num_workers: least number of scans that are prepared ahead, in threads: a separate process would have to copy
            each scan and its outcome.
    """

    def __init__(self, dataset: ScanStream, num_workers: int = 0) -> None:
        dataset.ahead = max(dataset.ahead, num_workers)
        super().__init__(dataset, batch_size=1, num_workers=0, collate_fn=itemgetter(0))  # nothing is copied
