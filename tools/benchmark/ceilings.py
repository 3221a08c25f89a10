"""What this machine can do at most, measured: matrix multiplications and copies; and what a network asks of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.search.inferer import PrecisionInferer, choose_precision

from .stopwatch import Stopwatch

# Edges of the square matrices; the best rate counts. Small ones fit a CPU's caches, large ones fill a GPU.
MATRIX_EDGES, MATRIX_EDGES_GPU = (1024, 2048, 4096), (4096, 8192, 16384)
COPIED_BYTES, COPIED_BYTES_GPU = 2**28, 2**31  # far more than caches hold
BUSY = 0.5  # a resource used beyond this share of its ceiling is what bounds


@dataclass(frozen=True)
class Ceilings:
    """Rates measured in one precision, with the threads of this process."""

    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Windows:
    """A network applied to single windows.

    Attributes:
        size: of the window, voxels.
        seconds: median for one.
        peak_process_bytes, peak_cuda_bytes: see :class:`.stopwatch.Stage`.
        traffic_bytes: of one window; see :func:`traffic_of`.
    """

    size: tuple[int, ...]
    seconds: float
    peak_process_bytes: int
    peak_cuda_bytes: int
    traffic_bytes: int


def ceilings(device: torch.device, precision: str, repeats: int = 3) -> Ceilings:
    """Measure the machine: the best of matrix products of several sizes, and a copy (read and written bytes count)."""
    dtype = choose_precision(precision, device)
    gpu = device.type == "cuda"
    with _convolutions_float32():
        edges = MATRIX_EDGES_GPU if gpu else MATRIX_EDGES
        rates = [2 * n**3 / _product_seconds(n, device, dtype, repeats) for n in edges]
    source = torch.ones(COPIED_BYTES_GPU if gpu else COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = min(seconds_of(lambda: target.copy_(source), device, repeats))
    return Ceilings(max(rates), 2 * source.nbytes / copy_seconds)


def _product_seconds(n: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return min(seconds_of(lambda: torch.mm(left, right), device, repeats))


@contextmanager
def _convolutions_float32() -> Iterator[None]:
    """Multiply float32 matrices as convolutions do, on a GPU by default in TF32."""
    matrices, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matrices.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        matrices.fp32_precision = before


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Wall time of each repeat, after one that does not count; a GPU's work included."""

    def once() -> float:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    once()
    return [once() for _ in range(repeats)]


def time_windows(
    network: nn.Module, size: tuple[int, ...], device: torch.device, precision: str, repeats: int
) -> Windows:
    """Apply a network (evaluation mode, on the device) to windows of noise ``[1, 1, *size]``."""
    window = torch.rand(1, 1, *size, device=device) * 2.0 - 1.0
    inferer = PrecisionInferer(SimpleInferer(), precision)
    watch = Stopwatch(device)
    with torch.no_grad():
        with watch.stage("windows"):
            seconds = statistics.median(seconds_of(lambda: inferer(window, network), device, repeats))
        traffic = traffic_of(lambda: inferer(window, network))
    stage = watch.stages["windows"]
    return Windows(size, seconds, stage.peak_process_bytes, stage.peak_cuda_bytes, traffic)


def traffic_of(work: Callable[[], Any]) -> int:
    """Bytes that the operations of ``work`` read and write, if each fetches its arguments and stores its result.

    Caches make the real traffic smaller; views cost nothing.
    """
    with _Traffic() as traffic:
        work()
    return traffic.total


class _Traffic(TorchDispatchMode):
    """Sum the bytes of arguments and results of all operations below autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result


def what_bounds(matrices: float, memory: float) -> str:
    """A sentence about two shares of ceilings."""
    if max(matrices, memory) < BUSY:
        return "neither, but products too small to be fast, and operations that are not counted"
    return "matrix multiplication" if matrices >= memory else "memory traffic"
