"""Pictures of a scan in radiological display, whatever its orientation, spacing or shear.

Every picture is sampled through the affine on a small grid in RAS millimetres: the patient's right (R) is on the left
of axial and coronal pictures, the front (A) on top of axial and on the left of sagittal ones, the head (H) on top.
Outlines stay vectors in millimetres from the picture's upper left corner, so that they are crisp at any size.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from PIL import Image
from scipy import ndimage

from ..findings import Nodule, ScanResult
from ..geometry import FloatArray, Point, apply_affine, box_around, spacing_mm

FloatImage = npt.NDArray[np.float32]
GreyImage = npt.NDArray[np.uint8]

# Beyond the scan: below any window, so that it is black.
_OUTSIDE_HU = -32768.0
# Added before the overview's sum, so that air (-1000 HU) counts nothing.
_AIR_OFFSET_HU = 1000.0
# Half a voxel lies around each voxel centre; the slack keeps rounding from deciding at the very border.
_HALF_VOXEL = 0.5 + 1e-6
# More pixels cost bytes and show nothing new: a larger field of view gets larger pixels instead.
_MAX_PIXELS = 200
# Along the longest side of the overview; about 1.7 mm a pixel for an adult chest, never finer than 1 mm.
_OVERVIEW_PIXELS = 256
_OVERVIEW_MIN_PIXEL_MM = 1.0
# A slab of few slices still gets a picture that can be seen.
_OVERVIEW_MIN_MM = 80.0


@dataclass(frozen=True)
class View:
    """A direction to look from.

    Attributes:
        name: as radiologists call it.
        column_axis, row_axis: RAS axes (0 x, 1 y, 2 z) that fall from left to right and from top to bottom.
        left, right, top: the letters at the picture's sides.
    """

    name: str
    column_axis: int
    row_axis: int
    left: str
    right: str
    top: str


AXIAL = View("Axial", 0, 1, "R", "L", "A")
CORONAL = View("Coronal", 0, 2, "R", "L", "H")
SAGITTAL = View("Sagittal", 1, 2, "A", "P", "H")


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
        """The picture as a PNG inside a ``data:`` URI."""
        buffer = io.BytesIO()
        Image.fromarray(self.grey).save(buffer, format="PNG", compress_level=9)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
        scaled = (np.asarray(image_hu) - self.centre_hu) / self.width_hu + 0.5
        return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def close_ups(
    result: ScanResult, nodule: Nodule, window: Window, field_of_view_mm: float, *, pixel_mm: float = 0.5
) -> tuple[Picture, Picture, Picture]:
    """Axial, coronal and sagittal plane through the nodule's centre with its outline.

    Args:
        result: the scan.
        nodule: one of its nodules.
        window: HU range shown.
        field_of_view_mm: least width of the pictures; a large nodule gets three times its diameter.
        pixel_mm: edge of a pixel; larger where the field of view asks for more than 200 pixels.

    Returns:
        Square pictures; what lies beyond the scan is black.
    """
    measured_mm = nodule.measurement.long_axis_mm if nodule.measurement else 0.0
    width_mm = max(field_of_view_mm, 3 * nodule.detection.diameter_mm, 1.5 * measured_mm)
    count = min(round(width_mm / pixel_mm), _MAX_PIXELS)
    cut = _Block.around(result, nodule, width_mm / 2)
    views = (AXIAL, CORONAL, SAGITTAL)
    axial, coronal, sagittal = (cut.picture(view, window, width_mm=width_mm, count=count) for view in views)
    return axial, coronal, sagittal


@dataclass(frozen=True)
class _Block:
    """The part of the scan around a nodule, ready to be cut by planes.

    Attributes:
        centre_ras_mm: the nodule's centre.
        to_voxel: ``[4, 4]``, RAS mm to voxel of the whole scan.
        shape: of the whole scan.
        start: the block's first voxel in the whole scan.
        spline: cubic spline coefficients of the image, HU.
        own, others: 1 inside this nodule's outline, inside any other's.
    """

    centre_ras_mm: Point
    to_voxel: FloatArray
    shape: tuple[int, ...]
    start: tuple[int, int, int]
    spline: FloatImage
    own: FloatImage
    others: FloatImage

    @classmethod
    def around(cls, result: ScanResult, nodule: Nodule, half_width_mm: float) -> _Block:
        centre_ras_mm = nodule.detection.centre_ras_mm
        # Two voxels more: the reach of a cubic spline.
        reach_mm = half_width_mm + 2 * float(spacing_mm(result.affine_ras).max())
        box = box_around(result.affine_ras, result.image_hu.shape, centre_ras_mm, reach_mm)
        labels = result.mask[box]
        image_hu = result.image_hu[box].astype(np.float32)
        return cls(
            centre_ras_mm=centre_ras_mm,
            to_voxel=np.linalg.inv(np.asarray(result.affine_ras, dtype=np.float64)),
            shape=result.image_hu.shape,
            start=(box[0].start, box[1].start, box[2].start),
            spline=ndimage.spline_filter(image_hu, order=3, output=np.float32, mode="mirror"),
            own=(labels == nodule.label).astype(np.float32),
            others=((labels != 0) & (labels != nodule.label)).astype(np.float32),
        )

    def picture(self, view: View, window: Window, *, width_mm: float, count: int) -> Picture:
        pixel_mm = width_mm / count
        voxels = self._plane_voxels(view, count, pixel_mm)
        return Picture(
            view=view,
            grey=window.grey(self._values(self.spline, voxels, order=3, outside=_OUTSIDE_HU)),
            width_mm=width_mm,
            height_mm=width_mm,
            outline=_outline_path(self._values(self.own, voxels, order=1, outside=0.0), pixel_mm),
            other_outlines=_outline_path(self._values(self.others, voxels, order=1, outside=0.0), pixel_mm),
        )

    def _plane_voxels(self, view: View, count: int, pixel_mm: float) -> FloatArray:
        """Voxel coordinates ``[3, rows, columns]`` of the pixels' centres."""
        falling_mm = ((count - 1) / 2 - np.arange(count)) * pixel_mm
        points_ras_mm = np.empty((count, count, 3))
        points_ras_mm[:] = self.centre_ras_mm
        points_ras_mm[..., view.column_axis] += falling_mm
        points_ras_mm[..., view.row_axis] += falling_mm[:, None]
        return np.moveaxis(apply_affine(self.to_voxel, points_ras_mm), -1, 0)

    def _values(self, volume: FloatImage, voxels: FloatArray, *, order: int, outside: float) -> FloatImage:
        """Interpolate; a voxel reaches half its width around its centre, so that a single slice can be seen."""
        size = np.array(self.shape)[:, None, None]
        inside = ((voxels >= -_HALF_VOXEL) & (voxels <= size - 1 + _HALF_VOXEL)).all(axis=0)
        local = np.clip(voxels, 0, size - 1) - np.array(self.start)[:, None, None]
        values = ndimage.map_coordinates(volume, local, order=order, mode="mirror", prefilter=False)
        return np.where(inside, values, np.float32(outside))


