"""A result as a DICOM Segmentation and as a Structured Report.

The Segmentation (PS3.3, A.51) is BINARY, with one frame for each nodule on each slice it touches. The report (PS3.16,
TID 1500) has one measurement group for each nodule. A nodule with a mask refers to its segment (TID 1411), one without
to the slice at its centre (TID 1501). A scan without nodules gives one group, which states that the search succeeded
without findings. Measurements are those of nodules.json, rounded in the same way; the probability is in percent.

Both are built with highdicom (https://highdicom.readthedocs.io). It checks and converts what it copies, and rejects
names and dates that scanners do write. It is therefore given empty ones, and patient and study are copied afterwards
exactly as they are in the slices.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import highdicom
import numpy as np
import numpy.typing as npt
from highdicom import sr
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from ...core.records import Nodule, ScanResult
from ...read.dicom_header import lenient, read_dicom
from ..tables import CAUTION, nodule_record
from .source import SourceSeries

MAKER = "The lung nodule bundle contributors"
LONG_STRING = 64  # characters of a DICOM value of type LO
SEGMENTATION_NUMBER, REPORT_NUMBER = 9001, 9002  # series numbers, far from those of scanners

# Distinct from their neighbours and from the greys of a CT; repeated if there are more nodules.
COLOURS = ("gold", "deepskyblue", "orangered", "limegreen", "violet", "turquoise")

_SEGMENTATION_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SegmentSequence")

# As published reports on LIDC-IDRI code the texture (doi:10.1002/mp.14445).
_TEXTURE = sr.CodedConcept("C41144", "NCIt", "Texture")
_TEXTURES = {
    "solid": sr.CodedConcept("RID50151", "RADLEX", "Solid pulmonary nodule"),
    "part-solid": sr.CodedConcept("RID50152", "RADLEX", "Part-solid pulmonary nodule"),
    "ground-glass": sr.CodedConcept("RID50153", "RADLEX", "Non-solid pulmonary nodule"),
}
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_LEVELS = {"upper": codes.SCT.Superior, "middle": codes.SCT.Intermediate, "lower": codes.SCT.Inferior}


_new_uid = partial(generate_uid, prefix=None)  # 2.25 and a random UUID (PS3.5, B.2)


class Device(NamedTuple):
    """The program that made the objects, from a result's facts about bundle and weights.

    Attributes:
        name: of the bundle.
        version: of the bundle.
        weights: file name and checksum; used as the serial number.
    """

    name: str
    version: str
    weights: str

    @classmethod
    def of(cls, model: Mapping[str, str]) -> Device:
        return cls(*(model.get(key, "unknown")[:LONG_STRING] for key in cls._fields))


def segmentation_of(result: ScanResult, source: SourceSeries) -> bytes:
    """Build the Segmentation and return it as the content of a file.

    Args:
        result: with at least one voxel in its mask, ``[I, J, K]`` on the source slices: columns, rows, slices.
        source: one slice for each k.
    """
    device = Device.of(result.model)
    outlined = [nodule for nodule in result.nodules if nodule.measurement is not None]
    # In ASCII, as the standard requires; paths are left out.
    settings = {k: v for k, v in result.settings.items() if isinstance(v, str | int | float | list | tuple)}
    with lenient:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=device.name,
            family=codes.DCM.ArtificialIntelligence,
            version=device.version,
            source=MAKER,
            parameters={name: ascii(value).strip("'") for name, value in settings.items()},
        )
        made = Segmentation(
            source_images=source.slices,
            pixel_array=frames(result.mask, [nodule.label for nodule in outlined]),
            segmentation_type="BINARY",
            segment_descriptions=[_segment(n, nodule, algorithm) for n, nodule in enumerate(outlined, start=1)],
            **_identification(device, SEGMENTATION_NUMBER),
            content_label="LUNG_NODULES",
            content_description="Lung nodules; research only, not for diagnosis",
            series_description="Lung nodule masks (research only)",
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        organization = _new_uid()  # so that all UIDs are of the same kind
        for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
            item.DimensionOrganizationUID = organization
        return _finished(made, source)


def frames(mask: npt.NDArray[np.uint16], labels: list[int]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return the mask slice by slice, with the numbers of the segments.

    Args:
        mask: ``[I, J, K]``, instance labels.
        labels: the label of segment 1, 2, ….

    Returns:
        ``[K, J, I]`` (slices, rows, columns): segment numbers, 0 outside all segments.
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
        segment_label=_tracking_id(nodule.label),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=_new_uid(),
        tracking_id=_tracking_id(nodule.label),
        anatomic_regions=[codes.SCT.Lung],
        display_color=CIELabColor.from_string(COLOURS[(number - 1) % len(COLOURS)]),
    )
    segment.SegmentDescription = f"Probability {nodule.detection.probability:.3f}"
    return segment


def report_of(result: ScanResult, source: SourceSeries, segmentation: Path) -> bytes:
    """Build the report and return it as the content of a file.

    Args:
        result: with any number of nodules.
        source: one slice for each k of the result's grid.
        segmentation: file of the Segmentation of the same result; it may be missing.
    """
    device, threshold = Device.of(result.model), result.settings.get("threshold")
    parameters = None if threshold is None else [f"threshold={threshold}"]
    with lenient:
        evidence = list(source.slices)
        segments: dict[str, tuple[Dataset, Dataset]] = {}
        if segmentation.exists():
            read = read_dicom(segmentation, _SEGMENTATION_TAGS)
            evidence.append(read)
            segments = {str(segment.TrackingID): (read, segment) for segment in read.SegmentSequence}
        algorithm = sr.AlgorithmIdentification(device.name, device.version, parameters)
        groups = [
            _group(nodule, algorithm, source, segments.get(_tracking_id(nodule.label))) for nodule in result.nodules
        ]
        made = sr.Comprehensive3DSR(
            evidence=evidence,
            content=_content(groups or [_no_findings(algorithm)], device),
            **_identification(device, REPORT_NUMBER),
            series_description="Lung nodule measurements (research only)",
            is_complete=True,
            is_verified=False,
            is_final=False,
        )
        return _finished(made, source)


def _content(groups: list[Any], device: Device) -> Dataset:
    """Return the content tree of the document, with the caution as a comment at its end.

    The program has the same UID whenever bundle and weights are the same.
    """
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(device)).int}"),
            name=device.name,
            manufacturer_name=MAKER,
            model_name=device.name,
            serial_number=device.weights,
        ),
    )
    root = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )[0]
    comment = sr.TextContentItem(codes.DCM.Comment, CAUTION, sr.RelationshipTypeValues.CONTAINS)
    root.ContentSequence.append(comment)
    return root


def _group(
    nodule: Nodule, algorithm: sr.AlgorithmIdentification, source: SourceSeries, segment: tuple[Dataset, Dataset] | None
) -> Any:
    """Return the measurement group of one nodule; ``segment`` is the Segmentation and its item for this nodule."""
    place, measured = nodule.location, nodule.measurement
    side, level = (_SIDES[place.side], _LEVELS[place.level]) if place else (None, None)
    hints = [_TEXTURES[measured.type_hint]] if measured else []
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=_new_uid() if segment is None else segment[1].TrackingUID, identifier=_tracking_id(nodule.label)
        ),
        "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [sr.FindingSite(codes.SCT.Lung, side, level)],
        "algorithm_id": algorithm,
        "measurements": _measurements(nodule),
        "qualitative_evaluations": [sr.QualitativeEvaluation(_TEXTURE, hint) for hint in hints],
    }
    if segment is None:
        nearest = source.slices[min(max(round(nodule.centre_voxel[2]), 0), len(source.slices) - 1)]
        image = sr.SourceImageForMeasurementGroup.from_source_image(nearest)
        return sr.MeasurementsAndQualitativeEvaluations(**common, source_images=[image])
    reference = sr.ReferencedSegment(
        sop_class_uid=segment[0].SOPClassUID,
        sop_instance_uid=segment[0].SOPInstanceUID,
        segment_number=int(segment[1].SegmentNumber),
        source_series=sr.SourceSeriesForSegmentation.from_source_image(source.slices[0]),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**common, referenced_segment=reference)


def _measurements(nodule: Nodule) -> list[sr.Measurement]:
    """Return the measurements in nodules.json; without a mask, the network's diameter replaces the axes."""
    record, mm = nodule_record(nodule), codes.UCUM.Millimeter
    certainty = sr.Measurement(codes.DCM.CertaintyOfFinding, 100.0 * record["probability"], codes.UCUM.Percent)
    if nodule.measurement is None:
        return [
            sr.Measurement(codes.SCT.Diameter, record["diameter_mm"], mm, derivation=codes.SCT.Estimated),
            certainty,
        ]
    return [
        sr.Measurement(codes.SCT.Volume, record["volume_mm3"], codes.UCUM.CubicMillimeter),
        sr.Measurement(codes.SCT.LongAxis, record["long_axis_mm"], mm),
        sr.Measurement(codes.SCT.ShortAxis, record["short_axis_mm"], mm),
        sr.Measurement(
            codes.DCM.AttenuationCoefficient, record["mean_hu"], codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
        ),
        certainty,
    ]


