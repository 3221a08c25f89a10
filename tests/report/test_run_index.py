"""The page of a run: which scans, how many findings of which size, what was refused and why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.core.files import OutputError
from scripts.core.records import Detection, ScanResult
from scripts.infer import RunLog
from scripts.phantom.chest import Chest
from scripts.read.discovery import find_scans
from scripts.read.reader import read_scan
from scripts.read.scan import ScanError
from scripts.report import HtmlReport, NodulesJson, RunIndex
from scripts.report.tables import scan_record
from tests.dicom_files import write_series
from tests.results import searched_chest


@pytest.fixture(scope="module")
def result(small_chest: Chest) -> ScanResult:
    return searched_chest(small_chest)


def named(result: ScanResult, name: str) -> ScanResult:
    return dataclasses.replace(result, name=name, source=f"/ward/Jane Doe/{name}.nii")


def test_one_scan_has_no_page_and_leaves_no_former_one(result: ScanResult, tmp_path: Path) -> None:
    index = RunIndex(tmp_path)
    for name in "ab":
        index.add(named(result, name), tmp_path / name)
    assert index.write() == tmp_path / "index.html"
    again = RunIndex(tmp_path)
    again.add(result, tmp_path / "chest")
    assert again.write() is None
    assert list(tmp_path.iterdir()) == []


def test_several_scans_have_a_row_each(result: ScanResult, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").touch()
    index = RunIndex(tmp_path, date="2026-01-02")
    index.add(dataclasses.replace(named(result, "a"), notes=("slices of 5 mm",)), tmp_path / "a")
    index.add(dataclasses.replace(named(result, "b"), nodules=(), seconds=None), tmp_path / "b")
    text = index.render(seconds=75.0)
    assert 'href="a/report.html">a<' in text
    assert 'href="b">b<' in text  # no report was written: the folder
    assert text.count("<tr>") == 1 + 2
    for expected in ("2 scans searched", "1 min 15 s", "Slices of 5 mm", "12 s", "2026-01-02", "a.nii", "0.97"):
        assert expected in text
    assert "refused" not in text.split("<style>")[0] + text.split("</style>")[1]
    assert "Jane" not in text


def test_a_result_of_an_earlier_run_has_its_row(result: ScanResult, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    NodulesJson()(dataclasses.replace(named(result, "a"), notes=("slices of 5 mm",)), tmp_path / "a")
    index = RunIndex(tmp_path)
    index.add_former(tmp_path / "a")
    text = index.render()
    assert 'href="a">a<' in text
    for expected in ("a.nii", "0.97", "Slices of 5 mm", "earlier run"):
        assert expected in text
    now = RunIndex(tmp_path)
    now.add(dataclasses.replace(named(result, "a"), seconds=None), tmp_path / "a")
    assert text.replace("<span>Searched by an earlier run</span><span>Slices of 5 mm</span>", "–") == now.render()


def test_a_single_refusal_has_a_page_without_folders(tmp_path: Path) -> None:
    index = RunIndex(tmp_path)
    index.add_failure("/ward/Jane Doe/scans", "/ward/Jane Doe/scans/3.dcm: <b>broken</b>", "/ward/Jane Doe/scans")
    index.write()
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "0 scans searched, 1 refused" in text
    assert "the input/3.dcm: &lt;b&gt;broken&lt;/b&gt;" in text
    assert "Jane" not in text


def test_rows_come_in_the_order_of_the_run(result: ScanResult, tmp_path: Path) -> None:
    """Not in that of a race: a scan that is refused while reading is told before one that is still being written."""
    pages = []
    for told in ("abcd", "dcab"):
        index = RunIndex(tmp_path, date="2026-01-02")
        index.order = tuple("cabd")
        for name in told:
            if name in "cd":
                index.add_failure(name, "broken")
            else:
                index.add(named(result, name), tmp_path / name)
        pages.append(index.render())
    assert pages[0] == pages[1]
    assert pages[0].index('href="a"') < pages[0].index('href="b"')
    assert pages[0].index("<strong>c</strong>") < pages[0].index("<strong>d</strong>")


def test_results_of_other_runs_in_the_folder_have_rows(result: ScanResult, tmp_path: Path) -> None:
    for name in "xyz":
        (tmp_path / name).mkdir()
        NodulesJson()(named(result, name), tmp_path / name)
    index = RunIndex(tmp_path)
    index.order = ("y",)
    index.add(named(result, "y"), tmp_path / "y")
    index.write()
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [text.count(f'href="{name}">') for name in "xyz"] == [1, 1, 1]
    assert text.index('href="y"') < text.index('href="x"') < text.index('href="z"')
    assert "3 scans searched" in text


def test_what_a_run_beside_this_one_refused_stays(result: ScanResult, tmp_path: Path) -> None:
    earlier = RunIndex(tmp_path)
    earlier.add_failure("old", "broken")
    earlier.write()
    one, other = RunIndex(tmp_path), RunIndex(tmp_path)
    one.add_failure("a", "<b> & broken")
    one.write()
    other.add_failure("b", "broken")
    other.write()
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<strong>a</strong><span>&lt;b&gt; &amp; broken</span>" in text
    assert "<strong>b</strong>" in text
    assert "<strong>old</strong>" not in text  # of a run that had ended before these began
    (tmp_path / "a").mkdir()
    NodulesJson()(named(result, "a"), tmp_path / "a")
    late = RunIndex(tmp_path)
    late.add_failure("b", "broken")
    late.write()
    assert "<strong>a</strong>" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def _refused(source: Path, tmp_path: Path) -> tuple[str, str]:
    """What the terminal and the page of a run say of a scan that cannot be read."""
    log = RunLog(RunIndex(tmp_path))
    for item in find_scans(source):
        with pytest.raises(ScanError) as caught:
            read_scan(item["image"])
        log.failed(item["name"], caught.value, item["source"])
    assert log.index is not None
    return " ".join(log.failures.values()), log.index.render()


@pytest.mark.parametrize("kind", ["gap", "damaged", "two", "datalist", "item", "mhd"])
def test_folders_and_slices_named_after_a_patient_are_on_no_page(tmp_path: Path, kind: str) -> None:
    image = np.random.default_rng(0).integers(-900, -500, (9, 8, 12)).astype(np.int16)
    folder = tmp_path / "Jane Doe" / "Doe, Jane"
    paths = write_series(folder, image, np.eye(4), change=lambda d, k: k != 5 or kind != "gap")
    for number, path in enumerate(paths):
        path.rename(folder / f"Jane_Doe_{number}.dcm")
    source = tmp_path / "Jane Doe"
    if kind == "damaged":
        (folder / "Jane_Doe_3.dcm").write_bytes(b"")
    if kind == "two":
        (folder / "Jane_Doe_3.dcm").rename(folder / "Jane_Doe_X.dcm")
        shutil.copy(folder / "Jane_Doe_4.dcm", folder / "Jane_Doe_Y.dcm")
    if kind in ("datalist", "item"):
        shutil.copytree(folder, source / "2")
        (source / "2" / "scan.nii").touch()
        content = {"image": "." if kind == "datalist" else "2"}
        (source / "list.json").write_text(json.dumps([content]))
        source = source / "list.json"
    if kind == "mhd":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "scan.mhd").write_text("ElementDataFile = Jane.raw\n")
    told, page = _refused(source, tmp_path)
    assert "Jane" in told  # who runs it has to find it
    assert "expected" in page
    assert "Jane" not in page
    assert "Doe" not in page


def test_a_dicom_result_names_its_series_instead_of_its_folder(result: ScanResult, tmp_path: Path) -> None:
    dicom = dataclasses.replace(
        result, source="/ward/Jane Doe", source_files=("/ward/Jane Doe/1.dcm",), facts={"Series UID": "1.2.3"}
    )
    index = RunIndex(tmp_path)
    index.add(dicom, tmp_path / "chest")
    texts = [index.render(), HtmlReport().render(dicom), json.dumps(scan_record(dicom))]
    assert all("1.2.3" in text and "Jane" not in text for text in texts)
    asked = dataclasses.replace(dicom, identity={"Patient name": "Jane Doe"})
    assert scan_record(asked)["source"] == "Jane Doe"


def test_a_name_that_is_no_utf8_is_written(result: ScanResult, tmp_path: Path) -> None:
    odd = dataclasses.replace(result, source="/ward/M\udcfcller\n.nii")
    assert json.loads(NodulesJson()(odd, tmp_path).read_text(encoding="utf-8"))["source"] == "M\ufffdller\ufffd.nii"
    HtmlReport()(odd, tmp_path)
    index = RunIndex(tmp_path)
    index.add(odd, tmp_path)
    index.add_failure("scan", str(ScanError(f"{odd.source}: expected x")), odd.source)
    assert "M\ufffdller\ufffd.nii: expected x" in index.render().encode().decode()


def test_the_histogram_counts_in_classes_of_two_millimetres(result: ScanResult, tmp_path: Path) -> None:
    index = RunIndex(tmp_path)
    assert "histogram" not in index.render().split("</style>")[1]
    found = [Detection((0.0, 0.0, 0.0), size, 0.9) for size in (1.9, 2.0, 3.9, 29.9, 30.0, 80.0)]
    nodules = tuple(dataclasses.replace(result.nodules[0], detection=one) for one in found)
    index.add(dataclasses.replace(result, nodules=nodules), tmp_path / "chest")
    text = index.render()
    for said in ("0–2 mm: 1<", "2–4 mm: 2<", "4–6 mm: 0<", "28–30 mm: 1<", "≥ 30 mm: 2<", "--share:0.5000"):
        assert said in text


def test_somebodys_page_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(OutputError, match=r"index\.html.*page of an earlier run.*another output_dir"):
        RunIndex(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>Mine</h1>"
