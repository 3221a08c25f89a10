"""Tools for rendering the synthetic chest: smooth noise, implicit shapes and capsules on voxel grids.

There are two frames: *model* millimetres, in which the nominal adult is described once (:mod:`.shapes`), and *voxels*
of the rendered 1 mm grid (so that one voxel is one millimetre). ``Frame`` maps one to the other by a stretch per axis
and a smooth random warp. Signed distances are in millimetres, negative inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.interpolate import BSpline

from ..core.geometry import box_between
from .shapes import Tube

Field = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Box = tuple[slice, ...]
FAR_MM = 60.0  # means "far away" in distance fields that are computed only near a shape


def spline_basis(n: int, knot_spacing: float) -> Field:
    """Return the uniform cubic B-spline weights ``[n, knots]`` of positions 0 … n - 1.

    There is a knot every ``knot_spacing`` samples.
    """
    position = np.arange(n) / knot_spacing
    knots = np.arange(-3.0, np.floor(position[-1]) + 5)
    return np.asarray(BSpline.design_matrix(position, knots, 3).toarray().astype(np.float32))


def along_axes(matrices: Sequence[Field], field: Field) -> Field:
    """Resample a field ``[I, J, K]`` separably, with one matrix ``[new, old]`` for each axis.

    The rows have few non-zero values, so sparse products are used; they also run in one thread, in a fixed order.
    """
    for matrix in matrices:
        product = sparse.csr_array(matrix) @ field.reshape(len(field), -1)
        field = np.moveaxis(product.reshape(-1, *field.shape[1:]), 0, -1)  # in order again after three turns
    return np.ascontiguousarray(field)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knot_spacing: float | tuple[float, ...]) -> Field:
    """Return band-limited Gaussian noise of unit variance on average.

    Its features are about ``2 * knot_spacing`` samples wide; ``knot_spacing`` is one number, or one for each axis.
    """
    bases = [spline_basis(*axis) for axis in zip(shape, np.broadcast_to(knot_spacing, len(shape)), strict=True)]
    knots = rng.standard_normal(tuple(b.shape[1] for b in bases), dtype=np.float32)
    gain = np.prod([np.sqrt((b**2).sum(axis=1).mean()) for b in bases])
    return along_axes(bases, knots / np.float32(gain))


def smooth_min(a: Field, b: Field, width: float) -> Field:
    """Return the union of two distance fields, rounded over ``width`` mm where they meet."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * (width / 4)


def smooth_max(a: Field, b: Field, width: float) -> Field:
    """Return the intersection of two distance fields, rounded over ``width`` mm where they meet."""
    return -smooth_min(-a, -b, width)


def inside(distance: Field, edge_mm: float = 1.0) -> Field:
    """Return the share of each voxel inside a shape, 0 … 1, from its distance: a ramp ``edge_mm`` wide."""
    return np.clip(0.5 - distance / edge_mm, 0, 1)


def blend(image: Field, share: Field, value: Field | float) -> None:
    """Mix ``value`` into ``image`` in place; all tissues are drawn over one another by this rule."""
    image += share * (value - image)


