"""Errors that are the user's to mend end the program with their message alone; faults keep their traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.core.errors import UserError, reason_of, show_user_errors_plainly, user_error_in
from tests.bundle import ROOT


class ScanRefused(UserError, ValueError):
    """As the modules define theirs."""


def wrapped(error: Exception, times: int) -> Exception:
    """As MONAI does: RuntimeError from RuntimeError from … from the error."""
    for number in range(times):
        try:
            raise RuntimeError(f"layer {number}") from error
        except RuntimeError as outer:
            error = outer
    return error


@pytest.mark.parametrize("times", [0, 1, 3])
def test_user_error_is_found_below_any_number_of_wrappings(times: int) -> None:
    error, fault = ScanRefused("scan.nii: expected CT"), ZeroDivisionError("division by zero")
    assert user_error_in(wrapped(error, times)) is error
    assert user_error_in(wrapped(fault, times)) is user_error_in(None) is None
    assert reason_of(wrapped(error, times)) == "scan.nii: expected CT"
    assert reason_of(wrapped(fault, times)) == "ZeroDivisionError: division by zero"


def test_fault_while_handling_a_user_error_is_not_hidden_by_it() -> None:
    fault = KeyError("image")
    fault.__context__ = ScanRefused("scan.nii: expected CT")
    assert user_error_in(fault) is None


def test_hook_prints_a_users_message_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    show_user_errors_plainly()
    error = wrapped(ScanRefused("scan.nii: expected CT, got MR"), 2)
    sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr() == ("", "error: scan.nii: expected CT, got MR\n")
    error = wrapped(KeyError("image"), 1)
    sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert all(part in shown for part in ("Traceback", "KeyError: 'image'", "RuntimeError: layer 0"))


def test_program_ends_with_code_1() -> None:
    """And an import alone changes nothing of it."""
    code = "import sys; hook = sys.excepthook; from scripts.core.errors import *; assert sys.excepthook is hook; "
    code += "show_user_errors_plainly(); raise UserError('x.nii: expected CT')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "error: x.nii: expected CT\n")
