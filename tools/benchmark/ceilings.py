"""What this machine can do at most, measured: matrix multiplications; and how near a network comes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer

from scripts.search.inferer import PrecisionInferer, choose_precision

from ..network.anatomy import flops_per_voxel
from .search import Searched
from .stopwatch import Stopwatch

# Edges of the square matrices; the best rate counts. Small ones fit a CPU's caches, large ones fill a GPU.
MATRIX_EDGES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}

# LWNet's inference: tiles of 96³ voxels with 16 more on each side, over the whole field of view at 1 mm.
PUBLISHED, PUBLISHED_PRECISION = "paper", "float32"
TILE, TILE_MARGIN = 96, 16


@dataclass(frozen=True)
class Cost:
    """What a network costs for one scan in one precision.

    Attributes:
        network, precision: which.
        size: voxels of the timed tile along each axis.
        tiles, scan_voxels: how many tiles the scan takes, and all of their voxels.
        flops_per_voxel: counted, see :func:`..network.anatomy.flops_per_voxel`.
        tile_seconds: median.
        peak_bytes: of memory, see :class:`.stopwatch.Stage`.
        product_share: of the machine's rate of matrix products.
        seconds_per_litre: of lung.
    """

    network: str
    precision: str
    size: tuple[int, ...]
    tiles: int
    scan_voxels: int
    flops_per_voxel: float
    tile_seconds: float
    peak_bytes: int
    product_share: float
    seconds_per_litre: float


def product_rate(device: torch.device, precision: str) -> float:
    """Operations a second in matrix products, the best of several sizes, with the threads of this process."""
    dtype, rates = choose_precision(precision, device), []
    matrices, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matrices.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # TF32 by default
    try:
        for n in MATRIX_EDGES[device.type]:
            left, right = torch.randn(2, n, n, device=device).to(dtype)
            rates.append(2 * n**3 / min(seconds_of(partial(torch.mm, left, right), device)))
    finally:
        matrices.fp32_precision = before
    return max(rates)


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> list[float]:
    """Wall time of each repeat, after one that does not count; a GPU's work included."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


def cost_of(name: str, precision: str, parser: ConfigParser, limit: float, about: Searched) -> Cost:
    """Time a few tiles of a network in a precision, and multiply by the voxels of the scan's.

    Args:
        name, precision: which.
        parser: the inference graph with that network and without weights; what it does to a network to make it fast, it
            does to the published one too.
        limit: see :func:`product_rate`, in that precision.
        about: the searched scan; its tiles are those of any network but the published.
    """
    device, network = torch.device(parser.get_parsed_content("device")), parser.get_parsed_content("network").eval()
    size = tuple(int(n) for n in parser.get_parsed_content("window_size"))
    tiles, scan_voxels = about.tiles, about.tile_voxels
    if name == PUBLISHED:
        size, tiles = (TILE + 2 * TILE_MARGIN,) * 3, published_tiles(about)
        scan_voxels = tiles * math.prod(size)
    flops, voxels = sum(flops_per_voxel(network).values()), math.prod(size)
    tile = torch.rand(1, 1, *size, device=device) * 2.0 - 1.0
    inferer, watch = PrecisionInferer(SimpleInferer(), precision), Stopwatch(device)
    with torch.no_grad(), watch.stage("tiles"):
        seconds = statistics.median(seconds_of(partial(inferer, tile, network), device))
    return Cost(
        name,
        precision,
        size,
        tiles,
        scan_voxels,
        flops_per_voxel=flops,
        tile_seconds=seconds,
        peak_bytes=watch.stages["tiles"].peak_bytes,
        product_share=flops * voxels / seconds / limit,
        seconds_per_litre=seconds / voxels * scan_voxels / about.litres,
    )


def published_tiles(about: Searched) -> int:
    """Tiles of the published search of a scan: over the whole field of view."""
    edges_mm = [n * mm for n, mm in zip(about.shape, about.spacing_mm, strict=True)]
    return math.prod(math.ceil(round(edge, 3) / TILE) for edge in edges_mm)
