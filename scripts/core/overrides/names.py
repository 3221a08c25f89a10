"""Which names may be overridden: those that exist, and arguments that an existing component accepts."""

from __future__ import annotations

import difflib
import inspect
import json
import pydoc
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from monai.bundle import ConfigComponent, ConfigExpression, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow, run

from .call import SEPARATOR, Call, OverrideError, names_in, shown

_REFERENCE = re.compile(r"@(\w+)")
# Names used by other bundles, and ours for the same setting.
HABITS = {
    "ckpt_path": "checkpoint",
    "ckpt_dir": "output_dir",
    "epochs": "max_epochs",
    "lr": "learning_rate",
    "data_list_file_path": "datalists",
    "dataset_path": "dataset_dir",
    "patch_size": "crop_size",
    "amp": "precision",
    "preset": "network_def",
}
RECORDS = ("settings", "model_facts")  # describe what runs; changing them does not change the run
BESIDE_RUN = {"init_id": "initialize", "final_id": "finalize"}  # run before and after; a graph may lack them
# MONAI's own arguments, and those it adds for experiment tracking: they occur in no configuration.
_OWN = {
    *inspect.signature(run).parameters,
    *inspect.signature(create_workflow).parameters,
    *inspect.signature(ConfigWorkflow.__init__).parameters,
    "tracking_uri",
    "experiment_name",
    "run_name",
    "save_execute_config",
    "_meta_",
} - {"override", "kwargs"}


def is_syntax(value: Any) -> bool:
    """Whether MONAI evaluates a value, because it is an expression, a reference or a macro."""
    return isinstance(value, str) and value[:1] in ("$", "@", "%")


def overrides_of(call: Call) -> dict[str, Any]:
    """Return the names and values that do not come from the files; ``None`` for an option whose value MONAI dropped."""
    if call.given is not None:
        names = dict.fromkeys((*call.given, *call.words))
        return {name: call.given.get(name) for name in names if name not in _OWN}
    merged = call.workflow.parser.get()
    used = set(_REFERENCE.findall(json.dumps(merged, default=str)))
    return dict(_added(merged, call.bases, _OWN | used)) if call.bases else {}


def check_ids(workflow: ConfigWorkflow) -> None:
    """Refuse a ``run_id`` that names nothing to run, and an ``init_id`` or ``final_id`` that would be skipped.

    Raises:
        OverrideError: one of them is wrong.
    """
    parser = workflow.parser
    advice = "check --config_file, and quote a value with spaces or *."
    runs = [name for name, content in parser.get().items() if isinstance(content, list) and _is_run(content)]
    others = ("imports", *BESIDE_RUN.values())
    if workflow.run_id in others or not _is_run(parser.get(workflow.run_id)):
        known = ", ".join(name for name in runs if name not in others)
        raise OverrideError(f"expected something to run ({known}), got {workflow.run_id!r}; {advice}")
    for option, usual in BESIDE_RUN.items():
        value = getattr(workflow, option)
        if value != usual and value not in parser:
            raise OverrideError(f"--{option}: expected a name in the configuration, got {value!r}; {advice}")


def _is_run(content: Any) -> bool:
    """Whether evaluating this content does something."""
    if isinstance(content, list):
        return any(isinstance(part, dict | list) or is_syntax(part) for part in content)
    return is_syntax(content) or ConfigComponent.is_instantiable(content)


def check_names(overrides: Iterable[str], call: Call) -> None:
    """Refuse overrides that nothing would read, and those that would falsify the record of the run.

    Raises:
        OverrideError: there are unknown names; the message lists all of them, each with the most similar known name.
            See also :func:`_check_record`.
    """
    merged = call.workflow.parser
    unknown = [name for name in overrides if not _has_place(name, call.bases, merged)]
    if unknown:
        known = list(dict.fromkeys(name for base in call.bases for name in names_in(base.get())))
        hints = [f"--{shown(name)} (did you mean {_nearest(name, known, merged)}?)" for name in unknown]
        raise OverrideError(f"expected names in the configuration, got {'; '.join(hints)}.")
    for base in call.bases:
        for name in overrides:
            _check_record(name, base)


