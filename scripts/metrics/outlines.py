"""How good the outlines of nodules are, in three settings that answer three questions and are never mixed.

- *matched*: of the nodules that were found, how good are the outlines? Detection decides which nodules count.
- *every nodule*: how much of all reference nodules is outlined? A missed nodule counts as 0.
- *oracle*: how good are the outlines when position and size are given? Most papers report this one.

Matching is the hit rule of LUNA16 (:mod:`.luna16`); of several detections inside a nodule the most probable one counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.geometry import FloatArray
from .luna16 import SIZE_CLASSES, known_diameters_mm, size_class
from .overlap import MISSED, Mask, Overlap, compare_masks

LabelArray = npt.NDArray[np.integer]

MEASURES = ("dice", "iou", "hd95_mm", "surface_dice_1mm", "relative_volume_error")
SETTINGS = ("matched", "every_nodule", "oracle")


@dataclass(frozen=True)
class OutlinedTruth:
    """Reference nodules of one scan.

    Attributes:
        positions_mm: ``[N, 3]`` world, LPS or RAS, the same as the detections'.
        diameters_mm: ``[N]``; negative where unknown.
        is_nodule: ``[N]``; excluded findings are left out of every setting.
        labels: ``[N]`` value of each in the reference mask; the datalist's numbering is 1, 2, ….
    """

    positions_mm: FloatArray
    diameters_mm: FloatArray
    is_nodule: npt.NDArray[np.bool_]
    labels: LabelArray


@dataclass(frozen=True)
class OutlinedDetections:
    """Detections of one scan at the operating threshold.

    Attributes:
        positions_mm: ``[D, 3]`` world, LPS or RAS, the same as the truth's.
        probabilities: ``[D]``.
        labels: ``[D]`` value of each in the predicted mask; 0 for a detection without an outline.
    """

    positions_mm: FloatArray
    probabilities: FloatArray
    labels: LabelArray


@dataclass(frozen=True)
class NoduleOverlap:
    """Agreement of one outline with one reference nodule.

    Attributes:
        scan: name.
        label: the nodule's value in the reference mask.
        diameter_mm: the nodule's, from the reference.
        probability: of the detection that was matched; ``None`` when it was missed, and in the oracle setting.
        overlap: see :class:`.overlap.Overlap`.
    """

    scan: str
    label: int
    diameter_mm: float
    probability: float | None
    overlap: Overlap


@dataclass(frozen=True)
class OutlineScores:
    """The outlines of one or more scans in the three settings.

    Attributes:
        matched: found nodules only.
        every_nodule: found nodules as in ``matched``; a missed one as :data:`.overlap.MISSED` (Dice, IoU and surface
            Dice 0, volume error -1, distance undefined).
        oracle: position and size given; ``None`` when that was not drawn.
        without_reference: nodules that the reference mask does not outline; in no setting.
    """

    matched: tuple[NoduleOverlap, ...]
    every_nodule: tuple[NoduleOverlap, ...]
    oracle: tuple[NoduleOverlap, ...] | None
    without_reference: int

    def to_dict(self) -> dict[str, Any]:
        """Nodules and summaries, ready for JSON; undefined values are ``None``."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        return {
            "without_reference": self.without_reference,
            "summary": {
                name: None if nodules is None else {size: asdict(s) for size, s in summarise(nodules).items()}
                for name, nodules in settings.items()
            },
            "nodules": {
                name: None if nodules is None else [asdict(n) for n in nodules] for name, nodules in settings.items()
            },
        }


@dataclass(frozen=True)
class Statistic:
    """Of one measure, over the nodules for which it is defined; ``None`` when there is none."""

    mean: float | None
    median: float | None
    n: int


@dataclass(frozen=True)
class OutlineSummary:
    """Statistics of each measure over the nodules of one size class.

    ``absolute_volume_error`` is that of the volume error without its sign, which otherwise averages out.
    """

    nodules: int
    dice: Statistic
    iou: Statistic
    hd95_mm: Statistic
    surface_dice_1mm: Statistic
    relative_volume_error: Statistic
    absolute_volume_error: Statistic


