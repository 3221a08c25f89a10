"""Agreement of masks: worked out by hand, by law, and in the three settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.core.records import Detection, Nodule
from scripts.metrics import (
    MISSED,
    MaskScores,
    Overlap,
    ScanTruth,
    compare_masks,
    join_mask_scores,
    score_masks,
    summarise,
)

SHAPE = (14, 13, 12)


def block(*bounds: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(a, b) for a, b in bounds)] = True
    return mask


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_one_voxel_against_two_on_an_anisotropic_grid() -> None:
    """Voxels of 2 × 1 × 1 mm; the surface of one: a triangle of 3/8 mm² at each of its eight corners.

    Of two in a row: the same triangles at the far corners, and four rectangles of 2 × √½ mm² around the middle. The
    four corners that only the pair has are 2 mm from the single voxel's, farther than 1 mm.
    """
    one, two = block((3, 4), (5, 6), (5, 6)), block((3, 5), (5, 6), (5, 6))
    single, pair, far = 8 * 0.375, 8 * 0.375 + 4 * 2 * np.sqrt(0.5), 4 * 0.375
    surface_dice = pytest.approx((single + pair - far) / (single + pair), abs=1e-6)
    for first, second, volume_error in ((one, two, -1 / 2), (two, one, 1.0)):
        found = compare_masks(first, second, [2.0, 1.0, 1.0])
        assert astuple(found) == (2 / 3, 1 / 2, pytest.approx(2.0), surface_dice, volume_error)
    finer = compare_masks(one, two, [1.0, 1.0, 1.0])
    assert (finer.surface_dice_1mm, finer.hd95_mm) == (1.0, 1.0)  # 1 mm is within 1 mm


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_shift_is_measured_in_millimetres(axis: int, steps: int) -> None:
    reference = block((3, 9), (3, 9), (3, 9))
    spacing = np.array([0.7, 1.0, 2.5])
    found = compare_masks(np.roll(reference, steps, axis), reference, spacing)
    assert (found.hd95_mm, found.relative_volume_error) == (pytest.approx(steps * spacing[axis]), 0.0)
    assert (found.surface_dice_1mm == 1.0) == (steps * spacing[axis] <= 1.0)


def test_rounding_does_not_put_1_mm_beyond_1_mm() -> None:
    reference = block((0, 3), (0, 3), (0, 2))
    for steps in (10, 3, 5):
        assert compare_masks(np.roll(reference, steps, 2), reference, [5.0, 5.0, 1.0 / steps]).surface_dice_1mm == 1.0


def test_surfaces_are_closed_at_the_border_of_the_grid() -> None:
    inner, corner = block((3, 7), (3, 7), (3, 7)), block((0, 4), (0, 4), (0, 4))
    found, at_border = (compare_masks(one, np.roll(one, 1, 0), [2.0, 1.0, 1.0]) for one in (inner, corner))
    assert found == at_border
    assert found.hd95_mm == 2.0


# --- empty masks ------------------------------------------------------------------------------------------------------


def test_empty_masks() -> None:
    empty, some = np.zeros(SHAPE, dtype=bool), block((1, 3), (1, 3), (1, 3))
    assert compare_masks(empty, empty, [1, 1, 1]) == Overlap(None, None, None, None, None)
    assert compare_masks(empty, some, [1, 1, 1]) == MISSED == Overlap(0.0, 0.0, None, 0.0, -1.0)
    assert compare_masks(some, empty, [1, 1, 1]) == Overlap(0.0, 0.0, None, 0.0, None)


@pytest.mark.parametrize("shape", [(14, 13), (14, 13, 11)])
def test_masks_of_two_grids_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the same shape \[I, J, K\], got"):
        compare_masks(np.zeros(shape, dtype=bool), np.zeros(SHAPE, dtype=bool), [1, 1, 1])


# --- laws -------------------------------------------------------------------------------------------------------------

SPANS = st.tuples(*[st.tuples(st.integers(0, 8), st.integers(1, 4)).map(lambda s: (s[0], s[0] + s[1]))] * 3)


@settings(max_examples=25)
@given(SPANS, SPANS)
def test_laws_of_agreement(first: tuple[tuple[int, int], ...], second: tuple[tuple[int, int], ...]) -> None:
    a, b, spacing = block(*first), block(*second), (0.6, 0.8, 2.0)
    found, turned = compare_masks(a, b, spacing), compare_masks(b, a, spacing)
    assert compare_masks(a, a, spacing) == Overlap(1.0, 1.0, 0.0, 1.0, 0.0)
    assert found.iou == pytest.approx(found.dice / (2.0 - found.dice))
    assert (found.dice, found.hd95_mm) == (turned.dice, turned.hd95_mm)
    assert found.surface_dice_1mm == pytest.approx(turned.surface_dice_1mm)
    for order in permutations(range(3)):
        moved = compare_masks(a.transpose(order), b.transpose(order), [spacing[axis] for axis in order])
        assert (moved.dice, moved.relative_volume_error) == (found.dice, found.relative_volume_error)
        assert moved.hd95_mm == pytest.approx(found.hd95_mm, abs=1e-6)
        assert moved.surface_dice_1mm == pytest.approx(found.surface_dice_1mm, abs=1e-5)


# --- the three settings -----------------------------------------------------------------------------------------------


def nodule(label: int, probability: float, x: float, y: float, z: float) -> Nodule:
    return Nodule(label, Detection((x, y, z), 4.0, probability), (0.0, 0.0, 0.0), None)


def truth(name: str) -> ScanTruth:
    """Nodule 1 found twice, nodule 2 missed, 3 an excluded finding, 4 found without a mask, 5 without a mask."""
    return ScanTruth(
        np.array([[2.5, 2.5, 5.0], [9.5, 2.5, 5.0], [2.5, 8.5, 5.0], [8.5, 8.5, 17.0], [0.0, 0.0, 0.0]]),
        np.array([4.0, 7.0, 4.0, 12.0, 4.0]),
        np.array([True, True, False, True, True]),
        name,
    )


FOUND = (
    nodule(8, 0.5, 2.5, 2.5, 6.0),
    nodule(7, 0.9, 2.5, 2.5, 4.0),
    nodule(9, 0.8, 2.5, 8.5, 5.0),
    nodule(11, 0.7, 8.5, 8.5, 17.0),
    nodule(10, 0.6, 13.0, 5.0, 0.0),
)


def scored(name: str = "a", found: Sequence[Nodule] = FOUND, *, with_oracle: bool = True) -> MaskScores:
    reference, predicted, oracle = (np.zeros(SHAPE, dtype=np.uint8) for _ in range(3))
    reference[2:4, 2:4, 2:4] = 1
    reference[8:12, 2:4, 2:4] = 2
    reference[2:4, 8:10, 2:4] = 3
    reference[8:10, 8:10, 8:10] = 4
    predicted[2:4, 2:4, 2:3] = 7  # half of nodule 1
    predicted[2:4, 2:4, 3:4] = 8
    oracle[2:4, 2:4, 2:4] = 1
    oracle[8:10, 2:4, 2:4] = 2  # half of nodule 2
    given = oracle if with_oracle else None
    return score_masks(truth(name), found, (reference, predicted), (1.0, 1.0, 2.0), oracle_mask=given)


def test_the_three_settings_by_hand() -> None:
    scores = scored()
    matched, every, oracle = (
        [(n.label, n.probability, n.overlap.dice) for n in part]
        for part in (scores.matched, scores.every_nodule, scores.oracle or ())
    )
    assert matched == [(1, 0.9, 2 / 3), (4, 0.7, 0.0)]
    assert every == [(1, 0.9, 2 / 3), (2, None, 0.0), (4, 0.7, 0.0)]
    assert oracle == [(1, None, 1.0), (2, None, 2 / 3), (4, None, 0.0)]
    assert (scores.every_nodule[1].overlap, scores.without_reference) == (MISSED, 1)
    assert scored(found=[nodule(7, 0.9, 2.5, 2.5, 7.0)]).matched == ()  # on the radius


def test_summaries_by_size() -> None:
    found = summarise(scored().every_nodule)
    of_all, small, medium = found["all"], found["3-6"], found["6-10"]
    assert (of_all["nodules"], of_all["hd95_mm"]["n"]) == (3, 1)
    assert of_all["dice"] == {"mean": pytest.approx(2 / 9), "median": 0.0, "n": 3}
    assert (small["relative_volume_error"]["mean"], small["absolute_volume_error"]["mean"]) == (-0.5, 0.5)
    assert (medium["dice"]["mean"], medium["hd95_mm"]) == (0.0, {"mean": None, "median": None, "n": 0})
    assert (found["<3"]["nodules"], found["<3"]["dice"]["median"]) == (0, None)


def test_scans_are_joined_and_become_strict_json() -> None:
    full, plain, nothing = scored(), scored("b", with_oracle=False), scored("c", found=())
    assert (nothing.matched, [n.overlap for n in nothing.every_nodule]) == ((), [MISSED] * 3)
    both = join_mask_scores([full, plain])
    assert ([n.scan for n in both.matched], both.without_reference) == (["a", "a", "b", "b"], 2)
    assert both.oracle is join_mask_scores([]).oracle is None  # not of every scan: never a part for the whole
    assert len(join_mask_scores([full, full]).oracle or ()) == 6
    record = json.loads(json.dumps(full.to_dict(), allow_nan=False))
    assert set(record["summary"]) == set(record["nodules"]) == {"matched", "every_nodule", "oracle"}
    assert record["summary"]["matched"]["all"]["dice"] == {"mean": 1 / 3, "median": 1 / 3, "n": 2}
    assert record["nodules"]["every_nodule"][1]["overlap"]["hd95_mm"] is None
    assert plain.to_dict()["summary"]["oracle"] is None
