"""Finding and reading scans. The test names are the table of what is handled and what is refused."""

from __future__ import annotations

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
from scripts.read.discovery import find_scans
from scripts.read.reader import FILE_SEPARATOR, LabelReader, ScanError, ScanReader, read_grid, read_labels, read_scan
from scripts.read.scan import published_reason
from scripts.read.text_headers import read_text_header
from tests import fuzz_headers
from tests.dicom_files import SERIES_UID, STUDY_UID, set_raw, write_enhanced, write_series
from tests.image_files import AXIAL, SHAPE, chest, write_image
from tests.real_data import real


def same_grid(image: Any) -> Any:
    """What ``read_scan`` gives; ``read_grid`` says the same of it, to the last bit."""
    volume, grid = read_scan(image), read_grid(image)
    assert grid.shape == volume.image_hu.shape
    np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)
    return volume


def read_one(source: Path, **options: Any) -> Any:
    """Read the only scan of a source."""
    (entry,) = find_scans(source, **options)
    return same_grid(entry["image"])


def told(read: Callable[[], Any], *words: str) -> str:
    """The message of what is refused; it holds ``words``."""
    with pytest.raises(ScanError) as caught:
        read()
    assert [word for word in ("expected", *words) if word not in str(caught.value)] == []
    return str(caught.value)


def refused(source: Path, *words: str) -> str:
    """The one error of the only scan of ``source``; it names the file and holds ``words``."""
    (entry,) = find_scans(source)
    return told(lambda: read_scan(entry["image"]), str(source), *words)


def refused_alike(image: Any, *words: str) -> None:
    """Both refuse, with the same message where the fault is one of geometry."""
    assert told(lambda: read_scan(image), *words) == told(lambda: read_grid(image), *words)


def edited(path: Path, *changes: tuple[bytes, bytes]) -> Path:
    """Replace words of a file."""
    data = path.read_bytes()
    for old, new in changes:
        assert old in data
        data = data.replace(old, new, 1)
    path.write_bytes(data)
    return path


def set_tags(only: int | None = None, **tags: Any) -> Callable:
    """A change that sets the same tags in every slice, or in one alone; ``None`` deletes a tag."""

    def change(dataset, k):
        for keyword, value in tags.items() if only in (None, k) else ():
            setattr(dataset, keyword, value)
            if value is None:
                delattr(dataset, keyword)

    return change


# MONAI tries each of its own readers when LoadImage is built, and one warns where a GPU codec is not installed.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")

FORMATS = ("dicom", ".mha", ".mhd", ".nrrd", ".nii", ".nii.gz")


def write_any(folder: Path, form: str, image_hu: npt.NDArray, affine_lps: npt.NDArray = AXIAL) -> Path:
    if form == "dicom":
        write_series(folder / "series", image_hu, affine_lps)
        return folder / "series"
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
    affine_lps = np.eye(4)
    affine_lps[:3, :3], affine_lps[:3, 3] = axes * spacing, origin
    image = chest()
    image[marker] = 3000
    expected_ras_mm = swap_lps_ras(apply_affine(affine_lps, marker))
    folder = tmp_path_factory.mktemp("any")
    for form in FORMATS:
        volume = read_one(write_any(folder / form.strip("."), form, image, affine_lps))
        found = np.argwhere(volume.image_hu == 3000)
        assert found.shape == (1, 3)
        # NIfTI keeps the affine in float32: 1e-4 mm at 500 mm
        np.testing.assert_allclose(apply_affine(volume.affine_ras, found[0]), expected_ras_mm, atol=2e-4)
        if form != "dicom":  # there the slices are sorted along their normal: k may run the other way
            np.testing.assert_array_equal(volume.image_hu, image)


@pytest.mark.parametrize("form", FORMATS)
def test_handled_formats_hand_worked_case(tmp_path: Path, form: str) -> None:
    volume = read_one(write_any(tmp_path, form, chest()))
    np.testing.assert_array_equal(volume.image_hu, chest(), strict=True)
    expected = [[-0.7, 0, 0, 30], [0, -0.8, 0, 40], [0, 0, 1.5, -100], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine_ras, expected, atol=1e-6)
    assert (volume.facts["Size"], volume.facts["Spacing"]) == ("9 × 8 × 12", "0.7 × 0.8 × 1.5 mm")
    assert volume.notes == ()


def test_handled_slices_in_any_order_and_a_folder_of_one_scan(tmp_path: Path) -> None:
    image, folder = chest(), tmp_path / "series"
    paths = [str(path) for path in write_series(folder, image, AXIAL)]
    (folder / "report.txt").write_text("no slice")
    write_image(tmp_path / "one/scan.nrrd", image)
    (entry,) = find_scans(folder)
    assert entry["image"] == paths  # by position, not by name
    assert paths != sorted(paths)
    for source, slices in ((paths[::-1], paths), (folder, paths), (str(folder), paths), (tmp_path / "one", [])):
        volume = same_grid(source)
        np.testing.assert_array_equal(volume.image_hu, image)
        np.testing.assert_allclose(volume.affine_ras, swap_lps_ras_affine(AXIAL), atol=1e-6)
        assert volume.source_files == tuple(slices)  # one for each k


@pytest.mark.parametrize("form", FORMATS)
def test_handled_gantry_tilt_is_a_sheared_affine_and_said(tmp_path: Path, form: str) -> None:
    tilted = AXIAL.copy()
    tilted[1, 2] = 1.5 * np.tan(np.radians(20))  # table feed along z, slices shifted along y
    volume = read_one(write_any(tmp_path, form, chest(), tilted))
    np.testing.assert_allclose(volume.affine_ras, swap_lps_ras_affine(tilted), atol=1e-6)
    assert "gantry tilt of 20.0°" in volume.notes[0]
    assert volume.facts["Gantry tilt"] == "20.0°"