def _added(merged: Any, bases: Sequence[ConfigParser], skip: set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and value of what a merged configuration has and none of the files has.

    Nothing is yielded for a new component or for one whose target differs. ``skip`` lists names that need not occur in
    the files, because they are MONAI's own or others refer to them.
    """
    for key, value in merged.items() if isinstance(merged, dict) else enumerate(merged):
        name = f"{above}{SEPARATOR}{key}" if above else str(key)
        there = [base.get(name) for base in bases if name in base]
        alike = [other for other in there if type(other) is type(value)]
        if alike and isinstance(value, dict):
            if any(other.get("_target_") == value.get("_target_") for other in alike):
                yield from _added(value, bases, skip, name)
        elif alike and isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
            yield from _added(value, bases, skip, name)
        elif there:
            if not any(_is_same(value, other) for other in there):
                yield name, value
        elif not (name in skip or isinstance(merged, list) or _may_be_of_a_file(value)):
            yield name, value


def _is_same(value: Any, other: Any) -> bool:
    """Whether a value equals that of a file, which MONAI may have resolved since."""
    if isinstance(other, str) and isinstance(value, str):
        return other.replace("#", SEPARATOR) == value.replace("#", SEPARATOR)
    return (isinstance(other, str) and other.startswith("%")) or (type(value) is type(other) and bool(value == other))


def _may_be_of_a_file(value: Any) -> bool:
    """Whether a new value may come from an unknown file, because it is a component or steps to run."""
    return isinstance(value, dict | list) and ("_target_" in json.dumps(value, default=str) or _is_run(value))


def _has_place(name: str, bases: Sequence[ConfigParser], merged: ConfigParser) -> bool:
    """Whether a name exists, or adds an argument that its parent component accepts."""
    if name and any(name in base for base in bases):
        return True
    above, _, key = name.rpartition(SEPARATOR)
    if not ConfigComponent.is_instantiable(merged.get(above) if above else None):
        return False
    arguments = _arguments_of(above, merged)
    return arguments is None or key in arguments | ConfigComponent.non_arg_keys


def _arguments_of(name: str, parser: ConfigParser) -> set[str] | None:
    """Return the names of the arguments that a component's target accepts; ``None`` if they cannot be known."""
    target = ConfigComponent(config=dict(parser.get(name)), locator=parser.locator).resolve_module_name()
    found = pydoc.locate(target) if isinstance(target, str) and not ConfigExpression.is_expression(target) else None
    if not callable(found):
        return None
    kinds = [vars(kind) for kind in inspect.getmro(found)] if inspect.isclass(found) else [{"__init__": found}]
    names: set[str] = set()
    for function in [kind["__init__"] for kind in kinds if "__init__" in kind]:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # otherwise the base class takes the rest
            return names
    return names if inspect.isclass(found) else None


def _nearest(name: str, known: Sequence[str], merged: ConfigParser) -> str:
    """Return the known names most similar to a name, preferably on its own level."""
    above = name.rpartition(SEPARATOR)[0]
    beside = [other for other in known if other.rpartition(SEPARATOR)[0] == above]
    if above and ConfigComponent.is_instantiable(merged.get(above)):
        beside += [f"{above}{SEPARATOR}{argument}" for argument in sorted(_arguments_of(above, merged) or ())]
    choice = list(dict.fromkeys(beside)) or list(known)
    if HABITS.get(name) in choice:
        return HABITS[name]
    near = difflib.get_close_matches(name, choice, 2) or difflib.get_close_matches(name, choice, 1, cutoff=0.0)
    return " or ".join(map(shown, near)) or "…"


def _check_record(name: str, base: ConfigParser) -> None:
    """Refuse to set what only records the run, or one of several places that a single setting controls together.

    Raises:
        OverrideError: the name is such a place.
    """
    record, content = base.get("settings"), base.get(name)
    if not isinstance(record, dict) or name not in base:
        return
    levels = name.split(SEPARATOR)
    if levels[0] in RECORDS or content in [f"@{part}" for part in RECORDS]:
        instead = f"set --{levels[-1]}" if levels[-1] in base else "leave it out"
        raise OverrideError(f"--{shown(name)}: expected a setting, got a part of the record of what ran; {instead}.")
    if not isinstance(content, str) or content[:1] != "@" or not {content, content[1:]} & {*record, *record.values()}:
        return
    places = [n for n in names_in(base.get()) if base.get(n) == content and n.split(SEPARATOR)[0] not in RECORDS]
    if len(places) > 1:
        knob = content[1:]
        raise OverrideError(
            f"--{shown(name)}: expected one value for all {len(places)} places of {knob}, got one for this "
            f"place alone; set --{knob}."
        )
