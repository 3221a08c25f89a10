"""What is written of one scan, and the tables and datalists of all.

A scan's folder appears by one rename, complete; tables and datalists are replaced by a rename, too. Whoever kills a run
and starts it again ends with the same files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ...core.geometry import FloatArray
from ...core.labels import IGNORED, NODULE
from ...read.scan import Grid, Volume, tilt_degrees
from .nodules import OUTLINED, Finding
from .readings import RATINGS
from .scans import CtSeries, Notice

FORMAT = 1  # raised whenever the same input gives other files
RECORD, MASK, IMAGE = "scan.json", "mask.nii.gz", "image.nii.gz"
LUNA16_READERS, LUNA16_SLICE_MM = 3, 2.5  # the challenge's selection (Setio et al., 2017, and its web site)
TILTED_DEGREES = 0.01  # more, and no quaternion can hold the axes: the sform alone does

NODULE_COLUMNS = (
    *("series_uid", "patient", "mask_label", "label", "kind", "readers"),
    *("x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "volume_mm3"),
    *RATINGS,
    "reader_masks",
)


def fingerprint(series: CtSeries) -> str:
    """Changes whenever the scan's files or its readings do."""
    stamps = []
    for one in series.slices:
        status = one.path.stat()
        stamps.append((str(one.path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps([FORMAT, series.digest, sorted(stamps)]).encode()).hexdigest()


def read_record(folder: Path, wanted: str) -> dict[str, Any] | None:
    """What an earlier run wrote of a scan; ``None`` where it did not, or from other input."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("fingerprint") == wanted else None


def write_scan(
    folder: Path, series: CtSeries, grid: Grid, findings: Sequence[Finding], mark: str, *, image: str | Volume
) -> dict[str, Any]:
    """Write a scan's folder: masks, the image where it is a volume, and the record.

    Args:
        folder: replaced when it exists.
        series: whose it is.
        grid: of the scan.
        findings: nodules first.
        mark: the fingerprint.
        image: a path to name, or the volume to write.

    Returns:
        The record: ``fingerprint``, ``slice_mm`` (the larger of thickness and spacing) and ``item``.
    """
    clear_leftovers(folder)
    staging = _staging(folder)
    staging.mkdir(parents=True)
    details = []
    for label, finding in enumerate(findings, start=1):
        details.append(_details(finding, label))
        if finding.masks is not None:
            masks_path = f"readers_{label:02d}.nii.gz"
            _write_reader_masks(staging / masks_path, finding, grid.affine_ras)
            details[-1]["reader_masks"] = f"{folder.parent.name}/{folder.name}/{masks_path}"
    _write_nifti(staging / MASK, instance_mask(findings, grid.shape), grid.affine_ras)
    if isinstance(image, Volume):
        _write_nifti(staging / IMAGE, image.image_hu, image.affine_ras)
        image = f"{folder.parent.name}/{folder.name}/{IMAGE}"
    slice_mm = max(series.thickness_mm, float(np.linalg.norm(grid.affine_ras[:3, 2])))
    item = {
        "name": series.uid,
        "patient": series.patient,
        "image": image,
        "mask": f"{folder.parent.name}/{folder.name}/{MASK}",
        "box": [[*d["centre_lps_mm"], *[d["diameter_mm"]] * 3] for d in details],
        "label": [NODULE if finding.kind == OUTLINED else IGNORED for finding in findings],
        "nodules": details,
    }
    record = {"fingerprint": mark, "slice_mm": round(slice_mm, 4), "item": item}
    (staging / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _exchange(folder)
    return record


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run left beside a scan's folder."""
    for leftover in (_staging(folder), _former(folder)):
        shutil.rmtree(leftover, ignore_errors=True)


def _staging(folder: Path) -> Path:
    return folder.with_name(f".partial-{folder.name}")


def _former(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def _exchange(folder: Path) -> None:
    """Put the complete staging folder in place; killed in between, the place is empty, never half filled."""
    if folder.exists():
        os.replace(folder, _former(folder))
    os.replace(_staging(folder), folder)
    shutil.rmtree(_former(folder), ignore_errors=True)


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


def instance_mask(findings: Sequence[Finding], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Each consensus with its finding's number from 1; where two overlap (one may lie in the other), the smaller's."""
    instances = np.zeros(shape, dtype=np.uint8 if len(findings) < 256 else np.uint16)
    numbered = [(number, finding.masks) for number, finding in enumerate(findings, start=1) if finding.masks]
    for number, masks in sorted(numbered, key=lambda one: -np.count_nonzero(one[1].consensus())):
        agreed = masks.consensus()
        i, j, k = (slice(a, a + n) for a, n in zip(masks.corner, agreed.shape, strict=True))
        instances[i, j, k][agreed] = number
    return instances


def _write_reader_masks(path: Path, finding: Finding, affine_ras: FloatArray) -> None:
    """All readers of one nodule in one small image: bit n (from 0) is set where the n-th has the voxel inside."""
    masks = finding.masks
    assert masks is not None
    count = len(masks.readers)
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if count <= np.iinfo(kind).bits)
    bits = np.zeros(masks.inside.shape[1:], dtype=kind)
    for number, inside in enumerate(masks.inside):
        bits[inside] |= kind(1 << number)
    affine = affine_ras.copy()
    affine[:3, 3] += affine_ras[:3, :3] @ masks.corner
    _write_nifti(path, bits, affine)


def _write_nifti(path: Path, array: npt.NDArray[Any], affine_ras: FloatArray) -> None:
    """Write an image, the same bytes for the same content (gzip would add the time)."""
    image = nib.Nifti1Image(array, affine_ras)
    image.set_sform(affine_ras, code=1)
    tilted = tilt_degrees(affine_ras) > TILTED_DEGREES
    image.set_qform(None if tilted else affine_ras, code=0 if tilted else 1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def select(record: Mapping[str, Any], selection: str) -> dict[str, Any] | None:
    """A scan's datalist item under a selection; ``None`` where the scan is left out.

    Args:
        record: of the scan.
        selection: "all", or "luna16": scans with slices of at most 2.5 mm; nodules of fewer than three readers become
            ignored findings, as in the challenge's list of excluded ones.
    """
    item = dict(record["item"])
    if selection == "all":
        return item
    if record["slice_mm"] > LUNA16_SLICE_MM + 1e-3:
        return None
    few = [details["readers"] < LUNA16_READERS for details in item["nodules"]]
    item["label"] = [IGNORED if is_few else label for label, is_few in zip(item["label"], few, strict=True)]
    return item


def fold_of(patient: str, folds: int) -> int:
    """The fold that validates a patient: by a hash of the PatientID, so it never depends on what else is there."""
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16) % folds


def write_datalists(output: Path, items: Sequence[Mapping[str, Any]], folds: int) -> list[tuple[int, int]]:
    """Write ``dataset_fold0.json`` …, each with all items: those of its own patients under ``validation``.

    Datalists of further folds, from an earlier run with more of them, are removed.

    Returns:
        Scans to train on and to validate with, by fold.
    """
    names = {f"dataset_fold{fold}.json" for fold in range(folds)}
    for path in output.glob("dataset_fold*.json"):
        if path.name not in names:
            path.unlink()
    counts = []
    for fold in range(folds):
        parts: dict[str, list[Mapping[str, Any]]] = {"training": [], "validation": []}
        for item in items:
            parts["validation" if fold_of(str(item["patient"]), folds) == fold else "training"].append(item)
        replace_text(output / f"dataset_fold{fold}.json", json.dumps(parts, indent=1) + "\n")
        counts.append((len(parts["training"]), len(parts["validation"])))
    return counts


def write_tables(output: Path, items: Iterable[Mapping[str, Any]], notices: Sequence[Notice]) -> None:
    """Write ``nodules.csv``, a row for each row of the datalists, and ``skipped.csv``, a row for each notice."""
    rows = []
    for item in items:
        for label, details in zip(item["label"], item["nodules"], strict=True):
            centre = dict(zip(("x_lps_mm", "y_lps_mm", "z_lps_mm"), details["centre_lps_mm"], strict=True))
            rows.append({"series_uid": item["name"], "patient": item["patient"], "label": label, **centre, **details})
    replace_text(output / "nodules.csv", _csv(NODULE_COLUMNS, rows))
    columns = tuple(one.name for one in fields(Notice))
    replace_text(output / "skipped.csv", _csv(columns, [asdict(notice) for notice in notices]))


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def replace_text(path: Path, text: str) -> None:
    """Write a text file that is there whole or not at all."""
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