def test_handled_positions_rounded_in_the_header(tmp_path: Path) -> None:
    def rounded(dataset, k):
        dataset.ImagePositionPatient[2] = round(-100 + 0.625 * k, 1)

    write_series(tmp_path, chest(), AXIAL, change=rounded)
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


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 0.001), ("unknown", 1)])
def test_handled_units_of_nifti(tmp_path: Path, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(chest(), np.diag([1.5 / factor, 1.5 / factor, 1.5 / factor, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(read_one(tmp_path / "scan.nii").affine_ras, np.diag([1.5, 1.5, 1.5, 1]), rtol=1e-6)


def test_handled_nifti_forms_that_differ_or_are_not_there_are_said(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest(), np.eye(4))
    image.set_qform(np.eye(4) + 40 * np.eye(4, k=3), 1)  # 40 mm to the side
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_one(tmp_path / "scan.nii.gz")
    assert "differ by up to 40 mm" in volume.notes[0]
    np.testing.assert_allclose(volume.affine_ras, np.eye(4))
    in_metres = nib.Nifti1Image(chest(), np.diag([1e-3, 1e-3, 1e-3, 1.0]))
    in_metres.set_qform(in_metres.affine + 0.04 * np.eye(4, k=3), 1)
    in_metres.header.set_xyzt_units("meter")
    nib.save(in_metres, tmp_path / "metres.nii")
    assert "differ by up to 40 mm" in read_one(tmp_path / "metres.nii").notes[0]
    nib.save(nib.Nifti1Image(chest(), None), tmp_path / "scan.nii.gz")
    assert "left and right are assumed" in read_one(tmp_path / "scan.nii.gz").notes[0]


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
    volume = read_one(edited(write_image(tmp_path / f"scan{form}", chest()), (old, new)))
    np.testing.assert_allclose(volume.affine_ras[:3], scale * swap_lps_ras_affine(AXIAL)[:3], rtol=1e-9)
    assert note in volume.notes[0]


# ---- handled: intensities ----------------------------------------------------------------------------------------


def test_handled_float_nifti_is_rounded_and_clipped(tmp_path: Path) -> None:
    image = chest().astype(np.float32)
    image[0, 0, :4] = [-1000.6, 40.4, 1e6, -1e6]
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "scan.nii")
    volume = read_one(tmp_path / "scan.nii")
    assert volume.image_hu[0, 0, :4].tolist() == [-1001, 40, 32767, -32768]


def test_handled_mixed_rescale_slopes(tmp_path: Path) -> None:
    """Every second slice lies 0.75 HU higher at slope 0.25; ITK's series reader would cut that off, not round it."""
    image = chest()

    def finer(dataset, k):
        if k % 2:
            stored = (4 * (image[:, :, k].T.astype(np.int32) + 2048) + 3).astype("<u2")
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelData = "0.25", "-2048", stored.tobytes()

    write_series(tmp_path, image, AXIAL, change=finer)
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, image + np.arange(12) % 2)


@pytest.mark.parametrize("padding", [-2000, -3024, -32768, 0])
def test_handled_padding_outside_the_field_of_view(tmp_path: Path, padding: int) -> None:
    image = chest((20, 20, 6))
    image[:, 6:] = padding
    assert read_one(write_image(tmp_path / "scan.nii", image)).image_hu.min() == image.min()


def write_jpeg(folder: Path, image_hu: npt.NDArray, compressor: str) -> list[Path]:
    """A series at 1 mm that ITK compresses."""
    folder.mkdir(exist_ok=True)
    paths = []
    for k in range(image_hu.shape[2]):
        image = sitk.GetImageFromArray(image_hu[:, :, k : k + 1].T)
        image.SetOrigin((0, 0, k))
        tags = {"0008|0060": "CT", "0020|000d": STUDY_UID, "0020|000e": SERIES_UID, "0008|0018": f"{SERIES_UID}.{k}"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
        paths.append(folder / f"{k}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


@pytest.mark.parametrize(
    ("syntax", "compressor"),
    [
        *((syntax, "") for syntax in (RLELossless, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)),
        (JPEGLosslessSV1, "JPEG"),
        (JPEG2000Lossless, "JPEG2000"),
    ],
)
def test_handled_dicom_transfer_syntax(tmp_path: Path, syntax: UID, compressor: str) -> None:
    image = chest((32, 32, 4))
    if compressor:
        paths = write_jpeg(tmp_path, image, compressor)
    else:
        paths = write_series(tmp_path, image, AXIAL, syntax=syntax)
    assert read_file_meta_info(paths[0]).TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, image)


# ---- handled: folders, studies, datalists ------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_handled_other_files_beside_the_slices(tmp_path: Path, ending: str) -> None:
    paths = [path.rename(path.with_suffix(ending)) for path in write_series(tmp_path, chest(), AXIAL)]
    for name in (
        "reading.xml",
        "notes.txt",
        ".hidden.dcm",
        "DICOMDIR",
        "Thumbs.db",
        "README",
        "viewer1.exe",
        "VERSION",
    ):
        (tmp_path / name).write_bytes(b"no slice")
    (tmp_path / "LOCKFILE").touch()
    shutil.copytree(tmp_path, tmp_path / ".cache")
    (entry,) = find_scans(tmp_path)
    assert entry == {"image": [str(p) for p in paths], "name": SERIES_UID, "source": str(tmp_path), "notes": ""}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """One study: thin axial (.5), thick axial (.4), coronal thin (.3), localizer (.6), few slices (.7), MR (.8)."""
    coronal = np.array([[0.7, 0, 0, 0], [0, 0, 0.5, 0], [0, -0.7, 0, 0], [0, 0, 0, 1.0]])
    write_series(tmp_path / "mixed", chest(), AXIAL, series_uid="1.2.5")
    write_series(tmp_path / "mixed", chest(), AXIAL @ np.diag([1, 1, 2, 1]), series_uid="1.2.4")
    write_series(tmp_path / "mixed", chest(), coronal, series_uid="1.2.3")
    localizer = set_tags(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "b", chest((9, 8, 1)), AXIAL, series_uid="1.2.6", change=localizer)
    write_series(tmp_path / "b", chest((9, 8, 3)), AXIAL @ np.diag([1, 1, 0.3, 1]), series_uid="1.2.7")
    write_series(tmp_path / "c/d", chest(), AXIAL, series_uid="1.2.8", change=set_tags(Modality="MR"))
    return tmp_path


def test_handled_study_with_several_series_takes_the_thinnest_axial_ct_and_says_why(study: Path) -> None:
    (entry,) = find_scans(study)
    assert entry["name"] == "1.2.5"
    assert entry["source"] == str(study / "mixed")
    volume = read_scan(entry["image"])
    np.testing.assert_array_equal(volume.image_hu, chest())  # two other series lie in the same folder
    for words in (
        "1.2.5 (CT, 12 slices, 1.5 mm) of 6 in the study: thinnest axial CT",
        "1.2.4 (CT, 12 slices, 3 mm): axial CT, not thinner",
        "1.2.3 (CT, 12 slices, 0.5 mm): not axial",
        "1.2.6 (CT, 1 slice): localizer, fewer than 10 slices",
        "1.2.7 (CT, 3 slices, 0.45 mm): fewer than 10 slices",
        "1.2.8 (MR, 12 slices, 1.5 mm): modality MR, not CT",
    ):
        assert words in entry["notes"]
    assert entry["notes"] in read_scan(study).notes
    assert "secret" not in f"{entry}{volume.facts}".lower()


def test_handled_study_named_series_or_all_ct_series(study: Path) -> None:
    (entry,) = find_scans(study, series="1.2.3")
    assert (entry["name"], "named" in entry["notes"]) == ("1.2.3", True)
    with pytest.raises(ScanError, match=r"expected series '9\.9', found 1\.2\.3 \(CT.*1\.2\.8 \(MR"):
        find_scans(study, series="9.9")
    assert sorted(e["name"] for e in find_scans(study, series="all")) == ["1.2.3", "1.2.4", "1.2.5", "1.2.7"]


def test_handled_study_thickness_counts_not_only_distance(tmp_path: Path) -> None:
    write_series(tmp_path, chest(), AXIAL, series_uid="1.2.3", change=set_tags(SliceThickness="3"))
    write_series(tmp_path, chest(), AXIAL @ np.diag([1, 1, 1.1, 1]), series_uid="1.2.4")
    (entry,) = find_scans(tmp_path)
    assert entry["name"] == "1.2.4"


def test_handled_localizer_image_inside_the_series_is_left_out(tmp_path: Path) -> None:
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    write_series(tmp_path, chest(), AXIAL, change=set_tags(0, **localizer))
    (entry,) = find_scans(tmp_path)
    assert entry["notes"] == "1 localizer image(s) of the series ignored"
    assert read_scan(entry["image"]).image_hu.shape == (9, 8, 11)


def test_handled_study_spread_over_folders(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", chest(), AXIAL)
    (tmp_path / "b").mkdir()
    for path in paths[5:]:
        shutil.move(path, tmp_path / "b" / path.name)
    (entry,) = find_scans(tmp_path)
    assert entry["source"] == str(tmp_path)
    np.testing.assert_array_equal(read_scan(entry["image"]).image_hu, chest())


def test_handled_folder_of_scans_and_equal_stems(tmp_path: Path) -> None:
    write_image(tmp_path / "a/Scan.nii.gz", chest())
    write_image(tmp_path / "b/scan.mha", chest())
    write_image(tmp_path / "b/odd name (1)é.nrrd", chest())
    write_image(tmp_path / "c/scan-2.mhd", chest())
    for n in (1, 2):
        write_series(
            tmp_path / f"d{n}", chest(), AXIAL, series_uid=f"1.2.{n}", change=set_tags(StudyInstanceUID=f"1.{n}")
        )
    names = [entry["name"] for entry in find_scans(tmp_path)]
    assert names == ["Scan", "odd_name_1", "scan-2", "scan-2-2", "1.2.1", "1.2.2"]


def test_handled_linked_folders_without_going_in_circles(tmp_path: Path) -> None:
    write_image(tmp_path / "real/scan.nii", chest())
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "scans")
    assert [entry["name"] for entry in find_scans(tmp_path / "scans")] == ["scan"]


def test_handled_datalist_keeps_other_keys_and_resolves_paths(tmp_path: Path) -> None:
    write_image(tmp_path / "x/scan.nii", chest())
    paths = [str(path) for path in write_series(tmp_path / "x/dicom", chest(), AXIAL)]
    items = [
        {"image": "x/scan.nii", "box": [[1, 2, 3, 4, 5, 6]], "label": [0], "lung_mask": "lungs/1.mhd"},
        {"image": "x/dicom", "fold": 1, "lung_mask": None},
    ]
    extra = {"labels": {"0": "nodule"}, "training": items, "validation": [str(tmp_path / "x/scan.nii")], "n": 3}
    (tmp_path / "list.json").write_text(json.dumps(extra))
    (tmp_path / "plain.json").write_text(json.dumps(items))
    first, second, third = find_scans(tmp_path / "list.json")
    scan, lungs = str(tmp_path / "x/scan.nii"), str(tmp_path / "lungs/1.mhd")
    assert first == {**items[0], "image": scan, "lung_mask": lungs, "name": "scan", "source": scan, "notes": ""}
    assert second == {"image": paths, "fold": 1, "name": SERIES_UID, "source": str(tmp_path / "x/dicom"), "notes": ""}
    assert third["name"] == "scan-2"
    for name, options, names in (
        ("plain.json", {}, ["scan", SERIES_UID]),
        ("plain.json", {"series": SERIES_UID}, [SERIES_UID]),
    ):
        assert [entry["name"] for entry in find_scans(tmp_path / name, **options)] == names


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
    tilted = AXIAL.copy()
    tilted[1, 2] = 0.5
    path = write_enhanced(tmp_path / "a/enhanced.dcm", chest(), tilted, syntax=syntax)
    write_series(tmp_path / "b", chest(), tilted)
    (entry,) = find_scans(path.parent)
    assert (entry["image"], entry["name"]) == ([str(path)], SERIES_UID)
    volume, single = same_grid(path), read_one(tmp_path / "b")
    np.testing.assert_array_equal(volume.image_hu, single.image_hu)
    np.testing.assert_allclose(volume.affine_ras, single.affine_ras, atol=1e-9)
    assert (volume.notes, volume.facts["Slice thickness"]) == (single.notes, "1.5 mm")
    assert volume.source_files == (str(path),) * 12  # one for each k


def test_handled_enhanced_ct_with_a_slope_of_its_own_in_each_frame_and_a_localizer(tmp_path: Path) -> None:
    def change(group, k):
        if k == 11:
            group.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
            group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 500]
        if k == 7:
            group.PixelValueTransformationSequence[0].RescaleIntercept = -4100

    image = chest()
    write_enhanced(tmp_path / "enhanced.dcm", image, AXIAL, change=change)
    image[:, :, 7] -= 4
    (entry,) = find_scans(tmp_path)
    assert entry["notes"] == "1 localizer image(s) of the series ignored"
    np.testing.assert_array_equal(read_scan(entry["image"]).image_hu, image[:, :, :11])


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
    path = write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL, change=change)
    with pytest.raises(ScanError, match=words):
        read_scan(path)


@pytest.mark.parametrize("share", [0.07, 0.5, 0.99])  # near 0.1 the message depends on the lengths of the UIDs
def test_refused_enhanced_ct_that_is_cut(tmp_path: Path, share: float) -> None:
    path = write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL)
    cut(path, share)
    refused(tmp_path, "enhanced.dcm", "truncated or damaged")


