"""Nodules of the synthetic chest: their number, size, kind, position and exact shape.

A shape is a distance field sampled on its own fine patch, shifted so that its volume is exactly that of a sphere of the
drawn diameter. Masks on any grid, volume and centroid are all derived from it. Positions are voxels of the 1 mm grid
unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..core.geometry import Point, apply_affine, box_around, sphere_diameter_mm
from .anatomy import Anatomy
from .grid import Array, Box, Field, blend, inside, smooth_min, stamp_capsules

# Diameters follow a shifted log-normal distribution, 3.2 mm + exp(N(1.25, 0.96)), truncated to the observed range and
# fitted to the 1186 nodules of LUNA16's annotations.csv (Setio et al., Medical Image Analysis 2017; the 5/50/95 %
# quantiles are 4.1/6.4/19.0 mm there and 3.9/6.6/18.2 mm here).
DIAMETER_RANGE_MM = (3.25, 32.27)
_DIAMETER_SHIFT_MM, _DIAMETER_LOG_MEAN, _DIAMETER_LOG_SD = 3.2, 1.25, 0.96
COUNT_PROBABILITY = (0.22, 0.20, 0.17, 0.13, 0.10, 0.07, 0.05, 0.04, 0.02)  # of 0 … 8 nodules in a scan
KINDS = {"solid": 0.70, "part-solid": 0.13, "ground-glass": 0.17}
MARGINS = {"smooth": 0.5, "lobulated": 0.3, "spiculated": 0.2}
MARGINS_LARGE = {"smooth": 0.2, "lobulated": 0.4, "spiculated": 0.4}  # from 12 mm on: seldom smooth
ATTACHMENTS = {"free": 0.5, "pleura": 0.28, "vessel": 0.22}
MIN_SPICULATED_MM = 6.0  # below this, spicules would be thinner than anything visible in CT
GAP_MM = 5.0  # smallest distance between two nodules, taken as spheres 1.2 times as large
_TRIES, _SHAPES = 12000, 6  # random positions, and shapes at positions with room, tried before a nodule is left out
_LARGEST_SHARE_OF_LUNG = 0.6  # largest diameter relative to twice the depth of the deepest lung voxel


@dataclass(frozen=True)
class PhantomNodule:
    """A nodule of a synthetic chest.

    Attributes:
        label: its value in the instance mask.
        centre_ras_mm: centroid of its shape.
        diameter_mm: diameter of the sphere of the same volume.
        kind: "solid", "part-solid" or "ground-glass".
        margin: "smooth", "lobulated" or "spiculated" (the mask does not include spicules).
        attachment: "free", "pleura" or "vessel".
        distance_mm: ``[A, A, A]``, its exact shape as distances on a fine patch, negative inside.
        affine_ras: ``[4, 4]``, patch index to RAS mm.
    """

    label: int
    centre_ras_mm: Point
    diameter_mm: float
    kind: str
    margin: str
    attachment: str
    distance_mm: Field = field(repr=False, compare=False)
    affine_ras: Array = field(repr=False, compare=False)

    @property
    def half_width_mm(self) -> float:
        """Half the edge length of the patch, mm."""
        return float(self.affine_ras[0, 0]) * len(self.distance_mm) / 2

    def around(self, affine_ras: Array, shape: tuple[int, ...], half_width_mm: float) -> tuple[Box, Array, Field]:
        """Return the part of a grid around the nodule.

        Args:
            affine_ras: ``[4, 4]``, voxel to RAS mm of the grid.
            shape: the grid's shape.
            half_width_mm: half the edge length of the part.

        Returns:
            Its box on the grid, the positions of its voxels (``[…, 3]`` RAS mm) and their distances to the nodule's
            surface; voxels beyond the patch count as outside.
        """
        box = box_around(affine_ras, shape, self.centre_ras_mm, half_width_mm)
        grid = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in box), indexing="ij"), axis=-1)
        positions = apply_affine(affine_ras, grid)
        places = np.moveaxis(apply_affine(np.linalg.inv(self.affine_ras), positions), -1, 0)
        distance = ndimage.map_coordinates(self.distance_mm, places, np.float32, 1, "constant", 10.0)
        return box, positions, np.asarray(distance)


def draw_diameter_mm(rng: np.random.Generator, largest_mm: float = DIAMETER_RANGE_MM[1]) -> float:
    """Draw a diameter from the distribution fitted to LUNA16, at most ``largest_mm`` or 3.5 mm, whichever is larger."""
    low, high = DIAMETER_RANGE_MM[0], max(min(largest_mm, DIAMETER_RANGE_MM[1]), 3.5)
    while True:
        diameter = _DIAMETER_SHIFT_MM + float(np.exp(rng.normal(_DIAMETER_LOG_MEAN, _DIAMETER_LOG_SD)))
        if low <= diameter <= high:
            return diameter


def _centres(
    rng: np.random.Generator, anatomy: Anatomy, vessels: Array, radius: float, attachment: str
) -> Iterator[Array]:
    """Yield random centres, in voxels, at which a nodule has room.

    Args:
        rng: source of the centres.
        anatomy: the anatomy around it.
        vessels: ``[V, 4]`` points on vessel centre lines and the radius there.
        radius: radius of the nodule, voxels.
        attachment: "free", "pleura" or "vessel".
    """
    shape = np.array(anatomy.room_mm.shape)
    fitting = vessels[(vessels[:, 3] > 0.6) & (vessels[:, 3] < max(0.8, 0.5 * radius))]
    thick = vessels[vessels[:, 3] > 1.2]
    if attachment == "vessel" and not len(fitting):
        return
    for _ in range(_TRIES):
        if attachment == "vessel":
            point = fitting[rng.integers(len(fitting))]
            away = rng.standard_normal(3)
            centre = point[:3] + away / np.linalg.norm(away) * (0.85 * radius + point[3])
        else:
            centre = rng.uniform(4, shape - 5)
        index = np.rint(centre).astype(int)
        if np.any(index < 4) or np.any(index >= shape - 4):
            continue
        depth = -float(anatomy.room_mm[tuple(index)])
        fits = 0.35 * radius < depth < 0.75 * radius if attachment == "pleura" else depth >= radius + 1.5
        if fits and attachment == "free":
            fits = not (np.linalg.norm(thick[:, :3] - centre, axis=1) < radius + thick[:, 3] + 1).any()
        if fits:
            yield centre


def _directions(rng: np.random.Generator, count: int) -> Array:
    vectors = rng.standard_normal((count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _blob(rng: np.random.Generator, offset: Field, radius: float, margin: str) -> Field:
    """Return a distance-like field of a random shape; ``offset`` are positions ``[3, A, B, C]`` from its centre, mm."""
    axes = rng.uniform(0.8, 1.2, 3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    rotated = np.tensordot(turn, offset, axes=1)
    length = np.sqrt((offset**2).sum(axis=0)) + 1e-6
    squeezed = np.sqrt(sum((rotated[a] / axes[a]) ** 2 for a in range(3)))
    shape = (squeezed - radius).astype(np.float32)
    if margin == "lobulated":
        for way in _directions(rng, int(rng.integers(2, 6))):
            centre = way * radius * rng.uniform(0.65, 0.95)
            lobe = np.sqrt(sum((offset[a] - centre[a]) ** 2 for a in range(3))) - radius * rng.uniform(0.45, 0.62)
            shape = smooth_min(shape, lobe.astype(np.float32), 0.25 * radius)
    elif margin == "spiculated":
        for way in _directions(rng, int(rng.integers(9, 18))):
            cosine = sum(offset[a] * way[a] for a in range(3)) / length
            shape = shape - (0.25 * radius * np.exp((cosine - 1) / 0.035)).astype(np.float32)
    for way in _directions(rng, 6):  # make it uneven: nothing in the body is a perfect ellipsoid
        wave = np.sin(2.2 / radius * sum(offset[a] * way[a] for a in range(3)) + rng.uniform(0, 6.3))
        shape = shape + (0.05 * radius * wave).astype(np.float32)
    return shape


def _make_shape(
    rng: np.random.Generator, anatomy: Anatomy, centre: Array, diameter_mm: float, margin: str
) -> tuple[Field, Array, float]:
    """Make a shape around ``centre``, cut at the pleura, with the volume of a sphere of ``diameter_mm``.

    Returns:
        Distances on a patch, the voxel position ``[3]`` of the patch's first sample, and its spacing in voxels. Where
        the lung has less room than the wanted volume, the shape is smaller.
    """
    radius = diameter_mm / 2
    step = 0.25 if radius < 3.5 else 0.5
    n = int(np.ceil((1.9 * radius + 3) / step))
    axis = (np.arange(-n, n + 1) * step).astype(np.float32)
    offset = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    shape = _blob(rng, offset, radius, margin)
    points = offset + centre[:, None, None, None].astype(np.float32)
    pleura = ndimage.map_coordinates(anatomy.room_mm, points, order=1, mode="nearest", output=np.float32)
    pleura = pleura + np.float32(0.3)  # stay just inside the pleura
    wanted = round(4 / 3 * np.pi * radius**3 / step**3)
    candidates = shape[pleura <= 0]
    if len(candidates) > wanted:
        shape = shape - np.partition(candidates, wanted)[wanted]
    return np.maximum(shape, pleura), points[:, 0, 0, 0].astype(np.float64), step


def _is_compact(distance: Field, wanted_mm: float, measured_mm: float) -> bool:
    """Whether a shape has the wanted size, is one piece within its patch, and contains its centroid well inside."""
    solid = np.argwhere(distance <= 0)
    if abs(measured_mm - wanted_mm) > 0.02 * wanted_mm or solid.min() == 0 or solid.max() == len(distance) - 1:
        return False
    centre = tuple(np.rint(solid.mean(axis=0)).astype(int))
    return ndimage.label(distance <= 0)[1] == 1 and bool(distance[centre] < -0.15 * wanted_mm)


def place_nodules(
    rng: np.random.Generator, anatomy: Anatomy, vessels: Array, count: int, affine_ras: Array
) -> tuple[PhantomNodule, ...]:
    """Draw ``count`` nodules, or fewer if the lungs have no room left, at least ``GAP_MM`` apart.

    Args:
        rng: source of every choice.
        anatomy: the anatomy with the lungs.
        vessels: ``[V, 4]`` points on vessel centre lines and the radius there.
        count: number of nodules, ≥ 0.
        affine_ras: ``[4, 4]``, voxel to RAS mm of the 1 mm grid.
    """
    placed: list[PhantomNodule] = []
    for _ in range(count):
        nodule = _place_one(rng, anatomy, vessels, placed, affine_ras)
        if nodule is not None:
            placed.append(nodule)
    return tuple(placed)


def _place_one(
    rng: np.random.Generator, anatomy: Anatomy, vessels: Array, placed: list[PhantomNodule], affine_ras: Array
) -> PhantomNodule | None:
    """Draw the next nodule; return ``None`` if no position and shape that fit are found in a number of tries."""
    diameter = draw_diameter_mm(rng, _LARGEST_SHARE_OF_LUNG * 2 * float(-anatomy.room_mm.min()))
    margins = MARGINS if diameter < 12 else MARGINS_LARGE
    kind, margin, attachment = (str(rng.choice(list(t), p=list(t.values()))) for t in (KINDS, margins, ATTACHMENTS))
    if margin == "spiculated" and diameter < MIN_SPICULATED_MM:
        margin = "smooth"

    def is_apart(centre: Array) -> bool:
        here = apply_affine(affine_ras, centre)
        room = (np.linalg.norm(here - n.centre_ras_mm) - (n.diameter_mm + diameter) * 0.6 for n in placed)
        return all(mm >= GAP_MM for mm in room)

    centres = filter(is_apart, _centres(rng, anatomy, vessels, diameter / 2, attachment))
    for centre in islice(centres, _SHAPES):
        patch, first, step = _make_shape(rng, anatomy, centre, diameter, margin)
        measured = sphere_diameter_mm(np.count_nonzero(patch <= 0) * step**3)
        if _is_compact(patch, diameter, measured):
            patch_affine = affine_ras @ np.diag([step, step, step, 1.0])
            patch_affine[:3, 3] = apply_affine(affine_ras, first)
            x, y, z = apply_affine(patch_affine, np.argwhere(patch <= 0).mean(axis=0)).tolist()
            label = len(placed) + 1
            return PhantomNodule(label, (x, y, z), measured, kind, margin, attachment, patch, patch_affine)
    return None


def instance_mask(
    nodules: tuple[PhantomNodule, ...], affine_ras: Array, shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Return an instance mask of the voxels whose centres lie inside each nodule's shape, ``[I, J, K]``.

    If no voxel centre of a coarse grid lies inside a small nodule, the voxel nearest to its centre is labelled.

    Args:
        nodules: nodules with labels 1 … 255; without any, the mask is empty.
        affine_ras: ``[4, 4]``, voxel to RAS mm; any direction and spacing.
        shape: the grid's ``(I, J, K)``.
    """
    mask = np.zeros(shape, dtype=np.uint8)
    for nodule in nodules:
        box, _, distance = nodule.around(affine_ras, shape, 1.3 * nodule.half_width_mm)
        mask[box][distance <= 0] = nodule.label
        nearest = np.rint(apply_affine(np.linalg.inv(affine_ras), nodule.centre_ras_mm)).astype(int)
        if np.all(distance > 0) and np.all((nearest >= 0) & (nearest < shape)):
            mask[tuple(nearest)] = nodule.label
    return mask


