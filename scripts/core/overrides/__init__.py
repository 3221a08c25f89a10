"""What may be overridden in a graph: the same rules for the command line, argument files and Python.

MONAI merges overrides from any source into one configuration and checks none of them: a misspelt name is added where
nothing reads it, words of the command line become Python values (``2024_01_15`` becomes the number 20240115), a stray
word becomes the name of the initialisation, which is then skipped, and ``#`` in a path becomes ``::``.
:func:`check_run` checks the merged result. It is called through ``scripts_path``, which every component of the graphs
requires, and so runs before any of them is built, whether or not MONAI runs the initialisation.
"""

from __future__ import annotations

from ..errors import prepare_process
from .call import OverrideError, find_call
from .names import check_ids, check_names, is_syntax, overrides_of
from .values import PATHS, check_fixed, set_value

__all__ = ["OverrideError", "check_overlay", "check_run"]


def check_overlay() -> None:
    """Refuse to run the overlay ``configs/evaluate.json`` alone.

    Raises:
        OverrideError: the training graph that it overlays is missing.
    """
    prepare_process()
    call = find_call()
    if call is not None and "trainer" not in (call.workflow.parser.get("train") or {}):
        raise OverrideError(
            "expected the training graph below configs/evaluate.json, got evaluate.json alone; use --config_file "
            "\"['configs/train.json', 'configs/evaluate.json']\"."
        )


def check_run() -> None:
    """Check the overrides of the running workflow, and restore text values as they were typed.

    If no workflow is running, nothing is checked.

    Raises:
        OverrideError: there are unknown names, stray or repeated words, or values of another type than in the
            configuration.
        SettingError: a device does not exist.
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
