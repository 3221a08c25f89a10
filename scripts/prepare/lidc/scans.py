"""Which CT series a download holds, and which readings belong to each: any folder layout, headers alone."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import MediaStorageDirectoryStorage
from tqdm import tqdm

from ...core.geometry import Point
from ...read.discovery import files_below, slice_files
from .readings import LidcError, SeriesReadings, parse_xml
from .segmentation_objects import (
    Segment,
    SegmentationHeader,
    SegmentKey,
    read_ratings,
    read_segmentation_header,
    read_segments,
    segment_readings,
)

SKIPPED, KEPT, LEFT_OUT = "skipped", "kept", "left out"  # left out: by the user's own selection

_UID = re.compile(r"[0-9][0-9.]*")

_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImagePositionPatient",
    "SliceThickness",
]


@dataclass(frozen=True)
class Notice:
    """A line of the summary table.

    Attributes:
        outcome: :data:`SKIPPED`, :data:`KEPT` (worth knowing) or :data:`LEFT_OUT`.
        reason: what, in a few words; equal for equal things, so that it can be counted.
        series_uid: SeriesInstanceUID; "" where unknown.
        patient: PatientID; "" where unknown.
        source: file or folder.
        detail: the rest.
    """

    outcome: str
    reason: str
    series_uid: str = ""
    patient: str = ""
    source: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Slice:
    """One DICOM file of a CT series; ``position_lps_mm`` is ``None`` where the header has none."""

    path: Path
    sop_uid: str
    position_lps_mm: Point | None


@dataclass
class CtSeries:
    """One CT series and what was read in it.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID.
        thickness_mm: SliceThickness; 0 where unknown.
        slices: in the order of the files; damaged files of the same folders are among them, without UID.
        readings: from XML; ``None`` until paired, and where they come from DICOM objects.
        digest: of what was read; another one means that the scan must be done again.
        segmentations: files with its nodules, where there is no XML.
        ratings: of their segments.
    """

    uid: str
    patient: str
    thickness_mm: float
    slices: list[Slice] = field(default_factory=list)
    readings: SeriesReadings | None = None
    digest: str = ""
    segmentations: tuple[Path, ...] = ()
    ratings: dict[SegmentKey, dict[str, int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of its first file."""
        return self.slices[0].path.parent


@dataclass
class Download:
    """What was found: series to prepare by UID, notices, and which DICOM series each folder holds."""

    series: dict[str, CtSeries] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    folders: dict[Path, set[str]] = field(default_factory=dict)


@dataclass
class _Found:
    """Files by kind, before pairing."""

    xml: list[tuple[str, bytes]] = field(default_factory=list)
    segmentations: list[Path] = field(default_factory=list)
    reports: list[Path] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    others: dict[str, tuple[str, str, Path]] = field(default_factory=dict)  # series to modality, patient, folder


def find_download(dicom_dir: Path, xml: Path | None) -> Download:
    """Walk a download and pair each CT series with its readings.

    Args:
        dicom_dir: DICOM files and, where they are there, XML files, at any depth.
        xml: a further folder or zip archive of XML files.

    Returns:
        Series with readings; every other thing is a notice.
    """
    download, found = Download(), _Found()
    paths = list(files_below(dicom_dir))
    for path in tqdm(slice_files(paths), desc="headers", unit="file", mininterval=1.0):
        _sort_file(path, download, found)
    _spread_damaged(download, found)
    files = chain(xml_files(dicom_dir), xml_files(xml) if xml else ())
    readings = _xml_readings(tqdm(files, desc="XML", unit="file", mininterval=1.0), download)
    _pair(download, found, readings)
    return download


def readings_of(series: CtSeries) -> tuple[SeriesReadings, list[Segment]]:
    """What was read in a paired series, and the segments where it comes from DICOM Segmentations.

    Raises:
        LidcError: a segmentation cannot be read.
    """
    if series.readings is not None:
        return series.readings, []
    segments = [segment for path in series.segmentations for segment in read_segments(path)]
    return SeriesReadings(series.uid, 0, segment_readings(segments, series.ratings), ()), segments


