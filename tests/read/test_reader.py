"""Finding and reading scans. The test names are the table of what is handled and what is refused."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from nibabel.affines import from_matvec
from numpy.lib.recfunctions import structured_to_unstructured
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)
from scipy.spatial.transform import Rotation

from scripts.core.errors import user_error_in
from scripts.core.geometry import apply_affine, spacing_mm, swap_lps_ras, swap_lps_ras_affine
from scripts.read import scan as scan_module
from scripts.read.discovery import find_scans, only_scan
from scripts.read.reader import FILE_SEPARATOR, LabelReader, ScanError, ScanReader, read_grid, read_labels, read_scan
from scripts.read.scan import published_reason
from scripts.read.text_headers import read_text_header
from tests import fuzz_headers
from tests.dicom_files import SERIES_UID, STUDY_UID, set_raw, with_values, write_enhanced, write_series
from tests.image_files import AXIAL, SHAPE, chest, write_image
from tests.real_data import real


def same_grid(image: Any) -> Any:
    """What ``read_scan`` gives; ``read_grid`` says the same of it, to the last bit."""
    volume, grid = read_scan(image), read_grid(image)
    assert grid.shape == volume.image_hu.shape
    np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)
    return volume


def read_one(source: Path) -> Any:
    """Read the only scan of a source."""
    return same_grid(only_scan(source)["image"])


def told(read: Callable[[], Any], *words: str) -> ScanError:
    """The error of what is refused; its message holds ``words``."""
    with pytest.raises(ScanError) as caught:
        read()
    assert [word for word in ("expected", *words) if word not in str(caught.value)] == []
    return caught.value


def refused(source: Path, *words: str) -> ScanError:
    """The error of the only scan of ``source``; it names the file and holds ``words``."""
    return told(lambda: read_scan(only_scan(source)["image"]), str(source), *words)


def refused_alike(image: Any, *words: str) -> str:
    """The message with which both refuse, where the fault is one of geometry."""
    message = str(told(lambda: read_scan(image), *words))
    assert str(told(lambda: read_grid(image), *words)) == message
    return message


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the bytes of a file; those of .nii.gz are unpacked for it."""
    pack, unpack = (gzip.compress, gzip.decompress) if path.suffix == ".gz" else (bytes, bytes)
    path.write_bytes(pack(change(unpack(path.read_bytes()))))
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the first of some words of a file."""
    assert old in path.read_bytes()
    return rewritten(path, lambda data: data.replace(old, new, 1))


def cut(path: Path, share: float) -> Path:
    """Keep the first ``share`` of a file."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


def set_tags(only: int | None = None, **tags: Any) -> Callable:
    """A change that sets the same tags in every slice, or in one alone; ``None`` deletes a tag."""
    return lambda dataset, k: with_values(dataset, **tags) if only in (None, k) else dataset


def shifted(axis: int, shift_mm: Callable[[int], float]) -> Callable:
    """A change that moves slice k by ``shift_mm(k)`` along an axis of the patient."""

    def change(dataset, k):
        dataset.ImagePositionPatient[axis] += shift_mm(k)

    return change


# MONAI tries each of its own readers when LoadImage is built, and one warns where a GPU codec is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")

TILTED = AXIAL + 0.5 * np.outer([0, 1, 0, 0], [0, 0, 1, 0])  # slices shifted by 0.5 mm along y
FORMATS = ("dicom", ".mha", ".mhd", ".nrrd", ".nii", ".nii.gz")


SYNTAXES = {
    "dicom": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG": JPEGLosslessSV1,
    "JPEG2000": JPEG2000Lossless,
}


def write_slices(folder: Path, form: str, image_hu: npt.NDArray, affine_lps: npt.NDArray = AXIAL) -> list[Path]:
    """A series in one of :data:`SYNTAXES`; with JPEG, ITK compresses it, at 1 mm."""
    if not form.startswith("JPEG"):
        return write_series(folder, image_hu, affine_lps, syntax=SYNTAXES[form])
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{k}.dcm" for k in range(image_hu.shape[2])]
    tags = {"0008|0060": "CT", "0020|000d": STUDY_UID, "0020|000e": SERIES_UID}
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetCompressor(form)
    for k, path in enumerate(paths):
        image = sitk.GetImageFromArray(image_hu[:, :, k : k + 1].T)
        image.SetOrigin((0, 0, k))
        for tag, value in {**tags, "0008|0018": f"{SERIES_UID}.{k}"}.items():
            image.SetMetaData(tag, value)
        writer.Execute(image, str(path), True, -1)
    return paths


def write_any(folder: Path, form: str, image_hu: npt.NDArray, affine_lps: npt.NDArray = AXIAL) -> Path:
    if form in SYNTAXES:
        return write_slices(folder / "series", form, image_hu, affine_lps)[0].parent
    return write_image(folder / f"scan{form}", image_hu, affine_lps)


# ---- handled: geometry -------------------------------------------------------------------------------------------


@st.composite
def rotations(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    """Right- or left-handed directions: a signed permutation, turned by random angles half of the time."""
    axes = np.eye(3)[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    angles = draw(st.tuples(*[st.floats(-3, 3)] * 3)) if draw(st.booleans()) else (0, 0, 0)
    return Rotation.from_euler("xyz", angles).as_matrix() @ axes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=rotations(),
    spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
    origin=st.tuples(*[st.floats(-400, 400)] * 3),
    marker=st.tuples(*[st.integers(0, n - 1) for n in SHAPE]),
)
def test_handled_any_direction_matrix_gives_the_same_world_position_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, axes, spacing, origin, marker
) -> None:
    affine_lps = from_matvec(axes * spacing, origin)
    image = chest()
    image[marker] = 3000
    expected_ras_mm = swap_lps_ras(apply_affine(affine_lps, marker))
    folder = tmp_path_factory.mktemp("any")
    for form in FORMATS:
        volume = read_one(write_any(folder / form.strip("."), form, image, affine_lps))
        (found,) = np.argwhere(volume.image_hu == 3000)
        # NIfTI keeps the affine in float32: 1e-4 mm at 500 mm
        np.testing.assert_allclose(apply_affine(volume.affine_ras, found), expected_ras_mm, atol=2e-4)
        if form != "dicom":  # there the slices are sorted along their normal: k may run the other way
            np.testing.assert_array_equal(volume.image_hu, image)


TILT = "gantry tilt of 20.0°: slices are shifted against each other, positions account for it"


