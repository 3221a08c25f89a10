"""Commands that are killed at any write and then restarted."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def contents(folder: Path, *, hidden: bool = True) -> dict[str, bytes]:
    """Return every file below a folder, by default including those under hidden names."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if hidden or "/." not in f"/{name}"}


def check_any_kill(
    run: Callable[[Path], int],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    begin: Callable[[Path], object] | None = None,
) -> None:
    """Check that a kill leaves only complete files, and that a second run ends with the files of an undisturbed one.

    Args:
        run: the command, called with the folder that it writes to; returns its exit status.
        folder: contains those folders.
        monkeypatch: of the test.
        begin: puts earlier results into the folder that a killed run writes to.
    """
    assert run(folder / "whole") == 0
    wanted, left, kills, is_killed = contents(folder / "whole"), [0], 0, True

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return call(*args, **options)

        return counted

    for owner, name in ((os, "replace"), (os, "rename"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    while is_killed:
        target = folder / f"dies_at_{kills}"
        if begin is not None:
            begin(target)
        left[0] = kills + 1
        with contextlib.suppress(KeyboardInterrupt):
            run(target)
        is_killed, left[0] = left[0] <= 0, 0
        assert begin is not None or contents(target).items() <= wanted.items()
        assert run(target) == 0
        # Earlier results may remain under a hidden name.
        assert contents(target, hidden=begin is None) == wanted, f"died at {kills}"
        kills += is_killed
    assert kills >= (len(wanted) if begin is None else 5)
