"""The loss: values worked out by hand, and the direction in which it pulls."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.core.labels import IGNORED, NODULE, PADDING
from scripts.network.blocks import space_to_depth
from scripts.train import ClassificationLoss, MaskLoss, NoduleLoss, RegressionLoss
from scripts.train.losses import focal_terms
from scripts.train.targets import BACKGROUND, IGNORE, POSITIVE, CellTargets, cell_targets

SHAPE = (8, 7, 9)  # of the output grid: 16 × 14 × 18 voxels
FOUND = (8.5, 6.5, 6.5, 6.0)  # on the centre of cell (4, 3, 3)
Target = dict[str, Tensor]
Settings = dict[str, Any] | None
WEIGHTS: dict[str, Any] = {
    "regression": {"offset_weight": 2.0, "size_weight": 3.0},
    "mask": {"weight": 5.0, "background_boxes": 0},
}


def sphere(*nodules: tuple[float, float, float, float]) -> Tensor:
    """Instance mask ``[1, I, J, K]`` of balls."""
    axes = torch.meshgrid(*(torch.arange(2.0 * n) for n in SHAPE), indexing="ij")
    mask = torch.zeros(axes[0].shape)
    for number, (*centre, diameter) in enumerate(nodules, start=1):
        squared = torch.stack([(axis - c).square() for axis, c in zip(axes, centre, strict=True)]).sum(0)
        mask[squared <= (diameter / 2.0) ** 2] = number
    return mask[None]


def target(*nodules: tuple[float, float, float, float], padding: int = 0, label: int = NODULE) -> Target:
    """Of a batch of one, with mask."""
    nodule = torch.tensor([*nodules, *[(0.0, 0.0, 0.0, 0.0)] * padding]).reshape(1, -1, 4)
    return {
        "nodule": nodule,
        "label": torch.tensor([[label] * len(nodules) + [PADDING] * padding], dtype=torch.int64),
        "mask": sphere(*nodules)[None],
    }


def batch(*items: Target) -> Target:
    return {name: torch.cat([item[name] for item in items]) for name in items[0]}


def cells_of(wanted: Target) -> CellTargets:
    label = wanted["label"]
    return cell_targets(wanted["nodule"], label == NODULE, label != PADDING, SHAPE, stride=2, positives=7)


def perfect(wanted: Target, sure: float = 50.0) -> Tensor:
    """The maps that say just what is wanted."""
    cells = cells_of(wanted)
    logit = torch.where(cells.state == POSITIVE, sure, -sure)
    mask = space_to_depth(torch.where(wanted["mask"] > 0, sure, -sure), 2)
    return torch.cat([logit[:, None], cells.offset_mm, cells.log_diameter[:, None], mask], dim=1)


def loss_of(
    *, classification: Settings = None, regression: Settings = None, mask: Settings = None, channels: int | None = None
) -> NoduleLoss:
    """The loss with some settings of its parts."""
    return NoduleLoss(
        ClassificationLoss(**classification or {}),
        RegressionLoss(**regression or {}),
        MaskLoss(**mask or {}),
        channels=channels,
    )


def zeros(items: int = 1) -> Tensor:
    return torch.zeros(items, 13, *SHAPE, requires_grad=True)


def noise(channels: int = 13, items: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(items, channels, *SHAPE, generator=torch.Generator().manual_seed(seed))


def parts(pred: Tensor, wanted: Target, loss: NoduleLoss | None = None) -> dict[str, float]:
    """The four parts, the random background boxes at the same places in each call."""
    loss = loss or loss_of()
    torch.manual_seed(0)
    loss(pred, wanted)
    return loss.parts


def gradient(wanted: Target, loss: NoduleLoss | None = None, pred: Tensor | None = None) -> Tensor:
    pred = zeros(len(wanted["label"])) if pred is None else pred
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad((loss or loss_of())(pred, wanted), pred)
    return slope


@pytest.mark.parametrize(
    ("logit", "wanted", "gamma", "expected"),
    [
        (0.0, 1.0, 2.0, math.log(2) / 4),
        (0.0, 0.0, 2.0, math.log(2) / 4),
        (math.log(3), 0.0, 2.0, math.log(4) * 9 / 16),
        (math.log(3), 1.0, 2.0, math.log(4 / 3) / 16),
        (-math.log(3), 1.0, 1.0, math.log(4) * 3 / 4),
        (math.log(3), 0.0, 0.0, math.log(4)),
        (-1000.0, 0.0, 2.0, 0.0),
        (-1000.0, 1.0, 2.0, 1000.0),
        (1000.0, 0.0, 2.0, 1000.0),
        (1000.0, 1.0, 2.0, 0.0),
    ],
)
def test_focal_terms_by_hand_and_their_gradients_are_finite(
    logit: float, wanted: float, gamma: float, expected: float
) -> None:
    logits = torch.tensor([logit], requires_grad=True)
    terms = focal_terms(logits, torch.tensor([wanted]), gamma)
    assert terms.item() == pytest.approx(expected)
    assert torch.autograd.grad(terms.sum(), logits)[0].isfinite().all()


def test_all_parts_of_one_case_by_hand() -> None:
    """Zero maps: 7 cells found (each counts 3 times), the 14 hardest others kept; offsets 0 and six of 2 mm; a mask of
    probability 1/2."""
    loss = loss_of(
        classification={"positive_weight": 3.0, "negatives_per_positive": 2, "fewest_negatives": 3},
        regression={"offset_weight": 2.0, "size_weight": 3.0},
        mask={"weight": 5.0, "margin": 100, "background_boxes": 0},
    )
    value = loss(zeros(), target((*FOUND[:3], math.e))).item()
    voxels, inside = 16 * 14 * 18, 8  # a ball of radius e/2 around the corner of eight voxels: 0.87 in, 1.66 out
    dice = 1 - (2 * 0.5 * inside + 1) / (0.5 * voxels + inside + 1)
    assert loss.parts == {
        "class": pytest.approx((3 * 7 + 14) * math.log(2) / 4 / 7),
        "offset": pytest.approx(6 * (2.0 - 0.5) / (3 * 7)),
        "size": pytest.approx(0.5),
        "mask": pytest.approx(0.5 * math.log(2) + 0.5 * dice),
    }
    assert value == pytest.approx(sum(w * p for w, p in zip((1, 2, 3, 5), loss.parts.values(), strict=True)))


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("boxes", [1, 0])
@pytest.mark.parametrize("items", [1, 2])
def test_batch_without_nodules_is_finite_and_teaches_background(rows: int, boxes: int, items: int) -> None:
    """Without a box either: every parameter still gets a gradient of zero, which distributed training needs."""
    wanted = batch(*[target(padding=rows)] * items)
    pred, loss = zeros(items), loss_of(mask={"background_boxes": boxes})
    slope, kept = gradient(wanted, loss, pred), min(items * math.prod(SHAPE), 1000)
    expected = {"class": kept * math.log(2) / 4 / 7, "offset": 0.0, "size": 0.0, "mask": boxes * math.log(2)}
    assert loss.parts == pytest.approx(expected, rel=1e-6, abs=0.0)
    assert slope.isfinite().all()
    assert (slope[:, 0] >= 0).all()
    assert (slope[:, 0] > 0).any()
    assert (slope[:, 1:5] == 0).all()
    assert (slope[:, 5:] != 0).any() == bool(boxes)


@pytest.mark.parametrize(
    "wanted",
    [
        target(FOUND),
        target(FOUND, (2.5, 10.5, 14.0, 4.0)),
        target(FOUND, padding=2),
        target(padding=2),
        batch(target(FOUND), target(padding=1)),
    ],
)
def test_perfect_maps_cost_nothing(wanted: Target) -> None:
    assert all(part < 1e-6 for part in parts(perfect(wanted), wanted).values())


@pytest.mark.parametrize(
    ("channels", "part"),
    [(slice(0, 1), "class"), (slice(1, 4), "offset"), (slice(4, 5), "size"), (slice(5, 13), "mask")],
)
def test_worse_maps_cost_more_and_only_their_part(channels: slice, part: str) -> None:
    """The farther the maps go from what is wanted, the more that part costs; the others stay at nothing."""
    wanted = target(FOUND)
    costs = []
    for step in (0.0, 0.48, 0.6, 0.9):  # logits 50, 2, -10, -40
        pred = perfect(wanted)
        wrong = -pred if part in ("class", "mask") else pred + 10.0
        pred[:, channels] = torch.lerp(pred, wrong, step)[:, channels]
        found = parts(pred, wanted)
        costs.append(found.pop(part))
        assert all(value < 1e-6 for value in found.values())
    assert all(later > earlier + 1e-4 for earlier, later in itertools.pairwise(costs))
    assert costs[-1] > 1.0


def test_gradient_pulls_each_map_towards_what_is_wanted() -> None:
    wanted = target(FOUND)
    cells, slope = cells_of(wanted), gradient(wanted)[0]
    positive, background = (cells.state == POSITIVE).float(), (cells.state == BACKGROUND).float()
    assert (cells.state == IGNORE).any()
    pull = torch.cat([positive - background, cells.offset_mm[0] * positive, positive])
    assert torch.equal(slope[:5].sign(), -pull.sign())
    mask = space_to_depth(wanted["mask"], 2)[0] > 0
    assert (slope[5:][mask] < 0).all()
    assert (slope[5:][~mask] >= 0).all()


def test_an_ignored_finding_is_neither_a_hit_nor_a_false_finding() -> None:
    ignored = target(FOUND, label=IGNORED)
    slope = gradient(ignored, loss_of(mask={"background_boxes": 0}))[0]
    assert (slope[0][cells_of(ignored).state[0] == IGNORE] == 0).all()
    assert (slope[1:] == 0).all()


@pytest.mark.parametrize(("per_positive", "fewest", "kept"), [(10, 0, 70), (1, 30, 30), (0, 5, 5), (10**6, 0, None)])
def test_only_the_hardest_background_cells_count(per_positive: int, fewest: int, kept: int | None) -> None:
    wanted = target(FOUND)
    background = cells_of(wanted).state == BACKGROUND
    loss = loss_of(classification={"negatives_per_positive": per_positive, "fewest_negatives": fewest})
    pred = noise().requires_grad_()
    used = (gradient(wanted, loss, pred)[:, 0] != 0) & background
    assert int(used.sum()) == (int(background.sum()) if kept is None else kept)
    logits = pred.detach()[:, 0]
    assert kept is None or logits[used].min() > logits[background & ~used].max()


@pytest.mark.parametrize("number", [0, 2], ids=["nobody", "a neighbour"])
def test_a_nodule_whose_mask_is_not_its_own_teaches_no_mask(number: int) -> None:
    """Nor do random boxes of its item: they might lie on the nodule."""
    wanted = batch(target(FOUND), target(FOUND))
    wanted["mask"][1] *= number
    slope = gradient(wanted)
    assert (slope[0, 5:] != 0).any()
    assert (slope[1, 5:] == 0).all()
    assert (slope[1, :5] != 0).any(), "the nodule itself is still learnt"


def test_mask_is_compared_within_the_margin_only() -> None:
    """Radius 3 and margin 2 around voxel (8.5, 6.5, 6.5): voxels 3 … 14, 1 … 12, 1 … 12."""
    slope = gradient(target(FOUND), loss_of(mask={"margin": 2, "background_boxes": 0}))
    used = torch.zeros(1, 1, 16, 14, 18)
    used[:, :, 3:15, 1:13, 1:13] = 1.0
    assert torch.equal(slope[:, 5:] != 0, space_to_depth(used, 2) > 0)


@pytest.mark.parametrize(
    ("centre", "taught"),
    [((0.0, 0.0, 0.0), True), ((15.0, 13.0, 17.0), True), ((-40.0, 5.0, 5.0), False), ((5.0, 90.0, 5.0), False)],
)
def test_nodule_at_or_beyond_the_border_stays_finite(centre: tuple[float, float, float], taught: bool) -> None:
    loss = loss_of(mask={"background_boxes": 0})
    assert gradient(target((*centre, 4.0)), loss).isfinite().all()
    assert (loss.parts["mask"] > 0) == taught
    assert loss.parts["mask"] < math.inf


def test_background_boxes_teach_empty_masks() -> None:
    slope = gradient(target(padding=1), loss_of(mask={"background_boxes": 2, "background_edge": 4}))[:, 5:]
    assert (slope >= 0).all()
    assert 4**3 <= int((slope > 0).sum()) <= 2 * 4**3


def test_padding_order_and_precision_of_the_input_change_nothing() -> None:
    other, pred = (2.5, 10.5, 14.0, 4.0), noise().bfloat16()
    wanted = target(FOUND, other)
    assert loss_of()(pred, wanted).dtype == torch.float32
    assert parts(pred, wanted) == parts(pred.float(), wanted) == parts(pred.float(), target(FOUND, other, padding=5))
    assert parts(pred, wanted) == pytest.approx(parts(pred, target(other, FOUND)))


# --- several sets of maps, and one mask logit per cell ----------------------------------------------------------------


@pytest.mark.parametrize("per_set", [6, 13])
@pytest.mark.parametrize("sets", [1, 3])
def test_the_losses_of_several_sets_of_maps_add_up(sets: int, per_set: int) -> None:
    """Each by itself, where no number of channels says that all are one set."""
    wanted = batch(target(FOUND, padding=1), target((2.5, 10.5, 14.0, 4.0), padding=1))
    maps = [noise(per_set, items=2, seed=seed) for seed in range(sets)]
    alone = [parts(one, wanted, loss_of(**WEIGHTS)) for one in maps]
    assert len({one["class"] for one in alone}) == sets
    together = parts(torch.cat(maps, dim=1), wanted, loss_of(**WEIGHTS, channels=per_set))
    assert together == pytest.approx({name: sum(one[name] for one in alone) for name in together}, rel=1e-6)


@pytest.mark.parametrize(
    ("channels", "given", "message"),
    [
        (13, 19, "sets of 13 channels, at least 6 each, got 19"),  # 13 + 6: each fits the stride, but not one network
        (6, 13, "sets of 6 channels, at least 6 each, got 13"),
        (13, 6, "sets of 13 channels, at least 6 each, got 6"),
        (5, 10, "sets of 5 channels, at least 6 each, got 10"),
        (None, 5, r"sets of 5 \+ M channels, at least 6 each, got 5"),
        (None, 26, "mask logits: expected 1 or 8 channels for a stride of 2, got 21"),
        (12, 24, "mask logits: expected 1 or 8 channels for a stride of 2, got 7"),
    ],
)
def test_channels_that_are_no_whole_sets_are_refused(channels: int | None, given: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(channels=channels)(noise(given), target(FOUND))
