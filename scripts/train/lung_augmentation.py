"""Augmentation for the lung network: diseased lungs, other surroundings, partial views.

Few scans show a collapsed lung or a mass of nine centimetres. But in any scan whose lungs are known, tissue, fluid or
air can be drawn in place of lung, and those cells remain labelled as lung. Everything works on the 4 mm grid of the
lung search.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform, Transform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..core.errors import DataError
from ..core.geometry import BoolArray, FloatArray
from ..core.labels import Part, Parts, is_lung
from ..preprocess.lung_search import CELL_MM, HU_RANGE, coarse_scan, scaled

Cells = npt.NDArray[np.float32]

AIR_HU = -1000.0
AERATED_HU = -400.0
MIRRORED = np.array([Part.OUTSIDE, Part.BODY, Part.RIGHT_LUNG, Part.LEFT_LUNG, Part.AIRWAY], dtype=np.uint8)


class ToCellsd(Transform):
    """Resample ``image`` to the grid of the lung search; ``label`` is on that grid already.

    Reads ``image`` as a MetaTensor ``[1, I, J, K]`` (HU, RAS) and ``label`` ``[1, I', J', K']``.

    Writes both as arrays ``[I', J', K']``: float32 HU and uint8 :class:`..core.labels.Part`.

    Raises:
        DataError: the label has another size than that grid.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        image: MetaTensor = item["image"]
        cells = coarse_scan(image.as_tensor()[0].numpy(), np.asarray(image.affine, dtype=np.float64))
        label = np.asarray(item["label"][0], dtype=np.uint8)
        if label.shape != cells.hu.shape:
            raise DataError(
                f"{item['label'].meta.get('filename_or_obj')}: expected the parts of "
                f"{image.meta.get('filename_or_obj')} on its grid of {CELL_MM:g} mm ({cells.hu.shape}), got "
                f"{label.shape}; this label belongs to another scan"
            )
        item["image"], item["label"] = cells.hu, label
        return item


class RandChestd(RandomizableTransform):
    """Make another chest: rotated, stretched, mirrored, diseased, with other surroundings, view and scanner.

    Reads and writes ``image`` and ``label`` as returned by :class:`ToCellsd`.

    Args:
        zoom: usual range of the change in size.
        small_zoom: range that gives the size of a child or an animal.
        small_share: share of the resized chests for which ``small_zoom`` is used.
        degrees: largest rotation about each axis.
        sick_share: share of the chests whose lungs are changed by :func:`sick`.
    """

    def __init__(
        self,
        *,
        zoom: tuple[float, float] = (0.85, 1.25),
        small_zoom: tuple[float, float] = (0.38, 0.85),
        small_share: float = 0.25,
        degrees: float = 12.0,
        sick_share: float = 0.7,
    ) -> None:
        super().__init__()
        self.zoom, self.small_zoom, self.small_share = zoom, small_zoom, small_share
        self.degrees, self.sick_share = degrees, sick_share

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        hu, parts = self._another_shape(item["image"], item["label"])
        if self.R.random() < self.sick_share:
            hu = sick(self.R, hu, parts)
        hu = other_surroundings(self.R, hu, parts)
        box = partial_view(self.R, parts)
        hu, parts = hu[box], parts[box]
        item["image"], item["label"] = other_scanner(self.R, *padded_beyond_circle(self.R, hu, parts))
        return item

    def _another_shape(self, hu: Cells, parts: Parts) -> tuple[Cells, Parts]:
        if self.R.random() < 0.85:
            is_small = self.R.random() < self.small_share
            low, high = np.log(self.small_zoom if is_small else self.zoom)
            zoom = np.exp(self.R.uniform(low, high)) * self.R.uniform(0.9, 1.12, 3)
            turn = Rotation.from_euler("xyz", self.R.uniform(-self.degrees, self.degrees, 3), degrees=True).as_matrix()
            hu, parts = _resized(hu, parts, turn @ np.diag(1.0 / zoom), zoom)
        for axis, chance in ((0, 0.5), (1, 0.1), (2, 0.05)):
            if self.R.random() < chance:
                hu, parts = np.flip(hu, axis), np.flip(parts, axis)
                parts = MIRRORED[parts] if axis == 0 else parts
        return np.ascontiguousarray(hu), np.ascontiguousarray(parts)


class CellsToNetworkd(Transform):
    """Turn cells into the input and target of the lung network.

    Writes ``image`` ``[1, I', J', K']``, scaled HU, and ``label`` ``[2, I', J', K']``: the parts, and the weight of
    each cell. Both are padded as :func:`..preprocess.lung_search.scaled` does. Gas in bowel and airways has a higher
    weight: it is rare, and the only thing that looks like lung.

    Args:
        gas_weight: weight of a cell of body or airway that is as dark as lung; other cells weigh 1.
    """

    def __init__(self, gas_weight: float) -> None:
        self.gas_weight = gas_weight

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        hu, parts = np.ascontiguousarray(item["image"]), np.ascontiguousarray(item["label"])
        is_gas = (hu < AERATED_HU) & ((parts == Part.BODY) | (parts == Part.AIRWAY))
        label = torch.from_numpy(np.stack([parts, np.where(is_gas, self.gas_weight, 1.0)]).astype(np.float32))
        item["image"] = scaled(torch.from_numpy(hu)[None, None])[0]
        missing = [side for axis in (3, 2, 1) for side in (0, item["image"].shape[axis] - label.shape[axis])]
        item["label"] = F.pad(label[None], missing, mode="replicate")[0]
        return item


def _resized(hu: Cells, parts: Parts, to_source: FloatArray, zoom: FloatArray) -> tuple[Cells, Parts]:
    """Resample both through a matrix about their centre, into a volume that is scaled by ``zoom`` along each axis."""
    shape = np.array(hu.shape)
    size = tuple(np.maximum(np.round(shape * zoom).astype(int), 8).tolist())
    offset = (shape - 1) / 2.0 - to_source @ ((np.array(size) - 1) / 2.0)
    return (
        ndimage.affine_transform(hu, to_source, offset, output_shape=size, order=1, mode="nearest"),
        ndimage.affine_transform(parts, to_source, offset, output_shape=size, order=0, mode="nearest"),
    )


def _field(rng: np.random.RandomState, shape: tuple[int, ...], waves: int) -> Cells:
    """Return a smooth random field of about -2 to 2, with a new value every ``1 / waves`` of the volume."""
    low = rng.standard_normal((1, 1, *(max(2, min(waves, n)) for n in shape))).astype(np.float32)
    return F.interpolate(torch.from_numpy(low), size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()


def _tissue(rng: np.random.RandomState, count: int) -> FloatArray:
    """Draw HU for ``count`` cells of soft tissue, fluid or tumour."""
    return np.asarray(rng.uniform(-10, 70) + rng.uniform(5, 40) * rng.standard_normal(count))


def _one_side(rng: np.random.RandomState, parts: Parts) -> BoolArray:
    return np.asarray(parts == (Part.LEFT_LUNG, Part.RIGHT_LUNG)[rng.randint(2)])


def _up_to(mask: BoolArray, axis: int, share: float) -> BoolArray:
    """Return the part of a mask that lies in the first ``share`` of its extent along an axis."""
    where = np.flatnonzero(mask.any(axis=tuple(n for n in range(3) if n != axis)))
    part = mask.copy()
    if where.size:
        part[(slice(None),) * axis + (slice(int(where[0] + share * (where[-1] - where[0])), None),)] = False
    return part


def sick(rng: np.random.RandomState, hu: Cells, parts: Parts) -> Cells:
    """Add emphysema, bullae, pneumothorax, effusion, consolidation, collapse or masses, each with some probability."""
    hu, lungs = hu.copy(), is_lung(parts)
    if not lungs.any():
        return hu
    aerated = lungs & (hu < AERATED_HU)
    if rng.random() < 0.35:  # emphysema, or the dense lung of an expiration
        contrast = rng.uniform(0.15, 0.8) if rng.random() < 0.6 else rng.uniform(1.2, 3.0)
        hu[aerated] = AIR_HU + (hu[aerated] - AIR_HU) * contrast
    if rng.random() < 0.2:  # bullae
        bullae = (_field(rng, hu.shape, rng.randint(6, 16)) > rng.uniform(1.0, 2.0)) & aerated
        hu[bullae] = AIR_HU + rng.uniform(0, 25) + 10 * rng.standard_normal(int(bullae.sum()))
    if rng.random() < 0.12:  # pneumothorax: air in front
        side = _one_side(rng, parts)
        front = side & ~_up_to(side, 1, 1.0 - rng.uniform(0.05, 0.7))
        hu[front] = AIR_HU + 12 * rng.standard_normal(int(front.sum()))
    if rng.random() < 0.25:  # effusion: level, at the back or below
        low = _up_to(_one_side(rng, parts), 2 if rng.random() < 0.4 else 1, rng.uniform(0.05, 0.75))
        hu[low] = 0.6 * _tissue(rng, int(low.sum()))
    if rng.random() < 0.3:  # consolidation
        where = (_field(rng, hu.shape, rng.randint(3, 10)) > rng.uniform(0.2, 1.6)) & lungs
        if rng.random() >= 0.5:
            where &= _one_side(rng, parts)
        share = rng.uniform(0.5, 1.0)
        hu[where] = (1 - share) * hu[where] + share * _tissue(rng, int(where.sum()))
    if rng.random() < 0.08:  # collapse: a lung without air
        side = _one_side(rng, parts)
        hu[side] = _tissue(rng, int(side.sum()))
    if rng.random() < 0.6:  # masses, up to 10 cm
        for _ in range(rng.randint(0, 3)):
            mass = _ball(rng, lungs, rng.uniform(8, 50) / CELL_MM) & (lungs | (parts == Part.AIRWAY))
            hu[mass] = _tissue(rng, int(mass.sum()))
    return hu


def _ball(rng: np.random.RandomState, within: BoolArray, radius: float) -> BoolArray:
    """Return an ellipsoid around a random cell of a mask; the radius is in cells."""
    cells = np.argwhere(within)
    centre, stretch = cells[rng.randint(len(cells))], rng.uniform(0.7, 1.3, 3)
    axes = np.ogrid[tuple(slice(n) for n in within.shape)]
    return np.asarray(sum(((x - c) / s) ** 2 for x, c, s in zip(axes, centre, stretch, strict=True)) < radius**2)


def other_surroundings(rng: np.random.RandomState, hu: Cells, parts: Parts) -> Cells:
    """Sometimes clear everything around the body, and sometimes draw gas or bowel contents below the lungs."""
    hu = hu.copy()
    if rng.random() < 0.25:
        outside = parts == Part.OUTSIDE
        hu[outside] = AIR_HU + rng.uniform(0, 8) * rng.standard_normal(int(outside.sum()))
    height = np.flatnonzero(is_lung(parts).any(axis=(0, 1)))
    if rng.random() < 0.5 and height.size:
        bowel = (_field(rng, hu.shape, rng.randint(6, 24)) > rng.uniform(0.6, 1.4)) & (parts == Part.BODY)
        bowel[:, :, int(height[0] + rng.uniform(0.0, 0.35) * (height[-1] - height[0])) :] = False
        bowel &= ndimage.binary_erosion(parts != Part.OUTSIDE, iterations=4)
        bowel &= ~ndimage.binary_dilation(is_lung(parts), iterations=rng.randint(1, 3))
        hu[bowel] = rng.choice([-1000.0, -950.0, -850.0, -600.0]) + 30 * rng.standard_normal(int(bowel.sum()))
    return hu


def partial_view(rng: np.random.RandomState, parts: Parts) -> tuple[slice, ...]:
    """Draw what is seen: all, a slab, a cube, a field of view that cuts the body, or no neck and abdomen."""
    size = np.array(parts.shape)
    low, high = np.zeros(3, dtype=int), size.copy()
    lungs = is_lung(parts)
    cells = np.argwhere(lungs) if lungs.any() else size[None] // 2
    centre, kind = cells[rng.randint(len(cells))], rng.random()
    if rng.random() < 0.3:  # around the diaphragm
        centre = np.array([*centre[:2], max(cells[:, 2].min() + rng.randint(-8, 12), 0)])
    if kind < 0.2:
        thick = int(rng.uniform(6, max(8, 0.6 * size[2])))
        low[2] = np.clip(centre[2] - rng.randint(thick), 0, max(size[2] - thick, 0))
        high[2] = min(low[2] + thick, size[2])
    elif kind < 0.55:
        edge = rng.randint(15, 36, 3) if rng.random() < 0.5 else np.full(3, rng.randint(20, 30))
        low = np.clip(centre - (rng.uniform(0.1, 0.9, 3) * edge).astype(int), 0, np.maximum(size - edge, 0))
        high = np.minimum(low + edge, size)
    elif kind < 0.7:
        for axis in (0, 1):
            seen = np.flatnonzero((parts > 0).any(axis=tuple(n for n in range(3) if n != axis)))
            if seen.size:
                cut = rng.uniform(-0.05, 0.3, 2) * (seen[-1] - seen[0])
                low[axis], high[axis] = max(int(seen[0] + cut[0]), 0), int(seen[-1] - cut[1])
        high = np.clip(high, np.minimum(low + 12, size), size)
    elif kind < 0.82 and lungs.any():
        low[2] = max(cells[:, 2].min() + rng.randint(-12, 4), 0)
        high[2] = np.clip(cells[:, 2].max() + rng.randint(-4, 12), min(low[2] + 8, size[2]), size[2])
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def padded_beyond_circle(rng: np.random.RandomState, hu: Cells, parts: Parts) -> tuple[Cells, Parts]:
    """Sometimes pad beyond a reconstruction circle, with a value below air or with the 0 that some exports write."""
    if rng.random() >= 0.15 or min(hu.shape[:2]) <= 20:
        return hu, parts
    i, j = np.ogrid[tuple(slice(-(n - 1) / 2, n / 2) for n in hu.shape[:2])]
    beyond = i**2 + j**2 > (rng.uniform(0.9, 1.2) * max(hu.shape[:2]) / 2) ** 2
    hu, parts = hu.copy(), parts.copy()
    hu[beyond], parts[beyond] = rng.choice([HU_RANGE[0], HU_RANGE[0], 0.0]), Part.OUTSIDE
    return hu, parts


def other_scanner(rng: np.random.RandomState, hu: Cells, parts: Parts) -> tuple[Cells, Parts]:
    """Add the noise of a low dose, and shift or scale the HU, each with some probability."""
    scanned = hu.astype(np.float64)
    if rng.random() < 0.5:
        scanned += rng.uniform(0, 70) * rng.standard_normal(hu.shape)
    if rng.random() < 0.3:
        scanned += rng.uniform(-40, 40)
    if rng.random() < 0.3:
        scanned = AIR_HU + (scanned - AIR_HU) * rng.uniform(0.92, 1.08)
    return scanned.astype(np.float32), parts
