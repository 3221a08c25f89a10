"""The body of the synthetic chest without lung vessels and nodules: outline, bones, mediastinum, diaphragm, lungs.

Everything is described once, for a nominal adult, in model millimetres (see :mod:`.grid`): x to the patient's
right, y to the front, z to the head; z = 0 at the lowest recess of the lungs, 265 at their apices, the carina at 170.
Proportions follow textbook anatomy and the look of CT; they are no measurement of anyone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .abdomen import fill_abdomen
from .grid import (
    AIR_HU,
    FAR_MM,
    FAT_HU,
    MUSCLE_HU,
    Array,
    Field,
    Frame,
    Tube,
    blend,
    coarse_tubes,
    ellipsoid,
    inside,
    local_box,
    smooth_max,
    smooth_min,
    smooth_noise,
    stamp_tube,
)

CARTILAGE_HU, DISC_HU = 125.0, 85.0
CORTEX_HU, MARROW_HU, ENDPLATE_HU = 780.0, 190.0, 480.0
LOW_Z, HIGH_Z = -28.0, 284.0  # model mm covered: from the upper abdomen to just above the apices
APEX_Z = 265.0

# Profiles along z (model mm): inner chest wall (half width, front, back), centre of the vertebral bodies, body outline.
_Z = (-60.0, 0.0, 60.0, 110.0, 160.0, 200.0, 230.0, 250.0, 265.0, 300.0)
_CAGE_HALF_WIDTH = (120.0, 125.0, 128.0, 126.0, 119.0, 108.0, 92.0, 77.0, 64.0, 50.0)
_CAGE_FRONT = (92.0, 92.0, 90.0, 85.0, 74.0, 60.0, 45.0, 33.0, 24.0, 14.0)
_CAGE_BACK = (-86.0, -90.0, -95.0, -97.0, -95.0, -89.0, -80.0, -70.0, -62.0, -52.0)
_SPINE_Y = (-46.0, -52.0, -57.0, -60.0, -58.0, -52.0, -44.0, -37.0, -32.0, -20.0)
_BODY_HALF_WIDTH = (134.0, 138.0, 141.0, 141.0, 141.0, 144.0, 146.0, 143.0, 136.0, 120.0)
_CAGE_POWER, _BODY_POWER = 2.2, 2.5  # superellipse exponents of the axial contours
_VERTEBRA_PITCH, _TOP_VERTEBRA_Z = 23.0, 263.0  # T1 at the top; its rib is the first

# Tubes of the mediastinum: points (x, y, z) and radius, model mm.
_AORTA: Tube = [(-4, 14, 118, 15), (4, 18, 140, 16), (13, 16, 165, 16), (9, 8, 186, 15), (-4, -8, 195, 14),
                (-17, -26, 190, 13), (-25, -41, 172, 12.5), (-27, -46, 140, 12), (-25, -46, 90, 11.5),
                (-17, -42, 40, 11), (-9, -33, 0, 10.5), (-6, -27, -60, 10)]  # fmt: skip
_PULMONARY: list[Tube] = [
    [(-20, 34, 124, 14), (-22, 22, 144, 14), (-18, 6, 156, 13), (-38, -14, 160, 11), (-46, -27, 148, 9),
     (-47, -30, 124, 7)],
    [(-18, 6, 156, 12), (8, -5, 153, 11), (34, -9, 150, 10), (45, -16, 134, 8), (47, -25, 114, 6.5)],
]  # fmt: skip
_PULMONARY_VEINS: list[Tube] = [
    [(12, -17, 112, 10), (32, -6, 124, 7), (40, 0, 134, 5)],
    [(12, -20, 108, 9), (34, -28, 104, 6.5)],
    [(-16, -17, 114, 10), (-34, -6, 128, 7), (-40, -1, 138, 5)],
    [(-16, -20, 110, 9), (-36, -29, 104, 6.5)],
]  # fmt: skip
_CAVAL: list[Tube] = [
    [(24, 8, 216, 8), (26, 8, 180, 9), (26, 6, 125, 10)],
    [(20, -4, -60, 11), (20, 0, 30, 12), (22, 2, 78, 12)],
    [(24, 8, 214, 7), (38, 10, 240, 6.5), (54, 6, 286, 6)],
    [(24, 10, 208, 7), (2, 22, 216, 7), (-24, 18, 236, 6.5), (-54, 6, 284, 6)],
]
_ARCH_BRANCHES: list[Tube] = [
    [(6, 6, 190, 7), (13, 8, 220, 6.5), (26, 2, 258, 6), (36, -4, 300, 5)],
    [(-6, -4, 195, 5), (-11, 0, 230, 4.5), (-18, 2, 300, 4)],
    [(-15, -18, 192, 6), (-24, -14, 228, 5.5), (-36, -10, 258, 5), (-70, 0, 284, 5)],
]
_OESOPHAGUS: Tube = [(-2, -22, 300, 7), (-3, -31, 240, 7), (-4, -38, 190, 7), (-6, -40, 150, 8), (-8, -36, 90, 8),
                     (-16, -24, 52, 9), (-30, 0, 30, 10)]  # fmt: skip
TRACHEA: Tube = [(0, 6, 320, 8.5), (0, -2, 280, 8.5), (1, -14, 230, 8.5), (2, -21, 195, 8.8), (3, -23, 173, 8.5)]
BRONCHI: list[Tube] = [
    [(3, -23, 173, 7.5), (17, -23, 160, 7), (28, -22, 152, 6.5), (40, -21, 131, 5.2), (46, -27, 116, 3.8)],
    [(28, -22, 152, 5.5), (40, -19, 155, 4.2)],
    [(3, -23, 173, 7.3), (-16, -25, 157, 6.4), (-33, -27, 147, 5.8), (-45, -32, 128, 3.8)],
    [(-33, -27, 147, 5), (-43, -20, 150, 4.2)],
]
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]
# Heart and its chambers: centre, semi-axes, model mm.
_HEART: list[Ellipsoid] = [
    ((30, 10, 100), (25, 29, 37)),
    ((-4, 46, 84), (40, 28, 35)),
    ((-38, 24, 78), (38, 35, 38)),
    ((-2, -17, 114), (34, 18, 22)),
]
_CHAMBERS: list[Ellipsoid] = [
    ((30, 10, 100), (21, 25, 33)),
    ((-4, 48, 86), (32, 20, 28)),
    ((-36, 22, 82), (23, 20, 25)),
    ((-2, -17, 114), (30, 14, 18)),
]
_HEART_FAT: list[Ellipsoid] = [((34, 52, 60), (26, 26, 16)), ((-66, 50, 56), (24, 24, 14))]
_FAT_FILLET_MM = 44.0  # the fat rounds the angle between heart and diaphragm over this length


@dataclass(frozen=True)
class Patient:
    """What differs from patient to patient, drawn from the seed.

    Attributes:
        stretch: mm per model mm along x, y, z.
        fat_mm: subcutaneous fat, model mm.
        breast: size factor, 0 = none.
        blood_hu: of arteries, veins and chambers; above 100 after contrast.
        dome_mm: lift of the right and left diaphragm, model mm.
        spread: factor on the heart's size.
    """

    stretch: tuple[float, float, float]
    fat_mm: float
    breast: float
    blood_hu: float
    dome_mm: tuple[float, float]
    spread: float


@dataclass(frozen=True)
class Anatomy:
    """The rendered body.

    Attributes:
        image_hu: ``[I, J, K]``; the lungs still hold soft tissue only (they are filled later).
        lung_mm: distance to the lungs' surface, mm, negative inside.
        room_mm: the same to the surface of the part of the lungs in which vessels and nodules are placed: without the
            angles beside the tip of the heart, which are narrow.
        lobe: 1 right upper, 2 middle, 3 right lower, 4 left upper, 5 left lower (uint8, meaningful in the lungs).
        fissure_mm: unsigned distance to the nearest fissure, mm.
    """

    image_hu: Field
    lung_mm: Field
    room_mm: Field
    lobe: npt.NDArray[np.uint8]
    fissure_mm: Field


def draw_patient(rng: np.random.Generator, scale: float) -> Patient:
    """Draw a patient; ``scale`` shrinks all of the body alike."""
    width, depth, height = rng.uniform(0.94, 1.06), rng.uniform(0.92, 1.06), rng.uniform(0.86, 1.02)
    contrast = rng.random() < 0.4
    return Patient(
        stretch=(scale * width, scale * depth, scale * height),
        fat_mm=float(rng.uniform(5, 20)),
        breast=float(rng.uniform(0.5, 1.1)) if rng.random() < 0.45 else 0.0,
        blood_hu=float(rng.uniform(130, 220) if contrast else rng.uniform(35, 50)),
        dome_mm=(float(rng.uniform(-12, 12)), float(rng.uniform(-12, 12))),
        spread=float(rng.uniform(0.92, 1.1)),
    )


def make_frame(patient: Patient, rng: np.random.Generator) -> Frame:
    """The 1 mm grid around the patient (table included) and its smooth random warp (up to about ±6 model mm)."""
    stretch = np.array(patient.stretch)
    step = 2 if stretch.min() > 0.7 else 1
    half_width = 147 + patient.fat_mm
    low = np.array([-half_width - 5, -150 - 0.6 * patient.fat_mm, LOW_Z])
    high = np.array([half_width + 5, 118 + patient.fat_mm + 12 * patient.breast, HIGH_Z])
    i, j, k = (int(n) // step * step + 1 for n in (high - low) * stretch)
    frame = Frame((i, j, k), step, low, stretch, np.zeros((3, 1, 1, 1), dtype=np.float32))
    knots = 45.0 * float(stretch.mean()) / step
    warp = np.stack([2.4 * smooth_noise(rng, frame.coarse_shape, knots) for _ in range(3)])
    return Frame((i, j, k), step, low, stretch, warp)


def _profile(values: tuple[float, ...], z: Field | Array) -> Field:
    return np.interp(z, _Z, values).astype(np.float32)


def _distance(frame: Frame, implicit: Field) -> Field:
    """First-order distance to the zero level of an implicit function: value over length of gradient, model mm."""
    spacing = [frame.step / float(s) for s in frame.stretch]
    slope = np.sqrt(sum(np.gradient(implicit, h, axis=a) ** 2 for a, h in enumerate(spacing)))
    return np.clip(implicit / np.maximum(slope, 1e-3), -FAR_MM, FAR_MM).astype(np.float32)


def _superellipse(x: Field, y: Field, half_width: Field, front: Field, back: Field, power: float) -> Field:
    """0 on the contour, -1 at its centre, scaled to millimetres."""
    half_depth = (front - back) / 2
    u, v = np.abs(x) / half_width, np.abs(y - (front + back) / 2) / half_depth
    return (np.power(u**power + v**power, 1 / power) - 1) * np.minimum(half_width, half_depth)


def _heart(xyz: Field, patient: Patient, parts: list[Ellipsoid]) -> Field:
    first, *others = (ellipsoid(xyz, centre, axes, patient.spread) for centre, axes in parts)
    for part in others:
        first = smooth_min(first, part, 12.0)
    return first


def _spine(xyz: Field) -> tuple[Field, Field, Field]:
    """Vertebral column without processes: distance to its outline, to the bone in it, and to the canal, model mm."""
    x, y, z = xyz
    centre_y = _profile(_SPINE_Y, z)
    size = (1.12 - 0.0011 * z).astype(np.float32)
    phase = (z - _TOP_VERTEBRA_Z) / _VERTEBRA_PITCH
    level = np.abs(phase - np.rint(phase)) * _VERTEBRA_PITCH  # 0 at mid-body, 11.5 in the middle of a disc
    waist = 1 + 0.05 * (level / 9) ** 2
    column = (np.sqrt((x / (17 * size * waist)) ** 2 + ((y - centre_y) / (13.5 * size * waist)) ** 2) - 1) * 13.5
    canal_y = centre_y - 13.5 * size - 9
    canal = np.sqrt((x / 1.15) ** 2 + (y - canal_y) ** 2) - 7.5
    ring = np.maximum(np.abs(canal - 2.5) - 2.5, level - 8.5)  # laminae and pedicles
    bone = np.minimum(np.maximum(column, level - 9.2), ring)
    flank = np.sqrt((x / 1.4) ** 2 + (y - canal_y + 4) ** 2) - 17  # transverse processes, rib heads, their muscles
    return np.minimum(column, flank).astype(np.float32), bone.astype(np.float32), canal.astype(np.float32)


def _diaphragm(xyz: Field, patient: Patient) -> Field:
    """Height of the diaphragm above each point, model mm: positive below it."""
    x, y, z = xyz
    domes = []
    for sign, top, lift in ((1.0, 80.0, patient.dome_mm[0]), (-1.0, 68.0, patient.dome_mm[1])):
        across = sign * x - 60
        u = across / np.where(across > 0, 72.0, 140.0)
        v = (y - 12) / np.where(y > 12, 92.0, 108.0)
        domes.append((top + lift - 76 * np.power(u * u + v * v, 1.15)).astype(np.float32))
    return -smooth_min(-domes[0], -domes[1], 16.0) - z


def _apices(xyz: Field) -> Field:
    """Height above the lungs' domed tops, model mm: positive above them."""
    x, y, z = xyz
    return (z - APEX_Z + 0.014 * (np.abs(x) - 40) ** 2 + 0.011 * (y + 22) ** 2).astype(np.float32)


