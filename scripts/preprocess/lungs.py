"""Where a scan is searched: in and near the lungs, and never outside the body.

The parts of the chest (:mod:`.lung_search`) are turned into one map of distances to the lungs. The map determines
everything else: the box that is resampled, the tiles that the network sees, the candidates that are kept. Where no
nodule is possible (outside the body, in gas that is not lung) its value is :data:`NEVER_MM`.

The lungs are closed morphologically by :data:`CLOSING_MM`, so that masses at hilum and pleura belong to them. In a
volume cut out of a chest (a cube, a slab along the body) the border of a lung is unknown: a wider surrounding counts as
lung, or, if there is no lung at all, everything inside the body. A whole body without lungs (a head, an abdomen, a
water phantom) is refused. A given lung mask replaces the lungs that the network finds.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage
from scipy.spatial import cKDTree

from ..core.errors import SettingError
from ..core.geometry import BoolArray, FloatArray, spacing_mm, voxel_volume_mm3
from ..core.labels import Part, Parts, is_lung
from ..core.records import SearchRegion
from ..read.scan import Grid, ScanError
from .lung_search import CoarseScan, LungSearch, coarse_scan
from .resampling import in_order_of

logger = logging.getLogger(__name__)

IN_PLANE = ndimage.generate_binary_structure(2, 1)[:, :, None]  # neighbours in an axial plane
Region = Literal["lungs", "cut-out", "body"]

CLOSING_MM = 25.0  # bridges hilar vessels and masses of 5 cm at hilum and pleura; adds 0.2 to 0.6 l in 9 real chests
CUT_OUT_ROOM_MM = 15.0  # around the lung of a cut-out: room for consolidation and for a mass at the pleura
NARROW_MM = 80.0  # below this along both lateral axes, lung cannot be told from room air: everything counts as body
CUT_OUT_SHARE = 0.5  # of the lateral faces lies in the body: more than a field of view that cuts off arms or flanks
LEAST_LUNG_MM3 = 5.0e4  # 50 ml: less than this in a whole body is bowel gas or a sinus
LEAST_PIECE_MM3 = 2.0e3  # 2 ml: smaller components are bowel gas or partial volume
LEAST_LUNG_SHARE = 0.05  # of the largest component of gas: a smaller one is bowel gas
BOWEL_WALL_CELLS = 3  # around bowel gas that was labelled lung: the bowel's wall and contents
LEAST_AERATED_SHARE = 0.1  # of a component of lung: with less air it is tissue
LEAST_BODY_SHARE = 0.05  # of the largest component: keeps the other half of a body divided by air, but no clothing
GAS_BELOW_HU = -500.0  # mean of a cell: gas, or its border
NEVER_MM = 1000.0  # greater than any margin
ROUNDING_MM = 1e-3  # distances are float32
LUNA16_LUNGS, LUNA16_TRACHEA = (3, 4), 5  # values in seg-lungs-LUNA16; in any other mask all values above 0 are lung
MASK_INSIDE_SHARE = 0.5  # of a given mask's volume inside the scan; with less it belongs to another scan or frame
MASK_AIR_SHARE = 0.5  # of a given mask's cells below AIR_BELOW_HU; with less it does not lie on the lungs
MASK_AIR_DOUBT = 0.8  # below this a warning is logged: five real chests have 0.97, flipped ones 0.44 to 0.76
AIR_BELOW_HU = -400.0  # halfway between soft tissue and inflated lung


@dataclass(frozen=True)
class Lungs(SearchRegion):
    """Where a scan is searched, and the box of it.

    Attributes:
        box: ``[2, 3]`` first and one-past-last voxel of what counts as lung, in the scan's grid, without margin.
    """

    box: npt.NDArray[np.int64]

    def at(self, point_lps_mm: npt.ArrayLike) -> tuple[Part, float]:
        """Part and distance to the lungs, mm, of the cell that is nearest to a position."""
        cell = np.rint(Grid(self.parts.shape, self.affine_ras).voxels(point_lps_mm)).astype(int)
        i, j, k = np.clip(cell, 0, np.array(self.parts.shape) - 1).tolist()
        return Part(int(self.parts[i, j, k])), float(self.distance_mm[i, j, k])


def _check_region(region: str) -> None:
    if region not in ("lungs", "body"):
        raise SettingError(f"region: expected lungs or body, got {region!r}")


def find_lungs(
    image_hu: npt.NDArray[Any],
    affine_ras: FloatArray,
    search: LungSearch,
    *,
    lung_mask: MetaTensor | None = None,
    region: str = "lungs",
    source: str = "scan",
) -> Lungs:
    """Find where to search.

    Args:
        image_hu: ``[I, J, K]``, HU, axes in RAS order.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
        search: finds the parts of the chest.
        lung_mask: ``[1, …]`` on any grid, replaces the lungs that are found; see :func:`_with_lungs_of`.
        region: "lungs", or "body" to search everything inside the body.
        source: name of the scan, for messages.

    Raises:
        ScanError: the scan shows a whole body without lungs, or the mask does not lie on the lungs.
        SettingError: the region is neither "lungs" nor "body".
    """
    _check_region(region)
    scan = coarse_scan(image_hu, affine_ras)
    is_narrow = bool((scan.cell_mm * scan.hu.shape)[:2].max() < NARROW_MM)
    parts = np.full(scan.hu.shape, Part.BODY, dtype=np.uint8) if is_narrow else _settled(search(scan), scan)
    if lung_mask is not None:
        parts = _with_lungs_of(lung_mask, parts, scan, source)
    body, lungs = parts != Part.OUTSIDE, is_lung(parts)
    is_cut_out = _share_of_sides(body) > CUT_OUT_SHARE
    if not is_cut_out and body.any() and lungs.sum() * voxel_volume_mm3(scan.affine_ras) < LEAST_LUNG_MM3:
        raise ScanError(
            f"{source}: expected a chest CT, got a body without lungs (less than {LEAST_LUNG_MM3 / 1e3:.0f} ml); give "
            "the series of the chest"
        )
    shape = np.array(image_hu.shape)
    if not body.any():
        everything = np.ones_like(body)
        return _region("body", parts, everything, everything, scan, shape)
    if region == "body" or not lungs.any():
        return _region("body", parts, body, body, scan, shape)
    return _region("cut-out" if is_cut_out else "lungs", parts, lungs, body, scan, shape)


def _region(
    region: Region, parts: Parts, lungs: BoolArray, body: BoolArray, scan: CoarseScan, shape: np.ndarray
) -> Lungs:
    """Compute the distances to the closed ``lungs`` (at least one cell), and their box in the scan's grid."""
    room_mm = CUT_OUT_ROOM_MM if region == "cut-out" else 0.0
    closed = lungs if region == "body" else _closed(lungs, scan.cell_mm)
    distance_mm = np.maximum(_distance_mm(closed, scan.cell_mm) - np.float32(room_mm), np.float32(0.0))
    if is_lung(parts).any():
        gas = (scan.hu < GAS_BELOW_HU) & ~is_lung(parts)
        bowel = gas & body & (parts != Part.AIRWAY)
        distance_mm[gas | (ndimage.binary_dilation(bowel) & ~is_lung(parts))] = NEVER_MM  # bowel with its wall
    distance_mm[~body] = NEVER_MM
    reached = np.argwhere(distance_mm == 0)
    if not len(reached):
        reached = np.argwhere(body)
    box = np.stack([np.floor(reached.min(0) * scan.step), np.ceil((reached.max(0) + 1) * scan.step)]).astype(np.int64)
    return Lungs(region, distance_mm, parts, scan.affine_ras, np.clip(box, 0, shape))


