"""What the lung network needs for training besides MONAI's engines: its list of scans and its loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.labels import Part
from ..read.datalist import DatalistError

SMOOTH = 50.0  # cells: smooths the Dice, so that a part of few cells counts little


def parts_list(path: str, scan_dir: str, held_out: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return the scans for training the lung network, with the labels of their parts.

    Args:
        path: a JSON file with ``scans``: ``image`` relative to ``scan_dir``, ``label`` relative to the file's folder,
            and ``collection``.
        scan_dir: folder of the scans.
        held_out: collections to leave out.

    Returns:
        Items with ``image`` and ``label``.

    Raises:
        DatalistError: a collection is unknown, or a file is missing.
    """
    scans = json.loads(Path(path).read_text(encoding="utf-8"))["scans"]
    known = sorted({scan["collection"] for scan in scans})
    if unknown := sorted(set(held_out) - set(known)):
        raise DatalistError(f"held_out: expected collections of {path} ({', '.join(known)}), got {', '.join(unknown)}")
    items = [
        {"image": str(Path(scan_dir) / scan["image"]), "label": str(Path(path).parent / scan["label"])}
        for scan in scans
        if scan["collection"] not in held_out
    ]
    if missing := [file for item in items for file in item.values() if not Path(file).exists()]:
        raise DatalistError(f"{path}: expected its scans in --scan_dir {scan_dir}, got none at {missing[0]}")
    return items


class PartsLoss(nn.Module):
    """Weighted cross-entropy, plus a weighted sum of one minus the Dice of each part (soft, over the whole batch).

    Args:
        weights: ``[5]``, weights of the parts in the cross-entropy.
        dice_weights: ``[5]``, weights of the parts in the Dice term.
    """

    weights: Tensor
    dice_weights: Tensor

    def __init__(self, weights: Sequence[float], dice_weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.register_buffer("dice_weights", torch.tensor(dice_weights, dtype=torch.float32))

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of logits ``[B, 5, I', J', K']``; label ``[B, 2, I', J', K']``: parts and cell weights."""
        target = label[:, 0].long()
        is_part = F.one_hot(target, len(Part)).movedim(-1, 1).float()
        shares = logits.softmax(dim=1)
        shared, all_of_both = (t.sum(dim=(0, 2, 3, 4)) for t in (shares * is_part, shares + is_part))
        dice = (2.0 * shared + SMOOTH) / (all_of_both + SMOOTH)
        entropy = F.cross_entropy(logits, target, self.weights, reduction="none") * label[:, 1]
        return entropy.mean() + ((1.0 - dice) * self.dice_weights).sum()