def test_refused_enhanced_ct_without_its_last_frame(tmp_path: Path) -> None:
    """The table, the other frames and the delimiter behind them are there."""
    path = write_enhanced(tmp_path / "enhanced.dcm", chest(), AXIAL, syntax=RLELossless)
    dataset = dcmread(path)
    dataset.PixelData = encapsulate(list(generate_frames(dataset.PixelData, number_of_frames=12))[:-1])
    dataset.save_as(path)
    refused_alike(path, "truncated or damaged")


# ---- files that vanish -------------------------------------------------------------------------------------------


def _vanish(path: Path, how: str) -> None:
    data, links = (
        path.read_bytes(),
        {"link": "../nowhere", "loop": path.name, "folder link": ".git/annex/objects/x/MD5"},
    )
    content = {"empty": b"", "short": data[:100], "zeros": bytes(len(data)), "lfs": b"version https://git-lfs"}
    content |= {"annex": b"/annex/objects/MD5-s1--0", "web page": b"<html>404</html>", "half": data[:-60]}
    content |= {"no start": data[200:], "part": data[:300]}
    path.unlink()
    if how in links:
        path.symlink_to(links[how])
    else:
        path.with_name(path.name + ".part" * (how == "part")).write_bytes(content[how])


@pytest.mark.parametrize("ending", ["", ".dcm", ".1", ".img"])
@pytest.mark.parametrize(
    "how",
    ["empty", "short", "zeros", "lfs", "annex", "web page", "half", "no start", "link", "loop", "folder link", "part"],
)
def test_refused_series_whose_last_slices_cannot_be_read(tmp_path: Path, how: str, ending: str) -> None:
    for k, path in enumerate(write_series(tmp_path, chest(), AXIAL)):
        path = path.rename(tmp_path / f"IM{k:04d}{ending}")
        if k >= 10:
            _vanish(path, how)
    refused(tmp_path, "IM0010")


