"""Where the lungs are: a classical, weight-free search on a coarse copy of the scan.

Air that is closed in the axial plane, in large pieces, is lung (with the airways), and so is lung-like
tissue that continues it: a narrow field of view opens a lung in some slices. The whole is closed by
:data:`CLOSING_MM` so that vessels and nodules at the pleura belong to it. When no closed piece exists, or much
lung-like tissue lies outside (a cube or slab cut out of a chest), nobody can say where a lung ends: all that lies
within :data:`OPEN_ROOM_MM` of pieces as dense as lung is searched, without those that lie in room air (a couch), and
without any piece the whole volume. A given lung mask takes the place of the search; from the closing on, both ways are
one.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage

from ..errors import DataError
from ..geometry import FloatArray, spacing_mm, voxel_volume_mm3
from ..scan import ScanError

logger = logging.getLogger(__name__)

COARSE_MM = 3.0  # grid of the search: fine enough for a lung's border, a thousandth of a second per slice
AIR_BELOW_HU = -400.0  # half way between soft tissue and inflated lung
LUNG_HU = (-960.0, -500.0)  # aerated lung on the coarse grid: neither room air nor tissue
SMALLEST_LUNG_MM3 = 1.0e5  # 0.1 litre: larger than a trachea or a gas bubble in the bowel
FURTHER_PIECE_MM3 = 2.0e4  # 20 ml: an apex cut off by an artefact counts, a bubble of bowel gas is not lung-like
SECOND_PIECE = 0.1  # a second lung holds at least a tenth of the first
# More lung-like tissue than this outside the pieces, as a share of theirs: the lungs are not closed in this volume.
# Five whole chests have 0.06 to 0.26 there, mattress and covers; cut through a lung, they have 0.51 and far more.
OPEN_SHARE = 0.5
OPEN_PIECE_MM3 = 2.0e3  # a piece of 2 ml counts where no lung is closed: the corner of a second lung
ROOM_AIR_HU = -980.0  # on the coarse grid: room air is below it, the air of a lung hardly ever
ROOM_AIR_MM3 = 1.0e5  # a piece of 0.1 litre: no airway
ROOM_AIR_SHARE = 0.25  # more of a piece's surface on it: a couch (0.50 in a chest cut at its sides; its lungs 0.00)
OPEN_ROOM_MM = 15.0  # around them: room for consolidation and for a mass at the pleura
SAME_GRID = 0.01  # largest difference of two affines' numbers, mm: file formats round them
CLOSING_MM = 12.0  # closes over hilar vessels and over nodules at the pleura
ROUNDING_MM = 1e-3  # distances are float32
SLAB_BLOCKS = 16  # of blocks averaged at once: a whole volume in float32 is twice the scan
LUNA16_LUNGS, LUNA16_TRACHEA = (3, 4), 5  # values in seg-lungs-LUNA16; any other mask's lungs are all above 0
MASK_INSIDE_SHARE = 0.5  # of a given mask's volume; less: it belongs to another scan or frame
MASK_AIR_SHARE = 0.5  # of a given mask's coarse voxels below AIR_BELOW_HU; less: it does not lie on the lungs
MASK_AIR_DOUBT = 0.8  # less is worth a warning: five real chests have 0.97, flipped 0.44 to 0.76

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lungs:
    """Result of :func:`find_lungs`.

    Attributes:
        found: ``False`` when no closed lung exists; the box is then the whole volume, and the distance that to the
            surroundings of pieces as dense as lung (:data:`OPEN_ROOM_MM`), zero everywhere without any.
        box: ``[2, 3]`` first and one-past-last voxel of the lungs in the scan's grid, without margin.
        distance_mm: ``[I', J', K']`` float32 on the coarse grid: distance to the lungs, 0 inside.
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


def _as_dense_as_lung(coarse_hu: npt.NDArray[np.float32]) -> Mask:
    return np.asarray((coarse_hu > LUNG_HU[0]) & (coarse_hu < LUNG_HU[1]))


def _lung_like(coarse_hu: npt.NDArray[np.float32]) -> Mask:
    """Tissue as dense as aerated lung, without thin partial-volume shells."""
    return np.asarray(ndimage.binary_opening(_as_dense_as_lung(coarse_hu), np.ones((3, 3, 3), dtype=bool)))


def _is_open(lung_like: Mask, pieces: Mask) -> bool:
    """Whether much lung-like tissue lies outside the pieces."""
    outside = lung_like & ~ndimage.binary_dilation(pieces, iterations=2)
    return bool(outside.sum() > OPEN_SHARE * max(int((lung_like & pieces).sum()), 1))


def _block_means(
    volume: npt.NDArray[Any], voxel_mm: FloatArray
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Means of blocks of about :data:`COARSE_MM`: ``[I', J', K']`` of ``[I, J, K]``, and the voxels of a block."""
    step = np.clip(np.round(COARSE_MM / voxel_mm).astype(np.int64), 1, np.array(volume.shape))
    thick, *sides = (int(s) for s in step)
    means = []
    for start in range(0, len(volume), thick * SLAB_BLOCKS):
        slab = np.ascontiguousarray(volume[start : start + thick * SLAB_BLOCKS], dtype=np.float32)
        kernel = (min(thick, len(slab)), *sides)
        means.append(F.avg_pool3d(torch.from_numpy(slab)[None], kernel, ceil_mode=True, count_include_pad=False)[0])
    return torch.cat(means).numpy(), step


def _coarse_affine(affine: FloatArray, step: npt.NDArray[np.int64]) -> FloatArray:
    """Where the blocks of a grid have their middles, as an affine."""
    coarse = affine @ np.diag([*step, 1.0])
    coarse[:3, 3] = affine[:3, :3] @ ((step - 1) / 2.0) + affine[:3, 3]
    return np.asarray(coarse)


def find_lungs(image_hu: npt.NDArray[Any], voxel_mm: FloatArray) -> Lungs:
    """Find both lungs.

    Args:
        image_hu: ``[I, J, K]``, HU, k along the body (RAS or any flip of it).
        voxel_mm: ``[3]`` spacing, mm.

    Returns:
        The lungs; see :class:`Lungs` for a volume without any.
    """
    shape = np.array(image_hu.shape)
    coarse, step = _block_means(image_hu, voxel_mm)
    coarse_mm = step * voxel_mm
    lung_like = _lung_like(coarse)
    pieces = _lung_pieces(_closed_air(coarse < AIR_BELOW_HU), lung_like, float(np.prod(coarse_mm)))
    if not pieces.any() or _is_open(lung_like, pieces):
        return _open_lungs(coarse, step, coarse_mm, shape)
    return _closed_lungs(ndimage.binary_propagation(pieces, mask=pieces | lung_like), step, coarse_mm, shape)


def _closed_lungs(pieces: Mask, step: npt.NDArray[np.int64], coarse_mm: FloatArray, shape: np.ndarray) -> Lungs:
    """Box of the pieces (coarse, at least one voxel) in the scan's grid, and the distance to them once closed."""
    room = np.ceil(CLOSING_MM / coarse_mm).astype(int) + 1
    lungs = np.pad(pieces, [(r, r) for r in room])
    where = np.argwhere(pieces)
    first, last = where.min(0), where.max(0) + 1
    reached = tuple(slice(a, b + 2 * r) for a, b, r in zip(first, last, room, strict=True))
    near = _distance_mm(lungs[reached], coarse_mm) <= CLOSING_MM + ROUNDING_MM
    lungs[reached] |= _distance_mm(~near, coarse_mm) > CLOSING_MM + ROUNDING_MM
    inner = tuple(slice(r, -r) for r in room)
    box = np.stack([first * step, np.minimum(last * step, shape)])
    return Lungs(True, box, np.ascontiguousarray(_distance_mm(lungs, coarse_mm)[inner]), step)


def _open_lungs(
    coarse_hu: npt.NDArray[np.float32], step: npt.NDArray[np.int64], coarse_mm: FloatArray, shape: np.ndarray
) -> Lungs:
    """Lungs that are not closed in the volume: the surroundings of what is as dense as lung, else all of it.

    Partial-volume shells stay in, for a thin slice of lung at the volume's face looks like one.
    """
    pieces = _open_pieces(coarse_hu, float(np.prod(coarse_mm)))
    distance_mm = np.zeros(coarse_hu.shape, dtype=np.float32)
    if pieces.any():
        distance_mm = np.maximum(_distance_mm(pieces, coarse_mm) - np.float32(OPEN_ROOM_MM), np.float32(0.0))
    return Lungs(False, np.stack([np.zeros(3, dtype=np.int64), shape]), distance_mm, step)


def _open_pieces(coarse_hu: npt.NDArray[np.float32], voxel_mm3: float) -> Mask:
    """Large pieces as dense as lung: the largest, and those that do not lie in room air as couch and covers do.

    The largest stays whatever it borders on: it may be a lung beside a bulla or a pneumothorax.
    """
    labels, sizes_mm3 = _sized_pieces(_as_dense_as_lung(coarse_hu), voxel_mm3)
    air_labels, air_mm3 = _sized_pieces(coarse_hu < ROOM_AIR_HU, voxel_mm3)
    room_air = (air_mm3 >= ROOM_AIR_MM3)[air_labels]
    pieces = np.zeros(coarse_hu.shape, dtype=bool)
    for number in np.flatnonzero(sizes_mm3 >= OPEN_PIECE_MM3):
        piece = labels == number
        around = ndimage.binary_dilation(piece) & ~piece
        if number == sizes_mm3.argmax() or room_air[around].mean() <= ROOM_AIR_SHARE:
            pieces |= piece
    return pieces


def _sized_pieces(mask: Mask, voxel_mm3: float) -> tuple[npt.NDArray[np.integer], FloatArray]:
    """Numbers of the connected pieces, and the volume of each number; 0 is not a piece and has none."""
    labels, _ = ndimage.label(mask)
    sizes_mm3 = np.bincount(labels.ravel()).astype(np.float64) * voxel_mm3
    sizes_mm3[0] = 0.0
    return labels, sizes_mm3


def _distance_mm(inside: Mask, voxel_mm: FloatArray) -> npt.NDArray[np.float32]:
    """Distance of every voxel to the nearest one inside (there is one), mm; 0 inside."""
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.SetSpacing(voxel_mm[::-1].tolist())  # ITK's x is the last axis
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(signed), np.float32(0.0))


def lungs_of_mask(mask: MetaTensor, image: MetaTensor) -> Lungs:
    """Take both lungs from a mask instead of searching them; world positions decide, grids may differ.

    Args:
        mask: ``[1, I', J', K']`` labels: 3 and 4 are the lungs and 5 the trachea where 3 or 4 occur and nothing else
            does (LUNA16), any value above 0 is lung elsewhere.
        image: ``[1, I, J, K]``, HU; affines of both to RAS mm.

    Raises:
        ScanError: the mask is empty or does not lie on the lungs of this scan.
    """
    affine, mask_affine = (np.asarray(volume.affine, dtype=np.float64) for volume in (image, mask))
    coarse_hu, step = _block_means(image.as_tensor()[0].numpy(), spacing_mm(affine))
    share, mask_step = _block_means(_lung_voxels(mask.as_tensor()[0]).numpy(), spacing_mm(mask_affine))
    to_mask = np.linalg.inv(_coarse_affine(mask_affine, mask_step)) @ _coarse_affine(affine, step)
    resampled = ndimage.affine_transform(
        share, to_mask[:3, :3], to_mask[:3, 3], output_shape=coarse_hu.shape, order=1, mode="grid-constant"
    )
    pieces = resampled > 0.5
    block_mm3 = np.prod(step) * voxel_volume_mm3(affine), np.prod(mask_step) * voxel_volume_mm3(mask_affine)
    inside = pieces.sum() * block_mm3[0] / max((share > 0.5).sum() * block_mm3[1], 1.0)
    air = float((coarse_hu[pieces] < AIR_BELOW_HU).mean()) if pieces.any() else 0.0
    _check_mask(mask, image, min(float(inside), 1.0), air)
    return _closed_lungs(pieces, step, step * spacing_mm(affine), np.array(image.shape[1:]))


def _check_mask(mask: MetaTensor, image: MetaTensor, inside: float, air: float) -> None:
    """Refuse a lung mask that lies elsewhere; ``inside`` is its share in the scan, ``air`` that of it on air."""
    name = mask.meta.get("filename_or_obj", "lung mask")
    if inside < MASK_INSIDE_SHARE or air < MASK_AIR_SHARE:
        raise ScanError(
            f"{name}: expected a mask of the lungs of {image.meta.get('filename_or_obj', 'the scan')}, got one of "
            f"which {inside:.0%} lies in the scan, and {air:.0%} of that on air; give this scan's own mask in its "
            "frame, or leave lung_mask out."
        )
    if air < MASK_AIR_DOUBT:
        logger.warning("%s: only %.0f %% of the lung mask lie on air; is it flipped?", name, 100 * air)


def _lung_voxels(labels: torch.Tensor) -> torch.Tensor:
    """1 in the lungs, 0 elsewhere: uint8."""
    values = set(torch.unique(labels).tolist()) - {0}
    is_luna16 = values & set(LUNA16_LUNGS) and values <= {*LUNA16_LUNGS, LUNA16_TRACHEA}
    lungs = torch.isin(labels, torch.tensor(LUNA16_LUNGS, dtype=labels.dtype)) if is_luna16 else labels > 0
    return lungs.to(torch.uint8)


def lung_mm3(lung_distance_mm: MetaTensor) -> float:
    """Volume of the closed lungs, of what is searched where none were found; see :class:`CropToLungsd`."""
    affine = np.asarray(lung_distance_mm.affine, dtype=np.float64)
    return float((lung_distance_mm == 0).sum()) * voxel_volume_mm3(affine)


class CropToLungsd(MapTransform):
    """Cut a scan (and what lies on the same grid) to its lungs plus a margin.

    Writes ``lung_distance_mm`` (MetaTensor ``[1, I', J', K']``, :attr:`Lungs.distance_mm`, with its own affine) and
    ``lungs_found`` (bool) beside the keys. Nothing is copied: what is cut are views.

    Args:
        keys: what to cut; the first key is the CT in HU (``[1, I, J, K]``, in any orientation), on which the lungs are
            sought.
        margin_mm: kept around the lungs: nodules in the pleura and the context that the network sees.
        allow_missing_keys: skip absent keys.
        lung_key: a lung mask on any grid (MetaTensor), which leaves the item; where there is none, lungs are sought.
        whole_key: under which the CT stays in the item, not cut; ``None`` for nowhere.

    Raises:
        ValueError: a key lies on another grid than the first, or the lung mask not on the lungs.
    """

    def __init__(
        self,
        keys: KeysCollection,
        margin_mm: float,
        allow_missing_keys: bool = False,
        *,
        lung_key: str = "lung_mask",
        whole_key: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.margin_mm, self.lung_key, self.whole_key = margin_mm, lung_key, whole_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.keys[0]]
        mask = item.pop(self.lung_key, None)
        if mask is None:
            lungs, affine = _find_in_any_orientation(image)
        else:
            lungs, affine = lungs_of_mask(mask, image), np.asarray(image.affine, dtype=np.float64)
        voxel_mm = spacing_mm(image.affine)
        margin = np.ceil(self.margin_mm / voxel_mm).astype(np.int64)
        low = np.maximum(lungs.box[0] - margin, 0)
        high = np.minimum(lungs.box[1] + margin, np.array(image.shape[1:]))
        crop = SpatialCrop(roi_start=low.tolist(), roi_end=high.tolist())
        for key in self.key_iterator(item):
            _check_grid(str(key), item[key], str(self.keys[0]), image)
            item[key] = crop(item[key])
        if self.whole_key is not None:
            item[self.whole_key] = image
        item["lung_distance_mm"] = MetaTensor(
            torch.from_numpy(lungs.distance_mm)[None], affine=torch.from_numpy(_coarse_affine(affine, lungs.step))
        )
        item["lungs_found"] = lungs.found
        return item


def _find_in_any_orientation(image: MetaTensor) -> tuple[Lungs, FloatArray]:
    """:func:`find_lungs` of a view turned to RAS: the box in the image's own grid, and the turned grid's affine."""
    own = np.asarray(image.affine, dtype=np.float64)
    shape, turn = image.shape[1:], io_orientation(own)
    affine = own @ inv_ornt_aff(turn, shape)
    lungs = find_lungs(apply_orientation(image.as_tensor()[0].numpy(), turn), spacing_mm(affine))
    box = lungs.box[:, turn[:, 0].astype(int)]
    mirrored = np.array(shape) - box[::-1]
    return replace(lungs, box=np.where(turn[:, 1] < 0, mirrored, box)), affine


def _check_grid(key: str, volume: MetaTensor, image_key: str, image: MetaTensor) -> None:
    """Refuse a volume whose voxels are not those of the image."""
    same = volume.shape[1:] == image.shape[1:]
    if not (same and np.allclose(np.asarray(volume.affine), np.asarray(image.affine), atol=SAME_GRID)):
        raise DataError(
            f"{volume.meta.get('filename_or_obj', key)}: expected the grid of the {image_key} "
            f"{image.meta.get('filename_or_obj', '')} (size {tuple(image.shape[1:])}), got size "
            f"{tuple(volume.shape[1:])} or another affine; resample it to that grid"
        )
