"""The quality of the nodules' masks, in three settings that answer three questions and are never mixed.

- *matched*: how good are the masks of the nodules that were found? Detection decides which nodules count.
- *every nodule*: how much of all reference nodules is segmented? A missed nodule counts as 0.
- *oracle*: how good are the masks if position and size are given? Most papers report this setting.

Matching follows the hit rule of LUNA16 (:mod:`.luna16`); of several detections inside a nodule, the most probable one
counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.records import Nodule
from .cpm import ScanTruth, ScoredScan
from .froc import SIZE_CLASSES, known_diameters_mm, size_class
from .overlap import MISSED, Overlap, compare_masks

LabelArray = npt.NDArray[np.integer]

MEASURES = ("dice", "iou", "hd95_mm", "surface_dice_1mm", "relative_volume_error")
SETTINGS = ("matched", "every_nodule", "oracle")


@dataclass(frozen=True)
class NoduleOverlap:
    """Agreement of one mask with one reference nodule.

    Attributes:
        scan: name of the scan.
        label: the nodule's value in the reference mask.
        diameter_mm: the nodule's diameter in the reference.
        probability: probability of the matched detection; ``None`` if the nodule was missed, and in the oracle setting.
        overlap: see :class:`.overlap.Overlap`.
    """

    scan: str
    label: int
    diameter_mm: float
    probability: float | None
    overlap: Overlap


@dataclass(frozen=True)
class MaskScores:
    """The masks of one or more scans in the three settings.

    Attributes:
        matched: found nodules only.
        every_nodule: found nodules as in ``matched``; each missed one as :data:`.overlap.MISSED` (Dice, IoU and surface
            Dice 0, volume error -1, distance undefined).
        oracle: with position and size given; ``None`` if such masks were not computed.
        without_reference: number of nodules without a voxel in the reference mask, which are in no setting.
    """

    matched: tuple[NoduleOverlap, ...]
    every_nodule: tuple[NoduleOverlap, ...]
    oracle: tuple[NoduleOverlap, ...] | None
    without_reference: int

    def to_dict(self) -> dict[str, Any]:
        """Return nodules and summaries as plain values for JSON; undefined values are ``None``."""
        summaries: dict[str, Any] = dict.fromkeys(SETTINGS)
        nodules: dict[str, Any] = dict.fromkeys(SETTINGS)
        for name in SETTINGS:
            if (found := getattr(self, name)) is not None:
                summaries[name], nodules[name] = summarise(found), [asdict(one) for one in found]
        return {"without_reference": self.without_reference, "summary": summaries, "nodules": nodules}


def score_masks(
    truth: ScanTruth,
    nodules: Sequence[Nodule],
    masks: tuple[LabelArray, LabelArray],
    spacing_mm: npt.ArrayLike,
    *,
    oracle_mask: LabelArray | None = None,
) -> MaskScores:
    """Compare the masks of one scan with its reference, on the scan's own grid.

    Args:
        truth: the scan's reference; finding n has the value n + 1 in the reference mask. Excluded findings are in no
            setting.
        nodules: the reported nodules.
        masks: ``[I, J, K]`` instance masks, reference and prediction.
        spacing_mm: ``[3]`` of their grid.
        oracle_mask: ``[I, J, K]`` instance mask predicted with each nodule's position and size given, labelled like the
            reference.
    """
    reference, predicted = masks
    hits = ScoredScan(tuple(nodule.detection for nodule in nodules), truth).hits()
    matched, every, oracle, missing = [], [], [], 0
    for n in np.flatnonzero(truth.is_nodule).tolist():
        label, diameter_mm = n + 1, float(known_diameters_mm(truth.diameters_mm)[n])
        annotated = reference == label
        if not annotated.any():
            missing += 1
            continue
        inside = [nodule for nodule, hit in zip(nodules, hits[:, n], strict=True) if hit]
        if inside:
            best = max(inside, key=lambda nodule: nodule.detection.probability)
            overlap = compare_masks(predicted == best.label, annotated, spacing_mm)
            matched.append(NoduleOverlap(truth.name, label, diameter_mm, best.detection.probability, overlap))
        every.append(matched[-1] if inside else NoduleOverlap(truth.name, label, diameter_mm, None, MISSED))
        if oracle_mask is not None:
            given = compare_masks(oracle_mask == label, annotated, spacing_mm)
            oracle.append(NoduleOverlap(truth.name, label, diameter_mm, None, given))
    return MaskScores(tuple(matched), tuple(every), None if oracle_mask is None else tuple(oracle), missing)


def join_mask_scores(scores: Sequence[MaskScores]) -> MaskScores:
    """Join the scores of several scans; the oracle setting is kept only if every scan has it."""
    with_oracle = [s.oracle for s in scores if s.oracle is not None]
    return MaskScores(
        tuple(n for s in scores for n in s.matched),
        tuple(n for s in scores for n in s.every_nodule),
        tuple(n for part in with_oracle for n in part) if scores and len(with_oracle) == len(scores) else None,
        sum(s.without_reference for s in scores),
    )


def summarise(nodules: Sequence[NoduleOverlap]) -> dict[str, dict[str, Any]]:
    """Return number of nodules and statistics of each measure, for ``all`` and each of :data:`.luna16.SIZE_CLASSES`.

    ``absolute_volume_error`` is the volume error without its sign: signed errors average out.
    """
    classes = size_class(np.array([n.diameter_mm for n in nodules], dtype=np.float64))
    groups = {"all": [n.overlap for n in nodules]}
    for index, name in enumerate(SIZE_CLASSES):
        groups[name] = [n.overlap for n, c in zip(nodules, classes, strict=True) if c == index]
    return {name: _summary(group) for name, group in groups.items()}


def _summary(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Return mean, median and number of the defined values of each measure; ``None`` if there are none."""
    values = {name: [v for o in overlaps if (v := getattr(o, name)) is not None] for name in MEASURES}
    values["absolute_volume_error"] = [abs(v) for v in values["relative_volume_error"]]
    summary: dict[str, Any] = {"nodules": len(overlaps)}
    for name, found in values.items():
        mean, median = (float(np.mean(found)), float(np.median(found))) if found else (None, None)
        summary[name] = {"mean": mean, "median": median, "n": len(found)}
    return summary
