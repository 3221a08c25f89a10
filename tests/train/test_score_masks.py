"""Masks scored inside the evaluation: one scan worked out by hand, from maps to the file.

The network's grid has 1 mm voxels, and (i, j, k) is (x, y, z) in mm. The scan has its x axis reversed, its z axis
reversed and slices of 2 mm; its voxel centres lie on those of the network's grid, so that logits are read as they are.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.core.geometry import FloatArray
from scripts.core.labels import IGNORED, NODULE, PADDING
from scripts.core.records import Detection
from scripts.decode.masks import SegmentNodulesd
from scripts.evaluate.handler import SaveEvaluation
from scripts.metrics import MISSED, FrocMetric, MaskMetric, MaskScores
from scripts.network.blocks import space_to_depth
from scripts.train import PairWithTruthd, ScoreMasksd

FINE = (24, 20, 20)  # voxels of the network's grid
SHAPE = (24, 20, 10)  # of the scan
SCAN = np.array([[-1.0, 0, 0, 23], [0, 1, 0, 0], [0, 0, -2, 18], [0, 0, 0, 1]])  # x = 23 - i, y = j, z = 18 - 2 k
SETTINGS: dict[str, Any] = {"stride": 2, "mask_threshold": 0.5, "margin_mm": 3.0}
Span = tuple[int, int]  # in mm, both ends belong to it

# Four rows: 1 an ignored finding, 2 found, 3 without a reference mask, 4 missed; a padding row ends the list.
ROWS = [(18.5, 15.5, 5.0, 4.0), (5.5, 5.5, 5.5, 5.0), (5.0, 15.0, 15.0, 4.0), (14.5, 13.5, 12.0, 4.0), (1.0, 1, 1, 9)]
LABELS = [IGNORED, NODULE, NODULE, NODULE, PADDING]
DRAWN = {1: ((17, 20), (14, 17), (4, 7)), 2: ((4, 7), (4, 7), (4, 7)), 4: ((14, 15), (12, 15), (12, 13))}
REFERENCE = {**DRAWN, 2: ((4, 7), (4, 7), (4, 8))}


def fine_box(x: Span, y: Span, z: Span) -> tuple[slice, slice, slice]:
    return slice(x[0], x[1] + 1), slice(y[0], y[1] + 1), slice(z[0], z[1] + 1)


def maps() -> torch.Tensor:
    """``[13, I, J, K]``: logit 20 inside the boxes of :data:`DRAWN`, -20 outside; the other channels are not read."""
    logits = torch.full((1, 1, *FINE), -20.0)
    for bounds in DRAWN.values():
        logits[0, 0][fine_box(*bounds)] = 20.0
    cells = space_to_depth(logits, 2)[0]
    return torch.cat([torch.full((5, *cells.shape[1:]), math.nan), cells])


def reference(numbers: dict[int, tuple[Span, Span, Span]]) -> npt.NDArray[np.uint8]:
    """On the scan's grid, by the rule that the affine above gives."""
    fine = np.zeros(FINE, dtype=np.uint8)
    for number, bounds in numbers.items():
        fine[fine_box(*bounds)] = number
    return fine[::-1, :, 18::-2]  # i = 23 - x, k = (18 - z) / 2


def stored(labels: npt.NDArray[np.uint8], affine: FloatArray = SCAN) -> MetaTensor:
    """A reference mask as it is read from its file."""
    return MetaTensor(torch.from_numpy(labels.copy())[None], affine=torch.from_numpy(affine))


def detections() -> list[Detection]:
    """Of rows 2 and 1, of row 4 below the threshold, and one where nothing is."""
    return [
        Detection((5.5, 5.5, 5.5), 5.0, 0.9),
        Detection((18.5, 15.5, 5.0), 4.0, 0.8),
        Detection((12.0, 5.0, 15.0), 4.0, 0.7),
        Detection((14.5, 13.5, 12.0), 4.0, 0.4),
    ]


def scan(name: str = "a", **changes: Any) -> dict[str, Any]:
    """An item as the graph has it once candidates are found; a key that is ``None`` is left out."""
    item = {
        "name": name,
        "image": MetaTensor(torch.zeros(1, *FINE), affine=torch.eye(4, dtype=torch.float64)),
        "scan": MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.int16), affine=torch.from_numpy(SCAN)),
        "pred": maps(),
        "candidates": detections(),
        "nodule": torch.tensor(ROWS),
        "label": torch.tensor(LABELS),
        "reference": stored(reference(REFERENCE)),
        **changes,
    }
    outlined = SegmentNodulesd(threshold=0.5, **SETTINGS)(item)
    return {key: value for key, value in outlined.items() if value is not None}


def scored(**changes: Any) -> MaskScores:
    name, scores = ScoreMasksd(**SETTINGS)(scan(**changes))["mask_scores"]
    assert name == "a"
    assert isinstance(scores, MaskScores)
    return scores


def dices(scores: MaskScores) -> dict[str, dict[int, float]]:
    """By setting and label."""
    settings = {"matched": scores.matched, "every_nodule": scores.every_nodule, "oracle": scores.oracle or ()}
    return {setting: {one.label: one.overlap.dice for one in nodules} for setting, nodules in settings.items()}


