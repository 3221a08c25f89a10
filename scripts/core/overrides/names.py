"""Which names may be overridden: what exists, and what a component that exists takes as an argument."""

from __future__ import annotations

import difflib
import inspect
import json
import pydoc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigComponent, ConfigExpression, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow, run, run_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from .call import SEPARATOR, Call, OverrideError, names_in, normal, shown

_REFERENCE = re.compile(r"@(\w+)")
# What other bundles call it.
HABITS = {
    **{"ckpt_path": "checkpoint", "ckpt_dir": "output_dir", "epochs": "max_epochs", "lr": "learning_rate"},
    **{"data_list_file_path": "datalists", "dataset_path": "dataset_dir", "patch_size": "crop_size"},
    **{"amp": "precision", "preset": "network_def"},
}
RECORDS = ("settings", "model_facts")  # say what runs; nothing runs by them
TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # MONAI's, in no configuration
BESIDE_RUN = {"init_id": "initialize", "final_id": "finalize"}  # what runs before and after; a graph may lack them


def is_syntax(value: Any) -> bool:
    """Whether MONAI evaluates a value: an expression, a reference or a macro."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def overrides_of(call: Call, bases: Sequence[ConfigParser], words: Iterable[str]) -> dict[str, Any]:
    """Names and values that are not from the files; ``None`` for a word that MONAI took for no value."""
    own = _own_options(call)
    if call.given is None:
        merged = call.workflow.parser.get()
        used = set(_REFERENCE.findall(json.dumps(merged, default=str)))
        return dict(_added(merged, bases, own | used)) if bases else {}
    given = {normal(name): value for name, value in call.given.items()}
    return {name: given.get(name) for name in dict.fromkeys((*given, *words)) if name not in own}


def check_ids(workflow: ConfigWorkflow) -> None:
    """Refuse to run what is no run, and to leave out the initialisation.

    Raises:
        OverrideError: see above.
    """
    parser = workflow.parser
    advice = "name the right configuration, and put a value with spaces or * in quotes."
    others = ("imports", *BESIDE_RUN.values())
    if workflow.run_id in others or not _is_run(parser.get(workflow.run_id)):
        known = [name for name in parser.get() if name not in others and isinstance(parser.get(name), list)]
        known = [name for name in known if _is_run(parser.get(name))]
        raise OverrideError(f"expected something to run ({', '.join(known)}), got {workflow.run_id!r}; {advice}")
    for option, usual in BESIDE_RUN.items():
        value = getattr(workflow, option)
        if value != usual and value not in parser:
            raise OverrideError(f"--{option}: expected a name of the configuration, got {value!r}; {advice}")


def _is_run(content: Any) -> bool:
    """Whether something happens when it is evaluated."""
    if isinstance(content, list):
        return any(isinstance(part, dict | list) or is_syntax(part) for part in content)
    return is_syntax(content) or ConfigComponent.is_instantiable(content)


def check_names(overrides: Iterable[str], bases: Sequence[ConfigParser], call: Call) -> None:
    """Refuse what nothing would read, and what would make the record of the run wrong.

    Raises:
        OverrideError: all unknown names, each with the nearest known one; see also :func:`_check_record`.
    """
    known = list(dict.fromkeys(name for base in bases for name in names_in(base.get()) if name != "_meta_"))
    unknown = [name for name in overrides if not _has_place(name, bases, call.workflow.parser)]
    if unknown:
        hints = [f"--{shown(n)} (did you mean {_nearest(n, known, call.workflow.parser)}?)" for n in unknown]
        raise OverrideError(f"expected names that the configuration has, got {'; '.join(hints)}.")
    for base in bases:
        for name in overrides:
            _check_record(name, base)


def _own_options(call: Call) -> set[str]:
    """Names that are MONAI's own, and those that it adds to track an experiment."""
    functions = (run, run_workflow, create_workflow, type(call.workflow).__init__)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    tracking = (call.given or {}).get("tracking")
    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        tracking = DEFAULT_EXP_MGMT_SETTINGS[tracking]
    added = ConfigParser.load_config_files(tracking)["configs"] if tracking else {}
    return (names | {*TRACKING, "_meta_"} | set(added)) - {"override", "output_dir", "trainer", "kwargs"}


