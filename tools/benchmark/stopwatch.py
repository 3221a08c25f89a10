"""Time and peak memory of nested stages; each moment is counted once."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_PEAK = Path("/proc/self/clear_refs")  # on Linux: resets the peak of resident memory


@dataclass
class Stage:
    """What one stage took.

    Attributes:
        seconds: wall time, without the stages inside it.
        cpu_seconds: of all threads of this process, likewise.
        peak_bytes: most memory while it ran, including what was there before: on a GPU what was allocated, on a CPU
            what was resident in the process; 0 on a CPU if the system is not Linux.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


class Stopwatch:
    """Assign each moment to the innermost open stage, so that the stages' seconds add up to the total.

    Work must proceed in one place at a time (in whichever thread), as it does for one scan. A stage ends only after the
    GPU has finished its work.

    Args:
        device: where the network runs.

    Attributes:
        stages: by name, in the order in which they first ended or were interrupted.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.is_gpu = torch.device(device).type == "cuda"
        self.stages: dict[str, Stage] = {}
        self._open: list[str] = []
        self._since = self._cpu_since = 0.0

    def begin(self, name: str) -> None:
        """Open a stage inside the current one."""
        self._settle()
        self._open.append(name)

    def end(self, name: str) -> None:
        """Close a stage and everything still open inside it (as left behind by errors)."""
        self._settle()
        while self._open.pop() != name:
            pass

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def _settle(self) -> None:
        """Add the time since the last call to the open stage, and restart clock and peak at what is resident now."""
        peak_bytes = 0
        if self.is_gpu:
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - self._since, time.process_time() - self._cpu_since
        if self.is_gpu:
            peak_bytes = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        elif _PEAK.exists():
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            _PEAK.write_text("5", encoding="ascii")
        if self._open:
            stage = self.stages.setdefault(self._open[-1], Stage())
            stage.seconds += seconds
            stage.cpu_seconds += cpu_seconds
            stage.peak_bytes = max(stage.peak_bytes, peak_bytes)
        self._since, self._cpu_since = time.perf_counter(), time.process_time()


class Timed:
    """Call something (a transform, a writer, an inferer) within a stage; its attributes can be read through this."""

    def __init__(self, call: Callable[..., Any], name: str, watch: Stopwatch) -> None:
        self._call, self._name, self._watch = call, name, watch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying looks up such names before _call exists
            raise AttributeError(name)
        return getattr(self._call, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._watch.stage(self._name):
            return self._call(*args, **kwargs)
