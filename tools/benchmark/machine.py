"""On what it was measured: processor, memory, GPU, versions, weights, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

# What torch.cpu.get_capabilities calls the abilities that decide which precision is fast.
ABILITIES = {
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "avx512_bf16": "AVX512-BF16",
    "avx512_f": "AVX-512",
    "avx2": "AVX2",
}
PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK")


def machine(device: torch.device) -> dict[str, Any]:
    """Facts in the order to show them."""
    able = torch.cpu.get_capabilities()
    facts: dict[str, Any] = {
        "processor": _processor() or str(able.get("cpu_name", "")) or platform.machine(),
        "features": [word for name, word in ABILITIES.items() if able.get(name)],
        "logical cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if hasattr(os, "getloadavg"):
        facts["processes busy before"] = round(os.getloadavg()[0], 2)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return platform.processor()
    return found[1].strip() if found else platform.processor()


def _memory_bytes() -> int:
    """Physical memory; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
