"""Datalists: paths, what is named before a training starts, and lists that nothing can be learned from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.core.labels import IGNORED, NODULE
from scripts.read.datalist import (
    SHOWN_FAULTS,
    DatalistError,
    check_evaluation_list,
    check_training_lists,
    count_nodules,
    load_datalist,
)
from tests.image_files import chest, write_image

SHAPE = (10, 20, 30)
AFFINE_RAS = np.array([[-0.5, 0, 0, 40], [0, 0.5, 0, -60], [0, 0, 2.0, 100], [0, 0, 0, 1]])
# The centre of the scan, voxel (4.5, 9.5, 14.5): RAS (37.75, -55.25, 129), LPS (-37.75, 55.25, 129).
CENTRE_LPS_MM = (-37.75, 55.25, 129.0)


def box(*centre_lps_mm: float, size_mm: float = 5.0) -> list[float]:
    return [*centre_lps_mm, size_mm, size_mm, size_mm]


def write(path: Path, **sections: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sections), encoding="utf-8")
    return str(path)


def touch(folder: Path, *names: str) -> None:
    """Files that are there and hold nothing."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def loaded(folder: Path, *items: Any) -> list[dict[str, Any]]:
    """What is loaded from a datalist of these items for training."""
    return load_datalist(write(folder / "list.json", training=list(items)), "training")


NODULES = [{"box": [box(0, 0, 0)], "label": [NODULE]}]
EMPTY = [{"box": [], "label": []}]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE_RAS), path)
    return path


