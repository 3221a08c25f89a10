"""Command line: ``python -m tools.network COMMAND --option value …``; ``COMMAND --help`` explains one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.core.commands import run_command

# Command → "module:function" in this package; a module is imported only when its command is called.
COMMANDS = {"describe": "describe:describe", "attention_span": "attention_span:attention_span"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 if it failed, 2 if the command line is wrong."""
    return run_command(str(__package__), COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
