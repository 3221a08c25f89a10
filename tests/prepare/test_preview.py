"""Contact sheets: every nodule with its outline, a wrong frame noticed, real nodules never called suspect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.core.files import read_csv
from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.prepare import preview
from scripts.prepare.__main__ import main
from scripts.prepare.checks import failed_checks, lungs_of
from scripts.prepare.preview import BOX, COLUMNS, ROWS, choose, draw_page, look_at
from scripts.read.reader import Volume, read_scan
from scripts.report.html.pictures import outline_lines, outline_path
from tests.real_data import real

SHAPE = (100, 90, 60)
AFFINE = np.array([[3.0, 0, 0, -150], [0, 3.0, 0, -120], [0, 0, 3.0, 20], [0, 0, 0, 1.0]])
NODULE_VOXEL, DIAMETER_MM = (30, 40, 30), 18.0


def chest_hu() -> np.ndarray:
    """A body with two lungs in room air, one nodule in the right lung (low i is the patient's left in RAS)."""
    i, j, k = np.indices(SHAPE)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[((i - 50) / 46) ** 2 + ((j - 45) / 40) ** 2 < 1] = 40
    for centre in (28, 72):
        hu[((i - centre) / 16) ** 2 + ((j - 45) / 25) ** 2 + ((k - 30) / 40) ** 2 < 1] = -850
    hu[ball(NODULE_VOXEL)] = 30
    return hu


def ball(voxel: tuple[int, int, int]) -> np.ndarray:
    away = np.indices(SHAPE) - np.reshape(voxel, (3, 1, 1, 1))
    return np.asarray(np.square(away * 3.0).sum(axis=0) <= (DIAMETER_MM / 2) ** 2)


def box_at(voxel: tuple[int, int, int]) -> list[float]:
    return [*swap_lps_ras(apply_affine(AFFINE, voxel)).tolist(), *[DIAMETER_MM] * 3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, its mask, and a datalist."""
    folder = tmp_path_factory.mktemp("data")
    nib.save(nib.Nifti1Image(chest_hu(), AFFINE), folder / "scan.nii.gz")
    mask = nib.Nifti1Image(ball(NODULE_VOXEL).astype(np.uint8), AFFINE)
    nib.save(mask.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), folder / "mask.nii.gz")  # axes in another order
    write(folder, "datalist.json", training=[{"image": "scan.nii.gz", "mask": "mask.nii.gz", **rows(NODULE_VOXEL)}])
    return folder


def rows(*voxels: tuple[int, int, int]) -> dict[str, Any]:
    return {"box": [box_at(v) for v in voxels], "label": [0] * len(voxels)}


def beside(voxel: tuple[int, int, int], count: int) -> list[tuple[int, int, int]]:
    """Places in one nodule, each a voxel from the last."""
    return [(voxel[0] + n % 3, voxel[1] + n // 3 % 3, voxel[2] + n // 9) for n in range(count)]


def write(folder: Path, name: str, **sections: Any) -> str:
    (folder / name).write_text(json.dumps(sections), encoding="utf-8")
    return str(folder / name)


def run(datalist: str | Path, output: Path, *more: str) -> int:
    return main(["preview", "--datalist", str(datalist), "--output", str(output), *more])


def test_a_page_shows_the_nodule_in_its_box(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert run(data / "datalist.json", tmp_path / "new" / "page.png") == 0
    assert "0 of 1 boxes shown are suspect" in caplog.text
    pixels = np.asarray(Image.open(tmp_path / "new" / "page.png").convert("RGB")).reshape(-1, 3)
    cyan = np.array([int(BOX[n : n + 2], 16) for n in (1, 3, 5)])
    assert (np.abs(pixels - cyan).max(axis=1) < 30).sum() > 100
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.png"]


def test_the_outline_lies_in_the_middle_of_both_pictures(data: Path) -> None:
    item = {"name": "a", "image": str(data / "scan.nii.gz"), "mask": str(data / "mask.nii.gz"), **rows(NODULE_VOXEL)}
    (sight,) = look_at(item, [0])
    assert sight.has_mask
    assert sight.failed_checks == ()
    for picture in sight.pictures:
        (line,) = outline_lines(picture.outline)
        np.testing.assert_allclose(line.mean(axis=0), [picture.width_mm / 2] * 2, atol=1.5)
        np.testing.assert_allclose(np.ptp(line, axis=0), [DIAMETER_MM] * 2, atol=3.5)
    assert picture.grey[picture.grey.shape[0] // 2, picture.grey.shape[1] // 2] > 150


@pytest.mark.parametrize("closed", [True, False])
def test_lines_of_an_outline_come_back_from_its_path(closed: bool) -> None:
    inside = np.zeros((9, 9), np.float32)
    inside[3:6, (2 if closed else 0) : 5] = 1.0
    path = outline_path(inside, 0.5)
    (line,) = outline_lines(path)
    assert path.endswith("Z") is closed
    assert np.array_equal(line[0], line[-1]) is closed
    assert line.min() >= 0.25
    assert outline_lines("") == []


def test_the_same_draw_every_time_and_scans_in_their_order() -> None:
    items = [{"box": [[0] * 6] * 3, "label": [0, 1, 0]}, {"box": []}, {"box": [[0] * 6] * 2}]
    assert [(items.index(item), picked) for item, picked in choose(items, 0, 0)] == [(0, [0, 2]), (2, [0, 1])]
    assert choose(items, 3, 1) == choose(items, 3, 1)
    assert sum(len(picked) for _, picked in choose(items, 3, 1)) == 3
    assert choose([{"box": []}], 3, 1) == []


def test_many_nodules_make_several_pages(data: Path, tmp_path: Path) -> None:
    count = COLUMNS * ROWS + 1
    path = write(data, "many.json", validation=[{"image": "scan.nii.gz", **rows(*beside(NODULE_VOXEL, count))}])
    assert run(path, tmp_path / "page.png", "--section", "validation") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page-2.png", "page.png"]
    assert run(path, tmp_path / "few.png", "--nodules", "2") == 0
    assert not (tmp_path / "few-2.png").exists()


@pytest.mark.parametrize(
    ("voxel", "failed"), [((50, 45, 30), ""), ((72, 45, 30), "contains only air"), ((92, 80, 30), "outside the lungs")]
)
def test_what_no_nodule_can_be_is_suspect(voxel: tuple[int, int, int], failed: str) -> None:
    volume = Volume(chest_hu(), AFFINE, {}, ())
    found = list(failed_checks(volume, lungs_of(volume), box_at(voxel), None, 1))
    assert (failed in found) if failed else found == []


@pytest.mark.parametrize(
    ("shift", "value", "found"), [(0, 1, []), (0, 2, ["missing in the mask"]), (5, 1, ["mask 15 mm away"])]
)
def test_a_mask_elsewhere_or_without_the_nodule_is_suspect(shift: int, value: int, found: list[str]) -> None:
    mask = np.roll(ball(NODULE_VOXEL).astype(np.uint16), shift, axis=2)
    assert list(failed_checks(Volume(chest_hu(), AFFINE, {}, ()), None, box_at(NODULE_VOXEL), mask, value)) == found


def test_a_list_in_another_frame_is_noticed(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RAS instead of LPS puts the nodule into the other lung, or out of it."""
    caplog.set_level("INFO")
    item = rows(NODULE_VOXEL)
    item["box"][0][:2] = [-item["box"][0][0], -item["box"][0][1]]
    assert run(write(data, "wrong.json", training=[{"image": "scan.nii.gz", **item}]), tmp_path / "page.png") == 0
    assert "suspect box: scan, nodule 1: " in caplog.text
    assert "suggest a wrong frame" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "page.jpg"], "expected a name that ends in .png"),
        (["--nodules", "-1"], "expected whole numbers of at least 0"),
        (["--datalist", "none.json"], "expected a JSON file, found none"),
        (["--section", "donors"], "expected nodules to show, got none in 0 scans"),
        (["--datalist", "empty.json"], "expected nodules to show, got none in 1 scans"),
        (["--datalist", "flat.json"], "expected scans that can be read, got none"),
    ],
)
def test_bad_input_is_refused(
    words: list[str], message: str, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    write(data, "empty.json", training=[{"image": "scan.nii.gz", "box": [], "label": []}])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), data / "flat.nii.gz")
    write(data, "flat.json", training=[{"image": "flat.nii.gz", **rows(NODULE_VOXEL)}])
    options = {"--datalist": "datalist.json", "--output": "page.png", words[0]: words[1]}
    assert main(["preview", *(word for pair in options.items() for word in pair)]) == 1
    assert message in caplog.text
    assert not (data / "page.png").exists()


