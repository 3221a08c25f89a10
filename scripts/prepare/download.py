"""The command ``download``: fetches LIDC-IDRI from the Imaging Data Commons, or says where to download LUNA16.

The transfer is done by idc-index, the Commons' own client. Its package contains the index, so that size and duration of
a download are known before anything is transferred; afterwards, number and size of its files show whether a series is
complete.
"""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import SettingError, UserError
from ..core.files import writable_folder
from ..core.text import shown_duration

logger = logging.getLogger(__name__)

COLLECTION, READINGS = "lidc_idri", "dicom_lidc_idri_nodules"
TEMPLATE = "%PatientID/%Modality_%SeriesInstanceUID"  # folder template for idc-index; Series.folder must agree
INDEX_COLUMNS = (
    "collection_id",
    "analysis_result_id",
    "PatientID",
    "SeriesInstanceUID",
    "Modality",
    "instanceCount",
    "series_size_MB",
    "license_short_name",
    "source_DOI",
)
SLACK_BYTES = 64  # tolerance per file: copies in two archives differ by 6 bytes, truncated ones lack thousands
SPARE = 1.02  # free disk space needed per byte to transfer: includes folders and the rounding of files to blocks
LINES_MBIT = (50, 200, 1000)  # connection speeds for which durations are shown

LUNA16_ARCHIVES = (  # file, content, DOI of its record; the challenge's data page links both records
    *((f"subset{n}.zip", f"{89 if n < 8 else 88} scans", "10.5281/zenodo.3723295") for n in range(7)),
    *((f"subset{n}.zip", f"{89 if n < 8 else 88} scans", "10.5281/zenodo.4121926") for n in range(7, 10)),
    ("annotations.csv", "1186 nodules", "10.5281/zenodo.3723295"),
    ("evaluationScript.zip", "annotations_excluded.csv, seriesuids.csv", "10.5281/zenodo.3723295"),
    ("seg-lungs-LUNA16.zip", "lung masks of all scans (optional)", "10.5281/zenodo.3723295"),
)
LUNA16_NOTES = (
    "about 66 GB in archives, about 120 GB unpacked; the archives can be deleted once unpacked",
    "licence: CC BY 4.0; of LIDC-IDRI, whose scans these are: CC BY 3.0",
    "each record's page (https://doi.org/ and its DOI) gives the files with their sizes and MD5 sums",
    "download them with a browser, or with a program that resumes after an interruption (wget -c, curl -C -),",
    "compare the MD5 sums and unpack everything into one folder, for python -m scripts.prepare luna16 --luna16_dir",
)


class DownloadError(UserError, OSError):
    """A download cannot start or was not completed."""


@dataclass(frozen=True, order=True)
class Series:
    """One series that can be downloaded.

    Attributes:
        patient: PatientID.
        modality: CT, SEG or SR.
        uid: SeriesInstanceUID.
        files: number of files.
        size: total size of the files, bytes.
        licence, doi: licence and DOI of the series.
    """

    patient: str
    modality: str
    uid: str
    files: int
    size: int
    licence: str
    doi: str

    def folder(self, target: Path) -> Path:
        """Return the folder below ``target`` for its files."""
        return target / self.patient / f"{self.modality}_{self.uid}"

    def is_whole(self, target: Path) -> bool:
        """Whether all of its files are there, judged by their number and total size."""
        folder = self.folder(target)
        sizes = [path.stat().st_size for path in folder.glob("*.dcm")] if folder.is_dir() else []
        return len(sizes) == self.files and abs(sum(sizes) - self.size) <= SLACK_BYTES * self.files


class IdcSource:
    """LIDC-IDRI at the Imaging Data Commons: all CT series, and all readings as SEG and SR."""

    def series(self) -> list[Series]:
        """Return all series of the data set, sorted.

        Raises:
            DownloadError: idc-index is not installed.
        """
        index = _module("idc_index_data")
        pandas = _module("pandas")
        table = pandas.read_parquet(
            index.IDC_INDEX_PARQUET_FILEPATH, columns=list(INDEX_COLUMNS), filters=[("collection_id", "==", COLLECTION)]
        )
        original = table["analysis_result_id"].isna() & (table["Modality"] == "CT")
        chosen = table[original | (table["analysis_result_id"] == READINGS)]
        return sorted(
            Series(
                str(row.PatientID),
                str(row.Modality),
                str(row.SeriesInstanceUID),
                int(row.instanceCount),
                round(float(row.series_size_MB) * 1e6),
                str(row.license_short_name),
                str(row.source_DOI),
            )
            for row in chosen.itertuples()
        )

    def fetch(self, series: Sequence[Series], target: Path) -> None:
        """Download series, each into its :meth:`Series.folder`; may raise any error."""
        _module("idc_index").IDCClient().download_from_selection(
            downloadDir=str(target), seriesInstanceUID=[one.uid for one in series], dirTemplate=TEMPLATE
        )


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DownloadError(
            f"expected the package idc-index, which transfers LIDC-IDRI, got none ({error}); install it: "
            "python -m pip install idc-index"
        ) from error


