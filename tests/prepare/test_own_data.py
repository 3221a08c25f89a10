"""Own scans: any format, tables of either frame, masks, a split by patient, and a reason for everything left out."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from scripts.core.files import read_csv
from scripts.core.geometry import apply_affine, swap_lps_ras, swap_lps_ras_affine
from scripts.core.labels import IGNORED, NODULE
from scripts.phantom.files import write_dicom_series
from scripts.prepare.__main__ import main
from scripts.prepare.own_data import _validating
from scripts.read.datalist import load_datalist
from tests.image_files import write_image
from tests.interruption import check_any_kill
from tests.luna16_files import SHAPE, centre_lps_mm, reasons, scan_hu, write_mhd

AFFINE = np.array([[2, 0, 0, 10], [0, 2, 0, 20], [0, 0, 2.5, -120], [0, 0, 0, 1]])
AFFINE_LPS = swap_lps_ras_affine(AFFINE)
VOXEL = (4, 5, 6)
NIFTI_LPS_MM = tuple(swap_lps_ras(apply_affine(AFFINE, VOXEL)).tolist())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three scans, one of each format, in folders as they come; a mask of two of them."""
    images = tmp_path / "images"
    write_mhd(images / "clinic" / "anna_1.mhd", scan_hu(1))
    write_image(images / "other" / "anna_2.nii.gz", scan_hu(2), AFFINE_LPS)
    write_dicom_series(images / "pacs" / "series", scan_hu(3), AFFINE, uid_seed="own")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 4:7, 5:8] = 1
    write_image(tmp_path / "masks" / "anna_2.nii.gz", mask, AFFINE_LPS)
    write_mhd(tmp_path / "masks" / "anna_1.mhd", mask)
    return tmp_path


def table(data: Path, text: str, name: str = "nodules.csv") -> str:
    (data / name).write_text(text, encoding="utf-8")
    return str(data / name)


def run(data: Path, *more: str) -> int:
    return main(["datalist", "--images", str(data / "images"), "--output_dir", str(data / "out"), *more])


def made(data: Path, *more: str) -> dict[str, dict[str, Any]]:
    """Run the command; return the items of both sections by name."""
    assert run(data, *more) == 0
    return {item["name"]: item for section in split(data) for item in section}


def split(data: Path) -> list[list[dict[str, Any]]]:
    """Items to train on, and to validate on."""
    return [load_datalist(str(data / "out" / "datalist.json"), name) for name in ("training", "validation")]


def place(voxel: tuple[float, ...] = VOXEL, separator: str = ",") -> str:
    return separator.join(f"{v}" for v in swap_lps_ras(apply_affine(AFFINE, voxel)))


def series_uid(data: Path) -> str:
    return str(pydicom.dcmread(next((data / "images" / "pacs" / "series").glob("*.dcm"))).SeriesInstanceUID)


LUNA16 = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def test_scans_of_every_format_with_luna16_s_columns(data: Path) -> None:
    uid = series_uid(data)
    rows = f"anna_2,{place()},6.5\n{uid},{place((2, 3, 4))},5\nanna_1,{','.join(map(str, centre_lps_mm(VOXEL)))},7\n"
    found = made(data, "--annotations", table(data, LUNA16 + rows), "--strict")
    assert {name: (item["box"], item["label"]) for name, item in found.items()} == {
        "anna_1": ([[*centre_lps_mm(VOXEL), 7.0, 7.0, 7.0]], [NODULE]),
        "anna_2": ([[*NIFTI_LPS_MM, 6.5, 6.5, 6.5]], [NODULE]),
        uid: ([[*swap_lps_ras(apply_affine(AFFINE, (2, 3, 4))), 5.0, 5.0, 5.0]], [NODULE]),
    }
    assert Path(found[uid]["image"]).resolve() == (data / "images" / "pacs" / "series").resolve()
    assert reasons(data / "out") == {}
    raw = json.loads((data / "out" / "datalist.json").read_text(encoding="utf-8"))
    assert all(not os.path.isabs(item["image"]) for section in raw.values() for item in section)


