"""The commands ``lidc`` (a download becomes masks and datalists) and ``lidc_xml`` (what the XML files hold)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...core.geometry import FloatArray, apply_affine, spacing_mm, swap_lps_ras_affine
from ...core.labels import NODULE
from ...read.dicom_series import read_series, series_grid
from ...read.scan import Grid, ScanError, Volume
from .masks import SliceTable
from .nodules import find_findings, group_readings
from .outputs import clear_leftovers, fingerprint, read_record, select, write_datalists, write_scan, write_tables
from .readings import NON_NODULE, SMALL_NODULE, LidcError, SeriesReadings, parse_xml
from .scans import LEFT_OUT, SKIPPED, CtSeries, Download, Notice, find_download, readings_of, xml_files
from .segmentation_objects import Segment, check_frames

logger = logging.getLogger(__name__)

SELECTIONS = ("all", "luna16")
SHOWN = 10  # notices that one message names
PIXEL_MM = 0.7  # of LIDC's scans, about: 0.46 to 0.98; XML files do not tell


def lidc(
    dicom_dir: str, output_dir: str, xml: str = "", folds: int = 10, selection: str = "all", *, strict: bool = False
) -> None:
    """Turn a download of LIDC-IDRI into masks, tables and datalists. Stop it and start it again as you like.

    Args:
        dicom_dir: the download, from TCIA (with XML) or the Imaging Data Commons (with SEG and SR); any folder layout.
        output_dir: gets scans/, nodules.csv, skipped.csv and dataset_fold0.json …
        xml: a further folder or zip archive of LIDC's XML files; none by default.
        folds: how many datalists; patients never cross them.
        selection: all, or luna16 (at least 3 readers, slices of at most 2.5 mm).
        strict: end with an error at the first thing that would be skipped.

    Raises:
        LidcError: an option out of range, nothing to prepare, or (strict) something to skip.
        OSError: the output folder cannot be written to.
    """
    source, output = Path(str(dicom_dir)).resolve(), Path(str(output_dir)).resolve()
    _check(source, folds, selection)
    try:
        (output / "scans").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output_dir {output} cannot be written to ({error}); choose another folder") from error
    download = find_download(source, Path(str(xml)).resolve() if xml else None)
    if strict:
        _refuse(download.notices)
    records = _prepare_all(download, output, strict=strict)
    items = _selected(records, selection, download.notices)
    _report(download.notices)
    write_tables(output, items, download.notices)
    if not items:
        raise LidcError(
            f"{source}: expected CT series with readings, got none that can be used; {output / 'skipped.csv'} says why"
        )
    for fold, (training, validation) in enumerate(write_datalists(output, items, folds)):
        logger.info("dataset_fold%d.json: %d scans to train on, %d to validate with", fold, training, validation)
    nodules = sum(label == NODULE for item in items for label in item["label"])
    logger.info(
        "%s: %d scans, %d nodules, %d patients", output, len(items), nodules, len({i["patient"] for i in items})
    )


def _check(source: Path, folds: int, selection: str) -> None:
    if not source.is_dir():
        raise LidcError(f"--dicom_dir {source}: expected a folder, found none; check the path")
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise LidcError(f"--folds must be a whole number of at least 2, got {folds!r}")
    if selection not in SELECTIONS:
        raise LidcError(f"--selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")


def _refuse(notices: Sequence[Notice]) -> None:
    """End where something is to be skipped."""
    skipped = [notice for notice in notices if notice.outcome == SKIPPED]
    if skipped:
        lines = [" ".join(filter(None, (n.reason, n.series_uid, n.source, n.detail))) for n in skipped[:SHOWN]]
        more = f"\n… and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        raise LidcError(
            f"--strict: expected nothing to skip, got {len(skipped)}; remove them or leave --strict out:\n"
            + "\n".join(lines)
            + more
        )


def _prepare_all(download: Download, output: Path, *, strict: bool) -> list[dict[str, Any]]:
    """Prepare each series that is not finished yet; a series that cannot be used becomes a notice."""
    records = []
    for uid in tqdm(sorted(download.series), desc="scans", unit="scan", mininterval=1.0):
        series = download.series[uid]
        mark, folder = fingerprint(series), output / "scans" / uid
        clear_leftovers(folder)
        record = read_record(folder, mark)
        try:
            records.append(record or prepare_series(series, download, folder, mark))
        except (LidcError, ScanError) as error:
            reason = "unusable scan" if isinstance(error, ScanError) else "readings do not fit the scan"
            notice = Notice(SKIPPED, reason, uid, series.patient, str(series.folder), str(error))
            download.notices.append(notice)
            if strict:
                _refuse([notice])
    return records


def prepare_series(series: CtSeries, download: Download, folder: Path, mark: str) -> dict[str, Any]:
    """Find one scan's nodules and write its folder; returns the record.

    Raises:
        LidcError: the readings do not fit the scan.
        ScanError: the scan must be refused.
    """
    paths = [str(one.path) for one in series.slices]
    grid = series_grid(paths)
    readings, segments = readings_of(series)
    _check_segments(series, segments, grid)
    findings = find_findings(readings, slice_table(series, grid), swap_lps_ras_affine(grid.affine_ras))
    image: str | Volume = str(series.folder)
    if not _is_alone(series, download):
        image = read_series(paths)
    return write_scan(folder, series, grid, findings, mark, image=image)


def slice_table(series: CtSeries, grid: Grid) -> SliceTable:
    """Where each slice of a series lies on its grid."""
    to_voxel = np.linalg.inv(swap_lps_ras_affine(grid.affine_ras))
    places = {}
    for one in series.slices:
        assert one.position_lps_mm is not None  # the grid has been read
        places[one.sop_uid] = (round(float(apply_affine(to_voxel, one.position_lps_mm)[2])), one.position_lps_mm[2])
    return SliceTable(places, grid.shape, float(spacing_mm(grid.affine_ras)[2]))


def _check_segments(series: CtSeries, segments: Sequence[Segment], grid: Grid) -> None:
    positions = {one.sop_uid: np.array(one.position_lps_mm) for one in series.slices}
    affine_lps = swap_lps_ras_affine(grid.affine_ras)
    axes = affine_lps[:3, :2] / spacing_mm(affine_lps)[:2]
    for segment in segments:
        check_frames(segment, grid.shape, positions, axes)


def _is_alone(series: CtSeries, download: Download) -> bool:
    """Whether the folder of a series holds no other DICOM series, so that its path names this scan."""
    folder = series.folder
    below = [uids for place, uids in download.folders.items() if place == folder or folder in place.parents]
    return {one.path.parent for one in series.slices} == {folder} and set().union(*below) == {series.uid}


def _selected(records: Sequence[dict[str, Any]], selection: str, notices: list[Notice]) -> list[dict[str, Any]]:
    items = []
    for record in records:
        item = select(record, selection)
        if item is None:
            reason = f"slices thicker than the selection {selection} allows"
            whole = record["item"]
            detail = f"{record['slice_mm']:g} mm"
            notices.append(Notice(LEFT_OUT, reason, whole["name"], whole["patient"], whole["image"], detail))
        else:
            items.append(item)
    return items


def _report(notices: Sequence[Notice]) -> None:
    """The summary table: how often which thing was skipped, kept with a note, or left out."""
    counts = Counter((notice.outcome, notice.reason) for notice in notices)
    for (outcome, reason), count in sorted(counts.items()):
        first = next(n for n in notices if (n.outcome, n.reason) == (outcome, reason))
        named = " ".join(filter(None, (first.series_uid, first.source, first.detail)))
        logger.info("%-8s %5d × %s, first: %s", outcome, count, reason, named)


def lidc_xml(path: str) -> None:
    """Read every LIDC XML file of a folder or zip archive and count what is in them; needs no DICOM.

    Args:
        path: folder (any depth), zip archive, or one file.

    Raises:
        LidcError: no XML, or files that cannot be read (all are named).
    """
    series: dict[str, SeriesReadings] = {}
    files = radiographs = copies = 0
    damaged = []
    for source, content in tqdm(xml_files(Path(str(path)).resolve()), desc="XML", unit="file", mininterval=1.0):
        files += 1
        try:
            parsed = parse_xml(content, source)
        except LidcError as error:
            damaged.append(str(error))
            continue
        radiographs += parsed is None
        if parsed is not None:
            copies += parsed.series_uid in series
            series[parsed.series_uid] = parsed
    for line in count_lines(files, radiographs, copies, list(series.values())):
        logger.info("%s", line)
    if damaged or not files:
        raise LidcError("\n".join(damaged) or f"{path}: expected XML files, found none; check the path")


def count_lines(files: int, radiographs: int, copies: int, series: Sequence[SeriesReadings]) -> list[str]:
    """What the XML files hold, in words."""
    groups = [group for one in series for group in _groups_without_scan(one)]
    marks = Counter(mark.kind for one in series for mark in one.marks)
    by_readers = Counter(min(len(group), 4) for group in groups)
    counted = ", ".join(f"{by_readers[n]} by {n}" for n in (1, 2, 3, 4))
    return [
        f"{files} XML files: {files - radiographs} of CT, {radiographs} of radiographs (CR, DX; not used)",
        f"{len(series)} CT series; {copies} further files are of one that is already counted",
        f"{sum(len(one.readings) for one in series)} readings of nodules >= 3 mm (outlines), "
        f"{sum(not reading.ratings for one in series for reading in one.readings)} of them without ratings",
        f"{marks[SMALL_NODULE]} marks of nodules < 3 mm, {marks[NON_NODULE]} marks of non-nodules (points)",
        f"about {len(groups)} nodules >= 3 mm: readers {counted} or more (pixels taken as {PIXEL_MM} mm)",
    ]


def _groups_without_scan(series: SeriesReadings) -> list[set[int]]:
    """Readers of each nodule, from outlines alone: pixels of a usual size, slices as far apart as outlines come."""
    heights = np.unique([region.z_mm for reading in series.readings for region in reading.regions])
    step_mm = float(np.diff(heights).min()) if len(heights) > 1 else 2.5
    borders = [
        np.concatenate([_border_mm(region.border, float(region.z_mm or 0.0)) for region in reading.regions])
        for reading in series.readings
    ]
    return [{series.readings[n].reader for n in group} for group in group_readings(borders, step_mm)]


def _border_mm(border: Any, z_mm: float) -> FloatArray:
    return np.column_stack([border * PIXEL_MM, np.full(len(border), z_mm)])
