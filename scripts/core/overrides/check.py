"""The check of a whole run."""

from __future__ import annotations

from ..errors import prepare_process
from .call import OverrideError, find_call
from .names import check_ids, check_names, is_syntax, overrides_of
from .values import PATHS, check_fixed, set_value


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
