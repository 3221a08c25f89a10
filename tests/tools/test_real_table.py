"""The table of networks: thresholds from whole chests, nodules counted in all sections, masks of what was found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.core.files import write_json
from scripts.core.labels import NODULE
from scripts.core.nifti import write_nifti
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
    matched = [
        {"scan": name, "label": 1, "diameter_mm": diameter, "overlap": {"dice": 0.5 + diameter / 100}}
        for name, diameter in nodules
    ]
    (folder / "masks.json").write_text(json.dumps({"nodules": {"matched": matched}}))


@pytest.fixture
def datalist(tmp_path: Path) -> str:
    """Scans a and b with a faint nodule and c with a dense one, all at the origin, 20 mm from every face."""
    lists = {}
    around = np.eye(4)
    around[:3, 3] = -20.0
    for section, names in {"context": ("a", "b"), "patches": ("c",), "thick": ("c",)}.items():
        lists[section] = []
        for name in names:
            hu, mask = np.full((41, 41, 41), -900, dtype=np.int16), np.zeros((41, 41, 41), dtype=np.uint8)
            mask[18:22, 18:22, 18:22] = 1
            hu[mask > 0] = 0 if name == "c" else -600
            files = {key: str(tmp_path / f"{name}-{key}.nii.gz") for key in ("image", "mask")}
            for key, values in (("image", hu), ("mask", mask)):
                write_nifti(Path(files[key]), values, around)
            lists[section].append({"name": name, **files, "box": [[0, 0, 0, 9, 9, 9]], "label": [NODULE]})
            lists[section][-1]["reader_dice"] = [None if name == "b" else 0.9]
    return str(write_json(tmp_path / "datalist.json", lists))


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    folder = tmp_path / "mine"
    _evaluation(folder / "context", [("a", 8.0), ("b", 20.0)], [("a", 1.0, 0.6), ("b", 1.0, 0.2)])
    _evaluation(folder / "patches", [("c", 6.0)], [("c", 14.0, 0.9)])
    _evaluation(folder / "thick", [("c", 6.0)], [("c", 16.0, 0.9), ("c", 15.0, 0.5), ("c", 1.0, 0.4)])
    chests = [("QIN-1", 10.0), ("QIN-2", 10.0), ("NLST-1", 10.0)]
    false = [("QIN-1", 90.0, 0.5), ("QIN-2", 90.0, 0.3), ("NLST-1", 90.0, 0.8)]
    _evaluation(folder / "chests", chests, [("QIN-1", 0.0, 0.7), *false])
    _evaluation(folder / "cubes", chests[:2], [("QIN-1", 0.0, 0.7), ("QIN-1", 40.0, 0.8), ("QIN-2", 0.0, 0.3)])
    return str(folder)


def _row(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]


def test_thresholds_come_from_the_chests_and_what_is_missed_counts_as_missed(evaluation: str, datalist: str) -> None:
    row = _row(real_table(evaluations=[evaluation], datalist=datalist))

    # no false finding is allowed at 1/4 of three scans, one at 1/2: thresholds .8 and .5; at 4 all candidates count
    assert row[:6] == ["mine", "0 of 3", "1 of 3", "2 of 3", "2 of 3", "2 of 3"]
    assert row[6:10] == ["0 of 0", "0 of 1", "1 of 1", "1 of 1"]  # b is faint and large, a faint and small
    assert row[10:15] == ["0 of 3", *["1 of 3"] * 4]
    assert row[15:19] == ["0 of 2", "0 of 2", "2 of 2", "2 of 2"]
    assert row[19:23] == ["0 of 1"] * 4
    assert row[23:27] == ["0 of 1", "0 of 1", "1 of 1", "1 of 1"]
    assert row[27:] == ["0.613 (3), 0.570 (2)", "0.580 (1), 0.580 (1)", "0.900 (1), 0.900 (1)"]  # one reader marked b


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