@pytest.mark.parametrize(
    ("shift_mm", "spacing", "facts", "notes"),
    [
        pytest.param(0, "0.7 × 0.8 × 1.5 mm", {}, (), id="upright"),
        # table feed along z, slices shifted along y: a sheared affine
        pytest.param(0.545955, "0.7 × 0.8 × 1.596 mm", {"Gantry tilt": "20.0°"}, (TILT,), id="gantry tilt"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_handled_formats_hand_worked_case(
    tmp_path: Path, form: str, shift_mm: float, spacing: str, facts: dict[str, str], notes: tuple[str, ...]
) -> None:
    affine_lps = from_matvec([[0.7, 0, 0], [0, 0.8, shift_mm], [0, 0, 1.5]], (-30, -40, -100))
    volume = read_one(write_any(tmp_path, form, chest(), affine_lps))
    np.testing.assert_array_equal(volume.image_hu, chest(), strict=True)
    expected = [[-0.7, 0, 0, 30], [0, -0.8, -shift_mm, 40], [0, 0, 1.5, -100], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine_ras, expected, atol=1e-6)
    shown = {name: text for name, text in volume.facts.items() if name in ("Size", "Spacing", "Gantry tilt")}
    assert (shown, volume.notes) == ({"Size": "9 × 8 × 12", "Spacing": spacing, **facts}, notes)


def test_handled_slices_in_any_order_and_a_folder_of_one_scan(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    paths = [str(path) for path in write_series(folder, chest(), AXIAL)]
    (folder / "report.txt").write_text("no slice")
    write_image(tmp_path / "one/scan.nrrd", chest())
    assert only_scan(folder)["image"] == paths != sorted(paths)  # by position, not by name
    for source, slices in ((paths[::-1], paths), (folder, paths), (str(folder), paths), (tmp_path / "one", [])):
        volume = same_grid(source)
        np.testing.assert_array_equal(volume.image_hu, chest())
        np.testing.assert_allclose(volume.affine_ras, swap_lps_ras_affine(AXIAL), atol=1e-6)
        assert volume.source_files == tuple(slices)  # one for each k


def test_handled_positions_rounded_in_the_header(tmp_path: Path) -> None:
    write_series(tmp_path, chest(), AXIAL, change=shifted(2, lambda k: round(0.625 * k, 1) - 1.5 * k))
    assert read_one(tmp_path).affine_ras[2, 2] == pytest.approx(6.9 / 11)  # -100 to -93.1


def test_handled_thick_slices_with_a_warning(tmp_path: Path) -> None:
    thick = AXIAL @ np.diag([1, 1, 5 / 1.5, 1])
    assert "slices of 5.0 mm" in read_one(write_image(tmp_path / "thick.nii.gz", chest(), thick)).notes[0]
    write_series(tmp_path / "overlapping", chest(), AXIAL, change=set_tags(SliceThickness="4"))
    volume = read_one(tmp_path / "overlapping")
    assert ("slices of 4.0 mm" in volume.notes[0], volume.facts["Slice thickness"]) == (True, "4 mm")


@pytest.mark.parametrize("form", [".nii.gz", ".mha"])
def test_handled_trailing_singleton_axis(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"scan{form}"
    nib.save(nib.Nifti1Image(chest()[..., None], np.eye(4)), tmp_path / "scan.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(chest().T)]), str(tmp_path / "scan.mha"))
    np.testing.assert_array_equal(read_one(path).image_hu, chest())


@pytest.mark.parametrize(
    ("form", "old", "new", "scale", "note"),
    [
        (".nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", 1, "left-posterior-superior is assumed"),
        (".mha", b"ElementSpacing", b"ElementSize", 1, "they are assumed to have no gaps between them"),
        (".mha", b"NDims = 3", b"NDims = 3\nDistanceUnits = cm", 10, "slices of 15.0 mm"),
        (".mhd", b"NDims = 3", b"NDims = 3\nDistanceUnits = cm", 10, "slices of 15.0 mm"),
        (".nrrd", b"endian: little", b'endian: little\nspace units: "cm" "cm" "cm"', 10, "slices of 15.0 mm"),
    ],
)
def test_handled_units_that_itk_ignores_and_what_a_header_leaves_open_is_said(
    tmp_path: Path, form: str, old: bytes, new: bytes, scale: float, note: str
) -> None:
    volume = read_one(edited(write_image(tmp_path / f"scan{form}", chest()), old, new))
    np.testing.assert_allclose(volume.affine_ras[:3], scale * swap_lps_ras_affine(AXIAL)[:3], rtol=1e-9)
    assert note in volume.notes[0]


# ---- handled: intensities ----------------------------------------------------------------------------------------


def test_handled_float_nifti_is_rounded_and_clipped(tmp_path: Path) -> None:
    image = chest().astype(np.float32)
    image[0, 0, :4] = [-1000.6, 40.4, 1e6, -1e6]
    volume = read_one(write_image(tmp_path / "scan.nii", image))
    assert volume.image_hu[0, 0, :4].tolist() == [-1001, 40, 32767, -32768]


def test_handled_mixed_rescale_slopes(tmp_path: Path) -> None:
    """Every second slice lies 0.75 HU higher at slope 0.25; ITK's series reader would cut that off, not round it."""

    def finer(dataset, k):
        if k % 2:
            stored = (4 * (chest()[:, :, k].T.astype(np.int32) + 2048) + 3).astype("<u2").tobytes()
            with_values(dataset, RescaleSlope="0.25", RescaleIntercept="-2048", PixelData=stored)

    write_series(tmp_path, chest(), AXIAL, change=finer)
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest() + np.arange(12) % 2)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768, 0])
def test_handled_padding_outside_the_field_of_view(tmp_path: Path, padding: int) -> None:
    image = chest((20, 20, 6))
    image[:, 6:] = padding
    assert read_one(write_image(tmp_path / "scan.nii", image)).image_hu.min() == image.min()


@pytest.mark.parametrize("form", SYNTAXES)
def test_handled_dicom_transfer_syntax(tmp_path: Path, form: str) -> None:
    paths = write_slices(tmp_path, form, chest((32, 32, 4)))
    assert read_file_meta_info(paths[0]).TransferSyntaxUID == SYNTAXES[form]
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest((32, 32, 4)))


# ---- handled: folders, studies, datalists ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_handled_other_files_beside_the_slices(tmp_path: Path, ending: str) -> None:
    paths = [path.rename(path.with_suffix(ending)) for path in write_series(tmp_path, chest(), AXIAL)]
    texts = ("reading.xml", "notes.txt", ".hidden.dcm", "DICOMDIR", "Thumbs.db", "README", "viewer1.exe", "VERSION")
    for name, content in {**dict.fromkeys(texts, b"no slice"), "LOCKFILE": b""}.items():
        (tmp_path / name).write_bytes(content)
    shutil.copytree(tmp_path, tmp_path / ".cache")
    expected = {"image": [str(p) for p in paths], "name": SERIES_UID, "source": str(tmp_path), "notes": ""}
    assert find_scans(tmp_path) == [expected]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One study: thin axial (.5), thick axial (.4), coronal thin (.3), localizer (.6), few slices (.7), MR (.8)."""
    coronal = from_matvec([[0.7, 0, 0], [0, 0, 0.5], [0, -0.7, 0]])
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    for folder, uid, slices, affine_lps, tags in (
        ("mixed", "1.2.5", 12, AXIAL, {}),
        ("mixed", "1.2.4", 12, AXIAL @ np.diag([1, 1, 2, 1]), {}),
        ("mixed", "1.2.3", 12, coronal, {}),
        ("b", "1.2.6", 1, AXIAL, localizer),
        ("b", "1.2.7", 3, AXIAL @ np.diag([1, 1, 0.3, 1]), {}),
        ("c/d", "1.2.8", 12, AXIAL, {"Modality": "MR"}),
    ):
        image = chest((9, 8, slices))
        write_series(tmp_path / folder, image, affine_lps, series_uid=uid, change=set_tags(**tags))
    return tmp_path


def test_handled_study_with_several_series_takes_the_thinnest_axial_ct_and_says_why(study: Path) -> None:
    entry = only_scan(study)
    volume = read_scan(entry["image"])
    assert (entry["name"], entry["source"]) == ("1.2.5", str(study / "mixed"))
    np.testing.assert_array_equal(volume.image_hu, chest())  # two other series lie in the same folder
    words = (
        "1.2.5 (CT, 12 slices, 1.5 mm) of 6 in the study: thinnest axial CT",
        "1.2.4 (CT, 12 slices, 3 mm): axial CT, not thinner",
        "1.2.3 (CT, 12 slices, 0.5 mm): not axial",
        "1.2.6 (CT, 1 slice): localizer, fewer than 10 slices",
        "1.2.7 (CT, 3 slices, 0.45 mm): fewer than 10 slices",
        "1.2.8 (MR, 12 slices, 1.5 mm): modality MR, not CT",
    )
    assert [phrase for phrase in words if phrase not in entry["notes"]] == []
    assert entry["notes"] in read_scan(study).notes
    assert "secret" not in f"{entry}{volume.facts}".lower()


def test_handled_study_named_series_or_all_ct_series(study: Path) -> None:
    entry = only_scan(study, series="1.2.3")
    assert (entry["name"], "named" in entry["notes"]) == ("1.2.3", True)
    told(lambda: find_scans(study, series="9.9"), "expected series '9.9', found 1.2.3 (CT", "1.2.8 (MR")
    assert sorted(e["name"] for e in find_scans(study, series="all")) == ["1.2.3", "1.2.4", "1.2.5", "1.2.7"]


def test_handled_localizer_image_inside_the_series_is_left_out(tmp_path: Path) -> None:
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_series(tmp_path, chest(), AXIAL, change=set_tags(0, **localizer))
    assert only_scan(tmp_path)["notes"] == "1 localizer image(s) of the series ignored"
    assert read_one(tmp_path).image_hu.shape == (9, 8, 11)


def test_handled_study_spread_over_folders_which_a_gap_names(tmp_path: Path) -> None:
    write_series(tmp_path / "a", chest(), AXIAL, change=lambda _, k: k < 5)
    slices = write_series(tmp_path / "a/b", chest(), AXIAL, change=lambda _, k: k >= 5)
    entry = only_scan(tmp_path)
    assert entry["source"] == str(tmp_path)
    np.testing.assert_array_equal(read_scan(entry["image"]).image_hu, chest())
    slices[0].unlink()
    refused_alike(only_scan(tmp_path)["image"], "between 058_2.dcm and b/031_2.dcm: slices are missing")


def test_handled_folder_of_scans_and_equal_stems_and_links_without_going_in_circles(tmp_path: Path) -> None:
    for path in ("a/Scan.nii.gz", "b/scan.mha", "b/odd name (1)é.nrrd", "c/scan-2.mhd", "d/SCAN.nii"):
        write_image(tmp_path / "real" / path, chest())
    for uid in ("1.2.1", "1.2.2"):
        write_series(tmp_path / f"real/d{uid}", chest(), AXIAL, series_uid=uid, change=set_tags(StudyInstanceUID=uid))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "scans")
    names = ["Scan", "odd_name_1", "scan-2", "scan-2-2", "SCAN-3", "1.2.1", "1.2.2"]
    assert [entry["name"] for entry in find_scans(tmp_path / "scans")] == names


def test_handled_datalist_keeps_other_keys_and_resolves_paths(tmp_path: Path) -> None:
    scan = str(write_image(tmp_path / "x/scan.nii", chest()))
    paths = [str(path) for path in write_series(tmp_path / "x/dicom", chest(), AXIAL)]
    items = [
        {"image": "x/scan.nii", "box": [[1, 2, 3, 4, 5, 6]], "label": [0], "lung_mask": "lungs/1.mhd"},
        {"image": "x/dicom", "fold": 1, "lung_mask": None},
    ]
    extra = {"labels": {"0": "nodule"}, "training": items, "validation": [scan], "n": 3}
    (tmp_path / "list.json").write_text(json.dumps(extra))
    (tmp_path / "plain.json").write_text(json.dumps(items))
    whole = {"image": scan, "name": "scan", "source": scan, "notes": ""}
    assert find_scans(tmp_path / "list.json") == [
        {**items[0], **whole, "lung_mask": str(tmp_path / "lungs/1.mhd")},
        {"image": paths, "fold": 1, "name": SERIES_UID, "source": str(tmp_path / "x/dicom"), "notes": ""},
        {**whole, "name": "scan-2"},
    ]
    assert [entry["name"] for entry in find_scans(tmp_path / "plain.json")] == ["scan", SERIES_UID]
    assert only_scan(tmp_path / "plain.json", series=SERIES_UID)["name"] == SERIES_UID


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((content, "expected") for content in ("{", "3", "{}", '{"training": 1}', "[3]", "[]")),
        *((content, "{'image': path") for content in ('[{"mask": "a"}]', '[{"image": []}]')),
        ('{"donors": [{"image": "a.nii"}]}', "'testing' with a list of items, found donors"),
    ],
)
def test_refused_datalist_of_another_shape(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "list.json").write_text(content)
    told(lambda: find_scans(tmp_path / "list.json"), "list.json", words)


# ---- handled: enhanced CT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_handled_enhanced_ct_is_read_as_its_slices_would_be(tmp_path: Path, syntax: UID) -> None:
    path = write_enhanced(tmp_path / "a/enhanced.dcm", chest(), TILTED, syntax=syntax)
    write_series(tmp_path / "b", chest(), TILTED)
    entry, volume, single = only_scan(path.parent), same_grid(path), read_one(tmp_path / "b")
    np.testing.assert_array_equal(volume.image_hu, single.image_hu)
    np.testing.assert_allclose(volume.affine_ras, single.affine_ras, atol=1e-9)
    assert (volume.notes, volume.facts["Slice thickness"]) == (single.notes, "1.5 mm")
    assert (entry["image"], entry["name"]) == ([str(path)], SERIES_UID)
    assert volume.source_files == (str(path),) * 12  # one for each k


def test_handled_enhanced_ct_with_a_slope_of_its_own_in_each_frame_and_a_localizer(tmp_path: Path) -> None:
    def change(group, k):
        if k == 11:
            group.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
            group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 500]
        if k == 7:
            group.PixelValueTransformationSequence[0].RescaleIntercept = -4100

    write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL, change=change)
    assert only_scan(tmp_path)["notes"] == "1 localizer image(s) of the series ignored"
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, (chest() - 4 * (np.arange(12) == 7))[:, :, :11])


MOVED = ("ImagePositionPatient", [-30, -40, -300])


def _second_half(sequence: str, keyword: str, value: Any) -> Callable:
    return lambda group, k: setattr(group[sequence][0], keyword, value) if k >= 6 else None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_second_half("FrameContentSequence", "StackID", "2"), "one stack, got 2"),
        (_second_half("FrameContentSequence", "TemporalPositionIndex", 2), "one time point, got 2"),
        (_second_half("CTImageFrameTypeSequence", "FrameType", ["DERIVED", "MAXIMUM"]), "one kind of image, got 2"),
        (_second_half("PixelValueTransformationSequence", "RescaleType", "MGML"), "expected HU, got RescaleType MGML"),
        (lambda d, k: setattr(d.PlanePositionSequence[0], *MOVED) if k == 5 else None, "slices are missing"),
        (set_tags(-1, NumberOfFrames=5), "5 frames, 12 functional groups"),
    ],
    ids=["stacks", "times", "types", "not-hu", "gap", "count"],
)
def test_refused_enhanced_ct(tmp_path: Path, change: Callable, words: str) -> None:
    write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL, change=change)
    refused(tmp_path, words)


@pytest.mark.parametrize("share", [0.07, 0.5, 0.99])  # near 0.1 the message depends on the lengths of the UIDs
def test_refused_enhanced_ct_that_is_cut(tmp_path: Path, share: float) -> None:
    cut(write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL), share)
    refused(tmp_path, "enhanced.dcm", "truncated or damaged")


def test_refused_enhanced_ct_without_its_last_frame(tmp_path: Path) -> None:
    """The table, the other frames and the delimiter behind them are there."""
    path = write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL, syntax=RLELossless)
    dataset = dcmread(path)
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=12))[:-1])
    dataset.save_as(path)
    refused_alike(path, "truncated or damaged")


# ---- files that vanish -------------------------------------------------------------------------------------------


LINKS = {"link": "../nowhere", "loop": "{name}", "folder link": ".git/annex/objects/x/MD5"}
# What is left of the bytes of a file.
REMAINS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[:100],
    "zeros": lambda data: bytes(len(data)),
    "lfs": lambda data: b"version https://git-lfs",
    "annex": lambda data: b"/annex/objects/MD5-s1--0",
    "web page": lambda data: b"<html>404</html>",
    "half": lambda data: data[:-60],
    "no start": lambda data: data[200:],
    "part": lambda data: data[:300],
}


@pytest.mark.parametrize("ending", ["", ".dcm", ".1", ".img"])
@pytest.mark.parametrize("how", [*REMAINS, *LINKS])
def test_refused_series_whose_last_slices_cannot_be_read(tmp_path: Path, how: str, ending: str) -> None:
    for k, path in enumerate(write_series(tmp_path, chest(), AXIAL)):
        data = path.read_bytes()
        path = path.rename(tmp_path / f"IM{k:04d}{ending}{'.part' if how == 'part' and k >= 10 else ''}")
        if k >= 10 and how in LINKS:
            path.unlink()
            path.symlink_to(LINKS[how].format(name=path.name))
        elif k >= 10:
            path.write_bytes(REMAINS[how](data))
    refused(tmp_path, "IM0010")


def test_handled_slices_without_preamble(tmp_path: Path) -> None:
    """As older archives write them: the data set alone, with or without the group of file meta information."""
    for k, path in enumerate(write_series(tmp_path, chest(), AXIAL, syntax=ImplicitVRLittleEndian)):
        data = path.read_bytes()
        path.write_bytes(data[132:] if k % 2 else data[data.index(b"\x08\x00\x08\x00") :])
        path.rename(tmp_path / f"slice{k}")
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest())


def test_refused_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights do not bind the user that runs tests in a container, so listing fails here instead."""
    closed, scandir = [tmp_path / "series/3", tmp_path / "mueller"], os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    write_image(tmp_path / "scan.nii", chest())
    write_series(tmp_path / "series/1", chest(), AXIAL, change=lambda _, k: k < 6)
    write_series(tmp_path / "series/2", chest(), AXIAL, change=lambda _, k: k >= 6)
    for folder in closed:
        folder.mkdir()
    scan, *others = find_scans(tmp_path)
    assert [entry["name"] for entry in (scan, *others)] == ["scan", SERIES_UID, "closed"]
    for entry, folder in zip(others, closed, strict=True):
        told(lambda image=entry["image"]: read_scan(image), f"{folder}: expected ")
    closed.append(tmp_path)
    told(lambda: find_scans(tmp_path), "expected a folder that can be read")


def _write_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:  # the name of a socket is short
        server.bind(path.name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _write_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_refused_what_is_no_file_without_opening_it(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "dicom", chest(), AXIAL)
    path = write_image(tmp_path / "data/scan.mhd", chest())
    path.with_suffix(".raw").unlink()
    for name in ("a.nii.gz", "b.mhd", "c.nrrd", "list.json", "dicom/pipe1", "data/scan.raw"):
        NO_FILES[kind](tmp_path / name)
    found = {entry["name"]: entry["image"] for entry in find_scans(tmp_path)}
    assert set(found) == {"a", "b", "c", "scan", SERIES_UID}
    assert read_scan(found[SERIES_UID]).image_hu.shape == SHAPE
    for image, read in product((found["a"], found["b"], found["c"], path), (read_scan, read_labels)):
        with pytest.raises(ScanError, match=r"a named pipe|a socket|a device|expected a mask in one file"):
            read(image)
    told(lambda: find_scans(tmp_path / "list.json"), "list.json: expected a scan")
    NO_FILES[kind](tmp_path / "dicom/extra.dcm")
    refused(tmp_path / "dicom", "extra.dcm: expected a DICOM slice, found a")


NAMES = [b"M\xfcller", b"a\nb", b"x" * 250, "Mü\u202eller 日本".encode(), b"-o", b"~root"]


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, form) for name in NAMES for form in ("dicom", ".mha", ".mhd", ".nrrd", ".nii.gz")), (NAMES[0], "JPEG")],
)
def test_handled_any_file_name(tmp_path: Path, name: bytes, form: str) -> None:
    image = chest((32, 32, 4))
    source = write_any(tmp_path / "source", form, image)
    if form.startswith("."):
        source = source.rename(source.with_name(os.fsdecode(name[:240]) + form)).parent
    target = source.rename(tmp_path / os.fsdecode(name))
    entry, message = only_scan(target), str(ScanError(f"{target}: x"))
    np.testing.assert_array_equal(read_scan(entry["image"]).image_hu, image)
    assert (entry["name"] + message).encode()
    assert "\n" not in message


