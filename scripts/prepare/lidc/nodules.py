"""Turns readings into nodules: places them on the scan's grid, groups them by nodule, and describes each nodule.

The rule is that of pylidc (Hancock and Magnan, Journal of Medical Imaging 3:044504, 2016), which most work on LIDC-IDRI
uses: readings belong to the same nodule if the smallest distance between their outlines is at most the slice spacing. A
group of more than four readings (LIDC had four readers) is split using a distance 0.9 times as large, repeatedly.
Deviations: pylidc reduces the distance for the whole scan, this module only for the group (on LIDC-IDRI the groups are
the same); pylidc uses the slice thickness from the header, this module the spacing of the positions. Groups whose
readings share border pixels cannot be split and are kept (14 in LIDC-IDRI). Several readings by one reader in a group
count as one reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...core.geometry import (
    BoolArray,
    FloatArray,
    Point,
    apply_affine,
    spacing_mm,
    sphere_diameter_mm,
    voxel_volume_mm3,
)
from .readings import RATINGS, Frame, LidcError, Mark, Reading, Region, SeriesReadings

MOST_READINGS = 4  # of one nodule: LIDC had four readers
TIGHTEN, SMALLEST_MM = 0.9, 0.1  # factor on the distance in each repetition, and where the repetition ends
MARK_MM = 10.0  # LUNA16 gives findings without a size a sphere of 10 mm
SAME_SLICE_STEPS = 0.5  # z of an outline must differ from that of its slice by less than this part of a slice step
SAME_PLACE_MM = 0.2  # a frame may be this far from its slice: slices jitter by 0.1 mm, pixels are 0.4 mm or more
SAME_DIRECTION = 1e-3  # tolerance of direction cosines: rounding in headers

OUTLINED = "nodule >= 3 mm"
NO_CONSENSUS = "nodule >= 3 mm without consensus"


@dataclass(frozen=True)
class SliceTable:
    """The slices of a scan, by the UIDs that readings refer to.

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
        """Distance between slices, mm."""
        return float(spacing_mm(self.affine_lps)[2])

    def k_of(self, what: Region | Mark) -> int:
        """Return the slice index k of a region or mark; without a UID, that of the nearest slice.

        Raises:
            LidcError: there is no such slice, its z differs, or the region's pixels are not those of the scan.
        """
        if what.sop_uid:
            k, place = self.places.get(what.sop_uid, (-1, (np.nan,) * 3))
        else:
            k, place = min(self.places.values(), key=lambda place: abs(place[1][2] - what.z_mm))
        if k < 0:
            raise LidcError(
                f"slice {what.sop_uid}: expected it in the series, found only its outline: slices are missing; "
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
        """Refuse a frame whose pixels are not those of its slice, as regions are given only in columns and rows.

        Raises:
            LidcError: size, position or orientation differ.
        """
        apart_mm = float(np.linalg.norm(np.subtract(place_lps_mm, frame.position_lps_mm)))
        axes = self.affine_lps[:3, :2] / spacing_mm(self.affine_lps)[:2]
        turned = float(np.abs(np.reshape(frame.orientation, (2, 3)).T - axes).max())
        if frame.size != self.shape[:2] or apart_mm > SAME_PLACE_MM or turned > SAME_DIRECTION:
            raise LidcError(
                f"segmentation: expected frames on the pixels of the scan's slices, got one of {frame.size} pixels, "
                f"{apart_mm:.2f} mm away; resample it to the scan"
            )

    def place(self, pixels: npt.NDArray[np.int64], what: Region | Mark) -> FloatArray:
        """Convert columns and rows ``[N, 2]`` in the slice of a region or mark to LPS mm ``[N, 3]``.

        Raises:
            LidcError: see :meth:`k_of`; or some lie outside the image.
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
    """The masks of one nodule by each of its readers, in a box of the scan's grid.

    Attributes:
        corner: ``[3]`` i, j, k of the box's first voxel on the scan's grid.
        readers: numbers of the readers, ascending.
        inside: ``[R, I, J, K]`` bool, in the order of ``readers``; all may be false, and the box may have no voxel.
    """

    corner: npt.NDArray[np.int64]
    readers: tuple[int, ...]
    inside: BoolArray

    @property
    def box(self) -> tuple[slice, ...]:
        """The box on the scan's grid."""
        return tuple(slice(a, a + n) for a, n in zip(self.corner, self.inside.shape[1:], strict=True))

    def consensus(self) -> BoolArray:
        """Return the voxels that at least half of the nodule's readers included, ``[I, J, K]`` bool; may be empty."""
        return np.asarray(2 * np.count_nonzero(self.inside, axis=0) >= len(self.readers))


def reader_masks(readings: Sequence[Reading], slices: SliceTable) -> ReaderMasks:
    """Return the masks of one nodule's readers in a common box; several readings by one reader are united.

    Args:
        readings: at least one reading, within the image (see :meth:`SliceTable.place`).
        slices: the scan's slices.
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
        kind: :data:`OUTLINED`, :data:`NO_CONSENSUS`, or the kind of a mark.
        centre_lps_mm: centre of the consensus; without one, the mean of the outlines' pixels, or the mark.
        diameter_mm: diameter of the sphere with the volume of the consensus; :data:`MARK_MM` without one.
        volume_mm3: volume of the consensus; 0 without one.
        readers: number of readers who marked it.
        ratings: for each rating by name, the median over the readings that have it; empty for marks.
        masks: the masks of its readers; ``None`` for marks.
    """

    kind: str
    centre_lps_mm: Point
    diameter_mm: float
    volume_mm3: float
    readers: int
    ratings: dict[str, float]
    masks: ReaderMasks | None


def find_findings(series: SeriesReadings, slices: SliceTable) -> list[Finding]:
    """Return the findings of a scan: nodules ordered by position, then those without consensus, then marks.

    Args:
        series: the readings of the scan; without any, there are no findings.
        slices: the scan's slices.

    Raises:
        LidcError: readings and scan do not belong together.
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
    """Group the readings that belong to the same nodule.

    Args:
        borders_mm: border points ``[N, 3]`` of each reading.
        distance_mm: the slice spacing.

    Returns:
        Indices of the readings in each group, ascending, groups ordered by their first; empty without readings.
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
    """Return the median of each rating over the readings that have it; it may lie halfway between two values."""
    given = {name: [reading.ratings[name] for reading in readings if name in reading.ratings] for name in RATINGS}
    return {name: float(np.median(values)) for name, values in given.items() if values}


def _other_findings(marks: Sequence[Mark], nodules: Sequence[Finding], slices: SliceTable) -> list[Finding]:
    """Return the marks outside all nodules as findings.

    A mark within half of :data:`MARK_MM` of an earlier one of the same kind joins it.
    """
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
    """Return ``[I, J, K]`` in which the voxels of each consensus have the number of its finding, from 1; 0 elsewhere.

    Where two overlap (one may lie inside the other), the smaller one wins.
    """
    instances: npt.NDArray[Any] = np.zeros(shape, dtype=np.min_scalar_type(len(findings)))
    numbered = [(number, finding.masks) for number, finding in enumerate(findings, start=1) if finding.masks]
    for number, masks in sorted(numbered, key=lambda one: -np.count_nonzero(one[1].consensus())):
        instances[masks.box][masks.consensus()] = number
    return instances
