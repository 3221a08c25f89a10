"""From the network's maps to candidates in world coordinates.

Source: LWNet decodes the 800 best voxels above probability 0.5 and diameter 3, then applies NMS at IoU 0.1. Deviations:
candidates are local maxima instead of single voxels; a plateau of equal cells is one candidate (low-precision
arithmetic rounds neighbours to the same value); and the threshold is a parameter (0.5 limits the sensitivity that a
FROC curve can reach).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data.box_utils import box_iou
from monai.transforms import Transform
from scipy import ndimage
from torch import Tensor

from ..core.errors import SettingError
from ..core.geometry import FloatArray, apply_affine, spacing_mm
from ..core.records import Detection, centre_voxels

# Channels of the network's output, as declared in metadata.json.
NODULE_LOGIT, OFFSET_MM, LOG_DIAMETER, MASK_LOGITS = 0, slice(1, 4), 4, slice(5, None)
CENTRE_MM, DIAMETER_MM = OFFSET_MM, LOG_DIAMETER  # columns of proposals: the same once they are decoded
LARGEST_CUT = 16.0  # logit from about which a float32 probability is 1
LOGIT_ROUNDING = 1e-3  # the cut on float32 logits lets doubtful cells pass; the float64 probability then decides
LARGEST_DIAMETER_MM = 100.0  # lesions above 30 mm are called masses; this only keeps exp() of untrained maps finite


def _largest_around(logits: Tensor, peak_size: int) -> Tensor:
    """Return the largest value in the cube of ``peak_size`` cells around each cell.

    Computed axis by axis, in a tenth of the time of a max pooling and, for 3 cells, about half of that of scipy's
    ``maximum_filter`` (a quarter on one thread).
    """
    for axis in range(logits.ndim):
        largest = logits.clone()
        for step in range(1, min(peak_size // 2 + 1, logits.shape[axis])):
            left = logits.shape[axis] - step
            for here, there in ((0, step), (step, 0)):
                part = largest.narrow(axis, here, left)
                torch.maximum(part, logits.narrow(axis, there, left), out=part)
        logits = largest
    return logits


def _plateaus(cells: Tensor, shape: torch.Size, peak_size: int) -> Tensor:
    """Return the number of the plateau that each peak belongs to: ``[P]``, from 0.

    Neighbouring peaks always have equal values, so that connected peaks are one plateau. With a ``peak_size`` of 1
    nothing is compared, and each cell is a plateau of its own.

    Args:
        cells: ``[P, 3]`` indices of the peaks.
        shape: ``(I, J, K)`` of the map.
        peak_size: see :class:`DecodeCandidatesd`.
    """
    if peak_size == 1:
        return torch.arange(len(cells))
    marked = np.zeros(shape, dtype=bool)
    marked[tuple(cells.T.numpy())] = True
    labels, _ = ndimage.label(marked, structure=np.ones((3, 3, 3), dtype=bool))
    return torch.from_numpy(labels[tuple(cells.T.numpy())]).long() - 1


def nms(boxes: Tensor, overlap: float) -> list[int]:
    """Apply non-maximum suppression; equals MONAI's, but computes all overlaps at once instead of box by box.

    Args:
        boxes: ``[N, 6]`` first and last corner, in descending order of score.
        overlap: IoU above which the weaker of two boxes is removed.

    Returns:
        Indices of the boxes that stay, in the same order; empty without boxes.
    """
    if not len(boxes):
        return []
    rivals = np.asarray(box_iou(boxes, boxes)) > overlap
    gone = np.zeros(len(boxes), dtype=bool)
    kept = []
    for n in range(len(boxes)):
        if not gone[n]:
            kept.append(n)
            gone |= rivals[n]
    return kept


class DecodeCandidatesd(Transform):
    """Pick the peaks of one scan's maps.

    Reads ``pred`` ``[5 + M, I, J, K]`` (see metadata.json) and the affine of ``image``; writes ``candidates``, a
    possibly empty list of :class:`..core.records.Detection` in descending order of probability. Neighbouring peaks of
    equal height are one candidate, at the mean of the centres that they propose and with the geometric mean of their
    diameters.

    Args:
        stride: input voxels per cell.
        threshold: smallest probability kept.
        peak_size: edge, an odd number of cells, of the cube around a cell in which no value may be larger for the cell
            to be a peak.
        top_k: largest number of candidates kept before NMS.
        nms_overlap: IoU of bounding cubes above which the weaker of two candidates is removed.
        smallest_diameter_mm: candidates below this diameter are removed before NMS.

    Raises:
        ValueError: ``peak_size`` is not a positive odd number.

    Example:
        >>> from monai.data import MetaTensor
        >>> maps = torch.zeros(13, 8, 8, 8)
        >>> maps[0] = -9.0
        >>> maps[0, 4, 4, 4] = 3.0
        >>> maps[4] = 2.0
        >>> decode = DecodeCandidatesd(stride=2, threshold=0.1, peak_size=3, top_k=500, nms_overlap=0.1)
        >>> [found] = decode({"pred": maps, "image": MetaTensor(torch.zeros(1, 16, 16, 16))})["candidates"]
        >>> found.centre_ras_mm, round(found.diameter_mm, 1), round(found.probability, 2)
        ((8.5, 8.5, 8.5), 7.4, 0.95)
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
            raise SettingError(f"peak_size: expected an odd number of cells, got {peak_size}")
        self.stride, self.threshold, self.peak_size, self.top_k = stride, threshold, peak_size, top_k
        self.nms_overlap, self.smallest_diameter_mm = nms_overlap, smallest_diameter_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        affine = np.asarray(data["image"].affine, dtype=np.float64)
        rows = self._proposals(torch.as_tensor(data["pred"]), spacing_mm(affine))
        rows = rows[rows[:, DIAMETER_MM] >= self.smallest_diameter_mm]
        rows = rows[rows[:, NODULE_LOGIT].argsort(descending=True, stable=True)[: self.top_k]]
        half_mm = rows[:, DIAMETER_MM, None] / 2.0
        cubes = torch.cat([rows[:, CENTRE_MM] - half_mm, rows[:, CENTRE_MM] + half_mm], dim=1)
        rows = rows[nms(cubes, self.nms_overlap)]
        world = apply_affine(affine, rows[:, CENTRE_MM].numpy() / spacing_mm(affine)).tolist()
        diameters_mm, probabilities = rows[:, DIAMETER_MM].tolist(), torch.sigmoid(rows[:, NODULE_LOGIT]).tolist()
        found = [
            Detection((x, y, z), diameter_mm, probability)
            for (x, y, z), diameter_mm, probability in zip(world, diameters_mm, probabilities, strict=True)
        ]
        return {**data, "candidates": found}

    def _proposals(self, pred: Tensor, voxel_mm: FloatArray) -> Tensor:
        """Return what the peaks propose, a row for each plateau, float64: nodule logit, centre (3), diameter.

        The centre is counted from the first voxel along i, j, k; ``voxel_mm`` ``[3]``. One matrix: PyTorch rounds the
        last bit of a probability differently for a vector without gaps.
        """
        logits = pred[NODULE_LOGIT]
        cut = float(torch.logit(torch.tensor(self.threshold)).clamp(max=LARGEST_CUT)) - LOGIT_ROUNDING
        is_peak = (logits == _largest_around(logits, self.peak_size)) & (logits >= cut)  # excludes flat background
        cells = torch.nonzero(is_peak)
        cells = cells[torch.sigmoid(logits[tuple(cells.T)].double()) >= self.threshold]
        rows = pred[(slice(LOG_DIAMETER + 1), *cells.T)].T.double().cpu()
        cells = cells.cpu()
        rows[:, OFFSET_MM] += (cells * self.stride + (self.stride - 1) / 2.0) * torch.from_numpy(voxel_mm)
        group = _plateaus(cells, logits.shape, self.peak_size)
        counts = torch.bincount(group)
        means = torch.zeros(len(counts), rows.shape[1], dtype=rows.dtype).index_add(0, group, rows) / counts[:, None]
        diameters_mm = means[:, LOG_DIAMETER].exp().clamp(0.0, LARGEST_DIAMETER_MM)
        return torch.cat([means[:, :LOG_DIAMETER], diameters_mm[:, None]], dim=1)