def _middle(xyz: Field) -> Field:
    """Position x of the wall between the lungs, model mm: left of the midline in front of the lower heart."""
    _x, y, z = xyz
    return (np.interp(z, (0, 60, 120, 180, 300), (-14, -12, -6, 0, 0)) * (y > -40)).astype(np.float32)


def _mediastinum(xyz: Field, heart: Field, vessels: Field, airway: Field, column: Field) -> Field:
    """Distance to everything between the lungs, model mm."""
    x, y, z = xyz
    width = np.interp(z, (0, 120, 180, 200, 225, 300), (7, 5, 8, 18, 27, 32))
    width = width + 12 * np.clip((110 - z) / 30, 0, 1) * np.clip((y - 40) / 25, 0, 1)
    width = width + 10 * np.exp(-(((z - 195) / 28) ** 2)) * np.clip((y - 10) / 30, 0, 1) - 2 * (y > 60)
    width = width * (1 - 0.4 * np.clip(y / 45, 0, 1) * np.clip((z - 190) / 30, 0, 1))
    out = (np.abs(x - _middle(xyz)) - width).astype(np.float32)
    for part, skin, rounding in ((vessels, 2.0, 8.0), (airway, 2.0, 8.0), (heart, 3.5, 9.0), (column, 4.0, 10.0)):
        out = smooth_min(out, part - np.float32(skin), rounding)
    return out


