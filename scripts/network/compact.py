"""The compact network: the parts of LWNet, arranged to run fast on a laptop's CPU.

Source: LWNet (CNN + deformable Transformer over the coarse levels, anchor-free heads and masks on shared features).
Deviations, all for speed: no layer runs at full resolution (the stem folds 2³ voxels into channels; the mask logits of
a cell's 2³ voxels are channels) and only four narrow ones run at half resolution; the output is the sum of the heads'
maps and what the next coarser level adds to them; one or two residual blocks per stage, and plain additions instead of
squeeze-and-excitation and multi-dilation fusion; no position code (see
:class:`.deformable_attention.DeformableEncoder`); no auxiliary maps in training. The network as published is
:mod:`.paper`; docs/network.md describes how this shape was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    DETECTION_CHANNELS,
    FuseUp,
    SubCellHead,
    SubCellUp,
    conv_bn,
    detection_head,
    require_multiples,
    residual_stage,
    space_to_depth,
)
from .deformable_attention import DeformableEncoder


class CompactNet(nn.Module):
    """``[B, 1, I, J, K] -> [B, 5 + M, I/2, J/2, K/2]``: nodule logit, offset (3), log diameter, mask logits (M).

    The channels are declared in metadata.json (``channel_def``) and named in :mod:`..decode.candidates`. The defaults
    are those of the released weights.

    Args:
        widths: channels at strides 2, 4, 8 and 16.
        blocks: number of residual blocks at strides 2, 4, 8 and 16.
        dim: channels of the deformable encoder, which runs on strides 8 and 16.
        layers: number of encoder layers; 0 leaves the encoder out.
        heads, points, feed_forward, dropout: of the encoder.
        mask_logits: M; 8 for one logit per voxel, or 1 for one per cell (see :func:`.blocks.mask_on_voxels`).

    Attributes:
        out_channels: 5 + M.
        stride: voxels per output cell, along each axis.
        any_tile_size: true, because the function does not depend on the tile: away from its borders the output is the
            same for tiles of any size.

    Raises:
        ValueError: M is neither 8 nor 1; or, on a call, I, J or K is not a multiple of
            :data:`.blocks.COARSEST_STRIDE`.

    Example:
        >>> network = CompactNet().eval()
        >>> network(torch.zeros(1, 1, 64, 64, 64)).shape
        torch.Size([1, 13, 32, 32, 32])
    """

    stride = 2
    any_tile_size = True

    def __init__(
        self,
        widths: Sequence[int] = (16, 48, 64, 80),
        blocks: Sequence[int] = (1, 1, 2, 1),
        *,
        layers: int = 3,
        dim: int = 64,
        heads: int = 4,
        points: int = 4,
        feed_forward: int = 256,
        dropout: float = 0.0,
        mask_logits: int = 8,
    ) -> None:
        super().__init__()
        voxels = self.stride**3
        if mask_logits not in (1, voxels):
            raise ValueError(f"mask_logits: expected 1 (per cell) or {voxels} (sub-voxels), got {mask_logits}")
        self.out_channels = DETECTION_CHANNELS + mask_logits
        w2, w4, w8, w16 = widths
        b2, b4, b8, b16 = blocks
        self.stem = conv_bn(voxels, w2)
        self.stage2 = residual_stage(w2, w2, b2, stride=1)
        self.stage4 = residual_stage(w2, w4, b4, stride=2)
        self.stage8 = residual_stage(w4, w8, b8, stride=2)
        self.stage16 = residual_stage(w8, w16, b16, stride=2)
        self.project8 = nn.Conv3d(w8, dim, 1)
        self.project16 = nn.Conv3d(w16, dim, 1)
        self.encoder = DeformableEncoder(
            dim, 2, layers, heads=heads, points=points, feed_forward=feed_forward, dropout=dropout
        )
        self.up8 = FuseUp(dim, dim, w8)
        self.up4 = FuseUp(w8, w4, w4)
        self.up2 = SubCellUp(w4, w2)
        self.detect = detection_head(w2)
        self.mask = nn.Conv3d(w2, mask_logits, 1)
        self.coarse = SubCellHead(w4, self.out_channels)

    def forward(self, image: Tensor) -> Tensor:
        require_multiples(image)
        x2 = self.stage2(F.relu(self.stem(space_to_depth(image, 2)), inplace=True))
        x4 = self.stage4(x2)
        x8 = self.stage8(x4)
        x16 = self.stage16(x8)
        y8, y16 = self.encoder([self.project8(x8), self.project16(x16)])
        y4 = self.up4(self.up8(y16, y8), x4)
        y2 = self.up2(y4, x2)
        return self.coarse(y4, torch.cat([self.detect(y2), self.mask(y2)], dim=1))
