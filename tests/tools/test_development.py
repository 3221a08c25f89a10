"""The development datalist: its sections, its split by patient, the positions it writes, what it misses by name."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy import ndimage

from scripts.core.files import write_csv
from scripts.core.geometry import apply_affine, sphere_diameter_mm, swap_lps_ras
from scripts.core.labels import IGNORED, NODULE
from scripts.evaluate.tables import Table
from scripts.phantom.chest import Chest
from scripts.read.datalist import load_datalist
from tools import development
from tools.development import (
    EXCLUDED_MM,
    HELD_OUT_SCAN,
    HOST_WEIGHT,
    LAST_PATIENT_IN_ORDER,
    PATCH_WEIGHT,
    SERIES_UIDS,
    UNREAD_FINDINGS_LPS_MM,
    make_development_datalist,
    patch_items,
)

HOST, OTHER_HOST = "LIDC-IDRI-0001", "C3N-00247"
EDGE = 40
HOST_AFFINE = np.array([[1, 0, 0, -60.0], [0, 1, 0, -80.0], [0, 0, 1, -130.0], [0, 0, 0, 1]])
HOST_VOXEL = (20, 18, 22)  # of the host's nodule
HELD_OUT_EDGE = 64  # both of its unread findings lie inside
UNREAD_RAS_MM = {  # the middle of the unread findings of a scan
    name: np.mean([swap_lps_ras(row[:3]) for row in UNREAD_FINDINGS_LPS_MM[name]], axis=0)
    for name in (OTHER_HOST, HELD_OUT_SCAN)
}
HELD_OUT_AFFINE = from_matvec(np.eye(3), UNREAD_RAS_MM[HELD_OUT_SCAN] - HELD_OUT_EDGE / 2)
SCANS = (
    (HOST, EDGE, HOST_AFFINE),
    (OTHER_HOST, EDGE, from_matvec(8.0 * np.eye(3), UNREAD_RAS_MM[OTHER_HOST] - 8.0 * EDGE / 2)),
    (HELD_OUT_SCAN, HELD_OUT_EDGE, HELD_OUT_AFFINE),
)
DONOR_COLUMNS = ("name", "seriesuid", "diameter_mm", "texture")
PATCH_COLUMNS = ("name", "seriesuid", "i", "j", "k", "equivalent_diameter_mm")
LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
PATIENTS = [f"LIDC-IDRI-{number:04d}" for number in range(1, 31)]
BALL = np.square(np.indices((13, 13, 13)) - 6.0).sum(axis=0) < 4.2**2  # a nodule of 8.4 mm in the middle of its patch
Lists = dict[str, list[dict[str, Any]]]


def _save(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)


def _write_nodules(table: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]], affine: np.ndarray) -> None:
    """Write a table, and beside it for each of its rows a patch with a nodule and its mask."""
    for name, *_ in rows:
        _save(table.parent / "image" / f"{name}.nii.gz", np.where(BALL, 30, -800).astype(np.int16), affine)
        _save(table.parent / "mask" / f"{name}.nii.gz", BALL.astype(np.uint8), affine)
    write_csv(table, [columns, *rows])


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Unread findings of the real host lie outside the one made here; few insertions show what many would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(UNREAD_FINDINGS_LPS_MM, HOST)
        patch.setattr(development, "VALIDATION_NODULES", 3)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, nodules and patches of thirty patients, and LUNA16's lists, as small as they can be.

    Each patient has two nodules, but the host's only one lies where the host's own nodule does. Each has one patch,
    every fifth without its series; of one patch more nobody knows whose it is.
    """
    folder = tmp_path_factory.mktemp("data")
    for name, edge, affine in SCANS:
        _save(folder / "scans_1mm" / f"{name}.nii.gz", np.full((edge,) * 3, -850, dtype=np.int16), affine)
    centre, uid = swap_lps_ras(apply_affine(HOST_AFFINE, HOST_VOXEL)), SERIES_UIDS[HOST]
    flipped = from_matvec(np.diag([-1.0, -1.0, 1.0]), swap_lps_ras(centre) + np.array([6.0, 6.0, -6.0]))
    donors = [(f"{one}_R_{n}", f"2.25.{one[-4:]}", 8.4, 1) for one in PATIENTS for n in (1, 2) if (one, n) != (HOST, 2)]
    _write_nodules(folder / "lidc_nodules" / "nodules.csv", DONOR_COLUMNS, donors, flipped)
    series = {n: "" if n % 5 == 0 else f"2.25.{patient[-4:]}" for n, patient in enumerate(PATIENTS)}
    series[LAST_PATIENT_IN_ORDER + 1] = ""
    patches = [(f"{n}_nod1", series_uid, 6.0, 6.0, 6.0, 8.4) for n, series_uid in series.items()]
    _write_nodules(folder / "lidc_patches" / "patches.csv", PATCH_COLUMNS, patches, np.eye(4))
    (folder / "luna16").mkdir()
    nodules = [("1.2.3", *centre, 20.0), (uid, *centre + 12, 6.0), (uid, *centre, 8.5)]
    excluded = [(uid, *centre + 1, -1), (uid, *centre - 14, -1), (uid, *centre - 16, 4.0), ("9.9", *centre, -1)]
    for name, rows in (("annotations", nodules), ("annotations_excluded", excluded)):
        write_csv(folder / "luna16" / f"{name}.csv", [LUNA16_COLUMNS, *rows])
    return folder


