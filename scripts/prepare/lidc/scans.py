"""Finds the CT series of a download and the readings of each, in any folder layout, from headers alone."""

from __future__ import annotations

import hashlib
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from ...core.files import digest_of, stamp
from ...read.dicom_header import floats_of, lenient, read_dicom
from ...read.discovery import files_below, slice_files
from ...read.scan import ScanError
from ..datalists import LeftOut
from .readings import LidcError, SeriesReadings, parse_xml
from .segmentation_objects import Ratings, SegmentKey, nodule_keys, read_objects, read_ratings

logger = logging.getLogger(__name__)

_UID = re.compile(r"[0-9][0-9.]*")
_TAGS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImagePositionPatient",
    "SliceThickness",
    "ReferencedSeriesSequence",
    "SegmentSequence",
)


@dataclass(frozen=True)
class Source:
    """Where the readings of a series come from.

    Attributes:
        files: one XML file, or all segmentations of the series.
        digest: digest of the readings; if it changes, the scan must be prepared again.
        read: returns the readings, or raises :class:`LidcError`.
    """

    files: tuple[str, ...]
    digest: str
    read: Callable[[], SeriesReadings]


@dataclass(frozen=True)
class Slice:
    """One DICOM file of a CT series; a damaged file has neither UID nor position, others may lack the position."""

    path: Path
    sop_uid: str = ""
    position_lps_mm: tuple[float, ...] | None = None


@dataclass
class CtSeries:
    """One CT series and the source of its readings.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID.
        thickness_mm: SliceThickness; 0 if unknown.
        slices: in the order of the files, followed by damaged files in the same folders.
        source: source of its readings; ``None`` until one is found.
    """

    uid: str
    patient: str
    thickness_mm: float
    slices: list[Slice] = field(default_factory=list)
    source: Source | None = None

    @property
    def folder(self) -> Path:
        """The folder of its first file."""
        return self.slices[0].path.parent


@dataclass
class Download:
    """What was found in a download.

    Attributes:
        series: CT series to prepare, by UID.
        left_out: what cannot be used.
        folders: UIDs of the DICOM series in each folder.
        damaged: DICOM files that cannot be read.
        others: series of other modalities, which are left out too, by UID.
        segmentations: for each CT series, its segmentation files and the nodules in each.
        ratings: ratings of segments.
    """

    series: dict[str, CtSeries] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    folders: dict[Path, set[str]] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    others: dict[str, LeftOut] = field(default_factory=dict)
    segmentations: dict[str, dict[Path, list[SegmentKey]]] = field(default_factory=dict)
    ratings: Ratings = field(default_factory=dict)


def find_download(dicom_dir: Path, xml: Path | None) -> Download:
    """Walk a download and pair each CT series with its readings.

    Args:
        dicom_dir: folder with DICOM files and possibly XML files, at any depth.
        xml: an additional folder or zip archive of XML files; ``None`` for none.

    Returns:
        The series that have readings, and what was left out.

    Raises:
        LidcError: there is nothing at ``xml``, or its archive is damaged.
    """
    download = Download()
    with lenient:
        paths = slice_files(list(files_below(dicom_dir)))
        for path in tqdm(paths, desc="headers", unit="file", mininterval=1.0):
            _sort_file(path, download)
    _spread_damaged(download)
    download.left_out += download.others.values()
    files = chain(xml_files(dicom_dir), xml_files(xml) if xml else ())
    from_xml = _xml_sources(tqdm(files, desc="XML", unit="file", mininterval=1.0), download)
    _pair(download, "XML", from_xml)
    objects = {uid: [_objects(uid, own, download.ratings)] for uid, own in download.segmentations.items()}
    _pair(download, "segmentations", {uid: own for uid, own in objects.items() if uid not in from_xml})
    _leave_unread(download)
    return download


def xml_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each XML file in a folder (at any depth) or zip archive, or of a single file.

    Raises:
        LidcError: there is nothing at the path, or the archive is damaged.
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


