"""What viewers open, read by ITK (3D Slicer and ITK-SNAP use it) and by their documented text formats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scripts.phantom.chest import Chest
from scripts.phantom.files import write_image
from scripts.report import ItkSnapLabels, MaskNifti, SlicerLabels, SlicerMarkups
from tests.results import searched_chest


@pytest.fixture(scope="module")
def opened(small_chest: Chest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    write_image(folder / "scan.nii.gz", small_chest.image_hu, small_chest.affine_ras)
    result = searched_chest(small_chest)
    for writer in (MaskNifti(), SlicerMarkups(), SlicerLabels(), ItkSnapLabels()):
        assert writer(result, folder) is not None
    return folder


def test_itk_lays_the_mask_on_the_scan(opened: Path) -> None:
    scan, mask = (sitk.ReadImage(str(opened / name)) for name in ("scan.nii.gz", "mask.nii.gz"))
    assert mask.GetSize() == scan.GetSize()
    for read in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, read)(), getattr(scan, read)(), atol=1e-4)
    assert mask.GetNumberOfComponentsPerPixel() == 1
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, np.asarray(nib.load(opened / "mask.nii.gz").dataobj))


def test_each_point_of_slicer_lies_in_the_label_of_its_nodule(opened: Path) -> None:
    (points,) = json.loads((opened / "nodules.mrk.json").read_text(encoding="utf-8"))["markups"]
    assert points["coordinateSystem"] == "LPS"  # ITK's own frame
    mask = sitk.ReadImage(str(opened / "mask.nii.gz"))
    labels = [mask[mask.TransformPhysicalPointToIndex(point["position"])] for point in points["controlPoints"]]
    assert labels == list(range(1, len(labels) + 1))
    assert len(labels) == 2


def test_every_label_has_a_name_in_both_tables(opened: Path) -> None:
    """Slicer: number, name, colour with opacity. ITK-SNAP: number, colour, alpha, two flags, name in quotes."""
    labels = set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(opened / "mask.nii.gz")))).tolist())
    formats = {
        "mask.ctbl": r"^(\d+) +\S+( +\d{1,3}){4}$",
        "mask.label.txt": r'^ *(\d+)( +\d{1,3}){3} +[\d.]+ +[01] +[01] +"[^"]+"$',
    }
    for name, line in formats.items():
        text = (opened / name).read_text(encoding="utf-8")
        assert {int(match[1]) for match in re.finditer(line, text, re.MULTILINE)} == labels, name
