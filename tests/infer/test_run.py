"""One run over many scans: refusals, the end of a run, several runs at once."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImage
from torch import Tensor, nn

from scripts.core.errors import SettingError
from scripts.core.files import OutputError
from scripts.infer import (
    FinishedResults,
    RefusedScansError,
    RunLog,
    ScanEvaluator,
    ScanLoader,
    ScanStream,
    WriteResultd,
    bundle_facts,
)
from scripts.phantom.files import write_image
from scripts.read.dicom_header import read_identity
from scripts.read.discovery import find_scans
from scripts.read.reader import ScanReader, read_scan
from scripts.read.scan import ScanError
from scripts.report import MaskNifti, NodulesJson, ResultWriter, RunIndex, input_digest
from tests.dicom_files import write_series
from tests.report.test_report import make_result

ROOT = Path(__file__).resolve().parents[2]


# --- scans ------------------------------------------------------------------------------------------------------------


def looks_like(folder: Path, names: str = "abc") -> str:
    """Empty files that look like scans in a folder."""
    for name in names:
        (folder / f"{name}.nii").touch()
    return str(folder)


def name_of(item: dict[str, Any]) -> str:
    return str(item["name"])


@pytest.mark.parametrize(
    ("error", "message"), [(ScanError("b.nii: no scan"), "b.nii: no scan"), (KeyError("x"), "KeyError: 'x'")]
)
def test_one_failing_scan_of_three_is_left_out(
    error: Exception, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(item: dict[str, Any]) -> str:
        if item["name"] == "b":
            raise error
        return name_of(item)

    log = RunLog()
    # MONAI wraps the error in one of its own.
    assert list(ScanStream(looks_like(tmp_path), "auto", Compose([read]), log)) == ["a", "c"]
    assert log.failures == {"b": message}
    assert capsys.readouterr().err.count("error: b: ") == 1


@pytest.mark.parametrize(("name", "said"), [("", "expected DICOM slices"), ("nowhere", "found nothing there")])
def test_a_path_that_cannot_be_searched_is_a_failure_that_is_told_once(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, path = RunLog(), tmp_path / name
    assert list(ScanStream(str(path), "auto", name_of, log)) == []
    error = capsys.readouterr().err
    assert (error.startswith(f"error: {path}: "), error.count(str(tmp_path))) == (True, 1)
    assert said in log.failures[str(path)]


# --- results ----------------------------------------------------------------------------------------------------------


def _searched(folder: Path) -> dict[str, Any]:
    """A DICOM scan as it leaves the search, with nothing found."""
    affine_lps = np.diag([0.8, 0.8, 1.5, 1.0])
    image = np.random.default_rng(0).integers(-900, -500, (9, 8, 12)).astype(np.int16)
    write_series(folder, image, affine_lps)
    (item,) = find_scans(folder)
    scan = LoadImage(reader=ScanReader(), ensure_channel_first=True, image_only=True, dtype=np.int16)(item["image"])
    cells = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4, dtype=torch.float64))
    where = {"region": "body", "lung_distance_mm": cells, "lung_parts": cells.to(torch.uint8)}
    nothing = {"nodules": [], "candidates": [], "outside_lungs": 0, **where}
    return item | nothing | {"scan": scan, "mask": np.zeros(image.shape, np.uint16)}


@pytest.mark.parametrize(
    ("show", "identity"), [(False, {}), (True, {"Patient name": "Secret Name", "Patient ID": "SECRET-ID"})]
)
def test_who_was_examined_is_known_when_asked_for(show: bool, identity: dict[str, str], tmp_path: Path) -> None:
    item = _searched(tmp_path / "scan")
    writer = ResultWriter(tmp_path / "out", [NodulesJson()])
    result = WriteResultd(writer, RunLog(), {}, {}, show_identity=show).result(item)
    assert (result.identity, result.source_files) == (identity, read_scan(tmp_path / "scan").source_files)
    assert len(result.source_files) == 12


def test_identity_is_shown_as_people_write_it(tmp_path: Path) -> None:
    def fill(dataset: Any, k: int) -> None:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        dataset.PatientBirthDate, dataset.PatientSex, dataset.StudyDate = "19600229", "M", "20200131"
        dataset.AccessionNumber = ""

    image = np.zeros((4, 4, 2), np.int16)
    first, _ = write_series(tmp_path, image, np.eye(4), change=fill)
    assert read_identity(first) == {
        "Patient name": "Yamada Tarou / 山田 太郎 / やまだ たろう",
        "Patient ID": "SECRET-ID",
        "Birth date": "1960-02-29",
        "Sex": "M",
        "Study date": "2020-01-31",
    }
    first.unlink()
    with pytest.raises(ScanError, match="got one that cannot be read"):
        read_identity(first)


@pytest.mark.parametrize("ahead", [False, True])
def test_scans_come_in_order_and_none_is_read_before_the_last_is_taken(ahead: bool, tmp_path: Path) -> None:
    """One ahead at most, in another thread: what is prepared is counted each time that the consumer takes an item."""
    prepared: list[tuple[str, str]] = []

    def read(item: dict[str, Any]) -> str:
        prepared.append((name_of(item), threading.current_thread().name[:4]))
        return name_of(item)

    thread = "read" if ahead else threading.current_thread().name[:4]
    taken = []
    for name in ScanStream(looks_like(tmp_path, "abcd"), "auto", read, RunLog(), ahead=ahead):
        taken.append(name)
        time.sleep(0.05)
        assert prepared == [(one, thread) for one in "abcd"[: len(taken) + ahead]]
    assert taken == list("abcd")


def test_several_workers_are_threads_and_search_each_scan_once(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)

    def read(item: dict[str, Any]) -> str:
        together.wait()  # passes only while two are prepared at once
        return name_of(item)

    loader = ScanLoader(ScanStream(looks_like(tmp_path, "abcdef"), "auto", read, RunLog()), num_workers=2)
    assert list(loader) == list("abcdef")


def test_processes_as_workers_are_refused(tmp_path: Path) -> None:
    stream = ScanStream(looks_like(tmp_path), "auto", name_of, RunLog())
    with pytest.raises(SettingError, match="got worker processes"):
        list(DataLoader(stream, batch_size=None, num_workers=1))


def test_results_within_the_input_are_no_scans(tmp_path: Path) -> None:
    """Whatever output folder they are in, the input itself too; scans beside them are found."""
    volume = np.zeros((8, 8, 8), np.int16)
    for folder in (tmp_path, tmp_path / "out", tmp_path / "scan_9"):
        folder.mkdir(exist_ok=True)
        ResultWriter(folder, [NodulesJson(), MaskNifti()])(make_result())
        write_image(folder / "scan.nii.gz", volume, np.eye(4))
    (tmp_path / "nodules.json").write_text('{"mine": 1}')
    found = [Path(scan["image"]).relative_to(tmp_path).as_posix() for scan in find_scans(tmp_path)]
    assert found == ["scan.nii.gz", "out/scan.nii.gz", "scan_9/scan.nii.gz"]
    with pytest.raises(ScanError, match="found none"):
        find_scans(tmp_path / "out" / "scan_1")


def test_a_stream_that_is_left_early_ends(tmp_path: Path) -> None:
    stream = iter(ScanStream(looks_like(tmp_path), "auto", name_of, RunLog(), ahead=True))
    assert next(stream) == "a"
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_finished_scans_are_left_out_and_a_foreign_result_is_refused(tmp_path: Path) -> None:
    asked: dict[str, str] = {}

    class Finished(FinishedResults):
        def __call__(self, name: str, digest: str) -> Path | None:
            asked[name] = digest
            if name == "c":
                raise OutputError("c: expected nothing, got another result")
            return tmp_path if name == "a" else None

    log, finished = RunLog(), Finished(ResultWriter(tmp_path / "out", [NodulesJson()]), {}, {})
    (item,) = ScanStream(looks_like(tmp_path), "auto", lambda item: item, log, finished=finished)
    assert (item["name"], log.found, list(log.failures)) == ("b", ["a"], ["c"])
    assert item["input_digest"] == asked["b"] == input_digest([tmp_path / "b.nii"])
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a.nii", "lung_mask": "b.nii"}]))
    (item,) = ScanStream(str(tmp_path / "list.json"), "auto", lambda item: item, RunLog())
    assert item["input_digest"] == input_digest([tmp_path / "a.nii", tmp_path / "b.nii"])


# --- the search -------------------------------------------------------------------------------------------------------


def _search(
    inferer: Callable[..., Any], postprocessing: Callable[..., Any], log: RunLog, names: str = "abc"
) -> ScanEvaluator:
    volume = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4, dtype=torch.float64))
    items = [{"name": n, "source": n, "image": volume, "lung_distance_mm": volume, "scan": object()} for n in names]
    evaluator = ScanEvaluator(
        log=log,
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=1, collate_fn=itemgetter(0)),
        network=nn.Identity(),
        inferer=inferer,
        postprocessing=postprocessing,
    )
    evaluator.run()
    return evaluator


class Remarking(Inferer):
    """Remarks the number of its call, and fails in one of them, if any."""

    def __init__(self, failing_call: int = 0) -> None:
        super().__init__()
        self.remarks: tuple[str, ...] = ()
        self.calls, self.failing_call = 0, failing_call

    def __call__(self, inputs: Tensor, network: Any, *_: Any, **given: Any) -> Tensor:
        assert inputs.shape == (1, 1, 4, 4, 4)
        assert given["lung_distance_mm"].shape == (1, 4, 4, 4)
        self.calls += 1
        self.remarks = (f"call {self.calls}",)
        if self.calls == self.failing_call:
            raise RuntimeError("no memory")
        return inputs.as_tensor() + self.calls


def test_maps_and_remarks_join_the_item_and_nothing_else_is_touched() -> None:
    seen: list[dict[str, Any]] = []
    evaluator = _search(Remarking(), lambda item: seen.append(item) or {"name": item["name"]}, RunLog())  # type: ignore[func-returns-value]
    for number, (name, item) in enumerate(zip("abc", seen, strict=True), start=1):
        assert (item["name"], item["remarks"], float(item["pred"].mean())) == (name, (f"call {number}",), number)
        assert item["pred"].shape == item["image"].shape == (1, 4, 4, 4)
    assert evaluator.state.batch == {}  # the scan is let go


@pytest.mark.parametrize("where", ["network", "postprocessing"])
def test_a_failing_search_leaves_one_scan_out(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def write(item: dict[str, Any]) -> dict[str, Any]:
        if where == "postprocessing" and item["name"] == "b":
            raise ZeroDivisionError("no outline")
        done.append(item["name"])
        return {"name": item["name"]}

    log = RunLog()
    _search(Remarking(2 if where == "network" else 0), write, log)
    assert (done, list(log.failures)) == (["a", "c"], ["b"])
    assert capsys.readouterr().err.startswith("error: b: ")


# --- writing ----------------------------------------------------------------------------------------------------------


class Slow(WriteResultd):
    """Results are names; the first takes long to write, and the second fails."""

    def result(self, item: Any) -> Any:
        return SimpleNamespace(name=item["name"], source=item["name"], nodules=())


@pytest.mark.parametrize("behind", [False, True])
def test_results_are_written_in_order_and_the_end_waits_for_them(behind: bool, tmp_path: Path) -> None:
    written: list[tuple[str, str]] = []

    def writer(result: Any) -> Path:
        time.sleep(0.2 if result.name == "a" else 0.0)
        written.append((result.name, threading.current_thread().name))
        if result.name == "b":
            raise OutputError("b: no room")
        return tmp_path / result.name

    log = RunLog()
    write = Slow(writer, log, {}, {}, behind=behind)  # type: ignore[arg-type]
    for name in "abc":
        assert write({"name": name}) == {"name": name}
        if name == "a" and behind:
            assert written == []
    with pytest.raises(RefusedScansError):
        log.close()
    assert [name for name, _ in written] == list("abc")
    assert all(thread.startswith("write") is behind for _, thread in written)
    assert (list(log.folders), log.failures) == (["a", "c"], {"b": "b: no room"})


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("searched", "found", "failed", "said"),
    [
        ("a", "", "", "1 scan searched, 0 refused"),
        ("", "a", "", "0 scans searched, 1 searched before, 0 refused"),
        ("", "", "", "0 scans searched, 0 refused"),
        ("", "", "b", "0 scans searched, 1 refused (b)"),
        ("a", "", "cb", "1 scan searched, 2 refused (b, c)"),
    ],
)
@pytest.mark.parametrize("ends", [RefusedScansError, SystemExit])
def test_a_run_ends_well_or_as_a_failure(
    searched: str,
    found: str,
    failed: str,
    said: str,
    ends: type[BaseException],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With exit code 1 on the command line; a host program gets an exception. Scans come in the order of the run."""
    monkeypatch.setattr("scripts.infer.log.is_command_line", lambda: ends is SystemExit)
    log = RunLog()
    log.expect("abc")
    log.folders.update({name: Path(name) for name in searched})
    for name in found:
        log.skipped(name, Path(name))
    for name in failed:
        log.failed(name, ScanError("broken"))
    is_failure = bool(failed) or not searched + found
    with pytest.raises(ends) if is_failure else contextlib.nullcontext() as ended:
        log.close()
    assert not is_failure or getattr(ended.value, "code", 1) == 1
    assert capsys.readouterr().out == f"{said}\n"


