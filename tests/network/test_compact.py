"""What is special about the compact network; the laws of all networks are in test_networks.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scripts.network import CompactNet
from tests.networks import TOLERANCE, as_if_trained, noise

pytestmark = pytest.mark.usefixtures("one_thread")

LARGEST = 1_500_000  # parameters; the paper's network has 4 955 794


def small(layers: int = 2, **more: Any) -> CompactNet:
    torch.manual_seed(0)
    return CompactNet((4, 6, 8, 8), (1, 1, 2, 1), layers=layers, dim=8, heads=2, feed_forward=16, **more)


def test_it_is_small() -> None:
    assert sum(parameter.numel() for parameter in CompactNet().parameters()) <= LARGEST


def test_moving_the_tile_by_16_voxels_moves_the_maps_and_its_size_changes_nothing() -> None:
    """Two tiles on one image, 16 voxels apart and of unlike length, agree where neither's border is in sight."""
    network = as_if_trained(small(layers=1))
    image = noise(1, 1, 480, 16, 32)
    with torch.no_grad():
        whole, part = network(image)[:, :, 8:], network(image[:, :, 16:464])
    difference = (whole[:, :, : part.shape[2]] - part).abs().amax(dim=(0, 1, 3, 4))
    sight = 104  # cells: 118 voxels of convolutions, 5 · 16 of one layer's farthest point, 10 spare
    assert difference[sight:-sight].max() < TOLERANCE
    assert part.std() > 0.1
    assert difference[0] > 1e-2, "the border shows nowhere: the law would hold for a network that sees one cell"


def test_without_layers_the_maps_still_come_from_all_levels() -> None:
    network = as_if_trained(small(layers=0))
    image = noise(1, 1, 32, 48, 64)
    with torch.no_grad():
        maps = network(image)
        image[..., :16, :16, :16] += 1.0
        changed = (network(image) - maps).abs().amax(dim=(0, 1))
    assert changed[14, 10, 10] > 0, "30 voxels away only the coarse levels see the change"


@pytest.mark.parametrize("channels", [0, 2, 27])
def test_other_numbers_of_mask_logits_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 1 \(per cell\) or 8 \(sub-voxels\), got {channels}"):
        small(mask_logits=channels)
