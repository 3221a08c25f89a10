"""Packages of other programs, used where they are there, and stand-ins for what they import and the tests do not use.

``.ecosystem/NAME`` holds a package and nothing of what it depends on (CONTRIBUTING.md says how it is filled).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bundle import ROOT

FOLDER = Path(os.environ.get("LUNG_NODULE_ECOSYSTEM", ROOT / ".ecosystem"))


def needs(package: str, folder: str) -> pytest.MarkDecorator:
    """Skip where a package is not in its folder."""
    there = (FOLDER / folder / package).is_dir()
    return pytest.mark.skipif(not there, reason=f"{package} is not in {FOLDER / folder}")


def beside(folder: str, *absent: str) -> str:
    """Code that puts a folder's packages behind those of the environment, and stand-ins in the place of absent ones."""
    return f"""
import importlib.util, sys
from unittest import mock
sys.path.append({str(FOLDER / folder)!r})
for name in {absent!r}:
    if name.partition(".")[0] in sys.modules or importlib.util.find_spec(name.partition(".")[0]) is None:
        sys.modules[name] = mock.MagicMock(name=name)
"""
