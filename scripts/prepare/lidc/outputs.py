"""Writes the folder of each scan, and the table of all nodules.

The complete folder of a scan appears by a single rename; the table is replaced by a rename, too. A run that is
killed and restarted ends with the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import digest_of, read_record, replacing, stamp, write_csv, write_json
from ...core.geometry import FloatArray, apply_affine, spacing_mm
from ...core.labels import IGNORED, NODULE
from ...core.nifti import write_nifti
from ...read.scan import Grid, Volume
from .nodules import OUTLINED, Finding, ReaderMasks, instance_mask
from .readings import RATINGS
from .scans import CtSeries

FORMAT = 2  # increased whenever the same input gives different files
RECORD, MASK, IMAGE = "scan.json", "mask.nii.gz", "image.nii.gz"

NODULE_COLUMNS = (
    "series_uid",
    "patient",
    "mask_label",
    "label",
    "kind",
    "readers",
    "x_lps_mm",
    "y_lps_mm",
    "z_lps_mm",
    "diameter_mm",
    "volume_mm3",
    *RATINGS,
    "reader_masks",
)


def fingerprint(series: CtSeries) -> str:
    """Return a digest that changes whenever the scan's files or its readings do."""
    digest = series.source.digest if series.source else ""
    return digest_of([FORMAT, digest, sorted(stamp(one.path) for one in series.slices)])


def read_scan_record(folder: Path, wanted: str) -> dict[str, Any] | None:
    """Return the record of a scan from an earlier run; ``None`` if there is none with the fingerprint ``wanted``."""
    record = read_record(folder / RECORD)
    return record if record.get("fingerprint") == wanted else None


def write_scan(
    folder: Path, series: CtSeries, grid: Grid, findings: Sequence[Finding], mark: str, *, image: str | Volume
) -> dict[str, Any]:
    """Write a scan's folder: its masks, the image if given as a volume, and the record.

    Args:
        folder: the folder; replaced if it exists.
        series: the scan's series.
        grid: the scan's grid.
        findings: the scan's findings, nodules first.
        mark: the series' fingerprint.
        image: the path to use in the datalist, or a volume to write.

    Returns:
        The record: ``fingerprint``, ``slice_mm`` (the larger of thickness and spacing) and ``item``.

    Raises:
        OutputError: the folder cannot be written.
    """
    place = f"{folder.parent.name}/{folder.name}"
    with replacing(folder) as new:
        new.mkdir(parents=True)
        details = []
        for label, finding in enumerate(findings, start=1):
            details.append(_details(finding, label))
            if finding.masks is not None:
                name = f"readers_{label:02d}.nii.gz"
                _write_reader_masks(new / name, finding.masks, grid.affine_ras)
                details[-1]["reader_masks"] = f"{place}/{name}"
        write_nifti(new / MASK, instance_mask(findings, grid.shape), grid.affine_ras)
        if isinstance(image, Volume):
            write_nifti(new / IMAGE, image.image_hu, image.affine_ras)
            image = f"{place}/{IMAGE}"
        item = {
            "name": series.uid,
            "patient": series.patient,
            "image": image,
            "mask": f"{place}/{MASK}",
            "box": [[*d["centre_lps_mm"], *[d["diameter_mm"]] * 3] for d in details],
            "label": [NODULE if finding.kind == OUTLINED else IGNORED for finding in findings],
            "nodules": details,
        }
        slice_mm = max(series.thickness_mm, float(spacing_mm(grid.affine_ras)[2]))
        record = {"fingerprint": mark, "slice_mm": round(slice_mm, 4), "item": item}
        write_json(new / RECORD, record)
    return record


def _details(finding: Finding, label: int) -> dict[str, Any]:
    return {
        "mask_label": label,
        "kind": finding.kind,
        "centre_lps_mm": [round(value, 4) for value in finding.centre_lps_mm],
        "diameter_mm": round(finding.diameter_mm, 4),
        "volume_mm3": round(finding.volume_mm3, 3),
        "readers": finding.readers,
        **finding.ratings,
    }


def _write_reader_masks(path: Path, masks: ReaderMasks, affine_ras: FloatArray) -> None:
    """Write the masks of a nodule's readers to one small image: bit n (from 0) is set where the n-th reader's is."""
    kind = next(k for k in (np.uint8, np.uint16, np.uint32, np.uint64) if len(masks.readers) <= np.iinfo(k).bits)
    bits = np.zeros(masks.inside.shape[1:], dtype=kind)
    for number, inside in enumerate(masks.inside):
        bits[inside] |= kind(1 << number)
    affine = affine_ras.copy()
    affine[:3, 3] = apply_affine(affine_ras, masks.corner)
    write_nifti(path, bits, affine)


def fold_of(patient: str, folds: int) -> int:
    """Return the fold that validates on a patient: a hash of the PatientID, independent of which others there are."""
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16) % folds


def write_nodules(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    """Write a table with a row for each box of the datalists.

    Raises:
        OutputError: it cannot be written.
    """
    rows = []
    for item in items:
        for label, details in zip(item["label"], item["nodules"], strict=True):
            values = dict(zip(("x_lps_mm", "y_lps_mm", "z_lps_mm"), details["centre_lps_mm"], strict=True))
            values |= {"series_uid": item["name"], "patient": item["patient"], "label": label, **details}
            rows.append([values.get(column) for column in NODULE_COLUMNS])
    write_csv(path, [NODULE_COLUMNS, *rows])
