"""What all file readers share: the error that refuses a scan, the scan as read, and the checks for all formats.

A refused scan raises :class:`ScanError`; its message names the file, what was expected, what was found and what to do.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..core.errors import UserError, reason_of, user_error_in
from ..core.geometry import BoolArray, FloatArray, apply_affine, spacing_mm, swap_lps_ras
from ..core.paths import printable

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr")  # formats with one scan per file; not DICOM
AIR_HU = (-1200, -400)  # lung and air; emphysema reaches about -1000, the rest is a margin for noise
AIR_SHARE = 0.005  # of all voxels; the lowest of 592 real 100 mm cubes and 3 mm slabs is 0.024, of nodule crops 0.15
BELOW_AIR_SHARE = 0.05  # of all voxels, without padding: noise and undershoot stay far below 1 %
DENSE_HU = 2000  # above cortical bone; only metal and teeth are denser
DENSE_SHARE = 0.1  # of all voxels; the highest of 895 real nodule crops is 0.02
PADDING_VALUES = 2  # a scan has one value outside the field of view (-2000, -3024, …), a resampled one may have two
SPACING_RANGE_MM = (0.05, 30.0)  # beyond it (micro-CT, metres), the file's unit is not what it claims
FARTHEST_MM = 1e6  # largest element of an affine; a larger one is not a real position
THICK_SLICE_MM = 3.0  # nodules of 3 to 6 mm fade in thicker slices
TILT_NOTE_DEGREES = 0.5  # less shifts the top of a 300 mm scan by under 3 mm; the affine includes it anyway

LARGEST_SCAN = 2**32  # voxels: more than 2048 slices of 1024 × 1024; a header that claims more is damaged

_HU_LIMITS = (-32768, 32767)  # int16


class ScanError(UserError, ValueError):
    """The scan is refused; the message is one line of valid text, whatever characters its paths contain.

    Attributes:
        hidden: the parts of the message that may name a patient, longest first, each with its replacement on pages.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
        self.hidden: tuple[tuple[str, str], ...] = ()

    def hide(self, paths: Sequence[str]) -> None:
        """Hide folders and slices from pages, however a message names them; a single image file keeps its name."""
        shown = {}
        for number, path in enumerate(paths, 1):
            name = os.path.basename(path)
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            shown[path] = name if is_image else f"#{number}"
            shown[os.path.dirname(path)] = "…"
            if not is_image:
                parts = PurePath(path).parts
                shown |= {PurePath(*parts[n:]).as_posix(): f"#{number}" for n in range(1, len(parts) - 1)}
                if re.search(r"[^\W\d]", name):  # digits alone name nobody
                    shown[name] = f"#{number}"
        self.hidden = tuple(sorted(((printable(k), v) for k, v in shown.items() if k), key=lambda pair: -len(pair[0])))


def published_reason(error: BaseException) -> str:
    """Return why something failed (:func:`..core.errors.reason_of`), without what :meth:`ScanError.hide` hides."""
    known, reason = user_error_in(error), reason_of(error)
    for hidden, shown in known.hidden if isinstance(known, ScanError) else ():
        if hidden in reason:
            reason = re.sub(rf"(?<!\w){re.escape(hidden)}(?!\w)", shown.replace("\\", r"\\"), reason)
    return reason


@dataclass(frozen=True)
class Grid:
    """The voxel grid of a scan.

    Attributes:
        shape: ``(I, J, K)``.
        affine_ras: ``[4, 4]`` voxel to RAS mm.
    """

    shape: tuple[int, ...]
    affine_ras: FloatArray

    def voxels(self, points_lps_mm: npt.ArrayLike) -> FloatArray:
        """Return the fractional voxel coordinates ``[..., 3]`` of points ``[..., 3]``."""
        return apply_affine(np.linalg.inv(self.affine_ras), swap_lps_ras(points_lps_mm))

    def holds(self, points_lps_mm: npt.ArrayLike) -> BoolArray:
        """Return ``[...]`` bool: which points ``[..., 3]`` lie inside a voxel of the grid."""
        voxels = self.voxels(points_lps_mm)
        return np.asarray(((voxels >= -0.5) & (voxels <= np.array(self.shape) - 0.5)).all(axis=-1))


