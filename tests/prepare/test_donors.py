"""Nodules cut out of their scans: the same voxels at the same place, of training scans alone, ready to be inserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import UserError
from scripts.core.files import read_csv
from scripts.core.geometry import apply_affine, sphere_diameter_mm, swap_lps_ras, voxel_volume_mm3
from scripts.core.labels import IGNORED
from scripts.prepare.datalists import LEFT_OUT_FILE
from scripts.prepare.donors import FAINT_WEIGHT, MARGIN_MM, donors, weight_of
from scripts.read.datalist import load_datalist
from scripts.train import InsertNodulesd


@pytest.fixture
def lists(small_data: Path, tmp_path: Path) -> Path:
    """The datalist of the miniature chests after the command."""
    donors(datalists=str(small_data / "datalist.json"), output_dir=str(tmp_path / "with"))
    return tmp_path / "with/datalist.json"


def loaded(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: load_datalist(str(path), name) for name in ("training", "validation", "donors")}


def test_each_nodule_of_the_training_scans_is_a_donor_where_it_was(small_data: Path, lists: Path) -> None:
    sections = loaded(lists)
    for name in ("training", "validation"):
        former = load_datalist(str(small_data / "datalist.json"), name)
        assert [item["box"] for item in sections[name]] == [item["box"] for item in former]
    nodules = [(item, row) for item in sections["training"] for row in range(len(item["box"]))]
    assert len(sections["donors"]) == len(nodules) > 0
    for donor, (item, row) in zip(sections["donors"], nodules, strict=True):
        scan, image, mask = (nib.Nifti1Image.from_filename(p) for p in (item["image"], donor["image"], donor["mask"]))
        inside = np.argwhere(np.asarray(mask.dataobj) == 1)
        centre_ras_mm = apply_affine(mask.affine, inside.mean(axis=0))
        assert np.linalg.norm(swap_lps_ras(centre_ras_mm) - item["box"][row][:3]) < 1.0
        volume_mm3 = len(inside) * voxel_volume_mm3(mask.affine)
        assert sphere_diameter_mm(volume_mm3) == pytest.approx(donor["diameter_mm"], rel=0.25)
        first = np.round(apply_affine(np.linalg.inv(scan.affine), image.affine[:3, 3])).astype(int)
        part = tuple(slice(a, a + n) for a, n in zip(first, image.shape, strict=True))
        np.testing.assert_array_equal(image.get_fdata(), scan.get_fdata()[part])
        room_mm = (
            np.minimum(inside.min(axis=0), np.array(image.shape) - 1 - inside.max(axis=0)) * image.header.get_zooms()
        )
        at_border = (first == 0) | (first + image.shape == scan.shape)
        assert ((room_mm >= MARGIN_MM - 1e-3) | at_border).all()


def test_a_second_run_in_the_same_folder_adds_nothing(lists: Path) -> None:
    first = loaded(lists)
    donors(datalists=str(lists), output_dir=str(lists.parent))
    assert loaded(lists) == first


def test_a_scan_that_is_validated_on_since_is_no_donor_any_more(lists: Path) -> None:
    content = json.loads(lists.read_text(encoding="utf-8"))
    moved = content["training"].pop()
    content["validation"].append(moved)
    lists.write_text(json.dumps(content), encoding="utf-8")
    donors(datalists=str(lists), output_dir=str(lists.parent))
    assert len(loaded(lists)["donors"]) == sum(len(item["box"]) for item in content["training"]) > 0
    assert not any(moved["mask"].split("/")[-1].split(".")[0] in one["name"] for one in loaded(lists)["donors"])


def test_training_inserts_them(lists: Path) -> None:
    insert = InsertNodulesd(load_datalist(str(lists), "donors"), prob=1.0, most=1, scale=(1.0, 1.0))
    insert.set_random_state(0)
    crop = {"image": np.full((1, 64, 64, 64), -850.0, np.float32), "nodule": np.zeros((0, 4), np.float32)}
    made = insert({**crop, "label": np.zeros(0, np.int64)})
    assert len(made["nodule"]) == 1
    assert made["image"][made["mask"] > 0].mean() > -600.0


def test_a_nodule_without_a_voxel_is_left_out_and_an_error_when_strict(small_data: Path, tmp_path: Path) -> None:
    content = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))
    items = [item for item in content["training"] if item["box"]]
    (tmp_path / "in").mkdir()
    whole, bare = ({**item, **{key: str(small_data / item[key]) for key in ("image", "mask")}} for item in items[:2])
    del bare["mask"]
    (tmp_path / "in/bare.json").write_text(json.dumps({"training": [whole, bare]}), encoding="utf-8")
    (tmp_path / "in/barest.json").write_text(json.dumps({"training": [bare]}), encoding="utf-8")
    with pytest.raises(UserError, match="--strict: expected nothing to be left out"):
        donors(datalists=str(tmp_path / "in/bare.json"), output_dir=str(tmp_path / "out"), strict=True)
    assert not (tmp_path / "out/bare.json").exists()
    donors(datalists=str(tmp_path / "in/bare.json"), output_dir=str(tmp_path / "out"))
    rows = [row for _, row in read_csv(tmp_path / "out/donors" / LEFT_OUT_FILE)]
    assert [row["reason"] for row in rows] == ["the mask of a nodule is missing or elsewhere"] * len(bare["box"])
    assert len(loaded(tmp_path / "out/bare.json")["donors"]) == len(whole["box"])
    with pytest.raises(UserError, match="expected nodules with masks to train on, got none in 1 scans"):
        donors(datalists=str(tmp_path / "in/barest.json"), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out/barest.json").exists()


def test_the_mask_of_something_else_is_no_donor(small_data: Path, tmp_path: Path) -> None:
    """Such as one in which the nodules have another order."""
    content = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))
    (item,) = content["validation"]  # it has three nodules
    files = {key: str(small_data / item[key]) for key in ("image", "mask")}
    turned = {**item, **files, "box": [*item["box"][1:], item["box"][0]]}
    (tmp_path / "turned.json").write_text(json.dumps({"training": [turned]}), encoding="utf-8")
    with pytest.raises(UserError, match="expected nodules with masks"):
        donors(datalists=str(tmp_path / "turned.json"), output_dir=str(tmp_path / "out"))


def test_a_scan_with_other_labels_has_other_donors(small_data: Path, tmp_path: Path) -> None:
    """An excluded finding of one list is a nodule of another, whatever their order, in one run or in two."""
    content = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))
    (item,) = content["validation"]  # it has three nodules
    item |= {key: str(small_data / item[key]) for key in ("image", "mask")}
    fewer = [*item["label"][:-1], IGNORED]
    for name, label in (("all", item["label"]), ("fewer", fewer)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"training": [{**item, "label": label}]}), encoding="utf-8")
    donors(datalists=[str(tmp_path / "all.json"), str(tmp_path / "fewer.json")], output_dir=str(tmp_path / "out"))
    donors(datalists=str(tmp_path / "fewer.json"), output_dir=str(tmp_path / "out"))
    found = {name: loaded(tmp_path / f"out/{name}.json")["donors"] for name in ("all", "fewer")}
    assert {name: len(own) for name, own in found.items()} == {"all": len(fewer), "fewer": len(fewer) - 1}
    assert not {donor["image"] for donor in found["all"]} & {donor["image"] for donor in found["fewer"]}


@pytest.mark.parametrize(
    ("nodules", "weight"),
    [([{"texture": 1}], FAINT_WEIGHT), ([{"texture": 5.0}], 1.0), ([], 1.0), ([None], 1.0), ({}, 1.0), ([{}], 1.0)],
)
def test_the_texture_is_taken_where_a_list_gives_it(
    nodules: Any, weight: float, small_data: Path, tmp_path: Path
) -> None:
    content = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))
    item = next(item for item in content["training"] if item["box"])
    item |= {key: str(small_data / item[key]) for key in ("image", "mask")}
    (tmp_path / "one.json").write_text(json.dumps({"training": [{**item, "nodules": nodules}]}), encoding="utf-8")
    donors(datalists=str(tmp_path / "one.json"), output_dir=str(tmp_path / "out"))
    assert loaded(tmp_path / "out/one.json")["donors"][0]["weight"] == weight


def test_ground_glass_and_part_solid_nodules_are_drawn_more_often() -> None:
    assert [weight_of(texture) for texture in (1.0, 3.25, 3.5, 5.0, None)] == [
        FAINT_WEIGHT,
        FAINT_WEIGHT,
        1.0,
        1.0,
        1.0,
    ]
