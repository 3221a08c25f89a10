"""Validation lists of real nodules in their own surroundings, and of whole chests that were read by eye.

The data folder is that of :mod:`.development` with three more parts: ``lidc_context/`` (crops around LIDC nodules,
assembled into one volume per patient with -2048 HU where nothing is known, and ``nodules.csv``), ``lidc_xml/`` (LIDC's
readings) and ``chests/`` (whole chests, ``lesion_masks/``, ``chests.csv``). The readings of findings in the chests are
in ``docs/readings``.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from scripts.core.commands import run_function
from scripts.core.files import write_json
from scripts.core.geometry import (
    BoolArray,
    FloatArray,
    apply_affine,
    box_around,
    spacing_mm,
    swap_lps_ras,
    swap_lps_ras_affine,
    voxel_volume_mm3,
)
from scripts.core.labels import IGNORED, NODULE
from scripts.core.nifti import write_nifti
from scripts.metrics.overlap import compare_masks
from scripts.prepare.lidc.nodules import OUTLINED, Finding, ReaderMasks, SliceTable, find_findings, instance_mask
from scripts.prepare.lidc.readings import LidcError, Reading, SeriesReadings, parse_xml
from scripts.prepare.lidc.scans import xml_files

from .development import chest_item, patch_items, table_rows

logger = logging.getLogger(__name__)

UNKNOWN_BELOW_HU = -1500.0  # lidc_context has -2048 outside all crops
LUNG_LIKE_HU = (-985.0, -500.0)
SMALLEST_LUNG_MM3 = 3000.0  # least volume of lung in a crop; bowel gas and airways are smaller
CLOSED_MM = 12.0  # closes gaps of vessels and nodules up to this far from lung, as in the search for whole lungs
LEAST_READERS = 2  # of a nodule to be found; what fewer readers marked is neither true nor false
THICK_MM, THICKER_MM = 3.0, 5.0  # of simulated slices: those of most chests, and those of many hospitals
CUBE_MM = 100.0  # edge of a cube cut out of a chest around a nodule
SEARCHED_PIXELS = 1  # the nodules' centres give a crop's position in its slice to within one pixel


def real_nodules(data_dir: str, output_dir: str) -> str:
    """Write ``<output_dir>/datalist.json``: context, patches, chests, cubes; patches and chests in thick slices.

    Args:
        data_dir: the development data, see this module's docstring.
        output_dir: receives the datalist and the masks.

    Returns:
        The datalist's path.

    Raises:
        FileNotFoundError: a part of the data is missing.
        LidcError: readings are missing or do not fit the crops.
    """
    source, output = Path(data_dir), Path(output_dir).resolve()
    chests = [chest_item(row, source, output / "chests") for row in table_rows(source / "chests" / "chests.csv")]
    patches = patch_items(source, training=False)
    lists = {
        "context": list(_context_items(source, output)),
        "patches": patches,
        "thick": [thick_item(patch, THICK_MM, output / "thick") for patch in patches],
        "thicker": [thick_item(patch, THICKER_MM, output / "thicker") for patch in patches],
        "chests": chests,
        "thicker_chests": [thick_item(chest, THICKER_MM, output / "thicker_chests") for chest in chests],
        "cubes": [cube for chest in chests for cube in cube_items(chest, output / "cubes")],
    }
    path = write_json(output / "datalist.json", lists)
    counts = {key: (len(items), sum(i["label"].count(NODULE) for i in items)) for key, items in lists.items()}
    logger.info("%s, scans and nodules to find: %s", path, counts)
    return str(path)


def thick_item(item: Mapping[str, Any], slice_mm: float, output: Path) -> dict[str, Any]:
    """Average a scan over as many slices as make about ``slice_mm``, as a scanner does; without its mask."""
    output.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image.from_filename(item["image"])
    hu = np.asarray(image.dataobj)
    together = max(1, round(slice_mm / spacing_mm(image.affine)[2]))
    slices = hu[..., : hu.shape[2] // together * together].reshape(*hu.shape[:2], -1, together)
    affine = image.affine @ np.diag([1.0, 1.0, together, 1.0])
    affine[:3, 3] = apply_affine(image.affine, [0.0, 0.0, (together - 1) / 2.0])
    path = write_nifti(output / f"{item['name']}.nii.gz", slices.mean(axis=3).round().astype(np.int16), affine)
    return {"name": item["name"], "image": str(path), "box": item["box"], "label": item["label"]}


def cube_items(chest: Mapping[str, Any], output: Path) -> Iterator[dict[str, Any]]:
    """Cut a cube around each nodule of a chest, as in published collections of nodules; one item per cube."""
    output.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image.from_filename(chest["image"])
    hu, from_world = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    voxels = apply_affine(from_world, swap_lps_ras(np.reshape(chest["box"], (-1, 6))[:, :3]))
    for number, box in enumerate(chest["box"]):
        if chest["label"][number] != NODULE:
            continue
        part = box_around(image.affine, hu.shape, swap_lps_ras(box[:3]), CUBE_MM / 2.0)
        starts, stops = ([getattr(side, end) for side in part] for end in ("start", "stop"))
        inside = np.flatnonzero(((voxels >= starts) & (voxels <= np.subtract(stops, 1))).all(axis=1))
        affine = image.affine.copy()
        affine[:3, 3] = apply_affine(affine, starts)
        name = f"{chest['name']}-{number}"
        yield {
            "name": name,
            "image": str(write_nifti(output / f"{name}.nii.gz", hu[part], affine)),
            **{key: [chest[key][row] for row in inside] for key in ("box", "label")},
        }


def _context_items(source: Path, output: Path) -> Iterator[dict[str, Any]]:
    """Yield one item per patient of ``lidc_context``, with instance mask and lung mask."""
    rows = table_rows(source / "lidc_context" / "nodules.csv")
    wanted = {row["series_uid"]: row["patient"] for row in rows}
    for name, content in xml_files(source / "lidc_xml" / "tcia-lidc-xml.zip"):
        if not any(uid.encode() in content for uid in wanted):
            continue
        series = parse_xml(content, name)
        if series is None or series.series_uid not in wanted:
            continue
        patient = wanted.pop(series.series_uid)
        image = nibabel.Nifti1Image.from_filename(source / "lidc_context" / f"{patient}.nii.gz")
        centres = [
            [float(row[f"{axis}_lps_mm"]) for axis in "xyz"] for row in rows if row["series_uid"] == series.series_uid
        ]
        yield _context_item(patient, image, series, np.array(centres), output / "context")
    if wanted:
        raise LidcError(f"lidc_xml: expected the readings of {', '.join(wanted)}, found none; check --data_dir")


def _context_item(
    patient: str, image: nibabel.Nifti1Image, series: SeriesReadings, centres_lps_mm: FloatArray, output: Path
) -> dict[str, Any]:
    """Write the masks of one patient and return its datalist item."""
    hu = np.asarray(image.dataobj).astype(np.float32)
    findings = findings_on_crops(series, hu, image.affine, centres_lps_mm)
    output.mkdir(parents=True, exist_ok=True)
    files = {"mask": output / f"{patient}-mask.nii.gz", "lung_mask": output / f"{patient}-lungs.nii.gz"}
    write_nifti(files["mask"], instance_mask(findings, hu.shape), image.affine)
    write_nifti(files["lung_mask"], _lungs_in_crops(hu, image.affine).astype(np.uint8), image.affine)
    return {
        "name": patient,
        "image": str(Path(str(image.get_filename())).resolve()),
        **{key: str(path) for key, path in files.items()},
        "box": [[*np.round(f.centre_lps_mm, 3).tolist(), *[round(f.diameter_mm, 3)] * 3] for f in findings],
        "label": [NODULE if f.readers >= LEAST_READERS else IGNORED for f in findings],
        "readers": [f.readers for f in findings],
        "texture": [f.ratings.get("texture") for f in findings],
        "reader_dice": [None if f.masks is None else reader_dice(f.masks) for f in findings],
    }


def reader_dice(masks: ReaderMasks) -> float | None:
    """Return the mean Dice of each reader's mask with the consensus of the other readers, ``None`` for one reader."""
    if len(masks.readers) < 2:
        return None
    dices: list[float] = []
    for number, (reader, own) in enumerate(zip(masks.readers, masks.inside, strict=True)):
        others = tuple(other for other in masks.readers if other != reader)
        rest = replace(masks, readers=others, inside=np.delete(masks.inside, number, axis=0))
        dices.append(compare_masks(rest.consensus(), own, (1.0, 1.0, 1.0)).dice or 0.0)
    return round(float(np.mean(dices)), 4)


