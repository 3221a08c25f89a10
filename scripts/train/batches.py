"""What goes into the engines and what the metrics get out of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from ..core.errors import DataError
from ..core.geometry import FloatArray, apply_affine, spacing_mm
from ..core.labels import NODULE, PADDING
from ..core.records import Detection, Nodule
from ..decode.candidates import MASK_LOGITS
from ..decode.masks import OutlineSettings, outline_given
from ..metrics import OutlinedDetections, OutlinedTruth, ScanTruth, score_outlines
from ..preprocess.lungs import SAME_GRID, lung_mm3

TARGET_KEYS = ("nodule", "label", "mask", "has_mask")


def prepare_training_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Split a batch of crops into the network's input and the loss's target, on the device."""
    target = {key: batch[key].to(device, non_blocking=non_blocking) for key in TARGET_KEYS}
    return batch["image"].to(device, non_blocking=non_blocking), target


class PairWithTruthd(Transform):
    """Put what the metric compares, ``(candidates, truth)``, in the place of the maps (``pred``), which go to ``maps``.

    Reads ``candidates``, ``nodule``, ``label``, the affine of ``image`` and, where they are there, ``name`` and
    ``lung_distance_mm``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = np.asarray(item["label"])
        rows = np.asarray(item["nodule"], dtype=np.float64)[label != PADDING]
        centres = apply_affine(np.asarray(item["image"].affine), rows[:, :3])
        name = str(item.get("name", ""))
        distance = item.get("lung_distance_mm")
        litres = 0.0 if distance is None else lung_mm3(distance) / 1e6
        truth = ScanTruth(centres, rows[:, 3], label[label != PADDING] == NODULE, name, litres)
        item["maps"], item["pred"] = item.get("pred"), (item["candidates"], truth)
        return item


class ScoreOutlinesd(Transform):
    """Compare the reported outlines with the reference mask, on the scan's own grid; see docs/evaluation.md.

    Reads ``nodules`` and ``mask`` (:class:`..decode.masks.OutlineNodulesd`), ``nodule``, ``label``, ``name``, ``pred``
    and ``image`` of the network's grid, ``scan``, and ``reference`` (``[1, I, J, K]``, value = row + 1, on the scan's
    grid, whose axes it may hold in another order or direction; without it no nodule has a reference). Writes
    ``outlines``: the scan's name and its scores, for :class:`..metrics.OutlineMetric`.

    Args:
        stride, mask_threshold, margin_mm: see :class:`..decode.masks.OutlineSettings`; for outlines whose position and
            size are given.
    """

    def __init__(self, *, stride: int, mask_threshold: float, margin_mm: float) -> None:
        self.settings = OutlineSettings(stride, mask_threshold, margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        scan_affine = np.asarray(item["scan"].affine, dtype=np.float64)
        truth = _outlined_truth(item)
        predicted = np.asarray(item["mask"])
        reference = _in_order_of(item["scan"], item["reference"]) if "reference" in item else np.zeros_like(predicted)
        oracle = outline_given(
            [
                (int(label), Detection(tuple(centre), float(diameter), 1.0))
                for label, centre, diameter in zip(
                    truth.labels, truth.positions_mm.tolist(), truth.diameters_mm, strict=True
                )
            ],
            torch.as_tensor(item["pred"])[MASK_LOGITS],
            np.asarray(item["image"].affine, dtype=np.float64),
            predicted.shape,
            scan_affine,
            settings=self.settings,
        )
        name, found = str(item["name"]), _outlined_detections(item["nodules"])
        masks = reference.astype(np.int32), predicted.astype(np.int32)
        scores = score_outlines(name, truth, found, masks, spacing_mm(scan_affine), oracle_mask=oracle)
        item["outlines"] = name, scores
        return item


def _in_order_of(scan: MetaTensor, mask: MetaTensor) -> npt.NDArray[np.integer]:
    """A mask's labels ``[I, J, K]`` with the axes of a scan: files of one grid may store them differently."""
    affine, wanted = (np.asarray(one.affine, dtype=np.float64) for one in (mask, scan))
    turn = ornt_transform(io_orientation(affine), io_orientation(wanted))
    labels = np.asarray(apply_orientation(np.asarray(mask.as_tensor()[0]), turn))
    affine = affine @ inv_ornt_aff(turn, mask.shape[1:])
    if labels.shape != tuple(scan.shape[1:]) or not np.allclose(affine, wanted, atol=SAME_GRID):
        raise DataError(
            f"{mask.meta.get('filename_or_obj', 'reference mask')}: expected a mask on the grid of its scan (size "
            f"{tuple(scan.shape[1:])}), got size {labels.shape} or another affine; resample it to that grid"
        )
    return labels


def _outlined_truth(item: Mapping[Hashable, Any]) -> OutlinedTruth:
    """The reference nodules of a scan, RAS mm; their values in the mask are their rows, from 1."""
    label = np.asarray(item["label"])
    rows = np.asarray(item["nodule"], dtype=np.float64)
    centres = apply_affine(np.asarray(item["image"].affine), rows[:, :3])
    there = label == NODULE
    return OutlinedTruth(centres[there], rows[there, 3], np.ones(int(there.sum()), bool), np.flatnonzero(there) + 1)


def _outlined_detections(nodules: Sequence[Nodule]) -> OutlinedDetections:
    centres: FloatArray = np.array([n.detection.centre_ras_mm for n in nodules], dtype=np.float64).reshape(-1, 3)
    probabilities = np.array([n.detection.probability for n in nodules], dtype=np.float64)
    return OutlinedDetections(centres, probabilities, np.array([n.label for n in nodules], dtype=np.int64))
