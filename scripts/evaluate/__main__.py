"""Command line: ``python -m scripts.evaluate COMMAND --option value …``; ``COMMAND --help`` explains one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..core.commands import run_command

# Command → "module:function" within this package; a module is imported only when its command is called.
COMMANDS = {
    "luna16": "luna16:luna16",
    "cross_validate": "cross_validation:cross_validate",
    "example": "example:example",
    "lungs": "lungs:score_lungs",
    "calibrate": "calibrate:calibrate",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when it failed, 2 when the command line is wrong."""
    return run_command(str(__package__), COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
