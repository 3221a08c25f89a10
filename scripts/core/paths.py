"""Paths as they occur in hospitals: names in any encoding, dangling links, pipes beside scans, pointers to data."""

from __future__ import annotations

import os
import stat
from pathlib import Path

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
CONFIGS = BUNDLE_ROOT / "configs"

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
POINTER_MARKS = (b"version https://git-lfs", b"/annex/objects/")  # in files whose content is stored elsewhere


def printable(text: str) -> str:
    """Return ``text`` as one line of valid Unicode; line breaks, bytes that are not UTF-8 and the like become ``�``."""
    text = os.fsencode(text).decode("utf-8", "replace") if not text.isascii() else text
    return "".join(char if char.isprintable() else "�" for char in text)


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return "file" or "folder", following links, or in words what else the path is. Nothing is opened."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a device")
    except (FileNotFoundError, NotADirectoryError):
        return "a broken link" if os.path.islink(path) else "no such file or folder"
    except OSError as error:
        return f"something that cannot be accessed ({error.strerror})"
    except ValueError:  # a path with a NUL
        return "no such file or folder"


def unreadable(path: str | os.PathLike[str]) -> str:
    """Return in words why a file cannot contain a scan; "" if it may."""
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
        return "a git-lfs or git-annex pointer, not the file itself"
    return ""