def _added(merged: Any, bases: Sequence[ConfigParser], skip: set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of what a merged configuration has and none of the files; of a component that is new, nothing.

    ``skip`` are names that need no place in the files, since they are MONAI's, or others refer to them.
    """
    parts = merged.items() if isinstance(merged, dict) else enumerate(merged)
    for key, value in parts:
        name = f"{above}{SEPARATOR}{key}" if above else str(key)
        there = [base for base in bases if name in base]
        nested = [base for base in there if isinstance(value, dict | list) and type(base.get(name)) is type(value)]
        if nested and not isinstance(value, list):
            same = [b for b in nested if b.get(name).get("_target_") == value.get("_target_")]
            yield from _added(value, same, skip, name) if same else ()
        elif nested and any(isinstance(part, dict | list) for part in value):
            yield from _added(value, nested, skip, name)
        elif any(_is_same(value, base.get(name)) for base in there) or (name in skip and not there):
            continue
        elif there or not (isinstance(merged, list) or _may_be_of_a_file(value)):
            yield name, value


def _is_same(value: Any, other: Any) -> bool:
    """Whether a value is that of a file, though MONAI may have resolved it since."""
    if isinstance(other, str) and isinstance(value, str):
        return other.replace("#", SEPARATOR) == value.replace("#", SEPARATOR)
    return (isinstance(other, str) and other.startswith("%")) or (type(value) is type(other) and bool(value == other))


def _may_be_of_a_file(value: Any) -> bool:
    """Whether something new may come from a file that is not known: a component, or steps to run."""
    return isinstance(value, dict | list) and ("_target_" in json.dumps(value, default=str) or _is_run(value))


def _has_place(name: str, bases: Sequence[ConfigParser], merged: ConfigParser) -> bool:
    """Whether a name exists, or adds an argument that the component above it takes."""
    if name and any(name in base for base in bases):
        return True
    above, _, key = name.rpartition(SEPARATOR)
    component: Any = merged.get(above) if above else None
    if not ConfigComponent.is_instantiable(component):
        return False
    arguments = _arguments_of(component, merged)
    return arguments is None or key in arguments | ConfigComponent.non_arg_keys


def _arguments_of(component: Mapping[str, Any], parser: ConfigParser) -> set[str] | None:
    """Names of the arguments that a component's target takes; ``None`` where they cannot be known."""
    target = ConfigComponent(config=dict(component), locator=parser.locator).resolve_module_name()
    if not isinstance(target, str) or ConfigExpression.is_expression(target):
        return None
    found = pydoc.locate(target)
    if not callable(found):
        return None
    above = [vars(kind)["__init__"] for kind in getattr(found, "__mro__", ()) if "__init__" in vars(kind)]
    names: set[str] = set()
    for function in above or [found]:  # an initialiser with **settings passes them to the one above it
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return names if above else None


def _nearest(name: str, known: Sequence[str], merged: ConfigParser) -> str:
    """The names most like one, of its own place where there are any."""
    above = name.rpartition(SEPARATOR)[0]
    component: Any = merged.get(above) if above else None
    arguments = _arguments_of(component, merged) if ConfigComponent.is_instantiable(component) else None
    beside = [other for other in known if other.rpartition(SEPARATOR)[0] == above]
    beside += [f"{above}{SEPARATOR}{argument}" for argument in sorted(arguments or ())]
    choice = list(dict.fromkeys(beside)) or list(known)
    if HABITS.get(name) in choice:
        return HABITS[name]
    near = difflib.get_close_matches(name, choice, 2) or difflib.get_close_matches(name, choice, 1, cutoff=0.0)
    return " or ".join(map(shown, near)) or "…"


def _check_record(name: str, base: ConfigParser) -> None:
    """Refuse to set what only says how the run was, or one of several places that one knob sets together.

    Raises:
        OverrideError: see above.
    """
    record, content = base.get("settings"), base.get(name)
    if not isinstance(record, dict) or name not in base:
        return
    levels = name.split(SEPARATOR)
    if levels[0] in RECORDS or content in [f"@{part}" for part in RECORDS]:
        instead = f"set --{levels[-1]}" if levels[-1] in base else "leave it out"
        raise OverrideError(f"--{shown(name)}: expected a setting, got a part of the record of what ran; {instead}.")
    knob = content[1:] if isinstance(content, str) and content.startswith("@") else ""
    if knob in record:
        places = [n for n in names_in(base.get()) if base.get(n) == content and n.split(SEPARATOR)[0] not in RECORDS]
        if len(places) > 1:
            raise OverrideError(
                f"--{shown(name)}: expected one value in all {len(places)} places of {knob}, got one for this place "
                f"alone; set --{knob}."
            )