def _with_fat(xyz: Field, between: Field, angle: Field | None = None) -> Field:
    """``between`` with the fat pads beside the tip of the heart, which fill ``angle`` (``None``: whole ellipsoids)."""
    for centre, axes in _HEART_FAT:
        pad = ellipsoid(xyz, centre, axes)
        between = smooth_min(between, pad if angle is None else smooth_max(pad, angle, 8.0), 10.0)
    return between


def _muscle_mm(xyz: Field) -> Field:
    """Thickness of the muscle outside the inner chest wall, model mm."""
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
    """Distance to the skin of the body without shoulders and arms, on the coarse grid, model mm."""
    x, y, z = xyz
    fat = np.float32(patient.fat_mm)
    front = _profile(_CAGE_FRONT, z) + 17 + 0.8 * fat + 16 * np.clip((z - 175) / 60, 0, 1).astype(np.float32)
    back = _profile(_CAGE_BACK, z) - 33 - 0.6 * fat - 8 * np.clip((z - 200) / 60, 0, 1).astype(np.float32)
    out = _distance(frame, _superellipse(x, y, _profile(_BODY_HALF_WIDTH, z) + fat, front, back, _BODY_POWER))
    if patient.breast > 0:
        for sign in (1.0, -1.0):
            axes = (58.0, 34.0 * patient.breast, 48.0)
            out = smooth_min(out, ellipsoid(xyz, (sign * 74, 74.0, 118.0), axes), 22.0)
    groove = 6 * np.exp(-((x / 14) ** 2)) * (y < -60)
    return (out + groove).astype(np.float32)