def _settled(parts: Parts, scan: CoarseScan) -> Parts:
    """Clean up the parts: a body without holes, and lungs that consist of whole components of gas.

    Small separate components of body become outside. Bowel gas can look like lung but is not connected to a lung.
    Therefore large components of gas that are labelled mostly lung become lung as a whole (without the airway), and
    all other components of gas contain no lung. Only the largest component of airway is kept, and components of lung
    with almost no air become body.
    """
    labels, sizes = _sized_pieces(parts != Part.OUTSIDE)
    body = (sizes >= LEAST_BODY_SHARE * sizes.max())[labels] & (labels > 0)
    settled = np.where(body, parts, np.uint8(Part.OUTSIDE))
    settled[ndimage.binary_fill_holes(body, IN_PLANE) & ~body] = Part.BODY
    labels, sizes = _sized_pieces(settled == Part.AIRWAY)
    settled[(labels != sizes.argmax()) & (labels > 0)] = Part.BODY
    gas = (scan.hu < GAS_BELOW_HU) & (settled != Part.OUTSIDE)
    labels, sizes = _sized_pieces(gas & (settled != Part.AIRWAY))  # the airway connects the lungs to the throat
    lung_share = np.bincount(labels[is_lung(settled)], minlength=len(sizes)) / np.maximum(sizes, 1)
    least = max(LEAST_PIECE_MM3 / voxel_volume_mm3(scan.affine_ras), LEAST_LUNG_SHARE * sizes.max())
    aerated = ((sizes >= least) & (lung_share > 0.5))[labels] & gas
    bowel = gas & ~aerated & is_lung(settled)
    settled[ndimage.binary_dilation(bowel, iterations=BOWEL_WALL_CELLS) & is_lung(settled) & ~aerated] = Part.BODY
    _join(settled, aerated & ~is_lung(settled))
    labels, sizes = _sized_pieces(is_lung(settled))
    with_air = np.bincount(labels[aerated], minlength=len(sizes)) >= LEAST_AERATED_SHARE * np.maximum(sizes, 1)
    settled[~with_air[labels] & (labels > 0)] = Part.BODY
    return settled


