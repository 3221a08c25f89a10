"""What goes into the engines and what the metrics get out of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from ..geometry import apply_affine
from ..metrics import ScanTruth
from ..transforms.nodules import NODULE, PADDING

TARGET_KEYS = ("nodule", "label", "mask", "has_mask")


def prepare_training_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Split a batch of crops into the network's input and the loss's target, on the device."""
    target = {key: batch[key].to(device, non_blocking=non_blocking) for key in TARGET_KEYS}
    return batch["image"].to(device, non_blocking=non_blocking), target


class PairWithTruthd(Transform):
    """Put what the metric compares, ``(candidates, truth)``, in the place of the maps (``pred``), which go to ``maps``.

    Reads ``candidates``, ``nodule``, ``label`` and the affine of ``image``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = np.asarray(item["label"])
        rows = np.asarray(item["nodule"], dtype=np.float64)[label != PADDING]
        centres = apply_affine(np.asarray(item["image"].affine), rows[:, :3])
        truth = ScanTruth(centres, rows[:, 3], label[label != PADDING] == NODULE)
        item["maps"], item["pred"] = item.get("pred"), (item["candidates"], truth)
        return item
