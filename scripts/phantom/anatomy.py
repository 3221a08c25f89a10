"""The body of the synthetic chest without lung vessels and nodules: surface, bones, mediastinum, diaphragm, lungs.

Everything is described once, for a nominal adult, in model millimetres (:mod:`.shapes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..core.geometry import box_between
from .abdomen import fill_abdomen
from .grid import (
    FAR_MM,
    Array,
    Field,
    Frame,
    blend,
    coarse_tubes,
    ellipsoid,
    inside,
    segments,
    smooth_max,
    smooth_min,
    smooth_noise,
    stamp_capsules,
)
from .shapes import (
    AIR_HU,
    APEX_Z,
    BODY_POWER,
    CAGE_POWER,
    CARTILAGE_HU,
    CORTEX_HU,
    DISC_HU,
    ELLIPSOIDS,
    ENDPLATE_HU,
    FAT_FILLET,
    FAT_HU,
    HIGH_Z,
    LOW_Z,
    MARROW_HU,
    MUSCLE_HU,
    PROFILES,
    TOP_VERTEBRA_Z,
    TUBES,
    VERTEBRA_PITCH,
)


@dataclass(frozen=True)
class Patient:
    """The properties that differ between patients, drawn at random.

    Attributes:
        stretch: ``[3]`` mm per model mm along x, y, z.
        fat_mm: thickness of the subcutaneous fat, model mm.
        breast: size factor of the breasts; 0 for none.
        blood_hu: HU of arteries, veins and heart chambers; above 100 with contrast.
        dome_mm: elevation of the right and left dome of the diaphragm, model mm.
        spread: size factor of the heart.
    """

    stretch: Array
    fat_mm: float
    breast: float
    blood_hu: float
    dome_mm: list[float]
    spread: float


@dataclass(frozen=True)
class Anatomy:
    """The rendered body; all arrays are ``[I, J, K]``.

    Attributes:
        image_hu: HU; the lungs contain only soft tissue at first and are filled later.
        lung_mm: distance to the lungs' surface, mm, negative inside.
        room_mm: the same for the part of the lungs in which vessels and nodules are placed, that is, without the narrow
            angles beside the tip of the heart.
        lobe: 1 right upper, 2 middle, 3 right lower, 4 left upper, 5 left lower (uint8, valid only inside the lungs).
        fissure_mm: unsigned distance to the nearest fissure, mm.
    """

    image_hu: Field
    lung_mm: Field
    room_mm: Field
    lobe: npt.NDArray[np.uint8]
    fissure_mm: Field


def draw_patient(rng: np.random.Generator, scale: float) -> Patient:
    """Draw a patient at random; ``scale`` scales the whole body."""
    stretch = scale * rng.uniform((0.94, 0.92, 0.86), (1.06, 1.06, 1.02))
    contrast = rng.random() < 0.4
    return Patient(
        stretch,
        fat_mm=rng.uniform(5, 20),
        breast=rng.uniform(0.5, 1.1) if rng.random() < 0.45 else 0.0,
        blood_hu=rng.uniform(130, 220) if contrast else rng.uniform(35, 50),
        dome_mm=rng.uniform(-12, 12, 2).tolist(),
        spread=rng.uniform(0.92, 1.1),
    )


def make_frame(patient: Patient, rng: np.random.Generator) -> Frame:
    """Return the 1 mm grid around the patient's trunk and its smooth random warp (up to about ±6 model mm)."""
    step = 2 if patient.stretch.min() > 0.7 else 1
    side = 147 + patient.fat_mm + 5  # room beside the skin
    low = np.array([-side, -150 - 0.6 * patient.fat_mm, LOW_Z])
    high = np.array([side, 118 + patient.fat_mm + 12 * patient.breast, HIGH_Z])
    shape = tuple(int(n) // step * step + 1 for n in (high - low) * patient.stretch)
    frame = Frame(shape, step, low, patient.stretch, np.zeros((3, 1, 1, 1), dtype=np.float32))
    warp = [2.4 * smooth_noise(rng, frame.coarse_shape, 45.0 * frame.size / step) for _ in range(3)]
    return replace(frame, warp=np.stack(warp))


def _profile(name: str, z: Field) -> Field:
    return np.interp(z, PROFILES["z"], PROFILES[name]).astype(np.float32)


def _distance(frame: Frame, implicit: Field) -> Field:
    """Return the first-order distance to the zero level of an implicit function (value / gradient), model mm."""
    slopes = np.gradient(implicit, *(frame.step / frame.stretch).tolist())
    slope = np.sqrt(sum(one**2 for one in slopes))
    return np.clip(implicit / np.maximum(slope, 1e-3), -FAR_MM, FAR_MM).astype(np.float32)


def _superellipse(x: Field, y: Field, half_width: Field, front: Field, back: Field, power: float) -> Field:
    """Return an implicit superellipse: 0 on the contour, negative inside, roughly scaled to millimetres."""
    half_depth = (front - back) / 2
    u, v = np.abs(x) / half_width, np.abs(y - (front + back) / 2) / half_depth
    return (np.power(u**power + v**power, 1 / power) - 1) * np.minimum(half_width, half_depth)


@dataclass(frozen=True)
class Shapes:
    """The smooth structures: distances to each on the coarse grid, model mm, negative inside.

    Attributes:
        cage: the inner chest wall.
        body: the skin, without shoulders and arms.
        diaphragm: height of the diaphragm above each point.
        thorax: the space in the cage above the diaphragm, with domed tops.
        heart, vessels, oesophagus: organs of the mediastinum.
        column, bone, canal: the spine's surface, its bone without processes, and the spinal canal.
        room: the mediastinum with the fat beside the tip of the heart.
        between: the same, with this fat only in the angle between heart and diaphragm.
    """

    cage: Field
    body: Field
    diaphragm: Field
    thorax: Field
    heart: Field
    vessels: Field
    oesophagus: Field
    column: Field
    bone: Field
    canal: Field
    room: Field
    between: Field


def _heart(xyz: Field, patient: Patient, name: str) -> Field:
    """Return the distance to the heart, or to its chambers, model mm; ``name`` is a key of :data:`ELLIPSOIDS`."""
    parts = (ellipsoid(xyz, centre, axes, patient.spread) for centre, axes in ELLIPSOIDS[name])
    return reduce(partial(smooth_min, width=12.0), parts)


def _spine(xyz: Field) -> tuple[Field, Field, Field]:
    """Return distances to the spine's surface, its bone without processes, and the spinal canal, model mm."""
    x, y, z = xyz
    centre_y = _profile("spine", z)
    size = (1.12 - 0.0011 * z).astype(np.float32)
    phase = (z - TOP_VERTEBRA_Z) / VERTEBRA_PITCH
    level = np.abs(phase - np.rint(phase)) * VERTEBRA_PITCH  # 0 at mid-body, 11.5 in the middle of a disc
    waist = 1 + 0.05 * (level / 9) ** 2
    column = (np.sqrt((x / (17 * size * waist)) ** 2 + ((y - centre_y) / (13.5 * size * waist)) ** 2) - 1) * 13.5
    canal_y = centre_y - 13.5 * size - 9
    canal = np.sqrt((x / 1.15) ** 2 + (y - canal_y) ** 2) - 7.5
    ring = np.maximum(np.abs(canal - 2.5) - 2.5, level - 8.5)  # laminae and pedicles
    bone = np.minimum(np.maximum(column, level - 9.2), ring)
    flank = np.sqrt((x / 1.4) ** 2 + (y - canal_y + 4) ** 2) - 17  # transverse processes, rib heads, their muscles
    return np.minimum(column, flank).astype(np.float32), bone.astype(np.float32), canal.astype(np.float32)


def _diaphragm(xyz: Field, patient: Patient) -> Field:
    """Return the height of the diaphragm above each point, model mm; positive below the diaphragm."""
    x, y, z = xyz
    domes = []
    for sign, top, lift in zip((1.0, -1.0), (80.0, 68.0), patient.dome_mm, strict=True):
        across = sign * x - 60
        u = across / np.where(across > 0, 72.0, 140.0)
        v = (y - 12) / np.where(y > 12, 92.0, 108.0)
        domes.append((top + lift - 76 * np.power(u * u + v * v, 1.15)).astype(np.float32))
    return smooth_max(domes[0], domes[1], 16.0) - z


def _middle(xyz: Field) -> Field:
    """Return the x of the boundary between the lungs, model mm; in front, it shifts to the left at the heart."""
    _x, y, z = xyz
    return (np.interp(z, (0, 60, 120, 180, 300), (-14, -12, -6, 0, 0)) * (y > -40)).astype(np.float32)


def _mediastinum(xyz: Field, vessels: Field, tubes: Field, heart: Field, column: Field) -> Field:
    """Return the distance to the mediastinum, which is everything between the lungs, model mm."""
    x, y, z = xyz
    width = (
        np.interp(z, (0, 120, 180, 200, 225, 300), (7, 5, 8, 18, 27, 32))
        + 12 * np.clip((110 - z) / 30, 0, 1) * np.clip((y - 40) / 25, 0, 1)
        + 10 * np.exp(-(((z - 195) / 28) ** 2)) * np.clip((y - 10) / 30, 0, 1)
        - 2 * (y > 60)
    ) * (1 - 0.4 * np.clip(y / 45, 0, 1) * np.clip((z - 190) / 30, 0, 1))
    out = (np.abs(x - _middle(xyz)) - width).astype(np.float32)
    for part, skin, rounding in ((vessels, 2.0, 8.0), (tubes, 2.0, 8.0), (heart, 3.5, 9.0), (column, 4.0, 10.0)):
        out = smooth_min(out, part - np.float32(skin), rounding)
    return out


def _muscle_mm(xyz: Field) -> Field:
    """Return the thickness of the muscle outside the inner chest wall, model mm."""
    x, y, z = xyz
    side = np.abs(x)
    pectoral = 15 * np.exp(-(((side - 75) / 40) ** 2) - ((z - 200) / 42) ** 2) * (y > 10)
    lateral = 9 * np.exp(-(((side - 125) / 30) ** 2)) * np.exp(-(((y + 25) / 50) ** 2))
    back = np.clip((-y - 40) / 30, 0, 1)
    erector = 24 * np.exp(-(((side - 30) / 22) ** 2)) * back
    trapezius = 14 * np.exp(-(((side - 60) / 50) ** 2)) * back * np.clip((z - 90) / 90, 0, 1)
    shoulder = 60 * np.clip((z - 215) / 45, 0, 1) ** 1.5 * np.clip((side - 30) / 50, 0, 1)
    return (10 + pectoral + lateral + erector + trapezius + shoulder).astype(np.float32)


def trunk(frame: Frame, xyz: Field, patient: Patient) -> Field:
    """Return the distance to the skin of the body without shoulders and arms, on the coarse grid, model mm."""
    x, y, z = xyz
    fat = np.float32(patient.fat_mm)
    front = _profile("cage front", z) + 17 + 0.8 * fat + 16 * np.clip((z - 175) / 60, 0, 1).astype(np.float32)
    back = _profile("cage back", z) - 33 - 0.6 * fat - 8 * np.clip((z - 200) / 60, 0, 1).astype(np.float32)
    out = _distance(frame, _superellipse(x, y, _profile("body half width", z) + fat, front, back, BODY_POWER))
    if patient.breast > 0:
        for sign in (1.0, -1.0):
            out = smooth_min(out, ellipsoid(xyz, (sign * 74, 74.0, 118.0), (58.0, 34.0 * patient.breast, 48.0)), 22.0)
    groove = 6 * np.exp(-((x / 14) ** 2)) * (y < -60)
    return (out + groove).astype(np.float32)


def fat_and_flesh(frame: Frame, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """Return noise, and the uneven HU of fat and of muscle with streaks of fat made with it, on the coarse grid."""
    noise = smooth_noise(rng, frame.coarse_shape, 6.0)
    streaks = np.clip(smooth_noise(rng, frame.coarse_shape, 4.0) - 1.1, 0, 1)
    return noise, (FAT_HU + 8 * noise).astype(np.float32), MUSCLE_HU + 6 * noise - 120 * streaks


def _soft_tissue(
    frame: Frame, xyz: Field, patient: Patient, shapes: Shapes, rng: np.random.Generator, extra: np.random.Generator
) -> Field:
    """Return the HU of everything except bone, lung, airway and skin, on the coarse grid."""
    noise, tissue, flesh = fat_and_flesh(frame, rng)
    muscle_mm = _muscle_mm(xyz)
    muscle = np.maximum(shapes.cage - muscle_mm, shapes.body + 4)
    planes = np.exp(-(((shapes.cage - 9.5) / 1.3) ** 2)) * (muscle_mm > 13) + np.exp(
        -(((shapes.cage - 22 - 3 * noise) / 1.2) ** 2)
    ) * (muscle_mm > 26)
    blend(tissue, inside(muscle, 2.0), (flesh - 130 * np.clip(planes, 0, 1)).astype(np.float32))
    if patient.breast > 0:
        gland = np.clip(smooth_noise(rng, frame.coarse_shape, 5.0) * 0.8 + 0.2, 0, 1)
        for sign in (1.0, -1.0):
            part = ellipsoid(xyz, (sign * 74, 86.0, 118.0), (38, 26 * patient.breast, 32))
            blend(tissue, np.where(muscle > 3, inside(part, 8.0) * gland, 0), 35.0)
    cavity = np.maximum(np.maximum(shapes.cage, shapes.diaphragm), -xyz[2] - 70)
    blend(tissue, inside(cavity + 1.5, 2.0), FAT_HU + 12 * noise)
    fill_abdomen(frame, xyz, tissue, np.maximum(shapes.cage + 2, -shapes.diaphragm - 2), rng, extra)
    for distance, edge_mm, value in (
        (np.maximum(shapes.cage, np.abs(shapes.diaphragm + 1.0) - 1.5), 2.0, 45.0),  # the diaphragm itself
        (shapes.column, 2.0, DISC_HU),
        (shapes.canal, 2.0, 30.0),
        (shapes.heart - 2.5, 2.0, FAT_HU),
        (shapes.heart, 2.0, 60.0 + 0.25 * max(patient.blood_hu - 45, 0)),
        (_heart(xyz, patient, "chambers"), 3.0, patient.blood_hu),
        (shapes.oesophagus, 2.0, 38.0),
        (shapes.vessels, 2.0, patient.blood_hu),
    ):
        blend(tissue, inside(distance, edge_mm), value)
    return tissue


def _contour(side: float, angle_deg: Array, z: Array, offset: float) -> Array:
    """Return points ``[..., 3]`` outside the inner chest wall, model mm.

    Args:
        side: 1 for right, -1 for left.
        angle_deg: -90° behind, 0° lateral, 90° in front.
        z: height, model mm.
        offset: distance outside the wall, model mm.
    """
    half_width, front, back = (
        np.interp(z, PROFILES["z"], PROFILES[f"cage {n}"]) for n in ("half width", "front", "back")
    )
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x = side * (half_width + offset) * np.abs(c) ** (2 / CAGE_POWER)
    y = (front + back) / 2 + ((front - back) / 2 + offset) * np.sign(s) * np.abs(s) ** (2 / CAGE_POWER)
    return np.stack([x, y, z], axis=-1)


def _rib(number: int, side: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the centre lines of a rib's bone and cartilage, ``[P, 3]`` model mm each; the latter may be one point."""
    head_z = TOP_VERTEBRA_Z - (number - 1) * VERTEBRA_PITCH + 6
    drop = np.interp(number, (1, 2, 5, 8, 10, 12), (30, 48, 88, 108, 95, 60)) * rng.uniform(0.95, 1.05)
    last = np.interp(number, (1, 7, 8, 10, 11, 12), (78, 80, 62, 45, 0, -25))
    u = np.linspace(0, 1, 34)
    z = head_z - drop * np.sin(np.pi / 2 * np.minimum(u / 0.86, 1)) ** 1.15 + 18 * np.clip(u - 0.86, 0, 1) / 0.14
    y = np.interp(head_z, PROFILES["z"], PROFILES["spine"])
    head = np.array([[side * 19, y - 9, head_z], [side * 32, y - 21, head_z - 1]])
    path = np.concatenate([head, _contour(side, -66 + (last + 66) * u, z, 5.2)])
    bone = len(path) if number > 10 else int(len(path) * (0.66 if number == 1 else 0.78))
    return path[:bone], path[bone - 1 :]


def _bone_tubes() -> Iterator[tuple[Array, float]]:
    """Yield points ``[P, 3]`` and radius of the vertebral processes, sternum, clavicles, shoulder blades, model mm."""
    for z in TOP_VERTEBRA_Z - VERTEBRA_PITCH * np.arange(14):
        y = np.interp(z, PROFILES["z"], PROFILES["spine"]) - 13.5
        yield np.array([[0, y - 17, z], [0, y - 26, z - 9], [0, y - 38, z - 24]]), 3.2
        for side in (1.0, -1.0):
            yield np.array([[side * 12, y - 10, z + 3], [side * 31, y - 17, z + 5]]), 4.2
    for z in np.arange(86, 208, 4.0):
        half = np.interp(z, (86, 165, 175, 200, 207), (11, 14, 13, 26, 20))
        y = np.interp(z, PROFILES["z"], PROFILES["cage front"]) + 8
        yield np.array([[-half, y - 1.5, z], [0, y, z], [half, y - 1.5, z]]), 5.2
    for side in (1.0, -1.0):
        for z in np.arange(122, 240, 3.0):  # shoulder blade
            angle = np.linspace(-58, -58 + np.interp(z, (122, 200, 238), (12, 48, 44)), 7)
            yield _contour(side, angle, np.full(7, z), 15.0), 1.7
        yield np.array([(16, 62, 212), (42, 66, 224), (78, 44, 240), (122, 2, 254)]) * (side, 1, 1), 5.5  # clavicle
        yield _contour(side, np.linspace(-56, -18, 6), np.linspace(224, 246, 6), 19.0), 4.5
        yield _contour(side, np.linspace(-22, -8, 4), np.linspace(215, 250, 4), 17.0), 8.0


def _add_bones(frame: Frame, image: Field, column: Field, endplate: Field, rng: np.random.Generator) -> None:
    """Draw the ribs with their cartilage and all other bones into ``image`` in place.

    Args:
        frame: the frame of the image.
        image: HU on the full grid.
        column: distance to the bone of the vertebrae, on the coarse grid, model mm.
        endplate: distance to the surface of the spine, on the full grid, model mm.
        rng: source of ribs and texture.
    """
    bone = frame.upsample(column) * np.float32(frame.size)  # distances, mm, correct only near bones
    cartilage = np.full(frame.shape, 4.0, dtype=np.float32)
    for number, side in product(range(1, 13), (1.0, -1.0)):  # a rib is flat: higher than it is thick
        rib, tip = (frame.to_voxel(p) for p in _rib(number, side, rng))
        stamp_capsules(bone, segments(rib, 3.7 * frame.size), flatten=0.56)
        stamp_capsules(cartilage, segments(tip, 4.3 * frame.size), flatten=0.7)
    for points, radius in _bone_tubes():
        stamp_capsules(bone, segments(frame.to_voxel(points), radius * frame.size))
    blend(image, inside(cartilage), CARTILAGE_HU)
    where = np.nonzero(bone < 1.0)
    depth = bone[where]
    texture = smooth_noise(rng, frame.shape, 2.2)[where]
    in_spine = endplate[where] < 0.5
    marrow = np.where(in_spine, MARROW_HU, 0.8 * MARROW_HU) + 55 * texture
    cortex = np.where(in_spine, ENDPLATE_HU, CORTEX_HU) + 60 * texture
    shell = np.clip(1.0 - (np.abs(depth + 0.6) - 0.7) / 0.9, 0, 1)
    image[where] += inside(depth) * (marrow + shell * (cortex - marrow) - image[where])


def _lobes(xyz: Field) -> tuple[npt.NDArray[np.uint8], Field]:
    """Return lobe numbers (see ``Anatomy``) and unsigned distance to the nearest fissure, model mm, coarse grid."""
    x, y, z = xyz
    right = x > _middle(xyz)
    oblique = np.where(right, 108 - 0.88 * y, 112 - 0.95 * y) + 7 * np.sin(y / 32) - 0.05 * (np.abs(x) - 60)
    above = (z - oblique) / 1.33
    upper = z - (128 - 0.004 * (x - 60) ** 2 + 0.12 * (y - 30))  # height above the minor fissure
    lobe = np.where(right, np.where(above < 0, 3, np.where(upper > 0, 1, 2)), np.where(above < 0, 5, 4))
    distance = np.where(right & (above > 0), np.minimum(np.abs(above), np.abs(upper)), np.abs(above))
    return lobe.astype(np.uint8), distance.astype(np.float32)


def _whole_lungs(lung: Field, lobe: npt.NDArray[np.uint8]) -> Field:
    """Remove the specks that the warp can cut off from a distance field, leaving one piece of lung on each side."""
    specks = lung < 0
    for side in (lobe <= 3, lobe > 3):
        pieces, _count = ndimage.label((lung < 0) & side)
        specks &= pieces != 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.where(specks, np.float32(1), lung)


def _shapes(frame: Frame, xyz: Field, patient: Patient) -> Shapes:
    """Return the smooth structures."""
    x, y, z = xyz
    width, front, back = (_profile(f"cage {name}", z) for name in ("half width", "front", "back"))
    apices = z - APEX_Z + 0.014 * (np.abs(x) - 40) ** 2 + 0.011 * (y + 22) ** 2  # height above the lungs' domed tops
    vessels, oesophagus, airway = (coarse_tubes(frame, TUBES[name]) for name in ("vessels", "oesophagus", "airway"))
    column, bone, canal = _spine(xyz)
    cage = _distance(frame, _superellipse(x, y, width, front, back, CAGE_POWER))
    diaphragm = _distance(frame, _diaphragm(xyz, patient))
    heart = _heart(xyz, patient, "heart")
    thorax = smooth_max(smooth_max(cage, diaphragm, 3.0), _distance(frame, apices.astype(np.float32)), 8.0)
    angle = smooth_min(heart, -diaphragm, FAT_FILLET)
    room = between = _mediastinum(xyz, vessels, np.minimum(airway, oesophagus), heart, column)
    for fat in ELLIPSOIDS["heart fat"]:  # beside the tip of the heart
        pad = ellipsoid(xyz, *fat)
        room = smooth_min(room, pad, 10.0)
        between = smooth_min(between, smooth_max(pad, angle, 8.0), 10.0)  # fills the angle
    body = trunk(frame, xyz, patient)
    return Shapes(
        cage=cage,
        body=body,
        diaphragm=diaphragm,
        thorax=thorax,
        heart=heart,
        vessels=vessels,
        oesophagus=oesophagus,
        column=column,
        bone=bone,
        canal=canal,
        room=room,
        between=between,
    )


def build_anatomy(patient: Patient, frame: Frame, rng: np.random.Generator, extra: np.random.Generator) -> Anatomy:
    """Render a patient's trunk, without its skin, on the frame's grid.

    Args:
        patient: the patient.
        frame: the grid.
        rng: the chest's random stream.
        extra: a separate random stream for stomach and bowel.
    """
    xyz = frame.model_coordinates()
    shapes = _shapes(frame, xyz, patient)
    size = np.float32(frame.size)
    tissue = _soft_tissue(frame, xyz, patient, shapes, rng, extra)
    image = np.full(frame.shape, AIR_HU, dtype=np.float32)
    blend(image, inside(frame.upsample(shapes.body) * size), frame.upsample(tissue))
    _add_bones(frame, image, shapes.bone, frame.upsample(shapes.column), rng)
    lobe, fissure = _lobes(xyz)
    index = np.ix_(*(np.arange(n) // frame.step for n in frame.shape))
    lung, room = (_whole_lungs(smooth_max(shapes.thorax, -one, 2.0), lobe) for one in (shapes.between, shapes.room))
    lung_mm, room_mm, fissure_mm = (frame.upsample(one) * size for one in (lung, room, fissure))
    return Anatomy(image, lung_mm, room_mm, lobe[index], fissure_mm)


def add_airway_tubes(frame: Frame, image: Field, *, wall_mm: float = 1.3) -> None:
    """Draw the trachea and the bronchi up to the lobes, walls of soft tissue and then air, into ``image`` in place."""
    for extra, value in ((wall_mm * frame.size, 35.0), (0.0, -985.0)):
        for tube in map(np.array, TUBES["airway"]):
            voxels, radii = frame.to_voxel(tube[:, :3]), tube[:, 3] * frame.size + extra
            reach = radii.max() + 2
            box = box_between(voxels.min(axis=0) - reach, voxels.max(axis=0) + reach, frame.shape)
            distance = np.full(image[box].shape, 3.0, dtype=np.float32)
            stamp_capsules(distance, segments(voxels - [s.start for s in box], radii))
            blend(image[box], inside(distance), value)
