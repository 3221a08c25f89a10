"""Several processes, on several machines, that write results into one folder: who writes which scan.

A claim is a file that only one process can create. Its owner touches it while it lives; one whose process has ended, or
that was not touched for :data:`STALE_S`, is taken over. All that needs no lock of the operating system, which shared
file systems do not keep reliably: only that a file is created once, and renamed as a whole.
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
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import UserError
from .files import OutputError
from .processes import MACHINE, is_gone

FOLDER = ".running"  # in the output folder; hidden, so that nothing takes what lies there for a scan or a result
BEAT_S = 10.0
STALE_S = 120.0  # twelve beats: a busy machine or a slow file system misses some
WAIT_S = 0.01
RETRIES = 5
_LOCK = "@folder"  # no scan's name holds "@"


class BusyError(UserError, RuntimeError):
    """Another process searches this scan at the moment."""


@dataclass(frozen=True)
class Owner:
    """Who holds a claim, and ``about`` what."""

    machine: str
    process: int
    token: str
    about: str

    @property
    def shown(self) -> str:
        return f"process {self.process} on {self.machine}"


class Claims:
    """The claims of this process on a folder; get it by :func:`claims_on`.

    Args:
        folder: where results are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.process = os.getpid()
        self.token = uuid.uuid4().hex[:12]
        self._held: dict[str, Path] = {}
        self._lock = threading.RLock()
        self._depth = 0
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
        with self._lock:
            if name in self._held:
                return
            owner = self._attempt(name, about)
        if owner is None:
            return
        target = self.folder.parent / name
        if owner.about == about:
            raise BusyError(f"{target}: expected a scan that no other run searches, got one of {owner.shown}; wait.")
        raise OtherClaimError(
            f"{target}: expected one scan of this name, got another one, which {owner.shown} searches at the moment. "
            "Rename one of them, or choose another output_dir."
        )

    def holds(self, name: str) -> bool:
        """Whether a claim is still this process's: it may have slept so long that another took it over."""
        with self._lock:
            path = self._held.get(name)
        owner = _owner(path) if path is not None else None
        return owner is not None and owner.token == self.token

    def release(self, name: str) -> None:
        """Give a claim back; one that is not held is none."""
        with self._lock:
            for _ in range(RETRIES):  # another process may hold it in its hands, to look whose it is
                if name in self._held and not self.holds(name):
                    time.sleep(WAIT_S)
            if self.holds(name):
                self._held[name].unlink(missing_ok=True)
            self._held.pop(name, None)
            self._tidy()

    def close(self) -> None:
        """Give all claims back; a copy of this process, made by a fork, has none to give."""
        if os.getpid() == self.process:
            for name in list(self._held):
                self.release(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one, of all threads, processes and machines, that changes the folder; for short."""
        with self._lock:
            if self._depth == 0:
                while self._attempt(_LOCK, "") is not None:
                    time.sleep(WAIT_S)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.release(_LOCK)

    def sweep(self) -> None:
        """Remove what ended processes have left behind."""
        if not self.folder.is_dir():
            return
        for path in self.folder.glob("*.claim"):
            with contextlib.suppress(OSError):
                self._take_over(path)
        self._tidy()

    def _attempt(self, name: str, about: str) -> Owner | None:
        """Claim a name; whose it is where it cannot be had."""
        path = self.folder / f"{name}.claim"
        mine = Owner(MACHINE, self.process, self.token, about)
        while True:
            try:
                _create(path, mine)
            except OutputError:
                self._tidy()
                raise
            except FileNotFoundError:
                self._make_folder()
                continue
            except FileExistsError:
                owner = _owner(path)
                if owner is None or owner.token != self.token:
                    if self._take_over(path):
                        continue
                    return owner or Owner("another machine", 0, "", about)
            self._held[name] = path
            self._beat()
            return None

    def _make_folder(self) -> None:
        """Where claims are; whoever gives the last one back removes it, at any moment."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _make(self.folder)

    def _take_over(self, path: Path) -> bool:
        """Remove a claim whose owner is gone; whether it is to be had now.

        It is renamed first, which one process alone can; if it proves to be a newer claim, it goes back.
        """
        judged = _owner(path)
        if judged is not None and not is_gone(judged.machine, judged.process) and not self._is_stale(path):
            return False
        if judged is None and not self._is_stale(path):
            return not path.exists()
        if _owner(path) != judged:  # somebody was faster
            return False
        aside = path.with_name(f"{path.name}.{self.token}.old")
        try:
            path.rename(aside)
        except OSError:
            return not path.exists()
        if _owner(aside) != judged:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path) -> bool:
        try:
            return self._age_s(path) > STALE_S
        except FileNotFoundError:  # given back meanwhile
            return False

    def _age_s(self, path: Path) -> float:
        """Since a file was touched, by the clock of the file system: machines' clocks differ."""
        with tempfile.TemporaryFile(dir=self.folder) as now:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime

    def _beat(self) -> None:
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat_on, name="claims", daemon=True)
            self._beating.start()

    def _beat_on(self) -> None:
        """Touch all claims as long as this process lives."""
        while True:
            time.sleep(BEAT_S)
            for path in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # where nothing is in it


class OtherClaimError(UserError, RuntimeError):
    """Another process searches another scan of this name at the moment."""


_OPEN: dict[tuple[int, Path], Claims] = {}


def claims_on(folder: str | os.PathLike[str]) -> Claims:
    """The claims of this process on a folder: one object, whoever asks."""
    key = (os.getpid(), Path(folder).resolve())
    if key not in _OPEN:
        _OPEN[key] = Claims(Path(folder))
        atexit.register(_OPEN[key].close)
    return _OPEN[key]


def _owner(path: Path) -> Owner | None:
    """``None`` where a claim is gone, or not written out yet."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _make(folder: Path) -> bool:
    """Make a folder; whether it is there, which it is not where the folder above it is none.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        return folder.is_dir()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(
            f"{folder}: expected a folder that can be made, got: {error.strerror}. Choose another output_dir."
        ) from error
    return True


def _create(path: Path, owner: Owner) -> None:
    """Write a claim.

    Raises:
        FileExistsError, FileNotFoundError: another's is there, or the folder is not.
        OutputError: it cannot be written.
    """
    content = json.dumps(asdict(owner)).encode()
    try:
        with path.open("xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                path.unlink(missing_ok=True)
                raise
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        raise OutputError(
            f"{path}: expected room for {len(content)} bytes in a writable folder, got: {error.strerror}. "
            "Free disk space or choose another output_dir."
        ) from error
