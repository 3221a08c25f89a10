"""Which process is which, on folders that several machines share."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path


def _machine() -> str:
    """Host name, and on Linux the process namespace: containers of one host may share its name, not its processes."""
    name = socket.gethostname()
    with suppress(OSError):
        name += f"-{Path('/proc/self/ns/pid').stat().st_ino}"
    return re.sub(r"[^A-Za-z0-9-]", "_", name)


MACHINE = _machine()


def is_gone(machine: str, process: int) -> bool:
    """Whether a process is known to have ended; of another machine, or where it cannot be asked, nothing is known."""
    if machine != MACHINE or os.name != "posix":  # elsewhere signal 0 would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
