"""Finds the CT series of a download and the readings of each, in any folder layout, from headers alone."""

from __future__ import annotations

import hashlib
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
from .readings import LidcError, SeriesReadings, parse_xml
from .segmentation_objects import Ratings, SegmentKey, nodule_keys, read_objects, read_ratings

SKIPPED, KEPT, LEFT_OUT = "skipped", "kept", "left out"  # left out: excluded by the user's selection

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
class Notice:
    """A line of the summary table.

    Attributes:
        outcome: :data:`SKIPPED`, :data:`KEPT` (used, but worth knowing) or :data:`LEFT_OUT`.
        reason: why, in a few words; the same cause has the same wording, so that it can be counted.
        series_uid: SeriesInstanceUID; "" if unknown.
        patient: PatientID; "" if unknown.
        source: file or folder.
        detail: anything else.
    """

    outcome: str
    reason: str
    series_uid: str = ""
    patient: str = ""
    source: str = ""
    detail: str = ""

    @property
    def subject(self) -> str:
        """What the notice is about, for messages."""
        return " ".join(filter(None, (self.series_uid, self.source, self.detail)))


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

    def notice(self, outcome: str, reason: str, detail: str = "", source: str = "") -> Notice:
        """Return a notice about the series; its source is the series' folder by default."""
        return Notice(outcome, reason, self.uid, self.patient, source or str(self.folder), detail)


@dataclass
class Download:
    """What was found in a download.

    Attributes:
        series: CT series to prepare, by UID.
        notices: lines of the summary table.
        folders: UIDs of the DICOM series in each folder.
        damaged: DICOM files that cannot be read.
        others: notices of series of other modalities, by UID.
        segmentations: for each CT series, its segmentation files and the nodules in each.
        ratings: ratings of segments.
    """

    series: dict[str, CtSeries] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)
    folders: dict[Path, set[str]] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    others: dict[str, Notice] = field(default_factory=dict)
    segmentations: dict[str, dict[Path, list[SegmentKey]]] = field(default_factory=dict)
    ratings: Ratings = field(default_factory=dict)


def find_download(dicom_dir: Path, xml: Path | None) -> Download:
    """Walk a download and pair each CT series with its readings.

    Args:
        dicom_dir: folder with DICOM files and possibly XML files, at any depth.
        xml: an additional folder or zip archive of XML files; ``None`` for none.

    Returns:
        The series that have readings; everything else is in a notice.

    Raises:
        LidcError: there is nothing at ``xml``, or its archive is damaged.
    """
    download = Download()
    with lenient:
        paths = slice_files(list(files_below(dicom_dir)))
        for path in tqdm(paths, desc="headers", unit="file", mininterval=1.0):
            _sort_file(path, download)
    _spread_damaged(download)
    download.notices += [notice for _, notice in sorted(download.others.items())]
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
                download.notices.append(Notice(SKIPPED, "segmentation without nodules", source=str(path)))
        elif modality == "SR":
            download.ratings.update(read_ratings(path))
        else:
            reason = f"wrong modality: {modality or 'none'} instead of CT"
            download.others.setdefault(uid, Notice(SKIPPED, reason, uid, patient, str(path.parent)))
    except LidcError as error:
        reason = f"unusable {'segmentation' if modality == 'SEG' else 'report'}"
        download.notices.append(Notice(SKIPPED, reason, source=str(path), detail=str(error)))


def _spread_damaged(download: Download) -> None:
    """Add each damaged file to every series in its folder, as it may be a slice of any: these are refused later.

    Otherwise a series could be read with a slice missing. A damaged file without a series beside it becomes a notice.
    """
    for path in download.damaged:
        beside = [download.series[uid] for uid in download.folders.get(path.parent, ()) if uid in download.series]
        for series in beside:
            series.slices.append(Slice(path))
        if not beside:
            download.notices.append(Notice(SKIPPED, "damaged DICOM file", source=str(path)))


def _xml_sources(files: Iterable[tuple[str, bytes]], download: Download) -> dict[str, list[Source]]:
    """Return the readings in XML files by series; files that cannot be used become notices."""
    sources: dict[str, list[Source]] = {}
    for name, content in files:
        try:
            parsed = parse_xml(content, name)
        except LidcError as error:
            download.notices.append(Notice(SKIPPED, "damaged or foreign XML", source=name, detail=str(error)))
            continue
        if parsed is None:
            download.notices.append(Notice(SKIPPED, "wrong modality: XML of a radiograph", source=name))
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

    Sources without a series, and series with different sources, become notices.
    """
    for uid, candidates in sorted(sources.items()):
        first, series = candidates[0], download.series.get(uid)
        if series is None:
            detail = str(len(first.files))
            download.notices.append(Notice(SKIPPED, f"{kind} without series", uid, "", first.files[0], detail))
        elif len({one.digest for one in candidates}) > 1:
            detail = ", ".join(one.files[0] for one in candidates)
            download.notices.append(series.notice(SKIPPED, f"several {kind} that differ", detail))
        else:
            series.source = first
            if len(candidates) > 1:
                reason = f"several {kind} with the same readings"
                download.notices.append(series.notice(KEPT, reason, str(len(candidates)), first.files[0]))


def _leave_unread(download: Download) -> None:
    """Drop series without readings, each with a notice, and add notices for patients with several series."""
    reported = {notice.series_uid for notice in download.notices}
    unread = [series for _, series in sorted(download.series.items()) if series.source is None]
    download.notices += [one.notice(SKIPPED, "series without readings") for one in unread if one.uid not in reported]
    for series in unread:
        del download.series[series.uid]
    counts = Counter(series.patient for series in download.series.values())
    for series in sorted(download.series.values(), key=lambda series: (series.patient, series.uid)):
        if counts[series.patient] > 1:
            detail = f"{counts[series.patient]} series, in the same fold"
            download.notices.append(series.notice(KEPT, "several series of one patient", detail))
