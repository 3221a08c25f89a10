"""Laws of scripts/network/blocks.py, and small cases worked out by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scripts.network.blocks import (
    FuseUp,
    MultiDilation,
    ResidualBlock,
    SqueezeExcitation,
    SubCellHead,
    SubCellUp,
    depth_to_space,
    detection_head,
    mask_on_voxels,
    residual_stage,
    space_to_depth,
    upsample_to,
)

METADATA = Path(__file__).resolve().parents[2] / "configs" / "metadata.json"
sizes = st.tuples(*(st.integers(1, 4) for _ in range(3)))


@given(sizes, st.integers(1, 3), st.integers(1, 3))
def test_depth_to_space_undoes_space_to_depth(cells: tuple[int, int, int], stride: int, channels: int) -> None:
    i, j, k = (n * stride for n in cells)
    x = torch.arange(2.0 * channels * i * j * k).reshape(2, channels, i, j, k)
    folded = space_to_depth(x, stride)
    assert folded.shape == (2, channels * stride**3, *cells)
    assert torch.equal(depth_to_space(folded, stride), x)
    if stride > 1:
        assert torch.equal(mask_on_voxels(folded[:, : stride**3], stride), x[:, :1])


def test_space_to_depth_puts_the_last_axis_first_and_keeps_channels_apart() -> None:
    """Each voxel of a 2 × 4 × 6 grid says its own index, as 100·i + 10·j + k; the second channel adds 1000."""
    i, j, k = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(6), indexing="ij")
    one = 100 * i + 10 * j + k
    folded = space_to_depth(torch.stack([one, one + 1000])[None], 2)
    in_cell = torch.tensor([0, 1, 10, 11, 100, 101, 110, 111])
    cell = one[::2, ::2, ::2]  # its first voxel
    assert torch.equal(folded[0], torch.cat([in_cell, 1000 + in_cell])[:, None, None, None] + cell)


@pytest.mark.parametrize("channel", range(5, 13))
def test_mask_channels_lie_where_the_metadata_says(channel: int) -> None:
    definition = json.loads(METADATA.read_text())["network_data_format"]["outputs"]["pred"]["channel_def"]
    di, dj, dk = (int(n) for n in re.search(r"sub-voxel \((\d), (\d), (\d)\)", definition[str(channel)]).groups())
    pred = torch.zeros(1, 13, 2, 3, 4)
    pred[0, channel, 1, 2, 3] = 1.0
    assert torch.nonzero(depth_to_space(pred[:, 5:], 2)[0, 0]).tolist() == [[2 + di, 4 + dj, 6 + dk]]


def test_residual_block_adds_its_input_when_the_convolutions_say_nothing() -> None:
    block = ResidualBlock(3, 3).eval()
    nn.init.zeros_(block.second[0].weight)
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(("channels", "stride"), [((3, 3), 1), ((3, 4), 1), ((3, 3), 2), ((3, 4), 2)])
def test_shortcut_is_a_convolution_only_where_the_shape_changes(channels: tuple[int, int], stride: int) -> None:
    block, *rest = stage = residual_stage(*channels, blocks=2, stride=stride).eval()
    assert isinstance(block.shortcut, nn.Identity) == (channels == (3, 3) and stride == 1)
    assert [type(one.shortcut) for one in rest] == [nn.Identity]
    assert stage(torch.zeros(1, 3, 4, 6, 8)).shape == (1, channels[1], 4 // stride, 6 // stride, 8 // stride)


def test_upsampling_keeps_voxel_centres_in_place() -> None:
    """A coarse cell m covers fine voxels 2m and 2m + 1, so a ramp stays that ramp (but at the border)."""
    i, j, k = torch.meshgrid(*(2.0 * torch.arange(n) + 0.5 for n in (3, 4, 5)), indexing="ij")
    ramp = (i + 10 * j + 100 * k)[None, None]
    fine = upsample_to(ramp, torch.zeros(1, 7, 6, 8, 10))
    i, j, k = torch.meshgrid(*(torch.arange(float(n)) for n in (6, 8, 10)), indexing="ij")
    inner = (0, 0, slice(1, -1), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(fine[inner], (i + 10 * j + 100 * k)[inner[2:]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [FuseUp, SubCellUp], ids=["fused", "sub-cells"])
def test_a_decoder_step_reads_both_maps_and_answers_on_the_grid_of_the_skip(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)  # with few channels, chance can silence all of a cell
    up = kind(3, 6, 7) if kind is FuseUp else kind(3, 6)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 3, 2, 3, 4, generator=generator)
    skip = torch.randn(2, 6, 4, 6, 8, generator=generator)
    joined = up.eval()(coarse, skip)
    assert joined.shape[2:] == skip.shape[2:]
    assert not torch.allclose(joined, up(-coarse, skip), atol=1e-3)
    assert not torch.allclose(joined, up(coarse, -skip), atol=1e-3)
    coarse[0, :, 0, 0, 0] += 1.0  # seen by its own 2³ cells and, through the convolutions, by their neighbours
    changed = (up(coarse, skip) - joined).abs().amax(dim=1) > 0
    assert changed[0, :2, :2, :2].all()
    assert not changed[1].any()


def test_a_sub_cell_head_adds_nothing_before_training_and_then_to_each_channel_of_the_finer_cells() -> None:
    head = SubCellHead(3, 2)
    coarse, maps = torch.ones(1, 3, 2, 2, 2), torch.ones(1, 2, 4, 4, 4)
    torch.testing.assert_close(head(coarse, maps), maps, rtol=0, atol=0)
    with torch.no_grad():
        head.write.bias[:8] = torch.arange(8.0)  # type: ignore[index]
    added = head(coarse, maps) - maps
    assert added[0, 0, :2, :2, :2].flatten().tolist() == list(range(8))
    assert not added[0, 1].any()


# --- masks ------------------------------------------------------------------------------------------------------------


def test_one_logit_a_cell_is_upsampled_between_cell_centres() -> None:
    """Two cells with the logits 0 and 4, whose centres are two voxels apart: 0, 1, 3, 4."""
    cells = torch.tensor([0.0, 4.0]).reshape(1, 1, 1, 1, 2)
    assert torch.equal(mask_on_voxels(cells, 2), torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(1, 1, 2, 2, 4))


@pytest.mark.parametrize("channels", [0, 2, 7, 27])
def test_other_numbers_of_mask_logits_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 1 or 8 channels for a stride of 2, got {channels}"):
        mask_on_voxels(torch.zeros(1, channels, 2, 3, 4), 2)


# --- blocks of the published network ----------------------------------------------------------------------------------


def test_squeeze_and_excitation_by_hand() -> None:
    """Channel means 1 and -2; the hidden layer adds them up and negates them; each channel has its own scale."""
    block = SqueezeExcitation(2)
    with torch.no_grad():
        block.hidden.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
        block.hidden.bias.copy_(torch.tensor([0.5, 1.0]))
        block.scale.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        block.scale.bias.copy_(torch.tensor([-4.0, 0.0]))
    x = torch.tensor([[0.0, 2.0], [-1.0, -3.0]]).reshape(1, 2, 1, 2, 1)
    # hidden: relu(-1 + 0.5) = 0, relu(1 + 1) = 2; scales: sigmoid(0 + 4 - 4) = 1/2, sigmoid(-2)
    expected = x * torch.tensor([0.5, 1.0 / (1.0 + math.exp(2.0))]).reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(block(x), expected)


def test_dilations_are_mixed_by_shares_that_sum_to_one() -> None:
    """Each convolution copies the voxel that lies its dilation behind along k; the shares are 1/2, 1/3 and 1/6."""
    block = MultiDilation(1, 1, (1, 2, 5))
    with torch.no_grad():
        for convolution in block.reach:
            convolution.weight.zero_()
            convolution.bias.zero_()
            convolution.weight[0, 0, 1, 1, 2] = 1.0
        block.shares.copy_(torch.tensor([3.0, 2.0, 1.0]).log())
    x = torch.zeros(1, 1, 3, 2, 12)
    x[0, 0, 1, 1, 8] = 6.0
    expected = torch.zeros_like(x)
    expected[0, 0, 1, 1, [7, 6, 3]] = torch.tensor([3.0, 2.0, 1.0])
    torch.testing.assert_close(block(x), expected)


def test_fresh_heads_are_even_handed() -> None:
    head = detection_head(7)
    assert torch.sigmoid(head.bias[0]).item() == pytest.approx(0.01)
    assert head.bias[1:].abs().max() < 0.5
    assert MultiDilation(2, 3, (1, 2, 5)).shares.softmax(0).tolist() == pytest.approx([1 / 3] * 3)
