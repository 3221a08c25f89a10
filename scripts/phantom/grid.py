"""Tools of the synthetic chest: smooth noise, implicit shapes and capsules on voxel grids.

Two frames: *model* millimetres, in which the nominal adult is described once (x right, y front, z head, z = 0 at the
lowest lung recess), and *voxels* of the rendered 1 mm grid (so voxel = millimetre). ``Frame`` maps one to the other
by a stretch per axis and a smooth random warp. Signed distances are negative inside, in millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

Field = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]
Tube = list[tuple[float, float, float, float]]  # points (x, y, z) and radius, model mm
AIR_HU, FAT_HU, MUSCLE_HU = -1000.0, -105.0, 55.0
FAR_MM = 60.0  # stands for "far away" in distance fields that are only computed near a shape


def spline_basis(n: int, knot_spacing: float) -> Field:
    """Uniform cubic B-spline weights ``[n, knots]`` of positions 0 … n - 1, knots every ``knot_spacing`` samples."""
    position = np.arange(n) / knot_spacing
    cell = np.floor(position).astype(int)
    u = position - cell
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], axis=1) / 6
    basis = np.zeros((n, int(cell[-1]) + 4), dtype=np.float32)
    basis[np.arange(n)[:, None], cell[:, None] + np.arange(4)] = weights
    return basis


def along_axes(matrices: Sequence[Field], field: Field) -> Field:
    """Apply one matrix ``[new, old]`` per axis of ``field [I, J, K]``: separable resampling.

    The rows hold few non-zeros, so sparse products do it; they also use one thread, always in the same order.
    """
    out = field
    for matrix in matrices:
        flat = np.ascontiguousarray(out).reshape(out.shape[0], -1)
        product = (sparse.csr_array(matrix) @ flat).reshape(-1, *out.shape[1:])
        out = np.moveaxis(product, 0, -1)  # after three turns the axes are back in order
    return np.ascontiguousarray(out)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knot_spacing: float | tuple[float, ...]) -> Field:
    """Band-limited Gaussian noise of unit variance (in the mean), features about ``2 * knot_spacing`` samples wide.

    ``knot_spacing`` is one number, or one for each axis.
    """
    spacings = np.broadcast_to(knot_spacing, len(shape)).tolist()
    bases = [spline_basis(n, spacing) for n, spacing in zip(shape, spacings, strict=True)]
    knots = rng.standard_normal(tuple(b.shape[1] for b in bases), dtype=np.float32)
    gain = float(np.prod([np.sqrt((b**2).sum(axis=1).mean()) for b in bases]))
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

    shape: tuple[int, int, int]
    step: int
    origin: Array
    stretch: Array
    warp: Field

    @property
    def coarse_shape(self) -> tuple[int, int, int]:
        """Shape of the coarse grid."""
        i, j, k = ((n - 1) // self.step + 1 for n in self.shape)
        return i, j, k

    def model_coordinates(self) -> Field:
        """``[3, …coarse grid]``: where each coarse sample lies in the model, mm."""
        axes = [
            (o + np.arange(n) * self.step / s).astype(np.float32)
            for o, n, s in zip(self.origin, self.coarse_shape, self.stretch, strict=True)
        ]
        return self.warp + np.stack(np.meshgrid(*axes, indexing="ij"))

    def to_voxel(self, points: npt.ArrayLike) -> Array:
        """Voxel positions of model points ``[..., 3]``; the warp is undone to first order (it is smooth and small)."""
        nominal = (np.asarray(points, dtype=np.float64) - self.origin) * self.stretch
        nearest = np.rint(nominal / self.step).astype(int)
        index = tuple(np.clip(nearest[..., a], 0, n - 1) for a, n in enumerate(self.coarse_shape))
        return nominal - np.moveaxis(self.warp[(slice(None), *index)], 0, -1) * self.stretch

    def upsample(self, coarse: Field) -> Field:
        """Linear interpolation from the coarse to the full grid."""
        if self.step == 1:
            return coarse
        out = coarse
        for axis in range(3):
            before, after, even, odd = ((slice(None),) * axis + (s,) for s in _HALVES)
            fine = np.empty([2 * n - 1 if a == axis else n for a, n in enumerate(out.shape)], dtype=np.float32)
            fine[even] = out
            np.add(out[before], out[after], out=fine[odd])
            fine[odd] *= np.float32(0.5)
            out = fine
        return out


_HALVES = (slice(None, -1), slice(1, None), slice(None, None, 2), slice(1, None, 2))


def local_box(shape: tuple[int, ...], low: npt.ArrayLike, high: npt.ArrayLike) -> Box:
    """Slices of the voxels between two corners, cut at the grid; empty when nothing is left."""
    starts = np.clip(np.floor(low).astype(int), 0, shape)
    stops = np.clip(np.ceil(high).astype(int) + 1, starts, shape)
    i, j, k = (slice(int(a), int(b)) for a, b in zip(starts, stops, strict=True))
    return i, j, k


def capsule_distance(box: Box, start: Array, end: Array, radii: tuple[float, float], flatten: float = 1.0) -> Field:
    """Distance of the voxels of ``box`` to a capsule that tapers from ``radii[0]`` to ``radii[1]``.

    Args:
        box: voxels to look at.
        start: ``[3]``, voxel position.
        end: ``[3]``, voxel position.
        radii: at start and end, voxels.
        flatten: < 1 squeezes the third axis first: the capsule is then ``radius / flatten`` high along k.
    """
    squeeze = np.array([1.0, 1.0, flatten])
    p, d = start * squeeze, (end - start) * squeeze
    axes = [np.arange(s.start, s.stop) * f - o for s, f, o in zip(box, squeeze, p, strict=True)]
    x, y, z = np.ix_(*(a.astype(np.float32) for a in axes))
    share = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-9), 0, 1).astype(np.float32)
    distance = np.sqrt((x - share * d[0]) ** 2 + (y - share * d[1]) ** 2 + (z - share * d[2]) ** 2)
    return (distance - (radii[0] + share * (radii[1] - radii[0]))).astype(np.float32)


def capsules(
    shape: tuple[int, ...], starts: Array, ends: Array, radii: Array, *, flatten: float = 1.0, margin: float = 2.0
) -> Iterator[tuple[Box, Field]]:
    """The surroundings of tapered capsules on a grid and the distances to each.

    Args:
        shape: of the grid.
        starts: ``[S, 3]``, voxels.
        ends: ``[S, 3]``, voxels.
        radii: ``[S, 2]`` at start and end, voxels.
        flatten: see ``capsule_distance``.
        margin: how far outside the capsules the distance is needed, voxels.
    """
    reach = (radii.max(axis=1, keepdims=True) + margin) / np.array([1.0, 1.0, flatten])
    lows, highs = np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach
    for start, end, (r0, r1), low, high in zip(starts, ends, radii, lows, highs, strict=True):
        box = local_box(shape, low, high)
        yield box, capsule_distance(box, start, end, (float(r0), float(r1)), flatten)


def stamp_capsules(
    distance: Field, starts: Array, ends: Array, radii: Array, *, flatten: float = 1.0, margin: float = 2.0
) -> None:
    """Lower a distance field, in place and near them only, to that of the union with :func:`capsules`."""
    for box, near in capsules(distance.shape, starts, ends, radii, flatten=flatten, margin=margin):
        np.minimum(distance[box], near, out=distance[box])


def stamp_tube(
    distance: Field, points: Array, radii: npt.ArrayLike, *, flatten: float = 1.0, margin: float = 2.0
) -> None:
    """Stamp a polyline ``[P, 3]`` with a radius per point (or one for all) as capsules."""
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), points.shape[:1])
    stamp_capsules(distance, points[:-1], points[1:], np.stack([r[:-1], r[1:]], axis=1), flatten=flatten, margin=margin)


def ellipsoid(xyz: Field, centre: tuple[float, ...], axes: tuple[float, ...], grow: float = 1) -> Field:
    """Distance to an ellipsoid, model mm, at the model coordinates ``xyz [3, ...]``."""
    q = [(xyz[a] - centre[a]) / (axes[a] * grow) for a in range(3)]
    radius = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2)
    return np.clip((radius - 1) * min(axes) * grow, -FAR_MM, FAR_MM).astype(np.float32)


def coarse_tubes(frame: Frame, tubes: list[Tube], margin: float = 14.0) -> Field:
    """Distance to tubes given in model mm, on the coarse grid, model mm; ``FAR_MM`` beyond ``margin``."""
    unit = float(np.mean(frame.stretch)) / frame.step  # coarse samples per model mm
    distance = np.full(frame.coarse_shape, FAR_MM * unit, dtype=np.float32)
    for tube in tubes:
        points = np.array(tube, dtype=np.float64)
        stamp_tube(distance, frame.to_voxel(points[:, :3]) / frame.step, points[:, 3] * unit, margin=margin * unit)
    return distance / np.float32(unit)
