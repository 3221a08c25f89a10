"""Command line: ``python -m tools.network COMMAND --option value …``; ``COMMAND --help`` explains one command."""

from __future__ import annotations

import sys
from functools import partial

from scripts.core.commands import run_command

# Command → "module:function" in this package; a module is imported only when its command is called.
COMMANDS = {"describe": "describe:describe", "reach": "reach:reach"}

main = partial(run_command, str(__package__), COMMANDS)

if __name__ == "__main__":
    sys.exit(main())
