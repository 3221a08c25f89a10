"""The cache of preprocessed scans: what it keeps, when it forgets, and filling it whatever happens in between."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from scripts.core.labels import NODULE
from scripts.core.processes import MACHINE, is_gone
from scripts.preprocess import CropToLungsd, LungSearch, ScaleHud
from scripts.read.scan import ScanError
from scripts.train.cache import (
    CachedScans,
    CachedToTensorsd,
    CacheError,
    ScanCache,
    fill_cache,
    filling,
    workers_of_rank,
)
from scripts.train.cache import fingerprint as code
from scripts.train.cache.fingerprint import fingerprint
from scripts.train.cache.scans import _voxel_mm
from tests.bundle import ROOT
from tests.interruption import contents

# --- CachedScans

SHAPE = (9, 10, 11)


class Preprocessing:
    """Gives what an item asks for, and counts."""

    def __init__(self, settings: str = "1 mm") -> None:
        self.settings, self.calls = settings, 0

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        image = torch.arange(np.prod(SHAPE), dtype=torch.float32).reshape(1, *SHAPE) + 0.4
        image[0, 0, 0, :2] = torch.tensor([-40000.0, 40000.0])
        # Coarse voxels of 3 fine ones, at 1, 4 and 7: the distance grows by 3 mm from one to the next along i.
        coarse = torch.tensor([0.0, 3.0, 6.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
        coarse_affine = torch.tensor([[3.0, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1], [0, 0, 0, 1]], dtype=torch.float64)
        ready = {
            "image": MetaTensor(image, affine=torch.eye(4, dtype=torch.float64)),
            "lung_distance_mm": MetaTensor(coarse, affine=coarse_affine),
            "nodule": np.array([[1, 2, 3, 4]], dtype=np.float32),
            "label": np.array([NODULE]),
        }
        if "mask" in item:
            ready["mask"] = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.eye(4, dtype=torch.float64))
            ready["mask"][0, 2, 2, 2] = 1
        return ready


def _scans(folder: Path, settings: str = "1 mm", **item: Any) -> tuple[CachedScans, Preprocessing]:
    image = folder / "image.nii.gz"
    if not image.exists():
        image.write_bytes(b"voxels")
    preprocessing = Preprocessing(settings)
    cache = ScanCache(preprocessing, str(folder / "cache"))
    return CachedScans([{"name": "scan", "image": str(image), **item}], cache), preprocessing


def test_later_reads_come_from_the_cache(tmp_path: Path) -> None:
    scans, preprocessing = _scans(tmp_path)
    again, untouched = _scans(tmp_path, weight=5.0)  # a later run; neither name nor weight makes other arrays
    first = scans[0]
    np.testing.assert_equal([scans[0], again[0]], [first, first])
    assert (len(scans), preprocessing.calls, untouched.calls) == (1, 1, 0)
    arrays = {"image", "affine", "voxel_mm", "lung", "lung_distance_mm", "lung_distance_affine", "nodule", "label"}
    assert set(first) == {"name", *arrays}
    assert first["name"] == "scan"
    assert CachedScans([{"image": str(tmp_path / "image.nii.gz")}], scans.cache)[0]["name"] == "image"  # of the file


def test_volumes_are_memory_maps_of_int16_and_uint8(tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").write_bytes(b"mask")
    item = _scans(tmp_path, mask=str(tmp_path / "mask.nii.gz"))[0][0]
    for name, dtype in (("image", np.int16), ("lung", np.uint8), ("mask", np.uint8)):
        assert isinstance(item[name], np.memmap)
        assert (item[name].mode, item[name].dtype, item[name].shape) == ("r", dtype, SHAPE)
    assert item["image"][0, 0, :4].tolist() == [-32768, 32767, 2, 3]  # cut to int16, rounded
    assert np.argwhere(item["mask"]).tolist() == [[2, 2, 2]]
    assert (item["nodule"].tolist(), item["label"].tolist()) == ([[1, 2, 3, 4]], [NODULE])
    along_i = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0])  # at i = 2 the distance is 1 mm
    np.testing.assert_array_equal(item["lung"], np.broadcast_to(along_i[:, None, None], SHAPE))


def test_a_whole_scan_comes_back_in_its_place(tmp_path: Path) -> None:
    item = CachedToTensorsd()(_scans(tmp_path)[0][0])
    image, distance = item["image"], item["lung_distance_mm"]
    assert (image.shape, image.dtype) == ((1, *SHAPE), torch.float32)
    assert image[0, 0, 0, :4].tolist() == [-32768, 32767, 2, 3]
    assert distance[0, :, 0, 0].tolist() == [0.0, 3.0, 6.0]
    np.testing.assert_array_equal(np.asarray(image.affine), np.eye(4))
    np.testing.assert_array_equal(np.asarray(distance.affine)[:3], [[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]])
    assert not {"affine", "lung_distance_affine"} & set(item)


def test_the_size_of_the_files_voxels_is_along_the_axes_of_the_image() -> None:
    read = np.array([[0, 0, -3.0, 9], [-0.7, 0, 0, 8], [0, 0.8, 0, 7], [0, 0, 0, 1]])  # slices along x
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=np.eye(4), meta={"original_affine": read})
    assert _voxel_mm(image).tolist() == [3.0, 0.7, 0.8]
    assert _voxel_mm(MetaTensor(torch.zeros(1, 4, 4, 4), affine=np.diag([1, 2, 1, 1.0]))).tolist() == [1.0, 2.0, 1.0]


def test_all_files_of_a_scan_count(tmp_path: Path) -> None:
    """A MetaImage's voxels and a DICOM folder's slices lie beside or below the path that a datalist names."""
    header = (
        "NDims = 3\nDimSize = 2 2 2\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = voxels.raw\n"
    )
    (tmp_path / "scan.mhd").write_text(header)
    (tmp_path / "series").mkdir()
    for image, changed in (("scan.mhd", "voxels.raw"), ("series", "series/1.dcm")):
        cache = ScanCache(Preprocessing(), str(tmp_path / "c" / image))
        for entries, content in enumerate((b"12345678", b"other, longer voxels"), 1):
            (tmp_path / changed).write_bytes(content)
            CachedScans([{"image": str(tmp_path / image)}], cache)[0]
            assert len(list(cache.cache_dir.iterdir())) == entries


def _lung_crop(network: torch.nn.Module, **settings: Any) -> CropToLungsd:
    return CropToLungsd("image", LungSearch("", network), 15.0, **settings)


def test_an_entry_is_named_by_all_that_made_it() -> None:
    """Parameters, weights and code; not the state of a random generator."""
    scaled = [
        Compose([ScaleHud(key, (low, 600))]) for key, low in (("image", -1200), ("image", -1000), ("label", -1200))
    ]
    network, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    crops = [_lung_crop(network), _lung_crop(other), _lung_crop(network, region="body")]
    names = [fingerprint(transform) for transform in (*scaled, Orientationd("image", "RAS", labels=None), *crops)]
    assert len(set(names)) == 7
    same = Compose([ScaleHud("image", (-1200, 600))])
    same.set_random_state(3)
    assert [fingerprint(same), fingerprint(_lung_crop(network))] == [names[0], names[4]]


def test_an_entry_is_named_by_the_code_that_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of what the lung search imports counts, one of a report does not."""
    transform = _lung_crop(torch.nn.Linear(1, 1))
    before, source = fingerprint(transform), code._source
    for module, changes in (("scripts.core.geometry", True), ("scripts.report.html.page", False)):
        monkeypatch.setattr(code, "_source", lambda m, edited=module: source(m) and source(m) + b"#" * (m == edited))
        assert (fingerprint(transform) != before) is changes


