"""The published network: its size part by part, its auxiliary maps, its levels, and what it sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scripts.network import PaperNet
from scripts.network.blocks import SqueezeExcitation
from scripts.network.paper import STRIDES
from tests.networks import as_if_trained, noise

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLISHED = {
    "stem and stages": 1_423_456,
    "squeeze-and-excitation": 20_864,
    "fusion": 1_840_428,
    "encoder": 1_189_888,
    "decoder": 480_960,
    "heads": 198,
}
PARTS = {
    **dict.fromkeys(("stem", "stage2", "stage4", "stage8", "stage16"), "stem and stages"),
    **{"fusion": "fusion", "encoder": "encoder", "up8": "decoder", "up4": "decoder", "up2": "decoder"},
    **{"detect": "heads", "mask": "heads"},
}


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(**more: Any) -> PaperNet:
    torch.manual_seed(0)
    kind: dict[str, Any] = {"lateral": 6, "dim": 8, "layers": 1, "heads": 2, "feed_forward": 16, "dropout": 0.0}
    return PaperNet((4, 6, 6, 6), (4, 6), **{**kind, **more})


def test_every_part_has_the_published_number_of_parameters() -> None:
    network = PaperNet()
    counts = dict.fromkeys(PUBLISHED, 0)
    for name, child in network.named_children():
        squeeze = sum(size(module) for module in child.modules() if isinstance(module, SqueezeExcitation))
        counts["squeeze-and-excitation"] += squeeze
        counts[PARTS[name]] += size(child) - squeeze
    assert counts == PUBLISHED
    assert size(network) == sum(PUBLISHED.values()) == 4_955_794


def test_the_four_levels_of_the_figure() -> None:
    """Per layer two more levels to look at; two more level embeddings; projections of 32 and 64 channels and back."""
    looking = 6 * 2 * (8 * 4 * (3 + 1)) * (128 + 1)
    projections = (32 + 64) * 128 + 2 * 128 + 128 * (32 + 64) + (32 + 64)
    assert size(PaperNet(levels=(2, 4, 8, 16))) == 4_955_794 + looking + 2 * 128 + projections == 5_179_122


def test_a_level_of_the_encoders_width_needs_no_projection() -> None:
    assert [type(m) for m in PaperNet().encoder.project] == [nn.Identity] * 4
    assert [type(m) for m in PaperNet(levels=(2, 4, 8, 16)).encoder.restore] == [nn.Conv3d] * 2 + [nn.Identity] * 2


@pytest.mark.parametrize("levels", [(8, 16), (2, 4, 8, 16), (16,), (4, 16)])
def test_the_encoder_changes_the_chosen_levels_only(levels: tuple[int, ...]) -> None:
    network = as_if_trained(small(levels=levels))
    shapes = [(4, 8, 8, 12), (6, 4, 4, 6), (8, 2, 2, 3), (8, 1, 1, 2)]
    maps = [noise(1, *shape) for shape in shapes]
    with torch.no_grad():
        encoded = network.encoder(maps)
    assert [tuple(features.shape[1:]) for features in encoded] == shapes
    unchanged = [torch.equal(before, after) for before, after in zip(maps, encoded, strict=True)]
    assert unchanged == [stride not in levels for stride in STRIDES]


@pytest.mark.parametrize("levels", [(), (1, 8), (32,)])
def test_other_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"levels: expected strides out of \(2, 4, 8, 16\), at least one, got"):
        small(levels=levels)


def test_auxiliary_maps_follow_the_main_ones_in_training_only() -> None:
    """With batch norm held still, the first channels in training are those in evaluation."""
    network = as_if_trained(small())
    image = noise(2, 1, 16, 32, 48)
    with torch.no_grad():
        main = network(image)
        network.training = True  # itself alone: its parts stay in evaluation
        both = network(image)
    assert (main.shape, both.shape) == ((2, 6, 8, 16, 24), (2, 12, 8, 16, 24))
    assert torch.equal(both[:, :6], main)
    assert (both[:, 6:] - main).abs().max() > 0.1


def test_auxiliary_maps_come_from_the_fused_level_by_the_same_heads() -> None:
    """They do not see encoder and decoder, whose gradients from them alone are none."""
    network = small().train()
    network(noise(2, 1, 32, 32, 48))[:, 6:].square().mean().backward()
    without = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert {"encoder", "up8", "up4", "up2"} <= without
    assert without.isdisjoint({"stem", "stage2", "stage16", "detect", "mask"})
