"""Commands that are killed at any write and started again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_any_kill(run: Callable[[Path], int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there after a kill is whole, and a second run ends in the files of one that nothing disturbed.

    Args:
        run: the command, with the folder that it writes to; returns its exit status.
        folder: gets those folders.
        monkeypatch: of the test.
    """
    assert run(folder / "whole") == 0
    wanted, replace, left = contents(folder / "whole"), os.replace, [0]

    def dying(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    for dies_at in range(1, len(wanted) + 1):
        left[0], target = dies_at, folder / f"dies_at_{dies_at}"
        with pytest.raises(KeyboardInterrupt):
            run(target)
        assert contents(target).items() <= wanted.items()
        assert run(target) == 0
        assert contents(target) == wanted, f"died at {dies_at}"
