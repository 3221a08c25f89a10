"""What MONAI Deploy's bundle operator asks for: a volume that is in memory already, and one mask on its grid.

The operator hands every tensor of the preprocessed item to the inferer; what only the later steps need of the scan
therefore goes from one transform to the other inside :data:`KEPT`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

KEPT, DISTANCE = "kept", "lung_distance_mm"


class ScanFromArrayd(MapTransform):
    """Preprocess a volume of HU that another program has read.

    Args:
        keys: the volume, ``[I, J, K]`` or ``[1, I, J, K]`` with its affine to RAS mm; one key.
        preprocessing: all steps after reading.
    """

    def __init__(self, keys: KeysCollection, preprocessing: Callable[[Any], Any]) -> None:
        super().__init__(keys)
        self.preprocessing = preprocessing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        (key,) = self.keys
        volume = data[key]
        scan = torch.as_tensor(np.asarray(volume)).round().to(torch.int16).reshape(1, *volume.shape[-3:])
        item = self.preprocessing({"image": MetaTensor(scan, affine=torch.as_tensor(np.asarray(volume.affine)))})
        item[key] = item.pop("image")
        item[KEPT] = {name: item.pop(name) for name in list(item) if name != key}
        return {**item, DISTANCE: item[KEPT][DISTANCE]}


class MaskAsPredictiond(MapTransform):
    """Turn the maps into the instance mask ``[1, I, J, K]`` of the scan's own grid; n is nodule n.

    Args:
        keys: where the maps are and the mask goes; one key.
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
