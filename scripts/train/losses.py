"""The training loss: detect each nodule, locate and size it, and segment it.

Source: LWNet: focal-style classification with hard negatives, SmoothL1 on offset and log diameter, half BCE and half
Dice on the mask around each nodule, and empty masks in sampled background boxes. Deviation: logits throughout
(LWNet takes the log of clamped probabilities, which is -inf in float32).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.labels import NODULE, PADDING
from ..network.blocks import mask_on_voxels
from .targets import BACKGROUND, POSITIVE, CellTargets, cell_targets


def focal_terms(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the focal cross-entropy of each logit (without class weights), in the shape of ``logits``."""
    wrong = torch.sigmoid(torch.where(target > 0.5, -logits, logits))  # probability assigned to the wrong class
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * wrong.pow(gamma)


class ClassificationLoss(nn.Module):
    """Focal loss of positive cells and of the hardest background cells, normalised by the number of positive cells.

    The divisor is at least the number of positive cells of one nodule.

    Args:
        gamma: focal exponent.
        positive_weight: weight of a positive cell relative to a background cell.
        negatives_per_positive: number of background cells, the hardest ones, per positive cell of the batch.
        fewest_negatives: least number of background cells, so that batches without nodules contribute too.
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        positive_weight: float = 1.0,
        negatives_per_positive: int = 100,
        fewest_negatives: int = 1000,
    ) -> None:
        super().__init__()
        self.weights = {"class": 1.0}
        self.gamma, self.positive_weight = gamma, positive_weight
        self.negatives_per_positive, self.fewest_negatives = negatives_per_positive, fewest_negatives

    def forward(self, logits: Tensor, cells: CellTargets) -> dict[str, Tensor]:
        """Return ``class``, the loss of the nodule logits ``[B, I, J, K]``."""
        positive, background = logits[cells.state == POSITIVE], logits[cells.state == BACKGROUND]
        kept = min(background.numel(), max(self.fewest_negatives, self.negatives_per_positive * positive.numel()))
        hardest = background.topk(kept).values
        found = focal_terms(positive, torch.ones_like(positive), self.gamma).sum() * self.positive_weight
        quiet = focal_terms(hardest, torch.zeros_like(hardest), self.gamma).sum()
        return {"class": (found + quiet) / max(positive.numel(), cells.per_nodule)}


class RegressionLoss(nn.Module):
    """SmoothL1 of offset (mm) and log diameter, averaged over positive cells; zero without any.

    Args:
        offset_weight, size_weight: weights relative to classification.
    """

    def __init__(self, *, offset_weight: float = 1.0, size_weight: float = 1.0) -> None:
        super().__init__()
        self.weights = {"offset": offset_weight, "size": size_weight}

    def forward(self, maps: Tensor, cells: CellTargets) -> dict[str, Tensor]:
        """Return ``offset`` and ``size`` for maps ``[B, 4, I, J, K]``: offset along i, j, k, and log diameter."""
        positive = cells.state == POSITIVE
        count = positive.sum().clamp_min(1)
        channels = positive[:, None].expand_as(cells.offset_mm)
        offset = F.smooth_l1_loss(maps[:, :3][channels], cells.offset_mm[channels], reduction="sum") / (3 * count)
        size = F.smooth_l1_loss(maps[:, 3][positive], cells.log_diameter[positive], reduction="sum") / count
        return {"offset": offset, "size": size}


class MaskLoss(nn.Module):
    """Mean of :meth:`nodule_loss` in a box around each nodule and of BCE in randomly placed boxes.

    A nodule without a voxel in the reference mask is skipped, and so are the random boxes of its item, which might lie
    on it. Without any box the loss is zero.

    Args:
        weight: weight relative to classification.
        margin: voxels around a nodule's box in which its mask is compared.
        background_boxes: random boxes per item; their mask is empty unless a nodule happens to lie in them.
        background_edge: edge length of these boxes, in voxels.
    """

    def __init__(
        self, *, weight: float = 1.0, margin: int = 4, background_boxes: int = 1, background_edge: int = 24
    ) -> None:
        super().__init__()
        self.weights = {"mask": weight}
        self.margin, self.background_boxes, self.background_edge = margin, background_boxes, background_edge

    def forward(self, logits: Tensor, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``mask`` for logits ``[B, I·s, J·s, K·s]``; the target is that of :class:`NoduleLoss`."""
        truth = (target["mask"][:, 0] > 0).float()
        losses: list[Tensor] = []
        for b in range(len(logits)):
            rows = torch.nonzero(target["label"][b] == NODULE)[:, 0].tolist()
            boxes = {row: self._box(target["nodule"][b, row].tolist()) for row in rows}
            masked = [box for row, box in boxes.items() if bool((target["mask"][b, 0][box] == row + 1).any())]
            losses += [self.nodule_loss(logits[b][box], truth[b][box]) for box in masked]
            if len(masked) == len(boxes):
                losses += [self._background(logits[b], truth[b]) for _ in range(self.background_boxes)]
        return {"mask": torch.stack(losses).mean() if losses else logits.sum() * 0.0}

    def nodule_loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return half BCE plus half soft Dice loss of one nodule: logits and truth (0 or 1) of the voxels around it."""
        probability = torch.sigmoid(logits)
        dice = 1.0 - (2.0 * (probability * truth).sum() + 1.0) / (probability.sum() + truth.sum() + 1.0)
        return 0.5 * F.binary_cross_entropy_with_logits(logits, truth) + 0.5 * dice

    def _box(self, nodule: list[float]) -> tuple[slice, ...]:
        """Return the voxels within radius plus margin of a nodule, as one slice per axis, empty beyond the volume."""
        half = nodule[3] / 2.0 + self.margin
        return tuple(slice(max(int(c - half), 0), max(int(c + half) + 2, 0)) for c in nodule[:3])

    def _background(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the BCE in a randomly placed box."""
        edge = min(self.background_edge, *logits.shape)
        starts = [int(torch.randint(0, n - edge + 1, (1,))) for n in logits.shape]
        box = tuple(slice(a, a + edge) for a in starts)
        return F.binary_cross_entropy_with_logits(logits[box], truth[box])


