"""Seconds and peak memory of nested stages, each moment counted once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Stage:
    """What one stage took.

    Attributes:
        seconds: wall time, without the stages inside it.
        cpu_seconds: of all threads of this process, likewise.
        voxels: of the largest image it worked on or made.
        peak_process_bytes: most resident memory of the process while it ran, also what others had left there; 0 where
            the system does not tell.
        peak_cuda_bytes: most memory allocated on the GPU while it ran.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    voxels: int = 0
    peak_process_bytes: int = 0
    peak_cuda_bytes: int = 0


class Stopwatch:
    """Give each moment to the innermost stage that is open; so the stages' seconds sum up to the whole.

    Work must go on in one place at a time (in whichever thread), as it does for one scan. A GPU finishes its work
    before a stage ends.

    Args:
        device: where the network runs.

    Attributes:
        stages: by name, in the order in which they first ended or were interrupted.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.cuda = torch.device(device) if torch.device(device).type == "cuda" else None
        self.stages: dict[str, Stage] = {}
        self._open: list[str] = []
        if self.cuda:
            torch.cuda.init()  # before the allocator is asked for its peak
        self._restart()

    def begin(self, name: str) -> None:
        """Open a stage inside the one that is open."""
        self._settle()
        self._open.append(name)

    def end(self, name: str) -> Stage:
        """Close a stage, and what is open inside it (as errors leave it).

        Raises:
            RuntimeError: it is not open, as when work goes on in two threads at once.
        """
        self._settle()
        if name not in self._open:
            raise RuntimeError(f"stage {name}: expected it among the open ones {self._open}; time one thread at a time")
        while self._open.pop() != name:
            pass
        return self.stages.setdefault(name, Stage())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def _settle(self) -> None:
        """Book what has passed since the last call."""
        if self.cuda:
            torch.cuda.synchronize(self.cuda)
        if self._open:
            stage = self.stages.setdefault(self._open[-1], Stage())
            stage.seconds += time.perf_counter() - self._since
            stage.cpu_seconds += time.process_time() - self._cpu_since
            stage.peak_process_bytes = max(stage.peak_process_bytes, peak_process_bytes())
            if self.cuda:
                stage.peak_cuda_bytes = max(stage.peak_cuda_bytes, torch.cuda.max_memory_allocated(self.cuda))
        self._restart()

    def _restart(self) -> None:
        forget_peak()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        self._since, self._cpu_since = time.perf_counter(), time.process_time()


class Timed:
    """Call something (a transform, a writer, an inferer) within a stage; its attributes can be read through this."""

    def __init__(self, call: Callable[..., Any], name: str, watch: Stopwatch) -> None:
        self._call, self._name, self._watch = call, name, watch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying asks for such names before there is a call to ask
            raise AttributeError(name)
        return getattr(self._call, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._watch.begin(self._name)
        try:
            result = self._call(*args, **kwargs)
        finally:
            stage = self._watch.end(self._name)
        stage.voxels = max(stage.voxels, *(voxels_of(value) for value in (*args, result)), 0)
        return result


def voxels_of(value: Mapping[Hashable, Any] | Any) -> int:
    """Voxels of a tensor, of an item's ``image``, or of a result's scan; 0 for anything else."""
    if isinstance(value, Mapping):
        value = value.get("image")
    value = getattr(value, "image_hu", value)
    shape = getattr(value, "shape", ())
    return int(torch.Size(shape[-3:]).numel()) if len(shape) >= 3 else 0


def peak_process_bytes() -> int:
    """Most resident memory since :func:`forget_peak`; 0 where the system is not Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    """Let the peak begin again at what is resident now; without effect where the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return