def test_paths_start_at_their_datalist(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.nii.gz", "a/m/x.nii.gz", "a/l/1.mhd", "elsewhere.nii.gz")
    paths = {"image": "x.nii.gz", "mask": "m/x.nii.gz", "lung_mask": "l/1.mhd"}
    null: dict[str, Any] = dict.fromkeys(("mask", "lung_mask", "label"))
    elsewhere = {"image": str(tmp_path / "elsewhere.nii.gz"), "box": []}
    first = write(tmp_path / "a" / "list.json", training=[paths])
    second = write(tmp_path / "b" / "list.json", training=[elsewhere | null], other=[{}])
    whole = {key: str(tmp_path / "a" / path) for key, path in paths.items()}
    items = [{"name": "x", **whole}, {"name": "elsewhere", **elsewhere}]
    assert load_datalist([first, second], "training") == items
    assert load_datalist(first, "training") == items[:1]
    assert load_datalist([first, second], "validation") == []


def test_scans_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.2.3.mhd", "b/1.2.3.mhd", "b/x.nii")
    first = write(tmp_path / "a" / "list.json", training=[{"image": "1.2.3.mhd"}])
    second = write(tmp_path / "b" / "list.json", training=[{"image": "1.2.3.mhd"}, {"image": "x.nii", "name": "A B"}])
    assert [item["name"] for item in load_datalist([first, second], "training")] == ["1.2.3", "1.2.3-2", "A_B"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.json: expected a JSON file, found none; make one with python"),
        ("{", r"list\.json: expected JSON, got something else"),
        ("[1, 2]", r'list\.json: expected \{"training": \[items …\]\}, got list'),
        ('{"training": {"a": 1}}', r'list\.json: expected \{"training": \[items …\]\}, got dict'),
    ],
)
def test_what_is_no_datalist_is_refused(tmp_path: Path, text: str, message: str) -> None:
    if text:
        (tmp_path / "list.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatalistError, match=message):
        load_datalist(str(tmp_path / "list.json"), "training")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("scan.nii.gz", r"training, item 0: expected \{'image': path, …\}, got scan\.nii\.gz"),
        ({"imag": "scan.nii.gz"}, r"training, item 0: expected \{'image': path, …\}, got \{'imag'"),
        ({"image": "none.nii.gz"}, r"item 0: image .*none\.nii\.gz: expected a file, found none"),
        ({"image": "scan.nii.gz", "mask": "m.nii"}, r"mask .*m\.nii: expected a file, found none"),
        ({"image": "scan.nii.gz", "lung_mask": "l.mhd"}, r"lung_mask .*l\.mhd: expected a file, found none"),
        ({"image": "scan.nii.gz", "box": [[1, 2, 3]]}, r"box: expected \[\[x, y, z, w, h, d\], …\] in LPS mm"),
        ({"image": "scan.nii.gz", "box": "1 2 3"}, r"box: expected \[\[x, y, z, w, h, d\], …\] in LPS mm"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": [0, 0]}, "got 1 boxes and 2 labels"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": [3]}, r"label: expected 0 .*, got \[3\]"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM, size_mm=0)]}, "sizes above 0 mm"),
        ({"image": "scan.nii.gz", "box": [box(float("nan"), 0, 0)]}, "expected finite centres"),
        ({"image": "scan.nii.gz", "box": [box(37.75, -55.25, 129.0)]}, r"box 0: expected a centre inside .*RAS"),
        ({"image": "scan.nii.gz", "box": [[10.0, 20, 270, 15, 25, 275]]}, "up to 100 mm, got 275 mm"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM), box(-37.8, 55.2, 129.1)]}, "each nodule once, got two"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": [0.5]}, "label: expected 0"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": "nodule"}, "label: expected 0"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": ["0"]}, "label: expected 0"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": True}, "label: expected 0"),
        ({"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM)], "label": 1e30}, "label"),
        (
            {"image": "scan.nii.gz", "box": [box(*CENTRE_LPS_MM), box(-38, 52, 129)], "label": 0},
            "got 2 boxes and 1 labels",
        ),
        ({"image": "scan.nii.gz", "box": {"x": 1}}, r"box: expected \[\[x, y, z, w, h, d\], …\] in LPS mm"),
        ({"image": "scan.nii.gz", "mask": ["m.nii"]}, r"mask: expected a path, got \['m.nii'\]"),
        ({"image": "scan.nii.gz", "lung_mask": 3}, "lung_mask: expected a path, got 3"),
        ({"image": "scan.nii.gz", "name": 7}, "name: expected text, got 7"),
        ({"image": "scan.nii.gz", "false_findings": [1, 2, 3]}, "false_findings: expected"),
        ({"image": "scan.nii.gz", "false_findings": [[1, 2, None]]}, "false_findings: expected"),
        ({"image": "scan.nii.gz", "false_findings": "no"}, "false_findings: expected"),
        (
            {"image": "scan.nii.gz", "false_findings": [CENTRE_LPS_MM, (0.0, 0.0, 0.0)]},
            "false_findings 1: expected a centre inside the scan",
        ),
        ({"image": "scan.nii.gz", "weight": "x"}, "weight: expected a number from 0, got x"),
        ({"image": "scan.nii.gz", "weight": -1}, "weight: expected a number from 0, got -1"),
        ({"image": "list.json", "box": box(*CENTRE_LPS_MM)}, r"list\.json: expected a DICOM"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(scan: Path, item: Any, message: str) -> None:
    with pytest.raises(DatalistError, match=r"^1 datalist entries cannot be used") as caught:
        loaded(scan.parent, item)
    assert caught.match(message)


@pytest.mark.parametrize(
    ("boxes", "label", "labels"),
    [
        *((box(*CENTRE_LPS_MM), label, [label]) for label in (NODULE, IGNORED, 0.0)),
        (box(*CENTRE_LPS_MM), [NODULE], [NODULE]),
        pytest.param([box(*CENTRE_LPS_MM)] * 3, *[[NODULE, IGNORED, IGNORED]] * 2, id="ignored findings on a nodule"),
    ],
)
def test_a_single_box_and_a_single_label_may_stand_without_brackets(
    scan: Path, boxes: list[Any], label: Any, labels: list[Any]
) -> None:
    (item,) = loaded(scan.parent, {"image": scan.name, "box": boxes, "label": label})
    assert (item["box"], item["label"]) == ([box(*CENTRE_LPS_MM)] * len(labels), labels)
    assert count_nodules([item]) == labels.count(NODULE)


def test_corners_that_could_be_sizes_are_refused(tmp_path: Path) -> None:
    """A scan near its origin: [x1, y1, z1, x2, y2, z2] has sizes that a nodule may have."""
    nib.save(nib.Nifti1Image(np.zeros((60, 60, 60), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])), tmp_path / "a.nii")
    corners = [[10.0, 20.0, 30.0, 16.0, 27.0, 35.0], [40.0, 11.0, 5.0, 47.0, 17.0, 12.0]]
    sizes = [[10.0, 20.0, 30.0, 6.0, 7.0, 5.0], [40.0, 11.0, 5.0, 7.0, 6.0, 7.0]]
    with pytest.raises(DatalistError, match=r"2 boxes that read as corners .*, such as \[10\.0, 20\.0"):
        loaded(tmp_path, *({"image": "a.nii", "box": [one]} for one in corners))
    assert count_nodules(loaded(tmp_path, *({"image": "a.nii", "box": [one]} for one in sizes))) == 2


@pytest.mark.parametrize(
    ("image", "name"),
    [
        pytest.param("a.mhd", {}, id="path"),
        pytest.param("link.mhd", {}, id="link"),
        pytest.param("copy.mhd", {}, id="copy of another name"),
        pytest.param("b.mhd", {"name": "1.2.840.113.5.6.7"}, id="series UID"),
    ],
)
def test_a_scan_in_both_lists_is_refused(
    tmp_path: Path, image: str, name: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for stem, seed in (("a", 0), ("b", 1), ("copy", 0)):
        write_image(tmp_path / f"{stem}.mhd", chest(seed=seed))
    (tmp_path / "link.mhd").symlink_to("a.mhd")
    training, validation = ([{"image": str(tmp_path / one), **NODULES[0], **name}] for one in ("a.mhd", image))
    different = [{"image": str(tmp_path / "b.mhd"), **NODULES[0]}]
    with pytest.raises(DatalistError, match=r"expected different scans, got 1 in both, such as .*a\.mhd and "):
        check_training_lists(training, [], validation)
    check_training_lists(training, [], different)
    check_training_lists([{**different[0], "image": str(tmp_path / "c.mhd")}], training, validation)
    assert "so it is not unseen" in caplog.text


def test_every_fault_is_named_up_to_a_limit(tmp_path: Path) -> None:
    with pytest.raises(DatalistError) as caught:
        loaded(tmp_path, *({"image": f"{n}.nii"} for n in range(SHOWN_FAULTS + 3)))
    first, *lines, last = str(caught.value).splitlines()
    assert first.startswith(f"{SHOWN_FAULTS + 3} datalist entries")
    assert [f"{n}.nii" in line for n, line in enumerate(lines)] == [True] * SHOWN_FAULTS
    assert last == "… and 3 more"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, 1])
def test_a_nodule_may_lie_up_to_the_outer_edge_of_the_border_voxels(scan: Path, axis: int, side: int) -> None:
    voxels = np.tile((np.array(SHAPE) - 1) / 2.0, (2, 1))
    voxels[:, axis] = (SHAPE[axis] - 0.51, SHAPE[axis] - 0.49) if side else (-0.49, -0.51)
    inside, outside = ([box(*centre)] for centre in swap_lps_ras(apply_affine(AFFINE_RAS, voxels)))
    assert len(loaded(scan.parent, {"image": scan.name, "box": inside})) == 1
    with pytest.raises(DatalistError, match="expected a centre inside the scan"):
        loaded(scan.parent, {"image": scan.name, "box": outside})


def test_nodules_are_counted_without_ignored_findings() -> None:
    items: list[dict[str, Any]] = [
        {"box": [box(0, 0, 0)] * 2, "label": [NODULE, IGNORED]},
        {"box": [box(0, 0, 0)]},  # without labels every box is a nodule
        {"box": []},
        {},
    ]
    assert count_nodules(items) == 2


@pytest.mark.parametrize(
    ("training", "donors", "message"),
    [
        ([], [], "expected at least one scan, got none; --dataset_dir must hold"),
        ([], [{"image": "donor.nii.gz"}], "expected at least one scan, got none; --dataset_dir must hold"),
        (EMPTY, [], "expected nodules or donors, got 1 scans without any"),
    ],
)
def test_training_lists_that_nothing_can_be_learned_from_are_refused(
    training: list[Any], donors: list[Any], message: str
) -> None:
    with pytest.raises(DatalistError, match=message):
        check_training_lists(training, donors, NODULES)


@pytest.mark.parametrize(("validation", "warnings"), [([], 1), (EMPTY, 1), (NODULES, 0)])
@pytest.mark.parametrize(("training", "donors"), [(NODULES, []), (EMPTY, [{"image": "donor.nii.gz"}])])
def test_a_validation_list_without_nodules_is_a_warning(
    training: list[Any], donors: list[Any], validation: list[Any], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    check_training_lists(training, donors, validation)
    words = f"got none in {len(validation)} scans; the validation metric is undefined"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [words in message for message in told] == [True] * warnings


def test_an_evaluation_of_nothing_is_refused() -> None:
    check_evaluation_list(EMPTY, "validation")
    with pytest.raises(DatalistError, match="expected scans in the section 'testing' of the datalists, got none"):
        check_evaluation_list([], "testing")
