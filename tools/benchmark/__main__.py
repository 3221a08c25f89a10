"""Command line: ``python -m tools.benchmark --option value …``; ``--help`` explains."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scripts.core.commands import run_function

from .command import benchmark


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status: 0, 1 when it failed, 2 when the command line is wrong."""
    return run_function(f"python -m {__package__}", benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())
