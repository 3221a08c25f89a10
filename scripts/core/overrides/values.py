"""What values may be, by what the configuration has in their place; text stays as it was typed."""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigExpression, ConfigParser

from ..devices import checked_device
from ..errors import SettingError
from ..text import parse_bool
from .call import SEPARATOR, OverrideError, shown
from .names import is_syntax

PATHS = ("bundle_root", "input", "dataset_dir", "output_dir", "cache_dir", "image_dir", "checkpoint")
PATH_LISTS = ("datalists",)
WHOLE_NUMBERS = ("windows_at_once", "cache_workers", "val_interval")  # by default expressions, which have no type
SHARES = (
    *("threshold", "candidate_threshold", "mask_threshold", "nms_overlap", "window_overlap", "nodule_share"),
    *("insertion_share", "average_decay"),
)
LEAST: dict[str, float] = {
    **dict.fromkeys(("top_k", "peak_size", "windows_at_once", "batch_size", "epoch_length", "max_epochs"), 1),
    **dict.fromkeys(("val_interval", "log_interval", "crop_size"), 1),
    **dict.fromkeys(("num_workers", "cache_workers", "warmup_iterations", "patience", "seed", "resamples"), 0),
    **dict.fromkeys(("learning_rate", "weight_decay", "gradient_norm", "mask_margin_mm", "smallest_diameter_mm"), 0),
}
# Values that only one thing can say (targets count voxels as millimetres), and how to say it.
FIXED: dict[str, tuple[Any, str]] = {
    "spacing_mm": ([1.0, 1.0, 1.0], "[1.0, 1.0, 1.0], for which targets and weights are made"),
    "stride": ("$@network_def.stride", "the network's"),
}

_REFERENCE = re.compile(r"@\w+((::|#)\w+)*")

Check = Callable[[str, Any, "str | None"], Any]  # name, value, word of the command line if any: the value to take


def set_value(
    parser: ConfigParser, name: str, value: Any, words: dict[str, str | None], bases: Sequence[ConfigParser]
) -> None:
    """Check an override against what the files have in its place, and put text there as it was typed.

    Args:
        parser: of the workflow, already parsed.
        name: with :data:`SEPARATOR`.
        value: as MONAI took it.
        words: of the command line, by name.
        bases: the configuration without overrides; a value that fits one of them will do.

    Raises:
        OverrideError: a value of another kind.
        DeviceError: a device that is not there.
    """
    checks = [_check_for(name, _followed(base.get(name), base), parser) for base in bases if name in base]
    if not checks or None in checks:
        return
    if name in words and words[name] is None and checks[0] is not _switch:
        raise OverrideError(f"--{shown(name)}: expected a value after it, got none; name one.")
    errors = []
    for check in checks:
        try:
            _put(parser, name, check(shown(name), value, words.get(name)))  # type: ignore[misc]
        except OverrideError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def check_fixed(parser: ConfigParser, overrides: dict[str, Any], bases: Sequence[ConfigParser]) -> None:
    """Refuse settings that cannot work.

    Raises:
        OverrideError: another grid than that of targets and weights, or a threshold below that of candidates.
    """
    places = [(name, parser.get(name), name) for name in FIXED if name in parser]
    for base in bases:
        places += [(name, v, knob) for name, v in overrides.items() for knob in FIXED if base.get(name) == f"@{knob}"]
    for name, value, knob in places:
        if value not in (FIXED[knob][0], f"@{knob}"):
            raise OverrideError(f"--{shown(name)}: expected {FIXED[knob][1]}, got {value}; leave it out.")
    least, chosen = parser.get("candidate_threshold"), parser.get("threshold")
    if isinstance(least, float) and isinstance(chosen, int | float) and chosen < least:
        raise OverrideError(
            f"--threshold: expected at least candidate_threshold ({least}), below which nothing is kept, got {chosen}; "
            "raise it, or lower --candidate_threshold."
        )


def _followed(content: Any, base: ConfigParser) -> Any:
    """The value behind references."""
    for _ in range(5):
        if not (isinstance(content, str) and _REFERENCE.fullmatch(content)):
            break
        content = base.get(content[1:])
    return content


def _check_for(name: str, usual: Any, known: ConfigParser) -> Check | None:
    """How to check a value in the place of ``usual``; ``None`` where anything may stand."""
    special: dict[str, Check] = dict.fromkeys(PATHS, functools.partial(_text, known=known, is_path=True))
    special |= dict.fromkeys(WHOLE_NUMBERS, _whole) | dict.fromkeys(PATH_LISTS, _paths) | {"device": _device}
    if name in special:
        return special[name]
    if isinstance(usual, bool):
        return _switch
    if isinstance(usual, int | float):
        return _whole if isinstance(usual, int) else _number
    if isinstance(usual, list) and usual and all(isinstance(part, int | float) for part in usual):
        whole = all(isinstance(part, int) for part in usual)
        return functools.partial(_numbers, count=len(usual), check=_whole if whole else _number)
    return functools.partial(_text, known=known) if isinstance(usual, str) and not is_syntax(usual) else None


