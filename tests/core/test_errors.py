"""Errors that are the user's to mend end the program with their message alone; faults keep their traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.core.errors import UserError, reason_of, show_user_errors_plainly, user_error_in

ROOT = Path(__file__).resolve().parents[2]


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
    error = ScanRefused("scan.nii: expected CT")
    assert user_error_in(wrapped(error, times)) is error


@pytest.mark.parametrize("times", [0, 2])
def test_other_errors_hold_none(times: int) -> None:
    assert user_error_in(wrapped(KeyError("image"), times)) is None


def test_no_error_holds_none() -> None:
    assert user_error_in(None) is None


@pytest.mark.parametrize("times", [0, 2])
def test_a_reason_is_the_users_message_or_the_first_cause(times: int) -> None:
    assert reason_of(wrapped(ScanRefused("scan.nii: expected CT"), times)) == "scan.nii: expected CT"
    assert reason_of(wrapped(ZeroDivisionError("division by zero"), times)) == "ZeroDivisionError: division by zero"


def fault_while_handling() -> None:
    try:
        raise ScanRefused("scan.nii: expected CT")
    except ScanRefused:
        {}["missing"]


def test_fault_while_handling_a_user_error_is_not_hidden_by_it() -> None:
    with pytest.raises(KeyError) as caught:
        fault_while_handling()
    assert isinstance(caught.value.__context__, ScanRefused)
    assert user_error_in(caught.value) is None


def test_hook_prints_the_message_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    show_user_errors_plainly()
    error = wrapped(ScanRefused("scan.nii: expected CT, got MR"), 2)
    sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr() == ("", "error: scan.nii: expected CT, got MR\n")


def test_hook_shows_other_errors_with_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    show_user_errors_plainly()
    error = wrapped(KeyError("image"), 1)
    sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "KeyError: 'image'" in shown
    assert "RuntimeError: layer 0" in shown


@pytest.mark.parametrize(
    ("raised", "shown"), [("UserError('x.nii: expected CT')", "error: x.nii: expected CT\n"), ("KeyError('x')", None)]
)
def test_program_ends_with_code_1(raised: str, shown: str | None) -> None:
    code = f"from scripts.core.errors import *; show_user_errors_plainly(); raise {raised}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == shown if shown else "Traceback" in result.stderr


def test_importing_changes_nothing_of_the_process() -> None:
    code = "import sys; hook = sys.excepthook; import scripts.core.errors; assert sys.excepthook is hook"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
