"""Mask logits become outlines on the scan's own grid, whatever that grid looks like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor

from scripts.core.geometry import apply_affine, voxel_volume_mm3
from scripts.core.records import Detection, Nodule
from scripts.decode.masks import MaskSettings, SegmentNodulesd, component_at, logits_at, segment_given, segment_nodules
from scripts.network.blocks import mask_on_voxels

Array = npt.NDArray[np.float64]
Field = Callable[[Array], Array]  # of RAS positions [..., 3] in mm

TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.28, -0.96], [0.0, 0.96, 0.28]]
)
CELLS = (24, 26, 28)  # of stride 2: 48 × 52 × 56 mm
CENTRE = (31.3, -62.6, 104.9)  # RAS mm, on no voxel's centre


def affine_around(centre_ras_mm: tuple[float, float, float], shape: tuple[int, int, int], steps_mm: Array) -> Array:
    """Grid of this shape whose middle lies at a world position."""
    affine = np.eye(4)
    affine[:3, :3] = steps_mm
    affine[:3, 3] = np.array(centre_ras_mm) - steps_mm @ ((np.array(shape) - 1) / 2.0)
    return affine


def positions(affine: Array, shape: tuple[int, ...]) -> Array:
    """World position of each voxel, ``[I, J, K, 3]``."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def maps_of(field: Field, affine: Array, cells: tuple[int, int, int] = CELLS, stride: int = 2) -> torch.Tensor:
    """Mask logits ``[s³, I, J, K]`` of a field: channel (a·s + b)·s + d of cell c holds voxel c·s + (a, b, d)."""
    i, j, k = (n * stride for n in cells)
    fine = field(positions(affine, (i, j, k)))
    parts = itertools.product(range(stride), repeat=3)
    return torch.tensor(np.stack([fine[a::stride, b::stride, d::stride] for a, b, d in parts]), dtype=torch.float32)


def sphere(centre_ras_mm: tuple[float, float, float], diameter_mm: float) -> Field:
    return lambda world: diameter_mm / 2.0 - np.linalg.norm(world - np.array(centre_ras_mm), axis=-1)


def union(*fields: Field) -> Field:
    return lambda world: np.max([field(world) for field in fields], axis=0)


MAP_AFFINE = affine_around(CENTRE, (48, 52, 56), np.eye(3))


def outline(
    detections: list[Detection],
    field: Field,
    scan_affine: Array,
    shape: tuple[int, int, int],
    *,
    map_affine: Array = MAP_AFFINE,
    mask_threshold: float = 0.5,
    margin_mm: float = 5.0,
) -> tuple[list[Nodule], npt.NDArray[np.uint16]]:
    return segment_nodules(
        detections,
        maps_of(field, map_affine),
        map_affine,
        np.full(shape, 30, dtype=np.int16),
        scan_affine,
        settings=MaskSettings(stride=2, mask_threshold=mask_threshold, margin_mm=margin_mm),
    )


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


