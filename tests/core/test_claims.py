"""Several processes that write into one output folder: every scan by one of them, and nothing lost or mixed."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.core import claims as claims_module
from scripts.core.claims import STALE_S, BusyError, Claims, OtherClaimError
from scripts.core.files import OutputError
from scripts.core.processes import MACHINE
from scripts.infer import FinishedResults, RunLog, ScanStream, WriteResultd
from scripts.read.scan import ScanError
from scripts.report import NodulesCsv, NodulesJson, PredictionTable, ResultWriter, RunIndex
from tests.report.test_report import make_result

PROCESSES = 4
SCANS = 3

Worker = Callable[..., None]


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # see below


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes of their own that start at once. A fork needs no import; what they do takes no lock of a thread."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes are forked")
    return multiprocessing.get_context("fork")


def _run_all(context: Any, worker: Worker, *arguments: Any) -> list[int]:
    """Exit codes of several processes that do the same at once."""
    start = context.Event()
    running = [context.Process(target=worker, args=(start, number, *arguments)) for number in range(PROCESSES)]
    for process in running:
        process.start()
    time.sleep(0.2)
    start.set()
    for process in running:
        process.join(60)
        process.kill()
    return [process.exitcode for process in running]


def _rows(folder: Path) -> Counter[str]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return Counter(row["seriesuid"] for row in csv.DictReader(file))


class Slow(NodulesCsv):
    """Gives others time to get in between two files of one result."""

    def __call__(self, result: Any, folder: Path) -> Path:
        time.sleep(0.02)
        return super().__call__(result, folder)


def _of(number: int, name: str) -> Any:
    """The result of process ``number``: as many nodules as its number says, and a source that names it."""
    made = make_result()
    return dataclasses.replace(
        made,
        name=name,
        source=f"from_{number}",
        input_digest=str(number),
        candidates=made.candidates[:1] * (number + 1),
        nodules=made.nodules[:1] * (number + 1),
    )


def _write_own_and_contested(start: Any, number: int, folder: Path, overwrite: bool) -> None:
    start.wait()
    table = PredictionTable(folder / "predictions.csv")
    write = ResultWriter(folder, [NodulesJson(), Slow()], table, overwrite=overwrite)
    for n in range(SCANS):
        write(_of(number, f"own_{number}_{n}"))
        with (folder.parent / "outcomes").open("a") as log:
            try:
                write(_of(number, f"contested_{n}"))
                log.write(f"contested_{n} {number} written\n")
            except (BusyError, OtherClaimError, OutputError):
                log.write(f"contested_{n} {number} refused\n")


@pytest.mark.parametrize("overwrite", [False, True])
def test_different_scans_of_one_name_never_mix_and_no_row_is_lost(
    overwrite: bool, processes: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert _run_all(processes, _write_own_and_contested, folder, overwrite) == [0] * PROCESSES
    expected = {f"own_{number}_{n}": number + 1 for number in range(PROCESSES) for n in range(SCANS)}
    outcomes = [line.split() for line in (tmp_path / "outcomes").read_text().splitlines()]
    for n in range(SCANS):
        record = json.loads((folder / f"contested_{n}" / "nodules.json").read_text())
        number = int(record["source"].removeprefix("from_"))
        assert [f"contested_{n}", str(number), "written"] in outcomes
        with (folder / f"contested_{n}" / "nodules.csv").open(newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == len(record["nodules"]) == number + 1
        expected[f"contested_{n}"] = number + 1
        if not overwrite:
            assert sum(name == f"contested_{n}" and what == "written" for name, _, what in outcomes) == 1
    assert _rows(folder) == expected
    assert {path.name for path in folder.iterdir()} == {*expected, "predictions.csv"}


class Counted:
    """A preprocessing that says what it has done."""

    def __init__(self, log: Path, killed_at: str = "") -> None:
        self.log, self.killed_at = log, killed_at

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        with self.log.open("a") as file:
            file.write(item["name"] + "\n")
        if item["name"] == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.03)
        return item


class Named(WriteResultd):
    """Results are made of names."""

    def result(self, item: Any) -> Any:
        return dataclasses.replace(
            make_result(name=item["name"]), input_digest=item["input_digest"], model=self.model, settings=self.settings
        )


def _search(
    start: Any, number: int, scans: Path, folder: Path, ahead: int, killed_at: str = "", overwrite: bool = False
) -> None:
    start.wait()
    log = RunLog(RunIndex(folder))
    writer = ResultWriter(folder, [NodulesJson(), Slow()], PredictionTable(folder / "predictions.csv"), overwrite)
    finished = FinishedResults(writer, {"name": "m"}, {"threshold": 0.5})
    counted = Counted(folder.parent / "searched", killed_at if number == 0 else "")
    write = Named(writer, log, {"name": "m"}, {"threshold": 0.5}, behind=True)
    for item in ScanStream(str(scans), "auto", counted, log, ahead=ahead, finished=finished):
        write(item)
    log.close()


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in "abcdefgh":
        (folder / f"{name}.nii").touch()
    return folder


@pytest.mark.parametrize(
    ("ahead", "overwrite", "killed_at"), [(0, False, ""), (1, False, ""), (1, True, ""), (1, False, "c")]
)
def test_runs_of_the_same_scans_share_them(
    ahead: int, overwrite: bool, killed_at: str, processes: Any, scans: Path, tmp_path: Path
) -> None:
    """The scan of a killed run is searched by another."""
    folder = tmp_path / "out"
    codes = _run_all(processes, _search, scans, folder, ahead, killed_at, overwrite)
    assert codes[1:] == [0] * (PROCESSES - 1)
    assert codes[0] == 0 or (killed_at and codes[0] == -signal.SIGKILL)
    searched = Counter((tmp_path / "searched").read_text().split())
    assert set(searched) == set("abcdefgh")
    # A run that is asked to replace results may come to a scan that another has ended; a killed one held two at most.
    assert searched.total() <= 8 + 2 * (codes[0] != 0) or overwrite
    assert _rows(folder) == Counter(dict.fromkeys("abcdefgh", 3))
    ResultWriter(folder, [NodulesJson()])  # whatever a killed one has left goes when a run begins
    assert {path.name for path in folder.iterdir()} == {*"abcdefgh", "predictions.csv", "index.html"}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert [page.count(f'href="{name}">') for name in "abcdefgh"] == [1] * 8
    assert page.index('href="a"') < page.index('href="d"') < page.index('href="h"')


def test_a_scan_that_is_given_up_is_left_to_others(scans: Path, tmp_path: Path) -> None:
    def refuse(item: dict[str, Any]) -> None:
        raise ScanError("broken")

    writer, log = ResultWriter(tmp_path / "out", [NodulesJson()]), RunLog()
    assert list(ScanStream(str(scans), "auto", refuse, log, finished=FinishedResults(writer, {}, {}))) == []
    assert set(log.failures) == set("abcdefgh")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_another_run_has_just_searched_is_not_searched_again(tmp_path: Path) -> None:
    """Even where results are to be replaced: that run was at work on the scan when this one came to it."""
    made, writer = make_result(), ResultWriter(tmp_path, [NodulesJson()], overwrite=True)
    finished, later = (FinishedResults(writer, made.model, made.settings) for _ in range(2))
    claim = _claim(tmp_path, made.name, about=made.input_digest)
    with pytest.raises(BusyError):
        finished(made.name, made.input_digest)
    claim.unlink()
    (tmp_path / made.name).mkdir()
    NodulesJson()(made, tmp_path / made.name)
    assert finished(made.name, made.input_digest) == tmp_path / made.name
    assert later(made.name, made.input_digest) is None


# --- whose a claim is -------------------------------------------------------------------------------------------------


def _claim(folder: Path, name: str, age_s: float = 0.0, **owner: Any) -> Path:
    """A claim of somebody else's."""
    path = folder / f".{name}.claim"
    path.write_text(json.dumps({"machine": "elsewhere", "process": 1, "token": "t", "about": "x"} | owner))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.mark.parametrize("owner", [{}, {"machine": MACHINE, "process": os.getppid()}])
