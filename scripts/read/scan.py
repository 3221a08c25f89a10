"""What every file reader shares: the error that refuses a scan, the scan as read, and the checks all formats pass.

A refused scan raises :class:`ScanError`; its message names the file, what was expected, what arrived and what to do.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import UserError, reason_of, refuse, user_error_in
from ..core.geometry import FloatArray, apply_affine, spacing_mm, swap_lps_ras
from ..core.paths import printable

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".nhdr")  # of scans in one file; DICOM has others
AIR_HU = (-1200, -400)  # lung and air; emphysema ends near -1000, the rest is room for noise
AIR_SHARE = 0.005  # of all voxels; the poorest of 592 real 100 mm cubes and 3 mm slabs has 0.024, nodule crops 0.15
BELOW_AIR_SHARE = 0.05  # of all voxels, padding apart: noise and undershoot stay far below 1 %
DENSE_HU = 2000  # above cortical bone; only metal and teeth lie higher
DENSE_SHARE = 0.1  # of all voxels; the densest of 895 real nodule crops has 0.02
PADDING_VALUES = 2  # a scan has one value outside the field of view (-2000, -3024, …), a resampled one may have two
SPACING_RANGE_MM = (0.05, 30.0)  # micro-CT and metres lie outside: the unit of the file is then not what it says
FARTHEST_MM = 1e6  # of the origin from the scanner's; a number beyond is none
THICK_SLICE_MM = 3.0  # nodules of 3 to 6 mm fade into thicker slices
TILT_NOTE_DEGREES = 0.5  # less moves the top of a 300 mm scan by under 3 mm, and the affine holds it anyway

LARGEST_SCAN = 2**32  # voxels: more than 2048 slices of 1024 × 1024; a header that claims more is damaged

_HU_LIMITS = (-32768, 32767)  # int16


class ScanError(UserError, ValueError):
    """A scan that must be refused; the message is one line of valid text, whatever the paths in it are.

    Attributes:
        hidden: what of the message may name a patient, longest first, each with what a page shows instead.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
        self.hidden: tuple[tuple[str, str], ...] = ()

    def hide(self, paths: Sequence[str]) -> None:
        """Keep folders, and names of slices, off pages; the name of a scan in one file stays."""
        shown = {}
        for number, path in enumerate(paths, 1):
            name = os.path.basename(path)
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            shown[path] = name if is_image else f"#{number}"
            shown[os.path.dirname(path)] = "…"
            if not is_image and re.search(r"[^\W\d]", name):  # digits alone are no name
                shown[name] = f"#{number}"
        self.hidden = tuple(sorted(((printable(k), v) for k, v in shown.items() if k), key=lambda pair: -len(pair[0])))


def published_reason(error: BaseException) -> str:
    """Why something failed, as :func:`..core.reason_of` has it, but without what :meth:`ScanError.hide` hides."""
    known, reason = user_error_in(error), reason_of(error)
    for hidden, shown in known.hidden if isinstance(known, ScanError) else ():
        reason = re.sub(rf"(?<!\w){re.escape(hidden)}(?!\w)", shown.replace("\\", r"\\"), reason)
    return reason


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a scan lie.

    Attributes:
        shape: ``(I, J, K)``.
        affine_ras: ``[4, 4]`` voxel to RAS mm.
    """

    shape: tuple[int, ...]
    affine_ras: FloatArray

    def voxels(self, points_lps_mm: npt.ArrayLike) -> FloatArray:
        """Voxel coordinates, fractions included, of points ``[..., 3]``."""
        return apply_affine(np.linalg.inv(self.affine_ras), swap_lps_ras(points_lps_mm))

    def holds(self, points_lps_mm: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """``[...]`` bool: which points ``[..., 3]`` lie in a voxel."""
        voxels = self.voxels(points_lps_mm)
        return np.asarray(((voxels >= -0.5) & (voxels <= np.array(self.shape) - 0.5)).all(axis=-1))


@dataclass(frozen=True)
class Volume:
    """A scan as read, on its own grid.

    Attributes:
        image_hu: ``[I, J, K]`` int16.
        affine_ras: ``[4, 4]`` voxel to RAS mm; sheared for a tilted gantry.
        facts: header facts free of identity, in the order to show them; never empty.
        notes: what the reader of a report should know.
        source_files: the DICOM slices, one for each k; empty for other formats.
    """

    image_hu: npt.NDArray[np.int16]
    affine_ras: FloatArray
    facts: dict[str, str]
    notes: tuple[str, ...]
    source_files: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """Where its voxels lie."""
        return Grid(self.image_hu.shape, self.affine_ras)


def make_grid(source: str, shape: tuple[int, ...], affine_ras: FloatArray) -> Grid:
    """Check what a file's header gave and make it a :class:`Grid`.

    Args:
        source: file or folder, for messages.
        shape: of the image; trailing axes of length 1 are dropped.
        affine_ras: ``[4, 4]`` voxel to RAS mm.

    Raises:
        ScanError: not a volume, or no usable geometry.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    size, (low, high) = " × ".join(str(n) for n in shape), SPACING_RANGE_MM
    refuse(
        ScanError,
        (
            len(shape) > 3,
            f"{source}: expected one 3-D scan, got {len(shape)} axes ({size}); export a single time point.",
        ),
        (
            len(shape) < 3 or min(shape) < 2,
            f"{source}: expected a 3-D scan, got a 2-D image ({size}); give the whole series.",
        ),
        (
            math.prod(int(n) for n in shape) > LARGEST_SCAN,
            f"{source}: expected at most {LARGEST_SCAN} voxels, got {size}; correct or copy the file again.",
        ),
        (
            not _is_usable(affine_ras),
            f"{source}: expected three independent axes with voxels of {low} to {high} mm, got the voxel-to-world "
            f"matrix {np.asarray(affine_ras).round(5).tolist()}; correct the file's spacing, direction or unit.",
        ),
    )
    return Grid(shape, affine_ras)