@dataclass(frozen=True)
class Volume:
    """A scan as read, on its own grid.

    Attributes:
        image_hu: ``[I, J, K]`` int16.
        affine_ras: ``[4, 4]`` voxel to RAS mm; sheared for a tilted gantry.
        facts: header values that do not identify the patient, in the order to show them; never empty.
        notes: remarks for the reader of a report.
        source_files: the DICOM slices, one for each k; empty for other formats.
    """

    image_hu: npt.NDArray[np.int16]
    affine_ras: FloatArray
    facts: dict[str, str]
    notes: tuple[str, ...]
    source_files: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid of its voxels."""
        return Grid(self.image_hu.shape, self.affine_ras)

    def turned_to_ras(self) -> tuple[npt.NDArray[np.int16], FloatArray]:
        """Return HU and affine with the axes in the order and direction of RAS; no voxel is resampled."""
        turned = nib.as_closest_canonical(nib.Nifti1Image(self.image_hu, self.affine_ras))
        return np.asarray(turned.dataobj), np.asarray(turned.affine, dtype=np.float64)


def make_grid(source: str, shape: tuple[int, ...], affine_ras: FloatArray) -> Grid:
    """Check the shape and affine from a file's header and return them as a :class:`Grid`.

    Args:
        source: file or folder, for messages.
        shape: shape of the image; trailing axes of length 1 beyond the third are dropped.
        affine_ras: ``[4, 4]`` voxel to RAS mm.

    Raises:
        ScanError: this is not one volume, it is too large, or its geometry is not usable.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    size, (low, high) = " × ".join(str(n) for n in shape), SPACING_RANGE_MM
    if len(shape) > 3:
        raise ScanError(f"{source}: expected one 3-D scan, got {len(shape)} axes ({size}); export a single time point.")
    if len(shape) < 3 or min(shape) < 2:
        raise ScanError(f"{source}: expected a 3-D scan, got a 2-D image ({size}); give the whole series.")
    if math.prod(int(n) for n in shape) > LARGEST_SCAN:
        raise ScanError(
            f"{source}: expected at most {LARGEST_SCAN} voxels, got {size}; correct or copy the file again."
        )
    if not _is_usable(affine_ras):
        raise ScanError(
            f"{source}: expected three independent axes with voxels of {low} to {high} mm, got the voxel-to-world "
            f"matrix {np.asarray(affine_ras).round(5).tolist()}; correct the file's spacing, direction or unit."
        )
    return Grid(shape, affine_ras)


def _is_usable(affine: FloatArray) -> bool:
    """Whether an affine is finite, has three independent axes, and steps in :data:`SPACING_RANGE_MM`."""
    if not (np.isfinite(affine).all() and np.abs(affine).max() < FARTHEST_MM):
        return False
    steps_mm, (low, high) = spacing_mm(affine), SPACING_RANGE_MM
    flat = abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(steps_mm)  # axes within 0.06° of one plane
    return not flat and low <= steps_mm.min() and bool(steps_mm.max() <= high)


def make_volume(
    source: str, image: npt.NDArray, grid: Grid, facts: dict[str, str], *, notes: tuple[str, ...] = ()
) -> Volume:
    """Check the intensities from a file and return them as a :class:`Volume`.

    Args:
        source: file or folder, for messages.
        image: ``[I, J, K]`` intensities in HU, any numeric type.
        grid: grid of the image.
        facts: header values; "Size", "Spacing" and any "Gantry tilt" are inserted after the first one.
        notes: notes so far; those on thick slices and tilt are added.

    Raises:
        ScanError: the intensities are not finite real numbers, or not HU.
    """
    image_hu = to_hu(source, image)
    check_hu(source, image_hu)
    steps_mm, tilt = spacing_mm(grid.affine_ras), tilt_degrees(grid.affine_ras)
    size = {
        "Size": " × ".join(str(n) for n in grid.shape),
        "Spacing": " × ".join(f"{step:.3f}".rstrip("0").rstrip(".") for step in steps_mm) + " mm",
    }
    if tilt > TILT_NOTE_DEGREES:
        size["Gantry tilt"] = f"{tilt:.1f}°"
        notes = (*notes, f"gantry tilt of {tilt:.1f}°: slices are shifted against each other, positions account for it")
    if steps_mm.max() > THICK_SLICE_MM:
        notes = (*notes, thick_slice_note(float(steps_mm.max())))
    return Volume(image_hu, grid.affine_ras, {**dict(list(facts.items())[:1]), **size, **facts}, notes)