def _join(parts: Parts, cells: BoolArray) -> None:
    """Add cells to the nearest lung, in place."""
    lungs = np.argwhere(is_lung(parts))
    if len(lungs) and cells.any():
        _, nearest = cKDTree(lungs).query(np.argwhere(cells))
        parts[cells] = parts[tuple(lungs[nearest].T)]


def _sized_pieces(mask: BoolArray) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Label the connected components and count the cells of each; label 0, the background, counts 0 cells."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def _share_of_sides(body: BoolArray) -> float:
    """Return the share of the four lateral faces that lies in the body."""
    faces = (body[0], body[-1], body[:, 0], body[:, -1])
    return float(sum(face.sum() for face in faces) / sum(face.size for face in faces))


def _closed(lungs: BoolArray, cell_mm: FloatArray) -> BoolArray:
    """Close the lungs morphologically with a ball whose radius is :data:`CLOSING_MM`."""
    room = np.ceil(CLOSING_MM / cell_mm).astype(int) + 1
    near = _distance_mm(np.pad(lungs, [(r, r) for r in room]), cell_mm) <= CLOSING_MM + ROUNDING_MM
    closed = _distance_mm(~near, cell_mm) > CLOSING_MM + ROUNDING_MM
    return np.asarray(closed[tuple(slice(r, -r) for r in room)] | lungs)


def _distance_mm(inside: BoolArray, voxel_mm: FloatArray) -> npt.NDArray[np.float32]:
    """Return the distance of every voxel to the nearest one inside, mm; 0 inside. At least one voxel is inside."""
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.SetSpacing(voxel_mm[::-1].tolist())  # ITK's x is the last axis
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(signed), np.float32(0.0))


def _with_lungs_of(mask: MetaTensor, parts: Parts, scan: CoarseScan, source: str) -> Parts:
    """Return the parts with their lungs replaced by those of a mask, matched by world position: grids may differ.

    Args:
        mask: ``[1, I, J, K]`` labels with an affine to RAS mm. If 3 or 4 occurs and no value but 3, 4 and 5, 3 and 4
            are the lungs and 5 the trachea (LUNA16); otherwise every value above 0 is lung.
        parts: the parts found in the scan, which distinguish left from right; without lungs among them, the middle of
            the mask divides it.
        scan: the scan, on the same grid as ``parts``.
        source: name of the scan, for messages.

    Raises:
        ScanError: the mask is empty or does not lie on the lungs of this scan.
    """
    affine = np.asarray(mask.affine, dtype=np.float64)
    own = coarse_scan(_lung_voxels(mask.as_tensor()[0]).numpy(), affine)
    to_mask = np.linalg.inv(own.affine_ras) @ scan.affine_ras
    shares = ndimage.affine_transform(
        own.hu, to_mask[:3, :3], to_mask[:3, 3], output_shape=parts.shape, order=1, mode="grid-constant"
    )
    lungs = shares > 0.5
    whole_mm3 = (own.hu > 0.5).sum() * voxel_volume_mm3(own.affine_ras)
    inside = lungs.sum() * voxel_volume_mm3(scan.affine_ras) / max(whole_mm3, 1.0)
    air = float((scan.hu[lungs] < AIR_BELOW_HU).mean()) if lungs.any() else 0.0
    _check_mask(str(mask.meta.get("filename_or_obj", "lung mask")), source, min(float(inside), 1.0), air)
    given = np.where(is_lung(parts) & ~lungs, np.uint8(Part.BODY), parts)
    if not is_lung(given).any():
        middle = np.argwhere(lungs)[:, 0].mean()
        given[lungs & (np.arange(len(parts)) < middle)[:, None, None]] = Part.LEFT_LUNG
        given[lungs & (given != Part.LEFT_LUNG)] = Part.RIGHT_LUNG
    _join(given, lungs & ~is_lung(given))
    return given


def _check_mask(name: str, source: str, inside: float, air: float) -> None:
    """Refuse a lung mask that lies elsewhere: too little is ``inside`` the scan, or too little of that on ``air``."""
    if inside < MASK_INSIDE_SHARE or air < MASK_AIR_SHARE:
        raise ScanError(
            f"{name}: expected a mask of the lungs of {source}, got one of which {inside:.0%} lies in the scan, and "
            f"{air:.0%} of that in air; give this scan's own mask in its frame, or leave lung_mask out."
        )
    if air < MASK_AIR_DOUBT:
        logger.warning("%s: only %.0f %% of the lung mask lies in air; is it flipped?", name, 100 * air)


