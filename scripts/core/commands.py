"""Command lines: ``python -m PACKAGE COMMAND --option value …``; ``COMMAND --help`` explains a command.

A command is a function whose arguments are all keyword options. Its signature defines the options and its docstring
documents them. All options are checked before anything runs: a misspelt or repeated option, or a value of the wrong
type, is refused. (MONAI's own command line, which fire parses, notices a misspelt option only after the command has
run without it.)
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

from .errors import user_error_in
from .text import parse_bool


def run_command(package: str, commands: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run one command of a package; its options are those of the function's signature.

    An ``int``, ``float`` or ``str`` option takes one value. A ``bool`` option takes none (``--strict``), or ``true`` or
    ``false``. An option with any other annotation takes one or more values: separated by spaces, by repeating the
    option, or as a list (``"['a', 'b']"``).

    Args:
        package: the package whose command line this is, as in ``__package__``.
        commands: maps each command to ``"module:function"``, relative to the package; a module is imported only when
            its command is called.
        arguments: the words of the command line; ``None`` for those of this process.

    Returns:
        The exit status: 0 on success, 1 if the command failed, 2 if the command line is wrong.
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
    """Run a function with options from the command line, as :func:`run_command` does for a named command.

    Args:
        program: what is typed before the options; shown in the help.
        command: the function.
        arguments: the words of the command line; ``None`` for those of this process.

    Returns:
        The exit status: 0 on success, 1 if the function failed, 2 if the command line is wrong.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options = read_options(program, command, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # argparse has printed the reason, or the help
        return int(stop.code or 0)
    try:
        command(**options)
    except Exception as error:
        reported = error if isinstance(error, OSError) else user_error_in(error)  # MONAI wraps what graphs raise
        if reported is None:
            raise
        logging.getLogger(__name__).error("error: %s", reported)
        return 1
    return 0


def read_options(program: str, command: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Parse a command line by the signature of its command; the command's docstring is the help text.

    Returns:
        The value of each option that was given, by name.

    Raises:
        SystemExit: with status 2 if the command line is wrong, or 0 after showing the help; argparse has printed the
            reason.
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
            parser.error(f"expected --{name} once, got it again; give one value")
        else:
            options[name] = values[0]
    return options


def true_or_false(text: str) -> bool:
    """Parse a boolean option; argparse shows this function's name in its error message."""
    return parse_bool("option", text)


def _listed(text: str) -> list[str]:
    """Return the items of a list as the bundle's configs write it (``"['a', 'b']"``), or the text as the only item."""
    try:
        return [str(item) for item in ast.literal_eval(text)] if text.startswith("[") else [text]
    except (ValueError, SyntaxError):  # a path that begins with "["
        return [text]
