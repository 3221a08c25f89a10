"""Tables that describe the nominal adult of the synthetic chest: profiles along the body, tubes, ellipsoids, densities.

Lengths are model millimetres: x to the patient's right, y to the front, z to the head; z is 0 at the lowest recess of
the lungs, 265 at their apices and 170 at the carina. Proportions follow textbook anatomy and the appearance of CT; they
were not measured in anyone.
"""

from __future__ import annotations

Tube = list[tuple[float, float, float, float]]  # points (x, y, z) and radius
Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]  # centre, semi-axes

LOW_Z, HIGH_Z, APEX_Z = -28.0, 284.0, 265.0  # range covered: from the upper abdomen to just above the apices
VERTEBRA_PITCH, TOP_VERTEBRA_Z = 23.0, 263.0  # T1 at the top; its rib is the first
CAGE_POWER, BODY_POWER = 2.2, 2.5  # superellipse exponents of the axial contours
FAT_FILLET = 44.0  # the fat rounds the angle between heart and diaphragm over this length
COLON_RADIUS, HAUSTRUM = 17.0, 26.0  # HAUSTRUM is the length of one pouch of the large bowel

AIR_HU, FAT_HU, MUSCLE_HU, CARTILAGE_HU, DISC_HU = -1000.0, -105.0, 55.0, 125.0, 85.0
CORTEX_HU, MARROW_HU, ENDPLATE_HU = 780.0, 190.0, 480.0
LIVER_HU, SPLEEN_HU, GUT_WALL_HU, FLUID_HU, GAS_HU = 58.0, 48.0, 42.0, 12.0, -975.0
SKIN_HU, CLOTH_HU, GEL_HU, PAD_HU, METAL_HU, CABLE_HU = 20.0, -640.0, 120.0, -250.0, 3000.0, 60.0

# Along z: inner chest wall (half width, front, back), centre of the vertebral bodies, body outline.
PROFILES = {
    "z": (-60.0, 0.0, 60.0, 110.0, 160.0, 200.0, 230.0, 250.0, 265.0, 300.0),
    "cage half width": (120.0, 125.0, 128.0, 126.0, 119.0, 108.0, 92.0, 77.0, 64.0, 50.0),
    "cage front": (92.0, 92.0, 90.0, 85.0, 74.0, 60.0, 45.0, 33.0, 24.0, 14.0),
    "cage back": (-86.0, -90.0, -95.0, -97.0, -95.0, -89.0, -80.0, -70.0, -62.0, -52.0),
    "spine": (-46.0, -52.0, -57.0, -60.0, -58.0, -52.0, -44.0, -37.0, -32.0, -20.0),
    "body half width": (134.0, 138.0, 141.0, 141.0, 141.0, 144.0, 146.0, 143.0, 136.0, 120.0),
}

# Where a lobe's artery, vein and bronchus begin (lobe numbers: see Anatomy).
ROOTS = {
    1: {"artery": (40, -9, 152), "vein": (39, 0, 133), "airway": (40, -19, 155)},
    2: {"artery": (46, -18, 126), "vein": (38, 0, 130), "airway": (43, -23, 123)},
    3: {"artery": (47, -25, 114), "vein": (34, -28, 104), "airway": (46, -27, 116)},
    4: {"artery": (-42, -16, 160), "vein": (-40, -1, 138), "airway": (-43, -20, 150)},
    5: {"artery": (-47, -30, 124), "vein": (-36, -29, 104), "airway": (-45, -32, 128)},
}

