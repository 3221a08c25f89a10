"""Searching one scan after another, and writing what was found.

A scan that cannot be searched or written is reported in one line, and the others continue; the run then ends with exit
code 1 (:mod:`.log`). While one scan is searched, the next is read (:mod:`.stream`) and the previous one is written:
three are in memory, never more (unless ``num_workers`` asks for more).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.transforms import Transform
from monai.utils import CommonKeys
from torch import nn

from ..core.records import ScanResult, SearchRegion
from ..core.text import parse_bool
from ..read.dicom_header import read_identity
from ..read.reader import FILE_SEPARATOR
from ..report import ResultWriter
from .log import RunLog


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for one preprocessed scan at a time; if network or postprocessing fail, that scan is left out.

    Batches are single items (:class:`.stream.ScanLoader`), and ``decollate`` is off. What :func:`search_scan` returns
    is added to the item.

    Args:
        log: records failures.
        settings: of :class:`monai.engines.SupervisedEvaluator`.
    """

    def __init__(self, *, log: RunLog, **settings: Any) -> None:
        super().__init__(**settings, decollate=False)
        self.log = log

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> dict[str, Any]:
        try:
            with engine.mode(engine.network):
                engine.state.output = search_scan(batchdata, engine.network, engine.inferer, engine.state.device)
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.MODEL_COMPLETED)
        except Exception as error:
            self.log.failed(str(batchdata["name"]), error, str(batchdata["source"]))
        engine.state.batch = {}  # frees memory for the scan after the next
        return {}


def search_scan(
    item: Mapping[str, Any], network: nn.Module, inferer: Callable[..., Any], device: torch.device | str
) -> dict[str, Any]:
    """Compute the maps of one scan; the caller sets the network's mode and whether gradients are kept.

    Args:
        item: a preprocessed scan with ``image`` and ``lung_distance_mm``.
        network: on ``device``.
        inferer: returns the maps of a whole scan; called with ``lung_distance_mm``.
        device: where the network is.

    Returns:
        The maps as ``pred``, and the inferer's ``remarks``.
    """
    image = item[CommonKeys.IMAGE][None].to(device)
    maps = inferer(image, network, lung_distance_mm=item["lung_distance_mm"])[0]
    return {CommonKeys.PRED: maps, "remarks": getattr(inferer, "remarks", ())}


class WriteResultd(Transform):
    """Make a :class:`..core.records.ScanResult` from an item and write it; a failure is logged and the run continues.

    Reads ``name``, ``source``, ``notes`` (of the datalist), ``scan`` (with ``facts``, ``notes`` and ``source_files`` in
    its metadata), ``nodules``, ``mask``, ``candidates``, ``outside_lungs``, ``region``, ``lung_distance_mm`` (with its
    affine), ``lung_parts``; also ``remarks`` and ``input_digest`` where present. Returns an item with ``name`` only.

    Args:
        writer: writes all files of a scan.
        log: records the outcome of each scan.
        model: facts about bundle and weights, shown in the reports.
        settings: of this run, shown in the reports.
        show_identity: whether the reports may show who was examined (known for DICOM only).
        behind: write in a separate thread, in the order of the scans; ``log`` waits for it.
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
        """Return the record of one scan."""
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
            return {"name": data["name"]}
        if self._pool is None:
            self._write(result)
        else:
            self.log.wait()
            self.log.writing = self._pool.submit(self._write, result)
        return {"name": data["name"]}

    def _write(self, result: ScanResult) -> None:
        try:
            self.log.finished(result, self.writer(result))
        except Exception as error:
            self.log.failed(result.name, error, result.source)


def scan_result(item: Mapping[Hashable, Any], model: Mapping[str, str], settings: Mapping[str, Any]) -> ScanResult:
    """Return the record of a searched item; see :class:`WriteResultd` for its keys."""
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
    """Return name and version of the bundle and which weights it uses, to show in reports and to compare results.

    Args:
        bundle_root: folder of the bundle.
        checkpoint: the network's weights; identified by file name and checksum ("none" if the file is missing).
        lung_checkpoint: the weights of the lung search, likewise; empty for none.
    """
    metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
    facts = {"name": metadata["name"], "version": metadata["version"], "weights": _named_weights(checkpoint)}
    return facts | ({"lung_weights": _named_weights(lung_checkpoint)} if lung_checkpoint else {})


def _named_weights(checkpoint: str) -> str:
    weights = Path(checkpoint)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12] if weights.is_file() else "none"
    return f"{weights.name} (sha256 {digest})"
