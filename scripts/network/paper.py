"""The paper's network: LWNet as published, built from the same blocks as :mod:`.compact`.

Source: "Small but Strong: Lightweight Architecture Improves Lung Nodule Detection and Segmentation" (LWNet), built
from its description and figures: residual stages with squeeze-and-excitation, fusion of the levels with dilated
convolutions, a deformable Transformer, a decoder, and anchor-free detection and masks from the decoder's last map. With
the two published encoder levels it has the published 4 955 794 parameters.

Deviations:
- Output stride 2. LWNet upsamples its last features to full resolution and applies 1³ convolutions to them. A 1³
  convolution commutes with trilinear upsampling, so predicting maps at stride 2 and upsampling them gives the same
  result with an eighth of the memory. Detections are the local maxima of the maps at stride 2.
- Attention samples (i, j, k) offsets in voxels of the sampled level, with one order of axes throughout
  (:mod:`.deformable_attention`). The published code transposes the axes, which goes unnoticed in its cubic patches.
- The position code is the published sine code over normalised positions. The division of 128 channels among three axes
  is ours: 42 each, and the last two are zero. Like squeeze-and-excitation, the code makes the function depend on the
  tile: run the network on tiles as large as those it was trained on.
- The figure shows the encoder on four levels, but the parameter count fits two; ``levels`` chooses. For the narrower
  levels at strides 2 and 4, one 1³ convolution projects to the encoder's width and another one back. The projection
  back is ours, because the decoder adds maps of those widths.
- The nodule logit starts at a small prior probability, which keeps the background loss of the first steps small.
- Dropout on both branches of an encoder layer and inside its feed-forward part, post-norm, and attention that initially
  samples along one ray per head, as in Deformable DETR.
- Where the description is silent: no activation after the fusion; ReLU and sigmoid in squeeze-and-excitation.
- One output: the auxiliary maps follow the main ones as additional channels, in training only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import (
    DETECTION_CHANNELS,
    MultiDilation,
    ResidualBlock,
    SqueezeExcitation,
    conv_bn,
    detection_head,
    require_multiples,
    residual_stage,
    upsample_to,
)
from .deformable_attention import DeformableEncoder

STRIDES = (2, 4, 8, 16)  # voxels per cell of each level, along each axis


class LevelFusion(nn.Module):
    """Bring all levels to one width, add the coarser ones top-down, then apply several dilations to each."""

    def __init__(self, in_widths: Sequence[int], lateral: int, out_widths: Sequence[int], dilations: Sequence[int]):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv3d(width, lateral, 1) for width in in_widths)
        self.mix = nn.ModuleList(MultiDilation(lateral, width, dilations) for width in out_widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map one ``[B, in_width, I, J, K]`` per level, from fine to coarse, to ``[B, out_width, I, J, K]``."""
        narrow: list[Tensor] = []
        for level, lateral in enumerate(self.lateral):
            narrow.append(lateral(maps[level]))
        for level in range(len(narrow) - 2, -1, -1):
            narrow[level] = narrow[level] + upsample_to(narrow[level + 1], narrow[level])
        fused: list[Tensor] = []
        for level, mix in enumerate(self.mix):
            fused.append(mix(narrow[level]))
        return fused


class LevelEncoder(nn.Module):
    """The deformable encoder on some of the levels; the others pass unchanged.

    Args:
        widths: channels of the levels at :data:`STRIDES`.
        levels: strides of the levels that the encoder sees.
        dim: the encoder's width; levels of another width are projected to it and back by 1³ convolutions.
        layers, heads, points, feed_forward, dropout: of the encoder.

    Raises:
        ValueError: ``levels`` is empty or contains a stride that is not in :data:`STRIDES`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        levels: Sequence[int],
        dim: int,
        layers: int,
        *,
        heads: int,
        points: int,
        feed_forward: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if not levels or not set(levels) <= set(STRIDES):
            raise ValueError(f"levels: expected strides out of {STRIDES}, at least one, got {tuple(levels)}")
        self.chosen = [stride in levels for stride in STRIDES]
        fits = [(width, width == dim or not seen) for width, seen in zip(widths, self.chosen, strict=True)]
        self.project = nn.ModuleList(nn.Identity() if fit else nn.Conv3d(width, dim, 1) for width, fit in fits)
        sizes = {"heads": heads, "points": points, "feed_forward": feed_forward}
        self.encoder = DeformableEncoder(dim, sum(self.chosen), layers, **sizes, dropout=dropout, position_code=True)
        self.restore = nn.ModuleList(nn.Identity() if fit else nn.Conv3d(dim, width, 1) for width, fit in fits)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map one ``[B, width, I, J, K]`` per level, from fine to coarse, to the same shapes."""
        seen: list[Tensor] = []
        for level, project in enumerate(self.project):
            if self.chosen[level]:
                seen.append(project(maps[level]))
        encoded = self.encoder(seen)
        answers: list[Tensor] = []
        position = 0
        for level, restore in enumerate(self.restore):
            if self.chosen[level]:
                answers.append(restore(encoded[position]))
                position += 1
            else:
                answers.append(maps[level])
        return answers