def test_a_living_claim_is_kept(owner: dict[str, Any], tmp_path: Path) -> None:
    claims, path = Claims(tmp_path), _claim(tmp_path, "scan", **owner)
    with pytest.raises(BusyError, match=r"scan: expected a scan that no other run searches"):
        claims.take("scan", "x")
    with pytest.raises(OtherClaimError, match=r"scan: expected one scan of this name.*rename one"):
        claims.take("scan", "y")
    assert not claims.holds("scan")
    assert json.loads(path.read_text())["token"] == "t"


@pytest.mark.parametrize(("age_s", "owner"), [(STALE_S + 30.0, {}), (0.0, {"machine": MACHINE, "process": 2**22 + 1})])
def test_a_claim_whose_owner_is_gone_is_taken_over(age_s: float, owner: dict[str, Any], tmp_path: Path) -> None:
    _claim(tmp_path, "scan", age_s, **owner)
    claims = Claims(tmp_path)
    claims.take("scan", "y")
    assert claims.holds("scan")
    _claim(tmp_path, "scan")  # this process stood still so long that another took it over
    assert not claims.holds("scan")
    claims.release("scan")
    assert [path.name for path in tmp_path.iterdir()] == [".scan.claim"]


def test_an_empty_claim_is_one_being_written_for_a_while(tmp_path: Path) -> None:
    path = _claim(tmp_path, "scan")
    path.write_text("")
    with pytest.raises(BusyError):
        Claims(tmp_path).take("scan", "x")
    os.utime(path, (0, 0))
    Claims(tmp_path).take("scan", "x")