@pytest.mark.parametrize("form", [".MHA", ".Mhd", ".MHD", ".NRRD", ".Nhdr", ".NII", ".NII.GZ", ".Nii.gz"])
def test_handled_endings_in_capitals(tmp_path: Path, form: str) -> None:
    """The data file that a header names keeps its name."""
    write_image(tmp_path / f"scan{form.lower()}", chest(), compressed=True).rename(tmp_path / f"SCAN{form}")
    assert only_scan(tmp_path)["name"] == "SCAN"
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest())


def test_refused_slices_copied_in_part_into_room_made_before(tmp_path: Path) -> None:
    """The file has its length, its end is zeros."""
    paths = write_series(tmp_path, chest((32, 32, 12)), AXIAL)
    whole = paths[4].read_bytes()
    for size, rows in ((1200, 18), (2048, 32)):
        rewritten(paths[4], lambda data, size=size: data[:-size] + bytes(size))
        refused(tmp_path, f"zeros in the last {rows} of 32 rows", paths[4].name)
    paths[4].write_bytes(whole)
    rewritten(paths[11], lambda data: data[:-2048] + bytes(2048))
    assert "1 slice(s) at the ends of the series are blank" in read_one(tmp_path).notes[0]


# ---- MetaImage and NRRD as ITK reads them -----------------------------------------------------------------------


