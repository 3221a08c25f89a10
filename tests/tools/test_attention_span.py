"""How far attention looks: known offsets give known distances, and points outside the tile are told apart."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.core.errors import UserError
from scripts.network import CompactNet
from scripts.network.checkpoint import save_weights
from scripts.network.deformable_attention import DeformableAttention
from tools.network.__main__ import main
from tools.network.attention_span import spans_of, tiles_of

TILES = [torch.randn(1, 1, 64, 48, 32, generator=torch.Generator().manual_seed(0))]


def _attentions(network: CompactNet) -> list[DeformableAttention]:
    return [module for module in network.modules() if isinstance(module, DeformableAttention)]


def _looking_along(offset_cells: tuple[float, float, float]) -> CompactNet:
    """A network with all points of every layer at one offset, of both levels alike."""
    network = CompactNet()
    for layer in _attentions(network):
        nn.init.zeros_(layer.offsets.weight)
        layer.offsets.bias.data.copy_(torch.tensor(offset_cells).repeat(layer.offsets.bias.numel() // 3))
    return network


def test_one_cell_along_an_axis_is_its_stride_and_leaves_the_tile_from_the_last_cells() -> None:
    # 8·6·4 and 4·3·2 queries, each looking at both levels; one cell of each level leads out of the 6 and of the 3.
    fine = [(i + 0.5) / 6 for i in range(6)] * (8 * 4) + [(i + 0.5) / 3 for i in range(3)] * (4 * 2)
    stays = [sum(one + step < 1 for one in fine) / len(fine) for step in (1 / 6, 1 / 3)]
    inside_mm = (8.0 * stays[0] + 16.0 * stays[1]) / sum(stays)
    for found in spans_of(_looking_along((0.0, 1.0, 0.0)), TILES):
        seen = (found.inside, found.inside_mm, found.all_mm)
        assert seen == pytest.approx((sum(stays) / 2, inside_mm, (8.0 + 16.0) / 2))


@pytest.mark.parametrize(
    ("cells", "inside", "inside_mm", "all_mm"), [(0.0, 1.0, 0.0, 0.0), (-9.0, 0.0, math.nan, 108.0)]
)
def test_points_on_the_query_are_inside_and_far_ones_outside(
    cells: float, inside: float, inside_mm: float, all_mm: float
) -> None:
    for found in spans_of(_looking_along((0.0, 0.0, cells)), TILES):
        seen = (*found.weight, found.inside, found.inside_mm, found.all_mm)
        assert seen == pytest.approx((0.5, 0.5, inside, inside_mm, all_mm), nan_ok=True)


def test_weights_count() -> None:
    network = CompactNet()
    for layer in _attentions(network):
        layer.weights.bias.data.view(layer.heads, 2, layer.points)[:, 0] += math.log(3.0)
    assert spans_of(network, TILES)[0].weight == pytest.approx((0.75, 0.25))


def test_looking_leaves_the_network_as_it_was() -> None:
    network = CompactNet().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    spans_of(network, TILES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in _attentions(network))


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(UserError, match="expected layers of deformable attention, found none"):
        spans_of(CompactNet(layers=0), TILES)


@pytest.fixture(scope="module")
def image(small_data: Path) -> str:
    item = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["validation"][0]
    return str(small_data / item["image"])


def test_the_command_prints_each_layer(image: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(CompactNet(), tmp_path / "model.pt")
    with caplog.at_level("INFO"):
        assert main(["attention_span", "--image", image, "--checkpoint", str(tmp_path / "model.pt")]) == 0
    assert len(re.findall(r"^\| \d +\| +0\.50 / 0\.50 \| +0\.\d\d \| +\d+ mm \| +\d+ mm \|$", caplog.text, re.M)) == 3


def test_tiles_cover_the_scan_evenly_and_are_scaled(image: str) -> None:
    tiles = list(tiles_of(image, 48))
    assert 2 <= len(tiles) <= 8
    assert {tuple(tile.shape) for tile in tiles} == {(1, 1, 48, 48, 48)}
    assert all(-1.0 <= float(tile.min()) < float(tile.max()) <= 1.0 for tile in tiles)