class AddUp(nn.Module):
    """Decoder step: upsample the coarse map, add the skip map of the same width, refine with a residual block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.refine = ResidualBlock(in_channels, out_channels)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        return self.refine(upsample_to(coarse, skip) + skip)


def full_resolution_stem(channels: int) -> nn.Sequential:
    """Build two 3³ convolutions at full resolution, 3³ max pooling with stride 2, and squeeze-and-excitation."""
    return nn.Sequential(
        *(conv_bn(1, channels), nn.ReLU(), conv_bn(channels, channels), nn.ReLU()),
        *(nn.MaxPool3d(3, stride=2, padding=1), SqueezeExcitation(channels)),
    )


def squeezed_stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Build two residual blocks followed by squeeze-and-excitation."""
    return residual_stage(in_channels, out_channels, 2, stride).append(SqueezeExcitation(out_channels))


class PaperNet(nn.Module):
    """``[B, 1, I, J, K] -> [B, 6, I/2, J/2, K/2]``: nodule logit, offset (3), log diameter, mask logit.

    In training there are 12 channels: the main maps, then the auxiliary ones, which the same heads predict from the
    fused level at stride 2, before encoder and decoder. The channels mean the same as those of the compact network,
    declared in metadata.json (``channel_def``), except that the mask logit is that of the whole cell
    (:func:`.blocks.mask_on_voxels`).

    The defaults are the published numbers.

    Args:
        widths: channels of the stages at strides 2, 4, 8 and 16; the stem has as many as stride 2.
        fused_widths: channels of the fused levels at strides 2 and 4, and of the decoder.
        lateral: channels of the maps in which levels are added.
        dilations: of the parallel convolutions after the addition.
        levels: strides of the levels that the encoder sees, out of 2, 4, 8 and 16; published: 8 and 16.
        dim: channels of the fused levels at strides 8 and 16, and of the encoder.
        layers, heads, points, feed_forward, dropout: of the encoder.

    Attributes:
        out_channels: 6, the channels of one set of maps.
        stride: voxels per output cell, along each axis.

    Raises:
        ValueError: ``levels`` is wrong; or, on a call, I, J or K is not a multiple of :data:`.blocks.COARSEST_STRIDE`.
    """

    stride = STRIDES[0]

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 64, 64),
        fused_widths: Sequence[int] = (32, 64),
        *,
        lateral: int = 64,
        dilations: Sequence[int] = (1, 2, 5),
        levels: Sequence[int] = (8, 16),
        dim: int = 128,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        feed_forward: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.out_channels = DETECTION_CHANNELS + 1
        w2, w4, w8, w16 = widths
        self.stem = full_resolution_stem(w2)
        self.stage2 = squeezed_stage(w2, w2, stride=1)
        self.stage4 = squeezed_stage(w2, w4, stride=2)
        self.stage8 = squeezed_stage(w4, w8, stride=2)
        self.stage16 = residual_stage(w8, w16, 2, stride=2)
        f2, f4 = fused_widths
        fused = (f2, f4, dim, dim)
        self.fusion = LevelFusion(widths, lateral, fused, dilations)
        sizes = {"heads": heads, "points": points, "feed_forward": feed_forward}
        self.encoder = LevelEncoder(fused, levels, dim, layers, **sizes, dropout=dropout)
        self.up8 = AddUp(dim, f4)
        self.up4 = AddUp(f4, f2)
        self.up2 = AddUp(f2, f2)
        self.detect = detection_head(f2)
        self.mask = nn.Conv3d(f2, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        require_multiples(image)
        x2 = self.stage2(self.stem(image))
        x4 = self.stage4(x2)
        x8 = self.stage8(x4)
        fused = self.fusion([x2, x4, x8, self.stage16(x8)])
        y2, y4, y8, y16 = self.encoder(fused)
        last = self.up2(self.up4(self.up8(y16, y8), y4), y2)
        if self.training:
            return torch.cat([self._maps(last), self._maps(fused[0])], dim=1)
        return self._maps(last)

    def _maps(self, features: Tensor) -> Tensor:
        return torch.cat([self.detect(features), self.mask(features)], dim=1)
