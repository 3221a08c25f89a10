"""Multi-scale deformable attention in 3-D, in plain PyTorch.

Source: Zhu et al., Deformable DETR (2021), eq. 3, with three axes, as LWNet uses it. Each head of a query samples a
few points on every level; their positions (relative to the query) and their weights are predicted from the query.

Deviations:
- Points are given in voxels of their level, (i, j, k). Only :func:`sample_trilinear` deals with ``grid_sample``, which
  expects (k, j, i) in [-1, 1]. LWNet's published code passes the axes transposed, which goes unnoticed in cubes.
- Offsets are in voxels of the level that is sampled, so that an offset means the same in tiles of any size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sample_trilinear(values: Tensor, points_voxel: Tensor) -> Tensor:
    """Sample a map trilinearly at fractional voxel positions; outside the grid it is zero.

    Args:
        values: ``[B, C, I, J, K]``.
        points_voxel: ``[B, Q, P, 3]``, (i, j, k); the centre of the first voxel is (0, 0, 0).

    Returns:
        ``[B, C, Q, P]``.
    """
    i, j, k = values.shape[2], values.shape[3], values.shape[4]
    size = torch.tensor([i, j, k], dtype=points_voxel.dtype, device=points_voxel.device)
    unit = (2.0 * points_voxel + 1.0) / size - 1.0
    grid = unit.flip(-1).unsqueeze(3)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False).squeeze(4)


def cell_centres(features: Tensor) -> Tensor:
    """Return the centres of a map's cells as fractions of the tile, ``[I·J·K, 3]`` in (0, 1), last axis fastest."""
    axes = [
        (torch.arange(n, device=features.device, dtype=torch.float32) + 0.5) / n
        for n in (features.shape[2], features.shape[3], features.shape[4])
    ]
    i, j, k = torch.meshgrid(axes[0], axes[1], axes[2], indexing="ij")
    return torch.stack([i, j, k], dim=-1).reshape(-1, 3)


def sine_code(centres: Tensor, dim: int) -> Tensor:
    """Encode positions as sines and cosines of decreasing frequency (DETR's; the tile is one period of the fastest).

    Args:
        centres: ``[Q, 3]``, fractions of the tile; see :func:`cell_centres`.
        dim: channels, at least 6: ``dim // 6`` frequencies with sine and cosine for each of i, j and k; the rest is
            zero.

    Returns:
        ``[Q, dim]``, in the type of ``centres``.
    """
    rates = dim // 6
    falling = 10000.0 ** (-torch.arange(rates, dtype=centres.dtype, device=centres.device) / rates)
    angles = 2.0 * torch.pi * centres[:, :, None] * falling
    code = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(code, (0, dim - 6 * rates))


def split_maps(tokens: Tensor, shapes: list[list[int]]) -> list[Tensor]:
    """Split joined tokens ``[B, ΣI·J·K, C]`` into one map ``[B, C, I, J, K]`` per level; ``shapes`` lists I, J, K."""
    maps: list[Tensor] = []
    start = 0
    for shape in shapes:
        count = shape[0] * shape[1] * shape[2]
        part = tokens[:, start : start + count].transpose(1, 2)
        maps.append(part.reshape(tokens.shape[0], tokens.shape[2], shape[0], shape[1], shape[2]))
        start += count
    return maps


