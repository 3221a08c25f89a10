"""Readings on the scan's own grid: which voxels each reader's outline holds, and which most of them hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.geometry import FloatArray, apply_affine, spacing_mm
from .readings import Frame, LidcError, Mark, Mask, Reading, Region

SAME_SLICE_STEPS = 0.5  # z of an outline may differ from its slice's by less than this part of a slice step
SAME_PLACE_MM = 0.2  # a frame may lie this far from its slice: slices jitter by 0.1 mm, pixels are 0.4 mm or more
SAME_DIRECTION = 1e-3  # of direction cosines: rounding of headers


@dataclass(frozen=True)
class SliceTable:
    """The slices of a scan, as readings name them.

    Attributes:
        places: SOPInstanceUID to k and the first pixel's position, LPS mm.
        shape: the grid's ``(I, J, K)``.
        affine_lps: ``[4, 4]`` voxel to LPS mm.
    """

    places: Mapping[str, tuple[int, Sequence[float]]]
    shape: tuple[int, ...]
    affine_lps: FloatArray

    @property
    def step_mm(self) -> float:
        """Distance between slices."""
        return float(spacing_mm(self.affine_lps)[2])

    def k_of(self, what: Region | Mark) -> int:
        """The slice of a region or mark.

        Raises:
            LidcError: no such slice, one at another height, or a region on other pixels than the scan's.
        """
        if not what.sop_uid:
            k, place = min(self.places.values(), key=lambda place: abs(place[1][2] - what.z_mm))
        elif what.sop_uid in self.places:
            k, place = self.places[what.sop_uid]
        else:
            raise LidcError(
                f"slice {what.sop_uid}: expected it in the series, found an outline of it alone: slices are missing; "
                "download the series again"
            )
        if abs(what.z_mm - place[2]) >= SAME_SLICE_STEPS * self.step_mm:
            raise LidcError(
                f"slice {what.sop_uid}: expected it at z = {place[2]:g} mm, where the scan has it, got an outline at "
                f"z = {what.z_mm:g} mm; readings and scan do not belong together"
            )
        if isinstance(what, Region) and what.frame:
            self._check_frame(what.frame, place)
        return k

    def _check_frame(self, frame: Frame, place_lps_mm: Sequence[float]) -> None:
        """Refuse a frame whose pixels are not those of its slice: regions carry columns and rows only."""
        apart_mm = float(np.linalg.norm(np.subtract(place_lps_mm, frame.position_lps_mm)))
        axes = self.affine_lps[:3, :2] / spacing_mm(self.affine_lps)[:2]
        turned = float(np.abs(np.reshape(frame.orientation, (2, 3)).T - axes).max())
        if frame.size != self.shape[:2] or apart_mm > SAME_PLACE_MM or turned > SAME_DIRECTION:
            raise LidcError(
                f"segmentation: expected frames on the pixels of the scan's slices, got one of {frame.size} pixels, "
                f"{apart_mm:.2f} mm away; resample it to the scan"
            )

    def place(self, pixels: npt.NDArray[np.int64], what: Region | Mark) -> FloatArray:
        """Columns and rows ``[N, 2]`` of a region's or mark's slice as LPS mm, ``[N, 3]``.

        Raises:
            LidcError: see :meth:`k_of`; or some lie beyond the image.
        """
        outside = pixels[((pixels < 0) | (pixels >= self.shape[:2])).any(axis=1)]
        if len(outside):
            raise LidcError(
                f"slice {what.sop_uid}: expected outlines within {self.shape[0]} × {self.shape[1]} pixels, got column "
                f"{outside[0, 0]}, row {outside[0, 1]}; readings and scan do not belong together"
            )
        return apply_affine(self.affine_lps, np.insert(pixels, 2, self.k_of(what), axis=1))

    def place_border(self, reading: Reading) -> FloatArray:
        """The pixels just outside of a reading, LPS mm, ``[N, 3]``.

        Raises:
            LidcError: see :meth:`place`.
        """
        return np.concatenate([self.place(region.border, region) for region in reading.regions])


@dataclass(frozen=True)
class ReaderMasks:
    """What each reader of one nodule outlined.

    Attributes:
        corner: ``[3]`` i, j, k of the first voxel on the scan's grid.
        readers: their numbers, ascending.
        inside: ``[R, I, J, K]`` bool, in the order of ``readers``; may hold no voxel.
    """

    corner: npt.NDArray[np.int64]
    readers: tuple[int, ...]
    inside: Mask

    @property
    def box(self) -> tuple[slice, ...]:
        """Its voxels on the scan's grid."""
        return tuple(slice(a, a + n) for a, n in zip(self.corner, self.inside.shape[1:], strict=True))

    def consensus(self) -> Mask:
        """Voxels inside at least half of the readers who marked the nodule: ``[I, J, K]``; may hold none."""
        return np.asarray(2 * np.count_nonzero(self.inside, axis=0) >= len(self.readers))


def reader_masks(readings: Sequence[Reading], slices: SliceTable) -> ReaderMasks:
    """The masks of one nodule on one cut-out; a reader with several readings gets all of them together.

    Args:
        readings: at least one; within the image (:meth:`SliceTable.place_border`).
        slices: of the scan.
    """
    placed = [(one.reader, region, slices.k_of(region)) for one in readings for region in one.regions]
    corners = np.array([[*region.corner, k] for _, region, k in placed])
    ends = corners + [[*region.inside.shape, 1] for _, region, _ in placed]
    corner = corners.min(axis=0)
    readers = sorted({reader for reader, _, _ in placed})
    inside = np.zeros((len(readers), *(ends.max(axis=0) - corner)), dtype=bool)
    for (reader, region, _), (i, j, k) in zip(placed, corners - corner, strict=True):
        columns, rows = region.inside.shape
        inside[readers.index(reader), i : i + columns, j : j + rows, k] |= region.inside
    return ReaderMasks(corner, tuple(readers), inside)
