"""A searched scan for the reports: a synthetic chest, its own nodules as findings, and its lungs as found in a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scripts.core.geometry import Point, apply_affine
from scripts.core.records import Detection, Location, Nodule, ScanResult
from scripts.decode.measurements import measure
from scripts.phantom.chest import Chest
from scripts.preprocess import find_lungs
from tests.parts import TrueParts

THRESHOLD = 0.5


def searched_chest(chest: Chest, weaker: Sequence[float] = (0.4, 0.2), *, name: str = "chest") -> ScanResult:
    """Return a result: every nodule found (0.97, 0.87, …), and weaker candidates of these probabilities.

    The weaker candidates are placed along the body.
    """
    image_hu = np.rint(chest.image_hu).astype(np.int16)
    nodules = []
    for label in range(1, len(chest.nodules) + 1):
        inside = chest.mask == label
        i, j, k = np.argwhere(inside).mean(axis=0).tolist()
        centre_ras_mm = _point(apply_affine(chest.affine_ras, (i, j, k)))
        detection = Detection(centre_ras_mm, 1.02 * chest.nodules[label - 1].diameter_mm, 1.07 - 0.1 * label)
        location = Location("left" if centre_ras_mm[0] < 0 else "right", "middle")
        nodules.append(Nodule(label, detection, (i, j, k), measure(inside, image_hu, chest.affine_ras), location))
    middle = (np.array(chest.image_hu.shape) - 1) / 2
    places = [_point(apply_affine(chest.affine_ras, middle + np.array([-25, 0, 10 * n]))) for n in range(len(weaker))]
    candidates = [Detection(place, 5.0, probability) for place, probability in zip(places, weaker, strict=True)]
    return ScanResult(
        name=name,
        source=f"/ward/Jane Doe/{name}.nii.gz",
        image_hu=image_hu,
        affine_ras=chest.affine_ras,
        mask=chest.mask.astype(np.uint16),
        nodules=tuple(nodules),
        candidates=(*(nodule.detection for nodule in nodules), *candidates),
        outside_lungs=0,
        facts={"Modality": "CT"},
        model={"name": "compact", "version": "0.1.0"},
        settings={"threshold": THRESHOLD, "candidate_threshold": 0.01},
        seconds=12.3,
        region=find_lungs(chest.image_hu, chest.affine_ras, TrueParts(chest)),
    )


def _point(values: np.ndarray) -> Point:
    x, y, z = values.tolist()
    return x, y, z
