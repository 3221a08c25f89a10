"""The overview: a picture of the whole lungs that shows where each finding is.

The scan is projected along whichever of its own axes is nearest to the line of sight, so nothing is resampled before
the brightest voxel is taken, and a mark falls on the voxel it belongs to. The picture of an oblique scan is equally
oblique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image
from scipy import ndimage

from ...core.geometry import FloatArray, Point, apply_affine, bounds_of, spacing_mm
from ...core.records import ScanResult, SearchRegion, centre_voxels
from .pictures import AXIAL, CORONAL, FloatImage, Picture, View, Window, outline_path, planes_to_ras

# Longer side of the overview.
_OVERVIEW_PIXELS = 480
# Longer side of the picture with the lungs' outline.
_LUNGS_PIXELS = 240
# Least size of the overview, so that a slab of few slices remains recognisable.
_OVERVIEW_MIN_MM = 80.0
# Margin around the lungs on the overview.
_OVERVIEW_MARGIN_MM = 12.0
# The lungs are smoothed (sigma) and then cut off at a share, which moves their border 3 mm inwards.
_SHRINK_MM = 4.0
_LUNG_SHARE = 0.8
# Brightness of the body around the lungs, 0 … 1.
_BACKGROUND = 0.3
# Air adds nothing to summed attenuation, and is black where the brightest voxel is taken.
_AIR_HU = -1000
# Shows all vessels and nodules of the lungs without saturation.
_OVERVIEW_WINDOW = Window(-400.0, 1200.0)


@dataclass(frozen=True)
class Overview:
    """A picture of the whole lungs, and the map from world positions to it.

    Attributes:
        picture: seen along the scan's own axis nearest to the line of sight.
        of_lungs: ``True`` for a maximum-intensity projection of the lungs, ``False`` for a sum over the whole scan.
        ras_to_mm: ``[2, 4]``, RAS mm to mm from the picture's left and upper border.
    """

    picture: Picture
    of_lungs: bool
    ras_to_mm: FloatArray

    def position_mm(self, point_ras_mm: Point) -> tuple[float, float]:
        x_mm, y_mm = (self.ras_to_mm @ [*point_ras_mm, 1.0]).tolist()
        return x_mm, y_mm


def overview(result: ScanResult) -> Overview:
    """Draw the overview: the brightest voxels of the lungs, seen from the front, over the dimmed body.

    If no lungs were found, the whole scan is summed along the line of sight, as on a radiograph. A slab, less than half
    as high as it is wide, is seen from the feet.
    """
    affine_ras, (image_hu, labels) = _upright(result.affine_ras, result.image_hu, result.mask)
    voxel_mm = spacing_mm(affine_ras)
    extent_mm = voxel_mm * image_hu.shape
    view = AXIAL if extent_mm[2] < extent_mm[0] / 2 else CORONAL
    axes = (view.row_axis, view.column_axis, view.sight_axis)
    to_voxel = np.asarray(np.linalg.inv(affine_ras), dtype=np.float64)
    region = result.region
    if region is not None and region.lungs_found:
        box, lungs = _shrunk_lungs(region, affine_ras, image_hu.shape, _ends_of_nodules(result, affine_ras))
        pixels = _lung_projection(image_hu[box].transpose(axes), labels[box].transpose(axes), lungs, axes)
    else:
        box, lungs = tuple(slice(0, n) for n in image_hu.shape), None
        pixels = _radiograph(image_hu.transpose(axes))
    corner = np.array([box[axis].start for axis in axes[:2]])
    pixel_mm = voxel_mm[list(axes[:2])]
    to_mm = to_voxel[list(axes[:2])]
    to_mm[:, 3] += 0.5 - corner
    return _framed(view, pixels, pixel_mm, to_mm * pixel_mm[:, None], of_lungs=lungs is not None)


def lungs_picture(result: ScanResult, window: Window) -> Picture | None:
    """Draw the coronal plane through the middle of the lungs, with their outline; ``None`` if no lungs were found."""
    region = result.region
    if region is None or not region.lungs_found:
        return None
    lungs = region.lungs
    low, high = bounds_of(region.affine_ras, (0, 0, 0), np.array(lungs.shape) - 1)
    size_mm = (high - low)[[2, 0]]
    pixel_mm = float(size_mm.max()) / _LUNGS_PIXELS
    rows, columns = np.maximum(np.ceil(size_mm / pixel_mm), 2).astype(int).tolist()
    centre = high - np.array([columns - 1, 0, rows - 1]) / 2 * pixel_mm
    centre[1] = apply_affine(region.affine_ras, np.argwhere(lungs).mean(axis=0))[1]
    to_ras = planes_to_ras(CORONAL, centre, (1, rows, columns), (pixel_mm,) * 3)

    def plane(volume: npt.NDArray, affine_ras: npt.ArrayLike, outside: float) -> FloatImage:
        grid = np.linalg.inv(np.asarray(affine_ras, dtype=np.float64)) @ to_ras
        return ndimage.affine_transform(
            volume, grid[:3, :3], grid[:3, 3], (1, rows, columns), output=np.float32, order=1, cval=outside
        )[0]

    grey = window.grey(plane(result.image_hu, result.affine_ras, _AIR_HU))
    outline = outline_path(plane(lungs.astype(np.float32), region.affine_ras, 0.0), pixel_mm)
    return Picture(CORONAL, grey, columns * pixel_mm, rows * pixel_mm, outline)


def _ends_of_nodules(result: ScanResult, affine_ras: FloatArray) -> FloatArray:
    """Return ``[2 N, 3]`` voxels of the upright scan: the lower and upper ends of the N nodules."""
    found = [nodule.detection for nodule in result.nodules]
    centres = centre_voxels(found, affine_ras)
    radii = np.reshape([one.diameter_mm / 2 for one in found], (-1, 1)) / spacing_mm(affine_ras)
    return np.concatenate([centres - radii, centres + radii])


def _upright(affine_ras: npt.ArrayLike, *volumes: npt.NDArray) -> tuple[FloatArray, list[npt.NDArray]]:
    """Return views of volumes on one grid, with the axes in the order and direction of display.

    Returns:
        ``[4, 4]`` affine to RAS mm, and the volumes ``[x, y, z]``: from right to left, front to back, head to feet.
    """
    affine_ras = np.asarray(affine_ras, dtype=np.float64)
    turn = ornt_transform(io_orientation(affine_ras), axcodes2ornt("LPI"))
    upright = affine_ras @ inv_ornt_aff(turn, volumes[0].shape)
    return upright, [apply_orientation(volume, turn) for volume in volumes]


class _Lungs(NamedTuple):
    """Slightly shrunk lungs on a grid parallel to the scan's: the chest wall is brighter than anything inside them.

    Attributes:
        share: ``[x', y', z']`` smoothed lung.
        scale, start: ``[3]`` voxel of that grid = scale * voxel of the box + start.
    """

    share: FloatImage
    scale: FloatArray
    start: FloatArray


def _shrunk_lungs(
    region: SearchRegion, affine_ras: FloatArray, shape: tuple[int, ...], voxels: FloatArray
) -> tuple[tuple[slice, ...], _Lungs]:
    """Return a box of an upright scan's voxels, with a margin around the lungs, and the lungs in it.

    Args:
        region: with lungs.
        affine_ras, shape: of the scan.
        voxels: ``[N, 3]``, included in the box as far as they lie in the scan.
    """
    lung_affine_ras, (inside,) = _upright(region.affine_ras, region.lungs)
    to_lungs = np.linalg.inv(lung_affine_ras) @ affine_ras
    scale, shift = np.diag(to_lungs)[:3], to_lungs[:3, 3]
    cells = np.argwhere(inside)
    margin = _OVERVIEW_MARGIN_MM / spacing_mm(affine_ras)
    first = ((cells.min(axis=0) - 0.5 - shift) / scale - margin).astype(int)
    last = ((cells.max(axis=0) + 0.5 - shift) / scale + margin).astype(int)
    low = np.maximum(np.floor(np.vstack([voxels, first])).min(axis=0), 0).astype(int)
    high = np.minimum(np.ceil(np.vstack([voxels + 1, last])).max(axis=0), shape).astype(int)
    sigma = _SHRINK_MM / spacing_mm(lung_affine_ras)
    share = ndimage.gaussian_filter(inside.astype(np.float32), sigma, truncate=2.5)
    return tuple(map(slice, low.tolist(), high.tolist())), _Lungs(share, scale, scale * low + shift)


def _lung_projection(
    image_hu: npt.NDArray[np.int16], labels: npt.NDArray[np.uint16], lungs: _Lungs, axes: tuple[int, int, int]
) -> FloatImage:
    """Draw the brightest voxels of lungs and nodules along the last axis on the dimmed body: ``[rows, columns]``.

    Values are 0 … 1.
    """
    thickness = max(round(1 / abs(lungs.scale[axes[2]])), 1)
    starts = np.arange(0, image_hu.shape[2], thickness)
    slabs, nodules = (np.maximum.reduceat(volume, starts, axis=2) for volume in (image_hu, labels))
    positions = (np.arange(slabs.shape[0]), np.arange(slabs.shape[1]), starts + (thickness - 1) / 2)
    share, weights = lungs.share.transpose(axes), []
    for axis, along, size in zip(axes, positions, share.shape, strict=True):
        where = np.clip(lungs.scale[axis] * along + lungs.start[axis], 0, size - 1)
        weights.append(np.maximum(1 - np.abs(where[:, None] - np.arange(size)), 0).astype(np.float32))
    inside = np.einsum("abc,ia,jb,kc->ijk", share, *weights, optimize=True) > _LUNG_SHARE  # trilinear
    shown = inside | (nodules > 0)
    brightest = np.where(shown, slabs, np.int16(_AIR_HU)).max(axis=2)
    covered = ndimage.gaussian_filter(shown.any(axis=2).astype(np.float32), 1.0)
    vessels = _OVERVIEW_WINDOW.grey(brightest) / np.float32(255)
    return np.asarray(covered * vessels + (1 - covered) * _BACKGROUND * _radiograph(slabs))


def _radiograph(image_hu: npt.NDArray[np.int16]) -> FloatImage:
    """Sum the attenuation along the last axis, scaled to 0 … 1."""
    attenuation = np.maximum(image_hu, _AIR_HU).mean(axis=2, dtype=np.float32) - _AIR_HU
    seen = attenuation[attenuation > 0]
    low, high = np.percentile(seen, [1, 99.5]) if seen.size else (0.0, 0.0)
    return np.asarray(np.clip((attenuation - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def _framed(view: View, pixels: FloatImage, pixel_mm: FloatArray, ras_to_mm: FloatArray, *, of_lungs: bool) -> Overview:
    """Resample ``pixels`` (0 … 1, ``pixel_mm`` along rows, columns) to square ones; pad a small picture with black."""
    size_mm = pixel_mm * pixels.shape
    square_mm = size_mm.max() / _OVERVIEW_PIXELS
    rows, columns = np.maximum(np.rint(size_mm / square_mm).astype(int), 1).tolist()
    grey = Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).resize((columns, rows), Image.Resampling.BICUBIC)
    missing = np.maximum(np.ceil((_OVERVIEW_MIN_MM - size_mm) / square_mm / 2), 0).astype(int)
    framed = np.pad(np.asarray(grey), [(m, m) for m in missing.tolist()])
    ras_to_mm = ras_to_mm.copy()
    ras_to_mm[:, 3] += missing * square_mm
    height_mm, width_mm = (size_mm + 2 * missing * square_mm).tolist()
    # above, rows come before columns; on the picture, x before y
    return Overview(Picture(view, framed, width_mm, height_mm), of_lungs, ras_to_mm[::-1])
