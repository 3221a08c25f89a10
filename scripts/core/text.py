"""Conversion between text and values."""

from __future__ import annotations

import math

from .errors import SettingError

DISCLAIMER = "Academic research, not a medical device, not for diagnosis."


def parse_bool(name: str, value: object) -> bool:
    """Parse a setting that is on or off; from the command line ``true`` and ``false`` arrive as text.

    Raises:
        SettingError: the value is anything else.
    """
    text = str(value).lower()
    if text in ("true", "false"):
        return text == "true"
    raise SettingError(f"{name}: expected true or false, got {value!r}")


def number_in(text: str) -> float:
    """Read a number; NaN if the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shown_duration(seconds: float) -> str:
    """Format a duration for the reader: "0.8 s", "34 s", "5 min 12 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
