"""From the network's maps to candidates in the world.

Source: LWNet decodes the 800 best voxels above probability 0.5 and diameter 3, then NMS at IoU 0.1. Deviations: local
maxima instead of single voxels, and a threshold that is a parameter (0.5 caps the sensitivity that a FROC curve can
reach).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.box_utils import non_max_suppression
from monai.transforms import Transform
from torch import Tensor

from .findings import Detection
from .geometry import FloatArray, apply_affine, spacing_mm

# Channels of the network's output, as declared in metadata.json.
NODULE_LOGIT, OFFSET_MM, LOG_DIAMETER, MASK_LOGITS = 0, slice(1, 4), 4, slice(5, None)
LARGEST_DIAMETER_MM = 100.0  # a lesion beyond 30 mm is a mass; this only keeps exp() of untrained maps finite


def decode_candidates(
    pred: Tensor,
    affine: FloatArray,
    *,
    stride: int,
    threshold: float,
    peak_size: int,
    top_k: int,
    nms_overlap: float,
    smallest_diameter_mm: float = 0.0,
) -> list[Detection]:
    """Pick the peaks of one scan's maps.

    Args:
        pred: ``[5 + M, I, J, K]``, see metadata.json.
        affine: ``[4, 4]``, input voxel (not cell) to RAS mm.
        stride: input voxels per cell.
        threshold: smallest probability kept.
        peak_size: a cell is a peak when it is the largest in this odd cube of cells.
        top_k: most peaks kept, before NMS.
        nms_overlap: IoU of bounding cubes above which the weaker of two peaks goes.
        smallest_diameter_mm: candidates below leave.

    Returns:
        Candidates by falling probability; may be empty.
    """
    logits = pred[NODULE_LOGIT]
    peaks = F.max_pool3d(logits[None, None], peak_size, stride=1, padding=peak_size // 2)[0, 0] == logits
    lowest = np.log(threshold / (1.0 - threshold)) if 0.0 < threshold < 1.0 else (-np.inf if threshold <= 0 else np.inf)
    cells = torch.nonzero(peaks & (logits >= lowest))
    scores = logits[tuple(cells.T)]
    best = scores.topk(min(top_k, len(scores))).indices
    cells, scores = cells[best], scores[best]
    here = tuple(cells.T)
    diameters_mm = pred[LOG_DIAMETER][here].exp().clamp(0.0, LARGEST_DIAMETER_MM)
    mm = torch.as_tensor(spacing_mm(affine), dtype=torch.float64)
    offsets = pred[OFFSET_MM][(slice(None), *here)].T.double().cpu() / mm
    centres = cells.cpu() * stride + (stride - 1) / 2.0 + offsets  # in input voxels
    half = diameters_mm.double().cpu()[:, None] / 2.0
    boxes = torch.cat([centres * mm - half, centres * mm + half], dim=1)
    kept = non_max_suppression(boxes, scores.cpu(), nms_overlap) if len(boxes) else torch.zeros(0, dtype=torch.long)
    kept = kept[diameters_mm.cpu()[kept] >= smallest_diameter_mm]
    world = apply_affine(affine, centres.numpy()[kept.numpy()])
    probabilities = torch.sigmoid(scores.double().cpu())[kept].tolist()
    return [
        Detection((x, y, z), d, p)
        for (x, y, z), d, p in zip(world.tolist(), diameters_mm.cpu()[kept].tolist(), probabilities, strict=True)
    ]


class DecodeCandidatesd(Transform):
    """Graph component around :func:`decode_candidates`.

    Reads ``pred`` ``[C, I, J, K]`` and the affine of ``image``; writes ``candidates`` (list of
    :class:`.findings.Detection`). Arguments as there.
    """

    def __init__(
        self,
        *,
        stride: int,
        threshold: float,
        peak_size: int,
        top_k: int,
        nms_overlap: float,
        smallest_diameter_mm: float = 0.0,
    ) -> None:
        if peak_size < 1 or peak_size % 2 == 0:
            raise ValueError(f"peak_size: expected an odd number of cells, got {peak_size}")
        self.settings: dict[str, Any] = {
            "stride": stride,
            "threshold": threshold,
            "peak_size": peak_size,
            "top_k": top_k,
            "nms_overlap": nms_overlap,
            "smallest_diameter_mm": smallest_diameter_mm,
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        affine = np.asarray(item["image"].affine, dtype=np.float64)
        item["candidates"] = decode_candidates(torch.as_tensor(item["pred"]), affine, **self.settings)
        return item


class DropOutsideLungsd(Transform):
    """Keep the candidates that touch the lungs: those whose centre is at most radius + margin away from them.

    Reads ``candidates``, ``lung_distance_mm`` (see :class:`.transforms.CropToLungsd`); writes ``candidates`` and
    ``outside_lungs``, the number dropped. A candidate beyond the distance map's border is judged at the border.

    Args:
        margin_mm: allowed beyond the radius.
    """

    def __init__(self, margin_mm: float) -> None:
        self.margin_mm = margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        distance = item["lung_distance_mm"]
        to_voxel = np.linalg.inv(np.asarray(distance.affine, dtype=np.float64))
        shape = np.array(distance.shape[1:])
        kept: list[Detection] = []
        for candidate in item["candidates"]:
            voxel = np.clip(np.round(apply_affine(to_voxel, candidate.centre_ras_mm)).astype(int), 0, shape - 1)
            if float(distance[(0, *voxel.tolist())]) <= candidate.diameter_mm / 2.0 + self.margin_mm:
                kept.append(candidate)
        item["outside_lungs"] = len(item["candidates"]) - len(kept)
        item["candidates"] = kept
        return item
