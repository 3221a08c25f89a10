"""Writing without half-written files: a temporary name beside the target first, one rename at the end."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]+")

# What file browsers leave behind; such files never keep a former result from being replaced.
_BROWSER_LITTER = frozenset({"Thumbs.db", "desktop.ini"})


class OutputError(UserError, OSError):
    """A result cannot be written; the message names the path, what was expected, what arrived and what to do."""


def checked_name(name: str) -> str:
    """Return ``name`` if it can safely name an output folder.

    Raises:
        ValueError: it is empty, starts with a dot or holds anything but A–Z, a–z, 0–9, ``.``, ``_`` and ``-``.
    """
    if not is_name(name):
        raise ValueError(
            f"Expected a scan name of letters, digits, '.', '_' and '-' that does not start with a dot, got {name!r}. "
            "Name the scan by its series UID or rename its file."
        )
    return name


def is_name(name: str) -> bool:
    """Whether a folder of that name may hold a result; what is hidden does not."""
    return bool(_NAME.fullmatch(name))


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Make ``folder`` where it is missing and prove by a trial that files can be created in it.

    Raises:
        OutputError: it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise output_error(path, "a folder that can be written to", error) from error
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` whole or not at all; a former file stays until the new one is complete.

    Raises:
        OutputError: the disk is full, the folder is missing or read-only, ….
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise output_error(path, f"room for {len(content)} bytes in a writable folder", error) from error
    finally:
        partial.unlink(missing_ok=True) if partial.is_file() else None
    return path


def write_figure(path: Path, figure: Figure, **settings: Any) -> Path:
    """Write a figure in the format of the path's ending, whole or not at all; ``settings`` as ``savefig`` takes them.

    Raises:
        OutputError: see :func:`write_bytes`.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower() or "png", **settings)
    return write_bytes(path, buffer.getvalue())


def replace_folder(target: Path, new: Path, replaceable: Collection[str]) -> None:
    """Put a folder in the place of a former one; on any error ``target`` stays as it was.

    A run killed between the two renames leaves the former folder as ``.<name>.former``; the next call puts it back.
    One process at a time may do this.

    Args:
        target: the folder to make or replace.
        new: what it will be; on the same file system.
        replaceable: file names a former ``target`` may hold. The names in the new folder and what file browsers
            leave behind may be replaced as well; anything else is somebody's work and is not deleted.

    Raises:
        OutputError: it cannot be moved, or ``target`` holds other files.
    """
    former = target.with_name(f".{target.name}.former")
    try:
        put_back(target)
        _clear(former)
        check_replaceable(target, {*replaceable, *(entry.name for entry in new.iterdir())})
        _swap(new, target, former)
    except OSError as error:
        raise output_error(target, "a result folder that can be written", error) from error


def put_back(target: Path) -> None:
    """Give a folder its name again that a killed run had moved aside to replace it."""
    former = target.with_name(f".{target.name}.former")
    if former.is_dir() and not target.exists():
        former.rename(target)


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _swap(partial: Path, target: Path, former: Path) -> None:
    """Rename ``target`` away and ``partial`` in; a failure of the second step undoes the first."""
    if not target.exists():
        partial.rename(target)
        return
    target.rename(former)
    try:
        partial.rename(target)
    except OSError:
        former.rename(target)
        raise
    shutil.rmtree(former, ignore_errors=True)


def check_replaceable(target: Path, names: Collection[str]) -> None:
    """Refuse to replace a file, or a folder that holds anything but a former result.

    Raises:
        OutputError: see above.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target}: expected a folder or nothing, got a file. Move it or choose another output_dir.")
    others = sorted(
        entry.name
        for entry in target.iterdir()
        if entry.name not in names and entry.name not in _BROWSER_LITTER and not entry.name.startswith(".")
    )
    if others:
        raise OutputError(
            f"{target}: expected nothing or a former result to replace, got a folder that also holds "
            f"{', '.join(others[:3])}. Move these files or choose another output_dir."
        )


def output_error(path: Path, expected: str, error: OSError) -> OutputError:
    """What to raise for an error of the file system; one that says all already stays."""
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(f"{path}: expected {expected}, got: {reason}. Free disk space or choose another output_dir.")