def test_handled_slices_without_preamble(tmp_path: Path) -> None:
    """As older archives write them: the data set alone, with or without the group of file meta information."""
    for k, path in enumerate(write_series(tmp_path, chest(), AXIAL, syntax=ImplicitVRLittleEndian)):
        data = path.read_bytes()
        path.write_bytes(data[132:] if k % 2 else data[data.index(b"\x08\x00\x08\x00") :])
        path.rename(tmp_path / f"slice{k}")
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest())


def _closed(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Folders that cannot be listed; rights do not bind the user that runs tests in a container."""
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_refused_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "scan.nii", chest())
    for folder in ("series/2", "series/3", "mueller"):
        (tmp_path / folder).mkdir(parents=True)
    for path in write_series(tmp_path / "series/1", chest(), AXIAL)[6:]:
        path.rename(tmp_path / "series/2" / path.name)
    _closed(monkeypatch, tmp_path / "series/3", tmp_path / "mueller")
    entries = find_scans(tmp_path)
    assert [entry["name"] for entry in entries] == ["scan", SERIES_UID, "closed"]
    for entry, name in zip(entries[1:], ("series/3", "mueller"), strict=True):
        told(lambda image=entry["image"]: read_scan(image), f"{name}: expected ")
    _closed(monkeypatch, tmp_path)
    told(lambda: find_scans(tmp_path), "expected a folder that can be read")


def _make(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_refused_what_is_no_file_without_opening_it(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "dicom", chest(), AXIAL)
    path = write_image(tmp_path / "data/scan.mhd", chest())
    (tmp_path / "data/scan.raw").unlink()
    for name in ("a.nii.gz", "b.mhd", "c.nrrd", "list.json", "dicom/pipe1", "data/scan.raw"):
        _make(kind, tmp_path / name, monkeypatch)
    found = {entry["name"]: entry["image"] for entry in find_scans(tmp_path)}
    assert set(found) == {"a", "b", "c", "scan", SERIES_UID}
    assert read_scan(found[SERIES_UID]).image_hu.shape == SHAPE
    for image, read in product((found["a"], found["b"], found["c"], path), (read_scan, read_labels)):
        with pytest.raises(ScanError, match=r"a named pipe|a socket|a device|expected a mask in one file"):
            read(image)
    told(lambda: find_scans(tmp_path / "list.json"), "list.json: expected a scan")
    _make(kind, tmp_path / "dicom/extra.dcm", monkeypatch)
    refused(tmp_path / "dicom", "extra.dcm: expected a DICOM slice, found a")


NAMES = [b"M\xfcller", b"a\nb", b"x" * 250, "Mü\u202eller 日本".encode(), b"-o", b"~root"]


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, form) for name in NAMES for form in ("dicom", ".mha", ".mhd", ".nrrd", ".nii.gz")), (NAMES[0], "JPEG")],
)
def test_handled_any_file_name(tmp_path: Path, name: bytes, form: str) -> None:
    image, folder = chest((32, 32, 4)), tmp_path / "source"
    target = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    if form == "JPEG":
        write_jpeg(folder, image, form)
    else:
        write_any(folder, form, image)
    if form.startswith("."):
        (folder / f"scan{form}").rename(folder / (os.fsdecode(name[:240]) + form))
    os.rename(folder / "series" if form == "dicom" else folder, target)
    (entry,) = find_scans(target)
    np.testing.assert_array_equal(read_scan(entry["image"]).image_hu, image)
    message = str(ScanError(f"{target}: x"))
    assert (entry["name"] + message).encode()
    assert "\n" not in message


@pytest.mark.parametrize("form", [".MHA", ".Mhd", ".MHD", ".NRRD", ".Nhdr", ".NII", ".NII.GZ", ".Nii.gz"])
def test_handled_endings_in_capitals(tmp_path: Path, form: str) -> None:
    path = write_image(tmp_path / f"scan{form.lower().replace('.nhdr', '.nrrd')}", chest())
    if form == ".Nhdr":
        header, data = path.read_bytes().split(b"\n\n", 1)
        path.write_bytes(header + b"\ndata file: voxels.raw.gz\n")
        (tmp_path / "voxels.raw.gz").write_bytes(data)
    path.rename(tmp_path / f"SCAN{form}")
    assert [entry["name"] for entry in find_scans(tmp_path)] == ["SCAN"]
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, chest())


def test_refused_slices_copied_in_part_into_room_made_before(tmp_path: Path) -> None:
    """The file has its length, its end is zeros."""
    paths = write_series(tmp_path / "a", chest((32, 32, 12)), AXIAL)
    data = paths[4].read_bytes()
    for size, rows in ((1200, 18), (2048, 32)):
        paths[4].write_bytes(data[:-size] + bytes(size))
        refused(tmp_path / "a", f"zeros in the last {rows} of 32 rows", paths[4].name)
    paths[4].write_bytes(data)
    paths[11].write_bytes(paths[11].read_bytes()[:-2048] + bytes(2048))
    assert "1 slice(s) at the ends of the series are blank" in read_one(tmp_path / "a").notes[0]


# ---- MetaImage and NRRD as ITK reads them -----------------------------------------------------------------------


def _as_itk(path: Path) -> None:
    """Values and geometry are those that SimpleITK reads."""
    header, image = read_text_header(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(header.read_values(), sitk.GetArrayFromImage(image).T)
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(header.grid.affine_ras, swap_lps_ras_affine(affine_lps), atol=1e-9)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_handled_every_number_type_of_metaimage_and_nrrd(tmp_path: Path, form: str, packed: bool) -> None:
    turned = np.array([[0, -0.8, 0, 1], [0.42, 0, 1.2, 2], [-0.56, 0, 0.9, 3], [0, 0, 0, 1]])
    for dtype in ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        values = np.random.default_rng(0).integers(0, 100, (6, 5, 4)).astype(dtype)
        _as_itk(write_image(tmp_path / f"{dtype}{form}", values, turned, compressed=packed))


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
    path = write_image(tmp_path / f"scan{form}", chest())
    pack, unpack = (gzip.compress, gzip.decompress) if form == ".nii.gz" else (bytes, bytes)
    data = unpack(path.read_bytes())
    path.write_bytes(pack(data + b"\0" * 100))
    np.testing.assert_array_equal(read_one(path).image_hu, chest())
    path.write_bytes(pack(data + extra))
    refused(path, "truncated or damaged")


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
    refused_alike(edited(write_image(tmp_path / f"scan{form}", chest()), (old, new)))


def write_raw_nifti(path: Path, *, codes: tuple[int, int], pixdim: Any, steps: Any, unit: int = 2) -> Path:
    """A NIfTI-1 file with header fields as they are given; ``codes`` of qform and sform."""
    header = nib.Nifti1Image(chest(), np.eye(4)).header
    header["qform_code"], header["sform_code"], header["xyzt_units"] = *codes, unit
    header["pixdim"][1:4], header["vox_offset"], header["magic"] = pixdim, 352, b"n+1"
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(3, 4) * np.reshape(steps, (3, 1))
    path.write_bytes(header.binaryblock + bytes(4) + chest().tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codes": (0, 1), "pixdim": (1.4, 1.4, 2.5), "steps": (1, 1, 1)}, "1 × 1 × 1 mm from the sform and 1.4 × 1.4"),
        ({"codes": (1, 2), "pixdim": (1.4, 1.4, 2.5), "steps": (1.4, 1.4, 2.6)}, "from pixdim"),
        ({"codes": (0, 0), "pixdim": (0, 0, 0), "steps": (1, 1, 1)}, "expected voxel sizes above 0 in pixdim"),
        ({"codes": (1, 0), "pixdim": (1, 0, 1), "steps": (1, 1, 1)}, "expected voxel sizes above 0 in pixdim"),
        ({"codes": (0, 0), "pixdim": (1, np.nan, 1), "steps": (1, 1, 1)}, "expected voxel sizes above 0 in pixdim"),
        ({"codes": (0, 1), "pixdim": (1, 1, 1), "steps": (1, 1, 1), "unit": 1}, "0.05 to 30.0 mm"),
        ({"codes": (0, 1), "pixdim": (1, 1, 1), "steps": (1, 1, 1), "unit": 3}, "0.05 to 30.0 mm"),
        ({"codes": (0, 1), "pixdim": (1, 1, 1), "steps": (1, 1, 1), "unit": 5}, "unit code 5"),
        ({"codes": (0, 1), "pixdim": (1, 1, 1), "steps": (0, 1, 1)}, "three independent axes"),
    ],
)
def test_refused_nifti_that_leaves_the_voxel_size_open(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    refused_alike(write_raw_nifti(tmp_path / "scan.nii", **fields), words)


def test_handled_nifti_whose_pixdim_is_unset_or_the_distance_of_tilted_slices(tmp_path: Path) -> None:
    volume = read_scan(write_raw_nifti(tmp_path / "a.nii", codes=(0, 1), pixdim=(0, 0, 0), steps=(1.4, 1.4, 2.5)))
    assert spacing_mm(volume.affine_ras) == pytest.approx([1.4, 1.4, 2.5])
    assert "pixdim of the NIfTI header gives no voxel size" in volume.notes[0]
    tilted = np.array([[1.0, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    image = nib.Nifti1Image(chest(), tilted)
    image.header["pixdim"][3] = 2.0
    nib.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(read_scan(tmp_path / "b.nii").affine_ras, tilted)


@pytest.mark.parametrize("form", [".mhd", ".mha", ".nrrd", ".nii", ".nii.gz"])
def test_refused_header_that_claims_a_million_million_voxels(tmp_path: Path, form: str) -> None:
    path = write_image(tmp_path / f"scan{form}", chest())
    pack, unpack = (gzip.compress, gzip.decompress) if form == ".nii.gz" else (bytes, bytes)
    dims = [np.array(size, "<i2").tobytes() for size in (SHAPE, (32767, 32767, 1000))]
    old, new = dims if ".nii" in form else (b"9 8 12", b"10000 10000 10000")
    path.write_bytes(pack(unpack(path.read_bytes()).replace(old, new, 1)))
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
        order = "<" if syntax.is_little_endian else ">"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
        dataset.PixelRepresentation, dataset.RescaleIntercept = int(signed), intercept
        dataset.PixelData = words.astype(f"{order}u{allocated // 8}").tobytes()
        dataset["PixelData"].VR = "OW"

    write_series(tmp_path, image, AXIAL, change=pack, syntax=syntax)
    np.testing.assert_array_equal(read_one(tmp_path).image_hu, image)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"HighBit": 10, "BitsStored": 12}, "BitsAllocated, BitsStored and HighBit"),
        ({"BitsStored": 17}, "BitsAllocated, BitsStored and HighBit"),
        ({"HighBit": 16}, "BitsAllocated, BitsStored and HighBit"),
        ({"BitsStored": None}, "found only some of them"),
        ({"PixelRepresentation": None}, "found only some of them"),
        ({"RescaleSlope": 0}, "one number each"),
        ({"RescaleSlope": ["1", "2"]}, "one number each"),
        ({"RescaleIntercept": None}, "one number each"),
        ({"RescaleSlope": None, "RescaleIntercept": None}, "found none in some"),
        ({"RescaleType": "MGML"}, "expected HU, got RescaleType MGML"),
        ({"ModalityLUTSequence": []}, "Modality LUT"),
        ({"PatientID": "ANNA"}, "one patient (PatientID), got 2"),
        ({"PatientName": "Anna^Name"}, "one patient (PatientName), got 2"),
        ({"FrameOfReferenceUID": "1.2.9"}, "one frame of reference, got 2"),
    ],
    ids=str,
)
def test_refused_slice_of_other_values_or_origin(tmp_path: Path, tags: dict[str, Any], words: str) -> None:
    def change(dataset, k):
        dataset.FrameOfReferenceUID = "1.2.8"
        set_tags(4, **tags)(dataset, k)

    write_series(tmp_path, chest(), AXIAL, change=change)
    message = refused(tmp_path, words)
    assert "SECRET" not in message
    assert "anna" not in message.lower()


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


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"BodyPartExamined": "HEAD"}, "of the head, not the chest"),
        ({"SeriesDescription": "Schaedel 1.0"}, "of the schaedel, not the chest"),
        ({"BodyPartExamined": "CHEST", "SeriesDescription": "Abdomen venous 1.0"}, "of the abdom, not the chest"),
        ({"ProtocolName": "Brain"}, "of the brain, not the chest"),
        ({"PhotometricInterpretation": "RGB"}, "in colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "in colour"),
        ({"RescaleType": "MGML"}, "not HU"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "IODINE"]}, "not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "VNC"]}, "not HU"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"]}, "not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "not HU"),
        ({"SeriesDescription": "Chest Zeff 1.0"}, "not HU"),
        ({"SeriesDescription": "Iodine map thorax"}, "not HU"),
        ({"SeriesDescription": "Patient Protocol"}, "not HU"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "intensity projection"),
        ({"SeriesDescription": "Thorax MIP 8/2"}, "intensity projection"),
    ],
    ids=str,
)
def test_handled_study_whose_thinnest_series_cannot_be_the_chest(
    tmp_path: Path, tags: dict[str, Any], reason: str
) -> None:
    good = set_tags(SeriesDescription="Thorax low dose 3.0 lung", BodyPartExamined="CHEST")
    write_series(tmp_path, chest(), AXIAL @ np.diag([1, 1, 2, 1]), series_uid="1.2.4", change=good)
    write_series(tmp_path, chest(), AXIAL, series_uid="1.2.5", change=set_tags(**tags))
    (entry,) = find_scans(tmp_path)
    assert entry["name"] == "1.2.4"
    assert f"1.2.5 (CT, 12 slices, 1.5 mm): {reason}" in entry["notes"]
    assert read_scan(entry["image"]).image_hu.shape == SHAPE


def test_handled_lone_series_of_another_part_is_said(tmp_path: Path) -> None:
    write_series(tmp_path, chest(), AXIAL, change=set_tags(BodyPartExamined="HEAD"))
    (entry,) = find_scans(tmp_path)
    assert "of the head, not the chest" in entry["notes"]


@pytest.mark.parametrize(
    "words", ["Thorax 1.0", "CHEST W IODINE CONTRAST", "Chest-Abdomen-Pelvis", "TAP venous", "Low dose lung 3D", "HRCT"]
)
def test_handled_chest_by_any_name_stays_the_first_choice(tmp_path: Path, words: str) -> None:
    write_series(tmp_path, chest(), AXIAL, series_uid="1.2.5", change=set_tags(SeriesDescription=words))
    write_series(tmp_path, chest(), AXIAL @ np.diag([1, 1, 2, 1]), series_uid="1.2.4")
    (entry,) = find_scans(tmp_path)
    assert (entry["name"], "thinnest axial CT" in entry["notes"]) == ("1.2.5", True)


# ---- damaged headers ---------------------------------------------------------------------------------------------


def test_damaged_headers_give_a_scan_or_a_message() -> None:
    """A few hundred of those that ``python -m tests.fuzz_headers`` tries."""
    counts = fuzz_headers.run(seed=3, first=0, count=300)
    assert sum(counts.values()) == 300
    assert sum(count for kind, count in counts.items() if kind.endswith("read")) > 30


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


def shifted(axis: int, shift_mm: Callable[[int], float]) -> Callable:
    """A change that moves slice k by ``shift_mm(k)`` along an axis of the patient."""

    def change(dataset, k):
        dataset.ImagePositionPatient[axis] += shift_mm(k)

    return change


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
    ],
)
def test_refused_series(tmp_path: Path, change: Callable, words: str) -> None:
    write_series(tmp_path, chest(), AXIAL, change=change)
    (entry,) = find_scans(tmp_path)
    refused_alike(entry["image"], words)


def test_refused_copies_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "first", chest(), AXIAL)
    shutil.copytree(tmp_path / "study" / "first", tmp_path / "study" / "again")
    (entry,) = find_scans(tmp_path)
    refused_alike(entry["image"], "got two at -100.00 mm (again/011_2.dcm, first/011_2.dcm)")
    with pytest.raises(ScanError) as refusal:
        read_scan(entry["image"])
    assert "again" not in published_reason(refusal.value)  # a folder may have a patient's name


def test_slices_of_several_folders_are_named_with_them(tmp_path: Path) -> None:
    paths = write_series(tmp_path, chest(), AXIAL, change=lambda _, k: k != 5)
    for path in paths[1:]:
        (tmp_path / path.stem).mkdir()
        path.rename(tmp_path / path.stem / "slice")
    (entry,) = find_scans(tmp_path)
    refused_alike(entry["image"], "between 058_2/slice and 031_2/slice: slices are missing")


def test_refused_mixed_series_in_one_list(tmp_path: Path) -> None:
    paths = [path for uid in ("1.2.3", "1.2.4") for path in write_series(tmp_path, chest(), AXIAL, series_uid=uid)]
    told(lambda: read_scan(paths), "expected one series, got 2: 1.2.3, 1.2.4")


def cut(path: Path, share: float) -> None:
    """Keep the first ``share`` of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("form", ["plain", "rle", "deflated", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("k", [0, 2])
def test_refused_truncated_dicom(
    tmp_path: Path, share: float, form: str, k: int, capfd: pytest.CaptureFixture[str]
) -> None:
    image = chest((32, 32, 4))
    syntaxes = {"plain": ExplicitVRLittleEndian, "rle": RLELossless, "deflated": DeflatedExplicitVRLittleEndian}
    if form in syntaxes:
        paths = write_series(tmp_path, image, AXIAL, syntax=syntaxes[form])
    else:
        paths = write_jpeg(tmp_path, image, form)
    cut(paths[k], share)
    refused(tmp_path, paths[k].name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("form", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_refused_truncated_file(tmp_path: Path, form: str, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_image(tmp_path / f"scan{form}", chest((32, 32, 32)))
    cut(path, share)
    refused(path, "truncated or damaged")
    if share < 0.01:
        refused_alike(path)
    assert capfd.readouterr() == ("", "")


def test_refused_nii_gz_with_damaged_bytes(tmp_path: Path) -> None:
    """Stored, not deflated, so that the damage shows in the checksum alone."""
    path = write_image(tmp_path / "scan.nii", chest())
    data = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    data[-200] ^= 0xFF
    path.write_bytes(data)
    refused(path, "CRC check failed")


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
    path = tmp_path / f"scan{form}"
    if form == ".nii.gz":
        nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    elif image.dtype.names:
        colour = np.stack([image[name] for name in image.dtype.names], axis=-1)
        sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(path))
    else:
        sitk.WriteImage(sitk.GetImageFromArray(image.T, isVector=False), str(path))
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
    path = write_image(tmp_path / "scan.mha", chest())
    refused(edited(path, (b"NDims = 3", b"NDims = 3\nModality = MET_MOD_MR")), "modality CT, got MR")


# ---- the grid alone, from headers ------------------------------------------------------------------------------------


def test_grid_of_nifti_whatever_its_name_and_version(tmp_path: Path) -> None:
    affine = swap_lps_ras_affine(AXIAL)
    plain = write_image(tmp_path / "plain.nii", chest()).read_bytes()
    (tmp_path / "not_packed.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    members = [gzip.compress(plain[start : start + 4096]) for start in range(0, len(plain), 4096)]
    (tmp_path / "parallel.nii.gz").write_bytes(b"".join(members) + bytes(512))
    quaternion = nib.Nifti1Image(chest(), None)
    quaternion.set_qform(affine, 1)
    big_endian = nib.Nifti1Image(chest(), np.eye(4)).header.as_byteswapped(">")
    for name, image in (
        ("second.nii.gz", nib.Nifti2Image(chest(), affine)),
        ("big.nii", nib.Nifti1Image(chest(), affine, big_endian)),
        ("quaternion.nii", quaternion),
    ):
        nib.save(image, tmp_path / name)
    for path in tmp_path.iterdir():
        np.testing.assert_allclose(same_grid(path).affine_ras, affine, atol=1e-5)


def test_grid_is_read_from_the_header_alone(tmp_path: Path) -> None:
    """Cut voxels are not missed here, nor are voxels that cannot be HU."""
    for form in (".nii", ".nii.gz", ".mha", ".nrrd"):
        path = write_image(tmp_path / f"scan{form}", chest((32, 32, 32)) + 2000)
        cut(path, 0.6)
        assert read_grid(path).shape == (32, 32, 32)


def test_refused_grid_of_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "series", chest(), AXIAL)
    paths[3].unlink()
    (tmp_path / "empty").mkdir()
    for name in ("a.nii", "b.mha"):
        write_image(tmp_path / "two" / name, chest())
    for image, words in (
        (tmp_path / "two", ("expected one scan, got 2 (a, b)",)),
        (tmp_path / "missing.nii", ("missing.nii", "check the path")),
        ([tmp_path / "missing.dcm"], ("missing.dcm", "check the path")),
        ([], ("an empty list",)),
        (tmp_path / "empty", ("found none",)),
        (paths, (paths[3].name, "no such file")),
    ):
        refused_alike(image, *words)


@pytest.mark.parametrize("column", [(0, 0, 0), (2, 0, 0), (np.nan, 0, 0), (0, 0, 100)])
def test_refused_grid_with_unusable_axes(tmp_path: Path, column: tuple[float, ...]) -> None:
    affine = np.eye(4, dtype="<f4")
    affine[:3, 2] = column
    path = write_image(tmp_path / "scan.nii", chest())
    data = path.read_bytes()
    path.write_bytes(data[:280] + affine[:3].tobytes() + data[328:])  # srow_x, srow_y, srow_z of the NIfTI-1 header
    refused_alike(path, "three independent axes")


# ---- the MONAI side ----------------------------------------------------------------------------------------------


def load(entries: list[dict[str, Any]]) -> Any:
    transform = Compose([LoadImaged("image", reader=ScanReader(), dtype=None), EnsureChannelFirstd("image")])
    return Dataset(entries, transform)


def test_meta_survives_a_dataloader(tmp_path: Path) -> None:
    tilted = AXIAL.copy()
    tilted[:3, 2] = (0, 0.5, 4)
    write_series(tmp_path / "a", chest(), tilted)
    write_image(tmp_path / "b.nii.gz", chest())
    entries = find_scans(tmp_path)
    scans = [scan for batch in DataLoader(load(entries), batch_size=1) for scan in decollate_batch(batch)]
    for scan, entry in zip(scans, entries, strict=True):
        volume, image = read_scan(entry["image"]), scan["image"]
        np.testing.assert_array_equal(image.numpy(), volume.image_hu[None])
        for affine in (image.affine.numpy(), image.meta["original_affine"]):
            np.testing.assert_array_equal(affine, volume.affine_ras)
        assert image.meta["spatial_shape"].tolist() == list(SHAPE)
        assert image.meta["facts"] == volume.facts
        assert image.meta["notes"].splitlines() == list(volume.notes)
        assert tuple(filter(None, image.meta["source_files"].split(FILE_SEPARATOR))) == volume.source_files
        assert (scan["name"], scan["notes"]) == (entry["name"], entry["notes"])
        assert image.meta["filename_or_obj"] == str(np.ravel(entry["image"])[0])
    assert len(scans[1]["image"].meta["notes"].splitlines()) == 2  # tilted and thick
    assert scans[0]["image"].meta["source_files"] == ""  # no DICOM


def test_refused_scan_is_not_read_by_another_reader_of_monai(tmp_path: Path) -> None:
    """LoadImage swallows what ``read`` raises and tries NibabelReader; ``get_data`` is outside that net."""
    (entry,) = find_scans(write_image(tmp_path / "scan.nii", chest() + 2000))
    with pytest.raises(RuntimeError) as caught:
        load([entry])[0]
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
@pytest.mark.parametrize("form", FORMATS[1:])
def test_a_mask_is_whole_numbers_on_the_grid_of_its_file_in_every_format(tmp_path: Path, form: str, dtype: Any) -> None:
    path = write_image(tmp_path / f"mask{form}", LABELS.astype(dtype))
    labels, affine_ras = read_labels(path)
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_allclose(affine_ras, swap_lps_ras_affine(AXIAL), atol=1e-5)
    np.testing.assert_array_equal(affine_ras, read_grid(path).affine_ras)


@pytest.mark.parametrize("form", ["nii", "mhd"])
@pytest.mark.parametrize("value", [0.5, 40000.0, np.nan])
def test_refused_mask_of_other_than_whole_numbers(tmp_path: Path, form: str, value: float) -> None:
    values = LABELS.astype(np.float32)
    values[1, 2, 3] = value
    path = write_image(tmp_path / f"mask.{form}", values)
    with pytest.raises(ScanError, match=rf"mask\.{form}: expected a mask of whole numbers .* export the segmentation"):
        read_labels(path)


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
    turned = AXIAL.copy()
    turned[0] = -AXIAL[0]
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
