"""LIDC's outlines on LUNA16's nodules: by position, whole scans only, and the same files after any interruption."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.core.files import read_csv
from scripts.core.geometry import swap_lps_ras
from scripts.prepare import luna16_masks
from scripts.prepare.__main__ import main
from scripts.read.datalist import load_datalist
from scripts.read.reader import read_grid
from tests.interruption import check_any_kill
from tests.luna16_files import SHAPE, SPACING_MM, centre_lps_mm, uid, write_csv, write_tree

SUBSETS = (0, 3, 7)


def write_lidc(folder: Path, series: dict[str, np.ndarray]) -> None:
    """What the command lidc leaves, as far as it is read, on LUNA16's grid as DICOM stores it.

    Rows run from front to back, columns to the left, and k from the head down.
    """
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    affine[:3, 3] = swap_lps_ras(centre_lps_mm((0, 0, 0)))
    readings = [{"mask_label": value, "texture": 7.0 - value, "readers": value, "kind": "x"} for value in (1, 3)]
    items = []
    for name, mask in series.items():
        (folder / "scans" / name).mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(mask, affine).as_reoriented(np.array([[0, 1], [1, 1], [2, -1]]))
        nib.save(image, folder / "scans" / name / "mask.nii.gz")
        items.append({"name": name, "image": "there", "mask": f"scans/{name}/mask.nii.gz", "nodules": readings})
    (folder / "dataset_fold0.json").write_text(json.dumps({"training": items[1:], "validation": items[:1]}))
    (folder / "dataset_fold1.json").write_text(json.dumps({"training": items, "validation": []}))


def nodule_mask() -> np.ndarray:
    """The nodule at voxel (4, 5, 6) has the value 3; a finding of fewer readers has the value 1."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 4:7, 5:8] = 3
    mask[9:11, 9:11, 2:4] = 1
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folds of three subsets in ``folds``, LIDC's masks of their scans with nodules in ``lidc``."""
    write_tree(tmp_path / "LUNA16", SUBSETS)
    assert main(["luna16", "--luna16_dir", str(tmp_path / "LUNA16"), "--output_dir", str(tmp_path / "folds")]) == 0
    write_lidc(tmp_path / "lidc", {uid(s, 0): nodule_mask() for s in SUBSETS})
    return tmp_path


def run(data: Path, target: Path, *more: str) -> int:
    lists = [str(data / "folds" / f"dataset_fold{s}.json") for s in SUBSETS]
    options = ["--datalists", *lists, "--lidc", str(data / "lidc"), "--output_dir", str(target)]
    return main(["luna16_masks", *options, *more])


def table(target: Path) -> list[dict[str, str]]:
    return [row for _, row in read_csv(target / "matches.csv")]