def thick_slice_note(thickness_mm: float) -> str:
    """Return the warning for slices thicker than 3 mm."""
    return f"slices of {thickness_mm:.1f} mm (more than {THICK_SLICE_MM:g} mm): small nodules may be missed"


def tilt_degrees(affine: FloatArray) -> float:
    """Return the largest angle between an axis of the grid and the normal of the other two; 0 if all are orthogonal."""
    axes = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm(affine)
    normals = np.linalg.inv(axes).T  # each scaled so that its product with its own axis is 1
    return float(np.degrees(np.arcsin(np.linalg.norm(axes - normals / np.square(normals).sum(0), axis=0).max())))


def to_hu(source: str, image: npt.NDArray) -> npt.NDArray[np.int16]:
    """Round to whole HU and clip to int16; an int16 image is returned as it is.

    Raises:
        ScanError: the values are colours or complex numbers, or some are NaN or infinite.
    """
    if image.dtype.kind not in "iuf":
        raise ScanError(
            f"{source}: expected one number per voxel, got {image.dtype}; export the CT as grey values in HU."
        )
    if image.dtype == np.int16:
        return image
    if image.dtype.kind == "f":
        bad = image.size - int(np.count_nonzero(np.isfinite(image)))
        if bad:
            raise ScanError(
                f"{source}: expected finite HU, got NaN or infinity in {bad} voxels; export the scan again."
            )
        image = np.rint(image.astype(np.float64, copy=False))
    return np.clip(image, *_HU_LIMITS).astype(np.int16)


def check_hu(source: str, image_hu: npt.NDArray[np.int16]) -> None:
    """Refuse intensities that cannot be HU of a chest.

    HU have four properties, whatever part of a chest the image shows, and each test catches a different mistake: values
    differ (an empty image does not); some are those of air or lung (8-bit windows, 0..1, z-scores, masks and stored
    values without the rescale intercept have nothing near -800); few except padding lie below air (many do if the
    intercept was subtracted twice); few lie above bone (many do if values were stretched to 16 bits). Padding (-2000,
    -3024) and air filled with 0 pass.

    Raises:
        ScanError: one of the four tests fails.
    """
    image_hu = image_hu.ravel(order="K")  # a view in memory order
    low, high, size = int(image_hu.min()), int(image_hu.max()), image_hu.size
    below = image_hu[image_hu < AIR_HU[0]]
    air = (np.count_nonzero(image_hu <= AIR_HU[1]) - below.size) / size
    not_padding = below.size
    if below.size > BELOW_AIR_SHARE * size:  # the most frequent of these values are taken for padding
        not_padding -= int(np.sort(np.unique(below, return_counts=True)[1])[-PADDING_VALUES:].sum())
    dense = np.count_nonzero(image_hu > DENSE_HU) / size
    span = f"values from {low} to {high}"
    advice = "export the original CT, in HU, without windowing or normalising."
    if low == high:
        raise ScanError(f"{source}: expected a CT in HU, got the same value {low} in every voxel; {advice}")
    if air < AIR_SHARE:
        raise ScanError(
            f"{source}: expected HU with lung or air ({AIR_HU[0]} to {AIR_HU[1]}) in at least {AIR_SHARE:.1%} of the "
            f"voxels, got {air:.2%} ({span}); {advice}"
        )
    if not_padding > BELOW_AIR_SHARE * size:
        raise ScanError(
            f"{source}: expected HU, got {below.size / size:.0%} of the voxels below air ({span}): the rescale "
            f"intercept may have been applied twice; {advice}"
        )
    if dense > DENSE_SHARE:
        raise ScanError(f"{source}: expected HU, got {dense:.0%} of the voxels above {DENSE_HU} ({span}); {advice}")
