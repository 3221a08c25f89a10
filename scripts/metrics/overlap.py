"""Agreement of two masks on one grid.

Surfaces are those of surface-distance (Nikolov et al., 2018), as MONAI computes them (``get_mask_edges`` with a
spacing): small surface elements between voxels, weighted by their area, so that results on a grid with thick slices are
in terms of millimetres rather than voxels. MONAI's own ``compute_hausdorff_distance`` counts all border voxels alike,
whatever their area, and is therefore not used; on isotropic grids the two hardly differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import get_mask_edges
from scipy import ndimage
from scipy.spatial import KDTree

from ..core.geometry import BoolArray, FloatArray

SURFACE_TOLERANCE_MM = 1.0  # of the surface Dice
_ROUNDING_MM = 1e-6  # so that a distance of exactly the tolerance counts as within it, despite rounding


@dataclass(frozen=True)
class Overlap:
    """Agreement of a predicted mask with a reference; ``None`` where a measure is undefined.

    Attributes:
        dice, iou: 0 to 1; undefined if both masks are empty.
        hd95_mm: the larger of the two 95th percentiles of surface distance; undefined if a mask is empty.
        surface_dice_1mm: share of both surfaces that lies within 1 mm of the other; 0 if one mask is empty, undefined
            if both are.
        relative_volume_error: (predicted - reference) / reference, -1 if nothing is predicted; undefined if the
            reference is empty.
    """

    dice: float | None
    iou: float | None
    hd95_mm: float | None
    surface_dice_1mm: float | None
    relative_volume_error: float | None


MISSED = Overlap(dice=0.0, iou=0.0, hd95_mm=None, surface_dice_1mm=0.0, relative_volume_error=-1.0)


def compare_masks(predicted: BoolArray, reference: BoolArray, spacing_mm: npt.ArrayLike) -> Overlap:
    """Compare two masks.

    Args:
        predicted: ``[I, J, K]``, may be empty.
        reference: ``[I, J, K]``, may be empty.
        spacing_mm: ``[3]`` of the grid along i, j, k.

    Raises:
        ValueError: the masks differ in shape or are not three-dimensional.

    Example:
        >>> cube, moved = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
        >>> cube[2:6, 2:6, 2:6] = moved[2:6, 2:6, 3:7] = True
        >>> compare_masks(cube, moved, (1.0, 1.0, 1.0))
        Overlap(dice=0.75, iou=0.6, hd95_mm=1.0, surface_dice_1mm=1.0, relative_volume_error=0.0)
    """
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise ValueError(
            f"expected two masks of the same shape [I, J, K], got {predicted.shape} and {reference.shape}; "
            "resample the prediction to the reference's grid"
        )
    filled = ndimage.find_objects((predicted | reference).astype(np.uint8))  # the box around both, if any
    first, second = (np.asarray(mask, dtype=bool)[filled[0] if filled else ...] for mask in (predicted, reference))
    a, b, both = int(first.sum()), int(second.sum()), int((first & second).sum())
    if not b:
        return Overlap(0.0, 0.0, None, 0.0, None) if a else Overlap(None, None, None, None, None)
    if not a:
        return MISSED
    hd95_mm, surface_dice = _surface_agreement(first, second, np.asarray(spacing_mm, dtype=np.float64))
    return Overlap(2 * both / (a + b), both / (a + b - both), hd95_mm, surface_dice, (a - b) / b)


def _surface_agreement(predicted: BoolArray, reference: BoolArray, spacing_mm: FloatArray) -> tuple[float, float]:
    """Return the HD95 in mm and the surface Dice of two masks, neither of which is empty."""
    masks = (torch.from_numpy(np.ascontiguousarray(mask)) for mask in (predicted, reference))
    edges = get_mask_edges(*masks, crop=True, spacing=spacing_mm.tolist())
    first, second, first_area, second_area = (np.asarray(part) for part in edges)
    first_mm, second_mm = (np.argwhere(edge) * spacing_mm for edge in (first, second))
    first_mm2, second_mm2 = (
        a[e.astype(bool)].astype(np.float64) for a, e in ((first_area, first), (second_area, second))
    )
    apart = KDTree(second_mm).query(first_mm)[0], KDTree(first_mm).query(second_mm)[0]
    hd95 = max(
        float(np.quantile(d, 0.95, weights=w, method="inverted_cdf"))
        for d, w in zip(apart, (first_mm2, second_mm2), strict=True)
    )
    near = [d <= SURFACE_TOLERANCE_MM + _ROUNDING_MM for d in apart]
    within = first_mm2[near[0]].sum() + second_mm2[near[1]].sum()
    return hd95, float(within / (first_mm2.sum() + second_mm2.sum()))
