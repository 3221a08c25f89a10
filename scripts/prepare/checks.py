"""Checks whether the boxes of a datalist can be nodules: a nodule lies in or at the lungs and is denser than they are.

A box is suspect only if it has a property that no real nodule has; a box that passes may still be wrong. None of 895
nodules of LIDC-IDRI is suspect for its density; of random places inside the lungs of five scans, 20 to 66 % are. More
than half of the random places in a scan lie outside the lungs. A list in the wrong frame is therefore recognised by its
share of suspect boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..core.geometry import FloatArray, apply_affine, box_around, spacing_mm, swap_lps_ras
from ..preprocess.lung_search import LungSearch
from ..preprocess.lungs import Lungs, find_lungs
from ..read.instances import Values
from ..read.scan import ScanError, Volume

AIR_HU, AIR_PERCENTILE = -700.0, 95.0  # the lowest value of this percentile in 895 nodules (ground glass too) is -675
OUTSIDE_MM = 15.0  # beyond the closed lungs and the box's own radius: a margin for nodules at the pleura
ALARMING_SHARE = 0.2  # of the boxes: more than isolated annotation errors


def lungs_of(volume: Volume) -> Lungs | None:
    """Return the lungs of a scan; ``None`` if they were not segmented, so that "outside" cannot be judged."""
    try:
        lungs = find_lungs(*volume.turned_to_ras(), LungSearch())
    except ScanError:  # no lungs in it
        return None
    return lungs if lungs.kind == "lungs" else None


def failed_checks(
    volume: Volume, lungs: Lungs | None, box_lps_mm: Sequence[float], mask: Values | None, value: int
) -> Iterator[str]:
    """Yield the sanity checks that a box ``[x, y, z, w, h, d]`` fails, in a few words each.

    Args:
        volume: the scan.
        lungs: the scan's lungs; ``None`` skips the check against them.
        box_lps_mm: the box.
        mask: instance mask on the scan's grid; ``None`` if there is none.
        value: the box's value in the mask.
    """
    centre, diameter_mm = np.asarray(box_lps_mm[:3]), float(np.mean(box_lps_mm[3:]))
    if lungs is not None and lungs.at(centre)[1] > OUTSIDE_MM + diameter_mm / 2.0:
        yield "outside the lungs"
    if _is_air(volume, centre, diameter_mm):
        yield "contains only air"
    if mask is not None:
        yield from failed_mask_checks(mask == value, volume.affine_ras, centre, diameter_mm)


def _is_air(volume: Volume, centre_lps_mm: FloatArray, diameter_mm: float) -> bool:
    """Whether the sphere in the box contains nothing denser than lung."""
    affine_ras, centre = volume.affine_ras, swap_lps_ras(centre_lps_mm)
    radius_mm = max(diameter_mm / 2.0, float(spacing_mm(affine_ras).max()))
    box = box_around(affine_ras, volume.image_hu.shape, centre, radius_mm)
    voxels = np.stack(np.meshgrid(*(np.arange(b.start, b.stop) for b in box), indexing="ij"), axis=-1)
    inside = np.linalg.norm(apply_affine(affine_ras, voxels) - centre, axis=-1) <= radius_mm
    values = volume.image_hu[box][inside]
    return bool(values.size) and float(np.percentile(values, AIR_PERCENTILE)) < AIR_HU


def failed_mask_checks(
    inside: np.ndarray, affine_ras: FloatArray, centre_lps_mm: FloatArray, diameter_mm: float
) -> Iterator[str]:
    """Yield in a few words why a mask ``[I, J, K]`` cannot be that of a nodule with this centre and diameter."""
    voxels = np.argwhere(inside)
    if not len(voxels):
        yield "missing in the mask"
        return
    apart = np.linalg.norm(swap_lps_ras(apply_affine(affine_ras, voxels.mean(axis=0))) - centre_lps_mm)
    if apart > max(diameter_mm / 2.0, float(spacing_mm(affine_ras).max())):
        yield f"mask {apart:.0f} mm away"
