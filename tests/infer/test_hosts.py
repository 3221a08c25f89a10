"""The inference graph inside other programs, with stand-ins for its components; the programs are in tests/ecosystem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from scripts.infer import PreprocessRequestd, ScanFromArrayd, ScanSearch
from scripts.read.discovery import find_scans
from scripts.read.scan import ScanError
from tests.dicom_files import write_series
from tests.infer.test_run import Remarking, _searched, looks_like


def test_one_scan_gives_one_result_with_what_the_inferer_remarked(tmp_path: Path) -> None:
    searched = _searched(tmp_path / "scan")
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.eye(4, dtype=torch.float64))
    cells = {"image": image, "lung_distance_mm": image, "lung_parts": image.to(torch.uint8)}
    search = ScanSearch(
        preprocessing=lambda item: {**searched, **item, **cells},
        network=nn.Identity(),
        inferer=Remarking(),
        postprocessing=lambda item: item,
        device="cpu",
        model={"name": "compact"},
        settings={"threshold": 0.5},
    )
    for call in (1, 2):
        result = search(tmp_path / "scan")
        assert result.notes == (f"call {call}",)
        assert (result.name, result.model, result.settings) == (searched["name"], search.model, search.settings)
    (tmp_path / "several").mkdir()
    several = looks_like(tmp_path / "several", "ab")
    for attempt in (lambda: search(several), lambda: PreprocessRequestd(lambda item: item)({"image": several})):
        with pytest.raises(ScanError, match=r"several: expected one scan, got 2 \(a, b\); name one of them"):
            attempt()


def test_a_request_names_one_scan_and_keeps_its_other_keys(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((4, 4, 2), np.int16), np.eye(4))
    uid = find_scans(tmp_path)[0]["name"]

    def preprocess(item: dict[str, Any]) -> dict[str, Any]:
        return {"name": item["name"], "image": MetaTensor(torch.zeros(1, 2, 2, 2)), "lung_distance_mm": "distance"}

    item = PreprocessRequestd(preprocess, series=uid)({"image": tmp_path, "device": "cpu"})
    assert (item["name"], item["device"]) == (uid, "cpu")
    assert item["image"].meta["lung_distance_mm"] == "distance"
    with pytest.raises(ScanError, match=r"expected series '9\.9'"):
        PreprocessRequestd(preprocess, series="9.9")({"image": tmp_path})


def test_a_volume_in_memory_is_rounded_clipped_to_16_bits_and_in_its_place_and_one_with_gaps_refused() -> None:
    given: list[Any] = []

    def preprocess(item: dict[str, Any]) -> dict[str, Any]:
        given.append(item["image"])
        return {**item, "lung_distance_mm": "distance", "scan": item["image"]}

    search = ScanFromArrayd("ct", preprocess)
    values = torch.tensor([-700.6, -700.4, 40.6, 7e4, -7e4, 3.0])
    item = search({"ct": MetaTensor(values.reshape(1, 3, 2), affine=2 * torch.eye(4))})
    (scan,) = given
    assert (scan.dtype, scan.shape) == (torch.int16, (1, 1, 3, 2))
    np.testing.assert_array_equal(scan.as_tensor().ravel(), [-701, -700, 41, 32767, -32768, 3])
    np.testing.assert_array_equal(scan.affine, 2 * np.eye(4))
    assert item["ct"] is scan
    assert (item["lung_distance_mm"], set(item["kept"])) == ("distance", {"lung_distance_mm", "scan"})
    with pytest.raises(ScanError, match="expected finite HU"):
        search({"ct": MetaTensor(torch.tensor([0.0, float("nan")]).reshape(1, 1, 2), affine=torch.eye(4))})
