"""Scans, readings and lists of other people, which some tests hold the code against; without them such a test skips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LUNG_NODULE_DATA") or Path(__file__).resolve().parents[1] / "../shared/data")


def real(name: str) -> Path:
    """A file or folder of the data; without it the test that asks is skipped."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data not found at {path}; set LUNG_NODULE_DATA")
    return path