def _sort_file(path: Path, download: Download) -> None:
    try:
        header = read_dicom(path, _TAGS)
        uid, modality, patient = (str(header.get(tag, "")) for tag in ("SeriesInstanceUID", "Modality", "PatientID"))
        if not _UID.fullmatch(uid):  # used as the name of a folder in the output
            raise ScanError(f"{path}: expected a SeriesInstanceUID, got none; copy it again.")
    except ScanError:
        download.damaged.append(path)
        return
    download.folders.setdefault(path.parent, set()).add(uid)
    try:
        if modality == "CT":
            thickness_mm = (floats_of(header, "SliceThickness", 1) or (0.0,))[0]
            series = download.series.setdefault(uid, CtSeries(uid, patient, thickness_mm))
            position_lps_mm = floats_of(header, "ImagePositionPatient", 3)
            series.slices.append(Slice(path, str(header.get("SOPInstanceUID", "")), position_lps_mm))
        elif modality == "SEG":
            ct_uid, keys = nodule_keys(header, path)
            if keys:
                download.segmentations.setdefault(ct_uid, {})[path] = keys
            else:
                download.left_out.append(LeftOut("segmentation without nodules", str(path)))
        elif modality == "SR":
            download.ratings.update(read_ratings(path))
        else:
            reason = f"wrong modality: {modality or 'none'} instead of CT"
            download.others.setdefault(uid, LeftOut(reason, f"{uid} {path.parent}"))
    except LidcError as error:
        reason = f"unusable {'segmentation' if modality == 'SEG' else 'report'}"
        download.left_out.append(LeftOut(reason, f"{path} {error}"))


def _spread_damaged(download: Download) -> None:
    """Add each damaged file to every series in its folder, as it may be a slice of any: these are refused later.

    Otherwise a series could be read with a slice missing. A damaged file without a series beside it is left out.
    """
    for path in download.damaged:
        beside = [download.series[uid] for uid in download.folders.get(path.parent, ()) if uid in download.series]
        for series in beside:
            series.slices.append(Slice(path))
        if not beside:
            download.left_out.append(LeftOut("damaged DICOM file", str(path)))


def _xml_sources(files: Iterable[tuple[str, bytes]], download: Download) -> dict[str, list[Source]]:
    """Return the readings in XML files by series; files that cannot be used are left out."""
    sources: dict[str, list[Source]] = {}
    for name, content in files:
        try:
            parsed = parse_xml(content, name)
        except LidcError as error:
            download.left_out.append(LeftOut("damaged or foreign XML", f"{name} {error}"))
            continue
        if parsed is None:
            download.left_out.append(LeftOut("wrong modality: XML of a radiograph", name))
            continue
        digest = hashlib.sha256(content[max(content.find(b"<readingSession"), 0) :]).hexdigest()
        source = Source((name,), digest, partial(replace, parsed))
        sources.setdefault(parsed.series_uid, []).append(source)
    return sources


def _objects(uid: str, own: dict[Path, list[SegmentKey]], ratings: Ratings) -> Source:
    """Return the segmentations of a series, with the ratings of their segments, as a source of readings."""
    paths = sorted(own)
    rated = {key: ratings[key] for keys in own.values() for key in keys if key in ratings}
    digest = digest_of([[stamp(path) for path in paths], sorted(map(list, rated.items()))])
    return Source(tuple(map(str, paths)), digest, partial(read_objects, uid, paths, rated))


def _pair(download: Download, kind: str, sources: dict[str, list[Source]]) -> None:
    """Assign readings to series; several sources are accepted if they are identical (TCIA has copies of some XML).

    Sources without a series, and series with different sources, are left out.
    """
    for uid, candidates in sorted(sources.items()):
        first, series = candidates[0], download.series.get(uid)
        if series is None:
            download.left_out.append(LeftOut(f"{kind} without series", f"{uid} {first.files[0]}"))
        elif len({one.digest for one in candidates}) > 1:
            files = ", ".join(one.files[0] for one in candidates)
            download.left_out.append(LeftOut(f"several {kind} that differ", f"{uid} {files}"))
            del download.series[uid]
        else:
            series.source = first


def _leave_unread(download: Download) -> None:
    """Leave out series without readings, and log how many patients have several of the others."""
    for uid, series in sorted(download.series.items()):
        if series.source is None:
            download.left_out.append(LeftOut("series without readings", f"{uid} {series.folder}"))
            del download.series[uid]
    counts = Counter(series.patient for series in download.series.values())
    if several := sum(count > 1 for count in counts.values()):
        logger.info("patients with several series, all in the same fold: %d", several)
