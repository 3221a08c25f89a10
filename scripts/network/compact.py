"""The ``compact`` preset: LWNet's parts, arranged for the cost of a laptop CPU.

Source: LWNet (CNN + deformable Transformer over the coarse levels, anchor-free heads and masks on shared features).
Deviations, all for speed: no layer runs at full resolution (the stem folds 2³ voxels into channels; mask logits come
out as the 2³ sub-voxels of a cell); one or two residual blocks a stage and plain additions instead of squeeze-and-
excitation and multi-dilation fusion; no position code (see :class:`.deformable_attention.DeformableEncoder`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import FuseUp, conv_bn, residual_stage, space_to_depth
from .deformable_attention import DeformableEncoder

STRIDE = 2  # voxels per output cell, along each axis
COARSEST_STRIDE = 16  # input sizes are multiples of this: elsewhere the levels would not cover the same window
PRIOR_PROBABILITY = 0.01  # of a nodule in a cell before training: keeps the first steps' background loss small


def require_multiples(image: Tensor, multiple: int = COARSEST_STRIDE) -> None:
    """Refuse an image ``[B, C, I, J, K]`` whose sizes are no multiples; raises ValueError."""
    i, j, k = image.shape[2], image.shape[3], image.shape[4]
    if i % multiple != 0 or j % multiple != 0 or k % multiple != 0:
        raise ValueError(
            f"image: expected sizes that are multiples of {multiple} voxels, got ({i}, {j}, {k}); pad it, or choose "
            "such a window_size"
        )


class CompactNet(nn.Module):
    """``[B, 1, I, J, K] -> [B, 13, I/2, J/2, K/2]``: nodule logit, offset (3), log diameter, mask logits (8).

    The channels are declared in metadata.json (``channel_def``) and named in :mod:`..decoding`.

    Args:
        widths: channels at strides 2, 4, 8 and 16.
        blocks: residual blocks at each of those strides.
        dim: channels of the deformable encoder, which runs over strides 8 and 16.
        layers: encoder layers; 0 leaves the encoder out.
        heads, points, feed_forward, dropout: of the encoder.

    Raises:
        ValueError: on a call whose I, J or K is no multiple of :data:`COARSEST_STRIDE`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        *,
        dim: int,
        layers: int,
        heads: int,
        points: int,
        feed_forward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        w2, w4, w8, w16 = widths
        self.stem = conv_bn(STRIDE**3, w2)
        self.stage2 = residual_stage(w2, w2, blocks[0], stride=1)
        self.stage4 = residual_stage(w2, w4, blocks[1], stride=2)
        self.stage8 = residual_stage(w4, w8, blocks[2], stride=2)
        self.stage16 = residual_stage(w8, w16, blocks[3], stride=2)
        self.project8 = nn.Conv3d(w8, dim, 1)
        self.project16 = nn.Conv3d(w16, dim, 1)
        self.encoder = DeformableEncoder(
            dim, 2, layers, heads=heads, points=points, feed_forward=feed_forward, dropout=dropout
        )
        self.up8 = FuseUp(dim, dim, w8)
        self.up4 = FuseUp(w8, w4, w4)
        self.up2 = FuseUp(w4, w2, w2)
        self.detect = nn.Conv3d(w2, 5, 1)
        self.mask = nn.Conv3d(w2, STRIDE**3, 1)
        nn.init.constant_(self.detect.bias[:1], -math.log((1.0 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))  # type: ignore[index]

    def forward(self, image: Tensor) -> Tensor:
        require_multiples(image)
        x2 = self.stage2(F.relu(self.stem(space_to_depth(image, 2))))
        x4 = self.stage4(x2)
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        y8, y16 = self.encoder([self.project8(x8), self.project16(x16)])
        y2 = self.up2(self.up4(self.up8(y16, y8), x4), x2)
        return torch.cat([self.detect(y2), self.mask(y2)], dim=1)


def compact(
    widths: Sequence[int] = (32, 48, 64, 96), layers: int = 3, dim: int = 64, heads: int = 4, dropout: float = 0.0
) -> CompactNet:
    """The preset that the released weights belong to; see :class:`CompactNet` for the arguments."""
    return CompactNet(
        widths, (1, 2, 2, 1), dim=dim, layers=layers, heads=heads, points=4, feed_forward=4 * dim, dropout=dropout
    )