def findings_on_crops(
    series: SeriesReadings, hu: npt.NDArray[np.float32], affine: FloatArray, centres_lps_mm: FloatArray
) -> list[Finding]:
    """Align the readings of a whole scan with crops of it whose position within the slices is unknown.

    The readings' pixels and the known centres of the nodules give this position to within one pixel. Of the positions
    within :data:`SEARCHED_PIXELS`, the one is taken at which the masks contain the densest tissue.

    Args:
        series: the readings of the whole scan.
        hu: ``[I, J, K]``, the crops.
        affine: voxel to RAS mm; z is that of the scan.
        centres_lps_mm: ``[N, 3]``, centres of nodules among the readings.

    Returns:
        Outlined nodules that lie in the crops; their masks are on the crops' grid.

    Raises:
        LidcError: the readings fit at no position.
    """
    best: tuple[float, list[Finding]] = (-np.inf, [])
    column, row = _first_pixel(series, affine, centres_lps_mm)
    heights = affine[2, 3] + affine[2, 2] * np.arange(hu.shape[2])
    slices = SliceTable({str(k): (k, (0, 0, z)) for k, z in enumerate(heights)}, hu.shape, swap_lps_ras_affine(affine))
    steps = range(-SEARCHED_PIXELS, SEARCHED_PIXELS + 1)
    for first in [(column + a, row + b) for a in steps for b in steps]:
        moved = replace(series, marks=(), readings=tuple(_readings_inside(series, first, hu, affine)))
        found = [finding for finding in find_findings(moved, slices) if finding.kind == OUTLINED]
        inside = [hu[f.masks.box][f.masks.consensus()] for f in found if f.masks is not None]
        density = float(np.mean(np.concatenate(inside))) if inside else -np.inf
        if density > best[0]:
            best = density, found
    if not best[1]:
        raise LidcError(f"{series.series_uid}: expected outlines that fit lidc_context, got none; check the data")
    return best[1]


