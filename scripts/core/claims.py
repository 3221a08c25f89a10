"""Several processes, on several machines, that write results into one folder: who writes which scan.

A claim is a hidden file that only one process can create. Its owner touches it while it lives; one whose process has
ended, or that was not touched for :data:`STALE_S`, is taken over. No lock of the operating system is needed, which
shared file systems do not keep reliably: only that a file is created once.
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
STALE_S = 120.0  # twelve beats: a busy machine or a slow file system misses some
WAIT_S = 0.01
_LOCK = "@folder"  # no scan's name holds "@"


class BusyError(UserError, RuntimeError):
    """Another process searches this scan at the moment."""


class OtherClaimError(UserError, RuntimeError):
    """Another process searches another scan of this name at the moment."""


class Claims:
    """The claims of this process on a folder; get it by :func:`claims_on`.

    A claim is a JSON object: ``machine`` and ``process`` of its owner, a ``token`` of the owner's, and what it is
    ``about``. It is empty for a moment, until it is written out.

    Args:
        folder: where results are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.token = uuid.uuid4().hex[:12]
        self._held: dict[str, Path] = {}
        self._threads = threading.RLock()
        self._beating: threading.Thread | None = None

    def take(self, name: str, about: str = "") -> None:
        """Claim a name; one that this process holds stays its own.

        Args:
            name: of a scan.
            about: what the claim is for; whoever meets it can compare.

        Raises:
            BusyError: another process holds it, about the same.
            OtherClaimError: another process holds it, about something else.
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
            f"{target}: expected one scan of this name, got another one, which {who} searches at the moment. "
            "Rename one of them, or choose another output_dir."
        )

    def holds(self, name: str) -> bool:
        """Whether a claim is still this process's: it may have slept so long that another took it over."""
        return name in self._held and read_record(self._held[name]).get("token") == self.token

    def release(self, name: str) -> None:
        """Give a claim back; one that is not held is none."""
        with self._threads:
            if self.holds(name):
                self._held[name].unlink(missing_ok=True)
            self._held.pop(name, None)

    def close(self) -> None:
        """Give all claims back; a copy of this process, made by a fork, has none to give."""
        if os.getpid() == self.process:
            for name in list(self._held):
                self.release(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one, of all threads, processes and machines, that changes the folder; for short."""
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
        """Remove the claims of ended processes."""
        for path in self.folder.glob(".*.claim"):
            self._clear(path)

    def _attempt(self, name: str, about: str) -> dict[str, Any] | None:
        """Claim a name; whose it is where it cannot be had."""
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
        """Remove a claim whose owner is gone; whether there is none now. One process at a time does so."""
        guard = path.with_suffix(".guard")
        with contextlib.suppress(FileNotFoundError):  # given back meanwhile
            if not self._is_gone(path) or not self._create(guard):
                if guard.exists() and self._is_gone(guard):  # killed in the line below
                    guard.unlink()
                return False
            try:
                if self._is_gone(path):
                    path.unlink()
            finally:
                guard.unlink()
        return not path.exists()

    def _is_gone(self, claim: Path) -> bool:
        """Whether the owner of a claim has ended, or stands still; one being written has no owner yet."""
        owner = read_record(claim)
        if owner and is_gone(owner["machine"], owner["process"]):
            return True
        with tempfile.TemporaryFile(dir=self.folder) as now:  # by the clock of the file system: machines' clocks differ
            return os.fstat(now.fileno()).st_mtime - claim.stat().st_mtime > STALE_S

    def _create(self, path: Path, about: str = "") -> bool:
        """Write a claim; whether none was there.

        Raises:
            OutputError: it cannot be written.
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
        """Touch all claims as long as this process lives."""
        while True:
            time.sleep(BEAT_S)
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)


_OPEN: dict[tuple[int, Path], Claims] = {}


def claims_on(folder: str | os.PathLike[str]) -> Claims:
    """The claims of this process on a folder: one object, whoever asks."""
    key = (os.getpid(), Path(folder).resolve())
    if key not in _OPEN:
        _OPEN[key] = Claims(Path(folder))
        atexit.register(_OPEN[key].close)
    return _OPEN[key]
