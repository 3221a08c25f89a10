"""Convolutional blocks shared by the presets. All take and return ``[B, C, I, J, K]``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its batch norm; the size is kept at stride 1 and halved at stride 2."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm3d(out_channels),
    )


class ResidualBlock(nn.Module):
    """Two 3³ convolutions and a shortcut, which is a 1³ convolution where stride or width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, stride=stride)
        self.second = conv_bn(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """``blocks`` residual blocks; the first changes stride and width."""
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def space_to_depth(x: Tensor, stride: int) -> Tensor:
    """Move each ``stride³`` cell into channels: ``[B, C, I, J, K] -> [B, C·s³, I/s, J/s, K/s]``.

    Channel ``c·s³ + (a·s + b)·s + d`` holds voxel ``(a, b, d)`` of the cell. Sizes must be multiples of ``stride``.
    """
    batch, channels, i, j, k = x.shape
    s = stride
    x = x.reshape(batch, channels, i // s, s, j // s, s, k // s, s)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * s * s * s, i // s, j // s, k // s)


def depth_to_space(x: Tensor, stride: int) -> Tensor:
    """The inverse of :func:`space_to_depth`: ``[B, C·s³, I, J, K] -> [B, C, I·s, J·s, K·s]``."""
    batch, channels, i, j, k = x.shape
    s = stride
    x = x.reshape(batch, channels // (s * s * s), s, s, s, i, j, k)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, channels // (s * s * s), i * s, j * s, k * s)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Trilinear interpolation of ``x`` to the grid of ``reference``."""
    return F.interpolate(x, size=reference.shape[2:], mode="trilinear", align_corners=False)


class FuseUp(nn.Module):
    """Decoder step: project the coarse map, upsample, add the projected skip, refine by one residual block."""

    def __init__(self, coarse_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.coarse = conv_bn(coarse_channels, out_channels, kernel=1)
        self.skip = conv_bn(skip_channels, out_channels, kernel=1)
        self.refine = ResidualBlock(out_channels, out_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return self.refine(F.relu(upsample_to(self.coarse(coarse), skip) + self.skip(skip)))
