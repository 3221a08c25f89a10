"""The reports say what the result holds: strict, complete, on the scan's own grid, whole or not at all."""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from PIL import Image

from scripts.core.files import OutputError
from scripts.core.geometry import apply_affine, voxel_volume_mm3
from scripts.core.labels import Part
from scripts.core.processes import MACHINE
from scripts.core.records import Detection, Location, Measurement, Nodule, ScanResult, SearchRegion
from scripts.report import (
    Fingerprint,
    HtmlReport,
    ItkSnapLabels,
    MaskNifti,
    NodulesCsv,
    NodulesJson,
    PredictionTable,
    ResultWriter,
    SlicerLabels,
    SlicerMarkups,
    Writer,
    input_digest,
    summary,
)
from scripts.report.html.overview import lungs_picture, overview
from scripts.report.html.page import AxialSlices, pictures_per_view, weaker_candidates
from scripts.report.html.pictures import AXIAL, CORONAL, LUNG_WINDOW, Picture, Stack, Window, close_ups, data_uri
from scripts.report.html.render import shown_probability
from scripts.report.slices import Slice, draw_slices
from scripts.report.tables import SCHEMA_VERSION, nodule_record, scan_record, source_name

SCHEMA = json.loads((Path(__file__).resolve().parents[2] / "docs/schema/nodules-1.json").read_text(encoding="utf-8"))

# An anisotropic grid that is no cube, in the orientation of most DICOM series (LPS axes).
AFFINE_RAS = np.array([[-0.8, 0, 0, 30], [0, -0.9, 0, 25], [0, 0, 2.0, -40], [0, 0, 0, 1.0]])
SHAPE = (70, 60, 40)
SHEAR = np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def make_result(
    spheres: tuple[tuple[tuple[float, float, float], float], ...] = (
        ((8.0, -5.0, 1.0), 10.0),
        ((-12.0, 9.0, 14.0), 6.0),
    ),
    *,
    affine_ras: np.ndarray = AFFINE_RAS,
    shape: tuple[int, ...] = SHAPE,
    name: str = "scan_1",
) -> ScanResult:
    """Air-filled scan with a smooth gradient and one dense sphere (centre RAS mm, diameter mm) per nodule."""
    world_mm = apply_affine(affine_ras, np.moveaxis(np.indices(shape), 0, -1))
    image_hu = -900.0 + 2.0 * world_mm[..., 0] + world_mm[..., 1]
    mask = np.zeros(shape, np.uint16)
    nodules = []
    for label, (centre_ras_mm, diameter_mm) in enumerate(spheres, start=1):
        inside = np.linalg.norm(world_mm - centre_ras_mm, axis=-1) <= diameter_mm / 2
        image_hu[inside] = 40.0
        mask[inside] = label
        volume_mm3 = float(inside.sum()) * voxel_volume_mm3(affine_ras)
        measurement = Measurement(volume_mm3, diameter_mm, diameter_mm, diameter_mm - 1, 40.0, "solid")
        i, j, k = apply_affine(np.linalg.inv(affine_ras), centre_ras_mm).tolist()
        detection = Detection(centre_ras_mm, diameter_mm, 0.95 / label)
        location = Location("left" if centre_ras_mm[0] < 0 else "right", "middle")
        nodules.append(Nodule(label, detection, (i, j, k), measurement if inside.any() else None, location))
    return ScanResult(
        name=name,
        source="/ward/Jane Doe/scan_1.nii.gz",
        image_hu=np.rint(image_hu).astype(np.int16),
        affine_ras=affine_ras,
        mask=mask,
        nodules=tuple(nodules),
        candidates=(*(nodule.detection for nodule in nodules), Detection((1.0, 2.0, 3.0), 4.0, 0.0123456789)),
        outside_lungs=2,
        facts={"Modality": "CT"},
        notes=("Slices are thick.",),
        model={"name": "compact", "version": "0.1.0"},
        settings={
            "threshold": 0.5,
            "window": np.float32(2.5),
            "weights": Path("/secret/model.pt"),
            "bad": float("nan"),
        },
        input_digest=64 * "a",
    )


def without_nodules(result: ScanResult) -> ScanResult:
    return dataclasses.replace(result, nodules=(), candidates=(), mask=np.zeros_like(result.mask))