TUBES: dict[str, list[Tube]] = {
    "vessels": [
        # aorta
        [(-4, 14, 118, 15), (4, 18, 140, 16), (13, 16, 165, 16), (9, 8, 186, 15), (-4, -8, 195, 14),
         (-17, -26, 190, 13), (-25, -41, 172, 12.5), (-27, -46, 140, 12), (-25, -46, 90, 11.5),
         (-17, -42, 40, 11), (-9, -33, 0, 10.5), (-6, -27, -60, 10)],
        # pulmonary arteries
        [(-20, 34, 124, 14), (-22, 22, 144, 14), (-18, 6, 156, 13), (-38, -14, 160, 11), (-46, -27, 148, 9),
         (-47, -30, 124, 7)],
        [(-18, 6, 156, 12), (8, -5, 153, 11), (34, -9, 150, 10), (45, -16, 134, 8), (47, -25, 114, 6.5)],
        # pulmonary veins
        [(12, -17, 112, 10), (32, -6, 124, 7), (40, 0, 134, 5)],
        [(12, -20, 108, 9), (34, -28, 104, 6.5)],
        [(-16, -17, 114, 10), (-34, -6, 128, 7), (-40, -1, 138, 5)],
        [(-16, -20, 110, 9), (-36, -29, 104, 6.5)],
        # caval and brachiocephalic veins
        [(24, 8, 216, 8), (26, 8, 180, 9), (26, 6, 125, 10)],
        [(20, -4, -60, 11), (20, 0, 30, 12), (22, 2, 78, 12)],
        [(24, 8, 214, 7), (38, 10, 240, 6.5), (54, 6, 286, 6)],
        [(24, 10, 208, 7), (2, 22, 216, 7), (-24, 18, 236, 6.5), (-54, 6, 284, 6)],
        # branches of the aortic arch
        [(6, 6, 190, 7), (13, 8, 220, 6.5), (26, 2, 258, 6), (36, -4, 300, 5)],
        [(-6, -4, 195, 5), (-11, 0, 230, 4.5), (-18, 2, 300, 4)],
        [(-15, -18, 192, 6), (-24, -14, 228, 5.5), (-36, -10, 258, 5), (-70, 0, 284, 5)],
    ],
    "oesophagus": [
        [(-2, -22, 300, 7), (-3, -31, 240, 7), (-4, -38, 190, 7), (-6, -40, 150, 8), (-8, -36, 90, 8),
         (-16, -24, 52, 9), (-30, 0, 30, 10)],
    ],
    "airway": [
        # trachea
        [(0, 6, 320, 8.5), (0, -2, 280, 8.5), (1, -14, 230, 8.5), (2, -21, 195, 8.8), (3, -23, 173, 8.5)],
        # bronchi up to the lobes
        [(3, -23, 173, 7.5), (17, -23, 160, 7), (28, -22, 152, 6.5), (40, -21, 131, 5.2), (46, -27, 116, 3.8)],
        [(28, -22, 152, 5.5), (40, -19, 155, 4.2)],
        [(3, -23, 173, 7.3), (-16, -25, 157, 6.4), (-33, -27, 147, 5.8), (-45, -32, 128, 3.8)],
        [(-33, -27, 147, 5), (-43, -20, 150, 4.2)],
    ],
    "stomach": [[(-62, 8, 30, 30), (-56, 36, 0, 27), (-40, 56, -40, 22)]],  # below the fundus
    # Right shoulder and arm, raised over the head or beside the body.
    "flesh up": [
        [(104, -50, 172, 14), (116, -44, 212, 27), (136, -24, 248, 35), (152, -6, 280, 37), (166, 8, 335, 37)],
    ],
    "flesh down": [
        [(112, -22, 258, 24), (146, -12, 250, 34), (170, -12, 210, 34), (182, -16, 140, 34), (184, -14, -60, 32)],
    ],
    "humerus up": [[(146, -10, 256, 21), (151, -6, 268, 19), (156, -1, 290, 12.5), (166, 8, 335, 11)]],
    "humerus down": [
        [(148, -10, 248, 21), (155, -12, 236, 19), (166, -14, 206, 12.5), (182, -16, 120, 11), (184, -14, -60, 11)],
    ],
}  # fmt: skip

# Centre line of the large bowel: upwards at the back on the left, the flexure below the left dome of the diaphragm,
# across in front, and the flexure below the liver.
COLON = (
    (-102, -44, -60), (-106, -22, -16), (-101, 6, 16), (-90, 36, 14), (-70, 62, -2), (-38, 74, -14), (-6, 78, -22),
    (30, 76, -22), (62, 64, -20), (88, 34, -20), (96, 2, -48),
)  # fmt: skip

ELLIPSOIDS: dict[str, list[Ellipsoid]] = {
    "heart": [((30, 10, 100), (25, 29, 37)), ((-4, 46, 84), (40, 28, 35)), ((-38, 24, 78), (38, 35, 38)),
              ((-2, -17, 114), (34, 18, 22))],
    "chambers": [((30, 10, 100), (21, 25, 33)), ((-4, 48, 86), (32, 20, 28)), ((-36, 22, 82), (23, 20, 25)),
                 ((-2, -17, 114), (30, 14, 18))],
    "heart fat": [((34, 52, 60), (26, 26, 16)), ((-66, 50, 56), (24, 24, 14))],
}  # fmt: skip

# The couch from top to bottom: thickness in mm and HU of cover, mattress, shell, foam core and shell.
COUCH = ((1.0, -780.0), (17.0, -955.0), (2.2, 250.0), (24.0, -890.0), (2.5, 250.0))
# Electrodes: angle in degrees from the front towards the patient's right, and height z.
ELECTRODES = ((36.0, 214.0), (-36.0, 212.0), (-58.0, 62.0), (56.0, 58.0), (-16.0, 128.0))
