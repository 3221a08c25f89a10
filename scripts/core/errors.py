"""Errors that the user can fix: each message is one complete line and needs no traceback."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

logger = logging.getLogger(__name__)


class UserError(Exception):
    """Base class of all errors whose message says what was expected, what was found and what to do."""


class SettingError(UserError, ValueError):
    """A setting is out of range, or names something that does not exist."""


class DataError(UserError, ValueError):
    """Files can be read, but do not belong together or contain nothing to work with."""


def user_error_in(error: BaseException | None) -> UserError | None:
    """Return the :class:`UserError` that an exception is or was raised from, or ``None`` (MONAI wraps exceptions).

    An exception that merely occurred while a :class:`UserError` was being handled is a separate fault and stays
    visible.
    """
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def reason_of(error: BaseException) -> str:
    """Return in one line why something failed: the :class:`UserError`'s message, or the root cause's type and message.

    MONAI wraps the exceptions that transforms raise; the root cause is the informative one.
    """
    known = user_error_in(error)
    if known is not None:
        return str(known)
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def line_of(error: BaseException) -> str:
    """Return the last line of an exception's message, or its type if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:160]


def is_command_line() -> bool:
    """Whether this process is ``python -m monai.bundle …`` rather than a program that uses the graphs."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


def prepare_process() -> None:
    """On the command line, call :func:`show_user_errors_plainly`; a program that uses the graphs is left unchanged."""
    if is_command_line():
        show_user_errors_plainly()


def show_user_errors_plainly() -> None:
    """Make an uncaught :class:`UserError` end the program with only its message; other exceptions show as before.

    This changes a global setting of the process, so it is never called at import.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = user_error_in(error)
        if known is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {known}", file=sys.stderr)

    sys.excepthook = hook
