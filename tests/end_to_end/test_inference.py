"""A scan through everything: files in, nodules, outlines and a page out. Truth is the synthetic chest's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest

from scripts.core.errors import user_error_in
from scripts.core.geometry import FloatArray, apply_affine, swap_lps_ras
from scripts.phantom.chest import Chest, Scan, make_chest, scan_chest
from scripts.phantom.command import phantom
from scripts.phantom.files import write_dicom_series, write_image
from tests.bundle import (
    INFERENCE,
    ROOT,
    assert_found,
    candidates,
    command,
    nodules,
    options,
    run_inference,
    succeeded,
    typed,
)
from tests.real_data import real

DEMO_SEED = 7
REAL_SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
FILES = {
    *("nodules.json", "nodules.csv", "mask.nii.gz", "report.html"),
    *("nodules.mrk.json", "mask.ctbl", "mask.label.txt"),
}
OF_DICOM = {"segmentation.dcm", "report.dcm"}


@pytest.fixture(scope="module")
def small() -> tuple[Chest, Scan]:
    """A miniature chest with two nodules, and a scan of it."""
    chest = make_chest(3, scale=0.4, nodules=2)
    return chest, scan_chest(chest, 3)


@pytest.fixture(scope="module")
def bare() -> Chest:
    """A miniature chest without nodules."""
    return make_chest(4, scale=0.4, nodules=0)


def _valid_record(folder: Path) -> dict[str, Any]:
    """The nodules.json of a result, which follows its schema."""
    record, schema = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "nodules.json", ROOT / "docs/schema/nodules-1.json")
    )
    jsonschema.validate(record, schema)
    return dict(record)


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_finds_and_outlines_its_nodules(tmp_path: Path) -> None:
    """What make demo does: the command that prepares the scan, then the run. Every nodule found, outlines good."""
    phantom(str(tmp_path / "input"), scans=1, seed=DEMO_SEED, format="dicom")
    places = options({"input": tmp_path / "input" / "images", "output_dir": tmp_path / "output"})
    said = succeeded(command("inference", "--config_file", INFERENCE, *places)).stdout
    (folder,) = [f for f in (tmp_path / "output").iterdir() if f.is_dir()]
    assert {f.name for f in folder.iterdir()} == FILES | OF_DICOM
    assert str(folder / "report.html") in said
    truth_image = nibabel.load(next((tmp_path / "input" / "masks").glob("*.nii.gz")))
    truth, found_image = np.asarray(truth_image.dataobj), nibabel.load(folder / "mask.nii.gz")
    np.testing.assert_allclose(found_image.affine, truth_image.affine, atol=1e-3)
    found, reported = np.asarray(found_image.dataobj), _valid_record(folder)["nodules"]
    centres_ras_mm = np.array([nodule["centre_ras_mm"] for nodule in reported])
    sides = ["right" if x > 0 else "left" for x in centres_ras_mm[:, 0]]  # a centred chest
    assert [nodule["location"]["side"] for nodule in reported] == sides
    voxels = np.rint(apply_affine(np.linalg.inv(truth_image.affine), centres_ras_mm)).astype(int)
    labels = truth[tuple(voxels.T)].tolist()
    assert {*labels, 0} == set(np.unique(truth).tolist())
    assert labels.count(0) <= 2
    masks = [(truth == hit, found == nodule["label"]) for hit, nodule in zip(labels, reported, strict=True) if hit]
    assert np.median([2.0 * (a & b).sum() / (a.sum() + b.sum()) for a, b in masks]) >= 0.7


# --- one scan, many forms ---------------------------------------------------------------------------------------------


def _flipped(image: np.ndarray, affine: FloatArray, axis: int) -> tuple[np.ndarray, FloatArray]:
    turn = np.eye(4)
    turn[axis, axis], turn[axis, 3] = -1.0, image.shape[axis] - 1
    return np.flip(image, axis), affine @ turn


def _permuted(image: np.ndarray, affine: FloatArray) -> tuple[np.ndarray, FloatArray]:
    return image.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]


FORMS: dict[str, Callable[[Path, np.ndarray, FloatArray], None]] = {
    "dicom": lambda p, x, a: write_dicom_series(p / "series", x, a, uid_seed=1),
    "mhd": lambda p, x, a: write_image(p / "scan.mhd", x, a),
    "nrrd": lambda p, x, a: write_image(p / "scan.nrrd", x, a),
    "flipped": lambda p, x, a: write_image(p / "scan.nii.gz", *_flipped(x, a, 0)),
    "upside down": lambda p, x, a: write_image(p / "scan.nii.gz", *_flipped(x, a, 2)),
    "permuted": lambda p, x, a: write_image(p / "scan.nii.gz", *_permuted(x, a)),
}


def _likely(output: Path) -> np.ndarray:
    """The candidates that count: probability at least 0.2."""
    found = candidates(output)
    return found[found[:, 3] >= 0.2]


@pytest.fixture(scope="module")
def plain_nifti(small: tuple[Chest, Scan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output for the miniature scan as plain NIfTI, against which the other forms are held."""
    folder = tmp_path_factory.mktemp("nifti")
    write_image(folder / "scan.nii.gz", small[1].image_hu, small[1].affine_ras)
    run_inference(folder / "scan.nii.gz", folder / "output")
    assert len(_likely(folder / "output")) >= 1
    return folder / "output"