def _as_itk(path: Path) -> None:
    """Values and geometry are those that SimpleITK reads."""
    header, image = read_text_header(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(header.read_values(), sitk.GetArrayFromImage(image).T)
    affine_lps = from_matvec(np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), image.GetOrigin())
    np.testing.assert_allclose(header.grid.affine_ras, swap_lps_ras_affine(affine_lps), atol=1e-9)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_handled_every_number_type_of_metaimage_and_nrrd(tmp_path: Path, form: str, packed: bool, dtype: str) -> None:
    turned = np.array([[0, -0.8, 0, 1], [0.42, 0, 1.2, 2], [-0.56, 0, 0.9, 3], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(0, 100, (6, 5, 4)).astype(dtype)
    _as_itk(write_image(tmp_path / f"a{form}", values, turned, compressed=packed))


META = "NDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\nElementSpacing = .7 .8 1.5\n"
NRRD = "NRRD0005\n# remark\ntype: int16\ndimension: 3\nsizes: 6 5 4\nendian: little\nkey:=value\nencoding: raw\n"
PLACED = "space directions: (0.7,0,0) (0,0.8,0) (0,0,1.5)\nspace origin: (1,2,3)\n"
STEPS = "spacings: 0.7 0.8 1.5\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", META + "ElementByteOrderMSB = True\nElementDataFile = big.raw\n"),
        ("a.mhd", META.replace("\n", "\r\n") + "ElementDataFile = plain.raw\r\n"),
        ("a.mhd", META + "HeaderSize = 37\nElementDataFile = late.raw\n"),
        ("a.mhd", META + "HeaderSize = -1\nElementDataFile = late.raw\n"),
        ("a.mhd", META + "Rotation = 0 1 0 -1 0 0 0 0 1\nPosition = 4 5 6\nElementDataFile = plain.raw\n"),
        ("a.nhdr", NRRD + "space: RAS\n" + PLACED + "data file: plain.raw\n"),
        ("a.nhdr", NRRD + "space: left-anterior-superior\n" + PLACED + "datafile: plain.raw\n"),
        ("a.nhdr", NRRD.replace("little", "big") + "space: LPS\n" + PLACED + "data file: big.raw\n"),
        ("a.nhdr", NRRD + "byte skip: 37\n" + STEPS + "data file: late.raw\n"),
        ("a.nhdr", NRRD + "byteskip: -1\n" + STEPS + "data file: late.raw\n"),
    ],
)
def test_handled_text_headers_of_other_programs(tmp_path: Path, name: str, text: str) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype("<i2")
    plain = values.tobytes()
    files = {"plain": plain, "big": values.astype(">i2").tobytes(), "late": b"x" * 37 + plain}
    for stem, data in files.items():
        (tmp_path / f"{stem}.raw").write_bytes(data)
    (tmp_path / name).write_bytes(text.encode())
    _as_itk(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", META + "ElementDataFile = LIST\ns1.raw\ns2.raw\n"),
        ("a.mhd", META + "ElementDataFile = s%d.raw 1 4 1\n"),
        ("a.mha", META + "BinaryData = False\nElementDataFile = LOCAL\n1 2 3"),
        ("a.nhdr", NRRD + "line skip: 2\n" + STEPS + "data file: lines.raw\n"),
        ("a.nhdr", NRRD + STEPS + "data file: LIST\ns1.raw\ns2.raw\n"),
        ("a.nhdr", NRRD + STEPS + "data file: s%d.raw 1 4 1\n"),
        ("a.nrrd", NRRD.replace("raw", "ascii") + STEPS + "\n1 2 3"),
        ("a.nrrd", NRRD.replace("raw", "bzip2") + STEPS + "\nBZ"),
    ],
)
def test_refused_text_header_of_voxels_in_several_files_or_in_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    refused_alike(tmp_path / name, "one data file of binary numbers")


