"""From a LUNA16 download to scores, as in docs/data.md: folds, outlines, training, inference, evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import SimpleITK as sitk

from scripts.evaluate import cross_validation
from scripts.evaluate.__main__ import main as evaluate
from scripts.phantom.command import phantom
from scripts.prepare.__main__ import main as prepare
from scripts.read.datalist import load_datalist
from tests.bundle import INFERENCE, QUICK, ROOT, run, typed
from tests.luna16_files import write_csv

UIDS = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{n}" for n in range(3)]


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic chests in LUNA16's files, one in each of three subsets, and their masks in LIDC's."""
    folder = tmp_path_factory.mktemp("download")
    phantom(output_dir=str(folder / "phantom"), scans=3, seed=11, format="mhd", scale=0.4, validation_fraction=0.0)
    items = json.loads((folder / "phantom" / "datalist.json").read_text(encoding="utf-8"))["training"]
    rows, outlined = [], []
    for number, (uid, item) in enumerate(zip(UIDS, items, strict=True)):
        place = folder / "LUNA16" / f"subset{number}"
        place.mkdir(parents=True)
        sitk.WriteImage(sitk.ReadImage(str(folder / "phantom" / item["image"])), str(place / f"{uid}.mhd"))
        rows += [(uid, *box[:4]) for box in item["box"]]
        outlined.append({"name": uid, "image": item["image"], "mask": item["mask"]})
    write_csv(folder / "LUNA16" / "annotations.csv", rows)
    (folder / "phantom" / "datalist.json").write_text(json.dumps({"training": outlined}), encoding="utf-8")
    return folder


def here(words: list[str], *, cwd: Path, check: bool) -> subprocess.CompletedProcess[str]:
    """In the place of ``subprocess.run``: what a fold starts runs in this process, from the same folder."""
    assert words[:4] == [sys.executable, "-m", "monai.bundle", "run"]
    assert (cwd, check) == (ROOT, False)
    return typed(*words[4:])


def test_from_the_download_to_pooled_scores(download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_validation, "subprocess", SimpleNamespace(run=here))
    folds = tmp_path / "folds"
    assert prepare(["luna16", "--luna16_dir", str(download / "LUNA16"), "--output_dir", str(folds)]) == 0
    lists = [str(folds / f"dataset_fold{n}.json") for n in range(3)]
    lidc = ["--lidc", str(download / "phantom"), "--output_dir", str(folds), "--strict"]
    assert prepare(["luna16_masks", "--datalists", *lists, *lidc]) == 0
    trained = load_datalist(lists[0], "training")
    with_nodules = {item["name"] for item in trained if item["box"]}
    assert [item["name"] for item in trained if "mask" in item] == [uid for uid in UIDS[1:] if uid in with_nodules]

    runs = tmp_path / "runs"
    chosen = {"dataset_dir": tmp_path, "max_epochs": 1} | {k: v for k, v in QUICK.items() if k != "val_interval"}
    settings = [f"{name}={value}" for name, value in chosen.items()]
    options = ["--datalists", *lists[:2], "--output_dir", str(runs), "--resamples", "0"]
    assert evaluate(["cross_validate", *options, "--settings", *settings]) == 0
    pooled = json.loads((runs / "all_folds" / "froc.json").read_text(encoding="utf-8"))["pooled"]
    assert pooled["scans"] == 2
    assert {name: fold["scans"] for name, fold in pooled["folds"].items()} == {"dataset_fold0": 1, "dataset_fold1": 1}
    weights = runs / "dataset_fold0" / "model.pt"
    written = {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")}
    assert evaluate(["cross_validate", *options]) == 1  # other settings
    assert evaluate(["cross_validate", *options, "--settings", *settings]) == 0  # everything is there
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")} == written

    results = [str(runs / f"dataset_fold{n}" / "scores" / "predictions.csv") for n in range(2)]
    truth = ["--annotations", str(download / "LUNA16" / "annotations.csv")]
    scans = ["--series_uids", str(runs / "all_folds" / "seriesuids.csv")]
    outside = ["--pool", "--resamples", "0", "--output_dir", str(tmp_path / "pooled"), "--folds", *lists]
    assert evaluate(["luna16", "--results", *results, *truth, *scans, *outside]) == 0
    again = json.loads((tmp_path / "pooled" / "froc.json").read_text(encoding="utf-8"))["pooled"]
    assert (again["cpm"], again["nodules"]) == (pooled["cpm"], pooled["nodules"])

    scan = download / "LUNA16" / "subset0" / f"{UIDS[0]}.mhd"
    run("inference", INFERENCE, input=scan, output_dir=tmp_path / "out", checkpoint=weights)
    assert (tmp_path / "out" / UIDS[0] / "nodules.json").is_file()
