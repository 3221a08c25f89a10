"""LIDC-IDRI's files go the whole way: DICOM and XML, masks and folds, training, evaluation, inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from scipy import ndimage

from scripts.phantom.command import phantom
from scripts.prepare.lidc.command import lidc
from tests.bundle import EVALUATE, INFERENCE, TRAIN, command, options, run, succeeded
from tests.lidc_files import Outlines, Ring, Session, xml_text

BRIEF = {"crop_size": 48, "batch_size": 2, "epoch_length": 2, "max_epochs": 1, "val_interval": 1}
FOLDS = 2
PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0003", "LIDC-IDRI-0004")  # the hash puts them into both folds


def outline(inside: npt.NDArray[np.bool_]) -> Ring:
    """The border of a star-shaped region ``[I, J]``, in the order of a walk around its middle."""
    border = np.argwhere(ndimage.binary_dilation(inside) & ~inside)
    way = border - np.argwhere(inside).mean(axis=0)
    return [(int(i), int(j)) for i, j in border[np.argsort(np.arctan2(way[:, 1], way[:, 0]))]]


def readers(mask: npt.NDArray[np.integer[Any]]) -> list[Session]:
    """Four readers who all saw the same nodules."""
    nodules = []
    for label in range(1, int(mask.max()) + 1):
        slices = [k for k in range(mask.shape[2]) if (mask[:, :, k] == label).any()]
        nodules.append(Outlines([(k, outline(mask[:, :, k] == label), True) for k in slices]))
    return [Session(nodules)] * 4


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three synthetic chests as The Cancer Imaging Archive would give them."""
    made, folder = tmp_path_factory.mktemp("phantom"), tmp_path_factory.mktemp("download")
    phantom(str(made), scans=len(PATIENTS), seed=11, format="dicom", scale=0.4)
    for number, patient in enumerate(PATIENTS):
        target = folder / patient / "study" / "series"
        target.mkdir(parents=True)
        slices = [pydicom.dcmread(path) for path in sorted((made / f"images/phantom_{number:04d}").glob("*.dcm"))]
        for k, dataset in enumerate(slices):
            dataset.PatientID = patient
            dataset.save_as(target / f"{k:03d}.dcm")
        mask = np.asarray(nib.Nifti1Image.from_filename(made / f"masks/phantom_{number:04d}.nii.gz").dataobj)
        places = [(str(one.SOPInstanceUID), float(one.ImagePositionPatient[2])) for one in slices]
        text = xml_text(readers(mask), series_uid=str(slices[0].SeriesInstanceUID), places=places)
        (target / "158.xml").write_text(text, encoding="utf-8")
        np.save(folder / f"{patient}.npy", mask)
    return folder


def test_a_download_is_prepared_trained_on_evaluated_and_searched(download: Path, tmp_path: Path) -> None:
    lidc(str(download), str(tmp_path / "lidc"), folds=FOLDS, strict=True)
    datalist = tmp_path / "lidc/dataset_fold1.json"
    parts = json.loads(datalist.read_text(encoding="utf-8"))
    items = parts["training"] + parts["validation"]
    assert {item["patient"] for item in items} == set(PATIENTS)
    for item in items:
        found = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "lidc" / item["mask"]).dataobj) > 0
        truth = np.load(download / f"{item['patient']}.npy") > 0
        assert len(item["box"]) == np.load(download / f"{item['patient']}.npy").max()
        assert abs(np.count_nonzero(found) - np.count_nonzero(truth)) <= 0.1 * np.count_nonzero(truth)
    lists = str([str(datalist)])
    settings = options({"datalists": lists, "output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache", **BRIEF})
    succeeded(command("training", "--config_file", TRAIN, *settings))  # with worker processes, as is the default
    weights = tmp_path / "run/model.pt"
    run("evaluating", TRAIN, EVALUATE, datalists=lists, output_dir=tmp_path / "scores", checkpoint=weights, resamples=0)
    scores = json.loads((tmp_path / "scores/froc.json").read_text(encoding="utf-8"))["predictions"]
    assert scores["scans"] == len(parts["validation"])
    assert scores["nodules"] == sum(len(item["box"]) for item in parts["validation"])
    scan = parts["validation"][0]["image"]
    run("inference", INFERENCE, input=scan, output_dir=tmp_path / "out", checkpoint=weights)
    assert list((tmp_path / "out").rglob("nodules.json"))