@pytest.mark.parametrize("extra", [b"\1", b"\0" * 5000])
@pytest.mark.parametrize("form", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_refused_more_data_than_the_header_says(tmp_path: Path, form: str, extra: bytes) -> None:
    """Then the header says another size than the scan has; zeros up to a block of the disk are no data."""
    path = rewritten(write_image(tmp_path / f"scan{form}", chest()), lambda data: data + b"\0" * 100)
    np.testing.assert_array_equal(read_one(path).image_hu, chest())
    refused(rewritten(path, lambda data: data[:-100] + extra), "truncated or damaged")


# ---- voxel sizes that are not there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "old", "new"),
    [
        (".mhd", b"ElementSpacing = ", b"Comment = "),
        (".mhd", b"ElementSpacing = ", b"elementspacing = "),
        (".mhd", b"0.69999999999999996", b"0,7"),
        (".mhd", b"ElementSpacing = 0.69999999999999996 ", b"ElementSpacing = "),
        (".mhd", b"ElementSpacing = ", b"ElementSpacing = 1 1 1\nElementSpacing = "),
        (".mhd", b"ElementSpacing = 0.6", b"ElementSpacing = -0.6"),
        (".mhd", b"ElementSpacing = 0.69999999999999996", b"ElementSpacing = nan"),
        (".mhd", b"ElementSpacing = 0.69999999999999996", b"ElementSpacing = 0.0007"),
        (".mhd", b"ElementSpacing = 0.69999999999999996", b"ElementSpacing = 100"),
        (".mhd", b"NDims = 3", b"NDims = 3\nDistanceUnits = inch"),
        (".nrrd", b"space directions: ", b"# "),
        (".nrrd", b"space directions: (", b"spacings: nan nan nan\n# ("),
        (".nrrd", b"space directions: (", b"spacings: 0,7 0,8 1,5\n# ("),
        (".nrrd", b"space directions: (", b"spacings: 0.7 0.8\n# ("),
        (".nrrd", b"space directions: (0.", b"space directions: (nan"),
        (".nrrd", b"space directions: (", b"space directions: none ("),
    ],
)
def test_refused_text_header_that_leaves_the_voxel_size_open(tmp_path: Path, form: str, old: bytes, new: bytes) -> None:
    refused_alike(edited(write_image(tmp_path / f"scan{form}", chest()), old, new))


def write_raw_nifti(
    path: Path, *, codes: tuple[int, int], pixdim: Any, steps: Any, unit: int = 2, shift: float = 0.0
) -> Path:
    """A NIfTI-1 file with header fields as they are given.

    Args:
        path: of the file.
        codes: of qform and sform.
        pixdim: voxel sizes, in the unit.
        steps: ``[3, 3]`` of the sform, in the unit.
        unit: 1 for m, 2 for mm, 3 for µm, 0 for unknown.
        shift: how far the qform lies aside of the sform, in the unit.
    """
    header = nib.Nifti1Image(chest(), np.eye(4)).header
    header["qform_code"], header["sform_code"], header["xyzt_units"], header["qoffset_x"] = *codes, unit, shift
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = pixdim, 352, b"n+1"
    header["srow_x"], header["srow_y"], header["srow_z"] = from_matvec(steps)[:3]
    path.write_bytes(header.binaryblock + bytes(4) + chest().tobytes(order="F"))
    return path


SFORM: dict[str, Any] = {"codes": (0, 1), "pixdim": (1, 1, 1), "steps": np.eye(3)}
BOTH: dict[str, Any] = {"codes": (1, 2), "pixdim": (1.4, 1.4, 2.5), "steps": np.diag([1.4, 1.4, 2.5])}
OBLIQUE = [[1, 0, 0], [0, 1, 0.5], [0, 0, 2]]  # slices 2 mm apart, shifted by 0.5 mm


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (BOTH | {"codes": (0, 1), "steps": np.eye(3)}, "1 × 1 × 1 mm from the sform and 1.4 × 1.4"),
        (BOTH | {"steps": np.diag([1.4, 1.4, 2.6])}, "from pixdim"),
        (SFORM | {"codes": (0, 0), "pixdim": (0, 0, 0)}, "expected voxel sizes above 0 in pixdim"),
        (SFORM | {"codes": (1, 0), "pixdim": (1, 0, 1)}, "expected voxel sizes above 0 in pixdim"),
        (SFORM | {"codes": (0, 0), "pixdim": (1, np.nan, 1)}, "expected voxel sizes above 0 in pixdim"),
        (SFORM | {"unit": 1}, "0.05 to 30.0 mm"),
        (SFORM | {"unit": 3}, "0.05 to 30.0 mm"),
        (SFORM | {"unit": 5}, "unit code 5"),
        (SFORM | {"steps": np.diag([0, 1, 1])}, "three independent axes"),
        (SFORM | {"steps": [[1, 0, 2], [0, 1, 0], [0, 0, 0]]}, "three independent axes"),
        (SFORM | {"steps": np.diag([1, 1, np.nan])}, "three independent axes"),
        (SFORM | {"steps": np.diag([1, 1, 100])}, "three independent axes"),
    ],
)
def test_refused_nifti_that_leaves_the_voxel_size_open(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    refused_alike(write_raw_nifti(tmp_path / "scan.nii", **fields), words)


APART = "sform and qform of the NIfTI header differ by up to 40 mm: the sform is used"
IN_METRES = {"unit": 1, "pixdim": (1e-3, 1e-3, 1e-3), "steps": 1e-3 * np.eye(3)}
IN_MICRONS = {"unit": 3, "pixdim": (1e3, 1e3, 1e3), "steps": 1e3 * np.eye(3)}
NO_FORM = "the NIfTI header gives no orientation (sform and qform code 0): left and right are assumed"
NO_SIZES = "pixdim of the NIfTI header gives no voxel size: that of the sform is used"


@pytest.mark.parametrize(
    ("fields", "affine_ras", "notes"),
    [
        pytest.param(SFORM, np.eye(4), (), id="mm"),
        pytest.param(SFORM | {"unit": 0}, np.eye(4), (), id="unknown unit"),
        pytest.param(SFORM | IN_METRES, np.eye(4), (), id="metres"),
        pytest.param(SFORM | IN_MICRONS, np.eye(4), (), id="microns"),
        pytest.param(SFORM | {"codes": (1, 1), "shift": 40}, np.eye(4), (APART,), id="forms apart"),
        pytest.param(SFORM | IN_METRES | {"codes": (1, 1), "shift": 0.04}, np.eye(4), (APART,), id="apart, in metres"),
        pytest.param(
            BOTH | {"codes": (0, 0)},
            from_matvec(np.diag([-1.4, 1.4, 2.5]), (5.6, -4.9, -13.75)),
            (NO_FORM,),
            id="no form",
        ),
        pytest.param(
            BOTH | {"codes": (0, 1), "pixdim": (0, 0, 0)}, from_matvec(BOTH["steps"]), (NO_SIZES,), id="pixdim unset"
        ),
        pytest.param(
            SFORM | {"pixdim": (1, 1, 2), "steps": OBLIQUE},
            from_matvec(OBLIQUE),
            ("gantry tilt of 14.0°: slices are shifted against each other, positions account for it",),
            id="pixdim across slices",
        ),
    ],
)
def test_handled_nifti_units_forms_and_pixdim(
    tmp_path: Path, fields: dict[str, Any], affine_ras: npt.NDArray, notes: tuple[str, ...]
) -> None:
    volume = read_one(write_raw_nifti(tmp_path / "scan.nii", **fields))
    np.testing.assert_allclose(volume.affine_ras, affine_ras, rtol=1e-6)
    assert volume.notes == notes


@pytest.mark.parametrize("form", [".mhd", ".mha", ".nrrd", ".nii", ".nii.gz"])
def test_refused_header_that_claims_a_million_million_voxels(tmp_path: Path, form: str) -> None:
    dims = [np.array(size, "<i2").tobytes() for size in (SHAPE, (32767, 32767, 1000))]
    old, new = dims if ".nii" in form else (b"9 8 12", b"10000 10000 10000")
    path = rewritten(write_image(tmp_path / f"scan{form}", chest()), lambda data: data.replace(old, new, 1))
    began = time.monotonic()
    refused(path, "expected at most 4294967296 voxels")
    assert time.monotonic() - began < 1


# ---- pixel packing -----------------------------------------------------------------------------------------------


PACKINGS = [
    *((16, 12, 11, False), (16, 12, 15, False), (16, 13, 13, True), (16, 12, 11, True), (16, 12, 14, True)),
    *((16, 16, 15, True), (32, 16, 15, False), (32, 20, 25, True)),
]
PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize(
    ("syntax", "allocated", "stored", "high", "signed"),
    [*((syntax, *bits) for syntax in PLAIN for bits in PACKINGS), (RLELossless, *PACKINGS[1])],
)
def test_handled_any_packing_of_bits(
    tmp_path: Path, syntax: UID, allocated: int, stored: int, high: int, signed: bool
) -> None:
    """Bits outside of those stored hold rubbish (overlays, in older files)."""
    image = np.clip(chest(), -1000, 900)
    intercept = 0 if signed else -1024
    rubbish = np.random.default_rng(3)

    def pack(dataset, k):
        values = image[:, :, k].T.astype(np.int64) - intercept
        mask = ((1 << stored) - 1) << (high + 1 - stored)
        words = (values << (high + 1 - stored)) & mask
        words |= rubbish.integers(0, 1 << allocated, words.shape) & ~mask & ((1 << allocated) - 1)
        bits = {"BitsAllocated": allocated, "BitsStored": stored, "HighBit": high, "PixelRepresentation": int(signed)}
        pixels = words.astype(f"{'<' if syntax.is_little_endian else '>'}u{allocated // 8}").tobytes()
        with_values(dataset, **bits, RescaleIntercept=intercept, PixelData=pixels)["PixelData"].VR = "OW"

    write_series(tmp_path, image, AXIAL, change=pack, syntax=syntax)
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, image)


