"""Training crops: image, mask and nodules move together, and exactly where the map is exact."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from scipy import ndimage

from scripts.core.geometry import sphere_diameter_mm
from scripts.core.labels import IGNORED, NODULE
from scripts.train import RandomCropd
from scripts.train.crops import crop_by_affine


def _plain(size: int, **changes: Any) -> RandomCropd:
    settings: dict[str, Any] = {"jitter": 0.0, "turns": False, "rotate_degrees": 0.0, "scale": (1.0, 1.0), **changes}
    return RandomCropd(size, **settings)


def _augmenting(size: int, seed: int) -> RandomCropd:
    crop = _plain(size, jitter=0.1, turns=True, rotate_degrees=15.0, scale=(0.8, 1.25))
    crop.set_random_state(seed)
    return crop


def _noise(shape: tuple[int, int, int] = (25, 31, 37)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)


def _item(image: np.ndarray, centre: tuple[float, float, float], *rows: Sequence[float], **more: Any) -> dict[str, Any]:
    """To be cropped around ``centre``; all ``rows`` are nodules unless ``more`` says otherwise."""
    nodule = np.array(rows, dtype=np.float32).reshape(-1, 4)
    return {"image": image, "nodule": nodule, "label": np.full(len(rows), NODULE), "centre": centre, **more}


def test_identity_is_the_plain_part_of_the_volume() -> None:
    image = _noise()
    lung, mask = (image > 0).astype(np.uint8), np.zeros(image.shape, dtype=np.uint8)
    mask[9:12, 12, 14] = 1
    item = _item(image, (10, 12, 14), [11, 12.5, 14, 6], mask=mask, lung=lung)
    out = _plain(9)(item)
    assert out["image"].dtype == np.float32
    for name in ("image", "mask", "lung"):
        np.testing.assert_array_equal(out[name], item[name][6:15, 8:17, 10:19][None])
    np.testing.assert_allclose(out["nodule"], [[5, 4.5, 4, 6]])
    assert out["label"].tolist() == [NODULE]
    assert "centre" not in out


def test_keys_that_are_absent_stay_absent() -> None:
    out = _plain(5)(_item(_noise(), (10, 10, 10)))
    assert {name: out[name].shape for name in out} == {"image": (1, 5, 5, 5), "nodule": (0, 4), "label": (0,)}


def test_image_mask_and_rows_move_together_and_sizes_and_distances_follow_the_zoom() -> None:
    """Of each nodule the image shows a blob within its mask."""
    shape, rows = (64, 76, 91), ([2, 2, 86, 3], [30.3, 33.6, 36.2, 12], [40.8, 41.1, 45.5, 14])  # no axes alike
    image, mask = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
    for number, (*centre, diameter) in enumerate(rows, start=1):
        apart = np.square(np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))).sum(axis=0)
        image += 1000 * np.exp(-apart / (2 * 2.5**2))
        mask[apart < (diameter / 2) ** 2] = number
    item = _item(image, (36, 36, 38), *rows, mask=mask, label=np.array([NODULE, IGNORED, NODULE]))
    zooms = []
    for seed in range(20):
        out = _augmenting(49, seed)(item)
        assert out["label"].tolist() == [IGNORED, NODULE]  # the first is far away: it leaves
        assert set(np.unique(out["mask"])) == {0, 1, 2}
        first, second = out["nodule"]
        zooms.append(first[3] / 12)
        assert second[3] == pytest.approx(14 * zooms[-1], rel=1e-5)
        distance = np.linalg.norm(np.subtract(rows[1], rows[2])[:3])
        assert np.linalg.norm(first[:3] - second[:3]) == pytest.approx(zooms[-1] * distance, rel=1e-4)
        for number, row in enumerate(out["nodule"], start=1):
            own = out["mask"][0] == number
            np.testing.assert_allclose(np.argwhere(own).mean(axis=0), row[:3], atol=0.3)
            assert sphere_diameter_mm(own.sum()) == pytest.approx(row[3], rel=0.04)
            blob = np.where(own & (out["image"][0] > 100), out["image"][0], 0)
            np.testing.assert_allclose(ndimage.center_of_mass(blob), row[:3], atol=0.2)
    assert 0.8 <= min(zooms) < 0.9
    assert 1.1 < max(zooms) <= 1.25


def test_jitter_moves_the_middle_by_its_share_at_most() -> None:
    item = _item(np.zeros((60, 60, 60), np.int16), (30, 30, 30), [30, 30, 30, 4])
    crop = _plain(21, jitter=0.3)
    crop.set_random_state(0)
    moved = np.array([crop(item)["nodule"][0, :3] for _ in range(200)]) - 10
    assert np.all(np.abs(moved) <= 0.3 * 21 + 1e-4)
    assert np.all(np.abs(moved).max(axis=0) > 0.25 * 21)
    assert np.all(np.abs(moved.mean(axis=0)) < 1.0)


def test_nodules_outside_are_ignored_when_they_reach_in_and_leave_when_not() -> None:
    far, reaching, inside = [30, 20, 20, 6], [26, 20, 20, 6], [20, 20, 20, 5]
    just_outside, far_too = [[15.9, 24, 24, 1], [24, 16, 24.2, 1]], [20, 14.5, 20, 1]
    mask = np.zeros((41, 41, 41), dtype=np.uint8)
    mask[18:34, 20, 20] = np.repeat([3, 2, 1], [5, 4, 7])
    mask[16, 24, 24] = 5
    item = _item(np.zeros((41, 41, 41)), (20, 20, 20), far, reaching, inside, far_too, *just_outside, mask=mask)
    out = _plain(9)(item)  # voxels 16 to 24
    expected = [[10, 4, 4, 6], [4, 4, 4, 5], [-0.1, 8, 8, 1], [8, 0, 8.2, 1]]
    np.testing.assert_allclose(out["nodule"], expected, atol=1e-5)
    assert out["label"].tolist() == [IGNORED, NODULE, IGNORED, IGNORED]
    assert out["mask"][0, :, 4, 4].tolist() == [0, 0, 2, 2, 2, 2, 2, 1, 1]
    assert out["mask"][0, 0, 8, 8] == 3
    assert (out["mask"] > 0).sum() == 8
    assert item["label"].tolist() == [NODULE] * 6


def test_beyond_the_scan_lies_what_the_search_pads_with_and_no_mask_or_lung() -> None:
    image = _noise()
    ones = np.ones(image.shape, dtype=np.uint8)
    out = _plain(9, outside_hu=-1200.0)(_item(image, (0, 12, 7), [2, 12, 7, 6], mask=ones, lung=ones))
    for name, volume, outside in (("image", image, -1200), ("mask", ones, 0), ("lung", ones, 0)):
        np.testing.assert_array_equal(out[name][0, :4], outside)
        np.testing.assert_array_equal(out[name][0, 4:], volume[:5, 8:17, 3:12])


def test_what_lies_between_samples_beyond_a_grid_repeats_its_edge() -> None:
    volume = _noise()
    read = crop_by_affine(volume, np.eye(4) + np.outer([1, 0, 0, 0], [0, 0, 0, -3.0]), (5, 31, 37), order=1)
    np.testing.assert_array_equal(read, np.pad(volume, ((3, 0), (0, 0), (0, 0)), mode="edge")[:5])


@pytest.mark.parametrize("centre", [(-40, -40, -40), (60, 60, 60)])
def test_entirely_beyond_the_border_nothing_is_left(centre: tuple[int, int, int]) -> None:
    assert np.all(_plain(9)(_item(_noise((12, 13, 14)), centre))["image"] == -1200.0)


def test_volume_of_one_slice_can_be_cropped() -> None:
    image = _noise((12, 13, 1))
    out = _plain(5)(_item(image, (6, 6, 0)))
    np.testing.assert_array_equal(out["image"][0, ..., 2], image[4:9, 4:9, 0])


def test_only_the_part_that_is_needed_is_read() -> None:
    volume, affine = mock.MagicMock(shape=(500, 500, 500)), np.eye(4)
    volume.__getitem__.side_effect = np.zeros(volume.shape, dtype=np.int8).__getitem__
    affine[:3, 3] = (100, 200, 300)
    crop_by_affine(volume, affine, (8, 8, 8), order=1)
    ((read,),) = [call.args for call in volume.__getitem__.call_args_list]
    assert all(s.stop - s.start <= 12 for s in read)
    assert [s.start for s in read] == [99, 199, 299]


def test_same_random_state_gives_the_same_crop_and_the_input_stays() -> None:
    image = _noise((60, 60, 60))
    item = _item(image, (30, 30, 30), [30, 30, 30, 8], mask=np.ones_like(image))
    before = copy.deepcopy(item)
    first, second, other = (_augmenting(17, seed)(item) for seed in (5, 5, 6))
    np.testing.assert_equal(first, second)
    np.testing.assert_equal(item, before)
    assert not np.array_equal(first["image"], other["image"])
