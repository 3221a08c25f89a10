"""Command line: ``python -m scripts.evaluate COMMAND --option value …``; ``COMMAND --help`` explains one.

The options of a command are the arguments of its function. They are checked before anything runs (fire, which reads the
other command lines of the bundle, notices a misspelt option only once the command has run without it).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UserError

# Command → "module:function" within this package; a module is imported only when its command is called.
COMMANDS = {"luna16": "luna16:luna16", "example": "example:example"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 when it failed, 2 when the command line is wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger = logging.getLogger(__name__)
    if not arguments or arguments[0] not in COMMANDS:
        got = arguments[0] if arguments else "nothing"
        logger.error("Expected a command, one of: %s; got: %s", ", ".join(COMMANDS), got)
        return 2
    module, name = COMMANDS[arguments[0]].split(":")
    command = getattr(importlib.import_module(f".{module}", __package__), name)
    try:
        options = vars(_parser(arguments[0], command).parse_args(arguments[1:]))
    except SystemExit as stop:  # argparse has said why, or has shown the help
        return int(stop.code or 0)
    try:
        command(**{key: _joined(value) for key, value in options.items() if " " not in key and value is not None})
    except (UserError, OSError) as error:
        logger.error("error: %s", error)
        return 1
    return 0


def _parser(name: str, command: Callable[..., Any]) -> argparse.ArgumentParser:
    """Options from the signature of a command, help from its docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m scripts.evaluate {name}",
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in inspect.signature(command, eval_str=True).parameters.values():
        needed = option.default is inspect.Parameter.empty
        default = None if needed else option.default
        if option.annotation in (int, float, str):
            settings = {"type": option.annotation, "required": needed, "default": default, "action": _Once}
            parser.add_argument(f"--{option.name}", **settings)
        else:  # one or several
            parser.add_argument(f"--{option.name}", nargs="+", action="append", required=needed)
    return parser


class _Once(argparse.Action):
    """Store a value; an option given twice is refused, not silently the last one taken."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        if getattr(namespace, f"{self.dest} given", False):
            parser.error(f"expected {option_string} once, got it again; name one value")
        setattr(namespace, f"{self.dest} given", True)
        setattr(namespace, self.dest, values)


def _joined(value: Any) -> Any:
    """The values of an option that was given one or more times, and lists in the spelling of the bundle's configs."""
    if not isinstance(value, list):
        return value
    texts = [text for group in value for text in group]
    return [path for text in texts for path in (_listed(text) if text.startswith("[") else [text])]


def _listed(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    return [str(item) for item in value] if isinstance(value, list) else [text]


if __name__ == "__main__":
    sys.exit(main())
