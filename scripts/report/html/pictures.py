"""Pictures of a scan in radiological display, whatever its orientation, spacing or shear.

The patient's right (R) is on the left of axial and coronal pictures, the front (A) is at the top of axial and on the
left of sagittal ones, and the head (H) is at the top of coronal and sagittal ones. Planes are defined in RAS
millimetres and sampled through the affine (trilinear, as in viewers). Outlines are vectors in millimetres from the
picture's upper left corner, and thus sharp at any size.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from PIL import Image
from scipy import ndimage

from ...core.geometry import BoolArray, FloatArray, apply_affine, bounds_of, box_around, box_between, spacing_mm
from ...core.records import Detection, ScanResult

FloatImage = npt.NDArray[np.float32]
GreyImage = npt.NDArray[np.uint8]

# Value beyond the scan: below any HU window, and therefore black.
_OUTSIDE_HU = -32768.0
# A voxel extends this far around its centre; the slack keeps rounding from deciding exactly at the border.
_HALF_VOXEL = 0.5 + 1e-6
# Close-ups: a pixel is about half a usual scan's voxel; a large field of view has larger pixels, not more of them.
_PIXEL_MM = 60 / 144
_MAX_PIXELS = 216
# WebP: hardly a visible difference at this quality, at a fifth of the size of PNG.
_QUALITY = 88
_WEBP_EFFORT = 2  # of 0 … 6: within 10 % of the smallest file in a quarter of the time
# The step of a stack is a multiple of this.
_STEP_MM = 0.5


@dataclass(frozen=True)
class View:
    """A direction of view.

    Attributes:
        name: the radiological term.
        column_axis, row_axis: RAS axes (0 x, 1 y, 2 z) that fall from left to right and from top to bottom.
        left, right, top: the letters at the picture's sides.
        first, last: the ends of the body at which a stack of such pictures begins and ends.
    """

    name: str
    column_axis: int
    row_axis: int
    left: str
    right: str
    top: str
    first: str
    last: str

    @property
    def sight_axis(self) -> int:
        """The RAS axis along the line of sight; it falls from the first to the last picture of a stack."""
        return 3 - self.column_axis - self.row_axis


AXIAL = View("Axial", 0, 1, "R", "L", "A", "head", "feet")
CORONAL = View("Coronal", 0, 2, "R", "L", "H", "front", "back")
SAGITTAL = View("Sagittal", 1, 2, "A", "P", "H", "right", "left")


@dataclass(frozen=True)
class Picture:
    """A grey picture with outlines.

    Attributes:
        view: the direction of view.
        grey: ``[rows, columns]`` uint8.
        width_mm, height_mm: its extent.
        outline: SVG path of the nodule in mm from the upper left corner; empty if the plane misses it.
        other_outlines: the same for all other nodules in the field of view.
    """

    view: View
    grey: GreyImage
    width_mm: float
    height_mm: float
    outline: str = ""
    other_outlines: str = ""


@dataclass(frozen=True)
class Stack:
    """Parallel pictures of one view, an odd number; the middle one passes through the nodule's centre.

    Attributes:
        pictures: from ``view.first`` to ``view.last``.
        step_mm: distance between neighbours.
    """

    pictures: tuple[Picture, ...]
    step_mm: float

    @property
    def middle(self) -> Picture:
        return self.pictures[len(self.pictures) // 2]


@dataclass(frozen=True)
class Window:
    """The HU range that is shown from black to white."""

    centre_hu: float
    width_hu: float

    @property
    def black_hu(self) -> float:
        """This and everything below is black."""
        return self.centre_hu - self.width_hu / 2

    @property
    def white_hu(self) -> float:
        """This and everything above is white."""
        return self.centre_hu + self.width_hu / 2

    def grey(self, image_hu: npt.ArrayLike) -> GreyImage:
        """Map HU to 0 … 255."""
        scaled = (np.asarray(image_hu, dtype=np.float32) - self.centre_hu) * (255 / self.width_hu) + 127.5
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


LUNG_WINDOW = Window(-600.0, 1500.0)


def close_ups(
    result: ScanResult,
    place: Detection,
    window: Window,
    field_of_view_mm: float,
    *,
    label: int = 0,
    long_axis_mm: float = 0.0,
    pictures: int = 1,
) -> tuple[Stack, Stack, Stack]:
    """Draw axial, coronal and sagittal planes around a finding, with outlines.

    Args:
        result: the scan.
        place: the finding; its centre is the middle of the pictures.
        window: HU range shown.
        field_of_view_mm: least width of the pictures; a large finding gets three times its diameter, or 1.5 times its
            long axis if that is more.
        label: its value in the mask; 0 for a finding without a mask.
        long_axis_mm: long axis of its mask; 0 if unknown.
        pictures: planes per view, an odd number; they cover the finding and a few millimetres around it.

    Returns:
        Stacks of square pictures; what lies beyond the scan is black.
    """
    width_mm = max(field_of_view_mm, 3 * place.diameter_mm, 1.5 * long_axis_mm)
    count = min(round(width_mm / _PIXEL_MM), _MAX_PIXELS)
    # The pictures extend 10 mm to either side, or a few millimetres beyond the finding's border.
    depth_mm = max(10.0, 0.6 * max(place.diameter_mm, long_axis_mm) + 3.0)
    step_mm = float(np.ceil(depth_mm / max((pictures - 1) / 2, 1) / _STEP_MM) * _STEP_MM)
    affine_ras = np.asarray(result.affine_ras, dtype=np.float64)
    reach_mm = max(width_mm, pictures * step_mm) / 2 + 2 * float(spacing_mm(affine_ras).max())
    box = box_around(affine_ras, result.image_hu.shape, place.centre_ras_mm, reach_mm)
    labels = result.mask[box]
    block = _Block(
        start=np.array([part.start for part in box]),
        scan_shape=result.image_hu.shape,
        image_hu=result.image_hu[box].astype(np.float32),
        own=((labels == label) & (labels != 0)).astype(np.float32),
        others=((labels != 0) & (labels != label)).astype(np.float32),
    )
    shape, size_mm = (pictures, count, count), (step_mm, width_mm / count, width_mm / count)
    to_voxel = np.linalg.inv(affine_ras)
    axial, coronal, sagittal = (
        block.stack(view, window, shape, to_voxel @ planes_to_ras(view, place.centre_ras_mm, shape, size_mm), size_mm)
        for view in (AXIAL, CORONAL, SAGITTAL)
    )
    return axial, coronal, sagittal


def planes_to_ras(
    view: View, centre_ras_mm: npt.ArrayLike, shape: Sequence[int], size_mm: Sequence[float]
) -> FloatArray:
    """Return ``[4, 4]``: (picture, row, column) of a stack around a position to RAS mm; all three fall in RAS.

    Args:
        view: of the pictures.
        centre_ras_mm: the middle of the stack.
        shape: number of pictures, rows and columns.
        size_mm: step between pictures, height and width of a pixel.
    """
    to_ras = np.zeros((4, 4))
    to_ras[[view.sight_axis, view.row_axis, view.column_axis], [0, 1, 2]] = np.negative(size_mm)
    to_ras[:3, 3] = np.asarray(centre_ras_mm) - to_ras[:3, :3] @ ((np.array(shape) - 1) / 2)
    to_ras[3, 3] = 1.0
    return to_ras


@dataclass(frozen=True)
class _Block:
    """The part of the scan around a finding, from which planes are cut.

    Attributes:
        start: the block's first voxel in the whole scan.
        scan_shape: of the whole scan.
        image_hu: the block.
        own, others: 1 inside the mask of this finding, and of any other.
    """

    start: npt.NDArray[np.int64]
    scan_shape: tuple[int, ...]
    image_hu: FloatImage
    own: FloatImage
    others: FloatImage

    def stack(
        self, view: View, window: Window, shape: Sequence[int], grid: FloatArray, size_mm: Sequence[float]
    ) -> Stack:
        """Cut the block by ``grid`` ``[4, 4]``, which maps (picture, row, column) to voxels of the whole scan."""
        inside = self._inside(grid, shape)
        image_hu = np.where(inside, self._values(self.image_hu, grid, shape), np.float32(_OUTSIDE_HU))
        step_mm, pixel_mm, _ = size_mm
        own = self._paths(self.own, grid, inside, pixel_mm)
        others = self._paths(self.others, grid, inside, pixel_mm)
        width_mm = shape[1] * pixel_mm
        pictures = [
            Picture(view, grey, width_mm, width_mm, outline, other_outlines)
            for grey, outline, other_outlines in zip(window.grey(image_hu), own, others, strict=True)
        ]
        return Stack(tuple(pictures), step_mm)

    def _inside(self, grid: FloatArray, shape: Sequence[int]) -> BoolArray:
        """Return which points lie in the scan; each voxel extends half its width, so that a single slice is visible."""
        inside = np.ones(shape, dtype=bool)
        low, high = bounds_of(grid, (0, 0, 0), np.array(shape) - 1)
        for axis, size in enumerate(self.scan_shape):
            if low[axis] < -_HALF_VOXEL or high[axis] > size - 1 + _HALF_VOXEL:
                along = [grid[axis, n] * np.arange(count) for n, count in enumerate(shape)]
                voxel = along[0][:, None, None] + along[1][:, None] + along[2] + grid[axis, 3]
                inside &= (voxel >= -_HALF_VOXEL) & (voxel <= size - 1 + _HALF_VOXEL)
        return inside

    def _values(
        self, volume: FloatImage, grid: FloatArray, shape: Sequence[int], first: Sequence[int] = (0, 0, 0)
    ) -> FloatImage:
        """Sample one of the volumes at ``shape`` points of the grid, starting at ``first`` (trilinear)."""
        offset = apply_affine(grid, first) - self.start
        values = ndimage.affine_transform(
            volume, grid[:3, :3], offset, output_shape=tuple(shape), order=1, mode="nearest"
        )
        return np.asarray(values)

    def _paths(self, labelled: FloatImage, grid: FloatArray, inside: BoolArray, pixel_mm: float) -> list[str]:
        """Outline what is 1 in ``labelled``, with one path per picture; only the grid around it is sampled."""
        paths = [""] * len(inside)
        if labelled.any():
            part = self._part_of_grid(labelled, grid, inside.shape)
            number, row, column = (span.start for span in part)
            there = inside[part]
            planes = np.where(there, self._values(labelled, grid, there.shape, (number, row, column)), np.float32(0))
            paths[part[0]] = [outline_path(plane, pixel_mm, (column, row)) for plane in planes]
        return paths

    def _part_of_grid(self, labelled: FloatImage, grid: FloatArray, shape: Sequence[int]) -> tuple[slice, ...]:
        """Return the part of the grid within a voxel of what is 1 in ``labelled``; at least one point."""
        found = np.argwhere(labelled) + self.start
        reached = bounds_of(np.linalg.inv(grid), found.min(axis=0) - 1, found.max(axis=0) + 1)
        return box_between(*reached, shape, least=1)


def data_uri(pictures: Sequence[Picture]) -> str:
    """Encode pictures of equal width, one below the other, as WebP in a ``data:`` URI."""
    buffer = io.BytesIO()
    grey = np.concatenate([picture.grey for picture in pictures])
    Image.fromarray(grey).save(buffer, format="WEBP", quality=_QUALITY, method=_WEBP_EFFORT)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def outline_path(inside: FloatImage, pixel_mm: float, corner: tuple[int, int] = (0, 0)) -> str:
    """Return the contour at which ``inside`` crosses one half, as an SVG path in mm; the empty string if it never does.

    ``corner`` is the column and row of the picture at which ``inside`` begins.
    """
    if min(inside.shape) < 2 or not inside.any():
        return ""
    parts = []
    for line in contour_generator(z=inside).lines(0.5):
        points_mm = (np.asarray(line) + corner + 0.5) * pixel_mm
        closed = bool(np.array_equal(points_mm[0], points_mm[-1]))
        steps = " ".join(f"{x:.2f} {y:.2f}" for x, y in (points_mm[:-1] if closed else points_mm).tolist())
        parts.append(f"M{steps}{'Z' if closed else ''}")
    return "".join(parts)


def outline_lines(path: str) -> list[FloatArray]:
    """Return the lines of a picture's outline, each ``[points, 2]`` in mm from the left and upper border.

    A closed line ends with its first point.
    """
    lines = []
    for part in path.split("M")[1:]:
        points = np.array(part.removesuffix("Z").split(), dtype=np.float64).reshape(-1, 2)
        lines.append(np.concatenate([points, points[:1]]) if part.endswith("Z") else points)
    return lines
