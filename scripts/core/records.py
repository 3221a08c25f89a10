"""What is found in a scan, from candidate to result: plain, immutable records that are passed from step to step.

A *candidate* is a detection that survives peak picking and non-maximum suppression. A candidate in or near the lungs
whose probability reaches the operating threshold is segmented and becomes a *nodule*.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .geometry import BoolArray, FloatArray, Point, apply_affine, swap_lps_ras, voxel_volume_mm3
from .labels import Part, Parts, is_lung

NoduleType = Literal["solid", "part-solid", "ground-glass"]
Side = Literal["left", "right"]
LUNG_SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True)
class Detection:
    """One position that the network proposes.

    Attributes:
        centre_ras_mm: world position, RAS, mm.
        diameter_mm: diameter predicted by the network.
        probability: sigmoid of the nodule logit, in [0, 1].
    """

    centre_ras_mm: Point
    diameter_mm: float
    probability: float

    @property
    def centre_lps_mm(self) -> Point:
        """The world position in LPS (DICOM, LUNA16), mm."""
        x, y, z = swap_lps_ras(self.centre_ras_mm).tolist()
        return x, y, z


def centre_voxels(detections: Iterable[Detection], affine_ras: npt.ArrayLike) -> FloatArray:
    """Return the centres of detections in voxels of a grid: ``[N, 3]``, fractional.

    Args:
        detections: may be empty.
        affine_ras: ``[4, 4]``, voxel to RAS mm of the grid.
    """
    to_voxel = np.linalg.inv(np.asarray(affine_ras, dtype=np.float64))
    return apply_affine(to_voxel, np.reshape([one.centre_ras_mm for one in detections], (-1, 3)))


@dataclass(frozen=True)
class Measurement:
    """Measurements of one nodule's mask on the scan's own grid.

    Attributes:
        volume_mm3: number of voxels in the mask × volume of a voxel.
        effective_diameter_mm: diameter of the sphere of that volume.
        long_axis_mm: largest in-plane diameter, on the slice where it is largest.
        short_axis_mm: largest extent perpendicular to it, on the same slice.
        mean_hu: mean intensity inside the mask, HU.
        type_hint: the type that the intensities suggest (:func:`..decode.measurements.type_hint`); a hint, not a
            reading.
    """

    volume_mm3: float
    effective_diameter_mm: float
    long_axis_mm: float
    short_axis_mm: float
    mean_hu: float
    type_hint: NoduleType


@dataclass(frozen=True)
class Location:
    """The lung that a nodule lies in, and the height in it (:class:`..decode.location.LocateNodulesd`).

    Attributes:
        side: the patient's side, "left" or "right".
        level: third of that lung's height along the body, "upper", "middle" or "lower"; this is not a lobe.
    """

    side: Side
    level: Literal["upper", "middle", "lower"]


@dataclass(frozen=True)
class Nodule:
    """A detection with its mask.

    Attributes:
        label: its value in the instance mask, 1 for the most probable nodule.
        detection: its position, diameter and probability.
        centre_voxel: the detection's centre in the scan's own grid (i, j, k), fractional.
        measurement: ``None`` if no voxel of the scan's grid lies inside the mask.
        location: ``None`` if the lungs were not found.
    """

    label: int
    detection: Detection
    centre_voxel: Point
    measurement: Measurement | None
    location: Location | None = None


@dataclass(frozen=True)
class SearchRegion:
    """Where a scan is searched, on a coarse grid that covers it.

    Attributes:
        kind: "lungs": in and near the lungs; "cut-out": the same with a wider surrounding; "body": everything inside
            the body.
        distance_mm: ``[I', J', K']`` float32, distance to what counts as lung, mm; 0 inside, and a very large value
            where no nodule is possible.
        parts: ``[I', J', K']`` uint8, values of :class:`.labels.Part`, cleaned up by anatomical rules.
        affine_ras: ``[4, 4]``, cell of that grid to RAS mm.
    """

    kind: str
    distance_mm: npt.NDArray[np.float32]
    parts: Parts
    affine_ras: FloatArray

    @classmethod
    def of(cls, item: Mapping[Hashable, Any]) -> SearchRegion:
        """Build the region from an item that :class:`..preprocess.CropToLungsd` returned."""
        distance, parts = item["lung_distance_mm"], item["lung_parts"]
        affine_ras = np.asarray(distance.affine, dtype=np.float64)
        return cls(
            str(item["region"]), np.asarray(distance.as_tensor()[0]), np.asarray(parts.as_tensor()[0]), affine_ras
        )

    def lung(self, side: Side) -> BoolArray:
        """Return the cells of one lung: ``[I', J', K']`` bool."""
        return np.asarray(self.parts == {"left": Part.LEFT_LUNG, "right": Part.RIGHT_LUNG}[side])

    def lung_volume_l(self, side: Side) -> float:
        """Return the volume of one lung in litres, including its vessels and nodules."""
        return float(self.lung(side).sum() * voxel_volume_mm3(self.affine_ras) / 1e6)

    @property
    def lungs(self) -> BoolArray:
        """The cells of both lungs: ``[I', J', K']`` bool."""
        return is_lung(self.parts)

    @property
    def lungs_found(self) -> bool:
        """Whether the lungs were segmented; always ``False`` for a cut-out, in which their borders are unknown."""
        return self.kind != "cut-out" and bool(self.lungs.any())


@dataclass(frozen=True)
class ScanResult:
    """Everything that is known about one scan after the search; the reports are made from this alone.

    Attributes:
        name: series UID or file stem, unique in the run; also the name of the output folder.
        source: the file or folder that the scan was read from.
        image_hu: ``[I, J, K]`` int16, on the scan's own grid.
        affine_ras: ``[4, 4]``, voxel to RAS mm (sheared for a tilted gantry).
        mask: ``[I, J, K]`` uint16 instance mask on the same grid, 0 = background.
        nodules: in descending order of probability, with labels 1, 2, ….
        candidates: all detections in or near the lungs down to the candidate threshold, in descending order of
            probability.
        outside_lungs: number of candidates dropped because they lie outside the lungs and their surroundings.
        facts: header facts without patient identity, in the order in which to show them ("Modality": "CT", …).
        notes: warnings for the reader of the report (thick slices, tilt resampled, series chosen, …).
        model: name, version, checkpoint …, as strings.
        settings: every setting of the run that changes the result.
        identity: patient name, ID, …; filled only if the user asks for it, and only from DICOM.
        seconds: time from reading to writing; ``None`` if it was not measured.
        region: where the scan was searched; ``None`` if unknown.
        source_files: the DICOM slices, one for each k; empty for other formats.
        input_digest: digest of the files that the scan was read from (:func:`..report.input_digest`); empty if unknown.
    """

    name: str
    source: str
    image_hu: npt.NDArray[np.int16]
    affine_ras: FloatArray
    mask: npt.NDArray[np.uint16]
    nodules: tuple[Nodule, ...]
    candidates: tuple[Detection, ...]
    outside_lungs: int
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    region: SearchRegion | None = None
    source_files: tuple[str, ...] = ()
    input_digest: str = ""