@pytest.mark.parametrize("tag", ["PatientID", "PatientName", "FrameOfReferenceUID"])
def test_handled_origin_that_some_slices_do_not_name(tmp_path: Path, tag: str) -> None:
    write_series(tmp_path, chest(), AXIAL, change=lambda d, k: setattr(d, tag, "" if k % 2 else "1.2"))
    assert read_one(tmp_path).image_hu.shape == SHAPE


@pytest.mark.parametrize(("value", "limit", "seen"), [(30000, 30000, -1024), (40, 40, 40), (40, 30000, 40)])
def test_handled_padding_above_bone_becomes_air(tmp_path: Path, value: int, limit: int, seen: int) -> None:
    """Padding that looks like the body, be it at one end, is left alone: it cannot be told from it."""
    image = chest()
    image[7:] = value
    padding = set_tags(PixelPaddingValue=value + 4096, PixelPaddingRangeLimit=limit + 4096)
    write_series(tmp_path, image, AXIAL, change=padding)
    image[7:] = seen
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, image)


# ---- the wrong series --------------------------------------------------------------------------------------------


THIN = "1.2.5 (CT, 12 slices, 1.5 mm)"
CHESTS = ("Thorax 1.0", "CHEST W IODINE CONTRAST", "Chest-Abdomen-Pelvis", "TAP venous", "Low dose lung 3D", "HRCT")


@pytest.mark.parametrize(
    ("tags", "chosen", "note"),
    [
        *(({"SeriesDescription": name}, "1.2.5", f"{THIN} of 2 in the study: thinnest axial CT") for name in CHESTS),
        ({"SliceThickness": "3.1"}, "1.2.4", "1.2.5 (CT, 12 slices, 3.1 mm): axial CT, not thinner"),
        ({"BodyPartExamined": "HEAD"}, "1.2.4", f"{THIN}: of the head, not the chest"),
        ({"SeriesDescription": "Schaedel 1.0"}, "1.2.4", f"{THIN}: of the schaedel, not the chest"),
        (
            {"BodyPartExamined": "CHEST", "SeriesDescription": "Abdomen venous 1.0"},
            "1.2.4",
            f"{THIN}: of the abdom, not the chest",
        ),
        ({"ProtocolName": "Brain"}, "1.2.4", f"{THIN}: of the brain, not the chest"),
        ({"PhotometricInterpretation": "RGB"}, "1.2.4", f"{THIN}: in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "1.2.4", f"{THIN}: in colour"),
        ({"RescaleType": "MGML"}, "1.2.4", f"{THIN}: not HU"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]}, "1.2.4", f"{THIN}: not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "VNC"]}, "1.2.4", f"{THIN}: not HU"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]}, "1.2.4", f"{THIN}: not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "1.2.4", f"{THIN}: not HU"),
        ({"SeriesDescription": "Chest Zeff 1.0"}, "1.2.4", f"{THIN}: not HU"),
        ({"SeriesDescription": "Iodine map thorax"}, "1.2.4", f"{THIN}: not HU"),
        ({"SeriesDescription": "Patient Protocol"}, "1.2.4", f"{THIN}: not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "1.2.4", f"{THIN}: intensity projection"),
        ({"SeriesDescription": "Thorax MIP 8/2"}, "1.2.4", f"{THIN}: intensity projection"),
    ],
    ids=str,
)
def test_handled_study_whose_thinnest_series_is_chosen_only_if_it_may_be_the_chest(
    tmp_path: Path, tags: dict[str, Any], chosen: str, note: str
) -> None:
    good = set_tags(SeriesDescription="Thorax low dose 3.0 lung", BodyPartExamined="CHEST")
    write_series(tmp_path, chest(), AXIAL @ np.diag([1, 1, 2, 1]), series_uid="1.2.4", change=good)
    write_series(tmp_path, chest(), AXIAL, series_uid="1.2.5", change=set_tags(**tags))
    entry = only_scan(tmp_path)
    assert (entry["name"], note in entry["notes"]) == (chosen, True)
    assert read_scan(entry["image"]).image_hu.shape == SHAPE


def test_handled_lone_series_of_another_part_is_said(tmp_path: Path) -> None:
    write_series(tmp_path, chest(), AXIAL, change=set_tags(BodyPartExamined="HEAD"))
    assert "of the head, not the chest" in only_scan(tmp_path)["notes"]


# ---- damaged headers ---------------------------------------------------------------------------------------------


def test_damaged_headers_give_a_scan_or_a_message() -> None:
    """A few hundred of those that ``python -m tests.fuzz_headers`` tries."""
    counts = fuzz_headers.run(seed=3, first=0, count=300)
    read = sum(count for kind, count in counts.items() if kind.endswith("read"))
    assert 30 < read < sum(counts.values()) == 300


# ---- refused at once ---------------------------------------------------------------------------------------------


