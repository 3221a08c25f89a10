"""Files that are complete or not there: a hidden name beside the target first, one rename at the end.

Whatever the bundle writes goes through :func:`replacing`. A process that is killed leaves
``.NAME.MACHINE.PROCESS.partial`` behind and nothing under a final name; :func:`remove_abandoned` clears such leftovers.
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

ABANDONED_S = 3600.0  # writing takes seconds: what another machine left this long ago is nobody's

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


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden name of this process beside ``path``, for a file or folder; what stands there at the end is removed."""
    new = path.with_name(f".{path.name}.{MACHINE}.{os.getpid()}.partial")
    _remove(new)
    try:
        yield new
    finally:
        _remove(new)


def put_in_place(new: Path, path: Path) -> None:
    """Give a complete file or folder its final name; a former one stays until then, and on any error.

    Killed between the two renames that a folder takes, the former one is left as ``.NAME.former``; :func:`put_back`.
    One process at a time may do this.

    Raises:
        OSError: it cannot be renamed, or a folder would take the place of a file, or the other way round.
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
    """Give a folder its name again that a killed process had moved aside to replace it."""
    if not path.exists() and _former(path).is_dir():
        _former(path).rename(path)


@contextlib.contextmanager
def replacing(path: Path, expected: str = "room in a writable folder") -> Iterator[Path]:
    """A name to write a file or folder to, which becomes ``path`` at the end; on any error ``path`` stays as it was.

    Args:
        path: what to make or replace.
        expected: for the message.

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
    """Remove what processes that have ended were writing into a folder when they were killed."""
    for partial in folder.glob(".*.partial"):
        *_, machine, process, _ = partial.name.rsplit(".", 3)
        with contextlib.suppress(OSError):  # another process is as fast
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
    """Write ``content`` to ``path`` whole or not at all; a former file stays until the new one is complete.

    Raises:
        OutputError: see :func:`replacing`.
    """
    with replacing(path, f"room for {len(content)} bytes in a writable folder") as new:
        new.write_bytes(content)
    return path


def write_json(path: Path, value: Any, indent: int = 1) -> Path:
    """Write plain values as strict JSON, whole or not at all.

    Raises:
        OutputError: see :func:`replacing`.
        ValueError: NaN or infinity, which JSON does not know.
    """
    return write_bytes(path, (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    """Write a table, its column names first, whole or not at all.

    Raises:
        OutputError: see :func:`replacing`.
    """
    return write_bytes(path, csv_text(rows).encode())


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; a value that is ``None`` is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write_figure(path: Path, figure: Figure, **settings: Any) -> Path:
    """Write a figure in the format of the path's ending, whole or not at all; ``settings`` as ``savefig`` takes them.

    Raises:
        OutputError: see :func:`replacing`.
    """
    with replacing(path) as new:
        figure.savefig(new, format=path.suffix[1:].lower() or "png", **settings)
    return path


def read_csv(
    path: str | os.PathLike[str], columns: Sequence[str] = (), error: type[UserError] = DataError
) -> list[tuple[int, dict[str, str]]]:
    """Read a table whose first row names its columns; blank rows and spaces around values are left out.

    Args:
        path: UTF-8, separated by commas, semicolons or tabs.
        columns: must be there.
        error: what to raise.

    Returns:
        Number of the row in the file, from 1, and its values by column; a row may be shorter than the first.

    Raises:
        DataError: no file, another encoding, or a column is missing.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
        rows = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise error(f"{path}: expected a CSV (UTF-8), got none ({cause}); check the path") from cause
    names = rows[0][1] if rows else []
    missing = [name for name in columns if name not in names]
    if missing:
        raise error(
            f"{path}: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}; "
            f"got {', '.join(names)[:200] or 'an empty file'}; name the columns in the first row"
        )
    return [(number, dict(zip(names, row, strict=False))) for number, row in rows[1:]]


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object that the bundle has written; empty where it is missing or is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def stamp(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    """What tells a file from its earlier self: path, bytes, time of the last change in ns; -1 where out of reach."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return str(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def digest_of(value: Any) -> str:
    """SHA-256 of plain values, 64 hexadecimal digits; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