def stored_as(result: ScanResult, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> ScanResult:
    """The same scan with its array axes permuted, then flipped; every voxel keeps its world position."""
    to_old = np.diag([0.0, 0.0, 0.0, 1.0])
    for new_axis, (old_axis, flip) in enumerate(zip(order, flips, strict=True)):
        to_old[old_axis, new_axis] = -1.0 if flip else 1.0
        to_old[old_axis, 3] = result.image_hu.shape[old_axis] - 1 if flip else 0.0
    axes = tuple(axis for axis, flip in enumerate(flips) if flip)
    nodules = tuple(
        dataclasses.replace(nodule, centre_voxel=tuple(apply_affine(np.linalg.inv(to_old), nodule.centre_voxel)))
        for nodule in result.nodules
    )
    return dataclasses.replace(
        result,
        image_hu=np.flip(result.image_hu.transpose(order), axes),
        mask=np.flip(result.mask.transpose(order), axes),
        affine_ras=result.affine_ras @ to_old,
        nodules=nodules,
    )


@pytest.fixture
def table(tmp_path: Path) -> PredictionTable:
    return PredictionTable(tmp_path / "predictions.csv")


def add(table: PredictionTable, *results: ScanResult) -> None:
    """Store results, and take each into the table."""
    for result in results:
        (table.path.parent / result.name).mkdir(exist_ok=True)
        NodulesJson()(result, table.path.parent / result.name)
        table.update()


def strict_json(path: Path) -> dict:
    """The record in a file, which has no NaN and no infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def csv_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """The file size limit of the system stands in for a full disk: the first file that does not fit fails."""
    resource = pytest.importorskip("resource", reason="file size limits are a Unix feature")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


UNMEASURED = make_result((((8.0, -5.0, 1.9), 0.01),))  # no voxel in the outline
NOTHING = without_nodules(make_result())


class TestNodulesJson:
    def test_every_field_of_a_hand_made_nodule(self, tmp_path: Path) -> None:
        result = make_result()
        record = strict_json(NodulesJson()(result, tmp_path))
        (first, _), disclaimer = record.pop("nodules"), record.pop("disclaimer")
        assert first == {
            "label": 1,
            "centre_lps_mm": [-8.0, 5.0, 1.0],
            "centre_ras_mm": [8.0, -5.0, 1.0],
            "centre_voxel": [27.5, 33.333, 20.5],
            "diameter_mm": 10.0,
            "probability": 0.95,
            "volume_mm3": round(int((result.mask == 1).sum()) * 0.8 * 0.9 * 2.0, 2),
            "effective_diameter_mm": 10.0,
            "long_axis_mm": 10.0,
            "short_axis_mm": 9.0,
            "mean_hu": 40.0,
            "type_hint": "solid",
            "location": {"side": "right", "level": "middle"},
        }
        assert "not for diagnosis" in disclaimer
        assert record == {
            "schema_version": SCHEMA_VERSION,
            "name": "scan_1",
            "source": "scan_1.nii.gz",
            "input_digest": 64 * "a",
            "bundle": {"name": "compact", "version": "0.1.0"},
            "settings": {"threshold": 0.5, "window": 2.5, "weights": "model.pt", "bad": None},  # no path, no NaN
            "scan": {
                "facts": {"Modality": "CT"},
                "shape": [70, 60, 40],
                "spacing_mm": [0.8, 0.9, 2.0],
                "affine_ras": AFFINE_RAS.tolist(),
            },
            "search": {
                "region": None,
                "lungs_found": False,
                "lung_volume_l": None,
                "candidates_outside_lungs": 2,
                "candidates": 3,
            },
            "notes": ["Slices are thick."],
            "candidates": [
                {"centre_lps_mm": [-8.0, 5.0, 1.0], "diameter_mm": 10.0, "probability": 0.95},
                {"centre_lps_mm": [12.0, -9.0, 14.0], "diameter_mm": 6.0, "probability": 0.475},
                {"centre_lps_mm": [-1.0, -2.0, 3.0], "diameter_mm": 4.0, "probability": 0.0123456789},
            ],
        }

    def test_what_is_not_known_is_null(self) -> None:
        record = nodule_record(dataclasses.replace(UNMEASURED.nodules[0], location=None))
        assert [name for name, value in record.items() if value is None] == [
            *("volume_mm3", "effective_diameter_mm", "long_axis_mm", "short_axis_mm", "mean_hu"),
            *("type_hint", "location"),
        ]

    @pytest.mark.parametrize(
        "result",
        [
            make_result(),
            NOTHING,
            UNMEASURED,
            dataclasses.replace(NOTHING, notes=('a "b",\n]', "ü"), facts={}, model={}, settings={}),
        ],
        ids=["nodules", "none", "unmeasured", "bare"],
    )
    def test_it_follows_its_schema_and_has_a_line_for_each_field_and_item(
        self, result: ScanResult, tmp_path: Path
    ) -> None:
        path = NodulesJson()(result, tmp_path)
        record = strict_json(path)
        jsonschema.validate(record, SCHEMA)
        assert record == scan_record(result)
        items = sum(len(items) + 1 for items in (result.notes, result.nodules, result.candidates) if items)
        assert len(path.read_text(encoding="utf-8").splitlines()) == 2 + len(record) + items

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("probability", 1.2), ("type_hint", "hard"), ("label", 0), ("location", {"side": "up"})),
            *(("volume_mm3", 0.0), ("centre_lps_mm", [1.0, 2.0]), ("diameter_mm", None)),
        ],
    )
    def test_the_schema_notices_what_is_wrong(self, name: str, value: object) -> None:
        record = scan_record(make_result())
        record["nodules"][0][name] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(record, SCHEMA)

    def test_the_schema_is_that_of_the_major_version_and_requires_every_field(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        assert f"-{SCHEMA_VERSION.split('.')[0]}" in str(SCHEMA["$id"])
        whole, parts = scan_record(make_result()), [SCHEMA["$defs"][name] for name in ("nodule", "candidate")]
        assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == set(whole)
        assert {name for part in parts for name in part["properties"]} == set(whole["nodules"][0])
        assert all(set(part["properties"]) == set(part["required"]) for part in parts)

    @pytest.mark.parametrize(
        ("source", "name"),
        [("/a/b.nii.gz", "b.nii.gz"), ("/a/b/", "b"), (r"C:\patients\Doe\scan.mhd", "scan.mhd"), ("c.mha", "c.mha")],
    )
    def test_source_is_a_name_without_folders(self, source: str, name: str) -> None:
        assert source_name(source) == name


class TestTables:
    def test_csv_starts_with_luna16_columns(self, tmp_path: Path) -> None:
        text = NodulesCsv()(make_result(), tmp_path).read_text()
        assert [[*row[:7], len(row), *row[-3:]] for row in csv.reader(text.splitlines())] == [
            [
                *("seriesuid", "coordX", "coordY", "coordZ", "probability", "label", "diameter_mm"),
                *(15, "type_hint", "side", "level"),
            ],
            [*("scan_1", "-8.0", "5.0", "1.0", "0.95", "1", "10.0"), 15, *("solid", "right", "middle")],
            [*("scan_1", "12.0", "-9.0", "14.0", "0.475", "2", "6.0"), 15, *("solid", "left", "middle")],
        ]
        assert csv_rows(NodulesCsv()(NOTHING, tmp_path)) == []
        (bare,) = csv_rows(NodulesCsv()(UNMEASURED, tmp_path))
        assert (bare["volume_mm3"], bare["diameter_mm"]) == ("", "0.01")

    def test_predictions_hold_every_candidate_of_every_scan(self, table: PredictionTable) -> None:
        assert table.path.read_text() == "seriesuid,coordX,coordY,coordZ,probability\n"
        add(table, make_result(name="c"), without_nodules(make_result(name="b")), make_result(name="a"))
        rows = csv_rows(table.path)
        assert [row["seriesuid"] for row in rows] == ["a"] * 3 + ["c"] * 3
        assert list(rows[2].values()) == ["a", "-1.0", "-2.0", "3.0", "0.0123456789"]

    def test_rounding_keeps_what_float32_tells_apart(self, table: PredictionTable) -> None:
        one = np.float32(0.9999)
        probabilities = [float(one), float(np.nextafter(one, np.float32(1)))]
        candidates = tuple(Detection((0.0, 0.0, 0.0), 5.0, probability) for probability in probabilities)
        add(table, dataclasses.replace(make_result(), candidates=candidates))
        assert [np.float32(row["probability"]) for row in csv_rows(table.path)] == probabilities
        assert "-0.0" not in table.path.read_text()

    def test_a_full_disk_leaves_whole_scans_only(self, table: PredictionTable, tmp_path: Path) -> None:
        add(table, make_result(name="a"))
        before = table.path.read_bytes()
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with room_for(len(before) + 20), pytest.raises(OutputError, match=r"predictions\.csv.*room for 187 bytes"):
            table.update()
        assert table.path.read_bytes() == before
        table.update()
        assert len(csv_rows(table.path)) == 6

    def test_a_new_run_keeps_the_rows_of_results_that_stand_there(self, table: PredictionTable, tmp_path: Path) -> None:
        add(table, *(make_result(name=name) for name in ("c", "a", "gone")))
        shutil.rmtree(tmp_path / "gone")
        again = PredictionTable(table.path)
        assert [row["seriesuid"] for row in csv_rows(again.path)] == ["a"] * 3 + ["c"] * 3
        changed = dataclasses.replace(make_result(name="a"), candidates=make_result().candidates[:1])
        add(again, make_result(name="d"), changed)
        (tmp_path / "c").rename(tmp_path / ".c")  # as if another machine had written it, and it were not seen here yet
        add(again, make_result(name="e"))
        assert [row["seriesuid"] for row in csv_rows(again.path)] == ["a", *["c"] * 3, *["d"] * 3, *["e"] * 3]

    def test_a_run_that_goes_on_ends_with_the_table_of_one_that_never_stopped(self, tmp_path: Path) -> None:
        once, stopped = (PredictionTable(tmp_path / folder / "predictions.csv") for folder in ("once", "stopped"))
        results = [make_result(name=name) for name in "abc"]
        add(once, *results)
        add(stopped, results[0])
        half = stopped.path.read_text()[:-10]  # killed while it wrote
        for result in results:
            stopped.path.write_text(half)
            add(PredictionTable(stopped.path), result)
        assert once.path.read_text() == stopped.path.read_text()

    def test_a_damaged_or_older_record_adds_no_row(self, tmp_path: Path) -> None:
        for name, text in zip("abcde", ("{", "[]", "{}", '{"candidates": 3}', '{"candidates": [1]}'), strict=True):
            (tmp_path / name).mkdir()
            (tmp_path / name / "nodules.json").write_text(text)
        assert csv_rows(PredictionTable(tmp_path / "predictions.csv").path) == []

    def test_another_file_of_that_name_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "predictions.csv").write_text("my,own\n1,2\n")
        with pytest.raises(OutputError, match=r"predictions\.csv.*got another file"):
            PredictionTable(tmp_path / "predictions.csv")
        assert (tmp_path / "predictions.csv").read_text() == "my,own\n1,2\n"

    def test_terminal_table_is_aligned(self) -> None:
        title, *lines = summary(make_result()).splitlines()
        assert (title, summary(NOTHING)) == ("scan_1: 2 nodules", "scan_1: no nodules")
        assert lines[1].split()[:6] == ["1", "0.950", "-8.0", "5.0", "1.0", "10.0"]
        assert len({len(line) for line in lines}) == 1


class TestMask:
    @pytest.mark.parametrize(
        ("turn", "labels", "dtype"),
        [
            (np.eye(4), 0, np.uint8),
            (np.diag([-1.0, 1, 1, 1]), 255, np.uint8),
            (np.eye(4)[[2, 0, 1, 3]], 256, np.uint16),
        ],
        ids=["no nodule", "mirrored, 255 nodules", "turned, 256 nodules"],
    )
    def test_geometry_and_every_label_survive(self, tmp_path: Path, turn: np.ndarray, labels: int, dtype: type) -> None:
        mask = np.zeros(SHAPE, np.uint16)
        mask.flat[:labels] = np.arange(1, labels + 1)
        result = dataclasses.replace(make_result(), mask=mask, affine_ras=turn @ AFFINE_RAS)
        image = nib.load(MaskNifti()(result, tmp_path))
        np.testing.assert_array_equal(np.asarray(image.dataobj), mask.astype(dtype), strict=True)
        for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
            assert (code, image.header.get_xyzt_units()[0]) == (1, "mm")
            np.testing.assert_allclose(affine, result.affine_ras, atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), [0.8, 0.9, 2.0], atol=1e-6)


class TestViewers:
    def test_points_by_hand(self, tmp_path: Path) -> None:
        """Fields and values as Slicer's schema 1.0.3 has them."""
        flags = {"selected": True, "locked": True, "visibility": True, "positionStatus": "defined"}
        points = {
            "type": "Fiducial",
            "name": "lung nodules",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "locked": True,
            "controlPoints": [
                {"id": "1", "label": "nodule 1 (0.95, 10.0 mm)", "position": [-8.0, 5.0, 1.0], **flags},
                {"id": "2", "label": "nodule 2 (0.47, 6.0 mm)", "position": [12.0, -9.0, 14.0], **flags},
            ],
            "display": {"visibility": True, "pointLabelsVisibility": True, "propertiesLabelVisibility": False},
        }
        for result, expected in ((make_result(), points), (NOTHING, points | {"controlPoints": []})):
            record = strict_json(SlicerMarkups()(result, tmp_path))
            assert record.pop("@schema").endswith("/markups-schema-v1.0.3.json#")
            assert record == {"markups": [expected]}

    @pytest.mark.parametrize(
        ("writer", "first", "lines"),
        [
            (
                SlicerLabels(),
                "# Color table file",
                [
                    "0 background 0 0 0 0",
                    "1 nodule_1_(0.95,_10.0_mm) 31 119 180 255",
                    "2 nodule_2_(0.47,_6.0_mm) 255 127 14 255",
                ],
            ),
            (
                ItkSnapLabels(),
                "# ITK-SnAP Label Description File",
                [
                    '0 0 0 0 0 0 0 "background"',
                    '1 31 119 180 1 1 1 "nodule 1 (0.95, 10.0 mm)"',
                    '2 255 127 14 1 1 1 "nodule 2 (0.47, 6.0 mm)"',
                ],
            ),
        ],
        ids=["3D Slicer", "ITK-SNAP"],
    )
    def test_every_label_of_the_mask_has_a_line(
        self, writer: Writer, first: str, lines: list[str], tmp_path: Path
    ) -> None:
        for result, expected in ((make_result(), lines), (NOTHING, lines[:1])):
            writer(result, tmp_path)
            text = (tmp_path / writer.filename).read_text().splitlines()
            assert text[0] == first
            assert [line for line in text if not line.startswith("#")] == expected

    def test_an_eleventh_nodule_takes_the_first_colour_again(self, tmp_path: Path) -> None:
        nodules = tuple(dataclasses.replace(make_result().nodules[0], label=label) for label in range(1, 13))
        lines = SlicerLabels()(dataclasses.replace(make_result(), nodules=nodules), tmp_path).read_text().splitlines()
        colours = [tuple(line.split()[2:5]) for line in lines[2:]]
        assert (len(set(colours)), colours[10:]) == (10, colours[:2])


CENTRED = np.array([[-1.0, 0, 0, 35], [0, -1, 0, 30], [0, 0, 1, -20], [0, 0, 0, 1]])  # 1 mm, LPS axes


def stacks(
    result: ScanResult, number: int = 0, *, mm: float, window: Window = LUNG_WINDOW, pictures: int = 1
) -> list[Stack]:
    """Close-ups of a nodule, ``mm`` wide."""
    nodule = result.nodules[number]
    return list(close_ups(result, nodule.detection, window, mm, label=nodule.label, pictures=pictures))


def lung_box(result: ScanResult, low: tuple[int, int, int], high: tuple[int, int, int]) -> SearchRegion:
    """Lungs that fill a box of voxels, on a grid twice as coarse as the scan's."""
    inside = np.zeros(np.array(result.image_hu.shape) // 2, dtype=bool)
    inside[tuple(slice(a // 2, b // 2) for a, b in zip(low, high, strict=True))] = True
    to_scan = np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]])
    parts = np.where(inside, np.uint8(Part.RIGHT_LUNG), np.uint8(Part.BODY))
    return SearchRegion("lungs", np.where(inside, np.float32(0), np.float32(3)), parts, result.affine_ras @ to_scan)


class TestPictures:
    @pytest.mark.parametrize(
        ("order", "flips"),
        [
            *((order, (False, True, True)) for order in itertools.permutations(range(3))),
            ((0, 1, 2), (True, False, False)),
            ((2, 0, 1), (True, True, True)),
        ],
    )
    @pytest.mark.parametrize("affine_ras", [AFFINE_RAS, AFFINE_RAS @ SHEAR], ids=["straight", "sheared"])
    def test_storage_order_changes_nothing(
        self, affine_ras: np.ndarray, order: tuple[int, int, int], flips: tuple[bool, bool, bool]
    ) -> None:
        result = make_result(affine_ras=affine_ras)
        stored = stored_as(result, order, flips)
        for number in range(2):
            for stack, other in zip(
                stacks(result, number, mm=30, pictures=3), stacks(stored, number, mm=30, pictures=3), strict=True
            ):
                for picture, same in zip(stack.pictures, other.pictures, strict=True):
                    assert np.abs(picture.grey.astype(int) - same.grey).max() <= 1
                    assert _outline_box(picture.outline) == pytest.approx(_outline_box(same.outline), abs=0.02)
        point = result.nodules[0].detection.centre_ras_mm
        for region in (None, lung_box(result, (6, 6, 6), (64, 54, 34))):
            whole, same = (overview(dataclasses.replace(one, region=region)) for one in (result, stored))
            assert whole.of_lungs is same.of_lungs is (region is not None)
            np.testing.assert_array_equal(whole.picture.grey, same.picture.grey)
            assert whole.position_mm(point) == pytest.approx(same.position_mm(point))

    @pytest.mark.parametrize("towards", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["right", "front", "head"])
    def test_radiological_display(self, towards: tuple[int, int, int]) -> None:
        """A bright ball 12 mm to the right, front or head lies at the left, top or both of the pictures."""
        ball_ras_mm = 12.0 * np.array(towards)
        result = make_result((((0.0, 0.0, 0.0), 4.0), (tuple(ball_ras_mm), 8.0)), affine_ras=CENTRED)
        beside = [one.middle for one in stacks(result, mm=40, window=Window(-600, 200)) if one.middle.other_outlines]
        assert len(beside) == 2  # in the third the ball is before the nodule
        for picture in beside:
            expected_mm = 20 - ball_ras_mm[[picture.view.column_axis, picture.view.row_axis]]
            bright_mm = _bright_mm(picture)
            far_mm = bright_mm[:, np.linalg.norm(bright_mm - 20, axis=0) > 5]
            np.testing.assert_allclose(far_mm.mean(axis=1), expected_mm, atol=0.3)
            assert _outline_box(picture.other_outlines)[:2] == pytest.approx(expected_mm - 4, abs=0.6)

    @pytest.mark.parametrize(
        ("number", "towards", "first"), [(0, (0, 0, 1), "head"), (1, (0, 1, 0), "front"), (2, (1, 0, 0), "right")]
    )
    def test_a_stack_goes_through_the_body(self, number: int, towards: tuple[int, int, int], first: str) -> None:
        """A ball 6 mm towards the side at which the stack begins is cut in the middle six steps before the middle."""
        ball_ras_mm = tuple((6.0 * np.array(towards)).tolist())
        result = make_result((((0.0, 0.0, 0.0), 3.0), (ball_ras_mm, 5.0)), affine_ras=CENTRED)
        stack = stacks(result, mm=30, pictures=21)[number]
        assert (stack.middle.view.first, len(stack.pictures), stack.step_mm) == (first, 21, 1.0)
        assert [bool(picture.other_outlines) for picture in stack.pictures] == [abs(n - 4) <= 2 for n in range(21)]
        assert [bool(picture.outline) for picture in stack.pictures] == [abs(n - 10) <= 1 for n in range(21)]
        assert stack.pictures[4].grey[35:37, 35:37].mean() > 200 > stack.pictures[7].grey[35:37, 35:37].mean()

    def test_a_stack_reaches_beyond_a_large_nodule(self) -> None:
        result = make_result((((0.0, 0.0, 0.0), 40.0),), affine_ras=CENTRED, shape=(90, 90, 90))
        for stack in stacks(result, mm=60, pictures=11):
            assert stack.step_mm * 5 >= 20 + 3
            assert (stack.pictures[0].outline, bool(stack.middle.outline)) == ("", True)

    @pytest.mark.parametrize(("diameter_mm", "width_mm", "pixels"), [(20, 60, 144), (50, 150, 216)])
    def test_outline_has_the_nodules_size_and_the_view_grows_with_it(
        self, diameter_mm: float, width_mm: float, pixels: int
    ) -> None:
        result = make_result((((0.0, 0.0, 0.0), diameter_mm),), affine_ras=CENTRED, shape=(70, 60, 60))
        for stack in stacks(result, mm=60):
            picture = stack.middle
            assert (picture.width_mm, picture.grey.shape) == (width_mm, (pixels, pixels))
            assert len(data_uri(stack.pictures)) < 30_000
            if diameter_mm == 20:  # the other reaches beyond the scan
                assert _outline_box(picture.outline) == pytest.approx([20, 20, 40, 40], abs=0.8)
                assert picture.outline.endswith("Z")

    def test_nodule_at_the_border_keeps_black_outside(self) -> None:
        result = make_result(((tuple(apply_affine(AFFINE_RAS, (0, 0, 0)).tolist()), 12.0),))
        axial = stacks(result, mm=30, window=Window(-1000, 4000))[0].middle  # pixels of 30 / 72 mm, 36 mm wide
        assert axial.grey.shape == (86, 86)
        assert (axial.grey[:41].max(), axial.grey[:, :41].max()) == (0, 0)
        assert axial.grey[43:, 43:].min() > 0
        assert axial.outline

    def test_centre_outside_the_grid_gives_black(self) -> None:
        for stack in stacks(make_result((((500.0, 0.0, 0.0), 5.0),)), mm=30, pictures=3):
            assert not any(picture.grey.any() or picture.outline for picture in stack.pictures)

    @pytest.mark.parametrize("slices", [1, 3])
    def test_slab_is_seen_as_thick_as_it_is(self, slices: int) -> None:
        affine_ras = AFFINE_RAS.copy()
        affine_ras[:3, 3] = [-0.8 * -34.5, 0.9 * 29.5, -(slices - 1)]
        result = make_result((((0.0, 0.0, 0.0), 8.0),), affine_ras=affine_ras, shape=(70, 60, slices))
        coronal = stacks(result, mm=30, window=Window(-1000, 4000))[1].middle
        pixel_mm = coronal.width_mm / coronal.grey.shape[1]
        assert (coronal.grey[:, 36] > 0).sum() * pixel_mm == pytest.approx(2.0 * slices, abs=pixel_mm)
        whole = overview(result)
        assert whole.picture.view is AXIAL
        assert (whole.picture.width_mm, whole.picture.height_mm) == pytest.approx((80.0, 80.0), abs=0.5)
        assert whole.position_mm((0.0, 0.0, 0.0)) == pytest.approx((40.0, 40.0), abs=0.5)

    def test_window_by_hand(self) -> None:
        assert LUNG_WINDOW.grey([-1350, -600, 150, 3000, -32768]).tolist() == [0, 128, 255, 255, 0]


class TestOverview:
    BALL_MM = (-10.0, 8.0, 20.0)
    BALL = make_result(((BALL_MM, 14.0),), affine_ras=CENTRED, shape=(80, 80, 80))
    BONE_HU = np.where(np.arange(80)[:, None] < 8, np.int16(1000), BALL.image_hu)  # a plate as wide as the picture
    LUNGS = dataclasses.replace(BALL, region=lung_box(BALL, (10, 10, 10), (70, 70, 70)))

    @pytest.mark.parametrize(
        "result",
        [
            BALL,
            LUNGS,
            dataclasses.replace(LUNGS, image_hu=BONE_HU),
            dataclasses.replace(BALL, region=lung_box(BALL, (55, 10, 10), (75, 60, 40))),
        ],
        ids=["whole scan", "lungs", "lungs behind bone", "nodule outside the lungs"],
    )
    def test_marks_lie_where_the_nodule_is_on_a_small_picture(self, result: ScanResult) -> None:
        whole = overview(result)
        position_mm, bright_mm = np.array(whole.position_mm(self.BALL_MM)), _bright_mm(whole.picture)
        assert (whole.picture.view, whole.of_lungs) == (CORONAL, result.region is not None)
        assert len(data_uri([whole.picture])) < 60_000
        np.testing.assert_allclose(bright_mm.mean(axis=1), position_mm, atol=0.7)
        size_mm = np.array([whole.picture.width_mm, whole.picture.height_mm])
        assert np.minimum(position_mm, size_mm - position_mm).min() >= 6.5
        if not whole.of_lungs:  # all of 80 × 80 voxels of 1 mm: the ball lies in column 45 from the right, row 39
            assert position_mm == pytest.approx((45.5, 39.5))
        elif result.region is self.LUNGS.region:  # a sum would be bright only where the ball is thick
            assert np.ptp(bright_mm[0]) == pytest.approx(14.0, abs=2.0)

    @pytest.mark.parametrize("towards", [-1.0, 1.0])
    def test_a_nodule_far_from_the_lungs_is_in_the_picture(self, towards: float) -> None:
        """Farther than the margin around the lungs, on either side of them."""
        ball_mm = (50.0 * towards, 0.0, 50.0 * towards)
        affine_ras = from_matvec(np.diag([-2.0, -2.0, 2.0]), [80.0, 80.0, -80.0])
        result = make_result(((ball_mm, 14.0),), affine_ras=affine_ras, shape=(80, 80, 80))
        whole = overview(dataclasses.replace(result, region=lung_box(result, (30, 30, 30), (50, 50, 50))))
        position_mm = np.array(whole.position_mm(ball_mm))
        np.testing.assert_allclose(_bright_mm(whole.picture).mean(axis=1), position_mm, atol=1.0)


class TestSlices:
    @pytest.mark.parametrize("is_feet_first", [True, False])
    @pytest.mark.parametrize("half_width_mm", [None, 6.0])
    def test_the_head_is_up(self, tmp_path: Path, is_feet_first: bool, half_width_mm: float | None) -> None:
        image_hu = np.full((20, 20, 20), LUNG_WINDOW.black_hu, np.int16)
        image_hu[:, :, 10:] = LUNG_WINDOW.white_hu  # the half with the head is white where k runs from the feet
        affine_ras = np.diag([-1.0, -1.0, 1.0 if is_feet_first else -1.0, 1.0])
        views = [Slice(0, half_width_mm), Slice(1, half_width_mm)]
        draw_slices(tmp_path / "a.png", image_hu, affine_ras, (10, 10, 9.5), views, [], (2, 1))
        grey = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[:, [30, 150]]  # in each of the two pictures
        dark, bright = (grey[-40:-20], grey[20:40]) if is_feet_first else (grey[20:40], grey[-40:-20])
        assert dark.mean(axis=0).max() < 50 < 200 < bright.mean(axis=0).min()


def _bright_mm(picture: Picture) -> np.ndarray:
    """Where a picture is nearly white: ``[2, N]`` mm from its left and upper border."""
    rows, columns = np.nonzero(picture.grey > 200)
    return (np.array([columns, rows]) + 0.5) * picture.width_mm / picture.grey.shape[1]


def _outline_box(path: str) -> list[float]:
    """Left, top, right, bottom of an SVG path, mm; zeros if it is empty."""
    points = np.array(re.findall(r"-?\d+\.\d+", path) or ["0", "0"], dtype=float).reshape(-1, 2)
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


SCRIPT_OR_STYLE = r"(?s)<(script|style)>.*?</\1>"
VOID_TAGS = frozenset({"meta", "img", "input", "br", "link", "hr"})


def open_tags(text: str) -> list[str]:
    """The tags that a page leaves open; fails where another is closed than the last one that was opened."""
    opened: list[str] = []
    for slash, tag, whole in re.findall(r"<(/?)(\w+)[^>]*?(/?)>", re.sub(SCRIPT_OR_STYLE, "", text)):
        if slash:
            assert opened.pop() == tag
        elif not whole and tag not in VOID_TAGS:
            opened.append(tag)
    return opened


def words(result: ScanResult, **settings: Any) -> str:
    """What a reader of the page reads."""
    return unescape(re.sub("<[^>]*>", "", re.sub(SCRIPT_OR_STYLE, "", HtmlReport(**settings).render(result))))


def images(text: str) -> list[str]:
    """The texts that stand for the pictures of a page."""
    return re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)">', text)


def with_region(low: tuple[int, int, int], high: tuple[int, int, int], **changes: Any) -> ScanResult:
    result = make_result()
    return dataclasses.replace(result, region=dataclasses.replace(lung_box(result, low, high), **changes))


class TestPage:
    def test_parses_and_every_picture_has_a_text(self) -> None:
        text = HtmlReport().render(make_result())
        assert open_tags(text) == []
        assert len(images(text)) == text.count("<img") == 1 + 3 * 3  # overview, two nodules, a weaker candidate
        identifiers = re.findall(r'\bid="([^"]*)"', text)
        assert len(set(identifiers)) == len(identifiers)
        assert set(re.findall(r'\bhref="#?([^"]*)"', text)) <= set(identifiers)

    def test_asks_nothing_of_the_network_and_runs_its_own_script_only(self) -> None:
        text = re.sub(r'src="data:image/webp;base64,[^"]+"', "", HtmlReport().render(make_result()))
        fetches = r"https?:|//[a-z]|@import|url\(|\b(src|srcset|action|data)=|<(link|iframe|object|embed|base)\b"
        assert not re.search(fetches, text)
        (script,) = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';"
        assert f'http-equiv="Content-Security-Policy" content="{policy}' in text
        assert not re.search(r"eval|innerHTML|\bFunction\b", script)

    def test_says_what_it_is_and_what_was_found(self) -> None:
        result = make_result()
        measurement = dataclasses.replace(result.nodules[0].measurement, type_hint="part-solid")
        first = dataclasses.replace(result.nodules[0], location=Location("right", "upper"), measurement=measurement)
        facts = {"Modality": "CT", "Spacing": "0.81 mm"}
        result = dataclasses.replace(result, nodules=(*result.nodules[1:], first), seconds=34.4, facts=facts)
        said = words(result, date="2026-01-02", smallest_tested_mm=4.5)
        expected = (
            "Academic research, not a medical device, not for diagnosis.",
            "A report without findings does not exclude nodules. The model was tested with nodules of 4.5 mm and more",
            "2 possible nodules",
            "At the operating threshold of 0.5. The most probable, number 1, measures 10.0\u00a0×\u00a09.0\u00a0mm",
            "in the right lung, upper third.",
            "Right, upper",
            "10.0 × 9.0",
            "part-solid",
            "−8.0, 5.0, 1.0",
            "Slices are thick.",
            "2 candidates outside the lungs were dropped.",
            "2026-01-02",
            "34 s from reading to report",
            "compact",
            "counted from 0 to 39 along the scan's own array axis k; slice 0 is nearest the feet",
        )
        assert [text for text in expected if text not in said] == []
        assert re.findall(r"(?:Size|Spacing)[^\n]*", said) == ["Size70 × 60 × 40", "Spacing0.81 mm"]  # the file's own
        assert not re.search("Jane|Patient", said)
        assert said.index("Nodule 1") < said.index("Nodule 2")  # by falling probability

    def test_a_single_nodule_without_an_outline_is_singular_and_estimated(self) -> None:
        said = words(UNMEASURED, weaker_findings=0)
        size = "At the operating threshold of 0.5. It measures about 0.0\u00a0mm in the right lung, middle third."
        assert [text for text in ("1 possible nodule\n", size) if text not in said] == []
        assert re.search("Type hint\n?–", said)
        assert HtmlReport(weaker_findings=0).render(UNMEASURED).count('class="outline guess"') == 3

    @pytest.mark.parametrize("field", ["facts", "notes", "model", "settings", "source", "identity", "name"])
    def test_what_comes_from_files_is_escaped(self, field: str) -> None:
        evil = "<script>alert(1)<b>&\"'"
        values = {"notes": (evil,), "source": evil.replace("/", ""), "name": evil}
        text = HtmlReport().render(dataclasses.replace(make_result(), **{field: values.get(field, {evil: evil})}))
        assert (text.count("<script"), text.count("<b>&")) == (1, 0)
        assert "&lt;script&gt;alert(1)&lt;b&gt;&amp;" in text

    def test_the_patient_is_named_when_asked_for_in_any_script(self, tmp_path: Path) -> None:
        identity = {"Patient name": "Åsa 山田 Œuvré", "Patient ID": "Ω-17"}
        text = HtmlReport()(dataclasses.replace(make_result(), identity=identity), tmp_path).read_text(encoding="utf-8")
        assert all(part in text for pair in identity.items() for part in pair)

    def test_no_nodules_is_said(self) -> None:
        said = words(NOTHING)
        assert "No candidate reached the operating threshold of 0.5. This does not mean that there is no" in said
        assert "No candidate reached the operating threshold of 0.5 in this scan." in said
        assert ["no nodule marked" in picture for picture in images(HtmlReport().render(NOTHING))] == [True]

    def test_weaker_candidates_wait_below_the_threshold(self) -> None:
        text = HtmlReport().render(make_result())
        assert re.search(r'<tr data-finding="3"(?=[^>]* hidden)[^>]* data-probability="0.012346"', text)
        assert 'min="0.010000"' in text
        assert 'id="finding-3"' not in HtmlReport(weaker_findings=0).render(make_result())
        alone = dataclasses.replace(NOTHING, candidates=make_result().candidates[2:])
        assert "Highest below the threshold0.01" in words(alone)

    def test_a_candidate_inside_an_outline_is_not_shown_twice(self) -> None:
        result = make_result()
        twice = dataclasses.replace(result.nodules[0].detection, probability=0.4)
        at_threshold = dataclasses.replace(result.candidates[2], probability=0.5)  # enough for a nodule
        result = dataclasses.replace(result, candidates=(*result.candidates, twice, at_threshold))
        assert [candidate.probability for candidate in weaker_candidates(result, 0.5)] == [0.0123456789]

    def test_sixty_nodules_make_a_page_of_a_few_megabytes(self) -> None:
        centres = itertools.product((-20.0, -8.0, 4.0, 16.0), (-20.0, -7.0, 6.0), (-30.0, -16.0, -2.0, 12.0, 26.0))
        text = HtmlReport().render(make_result(tuple((centre, 6.0) for centre in centres)))
        assert len(images(text)) == 1 + 3 * (60 + 1)
        assert len(text) < 6_000_000
        assert "60 possible nodules" in text

    @pytest.mark.parametrize(("nodules", "pictures"), [(0, 21), (1, 21), (10, 21), (20, 9), (60, 7), (500, 7)])
    def test_many_nodules_have_fewer_pictures_each(self, nodules: int, pictures: int) -> None:
        assert pictures_per_view(nodules) == pictures

    @pytest.mark.parametrize(
        ("kind", "said"), [("cut-out", "a cut-out of a chest"), ("body", "Everything inside the body was searched")]
    )
    def test_another_region_is_said(self, kind: str, said: str) -> None:
        text = words(with_region((6, 6, 6), (64, 54, 34), kind=kind))
        assert said in text
        assert "10 mm outside them" not in text  # that is what the lungs' own region leaves out
        assert "Nothing more than 10 mm outside them was searched." in words(with_region((6, 6, 6), (64, 54, 34)))

    def test_lungs_are_drawn_and_measured(self) -> None:
        result = with_region((10, 10, 10), (60, 50, 30))  # 40 × 36 × 40 mm
        assert re.search(r"(?s)which is unusual.*0\.06 l right, 0\.00 l left", words(result))
        picture = lungs_picture(result, LUNG_WINDOW)
        assert picture is not None
        left, top, right, bottom = _outline_box(picture.outline)
        assert [right - left, bottom - top] == pytest.approx([40, 40], abs=1.5)
        assert scan_record(result)["search"]["lung_volume_l"] == {"left": 0.0, "right": 0.058}

    def test_lungs_that_the_scan_cuts_are_said(self) -> None:
        assert "cuts off the lungs" not in words(with_region((4, 4, 6), (66, 56, 30)))
        assert "The scan cuts off the lungs at the bottom; what" in words(with_region((4, 4, 0), (66, 56, 30)))
        assert "cuts off the lungs at the top and the bottom; what" in words(with_region((4, 4, 0), (66, 56, 40)))

    @pytest.mark.parametrize(
        "result",
        [
            dataclasses.replace(NOTHING, image_hu=np.full(SHAPE, -1024, np.int16)),
            make_result(((tuple(AFFINE_RAS[:3, 3].tolist()), 70.0),)),
        ],
        ids=["constant image", "huge nodule at the border"],
    )
    def test_odd_scans_have_a_page(self, result: ScanResult) -> None:
        assert open_tags(HtmlReport().render(result)) == []

    @pytest.mark.parametrize(
        ("order", "flips", "axis", "number", "first"),
        [
            ((0, 1, 2), (False, False, False), 2, 20, "feet"),
            ((0, 1, 2), (False, False, True), 2, 19, "head"),
            ((2, 0, 1), (True, False, False), 0, 19, "head"),
        ],
    )
    def test_slices_are_counted_on_the_scans_own_grid(
        self, order: tuple[int, int, int], flips: tuple[bool, bool, bool], axis: int, number: int, first: str
    ) -> None:
        result = stored_as(make_result((((8.0, -5.0, 0.4), 10.0),)), order, flips)
        slices = AxialSlices.of(result)
        assert slices == AxialSlices(axis, 40, first)
        assert slices.number(result.nodules[0].centre_voxel) == number

    @pytest.mark.parametrize(
        ("probability", "shown"), [(0.9999, "> 0.99"), (0.994, "0.99"), (0.5, "0.50"), (0.001, "< 0.01")]
    )
    def test_probability_never_claims_certainty(self, probability: float, shown: str) -> None:
        assert shown_probability(probability) == shown


SAME = Fingerprint.of_result(make_result())


class TestResultWriter:
    def test_writes_one_folder_per_scan_and_the_table_and_changes_nothing(self, tmp_path: Path) -> None:
        result = make_result(name="1.3.6-a_B")
        for array in (result.image_hu, result.mask, result.affine_ras):
            array.setflags(write=False)
        writers = [NodulesJson(), NodulesCsv(), MaskNifti(), HtmlReport()]
        folder = ResultWriter(tmp_path / "out", writers, PredictionTable(tmp_path / "out" / "predictions.csv"))(result)
        assert folder == tmp_path / "out" / "1.3.6-a_B"
        assert _names(folder) == ["mask.nii.gz", "nodules.csv", "nodules.json", "report.html"]
        assert _names(tmp_path / "out") == ["1.3.6-a_B", "predictions.csv"]
        assert len(csv_rows(tmp_path / "out" / "predictions.csv")) == 3

    def test_a_new_result_replaces_the_former_one_when_asked(self, tmp_path: Path) -> None:
        ResultWriter(tmp_path, [NodulesJson(), NodulesCsv()])(make_result())
        (tmp_path / "scan_1" / ".DS_Store").touch()
        ResultWriter(tmp_path, [NodulesJson()], overwrite=True)(dataclasses.replace(NOTHING, settings={}))
        assert (_names(tmp_path), _names(tmp_path / "scan_1")) == (["scan_1"], ["nodules.json"])
        assert strict_json(tmp_path / "scan_1" / "nodules.json")["nodules"] == []

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("broken")])
    def test_a_failing_writer_leaves_the_former_result(
        self, tmp_path: Path, table: PredictionTable, error: Exception
    ) -> None:
        class Fails(NodulesCsv):
            def __call__(self, result: ScanResult, folder: Path) -> Path:
                super().__call__(result, folder)
                raise error

        before = ResultWriter(tmp_path, [NodulesJson()])(make_result()) / "nodules.json"
        contents = before.read_bytes(), table.path.read_bytes()
        expected = OutputError if isinstance(error, OSError) else RuntimeError
        with pytest.raises(expected, match=r"scan_1.*No space left on device|broken"):
            ResultWriter(tmp_path, [NodulesJson(), Fails()], table)(NOTHING)
        assert (before.read_bytes(), table.path.read_bytes()) == contents
        assert _names(tmp_path) == ["predictions.csv", "scan_1"]

    def test_an_interrupted_swap_is_undone_by_the_next_run(self, tmp_path: Path) -> None:
        ResultWriter(tmp_path, [NodulesJson()])(make_result()).rename(tmp_path / ".scan_1.former")
        (tmp_path / f".scan_1.{MACHINE}.{2**22 + 1}.partial").mkdir()
        write = ResultWriter(tmp_path, [NodulesJson()])
        write.refuse_another("scan_1", SAME)
        assert write.is_complete("scan_1", SAME)
        assert _names(tmp_path) == ["scan_1"]

    def test_a_failing_second_rename_puts_the_former_result_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.rename

        def refuse_partial(self: Path, target: Path) -> Path:
            if self.name.endswith(".partial"):
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        write = ResultWriter(tmp_path, [NodulesJson()])
        before = (write(make_result()) / "nodules.json").read_bytes()
        monkeypatch.setattr(Path, "rename", refuse_partial)
        with pytest.raises(OutputError, match="Input/output error"):
            write(NOTHING)
        assert _names(tmp_path) == ["scan_1"]
        assert (tmp_path / "scan_1" / "nodules.json").read_bytes() == before

    @pytest.mark.parametrize("room", [0, 3000, 12000])
    def test_a_full_disk_leaves_nothing_half_written(self, tmp_path: Path, table: PredictionTable, room: int) -> None:
        before = table.path.read_bytes()
        write = ResultWriter(tmp_path, [SlicerMarkups(), NodulesJson(), MaskNifti(), HtmlReport()], table)
        with room_for(room), pytest.raises(OutputError, match=r"expected room .*Free disk space"):
            write(make_result())
        assert (_names(tmp_path), table.path.read_bytes()) == (["predictions.csv"], before)
        assert len(_names(write(make_result()))) == 4

    def test_a_result_of_the_same_scan_and_settings_is_complete_when_all_files_are_there(self, tmp_path: Path) -> None:
        class Optional(NodulesCsv):
            filename, optional = "some.csv", True

        write = ResultWriter(tmp_path, [NodulesJson(), NodulesCsv()])
        assert not write.is_complete("scan_1", SAME)
        folder = write(make_result())
        asked = [("scan_1", SAME), ("scan_1", SAME._replace(settings={})), ("scan_2", SAME)]
        assert [write.is_complete(*one) for one in asked] == [True, False, False]
        (folder / "nodules.csv").unlink()
        assert not write.is_complete("scan_1", SAME)
        assert ResultWriter(tmp_path, [NodulesJson(), Optional()]).is_complete("scan_1", SAME)
        write(make_result())
        assert write.is_complete("scan_1", SAME)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"settings": {"threshold": 0.3}}, "bad unset now, .*threshold 0.3 now, 0.5 there"),
            ({"model": {"name": "compact", "version": "0.2.0"}}, r"another one: version 0\.2\.0 now, 0\.1\.0 there\."),
            ({"input_digest": 64 * "b"}, r"another one: other input files, or files changed since\."),
        ],
    )
    def test_a_result_of_something_else_is_refused(self, tmp_path: Path, changed: dict, said: str) -> None:
        write = ResultWriter(tmp_path, [NodulesJson()])
        content = (write(make_result()) / "nodules.json").read_bytes()
        other = dataclasses.replace(make_result(), **changed)
        for attempt in (lambda: write.refuse_another("scan_1", Fingerprint.of_result(other)), lambda: write(other)):
            with pytest.raises(OutputError, match=f"scan_1: expected nothing or .*{said}.*--overwrite true"):
                attempt()
        assert (tmp_path / "scan_1" / "nodules.json").read_bytes() == content

    @pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"input_digest": "", "bundle": {}, "settings": {}}'])
    def test_a_result_that_does_not_say_what_it_was_made_from_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "scan_1").mkdir()
        (tmp_path / "scan_1" / "nodules.json").write_text(text)
        with pytest.raises(OutputError, match="does not say what it was made from"):
            ResultWriter(tmp_path, [NodulesJson()]).refuse_another("scan_1", Fingerprint("", {}, {}))
        assert (tmp_path / "scan_1" / "nodules.json").read_text() == text

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("scan_1/thesis.docx", r"scan_1.*thesis\.docx.*choose another output_dir"),
            ("scan_1", "scan_1: .* got a file"),
        ],
        ids=["in a folder", "a file"],
    )
    def test_somebodys_files_are_never_deleted(self, tmp_path: Path, path: str, said: str) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("years of work")
        write = ResultWriter(tmp_path, [NodulesJson()], overwrite=True)
        for attempt in (lambda: write(make_result()), lambda: write.refuse_another("scan_1", SAME)):
            with pytest.raises(OutputError, match=said):
                attempt()
        assert (tmp_path / path).read_text() == "years of work"
        assert _names(tmp_path) == ["scan_1"]

    @pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "a b", "ä", "a\n", ".hidden", "C:\\x", "a\x00"])
    def test_unsafe_names_are_refused(self, tmp_path: Path, name: str) -> None:
        write = ResultWriter(tmp_path / "out", [NodulesJson()], PredictionTable(tmp_path / "predictions.csv"))
        with pytest.raises(ValueError, match="Expected a scan name of letters"):
            write(make_result(name=name))
        assert _names(tmp_path / "out") == []

    def test_what_cannot_be_used_is_refused_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for attempt, error, said in (
            (
                lambda: ResultWriter(tmp_path / "file" / "out", [NodulesJson()]),
                OutputError,
                r"file.*expected a folder that can be written to.*output_dir",
            ),
            (lambda: PredictionTable(tmp_path / "file" / "predictions.csv"), OutputError, "file"),
            (lambda: ResultWriter(tmp_path, []), ValueError, "at least one writer"),
            (
                lambda: ResultWriter(tmp_path, [NodulesJson(), NodulesJson()])(make_result()),
                ValueError,
                "one writer per file",
            ),
        ):
            with pytest.raises(error, match=said):
                attempt()
        assert ResultWriter(tmp_path, [NodulesJson()], overwrite="False").overwrite is False  # type: ignore[arg-type]
        assert _names(tmp_path) == ["file"]


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class TestInputDigest:
    def test_path_size_and_time_count_and_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second = tmp_path / "a.nii", tmp_path / "b.nii"
        first.write_bytes(b"one")
        second.write_bytes(b"two")
        digest = input_digest([first, second])
        assert re.fullmatch("[0-9a-f]{64}", digest)
        os.utime(first, ns=(5, first.stat().st_mtime_ns))  # read since
        monkeypatch.chdir(tmp_path)
        for same in ([first, second], [str(second), str(first)], [tmp_path], ["b.nii", "a.nii"]):
            assert input_digest(same) == digest
        others = {digest, input_digest([first]), input_digest([])}
        for content in (b"two", b"longer"):  # at another time, then of another size
            second.write_bytes(content)
            os.utime(second, ns=(0, 7))
            others.add(input_digest([first, second]))
        others.add(input_digest([first, second.rename(tmp_path / "c.nii")]))
        others.add(input_digest([first, second]))  # not there
        assert len(others) == 7

    META = "NDims = 3\nDimSize = 4 4 2\nElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = other.raw\n"
    NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 2\nencoding: raw\nendian: little\nspacings: 1 1 1\n"

    @pytest.mark.parametrize(
        ("header", "text"), [("a.mhd", META), ("a.MHD", META), ("a.nhdr", NRRD + "data file: other.raw\n")]
    )
    def test_the_data_that_a_header_names_count(self, tmp_path: Path, header: str, text: str) -> None:
        (tmp_path / header).write_text(text)
        digests = {input_digest([tmp_path / header])}
        for content in (b"voxels", b"other voxels"):
            (tmp_path / "other.raw").write_bytes(content)
            digests.add(input_digest([tmp_path / header]))
        assert len(digests) == 3

    def test_what_is_out_of_reach_has_a_digest(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        assert input_digest([tmp_path / "loop", tmp_path / ("x" * 300), f"{tmp_path}/a\0b"])