def test_what_changes_the_result_makes_a_new_entry(tmp_path: Path) -> None:
    """Each file counts in its place: as mask of the nodules and as mask of the lungs it gives other arrays."""
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii"
    mask.write_bytes(b"mask")
    item = {"image": str(image), "box": [[0, 0, 0, 4, 4, 4]], "label": [0]}
    masks = [{"mask": str(mask)}, {"lung_mask": str(mask)}, {"mask": str(mask), "lung_mask": str(mask)}]
    changes = [{}, {"box": [[1, 0, 0, 4, 4, 4]]}, {"label": [1]}, *masks]

    def folders(settings: str = "1 mm") -> list[Path]:
        cache = _scans(tmp_path, settings)[0].cache
        return [cache.folder({**item, **change}) for change in changes]

    before = folders()
    assert len({*before, *folders("2 mm")}) == 12
    mask.write_bytes(b"another mask")
    assert [a == b for a, b in zip(before, folders(), strict=True)] == [True] * 3 + [False] * 3
    seen = set()
    for content, time_ns in ((b"voxels", 1), (b"other voxels", 1), (b"other voxels", 2)):
        image.write_bytes(content)
        os.utime(image, ns=(time_ns, time_ns))
        seen.add(folders()[0])
    assert len(seen) == 3


