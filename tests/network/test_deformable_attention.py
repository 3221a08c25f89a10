"""Deformable attention against loops in float64, written from the definition; all grids are non-cubic."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from scripts.network.deformable_attention import (
    DeformableAttention,
    DeformableEncoder,
    cell_centres,
    sample_trilinear,
    sine_code,
)

Array = npt.NDArray[np.float64]
SHAPES = ((3, 5, 4), (2, 3, 1))  # of the levels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def trilinear(values: Array, point: Array) -> Array:
    """Read ``values [C, I, J, K]`` at one fractional voxel: the eight voxels around it, zero where there is none."""
    total = np.zeros(len(values))
    base = np.floor(point).astype(int)
    for corner in itertools.product((0, 1), repeat=3):
        voxel = base + corner
        if all(0 <= v < n for v, n in zip(voxel, values.shape[1:], strict=True)):
            share = np.prod(1.0 - np.abs(point - voxel))
            total += share * values[:, voxel[0], voxel[1], voxel[2]]
    return total


def attend(module: DeformableAttention, query: Array, centre: Array, levels: list[Array]) -> Array:
    """Deformable DETR, eq. 3, for one query: Σ_m W_m Σ_l Σ_p A_mlp · (W'_m x_l)(φ_l(centre) + Δ_mlp)."""
    weight = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    width = len(query) // module.heads
    offsets = weight["offsets.weight"] @ query + weight["offsets.bias"]
    scores = weight["weights.weight"] @ query + weight["weights.bias"]
    per_head = module.levels * module.points
    answer = weight["output.bias"].copy()
    for head in range(module.heads):
        rows = slice(head * width, (head + 1) * width)
        powers = np.exp(scores[head * per_head : (head + 1) * per_head])
        gathered = np.zeros(width)
        for level, features in enumerate(levels):
            value = np.einsum("oc,cijk->oijk", weight["value.weight"][rows], features)
            value += weight["value.bias"][rows][:, None, None, None]
            for point in range(module.points):
                number = level * module.points + point
                start = 3 * (head * per_head + number)
                place = centre * np.array(features.shape[1:]) - 0.5 + offsets[start : start + 3]
                gathered += powers[number] / powers.sum() * trilinear(value, place)
        answer += weight["output.weight"][:, rows] @ gathered
    return answer


def attention(dim: int = 6, heads: int = 2, points: int = 3, levels: int = 2) -> DeformableAttention:
    """With weights that are all random, in float64."""
    module = DeformableAttention(dim, levels, heads, points).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.7 * random(*parameter.shape, seed=100 + seed))
    return module


@pytest.mark.parametrize("shape", [(2, 3, 5), (5, 2, 3), (4, 1, 2), (1, 1, 1)])
def test_sampling_agrees_with_a_loop(shape: tuple[int, int, int]) -> None:
    """Between voxels, at their centres, half a voxel beyond the border and farther away."""
    values = random(2, 3, *shape)
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(2, 4, 25, 3, dtype=torch.float64, generator=generator) * (torch.tensor(shape) + 3.0) - 2.0
    points[:, 0], points[:, 1] = points[:, 0].round(), points[:, 1].floor() + 0.5
    sampled = sample_trilinear(values, points)
    assert sampled.shape == (2, 3, 4, 25)
    for b, q, p in itertools.product(range(2), range(4), range(25)):
        expected = trilinear(values[b].numpy(), points[b, q, p].numpy())
        np.testing.assert_allclose(sampled[b, :, q, p], expected, rtol=0, atol=1e-12)