@dataclass(frozen=True)
class Frame:
    """The mapping between model millimetres and voxels of the rendered grid.

    Attributes:
        shape: shape of the full grid, ``(I, J, K)``; odd numbers if ``step`` is 2.
        step: voxels between samples of the coarse grid on which smooth shapes are computed, 1 or 2.
        origin: ``[3]`` model position of voxel (0, 0, 0) without the warp, mm.
        stretch: ``[3]`` voxels (= mm) per model millimetre along each axis.
        warp: ``[3, …coarse grid]`` displacement added to the model position of a voxel, model mm.
    """

    shape: tuple[int, ...]
    step: int
    origin: Array
    stretch: Array
    warp: Field

    @property
    def size(self) -> float:
        """Voxels per model millimetre, averaged over the axes."""
        return float(np.mean(self.stretch))

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Shape of the coarse grid."""
        return tuple((n - 1) // self.step + 1 for n in self.shape)

    def model_coordinates(self) -> Field:
        """Return the model position of each coarse sample, ``[3, …coarse grid]``, mm."""
        axes = [self.origin[a] + np.arange(n) * self.step / self.stretch[a] for a, n in enumerate(self.coarse_shape)]
        return self.warp + np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def to_voxel(self, points: npt.ArrayLike) -> Array:
        """Return the voxel positions of model points ``[..., 3]``.

        The warp, which is smooth and small, is inverted to first order.
        """
        nominal = (np.asarray(points, dtype=np.float64) - self.origin) * self.stretch
        nearest = np.clip(np.rint(nominal / self.step).astype(int), 0, np.array(self.coarse_shape) - 1)
        return nominal - np.moveaxis(self.warp[:, *np.moveaxis(nearest, -1, 0)], 0, -1) * self.stretch

    def upsample(self, coarse: Field) -> Field:
        """Interpolate a field linearly from the coarse to the full grid."""
        if self.step == 1:
            return coarse
        for _ in range(3):
            twice = np.repeat(coarse, 2, axis=0)
            coarse = np.moveaxis((twice[:-1] + twice[1:]) * np.float32(0.5), 0, -1)  # in order after three turns
        return np.ascontiguousarray(coarse)


def segments(points: Array, radii: npt.ArrayLike) -> Array:
    """Return the tapered segments of a polyline.

    Args:
        points: ``[P, 3]``.
        radii: ``[P]`` radius at each point, or one for all.

    Returns:
        ``[P - 1, 8]``: start, end, radius at start and end.
    """
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), points.shape[:1])
    return np.column_stack([points[:-1], points[1:], r[:-1], r[1:]])


def capsules(
    shape: tuple[int, ...], segments: Array, *, flatten: float = 1.0, margin: float = 2.0
) -> Iterator[tuple[Box, Field]]:
    """Yield a box around each of some tapered capsules, and the distances of its voxels to the capsule.

    Args:
        shape: shape of the grid.
        segments: ``[S, 8]``: start, end, radius at start and end, voxels.
        flatten: below 1, the third axis is compressed first, so that capsules have the radius ``radius / flatten``
            along k.
        margin: how far outside a capsule its distance is needed, voxels.
    """
    squeeze = np.array([1.0, 1.0, flatten])
    for segment in segments:
        (start, end), (r0, r1) = segment[:6].reshape(2, 3), segment[6:].tolist()
        reach = (max(r0, r1) + margin) / squeeze
        box = box_between(np.minimum(start, end) - reach, np.maximum(start, end) + reach, shape)
        p, d = start * squeeze, (end - start) * squeeze
        x, y, z = np.ix_(
            *((np.arange(s.start, s.stop) * f - o).astype(np.float32) for s, f, o in zip(box, squeeze, p, strict=True))
        )
        share = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-9), 0, 1).astype(np.float32)
        distance = np.sqrt((x - share * d[0]) ** 2 + (y - share * d[1]) ** 2 + (z - share * d[2]) ** 2)
        yield box, (distance - (r0 + share * (r1 - r0))).astype(np.float32)


def stamp_capsules(distance: Field, segments: Array, *, flatten: float = 1.0, margin: float = 2.0) -> None:
    """Unite a distance field with :func:`capsules` in place, changing it only near them."""
    for box, near in capsules(distance.shape, segments, flatten=flatten, margin=margin):
        np.minimum(distance[box], near, out=distance[box])


def ellipsoid(xyz: Field, centre: tuple[float, ...], axes: tuple[float, ...], grow: float = 1) -> Field:
    """Return the approximate distance to an ellipsoid, model mm, at the model coordinates ``xyz [3, ...]``."""
    q = [(xyz[a] - centre[a]) / (axes[a] * grow) for a in range(3)]
    radius = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    return np.clip((radius - 1) * min(axes) * grow, -FAR_MM, FAR_MM).astype(np.float32)


def coarse_tubes(frame: Frame, tubes: list[Tube], margin: float = 14.0) -> Field:
    """Return the distance to tubes on the coarse grid, both in model mm; ``FAR_MM`` beyond ``margin``."""
    unit = frame.size / frame.step  # coarse samples per model mm
    distance = np.full(frame.coarse_shape, FAR_MM * unit, dtype=np.float32)
    for tube in map(np.array, tubes):
        voxels = frame.to_voxel(tube[:, :3]) / frame.step
        stamp_capsules(distance, segments(voxels, tube[:, 3] * unit), margin=margin * unit)
    return distance / np.float32(unit)