class DeformableAttention(nn.Module):
    """Attention of queries to ``points`` sampled positions per head on each of several levels.

    Args:
        dim: channels of queries and levels.
        levels: number of feature maps.
        heads: parallel heads; must divide ``dim``.
        points: sampled positions per head and level.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim: expected a multiple of heads, got dim={dim}, heads={heads}")
        self.levels, self.heads, self.points = levels, heads, points
        self.offsets = nn.Linear(dim, heads * levels * points * 3)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self._start_as_rays()

    def _start_as_rays(self) -> None:
        """Set weights to zero and spread each head's points along a ray of its own, as Deformable DETR does."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        index = torch.arange(self.heads, dtype=torch.float32) + 0.5
        polar = torch.acos(1.0 - 2.0 * index / self.heads)  # Fibonacci sphere: evenly spread directions
        turn = torch.pi * (1.0 + 5.0**0.5) * index
        rays = torch.stack([polar.sin() * turn.cos(), polar.sin() * turn.sin(), polar.cos()], dim=-1)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = rays[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(self.heads, self.levels, self.points, 3).reshape(-1))

    def forward(self, queries: Tensor, centres: Tensor, maps: list[Tensor]) -> Tensor:
        """Gather from the sampled points what each query attends to.

        Args:
            queries: ``[B, Q, dim]``.
            centres: ``[Q, 3]``, position of each query as fractions of the tile (:func:`cell_centres`); their number
                type is also that of the sampling.
            maps: one ``[B, dim, I_l, J_l, K_l]`` per level, all covering the same tile.

        Returns:
            ``[B, Q, dim]``.
        """
        batch, count, dim = queries.shape
        precise = centres.dtype  # positions need float32 even where the network runs in bfloat16
        width = dim // self.heads
        offsets, weights = self.choose(queries, precise)
        total = torch.zeros(batch * self.heads, width, count, dtype=precise, device=queries.device)
        for level, features in enumerate(maps):
            i, j, k = features.shape[2], features.shape[3], features.shape[4]
            home = centres * torch.tensor([i, j, k], dtype=precise, device=queries.device) - 0.5
            points = home[:, None, None, :] + offsets[:, :, :, level]
            points = points.permute(0, 2, 1, 3, 4).reshape(batch * self.heads, count, self.points, 3)
            value = self.value(features.flatten(2).transpose(1, 2)).to(precise).transpose(1, 2)
            value = value.reshape(batch * self.heads, width, i, j, k)
            share = weights[:, :, :, level].permute(0, 2, 1, 3).reshape(batch * self.heads, 1, count, self.points)
            total = total + (sample_trilinear(value, points) * share).sum(-1)
        gathered = total.reshape(batch, dim, count).transpose(1, 2)
        return self.output(gathered.to(queries.dtype))

    def choose(self, queries: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Predict from queries ``[B, Q, dim]`` which points they sample, and the weight of each point.

        Returns:
            Offsets ``[B, Q, heads, levels, points, 3]`` from the query, in voxels of the sampled level; and weights
            ``[B, Q, heads, levels, points]``, which sum to 1 over the levels and points of a head. Both in ``dtype``.
        """
        batch, count = queries.shape[:2]
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.offsets(queries).to(dtype).reshape(*shape, 3)
        weights = self.weights(queries).to(dtype).reshape(batch, count, self.heads, -1).softmax(-1)
        return offsets, weights.reshape(shape)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward part, with post-norm as in Deformable DETR."""

    def __init__(self, dim: int, levels: int, heads: int, points: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, levels, heads, points)
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, feed_forward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feed_forward, dim)
        )
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor, centres: Tensor, shapes: list[list[int]]) -> Tensor:
        """Apply the layer to ``tokens [B, Q, dim]``; ``positions [Q, dim]`` are added to the queries only."""
        maps = split_maps(tokens, shapes)
        tokens = self.norm_attention(tokens + self.dropout(self.attention(tokens + positions, centres, maps)))
        return self.norm_feed_forward(tokens + self.dropout(self.feed_forward(tokens)))


class DeformableEncoder(nn.Module):
    """A stack of encoder layers over several feature maps of one tile, which returns maps of the same shapes.

    A learned embedding distinguishes the levels. By default there is no position code: a tile is an arbitrary part of
    the chest, so that the position of a voxel in it means nothing, and without the code the function does not depend on
    the size of the tile.

    Args:
        dim: channels of every map.
        levels: number of maps.
        layers: number of layers.
        heads, points: see :class:`DeformableAttention`.
        feed_forward: hidden width of the feed-forward part.
        dropout: rate in training.
        position_code: add :func:`sine_code` to the level embedding, as LWNet does.

    Raises:
        ValueError: a position code is wanted, but ``dim`` is below 6.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        layers: int,
        *,
        heads: int,
        points: int,
        feed_forward: int,
        dropout: float,
        position_code: bool = False,
    ) -> None:
        super().__init__()
        if position_code and dim < 6:
            raise ValueError(f"dim: expected at least 6 channels for a position code, got {dim}")
        self.dim, self.position_code = dim, position_code
        self.level_embedding = nn.Parameter(torch.zeros(levels, dim))
        nn.init.normal_(self.level_embedding, std=0.02)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(dim, levels, heads, points, feed_forward, dropout) for _ in range(layers)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map one ``[B, dim, I_l, J_l, K_l]`` per level to the same shapes."""
        shapes: list[list[int]] = []
        tokens: list[Tensor] = []
        centres: list[Tensor] = []
        positions: list[Tensor] = []
        for level, features in enumerate(maps):
            shapes.append([features.shape[2], features.shape[3], features.shape[4]])
            tokens.append(features.flatten(2).transpose(1, 2))
            centres.append(cell_centres(features))
            positions.append(self.level_embedding[level].expand(tokens[level].shape[1], -1))
        joined = torch.cat(tokens, dim=1)
        place, where = torch.cat(positions), torch.cat(centres)
        if self.position_code:
            place = place + sine_code(where, self.dim)
        for layer in self.layers:
            joined = layer(joined, place, where, shapes)
        return split_maps(joined, shapes)
