"""Laws of the compact preset."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from scripts.network import CompactNet, compact, ready_network
from scripts.network.compact import COARSEST_STRIDE, PRIOR_PROBABILITY

SHAPES = [(16, 32, 48), (48, 16, 32), (32, 64, 16)]
TOLERANCE = 2e-5  # float32 rounding through the network, for maps that spread over about one
LARGEST = 2_500_000  # parameters; the paper's network has 4 955 794


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(layers: int = 2) -> CompactNet:
    torch.manual_seed(0)
    return compact(widths=(4, 6, 8, 8), layers=layers, dim=8, heads=2)


def as_if_trained(network: nn.Module) -> nn.Module:
    """In evaluation, and without the zeros and ones of a fresh network, behind which a fault could hide."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "attention.offsets" in name or "attention.weights" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name in ("detect.weight", "mask.weight"):
                parameter.mul_(20.0)  # maps that spread over about one, as trained ones do
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def preset() -> nn.Module:
    torch.manual_seed(0)
    return as_if_trained(compact())


def test_preset_is_small() -> None:
    assert sum(parameter.numel() for parameter in compact().parameters()) <= LARGEST


@pytest.mark.parametrize("shape", SHAPES)
def test_thirteen_channels_at_half_the_size(preset: nn.Module, shape: tuple[int, int, int]) -> None:
    with torch.no_grad():
        maps = preset(noise(2, 1, *shape))
    assert maps.shape == (2, 13, *(n // 2 for n in shape))
    assert maps.isfinite().all()


@pytest.mark.parametrize("shape", [(24, 32, 32), (32, 34, 32), (32, 32, 31), (8, 16, 16), (100, 96, 96)])
def test_sizes_that_are_no_multiples_of_16_are_refused(shape: tuple[int, int, int]) -> None:
    i, j, k = shape
    with pytest.raises(ValueError, match=rf"multiples of {COARSEST_STRIDE} voxels, got \({i}, {j}, {k}\); pad it"):
        small()(torch.zeros(1, 1, *shape))


def test_same_input_gives_same_output(preset: nn.Module) -> None:
    image = noise(1, 1, 32, 16, 48)
    with torch.no_grad():
        assert torch.equal(preset(image), preset(image.clone()))


def test_same_seed_builds_the_same_network() -> None:
    for a, b in zip(small().state_dict().values(), small().state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_items_of_a_batch_do_not_see_each_other(preset: nn.Module) -> None:
    batch = noise(3, 1, 16, 32, 48)
    with torch.no_grad():
        together, alone = preset(batch), torch.cat([preset(item[None]) for item in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_gradient_reaches_every_parameter(layers: int) -> None:
    """The level embedding joins the queries only, which fresh attention does not look at; and not without layers."""
    network = small(layers)
    as_if_trained(network).train()
    network(noise(2, 1, 32, 32, 48)).square().mean().backward()
    for name, parameter in network.named_parameters():
        if layers == 0 and name == "encoder.level_embedding":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_nodules_are_rare_before_training() -> None:
    torch.manual_seed(0)
    network = compact().eval()
    with torch.no_grad():
        logits = network(noise(1, 1, 32, 32, 32))[:, 0]
    assert torch.sigmoid(logits).mean().item() == pytest.approx(PRIOR_PROBABILITY, rel=0.1)
    assert network.detect.bias is not None
    assert network.detect.bias[0].item() == pytest.approx(math.log(0.01 / 0.99))


def test_moving_the_window_by_16_voxels_moves_the_maps_and_its_size_changes_nothing() -> None:
    """Two windows on one image, 16 voxels apart and of unlike length, agree where neither's border is in sight."""
    network = as_if_trained(small(layers=1))
    image = noise(1, 1, 480, 16, 32)
    with torch.no_grad():
        whole, part = network(image)[:, :, 8:], network(image[:, :, 16:464])
    difference = (whole[:, :, : part.shape[2]] - part).abs().amax(dim=(0, 1, 3, 4))
    sight = 104  # cells: 114 voxels of convolutions, 5 · 16 of one layer's farthest point, 14 spare
    assert difference[sight:-sight].max() < TOLERANCE
    assert part.std() > 0.1
    assert difference[0] > 1e-2, "the border shows nowhere: the law would hold for a network that sees one cell"


def test_moving_the_window_by_8_voxels_is_another_function() -> None:
    """Why windows and paddings keep to multiples of 16."""
    network = as_if_trained(small(layers=1))
    image = noise(1, 1, 480, 16, 32)
    with torch.no_grad():
        one, other = network(image[:, :, 8:456])[:, :, 4:], network(image[:, :, 16:464])[:, :, :-4]
    assert (one - other)[:, :, 104:-104].abs().max() > 100 * TOLERANCE


def test_voxels_within_a_cell_are_told_apart() -> None:
    """The stem reads 2³ voxels as channels: swapping the two of each pair along i must change the maps."""
    network = as_if_trained(small())
    image = noise(1, 1, 16, 32, 48)
    swapped = image.reshape(1, 1, 8, 2, 32, 48).flip(3).reshape(image.shape)
    with torch.no_grad():
        assert (network(image) - network(swapped)).abs().max() > 1e-2


@pytest.mark.parametrize("layers", [0, 2])
def test_scripted_network_equals_the_eager_one(layers: int) -> None:
    network = as_if_trained(small(layers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 announces the end of scripting
        scripted = torch.jit.script(network)
    for number, shape in enumerate(SHAPES):
        image = noise(2, 1, *shape, seed=number)
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), rtol=0, atol=TOLERANCE)
    with pytest.raises(Exception, match=r"multiples of 16 voxels, got \(16, 16, 24\)"):
        scripted(torch.zeros(1, 1, 16, 16, 24))


def test_without_layers_the_maps_still_come_from_all_levels() -> None:
    network = as_if_trained(small(layers=0))
    image = noise(1, 1, 32, 48, 64)
    with torch.no_grad():
        maps = network(image)
        image[..., :16, :16, :16] += 1.0
        changed = (network(image) - maps).abs().amax(dim=(0, 1))
    assert maps.shape == (1, 13, 16, 24, 32)
    assert changed[14, 10, 10] > 0, "30 voxels away only the coarse levels see the change"


def test_channels_last_gives_the_same_maps(preset: nn.Module) -> None:
    image = noise(1, 1, 32, 16, 48)
    torch.manual_seed(0)
    ready = ready_network(as_if_trained(compact()), "cpu")
    with torch.no_grad():
        torch.testing.assert_close(ready(image), preset(image), rtol=0, atol=TOLERANCE)


def test_bfloat16_stays_close_to_float32(preset: nn.Module) -> None:
    """bfloat16 keeps 8 bits: values stray by 0.1 of the maps' spread at most and 0.009 on average, where measured."""
    torch.manual_seed(0)
    ready = ready_network(as_if_trained(compact()), "cpu")
    image = noise(1, 1, 32, 48, 16)
    with torch.no_grad():
        exact = preset(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = ready(image)
    assert rough.dtype == torch.bfloat16
    spread = exact.std(dim=(0, 2, 3, 4), keepdim=True)
    strayed = (rough.float() - exact).abs() / spread
    assert strayed.max() < 0.15
    assert strayed.mean() < 0.015
