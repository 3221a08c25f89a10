"""Tools of the synthetic chest: smooth noise, implicit shapes and capsules on voxel grids.

Two frames: *model* millimetres, in which the nominal adult is described once (:mod:`.shapes`), and *voxels* of the
rendered 1 mm grid (so voxel = millimetre). ``Frame`` maps one to the other by a stretch per axis and a smooth random
warp. Signed distances are negative inside, in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.interpolate import BSpline

from .shapes import Tube

Field = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Box = tuple[slice, ...]
FAR_MM = 60.0  # stands for "far away" in distance fields that are only computed near a shape


def spline_basis(n: int, knot_spacing: float) -> Field:
    """Uniform cubic B-spline weights ``[n, knots]`` of positions 0 … n - 1, knots every ``knot_spacing`` samples."""
    position = np.arange(n) / knot_spacing
    knots = np.arange(-3.0, np.floor(position[-1]) + 5)
    return np.asarray(BSpline.design_matrix(position, knots, 3).toarray().astype(np.float32))


def along_axes(matrices: Sequence[Field], field: Field) -> Field:
    """Apply one matrix ``[new, old]`` per axis of ``field [I, J, K]``: separable resampling.

    The rows hold few non-zeros, so sparse products do it; they also use one thread, always in the same order.
    """
    for matrix in matrices:
        product = sparse.csr_array(matrix) @ field.reshape(len(field), -1)
        field = np.moveaxis(product.reshape(-1, *field.shape[1:]), 0, -1)  # after three turns the axes are in order
    return np.ascontiguousarray(field)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knot_spacing: float | tuple[float, ...]) -> Field:
    """Band-limited Gaussian noise of unit variance (in the mean), features about ``2 * knot_spacing`` samples wide.

    ``knot_spacing`` is one number, or one for each axis.
    """
    bases = [spline_basis(*axis) for axis in zip(shape, np.broadcast_to(knot_spacing, len(shape)), strict=True)]
    knots = rng.standard_normal(tuple(b.shape[1] for b in bases), dtype=np.float32)
    gain = np.prod([np.sqrt((b**2).sum(axis=1).mean()) for b in bases])
    return along_axes(bases, knots / np.float32(gain))


def smooth_min(a: Field, b: Field, width: float) -> Field:
    """Union of two distance fields, rounded over ``width`` mm where they meet."""
    h = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - h * h * (width / 4)


def smooth_max(a: Field, b: Field, width: float) -> Field:
    """Intersection of two distance fields, rounded over ``width`` mm."""
    return -smooth_min(-a, -b, width)


def inside(distance: Field, edge_mm: float = 1.0) -> Field:
    """Partial-volume share of a shape in each voxel, 0 … 1, from its distance: a ramp ``edge_mm`` wide."""
    return np.clip(0.5 - distance / edge_mm, 0, 1)


def blend(image: Field, share: Field, value: Field | float) -> None:
    """Mix ``value`` into ``image`` in place: the one rule by which tissues are laid over one another."""
    image += share * (value - image)


@dataclass(frozen=True)
class Frame:
    """Model millimetres ↔ voxels of the rendered grid.

    Attributes:
        shape: full grid ``(I, J, K)``; odd numbers where ``step`` is 2.
        step: voxels between samples of the coarse grid on which smooth shapes are computed, 1 or 2.
        origin: model position of voxel (0, 0, 0), mm.
        stretch: voxels (= mm) per model millimetre, per axis.
        warp: ``[3, …coarse grid]``, model mm added to a voxel's position.
    """

    shape: tuple[int, ...]
    step: int
    origin: Array
    stretch: Array
    warp: Field

    @property
    def size(self) -> float:
        """Voxels per model millimetre, in the mean of the axes."""
        return float(np.mean(self.stretch))

    @property
    def coarse_shape(self) -> tuple[int, ...]:
        """Shape of the coarse grid."""
        return tuple((n - 1) // self.step + 1 for n in self.shape)

    def model_coordinates(self) -> Field:
        """``[3, …coarse grid]``: where each coarse sample lies in the model, mm."""
        axes = [self.origin[a] + np.arange(n) * self.step / self.stretch[a] for a, n in enumerate(self.coarse_shape)]
        return self.warp + np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def to_voxel(self, points: npt.ArrayLike) -> Array:
        """Voxel positions of model points ``[..., 3]``; the warp is undone to first order (it is smooth and small)."""
        nominal = (np.asarray(points, dtype=np.float64) - self.origin) * self.stretch
        nearest = np.clip(np.rint(nominal / self.step).astype(int), 0, np.array(self.coarse_shape) - 1)
        return nominal - np.moveaxis(self.warp[:, *np.moveaxis(nearest, -1, 0)], 0, -1) * self.stretch

    def upsample(self, coarse: Field) -> Field:
        """Linear interpolation from the coarse to the full grid."""
        if self.step == 1:
            return coarse
        for _ in range(3):
            twice = np.repeat(coarse, 2, axis=0)
            coarse = np.moveaxis((twice[:-1] + twice[1:]) * np.float32(0.5), 0, -1)  # after three turns in order
        return np.ascontiguousarray(coarse)


def local_box(shape: tuple[int, ...], low: npt.ArrayLike, high: npt.ArrayLike) -> Box:
    """Slices of the voxels between two corners, cut at the grid; empty when nothing is left."""
    starts = np.clip(np.floor(low), 0, shape).astype(int)
    stops = np.clip(np.ceil(high) + 1, starts, shape).astype(int)
    return tuple(map(slice, starts.tolist(), stops.tolist()))


def segments(points: Array, radii: npt.ArrayLike) -> Array:
    """Tapered segments ``[P - 1, 8]`` of a polyline ``[P, 3]`` with a radius per point, or one: starts, ends, radii."""
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), points.shape[:1])
    return np.column_stack([points[:-1], points[1:], r[:-1], r[1:]])


def capsules(
    shape: tuple[int, ...], segments: Array, *, flatten: float = 1.0, margin: float = 2.0
) -> Iterator[tuple[Box, Field]]:
    """The surroundings of capsules that taper from one radius to another, and the distances of their voxels to each.

    Args:
        shape: of the grid.
        segments: ``[S, 8]``: start, end, radius at start and end, voxels.
        flatten: < 1 squeezes the third axis first: the capsules are then ``radius / flatten`` high along k.
        margin: how far outside the capsules the distance is needed, voxels.
    """
    squeeze = np.array([1.0, 1.0, flatten])
    for segment in segments:
        (start, end), (r0, r1) = segment[:6].reshape(2, 3), segment[6:].tolist()
        reach = (max(r0, r1) + margin) / squeeze
        box = local_box(shape, np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        p, d = start * squeeze, (end - start) * squeeze
        x, y, z = np.ix_(
            *((np.arange(s.start, s.stop) * f - o).astype(np.float32) for s, f, o in zip(box, squeeze, p, strict=True))
        )
        share = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-9), 0, 1).astype(np.float32)
        distance = np.sqrt((x - share * d[0]) ** 2 + (y - share * d[1]) ** 2 + (z - share * d[2]) ** 2)
        yield box, (distance - (r0 + share * (r1 - r0))).astype(np.float32)


def stamp_capsules(distance: Field, segments: Array, *, flatten: float = 1.0, margin: float = 2.0) -> None:
    """Lower a distance field, in place and near them only, to that of the union with :func:`capsules`."""
    for box, near in capsules(distance.shape, segments, flatten=flatten, margin=margin):
        np.minimum(distance[box], near, out=distance[box])


def ellipsoid(xyz: Field, centre: tuple[float, ...], axes: tuple[float, ...], grow: float = 1) -> Field:
    """Distance to an ellipsoid, model mm, at the model coordinates ``xyz [3, ...]``."""
    q = [(xyz[a] - centre[a]) / (axes[a] * grow) for a in range(3)]
    radius = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    return np.clip((radius - 1) * min(axes) * grow, -FAR_MM, FAR_MM).astype(np.float32)


def coarse_tubes(frame: Frame, tubes: list[Tube], margin: float = 14.0) -> Field:
    """Distance to tubes given in model mm, on the coarse grid, model mm; ``FAR_MM`` beyond ``margin``."""
    unit = frame.size / frame.step  # coarse samples per model mm
    distance = np.full(frame.coarse_shape, FAR_MM * unit, dtype=np.float32)
    for tube in map(np.array, tubes):
        voxels = frame.to_voxel(tube[:, :3]) / frame.step
        stamp_capsules(distance, segments(voxels, tube[:, 3] * unit), margin=margin * unit)
    return distance / np.float32(unit)
