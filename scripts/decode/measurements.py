"""Measurements of a mask on the scan's own grid; :class:`..core.records.Measurement` defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from ..core.geometry import BoolArray, FloatArray, slice_axis, sphere_diameter_mm, voxel_volume_mm3
from ..core.records import Measurement, NoduleType

SOLID_FROM_HU = -300.0  # see type_hint
GROUND_GLASS_BELOW = 0.1  # share of solid voxels
SOLID_FROM = 0.6  # share of solid voxels


def _edge_points_mm(pixels: npt.NDArray[np.int64], steps_mm: FloatArray) -> FloatArray:
    """Return the convex hull of the midpoints of the pixels' edges, where the true border lies on average.

    Args:
        pixels: ``[P, 2]`` indices.
        steps_mm: ``[3, 2]`` world step of each index, mm.

    Returns:
        ``[H, 3]``, mm.
    """
    shifts = np.array([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    points = (pixels[:, None, :] + shifts[None]).reshape(-1, 2)
    return np.asarray(points[ConvexHull(points).vertices] @ steps_mm.T)


def _axes_mm(points: FloatArray) -> tuple[float, float]:
    """Return the largest distance between two points, and the extent of all points perpendicular to it."""
    apart = squareform(pdist(points))
    a, b = np.unravel_index(int(apart.argmax()), apart.shape)
    along = (points[b] - points[a]) / apart[a, b]
    across = points - np.outer(points @ along, along)
    return float(apart[a, b]), float(pdist(across).max())


def axial_axes_mm(inside: BoolArray, affine: FloatArray) -> tuple[float, float]:
    """Return the long and short axis of a mask on the axial slice where its long axis is largest.

    Args:
        inside: ``[I, J, K]``, at least one voxel is true.
        affine: ``[4, 4]``, voxel to world mm.

    Returns:
        ``(long_axis_mm, short_axis_mm)``.
    """
    across = slice_axis(affine)
    in_plane = [axis for axis in range(3) if axis != across]
    steps_mm = np.asarray(affine, dtype=np.float64)[:3, in_plane]
    slices = np.moveaxis(inside, across, 0)
    return max(_axes_mm(_edge_points_mm(np.argwhere(one), steps_mm)) for one in slices if one.any())


def type_hint(inside: BoolArray, image_hu: npt.NDArray[np.int16], affine: FloatArray) -> NoduleType:
    """Return the nodule type that the intensities inside a mask suggest; a hint, not a reading.

    A voxel of -300 HU or more counts as solid. Voxels at the mask's in-plane edge, where nodule and air mix, are left
    out unless there are no others. If less than a tenth of the voxels is solid, the type is ground-glass; from six
    tenths on it is solid; in between it is part-solid.

    The threshold is the one that agreed with readers in 102 subsolid nodules, in a comparison of thresholds from -500
    to -130 HU (-250 and -300 HU are recommended there, for solid components from 1 and 6 % of the volume):
    https://www.globethesis.com/?t=2334330536486386. The two shares are our own, chosen on LIDC-IDRI's readings of
    texture; docs/outputs.md gives the agreement.

    Args:
        inside, image_hu, affine: see :func:`measure`; the mask has at least one voxel.
    """
    plane = ndimage.generate_binary_structure(3, 1)
    across = [slice(None)] * 3
    across[slice_axis(affine)] = slice(0, 3, 2)
    plane[tuple(across)] = False
    core = ndimage.binary_erosion(inside, plane)
    share = float((image_hu[core if core.any() else inside] >= SOLID_FROM_HU).mean())
    if share < GROUND_GLASS_BELOW:
        return "ground-glass"
    return "solid" if share >= SOLID_FROM else "part-solid"


def measure(inside: BoolArray, image_hu: npt.NDArray[np.int16], affine: FloatArray) -> Measurement | None:
    """Measure one mask.

    Args:
        inside: ``[I, J, K]`` bool, the mask on the whole scan or on a box around the nodule.
        image_hu: ``[I, J, K]``, intensities of the same voxels, HU.
        affine: ``[4, 4]``, voxel to world mm (its translation is not used).

    Returns:
        The measurement; ``None`` for an empty mask.

    Example:
        >>> ball = np.square(np.indices((12, 12, 12)) - 5.5).sum(0) < 16
        >>> found = measure(ball, np.where(ball, -100, -850).astype(np.int16), np.eye(4))
        >>> found.volume_mm3, round(found.effective_diameter_mm, 1), found.type_hint
        (280.0, 8.1, 'solid')
    """
    count = int(inside.sum())
    if count == 0:
        return None
    volume = count * voxel_volume_mm3(affine)
    long_axis, short_axis = axial_axes_mm(inside, affine)
    return Measurement(
        volume_mm3=volume,
        effective_diameter_mm=sphere_diameter_mm(volume),
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        mean_hu=float(image_hu[inside].mean()),
        type_hint=type_hint(inside, image_hu, affine),
    )