def xml_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each XML file of a folder (any depth), a zip archive, or of the file itself.

    Raises:
        LidcError: no such thing, or a damaged archive.
    """
    if not source.exists():
        raise LidcError(f"{source}: expected a folder or zip archive of XML files, found nothing there; check the path")
    if source.suffix.lower() != ".zip":
        paths = files_below(source) if source.is_dir() else [source]
        yield from ((str(path), path.read_bytes()) for path in paths if path.suffix.lower() == ".xml")
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.lower().endswith(".xml"):
                    yield f"{source}/{name}", archive.read(name)
    except zipfile.BadZipFile as error:
        raise LidcError(f"{source}: expected a zip archive, got a damaged one ({error}); copy it again") from error


def _sort_file(path: Path, download: Download, found: _Found) -> None:
    try:
        header = _header(path)
    except Exception:  # pydicom raises almost any type on damaged bytes
        found.damaged.append(path)
        return
    if header is None:
        return
    uid, modality, patient = (str(header.get(tag, "")) for tag in ("SeriesInstanceUID", "Modality", "PatientID"))
    download.folders.setdefault(path.parent, set()).add(uid)
    if modality == "CT" and uid:
        series = download.series.setdefault(uid, CtSeries(uid, patient, float(header.get("SliceThickness") or 0.0)))
        series.slices.append(_slice(path, header))
    elif modality == "SEG":
        found.segmentations.append(path)
    elif modality == "SR":
        found.reports.append(path)
    else:
        found.others.setdefault(uid, (modality, patient, path.parent))


def _header(path: Path) -> pydicom.Dataset | None:
    """The few tags that sort a file; ``None`` for a DICOMDIR."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # harmless formalities, as in dicom_series
        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        is_directory = dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
        if not is_directory and not _UID.fullmatch(str(dataset.get("SeriesInstanceUID", ""))):
            raise ValueError("no SeriesInstanceUID")  # it names a folder of the output
        float(dataset.get("SliceThickness") or 0.0)
        return None if is_directory else dataset


def _slice(path: Path, header: pydicom.Dataset) -> Slice:
    position = [float(value) for value in header.get("ImagePositionPatient") or ()]
    point = (position[0], position[1], position[2]) if len(position) == 3 else None
    return Slice(path, str(header.get("SOPInstanceUID", "")), point)


def _spread_damaged(download: Download, found: _Found) -> None:
    """A damaged file may be a slice of any series beside it: each of them is then refused, never silently short."""
    for path in found.damaged:
        beside = [download.series[uid] for uid in download.folders.get(path.parent, ()) if uid in download.series]
        for series in beside:
            series.slices.append(Slice(path, "", None))
        if not beside:
            download.notices.append(Notice(SKIPPED, "damaged DICOM file", source=str(path)))


def _xml_readings(
    files: Iterable[tuple[str, bytes]], download: Download
) -> dict[str, list[tuple[str, str, SeriesReadings]]]:
    """Source, digest and readings by series; files that cannot be used become notices."""
    readings: dict[str, list[tuple[str, str, SeriesReadings]]] = {}
    for source, content in files:
        try:
            parsed = parse_xml(content, source)
        except LidcError as error:
            download.notices.append(Notice(SKIPPED, "damaged or foreign XML", source=source, detail=str(error)))
            continue
        if parsed is None:
            reason = "wrong modality: XML of a radiograph"
            download.notices.append(Notice(SKIPPED, reason, source=source))
        else:
            digest = hashlib.sha256(content[max(content.find(b"<readingSession"), 0) :]).hexdigest()
            readings.setdefault(parsed.series_uid, []).append((source, digest, parsed))
    return readings


