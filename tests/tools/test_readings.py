"""Findings keep the verdict of what was read at their place; what nobody read is drawn; the rest is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.core.files import read_csv, write_csv
from scripts.core.nifti import write_nifti
from tools import readings as module
from tools.readings import COLUMNS, by_probability, by_threshold, poisson_interval, readings

READ = [
    ("one", 20, 20, 20, 4, "nodule"),
    ("one", 30, 20, 20, 12, "false, in the lungs"),
    ("two", 20, 20, 20, 9, "doubt"),
]


def _row(probability: float, verdict: str) -> dict[str, str]:
    return dict(zip(COLUMNS, ["one", "0", "0", "0", "5", f"{probability}", verdict], strict=True))


def _cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()[2:]]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a scan of 40 mm with findings (x LPS mm, probability) near what was read, and elsewhere."""
    write_csv(tmp_path / "read_findings.csv", [("name", *COLUMNS[1:5], "verdict"), *READ])
    monkeypatch.setattr(module, "READINGS", tmp_path / "read_findings.csv")
    folder = tmp_path / "results" / "one"
    folder.mkdir(parents=True)
    found = [(23.9, 0.95), (35.9, 0.5), (24.0, 0.3), (7.0, 0.2)]
    nodules = [{"centre_lps_mm": [x, 20.0, 20.0], "diameter_mm": 6.0, "probability": p} for x, p in found]
    (folder / "nodules.json").write_text(json.dumps({"nodules": nodules}))
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    hu = np.random.default_rng(0).integers(-900, 0, (40, 40, 40), dtype=np.int16)
    mask = np.zeros(hu.shape, np.uint8)
    mask[5:9, 18:22, 18:22] = 4
    write_nifti(tmp_path / "one.nii.gz", hu, to_ras)
    write_nifti(folder / "mask.nii.gz", mask, to_ras)
    return tmp_path


def test_a_finding_has_the_verdict_of_what_was_read_within_its_radius(results: Path) -> None:
    output = results / "out"
    output.mkdir()
    (output / "unread-2.png").touch()  # of a run with more to read
    rows = readings(results=[str(results / "results")], images=str(results), output_dir=str(output))
    assert [row["verdict"] for row in rows] == ["nodule", "false, in the lungs", "unread", "unread"]
    assert [row for _, row in read_csv(output / "findings.csv")] == rows
    assert {path.name for path in output.iterdir()} == {"counts.md", "findings.csv", "reliability.png", "unread-1.png"}
    assert "| 0.5 " in (output / "counts.md").read_text()


def test_results_that_are_not_there_are_missed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected results of an inference"):
        readings(results=[str(tmp_path)], images="", output_dir=str(tmp_path / "out"))


def test_counts_by_threshold_and_probability() -> None:
    rows = [_row(0.1, "nodule"), _row(0.3, "nodule"), _row(0.299, "doubt"), _row(1.0, "nodule")]
    rows += [_row(0.9, "false, in the lungs"), _row(0.95, "unread"), _row(0.6, "false, outside the lungs")]
    first, *_, last = _cells(by_threshold(rows, scans=2))
    assert (first, last[:4]) == (["0.1", "3", "1", "2", "1.00 (0.12–3.61)"], ["0.9", "1", "0", "1"])
    first, second, *_, last = _cells(by_probability(rows))
    assert (first, second) == (["0.1–0.3", "1", "1", "0"], ["0.3–0.5", "1", "0", "0"])
    assert last == ["0.9–1", "1", "0", "1"]


def test_intervals_are_those_of_the_poisson_tables() -> None:
    assert [*poisson_interval(0), *poisson_interval(6)] == pytest.approx([0.0, 3.689, 2.202, 13.059], abs=1e-3)