def test_one_list_for_both_tasks(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run(data, tmp_path / "out", "--strict") == 0
    assert "3 of 3 nodules have a mask; 3 of 3 scans with nodules have a mask" in caplog.text
    (former, _), (outlined, empty) = (
        load_datalist(str(data / folder / "dataset_fold3.json"), "validation") for folder in ("folds", "out")
    )
    assert not {"mask", "nodules"} & set(empty)
    assert outlined["nodules"] == [{"texture": 4.0, "readers": 3}]  # of the value 3
    assert all(Path(outlined[key]).samefile(former[key]) for key in ("image", "lung_mask"))
    mask = nib.load(outlined["mask"])
    np.testing.assert_allclose(mask.affine, read_grid(outlined["image"]).affine_ras, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.where(nodule_mask() == 3, 1, 0))
    assert [(row["seriesuid"], row["result"], row["lidc_value"]) for row in table(tmp_path / "out")] == [
        (uid(s, 0), "matched", "3") for s in SUBSETS
    ]


def test_the_folder_of_the_folds_may_be_the_target_and_finished_scans_are_not_read_again(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(data, data / "folds") == 0
    monkeypatch.setattr(luna16_masks, "labels_of", None)
    assert run(data, data / "folds") == 0
    assert "mask" in load_datalist(str(data / "folds" / "dataset_fold0.json"), "validation")[0]


def test_a_nodule_without_a_match_has_no_voxel_in_the_mask(data: Path, tmp_path: Path) -> None:
    rows = [(uid(s, 0), *centre_lps_mm((4, 5, 6)), 6.5) for s in SUBSETS]
    write_csv(data / "LUNA16" / "annotations.csv", [*rows, (uid(3, 0), *centre_lps_mm((4, 12, 1)), 4.0)])
    assert main(["luna16", "--luna16_dir", str(data / "LUNA16"), "--output_dir", str(data / "folds")]) == 0
    assert run(data, tmp_path / "out") == 0
    items = load_datalist(str(tmp_path / "out" / "dataset_fold0.json"), "training")
    values = {i["name"]: set(np.unique(nib.load(i["mask"]).get_fdata())) for i in items if "mask" in i}
    assert values == {uid(3, 0): {0, 1}, uid(7, 0): {0, 1}}
    assert [(row["row"], row["result"]) for row in table(tmp_path / "out") if row["seriesuid"] == uid(3, 0)] == [
        ("0", "matched"),
        ("1", "the mask has no object at its centre or within its radius"),
    ]
    assert "nodule 1" in (tmp_path / "out" / "left_out.csv").read_text(encoding="utf-8")
    assert run(data, tmp_path / "strict", "--strict") == 1
    assert not list((tmp_path / "strict").glob("*.json"))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [("no series", "LIDC has no such series"), ("broken", "unreadable: "), ("empty", "the mask is empty")],
)
def test_what_cannot_be_matched_is_said(
    harm: str, reason: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(data, tmp_path / "out") == 0  # with everything there: what changes later must be noticed
    others = SUBSETS if harm != "no series" else (0, 7)
    write_lidc(data / "lidc", {uid(s, 0): nodule_mask() * (s != 3 or harm != "empty") for s in others})
    if harm == "broken":
        (data / "lidc" / "scans" / uid(3, 0) / "mask.nii.gz").write_bytes(b"broken")
    for _ in range(2):
        assert run(data, tmp_path / "out") == 0
        assert [row["result"].startswith(reason) for row in table(tmp_path / "out")] == [False, True, False]
        assert not any("mask" in item for item in load_datalist(str(tmp_path / "out/dataset_fold3.json"), "validation"))
    assert reason in caplog.text


def test_donors_of_a_list_stay_donors(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(data, output) == 0
    lists = [str(path) for path in sorted(output.glob("dataset_fold*.json"))]
    assert main(["donors", "--datalists", *lists, "--output_dir", str(output)]) == 0
    before = [load_datalist(path, "donors") for path in lists]
    assert any(before)
    assert main(["luna16_masks", "--datalists", *lists, "--lidc", str(data / "lidc"), "--output_dir", str(output)]) == 0
    assert [load_datalist(path, "donors") for path in lists] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lidc", "none"], "--lidc none: expected datalists of the command lidc, found none"),
        (["--lidc", "."], "expected datalists of the command lidc, found none"),
        (["--datalists", "none.json"], "none.json: expected JSON, got something else ([Errno 2]"),
        (["--datalists", "a/list.json"], "list.json: expected a datalist (JSON with sections), got none"),
        (["--datalists", "folds/dataset_fold0.json", "a/dataset_fold0.json"], "expected different file names"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], message: str, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    shutil.copytree("folds", "a")
    Path("a/list.json").write_text("[]")
    options = {"--datalists": ["folds/dataset_fold0.json"], "--lidc": ["lidc"], "--output_dir": ["out"]}
    options[words[0]] = words[1:]
    assert main(["luna16_masks", *(word for key, values in options.items() for word in (key, *values))]) == 1
    assert message in caplog.text


def test_a_run_that_dies_at_any_write_and_starts_again_ends_in_the_same_files(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_any_kill(partial(run, data), data, monkeypatch)
