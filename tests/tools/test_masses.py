"""Masses painted into a chest: where they lie, and what is counted."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import UserError
from scripts.phantom.chest import Chest
from tools.masses import masses


def test_masses_in_a_synthetic_chest(full_chest: Chest, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Small masses inside the lungs are searched as a whole, as the lungs are closed over them."""
    nib.save(nib.Nifti1Image(full_chest.image_hu.astype(np.int16), full_chest.affine_ras), tmp_path / "chest.nii.gz")
    with caplog.at_level(logging.INFO):
        masses(scan_dir=str(tmp_path), names=["chest"], diameter_mm=24.0)
    assert "inside: 6 of 6 centres searched, and 1.00 of the volume" in caplog.text
    assert "on the border: 6 of 6 centres searched" in caplog.text


def test_a_missing_scan_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected absent\.nii\.gz"):
        masses(scan_dir=str(tmp_path), names=["absent"])