def _is_usable(affine: FloatArray) -> bool:
    """Whether a grid is finite, not flat, and has steps that a chest CT may have."""
    if not (np.isfinite(affine).all() and np.abs(affine).max() < FARTHEST_MM):
        return False
    steps_mm, (low, high) = spacing_mm(affine), SPACING_RANGE_MM
    flat = abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(steps_mm)  # axes within 0.06° of one plane
    return not flat and low <= steps_mm.min() and bool(steps_mm.max() <= high)


def make_volume(
    source: str, image: npt.NDArray, grid: Grid, facts: dict[str, str], *, notes: tuple[str, ...] = ()
) -> Volume:
    """Check the intensities that a file gave and make them a :class:`Volume`.

    Args:
        source: file or folder, for messages.
        image: ``[I, J, K]`` intensities in HU, any numeric type.
        grid: of the image.
        facts: header facts; "Size" and "Spacing" are added after the first one.
        notes: what is known so far; thick slices and tilt are added.

    Raises:
        ScanError: not numbers, or not HU.
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
    """The warning that goes with slices of more than 3 mm."""
    return f"slices of {thickness_mm:.1f} mm (more than {THICK_SLICE_MM:g} mm): small nodules will be missed"


def tilt_degrees(affine: FloatArray) -> float:
    """Largest angle between an axis of the grid and the normal of the other two: 0 for a rectangular grid."""
    axes = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm(affine)
    normals = np.linalg.inv(axes).T  # of which each has the product 1 with its own axis
    return float(np.degrees(np.arcsin(np.linalg.norm(axes - normals / np.square(normals).sum(0), axis=0).max())))


def to_hu(source: str, image: npt.NDArray) -> npt.NDArray[np.int16]:
    """Round to whole HU and clip to int16.

    Raises:
        ScanError: colour or complex values, NaN or infinity.
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

    Four things are certain of HU, whatever was cut out, and each catches its own mistake: values differ (an empty
    image); some lie between air and lung (8-bit windows, 0..1, z-scores, masks, stored values without the rescale
    intercept: all have nothing near -800); few but padding lie below air (the intercept was subtracted twice); few
    lie above bone (values stretched to 16 bits). Padding (-2000, -3024) and air filled with 0 pass.

    Raises:
        ScanError: one of the four fails.
    """
    image_hu = image_hu.ravel(order="K")  # a view in the order of memory, whatever that is
    low, high, size = int(image_hu.min()), int(image_hu.max()), image_hu.size
    below = image_hu[image_hu < AIR_HU[0]]
    air = (np.count_nonzero(image_hu <= AIR_HU[1]) - below.size) / size
    not_padding = below.size
    if below.size > BELOW_AIR_SHARE * size:  # its most frequent values are taken as padding
        not_padding -= int(np.sort(np.unique(below, return_counts=True)[1])[-PADDING_VALUES:].sum())
    dense = np.count_nonzero(image_hu > DENSE_HU) / size
    span = f"values from {low} to {high}"
    advice = "export the original CT, in HU, without windowing or normalising."
    refuse(
        ScanError,
        (low == high, f"{source}: expected a CT in HU, got the same value {low} in every voxel; {advice}"),
        (
            air < AIR_SHARE,
            f"{source}: expected HU with lung or air ({AIR_HU[0]} to {AIR_HU[1]}) in at least {AIR_SHARE:.1%} of the "
            f"voxels, got {air:.2%} ({span}); {advice}",
        ),
        (
            not_padding > BELOW_AIR_SHARE * size,
            f"{source}: expected HU, got {below.size / size:.0%} of the voxels below air ({span}): the rescale "
            f"intercept may have been applied twice; {advice}",
        ),
        (
            dense > DENSE_SHARE,
            f"{source}: expected HU, got {dense:.0%} of the voxels above {DENSE_HU} ({span}); {advice}",
        ),
    )
