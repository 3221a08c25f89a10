"""Frames, axes and units: the one convention of this bundle.

Array axes are i, j, k; the centre of voxel (i, j, k) lies at ``affine @ (i, j, k, 1)``, in RAS millimetres: x grows
to the patient's right, y to the front, z to the head, as in NIfTI and MONAI. DICOM, ITK and LUNA16 use LPS, which is
RAS with x and y negated. The name of every world position states its frame and unit (``centre_lps_mm``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
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
    corners_mm = np.asarray(centre_ras_mm) + half_width_mm * np.array(
        [[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    )
    corners = apply_affine(np.linalg.inv(np.asarray(affine, dtype=np.float64)), corners_mm)
    low = np.floor(corners.min(axis=0)).astype(int)
    high = np.ceil(corners.max(axis=0)).astype(int) + 1
    starts = [min(max(int(a), 0), n - 1) for a, n in zip(low, shape, strict=True)]
    stops = [max(min(int(b), n), a + 1) for a, b, n in zip(starts, high, shape, strict=True)]
    i, j, k = (slice(a, b) for a, b in zip(starts, stops, strict=True))
    return i, j, k