def overviews(result: ScanResult) -> tuple[Picture, ...]:
    """The whole scan seen from the front and from the left, as on a radiograph: attenuation summed along the view.

    Returns:
        Coronal and sagittal picture, or an axial one alone for a scan less than half as high as it is wide (a slab);
        ``overview_position_mm`` places marks on them.
    """
    top_ras_mm, extent_mm = _overview_box(result)
    pixel_mm = max(float(extent_mm.max()) / _OVERVIEW_PIXELS, _OVERVIEW_MIN_PIXEL_MM)
    counts = np.maximum(np.rint(extent_mm / pixel_mm).astype(int), 1)
    grid_to_ras = np.diag([-pixel_mm, -pixel_mm, -pixel_mm, 1.0])
    grid_to_ras[:3, 3] = top_ras_mm - pixel_mm / 2
    to_voxel = np.linalg.inv(np.asarray(result.affine_ras, dtype=np.float64)) @ grid_to_ras
    volume_hu = ndimage.affine_transform(
        result.image_hu,
        to_voxel[:3, :3],
        to_voxel[:3, 3],
        output_shape=tuple(counts.tolist()),
        output=np.float32,
        order=1,
        mode="grid-constant",
        cval=-_AIR_OFFSET_HU,
    )
    attenuation = np.maximum(volume_hu + _AIR_OFFSET_HU, 0.0)
    low_mm, high_mm = _corners_ras_mm(result)
    slab = high_mm[2] - low_mm[2] < (high_mm[0] - low_mm[0]) / 2
    views = (AXIAL,) if slab else (CORONAL, SAGITTAL)
    return tuple(_overview_picture(view, attenuation, extent_mm) for view in views)


def overview_position_mm(result: ScanResult, view: View, point_ras_mm: Point) -> tuple[float, float]:
    """Where a world position falls on the overview, in mm from its left and upper border."""
    top_ras_mm, _ = _overview_box(result)
    down_mm = top_ras_mm - np.asarray(point_ras_mm)
    return float(down_mm[view.column_axis]), float(down_mm[view.row_axis])


def _overview_box(result: ScanResult) -> tuple[FloatArray, FloatArray]:
    """What the overview shows in RAS: its right, front, upper corner ``[3]`` and its extent ``[3]``, mm."""
    low_mm, high_mm = _corners_ras_mm(result)
    missing_mm = np.maximum(_OVERVIEW_MIN_MM - (high_mm - low_mm), 0.0)
    return high_mm + missing_mm / 2, high_mm - low_mm + missing_mm


def _corners_ras_mm(result: ScanResult) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest corner of the box around the scan, half a voxel beyond the outer voxel centres, RAS mm."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners_mm = apply_affine(result.affine_ras, corners * result.image_hu.shape - 0.5)
    return corners_mm.min(axis=0), corners_mm.max(axis=0)


def _overview_picture(view: View, attenuation: FloatImage, extent_mm: FloatArray) -> Picture:
    line_of_sight = ({0, 1, 2} - {view.column_axis, view.row_axis}).pop()
    projection = attenuation.sum(axis=line_of_sight)
    seen = projection[projection > 0]
    low, high = np.percentile(seen, [1, 99.5]) if seen.size else (0.0, 0.0)
    scaled = np.clip((projection.T - low) / max(high - low, 1e-6), 0, 1)
    return Picture(
        view=view,
        grey=np.rint(255 * scaled).astype(np.uint8),
        width_mm=float(extent_mm[view.column_axis]),
        height_mm=float(extent_mm[view.row_axis]),
    )


def _outline_path(inside: FloatImage, pixel_mm: float) -> str:
    """Where ``inside`` passes one half, as an SVG path in mm; the empty string where it never does."""
    if not inside.any():
        return ""
    parts = []
    for line in contour_generator(z=inside).lines(0.5):
        points_mm = (np.asarray(line) + 0.5) * pixel_mm
        closed = bool(np.array_equal(points_mm[0], points_mm[-1]))
        steps = " ".join(f"{x:.2f} {y:.2f}" for x, y in (points_mm[:-1] if closed else points_mm))
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