# --- reading logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("sub_voxels", [False, True])
@pytest.mark.parametrize("cells", [(5, 7, 9), (1, 2, 3)])
def test_a_small_part_reads_as_the_wholly_upsampled_map(
    cells: tuple[int, int, int], sub_voxels: bool, stride: int
) -> None:
    """Whatever part of the cells is brought to voxels: at voxels, between them, at and beyond every border."""
    shape = (cells[0] * stride, cells[1] * stride, cells[2] * stride)
    affine = affine_around(CENTRE, shape, TURN @ np.diag([1.0, -1.0, 1.2]))
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(stride**3 if sub_voxels else 1, *cells, generator=generator)
    whole = mask_on_voxels(maps[None], stride)[0, 0].double()
    flat = positions(affine, shape).reshape(-1, 3)
    np.testing.assert_allclose(logits_at(maps, affine, flat, stride), whole.ravel(), atol=1e-5)
    for point, value in zip(flat[:: max(1, len(flat) // 150)], whole.ravel()[:: max(1, len(flat) // 150)], strict=True):
        assert float(logits_at(maps, affine, point, stride)) == pytest.approx(float(value), abs=1e-5)
    draw = np.random.default_rng(0)
    for _ in range(60):  # small blocks of points anywhere, up to four voxels beyond the maps
        middle = draw.uniform(-4.0, np.array(shape) + 3.0)
        block = middle + draw.uniform(-1.5, 1.5, (2, 3, 3))
        expected = between(whole.numpy(), np.clip(block, 0, np.array(shape) - 1))
        np.testing.assert_allclose(logits_at(maps, affine, apply_affine(affine, block), stride), expected, atol=1e-4)


def between(volume: Array, voxels: Array) -> Array:
    """Trilinear interpolation, spelled out: the eight voxels around each point, weighted by nearness."""
    low = np.floor(voxels).astype(int)
    total = np.zeros(voxels.shape[:-1])
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.prod(1.0 - np.abs(voxels - (low + corner)), axis=-1)
        i, j, k = np.moveaxis(np.minimum(low + corner, np.array(volume.shape) - 1), -1, 0)
        total += weight * volume[i, j, k]
    return total


# --- outlines of a sphere ---------------------------------------------------------------------------------------------

SHEAR = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.35], [0.0, 0.0, 1.0]])  # gantry tilted by 19°
GRIDS: dict[str, tuple[tuple[int, int, int], Array]] = {
    "1 mm": ((30, 32, 34), np.eye(3)),
    "thin slices": ((44, 42, 24), np.diag([-0.7, -0.72, 1.25])),
    "flipped": ((30, 32, 34), np.diag([-0.9, 0.95, -0.85])),
    "permuted": ((24, 44, 42), np.array([[0.0, 0.0, 0.7], [0.0, -0.7, 0.0], [1.25, 0.0, 0.0]])),
    "oblique": ((40, 38, 20), TURN @ np.diag([0.75, -0.75, 1.5])),
    "sheared": ((44, 42, 20), SHEAR @ np.diag([-0.7, -0.7, 1.5])),
    "2.5 mm slices": ((44, 42, 14), np.diag([-0.7, -0.7, 2.5])),
    "5 mm slices": ((44, 42, 8), np.diag([-0.7, -0.7, 5.0])),
}


