"""Surroundings of the chest in a scan: shoulders and arms, skin, clothes, ECG electrodes with cables, the couch.

The chest is rendered on a grid of its own; ``surround`` places it in a larger one and draws what lies outside the
trunk. Nothing deeper than the trunk's skin changes. Lengths are model millimetres as in :mod:`.shapes`; positions
outside the body are described by their distance from the skin ("lift"), those in the couch by their depth.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from ..core.geometry import box_between
from .anatomy import Patient, fat_and_flesh, trunk
from .grid import Array, Box, Field, Frame, blend, capsules, coarse_tubes, inside, segments, smooth_min, smooth_noise
from .shapes import (
    AIR_HU,
    CABLE_HU,
    CLOTH_HU,
    CORTEX_HU,
    COUCH,
    ELECTRODES,
    GEL_HU,
    HIGH_Z,
    LOW_Z,
    MARROW_HU,
    METAL_HU,
    PAD_HU,
    SKIN_HU,
    TUBES,
    Tube,
)

ARMS_DOWN_SHARE = 0.2  # of the patients; the others raise their arms over the head
_MARGINS_MM = {"up": ((22.0, 24.0, 0.0), (22.0, 22.0, 0.0)), "down": ((46.0, 24.0, 0.0), (46.0, 22.0, 0.0))}  # added
_FREE_BELOW_HU = -965.0  # less dense than the mattress: free air


def _widened(frame: Frame, posture: str) -> tuple[Frame, Box]:
    """Return the frame enlarged at the sides, in front and behind, and the box of the original grid in it."""
    low, high = np.rint(np.array(_MARGINS_MM[posture]) * frame.stretch / frame.step).astype(int).tolist()  # coarse
    warp = np.pad(frame.warp, [(0, 0), *zip(low, high, strict=True)], mode="edge")
    before = frame.step * np.array(low)
    shape = tuple(n + frame.step * (a + b) for n, a, b in zip(frame.shape, low, high, strict=True))
    box = tuple(map(slice, before.tolist(), (before + frame.shape).tolist()))
    return replace(frame, shape=shape, origin=frame.origin - before / frame.stretch, warp=warp), box


def _both_sides(name: str, aside: float) -> list[Tube]:
    """Return the tubes of both sides; below the shoulders, they are moved ``aside`` model mm away from the trunk."""
    right = [
        [(x + aside * float(np.clip((230 - z) / 40, 0, 1)), y, z, r) for x, y, z, r in tube] for tube in TUBES[name]
    ]
    return right + [[(-x, y, z, r) for x, y, z, r in tube] for tube in right]


def _couch(frame: Frame, patient: Patient, rng: np.random.Generator) -> Field:
    """Return the HU of the couch and the air above it, ``[I, J, 1]``, the same in every axial plane."""
    size = frame.stretch[1]
    x, y = (frame.origin[a] + np.arange(frame.shape[a]) / frame.stretch[a] for a in (0, 1))
    bend = rng.choice([0.0, rng.uniform(0.0006, 0.0013)], p=[0.2, 0.8])
    top = -126 - 0.6 * patient.fat_mm + bend * x**2  # the back sinks in a little
    depth = (top[:, None] - y[None]) * size
    plane = np.full(depth.shape, AIR_HU)
    for thickness, value in (*COUCH, (0.0, AIR_HU)):
        blend(plane, np.clip(depth + 0.5, 0, 1), value)
        depth = depth - thickness * (size if thickness > 5 else 1.0)
    return plane[:, :, None].astype(np.float32)


def _stamp(image: Field, voxels: Array, radii: Array, value: float) -> None:
    """Blend a tube into ``image`` in place, segment by segment."""
    for box, distance in capsules(image.shape, segments(voxels, radii), margin=1.0):
        blend(image[box], inside(distance), value)


def _add_bone(frame: Frame, image: Field, tubes: list[Tube]) -> None:
    """Draw tubes of bone, marrow in a shell of compact bone, into ``image`` in place."""
    for extra_mm, value in ((0.0, CORTEX_HU), (-2.2, 0.6 * MARROW_HU)):
        for tube in map(np.array, tubes):
            _stamp(image, frame.to_voxel(tube[:, :3]), (tube[:, 3] + extra_mm) * frame.size, value)


def _add_clothes(frame: Frame, image: Field, skin: Field, rng: np.random.Generator) -> None:
    """Draw one or two thin layers of cloth, in folds along the body with air under them, into ``image`` in place.

    Cloth is drawn only in free air.
    """
    size = np.float32(frame.size)
    unit = float(size) / frame.step  # coarse samples per model mm
    for layer in range(int(rng.integers(1, 3))):
        folds, slack = (
            np.abs(smooth_noise(rng, frame.coarse_shape, (width * unit, width * unit, 45 * unit))) for width in (14, 32)
        )
        lift = 3.0 + 4 * layer + rng.uniform(3.0, 8.0) * folds * (0.25 + slack)
        gap = np.abs(frame.upsample((skin - lift).astype(np.float32))) * size
        share = np.clip(np.float32(rng.uniform(0.9, 1.2)) - gap, 0, 1)
        share[image > _FREE_BELOW_HU] = 0  # cloth lies on the couch and the electrodes, not in them
        image += share * np.maximum(np.float32(CLOTH_HU) - image, 0)


def _on_skin(frame: Frame, skin: Field, angle_deg: float, z: float, lift_mm: float) -> Array:
    """Return the last point, in voxels, of a ray from the body's axis that is at most ``lift_mm`` above the skin."""
    angle = np.deg2rad(angle_deg)
    along = np.arange(20.0, 260.0, 0.5)
    voxels = frame.to_voxel(np.stack([along * np.sin(angle), along * np.cos(angle), np.full(len(along), z)], axis=1))
    lifts = ndimage.map_coordinates(skin, voxels.T / frame.step, order=1, mode="nearest")
    return np.asarray(voxels[np.flatnonzero(lifts <= lift_mm)[-1]])


