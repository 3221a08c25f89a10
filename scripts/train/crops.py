"""Training crops: one random affine map per crop transforms image, mask and nodules together.

Instead of resampling once per augmentation, flips, quarter turns, rotation and scaling are composed into a single map
from crop voxels to scan voxels, so that the image is interpolated once (trilinear) and the mask once (nearest).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms import RandomizableTransform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..core.geometry import BoolArray, FloatArray, apply_affine, bounds_of, box_between
from ..core.labels import IGNORED


def crop_by_affine(
    volume: npt.NDArray[Any],
    to_source: FloatArray,
    size: tuple[int, int, int],
    order: int,
    outside: float | None = None,
) -> npt.NDArray[Any]:
    """Sample ``size`` voxels of a volume through ``to_source`` (``[4, 4]``, crop voxel to source voxel).

    Voxels beyond the volume get the value ``outside``; with ``None``, the volume's edge values are repeated.

    Only the required part of ``volume`` is read, so it may be a memory map.
    """
    low, high = bounds_of(to_source, (0, 0, 0), np.array(size) - 1)
    box = box_between(low - 1, high + 1, volume.shape, least=1)
    part = np.asarray(volume[box])
    part = part.astype(np.float32 if order else part.dtype)
    offset = to_source[:3, 3] - [side.start for side in box]
    beyond = {"mode": "nearest"} if outside is None else {"mode": "constant", "cval": outside}
    return np.asarray(
        ndimage.affine_transform(part, to_source[:3, :3], offset, output_shape=size, order=order, **beyond)
    )


def extent_mm(voxel_mm: npt.ArrayLike, turn: FloatArray) -> FloatArray:
    """Return the extent ``[3]`` of a voxel along turned axes: root mean square of its edges, ``[3]`` mm.

    Args:
        voxel_mm: ``[3]``.
        turn: ``[3, 3]``, turned axes (columns) in those of the voxel.
    """
    return np.asarray(np.sqrt(np.square(turn).T @ np.square(np.asarray(voxel_mm, dtype=np.float64))))


class RandomCropd(RandomizableTransform):
    """Cut a randomly placed, rotated and scaled cube out of a scan.

    Reads ``image`` ``[I, J, K]`` (HU, 1 mm voxels), ``nodule`` ``[N, 4]``, ``label`` ``[N]``, ``centre`` ``[3]`` (voxel
    around which to crop) and, when present, ``mask`` ``[I, J, K]`` (value = row + 1), ``lung`` ``[I, J, K]`` and
    ``voxel_mm`` ``[3]`` (size of the file's voxels along the axes of ``image``). Writes the same keys except
    ``centre``, for the crop: volumes become ``[1, S, S, S]``, rows are in crop voxels with scaled diameters, ``mask``
    is renumbered to match the remaining rows, and ``voxel_mm`` is along the axes of the crop. Nodules whose centre lies
    outside the crop but which extend into it become :data:`IGNORED`; those farther away are removed.

    Args:
        size: edge length S of the cube, in voxels.
        jitter: largest shift of the crop's centre from ``centre`` along each axis, as a share of ``size``.
        turns: whether to use all 48 combinations of flips and quarter turns.
        rotate_degrees: largest rotation about each axis, in degrees.
        scale: range of the zoom; 1.25 shows nodules a quarter larger.
        outside_hu: value of voxels beyond the scan, as in the search: the lower end of the HU window.
    """

    def __init__(
        self,
        size: int,
        *,
        jitter: float,
        turns: bool,
        rotate_degrees: float,
        scale: tuple[float, float],
        outside_hu: float = -1200.0,
    ) -> None:
        super().__init__()
        self.size, self.jitter, self.turns, self.outside_hu = size, jitter, turns, outside_hu
        self.rotate_degrees, self.scale = rotate_degrees, scale

    def _draw(self, centre: npt.NDArray[Any]) -> tuple[FloatArray, float]:
        """Draw the map from crop voxels to source voxels, and the zoom."""
        zoom = float(self.R.uniform(*self.scale))
        matrix = Rotation.from_euler(
            "xyz", self.R.uniform(-self.rotate_degrees, self.rotate_degrees, 3), degrees=True
        ).as_matrix()
        if self.turns:
            matrix = matrix @ (np.eye(3)[self.R.permutation(3)] * self.R.choice([-1.0, 1.0], 3))
        to_source = np.eye(4)
        to_source[:3, :3] = matrix / zoom
        shift = self.R.uniform(-self.jitter, self.jitter, 3) * self.size
        middle = np.full(3, (self.size - 1) / 2.0) + shift
        to_source[:3, 3] = np.asarray(centre, dtype=np.float64) - to_source[:3, :3] @ middle
        return to_source, zoom

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        to_source, zoom = self._draw(item.pop("centre"))
        size = (self.size,) * 3
        item["image"] = crop_by_affine(item["image"], to_source, size, order=1, outside=self.outside_hu)[None]
        if "lung" in item:
            item["lung"] = crop_by_affine(item["lung"], to_source, size, order=0, outside=0)[None]
        if "voxel_mm" in item:
            item["voxel_mm"] = extent_mm(item["voxel_mm"], to_source[:3, :3] * zoom) * zoom
        nodule, label, near = self._move_nodules(item["nodule"], item["label"], to_source, zoom)
        item["nodule"], item["label"] = nodule[near], label[near]
        if "mask" in item:
            renumber = np.zeros(len(near) + 1, dtype=np.uint8)
            renumber[1:][near] = np.arange(1, int(near.sum()) + 1)
            item["mask"] = renumber[crop_by_affine(item["mask"], to_source, size, order=0, outside=0)][None]
        return item

    def _move_nodules(
        self, nodule: npt.ArrayLike, label: npt.ArrayLike, to_source: FloatArray, zoom: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], BoolArray]:
        """Return all rows in crop voxels, their labels, and which of them lie in the crop or extend into it."""
        moved = np.array(nodule, dtype=np.float32).reshape(-1, 4)
        moved[:, :3] = apply_affine(np.linalg.inv(to_source), moved[:, :3])
        moved[:, 3] *= zoom
        beyond = np.maximum(-moved[:, :3], moved[:, :3] - (self.size - 1)).max(axis=1, initial=-np.inf)
        labels = np.where(beyond > 0, IGNORED, np.asarray(label, dtype=np.int64).reshape(-1))
        return moved, labels, beyond < moved[:, 3] / 2.0 + 1.0
