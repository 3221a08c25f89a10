"""The readings in docs/readings keep the form that the evaluation of the lung search counts on."""

from __future__ import annotations

import csv
import math
from collections import Counter

import pytest

from tests.bundle import ROOT

READINGS = ROOT / "docs" / "readings"
POSITION = ("x_lps_mm", "y_lps_mm", "z_lps_mm")
KINDS = {"lung", "lesion_in_lung", "consolidation", "trachea", "bowel", "soft_tissue", "outside"}
NEEDED_KINDS = {"lung", "trachea", "bowel", "soft_tissue", "outside"}  # in every scan
SCANS = 14
MIN_POINTS = 40  # in each scan


def rows_of(name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file of readings that has these columns in this order, and positions in all rows."""
    with (READINGS / name).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        assert tuple(reader.fieldnames or ()) == columns
        rows = list(reader)
    assert all(len(row) == len(columns) and None not in row.values() for row in rows)
    assert all(math.isfinite(float(row[axis])) for row in rows for axis in POSITION)
    return rows


def test_points_of_the_lung_search_are_whole() -> None:
    rows = rows_of("lung_points.csv", ("name", *POSITION, "kind", "remark"))
    points = Counter(row["name"] for row in rows)
    assert len(points) == SCANS
    assert min(points.values()) >= MIN_POINTS
    assert {row["kind"] for row in rows} <= KINDS
    assert all({row["kind"] for row in rows if row["name"] == name} >= NEEDED_KINDS for name in points)
    assert len({(row["name"], *(float(row[axis]) for axis in POSITION)) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "verdicts", "least"),
    [
        (
            "findings_0.3.0.csv",
            {"nodule": 24, "doubt": 15, "false, in the lungs": 13, "false, outside the lungs": 41},
            0.5,
        ),
        ("findings_further.csv", {"nodule": 2, "doubt": 35, "false, in the lungs": 68}, 0.1),
        ("findings_0.4.0.csv", {"nodule": 26, "doubt": 19, "false, in the lungs": 15}, 0.1),
        ("findings_0.5.0.csv", {"nodule": 26, "doubt": 22, "false, in the lungs": 18}, 0.1),
        ("findings_0.6.0.csv", {"nodule": 25, "doubt": 18, "false, in the lungs": 23}, 0.1),
        ("findings_0.7.0.csv", {"nodule": 25, "doubt": 18, "false, in the lungs": 17}, 0.1),
        ("findings_0.8.0.csv", {"nodule": 24, "doubt": 14, "false, in the lungs": 17}, 0.1),
    ],
)
def test_findings_carry_the_verdicts_that_the_page_counts(name: str, verdicts: dict[str, int], least: float) -> None:
    rows = rows_of(name, ("name", *POSITION, "diameter_mm", "probability", "verdict"))
    assert Counter(row["verdict"] for row in rows) == verdicts
    assert all(float(row["diameter_mm"]) > 0 and least <= float(row["probability"]) <= 1 for row in rows)
    page = (READINGS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{verdict}` ({count})" in page for verdict, count in verdicts.items())
