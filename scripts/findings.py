"""What is found in a scan, from candidate to result: plain records that the later steps pass on.

A *candidate* survives peak picking and non-maximum suppression; one inside the lungs whose probability reaches the
operating threshold is outlined and becomes a *nodule finding*. All of them are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .geometry import FloatArray, Point, swap_lps_ras

NoduleType = Literal["solid", "part-solid", "ground-glass"]


@dataclass(frozen=True)
class Detection:
    """One position the network proposes.

    Attributes:
        centre_ras_mm: world position, RAS, mm.
        diameter_mm: the network's estimate.
        probability: sigmoid of the nodule logit, in [0, 1].
    """

    centre_ras_mm: Point
    diameter_mm: float
    probability: float

    @property
    def centre_lps_mm(self) -> Point:
        """World position, LPS (DICOM, LUNA16), mm."""
        x, y, z = swap_lps_ras(self.centre_ras_mm).tolist()
        return x, y, z


@dataclass(frozen=True)
class Measurement:
    """What the outline of one nodule measures, on the scan's own grid.

    Attributes:
        volume_mm3: voxels inside the outline × volume of a voxel.
        effective_diameter_mm: diameter of the sphere of that volume.
        long_axis_mm: largest in-plane diameter, on the slice where it is largest.
        short_axis_mm: the largest extent perpendicular to it, on that slice.
        mean_hu: mean intensity inside the outline, HU.
        type_hint: what the intensities look like (:func:`.measurements.type_hint`); a hint, no reading.
    """

    volume_mm3: float
    effective_diameter_mm: float
    long_axis_mm: float
    short_axis_mm: float
    mean_hu: float
    type_hint: NoduleType


@dataclass(frozen=True)
class Location:
    """In which lung, and how high in it (:class:`.location.LocateNodulesd`).

    Attributes:
        side: the patient's, "left" or "right".
        level: third of that lung's height along the body, "upper", "middle" or "lower"; no lobe is meant.
    """

    side: Literal["left", "right"]
    level: Literal["upper", "middle", "lower"]


@dataclass(frozen=True)
class Nodule:
    """A detection with its outline.

    Attributes:
        label: its value in the instance mask, 1 for the most probable nodule.
        detection: where, how large, how sure.
        centre_voxel: the detection's centre in the scan's own grid (i, j, k), fractional.
        measurement: ``None`` when no voxel of the scan's grid lies inside the outline.
        location: ``None`` where the two lungs were not found.
    """

    label: int
    detection: Detection
    centre_voxel: Point
    measurement: Measurement | None
    location: Location | None = None


@dataclass(frozen=True)
class LungRegion:
    """Where the lungs lie, on a coarse grid that covers the scan.

    Attributes:
        distance_mm: ``[I', J', K']`` float32, mm to the closed lungs, 0 inside.
        affine_ras: ``[4, 4]``, voxel of that grid to RAS mm.
    """

    distance_mm: npt.NDArray[np.float32]
    affine_ras: FloatArray


@dataclass(frozen=True)
class ScanResult:
    """Everything known about one scan once it has been searched; the reports are made from this alone.

    Attributes:
        name: series UID or file stem, unique in the run; also the output folder's name.
        source: the file or folder it was read from.
        image_hu: ``[I, J, K]`` int16, the scan's own grid.
        affine_ras: ``[4, 4]``, voxel to RAS mm (sheared for a tilted gantry).
        mask: ``[I, J, K]`` uint16 instance labels on the same grid, 0 = background.
        nodules: by falling probability; labels 1, 2, ….
        candidates: every detection inside the lungs down to the candidate threshold, by falling probability.
        outside_lungs: number of candidates dropped because they lie outside the dilated lungs.
        lungs_found: ``False`` when there was no closed lung; see :class:`.transforms.lungs.Lungs`.
        facts: header facts free of patient identity, in the order to show them ("Modality": "CT", …).
        notes: warnings the reader of the report should see (thick slices, tilt resampled, series chosen, …).
        model: name, version, checkpoint …, as strings.
        settings: every setting of the run that changes the result.
        identity: patient name, ID, …; filled only when the user asks for it, and known of DICOM only.
        seconds: from reading to writing; ``None`` when it was not measured.
        lungs: where they lie; ``None`` where none were found.
        source_files: the DICOM slices, one for each k; empty for other formats.
        input_digest: of the files it was read from (:func:`.reports.input_digest`); empty where unknown.
    """

    name: str
    source: str
    image_hu: npt.NDArray[np.int16]
    affine_ras: FloatArray
    mask: npt.NDArray[np.uint16]
    nodules: tuple[Nodule, ...]
    candidates: tuple[Detection, ...]
    outside_lungs: int
    lungs_found: bool
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    model: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    lungs: LungRegion | None = None
    source_files: tuple[str, ...] = ()
    input_digest: str = ""