def test_gradients_of_sampling_are_right_for_values_and_positions() -> None:
    """Positions keep away from voxel centres, where a trilinear function has no derivative."""
    values = random(2, 2, 2, 3, 4).requires_grad_()
    whole = torch.tensor([[0, 1, 2], [-1, 0, 3], [1, 2, -1], [0, 0, 0], [1, -2, 1]])
    part = 0.1 + 0.8 * torch.rand(2, 2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(sample_trilinear, (values, (whole + part).requires_grad_()))


def test_cell_centres_are_fractions_in_the_order_of_flattened_maps() -> None:
    expected = [[0.5, j, k] for j in (0.25, 0.75) for k in (0.125, 0.375, 0.625, 0.875)]
    assert cell_centres(torch.zeros(1, 8, 1, 2, 4)).tolist() == expected


@pytest.mark.parametrize(("dim", "heads", "points"), [(6, 2, 3), (6, 3, 1), (4, 1, 2)])
def test_attention_agrees_with_a_loop_over_queries_heads_levels_and_points(dim: int, heads: int, points: int) -> None:
    module = attention(dim, heads, points)
    maps = [random(2, dim, *shape, seed=level) for level, shape in enumerate(SHAPES)]
    centres = torch.cat([cell_centres(features) for features in maps]).double()
    queries = random(2, len(centres), dim, seed=9)
    answer = module(queries, centres, maps)
    assert answer.shape == queries.shape
    for b in range(2):
        levels = [features[b].numpy() for features in maps]
        for q in range(len(centres)):
            expected = attend(module, queries[b, q].numpy(), centres[q].numpy(), levels)
            np.testing.assert_allclose(answer[b, q].detach(), expected, rtol=0, atol=1e-11)


def test_fresh_attention_looks_along_one_ray_per_head() -> None:
    """Before training the points of a head lie 1, 2, 3, … voxels away in one direction, whatever the query."""
    module = DeformableAttention(8, 2, heads=4, points=3)
    offsets = module.offsets(torch.randn(5, 8, generator=torch.Generator().manual_seed(0))).reshape(5, 4, 2, 3, 3)
    torch.testing.assert_close(offsets, offsets[:1, :, :1].expand_as(offsets))
    torch.testing.assert_close(offsets[0, :, 0].norm(dim=-1), torch.tensor([1.0, 2.0, 3.0]).expand(4, 3))
    rays = offsets[0, :, 0, 0]
    torch.testing.assert_close(offsets[0, :, 0, 2], 3.0 * rays)
    assert (rays @ rays.T - torch.eye(4)).max() < 0.5, "two heads look the same way"


def test_fresh_attention_weighs_all_points_equally() -> None:
    """On a constant map, deep inside, the answer is the projection of the constant."""
    module = DeformableAttention(4, 1, heads=2, points=2)
    constant = torch.tensor([1.0, -2.0, 0.5, 3.0])
    maps = [constant[None, :, None, None, None].expand(1, 4, 9, 11, 13)]
    answer = module(torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0)), torch.full((1, 3), 0.5), maps)
    torch.testing.assert_close(answer[0, 0], module.output(module.value(constant)))


def test_positions_stay_precise_in_bfloat16() -> None:
    """A query of bfloat16 is answered in bfloat16, and close to what float32 answers on the same (rounded) numbers."""
    module = DeformableAttention(8, 2, heads=2, points=2).bfloat16()
    maps = [random(1, 8, *shape).bfloat16() for shape in SHAPES]
    centres = torch.cat([cell_centres(features) for features in maps])
    queries = random(1, len(centres), 8).bfloat16()
    answer = module(queries, centres, maps)
    assert answer.dtype == torch.bfloat16
    exact = module.float()(queries.float(), centres, [features.float() for features in maps])
    torch.testing.assert_close(answer.float(), exact, rtol=0.02, atol=0.02)


def test_encoder_keeps_shapes_and_without_layers_the_maps_and_tells_its_levels_apart() -> None:
    maps, module = [random(2, 8, *shape).float() for shape in SHAPES], encoder()
    torch.testing.assert_close(encoder(layers=0)(maps), maps, rtol=0, atol=0)
    before = module(maps)
    assert [features.shape for features in before] == [features.shape for features in maps]
    with torch.no_grad():
        module.level_embedding[1] += 1.0
    after = module(maps)
    torch.testing.assert_close(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-3)


# --- the position code ------------------------------------------------------------------------------------------------


def test_position_code_by_hand() -> None:
    """14 channels: two rates (1 and 1/100 turn a tile), sines and cosines of i, then j, then k; the rest is zero."""
    fractions = (0.25, 0.5, 0.75)
    code = sine_code(torch.tensor([fractions], dtype=torch.float64), 14)
    turns = [2.0 * np.pi * np.array([fraction, fraction / 100.0]) for fraction in fractions]
    expected = [*(value for turn in turns for value in (*np.sin(turn), *np.cos(turn))), 0.0, 0.0]
    np.testing.assert_allclose(code[0], expected, rtol=0, atol=1e-15)


def encoder(layers: int = 1, *, position_code: bool = False) -> DeformableEncoder:
    """With random attention (fresh one ignores the query)."""
    torch.manual_seed(0)
    sizes = {"heads": 2, "points": 2, "feed_forward": 16}
    module = DeformableEncoder(8, 2, layers, **sizes, dropout=0.0, position_code=position_code).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("attention.offsets.weight"):
                parameter.normal_(std=0.1)
    return module


@pytest.mark.parametrize("position_code", [False, True])
def test_only_the_position_code_sees_where_in_the_tile_a_cell_lies(position_code: bool) -> None:
    """On maps that change along i alone, far from the border, without the code all cells along k are alike."""
    module = encoder(position_code=position_code)
    maps = [random(1, 8, n, 1, 1).float().expand(1, 8, n, n, n) for n in (31, 21)]
    inner = module(maps)[1][0, :, 10, 10, 8:13]
    spread = (inner - inner[:, :1]).abs().max().item()
    assert spread > 1e-2 if position_code else spread < 1e-5
    assert module.state_dict().keys() == encoder().state_dict().keys()  # it has no weights


def test_widths_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=10, heads=4"):
        DeformableAttention(10, 2, heads=4, points=1)
    with pytest.raises(ValueError, match="at least 6 channels for a position code, got 4"):
        DeformableEncoder(4, 1, 1, heads=2, points=1, feed_forward=4, dropout=0.0, position_code=True)
