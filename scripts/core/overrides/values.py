"""Which values may be overridden with what, judged by the configuration's own value; text stays as it was typed."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigExpression, ConfigParser

from ..devices import checked_device
from ..errors import UserError
from ..text import parse_bool
from .call import SEPARATOR, Call, OverrideError, shown
from .names import is_syntax

PATHS = ("bundle_root", "input", "dataset_dir", "output_dir", "cache_dir", "image_dir", "checkpoint", "lung_checkpoint")
PATH_LISTS = ("datalists",)
WHOLE_NUMBERS = ("tiles_at_once", "cache_workers", "val_interval")  # their defaults are computed and show no type
SHARES = (
    "threshold",
    "candidate_threshold",
    "mask_threshold",
    "nms_overlap",
    "tile_overlap",
    "nodule_share",
    "false_share",
    "insertion_share",
    "added_share",
    "average_decay",
)
_FROM_1 = (
    "top_k",
    "peak_size",
    "tiles_at_once",
    "batch_size",
    "epoch_length",
    "max_epochs",
    "val_interval",
    "log_interval",
    "crop_size",
)
_FROM_0 = (
    "num_workers",
    "cache_workers",
    "warmup_iterations",
    "patience",
    "seed",
    "resamples",
    "learning_rate",
    "weight_decay",
    "gradient_norm",
    "mask_margin_mm",
    "lung_margin_mm",
    "outside_lungs_mm",
    "smallest_diameter_mm",
)
LEAST = dict.fromkeys(_FROM_1, 1) | dict.fromkeys(_FROM_0, 0)
MULTIPLE_OF = {"crop_size": 16}  # the networks halve a crop four times
# Settings with a single valid value (targets take one voxel for 1 mm), and how messages describe it.
FIXED: dict[str, tuple[Any, str]] = {
    "spacing_mm": ([1.0, 1.0, 1.0], "[1.0, 1.0, 1.0], for which targets and weights are made"),
    "stride": ("$@network_def.stride", "the network's"),
}

_REFERENCE = re.compile(r"@\w+((::|#)\w+)*")


def set_value(call: Call, name: str, value: Any) -> None:
    """Check an override against the value that it replaces, and restore text as it was typed.

    Args:
        call: how the workflow was created; its configuration has already been parsed.
        name: the name, with its levels separated by :data:`SEPARATOR`.
        value: the value as MONAI read it; it is accepted if it fits any of ``call.bases``.

    Raises:
        OverrideError: the value is of another type or out of range.
        SettingError: the device does not exist.
    """
    if call.given is None and isinstance(value, str) and is_syntax(value):
        return  # it comes from one of the workflow's files
    errors = []
    for base in call.bases:
        if name in base:
            try:
                taken = _checked(call, name, value, base)
            except UserError as error:
                errors.append(error)
            else:
                if taken is not value:
                    _put(call.workflow.parser, name, taken)
                return
    if errors:
        raise errors[0]


def check_fixed(call: Call, overrides: dict[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        OverrideError: the grid is not that of targets and weights, or the operating threshold is below the candidate
            threshold.
    """
    parser = call.workflow.parser
    places = [(name, parser.get(name), name) for name in FIXED if name in parser]
    for base in call.bases:
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
    """Follow references to the value behind them."""
    for _ in range(5):
        if not (isinstance(content, str) and _REFERENCE.fullmatch(content)):
            break
        content = base.get(content[1:])
    return content


def _checked(call: Call, name: str, value: Any, base: ConfigParser) -> Any:
    """Return the value to use instead of a configuration's own; the same object where any value is allowed."""
    usual, place, word = _followed(base.get(name), base), shown(name), call.words.get(name)
    typed = value if word is None else word
    is_text = name in PATHS or (isinstance(usual, str) and not is_syntax(usual))
    is_known = (
        is_text or isinstance(usual, bool | int | float | list) or name in (*WHOLE_NUMBERS, *PATH_LISTS, "device")
    )
    if is_known and name in call.words and word is None and not isinstance(usual, bool):
        raise OverrideError(f"--{place}: expected a value after it, got none; give one.")
    if name == "device":
        if not is_syntax(typed):
            checked_device(typed)
        return typed
    if name in PATH_LISTS:
        return _paths(place, value, word)
    if is_text:
        return _text(place, typed, base, is_untyped_path=name in PATHS and word is None)
    if is_syntax(value):
        return value
    if isinstance(usual, bool):
        return parse_bool(place, value)
    if isinstance(usual, int | float) or name in WHOLE_NUMBERS:
        return _number(place, value, typed, is_whole=not isinstance(usual, float))
    if isinstance(usual, list) and usual and all(isinstance(part, int | float) for part in usual):
        return _numbers(place, value, typed, usual)
    return value