@pytest.mark.parametrize("form", FORMS)
def test_the_same_scan_in_another_form_has_the_same_nodules_and_a_mask_on_its_grid(
    form: str, small: tuple[Chest, Scan], plain_nifti: Path, tmp_path: Path
) -> None:
    (tmp_path / "input").mkdir()
    FORMS[form](tmp_path / "input", small[1].image_hu, small[1].affine_ras)
    run_inference(tmp_path / "input", tmp_path / "output", threshold=0.2)
    here, reference = _likely(tmp_path / "output"), _likely(plain_nifti)
    assert len(here) == len(reference)
    assert_found(reference, here, apart_mm=1.0, apart=0.05)
    (folder,) = [entry for entry in (tmp_path / "output").iterdir() if entry.is_dir()]
    record, mask = _valid_record(folder), nibabel.load(folder / "mask.nii.gz")
    stored = next((tmp_path / "input").glob("scan.nii.gz"), None)
    if stored is not None:
        assert mask.shape == nibabel.load(stored).shape
        np.testing.assert_allclose(mask.affine, nibabel.load(stored).affine, atol=1e-3)
    labels = np.asarray(mask.dataobj)
    assert len(record["nodules"]) == len(here)
    for nodule in record["nodules"]:
        volume = (labels == nodule["label"]).sum() * abs(np.linalg.det(mask.affine[:3, :3]))
        assert (nodule["volume_mm3"] or 0.0) == pytest.approx(volume, abs=0.06)
        np.testing.assert_allclose(swap_lps_ras(nodule["centre_lps_mm"]), nodule["centre_ras_mm"], atol=1e-6)


# --- odd input --------------------------------------------------------------------------------------------------------


def test_one_broken_scan_of_three_and_equal_file_stems(small: tuple[Chest, Scan], tmp_path: Path) -> None:
    for name in ("a/scan.nii.gz", "b/scan.mha"):
        (tmp_path / "scans" / name).parent.mkdir(parents=True)
        write_image(tmp_path / "scans" / name, small[1].image_hu, small[1].affine_ras)
    (tmp_path / "scans" / "broken.nii").write_bytes(b"no scan at all")
    places = options({"input": tmp_path / "scans", "output_dir": tmp_path / "output"})
    result = typed("inference", "--config_file", INFERENCE, *places)
    assert result.returncode != 0
    assert {f.name for f in (tmp_path / "output").iterdir()} == {"scan", "scan-2", "predictions.csv", "index.html"}
    page = (tmp_path / "output" / "index.html").read_text(encoding="utf-8")
    assert 'href="scan/report.html"' in page
    assert "2 scans searched, 1 refused" in page
    assert str(tmp_path) not in page
    assert {f.name for f in (tmp_path / "output" / "scan-2").iterdir()} == FILES
    assert (result.stderr.count("broken.nii"), result.stderr.count("Traceback")) == (1, 0)


