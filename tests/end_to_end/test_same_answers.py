"""The inference graph against the plain path: MONAI's transforms, the network as trained, one tile after the other.

Memory: what a larger field of view costs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import (
    Compose,
    CopyItemsd,
    DivisiblePadd,
    LoadImaged,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from scripts.decode.candidates import DecodeCandidatesd, DropOutsideLungsd
from scripts.decode.masks import SegmentNodulesd
from scripts.network import load_network
from scripts.network.blocks import COARSEST_STRIDE
from scripts.phantom.chest import Chest, make_chest, scan_chest
from scripts.phantom.files import write_image
from scripts.preprocess import CropToLungsd, LungSearch
from scripts.read.reader import ScanReader
from scripts.search.inferer import LEAST_BLOCKS, gaussian
from scripts.search.tiles import BLOCK, Tiling, blocks_near, plan_tiles
from tests.bundle import INFERENCE, ROOT, assert_found, candidates, options, python, run_inference, succeeded

TILE, OVERLAP, THRESHOLD = 64, 0.25, 0.3
OVERRIDES = {
    "precision": "float32",
    "tile_size": [TILE] * 3,
    "tile_overlap": OVERLAP,
    "threshold": THRESHOLD,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature chest with anisotropic voxels, stored in LPS as DICOM scans are."""
    chest = make_chest(3, scale=0.4, nodules=3)
    made = scan_chest(chest, 3)
    path = tmp_path_factory.mktemp("same") / "scan.nii"
    turned = nibabel.Nifti1Image(made.image_hu, made.affine_ras).as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(made.affine_ras), nibabel.orientations.axcodes2ornt("LPS")
        )
    )
    write_image(path, np.asarray(turned.dataobj), turned.affine)
    return path


def _plain_preprocessing() -> Compose:
    pads = {"keys": "image", "method": "end", "mode": "constant", "value": -1.0}
    return Compose(
        [
            LoadImaged("image", reader=ScanReader(), ensure_channel_first=True, dtype=np.int16),
            CopyItemsd("image", names="scan"),
            Orientationd("image", axcodes="RAS", labels=None),
            CropToLungsd("image", LungSearch(), margin_mm=15.0),
            Spacingd("image", pixdim=(1, 1, 1), mode="bilinear", padding_mode="border", dtype=np.float64),
            ScaleIntensityRanged("image", a_min=-1200, a_max=600, b_min=-1, b_max=1, clip=True),
            SpatialPadd(spatial_size=[TILE] * 3, **pads),
            DivisiblePadd(k=COARSEST_STRIDE, **pads),
        ]
    )


def _plain_maps(item: dict[str, Any], network: torch.nn.Module) -> torch.Tensor:
    image = item["image"].as_tensor()
    size, shared = (TILE // BLOCK,) * 3, (round(TILE * OVERLAP) // BLOCK,) * 3
    wanted = blocks_near(item["lung_distance_mm"], 10.0, item["image"].affine, tuple(image.shape[1:]), BLOCK)
    tiles = plan_tiles(wanted, Tiling(size, shared, (LEAST_BLOCKS,) * 3))
    assert len(tiles) > 4
    maps = torch.zeros(13, *(n // 2 for n in image.shape[1:]))
    weights = torch.zeros(maps.shape[1:])
    for tile in tiles:
        part = tuple(slice(p.start * BLOCK, p.stop * BLOCK) for p in tile)
        cells = tuple(slice(p.start // 2, p.stop // 2) for p in part)
        with torch.no_grad():
            pred = network(image[:, *part][None])[0]
        weight = gaussian(tuple(pred.shape[1:]), torch.device("cpu"))
        maps[:, *cells] += pred * weight
        weights[cells] += weight
    maps = maps / weights.clamp_min(1e-3)
    maps[0][weights == 0] = -20.0
    return maps


@pytest.fixture(scope="module")
def plain(scan: Path) -> dict[str, Any]:
    """What the plain path finds."""
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    parser["bundle_root"] = str(ROOT)
    network = load_network(parser.get_parsed_content("network_def"), "cpu", str(ROOT / "models" / "model.pt")).eval()
    item = _plain_preprocessing()({"image": str(scan)})
    item["pred"] = _plain_maps(item, network)
    settings = {name: parser.get_parsed_content(name) for name in ("stride", "peak_size", "top_k", "nms_overlap")}
    smallest = parser.get_parsed_content("smallest_diameter_mm")
    steps = [
        DecodeCandidatesd(threshold=0.0005, smallest_diameter_mm=smallest, **settings),
        DropOutsideLungsd(margin_mm=parser.get_parsed_content("outside_lungs_mm")),
        SegmentNodulesd(threshold=THRESHOLD, stride=2, mask_threshold=parser["mask_threshold"], margin_mm=5.0),
    ]
    return dict(Compose(steps)(item))


def test_the_graph_finds_and_outlines_what_the_plain_path_does(
    scan: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    run_inference(scan, tmp_path, **OVERRIDES)
    expected = [(*c.centre_lps_mm, c.probability) for c in plain["candidates"]]
    assert len(expected) >= 5
    assert_found(expected, candidates(tmp_path), apart_mm=0.5, apart=0.01)
    mask = np.asarray(nibabel.load(tmp_path / "scan" / "mask.nii.gz").dataobj)
    assert mask.max() == plain["mask"].max() >= 1
    for label in range(1, int(mask.max()) + 1):
        mine, theirs = mask == label, plain["mask"] == label
        assert 2.0 * (mine & theirs).sum() >= 0.99 * (mine.sum() + theirs.sum())


def test_nothing_changes_with_what_runs_beside_the_search(scan: Path, tmp_path: Path) -> None:
    for name, background in (("beside", True), ("alone", False)):
        run_inference(scan, tmp_path / name, background=background, **OVERRIDES)
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("beside", "alone")]
    assert tables[0] == tables[1]


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import resource, runpy, sys
for sys.argv in {}:
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _peaks_mb(scans: list[Path], output: Path) -> list[float]:
    """Most memory of a process until the command line has searched each scan, MB; on one thread, and none beside it."""
    shared = {"output_dir": output, "background": False, "tile_size": [TILE] * 3, "tile_overlap": OVERLAP}
    words = ["monai.bundle", "run", "inference", "--config_file", INFERENCE, *options(shared), "--input"]
    result = succeeded(python("-c", PEAK.format([[*words, str(scan)] for scan in scans])))
    return [float(peak) / 1024.0 for peak in re.findall(r"^peak (\d+)$", result.stdout, re.MULTILINE)]


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_a_larger_field_of_view_costs_its_voxels_and_no_more(small_chest: Chest, tmp_path: Path) -> None:
    """The same lungs in forty times the volume. A voxel of the scan has 2 bytes, one of a float copy 4, of maps 6.5."""
    image_hu, affine = np.rint(small_chest.image_hu).astype(np.int16), small_chest.affine_ras
    room = 150
    wide = np.pad(image_hu, room, constant_values=-1000)
    wide_affine = affine.copy()
    wide_affine[:3, 3] -= affine[:3, :3] @ np.full(3, room)
    write_image(tmp_path / "narrow.nii", image_hu, affine)
    write_image(tmp_path / "wide.nii", wide, wide_affine)
    added_mb = (wide.nbytes - image_hu.nbytes) / 2**20
    assert added_mb > 100
    peaks = _peaks_mb([tmp_path / "narrow.nii", tmp_path / "wide.nii"], tmp_path)
    assert peaks[1] - peaks[0] < 2.5 * added_mb, (peaks, added_mb)