def score_outlines(
    scan: str,
    truth: OutlinedTruth,
    detections: OutlinedDetections,
    masks: tuple[LabelArray, LabelArray],
    spacing_mm: npt.ArrayLike,
    *,
    oracle_mask: LabelArray | None = None,
) -> OutlineScores:
    """Compare the outlines of one scan with its reference, on the scan's own grid.

    Args:
        scan: name, for the records.
        truth: reference nodules.
        detections: what was reported.
        masks: ``[I, J, K]`` instance labels, reference and prediction.
        spacing_mm: ``[3]`` of that grid.
        oracle_mask: ``[I, J, K]`` outlines drawn with each nodule's position and size given, labelled as the reference.
    """
    reference, predicted = masks
    best = _best_detections(truth, detections)
    matched, every, oracle, missing = [], [], [], 0
    for n in np.flatnonzero(truth.is_nodule):
        label, diameter_mm = int(truth.labels[n]), float(known_diameters_mm(truth.diameters_mm)[n])
        outline = reference == label
        if label == 0 or not outline.any():
            missing += 1
            continue
        if best[n] < 0:
            every.append(NoduleOverlap(scan, label, diameter_mm, None, MISSED))
        else:
            drawn = compare_masks(_drawn(predicted, int(detections.labels[best[n]])), outline, spacing_mm)
            probability = float(detections.probabilities[best[n]])
            matched.append(NoduleOverlap(scan, label, diameter_mm, probability, drawn))
            every.append(matched[-1])
        if oracle_mask is not None:
            given = compare_masks(oracle_mask == label, outline, spacing_mm)
            oracle.append(NoduleOverlap(scan, label, diameter_mm, None, given))
    return OutlineScores(tuple(matched), tuple(every), None if oracle_mask is None else tuple(oracle), missing)


def join_outlines(scores: Sequence[OutlineScores]) -> OutlineScores:
    """Put scans together; the oracle setting stays only when every scan has it."""
    with_oracle = [s.oracle for s in scores if s.oracle is not None]
    return OutlineScores(
        tuple(n for s in scores for n in s.matched),
        tuple(n for s in scores for n in s.every_nodule),
        tuple(n for part in with_oracle for n in part) if scores and len(with_oracle) == len(scores) else None,
        sum(s.without_reference for s in scores),
    )


def summarise(nodules: Sequence[NoduleOverlap]) -> dict[str, OutlineSummary]:
    """Statistics for ``all`` nodules and for each of :data:`.luna16.SIZE_CLASSES`; an empty class has n = 0."""
    classes = size_class(np.array([n.diameter_mm for n in nodules], dtype=np.float64))
    groups = {"all": list(nodules)}
    for index, name in enumerate(SIZE_CLASSES):
        groups[name] = [n for n, c in zip(nodules, classes, strict=True) if c == index]
    return {name: _summary([n.overlap for n in group]) for name, group in groups.items()}


def _summary(overlaps: Sequence[Overlap]) -> OutlineSummary:
    values = {name: [v for o in overlaps if (v := getattr(o, name)) is not None] for name in MEASURES}
    statistics = {name: _statistic(found) for name, found in values.items()}
    unsigned = _statistic([abs(v) for v in values["relative_volume_error"]])
    return OutlineSummary(len(overlaps), **statistics, absolute_volume_error=unsigned)


def _statistic(values: Iterable[float]) -> Statistic:
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        return Statistic(None, None, 0)
    return Statistic(float(found.mean()), float(np.median(found)), len(found))


def _drawn(mask: LabelArray, label: int) -> Mask:
    """The outline of a label; nothing for 0, which is the background."""
    return np.zeros(mask.shape, dtype=bool) if label == 0 else np.asarray(mask == label)


def _best_detections(truth: OutlinedTruth, detections: OutlinedDetections) -> npt.NDArray[np.int64]:
    """For each finding ``[N]`` the most probable detection strictly inside it, -1 for none."""
    if not len(detections.labels):
        return np.full(len(truth.labels), -1, dtype=np.int64)
    apart_mm = truth.positions_mm.reshape(-1, 1, 3) - detections.positions_mm.reshape(1, -1, 3)
    squared_radii = np.square(known_diameters_mm(truth.diameters_mm) / 2.0)
    inside = np.square(apart_mm).sum(-1) < squared_radii[:, None]
    rank = np.where(inside, detections.probabilities, -np.inf)
    return np.where(inside.any(axis=1), rank.argmax(axis=1), -1)
