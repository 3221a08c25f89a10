"""The inputs of MONAI's training and evaluation engines, and what their metrics compare."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from ..core.geometry import apply_affine, spacing_mm
from ..core.labels import NODULE, PADDING
from ..core.records import Detection
from ..decode.candidates import MASK_LOGITS
from ..decode.masks import MaskSettings, segment_given
from ..metrics import ScanTruth, ScoredScan, score_masks
from ..preprocess.lungs import lung_mm3
from ..preprocess.resampling import in_order_of

TARGET_KEYS = ("nodule", "label", "mask")


def prepare_training_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Split a batch of crops into the network's input and the target of the loss, both moved to the device."""
    target = {key: batch[key].to(device, non_blocking=non_blocking) for key in TARGET_KEYS}
    return batch["image"].to(device, non_blocking=non_blocking), target


class PairWithTruthd(Transform):
    """Replace the network's maps (``pred``) by what the metrics compare, a ``ScoredScan``; the maps move to ``maps``.

    Reads ``candidates``, ``nodule``, ``label``, the affine of ``image`` and, where present, ``name`` and
    ``lung_distance_mm``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        item["maps"], item["pred"] = item.get("pred"), ScoredScan(tuple(item["candidates"]), _truth_of(item))
        return item


def _truth_of(item: Mapping[Hashable, Any]) -> ScanTruth:
    """Return the annotations of a scan in RAS mm; annotation n (from 1) has the value n in the reference mask."""
    label = np.asarray(item["label"])
    rows = np.asarray(item["nodule"], dtype=np.float64)[label != PADDING]
    centres = apply_affine(np.asarray(item["image"].affine), rows[:, :3])
    litres = lung_mm3(item["lung_distance_mm"]) / 1e6 if "lung_distance_mm" in item else 0.0
    return ScanTruth(centres, rows[:, 3], label[label != PADDING] == NODULE, str(item.get("name", "")), litres)


class ScoreMasksd(Transform):
    """Compare the predicted masks with the reference mask on the scan's own grid; see docs/evaluation.md.

    Reads ``nodules`` and ``mask`` (:class:`..decode.masks.SegmentNodulesd`), ``nodule``, ``label``, ``name``, ``pred``
    and ``image`` on the network's grid, ``scan``, and ``reference`` (``[1, I, J, K]``, value = row + 1, on the scan's
    grid; its axes may be stored in another order or direction). Without ``reference``, no nodule has a reference mask.
    Writes ``mask_scores``: the scan's name and its scores, for :class:`..metrics.MaskMetric`.

    Args:
        stride, mask_threshold, margin_mm: see :class:`..decode.masks.MaskSettings`; used for the masks that are
            segmented at the annotated positions and sizes.
    """

    def __init__(self, *, stride: int, mask_threshold: float, margin_mm: float) -> None:
        self.settings = MaskSettings(stride, mask_threshold, margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        scan_affine = np.asarray(item["scan"].affine, dtype=np.float64)
        truth, predicted = _truth_of(item), np.asarray(item["mask"])
        reference = np.zeros_like(predicted)
        if "reference" in item:
            reference = np.asarray(in_order_of(item["scan"], item["reference"], "reference mask").as_tensor()[0])
        given = [
            (n + 1, Detection(tuple(truth.centres_ras_mm[n].tolist()), float(truth.diameters_mm[n]), 1.0))
            for n in np.flatnonzero(truth.is_nodule).tolist()
        ]
        oracle = segment_given(
            given,
            torch.as_tensor(item["pred"])[MASK_LOGITS],
            np.asarray(item["image"].affine, dtype=np.float64),
            predicted.shape,
            scan_affine,
            settings=self.settings,
        )
        masks = reference.astype(np.int32), predicted.astype(np.int32)
        scores = score_masks(truth, item["nodules"], masks, spacing_mm(scan_affine), oracle_mask=oracle)
        item["mask_scores"] = truth.name, scores
        return item
