"""One scan to its nodules, in memory: nothing is written, nothing of the process is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.utils import CommonKeys
from torch import nn

from ..core.records import ScanResult
from ..read.reader import ScanError, find_scans
from .run import scan_result


class ScanSearch:
    """The inference graph as a function of one scan.

    Args:
        preprocessing: of one item of :func:`..read.reader.find_scans`.
        network: in evaluation mode, on ``device``.
        inferer: gives the maps of a whole scan; told ``lung_distance_mm``.
        postprocessing: from maps to nodules.
        device: where the network is.
        model, settings: facts that stay with each result.
        series: which DICOM series of a study, see :func:`..read.reader.find_scans`.
    """

    def __init__(
        self,
        *,
        preprocessing: Callable[[Any], Any],
        network: nn.Module,
        inferer: Callable[..., Any],
        postprocessing: Callable[[Any], Any],
        device: torch.device | str,
        model: Mapping[str, str],
        settings: Mapping[str, Any],
        series: str = "auto",
    ) -> None:
        self.preprocessing, self.postprocessing = preprocessing, postprocessing
        self.network, self.inferer, self.device = network.eval(), inferer, device
        self.model, self.settings, self.series = dict(model), dict(settings), series

    def __call__(self, source: str | os.PathLike[str]) -> ScanResult:
        """Search one scan.

        Args:
            source: an image file, a DICOM folder or file, or a datalist or folder of one scan.

        Raises:
            ScanError: no scan, several, or one that must be refused. MONAI's ``Compose`` wraps what the reader raises:
                its ``__cause__`` is the :class:`..core.errors.UserError`.
        """
        scans = find_scans(os.fspath(source), series=self.series)
        if len(scans) > 1:
            names = ", ".join(str(scan["name"]) for scan in scans[:3])
            raise ScanError(f"{source}: expected one scan, got {len(scans)} ({names} …); name one of them.")
        item = self.preprocessing(scans[0])
        with torch.no_grad():
            image = item[CommonKeys.IMAGE][None].to(self.device)
            maps = self.inferer(image, self.network, lung_distance_mm=item["lung_distance_mm"])[0]
        item = self.postprocessing({**item, CommonKeys.PRED: maps, "remarks": getattr(self.inferer, "remarks", ())})
        return scan_result(item, self.model, self.settings)
