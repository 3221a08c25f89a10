"""The location of a nodule in the lungs: left or right, and upper, middle or lower third."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.transforms import Transform

from ..core.geometry import Point, apply_affine, spacing_mm
from ..core.records import LUNG_SIDES, Location, Nodule, SearchRegion, Side

# A smaller cross-section at the top of a lung may be windpipe; an apex is larger than this one slice below its tip.
WINDPIPE_MM2 = 300.0


def locate(centres_ras_mm: list[Point], region: SearchRegion) -> list[Location | None]:
    """Return for each position the lung with the nearest cell, and the third of that lung's height.

    Args:
        centres_ras_mm: world positions, RAS mm.
        region: where the scan was searched, with its lungs.

    Returns:
        A location for each position; above and below a lung the outer thirds continue. ``None`` for each position if
        the lungs were not segmented.
    """
    if not region.lungs_found:
        return [None] * len(centres_ras_mm)
    found = [side for side in LUNG_SIDES if region.lung(side).any()]
    cells = {side: apply_affine(region.affine_ras, np.argwhere(region.lung(side))) for side in found}
    ends = {side: _ends_mm(region, side) for side in found}
    places: list[Location | None] = []
    for centre in centres_ras_mm:
        side = min(found, key=lambda name: float(np.linalg.norm(cells[name] - centre, axis=1).min()))
        foot_mm, head_mm = ends[side]
        share = (centre[2] - foot_mm) / max(head_mm - foot_mm, 1.0)
        places.append(Location(side, "lower" if share < 1 / 3 else "middle" if share < 2 / 3 else "upper"))
    return places


def _ends_mm(region: SearchRegion, side: Side) -> tuple[float, float]:
    """Return the world z of a lung's lowest cell and of its highest plane that is larger than a windpipe, mm."""
    lung = region.lung(side)
    area_mm2 = lung.sum(axis=(0, 1)) * np.prod(spacing_mm(region.affine_ras)[:2])
    wide = np.flatnonzero(area_mm2 >= min(WINDPIPE_MM2, area_mm2.max()))
    foot = np.argwhere(lung)[:, 2].min()
    middle = np.argwhere(lung).mean(axis=0)[:2]
    heights = apply_affine(region.affine_ras, [[*middle, foot], [*middle, wide[-1]]])[:, 2]
    return float(heights[0]), float(heights[1])


class LocateNodulesd(Transform):
    """Graph component around :func:`locate`, which adds the location to each nodule.

    Reads ``nodules`` and what :class:`..preprocess.CropToLungsd` writes; writes ``nodules`` with their ``location``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        nodules: list[Nodule] = data["nodules"]
        places = locate([nodule.detection.centre_ras_mm for nodule in nodules], SearchRegion.of(data))
        located = [dataclasses.replace(nodule, location=place) for nodule, place in zip(nodules, places, strict=True)]
        return {**data, "nodules": located}
