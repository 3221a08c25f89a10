"""Paths as hospitals have them: names in any bytes, links to nothing, pipes beside scans, headers beside their data."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
POINTER_MARKS = (b"version https://git-lfs", b"/annex/objects/")  # what stands in a file whose content is elsewhere


def printable(text: str) -> str:
    """``text`` as one line of valid Unicode: bytes that are no UTF-8, line breaks and the like become ``�``."""
    text = os.fsencode(text).decode("utf-8", "replace") if not text.isascii() else text
    return "".join(char if char.isprintable() else "�" for char in text)


def kind_of(path: str | os.PathLike[str]) -> str:
    """ "file" or "folder", links followed; else in words what is there instead. Nothing is opened."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a device")
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if os.path.islink(path) else "no such file or folder"
    except OSError as error:
        return f"something that cannot be reached ({error.strerror})"
    except ValueError:  # a path with a NUL
        return "no such file or folder"


def unreadable(path: str | os.PathLike[str]) -> str:
    """Why a file cannot be one that holds a scan, in words; "" where it may."""
    kind = kind_of(path)
    if kind != "file":
        return kind
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        return f"a file that cannot be opened ({error.strerror})"
    if not start:
        return "an empty file"
    if start.startswith(POINTER_MARKS):
        return "a pointer of git-lfs or git-annex, not the file itself"
    return ""


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path is that of a folder or lies below it."""
    return path == folder or folder in path.parents