def _no_findings(algorithm: sr.AlgorithmIdentification) -> Any:
    """Return the only group of a scan without nodules: it was searched, and nothing reached the threshold."""
    summary = sr.QualitativeEvaluation(
        codes.DCM.CADProcessingAndFindingsSummary, codes.DCM.AllAlgorithmsSucceededWithoutFindings
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=_new_uid(), identifier="Lung nodules"),
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=algorithm,
        qualitative_evaluations=[summary],
    )


def _tracking_id(label: int) -> str:
    """Return the identifier that links a segment, a measurement group and a label in the mask."""
    return f"Nodule {label}"


def _identification(device: Device, series_number: int) -> dict[str, Any]:
    """Return the arguments that highdicom takes for any object: a new series and instance, and what made it."""
    return {
        "series_instance_uid": _new_uid(),
        "series_number": series_number,
        "sop_instance_uid": _new_uid(),
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": device.name,
        "software_versions": device.version,
        "device_serial_number": device.weights,
        "specific_character_set": None,
    }


def _finished(made: highdicom.SOPClass, source: SourceSeries) -> bytes:
    """Copy patient, study and character set from the slices, and return the object as the content of a file."""
    if "SpecificCharacterSet" in source.header:
        made["SpecificCharacterSet"] = source.header["SpecificCharacterSet"]
    made.copy_patient_and_study_information(source.header)
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