@pytest.mark.parametrize("name", ["anna_2", "anna_2.nii.gz", "other/anna_2.nii.gz", "other\\anna_2.nii.gz"])
@pytest.mark.parametrize(
    ("header", "separator"),
    [("scan,x,y,z,diameter_mm", ","), ("File;X;Y;Z;Diameter", ";"), ("name\tx_mm\ty_mm\tz_mm\tdiameter", "\t")],
)
def test_plain_columns_in_ras_and_any_name_of_the_scan(name: str, header: str, separator: str, data: Path) -> None:
    x, y, z = apply_affine(AFFINE, VOXEL).tolist()
    text = f"\ufeff{header}\r\n" + separator.join([name, f"{x}", f"{y}", f"{z}", "6.5"]) + "\r\n\r\n"
    item = made(data, "--annotations", table(data, text), "--frame", "ras", "--strict")["anna_2"]
    assert item["box"] == [[*NIFTI_LPS_MM, 6.5, 6.5, 6.5]]


def test_no_annotations_are_scans_without_nodules(data: Path) -> None:
    assert [item["box"] for item in made(data, "--validation_fraction", "0").values()] == [[], [], []]
    assert split(data)[1] == []


def test_excluded_findings_are_ignored_ones(data: Path) -> None:
    nodules, others = f"anna_2,{place()},6.5\n", f"anna_2,{place((8, 8, 2))},-1\nanna_2,{place((1, 1, 1))},4\n"
    others += f"anna_2,{place((1, 1, 1))},5\n"  # another reader's mark: unlike a nodule, it may stand at the same place
    options = ["--annotations", table(data, LUNA16 + nodules), "--excluded", table(data, LUNA16 + others, "x.csv")]
    item = made(data, *options, "--strict")["anna_2"]
    assert item["label"] == [NODULE, IGNORED, IGNORED, IGNORED]
    assert [box[3] for box in item["box"]] == [6.5, 10.0, 4.0, 5.0]


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masks_alone_say_where_the_nodules_are(data: Path) -> None:
    found = made(data, "--masks", str(data / "masks"), "--strict")
    np.testing.assert_allclose(found["anna_2"]["box"][0][:3], NIFTI_LPS_MM)
    np.testing.assert_allclose(found["anna_1"]["box"][0][:3], centre_lps_mm(VOXEL))
    assert found["anna_2"]["box"][0][3] == pytest.approx((27 * 10 * 6 / np.pi) ** (1 / 3))
    mask = nib.load(found["anna_2"]["mask"])
    np.testing.assert_allclose(mask.affine, AFFINE)
    assert int(np.asarray(mask.dataobj).sum()) == 27
    assert "mask" not in found[series_uid(data)]


def test_a_mask_gets_the_rows_values_and_masks_below_the_images_are_no_scans(data: Path) -> None:
    (data / "masks").rename(data / "images" / "labels")
    rows = f"anna_2,{place((9, 10, 2))},6\nanna_2,{place()},6.5\n"
    path = data / "images" / "labels" / "anna_2.nii.gz"
    values = nib.load(path).get_fdata()
    values[8:11, 9:12, 1:4] = 1  # a second object of the same value
    write_image(path, values.astype(np.uint8), AFFINE_LPS)
    found = made(data, "--annotations", table(data, LUNA16 + rows), "--masks", str(data / "images" / "labels"))
    assert set(found) == {"anna_1", "anna_2", series_uid(data)}
    mask = np.asarray(nib.load(found["anna_2"]["mask"]).dataobj)
    assert (mask[9, 10, 2], mask[VOXEL]) == (1, 2)


def test_a_nodule_without_a_match_has_no_voxel_in_the_mask(data: Path) -> None:
    rows = f"anna_2,{place()},6.5\nanna_2,{place((10, 12, 1))},3\n"
    item = made(data, "--annotations", table(data, LUNA16 + rows), "--masks", str(data / "masks"))["anna_2"]
    assert (len(item["box"]), set(np.unique(nib.load(item["mask"]).get_fdata()))) == (2, {0, 1})
    assert reasons(data / "out") == {"no mask: the mask has no object at its centre or within its radius": 1}


