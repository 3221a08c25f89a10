"""From the scan's voxels to those of the network: spacing and intensity, in a few passes over the lung box."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, Spacing
from monai.utils.enums import MetaKeys
from nibabel.orientations import aff2axcodes
from torch import Tensor

from ..core.errors import DataError

SAME_GRID = 0.01  # largest difference between elements of two affines, mm: file formats round them
SAME_PLACE = 1e-3  # voxels: a rotation or shear that moves no voxel farther than this is ignored


class ToSpacingd(MapTransform):
    """Resample to another spacing like MONAI's ``Spacingd`` with border padding, and round to int16.

    The grid is MONAI's. If its axes are parallel to those of the image, each axis is interpolated separately, which
    gives the same values up to rounding in a tenth of the time. Sheared grids (gantry tilt) and labels are left to
    MONAI.

    Args:
        keys: images of HU or labels, ``[1, I, J, K]``, of any number type; they become int16.
        pixdim: ``[3]`` spacing, mm.
        modes: "bilinear" or "nearest", one for each key.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self, keys: KeysCollection, pixdim: Sequence[float], modes: Sequence[str], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.modes = list(modes)
        self.spacings = {m: Spacing(pixdim, mode=m, padding_mode="border", dtype=np.float32) for m in set(modes)}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key, mode in self.key_iterator(item, self.modes):
            image = self._resampled(item[key]) if mode == "bilinear" else self.spacings[mode](item[key])
            item[key] = image.round_().to(torch.int16)
        return item

    def _resampled(self, image: MetaTensor) -> MetaTensor:
        spacing = self.spacings["bilinear"]
        planned = cast(MetaTensor, spacing(image, lazy=True))  # computes only the grid
        affine, shape = planned.peek_pending_affine(), tuple(int(n) for n in planned.peek_pending_shape())
        to_source = np.linalg.inv(np.asarray(image.affine, dtype=np.float64)) @ np.asarray(affine, dtype=np.float64)
        scale = np.diag(to_source)[:3]
        if np.abs((to_source[:3, :3] - np.diag(scale)) * shape).max() > SAME_PLACE:
            return cast(MetaTensor, spacing(image))
        values = image.as_tensor()[0]
        fine_first = np.argsort(np.array(shape) / values.shape, kind="stable")  # the axis that shrinks most goes first
        for axis in fine_first.tolist():
            values = _along(values, axis, shape[axis], float(scale[axis]), float(to_source[axis, 3]))
        return MetaTensor(values[None], meta={**image.meta, MetaKeys.AFFINE: affine})


def _along(values: Tensor, axis: int, count: int, scale: float, start: float) -> Tensor:
    """Interpolate linearly along an axis at ``start + scale · n`` for n < count; beyond the ends the border repeats."""
    length = values.shape[axis]
    position = (start + scale * torch.arange(count, dtype=torch.float64)).clamp(0, length - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=length - 1)
    share = (position - low).float()
    if axis == values.ndim - 1:  # contiguous in memory: a matrix product is faster than indexing
        matrix = torch.zeros(length, count)
        matrix[low, torch.arange(count)] = 1.0 - share
        matrix[high, torch.arange(count)] += share
        return values.float() @ matrix
    shape = [1] * values.ndim
    shape[axis] = count
    return values.index_select(axis, low).float().lerp_(values.index_select(axis, high).float(), share.view(shape))


class ScaleHud(MapTransform):
    """Map the HU window to [-1, 1] and clip, like MONAI's ``ScaleIntensityRanged`` but with a single copy.

    Args:
        keys: images of any number type; they become float32.
        hu_window: the HU that become -1 and 1.

    Example:
        >>> import torch
        >>> ScaleHud(keys="image", hu_window=[-1200, 600])({"image": torch.tensor([-2000.0, -300.0, 600.0])})
        {'image': tensor([-1.,  0.,  1.])}
    """

    def __init__(self, keys: KeysCollection, hu_window: Sequence[float]) -> None:
        super().__init__(keys)
        self.low, self.high = hu_window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image = item[key] if torch.is_tensor(item[key]) else torch.as_tensor(item[key])
            centred = image - (self.low + self.high) / 2.0
            item[key] = centred.mul_(2.0 / (self.high - self.low)).clamp_(-1.0, 1.0)
        return item


def in_order_of(image: MetaTensor, volume: MetaTensor, name: str) -> MetaTensor:
    """Return a volume of the image's grid with its axes in the order and direction of the image's.

    Args:
        image: ``[1, I, J, K]``.
        volume: ``[1, …]``; two files of the same grid may store its axes differently.
        name: names the volume in the message if it was not read from a file.

    Raises:
        DataError: the volume is not on the image's grid.
    """
    turned = cast(MetaTensor, Orientation("".join(aff2axcodes(np.asarray(image.affine))), labels=None)(volume))
    is_same = turned.shape[1:] == image.shape[1:]
    if not (is_same and np.allclose(np.asarray(turned.affine), np.asarray(image.affine), atol=SAME_GRID)):
        raise DataError(
            f"{volume.meta.get('filename_or_obj', name)}: expected the grid of "
            f"{image.meta.get('filename_or_obj', 'its scan')} (size {tuple(image.shape[1:])}), got size "
            f"{tuple(turned.shape[1:])} or another affine; resample it to that grid"
        )
    return turned
