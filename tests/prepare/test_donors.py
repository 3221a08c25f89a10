"""Nodules cut out of their scans: the same voxels at the same place, of training scans alone, ready to be inserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import UserError
from scripts.core.geometry import apply_affine, sphere_diameter_mm, swap_lps_ras, voxel_volume_mm3
from scripts.core.labels import IGNORED
from scripts.prepare.donors import FAINT_WEIGHT, MARGIN_MM, donors, weight_of
from scripts.read.datalist import load_datalist
from scripts.train import InsertNodulesd
from tests.luna16_files import reasons


@pytest.fixture
def lists(small_data: Path, tmp_path: Path) -> Path:
    """The datalist of the miniature chests after the command."""
    donors(datalists=str(small_data / "datalist.json"), output_dir=str(tmp_path / "with"))
    return tmp_path / "with/datalist.json"


def loaded(path: Path) -> dict[str, list[dict[str, Any]]]:
    names = json.loads(path.read_text(encoding="utf-8"))
    return {name: load_datalist(str(path), name) for name in names}


@pytest.fixture
def items(small_data: Path) -> list[dict[str, Any]]:
    """Those of the miniature chests that have nodules, with complete paths; the last one has three."""
    found = loaded(small_data / "datalist.json")
    return [item for name in ("training", "validation") for item in found[name] if item["box"]]


def of_items(folder: Path, name: str, *items: dict[str, Any]) -> str:
    """Write a datalist that trains on some items; return its path."""
    (folder / name).write_text(json.dumps({"training": items}), encoding="utf-8")
    return str(folder / name)


def test_each_nodule_of_the_training_scans_is_a_donor_where_it_was(small_data: Path, lists: Path) -> None:
    sections = loaded(lists)
    for name, former in loaded(small_data / "datalist.json").items():
        assert [item["box"] for item in sections[name]] == [item["box"] for item in former]
    nodules = [(item, row) for item in sections["training"] for row in range(len(item["box"]))]
    assert len(sections["donors"]) == len(nodules) > 0
    for donor, (item, row) in zip(sections["donors"], nodules, strict=True):
        scan, image, mask = (nib.Nifti1Image.from_filename(p) for p in (item["image"], donor["image"], donor["mask"]))
        inside = np.argwhere(np.asarray(mask.dataobj) == 1)
        centre_ras_mm = apply_affine(mask.affine, inside.mean(axis=0))
        assert np.linalg.norm(swap_lps_ras(centre_ras_mm) - item["box"][row][:3]) < 1.0
        diameter_mm = sphere_diameter_mm(len(inside) * voxel_volume_mm3(mask.affine))
        assert diameter_mm == pytest.approx(donor["diameter_mm"], rel=0.25)
        first = np.round(apply_affine(np.linalg.inv(scan.affine), image.affine[:3, 3])).astype(int)
        part = tuple(slice(a, a + n) for a, n in zip(first, image.shape, strict=True))
        np.testing.assert_array_equal(image.get_fdata(), scan.get_fdata()[part])
        room_mm = (
            np.minimum(inside.min(axis=0), np.array(image.shape) - 1 - inside.max(axis=0)) * image.header.get_zooms()
        )
        at_border = (first == 0) | (first + image.shape == scan.shape)
        assert ((room_mm >= MARGIN_MM - 1e-3) | at_border).all()


def test_a_second_run_in_the_same_folder_replaces_the_donors(lists: Path) -> None:
    """Those of a scan that is validated on since are none any more."""
    first = loaded(lists)
    donors(datalists=str(lists), output_dir=str(lists.parent))
    assert loaded(lists) == first
    content = json.loads(lists.read_text(encoding="utf-8"))
    moved = content["training"].pop()
    content["validation"].append(moved)
    lists.write_text(json.dumps(content), encoding="utf-8")
    donors(datalists=str(lists), output_dir=str(lists.parent))
    assert loaded(lists)["donors"] == [one for one in first["donors"] if not one["name"].startswith(moved["name"])]


def test_training_inserts_them(lists: Path) -> None:
    insert = InsertNodulesd(load_datalist(str(lists), "donors"), prob=1.0, most=1, scale=(1.0, 1.0))
    insert.set_random_state(0)
    crop = {"image": np.full((1, 64, 64, 64), -850.0, np.float32), "nodule": np.zeros((0, 4), np.float32)}
    made = insert({**crop, "label": np.zeros(0, np.int64)})
    assert len(made["nodule"]) == 1
    assert made["image"][made["mask"] > 0].mean() > -600.0


def test_a_nodule_without_a_voxel_is_left_out_and_an_error_when_strict(
    items: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole, bare = items[0], {key: value for key, value in items[1].items() if key != "mask"}
    mixed, barest = of_items(tmp_path, "mixed.json", whole, bare), of_items(tmp_path, "barest.json", bare)
    output = tmp_path / "out"
    with pytest.raises(UserError, match="--strict: expected nothing to be left out"):
        donors(datalists=mixed, output_dir=str(output), strict=True)
    with pytest.raises(UserError, match="expected nodules with masks to train on, got none in 1 scans"):
        donors(datalists=barest, output_dir=str(output))
    assert not list(output.glob("*.json"))
    donors(datalists=mixed, output_dir=str(output))
    assert reasons(output / "donors") == {"the mask of a nodule is missing or elsewhere": len(bare["box"])}
    assert len(loaded(output / "mixed.json")["donors"]) == len(whole["box"])


def test_the_mask_of_something_else_is_no_donor(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """Such as one in which the nodules have another order."""
    turned = items[-1] | {"box": [*items[-1]["box"][1:], items[-1]["box"][0]]}
    with pytest.raises(UserError, match="expected nodules with masks"):
        donors(datalists=of_items(tmp_path, "turned.json", turned), output_dir=str(tmp_path / "out"))


def test_a_scan_with_other_labels_has_other_donors(items: list[dict[str, Any]], tmp_path: Path) -> None:
    """An excluded finding of one list is a nodule of another, whatever their order, in one run or in two."""
    item, fewer = items[-1], items[-1] | {"label": [*items[-1]["label"][:-1], IGNORED]}
    lists = [of_items(tmp_path, "all.json", item), of_items(tmp_path, "fewer.json", fewer)]
    donors(datalists=lists, output_dir=str(tmp_path / "out"))
    donors(datalists=lists[1], output_dir=str(tmp_path / "out"))
    images = [{one["image"] for one in loaded(tmp_path / "out" / Path(path).name)["donors"]} for path in lists]
    assert [len(own) for own in images] == [len(item["box"]), len(item["box"]) - 1]
    assert not images[0] & images[1]


@pytest.mark.parametrize(
    ("nodules", "weight"),
    [([{"texture": 1}], FAINT_WEIGHT), ([{"texture": 5.0}], 1.0), ([], 1.0), ([None], 1.0), ({}, 1.0), ([{}], 1.0)],
)
def test_the_texture_is_taken_where_a_list_gives_it(
    nodules: Any, weight: float, items: list[dict[str, Any]], tmp_path: Path
) -> None:
    donors(datalists=of_items(tmp_path, "one.json", items[0] | {"nodules": nodules}), output_dir=str(tmp_path / "out"))
    assert loaded(tmp_path / "out/one.json")["donors"][0]["weight"] == weight


def test_ground_glass_and_part_solid_nodules_are_drawn_more_often() -> None:
    weights = {1.0: FAINT_WEIGHT, 3.25: FAINT_WEIGHT, 3.5: 1.0, 5.0: 1.0, None: 1.0}
    assert {texture: weight_of(texture) for texture in weights} == weights
