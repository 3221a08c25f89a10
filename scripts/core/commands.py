"""Command lines: ``python -m PACKAGE COMMAND --option value …``; ``COMMAND --help`` explains one.

A command is a function whose arguments are all keyword options. Its signature says which options there are and its
docstring explains them. All of them are checked before anything runs: a misspelt option, one given twice or a value of
another type is refused (MONAI's own command line, read by fire, notices a misspelt option only once the command has
run without it).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import UserError, user_error_in

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class OptionError(UserError, ValueError):
    """An option out of range."""


def run_command(package: str, commands: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run one command of a package; its options are read from the function's signature.

    ``int``, ``float`` and ``str`` options take one value; ``bool`` ones none (``--strict``), or ``true`` or ``false``;
    any other annotation takes one or several values, separated, repeated or as a list (``"['a', 'b']"``).

    Args:
        package: whose command line it is, as ``__package__`` gives it.
        commands: command to ``"module:function"``, relative to the package; a module is imported only when called.
        arguments: of the command line; ``None`` for those of this process.

    Returns:
        The exit status: 0, 1 when the command failed, 2 when the command line is wrong.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger = logging.getLogger(__name__)
    if not arguments or arguments[0] not in commands:
        got = arguments[0] if arguments else "nothing"
        logger.error("Expected a command, one of: %s; got: %s", ", ".join(commands), got)
        return 2
    module, name = commands[arguments[0]].split(":")
    command = getattr(importlib.import_module(f".{module}", package), name)
    return run_function(f"python -m {package} {arguments[0]}", command, arguments[1:])


def run_function(program: str, command: Callable[..., Any], arguments: Sequence[str] | None = None) -> int:
    """Run a function from the command line, as :func:`run_command` does with the one that is named.

    Args:
        program: what is typed before the options.
        command: the function.
        arguments: of the command line; ``None`` for those of this process.

    Returns:
        The exit status: 0, 1 when it failed, 2 when the command line is wrong.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = vars(_parser(program, command).parse_args(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as stop:  # argparse has said why, or has shown the help
        return int(stop.code or 0)
    try:
        command(**{key: _joined(value) for key, value in options.items() if " " not in key and value is not None})
    except Exception as error:
        told = error if isinstance(error, OSError) else user_error_in(error)  # MONAI wraps what graphs raise
        if told is None:
            raise
        logging.getLogger(__name__).error("error: %s", told)
        return 1
    return 0


def _parser(program: str, command: Callable[..., Any]) -> argparse.ArgumentParser:
    """Options from the signature of a command, help from its docstring."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in inspect.signature(command, eval_str=True).parameters.values():
        needed = option.default is inspect.Parameter.empty
        default = None if needed else option.default
        settings: dict[str, Any] = {"required": needed, "default": default, "action": _Once}
        if option.annotation in (int, float, str):
            settings |= {"type": option.annotation}
        elif option.annotation is bool:
            settings |= {"type": _boolean, "nargs": "?", "const": True}
        else:  # one or several
            settings = {"nargs": "+", "action": "append", "required": needed}
        parser.add_argument(f"--{option.name}", **settings)
    return parser


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return _BOOLEANS[text.lower()]


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