def test_two_processes_may_compute_the_same_entry(tmp_path: Path) -> None:
    faster, _ = _scans(tmp_path)
    slower, preprocessing = _scans(tmp_path)

    def overtaken(item: Mapping[str, Any]) -> dict[str, Any]:
        assert faster[0]["image"].shape == SHAPE
        return preprocessing(item)

    slower.cache.preprocessing = overtaken
    assert slower[0]["image"].shape == SHAPE
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [""]


# --- filling


class Filler:
    """A preprocessing whose result depends on the file; a scan named ``bad…`` is refused, ``odd…`` breaks."""

    __module__ = "tests.train.test_cache"  # pytest has another name for it than the processes that import it

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(item["image"])
        if path.name.startswith("bad"):
            raise RuntimeError("applying transform") from ScanError(f"{path}: expected a chest, got a foot")
        if path.name.startswith("odd"):
            raise RuntimeError("applying transform") from ZeroDivisionError("division by zero")
        ready = Preprocessing()(item)
        ready["image"] += int(path.stem.split("_")[1])
        return ready


def _list(folder: Path, *names: str) -> list[dict[str, Any]]:
    for name in names:
        if not (folder / name).exists():
            nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.diag([2.0, 2.0, 2.0, 1.0])), folder / name)
    return [{"name": Path(name).stem, "image": str(folder / name)} for name in names]


FOUR = ("a_1.nii", "a_2.nii", "a_3.nii", "a_4.nii")


def _fill(cache_dir: Path, lists: dict[str, list[Any]], workers: int = 0, **more: Any) -> dict[str, list[Any]]:
    cache = ScanCache(Filler(), str(cache_dir))
    return fill_cache(cache, lists, workers=workers, spacing_mm=(1.0, 1.0, 1.0), **more)


def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy(), np.random.get_state()  # noqa: NPY002


def test_any_number_of_workers_writes_the_same_files_and_draws_no_random_number_of_the_training(tmp_path: Path) -> None:
    """The losses of a training must not depend on what was cached before it."""
    lists = {"training": _list(tmp_path, *FOUR[:3]), "validation": _list(tmp_path, *FOUR[2:])}
    states = _random_states()
    for workers in (0, 2):
        assert _fill(tmp_path / f"cache_{workers}", lists, workers) == lists
        np.testing.assert_equal(_random_states(), states)
    content = contents(tmp_path / "cache_0")
    assert len({Path(name).parent for name in content}) == 4  # the scan of both lists is kept once
    assert content == contents(tmp_path / "cache_2")


