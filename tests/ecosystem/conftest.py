"""The bundle in a place of its own, below a working folder that is not its own: where other programs meet it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle import ROOT, python

NAME = "lung_nodule_ct_detection_segmentation"  # of the bundle's folder, as the pages have it
PARTS = ("configs", "scripts", "models", "docs", "metadata.json", "LICENSE")

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    """A working folder with ``bundles/…``, ``scan.nii.gz`` and ``data`` (four miniature chests and their datalist)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (folder / "bundles" / NAME).mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, folder / "bundles" / NAME / part)
    shutil.copytree(small_data, folder / "data")
    shutil.copy(small_data / "images" / "phantom_0003.nii.gz", folder / "scan.nii.gz")
    return folder


@pytest.fixture(scope="session")
def bundle(elsewhere: Path) -> Path:
    return elsewhere / "bundles" / NAME


@pytest.fixture(scope="session")
def program(elsewhere: Path) -> Program:
    """Run Python code, or a module with arguments, in the working folder; it must end well unless ``fails``."""

    def run(*arguments: str, code: str = "", fails: bool = False) -> object:
        result = python(*(["-c", code] if code else ["-m", *arguments]), folder=elsewhere)
        assert (result.returncode != 0) == fails, result.stdout + result.stderr
        return result

    return run  # type: ignore[return-value]