def _first_pixel(series: SeriesReadings, affine: FloatArray, centres_lps_mm: FloatArray) -> tuple[int, int]:
    """Return column and row of the crops' voxel (0, 0) in the scan's slices, as most readings and centres suggest."""
    from_world = np.linalg.inv(affine)
    votes: Counter[tuple[int, int]] = Counter()
    for centre in centres_lps_mm:
        voxel = apply_affine(from_world, swap_lps_ras(centre))
        for reading in series.readings:
            if abs(np.mean([region.z_mm for region in reading.regions]) - centre[2]) < 2.0 * spacing_mm(affine)[2]:
                pixel = np.concatenate([region.border for region in reading.regions]).mean(axis=0)
                votes[tuple(np.round(pixel - voxel[:2]).astype(int).tolist())] += 1
    return votes.most_common(1)[0][0]


def _readings_inside(
    series: SeriesReadings, first: tuple[int, int], hu: npt.NDArray[np.float32], affine: FloatArray
) -> Iterator[Reading]:
    """Yield the readings whose outlines lie in the crops, moved to their pixels; only height identifies slices."""
    known = np.pad(hu > UNKNOWN_BELOW_HU, 1)  # beyond the crops nothing is known
    for reading in series.readings:
        regions = tuple(
            replace(region, sop_uid="", corner=region.corner - first, border=region.border - first)
            for region in reading.regions
        )
        levels = [round((region.z_mm - affine[2, 3]) / affine[2, 2]) for region in regions]
        voxels = [np.insert(region.border, 2, k, axis=1) + 1 for region, k in zip(regions, levels, strict=True)]
        if known[tuple(np.clip(np.concatenate(voxels), 0, np.array(known.shape) - 1).T)].all():
            yield replace(reading, regions=regions)


def _lungs_in_crops(hu: npt.NDArray[np.float32], affine: FloatArray) -> BoolArray:
    """Return large components of lung-like tissue, closed, where the volume is known."""
    known = hu > UNKNOWN_BELOW_HU
    air = (hu > LUNG_LIKE_HU[0]) & (hu < LUNG_LIKE_HU[1])
    labels, _ = ndimage.label(air)
    sizes_mm3 = np.bincount(labels.ravel()) * voxel_volume_mm3(affine)
    sizes_mm3[0] = 0.0
    lung = np.isin(labels, np.flatnonzero(sizes_mm3 >= SMALLEST_LUNG_MM3))
    mm = spacing_mm(affine)
    grown = ndimage.distance_transform_edt(~lung, sampling=mm) <= CLOSED_MM
    return np.asarray(known & (ndimage.distance_transform_edt(grown, sampling=mm) > CLOSED_MM) | lung)


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.real_nodules", real_nodules))
