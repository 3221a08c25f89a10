"""What MONAI Label asks of a detection bundle: one preprocessing that keeps its request, a detector, boxes.

MONAI Label runs these steps itself: preprocessing on ``{"image": path, …request}``, ``detector(image)`` with a network
that it has loaded, and postprocessing to ``box`` and ``label``, which its writer turns into ROIs for Slicer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor, nn

from ..core.errors import SettingError
from ..core.records import Nodule
from ..read.reader import find_scans

DISTANCE = "lung_distance_mm"  # rides on the image's metadata: the detector gets the image alone


class PreprocessRequestd(Transform):
    """Preprocess the image that a request names; the rest of the request stays.

    Args:
        preprocessing: of one item of :func:`..read.reader.find_scans`.
    """

    def __init__(self, preprocessing: Callable[[Any], Any]) -> None:
        self.preprocessing = preprocessing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = self.preprocessing(find_scans(str(data["image"]))[0])
        item["image"].meta[DISTANCE] = item[DISTANCE]
        return {**data, **item}


class LabelDetector:
    """Maps of a whole scan; MONAI Label sets :attr:`network` before each call.

    Args:
        inferer: gives the maps; told ``lung_distance_mm``.
    """

    def __init__(self, inferer: Callable[..., Any]) -> None:
        self.inferer = inferer
        self.network: nn.Module | None = None

    def __call__(self, inputs: Tensor, use_inferer: bool = True) -> Any:
        """Search ``[1, 1, I, J, K]``; ``use_inferer`` is what MONAI's own detectors take, windows are used anyway."""
        if self.network is None:
            raise SettingError("detector: expected a network in .network, got none; set it before the call")
        distance = inputs.meta.get(DISTANCE) if isinstance(inputs, MetaTensor) else None
        return self.inferer(inputs, self.network, lung_distance_mm=distance)


class BoxesForLabeld(Transform):
    """``nodules`` as ``box`` ``[N, 6]``, centre and size in LPS mm, and ``label`` ``[N]``, all 0 (nodule)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        nodules: Sequence[Nodule] = data["nodules"]
        found = [nodule.detection for nodule in nodules]
        boxes = torch.tensor([[*one.centre_lps_mm, *[one.diameter_mm] * 3] for one in found], dtype=torch.float64)
        return {**data, "box": boxes.reshape(-1, 6), "label": torch.zeros(len(found), dtype=torch.int64)}