def test_specks_and_masks_without_a_scan_are_said(data: Path) -> None:
    speck = np.zeros(SHAPE, np.uint8)
    speck[3, 3, 3] = 1
    for name in ("anna_1", "nobody", "anna_2"):  # a second mask of anna_1
        write_image(data / "masks" / f"{name}.nii.gz", speck, AFFINE_LPS @ np.diag([0.2, 0.2, 0.2, 1]))
    assert made(data, "--masks", str(data / "masks"))["anna_2"]["box"] == []
    told = ["a mask has no scan with its name", "a scan has two masks", "an object of a mask is smaller than 2 mm"]
    assert reasons(data / "out") == Counter(told)


# --- the split --------------------------------------------------------------------------------------------------------


TOGETHER = {(True, True), (False, False)}  # training holds both scans or neither


@pytest.mark.parametrize(
    ("more", "sides"),
    [
        (["--patient_pattern", "^([^_]+)_"], TOGETHER),
        (["--annotations", "patients.csv"], TOGETHER),
        (["--patient_pattern", "^(bert)?_?"], {(True, False), (False, True), (False, False)}),
    ],
    ids=["pattern", "column", "patient not in the name"],
)
def test_scans_of_one_patient_stay_together_and_the_seed_decides_where(
    more: list[str], sides: set[tuple[bool, bool]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    rows = f"anna_2,{place()},6.5,Anna\nanna_1,{','.join(map(str, centre_lps_mm(VOXEL)))},7,Anna\n"
    table(data, LUNA16.strip() + ",patient\n" + rows, "patients.csv")
    found = set()
    for seed in range(10):
        assert run(data, *more, "--validation_fraction", "0.5", "--seed", str(seed)) == 0
        training, validation = ({item["name"] for item in section} for section in split(data))
        assert all((training, validation))
        found.add(("anna_1" in training, "anna_2" in training))
    assert found == sides
    assert "Anna" not in (data / "out" / "datalist.json").read_text(encoding="utf-8")


def test_series_of_one_dicom_patient_stay_together(data: Path) -> None:
    for number in range(3):
        write_dicom_series(data / "images" / "pacs" / f"more{number}", scan_hu(9), AFFINE, uid_seed=number)
    assert run(data, "--validation_fraction", "0.5") == 0
    assert sorted(map(len, split(data))) in ([1, 5], [2, 4])  # the four series of PHANTOM-0001 in one


def test_one_more_patient_leaves_the_others_where_they_are() -> None:
    patients = [f"p{n}" for n in range(100)]
    before = _validating(patients, 0.2, 0)
    assert len(before - _validating([*patients, "new"], 0.2, 0)) <= 1
    assert _validating(patients[::-1], 0.2, 0) == before
    assert _validating(patients, 0.2, 1) != before


def test_with_two_patients_or_more_some_validate_and_some_train() -> None:
    cases = {(100, 0.2): 20, (100, 0.0): 0, (0, 0.2): 0, (1, 0.2): 0, (2, 0.2): 1, (3, 0.2): 1, (2, 0.9): 1}
    patients = [f"p{n}" for n in range(100)]
    assert {(n, share): len(_validating(patients[:n], share, 0)) for n, share in cases} == cases


# --- what is left out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("nobody,1,2,3,4\n", "the scan of a row is not there"),
        (",1,2,3,4\n", "the row names no scan"),
        ("anna_2,1,,3,4\n", "position and diameter are not all numbers"),
        ("anna_2,1,two,3,4\n", "position and diameter are not all numbers"),
        ("anna_2,1,2,3\n", "position and diameter are not all numbers"),
        (f"anna_2,{place()},0\n", "a finding has no size"),
        (f"anna_2,{place()},-1\n", "a finding has no size"),
        (f"anna_2,{place((3, 4, 5))},287\n", "a finding is larger than 100 mm"),
        (f"anna_2,{place((2, 2, 2))},6\n", "a nodule is listed twice"),
        ("anna_2,500,0,0,5\n", "a finding's centre lies outside its scan"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out(
    rows: str, reason: str, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = f"anna_2,{place((2, 2, 2))},6.5\n"
    path = table(data, LUNA16 + rows + good)
    assert run(data, "--annotations", path, "--strict") == 1
    assert not (data / "out").exists()
    assert len(made(data, "--annotations", path)["anna_2"]["box"]) == 1
    assert reasons(data / "out") == {reason: 1}
    assert reason in caplog.text
    assert "nodules.csv, row " in caplog.text


def test_the_other_frame_is_recognised(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y, z = apply_affine(AFFINE, VOXEL).tolist()
    path = table(data, LUNA16 + f"anna_2,{x},{y},{z},6.5\n")
    assert run(data, "--annotations", path) == 0
    assert (
        "1 of the 1 findings outside their scans would lie inside if the table were in the other frame" in caplog.text
    )
    assert run(data, "--annotations", path, "--frame", "ras", "--strict") == 0


def test_a_name_that_means_two_scans_is_left_out(data: Path) -> None:
    write_mhd(data / "images" / "again" / "anna_1.mhd", scan_hu(1))
    centre = ",".join(map(str, centre_lps_mm(VOXEL)))
    rows = f"anna_1,{centre},7\nclinic/anna_1.mhd,{centre},8\n"
    assert run(data, "--masks", str(data / "masks")) == 0
    assert reasons(data / "out") == {"two scans match the name of a mask": 1}
    assert run(data, "--annotations", table(data, LUNA16 + rows)) == 0
    assert reasons(data / "out") == {"two scans match the name in a row": 1}
    ((image, (box,)),) = [(one["image"], one["box"]) for section in split(data) for one in section if one["box"]]
    assert (Path(image).resolve().relative_to(data.resolve() / "images").as_posix(), box[3]) == (
        "clinic/anna_1.mhd",
        8.0,
    )


def test_scans_that_share_a_folder_or_cannot_be_read_are_left_out(data: Path) -> None:
    write_image(data / "images" / "pacs" / "series" / "derived.nii.gz", scan_hu(5), AFFINE_LPS)
    (data / "images" / "broken.nii.gz").write_bytes(b"nothing")
    (data / "masks" / "anna_1.mhd").write_text("nothing")
    series = f"images/pacs/series: {series_uid(data)}"
    assert set(made(data, "--masks", str(data / "masks"))) == {"anna_2", "derived"}
    rows = [row for _, row in read_csv(data / "out" / "left_out.csv")]
    assert {Path(row["subject"]).relative_to(data).as_posix(): row["reason"] for row in rows} == {
        "images/broken.nii.gz": "a file cannot be read",
        "masks/anna_1.mhd": "a file cannot be read",
        series: "a DICOM series shares its folder",
    }
    assert [row["advice"][:9] for row in rows].count("expected ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frame", "voxel"], "--frame: expected lps or ras, got voxel"),
        (["--validation_fraction", "1"], "expected at least 0 and below 1, got 1"),
        (["--patient_pattern", "("], "expected a regular expression"),
        (["--patient_pattern", "anna"], "expected a group"),
        (["--annotations", "none.csv"], "none.csv: expected a readable CSV file"),
        (["--annotations", "odd.csv"], "expected the columns seriesuid, coordX, coordY, coordZ, diameter_mm"),
        (["--masks", "none"], "--masks none: expected a folder with masks"),
        (["--images", "none"], "expected a scan, a folder or a datalist, found nothing there"),
        (["--images", "odd"], "found none; check the path"),
        (["--images", "broken"], "expected scans that can be read, got none"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], message: str, data: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    Path("odd").mkdir()
    Path("broken").mkdir()
    Path("broken/a.nii.gz").write_bytes(b"nothing")
    table(data, "a,b\n1,2\n", "odd.csv")
    options = {"--images": "images", "--output_dir": "out", words[0]: words[1]}
    assert main(["datalist", *(word for pair in options.items() for word in pair)]) == 1
    assert message in caplog.text
    assert not Path("out").exists()


# --- interruption -----------------------------------------------------------------------------------------------------


def test_a_run_that_dies_at_any_write_and_starts_again_ends_in_the_same_files(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--images", str(data / "images"), "--masks", str(data / "masks"), "--output_dir"]
    check_any_kill(lambda target: main(["datalist", *options, str(target)]), data, monkeypatch)
