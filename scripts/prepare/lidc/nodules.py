"""Readings become nodules: where they lie on the scan's grid, which belong together, what is known of each nodule.

The rule of pylidc (Hancock and Magnan, Journal of Medical Imaging 3:044504, 2016), which most work on LIDC-IDRI uses:
readings belong to one nodule when the smallest distance of their outlines is at most the slice spacing; a group of more
than four readings, one for each reader, is taken apart with a distance 0.9 times as large, again and again.
Deviations: pylidc shortens the distance for the whole scan, here only the group does (on LIDC-IDRI the groups are the
same); pylidc takes the slice thickness of the header, here it is the spacing of the positions. Groups that share border
pixels cannot be taken apart and stay (14 in LIDC-IDRI). Readings of one reader in one group count as one reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...core.errors import refuse
from ...core.geometry import FloatArray, Point, apply_affine, spacing_mm, sphere_diameter_mm, voxel_volume_mm3
from .readings import RATINGS, Frame, LidcError, Mark, Mask, Reading, Region, SeriesReadings

MOST_READINGS = 4  # of one nodule: LIDC had four readers
TIGHTEN, SMALLEST_MM = 0.9, 0.1  # factor of the distance, and where it ends
MARK_MM = 10.0  # LUNA16 gives findings without a size a sphere of 10 mm
SAME_SLICE_STEPS = 0.5  # z of an outline may differ from its slice's by less than this part of a slice step
SAME_PLACE_MM = 0.2  # a frame may lie this far from its slice: slices jitter by 0.1 mm, pixels are 0.4 mm or more
SAME_DIRECTION = 1e-3  # of direction cosines: rounding of headers

OUTLINED = "nodule >= 3 mm"
NO_CONSENSUS = "nodule >= 3 mm without consensus"


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
        if what.sop_uid:
            k, place = self.places.get(what.sop_uid, (-1, (np.nan,) * 3))
        else:
            k, place = min(self.places.values(), key=lambda place: abs(place[1][2] - what.z_mm))
        refuse(
            LidcError,
            (
                k < 0,
                f"slice {what.sop_uid}: expected it in the series, found an outline of it alone: slices are missing; "
                "download the series again",
            ),
            (
                abs(what.z_mm - place[2]) >= SAME_SLICE_STEPS * self.step_mm,
                f"slice {what.sop_uid}: expected it at z = {place[2]:g} mm, where the scan has it, got an outline at "
                f"z = {what.z_mm:g} mm; readings and scan do not belong together",
            ),
        )
        if isinstance(what, Region) and what.frame:
            self._check_frame(what.frame, place)
        return k

    def _check_frame(self, frame: Frame, place_lps_mm: Sequence[float]) -> None:
        """Refuse a frame whose pixels are not those of its slice: regions carry columns and rows only."""
        apart_mm = float(np.linalg.norm(np.subtract(place_lps_mm, frame.position_lps_mm)))
        axes = self.affine_lps[:3, :2] / spacing_mm(self.affine_lps)[:2]
        turned = float(np.abs(np.reshape(frame.orientation, (2, 3)).T - axes).max())
        is_other = frame.size != self.shape[:2] or apart_mm > SAME_PLACE_MM or turned > SAME_DIRECTION
        refuse(
            LidcError,
            (
                is_other,
                f"segmentation: expected frames on the pixels of the scan's slices, got one of {frame.size} pixels, "
                f"{apart_mm:.2f} mm away; resample it to the scan",
            ),
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
        readings: at least one; within the image (:meth:`SliceTable.place`).
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


@dataclass(frozen=True)
class Finding:
    """A nodule, or a place that is neither nodule nor background.

    Attributes:
        kind: :data:`OUTLINED`, :data:`NO_CONSENSUS`, or what marks are called.
        centre_lps_mm: centre of the consensus; of a finding without one, of what was drawn.
        diameter_mm: of the sphere with the consensus' volume; :data:`MARK_MM` where there is none.
        volume_mm3: of the consensus; 0 where there is none.
        readers: how many marked it.
        ratings: median of the readers who gave one, by name.
        masks: each reader's; ``None`` for marks.
    """

    kind: str
    centre_lps_mm: Point
    diameter_mm: float
    volume_mm3: float
    readers: int
    ratings: dict[str, float]
    masks: ReaderMasks | None


def find_findings(series: SeriesReadings, slices: SliceTable) -> list[Finding]:
    """Nodules first, by place, then those without consensus and marks; may be empty.

    Args:
        series: what was read.
        slices: of the scan.

    Raises:
        LidcError: readings and scan do not fit.
    """
    borders_mm = [
        np.concatenate([slices.place(region.border, region) for region in reading.regions])
        for reading in series.readings
    ]
    found = [
        _nodule([series.readings[n] for n in group], np.concatenate([borders_mm[n] for n in group]), slices)
        for group in group_readings(borders_mm, slices.step_mm)
    ]
    found.sort(key=lambda finding: (finding.kind != OUTLINED, finding.centre_lps_mm[::-1]))
    return found + _other_findings(series.marks, found, slices)


def group_readings(borders_mm: Sequence[FloatArray], distance_mm: float) -> list[list[int]]:
    """Which readings belong to one nodule.

    Args:
        borders_mm: of each reading, ``[N, 3]``.
        distance_mm: slice spacing.

    Returns:
        Their numbers, ascending within a group, groups by their first; no reading gives no group.
    """
    count = len(borders_mm)
    apart = np.zeros((count, count))
    trees = [cKDTree(points) for points in borders_mm]
    for a in range(count):
        for b in range(a):
            apart[a, b] = apart[b, a] = trees[a].query(borders_mm[b])[0].min()
    return sorted(_taken_apart(apart, np.arange(count), distance_mm)) if count else []


def _taken_apart(apart: FloatArray, members: npt.NDArray[np.int64], distance_mm: float) -> list[list[int]]:
    groups: list[list[int]] = []
    _, labels = connected_components(apart[np.ix_(members, members)] <= distance_mm, directed=False)
    for label in np.unique(labels):
        group = members[labels == label]
        if len(group) <= MOST_READINGS or distance_mm < SMALLEST_MM:
            groups.append(group.tolist())
        else:
            groups += _taken_apart(apart, group, TIGHTEN * distance_mm)
    return groups


def _nodule(readings: Sequence[Reading], border_mm: FloatArray, slices: SliceTable) -> Finding:
    masks = reader_masks(readings, slices)
    agreed = np.argwhere(masks.consensus())
    ratings = median_ratings(readings)
    if not len(agreed):
        centre = _point(border_mm.mean(axis=0))
        return Finding(NO_CONSENSUS, centre, MARK_MM, 0.0, len(masks.readers), ratings, masks)
    volume_mm3 = len(agreed) * voxel_volume_mm3(slices.affine_lps)
    centre = _point(apply_affine(slices.affine_lps, agreed.mean(axis=0) + masks.corner))
    return Finding(OUTLINED, centre, sphere_diameter_mm(volume_mm3), volume_mm3, len(masks.readers), ratings, masks)


def median_ratings(readings: Sequence[Reading]) -> dict[str, float]:
    """Median of each rating over the readings that have it; between two it lies halfway."""
    given = {name: [reading.ratings[name] for reading in readings if name in reading.ratings] for name in RATINGS}
    return {name: float(np.median(values)) for name, values in given.items() if values}


def _other_findings(marks: Sequence[Mark], nodules: Sequence[Finding], slices: SliceTable) -> list[Finding]:
    """Marks outside all nodules; marks of one kind within half of :data:`MARK_MM` of an earlier one join it."""
    places: list[tuple[FloatArray, str, set[int]]] = []
    for mark in marks:
        (place,) = slices.place(np.array([mark.pixel]), mark)
        if any(np.linalg.norm(place - nodule.centre_lps_mm) < nodule.diameter_mm / 2 for nodule in nodules):
            continue
        near = (p for p in places if p[1] == mark.kind and np.linalg.norm(place - p[0]) < MARK_MM / 2)
        joined = next(near, (place, mark.kind, set[int]()))
        if not joined[2]:
            places.append(joined)
        joined[2].add(mark.reader)
    found = [Finding(kind, _point(place), MARK_MM, 0.0, len(readers), {}, None) for place, kind, readers in places]
    return sorted(found, key=lambda finding: (finding.kind, finding.centre_lps_mm[::-1]))


def _point(position_mm: FloatArray) -> Point:
    x, y, z = (float(value) for value in position_mm)
    return x, y, z


def instance_mask(findings: Sequence[Finding], shape: tuple[int, ...]) -> npt.NDArray[np.uint8 | np.uint16]:
    """Each consensus with its finding's number from 1; where two overlap (one may lie in the other), the smaller's."""
    instances: npt.NDArray[Any] = np.zeros(shape, dtype=np.uint8 if len(findings) < 256 else np.uint16)
    numbered = [(number, finding.masks) for number, finding in enumerate(findings, start=1) if finding.masks]
    for number, masks in sorted(numbered, key=lambda one: -np.count_nonzero(one[1].consensus())):
        instances[masks.box][masks.consensus()] = number
    return instances
