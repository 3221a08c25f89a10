"""Readings become nodules: which belong together, and what is known of each nodule.

The rule of pylidc (Hancock and Magnan, Journal of Medical Imaging 3:044504, 2016), which most work on LIDC-IDRI uses:
readings belong to one nodule when the smallest distance of their outlines is at most the slice spacing; a group of more
than four readings, one for each reader, is taken apart with a distance 0.9 times as large, again and again.
Deviations: pylidc shortens the distance for the whole scan, here only the group does (on LIDC-IDRI the groups are the
same); pylidc takes the slice thickness of the header, here it is the spacing of the positions. Groups that share border
pixels cannot be taken apart and stay (14 in LIDC-IDRI). Readings of one reader in one group count as one reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...core.geometry import FloatArray, Point, apply_affine, sphere_diameter_mm, voxel_volume_mm3
from .masks import ReaderMasks, SliceTable, reader_masks
from .readings import RATINGS, Mark, Reading, SeriesReadings

MOST_READINGS = 4  # of one nodule: LIDC had four readers
TIGHTEN, SMALLEST_MM = 0.9, 0.1  # factor of the distance, and where it ends
MARK_MM = 10.0  # LUNA16 gives findings without a size a sphere of 10 mm

OUTLINED = "nodule >= 3 mm"
NO_CONSENSUS = "nodule >= 3 mm without consensus"


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
    borders_mm = [slices.place_border(reading) for reading in series.readings]
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
    return sorted(_taken_apart(apart, np.arange(count), distance_mm))


def _taken_apart(apart: FloatArray, members: npt.NDArray[np.int64], distance_mm: float) -> list[list[int]]:
    if not len(members):
        return []
    _, labels = connected_components(apart[np.ix_(members, members)] <= distance_mm, directed=False)
    groups: list[list[int]] = []
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
        for other, kind, readers in places:
            if kind == mark.kind and np.linalg.norm(place - other) < MARK_MM / 2:
                readers.add(mark.reader)
                break
        else:
            places.append((place, mark.kind, {mark.reader}))
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
