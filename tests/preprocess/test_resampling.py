"""Resampling and scaling: what MONAI's transforms give, in fewer passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged, Spacingd
from nibabel.affines import from_matvec

from scripts.preprocess import ScaleHud, ToSpacingd

SPACINGS = [(0.7, 0.7, 2.5), (1.0, 1.0, 1.0), (1.6, 0.9, 1.0004), (0.5, 3.0, 0.8)]
TO_1_MM = ToSpacingd("image", (1.0, 1.0, 1.0), ["bilinear"])


def _scan(affine: np.ndarray, shape: tuple[int, int, int] = (23, 31, 17)) -> MetaTensor:
    """Steep everywhere: a shift by a hundredth of a voxel would show."""
    values = np.random.default_rng(0).integers(-1000, 1000, (1, *shape)).astype(np.int16)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))


def _affine(spacing_mm: tuple[float, float, float], degrees: float = 0.0) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return from_matvec(turn * spacing_mm, (-120.3, 40.0, -711.25))


def _assert_as_by_monai(image: MetaTensor, pixdim: tuple[float, float, float], atol_hu: float) -> None:
    found = ToSpacingd("image", pixdim, ["bilinear"])({"image": image})["image"]
    plain = Spacingd("image", pixdim=pixdim, mode="bilinear", padding_mode="border", dtype=np.float64)
    expected = plain({"image": image})["image"]
    assert found.dtype == torch.int16
    np.testing.assert_allclose(np.asarray(found.affine), np.asarray(expected.affine), atol=1e-6)
    torch.testing.assert_close(found.as_tensor().double(), expected.as_tensor().double(), rtol=0, atol=atol_hu)


@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (1.3, 0.6, 2.0)])
@pytest.mark.parametrize("degrees", [0.0, 11.0])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_same_as_monais_to_whole_hu(
    spacing: tuple[float, float, float], degrees: float, pixdim: tuple[float, float, float]
) -> None:
    image = _scan(_affine(spacing, degrees))
    before = image.clone()
    _assert_as_by_monai(image, pixdim, atol_hu=0.51)
    assert torch.equal(image.as_tensor(), before.as_tensor())


def test_a_view_is_read_as_its_copy() -> None:
    image = _scan(_affine((0.8, 0.8, 2.0)), (30, 31, 32))
    part = image[:, 3:20, 4:25, 5:9]
    assert not part.is_contiguous()
    found, again = (TO_1_MM({"image": one})["image"] for one in (part, part.contiguous()))
    assert torch.equal(found.as_tensor(), again.as_tensor())


def test_a_tilted_gantry_is_resampled_too() -> None:
    affine = _affine((0.8, 0.8, 2.0))
    affine[1, 2] = 0.7  # each slice is shifted against the last
    _assert_as_by_monai(_scan(affine), (1.0, 1.0, 1.0), atol_hu=0.7)


def test_one_slice_along_an_axis_is_repeated() -> None:
    scan = _scan(_affine((1.0, 1.0, 3.0)), (5, 6, 1))
    assert TO_1_MM({"image": scan})["image"].shape == (1, 5, 6, 1)


def test_what_is_known_of_the_scan_stays() -> None:
    image = _scan(_affine((0.8, 0.8, 2.0)))
    image.meta["notes"] = "thick"
    assert TO_1_MM({"image": image})["image"].meta["notes"] == "thick"


@pytest.mark.parametrize("window", [(-1200.0, 600.0), (-1000.0, 400.0)])
def test_intensities_are_scaled_as_by_monai(window: tuple[float, float]) -> None:
    image = MetaTensor(_scan(np.eye(4)).float() * 2)
    before = image.clone()
    found = ScaleHud("image", window)({"image": image})["image"]
    expected = ScaleIntensityRanged("image", *window, b_min=-1.0, b_max=1.0, clip=True)({"image": image})["image"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(image, before)
    assert (found.min(), found.max()) == (-1.0, 1.0)
