"""Training data: what the cache keeps and when it forgets, and a stream of crops that never depends on the order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform

from scripts.dataset import CachedScans, CachedToTensorsd, CropDataset, EpochSampler
from scripts.transforms import IGNORED, NODULE, RandomCropd

# --- CachedScans

SHAPE = (9, 10, 11)


class Preprocessing:
    """Gives what an item asks for, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        image = torch.arange(np.prod(SHAPE), dtype=torch.float32).reshape(1, *SHAPE) + 0.4
        image[0, 0, 0, :2] = torch.tensor([-40000.0, 40000.0])
        # Coarse voxels of 3 fine ones, at 1, 4 and 7: the distance grows by 3 mm from one to the next along i.
        coarse = torch.tensor([0.0, 3.0, 6.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
        affine = torch.eye(4, dtype=torch.float64)
        coarse_affine = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64))
        coarse_affine[:3, 3] = 1.0
        ready = {
            "image": MetaTensor(image, affine=affine),
            "lung_distance_mm": MetaTensor(coarse, affine=coarse_affine),
            "nodule": np.array([[1, 2, 3, 4]], dtype=np.float32),
            "label": np.array([NODULE]),
        }
        if "mask" in item:
            mask = torch.zeros(1, *SHAPE)
            mask[0, 2, 2, 2] = item["value"]
            ready["mask"] = MetaTensor(mask, affine=affine)
        return ready


def _scans(folder: Path, settings: str = "1 mm", **item: Any) -> tuple[CachedScans, Preprocessing]:
    image = folder / "image.nii.gz"
    if not image.exists():
        image.write_bytes(b"voxels")
    preprocessing = Preprocessing()
    return CachedScans([{"image": str(image), **item}], preprocessing, str(folder / "cache"), settings), preprocessing


def test_the_second_read_comes_from_the_cache(tmp_path: Path) -> None:
    scans, preprocessing = _scans(tmp_path)
    first, second = scans[0], scans[0]
    assert len(scans) == 1
    assert preprocessing.calls == 1
    again, untouched = _scans(tmp_path)  # a later run
    third = again[0]
    assert untouched.calls == 0
    for other in (second, third):
        arrays = {"image", "affine", "lung", "lung_distance_mm", "lung_distance_affine", "nodule", "label"}
        assert set(other) == {"name", *arrays}
        for name, value in first.items():
            np.testing.assert_array_equal(value, other[name])


def test_volumes_are_memory_maps_of_int16_and_uint8(tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").write_bytes(b"mask")
    item = _scans(tmp_path, mask=str(tmp_path / "mask.nii.gz"), value=1)[0][0]
    for name, dtype in (("image", np.int16), ("lung", np.uint8), ("mask", np.uint8)):
        assert isinstance(item[name], np.memmap)
        assert item[name].mode == "r"
        assert item[name].dtype == dtype
        assert item[name].shape == SHAPE
    assert item["image"][0, 0, :4].tolist() == [-32768, 32767, 2, 3]  # cut to int16, rounded
    assert np.argwhere(item["mask"]).tolist() == [[2, 2, 2]]
    np.testing.assert_array_equal(item["nodule"], [[1, 2, 3, 4]])
    assert item["label"].tolist() == [NODULE]


def test_a_scan_is_named_by_its_item_or_its_file(tmp_path: Path) -> None:
    assert _scans(tmp_path)[0][0]["name"] == "image.nii.gz"
    assert _scans(tmp_path, name="a")[0][0]["name"] == "a"


def test_a_whole_scan_comes_back_in_its_place(tmp_path: Path) -> None:
    item = CachedToTensorsd()(_scans(tmp_path)[0][0])
    image, distance = item["image"], item["lung_distance_mm"]
    assert image.shape == (1, *SHAPE)
    assert image.dtype == torch.float32
    assert image[0, 0, 0, :4].tolist() == [-32768, 32767, 2, 3]
    np.testing.assert_array_equal(np.asarray(image.affine), np.eye(4))
    assert distance[0, :, 0, 0].tolist() == [0.0, 3.0, 6.0]
    np.testing.assert_array_equal(np.asarray(distance.affine)[:3], [[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]])
    assert not {"affine", "lung_distance_affine"} & set(item)


def test_all_files_of_a_scan_count(tmp_path: Path) -> None:
    """A MetaImage's voxels and a DICOM folder's slices lie beside or below the path that a datalist names."""
    (tmp_path / "scan.mhd").write_text("header")
    (tmp_path / "scan.raw").write_bytes(b"voxels")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"slice")
    for image, changed in (("scan.mhd", "scan.raw"), ("series", "series/1.dcm")):
        item = {"image": str(tmp_path / image)}
        for expected in (1, 2):
            preprocessing = Preprocessing()
            CachedScans([item], preprocessing, str(tmp_path / "c" / image), "")[0]
            assert preprocessing.calls == 1
            assert len(list((tmp_path / "c" / image).iterdir())) == expected
            (tmp_path / changed).write_bytes(b"other, longer voxels")


