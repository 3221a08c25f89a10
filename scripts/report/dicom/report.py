"""A result as a Structured Report (PS3.16, TID 1500): one measurement group for each nodule.

An outlined nodule refers to its segment (TID 1411); one without, to the slice at its centre (TID 1501). A scan without
nodules gives one group that says that the search succeeded without findings. Measurements are those of nodules.json,
rounded alike; the probability is given in percent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ...core.records import Nodule, ScanResult
from ...read.dicom_header import lenient, read_dicom
from ..tables import DISCLAIMER, nodule_record
from .objects import MAKER, Device, finished, identification, new_uid, tracking_id
from .source import SourceSeries

SERIES_NUMBER = 9002  # far from those of scanners
_SEGMENTATION_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SegmentSequence")

# How published reports on LIDC-IDRI code the texture (doi:10.1002/mp.14445).
_TEXTURE = sr.CodedConcept("C41144", "NCIt", "Texture")
_TEXTURES = {
    "solid": sr.CodedConcept("RID50151", "RADLEX", "Solid pulmonary nodule"),
    "part-solid": sr.CodedConcept("RID50152", "RADLEX", "Part-solid pulmonary nodule"),
    "ground-glass": sr.CodedConcept("RID50153", "RADLEX", "Non-solid pulmonary nodule"),
}
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
_LEVELS = {"upper": codes.SCT.Superior, "middle": codes.SCT.Intermediate, "lower": codes.SCT.Inferior}


def report_of(result: ScanResult, source: SourceSeries, segmentation: Path) -> bytes:
    """Build the report as a file.

    Args:
        result: with any number of nodules.
        source: one slice for each k of the result's grid.
        segmentation: the Segmentation of the same result, which need not exist.
    """
    device = Device.of(result.model)
    with lenient:
        evidence = list(source.slices)
        segments: dict[str, tuple[Dataset, Dataset]] = {}
        if segmentation.exists():
            read = read_dicom(segmentation, _SEGMENTATION_TAGS)
            evidence.append(read)
            segments = {str(segment.TrackingID): (read, segment) for segment in read.SegmentSequence}
        algorithm = _algorithm(result, device)
        groups = [
            _group(nodule, algorithm, source, segments.get(tracking_id(nodule.label))) for nodule in result.nodules
        ]
        made = sr.Comprehensive3DSR(
            evidence=evidence,
            content=_content(groups or [_no_findings(algorithm)], device),
            **identification(device, SERIES_NUMBER),
            series_description="Lung nodule measurements (research only)",
            is_complete=True,
            is_verified=False,
            is_final=False,
        )
        return finished(made, source)


def _algorithm(result: ScanResult, device: Device) -> sr.AlgorithmIdentification:
    threshold = result.settings.get("threshold")
    parameters = None if threshold is None else [f"threshold={threshold}"]
    return sr.AlgorithmIdentification(device.name, device.version, parameters)


def _content(groups: list[Any], device: Device) -> Dataset:
    """The tree of the document; a comment at its end says what it is not meant for."""
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=device.uid,
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
    comment = sr.TextContentItem(codes.DCM.Comment, DISCLAIMER, sr.RelationshipTypeValues.CONTAINS)
    root.ContentSequence.append(comment)
    return root


def _group(
    nodule: Nodule, algorithm: sr.AlgorithmIdentification, source: SourceSeries, segment: tuple[Dataset, Dataset] | None
) -> Any:
    """The measurement group of one nodule; ``segment``: the Segmentation, and its item of this nodule."""
    tracking_uid = new_uid() if segment is None else segment[1].TrackingUID
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(uid=tracking_uid, identifier=tracking_id(nodule.label)),
        "finding_category": codes.SCT.MorphologicallyAbnormalStructure,
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [_site(nodule)],
        "algorithm_id": algorithm,
        "measurements": _measurements(nodule),
        "qualitative_evaluations": _evaluations(nodule),
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


def _site(nodule: Nodule) -> sr.FindingSite:
    place = nodule.location
    if place is None:
        return sr.FindingSite(codes.SCT.Lung)
    return sr.FindingSite(codes.SCT.Lung, _SIDES.get(place.side), _LEVELS.get(place.level))


def _measurements(nodule: Nodule) -> list[sr.Measurement]:
    """What nodules.json says of it; without an outline, the network's diameter stands for the axes."""
    record = nodule_record(nodule)
    certainty = sr.Measurement(codes.DCM.CertaintyOfFinding, 100.0 * record["probability"], codes.UCUM.Percent)
    if nodule.measurement is None:
        diameter = sr.Measurement(
            codes.SCT.Diameter, record["diameter_mm"], codes.UCUM.Millimeter, derivation=codes.SCT.Estimated
        )
        return [diameter, certainty]
    return [
        sr.Measurement(codes.SCT.Volume, record["volume_mm3"], codes.UCUM.CubicMillimeter),
        sr.Measurement(codes.SCT.LongAxis, record["long_axis_mm"], codes.UCUM.Millimeter),
        sr.Measurement(codes.SCT.ShortAxis, record["short_axis_mm"], codes.UCUM.Millimeter),
        sr.Measurement(
            codes.DCM.AttenuationCoefficient, record["mean_hu"], codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
        ),
        certainty,
    ]


def _evaluations(nodule: Nodule) -> list[sr.QualitativeEvaluation]:
    hint = "" if nodule.measurement is None else nodule.measurement.type_hint
    return [sr.QualitativeEvaluation(_TEXTURE, _TEXTURES[hint])] if hint in _TEXTURES else []


def _no_findings(algorithm: sr.AlgorithmIdentification) -> Any:
    """The one group of a scan without nodules: it was searched, nothing reached the threshold."""
    summary = sr.QualitativeEvaluation(
        codes.DCM.CADProcessingAndFindingsSummary, codes.DCM.AllAlgorithmsSucceededWithoutFindings
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=new_uid(), identifier="Lung nodules"),
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=algorithm,
        qualitative_evaluations=[summary],
    )