def _pair(download: Download, found: _Found, xml: dict[str, list[tuple[str, str, SeriesReadings]]]) -> None:
    """Give each series its readings; what has no partner leaves with a notice."""
    headers, ratings = _objects(download, found)
    for uid, (modality, patient, folder) in sorted(found.others.items()):
        reason = f"wrong modality: {modality or 'none'} instead of CT"
        download.notices.append(Notice(SKIPPED, reason, uid, patient, str(folder)))
    for uid, candidates in sorted(xml.items()):
        if uid not in download.series:
            download.notices.append(Notice(SKIPPED, "XML without series", uid, source=candidates[0][0]))
        else:
            _take_xml(download, download.series[uid], candidates)
    for uid, own in sorted(headers.items()):
        if uid not in download.series:
            detail = str(len(own))
            download.notices.append(Notice(SKIPPED, "segmentations without series", uid, "", str(own[0].path), detail))
        elif uid not in xml:
            _take_objects(download.series[uid], own, ratings)
    for uid in sorted(download.series):
        series = download.series[uid]
        if series.readings is None and not series.segmentations:
            if not any(notice.series_uid == uid for notice in download.notices):
                where = str(series.folder)
                download.notices.append(Notice(SKIPPED, "series without readings", uid, series.patient, where))
            del download.series[uid]
    _tell_of_pairs(download)


def _take_xml(download: Download, series: CtSeries, candidates: Sequence[tuple[str, str, SeriesReadings]]) -> None:
    """Take the XML of a series; several are fine where their readings are the same (TCIA has such copies)."""
    source, digest, readings = candidates[0]
    if len({other for _, other, _ in candidates}) > 1:
        detail = ", ".join(name for name, _, _ in candidates)
        download.notices.append(
            Notice(SKIPPED, "several XML that differ", series.uid, series.patient, str(series.folder), detail)
        )
        return
    series.readings, series.digest = readings, digest
    if len(candidates) > 1:
        download.notices.append(
            Notice(KEPT, "several XML with the same readings", series.uid, series.patient, source, str(len(candidates)))
        )


def _take_objects(
    series: CtSeries, headers: Sequence[SegmentationHeader], ratings: dict[SegmentKey, dict[str, int]]
) -> None:
    keys = sorted(key for header in headers for key in header.keys)
    series.segmentations = tuple(sorted(header.path for header in headers))
    series.ratings = {key: ratings[key] for key in keys if key in ratings}
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in series.segmentations]
    rated = [(key, sorted(series.ratings.get(key, {}).items())) for key in keys]
    series.digest = hashlib.sha256(repr((stamps, rated)).encode()).hexdigest()


def _objects(
    download: Download, found: _Found
) -> tuple[dict[str, list[SegmentationHeader]], dict[SegmentKey, dict[str, int]]]:
    """Segmentations with nodules by CT series, and the ratings of segments."""
    headers: dict[str, list[SegmentationHeader]] = {}
    ratings: dict[SegmentKey, dict[str, int]] = {}
    for path in tqdm(found.segmentations, desc="SEG", unit="file", mininterval=1.0, disable=not found.segmentations):
        try:
            header = read_segmentation_header(path)
        except LidcError as error:
            download.notices.append(Notice(SKIPPED, "unusable segmentation", source=str(path), detail=str(error)))
            continue
        if header.keys:
            headers.setdefault(header.series_uid, []).append(header)
        else:
            download.notices.append(Notice(SKIPPED, "segmentation without nodules", source=str(path)))
    for path in tqdm(found.reports, desc="SR", unit="file", mininterval=1.0, disable=not found.reports):
        try:
            ratings.update(read_ratings(path))
        except LidcError as error:
            download.notices.append(Notice(SKIPPED, "unusable report", source=str(path), detail=str(error)))
    return headers, ratings


def _tell_of_pairs(download: Download) -> None:
    """Say which patients have several series."""
    patients: dict[str, list[str]] = {}
    for uid, series in sorted(download.series.items()):
        patients.setdefault(series.patient, []).append(uid)
    for patient, uids in sorted(patients.items()):
        for uid in uids if len(uids) > 1 else []:
            where = str(download.series[uid].folder)
            detail = f"{len(uids)} series, in the same fold"
            download.notices.append(Notice(KEPT, "several series of one patient", uid, patient, where, detail))