def _soft_tissue(
    frame: Frame,
    xyz: Field,
    patient: Patient,
    shapes: dict[str, Field],
    rng: np.random.Generator,
    extra: np.random.Generator,
) -> Field:
    """HU of everything but bone, lung, airway and skin, on the coarse grid."""
    noise = smooth_noise(rng, frame.coarse_shape, 6.0)
    tissue = (FAT_HU + 8 * noise).astype(np.float32)
    streaks = np.clip(smooth_noise(rng, frame.coarse_shape, 4.0) - 1.1, 0, 1)
    muscle_mm = _muscle_mm(xyz)
    muscle = np.maximum(shapes["cage"] - muscle_mm, shapes["body"] + 4)
    flesh = MUSCLE_HU + 6 * noise - 120 * streaks
    planes = np.exp(-(((shapes["cage"] - 9.5) / 1.3) ** 2)) * (muscle_mm > 13) + np.exp(
        -(((shapes["cage"] - 22 - 3 * noise) / 1.2) ** 2)
    ) * (muscle_mm > 26)
    blend(tissue, inside(muscle, 2.0), (flesh - 130 * np.clip(planes, 0, 1)).astype(np.float32))
    if patient.breast > 0:
        gland = np.clip(smooth_noise(rng, frame.coarse_shape, 5.0) * 0.8 + 0.2, 0, 1)
        for sign in (1.0, -1.0):
            part = ellipsoid(xyz, (sign * 74, 86.0, 118.0), (38, 26 * patient.breast, 32))
            blend(tissue, np.where(muscle > 3, inside(part, 8.0) * gland, 0), 35.0)
    blend(tissue, inside(shapes["cavity"] + 1.5, 2.0), FAT_HU + 12 * noise)
    fill_abdomen(frame, xyz, tissue, np.maximum(shapes["cage"] + 2, -shapes["diaphragm"] - 2), rng, extra)
    layers = (
        (np.maximum(shapes["cage"], np.abs(shapes["diaphragm"] + 1.0) - 1.5), 2.0, 45.0),  # the diaphragm itself
        (shapes["column"], 2.0, DISC_HU),
        (shapes["canal"], 2.0, 30.0),
        (shapes["heart"] - 2.5, 2.0, FAT_HU),
        (shapes["heart"], 2.0, 60.0 + 0.25 * max(patient.blood_hu - 45, 0)),
        (shapes["chambers"], 3.0, patient.blood_hu),
        (shapes["oesophagus"], 2.0, 38.0),
        (shapes["vessels"], 2.0, patient.blood_hu),
    )
    for distance, edge_mm, value in layers:
        blend(tissue, inside(distance, edge_mm), value)
    return tissue


