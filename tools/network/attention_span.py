"""The command ``attention_span``: how far trained weights look, and how much of that is inside the tile."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn

from scripts.core.errors import UserError
from scripts.network.checkpoint import load_weights
from scripts.network.config import TRAIN, network_in
from scripts.network.deformable_attention import DeformableAttention

from ..tables import table

logger = logging.getLogger(__name__)

MOST_TILES = 8


@dataclass(frozen=True)
class AttentionSpan:
    """Where one attention layer looks; means are weighted by the attention weight of each point.

    Attributes:
        weight: share of its weight on each level, fine to coarse.
        inside: share of its weight on points inside the tile; the others read zeros.
        inside_mm: mean distance of the points inside; NaN without any.
        all_mm: mean distance of all points.
    """

    weight: tuple[float, ...]
    inside: float
    inside_mm: float
    all_mm: float


def attention_span(
    *, image: str, checkpoint: str = "models/model.pt", tile_size: int = 64, config_file: Sequence[str] = (TRAIN,)
) -> None:
    """Print how far each layer of attention looks in tiles of a scan.

    Args:
        image: the scan; its lungs are divided into tiles, of which up to eight, evenly spaced, are used.
        checkpoint: the weights.
        tile_size: edge length in voxels of 1 mm, a multiple of 16.
        config_file: the training graph of the weights, and what was laid over it.

    Raises:
        UserError: a file cannot be read, the weights are of another network, or the network has no attention.
    """
    network = network_in(config_file)
    load_weights(network, checkpoint)
    rows = [
        [
            str(number),
            " / ".join(f"{share:.2f}" for share in one.weight),
            f"{one.inside:.2f}",
            f"{one.inside_mm:.0f} mm",
            f"{one.all_mm:.0f} mm",
        ]
        for number, one in enumerate(spans_of(network, list(tiles_of(image, tile_size))), start=1)
    ]
    head = ["Layer", "Weight on the levels, fine to coarse", "Inside the tile", "Mean distance, inside", "all"]
    logger.info("%s, tiles of %d mm:\n%s", checkpoint, tile_size, table(head, rows))


def tiles_of(image: str, size: int) -> Iterator[Tensor]:
    """Yield tiles ``[1, 1, size, size, size]`` of a scan, preprocessed as in the training graph."""
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser["tile_size"] = [size] * 3
    data: Any = {"image": image}
    for transform in ("scan_preprocessing", "scan_to_network"):
        data = parser.get_parsed_content(transform)(data)
    volume = torch.as_tensor(data["image"]).float()
    tiles = dense_patch_slices(tuple(volume.shape[1:]), (size,) * 3, (size,) * 3)
    for tile in tiles[:: -(-len(tiles) // MOST_TILES)]:
        yield volume[(slice(None), *tile)][None]


def spans_of(network: nn.Module, tiles: list[Tensor]) -> list[AttentionSpan]:
    """Return the span of each attention layer, first layer first, over tiles ``[B, 1, I, J, K]`` of 1 mm voxels.

    Raises:
        UserError: the network has no attention.
    """
    layers = [module for module in network.modules() if isinstance(module, DeformableAttention)]
    if not layers:
        raise UserError("network: expected layers of deformable attention, found none; use a network with layers.")
    # For each layer: weight and weight · distance by level, for the points inside and for all points.
    sums = [torch.zeros(4, layer.levels, dtype=torch.float64) for layer in layers]

    def look(total: Tensor, layer: DeformableAttention, inputs: tuple[Tensor, Tensor, list[Tensor]]) -> None:
        queries, centres, maps = inputs
        offsets, weights = layer.choose(queries, torch.float32)
        for level, features in enumerate(maps):
            cells = torch.tensor(features.shape[2:], dtype=torch.float32)
            where = centres[:, None, None, :] * cells + offsets[:, :, :, level]
            inside = ((where > 0) & (where < cells)).all(-1)
            distance = torch.linalg.vector_norm(offsets[:, :, :, level] * (tile_mm / cells), dim=-1)
            weight = weights[:, :, :, level]
            for row, values in enumerate((weight * inside, weight * inside * distance, weight, weight * distance)):
                total[row, level] += values.double().sum()

    network.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for layer, total in zip(layers, sums, strict=True):
            hook = layer.register_forward_pre_hook(lambda module, inputs, total=total: look(total, module, inputs))
            hooks.callback(hook.remove)
        for tile in tiles:
            tile_mm = torch.tensor(tile.shape[2:], dtype=torch.float32)
            network(tile)
    spans = []
    for total in sums:
        inside, inside_mm, weight, all_mm = total.sum(1)
        levels = tuple((total[2] / weight).tolist())
        spans.append(
            AttentionSpan(levels, *torch.stack([inside / weight, inside_mm / inside, all_mm / weight]).tolist())
        )
    return spans
