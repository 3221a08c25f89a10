"""In which lung a nodule lies, and how high in it: left or right, upper, middle or lower third."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Transform

from .findings import LUNG_SIDES, Location, Nodule, SearchRegion, Side
from .geometry import FloatArray, Point, apply_affine


def locate(centres_ras_mm: list[Point], region: SearchRegion) -> list[Location | None]:
    """The lung whose nearest cell is nearer to each position, and the third of that lung's height.

    Beyond a lung's ends the outer thirds go on. ``None`` where no lungs were outlined.
    """
    if not region.lungs_found:
        return [None] * len(centres_ras_mm)
    cells = {side: apply_affine(region.affine_ras, np.argwhere(region.lung(side))) for side in LUNG_SIDES}
    return [_locate(np.array(centre), {side: at for side, at in cells.items() if len(at)}) for centre in centres_ras_mm]


def _locate(centre_ras_mm: FloatArray, cells_ras_mm: dict[Side, FloatArray]) -> Location:
    side = min(cells_ras_mm, key=lambda name: float(np.linalg.norm(cells_ras_mm[name] - centre_ras_mm, axis=1).min()))
    foot_mm, head_mm = cells_ras_mm[side][:, 2].min(), cells_ras_mm[side][:, 2].max()
    share = (centre_ras_mm[2] - foot_mm) / max(head_mm - foot_mm, 1.0)
    return Location(side, "lower" if share < 1 / 3 else "middle" if share < 2 / 3 else "upper")


class LocateNodulesd(Transform):
    """Graph component around :func:`locate`: say of each nodule where it lies.

    Reads ``nodules`` and what :class:`.transforms.CropToLungsd` writes; writes ``nodules`` with their ``location``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        nodules: list[Nodule] = item["nodules"]
        places = locate([nodule.detection.centre_ras_mm for nodule in nodules], SearchRegion.of(item))
        item["nodules"] = [
            dataclasses.replace(nodule, location=place) for nodule, place in zip(nodules, places, strict=True)
        ]
        return item
