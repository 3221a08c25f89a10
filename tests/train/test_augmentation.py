"""Augmentation laws: what is drawn from a changed crop is the change of what is drawn from the crop.

Moves change image, mask and nodules alike; changes of intensity leave everything but the image, and keep HU levels and
places. The latter are taken from the training graph, so that what is tested is what runs.
"""

from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from scripts.core.labels import IGNORED, NODULE
from scripts.train import RandomCropd, RandThickSlicesd
from scripts.train.targets import POSITIVE, cell_targets
from scripts.train.thick_slices import through_slices

TRAIN = Path(__file__).resolve().parents[2] / "configs" / "train.json"

# --- turns and flips: exact -------------------------------------------------------------------------------------------

EDGE, STRIDE = 12, 2
SOURCE = (20, 22, 24)
CENTRE = np.array([9.5, 11.5, 10.5])  # the middle of a crop of even size lies between voxels
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]
Turn = tuple[tuple[int, ...], tuple[int, ...]]  # axis of the crop that becomes axis a; -1 where a runs backwards


def turned(volume: npt.NDArray[Any], turn: Turn) -> npt.NDArray[Any]:
    """The last three axes turned."""
    order, signs = turn
    first = volume.ndim - 3
    moved = volume.transpose(*range(first), *(first + axis for axis in order))
    return np.flip(moved, [first + axis for axis in range(3) if signs[axis] < 0])


