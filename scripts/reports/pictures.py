"""Pictures of a scan in radiological display, whatever its orientation, spacing or shear.

The patient's right (R) is on the left of axial and coronal pictures, the front (A) on top of axial and on the left of
sagittal ones, the head (H) on top. Close-ups are planes in RAS millimetres, sampled through the affine (trilinear, as
viewers do); the overview projects the scan along its own axis that runs most nearly along the line of sight.
Outlines stay vectors in millimetres from the picture's upper left corner, so that they are crisp at any size.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from nibabel.orientations import io_orientation
from PIL import Image
from scipy import ndimage

from ..findings import Detection, LungRegion, ScanResult
from ..geometry import FloatArray, Point, apply_affine, box_around, spacing_mm

FloatImage = npt.NDArray[np.float32]
GreyImage = npt.NDArray[np.uint8]

# Beyond the scan: below any window, so that it is black.
_OUTSIDE_HU = -32768.0
# Half a voxel lies around each voxel centre; the slack keeps rounding from deciding at the very border.
_HALF_VOXEL = 0.5 + 1e-6
# Close-ups: a pixel of about half a voxel of a usual scan; a large field of view gets larger pixels instead of more.
_PIXEL_MM = 60 / 144
_MAX_PIXELS = 216
# WebP: no difference to be seen at this quality, at a fifth of the size of PNG.
_QUALITY = 80
_WEBP_EFFORT = 2  # of 0 … 6: within 10 % of the smallest file in a quarter of the time
# A step of a stack is a multiple of it.
_STEP_MM = 0.5
# The overview's longest side.
_OVERVIEW_PIXELS = 480
# A slab of few slices still gets a picture that can be seen.
_OVERVIEW_MIN_MM = 80.0
# Kept around the lungs on the overview.
_OVERVIEW_MARGIN_MM = 12.0
# Lung is smoothed by this much (sigma) and counts where its share is above the other: 3 mm within its border.
_SHRINK_MM = 4.0
_LUNG_SHARE = 0.8
# How bright the body around the lungs is drawn, of 1.
_BACKGROUND = 0.3
# Air counts nothing where attenuation is summed, and is black where the brightest voxel is sought.
_AIR_HU = -1000


@dataclass(frozen=True)
class View:
    """A direction to look from.

    Attributes:
        name: as radiologists call it.
        column_axis, row_axis: RAS axes (0 x, 1 y, 2 z) that fall from left to right and from top to bottom.
        left, right, top: the letters at the picture's sides.
        first, last: the ends of the body where a stack of such pictures begins and ends.
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
        """The RAS axis of the line of sight; it falls from the first to the last picture of a stack."""
        return 3 - self.column_axis - self.row_axis


AXIAL = View("Axial", 0, 1, "R", "L", "A", "head", "feet")
CORONAL = View("Coronal", 0, 2, "R", "L", "H", "front", "back")
SAGITTAL = View("Sagittal", 1, 2, "A", "P", "H", "right", "left")


@dataclass(frozen=True)
class Picture:
    """A grey picture with outlines.

    Attributes:
        view: the direction it is seen from.
        grey: ``[rows, columns]`` uint8.
        width_mm, height_mm: its extent.
        outline: SVG path of the nodule in mm from the upper left corner, empty when the plane misses it.
        other_outlines: the same for all other nodules in the field of view.
    """

    view: View
    grey: GreyImage
    width_mm: float
    height_mm: float
    outline: str = ""
    other_outlines: str = ""

    @property
    def data_uri(self) -> str:
        """The picture as WebP inside a ``data:`` URI."""
        return _data_uri(self.grey)


