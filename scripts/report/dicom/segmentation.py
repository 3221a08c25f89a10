"""A result as a DICOM Segmentation (PS3.3, A.51): BINARY, one frame for each nodule on each slice it touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from ...core.records import Nodule, ScanResult
from ...read.dicom_header import lenient
from .objects import MAKER, Device, finished, identification, new_uid, tracking_id
from .source import SourceSeries

# Neighbours differ, and all of them from the greys of a CT; repeated from the start.
COLOURS = ("gold", "deepskyblue", "orangered", "limegreen", "violet", "turquoise")
SERIES_NUMBER = 9001  # far from those of scanners


def segmentation_of(result: ScanResult, source: SourceSeries) -> bytes:
    """Build the Segmentation as a file.

    Args:
        result: with at least one voxel in its mask, ``[I, J, K]`` on the source slices: columns, rows, slices.
        source: one slice for each k.
    """
    device = Device.of(result.model)
    outlined = [nodule for nodule in result.nodules if nodule.measurement is not None]
    with lenient:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=device.name,
            family=codes.DCM.ArtificialIntelligence,
            version=device.version,
            source=MAKER,
            parameters=_parameters(result.settings),
        )
        made = Segmentation(
            source_images=source.slices,
            pixel_array=frames(result.mask, [nodule.label for nodule in outlined]),
            segmentation_type="BINARY",
            segment_descriptions=[_segment(n, nodule, algorithm) for n, nodule in enumerate(outlined, start=1)],
            **identification(device, SERIES_NUMBER),
            content_label="LUNG_NODULES",
            content_description="Lung nodules; research only, not for diagnosis",
            series_description="Lung nodule outlines (research only)",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        _use_one_kind_of_uid(made)
        return finished(made, source)


def frames(mask: npt.NDArray[np.uint16], labels: list[int]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The mask slice by slice, numbered as the segments are.

    Args:
        mask: ``[I, J, K]``, instance labels.
        labels: the label of segment 1, 2, ….

    Returns:
        ``[K, J, I]`` (slices, rows, columns): numbers of segments, 0 for what is in none.
    """
    numbers = np.zeros(max(int(mask.max()), *labels) + 1, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    numbers[labels] = np.arange(1, len(labels) + 1)
    result = np.zeros(mask.shape[::-1], dtype=numbers.dtype)
    i, j, k = np.nonzero(mask)
    result[k, j, i] = numbers[mask[i, j, k]]
    return result


def _segment(number: int, nodule: Nodule, algorithm: highdicom.AlgorithmIdentificationSequence) -> SegmentDescription:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=tracking_id(nodule.label),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=new_uid(),
        tracking_id=tracking_id(nodule.label),
        anatomic_regions=[codes.SCT.Lung],
        display_color=CIELabColor.from_string(COLOURS[(number - 1) % len(COLOURS)]),
    )
    segment.SegmentDescription = f"Probability {nodule.detection.probability:.3f}"
    return segment


def _parameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the standard wants them, in ASCII; paths are left out."""
    plain = {name: value for name, value in settings.items() if isinstance(value, str | int | float | list | tuple)}
    return {name: ascii(value).strip("'") for name, value in plain.items()}


def _use_one_kind_of_uid(made: Segmentation) -> None:
    """The organisation of the dimensions gets a UID from a UUID too."""
    uid = new_uid()
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
