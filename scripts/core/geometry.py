"""Frames, axes and units: the one convention of this bundle.

Array axes are i, j, k; the centre of voxel (i, j, k) lies at ``affine @ (i, j, k, 1)``, in RAS millimetres: x grows
to the patient's right, y to the front, z to the head, as in NIfTI and MONAI. DICOM, ITK and LUNA16 use LPS, which is
RAS with x and y negated. The name of every world position states its frame and unit (``centre_lps_mm``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Point = tuple[float, float, float]

_LPS_RAS = np.array([-1.0, -1.0, 1.0])


def swap_lps_ras(points_mm: npt.ArrayLike) -> FloatArray:
    """Convert points ``[..., 3]`` from LPS to RAS millimetres, or back (the map is its own inverse).

    Example:
        >>> swap_lps_ras([10.0, 20.0, 30.0])
        array([-10., -20.,  30.])
    """
    return np.asarray(points_mm, dtype=np.float64) * _LPS_RAS


def swap_lps_ras_affine(affine: npt.ArrayLike) -> FloatArray:
    """Convert a ``[4, 4]`` voxel-to-LPS affine to voxel-to-RAS, or back."""
    return np.diag([*_LPS_RAS, 1.0]) @ np.asarray(affine, dtype=np.float64)


def apply_affine(affine: npt.ArrayLike, points: npt.ArrayLike) -> FloatArray:
    """Map points ``[..., 3]`` by a ``[4, 4]`` affine; no points, ``[0, 3]``, give ``[0, 3]``.

    Example:
        >>> apply_affine([[2, 0, 0, -10], [0, 2, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]], [[1, 1, 1]])
        array([[-8.,  2.,  6.]])
    """
    matrix = np.asarray(affine, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def spacing_mm(affine: npt.ArrayLike) -> FloatArray:
    """Return the distance between neighbouring voxel centres along i, j, k: ``[3]``, mm."""
    return np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)


def slice_axis(affine: npt.ArrayLike) -> int:
    """Return the array axis (0, 1, 2) that runs along the body: the one whose direction is closest to world z."""
    matrix = np.asarray(affine, dtype=np.float64)
    return int(np.abs(matrix[2, :3] / spacing_mm(matrix)).argmax())


def voxel_volume_mm3(affine: npt.ArrayLike) -> float:
    """Return the volume of one voxel, mm³ (also correct for sheared grids)."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))


def sphere_diameter_mm(volume_mm3: float) -> float:
    """Return the diameter of the sphere of this volume, mm."""
    return float(np.cbrt(6.0 * volume_mm3 / np.pi))


def bounds_of(affine: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Map a box, and return the lowest and the highest coordinates ``[3]`` that it reaches.

    Args:
        affine: ``[4, 4]``.
        low, high: ``[3]`` two opposite corners of the box.

    Example:
        >>> bounds_of([[0, -2, 0, 0], [1, 0, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1]], [0, 0, 0], [9, 4, 1])
        (array([-8.,  0.,  5.]), array([0., 9., 6.]))
    """
    corners = apply_affine(affine, np.where(list(np.ndindex(2, 2, 2)), high, low))
    return corners.min(axis=0), corners.max(axis=0)


def box_between(
    low: npt.ArrayLike, high: npt.ArrayLike, shape: Sequence[int], *, least: int = 0
) -> tuple[slice, slice, slice]:
    """Return the voxels between two corners, clipped to the grid.

    Args:
        low, high: ``[3]`` lowest and highest corner in voxels; fractional ones are rounded away from each other.
        shape: the grid's ``(I, J, K)``.
        least: voxels left along each axis even if the corners lie outside the grid, 0 or 1.
    """
    starts = np.clip(np.floor(low), 0, np.subtract(shape, least)).astype(int)
    stops = np.clip(np.ceil(high) + 1, starts + least, shape).astype(int)
    i, j, k = map(slice, starts.tolist(), stops.tolist())
    return i, j, k


def box_around(
    affine: npt.ArrayLike, shape: tuple[int, ...], centre_ras_mm: npt.ArrayLike, half_width_mm: float
) -> tuple[slice, slice, slice]:
    """Return the voxel box that contains a cube around a world position, clipped to the grid.

    Args:
        affine: ``[4, 4]`` voxel-to-RAS.
        shape: the grid's ``(I, J, K)``.
        centre_ras_mm: ``[3]``, mm.
        half_width_mm: half the cube's edge, mm.

    Returns:
        Three slices, each at least one voxel wide even if the cube lies outside the grid.
    """
    centre = np.asarray(centre_ras_mm)
    to_voxel = np.linalg.inv(np.asarray(affine, dtype=np.float64))
    return box_between(*bounds_of(to_voxel, centre - half_width_mm, centre + half_width_mm), shape, least=1)
