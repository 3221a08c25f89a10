"""Branching trees of the synthetic lung: arteries, veins and the airways that accompany the arteries.

Each tree fills its lobe: the targets are split by a plane through their centre of mass, a branch grows part of the way
towards each half, and this is repeated until every branch has one target (after Tawhai, Pullan and Hunter, Annals of
Biomedical Engineering 28:793, 2000). The radius of a branch is a power of the number of targets that it supplies.
Deviations: all branches of a generation grow at once, branches are bent, and no branch is trimmed at the border of the
lobe (targets keep a distance from it). Positions are voxels of the 1 mm grid, that is, millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .anatomy import Anatomy
from .grid import Array, Field, Frame, blend, inside, stamp_capsules
from .shapes import ROOTS

MURRAY_EXPONENT = 3.3  # r**x is conserved where a branch divides; Murray gives 3, but this looks more like real lungs
GROWTH = 0.42  # share of the way to the centre of mass that a branch grows
MAX_TURN = np.deg2rad(55.0)  # largest angle between a branch and its parent
MIN_CAPSULE_RADIUS = 0.9  # voxels; thinner vessels are drawn as points of the same total volume
LEAF_SPACING_MM = 9.8  # between the ends of neighbouring arteries (or veins)
TERMINAL_RADIUS_MM = 0.45  # radius of an artery or vein that leads to one such end
LEAF_DEPTH_MM = 2.2  # vessels end at least this far from the pleura and the fissures
CENTRAL_MM, CENTRAL_SHARE = 12.0, 0.6  # deeper than this, only this share of vessels end: thick ones need the room


@dataclass(frozen=True)
class Tree:
    """A branching tree.

    Attributes:
        nodes: ``[N, 3]`` positions; node 0 is the root.
        parents: ``[N]`` index of the preceding node; -1 for the root.
        radii: ``[N]`` radius of the branch that ends at each node.
    """

    nodes: Array
    parents: npt.NDArray[np.int64]
    radii: Array


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))


def _limit_turn(direction: Array, before: Array) -> Array:
    """Turn unit vectors towards ``before`` so that none deviates from it by more than ``MAX_TURN``."""
    cosine = np.clip((direction * before).sum(axis=1), -1, 1)
    across = _unit(direction - cosine[:, None] * before)
    limited = np.cos(MAX_TURN) * before + np.sin(MAX_TURN) * across
    return np.where((np.arccos(cosine) > MAX_TURN)[:, None], limited, direction)


def grow_tree(root: Array, direction: Array, targets: Array, rng: np.random.Generator) -> Tree:
    """Grow a tree from ``root`` to every target.

    Args:
        root: ``[3]`` position of the root.
        direction: ``[3]`` direction in which the tree leaves the root.
        targets: ``[T, 3]`` positions, all different; with T = 0 the tree consists of the root alone.
        rng: source of small irregularities.
    """
    grown = [(root[None], np.array([-1]), np.array([len(targets)]))]
    points, label = targets, np.zeros(len(targets), dtype=np.int64)
    start, before, base = root[None], _unit(direction[None]), np.array([0])
    normal = _unit(np.cross(before, rng.standard_normal((1, 3))))
    total = 1
    while len(points):
        count = np.bincount(label)
        centre = np.stack([np.bincount(label, weights=axis) for axis in points.T], axis=1) / count[:, None]
        way = centre - start
        heading = _limit_turn(_unit(way + 0.06 * rng.standard_normal(way.shape) * np.abs(way).max(1)[:, None]), before)
        length = np.linalg.norm(way, axis=1) * GROWTH * rng.uniform(0.8, 1.2, len(way))
        end = np.where((count == 1)[:, None], centre, start + heading * length[:, None])
        grown.append((end, base, count))
        normal = _unit(np.cross(heading, normal) + 0.25 * rng.standard_normal(normal.shape))
        side = ((points - centre[label]) * normal[label]).sum(axis=1) > 0
        shared = count[label] > 1
        points = points[shared]
        keys, label = np.unique(label[shared] * 2 + side[shared], return_inverse=True)
        branch = keys // 2
        start, before, normal, base = end[branch], heading[branch], normal[branch], total + branch
        total += len(end)
    nodes, parents, leaves = (np.concatenate(parts) for parts in zip(*grown, strict=True))
    return Tree(nodes, parents, TERMINAL_RADIUS_MM * leaves.astype(np.float64) ** (1.0 / MURRAY_EXPONENT))


def bent_segments(tree: Tree, rng: np.random.Generator, pieces: int = 4) -> Array:
    """Divide every branch into ``pieces`` straight segments along a curve that leaves its parent smoothly.

    Returns:
        ``[pieces * (N - 1), 8]``: start, end, radius at start and end.
    """
    parent = tree.parents[1:]
    a, b = tree.nodes[parent], tree.nodes[1:]
    length = np.linalg.norm(b - a, axis=1, keepdims=True)
    incoming = _unit(np.where((parent > 0)[:, None], a - tree.nodes[np.maximum(tree.parents[parent], 0)], b - a))
    bow = length * (incoming - _unit(b - a)) * 0.2 + 0.025 * length * rng.standard_normal(a.shape)
    u = np.linspace(0, 1, pieces + 1)
    curve = a[:, None] + u[None, :, None] * (b - a)[:, None] + (4 * u * (1 - u) ** 2)[None, :, None] * bow[:, None]
    thick = np.minimum(tree.radii[parent], 1.25 * tree.radii[1:])
    r = thick[:, None] + u * (tree.radii[1:] - thick)[:, None]
    parts = np.concatenate([curve[:, :-1], curve[:, 1:], r[:, :-1, None], r[:, 1:, None]], axis=2)
    return np.asarray(parts.reshape(-1, 8))


def _deposit(share: Field, points: Array, volumes: Array) -> None:
    """Add each point's volume (voxels) to ``share`` in place, distributed trilinearly over its eight neighbours.

    Points outside the grid are ignored.
    """
    keep = np.all((points >= 0) & (points < np.array(share.shape) - 1), axis=1)
    points, volumes = points[keep], volumes[keep]
    low = np.floor(points).astype(np.int64)
    f = points - low
    index, weight = [], []
    for corner in np.ndindex(2, 2, 2):
        index.append(np.ravel_multi_index(tuple((low + corner).T), share.shape))
        weight.append(volumes * np.prod([f[:, a] if c else 1 - f[:, a] for a, c in enumerate(corner)], axis=0))
    cells, inverse = np.unique(np.concatenate(index), return_inverse=True)
    share.reshape(-1)[cells] += np.bincount(inverse, weights=np.concatenate(weight)).astype(np.float32)


def draw_segments(shape: tuple[int, ...], segments: Array) -> Field:
    """Return the share of each voxel of a grid, 0 … 1, that lies inside tapered segments ``[S, 8]``.

    Thick segments are drawn as capsules with a one-voxel edge, thin ones as points with the same total volume, so that
    a vessel thinner than a voxel is fainter, not missing.
    """
    thin = segments[:, 6:].mean(axis=1) < MIN_CAPSULE_RADIUS
    distance = np.full(shape, 1.0, dtype=np.float32)
    stamp_capsules(distance, segments[~thin], margin=1.0)
    share = inside(distance)
    a, b, r = np.split(segments[thin], (3, 6), axis=1)
    length = np.linalg.norm(b - a, axis=1)
    count = np.maximum(np.ceil(length / 0.6).astype(int), 1)
    which = np.repeat(np.arange(len(a)), count)
    place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    u = ((place + 0.5) / count[which])[:, None]
    radius = r[which, 0] + u[:, 0] * (r[which, 1] - r[which, 0])
    _deposit(share, a[which] + u * (b - a)[which], np.pi * radius**2 * (length / count)[which])
    return np.minimum(share, 1)


def _accompany(tree: Tree, root: Array, beside: Array) -> Tree:
    """Return the airway tree beside an arterial tree: the same branching, but a root of its own and shifted nodes.

    Args:
        tree: the arteries; the airway is shifted sideways by 1.9 times their radii, so that walls touch.
        root: ``[3]`` position of the airway's root.
        beside: ``[3]`` unit vector towards the side on which the airway lies.
    """
    heading = _unit(tree.nodes[1:] - tree.nodes[tree.parents[1:]])
    across = _unit(beside[None] - (heading @ beside)[:, None] * heading)
    nodes = np.concatenate([root[None], tree.nodes[1:] + 1.9 * tree.radii[1:, None] * across])
    return Tree(nodes, tree.parents, 0.95 * tree.radii)


def _targets(anatomy: Anatomy, lobe: int, rng: np.random.Generator) -> Array:
    """Return the ends of one lobe's vessels, ``[T, 3]`` voxels: a jittered lattice inside the lobe; may be empty."""
    spacing = LEAF_SPACING_MM * rng.uniform(0.95, 1.05)
    shape = np.array(anatomy.lung_mm.shape)
    axes = [np.arange(spacing / 2, n - 1, spacing) for n in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = points + rng.uniform(-0.48, 0.48, points.shape) * spacing
    index = tuple(np.clip(np.rint(points).astype(int), 0, shape - 1).T)
    keep = (anatomy.lobe[index] == lobe) & (anatomy.room_mm[index] < -LEAF_DEPTH_MM)
    keep &= anatomy.fissure_mm[index] > LEAF_DEPTH_MM
    keep &= (anatomy.room_mm[index] > -CENTRAL_MM) | (rng.random(len(points)) < CENTRAL_SHARE)
    return points[keep]


def _lobe_trees(frame: Frame, anatomy: Anatomy, lobe: int, rng: np.random.Generator) -> tuple[Tree, Tree, Tree]:
    """Return the trees of a lobe's arteries and veins, and of the airways beside the arteries."""
    roots = {name: frame.to_voxel(point) for name, point in ROOTS[lobe].items()}
    grown = []
    for root in (roots["artery"], roots["vein"]):
        targets = _targets(anatomy, lobe, rng)
        grown.append(grow_tree(root, targets.mean(axis=0) - root if len(targets) else np.ones(3), targets, rng))
    beside = roots["airway"] - roots["artery"]
    airway = _accompany(grown[0], roots["airway"], beside / max(float(np.linalg.norm(beside)), 1e-6))
    return grown[0], grown[1], airway


def fill_lungs(frame: Frame, anatomy: Anatomy, blood_hu: float, rng: np.random.Generator) -> Array:
    """Draw vessels and airways into the image in place.

    Returns:
        ``[V, 4]`` points on the vessels' centre lines and the radius there, voxels.
    """
    vessel_parts, airway_parts = [], []
    for lobe in ROOTS:
        artery, vein, airway = _lobe_trees(frame, anatomy, lobe, rng)
        vessel_parts += [bent_segments(artery, rng), bent_segments(vein, rng)]
        airway_parts.append(bent_segments(airway, rng))
    vessels, airways = np.concatenate(vessel_parts), np.concatenate(airway_parts)
    image = anatomy.image_hu
    cavity = inside(anatomy.lung_mm - 5.0, 4.0)  # the lungs and their roots, not the heart or the liver
    blend(image, draw_segments(image.shape, vessels) * cavity, np.maximum(image, np.float32(blood_hu)))
    airways = airways[airways[:, 6:].mean(axis=1) > 0.95]
    in_lung = inside(anatomy.lung_mm - 2.0, 2.0)
    blend(image, 0.85 * draw_segments(image.shape, airways) * in_lung, 20.0)
    airways[:, 6:] = 0.7 * airways[:, 6:] - 0.1  # the air inside the walls
    blend(image, draw_segments(image.shape, airways) * in_lung, -965.0)
    return vessels[:, [0, 1, 2, 6]]
