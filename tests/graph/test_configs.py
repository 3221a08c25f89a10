"""The component graphs: MONAI finds in them what it looks for, and files that must agree do."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.network import CompactNet
from scripts.phantom.chest import Chest
from scripts.phantom.files import write_image
from scripts.preprocess.lung_search import CELL_MM
from scripts.train.cache import CachedScans

ROOT = Path(__file__).resolve().parents[2]
TRAIN, INFERENCE, EVALUATE, PAPER = (
    str(ROOT / "configs" / f"{name}.json") for name in ("train", "inference", "evaluate", "paper")
)
LOGGING = str(ROOT / "configs" / "logging.conf")

# Keys that say the same in training and inference; another value would be another preprocessing or network.
SHARED = (
    *("spacing_mm", "lung_margin_mm", "hu_window", "stride", "tile_size", "tile_overlap", "precision"),
    *("candidate_threshold", "peak_size", "top_k", "nms_overlap", "smallest_diameter_mm", "outside_lungs_mm"),
    *("network_def", "callers", "config_dirs", "bundle_root", "scripts_path"),
)


def _config(path: str) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def test_graphs_agree() -> None:
    train, inference, evaluate = (_config(path) for path in (TRAIN, INFERENCE, EVALUATE))
    assert {key: train[key] for key in SHARED} == {key: inference[key] for key in SHARED}
    reported = ("threshold", "mask_threshold", "mask_margin_mm", "checkpoint")
    assert {key: evaluate[key] for key in reported} == {key: inference[key] for key in reported}
    ranks = [_config(str(ROOT / "configs" / f"multi_gpu_{name}.json")) for name in ("train", "evaluate")]
    assert {key: value for key, value in ranks[0].items() if not key.startswith("train#")} == ranks[1]


def test_the_graph_says_the_defaults_of_its_network() -> None:
    """Else weights would not fit where the network is built without a graph."""
    definition = _config(TRAIN)["network_def"]
    parameters = inspect.signature(CompactNet).parameters.values()
    defaults = {one.name: list(one.default) if isinstance(one.default, tuple) else one.default for one in parameters}
    assert {key: value for key, value in definition.items() if not key.startswith("_")} == defaults


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_a_graph_can_be_read(path: Path) -> None:
    """In an editor of 120 columns; texts of the metadata are prose."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and path.stem != "metadata"] == []
    assert [line for line in lines if (len(line) - len(line.lstrip(" "))) % 4] == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_a_reference_names_what_it_refers_to(path: Path) -> None:
    """A place in a list would be that of another step once a step is added before it."""
    assert re.findall(r"@\w+(?:(?:#|::)\w+)*(?:#|::)\d+\b[\w#:]*", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "workers", "ahead"),
    [
        ("num_workers", 0, None),
        ("train#dataloader#num_workers", 0, None),
        ("train#dataloader#num_workers", 2, 4),
        ("num_workers", 1, 4),
    ],
)
def test_a_loader_without_workers_fetches_nothing_ahead(name: str, workers: int, ahead: int | None) -> None:
    """torch refuses the one without the other."""
    parser = ConfigParser(_config(TRAIN))
    parser[name] = workers
    parser.parse()
    assert parser.get_parsed_content("train#dataloader#num_workers") == workers
    assert parser.get_parsed_content("train#dataloader#prefetch_factor") == ahead


def test_the_papers_settings_can_be_laid_over_the_training_graph(bundle_root: str, small_data: Path) -> None:
    """The learning rate falls to a tenth after 150 epochs."""
    parser = ConfigParser(ConfigParser.load_config_files([TRAIN, PAPER]))
    parser.update({"bundle_root": bundle_root, "device": "$torch.device('cpu')", "epoch_length": 7})
    parser.parse()
    scheduler = parser.get_parsed_content("scheduler")
    assert type(parser.get_parsed_content("network_def")).__name__ == "PaperNet"
    assert (scheduler.base_lrs, scheduler.gamma, list(scheduler.milestones)) == ([1e-4], 0.1, [150 * 7])


