"""The commands ``lidc`` (makes masks and datalists from a download) and ``lidc_xml`` (counts what is in XML files)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...core.errors import SettingError
from ...core.files import remove_abandoned, writable_folder
from ...core.geometry import swap_lps_ras_affine
from ...core.labels import IGNORED
from ...read.datalist import count_nodules
from ...read.dicom_series import read_series, series_grid
from ...read.scan import Grid, ScanError, Volume
from ..datalists import LEFT_OUT_FILE, LeftOut, account_for, refuse_if_strict, write_folds
from .nodules import SliceTable, find_findings, group_readings
from .outputs import fingerprint, fold_of, read_scan_record, write_nodules, write_scan
from .readings import NON_NODULE, SMALL_NODULE, LidcError, SeriesReadings, parse_xml
from .scans import CtSeries, Download, find_download, xml_files

logger = logging.getLogger(__name__)

SELECTIONS = ("all", "luna16")
LUNA16_READERS, LUNA16_SLICE_MM = 3, 2.5  # the challenge's selection (Setio et al., 2017, and its web site)
PIXEL_MM = 0.7  # typical of LIDC's scans (0.46 to 0.98); XML files do not give it


def lidc(
    dicom_dir: str, output_dir: str, xml: str = "", folds: int = 10, selection: str = "all", *, strict: bool = False
) -> None:
    """Turn a download of LIDC-IDRI into masks, tables and datalists. It can be stopped and restarted.

    Args:
        dicom_dir: the download, from TCIA (with XML) or the Imaging Data Commons (with SEG and SR); any folder layout.
        output_dir: folder for scans/, nodules.csv, left_out.csv and dataset_fold0.json …
        xml: an additional folder or zip archive of LIDC's XML files; none by default.
        folds: number of datalists; all scans of a patient are in the same fold.
        selection: all, or luna16 (at least 3 readers, slices of at most 2.5 mm).
        strict: stop with an error at the first thing that would be left out.

    Raises:
        SettingError: an option is out of range.
        PrepareError: there is nothing to prepare, or, with strict, something would be left out.
        OutputError: the output folder cannot be written to.
    """
    source, output = Path(dicom_dir).resolve(), Path(output_dir).resolve()
    if not source.is_dir():
        raise SettingError(f"--dicom_dir {source}: expected a folder, found none; check the path")
    if folds < 2:
        raise SettingError(f"--folds: expected a whole number of at least 2, got {folds}; choose another")
    if selection not in SELECTIONS:
        raise SettingError(f"--selection: expected one of {', '.join(SELECTIONS)}, got {selection}; choose one")
    remove_abandoned(writable_folder(output / "scans"))
    download = find_download(source, Path(xml).resolve() if xml else None)
    refuse_if_strict(download.left_out, strict)
    records = _prepare_all(download, output, strict=strict)
    items, not_selected = _selected(records, selection)
    account_for([*download.left_out, *not_selected], output)
    write_nodules(output / "nodules.csv", items)
    if not items:
        why = f"{output / LEFT_OUT_FILE} says why" if download.left_out or not_selected else "check the path"
        raise LidcError(f"{source}: expected CT series with readings, got none that can be used; {why}")
    for path in output.glob("dataset_fold*.json"):  # an earlier run may have made more folds
        if path.stem not in {f"dataset_fold{fold}" for fold in range(folds)}:
            path.unlink()
    write_folds(output, range(folds), [(fold_of(item["patient"], folds), item) for item in items])
    patients = {item["patient"] for item in items}
    logger.info("%s: %d scans, %d nodules, %d patients", output, len(items), count_nodules(items), len(patients))


def _prepare_all(download: Download, output: Path, *, strict: bool) -> list[dict[str, Any]]:
    """Prepare each series that is not finished yet; return the records of all.

    A series that cannot be used is left out.

    Raises:
        PrepareError: ``strict`` is set, and a series cannot be used.
        OutputError: the output folder cannot be written to.
    """
    records = []
    for uid, series in tqdm(sorted(download.series.items()), desc="scans", unit="scan", mininterval=1.0):
        mark, folder = fingerprint(series), output / "scans" / uid
        try:
            records.append(read_scan_record(folder, mark) or prepare_series(series, download, folder, mark))
        except (LidcError, ScanError) as error:
            reason = "unusable scan" if isinstance(error, ScanError) else "readings do not fit the scan"
            download.left_out.append(LeftOut(reason, f"{uid} {series.folder} {error}"))
            refuse_if_strict(download.left_out, strict)
    return records


def prepare_series(series: CtSeries, download: Download, folder: Path, mark: str) -> dict[str, Any]:
    """Find the nodules of one scan and write its folder.

    The image is written too, unless the series has a folder of its own, which is then named instead.

    Args:
        series: the series, with a source of readings.
        download: everything that was found.
        folder: the folder to write.
        mark: the series' fingerprint.

    Returns:
        The record, see :func:`.outputs.write_scan`.

    Raises:
        LidcError: the readings cannot be read or do not match the scan.
        ScanError: the scan is refused.
        OutputError: the folder cannot be written.
    """
    assert series.source is not None  # series without readings have been dropped
    paths = [str(one.path) for one in series.slices]
    grid = series_grid(paths)
    findings = find_findings(series.source.read(), slice_table(series, grid))
    image: str | Volume = str(series.folder) if _is_alone(series, download) else read_series(paths)
    return write_scan(folder, series, grid, findings, mark, image=image)


def slice_table(series: CtSeries, grid: Grid) -> SliceTable:
    """Return the position of each slice of a series on its grid."""
    positions = {one.sop_uid: one.position_lps_mm for one in series.slices if one.position_lps_mm}
    places = {uid: (round(float(grid.voxels(place)[2])), place) for uid, place in positions.items()}
    return SliceTable(places, grid.shape, swap_lps_ras_affine(grid.affine_ras))


def _is_alone(series: CtSeries, download: Download) -> bool:
    """Whether all slices of a series are in one folder that contains no other series, so that its path is the scan."""
    folder = series.folder
    below = [uids for place, uids in download.folders.items() if place == folder or folder in place.parents]
    return {one.path.parent for one in series.slices} == {folder} and set().union(*below) == {series.uid}


def _selected(records: Sequence[dict[str, Any]], selection: str) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """Return the datalist's items, and the scans that the selection leaves out.

    With the selection "luna16", scans with slices thicker than 2.5 mm are left out, and nodules of fewer
    than three readers become excluded findings, as in the challenge's own list.
    """
    items, left_out = [], []
    for record in records:
        item = dict(record["item"])
        if selection == "luna16":
            readers = [nodule["readers"] for nodule in item["nodules"]]
            pairs = zip(item["label"], readers, strict=True)
            item["label"] = [label if count >= LUNA16_READERS else IGNORED for label, count in pairs]
        if selection == "luna16" and record["slice_mm"] > LUNA16_SLICE_MM + 1e-3:
            reason = "slices thicker than the selection luna16 allows"
            left_out.append(LeftOut(reason, f"{item['name']} {item['image']} {record['slice_mm']:g} mm"))
        else:
            items.append(item)
    return items, left_out


def lidc_xml(path: str) -> None:
    """Read every LIDC XML file of a folder or zip archive and count what they contain; needs no DICOM.

    Args:
        path: folder (searched at any depth), zip archive, or one file.

    Raises:
        LidcError: there are no XML files, or some cannot be read (all of these are named).
    """
    found: list[SeriesReadings | None] = []
    damaged = []
    for source, content in tqdm(xml_files(Path(path).resolve()), desc="XML", unit="file", mininterval=1.0):
        try:
            found.append(parse_xml(content, source))
        except LidcError as error:
            damaged.append(str(error))
    series = {one.series_uid: one for one in found if one}
    for line in count_lines(len(found) - found.count(None), found.count(None), list(series.values())):
        logger.info("%s", line)
    if damaged:
        raise LidcError("\n".join(damaged))
    if not found:
        raise LidcError(f"{path}: expected XML files, found none; check the path")


def count_lines(files: int, radiographs: int, series: Sequence[SeriesReadings]) -> list[str]:
    """Return lines of text with the counts of what the XML files contain.

    Args:
        files: number of files with readings of CT.
        radiographs: number of files with readings of radiographs.
        series: the readings of each CT series.
    """
    groups = [group for one in series for group in _groups_without_scan(one)]
    marks = Counter(mark.kind for one in series for mark in one.marks)
    by_readers = Counter(min(len(group), 4) for group in groups)
    counted = ", ".join(f"{by_readers[n]} by {n}" for n in (1, 2, 3, 4))
    return [
        f"{files + radiographs} XML files: {files} of CT, {radiographs} of radiographs (CR, DX; not used)",
        f"{len(series)} CT series; {files - len(series)} further files are of one that is already counted",
        f"{sum(len(one.readings) for one in series)} readings of nodules >= 3 mm (outlines), "
        f"{sum(not reading.ratings for one in series for reading in one.readings)} of them without ratings",
        f"{marks[SMALL_NODULE]} marks of nodules < 3 mm, {marks[NON_NODULE]} marks of non-nodules (points)",
        f"about {len(groups)} nodules >= 3 mm: readers {counted} or more (pixels taken as {PIXEL_MM} mm)",
    ]


def _groups_without_scan(series: SeriesReadings) -> list[set[int]]:
    """Return the readers of each nodule, estimated from outlines alone.

    Pixels are assumed to have :data:`PIXEL_MM`, and the slice spacing is the smallest distance between outlines.
    """
    heights = np.unique([region.z_mm for reading in series.readings for region in reading.regions])
    step_mm = float(np.diff(heights).min()) if len(heights) > 1 else 2.5
    borders_mm = [
        np.concatenate([np.insert(region.border * PIXEL_MM, 2, region.z_mm, axis=1) for region in reading.regions])
        for reading in series.readings
    ]
    return [{series.readings[n].reader for n in group} for group in group_readings(borders_mm, step_mm)]
