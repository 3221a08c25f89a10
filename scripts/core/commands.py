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
from .text import parse_bool


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
        options = read_options(program, command, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # argparse has said why, or has shown the help
        return int(stop.code or 0)
    try:
        command(**options)
    except Exception as error:
        told = error if isinstance(error, OSError) else user_error_in(error)  # MONAI wraps what graphs raise
        if told is None:
            raise
        logging.getLogger(__name__).error("error: %s", told)
        return 1
    return 0


def read_options(program: str, command: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a command line, by the signature of the command; its docstring is the help.

    Raises:
        SystemExit: 2 when it is wrong, 0 when it asked for help; argparse has said why.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parameters = inspect.signature(command, eval_str=True).parameters
    for name, option in parameters.items():
        kind: dict[str, Any] = {"nargs": "+"}  # one or several
        if option.annotation in (int, float, str):
            kind = {"type": option.annotation}
        elif option.annotation is bool:
            kind = {"type": true_or_false, "nargs": "?", "const": True}
        parser.add_argument(f"--{name}", action="append", required=option.default is inspect.Parameter.empty, **kind)
    options = {name: values for name, values in vars(parser.parse_args(arguments)).items() if values is not None}
    for name, values in options.items():
        if isinstance(values[0], list):
            options[name] = [text for group in values for given in group for text in _listed(given)]
        elif len(values) > 1:
            parser.error(f"expected --{name} once, got it again; name one value")
        else:
            options[name] = values[0]
    return options


def true_or_false(text: str) -> bool:
    """For argparse, which names it in its message."""
    return parse_bool("option", text)


def _listed(text: str) -> list[str]:
    """A list in the spelling of the bundle's configs (``"['a', 'b']"``), or a single text."""
    try:
        return [str(item) for item in ast.literal_eval(text)] if text.startswith("[") else [text]
    except (ValueError, SyntaxError):  # a path that begins so
        return [text]
