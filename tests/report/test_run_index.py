"""The page of a run: which scans, how many findings of which size, what was refused and why."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

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


def named(result: ScanResult, name: str, **changes: Any) -> ScanResult:
    return dataclasses.replace(result, name=name, source=f"/ward/Jane Doe/{name}.nii", **changes)


def stored(folder: Path, *results: ScanResult) -> None:
    """Give each result a folder with its nodules.json, as a run does."""
    for result in results:
        (folder / result.name).mkdir()
        NodulesJson()(result, folder / result.name)


def refused(folder: Path, *failures: tuple[str, str]) -> RunIndex:
    """The index of a run that refused scans (name, reason)."""
    index = RunIndex(folder)
    for name, reason in failures:
        index.add_failure(name, reason)
    return index


def page(index: RunIndex) -> str:
    """Write the page, and read it."""
    index.write()
    return index.path.read_text(encoding="utf-8")


def test_one_scan_has_no_page_and_leaves_no_former_one(result: ScanResult, tmp_path: Path) -> None:
    index, again = RunIndex(tmp_path), RunIndex(tmp_path)
    for name in "ab":
        index.add(named(result, name), tmp_path / name)
    assert index.write() == tmp_path / "index.html"
    again.add(result, tmp_path / "chest")
    assert again.write() is None
    assert list(tmp_path.iterdir()) == []


def test_several_scans_have_a_row_each(result: ScanResult, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").touch()
    index = RunIndex(tmp_path, date="2026-01-02")
    index.add(named(result, "a", notes=("slices of 5 mm",)), tmp_path / "a")
    index.add(named(result, "b", nodules=(), seconds=None), tmp_path / "b")
    text = index.render(seconds=75.0)
    rows = ('href="a/report.html">a<', 'href="b">b<')  # no report was written for b: the folder
    expected = (*rows, "2 scans searched", "1 min 15 s", "Slices of 5 mm", "12 s", "2026-01-02", "a.nii", "0.97")
    assert [one for one in expected if one not in text] == []
    assert text.count("<tr>") == 1 + 2
    assert "refused" not in text.split("<style>")[0] + text.split("</style>")[1]
    assert "Jane" not in text


def test_a_result_of_an_earlier_run_has_its_row(result: ScanResult, tmp_path: Path) -> None:
    stored(tmp_path, named(result, "a", notes=("slices of 5 mm",)))
    former, now = RunIndex(tmp_path), RunIndex(tmp_path)
    former.add_former(tmp_path / "a")
    now.add(named(result, "a", seconds=None), tmp_path / "a")
    notes = "<span>Searched by an earlier run</span><span>Slices of 5 mm</span>"
    assert former.render().replace(notes, "–") == now.render()
    assert notes in former.render()


def test_a_single_refusal_has_a_page_without_folders(tmp_path: Path) -> None:
    index = RunIndex(tmp_path)
    index.add_failure("/ward/Jane Doe/scans", "/ward/Jane Doe/scans/3.dcm: <b>broken</b>", "/ward/Jane Doe/scans")
    text = page(index)
    assert "0 scans searched, 1 refused" in text
    assert "the input/3.dcm: &lt;b&gt;broken&lt;/b&gt;" in text
    assert "Jane" not in text


def test_rows_come_in_the_order_of_the_run(result: ScanResult, tmp_path: Path) -> None:
    """Not in that of a race: a scan that is refused while reading is told before one that is still being written."""
    pages = []
    for searched, failed in (("ab", "cd"), ("ba", "dc")):
        index = refused(tmp_path, *((name, "broken") for name in failed))
        index.order = tuple("cabd")
        for name in searched:
            index.add(named(result, name), tmp_path / name)
        pages.append(index.render())
    assert pages[0] == pages[1]
    assert re.findall(r'href="(\w)"', pages[0]) == ["a", "b"]
    assert re.findall(r"<strong>(\w)</strong>", pages[0]) == ["c", "d"]


def test_results_of_other_runs_in_the_folder_have_rows(result: ScanResult, tmp_path: Path) -> None:
    stored(tmp_path, *(named(result, name) for name in "xyz"))
    index = RunIndex(tmp_path)
    index.order = ("y",)
    index.add(named(result, "y"), tmp_path / "y")
    text = page(index)
    assert re.findall(r'href="(\w)">', text) == ["y", "x", "z"]
    assert "3 scans searched" in text


def test_what_a_run_beside_this_one_refused_stays(result: ScanResult, tmp_path: Path) -> None:
    refused(tmp_path, ("old", "broken")).write()  # of a run that has ended before the others begin
    one, other = refused(tmp_path, ("a", "<b> & broken")), refused(tmp_path, ("b", "broken"))
    one.write()
    found = re.findall("<strong>(.*?)</strong><span>(.*?)</span>", page(other))
    assert sorted(found) == [("a", "&lt;b&gt; &amp; broken"), ("b", "broken")]
    stored(tmp_path, named(result, "a"))
    assert "<strong>a</strong>" not in page(refused(tmp_path, ("b", "broken")))


@pytest.mark.parametrize("kind", ["gap", "damaged", "two", "datalist", "item", "mhd"])
def test_folders_and_slices_named_after_a_patient_are_on_no_page(tmp_path: Path, kind: str) -> None:
    image = np.random.default_rng(0).integers(-900, -500, (9, 8, 12)).astype(np.int16)
    source, folder = tmp_path / "Jane Doe", tmp_path / "Jane Doe" / "Doe, Jane"
    paths = write_series(folder, image, np.eye(4), change=lambda d, k: k != 5 or kind != "gap")
    for number, path in enumerate(paths):
        path.rename(folder / f"Jane_Doe_{number}.dcm")
    if kind == "damaged":
        (folder / "Jane_Doe_3.dcm").write_bytes(b"")
    if kind == "two":
        (folder / "Jane_Doe_3.dcm").rename(folder / "Jane_Doe_X.dcm")
        shutil.copy(folder / "Jane_Doe_4.dcm", folder / "Jane_Doe_Y.dcm")
    if kind in ("datalist", "item"):
        shutil.copytree(folder, source / "2")
        (source / "2" / "scan.nii").touch()
        source /= "list.json"
        source.write_text(json.dumps([{"image": "." if kind == "datalist" else "2"}]))
    if kind == "mhd":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "scan.mhd").write_text("ElementDataFile = Jane.raw\n")
    index = RunIndex(tmp_path)
    log = RunLog(index)
    for item in find_scans(source):
        with pytest.raises(ScanError) as caught:
            read_scan(item["image"])
        log.failed(item["name"], caught.value, item["source"])
    assert "Jane" in " ".join(log.failures.values())  # who runs it has to find it
    assert set(re.findall("Jane|Doe|expected", index.render())) == {"expected"}


def test_a_dicom_result_names_its_series_instead_of_its_folder(result: ScanResult, tmp_path: Path) -> None:
    dicom = dataclasses.replace(
        result, source="/ward/Jane Doe", source_files=("/ward/Jane Doe/1.dcm",), facts={"Series UID": "1.2.3"}
    )
    index = RunIndex(tmp_path)
    index.add(dicom, tmp_path / "chest")
    texts = [index.render(), HtmlReport().render(dicom), json.dumps(scan_record(dicom))]
    assert all("1.2.3" in text and "Jane" not in text for text in texts)
    assert scan_record(dataclasses.replace(dicom, identity={"Patient name": "Jane Doe"}))["source"] == "Jane Doe"


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
    expected = ("0–2 mm: 1<", "2–4 mm: 2<", "4–6 mm: 0<", "28–30 mm: 1<", "≥ 30 mm: 2<", "--share:0.5000")
    assert [said for said in expected if said not in index.render()] == []


def test_somebodys_page_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>Mine</h1>")
    with pytest.raises(OutputError, match=r"index\.html.*page of an earlier run.*another output_dir"):
        RunIndex(tmp_path)
    assert (tmp_path / "index.html").read_text() == "<h1>Mine</h1>"
