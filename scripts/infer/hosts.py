"""The inference graph inside other programs: Python (in memory), MONAI Label, MONAI Deploy.

MONAI Label runs the steps itself: preprocessing of ``{"image": path, …request}``, ``detector(image)`` with a network
that it has loaded, and postprocessing to ``box`` and ``label``, which its writer converts to ROIs for Slicer.

MONAI Deploy's bundle operator already has a volume in memory, expects one mask on its grid, and passes every tensor of
the preprocessed item to the inferer. Whatever only the later steps need to know about the scan is therefore passed
between the transforms inside :data:`KEPT`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor, nn

from ..core.errors import SettingError
from ..core.records import ScanResult
from ..read.discovery import only_scan
from ..read.scan import to_hu
from .run import scan_result, search_scan

# In MONAI Label the detector gets only the image, so the distance is passed in the image's metadata.
KEPT, DISTANCE = "kept", "lung_distance_mm"


class ScanSearch:
    """The inference graph as a function of one scan.

    Args:
        preprocessing: of one item of :func:`..read.discovery.find_scans`.
        network: on ``device``; it is switched to evaluation mode.
        inferer: returns the maps of a whole scan; called with ``lung_distance_mm``.
        postprocessing: from maps to nodules.
        device: where the network is.
        model, settings: facts that are stored with each result.
        series: which DICOM series of a study, see :func:`..read.discovery.find_scans`.
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
            source: an image file, a DICOM folder or file, or a datalist or folder with one scan.

        Returns:
            The result of the scan.

        Raises:
            ScanError: there is no scan, there are several, or the scan must be refused. MONAI's ``Compose`` wraps what
                the reader raises: its ``__cause__`` is the :class:`..core.errors.UserError`.
        """
        item = self.preprocessing(only_scan(os.fspath(source), series=self.series))
        with torch.no_grad():
            found = search_scan(item, self.network, self.inferer, self.device)
        item = self.postprocessing({**item, **found})
        return scan_result(item, self.model, self.settings)


class PreprocessRequestd(Transform):
    """Preprocess the image that a request names; the other keys of the request are kept.

    Args:
        preprocessing: of one item of :func:`..read.discovery.find_scans`.
        series: which DICOM series of a study, see :func:`..read.discovery.find_scans`.
    """

    def __init__(self, preprocessing: Callable[[Any], Any], series: str = "auto") -> None:
        self.preprocessing, self.series = preprocessing, series

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Preprocess ``data["image"]``.

        Raises:
            ScanError: there is no scan, there are several, or the scan must be refused.
        """
        item = self.preprocessing(only_scan(str(data["image"]), series=self.series))
        item["image"].meta[DISTANCE] = item[DISTANCE]
        return {**data, **item}


class LabelDetector:
    """Compute the maps of a whole scan; MONAI Label sets :attr:`network` before each call.

    Args:
        inferer: returns the maps; called with ``lung_distance_mm``.
    """

    def __init__(self, inferer: Callable[..., Any]) -> None:
        self.inferer = inferer
        self.network: nn.Module | None = None

    def __call__(self, inputs: Tensor, use_inferer: bool = True) -> Any:
        """Search ``[1, 1, I, J, K]``.

        Args:
            inputs: the preprocessed image.
            use_inferer: accepted because MONAI's own detectors take it; the scan is searched in tiles in any case.

        Raises:
            SettingError: no network was set.
        """
        if self.network is None:
            raise SettingError("detector: expected a network in .network, got none; set it before the call")
        distance = inputs.meta.get(DISTANCE) if isinstance(inputs, MetaTensor) else None
        return self.inferer(inputs, self.network, lung_distance_mm=distance)


class BoxesForLabeld(Transform):
    """Convert ``nodules`` to ``box`` ``[N, 6]``, centre and size in LPS mm, and ``label`` ``[N]``, all 0 (nodule)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = [nodule.detection for nodule in data["nodules"]]
        boxes = torch.tensor([[*one.centre_lps_mm, *[one.diameter_mm] * 3] for one in found], dtype=torch.float64)
        return {**data, "box": boxes.reshape(-1, 6), "label": torch.zeros(len(found), dtype=torch.int64)}


class ScanFromArrayd(MapTransform):
    """Preprocess a volume of HU that another program has read.

    Args:
        keys: key of the volume, ``[I, J, K]`` or ``[1, I, J, K]`` with its affine to RAS mm; exactly one.
        preprocessing: all steps after reading.
    """

    def __init__(self, keys: KeysCollection, preprocessing: Callable[[Any], Any]) -> None:
        super().__init__(keys)
        self.preprocessing = preprocessing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        (key,) = self.keys
        volume = data[key]
        scan = torch.as_tensor(to_hu("image", np.asarray(volume))).reshape(1, *volume.shape[-3:])
        item = self.preprocessing({"image": MetaTensor(scan, affine=torch.as_tensor(np.asarray(volume.affine)))})
        item[key] = item.pop("image")
        item[KEPT] = {name: item.pop(name) for name in list(item) if name != key}
        return {**item, DISTANCE: item[KEPT][DISTANCE]}


class MaskAsPredictiond(MapTransform):
    """Convert the maps to the instance mask ``[1, I, J, K]`` on the scan's own grid; value n is nodule n.

    Args:
        keys: key of the maps, which receives the mask; exactly one.
        postprocessing: from maps to nodules.
    """

    def __init__(self, keys: KeysCollection, postprocessing: Callable[[Any], Any]) -> None:
        super().__init__(keys)
        self.postprocessing = postprocessing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        (key,) = self.keys
        maps = data[key][0] if data[key].ndim == 5 else data[key]
        item = self.postprocessing({**data, **data[KEPT], "pred": torch.as_tensor(np.asarray(maps.cpu()))})
        return {**data, key: torch.from_numpy(np.asarray(item["mask"]).astype(np.int32))[None]}
