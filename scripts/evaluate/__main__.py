"""Command line: ``python -m scripts.evaluate COMMAND --option value …``; ``COMMAND --help`` describes a command."""

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
    """Run one command; return the exit status: 0 on success, 1 on failure, 2 if the command line is wrong."""
    return run_command(str(__package__), COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