@pytest.mark.parametrize(
    ("part", "noted"),
    [
        (np.s_[:, :, :], False),  # the whole chest
        (np.s_[20:70, 30:80, 30:80], True),  # a cube cut out of it
        (np.s_[:, :, 40:60], None),  # a slab: its lungs may be closed or not
    ],
    ids=["whole", "cube", "slab"],
)
def test_a_chest_without_nodules_gives_a_report(
    part: tuple[slice, ...], noted: bool | None, bare: Chest, tmp_path: Path
) -> None:
    affine = bare.affine_ras.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start or 0 for s in part]
    write_image(tmp_path / "scan.nii.gz", np.rint(bare.image_hu[part]).astype(np.int16), affine)
    run_inference(tmp_path / "scan.nii.gz", tmp_path / "output", threshold=0.999)
    content = _valid_record(tmp_path / "output" / "scan")
    assert content["nodules"] == []
    if noted is not None:
        assert content["search"]["lungs_found"] is not noted
    assert not np.asarray(nibabel.load(tmp_path / "output" / "scan" / "mask.nii.gz").dataobj).any()


def test_thick_slices_are_searched_and_said(small: tuple[Chest, Scan], tmp_path: Path) -> None:
    affine = small[0].affine_ras @ np.diag([1.0, 1.0, 5.0, 1.0])
    write_image(tmp_path / "scan.nii.gz", np.rint(small[0].image_hu[:, :, ::5]).astype(np.int16), affine)
    run_inference(tmp_path / "scan.nii.gz", tmp_path / "output")
    assert any("5" in note and "mm" in note for note in _valid_record(tmp_path / "output" / "scan")["notes"])


def test_a_higher_threshold_reports_fewer_and_predictions_stay(
    small: tuple[Chest, Scan], plain_nifti: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "scan.nii.gz", small[1].image_hu, small[1].affine_ras)
    run_inference(tmp_path / "scan.nii.gz", tmp_path / "output", threshold=0.9)
    low, high = ([n["probability"] for n in nodules(output, "scan")] for output in (plain_nifti, tmp_path / "output"))
    assert high == [probability for probability in low if probability >= 0.9]
    tables = [(output / "predictions.csv").read_text(encoding="utf-8") for output in (plain_nifti, tmp_path / "output")]
    assert tables[0] == tables[1]


# --- refused before anything is searched ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides"), [("other.pt", {"checkpoint": "{0}/other.pt"}), ("file", {"output_dir": "{0}/file/out"})]
)
def test_weights_that_are_none_and_an_output_in_the_way_are_refused(
    name: str, overrides: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"neither weights nor a folder")
    settings = {"output_dir": str(tmp_path / "out")} | {k: v.format(tmp_path) for k, v in overrides.items()}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps the error in one of its own
        run_inference(tmp_path, Path(settings.pop("output_dir")), **settings)
    assert name in str(user_error_in(caught.value))


def test_an_unknown_override_is_refused_on_the_command_line() -> None:
    result = command("inference", "--config_file", "configs/inference.json", "--thresold", "0.3")
    assert result.returncode != 0
    assert "--thresold (did you mean threshold or mask_threshold?)" in result.stderr
    assert "Traceback" not in result.stderr


# --- a real scan ------------------------------------------------------------------------------------------------------


def test_the_nodule_of_a_real_scan_is_among_the_first_three(tmp_path: Path) -> None:
    run_inference(real("scans/LIDC-IDRI-0001"), tmp_path)
    first = nodules(tmp_path, REAL_SERIES)[:3]
    apart = [np.linalg.norm(np.subtract(n["centre_lps_mm"], (56.2, 86.3, -115.9))) for n in first]
    assert min(apart) < 23.35 / 2.0
    mask = np.asarray(nibabel.load(tmp_path / REAL_SERIES / "mask.nii.gz").dataobj)
    assert mask.shape == (512, 512, 133)
    names = ("segmentation.dcm", "report.dcm")
    segmentation, report = (pydicom.dcmread(tmp_path / REAL_SERIES / name) for name in names)
    assert segmentation.pixel_array.sum() == np.count_nonzero(mask)
    assert (segmentation.PatientID, segmentation.StudyInstanceUID) == ("LIDC-IDRI-0001", report.StudyInstanceUID)
