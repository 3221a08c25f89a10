"""How a workflow was created: from which files, with which overrides, by which words of the command line."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire.core
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow

from ..errors import UserError, is_command_line
from ..paths import CONFIGS

SEPARATOR = "::"  # between the levels of a name; MONAI also accepts "#"


class OverrideError(UserError, ValueError):
    """The configuration has no place for a name, word or value."""


@dataclass(frozen=True)
class Call:
    """How a workflow was created.

    Attributes:
        workflow: the workflow, with its merged configuration.
        bases: the configuration without overrides; if its files are unknown, all that it may have been made from.
        given: the arguments of ``monai.bundle`` and of its argument file, as given; ``None`` if the workflow was
            created in another way.
        words: the options of the command line, see :func:`read_words`; empty if there is none.
    """

    workflow: ConfigWorkflow
    bases: Sequence[ConfigParser]
    given: Mapping[str, Any] | None
    words: Mapping[str, str | None]


def normal(name: str) -> str:
    """Return a name as fire and MONAI read it, with its levels separated by :data:`SEPARATOR`."""
    return name.replace("-", "_").replace("#", SEPARATOR)


def shown(name: str) -> str:
    """Return a name as it is typed, with its levels separated by ``#``."""
    return name.replace(SEPARATOR, "#")


def find_call() -> Call | None:
    """Return the innermost workflow on the call stack, ``None`` if there is none.

    The call stack is searched because MONAI does not pass the workflow to its components.

    Raises:
        OverrideError: see :func:`read_words`.
    """
    workflow: ConfigWorkflow | None = None
    for frame, _ in traceback.walk_stack(sys._getframe()):
        values = frame.f_locals
        if workflow is None and isinstance(values.get("self"), ConfigWorkflow):
            workflow = values["self"]
        elif workflow is not None and frame.f_code is create_workflow.__code__ and values["workflow_"] is workflow:
            bases = [ConfigParser(ConfigParser.load_config_files(values["config_file"]))]
            return Call(workflow, bases, {normal(name): v for name, v in values["_args"].items()}, _words())
    return None if workflow is None else Call(workflow, _possible_bases(workflow), None, _words())


def _words() -> dict[str, str | None]:
    return read_words(sys.argv[1:]) if is_command_line() else {}


def read_words(words: Sequence[str]) -> dict[str, str | None]:
    """Return the value of each option of a command line by name, paired as fire does; ``None`` if it has no value.

    Args:
        words: the words of the command line; the first is the command.

    Raises:
        OverrideError: a word belongs to no option, or an option is given twice.
    """
    options: list[tuple[str, str | None]] = []
    stray: list[str] = []
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word in ("-", "--") or not fire.core._IsFlag(word):
            stray.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        follows = bool(rest) and not fire.core._IsFlag(rest[0])
        options.append((normal(name), value if equals else rest.pop(0) if follows else None))
    given = dict(options)
    if not given.keys() & {"run_id", "workflow_name"}:
        stray = stray[1:]  # the first argument of MONAI's function
    if stray:
        raise OverrideError(
            f"expected --name value, got {', '.join(map(repr, stray[:5]))} without a name; quote a value with spaces "
            "or *, and for several scans give their folder or a datalist."
        )
    for name, count in Counter(name for name, _ in options).items():
        if count > 1:
            values = ", ".join(repr(value) for other, value in options if other == name)
            raise OverrideError(f"--{shown(name)}: expected it once, got it {count} times ({values}); give one value.")
    return given


def _possible_bases(workflow: ConfigWorkflow) -> list[ConfigParser]:
    """Return the configurations beside the first file, and of this bundle, whose names all occur in the merged one."""
    folders = dict.fromkeys((Path(workflow.config_root_path).resolve(), CONFIGS))
    loaded = [parser for folder in folders for parser in _loadable(folder)]
    return [parser for parser in loaded if all(name in workflow.parser for name in parser.get())]


def _loadable(folder: Path) -> Iterator[ConfigParser]:
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".yaml", ".yml"):
            with contextlib.suppress(Exception):
                yield ConfigParser(ConfigParser.load_config_file(path))


def names_in(content: Any, above: str = "") -> list[str]:
    """Return all names of a configuration; each comes before those nested in it."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    below = [(f"{above}{SEPARATOR}{key}" if above else str(key), part) for key, part in parts]
    return [*(name for name, _ in below), *(name for own, part in below for name in names_in(part, own))]
