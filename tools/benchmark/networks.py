"""Networks against each other and against the published way of searching: a few windows timed, and multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.core.commands import OptionError
from scripts.search.inferer import choose_precision

from ..network.anatomy import NETWORKS, flops_per_voxel
from .ceilings import Ceilings, time_windows, what_bounds
from .search import Searched

# LWNet's inference: tiles of 96³ voxels with 16 more on each side, over the whole field of view at 1 mm.
PUBLISHED, PUBLISHED_PRECISION = "paper", "float32"
TILE, TILE_MARGIN = 96, 16


@dataclass(frozen=True)
class Cost:
    """What a network costs for one scan in one precision.

    Attributes:
        network, precision: which.
        size: voxels of the timed window along each axis.
        windows, scan_voxels: how many windows the scan takes, and all of their voxels.
        flops_per_voxel: counted, see :func:`..network.anatomy.flops_per_voxel`.
        window_seconds, peak_process_bytes, peak_cuda_bytes: see :class:`.ceilings.Windows`.
        matrix_share: of the machine's rate of matrix multiplication.
        memory_share: of its rate of copying, if nothing were cached.
        bound: which of the two, in words.
        seconds_per_litre: of lung.
    """

    network: str
    precision: str
    size: tuple[int, ...]
    windows: int
    scan_voxels: int
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
        PrecisionError: see :func:`scripts.search.inferer.choose_precision`.
    """
    return str(choose_precision(precision, device)).removeprefix("torch.")


def check_networks(names: Sequence[str]) -> None:
    """Raise OptionError for a network that is not there."""
    for name in names:
        if name not in NETWORKS:
            raise OptionError(f"compare: expected networks among {', '.join(NETWORKS)}, got {name!r}")


def definition_in(files: Sequence[str]) -> Any:
    """The network of configuration files laid over each other, as it is written there."""
    return ConfigParser.load_config_files(files)["network_def"]


def name_of(files: Sequence[str]) -> str:
    """How the network of a graph is called: as in :data:`..network.anatomy.NETWORKS`, or by the last file."""
    own = definition_in(files)
    return next((name for name, graph in NETWORKS.items() if definition_in(graph) == own), Path(files[-1]).stem)


def pairs(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared: each network in each precision, and the published one as it was published, first."""
    first = [(PUBLISHED, PUBLISHED_PRECISION)] if PUBLISHED in names else []
    return list(dict.fromkeys([*first, *((name, precision) for name in names for precision in precisions)]))


def cost_of(key: tuple[str, str], parser: ConfigParser, limit: Ceilings, about: Searched, *, repeats: int) -> Cost:
    """Time a few windows of a network in a precision, and multiply by the voxels of the scan's.

    Args:
        key: network and precision.
        parser: the inference graph with that network and without weights; what it does to a network to make it fast, it
            does to the published one too.
        limit: the machine's, in that precision.
        about: the searched scan; its windows are those of any network but the published.
        repeats: windows timed.
    """
    name, precision = key
    device, network = torch.device(parser.get_parsed_content("device")), parser.get_parsed_content("network").eval()
    size = tuple(int(n) for n in parser.get_parsed_content("window_size"))
    count, scan_voxels = about.windows, about.window_voxels
    if name == PUBLISHED:
        size, count = (TILE + 2 * TILE_MARGIN,) * 3, published_tiles(about)
        scan_voxels = count * math.prod(size)
    flops = sum(flops_per_voxel(network).values())
    windows = time_windows(network, size, device, precision, repeats)
    matrices = flops * math.prod(size) / windows.seconds / limit.flop_per_s
    memory = windows.traffic_bytes / windows.seconds / limit.bytes_per_s
    return Cost(
        *key,
        size=size,
        windows=count,
        scan_voxels=scan_voxels,
        flops_per_voxel=flops,
        window_seconds=windows.seconds,
        peak_process_bytes=windows.peak_process_bytes,
        peak_cuda_bytes=windows.peak_cuda_bytes,
        matrix_share=matrices,
        memory_share=memory,
        bound=what_bounds(matrices, memory),
        seconds_per_litre=windows.seconds / math.prod(size) * scan_voxels / about.litres,
    )


def published_tiles(about: Searched) -> int:
    """Tiles of the published search of a scan: over the whole field of view."""
    edges_mm = [n * mm for n, mm in zip(about.shape, about.spacing_mm, strict=True)]
    return math.prod(math.ceil(round(edge, 3) / TILE) for edge in edges_mm)
