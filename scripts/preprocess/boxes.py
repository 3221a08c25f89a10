"""The annotations of a datalist item: from boxes in world mm to positions in voxels, and to a fixed number of rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy import ndimage

from ..core.errors import DataError
from ..core.geometry import apply_affine, spacing_mm, swap_lps_ras
from ..core.labels import NODULE, PADDING

# A mask belongs to another box if its centre is farther from its box's centre than the diameter plus this, or if it is
# longer than twice that distance.
FARTHEST_MM = 5.0


class BoxesToNodulesd(Transform):
    """Replace ``box`` (``[[x, y, z, w, h, d], …]``, centre and size, LPS mm) by ``nodule`` in voxels of ``image``.

    Writes ``nodule`` ``[N, 4]`` float32 (i, j, k of the centre in voxels of the image, diameter in mm) and ``label``
    ``[N]`` int64 (:data:`..core.labels.NODULE` or ``IGNORED``; without labels all are ``NODULE``). An item without
    boxes gives ``[0, 4]`` and ``[0]``. The diameter is the mean of the box's three sizes. If there is a ``mask``
    (``[1, I, J, K]``, on the image's grid), row n has the value n + 1 in it.

    Raises:
        DataError: the numbers of labels and boxes differ, or the values of the mask do not correspond to the rows.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        boxes = np.asarray(item.pop("box", []), dtype=np.float64).reshape(-1, 6)
        to_voxel = np.linalg.inv(np.asarray(item["image"].affine, dtype=np.float64))
        centres = apply_affine(to_voxel, swap_lps_ras(boxes[:, :3]))
        item["nodule"] = np.concatenate([centres, boxes[:, 3:].mean(axis=1, keepdims=True)], axis=1).astype(np.float32)
        item["label"] = np.asarray(item.get("label", [NODULE] * len(boxes)), dtype=np.int64).reshape(-1)
        if len(item["label"]) != len(boxes):
            raise DataError(
                f"{item.get('name', item['image'].meta.get('filename_or_obj'))}: expected one label per box, "
                f"got {len(boxes)} boxes and {len(item['label'])} labels; correct the datalist"
            )
        if "mask" in item:
            _check_mask(item["mask"], item["nodule"])
        return item


def _check_mask(mask: MetaTensor, nodule: npt.NDArray[np.float32]) -> None:
    """Refuse an instance mask whose values do not correspond to the rows; a row without a voxel is allowed.

    Without this check, a mask of 0 and 1, or one in another order, would silently train and score wrong masks.

    Args:
        mask: ``[1, I, J, K]``, value = row + 1.
        nodule: ``[N, 4]``, centre in voxels of that grid, diameter in mm.

    Raises:
        DataError: see above.
    """
    values = np.asarray(mask[0]).astype(np.int32)
    source, mm = mask.meta.get("filename_or_obj", "mask"), spacing_mm(np.asarray(mask.affine))
    advice = "a nodule's value is its number in the datalist, from 1; correct the mask or the datalist's boxes"
    if values.min(initial=0) < 0 or values.max(initial=0) > len(nodule):
        got = f"{values.min()} to {values.max()}"
        raise DataError(f"{source}: expected values 0 to {len(nodule)}, got {got}: {advice}")
    for row, box in enumerate(ndimage.find_objects(values)):
        if box is None:
            continue
        centre = np.argwhere(values[box] == row + 1).mean(axis=0) + [part.start for part in box]
        apart_mm = float(np.linalg.norm((centre - nodule[row, :3]) * mm))
        length_mm = float(max(np.array([part.stop - part.start for part in box]) * mm))
        allowed_mm = float(nodule[row, 3]) + FARTHEST_MM
        if apart_mm > allowed_mm or length_mm > 2.0 * allowed_mm:
            raise DataError(
                f"{source}: expected value {row + 1} around box {row} ({nodule[row, 3]:.0f} mm), got {length_mm:.0f} "
                f"mm of it, its centre {apart_mm:.0f} mm away: {advice}"
            )


class PadNodulesd(Transform):
    """Pad ``nodule`` (with 0) and ``label`` (with ``PADDING``) to a fixed number of rows, so that items can be batched.

    Args:
        rows: number of rows; no item may have more.

    Raises:
        ValueError: an item has more rows.
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