class DropOutsideLungsd(Transform):
    """Keep the candidates in and near the lungs, whose centres are at most a margin away from them.

    Reads ``candidates`` and ``lung_distance_mm`` (from :class:`..preprocess.CropToLungsd`; it covers the whole scan);
    writes ``candidates`` and ``outside_lungs``, the number dropped. A candidate up to one voxel of the distance map
    outside the map gets the distance at the map's border; one farther outside lies in padding and is dropped.

    Args:
        margin_mm: largest distance of a centre from the lungs.
    """

    def __init__(self, margin_mm: float) -> None:
        self.margin_mm = margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        candidates: list[Detection] = data["candidates"]
        distance_mm = np.asarray(data["lung_distance_mm"][0], dtype=np.float64)
        voxels = centre_voxels(candidates, data["lung_distance_mm"].affine)
        last = np.array(distance_mm.shape) - 1
        i, j, k = np.clip(np.round(voxels).astype(int), 0, last).T
        # The border voxels extend half a voxel beyond their centres.
        near = (distance_mm[i, j, k] <= self.margin_mm) & ((voxels >= -1.5) & (voxels <= last + 1.5)).all(axis=1)
        kept = [one for one, is_near in zip(candidates, near.tolist(), strict=True) if is_near]
        return {**data, "candidates": kept, "outside_lungs": len(candidates) - len(kept)}
