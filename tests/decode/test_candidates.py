"""Maps become candidates in the world: exact positions on every grid, one candidate per nodule, lungs only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.data.box_utils import non_max_suppression

from scripts.core.geometry import apply_affine
from scripts.core.records import Detection
from scripts.decode.candidates import LARGEST_DIAMETER_MM, DecodeCandidatesd, DropOutsideLungsd, _largest_around, nms

SHAPE = (9, 6, 12)  # cells; no two sizes equal, so that swapped axes show
SETTINGS: dict[str, Any] = {"stride": 2, "threshold": 0.3, "peak_size": 3, "top_k": 100, "nms_overlap": 0.1}
BACKGROUND_LOGIT = -8.0

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.28, -0.96], [0.0, 0.96, 0.28]]
)


def affine_of(steps_mm: np.ndarray, origin_mm: tuple[float, float, float] = (-120.0, 35.5, 410.25)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps_mm, origin_mm
    return affine


AFFINES = {
    "identity": np.eye(4),
    "shifted": affine_of(np.eye(3)),
    "flipped": affine_of(np.diag([-1.0, 1.0, -1.0])),
    "permuted": affine_of(np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])),
    "oblique": affine_of(TURN),
    "anisotropic": affine_of(np.diag([0.7, 0.9, 2.5])),
    "oblique anisotropic": affine_of(TURN @ np.diag([0.7, -0.9, 2.5])),
}


def empty_maps(shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    pred = torch.zeros(13, *shape)
    pred[0] = BACKGROUND_LOGIT
    return pred


def propose(
    pred: torch.Tensor,
    cell: tuple[int, int, int],
    centre_voxel: tuple[float, float, float],
    *,
    diameter_mm: float = 6.0,
    logit: float = 3.0,
    steps_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> None:
    """Let a cell of stride 2 point to a centre (input voxels); cell c covers the voxels 2c and 2c + 1."""
    pred[0][cell] = logit
    for axis in range(3):
        pred[1 + axis][cell] = (centre_voxel[axis] - (2 * cell[axis] + 0.5)) * steps_mm[axis]
    pred[4][cell] = math.log(diameter_mm)


def decode(pred: torch.Tensor, affine: np.ndarray | None = None, **changed: Any) -> list[Detection]:
    image = MetaTensor(torch.zeros(1, 1, 1, 1), affine=np.eye(4) if affine is None else affine)
    item = {"image": image, "pred": pred}
    found: list[Detection] = DecodeCandidatesd(**{**SETTINGS, **changed})(item)["candidates"]
    assert item.keys() == {"image", "pred"}
    return found


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AFFINES)
def test_centre_diameter_and_probability_are_exact(name: str) -> None:
    affine = AFFINES[name]
    steps_mm = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    centre_voxel = (7.3, 3.9, 19.25)
    pred = empty_maps()
    propose(pred, (3, 2, 9), centre_voxel, diameter_mm=7.5, logit=math.log(4.0), steps_mm=steps_mm)
    (found,) = decode(pred, affine)
    assert found.centre_ras_mm == pytest.approx(affine[:3, :3] @ centre_voxel + affine[:3, 3], abs=1e-5)
    assert found.diameter_mm == pytest.approx(7.5, rel=1e-6)
    assert found.probability == pytest.approx(0.8, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_cell_without_offset_stands_for_the_middle_of_its_voxels(stride: int) -> None:
    pred = empty_maps()
    pred[0, 2, 4, 7] = 5.0
    (found,) = decode(pred, stride=stride)
    assert found.centre_ras_mm == pytest.approx([n * stride + (stride - 1) / 2 for n in (2, 4, 7)], abs=1e-9)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(0,), (1,), (2,), (0, 2), (0, 1, 2)]), st.sampled_from(sorted(AFFINES))
)
def test_flipping_the_maps_and_the_grid_changes_nothing(seed: int, axes: tuple[int, ...], name: str) -> None:
    pred = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(seed))
    flipped = pred.flip([1 + axis for axis in axes])
    flip = np.eye(4)
    for axis in axes:
        flipped[1 + axis] *= -1.0
        flip[axis, axis], flip[axis, 3] = -1.0, 2 * SHAPE[axis] - 1
    before = decode(pred, AFFINES[name])
    after = decode(flipped, AFFINES[name] @ flip)
    assert len(before) > 5
    assert [d.probability for d in after] == [d.probability for d in before]
    np.testing.assert_allclose([d.centre_ras_mm for d in after], [d.centre_ras_mm for d in before], atol=1e-9)
    assert [d.diameter_mm for d in after] == [d.diameter_mm for d in before]


def test_an_untrained_diameter_stays_finite() -> None:
    pred = empty_maps()
    propose(pred, (3, 2, 9), (7.0, 4.0, 19.0))
    pred[4, 3, 2, 9] = 1000.0
    assert decode(pred)[0].diameter_mm == LARGEST_DIAMETER_MM


# --- one candidate per nodule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [(4, 2, 5), (4, 3, 6), (5, 2, 5)], ids=["beside", "diagonal", "two cells on"])
@pytest.mark.parametrize("logits", [(3.0, 2.0), (2.0, 3.0), (3.0, 3.0)])
def test_two_cells_of_one_nodule_give_one_candidate(second: tuple[int, int, int], logits: tuple[float, float]) -> None:
    centre_voxel = (8.2, 5.1, 10.7)
    pred = empty_maps()
    propose(pred, (3, 2, 5), centre_voxel, logit=logits[0])
    propose(pred, second, centre_voxel, logit=logits[1])
    (found,) = decode(pred)
    assert found.centre_ras_mm == pytest.approx(centre_voxel, abs=1e-5)
    assert found.probability == pytest.approx(1 / (1 + math.exp(-3.0)), rel=1e-6)


def test_equal_neighbours_meet_at_the_mean_of_what_they_propose() -> None:
    pred = empty_maps()
    propose(pred, (3, 2, 5), (7.0, 5.0, 10.0), diameter_mm=4.0)
    propose(pred, (3, 2, 6), (8.0, 5.0, 12.0), diameter_mm=9.0)
    (found,) = decode(pred)
    assert found.centre_ras_mm == pytest.approx((7.5, 5.0, 11.0), abs=1e-5)
    assert found.diameter_mm == pytest.approx(6.0, rel=1e-6)  # geometric: diameters are predicted as logarithms


def test_a_flat_map_is_one_candidate_and_not_hundreds() -> None:
    (found,) = decode(torch.zeros(13, *SHAPE))  # diameter 1 mm: no two cells overlap, suppression could not help
    assert found.centre_ras_mm == pytest.approx([n - 0.5 for n in SHAPE], abs=1e-9)
    assert found.probability == 0.5


def test_plateaus_and_peaks_up_to_the_border_stay_apart() -> None:
    pred = empty_maps()
    pred[0, 1:3, 1:4, 1:3], pred[0, 5:8, 1:4, 8:11] = 2.0, 4.0
    pred[0, 0, 5, 11], pred[0, -1, 0, 0] = 3.0, 1.0
    expected = [(12.5, 4.5, 18.5), (0.5, 10.5, 22.5), (3.5, 4.5, 3.5), (16.5, 0.5, 0.5)]
    np.testing.assert_allclose([one.centre_ras_mm for one in decode(pred)], expected, atol=1e-9)


@pytest.mark.parametrize(("peak_size", "places"), [(1, [8.5, 10.5, 12.5, 14.5]), (3, [8.5, 12.5]), (5, [8.5])])
def test_a_peak_is_the_largest_around_and_a_shoulder_no_plateau(peak_size: int, places: list[float]) -> None:
    pred = empty_maps()
    pred[0, 3, 2, 4:8] = torch.tensor([4.0, 3.0, 3.0, 1.0])  # the equal cell beside the peak is none
    assert sorted(d.centre_ras_mm[2] for d in decode(pred, peak_size=peak_size)) == pytest.approx(places, abs=1e-9)


@pytest.mark.parametrize(
    ("apart_mm", "slice_mm", "expected"),
    [
        # Cubes of 10 mm, 8 mm apart share 2 of 18 parts: 0.11; 8.4 mm apart 1.6 of 18.4: 0.087.
        (8.0, 1.0, 1),
        (8.4, 1.0, 2),
        (4.0, 1.0, 1),
        (20.0, 5.0, 2),  # four voxels apart too
    ],
)
def test_suppression_starts_at_the_overlap_given_in_millimetres(
    apart_mm: float, slice_mm: float, expected: int
) -> None:
    pred, steps_mm = empty_maps(), (1.0, 1.0, slice_mm)
    places = [(8.5, 6.5, 4.0), (8.5, 6.5, 4.0 + apart_mm / slice_mm)]
    propose(pred, (4, 3, 2), places[0], diameter_mm=10.0, logit=1.0, steps_mm=steps_mm)
    propose(pred, (4, 3, 6), places[1], diameter_mm=10.0, logit=2.0, steps_mm=steps_mm)
    found = decode(pred, np.diag([*steps_mm, 1.0]), nms_overlap=0.1)
    assert len(found) == expected
    assert found[0].centre_ras_mm[2] == pytest.approx(4.0 * slice_mm + apart_mm, abs=1e-5)  # the stronger one stays


def test_a_candidate_too_small_to_report_suppresses_none() -> None:
    pred = empty_maps()
    propose(pred, (3, 2, 5), (8.0, 5.0, 10.0), diameter_mm=1.9, logit=4.0)
    propose(pred, (5, 2, 5), (8.0, 5.0, 10.0), diameter_mm=2.1, logit=2.0)
    assert [d.diameter_mm for d in decode(pred)] == pytest.approx([1.9])
    assert [d.diameter_mm for d in decode(pred, smallest_diameter_mm=2.0)] == pytest.approx([2.1])


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [0, 1, 2, 4, 100])
def test_candidates_come_by_falling_probability_and_top_k_keeps_the_best(top_k: int) -> None:
    pred = empty_maps()
    assert decode(pred, top_k=top_k) == []
    pred[0, [1, 1, 7, 4], [1, 4, 1, 3], [1, 10, 5, 7]] = torch.tensor([1.0, 5.0, 3.0, 2.0])
    expected = [1 / (1 + math.exp(-logit)) for logit in (5.0, 3.0, 2.0, 1.0)]
    assert [d.probability for d in decode(pred, top_k=top_k)] == pytest.approx(expected[:top_k])


@pytest.mark.parametrize(
    ("logit", "threshold", "expected"),
    [
        (0.0, 0.5, [0.5]),
        (0.0, math.nextafter(0.5, 1.0), []),
        (-1000.0, 0.0, [0.0]),
        (10.0, 1.0, []),
        (1000.0, 1.0, [1.0]),
    ],
)
def test_a_probability_equal_to_the_threshold_is_kept(logit: float, threshold: float, expected: list[float]) -> None:
    """Threshold 0 keeps every peak, 1 only certainty."""
    pred = empty_maps()
    pred[0] = -1000.0
    pred[0, 3, 2, 5] = logit
    assert [d.probability for d in decode(pred, threshold=threshold)] == expected


def test_every_candidate_reaches_the_threshold() -> None:
    pred = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    exact = sorted((d.probability for d in decode(pred, threshold=0.0)), reverse=True)
    assert [d.probability for d in decode(pred, threshold=exact[10])] == exact[:11]


@pytest.mark.parametrize("peak_size", [1, 3, 5, 7])
@pytest.mark.parametrize("shape", [SHAPE, (1, 2, 3)])
def test_the_largest_around_is_what_pooling_finds(peak_size: int, shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    pooled = F.max_pool3d(logits[None, None], peak_size, stride=1, padding=peak_size // 2)[0, 0]
    assert torch.equal(_largest_around(logits, peak_size), pooled)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("count", [0, 1, 200])
def test_suppression_is_monais(count: int, overlap: float) -> None:
    generator = torch.Generator().manual_seed(count)
    low = 30.0 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    boxes = torch.cat([low, low + 10.0 * torch.rand(count, 3, generator=generator)], dim=1)
    scores = torch.linspace(1.0, 0.0, count)
    expected = non_max_suppression(boxes, scores, overlap).tolist() if count else []
    assert nms(boxes, overlap) == expected
    assert count < 2 or 1 < len(expected) < count


@pytest.mark.parametrize("peak_size", [0, 2, 4, -1])
def test_an_even_peak_size_is_refused(peak_size: int) -> None:
    with pytest.raises(ValueError, match=f"odd number of cells, got {peak_size}"):
        decode(empty_maps(), peak_size=peak_size)


# --- lungs ------------------------------------------------------------------------------------------------------------

COARSE = affine_of(TURN @ np.diag([3.0, 3.0, 5.0]))
COARSE_SHAPE = (10, 8, 6)


GROWING = 3.0 * np.arange(-2.0, 8.0).clip(min=0.0)  # by 3 mm per voxel along i, beginning with 0 at i = 2


def at_voxel(*voxel: float, diameter_mm: float = 4.0) -> Detection:
    x, y, z = apply_affine(COARSE, voxel).tolist()
    return Detection((x, y, z), diameter_mm, 0.9)


def kept(
    candidates: list[Detection], margin_mm: float = 5.0, distance_mm: np.ndarray = GROWING
) -> tuple[list[Detection], int]:
    mm = torch.tensor(distance_mm, dtype=torch.float32)[None, :, None, None].expand(1, *COARSE_SHAPE)
    item = {"candidates": candidates, "lung_distance_mm": MetaTensor(mm.clone(), affine=COARSE)}
    out = DropOutsideLungsd(margin_mm)(item)
    return out["candidates"], out["outside_lungs"]


def test_candidates_are_kept_up_to_the_margin_whatever_their_size() -> None:
    inside, near = at_voxel(1.0, 4.0, 3.0), at_voxel(4.0, 4.0, 3.0)  # 6 mm away
    too_far = at_voxel(4.0, 4.0, 3.0, diameter_mm=30.0)
    assert kept([inside, near], margin_mm=6.0) == ([inside, near], 0)
    assert kept([inside, too_far], margin_mm=5.9) == ([inside], 1)


def test_order_and_count_hold_for_many_and_for_none_and_beyond_the_border_the_border_counts() -> None:
    candidates = [at_voxel(float(i), 1.0, 2.0) for i in (9, 0, 8, 1, 10, -1, 7, 3)]  # 3: 3 mm away
    assert kept(candidates) == ([candidates[n] for n in (1, 3, 5, 7)], 4)
    assert kept([]) == ([], 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_candidate_in_the_padding_is_dropped(axis: int, side: int) -> None:
    # The scan ends half a voxel beyond the outermost centres; one voxel more is allowed.
    places = np.array([[4.0, 4.0, 3.0]] * 2)
    places[:, axis] = (-0.5 if side < 0 else COARSE_SHAPE[axis] - 0.5) + side * np.array([0.99, 1.01])
    candidates = [at_voxel(*place) for place in places.tolist()]
    assert kept(candidates, distance_mm=np.zeros(10)) == ([candidates[0]], 1)
