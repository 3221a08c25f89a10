"""What may be overridden in a graph: one rule for the command line, argument files and Python.

MONAI merges overrides of any origin into one configuration and checks none: a misspelt name is added where nothing
reads it, words of the command line become Python values (``2024_01_15`` the number 20240115), a stray word becomes the
name of the initialisation, which then is skipped, and ``#`` in a path becomes ``::``. :func:`check_run` looks at what
was merged. It stands behind ``scripts_path``, which every component of the graphs requires, and so runs before any of
them is built, whether MONAI initialises or not.
"""

from __future__ import annotations

from ..errors import prepare_process
from .call import OverrideError, find_call
from .names import check_ids, check_names, is_syntax, overrides_of
from .values import PATHS, check_fixed, set_value

__all__ = ["OverrideError", "check_overlay", "check_run"]


def check_overlay() -> None:
    """Refuse to run the evaluation's overlay alone.

    Raises:
        OverrideError: the graph below it is missing.
    """
    prepare_process()
    call = find_call()
    if call is not None and "trainer" not in (call.workflow.parser.get("train") or {}):
        raise OverrideError(
            "expected the training graph below configs/evaluate.json, got evaluate.json alone; use --config_file "
            "\"['configs/train.json', 'configs/evaluate.json']\"."
        )


def check_run() -> None:
    """Check the overrides of the workflow that is being run, and put text in its place as it was typed.

    Where no workflow runs, nothing is checked.

    Raises:
        OverrideError: unknown names, stray or repeated words, values of another kind than the configuration's.
        DeviceError: a device that is not there.
    """
    prepare_process()
    call = find_call()
    if call is None:
        return
    check_ids(call.workflow)
    overrides = overrides_of(call)
    check_names(overrides, call)
    for base in call.bases:
        for name in overrides:
            behind = base.get(name)
            if is_syntax(behind) and behind[1:] in PATHS and behind[1:] in overrides:
                raise OverrideError(f"expected --{behind[1:]} or --{name}, which replaces it, got both; name one.")
    for name, value in overrides.items():
        set_value(call, name, value)
    check_fixed(call, overrides)
