"""The command ``download``: LIDC-IDRI from the Imaging Data Commons, and where LUNA16 is to be had.

The transfer is that of idc-index, the Commons' own client. Its package holds the index, so that what a download takes
is said before anything is transferred; number and size of a series' files say afterwards whether it is whole.
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

from ..core.commands import OptionError
from ..core.errors import UserError
from ..core.files import writable_folder
from ..core.text import shown_duration

logger = logging.getLogger(__name__)

COLLECTION, READINGS = "lidc_idri", "dicom_lidc_idri_nodules"
TEMPLATE = "%PatientID/%Modality_%SeriesInstanceUID"  # of folders, as idc-index wants it; Series.folder must agree
INDEX_COLUMNS = (
    *("collection_id", "analysis_result_id", "PatientID", "SeriesInstanceUID", "Modality", "instanceCount"),
    *("series_size_MB", "license_short_name", "source_DOI"),
)
SLACK_BYTES = 64  # per file, of its size: copies of one series in two archives differ by 6; a cut one lacks thousands
SPARE = 1.02  # disk that must be free, per byte to transfer: folders and the rounding of files to blocks
LINES_MBIT = (50, 200, 1000)  # line speeds that times are given for

LUNA16_ARCHIVES = (  # file, content, DOI of the record it is in; the challenge's data page names both records
    *((f"subset{n}.zip", f"{89 if n < 8 else 88} scans", "10.5281/zenodo.3723295") for n in range(7)),
    *((f"subset{n}.zip", f"{89 if n < 8 else 88} scans", "10.5281/zenodo.4121926") for n in range(7, 10)),
    ("annotations.csv", "1186 nodules", "10.5281/zenodo.3723295"),
    ("evaluationScript.zip", "annotations_excluded.csv, seriesuids.csv", "10.5281/zenodo.3723295"),
    ("seg-lungs-LUNA16.zip", "lung masks of all scans (optional)", "10.5281/zenodo.3723295"),
)
LUNA16_NOTES = (
    "about 66 GB in archives, about 120 GB unpacked; the archives may go once they are unpacked",
    "licence: CC BY 4.0; of LIDC-IDRI, whose scans these are: CC BY 3.0",
    "each record's page (https://doi.org/ and its DOI) gives the files with their sizes and MD5 sums",
    "download them with a browser, or with a program that goes on after an interruption (wget -c, curl -C -),",
    "compare the MD5 sums and unpack everything into one folder, for python -m scripts.prepare luna16 --luna16_dir",
)


class DownloadError(UserError, OSError):
    """A download that cannot start or did not come to its end."""


@dataclass(frozen=True, order=True)
class Series:
    """One series that a source offers.

    Attributes:
        patient: its PatientID.
        modality: CT, SEG, SR.
        uid: its SeriesInstanceUID.
        files: how many.
        size: of all of them, bytes.
        licence, doi: its own.
    """

    patient: str
    modality: str
    uid: str
    files: int
    size: int
    licence: str
    doi: str

    def folder(self, target: Path) -> Path:
        """Where its files go."""
        return target / self.patient / f"{self.modality}_{self.uid}"

    def is_whole(self, target: Path) -> bool:
        """Whether all of its files are there, by their number and their size together."""
        folder = self.folder(target)
        sizes = [path.stat().st_size for path in folder.glob("*.dcm")] if folder.is_dir() else []
        return len(sizes) == self.files and abs(sum(sizes) - self.size) <= SLACK_BYTES * self.files


class IdcSource:
    """LIDC-IDRI at the Imaging Data Commons: every CT series, and every reading as SEG and SR."""

    def series(self) -> list[Series]:
        """Everything that belongs to the data set."""
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
        """Transfer some of them, each into its :meth:`Series.folder`; may fail in any way."""
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
    """Download LIDC-IDRI, or say where LUNA16 is. Stop it and start it again as you like: what is whole stays.

    Args:
        dataset: lidc (CT and readings from the Imaging Data Commons) or luna16 (prints what to download where).
        output_dir: gets a folder for each patient; of lidc only.
        patients: only these (LIDC-IDRI-0001 …), to begin with; default: all.
        yes: start. Without it the number of series, their size, licences, the time and the free disk are said, and
            nothing is transferred.

    Raises:
        UserError: an option that makes no sense, idc-index is not installed, too little disk, a transfer that failed.
    """
    if dataset == "luna16":
        rows = [f"{name:22s} {content:42s} {doi}" for name, content, doi in LUNA16_ARCHIVES]
        print("\n".join([*rows, *LUNA16_NOTES]))
    elif dataset != "lidc":
        raise OptionError(f"--dataset: expected lidc or luna16, got {dataset}; choose one")
    elif not output_dir:
        raise OptionError("--output_dir: expected a folder for LIDC-IDRI, got nothing; name one")
    else:
        fetch_all(IdcSource(), Path(output_dir), [patients] if isinstance(patients, str) else patients, start=yes)


def fetch_all(source: IdcSource, target: Path, patients: Sequence[str], *, start: bool) -> None:
    """Say what a download takes and, if asked to, transfer what is not whole yet.

    Raises:
        DownloadError: too little disk, or a transfer that failed.
        OptionError: a patient that the data set has not.
    """
    offered = source.series()
    unknown = sorted(set(patients) - {one.patient for one in offered})
    if unknown:
        raise OptionError(
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
            "another --output_dir, or begin with some --patients"
        )
    if not missing:
        logger.info("%s: everything is there", target)
    elif not start:
        short = "; the disk is too small for all of it" if needed > free else ""
        logger.info("nothing is transferred without --yes%s", short)
    else:
        writable_folder(target)
        _transfer(source, missing, target)


def _free_bytes(target: Path) -> int:
    """Free disk at a folder, or where it will be made."""
    there = next(folder for folder in (target.resolve(), *target.resolve().parents) if folder.exists())
    return shutil.disk_usage(there).free


def plan_lines(wanted: Sequence[Series], missing: Sequence[Series], free: int) -> Iterator[str]:
    """What a download takes, in words."""
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
    yield f"time, by the speed of your line: {times}"


def _transfer(source: IdcSource, missing: Sequence[Series], target: Path) -> None:
    """Transfer series; those that did not arrive whole are an error, the others stay."""
    reason = ""
    try:
        source.fetch(missing, target)
    except Exception as error:  # whatever the client, the line or the disk raise
        reason = f" ({error})"
    lost = [one for one in missing if not one.is_whole(target)]
    if lost:
        raise DownloadError(
            f"{target}: expected {len(missing)} series to arrive whole, {len(lost)} did not{reason}; check the "
            "network, then run the same command again: what is whole stays"
        )
    logger.info("%s: %d series transferred, all of them whole", target, len(missing))
