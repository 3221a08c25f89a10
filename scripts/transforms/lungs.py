"""Where the lungs are: a classical, weight-free search on a coarse copy of the scan.

Air that is closed in the axial plane, in large pieces, is lung (with the airways), and so is lung-like
tissue that continues it: a narrow field of view opens a lung in some slices. The whole is closed by
:data:`CLOSING_MM` so that vessels and nodules at the pleura belong to it. When no closed piece exists, or much
lung-like tissue lies outside (a cube or slab cut out of a chest), the whole volume is searched.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop
from scipy import ndimage

from ..geometry import FloatArray, spacing_mm

COARSE_MM = 3.0  # grid of the search: fine enough for a lung's border, a thousandth of a second per slice
AIR_BELOW_HU = -400.0  # half way between soft tissue and inflated lung
LUNG_HU = (-960.0, -500.0)  # aerated lung on the coarse grid: neither room air nor tissue
SMALLEST_LUNG_MM3 = 1.0e5  # 0.1 litre: larger than a trachea or a gas bubble in the bowel
FURTHER_PIECE_MM3 = 2.0e4  # 20 ml: an apex cut off by an artefact counts, a bubble of bowel gas is not lung-like
SECOND_PIECE = 0.1  # a second lung holds at least a tenth of the first
OPEN_SHARE = 0.25  # more lung-like tissue than this outside the pieces: the lungs are not closed in this volume
SAME_GRID = 0.01  # largest difference of two affines' numbers, mm: file formats round them
CLOSING_MM = 12.0  # closes over hilar vessels and over nodules at the pleura

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lungs:
    """Result of :func:`find_lungs`.

    Attributes:
        found: ``False`` when no closed lung exists; the box is then the whole volume and the distance zero.
        box: ``[2, 3]`` first and one-past-last voxel of the lungs in the scan's grid, without margin.
        distance_mm: ``[I', J', K']`` float32 on the coarse grid: distance to the closed lungs, 0 inside.
        step: ``[3]`` voxels of the scan per coarse voxel.
    """

    found: bool
    box: npt.NDArray[np.int64]
    distance_mm: npt.NDArray[np.float32]
    step: npt.NDArray[np.int64]


def _closed_air(air: Mask) -> Mask:
    """Air that touches no in-plane border of its axial slice (axis k)."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, :, 1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(air, structure=in_plane)
    touching = np.zeros(count + 1, dtype=bool)
    for face in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[face.ravel()] = True
    touching[0] = True
    return np.asarray(~touching[labels])


def _lung_pieces(closed: Mask, lung_like: Mask, voxel_mm3: float) -> Mask:
    """The largest component and a second of comparable size, and any further one that is mostly lung-like.

    Nothing is kept where the largest is smaller than :data:`SMALLEST_LUNG_MM3`.
    """
    labels, count = ndimage.label(closed)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel_mm3
    if count == 0 or sizes.max() < SMALLEST_LUNG_MM3:
        return np.zeros_like(closed)
    share = np.bincount(labels[lung_like].ravel(), minlength=count + 1)[1:] * voxel_mm3 / sizes
    second = np.sort(sizes)[-2:][0]
    large = (sizes >= second) & (sizes >= SMALLEST_LUNG_MM3) & (sizes >= SECOND_PIECE * sizes.max())
    further = (sizes >= FURTHER_PIECE_MM3) & (share > 0.5)
    return np.isin(labels, np.flatnonzero(large | further) + 1)


def _lung_like(coarse_hu: npt.NDArray[np.float32]) -> Mask:
    """Tissue as dense as aerated lung, without thin partial-volume shells."""
    lung_like = (coarse_hu > LUNG_HU[0]) & (coarse_hu < LUNG_HU[1])
    return np.asarray(ndimage.binary_opening(lung_like, structure=np.ones((3, 3, 3), dtype=bool)))


def _is_open(lung_like: Mask, pieces: Mask) -> bool:
    """Whether much lung-like tissue lies outside the pieces."""
    outside = lung_like & ~ndimage.binary_dilation(pieces, iterations=2)
    return bool(outside.sum() > OPEN_SHARE * max(int((lung_like & pieces).sum()), 1))


def find_lungs(image_hu: torch.Tensor, voxel_mm: FloatArray) -> Lungs:
    """Find both lungs.

    Args:
        image_hu: ``[I, J, K]``, HU, k along the body (RAS or any flip of it).
        voxel_mm: ``[3]`` spacing, mm.

    Returns:
        The lungs; see :class:`Lungs` for a volume without any.
    """
    shape = np.array(image_hu.shape)
    step = np.clip(np.round(COARSE_MM / voxel_mm).astype(np.int64), 1, shape)
    kernel = [int(s) for s in step]
    coarse = F.avg_pool3d(image_hu[None, None].float(), kernel, ceil_mode=True, count_include_pad=False)[0, 0].numpy()
    coarse_mm = step * voxel_mm
    lung_like = _lung_like(coarse)
    pieces = _lung_pieces(_closed_air(coarse < AIR_BELOW_HU), lung_like, float(np.prod(coarse_mm)))
    if not pieces.any() or _is_open(lung_like, pieces):
        whole = np.stack([np.zeros(3, dtype=np.int64), shape])
        return Lungs(False, whole, np.zeros(coarse.shape, dtype=np.float32), step)
    pieces = ndimage.binary_propagation(pieces, mask=pieces | lung_like)
    room = np.ceil(CLOSING_MM / coarse_mm).astype(int) + 1
    padded = np.pad(pieces, [(r, r) for r in room])
    near = ndimage.distance_transform_edt(~padded, sampling=coarse_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(near, sampling=coarse_mm) > CLOSING_MM
    distance_mm = ndimage.distance_transform_edt(~(closed | padded), sampling=coarse_mm)
    inner = tuple(slice(r, -r) for r in room)
    where = np.argwhere(pieces)
    box = np.stack([where.min(0) * step, np.minimum((where.max(0) + 1) * step, shape)])
    return Lungs(True, box, distance_mm[inner].astype(np.float32), step)


class CropToLungsd(MapTransform):
    """Cut a scan (and what lies on the same grid) to its lungs plus a margin.

    Writes ``lung_distance_mm`` (MetaTensor ``[1, I', J', K']``, mm to the closed lungs, with its own affine) and
    ``lungs_found`` (bool) beside the keys. The volume must be oriented with k along the body (``Orientationd`` RAS).

    Args:
        keys: what to cut; the first key is the CT in HU (``[1, I, J, K]``), on which the lungs are sought.
        margin_mm: kept around the lungs: nodules in the pleura and the context that the network sees.
        allow_missing_keys: skip absent keys.

    Raises:
        ValueError: a key lies on another grid than the first.
    """

    def __init__(self, keys: KeysCollection, margin_mm: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.margin_mm = margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.keys[0]]
        affine = np.asarray(image.affine, dtype=np.float64)
        voxel_mm = spacing_mm(affine)
        lungs = find_lungs(image.as_tensor()[0], voxel_mm)
        margin = np.ceil(self.margin_mm / voxel_mm).astype(np.int64)
        low = np.maximum(lungs.box[0] - margin, 0)
        high = np.minimum(lungs.box[1] + margin, np.array(image.shape[1:]))
        crop = SpatialCrop(roi_start=low.tolist(), roi_end=high.tolist())
        for key in self.key_iterator(item):
            _check_grid(str(key), item[key], str(self.keys[0]), image)
            item[key] = crop(item[key])
        coarse_affine = affine @ np.diag([*lungs.step, 1.0])
        coarse_affine[:3, 3] = affine[:3, :3] @ ((lungs.step - 1) / 2.0) + affine[:3, 3]
        item["lung_distance_mm"] = MetaTensor(
            torch.from_numpy(lungs.distance_mm)[None], affine=torch.from_numpy(coarse_affine)
        )
        item["lungs_found"] = lungs.found
        return item


def _check_grid(key: str, volume: MetaTensor, image_key: str, image: MetaTensor) -> None:
    """Refuse a volume whose voxels are not those of the image."""
    same = volume.shape[1:] == image.shape[1:]
    if not (same and np.allclose(np.asarray(volume.affine), np.asarray(image.affine), atol=SAME_GRID)):
        raise ValueError(
            f"{volume.meta.get('filename_or_obj', key)}: expected the grid of the {image_key} "
            f"{image.meta.get('filename_or_obj', '')} (size {tuple(image.shape[1:])}), got size "
            f"{tuple(volume.shape[1:])} or another affine; resample it to that grid"
        )
