"""What viewers open, read by ITK (of 3D Slicer and ITK-SNAP), by dcmjs (of OHIF), and by documented text formats."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scripts.phantom.chest import Chest
from scripts.phantom.files import write_image
from scripts.report import ItkSnapLabels, MaskNifti, SlicerLabels, SlicerMarkups
from tests.ecosystem.stand_ins import FOLDER, needs
from tests.report.test_dicom_objects import result_of, written
from tests.results import searched_chest

# Voxels of each segment, names of the segments, and the segments that each measurement group of the report refers to.
DCMJS = """
const dcmjs = require("dcmjs"), fs = require("fs");
const { DicomMessage, DicomMetaDictionary, BitArray } = dcmjs.data;
const read = (path) => DicomMetaDictionary.naturalizeDataset(DicomMessage.readFile(fs.readFileSync(path).buffer).dict);
const list = (sequence) => [].concat(sequence ?? []);
const [segmentation, report] = process.argv.slice(1).map(read);
const bits = BitArray.unpack(segmentation.PixelData[0]), size = segmentation.Rows * segmentation.Columns;
const voxels = {};
list(segmentation.PerFrameFunctionalGroupsSequence).forEach((frame, n) => {
  const number = list(frame.SegmentIdentificationSequence)[0].ReferencedSegmentNumber;
  const inside = bits.subarray(n * size, (n + 1) * size).reduce((sum, bit) => sum + (bit > 0), 0);
  voxels[number] = (voxels[number] ?? 0) + inside;
});
const names = list(segmentation.SegmentSequence).map((segment) => segment.SegmentLabel);
const all = (item) => [item, ...list(item.ContentSequence).flatMap(all)];
const isGroup = (item) => list(item.ConceptNameCodeSequence)[0]?.CodeValue === "125007";
const segmentOf = (item) => list(item.ReferencedSOPSequence)[0]?.ReferencedSegmentNumber;
const groups = all(report).filter(isGroup).map((group) => list(group.ContentSequence).map(segmentOf).filter(Boolean));
console.log(JSON.stringify({ voxels, names, groups }));
"""


@pytest.fixture(scope="module")
def opened(small_chest: Chest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    write_image(folder / "scan.nii.gz", small_chest.image_hu, small_chest.affine_ras)
    result = searched_chest(small_chest)
    for writer in (MaskNifti(), SlicerMarkups(), SlicerLabels(), ItkSnapLabels()):
        assert writer(result, folder) is not None
    return folder


def test_itk_lays_the_mask_on_the_scan_and_each_point_of_slicer_in_the_label_of_its_nodule(opened: Path) -> None:
    scan, mask = (sitk.ReadImage(str(opened / name)) for name in ("scan.nii.gz", "mask.nii.gz"))
    assert (mask.GetSize(), mask.GetNumberOfComponentsPerPixel()) == (scan.GetSize(), 1)
    for read in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, read)(), getattr(scan, read)(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, np.asarray(nib.load(opened / "mask.nii.gz").dataobj))
    (points,) = json.loads((opened / "nodules.mrk.json").read_text(encoding="utf-8"))["markups"]
    assert points["coordinateSystem"] == "LPS"  # ITK's own frame
    labels = [mask[mask.TransformPhysicalPointToIndex(point["position"])] for point in points["controlPoints"]]
    assert labels == [1, 2]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("mask.ctbl", r"^(\d+) +\S+( +\d{1,3}){4}$"),  # Slicer: number, name, colour with opacity
        # ITK-SNAP: number, colour, alpha, two flags, name in quotes
        ("mask.label.txt", r'^ *(\d+)( +\d{1,3}){3} +[\d.]+ +[01] +[01] +"[^"]+"$'),
    ],
)
def test_every_label_has_a_name_in_both_tables(name: str, line: str, opened: Path) -> None:
    text = (opened / name).read_text(encoding="utf-8")
    assert [match[1] for match in re.finditer(line, text, re.MULTILINE)] == ["0", "1", "2"]


@needs("node_modules/dcmjs", "dcmjs")
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_dcmjs_reads_the_segments_and_the_report(tmp_path: Path) -> None:
    result = result_of(tmp_path / "scan")
    objects = [str(path) for path in written(result, tmp_path / "out")]
    environment = os.environ | {"NODE_PATH": str(FOLDER / "dcmjs" / "node_modules")}
    run = subprocess.run(["node", "-e", DCMJS, *objects], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = {str(label): int((result.mask == label).sum()) for label in (1, 2)}
    assert json.loads(run.stdout) == {"voxels": counts, "names": ["Nodule 1", "Nodule 2"], "groups": [[1], [2]]}