def test_a_page_says_that_masks_are_missing_and_draws_a_box_as_long_as_it_is_along_each_axis(data: Path) -> None:
    (sight,) = look_at({"name": "a" * 40, "image": str(data / "scan.nii.gz"), **rows(NODULE_VOXEL)}, [0])
    page = draw_page([replace(sight, size_lps_mm=(10.0, 20.0, 30.0))], "title")
    assert page.get_suptitle() == "title"
    assert page.axes[0].get_title(loc="left") == f"…{'a' * 29}  #1  20.0 mm\nno mask"
    assert sight.pictures[0].width_mm == preview.FIELD_OF_VIEW_MM
    boxes = [box for axes in page.axes[:2] for box in axes.patches]
    assert [(box.get_width(), box.get_height()) for box in boxes] == [(10.0, 20.0), (10.0, 30.0)]  # x and y; x and z


# --- real nodules -----------------------------------------------------------------------------------------------------


def test_no_real_nodule_is_suspect() -> None:
    nodules, found = real("lidc_nodules"), []
    for _, row in read_csv(nodules / "nodules.csv")[::4]:
        volume = read_scan(nodules / "image" / f"{row['name']}.nii.gz")
        box = [*(float(row[f"coord{axis}"]) for axis in "XYZ"), *[float(row["diameter_mm"])] * 3]
        mask = np.asarray(nib.load(nodules / "mask" / f"{row['name']}.nii.gz").dataobj)
        found += [(row["name"], failed) for failed in failed_checks(volume, None, box, mask, 1)]
    assert found == []