def paint_nodules(
    rng: np.random.Generator, image: Field, nodules: tuple[PhantomNodule, ...], anatomy: Anatomy, affine_ras: Array
) -> None:
    """Draw the nodules into the 1 mm image in place: soft edges, an uneven inside, spicules and solid cores."""
    for nodule in nodules:
        box, positions, distance = nodule.around(affine_ras, image.shape, nodule.half_width_mm + 1)
        lumps = ndimage.gaussian_filter(rng.standard_normal(distance.shape).astype(np.float32), 1.2) * 5
        part = image[box]
        if nodule.margin == "spiculated":
            _paint_spicules(rng, part, nodule, box, anatomy, affine_ras)
        if nodule.kind == "solid":
            value = rng.uniform(220, 500) if rng.random() < 0.06 else rng.uniform(5, 60)  # calcified or not
            blend(part, inside(distance, 1.2), np.maximum(value + 14 * lumps, part))
            continue
        value = rng.uniform(-680, -480) + 45 * lumps
        blend(part, inside(distance, 2.2), np.maximum(value, part + 60))
        if nodule.kind == "part-solid":
            radius = nodule.diameter_mm / 2
            core = np.asarray(nodule.centre_ras_mm) + 0.25 * radius * _directions(rng, 1)[0]
            ball = np.linalg.norm(positions - core, axis=-1) - rng.uniform(0.3, 0.6) * radius
            ball = np.maximum(ball + 0.9 * lumps, distance).astype(np.float32)
            blend(part, inside(ball, 1.4), np.maximum(rng.uniform(-20, 40), part))


def _paint_spicules(
    rng: np.random.Generator, part: Field, nodule: PhantomNodule, box: Box, anatomy: Anatomy, affine_ras: Array
) -> None:
    """Draw thin strands from the surface outwards, within the lung, into ``part`` in place; not part of the mask."""
    radius = nodule.diameter_mm / 2
    centre = apply_affine(np.linalg.inv(affine_ras), nodule.centre_ras_mm) - [s.start for s in box]
    ways = _directions(rng, int(rng.integers(10, 22)))
    ends = centre + ways * radius * rng.uniform(1.3, 1.9, (len(ways), 1))
    strands = np.column_stack([centre + 0.8 * radius * ways, ends, np.tile([0.75, 0.2], (len(ways), 1))])
    distance = np.full(part.shape, 3.0, dtype=np.float32)
    stamp_capsules(distance, strands)
    blend(part, inside(distance) * inside(anatomy.lung_mm[box]), np.maximum(-80.0, part))