def test_one_scan_by_hand() -> None:
    """Nodule 2: slices at z = 4 and 6 drawn, 4, 6 and 8 in the reference: 32 of 48 voxels, Dice 64 / 80."""
    item = scan()
    before = {key: np.asarray(item[key]).copy() for key in ("mask", "reference", "nodule", "label", "pred")}
    out = ScoreMasksd(**SETTINGS)(item)
    name, scores = out["mask_scores"]
    assert set(out) - set(item) == {"mask_scores"}
    np.testing.assert_equal({key: np.asarray(item[key]) for key in before}, before)
    partly = pytest.approx(0.8)
    assert dices(scores) == {"matched": {2: partly}, "every_nodule": {2: partly, 4: 0.0}, "oracle": {2: partly, 4: 1.0}}
    assert scores.without_reference == 1
    (found,), missed = scores.matched, scores.every_nodule[1]
    assert (found.scan, found.diameter_mm, found.probability) == (name, 5.0, 0.9)
    assert found.overlap.hd95_mm == pytest.approx(2.0)  # one slice of 2 mm
    assert found.overlap.relative_volume_error == pytest.approx(-1 / 3)
    assert (missed.overlap, missed.probability) == (MISSED, None)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (0, 2), (0, 1, 2)])
def test_the_reference_may_store_its_axes_otherwise(order: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """Masks of another tool often run the other way along an axis; their affine says so."""
    labels = np.flip(reference(REFERENCE).transpose(order), flips)
    to_scan = np.eye(4)  # voxel of the stored mask to voxel of the scan
    to_scan[:3, :3] = np.eye(3)[:, order]
    for axis in flips:
        to_scan[:3, 3] += to_scan[:3, axis] * (labels.shape[axis] - 1)
        to_scan[:3, axis] *= -1
    assert scored(reference=stored(labels, SCAN @ to_scan)) == scored()


@pytest.mark.parametrize(
    ("shape", "shift_mm"), [((24, 20, 9), 0.0), ((20, 24, 10), 0.0), (SHAPE, 2.0)], ids=["slices", "size", "shifted"]
)
def test_a_reference_of_another_grid_is_refused(shape: tuple[int, int, int], shift_mm: float) -> None:
    affine = SCAN.copy()
    affine[2, 3] += shift_mm
    with pytest.raises(ValueError, match=r"reference mask: expected the grid of its scan .*\(24, 20, 10\)"):
        scored(reference=stored(np.zeros(shape, dtype=np.uint8), affine))


NO_ROW, NO_NODULE, ALL_ROWS = slice(0, 0), slice(0, 5, 4), slice(None)  # the second: an ignored finding and padding


@pytest.mark.parametrize(
    ("rows", "changes", "without_reference"),
    [
        *((rows, {}, 0) for rows in (NO_ROW, NO_NODULE)),
        *((rows, {"reference": None}, 0) for rows in (NO_ROW, NO_NODULE)),
        *((rows, {"candidates": []}, 0) for rows in (NO_ROW, NO_NODULE)),
        (ALL_ROWS, {"reference": None}, 3),
        (ALL_ROWS, {"reference": stored(reference({}))}, 3),
    ],
)
def test_without_nodules_or_masks_of_them_nothing_is_scored(
    rows: slice, changes: dict[str, Any], without_reference: int
) -> None:
    scores = scored(nodule=torch.tensor(ROWS)[rows], label=torch.tensor(LABELS)[rows], **changes)
    assert scores == MaskScores((), (), (), without_reference)


# --- over a run -------------------------------------------------------------------------------------------------------


def value_of(*seen: tuple[str, MaskScores]) -> tuple[float, MaskScores]:
    metric = MaskMetric()
    for one in seen:
        metric.update([one])
    value = metric.compute()
    return value, metric.scores


def test_the_metric_is_the_mean_dice_of_all_nodules_with_misses_as_0() -> None:
    """A scan seen twice counts once; without nodules, or masks of them, it is undefined."""
    found, missed, nothing = scored(), scored(candidates=[]), scored(nodule=torch.zeros(0, 4), label=torch.zeros(0))
    assert value_of(("a", found))[0] == pytest.approx((0.8 + 0.0) / 2)
    value, scores = value_of(("b", missed), ("a", found), ("c", nothing), ("a", found))
    assert value == pytest.approx(0.8 / 4)
    assert (len(scores.matched), scores.without_reference) == (1, 2)
    assert dices(scores)["oracle"] == {2: pytest.approx(0.8), 4: 1.0}
    for seen in ([("a", nothing)], [("a", scored(reference=None))], []):
        assert math.isnan(value_of(*seen)[0])


@pytest.mark.usefixtures("quiet_engines")
@pytest.mark.parametrize("masks", [True, False])
def test_an_evaluation_leaves_the_scores_of_its_outlines(tmp_path: Path, masks: bool) -> None:
    """Scored as the graph does, in batches of one; without their metric there is no file of them."""
    engine = Engine(lambda _, item: dict(PairWithTruthd()(ScoreMasksd(**SETTINGS)(item))))
    froc = FrocMetric(output_transform=lambda output: [output["pred"]])
    metric = MaskMetric(output_transform=lambda output: [output["mask_scores"]])
    froc.attach(engine, "val_cpm")
    metric.attach(engine, "val_dice")
    SaveEvaluation(froc, str(tmp_path), metric if masks else None, resamples=0).attach(engine)
    engine.run([scan("b", candidates=[]), scan("a")])
    assert engine.state.metrics["val_dice"] == pytest.approx(0.2)
    assert [(tmp_path / name).exists() for name in ("froc.json", "masks.json")] == [True, masks]
    if masks:
        record = json.loads((tmp_path / "masks.json").read_text(encoding="utf-8"))
        assert record["without_reference"] == 2
        means = {setting: sizes["all"]["dice"]["mean"] for setting, sizes in record["summary"].items()}
        assert means == pytest.approx({"matched": 0.8, "every_nodule": 0.2, "oracle": 0.9})
        every = [(n["scan"], n["label"], n["probability"]) for n in record["nodules"]["every_nodule"]]
        assert every == [("a", 2, 0.9), ("a", 4, None), ("b", 2, None), ("b", 4, None)]