def test_what_is_there_is_not_computed_again_and_deleted_only_on_demand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, items = tmp_path / "cache", _list(tmp_path, *FOUR)
    caplog.set_level(logging.INFO)
    _fill(cache, {"training": items[:2]})
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    for left in (2, 0):
        caplog.clear()
        _fill(cache, {"training": items})
        assert (
            ("preprocessing" in caplog.text)
            == (f"preprocessing {left} scans with 0 workers" in caplog.text)
            == (left > 0)
        )
        assert "4 scans are ready" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    (cache / "notes").mkdir()  # not ours
    _fill(cache, {"training": items[:3]})
    assert "1 entries (0.00 GB) belong to no scan of these datalists; --remove_unused true deletes them" in caplog.text
    assert len(list(cache.iterdir())) == 5
    _fill(cache, {"training": items[:1]}, remove_unused=True)
    kept = ScanCache(Filler(), str(cache)).folder(items[0])
    assert {path.name for path in cache.iterdir()} == {kept.name, "notes"}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_scans_are_named_after_the_others_are_done(tmp_path: Path, workers: int) -> None:
    lists = {"training": _list(tmp_path, "a_1.nii", "bad_2.nii", "odd_3.nii"), "validation": _list(tmp_path, "a_4.nii")}
    with pytest.raises(CacheError) as caught:
        _fill(tmp_path / "cache", lists, workers)
    assert str(caught.value).splitlines() == [
        "2 scans cannot be preprocessed; correct them, remove them from the datalists, or leave them out with "
        "--skip_broken true:",
        f"  bad_2  {tmp_path / 'bad_2.nii'}: expected a chest, got a foot",
        "  odd_3  ZeroDivisionError: division by zero",
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_broken_scans_may_be_left_out_but_not_all_of_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, mixed = _list(tmp_path, "a_1.nii"), _list(tmp_path, "bad_2.nii", "a_4.nii")
    kept = _fill(tmp_path / "cache", {"training": mixed, "validation": good}, skip_broken=True)
    assert kept == {"training": mixed[1:], "validation": good}
    assert "1 scans cannot be preprocessed and are left out:\n  bad_2  " in caplog.text
    assert _fill(tmp_path / "cache", {"training": good, "validation": []})["validation"] == []
    (tmp_path / "file").touch()
    for cache_dir, lists, said in (
        ("cache", {"training": good, "validation": mixed[:1]}, "no scan of validation is left; correct them"),
        ("cache", {"training": [], "validation": []}, "expected at least one scan, got none; --dataset_dir must hold"),
        ("file", {"training": good}, "file: expected a folder to write to, got .*; choose another one"),
    ):
        with pytest.raises(CacheError, match=said):
            _fill(tmp_path / cache_dir, lists, skip_broken=True)


# --- disk


def test_disk_is_estimated_from_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20³ voxels of 2 mm are 64 000 mm³: 3 bytes for each, and 4 bytes for each 64."""
    items = _list(tmp_path, *FOUR)
    whole, coarse = 4 * 3 * 64e3 / 1e9, 4 * 4 * 64e3 / 64 / 1e9
    estimate = filling._estimate_gb(items, (1.0, 1.0, 1.0))
    expected = {"least": 0.2 * whole + coarse, "usual": 0.5 * whole + coarse, "most": whole + coarse}
    assert estimate == pytest.approx(expected)
    assert filling._estimate_gb(items, (0.5, 0.5, 0.5))["most"] == pytest.approx(8 * whole + coarse)
    (tmp_path / "broken_1.nii").write_bytes(b"no header")
    broken = {"image": str(tmp_path / "broken_1.nii")}  # counts as much as the others
    assert filling._estimate_gb([broken, *items[1:]], (1.0, 1.0, 1.0)) == pytest.approx(expected)
    assert filling._estimate_gb([broken], (1, 1, 1)) == {"least": 0.0, "usual": 0.0, "most": 0.0}
    monkeypatch.setattr(filling, "ASKED_HEADERS", 2)  # of alike scans some tell as much as all
    assert filling._estimate_gb(items, (1.0, 1.0, 1.0)) == pytest.approx(estimate)


@pytest.mark.parametrize(("ranks", "workers"), [("1", 4), ("2", 2), ("9", 1)])
def test_the_ranks_of_a_machine_share_its_processors(ranks: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert workers_of_rank(most=4) == workers


def test_what_does_not_fit_is_refused_before_it_starts_and_what_may_not_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lists = {"training": _list(tmp_path, *FOUR)}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(CacheError, match=r"expected about 0\.0 GB of free disk for 4 scans .* got 0\.0 GB; free some"):
        _fill(tmp_path / "cache", lists)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=300_000))
    _fill(tmp_path / "cache", lists)
    assert "the disk may be full before all scans are preprocessed" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_it_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    def full(file: Any, array: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        CacheError, match=r"cache_dir .*: expected a folder to write to, got .*No space left.*; free space"
    ):
        _fill(tmp_path / "cache", {"training": _list(tmp_path, *FOUR)}, workers)
    assert list((tmp_path / "cache").iterdir()) == []


# --- interruption


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from tests.train.test_cache import FOUR, _fill, _list

save = np.save
def stop(file, array):
    save(file, array)
    if sys.argv[3] in Path(file.name).parts[-2] and Path(file.name).name == "lung.npy":
        print("writing", flush=True)
        time.sleep(600)

np.save = stop
_fill(Path(sys.argv[1]) / "cache", {"training": _list(Path(sys.argv[1]), *FOUR)}, int(sys.argv[2]))
"""


def test_a_killed_filling_ends_in_the_same_files(tmp_path: Path) -> None:
    """Killed with all its processes in the middle of writing an entry."""
    lists = {"training": _list(tmp_path, *FOUR)}
    _fill(tmp_path / "whole", lists)
    third = ScanCache(Filler(), str(tmp_path / "cache")).folder(lists["training"][2])
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), "2", third.name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "writing\n"
        os.killpg(process.pid, signal.SIGKILL)
    halves = list((tmp_path / "cache").glob(".*.partial"))  # of each worker at most one
    assert any(half.name.startswith(f".{third.name}.") for half in halves)
    assert not third.exists()
    until = time.monotonic() + 60  # a killed child of a killed process is there until its new parent takes note
    while not all(is_gone(MACHINE, int(half.name.split(".")[-2])) for half in halves) and time.monotonic() < until:
        time.sleep(0.05)
    _fill(tmp_path / "cache", lists, workers=2)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert list((tmp_path / "cache").glob(".*")) == []
