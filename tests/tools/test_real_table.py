"""The table of networks: thresholds from whole chests, nodules counted in all sections, masks of what was found."""

import json
from pathlib import Path

import pytest

from tools.real_table import real_table


def _evaluation(folder: Path, nodules: list[tuple[str, float]], found: list[tuple[str, float, float]]) -> None:
    """Tables of scans with nodules at the origin (name, diameter) and candidates (name, x, probability)."""
    folder.mkdir(parents=True)
    rows = [f"{name},0,0,0,{diameter}" for name, diameter in nodules]
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    (folder / "annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "annotations_excluded.csv").write_text(header + "\n")
    (folder / "seriesuids.csv").write_text("".join(f"{name}\n" for name, _ in nodules))
    rows = [f"{name},{x},0,0,{probability}" for name, x, probability in found]
    (folder / "predictions.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,probability", *rows]) + "\n")
    matched = [{"diameter_mm": diameter, "overlap": {"dice": 0.5 + diameter / 100}} for _, diameter in nodules]
    (folder / "outlines.json").write_text(json.dumps({"nodules": {"matched": matched}}))


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    folder = tmp_path / "mine"
    _evaluation(folder / "context", [("a", 8.0), ("b", 20.0)], [("a", 1.0, 0.6), ("b", 1.0, 0.2)])
    _evaluation(folder / "patches", [("c", 6.0)], [("c", 50.0, 0.9)])
    chests = [("QIN-1", 10.0), ("QIN-2", 10.0), ("NLST-1", 10.0)]
    false = [("QIN-1", 90.0, 0.5), ("QIN-2", 90.0, 0.3), ("NLST-1", 90.0, 0.8)]
    _evaluation(folder / "chests", chests, [("QIN-1", 0.0, 0.7), *false])
    return str(folder)


def _row(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]


def test_thresholds_come_from_the_chests_and_what_is_missed_counts_as_missed(evaluation: str) -> None:
    row = _row(real_table(evaluations=[evaluation]))

    # no false finding is allowed at 1/4 of three scans, one at 1/2: thresholds .8 and .5; at 4 all candidates count
    assert row == ["mine", *["0 of 3", "1 of 3", "2 of 3", "2 of 3", "2 of 3"], *["0 of 3", *["1 of 3"] * 4],
                   "0.613 (3), 0.570 (2)"]  # fmt: skip


def test_only_chests_with_the_given_beginning_count(evaluation: str) -> None:
    assert _row(real_table(evaluations=[evaluation], chests="QIN"))[1:6] == [
        "1 of 3",
        "1 of 3",
        "2 of 3",
        "2 of 3",
        "2 of 3",
    ]
