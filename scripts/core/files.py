"""Files: atomic writing, tables and records, and what identifies a version of a file.

A file is written under a hidden name beside its target and renamed when it is complete. Everything the bundle writes
goes through :func:`replacing`. A process that is killed leaves ``.NAME.MACHINE.PROCESS.partial`` behind and nothing
under the final name; :func:`remove_abandoned` removes such leftovers.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, UserError
from .processes import MACHINE, is_gone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABANDONED_S = 3600.0  # writing takes seconds: a partial file of another machine that is this old is abandoned

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]+")

# Files that file browsers leave behind; they do not prevent a former result from being replaced.
_BROWSER_LITTER = frozenset({"Thumbs.db", "desktop.ini"})


class OutputError(UserError, OSError):
    """A result cannot be written; the message gives the path, what was expected, what was found and what to do."""


def checked_name(name: str) -> str:
    """Return ``name`` if it is safe as the name of an output folder.

    Raises:
        ValueError: it is empty, starts with a dot, or contains anything but A–Z, a–z, 0–9, ``.``, ``_`` and ``-``.
    """
    if not is_name(name):
        raise ValueError(
            f"Expected a scan name of letters, digits, '.', '_' and '-' that does not start with a dot, got {name!r}. "
            "Name the scan by its series UID or rename its file."
        )
    return name


def is_name(name: str) -> bool:
    """Whether a folder of this name may hold a result; a hidden folder may not."""
    return bool(_NAME.fullmatch(name))


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """Create ``folder`` if it is missing, and check by creating a temporary file that it can be written to.

    Raises:
        OutputError: it cannot be created or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise output_error(path, "a folder that can be written to", error) from error
    return path


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside ``path``, specific to this process, for a file or folder; on exit it is removed."""
    new = path.with_name(f".{path.name}.{MACHINE}.{os.getpid()}.partial")
    _remove(new)
    try:
        yield new
    finally:
        _remove(new)


def put_in_place(new: Path, path: Path) -> None:
    """Give a complete file or folder its final name; a former one is kept until then, and on any error.

    Replacing a folder takes two renames. If the process is killed between them, the former folder is left as
    ``.NAME.former`` and :func:`put_back` restores it. Only one process at a time may replace a path.

    Raises:
        OSError: it cannot be renamed, or a folder would replace a file or a file a folder.
    """
    put_back(path)
    if not (new.is_dir() and path.is_dir()):
        new.replace(path)
        return
    former = _former(path)
    _remove(former)
    path.rename(former)
    try:
        new.rename(path)
    except OSError:
        former.rename(path)
        raise
    shutil.rmtree(former, ignore_errors=True)


def put_back(path: Path) -> None:
    """Restore the name of a folder that a process moved aside to replace it, before the process was killed."""
    if not path.exists() and _former(path).is_dir():
        _former(path).rename(path)


@contextlib.contextmanager
def replacing(path: Path, expected: str = "room in a writable folder") -> Iterator[Path]:
    """Yield a temporary path for a file or folder that is renamed to ``path`` on exit; on error ``path`` is unchanged.

    Args:
        path: the file or folder to create or replace.
        expected: what the error message says was expected.

    Raises:
        OutputError: the disk is full, the folder is missing or read-only, ….
    """
    try:
        with beside(path) as new:
            yield new
            put_in_place(new, path)
    except OSError as error:
        raise output_error(path, expected, error) from error


def remove_abandoned(folder: Path) -> None:
    """Remove the partial files and folders whose process has ended, or that are older than :data:`ABANDONED_S`."""
    for partial in folder.glob(".*.partial"):
        *_, machine, process, _ = partial.name.rsplit(".", 3)
        with contextlib.suppress(OSError):  # another process was faster
            is_old = time.time() - partial.stat().st_mtime > ABANDONED_S
            if is_old or (process.isdecimal() and is_gone(machine, int(process))):
                _remove(partial)


def _former(path: Path) -> Path:
    return path.with_name(f".{path.name}.former")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` atomically; a former file is kept until the new one is complete.

    Raises:
        OutputError: see :func:`replacing`.
    """
    with replacing(path, f"room for {len(content)} bytes in a writable folder") as new:
        new.write_bytes(content)
    return path


def write_json(path: Path, value: Any, indent: int = 1) -> Path:
    """Write plain values as strict JSON, atomically.

    Raises:
        OutputError: see :func:`replacing`.
        ValueError: a value is NaN or infinite, which JSON cannot represent.
    """
    return write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """Write a table as CSV, atomically; the first row holds the column names.

    Raises:
        OutputError: see :func:`replacing`.
    """
    return write_bytes(path, csv_text(rows).encode())


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV; a value of ``None`` becomes an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure, **settings: Any) -> Path:
    """Write a figure atomically, in the format of the path's suffix (default PNG); ``settings`` go to ``savefig``.

    Raises:
        OutputError: see :func:`replacing`.
    """
    with replacing(path) as new:
        figure.savefig(new, format=path.suffix[1:].lower() or "png", **settings)
    return path


def read_csv(
    path: str | os.PathLike[str], columns: Sequence[str] = (), error: type[UserError] = DataError
) -> list[tuple[int, dict[str, str]]]:
    """Read a table whose first row names its columns; blank rows are skipped and values are stripped of spaces.

    Args:
        path: a UTF-8 file, separated by commas, semicolons or tabs.
        columns: the columns that must exist.
        error: the class of the error to raise.

    Returns:
        For each row after the first, its line number in the file, from 1, and its values by column. A row shorter than
        the first lacks the last columns.

    Raises:
        DataError: (or ``error``) the file does not exist or has another encoding, or a column is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        first = next(filter(str.strip, text.split("\n")), "")
        separator = max(",;\t", key=first.count)
        lines = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
        rows = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise error(f"{path}: expected a readable CSV file (UTF-8), got: {cause}; check the path") from cause
    names = rows[0][1] if rows else []
    missing = [name for name in columns if name not in names]
    if missing:
        raise error(
            f"{path}: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}; "
            f"got {', '.join(names)[:200] or 'an empty file'}; name the columns in the first row"
        )
    return [(number, dict(zip(names, row, strict=False))) for number, row in rows[1:]]


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that the bundle wrote; empty if the file is missing or is not a JSON object."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def stamp(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """Return what identifies a version of a file: absolute path, size in bytes and modification time in ns.

    For a file that cannot be reached, the path is returned as given, and both numbers are -1.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return str(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def digest_of(value: Any) -> str:
    """Return the SHA-256 of plain values as 64 hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_replaceable(target: Path, names: Collection[str]) -> None:
    """Refuse to replace a file, or a folder that contains anything but a former result.

    Args:
        target: the folder to replace; it may be missing.
        names: the names that a former result may contain; hidden files and those of file browsers may be there too.

    Raises:
        OutputError: the target is a file, or contains something else.
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
            f"{target}: expected nothing or an earlier result to replace, got a folder that also holds "
            f"{', '.join(others[:3])}. Move these files or choose another output_dir."
        )


def output_error(path: Path, expected: str, error: Exception) -> OutputError:
    """Return the error to raise for an error of writing; an :class:`OutputError` is returned unchanged."""
    if isinstance(error, OutputError):
        return error
    reason = getattr(error, "strerror", "") or " ".join(str(error).split())
    return OutputError(f"{path}: expected {expected}, got: {reason}. Free disk space or choose another output_dir.")
