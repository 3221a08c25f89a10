"""Presets against each other and against the published way of searching: a few windows timed, and multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.bundle import ConfigParser
from torch import nn

from ..inferer import choose_precision
from ..network import PresetError, ready_network
from ..network.anatomy import flops_per_voxel
from .ceilings import Ceilings, time_windows, what_bounds
from .search import Searched

# LWNet's inference: tiles of 96³ voxels with 16 more on each side, over the whole field of view at 1 mm.
PUBLISHED, PUBLISHED_PRECISION = "paper", "float32"
TILE, TILE_MARGIN = 96, 16


@dataclass(frozen=True)
class Cost:
    """What a preset costs for one scan in one precision.

    Attributes:
        preset, precision: which.
        size, windows: voxels of a window along each axis, and how many the scan takes.
        flops_per_voxel: counted, see :func:`..network.anatomy.flops_per_voxel`.
        window_seconds, peak_process_bytes, peak_cuda_bytes: see :class:`.ceilings.Windows`.
        matrix_share: of the machine's rate of matrix multiplication.
        memory_share: of its rate of copying, if nothing were cached.
        bound: which of the two, in words.
        seconds_per_litre: of lung.
    """

    preset: str
    precision: str
    size: tuple[int, ...]
    windows: int
    flops_per_voxel: float
    window_seconds: float
    peak_process_bytes: int
    peak_cuda_bytes: int
    matrix_share: float
    memory_share: float
    bound: str
    seconds_per_litre: float


def precision_name(precision: str, device: torch.device) -> str:
    """The number type that a precision (maybe ``auto``) stands for on a device, as the inferer names it.

    Raises:
        PrecisionError: see :func:`..inferer.choose_precision`.
    """
    return str(choose_precision(precision, device)).removeprefix("torch.")


def builders(parser: ConfigParser, presets: Sequence[str]) -> dict[str, Callable[[], nn.Module]]:
    """Builders of presets of a graph.

    Raises:
        PresetError: an unknown one.
    """
    known = list(parser["presets"])
    for name in presets:
        if name not in known:
            raise PresetError(f"compare: expected presets among {', '.join(known)}, got {name!r}")
    return {name: parser.get_parsed_content(f"presets::{name}") for name in presets}


def pairs(presets: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: each preset in each precision, and the published one as it was published, first."""
    first = [(PUBLISHED, PUBLISHED_PRECISION)] if PUBLISHED in presets else []
    return list(dict.fromkeys([*first, *((preset, precision) for preset in presets for precision in precisions)]))


def cost_of(key: tuple[str, str], parser: ConfigParser, limit: Ceilings, about: Searched, *, repeats: int) -> Cost:
    """Time a few windows of a preset in a precision, and multiply by those of the scan.

    Args:
        key: preset and precision.
        parser: the inference graph, for the preset, the device and the size of windows.
        limit: the machine's, in that precision.
        about: the searched scan; the graph's windows are as many for any preset but the published.
        repeats: windows timed.
    """
    preset, precision = key
    device = torch.device(parser.get_parsed_content("device"))
    network = ready_network(builders(parser, [preset])[preset](), device).eval()
    size, count = tuple(int(n) for n in parser.get_parsed_content("window_size")), about.windows
    if preset == PUBLISHED:
        size, count = (TILE + 2 * TILE_MARGIN,) * 3, published_tiles(about)
    windows = time_windows(network, size, device, precision, repeats)
    flops = sum(flops_per_voxel(network).values())
    matrices = flops * math.prod(size) / windows.seconds / limit.flop_per_s
    memory = windows.traffic_bytes / windows.seconds / limit.bytes_per_s
    return Cost(
        *key,
        size=size,
        windows=count,
        flops_per_voxel=flops,
        window_seconds=windows.seconds,
        peak_process_bytes=windows.peak_process_bytes,
        peak_cuda_bytes=windows.peak_cuda_bytes,
        matrix_share=matrices,
        memory_share=memory,
        bound=what_bounds(matrices, memory),
        seconds_per_litre=windows.seconds * count / about.litres,
    )


def published_tiles(about: Searched) -> int:
    """Tiles of the published search of a scan: over the whole field of view."""
    edges_mm = [n * mm for n, mm in zip(about.shape, about.spacing_mm, strict=True)]
    return math.prod(math.ceil(round(edge, 3) / TILE) for edge in edges_mm)
