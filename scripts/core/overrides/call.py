"""How a workflow was made: from which files, with which overrides, by which words of a command line."""

from __future__ import annotations

import copy
import inspect
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import fire.core
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow, run, run_workflow, update_kwargs

from ..errors import UserError

SEPARATOR = "::"  # between the levels of a name; MONAI takes "#" as well
CONFIGS = Path(__file__).resolve().parents[3] / "configs"

_MAKERS: tuple[Callable[..., Any], ...] = (run, run_workflow, create_workflow)


class OverrideError(UserError, ValueError):
    """A name, word or value that the configuration has no place for."""


@dataclass(frozen=True)
class Call:
    """How a workflow was made.

    Attributes:
        workflow: with the merged configuration.
        given: arguments of ``monai.bundle.run`` and of its argument file, as they were given; ``None`` where the
            workflow was made in another way.
        words: of the command line, from ``run`` on; ``None`` without one.
    """

    workflow: ConfigWorkflow
    given: Mapping[str, Any] | None = None
    words: tuple[str, ...] | None = None


def normal(name: str) -> str:
    """A name as fire and MONAI read it, its levels separated by :data:`SEPARATOR`."""
    return name.replace("-", "_").replace("#", SEPARATOR)


def shown(name: str) -> str:
    """A name as it is typed."""
    return name.replace(SEPARATOR, "#")


def find_call() -> Call | None:
    """The innermost workflow on the call stack, ``None`` for none: MONAI hands no component its workflow."""
    workflow: ConfigWorkflow | None = None
    given = None
    by_fire = False
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        values, code = frame.f_locals, frame.f_code
        if workflow is None:
            workflow = values["self"] if isinstance(values.get("self"), ConfigWorkflow) else None
        elif by_fire and code is fire.core.Fire.__code__:
            ignored = ["--", *values["flag_args"]] if values["flag_args"] else []
            return Call(workflow, given, (*values["args"], *ignored))
        elif code in [maker.__code__ for maker in _MAKERS]:
            if given is None and any(values.get(name) is workflow for name in ("workflow", "workflow_")):
                given = _given(values, code)
            by_fire = frame.f_back is not None and frame.f_back.f_code is fire.core._CallAndUpdateTrace.__code__
    return None if workflow is None else Call(workflow, given)


def _given(values: Mapping[str, Any], code: CodeType) -> dict[str, Any]:
    """The arguments of a function that makes a workflow over those of its argument file, which is read afresh."""
    (maker,) = (maker for maker in _MAKERS if maker.__code__ is code)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(maker).parameters.items():
        arguments |= values[name] if parameter.kind is parameter.VAR_KEYWORD else {name: values[name]}
    return dict(update_kwargs(copy.deepcopy(arguments.pop("args_file")), **arguments))


def read_words(words: Sequence[str]) -> dict[str, str | None]:
    """Name and value of each option of a command line, as fire pairs them; ``None`` for an option without a value.

    Args:
        words: the first is the command.

    Raises:
        OverrideError: a word that belongs to no option, or an option given twice.
    """
    options: list[tuple[str, str | None]] = []
    positions: list[str] = []
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word in ("-", "--") or not fire.core._IsFlag(word):
            positions.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        follows = bool(rest) and not fire.core._IsFlag(rest[0])
        options.append((normal(name), value if equals else rest.pop(0) if follows else None))
    given = dict(options)
    allowed = 0 if given.keys() & {"run_id", "workflow_name"} else 1
    _check_stray(positions[allowed:])
    _check_repeated(options)
    return given


def _check_stray(words: Sequence[str]) -> None:
    if words:
        raise OverrideError(
            f"expected --name value, got {', '.join(map(repr, words[:5]))} beside it; put a value with spaces or * in "
            "quotes, and for several scans name their folder or a datalist."
        )


def _check_repeated(options: Iterable[tuple[str, str | None]]) -> None:
    for name, count in Counter(name for name, _ in options).items():
        if count > 1:
            values = ", ".join(repr(value) for other, value in options if other == name)
            raise OverrideError(f"--{shown(name)}: expected it once, got it {count} times ({values}); name one value.")


def bases_of(call: Call) -> list[ConfigParser]:
    """The configuration without overrides; where its files are not known, what it may have been, none where unknown."""
    if call.given is not None and call.given.get("config_file"):
        return [ConfigParser(ConfigParser.load_config_files(call.given["config_file"]))]
    merged = call.workflow.parser
    found: list[tuple[int, ConfigParser]] = []
    for folder in dict.fromkeys((Path(call.workflow.config_root_path).resolve(), CONFIGS)):
        for parser in _loadable(folder):
            if all(name in merged for name in parser.get()):
                found.append((sum(name in merged for name in names_in(parser.get())), parser))
    most = max((count for count, _ in found), default=0)
    return [parser for count, parser in found if count == most]


def _loadable(folder: Path) -> Iterable[ConfigParser]:
    """The configuration files of a folder, alone and laid over each other where they fit."""
    files = [str(f) for f in sorted(folder.glob("*")) if f.suffix in (".json", ".yaml", ".yml")]
    for chosen in itertools.chain(((file,) for file in files), itertools.permutations(files, 2)):
        try:
            yield ConfigParser(ConfigParser.load_config_files(list(chosen)))
        except Exception:
            continue


def names_in(content: Any, above: str = "") -> list[str]:
    """All names of a configuration, the upper ones first."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    below = [(f"{above}{SEPARATOR}{key}" if above else str(key), part) for key, part in parts]
    return [*(name for name, _ in below), *(name for own, part in below for name in names_in(part, own))]