def test_the_page_of_the_run_names_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(RunIndex(tmp_path))
    log.failed("b", ScanError("/data/Jane Doe/b.nii: broken"), "/data/Jane Doe/b.nii")
    with pytest.raises(RefusedScansError):
        log.close()
    assert f"1 refused (b); see {tmp_path / 'index.html'}" in capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "b.nii: broken" in page
    assert "Jane" not in page


def test_time_runs_from_the_begin_of_a_scan_and_for_a_run_of_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lasted = [100.0], list[float | None]()
    monkeypatch.setattr("scripts.infer.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    log = RunLog(SimpleNamespace(write=lasted.append))  # type: ignore[arg-type]
    log.found.append("a")
    log.close()
    for name, at in (("b", 103.0), ("c", 108.0)):
        now[0] = at
        log.begun(name)
    now[0] = 110.0
    log.close()
    assert lasted == [None, 7.0]
    assert [log.seconds_since_begun(name) for name in "abc"] == [None, 7.0, 2.0]


def test_bundle_facts_name_version_and_weights(tmp_path: Path, bundle_root: str) -> None:
    """Other weights of the lung search are another model too: else their results would be taken for finished."""
    (tmp_path / "model.pt").write_bytes(b"weights")
    facts = bundle_facts(bundle_root, str(tmp_path / "model.pt"))
    assert facts["version"] == json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))["version"]
    assert facts["weights"] == "model.pt (sha256 9a129038d9a0)"
    both = bundle_facts(bundle_root, str(tmp_path / "none.pt"), str(tmp_path / "model.pt"))
    assert both == {**facts, "weights": "none.pt (sha256 none)", "lung_weights": facts["weights"]}