@dataclass(frozen=True)
class Stack:
    """Parallel pictures of one view, an odd number; the middle one passes through the nodule's centre.

    Attributes:
        pictures: from ``view.first`` to ``view.last``.
        step_mm: between neighbours.
    """

    pictures: tuple[Picture, ...]
    step_mm: float

    @property
    def middle(self) -> Picture:
        return self.pictures[len(self.pictures) // 2]

    @property
    def data_uri(self) -> str:
        """All pictures, one below the other, as WebP inside a ``data:`` URI."""
        return _data_uri(np.concatenate([picture.grey for picture in self.pictures]))


@dataclass(frozen=True)
class Window:
    """The HU range shown from black to white."""

    centre_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        if not self.width_hu > 0:
            raise ValueError(f"Expected a window wider than 0 HU, got {self.width_hu}. Lung: centre -600, width 1500.")

    def grey(self, image_hu: npt.ArrayLike) -> GreyImage:
        """Map HU to 0…255."""
        scaled = (np.asarray(image_hu, dtype=np.float32) - self.centre_hu) * (255 / self.width_hu) + 127.5
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


# All of the lungs' vessels and nodules without burning out.
_OVERVIEW_WINDOW = Window(-400.0, 1200.0)


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
    """Axial, coronal and sagittal planes around a finding, with outlines.

    Args:
        result: the scan.
        place: the finding; its centre is the middle of the pictures.
        window: HU range shown.
        field_of_view_mm: least width of the pictures; a large finding gets three times its diameter.
        label: its value in the mask; 0 for a finding without an outline.
        long_axis_mm: of its outline, as far as it is known.
        pictures: planes per view, an odd number; they cover the finding and some millimetres around it.

    Returns:
        Square pictures; what lies beyond the scan is black.
    """
    width_mm = max(field_of_view_mm, 3 * place.diameter_mm, 1.5 * long_axis_mm)
    count = min(round(width_mm / _PIXEL_MM), _MAX_PIXELS)
    step_mm = _stack_step_mm(max(place.diameter_mm, long_axis_mm), pictures)
    block = _Block.around(result, place.centre_ras_mm, label, max(width_mm, pictures * step_mm) / 2)
    shape = (pictures, count, count)
    views = (AXIAL, CORONAL, SAGITTAL)
    axial, coronal, sagittal = (block.stack(view, window, shape, width_mm / count, step_mm) for view in views)
    return axial, coronal, sagittal


def _stack_step_mm(size_mm: float, pictures: int) -> float:
    """The step at which the pictures reach 10 mm, or the finding's border and some millimetres, to either side."""
    reach_mm = max(10.0, 0.6 * size_mm + 3.0)
    steps = max((pictures - 1) / 2, 1)
    return float(np.ceil(reach_mm / steps / _STEP_MM) * _STEP_MM)


@dataclass(frozen=True)
class _Block:
    """The part of the scan around a finding, ready to be cut by planes.

    Attributes:
        centre_ras_mm: the finding's centre.
        to_voxel: ``[4, 4]``, RAS mm to voxel of the whole scan.
        shape: of the whole scan.
        start: the block's first voxel in the whole scan.
        image_hu: the block.
        own, others: 1 inside this finding's outline, inside any other's.
    """

    centre_ras_mm: Point
    to_voxel: FloatArray
    shape: tuple[int, ...]
    start: tuple[int, int, int]
    image_hu: FloatImage
    own: FloatImage
    others: FloatImage

    @classmethod
    def around(cls, result: ScanResult, centre_ras_mm: Point, label: int, half_width_mm: float) -> _Block:
        reach_mm = half_width_mm + 2 * float(spacing_mm(result.affine_ras).max())
        box = box_around(result.affine_ras, result.image_hu.shape, centre_ras_mm, reach_mm)
        labels = result.mask[box]
        return cls(
            centre_ras_mm=centre_ras_mm,
            to_voxel=np.linalg.inv(np.asarray(result.affine_ras, dtype=np.float64)),
            shape=result.image_hu.shape,
            start=(box[0].start, box[1].start, box[2].start),
            image_hu=result.image_hu[box].astype(np.float32),
            own=((labels == label) & (labels != 0)).astype(np.float32),
            others=((labels != 0) & (labels != label)).astype(np.float32),
        )

    def stack(
        self, view: View, window: Window, shape: tuple[int, int, int], pixel_mm: float, step_mm: float
    ) -> Stack:
        grid = self._grid_to_voxel(view, shape, pixel_mm, step_mm)
        inside = self._inside(grid, shape)
        image_hu = np.where(inside, self._values(self.image_hu, grid, shape), np.float32(_OUTSIDE_HU))
        own, others = (self._paths(labelled, grid, inside, pixel_mm) for labelled in (self.own, self.others))
        planes = zip(window.grey(image_hu), own, others, strict=True)
        width_mm = shape[1] * pixel_mm
        return Stack(tuple(Picture(view, grey, width_mm, width_mm, *paths) for grey, *paths in planes), step_mm)

    def _grid_to_voxel(self, view: View, shape: tuple[int, int, int], pixel_mm: float, step_mm: float) -> FloatArray:
        """``[4, 4]``: (picture, row, column) to voxel of the whole scan; all three fall in RAS."""
        to_ras = np.zeros((4, 4))
        axes = (view.sight_axis, view.row_axis, view.column_axis)
        for number, (axis, length_mm) in enumerate(zip(axes, (step_mm, pixel_mm, pixel_mm), strict=True)):
            to_ras[axis, number] = -length_mm
        to_ras[:3, 3] = np.asarray(self.centre_ras_mm) - to_ras[:3, :3] @ ((np.array(shape) - 1) / 2)
        to_ras[3, 3] = 1.0
        return np.asarray(self.to_voxel @ to_ras)

    def _inside(self, grid: FloatArray, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Which points lie in the scan; a voxel reaches half its width around its centre, so a single slice is seen."""
        inside = np.ones(shape, dtype=bool)
        for axis, size in enumerate(self.shape):
            along = [grid[axis, n] * np.arange(count) for n, count in enumerate(shape)]
            low, high = (grid[axis, 3] + sum(end(steps) for steps in along) for end in (np.min, np.max))
            if low >= -_HALF_VOXEL and high <= size - 1 + _HALF_VOXEL:
                continue
            voxel = along[0][:, None, None] + along[1][:, None] + along[2] + grid[axis, 3]
            inside &= (voxel >= -_HALF_VOXEL) & (voxel <= size - 1 + _HALF_VOXEL)
        return inside

    def _values(self, volume: FloatImage, grid: FloatArray, shape: tuple[int, ...]) -> FloatImage:
        offset = grid[:3, 3] - self.start
        values = ndimage.affine_transform(volume, grid[:3, :3], offset, output_shape=shape, order=1, mode="nearest")
        return np.asarray(values)

    def _paths(
        self, labelled: FloatImage, grid: FloatArray, inside: npt.NDArray[np.bool_], pixel_mm: float
    ) -> list[str]:
        """Outlines of what is 1 in ``labelled``, one path per picture; only the part of the grid around it is sampled."""
        paths = [""] * len(inside)
        if not labelled.any():
            return paths
        part = self._part_of_grid(labelled, grid, inside.shape)
        corner = [span.start for span in part]
        moved = grid.copy()
        moved[:3, 3] = apply_affine(grid, corner)
        planes = np.where(inside[part], self._values(labelled, moved, inside[part].shape), np.float32(0))
        for number, plane in enumerate(planes, start=corner[0]):
            paths[number] = _outline_path(plane, pixel_mm, (corner[2], corner[1]))
        return paths

    def _part_of_grid(self, labelled: FloatImage, grid: FloatArray, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of the grid within a voxel of what is 1 in ``labelled``; at least one point."""
        found = np.argwhere(labelled) + self.start
        ends = np.stack([found.min(axis=0) - 1, found.max(axis=0) + 1])
        corners = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        on_grid = apply_affine(np.linalg.inv(grid), corners)
        low = np.clip(np.floor(on_grid.min(axis=0)).astype(int), 0, np.array(shape) - 1)
        high = np.clip(np.ceil(on_grid.max(axis=0)).astype(int) + 1, low + 1, shape)
        return tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))


