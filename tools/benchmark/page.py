"""The tables of the benchmark, as shown on the terminal and written to the page about performance."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from scripts.core.errors import DataError

from ..network.describe import with_generated
from ..tables import megabytes, table, times
from .ceilings import TILE, TILE_MARGIN, Cost
from .search import NETWORK, TILES, Searched

PARTS = {kind: f"<!-- from here to the end mark: measured on {kind} -->" for kind in ("cpu", "cuda")}
# Capabilities, as named by torch.cpu.get_capabilities, that decide which precision is fast.
ABILITIES = {"amx_tile": "AMX", "amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx512_f": "AVX-512"}
PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK")


def filled_page(path: Path, device: str, text: str) -> str:
    """Return the page with the measurements for one kind of device replaced.

    Raises:
        DataError: there is no such page, no part of it for the device, or a mark is missing.
    """
    if not path.is_file() or device not in PARTS:
        raise DataError(
            f"--markdown {path}: expected a page with marks for {', '.join(PARTS)}, got "
            f"{'none' if device in PARTS else f'measurements on {device}'}; start from docs/performance.md"
        )
    return with_generated(path.read_text(encoding="utf-8"), text, path, PARTS[device])


def machine_facts(device: torch.device) -> dict[str, str]:
    """Return facts about the machine and software, in the order in which they are shown."""
    able = torch.cpu.get_capabilities()
    facts = {
        "processor": str(able.get("cpu_name") or platform.processor()),
        "features": ", ".join(word for name, word in ABILITIES.items() if able.get(name)) or "none of those asked for",
        "threads, logical cores": f"{torch.get_num_threads()}, {os.cpu_count()}",
        "processes busy before": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if device.type == "cuda":
        facts["GPU"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return facts


def scan_tables(facts: Mapping[str, str], rates: Mapping[str, float], searches: Mapping[str, Searched]) -> list[str]:
    """Return the machine with its rates of matrix products, the scan, and each stage of its search per precision."""
    rows = [[name, value] for name, value in facts.items()]
    rows += [[f"matrix products, {precision}", f"{rate / 1e9:.0f} GFLOP/s"] for precision, rate in rates.items()]
    scan = next(iter(searches.values()))
    field_mm = [n * mm for n, mm in zip(scan.shape, scan.spacing_mm, strict=True)]
    about = (
        f"A scan of {times(scan.shape)} voxels of {times(scan.spacing_mm, '.2f')} mm ({times(field_mm, '.0f')} mm): "
        f"{scan.litres:.2f} litres {'of lung' if scan.lungs_found else '(no closed lungs: what is searched)'}, "
        f"{times(scan.box)} voxels searched in {scan.tiles} tiles. Medians after a warm-up."
    )
    blocks = [table(["Measured on", ""], rows), about]
    for precision, found in searches.items():
        blocks += [f"### Each stage, {precision}", _stage_table(found)]
    return blocks


def _stage_table(found: Searched) -> str:
    rows = [
        [
            name,
            f"{one.seconds:.3f}",
            f"{one.cpu_seconds:.3f}",
            f"{one.seconds / found.seconds:.1%}",
            megabytes(one.peak_bytes),
        ]
        for name, one in found.stages.items()
    ]
    cpu_seconds = sum(one.cpu_seconds for one in found.stages.values())
    peak_bytes = max(one.peak_bytes for one in found.stages.values())
    rows.append(["all", f"{found.seconds:.3f}", f"{cpu_seconds:.3f}", "100.0%", megabytes(peak_bytes)])
    besides = found.seconds_after_reading - found.stages[NETWORK].seconds - found.stages[TILES].seconds
    return table(["Stage", "s", "CPU s", "share", "peak, MB"], rows) + (
        f"\n\nAfter reading {found.seconds_after_reading:.2f} s, of which all but the network and its tiles take "
        f"{besides:.2f} s. Peaks are of the whole process's memory, on a GPU of the GPU's, while the stage runs."
    )


def network_tables(costs: Sequence[Cost], searches: Mapping[str, Searched]) -> list[str]:
    """Compare the network with the machine's limits, and the search with the published network (first of ``costs``)."""
    head = ["Network", "tile", "kFLOP/voxel", "s/tile", "Mvoxel/s", "GFLOP/s", "of products", "peak, MB"]
    notes = (
        "The share is that of the machine's rate of matrix products in the same precision, measured in the same run. "
        "Operations are counted as in [network.md](network.md#what-it-costs)."
    )
    per_litre = {
        f"{cost.network}: {cost.tiles} tiles, {cost.scan_voxels / 1e6:.1f} Mvoxel": cost.seconds_per_litre
        for cost in costs
    }
    for precision, found in searches.items():
        per_litre[f"this search, {precision}, network"] = found.stages[NETWORK].seconds / found.litres
        per_litre[f"this search, {precision}, all after reading"] = found.seconds_after_reading / found.litres
    published = costs[0].seconds_per_litre
    ratios = [[what, f"{seconds:.3f}", f"{published / seconds:.1f}"] for what, seconds in per_litre.items()]
    about = (
        f"Published: the paper's network in float32, tiles of {TILE}³ with {TILE_MARGIN} voxels more on each side, "
        "over the whole field of view at 1 mm. A few tiles of each network are timed, and multiplied; what makes the "
        "graph's network fast (memory format, folding) makes the published one fast too. A litre of lung is a Mvoxel "
        "at 1 mm."
    )
    return [
        *("### The network against its ceilings", table(head, [cost.row for cost in costs]), notes),
        "### The whole search against the published network",
        table(["What", "s per litre of lung", "times faster than published"], ratios) + f"\n\n{about}",
    ]


def scans_table(seconds: Mapping[int, float]) -> list[str]:
    """Return the times of the whole command for several numbers of scans."""
    rows = [[str(count), f"{one:.1f}", f"{one / count:.2f}"] for count, one in seconds.items()]
    note = "Each command ran once, on the same scan listed so many times."
    return ["### Several scans", table(["scans", "s, whole command", "s per scan"], rows), note]
