"""In which lung a nodule lies, and how high in it: left or right, upper, middle or lower third.

The closed lungs of :class:`.transforms.CropToLungsd` are worn away from outside until the bridges between them
(airways, the thin tissue in front of the heart) give way and two large pieces stand side by side. The piece nearest
to the nodule is its lung. No midline is assumed: a patient who lies off the middle, turned or flipped in the file has
the same sides. Where no two such pieces appear (one lung, a slab, no lung found) nothing is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from monai.transforms import Transform
from scipy import ndimage

from .findings import Location, Nodule
from .geometry import FloatArray, Point, apply_affine, spacing_mm

Mask = npt.NDArray[np.bool_]

SECOND_LUNG = 0.1  # the smaller piece holds at least a tenth of the larger, as in the search for the lungs
MOST_STEPS = 15  # of the largest spacing: 45 mm on the 3 mm grid of the search, where nothing of a lung is left


class LungSides:
    """Both lungs, told apart.

    A lung reaches from its lowest voxel (the thin recess along the diaphragm counts) to the highest place where a ball
    of the wear's radius fits: the windpipe above it is narrower.

    Args:
        lungs: ``[I, J, K]``, both before the wear.
        left, right: what is left of either.
        affine: ``[4, 4]``, voxel to RAS mm.
        worn_mm: radius of the wear.
    """

    def __init__(self, lungs: Mask, left: Mask, right: Mask, affine: FloatArray, worn_mm: float) -> None:
        nearest = ndimage.distance_transform_edt(
            ~(left | right), sampling=spacing_mm(affine), return_distances=False, return_indices=True
        )
        self._is_left: Mask = left[tuple(nearest)]
        self._to_voxel = np.linalg.inv(affine)
        self._heights_mm = {}
        for name, own, piece in (("left", self._is_left, left), ("right", ~self._is_left, right)):
            foot_mm = apply_affine(affine, np.argwhere(lungs & own))[:, 2].min()
            head_mm = apply_affine(affine, np.argwhere(piece))[:, 2].max() + worn_mm
            self._heights_mm[name] = float(foot_mm), float(head_mm)

    def locate(self, centre_ras_mm: Point) -> Location:
        """The nearer lung, and the third of its height; beyond its ends the outer thirds go on."""
        voxel = np.rint(apply_affine(self._to_voxel, centre_ras_mm)).astype(int)
        within = tuple(np.clip(voxel, 0, np.array(self._is_left.shape) - 1))
        side: Literal["left", "right"] = "left" if self._is_left[within] else "right"
        foot_mm, head_mm = self._heights_mm[side]
        share = (centre_ras_mm[2] - foot_mm) / (head_mm - foot_mm)
        return Location(side, "lower" if share < 1 / 3 else "middle" if share < 2 / 3 else "upper")


def tell_sides(lungs: Mask, affine: FloatArray) -> LungSides | None:
    """Tell the lungs of a mask apart.

    Args:
        lungs: ``[I, J, K]``, airways and what joins the lungs may be part of it.
        affine: ``[4, 4]``, voxel to RAS mm.

    Returns:
        ``None`` where wearing away never leaves two pieces side by side.
    """
    steps_mm = spacing_mm(affine)
    depth_mm = ndimage.distance_transform_edt(np.pad(lungs, 1), sampling=steps_mm)[1:-1, 1:-1, 1:-1]
    for worn_mm in np.arange(MOST_STEPS) * float(steps_mm.max()):
        labels, count = ndimage.label(depth_mm > worn_mm)
        sizes = np.bincount(labels.ravel(), minlength=3)[1:]
        first, second = np.argsort(-sizes)[:2] + 1
        if count > 1 and sizes[second - 1] >= SECOND_LUNG * sizes[first - 1]:
            pieces = labels == first, labels == second
            centres = [apply_affine(affine, np.argwhere(piece).mean(axis=0)) for piece in pieces]
            if np.abs(centres[0] - centres[1]).argmax() != 0:
                return None
            left, right = pieces if centres[0][0] < centres[1][0] else pieces[::-1]  # RAS: x grows to the right
            return LungSides(lungs, left, right, affine, float(worn_mm))
    return None


class LocateNodulesd(Transform):
    """Graph component around :func:`tell_sides`: say of each nodule where it lies.

    Reads ``nodules``, ``lung_distance_mm`` and ``lungs_found`` (see :class:`.transforms.CropToLungsd`); writes
    ``nodules`` with their ``location``, ``None`` where the lungs were not found or not told apart.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        nodules: list[Nodule] = item["nodules"]
        if not nodules or not item["lungs_found"]:
            return item
        distance = item["lung_distance_mm"]
        sides = tell_sides(np.asarray(distance[0]) <= 0.0, np.asarray(distance.affine, dtype=np.float64))
        if sides is not None:
            item["nodules"] = [
                dataclasses.replace(nodule, location=sides.locate(nodule.detection.centre_ras_mm)) for nodule in nodules
            ]
        return item
