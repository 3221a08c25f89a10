"""How fast this machine can be at most, measured by matrix products, and how close a network comes to that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from torch.utils.benchmark import Timer

from scripts.search.inferer import PrecisionInferer, choose_precision

from ..network.anatomy import flops_per_voxel
from ..tables import megabytes, times
from .search import Searched
from .stopwatch import Stopwatch

# Edges of the square matrices; the best rate counts. Small ones fit into a CPU's caches, large ones fill a GPU.
MATRIX_EDGES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}

# LWNet's inference: tiles of 96³ voxels with 16 more on each side, over the whole field of view at 1 mm.
PUBLISHED, PUBLISHED_PRECISION = "paper", "float32"
TILE, TILE_MARGIN = 96, 16


class Cost(NamedTuple):
    """What a network costs for one scan in one precision.

    Attributes:
        network: its name, and the precision.
        tiles, scan_voxels: the number of tiles for the scan, and the voxels of all tiles.
        seconds_per_litre: of lung.
        row: of the table: name, tile, kFLOP per voxel (:func:`..network.anatomy.flops_per_voxel`), seconds per tile,
            Mvoxel and GFLOP per second, share of the machine's rate of matrix products, peak memory in MB.
    """

    network: str
    tiles: int
    scan_voxels: int
    seconds_per_litre: float
    row: list[str]


def product_rate(device: torch.device, precision: str) -> float:
    """Return operations per second in matrix products, the best of several sizes, with the threads of this process."""
    dtype = choose_precision(precision, device)
    matrices, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matrices.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # TF32 by default
    try:
        return max(
            2 * n**3 / seconds_of(torch.mm, *torch.randn(2, n, n, device=device).to(dtype))
            for n in MATRIX_EDGES[device.type]
        )
    finally:
        matrices.fp32_precision = before


def seconds_of(work: Callable[..., Any], *arguments: Any) -> float:
    """Return the wall time of a call, including GPU work: the mean of three calls after two that do not count."""
    names = {"work": work, "arguments": arguments}
    return Timer("work(*arguments)", globals=names, num_threads=torch.get_num_threads()).timeit(3).mean


def cost_of(name: str, precision: str, parser: ConfigParser, limit: float, about: Searched) -> Cost:
    """Time a few tiles of a network in a precision, and extrapolate to the voxels of the scan's tiles.

    Args:
        name, precision: of the network, and of its computation.
        parser: the inference graph with that network and without weights; whatever it does to speed up a network, it
            also does to the published one.
        limit: see :func:`product_rate`, in that precision.
        about: the searched scan; its tiles are those of any network except the published one.
    """
    device, network = torch.device(parser.get_parsed_content("device")), parser.get_parsed_content("network").eval()
    size = tuple(int(n) for n in parser.get_parsed_content("tile_size"))
    tiles, scan_voxels = about.tiles, about.tile_voxels
    if name == PUBLISHED:
        size, tiles = (TILE + 2 * TILE_MARGIN,) * 3, published_tiles(about)
        scan_voxels = tiles * math.prod(size)
    flops = sum(flops_per_voxel(network).values())
    tile = torch.rand(1, 1, *size, device=device) * 2.0 - 1.0
    watch = Stopwatch(device)
    with torch.no_grad(), watch.stage("tiles"):
        seconds = seconds_of(PrecisionInferer(SimpleInferer(), precision), tile, network)
    rate = tile.numel() / seconds
    row = [
        f"{name}, {precision}",
        times(size),
        f"{flops / 1e3:.2f}",
        f"{seconds:.3f}",
        f"{rate / 1e6:.2f}",
        f"{rate * flops / 1e9:.0f}",
        f"{rate * flops / limit:.0%}",
        megabytes(watch.stages["tiles"].peak_bytes),
    ]
    return Cost(row[0], tiles, scan_voxels, scan_voxels / rate / about.litres, row)


def published_tiles(about: Searched) -> int:
    """Return the number of tiles in the published search of a scan, which covers the whole field of view."""
    edges_mm = [n * mm for n, mm in zip(about.shape, about.spacing_mm, strict=True)]
    return math.prod(math.ceil(round(edge, 3) / TILE) for edge in edges_mm)
