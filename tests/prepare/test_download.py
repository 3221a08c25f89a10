"""Downloads from a fake source: said before they start, stopped anywhere, started again, never half and unnoticed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.core.commands import OptionError
from scripts.prepare import download as module
from scripts.prepare.__main__ import main
from scripts.prepare.download import TEMPLATE, DownloadError, IdcSource, Series, fetch_all, plan_lines

CONTENT = b"DICM" * 100


def series(number: int, modality: str = "CT", files: int = 3) -> Series:
    patient = f"LIDC-IDRI-{number:04d}"
    return Series(patient, modality, f"1.2.{number}", files, files * len(CONTENT), "CC BY 3.0", "10.7937/x")


class LocalSource(IdcSource):
    """Writes files instead of transferring them; fails where it is told to."""

    def __init__(self, offered: Sequence[Series], fails_at: int = 0) -> None:
        self.offered, self.fails_at = list(offered), fails_at
        self.fetched: list[str] = []
        self.written = 0

    def series(self) -> list[Series]:
        return self.offered

    def fetch(self, wanted: Sequence[Series], target: Path) -> None:
        for one in wanted:
            self.fetched.append(one.uid)
            one.folder(target).mkdir(parents=True, exist_ok=True)
            for number in range(one.files):
                self.written += 1
                if self.written == self.fails_at:
                    (one.folder(target) / f"{number}.dcm").write_bytes(CONTENT[:2])
                    raise KeyboardInterrupt
                (one.folder(target) / f"{number}.dcm").write_bytes(CONTENT)


OFFERED = [series(1), series(1, "SEG", 1), series(2), series(3)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_transferred_before_it_is_agreed_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = LocalSource(OFFERED)
    fetch_all(source, tmp_path / "new", [], start=False)
    assert source.fetched == []
    assert not (tmp_path / "new").exists()
    assert "nothing is transferred without --yes" in caplog.text


def test_what_a_download_takes() -> None:
    offered = [Series("a", "CT", "1", 2, 9_000_000_000, "CC BY 3.0", "10.1/x"), series(2, "SR", 1)]
    lines = list(plan_lines(offered, offered[:1], 5_000_000_000))
    assert lines == [
        "CT        1 series of 1 patients,    9.000 GB, CC BY 3.0, https://doi.org/10.1/x",
        "SR        1 series of 1 patients,    0.000 GB, CC BY 3.0, https://doi.org/10.7937/x",
        "already there: 1 of 2 series",
        "to transfer: 1 series, 9.000 GB; free disk: 5.0 GB",
        "time, by the speed of your line: 24 min 0 s at 50 Mbit/s, 6 min 0 s at 200 Mbit/s, 1 min 12 s at 1000 Mbit/s",
    ]
    assert (
        "2 h 0 min at 50"
        in list(plan_lines([Series("a", "CT", "1", 2, 45_000_000_000, "", "")] * 2, offered[:1] * 5, 0))[-1]
    )


def test_everything_arrives_and_is_not_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fetch_all(LocalSource(OFFERED), tmp_path, [], start=True)
    assert len(files(tmp_path)) == 10
    assert "4 series transferred, all of them whole" in caplog.text
    again = LocalSource(OFFERED)
    fetch_all(again, tmp_path, [], start=True)
    assert again.fetched == []
    assert "everything is there" in caplog.text


@pytest.mark.parametrize("fails_at", [1, 3, 5, 10])
def test_a_download_stopped_anywhere_ends_in_the_same_files(fails_at: int, tmp_path: Path) -> None:
    fetch_all(LocalSource(OFFERED), tmp_path / "whole", [], start=True)
    with pytest.raises(KeyboardInterrupt):
        fetch_all(LocalSource(OFFERED, fails_at), tmp_path / "cut", [], start=True)
    again = LocalSource(OFFERED)
    fetch_all(again, tmp_path / "cut", [], start=True)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert len(again.fetched) < 4 or fails_at <= 3  # what was whole is not transferred again


def test_some_patients_to_begin_with(tmp_path: Path) -> None:
    source = LocalSource(OFFERED)
    fetch_all(source, tmp_path, ["LIDC-IDRI-0001"], start=True)
    assert source.fetched == ["1.2.1", "1.2.1"]
    with pytest.raises(OptionError, match=r"--patients: expected patients of the data set .* got LIDC-IDRI-9"):
        fetch_all(source, tmp_path, ["LIDC-IDRI-9"], start=True)


def test_too_little_disk_is_noticed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_bytes", lambda _: 1100)
    source = LocalSource([series(1)])
    with pytest.raises(DownloadError, match=r"expected 0\.0 GB of free disk, got 0\.0 GB; free some"):
        fetch_all(source, tmp_path, [], start=True)
    assert source.fetched == []


class LosingSource(LocalSource):
    """Loses a file of every series whose patient is named."""

    def __init__(self, offered: Sequence[Series], lost: Sequence[str]) -> None:
        super().__init__(offered)
        self.lost = lost

    def fetch(self, wanted: Sequence[Series], target: Path) -> None:
        super().fetch(wanted, target)
        for one in wanted:
            if one.patient in self.lost:
                (one.folder(target) / "0.dcm").unlink()


def test_a_series_that_does_not_arrive_whole_is_counted(tmp_path: Path) -> None:
    with pytest.raises(
        DownloadError,
        match="expected 4 series to arrive whole, 1 did not; check the network, then run the same command",
    ):
        fetch_all(LosingSource(OFFERED, ["LIDC-IDRI-0002"]), tmp_path, [], start=True)
    fetch_all(LocalSource(OFFERED), tmp_path, [], start=True)
    assert len(files(tmp_path)) == 10


def test_a_dead_line_ends_the_download_with_a_reason(tmp_path: Path) -> None:
    class DeadSource(LocalSource):
        def fetch(self, wanted: Sequence[Series], target: Path) -> None:
            raise RuntimeError("no route")

    with pytest.raises(
        DownloadError, match=r"expected 4 series to arrive whole, 4 did not \(no route\); check the network"
    ):
        fetch_all(DeadSource(OFFERED), tmp_path, [], start=True)


# --- the command ------------------------------------------------------------------------------------------------------


def test_luna16_s_archives_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--dataset", "luna16"]) == 0
    shown = capsys.readouterr().out
    assert all(f"subset{n}.zip" in shown for n in range(10))
    assert sum(int(line.split()[1]) for line in shown.splitlines() if line.startswith("subset")) == 888
    assert "CC BY 4.0" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "lidc"], "--output_dir: expected a folder for LIDC-IDRI, got nothing"),
        (["--dataset", "luna"], "--dataset: expected lidc or luna16, got luna"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["download", *words]) == 1
    assert message in caplog.text


def test_a_missing_client_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    assert main(["download", "--dataset", "lidc", "--output_dir", str(tmp_path)]) == 1
    assert "python -m pip install idc-index" in caplog.text


def test_the_client_is_told_where_a_series_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that idc-index fills is the one that is looked into afterwards."""
    calls: list[dict[str, Any]] = []

    class Client:
        def download_from_selection(self, **options: Any) -> None:
            calls.append(options)

    fake = ModuleType("idc_index")
    fake.IDCClient = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idc_index", fake)
    one = series(7)
    IdcSource().fetch([one], tmp_path)
    assert calls[0]["seriesInstanceUID"] == [one.uid]
    named = TEMPLATE.replace("%PatientID", one.patient).replace("%Modality", one.modality)
    assert Path(calls[0]["downloadDir"]) / named.replace("%SeriesInstanceUID", one.uid) == one.folder(tmp_path)


def test_the_index_in_the_package(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """What the Commons offers of LIDC-IDRI: 1018 CT series of 1010 patients, every reading as SEG and SR."""
    pytest.importorskip("idc_index_data", reason="idc-index is not installed")
    caplog.set_level("INFO")
    offered = IdcSource().series()
    counts = {kind: sum(one.modality == kind for one in offered) for kind in ("CT", "SEG", "SR")}
    assert counts["CT"] == 1018
    assert counts["SEG"] == counts["SR"] > 6000
    assert {one.licence for one in offered} == {"CC BY 3.0"}
    assert 1.2e11 < sum(one.size for one in offered) < 1.4e11
    assert main(["download", "--dataset", "lidc", "--output_dir", str(tmp_path), "--patients", "LIDC-IDRI-0001"]) == 0
    assert "CT        1 series of 1 patients" in caplog.text
    assert "nothing is transferred without --yes" in caplog.text
