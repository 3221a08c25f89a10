"""Text to values, and values to text."""

from __future__ import annotations

import pytest

from scripts.core.errors import SettingError
from scripts.core.text import parse_bool, shown_duration


def test_a_switch_is_on_or_off_as_text_too() -> None:
    assert [parse_bool("overwrite", value) for value in (True, False, "true", "FALSE")] == [True, False, True, False]
    for value in ("yes", "", 1, 0, None):
        with pytest.raises(SettingError, match=r"^overwrite: expected true or false, got "):
            parse_bool("overwrite", value)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.84, "0.8 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (312, "5 min 12 s"), (7500, "2 h 5 min")],
)
def test_durations_are_shown_as_people_say_them(seconds: float, shown: str) -> None:
    assert shown_duration(seconds) == shown
