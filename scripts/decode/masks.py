"""From mask logits to one mask per nodule on the scan's own grid.

The logits are sampled trilinearly at the centres of the scan's voxels in a box around each detection and thresholded;
the connected component at the detection's centre is kept. Stronger detections come first and keep their voxels. A
detection whose centre lies inside the mask of a stronger one is the same nodule and gets no mask of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Transform
from scipy import ndimage
from torch import Tensor

from ..core.errors import SettingError
from ..core.geometry import BoolArray, FloatArray, apply_affine, box_around, box_between, spacing_mm
from ..core.records import Detection, Nodule
from ..network.blocks import mask_on_voxels
from .candidates import MASK_LOGITS
from .measurements import measure

Box = tuple[slice, slice, slice]


def logits_at(
    mask_logits: Tensor, affine: FloatArray, points_ras_mm: FloatArray, stride: int
) -> npt.NDArray[np.float32]:
    """Sample mask logits trilinearly at world positions; beyond the maps the values of the border are used.

    Only the cells around the points are converted to voxels (:func:`..network.blocks.mask_on_voxels`).

    Args:
        mask_logits: ``[M, I, J, K]`` on output cells, M = stride³ (one per voxel of a cell) or 1.
        affine: ``[4, 4]``, input voxel (not cell) to RAS mm.
        points_ras_mm: ``[..., 3]``, at least one.
        stride: input voxels per cell.

    Returns:
        ``[...]`` float32, one logit per point.
    """
    voxels = apply_affine(np.linalg.inv(affine), points_ras_mm)
    flat = voxels.reshape(-1, 3)
    box = box_between(flat.min(0) / stride - 1, flat.max(0) / stride + 1, mask_logits.shape[1:], least=1)
    fine = mask_on_voxels(mask_logits[(slice(None), *box)][None].float().cpu(), stride)[0, 0].numpy()
    start = np.array([side.start for side in box]) * stride
    read = ndimage.map_coordinates(fine, (flat - start).T, order=1, mode="nearest")
    return np.asarray(read.reshape(voxels.shape[:-1]))


def component_at(inside: BoolArray, centre: FloatArray, reach: FloatArray) -> BoolArray:
    """Return the connected component at a fractional voxel, or the nearest one within ``reach``; it may be empty.

    Args:
        inside: ``[I, J, K]``.
        centre: ``[3]``, fractional voxel.
        reach: ``[3]``, largest distance along each axis in voxels, at least 1 is used; together they span an ellipsoid.
    """
    labels, _ = ndimage.label(inside)
    voxels = np.argwhere(inside)
    apart = np.linalg.norm((voxels - centre) / np.maximum(reach, 1.0), axis=1)
    if apart.min(initial=np.inf) > 1.0:
        return np.zeros_like(inside)
    return np.asarray(labels == labels[tuple(voxels[apart.argmin()])])


@dataclass(frozen=True)
class MaskSettings:
    """How mask logits become masks.

    Attributes:
        stride: input voxels per output cell.
        mask_threshold: probability above which a voxel belongs to the nodule.
        margin_mm: how far a mask may extend beyond the detection's radius, along each axis.
    """

    stride: int
    mask_threshold: float
    margin_mm: float


def mask_at(
    detection: Detection,
    mask_logits: Tensor,
    affine: FloatArray,
    shape: tuple[int, ...],
    scan_affine: FloatArray,
    *,
    settings: MaskSettings,
    taken: npt.NDArray[np.integer] | None = None,
) -> tuple[Box, BoolArray]:
    """Compute the mask of one detection on the scan's own grid.

    Args:
        detection: gives position and size.
        mask_logits: ``[M, I, J, K]``, see :func:`logits_at`.
        affine: ``[4, 4]``, of the network's input, voxel to RAS mm.
        shape: ``(I, J, K)`` of the scan's grid.
        scan_affine: ``[4, 4]``, of the scan's grid, voxel to RAS mm.
        settings: see :class:`MaskSettings`.
        taken: ``[I, J, K]`` on the scan's grid; voxels that are not 0 already belong to another nodule.

    Returns:
        A box of the scan's grid, and which of its voxels belong to the nodule; the mask may be empty.
    """
    cut = float(np.log(settings.mask_threshold / (1.0 - settings.mask_threshold)))
    reach_mm = detection.diameter_mm / 2.0
    box = box_around(scan_affine, shape, detection.centre_ras_mm, reach_mm + settings.margin_mm)
    world = apply_affine(scan_affine, np.stack([*np.mgrid[box]], axis=-1))
    logits = logits_at(mask_logits, affine, world, settings.stride)
    centre = apply_affine(np.linalg.inv(scan_affine), detection.centre_ras_mm) - [s.start for s in box]
    inside = logits > cut
    if taken is not None:
        inside &= taken[box] == 0
    return box, component_at(inside, centre, reach_mm / spacing_mm(scan_affine))


def segment_nodules(
    detections: Sequence[Detection],
    mask_logits: Tensor,
    affine: FloatArray,
    scan_hu: npt.NDArray[np.int16],
    scan_affine: FloatArray,
    *,
    settings: MaskSettings,
) -> tuple[list[Nodule], npt.NDArray[np.uint16]]:
    """Segment and measure detections.

    Args:
        detections: in descending order of probability.
        mask_logits, affine, scan_affine, settings: see :func:`mask_at`.
        scan_hu: ``[I, J, K]``, on the scan's own grid.

    Returns:
        Nodules labelled 1, 2, …, and the instance mask on the scan's grid. A detection whose centre lies in the mask of
        a stronger one is left out.
    """
    instances = np.zeros(scan_hu.shape, dtype=np.uint16, order="F")  # NIfTI's order; pages that stay 0 take no memory
    from_world = np.linalg.inv(scan_affine)
    nodules: list[Nodule] = []
    for detection in detections:
        i, j, k = apply_affine(from_world, detection.centre_ras_mm).tolist()
        nearest = np.clip(np.round([i, j, k]).astype(int), 0, np.array(scan_hu.shape) - 1)
        if not instances[tuple(nearest)]:
            box, inside = mask_at(
                detection, mask_logits, affine, scan_hu.shape, scan_affine, settings=settings, taken=instances
            )
            label = len(nodules) + 1
            instances[box][inside] = label
            nodules.append(Nodule(label, detection, (i, j, k), measure(inside, scan_hu[box], scan_affine)))
    return nodules, instances


def segment_given(
    findings: Sequence[tuple[int, Detection]],
    mask_logits: Tensor,
    affine: FloatArray,
    shape: tuple[int, ...],
    scan_affine: FloatArray,
    *,
    settings: MaskSettings,
) -> npt.NDArray[np.uint16]:
    """Segment findings of known position and size, each independently of the others.

    Args:
        findings: label, and position and diameter, of each finding.
        mask_logits, affine, shape, scan_affine, settings: see :func:`mask_at`.

    Returns:
        The instance mask, ``[I, J, K]``; where masks overlap, it has the label of the later finding.
    """
    instances = np.zeros(shape, dtype=np.uint16)
    for label, place in findings:
        box, inside = mask_at(place, mask_logits, affine, shape, scan_affine, settings=settings)
        instances[box][inside] = label
    return instances


class SegmentNodulesd(Transform):
    """Decide which candidates are nodules, and segment these (:func:`segment_nodules`).

    Reads ``candidates``, ``pred``, the affine of ``image`` and ``scan`` (``[1, I, J, K]``, HU); writes ``nodules`` and
    ``mask`` ``[I, J, K]``. Candidates below ``threshold`` are left out.

    Args:
        threshold: smallest probability of a reported nodule.
        stride, mask_threshold, margin_mm: see :class:`MaskSettings`.

    Raises:
        SettingError: a threshold is not strictly between 0 and 1.
    """

    def __init__(self, *, threshold: float, stride: int, mask_threshold: float, margin_mm: float) -> None:
        for name, value in (("threshold", threshold), ("mask_threshold", mask_threshold)):
            if not 0.0 < value < 1.0:
                raise SettingError(f"{name}: expected a probability between 0 and 1, got {value}")
        self.threshold, self.settings = threshold, MaskSettings(stride, mask_threshold, margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        scan = data["scan"]
        nodules, mask = segment_nodules(
            [c for c in data["candidates"] if c.probability >= self.threshold],
            torch.as_tensor(data["pred"])[MASK_LOGITS],
            np.asarray(data["image"].affine, dtype=np.float64),
            np.asarray(scan.as_tensor()[0]),
            np.asarray(scan.affine, dtype=np.float64),
            settings=self.settings,
        )
        return {**data, "nodules": nodules, "mask": mask}