def test_lungs_come_to_the_grid_of_the_image(tmp_path: Path) -> None:
    lung = _scans(tmp_path)[0][0]["lung"]
    assert lung[:, 5, 5].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]  # at i = 2 the distance is 1 mm
    assert (lung == lung[:, :1, :1]).all()


@pytest.mark.parametrize("change", ["settings", "file", "time", "box", "label"])
def test_what_changes_the_result_makes_a_new_entry(tmp_path: Path, change: str) -> None:
    item = {"box": [[0, 0, 0, 4, 4, 4]], "label": [0]}
    _scans(tmp_path, **item)[0][0]
    settings = "2 mm" if change == "settings" else "1 mm"
    if change == "file":
        (tmp_path / "image.nii.gz").write_bytes(b"other voxels")
    if change == "time":
        os.utime(tmp_path / "image.nii.gz", ns=(1, 1))
    changed = {"box": {"box": [[1, 0, 0, 4, 4, 4]]}, "label": {"label": [1]}}.get(change, {})
    scans, preprocessing = _scans(tmp_path, settings, **{**item, **changed})
    scans[0]
    assert preprocessing.calls == 1
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_does_not_change_the_result_keeps_the_entry(tmp_path: Path) -> None:
    _scans(tmp_path, weight=1.0, name="a")[0][0]
    scans, preprocessing = _scans(tmp_path, weight=5.0, name="b")
    scans[0]
    assert preprocessing.calls == 0