def test_claims_are_touched_while_their_process_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.02)
    claims = Claims(tmp_path)
    claims.take("scan")
    path = tmp_path / ".scan.claim"
    os.utime(path, (0, 0))
    until = time.monotonic() + 5.0
    while path.stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0


def test_a_result_whose_claim_was_lost_is_not_put_in_place(tmp_path: Path) -> None:
    """This process stood still so long that another has taken the scan over, and works on it."""

    class Asleep(NodulesJson):
        def __call__(self, result: Any, folder: Path) -> Path:
            _claim(tmp_path, "scan_1")
            return super().__call__(result, folder)

    with pytest.raises(OutputError, match=r"scan_1: expected a scan that this run alone searches.*Search it again"):
        ResultWriter(tmp_path, [Asleep()])(make_result())
    assert not (tmp_path / "scan_1").exists()
    assert (tmp_path / ".scan_1.claim").exists()


def test_a_result_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    class Late(NodulesJson):
        def __call__(self, result: Any, folder: Path) -> Path:
            path = super().__call__(dataclasses.replace(result, input_digest="other"), tmp_path / "scan_1")
            return super().__call__(result, folder) if path else folder

    (tmp_path / "scan_1").mkdir()
    with pytest.raises(OutputError, match=r"scan_1: expected nothing or a result of the same scan"):
        ResultWriter(tmp_path, [Late()])(make_result())
    assert json.loads((tmp_path / "scan_1" / "nodules.json").read_text())["input_digest"] == "other"


def test_what_is_hidden_is_no_result(tmp_path: Path) -> None:
    for name in (".scan.partial", ".scan.former"):
        (tmp_path / name).mkdir()
        NodulesJson()(make_result(), tmp_path / name)
    PredictionTable(tmp_path / "predictions.csv")
    assert _rows(tmp_path) == Counter()
    index = RunIndex(tmp_path)
    assert index.write() is None