def download(*, dataset: str, output_dir: str = "", patients: str | Sequence[str] = (), yes: bool = False) -> None:
    """Download LIDC-IDRI, or show where to get LUNA16. It can be stopped and restarted: complete series are kept.

    Args:
        dataset: lidc (CT and readings from the Imaging Data Commons) or luna16 (prints what to download and where).
        output_dir: for lidc, the folder to download to; it gets a folder for each patient.
        patients: only these patients (LIDC-IDRI-0001 …), for example to begin with; default: all.
        yes: start the download. Without it, the number of series, their size, licences, the time needed and the free
            disk space are shown, and nothing is transferred.

    Raises:
        UserError: an option is invalid, idc-index is not installed, the disk is too small, or a transfer failed.
    """
    if dataset == "luna16":
        rows = [f"{name:22s} {content:42s} {doi}" for name, content, doi in LUNA16_ARCHIVES]
        print("\n".join([*rows, *LUNA16_NOTES]))
    elif dataset != "lidc":
        raise SettingError(f"--dataset: expected lidc or luna16, got {dataset}; choose one")
    elif not output_dir:
        raise SettingError("--output_dir: expected a folder for LIDC-IDRI, got nothing; name one")
    else:
        fetch_all(IdcSource(), Path(output_dir), [patients] if isinstance(patients, str) else patients, start=yes)


def fetch_all(source: IdcSource, target: Path, patients: Sequence[str], *, start: bool) -> None:
    """Log what a download involves and, with ``start``, transfer the series that are not complete yet.

    Args:
        source: where the series come from.
        target: folder to download to.
        patients: only these; empty for all.
        start: whether to transfer anything.

    Raises:
        DownloadError: the disk is too small, or a transfer failed.
        SettingError: a patient is not in the data set.
    """
    offered = source.series()
    unknown = sorted(set(patients) - {one.patient for one in offered})
    if unknown:
        raise SettingError(
            "--patients: expected patients of the data set (LIDC-IDRI-0001 …), got "
            f"{', '.join(unknown[:5])}; correct them"
        )
    wanted = [one for one in offered if not patients or one.patient in set(patients)]
    missing = [one for one in tqdm(wanted, "looking at what is there", mininterval=1.0) if not one.is_whole(target)]
    free = _free_bytes(target)
    for line in plan_lines(wanted, missing, free):
        logger.info("%s", line)
    needed = int(sum(one.size for one in missing) * SPARE)
    if needed > free and start:
        raise DownloadError(
            f"{target}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f} GB; free some, choose "
            "another --output_dir, or start with a few --patients"
        )
    if not missing:
        logger.info("%s: all series are complete, nothing to transfer", target)
    elif not start:
        short = "; the disk is too small for all of it" if needed > free else ""
        logger.info("nothing is transferred without --yes%s", short)
    else:
        writable_folder(target)
        _transfer(source, missing, target)


def _free_bytes(target: Path) -> int:
    """Return the free disk space at a folder, which need not exist yet, bytes."""
    there = next(folder for folder in (target.resolve(), *target.resolve().parents) if folder.exists())
    return shutil.disk_usage(there).free


def plan_lines(wanted: Sequence[Series], missing: Sequence[Series], free: int) -> Iterator[str]:
    """Yield lines of text on what a download involves: series, size, licences, free disk space and time.

    Args:
        wanted: the series asked for.
        missing: those of them that are not complete yet.
        free: free disk space, bytes.
    """
    for modality, licence, doi in sorted({(one.modality, one.licence, one.doi) for one in wanted}):
        own = [one for one in wanted if (one.modality, one.licence, one.doi) == (modality, licence, doi)]
        patients, size = len({one.patient for one in own}), sum(one.size for one in own)
        yield (
            f"{modality:4s} {len(own):6d} series of {patients} patients, {size / 1e9:8.3f} GB, {licence}, "
            f"https://doi.org/{doi}"
        )
    size = sum(one.size for one in missing)
    yield f"already there: {len(wanted) - len(missing)} of {len(wanted)} series"
    yield f"to transfer: {len(missing)} series, {size / 1e9:.3f} GB; free disk: {free / 1e9:.1f} GB"
    times = ", ".join(f"{shown_duration(size * 8 / (speed * 1e6))} at {speed} Mbit/s" for speed in LINES_MBIT)
    yield f"time, by connection speed: {times}"


def _transfer(source: IdcSource, missing: Sequence[Series], target: Path) -> None:
    """Transfer series; complete ones are kept even if others fail.

    Raises:
        DownloadError: some series are not complete afterwards.
    """
    reason = ""
    try:
        source.fetch(missing, target)
    except Exception as error:  # any error of the client, the network or the disk
        reason = f" ({error})"
    lost = [one for one in missing if not one.is_whole(target)]
    if lost:
        raise DownloadError(
            f"{target}: expected {len(missing)} complete series, got {len(lost)} incomplete{reason}; check the "
            "network and run the same command again: complete series are kept"
        )
    logger.info("%s: %d series transferred, all of them complete", target, len(missing))
