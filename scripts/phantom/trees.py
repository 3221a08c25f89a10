"""Branching trees of the synthetic lung: arteries, veins and the airways that accompany the arteries.

Each lobe's tree fills its lobe: the targets are split by a plane through their centre of mass, a branch grows part of
the way towards each half, and so on until every branch holds one target (after Tawhai, Pullan and Hunter, Annals of
Biomedical Engineering 28:793, 2000). Radii follow a power law of the number of targets behind a branch.
Deviations: all branches of a generation grow at once, branches are bent, and no branch is trimmed at the lobe's
border (targets stay clear of it). Positions are voxels of the 1 mm grid, that is millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .grid import Array, Field, stamp_capsules

MURRAY_EXPONENT = 3.3  # r**x is conserved at a branching; Murray gives 3, this matches the look of real lungs
GROWTH = 0.42  # share of the way to the centre of mass that a branch grows
MAX_TURN = np.deg2rad(55.0)  # largest angle between a branch and its parent
MAX_GENERATIONS = 28  # far above what the largest lobe needs; only stops degenerate point sets
MIN_CAPSULE_RADIUS = 0.9  # voxels; thinner vessels are deposited as points, with the right volume


@dataclass(frozen=True)
class Tree:
    """A branching tree.

    Attributes:
        nodes: ``[N, 3]``; node 0 is the root.
        parents: ``[N]``, index of the node before; -1 at the root.
        leaves: ``[N]``, number of targets behind the branch that ends at the node.
    """

    nodes: Array
    parents: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]

    def radii(self, terminal_radius: float) -> Array:
        """Radius of the branch that ends at each node, when a branch to a single target has ``terminal_radius``."""
        return terminal_radius * np.asarray(self.leaves, dtype=np.float64) ** (1.0 / MURRAY_EXPONENT)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9))


def _limit_turn(direction: Array, before: Array) -> Array:
    """Turn unit vectors back towards ``before`` where they leave it by more than ``MAX_TURN``."""
    cosine = np.clip((direction * before).sum(axis=1), -1, 1)
    across = _unit(direction - cosine[:, None] * before)
    limited = np.cos(MAX_TURN) * before + np.sin(MAX_TURN) * across
    return np.where((np.arccos(cosine) > MAX_TURN)[:, None], limited, direction).astype(np.float64)


def grow_tree(root: Array, direction: Array, targets: Array, rng: np.random.Generator) -> Tree:
    """Grow a tree from ``root`` to every target.

    Args:
        root: ``[3]``.
        direction: ``[3]``, in which the root points.
        targets: ``[T, 3]``; with T = 0 the tree is the root alone.
        rng: source of the small irregularities.
    """
    grown = [(root[None], np.array([-1]), np.array([len(targets)]))]
    points, label = targets, np.zeros(len(targets), dtype=np.int64)
    start, before, base = root[None], _unit(direction[None]), np.array([0])
    normal = _unit(np.cross(before, rng.standard_normal((1, 3))))
    total = 1
    for _ in range(MAX_GENERATIONS):
        if len(points) == 0:
            break
        count = np.bincount(label)
        centre = np.stack([np.bincount(label, weights=points[:, a]) for a in range(3)], axis=1) / count[:, None]
        way = centre - start
        heading = _limit_turn(_unit(way + 0.06 * rng.standard_normal(way.shape) * np.abs(way).max(1)[:, None]), before)
        length = np.linalg.norm(way, axis=1) * GROWTH * rng.uniform(0.8, 1.2, len(way))
        end = np.where((count == 1)[:, None], centre, start + heading * length[:, None])
        grown.append((end, base, count))
        normal = _unit(np.cross(heading, normal) + 0.25 * rng.standard_normal(normal.shape))
        side = ((points - centre[label]) * normal[label]).sum(axis=1) > 0
        open_points = count[label] > 1
        points = points[open_points]
        keys, label = np.unique(label[open_points] * 2 + side[open_points], return_inverse=True)
        branch = keys // 2
        start, before, normal, base = end[branch], heading[branch], normal[branch], total + branch
        total += len(end)
    nodes, parents, leaves = (np.concatenate(parts) for parts in zip(*grown, strict=True))
    return Tree(nodes, parents, leaves)


def bent_segments(tree: Tree, radii: Array, rng: np.random.Generator, pieces: int = 4) -> tuple[Array, Array, Array]:
    """Cut every branch into ``pieces`` straight segments along a curve that leaves its parent smoothly.

    Returns:
        Starts ``[S, 3]``, ends ``[S, 3]`` and radii ``[S, 2]``, ``S = pieces * (N - 1)``.
    """
    child = np.arange(1, len(tree.nodes))
    parent = tree.parents[1:]
    a, b = tree.nodes[parent], tree.nodes[child]
    length = np.linalg.norm(b - a, axis=1, keepdims=True)
    grand = np.maximum(tree.parents[parent], 0)
    incoming = _unit(np.where((parent > 0)[:, None], a - tree.nodes[grand], b - a))
    bow = length * (incoming - _unit(b - a)) * 0.2 + 0.025 * length * rng.standard_normal(a.shape)
    u = np.linspace(0, 1, pieces + 1)
    curve = a[:, None] + u[None, :, None] * (b - a)[:, None] + (4 * u * (1 - u) ** 2)[None, :, None] * bow[:, None]
    thick = np.minimum(radii[parent], 1.25 * radii[child])
    r = thick[:, None] + u * (radii[child] - thick)[:, None]
    ends = np.stack([r[:, :-1], r[:, 1:]], axis=2).reshape(-1, 2)
    return curve[:, :-1].reshape(-1, 3), curve[:, 1:].reshape(-1, 3), ends


def _deposit(share: Field, points: Array, volumes: Array) -> None:
    """Spread each point's volume (voxels) over its eight neighbours, trilinearly; adds to ``share`` in place."""
    shape = share.shape
    keep = np.all((points >= 0) & (points < np.array(shape) - 1), axis=1)
    points, volumes = points[keep], volumes[keep]
    low = np.floor(points).astype(np.int64)
    f = points - low
    flat = share.reshape(-1)
    base = (low[:, 0] * shape[1] + low[:, 1]) * shape[2] + low[:, 2]
    index, weight = [], []
    for corner in np.ndindex(2, 2, 2):
        index.append(base + (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2])
        weight.append(volumes * np.prod([f[:, a] if c else 1 - f[:, a] for a, c in enumerate(corner)], axis=0))
    cells, inverse = np.unique(np.concatenate(index), return_inverse=True)
    flat[cells] += np.bincount(inverse, weights=np.concatenate(weight)).astype(np.float32)


