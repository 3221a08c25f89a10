"""The abdomen below the diaphragm of the synthetic chest: liver, spleen, stomach and large bowel with their contents.

Lengths are model millimetres as in :mod:`.shapes`. Everything is drawn on the coarse grid.
"""

from __future__ import annotations

import numpy as np

from .grid import Field, Frame, blend, coarse_tubes, ellipsoid, inside, smooth_max, smooth_min, smooth_noise
from .shapes import COLON, COLON_RADIUS, FAT_HU, FLUID_HU, GAS_HU, GUT_WALL_HU, HAUSTRUM, LIVER_HU, SPLEEN_HU, TUBES


def _colon(frame: Frame, extra: np.random.Generator) -> Field:
    """Return the distance to the outer surface of the large bowel, with its pouches, on the coarse grid, model mm."""
    knots = np.array(COLON, dtype=float)
    shift = (0.0, 0.0, extra.uniform(-12, 8))
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    along = np.arange(0, length[-1], 3.5)
    calibre = np.interp(along, length, extra.uniform(0.75, 1.2, len(length)))
    pouches = 0.74 + 0.26 * np.sqrt(np.abs(np.sin(np.pi * along / HAUSTRUM + extra.uniform(0, 3))))
    points = [np.interp(along, length, axis) for axis in (knots + shift).T]
    tube = np.stack([*points, COLON_RADIUS * calibre * pouches], axis=1)
    return coarse_tubes(frame, [tube.tolist()])


def _add_colon(frame: Frame, tissue: Field, colon: Field, extra: np.random.Generator) -> None:
    """Draw the large bowel into ``tissue`` in place: wall, gas, and lumps of stool with small bubbles in the gas."""
    blend(tissue, inside(colon - 2, 2.0), FAT_HU)
    blend(tissue, inside(colon, 2.0), GUT_WALL_HU)
    lumps, crumbs = (smooth_noise(extra, frame.coarse_shape, mm / frame.step) for mm in (9.0, 2.4))
    stool = 40 + 25 * crumbs - 700 * np.clip(crumbs - 0.8, 0, 1)
    share = inside(extra.uniform(-0.9, 0.3) - lumps - 0.35 * crumbs, 0.3)
    blend(tissue, inside(colon + 2.5, 2.0), GAS_HU + share * (stool - GAS_HU))


def _add_stomach(frame: Frame, tissue: Field, stomach: Field, above: Field, extra: np.random.Generator) -> None:
    """Draw the stomach into ``tissue`` in place: a wall with folds, fluid and a meal up to a level, and gas above it.

    Args:
        frame: the frame whose coarse grid is drawn on.
        tissue: HU on the coarse grid.
        stomach: distance to the stomach's outer surface, model mm.
        above: height above the fluid level, model mm.
        extra: source of the random contents.
    """
    folds, lumps, crumbs = (smooth_noise(extra, frame.coarse_shape, mm / frame.step) for mm in (5.0, 6.0, 2.4))
    blend(tissue, inside(stomach, 2.0), GUT_WALL_HU)
    fill = (extra.uniform(-0.6, 0.8) - lumps - 0.3 * crumbs).astype(np.float32)
    contents = FLUID_HU + inside(fill, 0.4) * (35 + 25 * crumbs - 500 * np.clip(crumbs - 1.0, 0, 1))
    blend(contents, inside(-above, 1.5), GAS_HU)
    blend(tissue, inside((stomach + 3 + 2 * np.abs(folds)).astype(np.float32), 2.0), contents)


def fill_abdomen(
    frame: Frame, xyz: Field, tissue: Field, below: Field, rng: np.random.Generator, extra: np.random.Generator
) -> None:
    """Draw the upper abdomen into ``tissue`` in place.

    Args:
        frame: the frame whose coarse grid is drawn on.
        xyz: ``[3, …coarse grid]`` model coordinates, mm.
        tissue: HU on the coarse grid.
        below: distance to the space below the diaphragm and inside the ribs, model mm.
        rng: the chest's random stream; number and order of the draws from it must not change.
        extra: a separate random stream for everything else.
    """
    x, y, z = xyz
    blend(tissue, inside(below, 2.0), FAT_HU + 15 * smooth_noise(rng, frame.coarse_shape, 8.0))
    under = below + 4
    edge = -x - 14 + 0.4 * (z - 40) - 0.3 * y + 5 * np.sin(z / 17) + 4 * np.sin(y / 13)
    liver = smooth_max(under, edge.astype(np.float32), 12.0)
    blend(tissue, inside(liver, 2.0), LIVER_HU + rng.uniform(-10, 30))
    fundus = ellipsoid(xyz, (-60, 16, 22), (33, 40, 36))
    stomach = np.maximum(under + 1, smooth_min(fundus, coarse_tubes(frame, TUBES["stomach"]), 12.0))
    spleen = smooth_max(ellipsoid(xyz, (-86, -46, 14), (36, 42, 42)), -ellipsoid(xyz, (-52, -22, 6), (42, 40, 70)), 6.0)
    spleen = np.maximum(np.maximum(under, spleen), -stomach + 2)
    blend(tissue, inside(spleen, 2.0), SPLEEN_HU)
    _add_stomach(frame, tissue, stomach, (y - rng.uniform(20, 45)).astype(np.float32), extra)
    _add_colon(frame, tissue, np.maximum(np.maximum(_colon(frame, extra), under), -stomach + 2), extra)