@dataclass(frozen=True)
class Overview:
    """A picture of the whole lungs, and where world positions fall on it.

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
    """Where everything lies: the brightest voxels of the lungs seen from the front, the body around them dimmed.

    Where no lungs are known it is the whole scan, summed along the line of sight as on a radiograph. A slab, less than
    half as high as it is wide, is seen from the feet.
    """
    affine_ras, (image_hu, labels) = _upright(result.affine_ras, result.image_hu, result.mask)
    voxel_mm = spacing_mm(affine_ras)
    extent_mm = voxel_mm * image_hu.shape
    view = AXIAL if extent_mm[2] < extent_mm[0] / 2 else CORONAL
    lungs = None if result.lungs is None else _ShrunkLungs.of(result.lungs, affine_ras, image_hu.shape)
    box = tuple(slice(0, n) for n in image_hu.shape) if lungs is None else lungs.box
    axes = (view.row_axis, view.column_axis, view.sight_axis)
    cut = image_hu[box].transpose(axes)
    if lungs is None:
        pixels = _radiograph(cut)
    else:
        pixels = _lung_projection(cut, labels[box].transpose(axes), lungs, axes)
    corner = np.array([box[axis].start for axis in axes[:2]])
    to_mm = np.linalg.inv(affine_ras)[list(axes[:2])]
    to_mm[:, 3] += 0.5 - corner
    to_mm *= voxel_mm[list(axes[:2]), None]
    return _framed(view, pixels, voxel_mm[list(axes[:2])], to_mm, of_lungs=lungs is not None)


def _upright(affine_ras: npt.ArrayLike, *volumes: npt.NDArray) -> tuple[FloatArray, list[npt.NDArray]]:
    """Views of volumes of one grid with its axes in the order and direction of display.

    Returns:
        ``[4, 4]`` affine to RAS mm and the volumes ``[x, y, z]``: from right to left, front to back, head to feet.
    """
    affine_ras = np.asarray(affine_ras, dtype=np.float64)
    ras_axes, directions = io_orientation(affine_ras).astype(int).T
    order = np.argsort(ras_axes)
    flipped = [axis for axis in range(3) if directions[order[axis]] > 0]
    to_stored = np.zeros((4, 4))
    to_stored[3, 3] = 1.0
    for axis, stored in enumerate(order):
        to_stored[stored, axis] = -1.0 if axis in flipped else 1.0
        to_stored[stored, 3] = volumes[0].shape[stored] - 1 if axis in flipped else 0.0
    return affine_ras @ to_stored, [np.flip(volume.transpose(order), flipped) for volume in volumes]


@dataclass(frozen=True)
class _ShrunkLungs:
    """Where the lungs lie in an upright scan, drawn in a little: the chest wall is brighter than anything in them.

    Attributes:
        box: of the scan's voxels, with a margin.
        share: ``[x', y', z']`` smoothed lung, on the lungs' own grid, parallel to the scan's.
        scale, start: ``[3]`` voxel of that grid = scale * voxel of the box + start.
    """

    box: tuple[slice, ...]
    share: FloatImage
    scale: FloatArray
    start: FloatArray

    @classmethod
    def of(cls, lungs: LungRegion, affine_ras: FloatArray, shape: tuple[int, ...]) -> _ShrunkLungs:
        lung_affine_ras, (distance_mm,) = _upright(lungs.affine_ras, lungs.distance_mm)
        to_lungs = np.linalg.inv(lung_affine_ras) @ affine_ras
        scale, shift = np.diag(to_lungs)[:3], to_lungs[:3, 3]
        inside = distance_mm == 0
        spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        margin = _OVERVIEW_MARGIN_MM / spacing_mm(affine_ras)
        low = np.maximum((np.array([s[0] for s in spans]) - 0.5 - shift) / scale - margin, 0).astype(int)
        high = np.minimum((np.array([s[-1] for s in spans]) + 0.5 - shift) / scale + margin, shape).astype(int)
        sigma = _SHRINK_MM / spacing_mm(lung_affine_ras)
        share = ndimage.gaussian_filter(inside.astype(np.float32), sigma, truncate=2.5)
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        return cls(box, share, scale, scale * low + shift)

    def inside(self, axes: tuple[int, int, int], voxels: list[FloatArray]) -> npt.NDArray[np.bool_]:
        """Whether the voxels of the box at some positions along each of ``axes`` are lung (trilinear)."""
        values = self.share.transpose(axes)
        for number, (axis, along) in enumerate(zip(axes, voxels, strict=True)):
            where = np.clip(self.scale[axis] * along + self.start[axis], 0, values.shape[number] - 1)
            below = np.minimum(where.astype(int), max(values.shape[number] - 2, 0))
            weight = (where - below).astype(np.float32).reshape([-1 if n == number else 1 for n in range(3)])
            above = np.minimum(below + 1, values.shape[number] - 1)
            values = values.take(below, number) * (1 - weight) + values.take(above, number) * weight
        return np.asarray(values > _LUNG_SHARE)


def _lung_projection(
    image_hu: npt.NDArray[np.int16], labels: npt.NDArray[np.uint16], lungs: _ShrunkLungs, axes: tuple[int, int, int]
) -> FloatImage:
    """Brightest voxel of lungs and nodules along the last axis, on the dimmed body: ``[rows, columns]``, 0 … 1."""
    thickness = max(round(1 / abs(lungs.scale[axes[2]])), 1)
    starts = np.arange(0, image_hu.shape[2], thickness)
    slabs, nodules = (np.maximum.reduceat(volume, starts, axis=2) for volume in (image_hu, labels))
    positions = [np.arange(image_hu.shape[0]), np.arange(image_hu.shape[1]), starts + (thickness - 1) / 2]
    shown = lungs.inside(axes, [p.astype(np.float64) for p in positions]) | (nodules > 0)
    brightest = np.where(shown, slabs, np.int16(_AIR_HU)).max(axis=2)
    covered = ndimage.gaussian_filter(shown.any(axis=2).astype(np.float32), 1.0)
    vessels = _OVERVIEW_WINDOW.grey(brightest) / np.float32(255)
    return np.asarray(covered * vessels + (1 - covered) * _BACKGROUND * _radiograph(slabs))


def _radiograph(image_hu: npt.NDArray[np.int16]) -> FloatImage:
    """Attenuation summed along the last axis, 0 … 1."""
    attenuation = np.maximum(image_hu, _AIR_HU).mean(axis=2, dtype=np.float32) - _AIR_HU
    seen = attenuation[attenuation > 0]
    low, high = np.percentile(seen, [1, 99.5]) if seen.size else (0.0, 0.0)
    return np.asarray(np.clip((attenuation - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def _framed(
    view: View, pixels: FloatImage, pixel_mm: FloatArray, ras_to_mm: FloatArray, *, of_lungs: bool
) -> Overview:
    """Bring ``pixels`` (0 … 1, of ``pixel_mm`` along rows and columns) to square ones, on black where it is small."""
    size_mm = pixel_mm * pixels.shape
    square_mm = size_mm.max() / _OVERVIEW_PIXELS
    rows, columns = np.maximum(np.rint(size_mm / square_mm).astype(int), 1).tolist()
    grey = Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).resize((columns, rows), Image.Resampling.BICUBIC)
    missing = np.maximum(np.ceil((_OVERVIEW_MIN_MM - size_mm) / square_mm / 2), 0).astype(int)
    framed = np.pad(np.asarray(grey), [(m, m) for m in missing.tolist()])
    ras_to_mm = ras_to_mm.copy()
    ras_to_mm[:, 3] += missing * square_mm
    height_mm, width_mm = (size_mm + 2 * missing * square_mm).tolist()
    # rows come before columns above, x before y on the picture
    return Overview(Picture(view, framed, width_mm, height_mm), of_lungs, ras_to_mm[::-1])


def _data_uri(grey: GreyImage) -> str:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="WEBP", quality=_QUALITY, method=_WEBP_EFFORT)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outline_path(inside: FloatImage, pixel_mm: float, corner: tuple[int, int] = (0, 0)) -> str:
    """Where ``inside`` passes one half, as an SVG path in mm; the empty string where it never does.

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
    """The lines of a picture's outline, each ``[points, 2]`` in mm from the left and upper border; the first point of a
    closed one comes again at its end."""
    lines = []
    for part in path.split("M")[1:]:
        points = np.array(part.removesuffix("Z").split(), dtype=np.float64).reshape(-1, 2)
        lines.append(np.concatenate([points, points[:1]]) if part.endswith("Z") else points)
    return lines
