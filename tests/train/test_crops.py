"""Training crops: image, mask and nodules move together, and exactly where the map is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scripts.core.geometry import sphere_diameter_mm
from scripts.core.labels import IGNORED, NODULE
from scripts.train import RandomCropd
from scripts.train.crops import crop_by_affine

SHAPE = (64, 76, 91)  # no two alike: an exchanged axis shows


def _plain(size: int, **changes: Any) -> RandomCropd:
    settings: dict[str, Any] = {"jitter": 0.0, "turns": False, "rotate_degrees": 0.0, "scale": (1.0, 1.0), **changes}
    return RandomCropd(size, **settings)


def _augmenting(size: int, seed: int) -> RandomCropd:
    crop = _plain(size, jitter=0.1, turns=True, rotate_degrees=15.0, scale=(0.8, 1.25))
    crop.set_random_state(seed)
    return crop


def _noise(shape: tuple[int, int, int] = (25, 31, 37)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)


def _without_nodules(image: np.ndarray, centre: tuple[float, float, float]) -> dict[str, Any]:
    return {"image": image, "nodule": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64), "centre": centre}


def _balls(rows: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Mask of spheres: value = row + 1."""
    grid = np.indices(shape)
    mask = np.zeros(shape, dtype=np.uint8)
    for number, (*centre, diameter) in enumerate(rows, start=1):
        mask[np.square(grid - np.reshape(centre, (3, 1, 1, 1))).sum(axis=0) < (diameter / 2) ** 2] = number
    return mask


def test_identity_is_the_plain_part_of_the_volume() -> None:
    image = _noise()
    item = {**_without_nodules(image, (10, 12, 14)), "mask": (image > 0).astype(np.uint8) * 0, "lung": image > 0}
    item["nodule"], item["label"] = np.array([[11, 12.5, 14, 6]], dtype=np.float32), np.array([NODULE])
    item["mask"][9:12, 12, 14] = 1
    item["lung"] = item["lung"].astype(np.uint8)
    out = _plain(9)(item)
    here = (slice(6, 15), slice(8, 17), slice(10, 19))
    assert out["image"].dtype == np.float32
    for name in ("image", "mask", "lung"):
        np.testing.assert_array_equal(out[name], item[name][here][None])
    np.testing.assert_allclose(out["nodule"], [[5, 4.5, 4, 6]])
    assert out["label"].tolist() == [NODULE]
    assert "centre" not in out


def test_keys_that_are_absent_stay_absent() -> None:
    out = _plain(5)(_without_nodules(_noise(), (10, 10, 10)))
    assert set(out) == {"image", "nodule", "label"}
    assert out["nodule"].shape == (0, 4)
    assert out["label"].shape == (0,)


@pytest.mark.parametrize("seed", range(12))
def test_a_blob_ends_where_its_nodule_ends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.array([[*rng.uniform(28, 34, 3), 12.0], [*rng.uniform(40, 44, 3), 8.0]], dtype=np.float32)
    rows[1, 2] += 6
    grid = np.indices(SHAPE)
    for number, row in enumerate(rows):
        apart = np.square(grid - row[:3].reshape(3, 1, 1, 1)).sum(axis=0)
        image = (1000 * np.exp(-apart / (2 * 2.5**2))).astype(np.float32)
        item = {"image": image, "nodule": rows, "label": np.zeros(2, np.int64), "centre": np.array([36, 36, 38])}
        out = _augmenting(49, seed)(item)
        assert len(out["nodule"]) == 2
        blob = np.where(out["image"][0] > 100, out["image"][0], 0)
        centroid = (np.indices(blob.shape) * blob).sum(axis=(1, 2, 3)) / blob.sum()
        assert out["label"][number] == NODULE
        np.testing.assert_allclose(centroid, out["nodule"][number, :3], atol=0.2)


@pytest.mark.parametrize("seed", range(12))
def test_masks_follow_their_rows_and_diameters_follow_the_zoom(seed: int) -> None:
    rows = np.array([[2, 2, 86, 3], [30.3, 33.6, 36.2, 12], [40.8, 41.1, 45.5, 14]], dtype=np.float32)
    item = {
        "image": np.zeros(SHAPE, np.int16),
        "mask": _balls(rows),
        "nodule": rows,
        "label": np.array([NODULE, IGNORED, NODULE]),
        "centre": np.array([36, 36, 38]),
    }
    out = _augmenting(49, seed)(item)
    assert out["label"].tolist() == [IGNORED, NODULE]  # the first is far away: it leaves
    assert set(np.unique(out["mask"])) == {0, 1, 2}
    zoom = out["nodule"][0, 3] / 12
    assert 0.8 <= zoom <= 1.25
    assert out["nodule"][1, 3] == pytest.approx(14 * zoom, rel=1e-5)
    for number, row in enumerate(out["nodule"], start=1):
        own = out["mask"][0] == number
        np.testing.assert_allclose(np.argwhere(own).mean(axis=0), row[:3], atol=0.3)
        assert sphere_diameter_mm(own.sum()) == pytest.approx(row[3], rel=0.04)


def test_distances_between_nodules_scale_with_the_zoom() -> None:
    rows = np.array([[30, 33, 36, 10], [40, 41, 45, 10]], dtype=np.float32)
    zooms = set()
    for seed in range(20):
        item = {**_without_nodules(np.zeros(SHAPE, np.int16), (36, 36, 38)), "nodule": rows, "label": np.zeros(2)}
        out = _augmenting(49, seed)(item)["nodule"]
        zoom = out[0, 3] / 10
        assert np.linalg.norm(out[0, :3] - out[1, :3]) == pytest.approx(zoom * np.linalg.norm([10, 8, 9]), rel=1e-4)
        zooms.add(round(float(zoom), 3))
    assert min(zooms) < 0.9
    assert max(zooms) > 1.1