def draw_segments(shape: tuple[int, ...], starts: Array, ends: Array, radii: Array) -> Field:
    """Partial-volume share of tapered segments on a grid, 0 … 1.

    Thick segments are capsules with a one-voxel edge; thin ones are deposited with their own volume, so that a vessel
    thinner than a voxel is fainter, not missing.
    """
    thin = radii.mean(axis=1) < MIN_CAPSULE_RADIUS
    distance = np.full(shape, 1.0, dtype=np.float32)
    stamp_capsules(distance, starts[~thin], ends[~thin], radii[~thin], margin=1.0)
    share = np.clip(np.float32(0.5) - distance, 0, 1)
    a, b, r = starts[thin], ends[thin], radii[thin]
    length = np.linalg.norm(b - a, axis=1)
    count = np.maximum(np.ceil(length / 0.6).astype(int), 1)
    which = np.repeat(np.arange(len(a)), count)
    place = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    u = ((place + 0.5) / count[which])[:, None]
    radius = r[which, 0] + u[:, 0] * (r[which, 1] - r[which, 0])
    _deposit(share, a[which] + u * (b - a)[which], np.pi * radius**2 * (length / count)[which])
    return np.minimum(share, 1, out=share)


def accompany(tree: Tree, radii: Array, root: Array, beside: Array) -> Tree:
    """The airway tree that runs beside an arterial tree: same branching, each node moved sideways, its own root.

    Args:
        tree: the arteries.
        radii: ``[N]`` of the arteries; the airway lies 1.9 radii (touching walls) to their side.
        root: ``[3]``, where the airway begins.
        beside: ``[3]``, towards which side it lies.
    """
    heading = _unit(tree.nodes[1:] - tree.nodes[tree.parents[1:]])
    across = _unit(beside[None] - (heading @ beside)[:, None] * heading)
    nodes = tree.nodes.copy()
    nodes[1:] += 1.9 * radii[1:, None] * across
    nodes[0] = root
    return Tree(nodes, tree.parents, tree.leaves)