def test_refused_input_that_does_not_exist_or_is_empty(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("no scan")
    told(lambda: find_scans(tmp_path / "nowhere"), "nowhere", "found nothing there")
    told(lambda: find_scans(tmp_path), "expected DICOM slices or ", "found none")


# ---- refused when read, so that the other scans run -----------------------------------------------------------------


def test_refused_scans_do_not_stop_the_others(tmp_path: Path) -> None:
    pointers = {f"study/IM{k}": b"version https://git-lfs.github.com/spec/v1\n" for k in range(3)}
    for name, content in {"broken.nii.gz": b"", "bad/slice.dcm": b"x" * 300, **pointers}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_series(tmp_path / "good", chest(), AXIAL)
    entries = {entry["name"]: entry["image"] for entry in find_scans(tmp_path)}
    assert list(entries) == ["broken", SERIES_UID, "slice", "IM0"]
    assert read_scan(entries[SERIES_UID]).image_hu.shape == SHAPE
    for name, words in (("broken", "broken.nii.gz"), ("slice", "slice.dcm"), ("IM0", "a git-lfs or git-annex pointer")):
        told(lambda image=entries[name]: read_scan(image), words)


def test_refused_datalist_items_whose_file_or_folder_is_no_scan(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for n in ("1", "2"):
        write_series(tmp_path / "two" / n, chest(), AXIAL, series_uid=n, change=set_tags(StudyInstanceUID=n))
    (tmp_path / "list.json").write_text(json.dumps(["missing.nii", "gone", "empty", "two"]))
    entries = find_scans(tmp_path / "list.json")
    assert [entry["name"] for entry in entries] == ["missing", "item", "item-2", "item-3"]  # no folder's name
    words = ("missing.nii: expected", "gone: expected", "found none", "expected one scan, got 2 (1, 2)")
    for entry, match in zip(entries, words, strict=True):
        told(lambda image=entry["image"]: read_scan(image), match)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _, k: k < 1, "single 2-D slice"),
        (lambda _, k: k != 5, "expected a slice every 1.50 mm, got a gap of 3.00 mm"),
        (shifted(2, lambda k: -1.5 * (k == 4)), "two at -95.50 mm (021_2.dcm, 058_2.dcm)"),
        (shifted(0, lambda k: 0.3 * (k == 4)), "0.30 mm out of place"),
        (shifted(2, lambda k: 0.3 * (k == 4)), "0.30 mm out of place"),
        (shifted(2, lambda k: max(0, k - 6) * 0.4), "evenly spaced slices"),
        (set_tags(ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]), "two perpendicular unit vectors"),
        (set_tags(Modality="MR"), "modality CT, got MR"),
        (set_tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "got a localizer"),
        (lambda d, k: set_raw(d, "RescaleSlope", "1,0") if k == 4 else None, "one number each"),
        (lambda d, k: setattr(d, "PixelData", d.PixelData[:-20]) if k == 3 else None, "file 021_2.dcm"),
        (set_tags(4, PixelData=None), "file 058_2.dcm"),
        (set_tags(4, ImagePositionPatient=None), "expected ImagePositionPatient, found none"),
        (set_tags(4, ImagePositionPatient=["1", "2"]), "expected ImagePositionPatient, found none"),
        (set_tags(4, ImageOrientationPatient=None), "expected ImageOrientationPatient, found none"),
        (set_tags(4, PixelSpacing=None), "expected PixelSpacing, found none"),
        (set_tags(4, PixelSpacing=["0.9", "0.7"]), "expected the pixel spacing (0.8, 0.7)"),
        (set_tags(4, ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "expected the orientation (1.0, 0.0"),
        (set_tags(4, Rows=4), "expected the size (9, 8)"),
        (set_tags(4, Modality="MR"), "expected modality CT, got MR"),
        (set_tags(4, Modality=None), "expected modality CT, got none"),
        (
            set_tags(4, NumberOfFrames=2),
            "058_2.dcm frame 1: expected one slice per file, or an enhanced (multi-frame) CT with a position for "
            "each of its 2 frames, got frames without positions; export the original series",
        ),
        (set_tags(4, PhotometricInterpretation="RGB"), "expected grey CT values"),
        # of other values
        (set_tags(4, HighBit=10, BitsStored=12), "BitsAllocated, BitsStored and HighBit"),
        (set_tags(4, BitsStored=17), "BitsAllocated, BitsStored and HighBit"),
        (set_tags(4, HighBit=16), "BitsAllocated, BitsStored and HighBit"),
        (set_tags(4, BitsStored=None), "found only some of them"),
        (set_tags(4, PixelRepresentation=None), "found only some of them"),
        (set_tags(4, RescaleSlope=0), "one number each"),
        (set_tags(4, RescaleSlope=["1", "2"]), "one number each"),
        (set_tags(4, RescaleIntercept=None), "one number each"),
        (set_tags(4, RescaleSlope=None, RescaleIntercept=None), "found none in some"),
        (set_tags(4, RescaleType="MGML"), "expected HU, got RescaleType MGML"),
        (set_tags(4, ModalityLUTSequence=[]), "Modality LUT"),
        # of another origin
        (set_tags(4, PatientID="ANNA"), "one patient (PatientID), got 2"),
        (set_tags(4, PatientName="Anna^Name"), "one patient (PatientName), got 2"),
        (lambda d, k: setattr(d, "FrameOfReferenceUID", f"1.2.{k // 11}"), "one frame of reference, got 2"),
    ],
)
def test_refused_series_without_naming_the_patient(tmp_path: Path, change: Callable, words: str) -> None:
    write_series(tmp_path, chest(), AXIAL, change=change)
    message = refused_alike(only_scan(tmp_path)["image"], str(tmp_path), words)
    assert [name for name in ("secret", "anna") if name in message.lower()] == []


