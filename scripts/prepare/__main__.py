"""Command line: ``python -m scripts.prepare COMMAND --option value …``; ``COMMAND --help`` describes a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..core.commands import run_command

# Command → "module:function", relative to this package; a module is imported only when its command is called.
COMMANDS = {
    "lidc": "lidc.command:lidc",
    "lidc_xml": "lidc.command:lidc_xml",
    "lidc_picture": "lidc.picture:lidc_picture",
    "datalist": "own_data:datalist",
    "donors": "donors:donors",
    "download": "download:download",
    "luna16": "luna16:luna16",
    "preview": "preview:preview",
    "luna16_masks": "luna16_masks:luna16_masks",
    "phantom": ".phantom.command:phantom",
    "phantom_picture": ".phantom.command:phantom_picture",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 on success, 1 on failure, 2 if the command line is wrong."""
    return run_command(str(__package__), COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
