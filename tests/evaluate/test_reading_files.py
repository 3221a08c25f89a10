"""The readings in docs/readings keep the form that the evaluation of the lung search counts on."""

from __future__ import annotations

import csv
import math
from collections import Counter

import pytest

from tests.bundle import ROOT
from tools.readings import verdict_of

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
    ("name", "further", "verdicts"),
    [
        (
            "read_findings.csv",
            (),
            {"nodule": 27, "doubt": 55, "false, in the lungs": 93, "false, outside the lungs": 41},
        ),
        ("released_findings.csv", ("probability",), {"nodule": 24, "doubt": 14, "false, in the lungs": 17}),
    ],
)
def test_findings_carry_the_verdicts_that_the_page_counts(
    name: str, further: tuple[str, ...], verdicts: dict[str, int]
) -> None:
    rows = rows_of(name, ("name", *POSITION, "diameter_mm", *further, "verdict"))
    assert Counter(row["verdict"] for row in rows) == verdicts
    assert all(float(row["diameter_mm"]) > 0 and 0.1 <= float(row.get("probability", "0.1")) <= 1 for row in rows)
    page = (READINGS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{verdict}` ({count})" in page for verdict, count in verdicts.items())


def test_released_findings_have_the_verdict_of_what_was_read() -> None:
    read = rows_of("read_findings.csv", ("name", *POSITION, "diameter_mm", "verdict"))
    for found in rows_of("released_findings.csv", ("name", *POSITION, "diameter_mm", "probability", "verdict")):
        assert verdict_of(found["name"], [float(found[axis]) for axis in POSITION], read) == found["verdict"]