@functools.cache
def scan(seed: int) -> dict[str, Any]:
    """Noise without two equal voxels, and findings on multiples of 1/8 voxel, where sums of squares are exact.

    Some of them lie outside the crop and reach into it, some lie far from it, some are ignored; their masks overlap.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    centres = CENTRE + rng.integers(-64, 65, (count, 3)) / 8
    nodule = np.column_stack([centres, rng.integers(8, 65, count) / 8]).astype(np.float32)
    mask = np.zeros(SOURCE, dtype=np.uint8)
    for number, (*centre, diameter) in enumerate(nodule, start=1):
        apart = np.square(np.indices(SOURCE) - np.reshape(centre, (3, 1, 1, 1))).sum(axis=0)
        mask[apart <= (diameter / 2) ** 2] = number
    return {
        "image": rng.permutation(int(np.prod(SOURCE))).astype(np.int16).reshape(SOURCE),
        "mask": mask,
        "lung": rng.integers(0, 2, SOURCE).astype(np.uint8),
        "nodule": nodule,
        "label": rng.choice([NODULE, NODULE, IGNORED], count),
        "centre": CENTRE,
    }


def cropped(item: dict[str, Any], *, turns: bool, seed: int = 0) -> dict[str, Any]:
    """A crop, and its targets (zero where they mean nothing)."""
    crop = RandomCropd(EDGE, jitter=0.0, turns=turns, rotate_degrees=0.0, scale=(1.0, 1.0))
    crop.set_random_state(seed)
    out = crop(item)
    nodule, label = torch.as_tensor(out["nodule"])[None], torch.as_tensor(out["label"])[None]
    cells = cell_targets(nodule, label == NODULE, label >= 0, (EDGE // STRIDE,) * 3, stride=STRIDE, positives=7)
    positive = cells.state == POSITIVE
    size, offset = cells.log_diameter * positive, cells.offset_mm * positive[:, None]
    return {**out, "state": cells.state.numpy(), "size": size.numpy(), "offset": offset.numpy()}


@pytest.fixture(scope="module")
def seed_of_turn() -> dict[Turn, int]:
    """A random state for each of the 48 turns; recognised by the image alone."""
    plain = cropped(scan(0), turns=False)["image"]
    by_image = {turned(plain, turn).tobytes(): turn for turn in TURNS}
    return {by_image[cropped(scan(0), turns=True, seed=seed)["image"].tobytes()]: seed for seed in range(500)}


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_turn_then_target_is_target_then_turn(turn: Turn, seed_of_turn: dict[Turn, int]) -> None:
    order, signs = turn
    positives = 0
    for seed in range(5):
        plain = cropped(scan(seed), turns=False)
        moved = cropped(scan(seed), turns=True, seed=seed_of_turn[turn])
        np.testing.assert_array_equal(moved["label"], plain["label"])
        plain["offset"] = plain["offset"][:, order] * np.reshape(signs, (3, 1, 1, 1))
        for name in ("image", "mask", "lung", "state", "size", "offset"):
            np.testing.assert_array_equal(moved[name], turned(plain[name], turn), err_msg=name)
        positives += (plain["state"] == POSITIVE).sum()
    assert positives > 20


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_the_size_of_the_files_voxels_turns_and_grows_with_the_crop(scale: float) -> None:
    crop = RandomCropd(EDGE, jitter=0.0, turns=True, rotate_degrees=0.0, scale=(scale, scale))
    slices = np.broadcast_to(np.arange(SOURCE[2]), SOURCE)  # change along k alone, where the file's voxels are longest
    seen = set()
    for seed in range(20):
        crop.set_random_state(seed)
        out = crop({**scan(0), "image": slices, "voxel_mm": np.array([0.7, 0.8, 3.0])})
        longest = int(np.argmax([np.abs(np.diff(out["image"][0], axis=axis)).mean() for axis in range(3)]))
        seen.add(longest)
        assert sorted(out["voxel_mm"].tolist()) == pytest.approx([0.7 * scale, 0.8 * scale, 3.0 * scale])
        assert out["voxel_mm"][longest] == pytest.approx(3.0 * scale)
    assert seen == {0, 1, 2}


def test_without_turns_a_crop_is_never_mirrored_and_turns_by_its_angle_at_most() -> None:
    corners = np.array([[26, 28, 30], [32, 28, 30], [26, 34, 30], [26, 28, 36]], dtype=np.float32)
    item = {
        "image": np.zeros((56, 60, 64), np.int16),
        "nodule": np.column_stack([corners, np.full(4, 5.0)]),
        "label": np.full(4, NODULE),
        "centre": (28, 30, 32),
    }
    crop = RandomCropd(33, jitter=0.1, turns=False, rotate_degrees=15.0, scale=(1.0, 1.0))
    crop.set_random_state(0)
    angles = []
    for _ in range(200):
        moved = crop(item)["nodule"]
        axes = (moved[1:, :3] - moved[0, :3]).T / 6.0
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
        assert np.linalg.det(axes) == pytest.approx(1.0, abs=1e-5)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(axes) - 1) / 2, -1, 1))))
    assert max(angles) <= 15.0 * np.sqrt(3) + 0.1  # three turns of 15° add up to this at most
    assert max(angles) > 15.0


# --- intensity, as the training graph has it --------------------------------------------------------------------------

SIZE = 24  # of the crops here
LUNG_HU, TISSUE_HU = -850.0, 50.0
INTENSITY = {  # the random steps of the graph, in their order
    **{"strong noise": "RandGaussianNoised", "blur": "RandGaussianSmoothd", "sharpen": "RandGaussianSharpend"},
    **{"thick slices": "scripts.train.RandThickSlicesd", "noise": "RandGaussianNoised"},
    **{"scale": "RandScaleIntensityd", "shift": "RandShiftIntensityd"},
}
SEEDS = range(6)


def graph() -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    parser["crop_size"] = SIZE
    return parser


@functools.cache
def intensity(name: str | None) -> Compose:
    """What the training graph does to the HU of a crop, with chance 1 for one step and 0 for the other random ones."""
    parser, key = graph(), "augmentation#transforms"
    random = [step for step in parser[key] if "Rand" in step["_target_"]]
    assert [step["_target_"] for step in random] == list(INTENSITY.values())  # there are no others
    for own, step in zip(INTENSITY, random, strict=True):
        step["prob"] = float(own == name)
    return Compose([parser.get_parsed_content(f"{key}#{n}") for n in range(len(parser[key]))])


def change(name: str | None, item: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return dict(intensity(name).set_random_state(seed)(item))


def changed(name: str | None, image: npt.NDArray[np.float32], seed: int = 0) -> npt.NDArray[np.float64]:
    """``[S, S, S]`` after one transform."""
    item = {"image": image[None].copy(), "nodule": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64)}
    return np.asarray(change(name, item, seed)["image"][0], dtype=np.float64)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_changes_the_image_and_nothing_else(name: str) -> None:
    item = {
        "image": np.random.default_rng(0).normal(LUNG_HU, 60.0, (1, SIZE, SIZE, SIZE)).astype(np.float32),
        "mask": np.random.default_rng(1).integers(0, 3, (1, SIZE, SIZE, SIZE)).astype(np.uint8),
        "nodule": np.array([[3.0, 4.0, 5.0, 6.0], [9.0, 8.0, 7.0, 4.0]], dtype=np.float32),
        "label": np.array([NODULE, IGNORED]),
    }
    before = copy.deepcopy(item)
    out = change(name, item)
    np.testing.assert_equal(item, before)
    assert {key: np.array_equal(out[key], item[key]) for key in out} == {key: key != "image" for key in item}
    assert (out["image"].shape, np.asarray(out["image"]).dtype) == (before["image"].shape, np.float32)
    assert np.isfinite(np.asarray(out["image"])).all()
    np.testing.assert_array_equal(change(None, item)["image"], before["image"])


@pytest.mark.parametrize("hu", [-1000.0, LUNG_HU, TISSUE_HU])
@pytest.mark.parametrize("name", ["blur", "thick slices", "sharpen"])
def test_blur_and_sharpening_keep_hu_levels_up_to_the_border(name: str, hu: float) -> None:
    for seed in SEEDS:
        np.testing.assert_allclose(changed(name, np.full((SIZE,) * 3, hu, dtype=np.float32), seed), hu, rtol=5e-4)


@pytest.mark.parametrize("axis", range(3))
def test_sharpening_raises_and_blur_lowers_the_contrast_of_an_edge(axis: int) -> None:
    """From lung to tissue in one step; thick slices blur the third axis alone."""
    edge = np.full((SIZE,) * 3, LUNG_HU, dtype=np.float32)
    np.moveaxis(edge, axis, 0)[SIZE // 2 :] = TISSUE_HU
    for seed in SEEDS:
        after = [np.moveaxis(changed(name, edge, seed), axis, 0) for name in ("blur", "thick slices", "sharpen")]
        blurred, thick, sharp = (np.diff(image, axis=0).max() / (TISSUE_HU - LUNG_HU) for image in after)
        assert blurred < 0.95
        assert thick < 0.6 if axis == 2 else thick > 0.75
        assert sharp > 1.05
        assert np.diff(after[2], axis=0)[[0, -1]] == pytest.approx(0.0, abs=0.1)  # far from the edge nothing happens


@pytest.mark.parametrize("thickness", [2, 3, 5])
def test_thick_slices_are_averaged_and_interpolated(thickness: int) -> None:
    """As if the slices had been written to a file and read again."""
    hu = np.random.default_rng(0).normal(LUNG_HU, 60.0, (1, 2, 2, 6 * thickness)).astype(np.float32)
    slices = hu.reshape(1, 2, 2, 6, thickness).mean(axis=4)
    centres = np.arange(6) * thickness + (thickness - 1) / 2
    expected = np.apply_along_axis(lambda line: np.interp(np.arange(hu.shape[3]), centres, line), 3, slices)
    matrix = through_slices(hu.shape[3], thickness, first=(thickness - 1) / 2)
    np.testing.assert_allclose(hu @ matrix.T, expected, atol=1e-3)


@pytest.mark.parametrize("thickness", [2.0, 3.3, 6.5])
@pytest.mark.parametrize("first", [-0.5, 0.2, 0.5])
def test_thick_slices_of_any_thickness_keep_a_slope(thickness: float, first: float) -> None:
    """Where whole slices lie; at both ends the last slice goes on."""
    line = np.arange(60.0)
    after = through_slices(60, thickness, first * thickness) @ line
    inner = slice(10, 50)
    np.testing.assert_allclose(after[inner], line[inner], atol=0.25)  # whole voxels do not fill a slice evenly
    assert after.min() >= 0.0
    assert after.max() <= 59.0


def test_a_nodule_thinner_than_its_slice_is_ignored() -> None:
    item = {
        "image": np.zeros((1, 8, 8, 8), np.float32),
        "nodule": np.array([[4, 4, 4, 3.1], [4, 4, 4, 3.3], [4, 4, 4, 20]], np.float32),
        "label": np.array([NODULE, NODULE, IGNORED]),
    }
    out = RandThickSlicesd(prob=1.0, thickness_mm=(4.0, 4.0))(item)
    assert out["label"].tolist() == [IGNORED, NODULE, IGNORED]
    assert RandThickSlicesd(prob=0.0, thickness_mm=(4.0, 4.0))(item)["label"].tolist() == [NODULE, NODULE, IGNORED]


def test_hu_become_what_the_network_reads() -> None:
    """The window goes to -1 … 1, and what lies outside it to its ends; masks stay."""
    hu = np.array([-3024.0, -1200.0, -750.0, -300.0, 600.0, 3071.0], dtype=np.float32).reshape(1, 6, 1, 1)
    mask = np.arange(6, dtype=np.uint8).reshape(1, 6, 1, 1)
    out = graph().get_parsed_content("scale_hu")({"image": hu, "mask": mask})
    np.testing.assert_allclose(np.asarray(out["image"]).ravel(), [-1.0, -1.0, -0.5, 0.0, 1.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(out["mask"], mask)