def _made(data_dir: Path, output_dir: Path, **options: str) -> Lists:
    path = make_development_datalist(str(data_dir), str(output_dir), **options)
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def lists(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Lists:
    """The datalist that the command writes."""
    return _made(data_dir, tmp_path_factory.mktemp("output") / "new")


def test_sections_hold_what_they_should(lists: Lists) -> None:
    assert set(lists) == {"training", "validation", "donors", "validation_donors"}
    training, copies = lists["training"], -(-len(lists["validation_donors"]) // 3)
    assert [(item["name"], item["weight"]) for item in training[:2]] == [(OTHER_HOST, HOST_WEIGHT), (HOST, HOST_WEIGHT)]
    assert {(item["name"][:6], item["weight"]) for item in training[2:]} == {("patch-", PATCH_WEIGHT)}
    names = [f"{HELD_OUT_SCAN}-inserted-{seed}" for seed in range(copies)]
    assert [item["name"] for item in lists["validation"]] == names
    assert len(lists["donors"]) + len(lists["validation_donors"]) == 2 * len(PATIENTS) - 1
    assert {item["diameter_mm"] for item in lists["donors"]} == {8.4}


def _patients(donors: list[dict[str, Any]]) -> set[str]:
    return {donor["name"].split("_")[0] for donor in donors}


def test_patients_are_split_and_never_shared(lists: Lists) -> None:
    training, validation = _patients(lists["donors"]), _patients(lists["validation_donors"])
    assert sorted([*training, *validation]) == PATIENTS
    assert 1 <= len(validation) <= 8  # a tenth of thirty, as the hash falls
    assert {PATIENTS[int(item["name"][len("patch-") :].split("_")[0])] for item in lists["training"][2:]} == training
    np.testing.assert_allclose(lists["training"][2]["box"][0], [-6.0, -6.0, 6.0, 8.4, 8.4, 8.4])


def test_a_patch_is_continued_by_mirror_images_of_which_none_is_to_be_found(lists: Lists) -> None:
    """13 voxels of 1 mm, three times along each axis; the nodule's centre at 6 is at -7 and 19 in the images."""
    patch = lists["training"][2]
    image, mask, lung = (nibabel.Nifti1Image.from_filename(patch[key]) for key in ("image", "mask", "lung_mask"))
    hu, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj)
    assert (hu.shape, inside.shape, patch["label"]) == ((39,) * 3, (39,) * 3, [NODULE] + [IGNORED] * 26)
    centres = apply_affine(np.linalg.inv(image.affine), swap_lps_ras(np.array(patch["box"])[:, :3]))
    voxels = centres.round().astype(int)
    assert sorted({*map(tuple, voxels.tolist())}) == list(itertools.product((6, 19, 32), repeat=3))
    assert (hu[tuple(voxels.T)] == 30).all()
    assert inside[tuple(voxels.T)].tolist() == [1] + [0] * 26
    np.testing.assert_array_equal(np.asarray(lung.dataobj), hu == -800)


def test_the_split_depends_on_the_patient_alone(lists: Lists, data_dir: Path, tmp_path: Path) -> None:
    """Not on who else is there; and the patient of the held-out scan is held out."""
    folder = tmp_path / "lidc_nodules"
    shutil.copytree(data_dir / "lidc_nodules", folder)
    head, *rows = (folder / "nodules.csv").read_text(encoding="utf-8").splitlines()
    (folder / "nodules.csv").write_text("\n".join([head, *rows[:20:-1]]), encoding="utf-8")
    fewer = development._donors(tmp_path, HELD_OUT_SCAN)
    assert _patients(fewer["donors"]) < _patients(lists["donors"])
    assert _patients(fewer["validation_donors"]) <= _patients(lists["validation_donors"])
    patient = lists["donors"][0]["name"].split("_")[0]
    donors = development._donors(data_dir, patient)
    assert _patients(donors["donors"]) == _patients(lists["donors"]) - {patient}
    assert _patients(donors["validation_donors"]) == _patients(lists["validation_donors"]) | {patient}
    patches = [{item["name"] for item in patch_items(data_dir, scan, training=True)} for scan in ("", patient)]
    assert patches[0] - patches[1] == {f"patch-{PATIENTS.index(patient)}_nod1"}


def test_hosts_have_their_nodules_with_masks_and_ignored_findings(lists: Lists) -> None:
    host = lists["training"][1]
    centre = swap_lps_ras(apply_affine(HOST_AFFINE, HOST_VOXEL))
    expected = [
        [*(centre + 12), 6.0, 6.0, 6.0],
        [*centre, 8.5, 8.5, 8.5],
        [*(centre - 14), EXCLUDED_MM, EXCLUDED_MM, EXCLUDED_MM],
        [*(centre - 16), 4.0, 4.0, 4.0],  # the excluded finding inside the nodule is left out
    ]
    np.testing.assert_allclose(host["box"], expected)
    assert host["label"] == [NODULE, NODULE, IGNORED, IGNORED]
    mask = nibabel.Nifti1Image.from_filename(host["mask"])  # names the row of the nodule that it knows
    np.testing.assert_allclose(mask.affine, HOST_AFFINE)
    values = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(np.unique(values[values > 0], return_counts=True), [[2], [BALL.sum()]])  # second row
    np.testing.assert_allclose(np.argwhere(values == 2).mean(axis=0), HOST_VOXEL, atol=0.05)
    other = lists["training"][0]  # unread findings are never background
    assert other["box"][0] == [-81.2, -190.2, -193.0, 28.0, 28.0, 28.0]
    assert len(other["box"]) == len(UNREAD_FINDINGS_LPS_MM[OTHER_HOST])
    assert other["label"] == [IGNORED] * len(other["box"])
    assert "mask" not in other


def test_validation_boxes_are_where_the_masks_are(lists: Lists) -> None:
    unread = [[*row, row[3], row[3]] for row in UNREAD_FINDINGS_LPS_MM[HELD_OUT_SCAN]]
    for item in lists["validation"]:
        image = nibabel.Nifti1Image.from_filename(item["image"])
        mask = np.asarray(nibabel.Nifti1Image.from_filename(item["mask"]).dataobj)
        values = np.asarray(image.dataobj)
        np.testing.assert_allclose(image.affine, HELD_OUT_AFFINE)
        inserted = item["box"][len(unread) :]
        assert item["label"] == [IGNORED] * len(unread) + [NODULE] * len(inserted)
        np.testing.assert_allclose(item["box"][: len(unread)], unread, atol=2e-3)
        assert mask.max() == len(item["box"])
        for number, box in enumerate(inserted, start=len(unread) + 1):
            own = mask == number
            where = np.argwhere(own)
            if where.min() == 0 or where.max() == HELD_OUT_EDGE - 1:
                continue  # cut by the scan's border: the box is that of the whole nodule
            centre = swap_lps_ras(apply_affine(HELD_OUT_AFFINE, where.mean(axis=0)))
            np.testing.assert_allclose(box, [*centre, *[sphere_diameter_mm(own.sum())] * 3], atol=2e-3)
            assert values[ndimage.binary_erosion(own)].mean() > -50
        assert np.all(values[~ndimage.binary_dilation(mask > 0, iterations=5)] == -850)
    assert max(item["label"].count(NODULE) for item in lists["validation"]) >= 2
    assert lists["validation"][0]["box"] != lists["validation"][1]["box"]


def test_insertions_keep_to_closed_lungs(small_chest: Chest, data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "chest.nii.gz"
    _save(path, small_chest.image_hu.astype(np.int16), small_chest.affine_ras)
    donors = development._donors(data_dir, HELD_OUT_SCAN)["donors"][:6]
    bare = {"name": "chest", "image": str(path), "box": [], "label": []}
    item = development._with_insertions(bare, donors, tmp_path, 0)
    assert len(item["box"]) >= 3
    outside_mm = ndimage.distance_transform_edt(small_chest.lungs == 0)
    for box in item["box"]:
        voxel = apply_affine(np.linalg.inv(small_chest.affine_ras), swap_lps_ras(box[:3]))
        assert outside_mm[tuple(np.rint(voxel).astype(int))] <= 2


def test_the_same_data_give_the_same_datalist_of_whole_files(lists: Lists, data_dir: Path, tmp_path: Path) -> None:
    again, places = _made(data_dir, tmp_path), dict.fromkeys(("image", "mask", "lung_mask"))
    for section in lists:
        assert [{**item, **places} for item in again[section]] == [{**item, **places} for item in lists[section]]
        items = load_datalist(str(tmp_path / "datalist.json"), section)
        assert [item for item in items if not all(Path(item[key]).is_file() for key in places if key in item)] == []
    assert not list(tmp_path.glob(".*"))  # no partial file stays


def test_another_lung_can_be_held_out(lists: Lists, data_dir: Path, tmp_path: Path) -> None:
    other = _made(data_dir, tmp_path, held_out=HOST)
    assert [item["name"] for item in other["training"][:2]] == [OTHER_HOST, HELD_OUT_SCAN]
    assert {item["name"].split("-inserted-")[0] for item in other["validation"]} == {HOST}
    own, labels = lists["training"][1]["box"], other["validation"][0]["label"]
    assert labels[: len(own)] == [IGNORED] * len(own)  # its own nodules: each copy has them
    assert NODULE in labels[len(own) :]


@pytest.mark.parametrize(
    "missing",
    [
        "lidc_nodules/nodules.csv",
        "lidc_nodules/image/LIDC-IDRI-0007_R_2.nii.gz",
        "lidc_nodules/mask/LIDC-IDRI-0003_R_1.nii.gz",
        "lidc_patches/patches.csv",
        "lidc_patches/mask/6_nod1.nii.gz",
        "luna16/annotations.csv",
        "luna16/annotations_excluded.csv",
        "scans_1mm",
        f"scans_1mm/{HELD_OUT_SCAN}.nii.gz",
    ],
)
def test_what_is_missing_is_named(data_dir: Path, tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data_dir, copy)
    (copy / missing).rename(tmp_path / "gone")
    advice = "expected a file of the development data, found none; check --data_dir"
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(copy / missing))}.*: {advice}"):
        make_development_datalist(str(copy), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_false_findings_are_the_strongest_on_nothing_annotated() -> None:
    places = np.array([[0.0, 0, 0], [9, 0, 0], [50, 0, 0], [60, 0, 0], [70, 0, 0], [80, 0, 0]])
    scores = np.array([0.9, 0.8, 0.3, 0.2, 0.7, 0.9])
    found = Table(Path("predictions.csv"), ("a", "a", "a", "a", "a", "b"), places, scores)
    item = {"name": "a", "box": [[0.0, 0, 0, 10, 10, 10]]}  # up to 9 mm from its centre counts as on it
    assert development.false_findings(item, found) == [[9.0, 0, 0], [70.0, 0, 0], [50.0, 0, 0]]
