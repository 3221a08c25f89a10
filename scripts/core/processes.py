"""Identifies processes that share folders, on one or on several machines."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path


def _machine() -> str:
    """Return the host name, on Linux with the process namespace: containers may share a host's name, not its processes.

    Characters other than letters, digits and ``-`` become ``_``.
    """
    name = socket.gethostname()
    with suppress(OSError):
        name += f"-{Path('/proc/self/ns/pid').stat().st_ino}"
    return re.sub(r"[^A-Za-z0-9-]", "_", name)


MACHINE = _machine()


def is_gone(machine: str, process: int) -> bool:
    """Whether a process is known to have ended; ``False`` on another machine or where its state cannot be queried."""
    if machine != MACHINE or os.name != "posix":  # on other systems signal 0 would end the process
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
