"""Thick slices: what is left of a crop if a scanner had averaged it over slices of several millimetres."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import RandomizableTransform

from ..core.geometry import FloatArray
from ..core.labels import IGNORED

THINNEST = 0.8  # of a slice: a smaller nodule looks like a vessel, so it is neither nodule nor background


class RandThickSlicesd(RandomizableTransform):
    """Average a crop of 1 mm voxels over slices across its last axis, and interpolate between them as the search does.

    Reads and writes ``image`` ``[1, I, J, K]`` (HU, float32), ``nodule`` ``[N, 4]`` (i, j, k, diameter mm) and
    ``label`` ``[N]``. Nodules smaller than :data:`THINNEST` of a slice become :data:`IGNORED`. Crops are turned before,
    so that slices lie across any axis of the patient.

    Args:
        prob: share of crops that are changed.
        thickness_mm: range of the slices' thickness, which is also their distance.
    """

    def __init__(self, prob: float, thickness_mm: tuple[float, float]) -> None:
        super().__init__(prob)
        self.thickness_mm = thickness_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            thickness = self.R.uniform(*self.thickness_mm)
            image = np.asarray(item["image"], dtype=np.float32)
            matrix = through_slices(image.shape[-1], thickness, self.R.uniform(-0.5, 0.5) * thickness)
            item["image"] = image @ matrix.T.astype(np.float32)
            item["label"] = np.where(item["nodule"][:, 3] < THINNEST * thickness, IGNORED, item["label"])
        return item


def through_slices(count: int, thickness: float, first: float) -> FloatArray:
    """Return the matrix ``[count, count]`` that averages a line of voxels over slices and interpolates between them.

    Args:
        count: voxels of the line.
        thickness: of the slices and their distance, voxels.
        first: centre of the first slice, voxels; the slice contains the first voxel's centre.

    Example:
        >>> through_slices(4, thickness=2.0, first=0.5) @ [0.0, 0.0, 4.0, 4.0]
        array([0., 1., 3., 4.])
    """
    voxels = np.arange(count)
    centres = np.arange(first, count - 1 + thickness / 2, thickness)
    reach = (thickness + 1.0) / 2.0 - np.abs(voxels - centres[:, None])  # of voxel and slice, each from its centre
    shared = np.clip(reach, 0.0, min(1.0, thickness))
    nearness = np.clip(1.0 - np.abs(voxels[:, None] - centres) / thickness, 0.0, None)
    return np.asarray(_rows_to_one(nearness) @ _rows_to_one(shared))


def _rows_to_one(weights: FloatArray) -> FloatArray:
    return weights / weights.sum(axis=1, keepdims=True)