def _lung_voxels(labels: torch.Tensor) -> torch.Tensor:
    """Return 1 in the lungs and 0 elsewhere, uint8; see :func:`_with_lungs_of` for the labels."""
    values = set(torch.unique(labels).tolist()) - {0}
    is_luna16 = values & set(LUNA16_LUNGS) and values <= {*LUNA16_LUNGS, LUNA16_TRACHEA}
    lungs = torch.isin(labels, torch.tensor(LUNA16_LUNGS, dtype=labels.dtype)) if is_luna16 else labels > 0
    return lungs.to(torch.uint8)


def lung_mm3(lung_distance_mm: MetaTensor) -> float:
    """Return the volume of what counts as lung (distance 0), mm³; see :class:`Lungs`."""
    affine = np.asarray(lung_distance_mm.affine, dtype=np.float64)
    return float((lung_distance_mm == 0).sum()) * voxel_volume_mm3(affine)


class CropToLungsd(MapTransform):
    """Crop a scan (and volumes on the same grid) to its lungs plus a margin.

    Besides the keys, writes ``lung_distance_mm`` and ``lung_parts`` (MetaTensors ``[1, I', J', K']`` on one grid,
    :attr:`Lungs.distance_mm` and :attr:`Lungs.parts`) and ``region`` (:attr:`Lungs.kind`). Cropping copies nothing: the
    results are views.

    Args:
        keys: the volumes to crop. The first is the CT in HU (``[1, I, J, K]``, in any orientation), in which the lungs
            are sought. The others lie on its grid, but their axes may be in another order or direction.
        search: finds the parts of the chest.
        margin_mm: kept around the lungs, for nodules in the pleura and for the context that the network sees.
        region: "lungs", or "body" to search everything inside the body.
        allow_missing_keys: skip absent keys.
        lung_key: key of a lung mask on any grid (MetaTensor), which is removed from the item; without one, the lungs
            are sought.
        whole_key: key under which the uncropped CT stays in the item; ``None`` to drop it.

    Raises:
        ScanError, SettingError: see :func:`find_lungs`.
        DataError: a volume lies on another grid than the first.
    """

    def __init__(
        self,
        keys: KeysCollection,
        search: LungSearch,
        margin_mm: float,
        *,
        region: str = "lungs",
        allow_missing_keys: bool = False,
        lung_key: str = "lung_mask",
        whole_key: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check_region(region)
        self.search, self.margin_mm, self.region = search, margin_mm, region
        self.lung_key, self.whole_key = lung_key, whole_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image = item[self.keys[0]]
        lungs, box = self._find(image, item.pop(self.lung_key, None))
        margin = np.ceil(self.margin_mm / spacing_mm(image.affine)).astype(np.int64)
        low = np.maximum(box[0] - margin, 0)
        high = np.minimum(box[1] + margin, np.array(image.shape[1:]))
        crop = SpatialCrop(roi_start=low.tolist(), roi_end=high.tolist())
        for key in self.key_iterator(item):
            item[key] = crop(item[key] if key == self.keys[0] else in_order_of(image, item[key], str(key)))
        if self.whole_key is not None:
            item[self.whole_key] = image
        affine = torch.from_numpy(lungs.affine_ras)
        item["lung_distance_mm"] = MetaTensor(torch.from_numpy(lungs.distance_mm)[None], affine=affine)
        item["lung_parts"] = MetaTensor(torch.from_numpy(lungs.parts)[None], affine=affine)
        item["region"] = lungs.kind
        return item

    def _find(self, image: MetaTensor, mask: MetaTensor | None) -> tuple[Lungs, npt.NDArray[np.int64]]:
        """Apply :func:`find_lungs` to a view of the image in RAS order; return its box in the image's own grid too."""
        own = np.asarray(image.affine, dtype=np.float64)
        shape, turn = image.shape[1:], io_orientation(own)
        turned = apply_orientation(image.as_tensor()[0].numpy(), turn)
        source = str(image.meta.get("filename_or_obj", "the scan"))
        affine = own @ inv_ornt_aff(turn, shape)
        lungs = find_lungs(turned, affine, self.search, lung_mask=mask, region=self.region, source=source)
        box = lungs.box[:, turn[:, 0].astype(int)]
        mirrored = np.array(shape) - box[::-1]
        return lungs, np.where(turn[:, 1] < 0, mirrored, box)
