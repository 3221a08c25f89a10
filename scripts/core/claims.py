"""Claims decide which process writes which scan when several processes or machines share a result folder.

A claim is a hidden file that only one process can create. Its owner touches it regularly while it runs. A claim whose
process has ended, or that has not been touched for :data:`STALE_S`, can be taken over. This needs no operating-system
locks, which shared file systems do not implement reliably; it needs only that a file is created exactly once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import output_error, read_record
from .processes import MACHINE, is_gone

BEAT_S = 10.0
STALE_S = 120.0  # twelve beats: a busy machine or a slow file system may miss some
WAIT_S = 0.01
_LOCK = "@folder"  # no scan name contains "@"


class BusyError(UserError, RuntimeError):
    """Another process is currently searching this scan."""


class OtherClaimError(UserError, RuntimeError):
    """Another process is currently searching a different scan of the same name."""


class Claims:
    """The claims that this process holds on a folder; obtain it with :func:`claims_on`.

    A claim is a JSON object with the ``machine`` and ``process`` of its owner, the owner's ``token``, and what the
    claim is ``about``. The file is empty for a moment between its creation and the writing of its content.

    Args:
        folder: the folder that results are written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.token = uuid.uuid4().hex[:12]
        self._held: dict[str, Path] = {}
        self._threads = threading.RLock()
        self._beating: threading.Thread | None = None

    def take(self, name: str, about: str = "") -> None:
        """Claim a name; if this process already holds it, nothing changes.

        Args:
            name: the scan's name.
            about: what the claim is for, so that another process can compare it with its own purpose.

        Raises:
            BusyError: another process holds the name for the same ``about``.
            OtherClaimError: another process holds the name for a different ``about``.
            OutputError: the folder cannot be written to.
        """
        with self._threads:
            owner = None if name in self._held else self._attempt(name, about)
        if owner is None:
            return
        target, who = self.folder / name, "process {process} on {machine}".format(**owner)
        if owner["about"] == about:
            raise BusyError(f"{target}: expected a scan that no other run searches, got one of {who}; wait.")
        raise OtherClaimError(
            f"{target}: expected one scan of this name, got another, which {who} is searching; rename "
            "one of them, or choose another output_dir."
        )

    def holds(self, name: str) -> bool:
        """Whether this process still holds a claim: another may have taken it over while this one was suspended."""
        return name in self._held and read_record(self._held[name]).get("token") == self.token

    def release(self, name: str) -> None:
        """Release a claim; does nothing if this process does not hold it."""
        with self._threads:
            if self.holds(name):
                self._held[name].unlink(missing_ok=True)
            self._held.pop(name, None)

    def close(self) -> None:
        """Release all claims. In a forked copy of this process this does nothing: the claims are the parent's."""
        if os.getpid() == self.process:
            for name in list(self._held):
                self.release(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against all other threads, processes and machines; re-entrant, to be held only briefly."""
        with self._threads:
            is_outermost = _LOCK not in self._held
            while is_outermost and self._attempt(_LOCK, "") is not None:
                time.sleep(WAIT_S)
            try:
                yield
            finally:
                if is_outermost:
                    self.release(_LOCK)

    def sweep(self) -> None:
        """Remove abandoned claims: those whose process has ended or has stopped touching them."""
        for path in self.folder.glob(".*.claim"):
            self._clear(path)

    def _attempt(self, name: str, about: str) -> dict[str, Any] | None:
        """Try to claim a name; return ``None`` on success, otherwise the record of its owner."""
        path = self.folder / f".{name}.claim"
        while not self._create(path, about):
            owner = read_record(path)
            if not self._clear(path):
                return {"machine": "another machine", "process": 0, "about": about} | owner
        self._held[name] = path
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, name="claims", daemon=True)
            self._beating.start()
        return None

    def _clear(self, path: Path) -> bool:
        """Remove a claim whose owner is gone, one process at a time; return whether the name is free now."""
        guard = path.with_suffix(".guard")
        with contextlib.suppress(FileNotFoundError):  # released in the meantime
            if not self._is_gone(path) or not self._create(guard):
                if guard.exists() and self._is_gone(guard):  # left by a process that was killed below
                    guard.unlink()
                return False
            try:
                if self._is_gone(path):
                    path.unlink()
            finally:
                guard.unlink()
        return not path.exists()

    def _is_gone(self, claim: Path) -> bool:
        """Whether a claim's owner has ended or stopped touching it; a claim being written has no owner yet."""
        owner = read_record(claim)
        if owner and is_gone(owner["machine"], owner["process"]):
            return True
        with tempfile.TemporaryFile(dir=self.folder) as now:  # the file system's clock: machines' clocks differ
            return os.fstat(now.fileno()).st_mtime - claim.stat().st_mtime > STALE_S

    def _create(self, path: Path, about: str = "") -> bool:
        """Create a claim file; return ``False`` if it already exists.

        Raises:
            OutputError: the file cannot be written.
        """
        content = json.dumps({"machine": MACHINE, "process": self.process, "token": self.token, "about": about})
        try:
            with path.open("x", encoding="utf-8") as file:
                try:
                    file.write(content)
                    file.flush()
                except OSError:
                    path.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            return False
        except OSError as error:
            raise output_error(path, f"room for {len(content)} bytes in a writable folder", error) from error
        return True

    def _beat(self) -> None:
        """Touch all claims every :data:`BEAT_S` for as long as this process lives."""
        while True:
            time.sleep(BEAT_S)
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)


_OPEN: dict[tuple[int, Path], Claims] = {}


def claims_on(folder: str | os.PathLike[str]) -> Claims:
    """Return this process's claims on a folder; every caller gets the same object."""
    key = (os.getpid(), Path(folder).resolve())
    if key not in _OPEN:
        _OPEN[key] = Claims(Path(folder))
        atexit.register(_OPEN[key].close)
    return _OPEN[key]
