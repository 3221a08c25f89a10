"""Nodules of a datalist item: from boxes in world millimetres to points in voxels, and to a fixed number of rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from ..geometry import apply_affine, swap_lps_ras

NODULE = 0  # label of a nodule in datalists (MONAI's own LUNA16 folds use it)
IGNORED = 1  # a finding that is neither nodule nor background: no loss there, neither hit nor false finding
PADDING = -1  # a row that is not there


class BoxesToNodulesd(Transform):
    """Replace ``box`` (``[[x, y, z, w, h, d], …]``, centre and size, LPS mm) by ``nodule`` in voxels of an image.

    Writes ``nodule`` ``[N, 4]`` float32 (i, j, k of the centre in voxels of the image, diameter in mm) and ``label``
    ``[N]`` int64 (:data:`NODULE` or :data:`IGNORED`). An item without boxes gives ``[0, 4]`` and ``[0]``.
    The diameter is the mean of the box's three sizes. A row's number + 1 is its value in the instance mask.

    Args:
        image_key: the MetaTensor whose affine (RAS) decides.
    """

    def __init__(self, image_key: str = "image") -> None:
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        boxes = np.asarray(item.pop("box", []), dtype=np.float64).reshape(-1, 6)
        to_voxel = np.linalg.inv(np.asarray(item[self.image_key].affine, dtype=np.float64))
        centres = apply_affine(to_voxel, swap_lps_ras(boxes[:, :3]))
        item["nodule"] = np.concatenate([centres, boxes[:, 3:].mean(axis=1, keepdims=True)], axis=1).astype(np.float32)
        item["label"] = np.asarray(item.get("label", [NODULE] * len(boxes)), dtype=np.int64).reshape(-1)
        if len(item["label"]) != len(boxes):
            raise ValueError(
                f"{item.get('name', item[self.image_key].meta.get('filename_or_obj'))}: expected one label per box, "
                f"got {len(boxes)} boxes and {len(item['label'])} labels; correct the datalist"
            )
        return item


class PadNodulesd(Transform):
    """Pad ``nodule`` and ``label`` to a fixed number of rows, so that items of a batch stack.

    Args:
        rows: at least the most nodules an item holds.

    Raises:
        ValueError: an item has more.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        count = len(item["label"])
        if count > self.rows:
            raise ValueError(f"expected at most {self.rows} nodules in a crop, got {count}; raise PadNodulesd's rows")
        nodule = torch.zeros(self.rows, 4)
        label = torch.full((self.rows,), PADDING, dtype=torch.int64)
        nodule[:count] = torch.as_tensor(item["nodule"])
        label[:count] = torch.as_tensor(item["label"])
        item["nodule"], item["label"] = nodule, label
        return item
