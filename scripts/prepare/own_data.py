"""The command ``datalist``: makes a datalist to train on from your own scans, annotations and masks."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import SettingError
from ..core.files import read_csv, writable_folder, write_json
from ..core.geometry import swap_lps_ras
from ..core.labels import IGNORED, NODULE
from ..core.nifti import write_nifti
from ..core.text import number_in
from ..read.datalist import count_nodules, nodule_rows
from ..read.dicom_header import read_dicom
from ..read.discovery import find_scans, is_image_file, scan_stem
from ..read.instances import Labels, instance_mask, labels_of, match_rows, separated, things_of
from ..read.reader import ScanError, read_grid
from ..read.scan import Grid
from .datalists import (
    Annotation,
    LeftOut,
    PrepareError,
    account_for,
    path_in_datalist,
    refuse_if_strict,
    shown_place,
    usable,
)

logger = logging.getLogger(__name__)

FRAMES = ("lps", "ras")
# Accepted column names, ignoring case; the first one present is used.
SCAN_COLUMNS = ("seriesuid", "series_uid", "seriesinstanceuid", "scan", "image", "file", "filename", "name")
PLACE_COLUMNS = (("coordx", "coordy", "coordz"), ("x", "y", "z"), ("x_mm", "y_mm", "z_mm"))
DIAMETER_COLUMNS = ("diameter_mm", "diameter")
PATIENT_COLUMNS = ("patient", "patient_id", "patientid")
SPECK_MM = 2.0  # smallest diameter at which an object of a mask counts as a nodule; LUNA16's smallest is 3.25 mm


@dataclass
class Scan:
    """One scan that may enter the datalist.

    Attributes:
        name: series UID, or file name without extension.
        image: file or DICOM folder.
        key: its path relative to the given folder, which does not change when that folder is moved.
        patient: key of its patient; all scans of a patient go to the same section.
        annotations: of its nodules and, after these, of its excluded findings.
        mask: the mask of its nodules; ``None`` if it has none.
    """

    name: str
    image: Path
    key: str
    patient: str
    annotations: list[Annotation] = field(default_factory=list)
    mask: Path | None = None


@dataclass(frozen=True)
class TableRow:
    """One row of a table.

    Attributes:
        scan: what it calls its scan.
        annotation: what it says of the nodule or excluded finding.
        patient: "" if not given.
    """

    scan: str
    annotation: Annotation
    patient: str


@dataclass(frozen=True)
class Prepared:
    """A scan that enters the datalist, with its item there, and the mask to write; ``None`` if it has none."""

    scan: Scan
    item: dict[str, Any]
    mask: Labels | None = None


def datalist(
    *,
    images: str | Sequence[str],
    output_dir: str,
    annotations: str = "",
    excluded: str = "",
    masks: str = "",
    frame: str = "lps",
    validation_fraction: float = 0.2,
    patient_pattern: str = "",
    seed: int = 0,
    strict: bool = False,
) -> None:
    """Make a datalist of your own scans: datalist.json, and masks/ if masks are given.

    Args:
        images: folders (or files) with DICOM series, MetaImage, NRRD or NIfTI scans, at any depth.
        output_dir: folder for the datalist; an existing one is replaced.
        annotations: CSV of the nodules: seriesuid, coordX, coordY, coordZ, diameter_mm (as LUNA16) or scan, x, y, z,
            diameter_mm; the first column names a scan by its series UID or file name. Without it, the nodules are the
            objects of the masks, and scans without a mask have no nodules.
        excluded: CSV of findings that are neither nodule nor background, with the columns of annotations; a negative
            diameter means 10 mm.
        masks: folder of masks, each with the name of its scan (the series UID for DICOM), either binary or with a
            number for each nodule.
        frame: frame of the positions in the tables: lps (DICOM, ITK, LUNA16) or ras (NIfTI, 3D Slicer's default), mm.
        validation_fraction: share of the patients used for validation.
        patient_pattern: regular expression whose first group is the patient in a file name, such as "^([^_]+)_".
        seed: seed of the split.
        strict: stop with an error if a scan or a row is left out.

    Raises:
        UserError: an option is out of range, there is no scan, a table cannot be read, the folder cannot be written to,
            or, with strict, anything is left out.
    """
    _check(frame, validation_fraction, patient_pattern)
    folders = [Path(path) for path in ([images] if isinstance(images, str) else images)]
    mask_dir = Path(masks) if masks else None
    scans, left_out = find_own_scans(folders, mask_dir, patient_pattern)
    for path, label in ((annotations, NODULE), (excluded, IGNORED)):
        if path:
            left_out += _add_rows(scans, Path(path), frame, label)
    if mask_dir:
        left_out += _add_masks(scans, mask_dir)
    prepared, unusable = _prepared(scans, Path(output_dir), from_masks=bool(masks) and not annotations)
    left_out += unusable
    refuse_if_strict(left_out, strict)
    target = writable_folder(output_dir)
    validating = _validating([one.scan.patient for one in prepared], validation_fraction, seed)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for one in prepared:
        if one.mask is not None:
            writable_folder(target / "masks")
            write_nifti(target / one.item["mask"], one.mask.values, one.mask.affine_ras)
        sections["validation" if one.scan.patient in validating else "training"].append(one.item)
    datalist_path = write_json(target / "datalist.json", sections)
    account_for(left_out, target)
    for section, chosen in sections.items():
        logger.info("%s, %s: %d scans, %d nodules", datalist_path, section, len(chosen), count_nodules(chosen))


def _check(frame: str, validation_fraction: float, patient_pattern: str) -> None:
    try:
        has_group = re.compile(patient_pattern).groups > 0
    except re.error as error:
        raise SettingError(
            f"--patient_pattern: expected a regular expression, got {patient_pattern} ({error})"
        ) from error
    if frame not in FRAMES:
        raise SettingError(f"--frame: expected lps or ras, got {frame}; choose that of the tables")
    if not 0 <= validation_fraction < 1:
        raise SettingError(f"--validation_fraction: expected at least 0 and below 1, got {validation_fraction:g}")
    if patient_pattern and not has_group:
        raise SettingError(f'--patient_pattern: expected a group, such as "^([^_]+)_", got {patient_pattern}; add one')


def find_own_scans(
    folders: Sequence[Path], masks: Path | None, patient_pattern: str
) -> tuple[list[Scan], list[LeftOut]]:
    """Return the scans below some folders, and the DICOM series that share a folder with another scan.

    Args:
        folders: folders or files.
        masks: folder of the masks; files below it are not scans.
        patient_pattern: see :func:`datalist`.

    Raises:
        PrepareError: there are no scans that can be used.
    """
    scans, left_out = [], []
    for folder in folders:
        entries = find_scans(folder)
        places = [Path(entry["source"]) for entry in entries]
        for entry, place in zip(entries, places, strict=True):
            if masks is not None and masks.resolve() in place.resolve().parents:
                continue
            is_dicom = not isinstance(entry["image"], str)
            if is_dicom and sum(place == other or place in other.parents for other in places) > 1:
                advice = "give each series a folder of its own"
                left_out.append(LeftOut("a DICOM series shares its folder", f"{place}: {entry['name']}", advice))
                continue
            name = entry["name"] if is_dicom else scan_stem(place)
            key = Path(os.path.relpath(place, folder if folder.is_dir() else folder.parent)).as_posix()
            scans.append(Scan(name, place, key, _patient(entry["image"], name, key, patient_pattern)))
    named = ", ".join(map(str, folders))
    if not scans:
        raise PrepareError(f"--images {named}: expected scans, found none that can be used")
    return scans, left_out


def _patient(image: str | list[str], name: str, key: str, pattern: str) -> str:
    """Return a key of a scan's patient: from DICOM, otherwise by the pattern, otherwise one of its own.

    A PatientID is only compared; it is not written anywhere.
    """
    if not isinstance(image, str):
        return f"dicom/{read_dicom(image[0], ['PatientID']).get('PatientID') or name}"
    found = re.search(pattern, name) if pattern else None
    return f"pattern/{found[1]}" if found and found[1] else f"file/{key}"


def _by_name(scans: Sequence[Scan]) -> dict[str, list[Scan]]:
    """Return the names by which tables and masks may refer to scans, each with all the scans that it may mean."""
    named: dict[str, list[Scan]] = {}
    for scan in scans:
        paths = {scan.image.name, scan_stem(scan.image), scan.key, str(scan.image), scan.image.as_posix()}
        for name in {scan.name, *paths}:
            named.setdefault(name, []).append(scan)
    return named


def _add_rows(scans: Sequence[Scan], path: Path, frame: str, label: int) -> list[LeftOut]:
    """Read a table and add its rows to the annotations of their scans; return those that cannot be used."""
    named = _by_name(scans)
    rows, left_out = read_rows(path, frame, label)
    for row in rows:
        meant = named.get(row.scan) or named.get(row.scan.replace("\\", "/"), [])
        if len(meant) != 1:
            reason = "two scans match the name in a row" if meant else "the scan of a row is not there"
            left_out.append(LeftOut(reason, row.annotation.subject, "name it by its path below --images"))
        else:
            meant[0].patient = f"table/{row.patient}" if row.patient else meant[0].patient
            meant[0].annotations.append(row.annotation)
    return left_out


def read_rows(path: Path, frame: str, label: int) -> tuple[list[TableRow], list[LeftOut]]:
    """Return the rows of a table, with positions in LPS mm, and those that cannot be used.

    Columns may be separated by commas, semicolons or tabs; the decimal separator is a point.

    Args:
        path: the CSV file.
        frame: frame of its positions, "lps" or "ras".
        label: label of its annotations.

    Raises:
        PrepareError: the file does not exist or is not text, lacks columns, or has no rows.
    """
    table = [
        (f"{path.name}, row {number}", {name.lower(): value for name, value in values.items()})
        for number, values in read_csv(path, error=PrepareError)
    ]
    names = max((list(values) for _, values in table), key=len, default=[])
    scan, diameter, patient = (_first(columns, names) for columns in (SCAN_COLUMNS, DIAMETER_COLUMNS, PATIENT_COLUMNS))
    place: Sequence[str] = next((columns for columns in PLACE_COLUMNS if set(columns) <= set(names)), ())
    if not table:
        raise PrepareError(f"{path}: expected a row for each finding, got none; add rows or omit the table")
    if not (scan and place and diameter):
        raise PrepareError(
            f"{path}: expected the columns seriesuid, coordX, coordY, coordZ, diameter_mm (or scan, x, y, z, "
            f"diameter_mm), got {', '.join(names)[:200]}; use these names in the first row"
        )
    rows, left_out = [], []
    for where, values in table:
        *position, size = [number_in(values.get(name, "")) for name in (*place, diameter)]
        name = values.get(scan, "")
        is_placed = all(map(math.isfinite, (*position, size)))
        if not (name and is_placed):
            reason = "position and diameter are not all numbers" if name else "the row names no scan"
            left_out.append(LeftOut(reason, where, "correct or remove the row"))
        else:
            x, y, z = swap_lps_ras(position).tolist() if frame == "ras" else position
            rows.append(TableRow(name, Annotation((x, y, z), size, label, f"{where}: {name}"), values.get(patient, "")))
    return rows, left_out


def _first(columns: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in columns if name in names), "")


def _add_masks(scans: Sequence[Scan], folder: Path) -> list[LeftOut]:
    """Give each scan the mask of the same name; return the masks without a scan of their own.

    Raises:
        PrepareError: there is no such folder.
    """
    if not folder.is_dir():
        raise PrepareError(f"--masks {folder}: expected a folder with masks, found none; check the path")
    named, left_out = _by_name(scans), []
    for path in sorted(filter(is_image_file, folder.rglob("*"))):
        meant = named.get(scan_stem(path), [])
        if not meant:
            left_out.append(LeftOut("a mask has no scan with its name", str(path), "name it like its scan"))
        elif len(meant) > 1:
            left_out.append(LeftOut("two scans match the name of a mask", str(path), "rename scans and masks"))
        elif meant[0].mask is not None:
            left_out.append(LeftOut("a scan has two masks", str(path), "remove one"))
        else:
            meant[0].mask = path
    return left_out


def _prepared(scans: Iterable[Scan], target: Path, *, from_masks: bool) -> tuple[list[Prepared], list[LeftOut]]:
    """Return the scans that enter the datalist, and what of them does not.

    Args:
        scans: the scans; those that cannot be read are left out.
        target: folder of the datalist.
        from_masks: whether the objects of the masks are the nodules.

    Raises:
        PrepareError: no scan can be read.
    """
    prepared: list[Prepared] = []
    left_out: list[LeftOut] = []
    outside = swapped = 0
    for scan in tqdm(list(scans), desc="scans", unit="scan", mininterval=1.0):
        try:
            grid = read_grid(str(scan.image))
            labels = separated(labels_of(scan.mask)) if scan.mask else None
        except ScanError as error:
            file, _, advice = str(error).partition(": ")
            left_out.append(LeftOut("a file cannot be read", file, advice))
            continue
        if from_masks and labels is not None:
            nodules, specks = _nodules_of_mask(scan, labels)
            scan.annotations = [*nodules, *scan.annotations]
            left_out += specks
        lost = [one.centre_lps_mm for one in scan.annotations if not grid.holds(one.centre_lps_mm)]
        outside, swapped = outside + len(lost), swapped + sum(bool(grid.holds(swap_lps_ras(place))) for place in lost)
        one, unusable = _prepare(scan, grid, labels, target)
        prepared.append(one)
        left_out += unusable
    if swapped:
        logger.warning(
            "%d of the %d findings outside their scans would lie inside if the table were in the other frame: check "
            "--frame",
            swapped,
            outside,
        )
    if not prepared:
        raise PrepareError(f"expected scans that can be read, got none ({left_out[0].subject}); export them again")
    return prepared, left_out


def _nodules_of_mask(scan: Scan, labels: Labels) -> tuple[list[Annotation], list[LeftOut]]:
    """Return the objects of a mask as nodules, and those smaller than :data:`SPECK_MM`."""
    nodules, specks = [], []
    for thing in things_of(labels):
        x, y, z = thing.centre_lps_mm.tolist()
        if thing.diameter_mm >= SPECK_MM:
            nodules.append(Annotation((x, y, z), thing.diameter_mm, NODULE, str(scan.mask)))
        else:
            reason = f"an object of a mask is smaller than {SPECK_MM:g} mm"
            specks.append(LeftOut(reason, f"{scan.mask} at {shown_place((x, y, z))}", "check it for a stray mark"))
    return nodules, specks


def _prepare(scan: Scan, grid: Grid, labels: Labels | None, target: Path) -> tuple[Prepared, list[LeftOut]]:
    """Return a scan with its item, and with its mask if that contains any of the nodules, and what does not enter."""
    boxes, left_out = usable(scan.annotations, grid, "correct or remove the row, check --frame")
    item: dict[str, Any] = {"name": scan.name, "image": path_in_datalist(scan.image, target), **boxes}
    nodules = [(row, boxes["box"][row][:4]) for row in nodule_rows(item)]
    if labels is None or not nodules:
        return Prepared(scan, item), left_out
    mask, matches = instance_mask(labels, match_rows(labels, nodules), grid)
    missed = [match for match in matches if match.thing is None]
    for match in missed:
        where = f"{scan.name}, nodule at {shown_place(boxes['box'][match.row][:3])}"
        left_out.append(LeftOut(f"no mask: {match.reason}", where, "it is used for detection only"))
    if len(missed) == len(matches):
        return Prepared(scan, item), left_out
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", scan.name)
    token = hashlib.sha256(scan.key.encode()).hexdigest()[:8]  # two scans may have one name
    item["mask"] = f"masks/{name}-{token}.nii.gz"
    return Prepared(scan, item, Labels(mask, grid.affine_ras)), left_out


def _validating(patients: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Return the patients used for validation.

    With two or more patients and a fraction above 0, this is at least one patient, and not all. Patients are ordered by
    a hash, so that adding a patient leaves most of the others where they were.
    """
    everyone = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())
    count = round(len(everyone) * fraction)
    if fraction > 0 and len(everyone) > 1:
        count = min(max(count, 1), len(everyone) - 1)
    return set(everyone[:count])
