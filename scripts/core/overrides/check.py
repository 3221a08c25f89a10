"""The check of a whole run."""

from __future__ import annotations

from ..errors import show_user_errors_plainly
from .call import OverrideError, bases_of, find_call, read_words
from .names import check_ids, check_names, is_syntax, overrides_of
from .values import PATHS, check_fixed, set_value


def check_overlay() -> None:
    """Refuse to run the evaluation's overlay alone.

    Raises:
        OverrideError: the graph below it is missing.
    """
    call = find_call()
    if call is not None and "trainer" not in (call.workflow.parser.get("train") or {}):
        if call.words is not None:
            show_user_errors_plainly()
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
    call = find_call()
    if call is None:
        return
    words: dict[str, str | None] = {}
    if call.words is not None:
        show_user_errors_plainly()
        words = read_words(call.words)
    check_ids(call.workflow)
    bases = bases_of(call)
    overrides = overrides_of(call, bases, words)
    check_names(overrides, bases, call)
    for base in bases:
        for name in overrides:
            behind = base.get(name)
            if is_syntax(behind) and behind[1:] in PATHS and behind[1:] in overrides:
                raise OverrideError(f"expected --{behind[1:]} or --{name}, which replaces it, got both; name one.")
    for name, value in overrides.items():
        set_value(call.workflow.parser, name, value, words, bases)
    check_fixed(call.workflow.parser, overrides, bases)