def _add_electrode(image: Field, depth: Field, foot: Array, size: float) -> None:
    """Draw an electrode on the skin around ``foot`` into ``image`` in place: foam pad, gel below, metal stud on top."""
    box = box_between(foot - 20 * size, foot + 20 * size, image.shape)
    x, y, z = np.ix_(*(np.arange(s.start, s.stop) - o for s, o in zip(box, foot, strict=True)))
    radius, lift = np.sqrt(x**2 + y**2 + z**2), depth[box]
    for reach, low, high, value in ((16.0, 0.0, 1.6, PAD_HU), (8.0, 0.0, 2.0, GEL_HU), (4.5, 1.5, 4.5, METAL_HU)):
        sheet = np.maximum(low * size - lift, lift - max(high * size, low * size + 1.5))
        blend(image[box], inside(np.maximum(radius - reach * size, sheet).astype(np.float32)), value)


def _add_leads(frame: Frame, image: Field, skin: Field, depth: Field, rng: np.random.Generator) -> None:
    """Draw two to four electrodes, whose insulated wires leave the scan together, into ``image`` in place.

    Args:
        frame: the frame of the image.
        image: HU on the full grid.
        skin: distance to the skin on the coarse grid, model mm.
        depth: the same on the full grid, mm.
        rng: source of every choice.
    """
    out_deg, out_z = rng.uniform(-40, 40), rng.choice([LOW_Z - 10, HIGH_Z + 10])
    for index in rng.permutation(len(ELECTRODES))[: rng.integers(2, 5)]:
        angle, z = ELECTRODES[index] + rng.uniform(-6, 6, 2)
        _add_electrode(image, depth, _on_skin(frame, skin, angle, z, 0.0), frame.size)
        wander = np.stack([rng.uniform(-9, 9, 6), np.zeros(6), rng.uniform(3, 11, 6)], axis=1)  # degrees, z, lift
        wander[0] = 0, 0, 5
        u = np.linspace(0, 1, 40)
        straight = np.stack([angle + u * (out_deg - angle), z + u * (out_z - z), np.zeros(40)], axis=1)
        points = straight + np.stack([np.interp(u, np.linspace(0, 1, 6), w) for w in wander.T], axis=1)
        voxels = np.stack([_on_skin(frame, skin, *point) for point in points.tolist()])
        for radius, value in ((1.5, CABLE_HU), (0.6, METAL_HU)):
            _stamp(image, voxels, np.full(len(voxels), radius * frame.size), value)


def surround(image: Field, frame: Frame, patient: Patient, rng: np.random.Generator) -> tuple[Field, Box]:
    """Place a chest in a larger image with everything that a hospital scan shows around it.

    Args:
        image: ``[I, J, K]`` HU of the chest on the frame's grid; not changed.
        frame: the frame of the chest.
        patient: the patient.
        rng: a random stream separate from the chest's.

    Returns:
        The larger image and the box of the chest's grid in it.
    """
    posture = "down" if rng.random() < ARMS_DOWN_SHARE else "up"
    wide, box = _widened(frame, posture)
    size = np.float32(frame.size)
    body = trunk(wide, wide.model_coordinates(), patient)
    aside = 2.0 + patient.fat_mm if posture == "down" else 0.0
    limbs = coarse_tubes(wide, _both_sides(f"flesh {posture}", aside), margin=40.0) - np.float32(0.3 * patient.fat_mm)
    skin = smooth_min(body, limbs, 12.0)
    out = np.broadcast_to(_couch(wide, patient, rng), wide.shape).copy()
    depth = wide.upsample(skin) * size
    _, tissue, flesh = fat_and_flesh(wide, rng)
    blend(tissue, inside(limbs + 3 + 0.5 * np.float32(patient.fat_mm), 2.0), flesh)
    blend(out, inside(depth), wide.upsample(tissue))
    _add_bone(wide, out, _both_sides(f"humerus {posture}", aside))
    outside = 1 - inside(wide.upsample(body)[box] * size + 2.5)
    out[box] = image + outside * (out[box] - image)  # exactly unchanged deep inside
    thickness = np.float32(rng.uniform(1.5, 3.0))
    blend(out, inside(depth) * np.clip(thickness + 0.5 + depth, 0, 1), SKIN_HU)
    _add_leads(wide, out, skin, depth, rng)
    _add_clothes(wide, out, skin, rng)
    return out, box
