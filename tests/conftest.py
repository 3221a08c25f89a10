"""Settings and data that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from scripts.prepare.phantom_command import phantom

# The same examples in every run, and no time limit for one of them: a busy machine must not decide whether a law holds.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def bundle_root() -> str:
    """The project's folder."""
    return str(Path(__file__).resolve().parents[1])


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four miniature chests with masks and a datalist (three to train on, one to validate)."""
    folder = tmp_path_factory.mktemp("small_data")
    phantom(str(folder), scans=4, seed=5, format="nifti", scale=0.4)
    return folder