class NoduleLoss(nn.Module):
    """Weighted sum of the classification, offset, size and mask losses, as one scalar.

    The unweighted parts of the last call are kept in :attr:`parts` (detached floats) for logging.

    Args:
        classification, regression, mask: the losses; each returns its parts by name and holds their ``weights``.
        stride: voxels per output cell.
        channels: channels of one set of maps. A network in training may append further sets (LWNet's auxiliary output),
            whose losses are added. ``None`` treats all channels as one set.
        positives: number of positive cells per nodule.
    """

    def __init__(
        self,
        classification: ClassificationLoss,
        regression: RegressionLoss,
        mask: MaskLoss,
        *,
        stride: int = 2,
        channels: int | None = None,
        positives: int = 7,
    ) -> None:
        super().__init__()
        self.classification, self.regression, self.mask = classification, regression, mask
        self.stride, self.channels, self.positives = stride, channels, positives
        self.weights = {**classification.weights, **regression.weights, **mask.weights}
        self.parts: dict[str, float] = {}

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss of a batch.

        Args:
            pred: ``[B, n · (5 + M), I, J, K]``, one or more sets of maps as declared in metadata.json.
            target: ``nodule`` ``[B, N, 4]`` (i, j, k in input voxels, diameter mm), ``label`` ``[B, N]``, ``mask``
                ``[B, 1, I·s, J·s, K·s]`` instance values (row + 1).

        Returns:
            A scalar; finite also for a batch without nodules.

        Raises:
            ValueError: the channels are not whole sets, or not 5 + M with an M that fits the stride.
        """
        pred = pred.float()
        there = (target["label"] != PADDING).any(0)  # most rows are padding in every item; dropping them saves time
        nodule, label = target["nodule"][:, there], target["label"][:, there]
        shape = (pred.shape[2], pred.shape[3], pred.shape[4])
        cells = cell_targets(
            nodule, label == NODULE, label != PADDING, shape, stride=self.stride, positives=self.positives
        )
        sets = [
            {
                **self.classification(maps[:, 0], cells),
                **self.regression(maps[:, 1:5], cells),
                **self.mask(mask_on_voxels(maps[:, 5:], self.stride)[:, 0], target),
            }
            for maps in self._sets(pred)
        ]
        terms = {name: torch.stack([one[name] for one in sets]).sum() for name in self.weights}
        self.parts = {name: float(value.detach()) for name, value in terms.items()}
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def _sets(self, pred: Tensor) -> tuple[Tensor, ...]:
        """Split the channels into sets of maps.

        A remainder is refused, because otherwise 13 + 6 channels would pass as two sets of two networks.
        """
        channels = self.channels or pred.shape[1]
        if channels < 6 or pred.shape[1] % channels:
            raise ValueError(
                f"maps: expected one or more sets of {self.channels or '5 + M'} channels, at least 6 each, got "
                f"{pred.shape[1]} channels; give the loss the network's out_channels"
            )
        return pred.split(channels, dim=1)
