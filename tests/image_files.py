"""Small volumes that pass for a chest, as image files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from scripts.core.geometry import spacing_mm, swap_lps_ras_affine

SHAPE = (9, 8, 12)
AXIAL = np.array([[0.7, 0, 0, -30], [0, 0.8, 0, -40], [0, 0, 1.5, -100], [0, 0, 0, 1.0]])


def chest(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> npt.NDArray[np.int16]:
    """Soft tissue around lung, with noise: HU that pass for a chest."""
    image = np.random.default_rng(seed).normal(40, 20, shape).round().astype(np.int16)
    image[2:6, 2:6] -= 880
    return image


def write_image(
    path: Path, image_hu: npt.NDArray, affine_lps: npt.NDArray = AXIAL, *, compressed: bool = False
) -> Path:
    """Write ``[I, J, K]`` in the format of the suffix; what ITK writes, compressed or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.suffixes:
        nib.save(nib.Nifti1Image(image_hu, swap_lps_ras_affine(affine_lps)), path)
        return path
    image = sitk.GetImageFromArray(image_hu.T)
    spacing = spacing_mm(affine_lps)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path