def test_an_interrupted_write_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def stop_at_lung(path: Path, array: np.ndarray) -> None:
        if Path(path).name == "lung.npy":
            raise KeyboardInterrupt
        save(path, array)

    scans, preprocessing = _scans(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", stop_at_lung)
        with pytest.raises(KeyboardInterrupt):
            scans[0]
    assert all(path.name.endswith(".partial") for path in (tmp_path / "cache").iterdir())
    assert scans[0]["image"].shape == SHAPE
    assert preprocessing.calls == 2
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [""]


def test_two_processes_may_compute_the_same_entry(tmp_path: Path) -> None:
    faster, _ = _scans(tmp_path)
    slower, preprocessing = _scans(tmp_path)

    def overtaken(item: Mapping[str, Any]) -> dict[str, Any]:
        assert faster[0]["image"].shape == SHAPE
        return preprocessing(item)

    slower.preprocessing = overtaken
    assert slower[0]["image"].shape == SHAPE
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [""]


def test_a_mask_value_without_a_nodule_is_refused(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(b"mask")
    scans, _ = _scans(tmp_path, mask=str(mask), value=2)
    with pytest.raises(ValueError, match=r"mask\.nii\.gz: expected values 0 to 1, .* got 2; correct the mask"):
        scans[0]
    assert not (tmp_path / "cache").exists()


# --- CropDataset


class FakeScans(CachedScans):
    """Scans in memory; scan n has the intensity -800 - n everywhere."""

    def __init__(self, items: list[dict[str, Any]]) -> None:
        super().__init__([{"weight": item.get("weight", 1.0)} for item in items], dict, "", "")
        self.items = items

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = np.array(self.items[index].get("nodule", []), dtype=np.float32).reshape(-1, 4)
        label = np.array(self.items[index].get("label", [NODULE] * len(rows)), dtype=np.int64)
        image = np.full((30, 31, 32), -800 - index, dtype=np.int16)
        lung = self.items[index].get("lung", np.ones(image.shape, dtype=np.uint8))
        item = {"image": image, "lung": lung, "nodule": rows, "label": label}
        return {**item, "mask": np.zeros_like(lung)} if self.items[index].get("mask") else item


class Keep(Transform):
    """Passes on what it got."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return dict(data)


def _crops(items: list[dict[str, Any]], seed: int = 0, nodule_share: float = 0.0) -> CropDataset:
    crop = RandomCropd(9, jitter=0.3, turns=True, rotate_degrees=15.0, scale=(0.8, 1.25))
    return CropDataset(FakeScans(items), Compose([crop]), seed=seed, nodule_share=nodule_share)


def _choices(items: list[dict[str, Any]], nodule_share: float) -> CropDataset:
    return CropDataset(FakeScans(items), Compose([Keep()]), seed=0, nodule_share=nodule_share)


TWO_SCANS: list[dict[str, Any]] = [{"nodule": [[10, 11, 12, 6], [20, 20, 20, 25]]}, {"nodule": [[15, 15, 15, 8]]}]


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    assert set(first) == set(second)
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_the_same_index_gives_the_same_crop_in_any_order() -> None:
    forwards, backwards = _crops(TWO_SCANS, nodule_share=0.5), _crops(TWO_SCANS, nodule_share=0.5)
    first = [forwards[n] for n in range(12)]
    second = [backwards[n] for n in reversed(range(12))][::-1]
    assert all(_same(a, b) for a, b in zip(first, second, strict=True))
    assert _same(forwards[3], first[3])
    nodules = {tuple(item["nodule"].ravel()) for item in first}
    assert len(nodules) > 6  # the crops differ


def test_seeds_differ() -> None:
    one, other = _crops(TWO_SCANS, seed=0, nodule_share=1.0), _crops(TWO_SCANS, seed=1, nodule_share=1.0)
    assert not any(_same(one[n], other[n]) for n in range(8))


def test_scans_are_drawn_by_their_weight() -> None:
    crops = _choices([{"weight": 1.0}, {"weight": 0.0}, {"weight": 3.0}, {}], nodule_share=0.0)
    drawn = np.bincount([-800 - crops[n]["image"][0, 0, 0] for n in range(1000)], minlength=4)
    assert drawn[1] == 0
    np.testing.assert_allclose(drawn[[0, 2, 3]], [200, 600, 200], atol=50)  # 3 to 4 standard deviations


def test_nodules_are_drawn_by_their_size() -> None:
    crops = _choices([{"nodule": [[10, 11, 12, 6], [20, 20, 20, 25]]}, {"nodule": [[15, 15, 15, 8]]}], 1.0)
    drawn = [tuple(crops[n]["centre"].tolist()) for n in range(900)]
    counts = [drawn.count(place) for place in ((10, 11, 12), (20, 20, 20), (15, 15, 15))]
    assert sum(counts) == 900
    np.testing.assert_allclose(counts, [100, 700, 100], atol=45)  # weights 1, 7, 1


def test_nodule_share_is_the_share_of_crops_around_a_nodule() -> None:
    crops = _choices([{"nodule": [[15.5, 15.5, 15.5, 8]]}], nodule_share=0.25)
    around = [bool(np.all(crops[n]["centre"] == 15.5)) for n in range(800)]
    assert sum(around) == pytest.approx(200, abs=50)


def test_ignored_findings_are_never_a_centre() -> None:
    crops = _choices([{"nodule": [[5.5, 5.5, 5.5, 6], [20.5, 20.5, 20.5, 6]], "label": [IGNORED, NODULE]}], 1.0)
    assert all(crops[n]["centre"].tolist() == [20.5] * 3 for n in range(50))


@pytest.mark.parametrize("item", [{}, {"nodule": [[5, 5, 5, 6]], "label": [IGNORED]}], ids=["none", "ignored"])
def test_without_nodules_every_crop_is_around_parenchyma(item: dict[str, Any]) -> None:
    crops = _choices([item], nodule_share=1.0)
    assert len({tuple(crops[n]["centre"].tolist()) for n in range(20)}) > 15


def test_parenchyma_lies_in_the_lung() -> None:
    lung = np.zeros((30, 31, 32), dtype=np.uint8)
    lung[4:12, 6:20, 8:20] = 1
    crops = _choices([{"lung": lung}], nodule_share=0.0)
    assert all(lung[tuple(crops[n]["centre"])] for n in range(40))  # 200 draws miss it once in ten thousand


def test_a_scan_without_lung_still_gives_crops() -> None:
    crops = _choices([{"lung": np.zeros((30, 31, 32), dtype=np.uint8)}], nodule_share=0.0)
    centre = crops[0]["centre"]
    assert np.all((centre >= 0) & (centre < (30, 31, 32)))


@pytest.mark.parametrize(
    ("item", "has_mask"),
    [
        ({}, True),
        ({"nodule": [[5, 5, 5, 6]], "label": [IGNORED]}, True),
        ({"nodule": [[5, 5, 5, 6]]}, False),
        ({"nodule": [[5, 5, 5, 6]], "mask": True}, True),
    ],
    ids=["empty", "only ignored", "no mask", "mask"],
)
def test_an_empty_mask_counts_only_where_there_is_no_nodule(item: dict[str, Any], has_mask: bool) -> None:
    assert _crops([item])[0]["has_mask"] == has_mask


def test_no_scan_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one scan, got none; --dataset_dir must hold"):
        _crops([])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0)])
def test_weights_that_draw_nothing_are_refused(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="training list: expected weights from 0, one of them above 0"):
        _crops([{"weight": weight} for weight in weights])


# --- EpochSampler


def test_epochs_are_consecutive_and_disjoint() -> None:
    sampler = EpochSampler(5)
    seen = []
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler)) == 5
        seen += list(sampler)
    assert seen == list(range(15))


def test_a_resumed_epoch_is_the_uninterrupted_one() -> None:
    sampler = EpochSampler(4)
    sampler.set_epoch(3)
    assert list(sampler) == [8, 9, 10, 11]
    assert list(sampler) == [8, 9, 10, 11]  # again, until told of another epoch


def test_ranks_share_out_every_epoch() -> None:
    samplers = [EpochSampler(4, rank=rank, ranks=3) for rank in range(3)]
    for epoch in (1, 2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert all(len(share) == 4 for share in shares)
        assert sorted(number for share in shares for number in share) == list(range(12 * (epoch - 1), 12 * epoch))
    assert shares[1] == [13, 16, 19, 22]
