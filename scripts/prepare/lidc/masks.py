"""Readings on the scan's own grid: which voxels each reader's outline holds, and which most of them hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...core.geometry import FloatArray
from .readings import LidcError, Mark, Reading, Region

SAME_SLICE_STEPS = 0.5  # z of an outline may differ from its slice's by less than this part of a slice step


@dataclass(frozen=True)
class SliceTable:
    """The slices of a scan, as readings name them.

    Attributes:
        places: SOPInstanceUID to k and z (LPS mm).
        shape: the grid's ``(I, J, K)``.
        step_mm: distance between slices.
    """

    places: Mapping[str, tuple[int, float]]
    shape: tuple[int, ...]
    step_mm: float

    def k_of(self, what: Region | Mark) -> int:
        """The slice of a region or mark.

        Raises:
            LidcError: no such slice, or one at another height.
        """
        if not what.sop_uid and what.z_mm is not None:
            k, z_mm = min(self.places.values(), key=lambda place: abs(place[1] - float(what.z_mm or 0.0)))
        elif what.sop_uid in self.places:
            k, z_mm = self.places[what.sop_uid]
        else:
            raise LidcError(
                f"slice {what.sop_uid}: expected it in the series, found an outline of it alone: slices are missing; "
                "download the series again"
            )
        if what.z_mm is not None and abs(what.z_mm - z_mm) >= SAME_SLICE_STEPS * self.step_mm:
            raise LidcError(
                f"slice {what.sop_uid}: expected it at z = {z_mm:g} mm, where the scan has it, got an outline at "
                f"z = {what.z_mm:g} mm; readings and scan do not belong together"
            )
        return k

    def check_inside(self, pixels: npt.NDArray[np.int64], sop_uid: str) -> None:
        """Refuse columns and rows ``[N, 2]`` beyond the image.

        Raises:
            LidcError: there are some.
        """
        outside = pixels[((pixels < 0) | (pixels >= np.array(self.shape[:2]))).any(axis=1)]
        if len(outside):
            raise LidcError(
                f"slice {sop_uid}: expected outlines within {self.shape[0]} × {self.shape[1]} pixels, got column "
                f"{outside[0, 0]}, row {outside[0, 1]}; readings and scan do not belong together"
            )


@dataclass(frozen=True)
class Patch:
    """A mask cut to what it holds.

    Attributes:
        corner: ``[3]`` i, j, k of its first voxel on the scan's grid.
        inside: ``[I, J, K]`` bool; may be empty.
    """

    corner: npt.NDArray[np.int64]
    inside: npt.NDArray[np.bool_]

    @property
    def end(self) -> npt.NDArray[np.int64]:
        """One beyond the last voxel."""
        return self.corner + np.array(self.inside.shape)


@dataclass(frozen=True)
class ReaderMasks:
    """What each reader of one nodule outlined.

    Attributes:
        corner: ``[3]`` i, j, k of the first voxel on the scan's grid.
        readers: their numbers, ascending.
        inside: ``[R, I, J, K]`` bool, in the order of ``readers``.
    """

    corner: npt.NDArray[np.int64]
    readers: tuple[int, ...]
    inside: npt.NDArray[np.bool_]

    def consensus(self) -> npt.NDArray[np.bool_]:
        """Voxels inside at least half of the readers who marked the nodule: ``[I, J, K]``; may hold none."""
        agreed: npt.NDArray[np.bool_] = 2 * np.count_nonzero(self.inside, axis=0) >= len(self.readers)
        return agreed


def place_reading(reading: Reading, slices: SliceTable) -> Patch:
    """Put a reading on the scan's grid.

    Raises:
        LidcError: a slice is missing, or the outline leaves the image.
    """
    placed = [(slices.k_of(region), region) for region in reading.regions]
    for _, region in placed:
        slices.check_inside(region.border, region.sop_uid)
    corners = np.array([[*region.corner, k] for k, region in placed])
    ends = corners + np.array([[*region.inside.shape, 1] for _, region in placed])
    corner = corners.min(axis=0)
    inside = np.zeros(ends.max(axis=0) - corner, dtype=bool)
    for (k, region), (i, j, _) in zip(placed, corners - corner, strict=True):
        columns, rows = region.inside.shape
        inside[i : i + columns, j : j + rows, k - corner[2]] |= region.inside
    return Patch(corner, inside)


def border_voxels(reading: Reading, slices: SliceTable) -> FloatArray:
    """The pixels just outside of a reading, as voxels: ``[N, 3]`` i, j, k; slices must be there."""
    parts = [
        np.column_stack([region.border, np.full(len(region.border), slices.k_of(region))]) for region in reading.regions
    ]
    return np.concatenate(parts).astype(np.float64)


def join_patches(patches: Sequence[Patch], readers: Sequence[int]) -> ReaderMasks:
    """The masks of one nodule on one cut-out; a reader with several readings gets all of them together.

    Args:
        patches: at least one.
        readers: whose they are, in the same order.
    """
    corner = np.min([patch.corner for patch in patches], axis=0)
    shape = np.max([patch.end for patch in patches], axis=0) - corner
    numbers = sorted(set(readers))
    inside = np.zeros((len(numbers), *shape), dtype=bool)
    for patch, reader in zip(patches, readers, strict=True):
        i, j, k = (slice(a, b) for a, b in zip(patch.corner - corner, patch.end - corner, strict=True))
        inside[numbers.index(reader), i, j, k] |= patch.inside
    return ReaderMasks(corner, tuple(numbers), inside)