def _contour(side: float, angle_deg: Array, z: Array, offset: float) -> Array:
    """Points ``[..., 3]`` outside the inner chest wall: -90° behind, 0° lateral, 90° in front."""
    front, back = np.interp(z, _Z, _CAGE_FRONT), np.interp(z, _Z, _CAGE_BACK)
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    power = 2 / _CAGE_POWER
    x = side * (np.interp(z, _Z, _CAGE_HALF_WIDTH) + offset) * np.abs(c) ** power
    y = (front + back) / 2 + ((front - back) / 2 + offset) * np.sign(s) * np.abs(s) ** power
    return np.stack([x, y, z], axis=-1)


def _rib(number: int, side: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Centre line of a rib's bone and of its cartilage (``[P, 3]`` model mm each; the cartilage may be empty)."""
    head_z = _TOP_VERTEBRA_Z - (number - 1) * _VERTEBRA_PITCH + 6
    drop = np.interp(number, (1, 2, 5, 8, 10, 12), (30, 48, 88, 108, 95, 60)) * rng.uniform(0.95, 1.05)
    last = np.interp(number, (1, 7, 8, 10, 11, 12), (78, 80, 62, 45, 0, -25))
    u = np.linspace(0, 1, 34)
    angle = -66 + (last + 66) * u
    z = head_z - drop * np.sin(np.pi / 2 * np.minimum(u / 0.86, 1)) ** 1.15 + 18 * np.clip(u - 0.86, 0, 1) / 0.14
    path = _contour(side, angle, z, 5.2)
    y = np.interp(head_z, _Z, _SPINE_Y)
    head = np.array([[side * 19, y - 9, head_z], [side * 32, y - 21, head_z - 1]])
    path = np.concatenate([head, path])
    bone = len(path) if number > 10 else int(len(path) * (0.66 if number == 1 else 0.78))
    return path[:bone], path[bone - 1 :]


def _bone_tubes() -> list[tuple[Array, float]]:
    """Processes of the vertebrae, sternum, clavicles and shoulder blades: points ``[P, 3]`` and radius, model mm."""
    tubes: list[tuple[Array, float]] = []
    for z in _TOP_VERTEBRA_Z - _VERTEBRA_PITCH * np.arange(14):
        y = float(np.interp(z, _Z, _SPINE_Y)) - 13.5
        tubes.append((np.array([[0, y - 17, z], [0, y - 26, z - 9], [0, y - 38, z - 24]]), 3.2))
        tubes += [(np.array([[s * 12, y - 10, z + 3], [s * 31, y - 17, z + 5]]), 4.2) for s in (1.0, -1.0)]
    for z in np.arange(86, 208, 4.0):
        half = np.interp(z, (86, 165, 175, 200, 207), (11, 14, 13, 26, 20))
        y = np.interp(z, _Z, _CAGE_FRONT) + 8
        tubes.append((np.array([[-half, y - 1.5, z], [0, y, z], [half, y - 1.5, z]]), 5.2))
    for side in (1.0, -1.0):
        clavicle = [[side * 16, 62, 212], [side * 42, 66, 224], [side * 78, 44, 240], [side * 122, 2, 254]]
        for z in np.arange(122, 240, 3.0):  # shoulder blade
            angle = np.linspace(-58, -58 + np.interp(z, (122, 200, 238), (12, 48, 44)), 7)
            tubes.append((_contour(side, angle, np.full(7, z), 15.0), 1.7))
        ridge = _contour(side, np.linspace(-56, -18, 6), np.linspace(224, 246, 6), 19.0)
        socket = _contour(side, np.linspace(-22, -8, 4), np.linspace(215, 250, 4), 17.0)
        tubes += [(np.array(clavicle), 5.5), (ridge, 4.5), (socket, 8.0)]
    return tubes


def _bones(frame: Frame, column: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Distances to bone and to rib cartilage on the full grid, mm (only near them; positive far away)."""
    size = float(np.mean(frame.stretch))
    bone = frame.upsample(column) * np.float32(size)
    cartilage = np.full(frame.shape, 4.0, dtype=np.float32)
    flat = 0.56  # a rib's thickness over its height
    for number in range(1, 13):
        for side in (1.0, -1.0):
            rib, tip = (frame.to_voxel(p) for p in _rib(number, side, rng))
            stamp_tube(bone, rib, 3.7 * size, flatten=flat)
            if len(tip) > 1:
                stamp_tube(cartilage, tip, 4.3 * size, flatten=0.7)
    for points, radius in _bone_tubes():
        stamp_tube(bone, frame.to_voxel(points), radius * size)
    return bone, cartilage


def _add_bones(frame: Frame, image: Field, column: Field, endplate: Field, rng: np.random.Generator) -> None:
    bone, cartilage = _bones(frame, column, rng)
    blend(image, inside(cartilage), CARTILAGE_HU)
    where = np.nonzero(bone < 1.0)
    depth = bone[where]
    texture = smooth_noise(rng, frame.shape, 2.2)[where]
    in_spine = endplate[where] < 0.5
    marrow = np.where(in_spine, MARROW_HU, 0.8 * MARROW_HU) + 55 * texture
    cortex = np.where(in_spine, ENDPLATE_HU, CORTEX_HU) + 60 * texture
    shell = np.clip(1.0 - (np.abs(depth + 0.6) - 0.7) / 0.9, 0, 1)
    value = marrow + shell * (cortex - marrow)
    share = np.clip(0.5 - depth, 0, 1)
    image[where] += share * (value - image[where])


def _lobes(xyz: Field) -> tuple[npt.NDArray[np.uint8], Field]:
    """Lobe numbers (see ``Anatomy``) and unsigned distance to the nearest fissure, model mm, on the coarse grid."""
    x, y, z = xyz
    right = x > _middle(xyz)
    oblique = np.where(right, 108 - 0.88 * y, 112 - 0.95 * y) + 7 * np.sin(y / 32) - 0.05 * (np.abs(x) - 60)
    minor = 128 - 0.004 * (x - 60) ** 2 + 0.12 * (y - 30)
    above = (z - oblique) / 1.33
    upper = z - minor
    lobe = np.where(right, np.where(above < 0, 3, np.where(upper > 0, 1, 2)), np.where(above < 0, 5, 4))
    distance = np.where(right & (above > 0), np.minimum(np.abs(above), np.abs(upper)), np.abs(above))
    return lobe.astype(np.uint8), distance.astype(np.float32)


def _whole_lungs(lung: Field, lobe: npt.NDArray[np.uint8]) -> Field:
    """The distance field without the specks that the warp can cut off: one piece of lung on either side."""
    specks = lung < 0
    for side in (lobe <= 3, lobe > 3):
        pieces, _count = ndimage.label((lung < 0) & side)
        specks &= pieces != 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    return np.where(specks, np.float32(1), lung)


def _shapes(frame: Frame, xyz: Field, patient: Patient) -> dict[str, Field]:
    """Distances of the smooth structures on the coarse grid, model mm."""
    x, y, z = xyz
    outline = [_profile(p, z) for p in (_CAGE_HALF_WIDTH, _CAGE_FRONT, _CAGE_BACK)]
    shapes = {"cage": _distance(frame, _superellipse(x, y, outline[0], outline[1], outline[2], _CAGE_POWER))}
    shapes["body"] = trunk(frame, xyz, patient)
    shapes["diaphragm"] = _distance(frame, _diaphragm(xyz, patient))
    apex = _distance(frame, _apices(xyz))
    shapes["heart"] = _heart(xyz, patient, _HEART)
    shapes["chambers"] = _heart(xyz, patient, _CHAMBERS)
    tubes = [_AORTA, *_PULMONARY, *_PULMONARY_VEINS, *_CAVAL, *_ARCH_BRANCHES]
    shapes["vessels"] = coarse_tubes(frame, tubes)
    shapes["oesophagus"] = coarse_tubes(frame, [_OESOPHAGUS])
    airway = np.minimum(coarse_tubes(frame, [TRACHEA, *BRONCHI]), shapes["oesophagus"])
    shapes["column"], shapes["bone"], shapes["canal"] = _spine(xyz)
    shapes["cavity"] = np.maximum(np.maximum(shapes["cage"], shapes["diaphragm"]), -z - 70)
    shapes["thorax"] = smooth_max(smooth_max(shapes["cage"], shapes["diaphragm"], 3.0), apex, 8.0)
    between = _mediastinum(xyz, shapes["heart"], shapes["vessels"], airway, shapes["column"])
    shapes["room"] = _with_fat(xyz, between)
    shapes["between"] = _with_fat(xyz, between, smooth_min(shapes["heart"], -shapes["diaphragm"], _FAT_FILLET_MM))
    return shapes


def build_anatomy(patient: Patient, frame: Frame, rng: np.random.Generator, extra: np.random.Generator) -> Anatomy:
    """Render a patient's trunk on the frame's grid, without its skin; ``extra`` decides about stomach and bowel."""
    xyz = frame.model_coordinates()
    shapes = _shapes(frame, xyz, patient)
    size = np.float32(np.mean(frame.stretch))
    tissue = _soft_tissue(frame, xyz, patient, shapes, rng, extra)
    image = np.full(frame.shape, AIR_HU, dtype=np.float32)
    blend(image, inside(frame.upsample(shapes["body"]) * size), frame.upsample(tissue))
    _add_bones(frame, image, shapes["bone"], frame.upsample(shapes["column"]), rng)
    lobe, fissure = _lobes(xyz)
    index = tuple(np.arange(n) // frame.step for n in frame.shape)
    lung, room = (_whole_lungs(smooth_max(shapes["thorax"], -shapes[w], 2.0), lobe) for w in ("between", "room"))
    return Anatomy(
        image_hu=image,
        lung_mm=frame.upsample(lung) * size,
        room_mm=frame.upsample(room) * size,
        lobe=lobe[np.ix_(*index)],
        fissure_mm=frame.upsample(fissure) * size,
    )


def add_airway_tubes(frame: Frame, image: Field, *, wall_mm: float = 1.3) -> None:
    """Trachea and bronchi up to the lobes: walls of soft tissue, then the air in them, into ``image`` in place."""
    size = float(np.mean(frame.stretch))
    for extra, value in ((wall_mm * size, 35.0), (0.0, -985.0)):
        for tube in (TRACHEA, *BRONCHI):
            points = np.array(tube, dtype=np.float64)
            voxels, radii = frame.to_voxel(points[:, :3]), points[:, 3] * size + extra
            reach = radii.max() + 2
            box = local_box(frame.shape, voxels.min(axis=0) - reach, voxels.max(axis=0) + reach)
            distance = np.full(image[box].shape, 3.0, dtype=np.float32)
            stamp_tube(distance, voxels - [s.start for s in box], radii)
            blend(image[box], inside(distance), value)
