"""The table of networks: thresholds from whole chests, nodules counted in all sections, masks of what was found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nibabel.affines import from_matvec

from scripts.core.files import write_csv, write_json
from scripts.core.labels import NODULE
from scripts.core.nifti import write_nifti
from tools.real_table import real_table

AROUND = from_matvec(np.eye(3), [-20.0] * 3)


def _evaluation(folder: Path, nodules: list[tuple[str, float]], found: list[tuple[str, float, float]]) -> None:
    """Tables of scans with nodules at the origin (name, diameter) and candidates (name, x, probability)."""
    folder.mkdir(parents=True)
    places = ("seriesuid", "coordX", "coordY", "coordZ")
    tables = {
        "annotations": [(*places, "diameter_mm"), *((name, 0, 0, 0, diameter) for name, diameter in nodules)],
        "annotations_excluded": [(*places, "diameter_mm")],
        "seriesuids": [(name,) for name, _ in nodules],
        "predictions": [(*places, "probability"), *((name, x, 0, 0, probability) for name, x, probability in found)],
    }
    for table, rows in tables.items():
        write_csv(folder / f"{table}.csv", rows)
    matched = [
        {"scan": name, "label": 1, "diameter_mm": diameter, "overlap": {"dice": 0.5 + diameter / 100}}
        for name, diameter in nodules
    ]
    write_json(folder / "masks.json", {"nodules": {"matched": matched}})


def _item(folder: Path, name: str) -> dict[str, Any]:
    """A scan with a nodule at the origin, 20 mm from every face: c is dense, others are faint; one reader marked b."""
    mask = np.pad(np.ones((4, 4, 4), dtype=np.uint8), ((18, 19),) * 3)
    hu = np.where(mask > 0, 0 if name == "c" else -600, -900).astype(np.int16)
    files = {
        key: str(write_nifti(folder / f"{name}-{key}.nii.gz", values, AROUND))
        for key, values in (("image", hu), ("mask", mask))
    }
    dice = None if name == "b" else 0.9
    return {"name": name, **files, "box": [[0, 0, 0, 9, 9, 9]], "label": [NODULE], "reader_dice": [dice]}


@pytest.fixture
def datalist(tmp_path: Path) -> str:
    sections = {"context": ("a", "b"), "patches": ("c",), "thick": ("c",), "thicker": ("c",)}
    lists = {section: [_item(tmp_path, name) for name in names] for section, names in sections.items()}
    return str(write_json(tmp_path / "datalist.json", lists))


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    folder = tmp_path / "mine"
    _evaluation(folder / "context", [("a", 8.0), ("b", 20.0)], [("a", 1.0, 0.6), ("b", 1.0, 0.2)])
    _evaluation(folder / "patches", [("c", 6.0)], [("c", 14.0, 0.9)])
    _evaluation(folder / "thick", [("c", 6.0)], [("c", 16.0, 0.9), ("c", 15.0, 0.5), ("c", 1.0, 0.4)])
    _evaluation(folder / "thicker", [("c", 6.0)], [("c", 1.0, 0.4)])
    chests = [("QIN-1", 10.0), ("QIN-2", 10.0), ("NLST-1", 10.0)]
    false = [("QIN-1", 90.0, 0.5), ("QIN-2", 90.0, 0.3), ("NLST-1", 90.0, 0.8)]
    _evaluation(folder / "chests", chests, [("QIN-1", 0.0, 0.7), *false])
    _evaluation(folder / "thicker_chests", chests, [("NLST-1", 0.0, 0.2), ("NLST-1", 90.0, 0.9)])
    _evaluation(folder / "cubes", chests[:2], [("QIN-1", 0.0, 0.7), ("QIN-1", 40.0, 0.8), ("QIN-2", 0.0, 0.3)])
    return str(folder)


def _row(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]


def test_thresholds_come_from_the_chests_and_what_is_missed_counts_as_missed(evaluation: str, datalist: str) -> None:
    row = _row(real_table(evaluations=[evaluation], datalist=datalist))

    assert row == [
        # no false finding is allowed at 1/4 of three scans, one at 1/2: thresholds .8 and .5; at 4 all candidates count
        *("mine", "0 of 3", "1 of 3", "2 of 3", "2 of 3", "2 of 3"),
        *("0 of 0", "0 of 1", "1 of 1", "1 of 1"),  # b is faint and large, a faint and small
        *("0 of 3", "1 of 3", "1 of 3", "1 of 3", "1 of 3"),
        *("0 of 3", "1 of 3", "1 of 3", "1 of 3", "1 of 3"),
        *("0 of 2", "0 of 2", "2 of 2", "2 of 2"),
        *("0 of 1", "0 of 1", "0 of 1", "0 of 1"),
        *("0 of 1", "0 of 1", "1 of 1", "1 of 1"),
        *("1 of 1", "1 of 1", "1 of 1", "1 of 1"),
        *("0.613 (3), 0.570 (2)", "0.580 (1), 0.580 (1)", "0.900 (1), 0.900 (1)"),
    ]


def test_masks_are_compared_for_nodules_that_every_network_found(
    evaluation: str, datalist: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(evaluation, other)
    results = json.loads((other / "context" / "masks.json").read_text())
    results["nodules"]["matched"].pop()  # the other network did not find b, of 20 mm
    (other / "context" / "masks.json").write_text(json.dumps(results))
    table = real_table(evaluations=[evaluation, str(other)], datalist=datalist).splitlines()
    assert [line.split("|")[-4].strip() for line in table[2:]] == ["0.570 (2), 0.570 (2)"] * 2


def test_only_chests_with_the_given_beginning_count(evaluation: str, datalist: str) -> None:
    row = _row(real_table(evaluations=[evaluation], datalist=datalist, chests="QIN"))
    assert row[1:6] == ["1 of 3", "1 of 3", "2 of 3", "2 of 3", "2 of 3"]