def _put(parser: ConfigParser, name: str, value: Any) -> None:
    """Change a value of a configuration that MONAI has parsed already, before it is used."""
    above, _, key = name.rpartition(SEPARATOR)
    inside = parser.get(above)
    inside[int(key) if isinstance(inside, list) else key] = value
    resolver = parser.ref_resolver
    stale = [n for n in resolver.items if n == name or n.startswith(f"{name}{SEPARATOR}")]
    for known in stale:
        resolver.items.pop(known)
        resolver.resolved_content.pop(known, None)
    parser._do_parse(value, name)


def _text(name: str, value: Any, word: str | None, *, known: ConfigParser, is_path: bool = False) -> Any:
    value = value if word is None else word
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise OverrideError(f"{name}: expected text, got {value!r}; put it in quotes.")
    if is_path and word is None:
        _check_unchanged(name, value)
    return value if _is_evaluated(value, known) else _literal(value)


def _check_unchanged(name: str, path: str) -> None:
    """Refuse a path in which MONAI may have made ``::`` of ``#``."""
    if SEPARATOR in path and not ConfigExpression.is_expression(path):
        raise OverrideError(
            f"{name}: expected a path without # and ::, which MONAI takes for one another, got {path!r}; rename it, or "
            "use monai.bundle.run."
        )


def _is_evaluated(text: str, known: ConfigParser) -> bool:
    """Whether MONAI shall evaluate text: an expression (``$HOME/scans`` is none) or a reference to what is there."""
    if Path(text).exists():
        return False
    is_expression = ConfigExpression.is_expression(text) and any(sign in text for sign in "@('\"[")
    return is_expression or (bool(_REFERENCE.fullmatch(text)) and text[1:] in known)


def _literal(text: str) -> str:
    """Text that MONAI passes on as it is: an expression of it where it holds what MONAI reads as syntax."""
    if "#" not in text and "@" not in text and not is_syntax(text):
        return text
    return "$" + re.sub("[#@]", lambda sign: f"\\x{ord(sign[0]):02x}", repr(text))


def _paths(name: str, value: Any, word: str | None) -> Any:
    if word is not None:
        value = DefaultParseValue(word) if word.lstrip().startswith(("[", "(")) else word
    if isinstance(value, str):
        return value if is_syntax(value) else [_literal(value)]
    if not isinstance(value, list | tuple) or not all(isinstance(part, str | Path) for part in value):
        raise OverrideError(f"{name}: expected a list of paths, got {value!r}; write \"['a.json', 'b.json']\".")
    return [part if isinstance(part, Path) or is_syntax(part) else _literal(part) for part in value]


def _switch(name: str, value: Any, word: str | None) -> Any:
    if is_syntax(value):
        return value
    try:
        return parse_bool(name, value)
    except SettingError as error:
        raise OverrideError(str(error)) from None


def _number(name: str, value: Any, word: str | None, kind: type = numbers.Real) -> Any:
    if is_syntax(value):
        return value
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):  # type: ignore[arg-type]
        wanted = "a whole number, such as 3" if kind is numbers.Integral else "a number, such as 0.5"
        raise OverrideError(f"{name}: expected {wanted}, got {value if word is None else word!r}; correct it.")
    if name in SHARES and not 0.0 <= value <= 1.0:  # type: ignore[operator]
        raise OverrideError(f"{name}: expected a number from 0 to 1, got {value}; correct it.")
    if value < LEAST.get(name, -math.inf):  # type: ignore[operator]
        raise OverrideError(f"{name}: expected at least {LEAST[name]}, got {value}; correct it.")
    return value


def _whole(name: str, value: Any, word: str | None) -> Any:
    return _number(name, value, word, numbers.Integral)


def _numbers(name: str, value: Any, word: str | None, *, count: int, check: Check) -> Any:
    if is_syntax(value):
        return value
    if not isinstance(value, list | tuple) or len(value) != count:
        example = [1, 2, 3, 4][:count]
        raise OverrideError(
            f'{name}: expected {count} numbers, such as "{example}", got {word or value!r}; correct it.'
        )
    if name.endswith("hu_window") and sorted(set(value)) != list(value):
        raise OverrideError(f"{name}: expected the lower HU first, got {list(value)}; correct it.")
    return [check(name, part, None) for part in value]


def _device(name: str, value: Any, word: str | None) -> Any:
    value = value if word is None else word
    if not is_syntax(value):
        checked_device(value)
    return value