def test_refused_copies_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "first", chest(), AXIAL)
    shutil.copytree(tmp_path / "study" / "first", tmp_path / "study" / "again")
    error = refused(tmp_path, "got two at -100.00 mm (again/011_2.dcm, first/011_2.dcm)")
    assert "again" not in published_reason(error)  # a folder may have a patient's name


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("form", ["dicom", "RLE", "deflated", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("k", [0, 2])
def test_refused_truncated_dicom(
    tmp_path: Path, share: float, form: str, k: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = cut(write_slices(tmp_path, form, chest((32, 32, 4)))[k], share)
    refused(tmp_path, path.name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("form", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_refused_truncated_file(tmp_path: Path, form: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = cut(write_image(tmp_path / f"scan{form}", chest((32, 32, 32))), share)
    refused(path, "truncated or damaged")
    if share < 0.01:
        refused_alike(path)
    assert capfd.readouterr() == ("", "")


def test_refused_nii_gz_with_damaged_bytes(tmp_path: Path) -> None:
    """Stored, not deflated, so that the damage shows in the checksum alone."""
    data = bytearray(gzip.compress(write_image(tmp_path / "scan.nii", chest()).read_bytes(), compresslevel=0))
    data[-200] ^= 0xFF
    (tmp_path / "scan.nii").write_bytes(data)
    refused(tmp_path / "scan.nii", "CRC check failed")


@pytest.mark.parametrize("form", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (chest()[:, :, 0], "2-D image (9 × 8)"),
        (chest()[:, :, :1], "2-D image (9 × 8 × 1)"),
        (np.stack([chest()] * 2, axis=-1), "4 axes (9 × 8 × 12 × 2)"),
        (chest()[..., None, None] + np.zeros((1, 1, 1, 1, 3), np.int16), "5 axes"),
        (np.where(np.arange(12) == 3, np.nan, chest()).astype(np.float32), "NaN or infinity in 72 voxels"),
        (np.where(np.arange(12) == 3, np.inf, chest()).astype(np.float32), "NaN or infinity in 72 voxels"),
        (np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "one number per voxel"),
    ],
    ids=["2-D", "one-slice", "4-D", "vector", "nan", "infinity", "colour"],
)
def test_refused_what_is_no_volume_of_numbers(tmp_path: Path, image: npt.NDArray, words: str, form: str) -> None:
    path, is_colour = tmp_path / f"scan{form}", image.dtype.names is not None
    if form == ".nii.gz":
        nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    else:
        numbers = structured_to_unstructured(image) if is_colour else image.T
        sitk.WriteImage(sitk.GetImageFromArray(numbers, isVector=is_colour), str(path))
    refused(path, words)


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.clip((chest() + 1000) / 1400 * 255, 0, 255).astype(np.uint8), "lung or air"),
        (np.clip((chest() + 1000) / 1400, 0, 1).astype(np.float32), "lung or air"),
        ((chest() / 400).astype(np.float32), "lung or air"),
        (chest() + 1024, "lung or air"),
        (np.where(np.arange(9)[:, None, None] < 2, -2000, chest() + 1024).astype(np.int16), "lung or air"),
        ((chest() > -400).astype(np.uint8), "lung or air"),
        (np.abs(NOISE.normal(50, 10, SHAPE)).astype(np.int16), "lung or air"),
        (np.full(SHAPE, -1000, np.int16), "same value -1000"),
        (chest() - 1024, "below air"),
        (((np.clip(chest(), -1000, 400) + 1000) / 1400 * 65535 - 32768).astype(np.int16), "HU"),
        (np.where(chest() > -400, 20000, chest()).astype(np.int16), "above 2000"),
    ],
    ids=[
        "8-bit-window",
        "0-to-1",
        "z-score",
        "no-intercept",
        "no-intercept-but-padding",
        "mask",
        "no-air",
        "constant",
        "intercept-twice",
        "stretched-to-16-bit",
        "far-above-bone",
    ],
)
def test_refused_intensities_that_cannot_be_hu(tmp_path: Path, image: npt.NDArray, words: str) -> None:
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "scan.nii")
    refused(tmp_path / "scan.nii", words)


def test_refused_modality_named_by_a_metaimage(tmp_path: Path) -> None:
    path = edited(write_image(tmp_path / "scan.mha", chest()), b"NDims = 3", b"NDims = 3\nModality = MET_MOD_MR")
    refused(path, "modality CT, got MR")


# ---- the grid alone, from headers ------------------------------------------------------------------------------------


def test_grid_of_nifti_whatever_its_name_and_version(tmp_path: Path) -> None:
    affine = swap_lps_ras_affine(AXIAL)
    plain = write_image(tmp_path / "plain.nii", chest()).read_bytes()
    members = [gzip.compress(plain[start : start + 4096]) for start in range(0, len(plain), 4096)]
    quaternion = nib.Nifti1Image(chest(), None)
    quaternion.set_qform(affine, 1)
    big_endian = nib.Nifti1Image(chest(), np.eye(4)).header.as_byteswapped(">")
    for name, data in {
        "not_packed.nii.gz": plain,
        "packed.nii": gzip.compress(plain),
        "parallel.nii.gz": b"".join(members) + bytes(512),
        "second.nii.gz": gzip.compress(nib.Nifti2Image(chest(), affine).to_bytes()),
        "big.nii": nib.Nifti1Image(chest(), affine, big_endian).to_bytes(),
        "quaternion.nii": quaternion.to_bytes(),
    }.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_allclose(same_grid(tmp_path / name).affine_ras, affine, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("form", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_grid_is_read_from_the_header_alone(tmp_path: Path, form: str) -> None:
    """Cut voxels are not missed here, nor are voxels that cannot be HU."""
    path = write_image(tmp_path / f"scan{form}", chest((32, 32, 32)) + 2000)
    assert read_grid(cut(path, 0.6)).shape == (32, 32, 32)


def test_refused_grid_of_nothing_or_of_several_scans(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", chest(), AXIAL)
    other = write_series(tmp_path / "other", chest(), AXIAL, series_uid="1.2.4")
    gone = paths[3].rename(tmp_path / "gone.dcm")
    (tmp_path / "empty").mkdir()
    for name in ("a.nii", "b.mha"):
        write_image(tmp_path / "two" / name, chest())
    for image, words in (
        (tmp_path / "two", ("expected one scan, got 2 (a, b)",)),
        ([gone, *other], (f"expected one series, got 2: 1.2.4, {SERIES_UID}",)),
        (tmp_path / "missing.nii", ("missing.nii", "check the path")),
        ([tmp_path / "missing.dcm"], ("missing.dcm", "check the path")),
        ([], ("an empty list",)),
        (tmp_path / "empty", ("found none",)),
        (paths, (paths[3].name, "no such file")),
    ):
        refused_alike(image, *words)


# ---- the MONAI side ----------------------------------------------------------------------------------------------


def load(entries: list[dict[str, Any]]) -> Any:
    transform = Compose([LoadImaged("image", reader=ScanReader(), dtype=None), EnsureChannelFirstd("image")])
    return Dataset(entries, transform)


def test_meta_survives_a_dataloader(tmp_path: Path) -> None:
    write_series(tmp_path / "a", chest(), TILTED @ np.diag([1, 1, 3, 1]))
    write_image(tmp_path / "b.nii.gz", chest())
    entries = find_scans(tmp_path)
    scans = [scan for batch in DataLoader(load(entries), batch_size=1) for scan in decollate_batch(batch)]
    for scan, entry in zip(scans, entries, strict=True):
        volume, image = read_scan(entry["image"]), scan["image"]
        np.testing.assert_array_equal(image.numpy(), volume.image_hu[None])
        for affine in (image.affine.numpy(), image.meta["original_affine"]):
            np.testing.assert_array_equal(affine, volume.affine_ras)
        expected = {
            "spatial_shape": list(SHAPE),
            "facts": volume.facts,
            "notes": "\n".join(volume.notes),
            "source_files": FILE_SEPARATOR.join(volume.source_files),
            "filename_or_obj": str(np.ravel(entry["image"])[0]),
        }
        seen = {**image.meta, "spatial_shape": image.meta["spatial_shape"].tolist()}
        assert {key: seen[key] for key in expected} == expected
        assert (scan["name"], scan["notes"]) == (entry["name"], entry["notes"])
    file, series = (scan["image"].meta for scan in scans)
    assert len(series["notes"].splitlines()) == 2  # tilted and thick
    assert file["source_files"] == ""  # no DICOM


def test_refused_scan_is_not_read_by_another_reader_of_monai(tmp_path: Path) -> None:
    """LoadImage swallows what ``read`` raises and tries NibabelReader; ``get_data`` is outside that net."""
    scans = load(find_scans(write_image(tmp_path / "scan.nii", chest() + 2000)))
    with pytest.raises(RuntimeError) as caught:
        scans[0]
    assert "lung or air" in str(user_error_in(caught.value))


def test_reader_knows_its_files(tmp_path: Path) -> None:
    (tmp_path / "slice").write_bytes(bytes(128) + b"DICM")
    reader = ScanReader()
    assert reader.verify_suffix(["a.mhd", "B.NII.GZ", "c.dcm", tmp_path, tmp_path / "slice"])
    assert not reader.verify_suffix("picture.png")
    with pytest.raises(TypeError, match="no options, got mmap"):
        reader.read("a.nii", mmap=True)


# ---- masks -------------------------------------------------------------------------------------------------------

LABELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 7


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("form", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz"])
def test_a_mask_is_whole_numbers_on_the_grid_of_its_file_in_every_format(tmp_path: Path, form: str, dtype: Any) -> None:
    path = write_image(tmp_path / f"mask{form}", LABELS.astype(dtype))
    labels, affine_ras = read_labels(path)
    np.testing.assert_array_equal(labels, LABELS, strict=True)
    np.testing.assert_allclose(affine_ras, swap_lps_ras_affine(AXIAL), atol=1e-5)
    np.testing.assert_array_equal(affine_ras, read_grid(path).affine_ras)


@pytest.mark.parametrize("form", ["nii", "mhd"])
@pytest.mark.parametrize("value", [0.5, 40000.0, np.nan])
def test_refused_mask_of_other_than_whole_numbers(tmp_path: Path, form: str, value: float) -> None:
    path = write_image(tmp_path / f"mask.{form}", np.where(LABELS == 6, value, LABELS).astype(np.float32))
    told(lambda: read_labels(path), f"mask.{form}: expected a mask of whole numbers", "export the segmentation")


def test_refused_mask_that_is_no_image_file(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", chest(), AXIAL)
    (tmp_path / "bad.nii").write_bytes(b"damaged")
    for name, words in (
        ("dicom", "dicom: expected a mask in one file"),
        ("mask.nii", "found no such file"),
        ("bad.nii", "got a truncated or damaged file"),
    ):
        told(lambda path=tmp_path / name: read_labels(path), words)


READERS = {"image": ScanReader(), "mask": LabelReader()}


def test_a_mask_is_loaded_and_turned_with_its_scan(tmp_path: Path) -> None:
    """Image and mask in different formats, one of them turned over: the same voxels in the end."""
    turned = np.diag([-1, 1, 1, 1]) @ AXIAL
    write_image(tmp_path / "scan.nii", chest(), turned)
    item = {"image": str(tmp_path / "scan.nii"), "mask": str(write_image(tmp_path / "mask.mhd", LABELS, turned))}
    loading = Compose([LoadImaged(key, reader=reader, ensure_channel_first=True) for key, reader in READERS.items()])
    ready = Orientationd(READERS, axcodes="RAS", labels=None)(loading(item))
    np.testing.assert_allclose(ready["mask"].affine, ready["image"].affine)
    np.testing.assert_array_equal(ready["mask"][0], LABELS[:, ::-1])


# ---- real scans --------------------------------------------------------------------------------------------------


def test_real_lidc_scan_has_its_nodule_where_the_annotation_says() -> None:
    (entry,) = find_scans(real("scans/LIDC-IDRI-0001"))
    start = time.process_time()
    volume = read_scan(entry["image"])
    assert time.process_time() - start < 3  # 0.5 s
    np.testing.assert_allclose(spacing_mm(volume.affine_ras), (0.703125, 0.703125, 2.5))
    i, j, k = np.rint(volume.grid.voxels((56.2, 86.3, -115.9))).astype(int)
    assert -50 < volume.image_hu[i - 2 : i + 3, j - 2 : j + 3, k].mean() < 200
    assert volume.image_hu[511 - i, j, k] < -700  # the other lung: left is not right
    assert (volume.image_hu.shape, volume.notes) == ((512, 512, 133), ())
    assert volume.facts["Slice thickness"] == "2.5 mm"


@pytest.mark.parametrize("folder", ["scans_1mm", "lidc_patches/image"])
def test_real_scans_and_patches_pass_as_hu(folder: str) -> None:
    for path in sorted(real(folder).glob("*.nii.gz"))[:40]:
        volume = read_scan(path)
        if folder != "scans_1mm":
            continue
        for k in range(10, volume.image_hu.shape[2] - 10, 25):
            scan_module.check_hu("slab", volume.image_hu[:, :, k : k + 3])
        for start in (0, 40, 80, 120):
            scan_module.check_hu("cube", volume.image_hu[start : start + 100, 60:160, 60:160])
