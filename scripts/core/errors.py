"""Errors that are the user's to mend: complete in one line, no traceback needed."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

logger = logging.getLogger(__name__)


class UserError(Exception):
    """Base of all errors whose message says what was expected, what arrived and what to do."""


class SettingError(UserError, ValueError):
    """A setting out of range."""


class DataError(UserError, ValueError):
    """Files that can be read but do not belong together, or hold nothing to work with."""


def refuse(error: type[Exception], *faults: tuple[object, str]) -> None:
    """Raise an error for the first of some faults that holds; none for none.

    Args:
        error: its kind.
        faults: whether it holds, and the message: what was expected, what arrived and what to do.
    """
    for holds, message in faults:
        if holds:
            raise error(message)


def user_error_in(error: BaseException | None) -> UserError | None:
    """Find the :class:`UserError` that an exception was raised from (MONAI wraps what components raise), or ``None``.

    An exception that only arose while a :class:`UserError` was being handled is a fault of its own, and is not hidden.
    """
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def reason_of(error: BaseException) -> str:
    """Why something failed, in a line: the message of the :class:`UserError`, else kind and message of what began it.

    MONAI wraps what a transform raises; the first cause is what counts.
    """
    known = user_error_in(error)
    if known is not None:
        return str(known)
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def is_command_line() -> bool:
    """Whether this process is ``python -m monai.bundle …``, and not a program that uses the graphs."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def prepare_process() -> None:
    """On the command line, :func:`show_user_errors_plainly`; a program that hosts the graphs stays as it is."""
    if is_command_line():
        show_user_errors_plainly()


def show_user_errors_plainly() -> None:
    """From now on an uncaught :class:`UserError` ends the program with its message alone; others as before.

    A global setting of the process: called from the graphs' ``initialize``, never at import.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = user_error_in(error)
        if known is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {known}", file=sys.stderr)

    sys.excepthook = hook