def test_jitter_moves_the_middle_by_its_share_at_most() -> None:
    item = _without_nodules(np.zeros((60, 60, 60), np.int16), (30, 30, 30))
    item["nodule"], item["label"] = np.array([[30, 30, 30, 4]], dtype=np.float32), np.array([NODULE])
    crop = _plain(21, jitter=0.3)
    crop.set_random_state(0)
    moved = np.array([crop(item)["nodule"][0, :3] for _ in range(200)]) - 10
    assert np.all(np.abs(moved) <= 0.3 * 21 + 1e-4)
    assert np.all(np.abs(moved).max(axis=0) > 0.25 * 21)
    assert np.all(np.abs(moved.mean(axis=0)) < 1.0)


def test_nodules_outside_are_ignored_when_they_reach_in_and_leave_when_not() -> None:
    far, reaching, inside = [30, 20, 20, 6], [26, 20, 20, 6], [20, 20, 20, 5]
    just_outside, far_too = [[15.9, 24, 24, 1], [24, 16, 24.2, 1]], [20, 14.5, 20, 1]
    rows = np.array([far, reaching, inside, far_too, *just_outside], dtype=np.float32)
    mask = np.zeros((41, 41, 41), dtype=np.uint8)
    mask[27:34, 20, 20] = 1
    mask[23:27, 20, 20] = 2
    mask[18:23, 20, 20] = 3
    mask[16, 24, 24] = 5
    label = np.full(6, NODULE)
    item = {"image": np.zeros((41, 41, 41)), "mask": mask, "nodule": rows, "label": label, "centre": (20, 20, 20)}
    out = _plain(9)(item)  # voxels 16 to 24
    expected = [[10, 4, 4, 6], [4, 4, 4, 5], [-0.1, 8, 8, 1], [8, 0, 8.2, 1]]
    np.testing.assert_allclose(out["nodule"], expected, atol=1e-5)
    assert out["label"].tolist() == [IGNORED, NODULE, IGNORED, IGNORED]
    assert out["mask"][0, :, 4, 4].tolist() == [0, 0, 2, 2, 2, 2, 2, 1, 1]
    assert out["mask"][0, 0, 8, 8] == 3
    assert (out["mask"] > 0).sum() == 8
    assert label.tolist() == [NODULE] * 6


def test_beyond_the_scan_lies_what_the_search_pads_with_and_no_mask_or_lung() -> None:
    image = _noise()
    ones = np.ones(image.shape, dtype=np.uint8)
    rows = {"nodule": np.array([[2, 12, 7, 6]], dtype=np.float32), "label": np.array([NODULE])}
    crop = _plain(9, outside_hu=-1200.0)
    out = crop({"image": image, "mask": ones, "lung": ones, "centre": (0, 12, 7), **rows})
    for name, volume, outside in (("image", image, -1200), ("mask", ones, 0), ("lung", ones, 0)):
        np.testing.assert_array_equal(out[name][0, :4], outside)
        np.testing.assert_array_equal(out[name][0, 4:], volume[:5, 8:17, 3:12])


def test_what_lies_between_samples_beyond_a_grid_repeats_its_edge() -> None:
    volume = _noise()
    read = crop_by_affine(volume, np.eye(4) + np.outer([1, 0, 0, 0], [0, 0, 0, -3.0]), (5, 31, 37), order=1)
    np.testing.assert_array_equal(read, np.pad(volume, ((3, 0), (0, 0), (0, 0)), mode="edge")[:5])


@pytest.mark.parametrize("centre", [(-40, -40, -40), (60, 60, 60)])
def test_entirely_beyond_the_border_nothing_is_left(centre: tuple[int, int, int]) -> None:
    assert np.all(_plain(9)(_without_nodules(_noise((12, 13, 14)), centre))["image"] == -1200.0)


def test_volume_of_one_slice_can_be_cropped() -> None:
    image = _noise((12, 13, 1))
    out = _plain(5)(_without_nodules(image, (6, 6, 0)))
    np.testing.assert_array_equal(out["image"][0, ..., 2], image[4:9, 4:9, 0])


def test_only_the_part_that_is_needed_is_read() -> None:
    class Counting:
        """A volume that notes which part of it is read."""

        shape = (500, 500, 500)
        read: tuple[slice, ...] = ()

        def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
            self.read = where
            return np.zeros([s.stop - s.start for s in where], dtype=np.int16)

    volume, affine = Counting(), np.eye(4)
    affine[:3, 3] = (100, 200, 300)
    crop_by_affine(volume, affine, (8, 8, 8), order=1)  # type: ignore[arg-type]
    assert all(s.stop - s.start <= 12 for s in volume.read)
    assert [s.start for s in volume.read] == [99, 199, 299]


def test_same_random_state_gives_the_same_crop_and_the_input_stays() -> None:
    image = _noise((60, 60, 60))
    rows = np.array([[30, 30, 30, 8]], dtype=np.float32)
    item = {**_without_nodules(image, (30, 30, 30)), "nodule": rows, "label": np.array([NODULE]), "mask": image * 0 + 1}
    before = {name: np.array(value) for name, value in item.items()}
    first, second, other = (_augmenting(17, seed)(item) for seed in (5, 5, 6))
    for name in ("image", "mask", "nodule", "label"):
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(item[name], before[name])
    assert not np.array_equal(first["image"], other["image"])
    assert set(item) == set(before)
