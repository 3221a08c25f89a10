"""Command line: ``python -m scripts.prepare COMMAND --option value …``; ``COMMAND --help`` explains one."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import fire

# Command → "module:function" within this package; a module is imported only when its command is called.
COMMANDS = {
    "lidc": "lidc.command:lidc",
    "lidc_xml": "lidc.command:lidc_xml",
    "lidc_picture": "lidc.picture:lidc_picture",
    "development": "development:make_development_datalist",
    "phantom": "phantom_command:phantom",
    "phantom_picture": "phantom_command:phantom_picture",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when it failed, 2 when there is no such command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger = logging.getLogger(__name__)
    if not arguments or arguments[0] not in COMMANDS:
        got = arguments[0] if arguments else "nothing"
        logger.error("Expected a command, one of: %s; got: %s", ", ".join(COMMANDS), got)
        return 2
    module, function = COMMANDS[arguments[0]].split(":")
    command = getattr(importlib.import_module(f".{module}", __package__), function)
    try:
        fire.Fire(command, command=arguments[1:], name=f"python -m scripts.prepare {arguments[0]}")
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
