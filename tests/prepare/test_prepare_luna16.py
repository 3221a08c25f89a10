"""LUNA16's folds: what is found at any depth, what is missing and said, and the same files after any interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.core.labels import IGNORED, NODULE
from scripts.evaluate.tables import read_findings, read_folds
from scripts.prepare import luna16
from scripts.prepare.__main__ import main
from scripts.read.datalist import DatalistError, count_nodules, load_datalist
from tests.interruption import check_any_kill, contents
from tests.luna16_files import SHAPE, centre_lps_mm, reasons, scan_hu, uid, write_mhd, write_tree
from tests.real_data import real

EXCLUDED = "annotations_excluded.csv"


def run(source: Path, target: Path, *more: str) -> int:
    return main(["luna16", "--luna16_dir", str(source), "--output_dir", str(target), *more])


def load(folder: Path, fold: int, section: str) -> list[dict[str, Any]]:
    return load_datalist(str(folder / f"dataset_fold{fold}.json"), section)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten subsets and everything else."""
    return write_tree(tmp_path_factory.mktemp("data") / "LUNA16")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three subsets."""
    return write_tree(tmp_path / "LUNA16", [0, 3, 7])


# --- what is right ----------------------------------------------------------------------------------------------------


def test_the_ten_folds(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (tmp_path / "left_out.csv").touch()  # of a former run
    assert run(whole, tmp_path, "--strict") == 0
    assert sorted(contents(tmp_path)) == [*(f"dataset_fold{n}.json" for n in range(10)), "seriesuids.csv"]
    for fold in range(10):
        training, validation = (load(tmp_path, fold, section) for section in ("training", "validation"))
        assert [item["name"] for item in validation] == [uid(fold, 0), uid(fold, 1)]
        assert {item["name"] for item in training} == {uid(s, n) for s in range(10) if s != fold for n in range(2)}
        assert all(Path(item["lung_mask"]).is_file() for item in training)
    assert "10 nodules in 10 of 20 scans, 20 ignored findings" in caplog.text
    assert "left out: nothing" in caplog.text
    assert len(read_folds(sorted(tmp_path.glob("*.json")))) == 10


def test_an_item_in_full(whole: Path, tmp_path: Path) -> None:
    assert run(whole, tmp_path) == 0
    boxes = [
        {"box": [[*centre_lps_mm((4, 5, 6)), 6.5, 6.5, 6.5]], "label": [NODULE]},
        {
            "box": [
                [*centre_lps_mm((5, 5, 5), flipped=True), 10.0, 10.0, 10.0],  # without a diameter of its own
                [*centre_lps_mm((2, 8, 3), flipped=True), 4.0, 4.0, 4.0],
            ],
            "label": [IGNORED, IGNORED],
        },
    ]
    assert json.loads((tmp_path / "dataset_fold4.json").read_text(encoding="utf-8"))["validation"] == [
        {
            "name": uid(4, n),
            "image": os.path.relpath(whole / "subset4" / f"{uid(4, n)}.mhd", tmp_path),
            "lung_mask": os.path.relpath(whole / "seg-lungs-LUNA16" / f"{uid(4, n)}.mhd", tmp_path),
            **boxes[n],
        }
        for n in (0, 1)
    ]


def test_any_nesting_is_understood(few: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for source, target in {
        "subset0": "Subset_0/subset0",
        "subset3": "archives/Subset_3/subset3",
        "subset7": "archives/Subset_7/subset7",
        "seg-lungs-LUNA16": "x/seg-lungs-LUNA16/seg-lungs-LUNA16",
        "evaluationScript/annotations": "CSVFILES",
    }.items():
        shutil.copytree(few / source, other / target)
    shutil.copy(few / "annotations.csv", other / "CSVFILES")
    found = []
    for folder in (few, other):
        assert run(folder, tmp_path / f"of_{folder.name}") == 0
        folds = [load(tmp_path / f"of_{folder.name}", fold, "training") for fold in (0, 3, 7)]
        found.append([[(item["name"], item["box"], item["label"]) for item in items] for items in folds])
    assert found[0] == found[1]


def test_one_subset_may_be_named_itself_and_a_fold_of_a_former_run_is_pointed_out(
    few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dataset_fold9.json").write_text("{}")
    assert run(few / "subset3", tmp_path, "--annotations", str(few / "annotations.csv")) == 0
    assert [len(load(tmp_path, 3, section)) for section in ("training", "validation")] == [0, 2]
    assert "only one subset" in caplog.text
    assert "dataset_fold9.json is left over from an earlier run: subset 9 is no longer there" in caplog.text


# --- MONAI's own folds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["{}.mhd", "{0}/{0}.nii.gz"])
def test_the_folds_that_monai_publishes_load_unless_an_image_is_missing_or_there_twice(
    style: str, few: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "dataset_fold0.json")
    box = [[*centre_lps_mm((4, 5, 6)), 6.5, 6.5, 6.5]]
    published = [{"box": box, "image": style.format(uid(s, 0)), "label": [0]} for s in (0, 3)]
    Path(path).write_text(json.dumps({"training": published, "validation": published}), encoding="utf-8")
    places = {uid(s, 0): str(few / f"subset{s}" / f"{uid(s, 0)}.mhd") for s in (0, 3)}
    expected = [{"name": name, "box": box, "label": [0], "image": image} for name, image in places.items()]
    assert load_datalist(path, "training", str(few)) == expected
    write_mhd(few / "copy" / f"{uid(0, 0)}.mhd", scan_hu(0))
    for folder, message in {
        "": "expected a file, found none",
        str(tmp_path / "none"): r"--image_dir .*none: expected a folder with images, found none",
        str(few): r"expected one image named .*, found 2",
    }.items():
        with pytest.raises(DatalistError, match=message):
            load_datalist(path, "training", folder)


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_partial_download_works_and_says_what_is_missing(
    few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (few / "subset5.zip").touch()
    assert run(few, tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.json")) == [f"dataset_fold{n}.json" for n in (0, 3, 7)]
    assert reasons(tmp_path / "out") == {"the subset is not there": 7}
    words = ["unpack subset5.zip", "subset1, subset2, subset4, subset6, subset8"]
    assert [one for one in words if one not in caplog.text] == []
    assert (tmp_path / "out" / "seriesuids.csv").read_text().split() == [uid(s, n) for s in (0, 3, 7) for n in (0, 1)]


def change(tree: Path, pattern: str, content: bytes | None) -> None:
    """Remove what matches, or write one file."""
    for path in list(tree.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content is not None:
        (tree / pattern).write_bytes(content)


def annotated(*rows: tuple[tuple[float, ...], float]) -> bytes:
    """A table of nodules of the first scan: place and diameter."""
    lines = [f"{uid(0, 0)},{x},{y},{z},{diameter}" for (x, y, z), diameter in rows]
    return "\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm", *lines]).encode()


SCAN, LUNGS, CENTRE = f"subset3/{uid(3, 1)}", f"seg-lungs-LUNA16/{uid(3, 1)}", centre_lps_mm((4, 5, 6))


@pytest.mark.parametrize(
    ("pattern", "content", "reason", "scans"),
    [
        (f"{SCAN}.raw", None, "the data file is not there", 5),
        (f"{SCAN}.raw", bytes(2 * int(np.prod(SHAPE)) - 1), "the data file is shorter than the header says", 5),
        (f"{SCAN}.mhd", b"ObjectType = Image\n", "the header cannot be read", 5),
        (f"subset7/{uid(3, 1)}.mhd", b"", "the scan is there twice", 6),
        ("annotations.csv", annotated(((-CENTRE[0], -CENTRE[1], CENTRE[2]), 6.5)), "lies outside its scan", 6),
        ("annotations.csv", annotated((CENTRE, 0.0)), "a finding has no size", 6),
        ("annotations.csv", annotated((CENTRE, -1.0)), "a finding has no size", 6),
        ("annotations.csv", annotated((CENTRE, 287.0)), "a finding is larger than 100 mm", 6),
        ("annotations.csv", annotated((CENTRE, 6.5), (CENTRE, 6.6)), "a nodule is listed twice", 6),
        (f"{LUNGS}.mhd", None, "the lung mask is not there", 6),
        (f"{LUNGS}.zraw", b"", "lung mask: the data file is empty", 6),
        ("*/*/annotations_excluded.csv", None, "no excluded findings", 6),
    ],
)
def test_bad_input_is_left_out_with_a_reason(
    pattern: str,
    content: bytes | None,
    reason: str,
    scans: int,
    few: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(few, pattern, content)
    assert run(few, tmp_path / "out") == 0
    (told,) = (reasons(tmp_path / "out") - Counter({"the subset is not there": 7})).elements()
    assert reason in told
    assert reason in caplog.text
    assert sum(len(load(tmp_path / "out", 0, section)) for section in ("training", "validation")) == scans
    assert run(few, tmp_path / "strict", "--strict") == 1
    assert not (tmp_path / "strict").exists()


def test_scans_that_the_list_of_series_names_and_no_subset_holds(whole: Path, tmp_path: Path) -> None:
    tree = tmp_path / "LUNA16"
    shutil.copytree(whole, tree)
    change(tree, "subset2/*", None)
    write_mhd(tree / "subset2" / "1.2.840.1.mhd", scan_hu(1))
    assert run(tree, tmp_path / "out") == 0
    assert reasons(tmp_path / "out") == {
        "a scan of LUNA16 is not there": 2,
        "nodules of a scan that is in no subset": 1,
        "the lung mask is not there": 1,
    }


@pytest.mark.parametrize(
    ("pattern", "content", "message"),
    [
        ("*", None, "expected folders subset0 to subset9 with .mhd files, found none; check --luna16_dir"),
        ("../LUNA16", None, "expected a folder with subset0 to subset9, found none; check --luna16_dir"),
        ("subset0.zip", b"", "found none; unpack subset0.zip"),
        ("annotations.csv", None, "expected annotations.csv in it, found none"),
        ("annotations.csv", b"series,x,y,z\n1,2,3,4\n", "missing: seriesuid, coordX"),
        ("subset*/*.raw", None, "expected scans that can be read, got none"),
    ],
)
def test_what_cannot_be_used_at_all_is_refused(
    pattern: str, content: bytes | None, message: str, few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if pattern == "subset0.zip":
        change(few, "*", None)
    change(few, pattern, content)
    assert run(few, tmp_path / "out") == 1
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


# --- interruption -----------------------------------------------------------------------------------------------------


def test_a_run_that_dies_at_any_write_and_starts_again_ends_in_the_same_files(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_any_kill(partial(run, few), tmp_path, monkeypatch)


# --- the challenge's own lists ----------------------------------------------------------------------------------------


def test_the_facts_of_luna16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1186 nodules in 601 of 888 scans, 3.25 to 32.27 mm, through the command with scans that only have names."""
    lists = real("luna16")
    for number in range(10):
        (tmp_path / "LUNA16" / f"subset{number}").mkdir(parents=True)
    for number, series in enumerate((lists / "seriesuids.csv").read_text(encoding="utf-8").split()):
        (tmp_path / "LUNA16" / f"subset{number % 10}" / f"{series}.mhd").touch()
    affine = np.array([[1, 0, 0, -1000], [0, 1, 0, -1000], [0, 0, 2, -1000], [0, 0, 0, 1.0]])
    everywhere = luna16.Grid((2000, 2000, 2000), affine)
    monkeypatch.setattr(luna16, "read_grid", lambda path: everywhere)
    tables = [f"--{k}={lists / v}" for k, v in (("annotations", "annotations.csv"), ("excluded", EXCLUDED))]
    assert run(tmp_path / "LUNA16", tmp_path / "out", "--strict", *tables) == 0
    sections = json.loads((tmp_path / "out" / "dataset_fold0.json").read_text(encoding="utf-8"))
    items = [item for section in sections.values() for item in section]
    with_nodules = sum(NODULE in item["label"] for item in items)
    assert (len(items), count_nodules(items), with_nodules) == (888, 1186, 601)
    sizes = [b[3] for i in items for b, label in zip(i["box"], i["label"], strict=True) if label == NODULE]
    assert [round(min(sizes), 2), round(max(sizes), 2)] == [3.25, 32.27]
    assert sum(len(item["label"]) for item in items) - 1186 == len(read_findings(lists / EXCLUDED).values)