@pytest.mark.parametrize("map_steps", [np.eye(3), TURN @ np.diag([1.0, -1.0, 1.0])], ids=["maps RAS", "maps turned"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_sphere_is_outlined_as_it_lies_on_the_grid(name: str, map_steps: Array) -> None:
    shape, steps_mm = GRIDS[name]
    scan_affine = affine_around(CENTRE, shape, steps_mm)
    scan_affine[:3, 3] += (0.21, -0.34, 0.17)  # the nodule's centre is no voxel's centre
    field = sphere(CENTRE, 12.0)
    map_affine = affine_around(CENTRE, (48, 52, 56), map_steps)
    (nodule,), mask = outline([Detection(CENTRE, 12.0, 0.9)], field, scan_affine, shape, map_affine=map_affine)
    world = positions(scan_affine, shape)
    exact = field(world) > 0.0
    assert (mask.dtype, mask.shape) == (np.uint16, shape)
    assert dice(mask == 1, exact) >= 0.97
    assert float((mask == 1).sum()) == pytest.approx(float(exact.sum()), rel=0.03)
    assert nodule.measurement is not None
    assert nodule.measurement.volume_mm3 == pytest.approx(float((mask == 1).sum()) * voxel_volume_mm3(scan_affine))
    assert nodule.measurement.mean_hu == 30.0
    np.testing.assert_allclose(scan_affine[:3, :3] @ nodule.centre_voxel + scan_affine[:3, 3], CENTRE, atol=1e-9)


def test_the_mask_threshold_moves_the_outline() -> None:
    shape, steps_mm = GRIDS["1 mm"]
    scan_affine = affine_around(CENTRE, shape, steps_mm)
    distance = -sphere(CENTRE, 0.0)(positions(scan_affine, shape))
    for threshold in (0.2, 0.5, 0.8):
        cut = math.log(threshold / (1.0 - threshold))  # the logit falls by 1 per mm from 6 at the centre
        _, mask = outline(
            [Detection(CENTRE, 12.0, 0.9)], sphere(CENTRE, 12.0), scan_affine, shape, mask_threshold=threshold
        )
        assert dice(mask > 0, distance < 6.0 - cut) >= 0.97


# --- several nodules --------------------------------------------------------------------------------------------------

SHAPE = (44, 46, 48)
SCAN = affine_around(CENTRE, SHAPE, np.eye(3))


def beside(shift_mm: float, diameter_mm: float = 10.0, probability: float = 0.8) -> Detection:
    return Detection((CENTRE[0] + shift_mm, CENTRE[1], CENTRE[2]), diameter_mm, probability)


def test_overlaps_go_to_the_stronger_and_labels_follow_the_order() -> None:
    first, second = beside(-5.0, probability=0.9), beside(5.0)
    field = union(sphere(first.centre_ras_mm, 12.0), sphere(second.centre_ras_mm, 12.0))  # they share a lens
    nodules, mask = outline([first, second], field, SCAN, SHAPE, margin_mm=2.0)
    (_,), alone = outline([first], field, SCAN, SHAPE, margin_mm=2.0)
    whole = field(positions(SCAN, SHAPE)) > 0.0
    assert [(n.label, n.detection) for n in nodules] == [(1, first), (2, second)]
    np.testing.assert_array_equal(mask == 1, alone == 1)  # the weaker takes nothing away
    assert (mask == 2).sum() > 300
    assert dice(mask > 0, whole) >= 0.97
    for nodule in nodules:
        assert nodule.measurement is not None
        assert nodule.measurement.volume_mm3 == pytest.approx(float((mask == nodule.label).sum()))


def test_a_detection_inside_a_stronger_outline_joins_it() -> None:
    strong, inside, apart = beside(0.0, 12.0, 0.9), beside(4.0, 5.0, 0.8), beside(15.0, 6.0, 0.7)
    field = union(sphere(CENTRE, 12.0), sphere(apart.centre_ras_mm, 6.0))
    nodules, mask = outline([strong, inside, apart], field, SCAN, SHAPE)
    assert [(n.label, n.detection) for n in nodules] == [(1, strong), (2, apart)]
    assert set(np.unique(mask)) == {0, 1, 2}


def test_a_second_piece_in_the_box_is_left_out() -> None:
    field = union(sphere(CENTRE, 10.0), sphere((CENTRE[0] + 12.0, CENTRE[1], CENTRE[2]), 8.0))
    (_,), mask = outline([beside(0.0)], field, SCAN, SHAPE, margin_mm=15.0)
    assert dice(mask == 1, sphere(CENTRE, 10.0)(positions(SCAN, SHAPE)) > 0.0) >= 0.97


def test_the_outline_ends_at_the_margin() -> None:
    (_,), mask = outline([beside(0.0, diameter_mm=6.0)], lambda world: np.full(world.shape[:-1], 5.0), SCAN, SHAPE)
    reach = np.abs(positions(SCAN, SHAPE)[mask == 1] - np.array(CENTRE)).max(axis=0)
    np.testing.assert_allclose(reach, 3.0 + 5.0, rtol=0, atol=1.0)  # whole voxels


def nothing(world: Array) -> Array:
    return np.full(world.shape[:-1], -5.0)


@pytest.mark.parametrize(
    ("detections", "field"),
    [([beside(0.0), beside(12.0)], nothing), ([], nothing), ([beside(200.0)], sphere(CENTRE, 12.0))],
    ids=["no logit above the threshold", "no detection", "beyond the scan"],
)
def test_without_an_outline_nodules_have_no_measurement(detections: list[Detection], field: Field) -> None:
    nodules, mask = outline(detections, field, SCAN, SHAPE)
    assert [(n.detection, n.measurement) for n in nodules] == [(one, None) for one in detections]
    assert (mask.shape, mask.dtype, mask.any()) == (SHAPE, np.uint16, False)


def test_more_nodules_than_eight_bits_can_label() -> None:
    shape = (48, 52, 56)
    offsets = [np.arange(3.5, n - 2, 7.0) for n in shape]
    centres = [tuple((MAP_AFFINE[:3, 3] + voxel).tolist()) for voxel in itertools.product(*offsets)]
    assert len(centres) > 255

    def field(world: Array) -> Array:
        apart = np.mod(world - MAP_AFFINE[:3, 3], 7.0) - 3.5
        return 2.0 - np.linalg.norm(apart, axis=-1)

    nodules, mask = outline([Detection(c, 4.0, 0.9) for c in centres], field, MAP_AFFINE, shape, margin_mm=1.0)
    sizes = np.bincount(mask.ravel())[1:]
    assert len(nodules) == len(sizes) == len(centres)
    assert set(sizes) == {32}  # the voxels of one sphere; no label is lost or shared


# --- findings whose place is given ------------------------------------------------------------------------------------

LOOSE = MaskSettings(stride=2, mask_threshold=0.5, margin_mm=2.0)


def given(findings: list[tuple[int, Detection]], field: Field) -> npt.NDArray[np.uint16]:
    return segment_given(findings, maps_of(field, MAP_AFFINE), MAP_AFFINE, SHAPE, SCAN, settings=LOOSE)


@pytest.mark.parametrize("order", [1, -1])
def test_given_findings_are_outlined_as_if_alone_and_the_later_label_stands(order: int) -> None:
    first, second = beside(-4.0), beside(4.0)
    field = union(sphere(first.centre_ras_mm, 12.0), sphere(second.centre_ras_mm, 12.0))  # they share a lens
    findings = [(7, first), (300, second)][::order]
    alone = {label: given([(label, place)], field) == label for label, place in findings}
    assert (alone[7] & alone[300]).sum() > 100
    assert (alone[7] & ~alone[300]).sum() > 300
    mask = given(findings, field)
    (early, _), (late, _) = findings
    np.testing.assert_array_equal(mask == late, alone[late])
    np.testing.assert_array_equal(mask == early, alone[early] & ~alone[late])
    assert (set(np.unique(mask)), mask.dtype) == ({0, 7, 300}, np.uint16)


def test_a_given_finding_inside_another_is_outlined_too() -> None:
    """No detection of a list joins another here: its label must not vanish."""
    large, inside = beside(0.0, 12.0), beside(3.0, 4.0)
    field = sphere(CENTRE, 12.0)
    alone = given([(2, inside)], field)
    mask = given([(1, large), (2, inside)], field)
    assert (alone == 2).sum() > 50
    np.testing.assert_array_equal(mask == 2, alone == 2)
    np.testing.assert_array_equal(mask > 0, (given([(1, large)], field) > 0) | (alone > 0))


def test_without_given_findings_or_logits_the_mask_is_empty() -> None:
    for mask in (given([], sphere(CENTRE, 12.0)), given([(1, beside(0.0))], nothing)):
        assert (mask.shape, mask.any()) == (SHAPE, False)


# --- pieces, borders, thick slices ------------------------------------------------------------------------------------


def test_the_piece_at_the_centre_is_the_nearest_within_reach() -> None:
    inside = np.zeros((9, 9, 9), dtype=bool)
    inside[1, 4, 4] = inside[7:9, 4, 4] = True
    reach = np.array([4.0, 4.0, 4.0])
    assert np.argwhere(component_at(inside, np.array([1.2, 4.0, 4.0]), reach)).tolist() == [[1, 4, 4]]
    assert np.argwhere(component_at(inside, np.array([4.5, 4.0, 4.0]), reach)).tolist() == [[7, 4, 4], [8, 4, 4]]
    assert not component_at(inside, np.array([4.0, 4.0, 4.0]), np.array([2.9, 9.0, 9.0])).any()  # 3 voxels either way
    assert not component_at(np.zeros_like(inside), np.array([4.0, 4.0, 4.0]), reach).any()
    assert inside.sum() == 3


def test_a_small_nodule_between_thick_slices_has_no_outline_but_one_on_a_slice_has() -> None:
    shape = (44, 42, 8)
    between = affine_around(CENTRE, shape, np.diag([0.7, 0.7, 5.0]))  # slices 2.5 mm above and below
    on_slice = between.copy()
    on_slice[2, 3] += 2.5
    for scan_affine, slices in ((between, 0), (on_slice, 1)):
        (nodule,), mask = outline([Detection(CENTRE, 3.0, 0.9)], sphere(CENTRE, 3.0), scan_affine, shape)
        assert int(mask.any(axis=(0, 1)).sum()) == slices
        assert (nodule.measurement is None) == (slices == 0)


def test_a_nodule_at_the_border_of_the_scan_is_cut_there() -> None:
    shape = (44, 46, 20)
    scan_affine = affine_around(CENTRE, shape, np.eye(3))
    scan_affine[2, 3] = CENTRE[2] + 0.5  # the first slice lies half a voxel above the centre
    (nodule,), mask = outline([Detection(CENTRE, 12.0, 0.9)], sphere(CENTRE, 12.0), scan_affine, shape)
    assert nodule.measurement is not None
    assert nodule.measurement.volume_mm3 == pytest.approx(math.pi / 12 * 12.0**3, rel=0.04)
    assert nodule.centre_voxel[2] == pytest.approx(-0.5)
    assert mask[:, :, 0].any()


# --- graph component --------------------------------------------------------------------------------------------------


def component(**changed: float) -> SegmentNodulesd:
    settings = {"threshold": 0.5, "stride": 2, "mask_threshold": 0.5, "margin_mm": 5.0}
    return SegmentNodulesd(**{**settings, **changed})  # type: ignore[arg-type]


def test_the_component_outlines_what_reaches_the_threshold_on_the_grid_of_the_scan() -> None:
    shape, steps_mm = GRIDS["oblique"]
    scan_affine = affine_around(CENTRE, shape, steps_mm)
    image_hu = torch.arange(math.prod(shape), dtype=torch.int32).reshape(1, *shape).remainder(3000).to(torch.int16)
    candidates = [beside(0.0, 12.0, 0.5), beside(15.0, 6.0, 0.4999)]
    item = {
        "candidates": candidates,
        "pred": torch.cat([torch.zeros(5, *CELLS), maps_of(sphere(CENTRE, 12.0), MAP_AFFINE)]),
        "image": MetaTensor(torch.zeros(1, 48, 52, 56), affine=MAP_AFFINE),
        "scan": MetaTensor(image_hu, affine=scan_affine),
    }
    out = component()(item)
    (nodule,) = out["nodules"]
    assert nodule.detection is candidates[0]
    assert dice(out["mask"] == 1, sphere(CENTRE, 12.0)(positions(scan_affine, shape)) > 0.0) >= 0.97
    assert nodule.measurement.mean_hu == pytest.approx(float(image_hu[0].numpy()[out["mask"] == 1].mean()))
    assert out["candidates"] == candidates
    assert "nodules" not in item


@pytest.mark.parametrize("name", ["threshold", "mask_threshold"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_thresholds_are_probabilities(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a probability between 0 and 1, got {value}"):
        component(**{name: value})