def _put(parser: ConfigParser, name: str, value: Any) -> None:
    """Change a value in a configuration that MONAI has already parsed, before the value is used."""
    above, _, key = name.rpartition(SEPARATOR)
    inside = parser.get(above)
    inside[int(key) if isinstance(inside, list) else key] = value
    resolver = parser.ref_resolver
    for known in [n for n in resolver.items if n == name or n.startswith(f"{name}{SEPARATOR}")]:
        resolver.items.pop(known)
        resolver.resolved_content.pop(known, None)
    parser._do_parse(value, name)


def _text(place: str, value: Any, known: ConfigParser, *, is_untyped_path: bool) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise OverrideError(f"{place}: expected text, got {value!r}; put it in quotes.")
    if is_untyped_path and SEPARATOR in value and not ConfigExpression.is_expression(value):
        raise OverrideError(
            f"{place}: expected a path without # and ::, which MONAI treats alike, got {value!r}; rename it, "
            "or use monai.bundle.run."
        )
    return value if _is_evaluated(value, known) else _literal(value)


def _is_evaluated(text: str, known: ConfigParser) -> bool:
    """Whether MONAI should evaluate text: an expression (``$HOME/scans`` is none) or a reference to a known name."""
    if Path(text).exists():
        return False
    is_expression = ConfigExpression.is_expression(text) and any(sign in text for sign in "@('\"[")
    return is_expression or (bool(_REFERENCE.fullmatch(text)) and text[1:] in known)


def _literal(text: str) -> str:
    """Return text so that MONAI passes it on unchanged: what it would read as syntax becomes an expression of it."""
    if "#" not in text and "@" not in text and not is_syntax(text):
        return text
    return "$" + re.sub("[#@]", lambda sign: f"\\x{ord(sign[0]):02x}", repr(text))


def _paths(place: str, value: Any, word: str | None) -> Any:
    if word is not None:
        value = DefaultParseValue(word) if word.lstrip().startswith(("[", "(")) else word
    if isinstance(value, str):
        return value if is_syntax(value) else [_literal(value)]
    if not isinstance(value, list | tuple) or not all(isinstance(part, str | Path) for part in value):
        raise OverrideError(f"{place}: expected a list of paths, got {value!r}; write \"['a.json', 'b.json']\".")
    return [part if isinstance(part, Path) or is_syntax(part) else _literal(part) for part in value]


def _number(place: str, value: Any, typed: Any, *, is_whole: bool) -> Any:
    kind: Any = numbers.Integral if is_whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        wanted = "a whole number, such as 3" if is_whole else "a number, such as 0.5"
        raise OverrideError(f"{place}: expected {wanted}, got {typed!r}; correct it.")
    if place in SHARES and not 0.0 <= value <= 1.0:
        raise OverrideError(f"{place}: expected a number from 0 to 1, got {value}; correct it.")
    if value < LEAST.get(place, -math.inf):
        raise OverrideError(f"{place}: expected at least {LEAST[place]}, got {value}; correct it.")
    if place in MULTIPLE_OF and value % MULTIPLE_OF[place]:
        raise OverrideError(f"{place}: expected a multiple of {MULTIPLE_OF[place]}, got {value}; choose another.")
    return value


def _numbers(place: str, value: Any, typed: Any, usual: Sequence[float]) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(usual):
        example = [1, 2, 3, 4][: len(usual)]
        raise OverrideError(f'{place}: expected {len(usual)} numbers, such as "{example}", got {typed!r}; correct it.')
    whole = all(isinstance(part, int) for part in usual)
    checked = [_number(place, part, part, is_whole=whole) for part in value]
    if place.endswith("hu_window") and sorted(set(value)) != checked:
        raise OverrideError(f"{place}: expected the lower HU first, got {checked}; correct it.")
    return checked