@pytest.mark.parametrize(("path", "name"), [(TRAIN, "scan_preprocessing"), (INFERENCE, "preprocessing")])
def test_a_given_lung_mask_takes_the_place_of_the_search(
    path: str, name: str, tmp_path: Path, small_chest: Chest, bundle_root: str
) -> None:
    """As LUNA16 has them, compressed, and here in another direction than the scan's: the right lung alone."""
    scan = write_image(tmp_path / "scan.nii.gz", small_chest.image_hu, small_chest.affine_ras)
    labels = sitk.GetImageFromArray(np.flip(3 * (small_chest.lungs == 1), 0).astype(np.uint8).T)
    labels.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    corner_ras_mm = apply_affine(small_chest.affine_ras, [small_chest.lungs.shape[0] - 1, 0, 0])
    labels.SetOrigin(swap_lps_ras(corner_ras_mm).tolist())
    sitk.WriteImage(labels, str(tmp_path / "lungs.mhd"), useCompression=True)
    parser = ConfigParser({**_config(path), "bundle_root": bundle_root})
    parser.parse()
    preprocessing = parser.get_parsed_content(name)
    item = {"image": str(scan), "name": "scan", "source": "", "notes": ""}
    searched, given = preprocessing(item), preprocessing({**item, "lung_mask": str(tmp_path / "lungs.mhd")})
    assert "lung_mask" not in given
    right, left = (apply_affine(small_chest.affine_ras, np.argwhere(small_chest.lungs == side)) for side in (1, 2))

    def share_inside(ready: Mapping[str, Any], points_ras_mm: np.ndarray) -> float:
        distance = ready["lung_distance_mm"]
        cells = np.rint(apply_affine(np.linalg.inv(np.asarray(distance.affine)), points_ras_mm)).astype(int)
        return float(
            (distance[0].numpy()[tuple(np.clip(cells, 0, np.array(distance.shape[1:]) - 1).T)] <= CELL_MM).mean()
        )

    assert share_inside(searched, right) > 0.95
    assert share_inside(given, right) > 0.95
    assert share_inside(searched, left) > 0.95
    assert share_inside(given, left) < 0.1


def test_all_graphs_bring_a_scan_to_the_same_voxels(tmp_path: Path, small_chest: Chest, bundle_root: str) -> None:
    """Training (by way of its cache), evaluation and inference: the same image to the last bit, the same region."""
    affine = small_chest.affine_ras @ np.diag([0.8, 0.9, 2.0, 1.0])
    scan = write_image(tmp_path / "scan.nii.gz", small_chest.image_hu[:, :, ::2], affine)
    item = {"image": str(scan), "name": "scan", "source": "", "notes": "", "box": [], "label": []}

    def prepared(files: list[str], name: str) -> dict[str, Any]:
        parser = ConfigParser(ConfigParser.load_config_files(files))
        parser["bundle_root"], parser["cache_dir"] = bundle_root, str(tmp_path / "cache")
        ready = CachedScans([item], parser.get_parsed_content("cache"))[0] if files == [TRAIN] else dict(item)
        return dict(parser.get_parsed_content(name)(ready))

    trained = prepared([TRAIN], "validate#preprocessing")
    for other in (prepared([TRAIN, EVALUATE], "validate#preprocessing"), prepared([INFERENCE], "preprocessing")):
        assert torch.equal(trained["image"].as_tensor(), other["image"].as_tensor())
        np.testing.assert_allclose(np.asarray(trained["image"].affine), np.asarray(other["image"].affine), atol=1e-9)
        assert torch.equal(trained["lung_distance_mm"].as_tensor(), other["lung_distance_mm"].as_tensor())


@pytest.mark.parametrize("files", [[TRAIN], [TRAIN, EVALUATE], [INFERENCE]], ids=["train", "evaluate", "inference"])
def test_graphs_have_the_properties_monai_asks_for(
    files: list[str], tmp_path: Path, small_data: Path, bundle_root: str
) -> None:
    workflow = ConfigWorkflow(
        files,
        workflow_type="inference" if files == [INFERENCE] else "train",
        logging_file=LOGGING,
        bundle_root=bundle_root,
        dataset_dir=str(small_data),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("path", [TRAIN, INFERENCE, EVALUATE])
def test_both_spellings_of_the_run_mean_the_same(path: str) -> None:
    name = {"train": "training", "inference": "inference", "evaluate": "evaluating"}[Path(path).stem]
    assert _config(path)[name] == "%run"


def test_the_network_keeps_the_contract_of_the_metadata() -> None:
    verify_net_in_out(net_id="network_def", config_file=INFERENCE, meta_file=str(ROOT / "configs" / "metadata.json"))


def test_every_component_of_the_graphs_can_be_found() -> None:
    """A misspelt target would otherwise fail only when it is used."""
    targets = {name for path in ROOT.glob("configs/*.json") for name in _targets(_config(str(path)))}
    for name in targets:
        if name.startswith("scripts."):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), name


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [t for value in node.values() for t in _targets(value)]
    return [t for value in node for t in _targets(value)] if isinstance(node, list) else []
