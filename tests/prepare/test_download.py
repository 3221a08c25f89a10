"""Downloads from a fake source: said before they start, stopped anywhere, started again, never half and unnoticed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from scripts.core.errors import UserError
from scripts.prepare import download as module
from scripts.prepare.__main__ import main
from scripts.prepare.download import TEMPLATE, DownloadError, IdcSource, Series, fetch_all, plan_lines
from tests.interruption import contents

CONTENT = b"DICM" * 100


def series(number: int, modality: str = "CT", files: int = 3) -> Series:
    size = files * len(CONTENT)
    return Series(f"LIDC-IDRI-{number:04d}", modality, f"1.2.{number}", files, size, "CC BY 3.0", "10.7937/x")


class LocalSource(IdcSource):
    """Writes files instead of transferring them; fails where it is told to."""

    def __init__(self, offered: Sequence[Series], *, fails_at: int = 0, loses: str = "", error: str = "") -> None:
        self.offered, self.fails_at, self.loses, self.error = list(offered), fails_at, loses, error
        self.fetched: list[str] = []

    def series(self) -> list[Series]:
        return self.offered

    def fetch(self, wanted: Sequence[Series], target: Path) -> None:
        if self.error:
            raise RuntimeError(self.error)
        for one in wanted:
            self.fetched.append(one.uid)
            one.folder(target).mkdir(parents=True, exist_ok=True)
            for number in range(one.patient == self.loses, one.files):  # the first file may get lost
                self.fails_at -= 1
                (one.folder(target) / f"{number}.dcm").write_bytes(CONTENT[:2] if self.fails_at == 0 else CONTENT)
                if self.fails_at == 0:
                    raise KeyboardInterrupt


OFFERED = [series(1), series(1, "SEG", 1), series(2), series(3)]


def test_nothing_is_transferred_before_it_is_agreed_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = LocalSource(OFFERED)
    fetch_all(source, tmp_path / "new", [], start=False)
    assert (source.fetched, (tmp_path / "new").exists()) == ([], False)
    assert "nothing is transferred without --yes" in caplog.text


def test_what_a_download_takes() -> None:
    offered = [Series("a", "CT", "1", 2, 9_000_000_000, "CC BY 3.0", "10.1/x"), series(2, "SR", 1)]
    assert list(plan_lines(offered, offered[:1], 5_000_000_000)) == [
        "CT        1 series of 1 patients,    9.000 GB, CC BY 3.0, https://doi.org/10.1/x",
        "SR        1 series of 1 patients,    0.000 GB, CC BY 3.0, https://doi.org/10.7937/x",
        "already there: 1 of 2 series",
        "to transfer: 1 series, 9.000 GB; free disk: 5.0 GB",
        "time, by connection speed: 24 min 0 s at 50 Mbit/s, 6 min 0 s at 200 Mbit/s, 1 min 12 s at 1000 Mbit/s",
    ]


def test_everything_arrives_and_is_not_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fetch_all(LocalSource(OFFERED), tmp_path, [], start=True)
    assert len(contents(tmp_path)) == 10
    assert "4 series transferred, all of them complete" in caplog.text
    fetch_all(LocalSource(OFFERED, error="asked again"), tmp_path, [], start=True)
    assert "nothing to transfer" in caplog.text


@pytest.mark.parametrize("fails_at", [1, 3, 5, 10])
def test_a_download_stopped_anywhere_ends_in_the_same_files(fails_at: int, tmp_path: Path) -> None:
    again = LocalSource(OFFERED)
    fetch_all(LocalSource(OFFERED), tmp_path / "whole", [], start=True)
    with pytest.raises(KeyboardInterrupt):
        fetch_all(LocalSource(OFFERED, fails_at=fails_at), tmp_path / "cut", [], start=True)
    fetch_all(again, tmp_path / "cut", [], start=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(again.fetched) < 4 or fails_at <= 3  # what was whole is not transferred again


def test_copies_of_a_series_may_differ_by_a_few_bytes_a_file(tmp_path: Path) -> None:
    one = series(1, files=20)
    LocalSource([one]).fetch([one], tmp_path)
    for extra, is_whole in ((0, True), (6, True), (-6, True), (65, False)):
        assert replace(one, size=one.size + 20 * extra).is_whole(tmp_path) is is_whole


def test_some_patients_to_begin_with(tmp_path: Path) -> None:
    source = LocalSource(OFFERED)
    fetch_all(source, tmp_path, ["LIDC-IDRI-0001"], start=True)
    assert source.fetched == ["1.2.1", "1.2.1"]


@pytest.mark.parametrize(
    ("patients", "message"),
    [
        (["LIDC-IDRI-9"], r"--patients: expected patients of the data set .* got LIDC-IDRI-9"),
        ([], r"expected 0\.0 GB of free disk, got 0\.0 GB; free some"),
    ],
    ids=["unknown patient", "too little disk"],
)
def test_what_cannot_be_downloaded_is_noticed_before_the_start(
    patients: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_free_bytes", lambda _: 1100)
    source = LocalSource([series(1)])
    with pytest.raises(UserError, match=message):
        fetch_all(source, tmp_path, patients, start=True)
    assert source.fetched == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"loses": "LIDC-IDRI-0002"}, "got 1 incomplete; check the network and run the same command"),
        ({"error": "no route"}, r"got 4 incomplete \(no route\); check the network"),
    ],
)
def test_series_that_do_not_arrive_whole_are_counted(fault: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"expected 4 complete series, {message}"):
        fetch_all(LocalSource(OFFERED, **fault), tmp_path, [], start=True)
    fetch_all(LocalSource(OFFERED), tmp_path, [], start=True)
    assert len(contents(tmp_path)) == 10


# --- the command ------------------------------------------------------------------------------------------------------


def test_luna16_s_archives_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "--dataset", "luna16"]) == 0
    shown = capsys.readouterr().out
    scans = {line.split()[0]: int(line.split()[1]) for line in shown.splitlines() if line.startswith("subset")}
    assert (list(scans), sum(scans.values())) == ([f"subset{n}.zip" for n in range(10)], 888)
    assert "CC BY 4.0" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "lidc"], "--output_dir: expected a folder for LIDC-IDRI, got nothing"),
        (["--dataset", "luna"], "--dataset: expected lidc or luna16, got luna"),
        (["--dataset", "lidc", "--output_dir", "new"], "python -m pip install idc-index"),
    ],
)
def test_bad_options_and_a_missing_client_are_named(
    words: list[str], message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    assert main(["download", *words]) == 1
    assert message in caplog.text


def test_the_client_is_told_where_a_series_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that idc-index fills is the one that is looked into afterwards."""
    client, one = Mock(), series(7)
    monkeypatch.setitem(sys.modules, "idc_index", client)
    IdcSource().fetch([one], tmp_path)
    options = client.IDCClient.return_value.download_from_selection.call_args.kwargs
    named = TEMPLATE.replace("%PatientID", one.patient).replace("%Modality", one.modality)
    filled = Path(options["downloadDir"]) / named.replace("%SeriesInstanceUID", one.uid)
    assert (options["seriesInstanceUID"], filled) == ([one.uid], one.folder(tmp_path))


def test_the_index_in_the_package(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """What the Commons offers of LIDC-IDRI: 1018 CT series of 1010 patients, every reading as SEG and SR."""
    pytest.importorskip("idc_index_data", reason="idc-index is not installed")
    caplog.set_level("INFO")
    offered = IdcSource().series()
    counts = {kind: sum(one.modality == kind for one in offered) for kind in ("CT", "SEG", "SR")}
    assert (counts["CT"], counts["SEG"]) == (1018, counts["SR"])
    assert counts["SR"] > 6000
    assert {one.licence for one in offered} == {"CC BY 3.0"}
    assert 1.2e11 < sum(one.size for one in offered) < 1.4e11
    assert main(["download", "--dataset", "lidc", "--output_dir", str(tmp_path), "--patients", "LIDC-IDRI-0001"]) == 0
    assert "CT        1 series of 1 patients" in caplog.text
    assert "nothing is transferred without --yes" in caplog.text
