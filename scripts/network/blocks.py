"""Convolutional blocks shared by the networks. All take and return ``[B, C, I, J, K]``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COARSEST_STRIDE = 16  # input sizes are multiples of this: otherwise the levels would not cover the same tile
DETECTION_CHANNELS = 5  # nodule logit, offset (3), log diameter
PRIOR_PROBABILITY = 0.01  # of a nodule in a cell before training: keeps the background loss of the first steps small


def require_multiples(image: Tensor, multiple: int = COARSEST_STRIDE) -> None:
    """Raise ValueError unless all sizes I, J, K of an image ``[B, C, I, J, K]`` are multiples of ``multiple``."""
    i, j, k = image.shape[2], image.shape[3], image.shape[4]
    if i % multiple != 0 or j % multiple != 0 or k % multiple != 0:
        raise ValueError(
            f"image: expected sizes that are multiples of {multiple} voxels, got ({i}, {j}, {k}); pad it, or choose "
            "a matching tile_size"
        )


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Build a convolution without bias and its batch norm; stride 1 keeps the size, stride 2 halves it."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm3d(out_channels),
    )


class ResidualBlock(nn.Module):
    """Two 3³ convolutions and a shortcut, which is a 1³ convolution if the stride or the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, stride=stride)
        self.second = conv_bn(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x), inplace=True))
        return F.relu(y + self.shortcut(x), inplace=True)


def residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Build a sequence of ``blocks`` residual blocks; the first one changes stride and width."""
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """Move the ``stride³`` voxels of each cell into channels: ``[B, C, I, J, K] -> [B, C·s³, I/s, J/s, K/s]``.

    Channel ``c·s³ + (a·s + b)·s + d`` holds voxel ``(a, b, d)`` of the cell. Sizes must be multiples of ``stride``.
    """
    batch, channels, i, j, k = x.shape
    s = stride
    x = x.reshape(batch, channels, i // s, s, j // s, s, k // s, s)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * s * s * s, i // s, j // s, k // s)


def depth_to_space(x: Tensor, stride: int) -> Tensor:
    """Invert :func:`space_to_depth`: ``[B, C·s³, I, J, K] -> [B, C, I·s, J·s, K·s]``."""
    batch, channels, i, j, k = x.shape
    s = stride
    x = x.reshape(batch, channels // (s * s * s), s, s, s, i, j, k)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // (s * s * s), i * s, j * s, k * s)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Interpolate ``x`` trilinearly to the grid of ``reference``."""
    return F.interpolate(x, size=reference.shape[2:], mode="trilinear", align_corners=False)


def mask_on_voxels(mask_logits: Tensor, stride: int) -> Tensor:
    """Convert the mask channels of output cells to voxels: ``[B, M, I, J, K] -> [B, 1, I·s, J·s, K·s]``.

    Args:
        mask_logits: M = stride³ logits, one for each voxel of a cell (moved from depth to space), or M = 1 logit for
            the whole cell (upsampled trilinearly, which equals upsampling the features: a 1³ convolution commutes with
            upsampling).
        stride: voxels per cell, along each axis.

    Raises:
        ValueError: M is neither stride³ nor 1.

    Example:
        >>> mask_on_voxels(torch.zeros(1, 8, 20, 20, 20), stride=2).shape
        torch.Size([1, 1, 40, 40, 40])
    """
    count = mask_logits.shape[1]
    if count == stride * stride * stride:
        return depth_to_space(mask_logits, stride)
    if count == 1:
        return F.interpolate(mask_logits, scale_factor=float(stride), mode="trilinear", align_corners=False)
    raise ValueError(
        f"mask logits: expected 1 or {stride * stride * stride} channels for a stride of {stride}, got {count}; "
        "give the stride of the network that made them"
    )


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor computed from the whole tile (Hu et al. 2018), without a narrower hidden layer.

    The function depends on the tile: the same voxel is scaled differently in a larger tile.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, channels)
        self.scale = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.scale(F.relu(self.hidden(x.mean(dim=(2, 3, 4))))))
        return x * scale[:, :, None, None, None]


class MultiDilation(nn.Module):
    """Parallel 3³ convolutions with different dilations, mixed with learned shares that sum to one."""

    def __init__(self, in_channels: int, out_channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.reach = nn.ModuleList(
            nn.Conv3d(in_channels, out_channels, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.shares = nn.Parameter(torch.zeros(len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares.softmax(0)
        mixed: list[Tensor] = []
        for number, convolution in enumerate(self.reach):
            mixed.append(shares[number] * convolution(x))
        return torch.stack(mixed).sum(0)


class FuseUp(nn.Module):
    """Decoder step: project the coarse map, upsample it, add the projected skip map, refine with a residual block."""

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = conv_bn(coarse_channels, out_channels, kernel=1)
        self.skip = conv_bn(skip_channels, out_channels, kernel=1)
        self.refine = ResidualBlock(out_channels, out_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return self.refine(F.relu(upsample_to(self.coarse(coarse), skip) + self.skip(skip), inplace=True))


class SubCellUp(nn.Module):
    """Cheap decoder step to the finest level: each coarse cell writes its 2³ finer ones, which a 3³ convolution joins.

    Half as many channels as the skip map has are written and concatenated with the skip map's own; the output has as
    many channels as the skip map.
    """

    def __init__(self, coarse_channels: int, skip_channels: int) -> None:
        super().__init__()
        written = skip_channels // 2
        self.write = nn.Conv3d(coarse_channels, 8 * written, 1)
        self.refine = conv_bn(written + skip_channels, skip_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([F.relu(depth_to_space(self.write(coarse), 2)), skip], dim=1)
        return F.relu(self.refine(joined), inplace=True)


class SubCellHead(nn.Module):
    """Adds a coarse level's contribution to the next finer level's maps: each coarse cell writes its 2³ finer cells.

    This is one 1³ convolution, initialised with zeros. Rows ``8·n … 8·n + 7`` of its weights write channel n.
    """

    def __init__(self, coarse_channels: int, out_channels: int) -> None:
        super().__init__()
        self.write = nn.Conv3d(coarse_channels, 8 * out_channels, 1)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)  # type: ignore[arg-type]

    def forward(self, coarse: Tensor, maps: Tensor) -> Tensor:
        """Add ``coarse`` ``[B, C, I, J, K]`` to ``maps`` ``[B, out_channels, 2·I, 2·J, 2·K]``; shape of the latter."""
        return maps + depth_to_space(self.write(coarse), 2)


def detection_head(channels: int) -> nn.Conv3d:
    """Build a 1³ convolution to nodule logit, offset (3) and log diameter; it starts at :data:`PRIOR_PROBABILITY`."""
    head = nn.Conv3d(channels, DETECTION_CHANNELS, 1)
    nn.init.constant_(head.bias[:1], -math.log((1.0 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))  # type: ignore[index]
    return head
