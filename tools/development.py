"""Make a datalist from the development data: whole lungs as hosts, and LIDC nodules as donors for insertion.

The data folder contains ``scans_1mm/`` (whole lungs, 1 mm, NIfTI), ``lidc_nodules/`` (nodule patches with masks and
``nodules.csv``), ``lidc_patches/`` (nodules with their surroundings, 1 mm, masks and ``patches.csv``), ``luna16/``
(``annotations.csv``, ``annotations_excluded.csv``) and optionally ``chests/`` (whole chests, ``chests.csv``,
``lesion_masks/``). The readings of findings in the chests are in ``docs/readings/read_findings.csv``.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from scripts.core.commands import run_function
from scripts.core.files import read_csv, write_json
from scripts.core.geometry import apply_affine, swap_lps_ras
from scripts.core.labels import IGNORED, NODULE
from scripts.core.nifti import write_nifti
from scripts.evaluate.tables import Table, read_results
from scripts.prepare.donors import weight_of
from scripts.preprocess.lung_search import LungSearch
from scripts.preprocess.lungs import find_lungs
from scripts.read.instances import labels_of, things_of
from scripts.train.crops import crop_by_affine
from scripts.train.insertion import InsertNodulesd

logger = logging.getLogger(__name__)

EXCLUDED_MM = 10.0  # LUNA16 gives excluded findings the diameter -1 and counts a sphere of 10 mm
HOST_WEIGHT = 10.0  # a real lung is cropped this many times as often as a synthetic one (weight 1)
PATCH_WEIGHT = 0.0  # a patch is cropped around its nodule, never as background, which would be mostly mirrored
HELD_OUT_SCAN = "TCGA-DE-A4MA"  # default; never trained on, receives the held-out donors for validation
HELD_OUT_SHARE = 0.1  # share of the donors' patients
CONTEXT_PATIENTS = ("LIDC-IDRI-0055", "LIDC-IDRI-0144")  # their nodules are validated on in place
IGNORED_MARGIN_MM = 3.0  # added to the diameter of an ignored finding, which a network has measured
AERATED_HU = -400  # below this, air in a patch counts as lung
READINGS = Path(__file__).resolve().parents[1] / "docs" / "readings" / "read_findings.csv"
LEAST_FALSE, MOST_FALSE = 0.25, 30  # uncalibrated probability of a false finding to train on; most in a lung
FALSE_MARGIN_MM = 4.0  # around a nodule or doubtful finding
VALIDATION_NODULES = 12  # most per copy of the held-out scan; there are enough copies for all held-out donors

SERIES_UIDS = {
    "LIDC-IDRI-0001": "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192",
    "LIDC-IDRI-0002": "1.3.6.1.4.1.14519.5.2.1.6279.6001.619372068417051974713149104919",
}

# Up to this number, patches without a series are numbered by patient from LIDC-IDRI-0001, like those with one.
LAST_PATIENT_IN_ORDER = 75

# Masses, nodules and opacities that nobody has annotated as nodules, read by eye among the findings of networks (in the
# last round those from a probability of 0.05 on): centre LPS mm, diameter mm with a margin.
# Never background, and neither true nor false in validation.
UNREAD_FINDINGS_LPS_MM: dict[str, list[tuple[float, float, float, float]]] = {
    "C3N-00247": [
        (-81.2, -190.2, -193.0, 28.0),
        (-18.1, -231.4, -158.0, 12.0),
        (107.0, -131.5, -195.1, 10.0),
        (-114.8, -125.5, -155.5, 8.0),
        (-19.0, -141.7, -196.6, 8.0),
        (-63.1, -237.7, -149.4, 8.0),
        (-49.0, -227.3, -160.5, 8.0),
        (-87.3, -128.0, -37.8, 7.0),
    ],
    "CMB-CRC-MSB-01068": [
        (95.2, -2.0, -108.5, 24.0),
        (46.2, 22.0, -72.5, 16.0),
        (90.3, 13.0, -60.4, 10.0),
        (-65.8, -19.3, -200.8, 14.0),
        (-99.5, -50.5, -163.4, 10.0),
        (-86.4, 32.0, -149.3, 8.0),
        (-93.2, -43.2, -122.1, 10.0),
        (49.4, 8.7, -204.2, 11.0),
        (-32.3, 37.7, -74.5, 7.0),
        (34.6, -75.9, -156.6, 10.0),
        (33.9, -83.5, -127.0, 7.0),
        (61.2, -33.2, -148.9, 9.0),
        (-86.8, -15.8, -82.0, 6.0),
        (85.8, 16.7, -36.9, 9.0),
        (-105.4, 9.7, -49.3, 9.0),
        (96.5, 35.0, -101.5, 7.0),
        (-78.9, -18.6, -89.1, 7.0),
        (-87.4, -2.3, -197.7, 7.0),
    ],
    "LIDC-IDRI-0001": [(-57.3, -63.6, -196.8, 8.0), (125.4, 27.0, -211.1, 8.0), (-10.5, 57.7, -264.7, 8.0)],
    "LIDC-IDRI-0002": [(63.9, 23.4, -265.3, 7.0)],
    "TCGA-DE-A4MA": [(-109.1, -112.2, -939.1, 12.0), (-106.6, -162.8, -932.6, 12.0)],
}


Item = dict[str, Any]


def _existing(path: Path) -> str:
    """Return the absolute path of a file of the development data.

    Raises:
        FileNotFoundError: it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of the development data, found none; check --data_dir")
    return str(path.resolve())


def _image_and_mask(folder: Path, name: str) -> dict[str, str]:
    return {key: _existing(folder / key / f"{name}.nii.gz") for key in ("image", "mask")}


def table_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of the development data, by column.

    Raises:
        FileNotFoundError: it is missing.
    """
    return [row for _, row in read_csv(_existing(path))]


def _is_held_out(patient: str, scan: str) -> bool:
    """Whether a patient is held out; decided by a hash of the ID, so that neither order nor other patients matter.

    The patients of the held-out scan, and of the real nodules used for validation, are always held out.
    """
    return (
        patient in (scan, *CONTEXT_PATIENTS)
        or int(hashlib.sha256(patient.encode()).hexdigest(), 16) % 1000 < 1000 * HELD_OUT_SHARE
    )


def _donors(data_dir: Path, held_out: str) -> dict[str, list[Item]]:
    """Return the donors for training and for validation, split by patient."""
    folder = data_dir / "lidc_nodules"
    donors: dict[str, list[Item]] = {"donors": [], "validation_donors": []}
    for row in table_rows(folder / "nodules.csv"):
        donors["validation_donors" if _is_held_out(row["name"].split("_")[0], held_out) else "donors"].append(
            {
                "name": row["name"],
                **_image_and_mask(folder, row["name"]),
                "diameter_mm": float(row["diameter_mm"]),
                "weight": weight_of(float(row["texture"] or 0.0)),
            }
        )
    return donors


def patch_items(data_dir: Path, held_out: str = "", *, training: bool) -> list[Item]:
    """Return nodules in their own surroundings, each as a small scan: of training patients, or of all others.

    Some patients are unknown (``patient`` is null): those of their nodules that LUNA16 selected may be among the
    donors.
    """
    folder = data_dir / "lidc_patches"
    patients = {
        row["seriesuid"]: row["name"].split("_")[0] for row in table_rows(data_dir / "lidc_nodules" / "nodules.csv")
    }
    items: list[Item] = []
    for row in table_rows(folder / "patches.csv"):
        number = int(row["name"].split("_")[0])
        counted = f"LIDC-IDRI-{number + 1:04d}" if number <= LAST_PATIENT_IN_ORDER else None
        patient = patients.get(row["seriesuid"], counted)
        if (patient is not None and not _is_held_out(patient, held_out)) != training:
            continue
        files = _image_and_mask(folder, row["name"])
        affine = nibabel.Nifti1Image.from_filename(files["image"]).affine
        centre = swap_lps_ras(apply_affine(affine, np.array([float(row[axis]) for axis in "ijk"])))
        diameter = float(row["equivalent_diameter_mm"])
        items.append(
            {
                "name": f"patch-{row['name']}",
                **files,
                "weight": PATCH_WEIGHT,
                "patient": patient,
                "box": [[*centre.round(3).tolist(), diameter, diameter, diameter]],
                "label": [NODULE],
            }
        )
    return items


def _mirrored(patch: Item, output: Path) -> Item:
    """Extend a patch by its mirror images; mirrored nodules are ignored, and all air counts as lung.

    A crop is larger than a patch. If there were air beyond the patch, a cube floating in air would indicate a nodule.
    """
    folder = output / "patches"
    files = {key: folder / f"{patch['name']}-{key}.nii.gz" for key in ("image", "mask", "lung_mask")}
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("image", "mask"):
        source = nibabel.Nifti1Image.from_filename(patch[key])
        voxels = np.asarray(source.dataobj).astype(np.int16)
        affine = source.affine.copy()
        affine[:3, 3] = apply_affine(affine, -np.array(voxels.shape))
        beyond = [(n, n) for n in voxels.shape]
        continued = np.pad(voxels, beyond, mode="symmetric" if key == "image" else "constant")
        write_nifti(files[key], continued, affine)
        if key == "image":
            write_nifti(files["lung_mask"], (continued < AERATED_HU).astype(np.uint8), affine)
    centre_lps_mm, diameter = patch["box"][0][:3], patch["box"][0][3]
    centre = apply_affine(np.linalg.inv(source.affine), swap_lps_ras(np.array(centre_lps_mm)))
    mirrored = itertools.product(*[(c, -1.0 - c, 2.0 * n - 1.0 - c) for c, n in zip(centre, voxels.shape, strict=True)])
    centres_lps_mm = swap_lps_ras(apply_affine(source.affine, np.array(list(mirrored)))).round(3).tolist()
    return {
        **patch,
        **{key: str(file.resolve()) for key, file in files.items()},
        "box": [[*centre, diameter, diameter, diameter] for centre in centres_lps_mm],
        "label": [NODULE] + [IGNORED] * (len(centres_lps_mm) - 1),
    }


def chest_item(row: Mapping[str, str], data_dir: Path, output: Path, margin_mm: float = 0.0) -> Item:
    """Return the item of a whole chest: its known lesions, with their masks, and what was read as nodule or doubtful.

    Known lesions and what was read as a nodule are nodules; doubtful readings and other lesions are ignored.

    Args:
        row: of ``chests.csv``.
        data_dir: the development data.
        output: folder for the mask.
        margin_mm: added to the diameter of a doubtful reading.
    """
    name = row["name"]
    item: Item = {"name": name, "image": _existing(data_dir / "chests" / f"{name}.nii.gz"), "weight": HOST_WEIGHT}
    boxes: list[list[float]] = []
    labels: list[int] = []
    lesions = data_dir / "chests" / "lesion_masks" / f"{name}.nii.gz"
    if lesions.is_file():
        item["mask"] = str((output / f"{name}.nii.gz").resolve())
        boxes, labels = _known_lesions(row, lesions, Path(item["mask"]))
    for reading in table_rows(READINGS):
        place = [float(reading[f"{axis}_lps_mm"]) for axis in "xyz"]
        near = any(np.linalg.norm(np.subtract(place, box[:3])) < box[3] / 2 for box in boxes)
        if reading["name"] == name and reading["verdict"] in ("nodule", "doubt") and not near:
            sure = reading["verdict"] == "nodule"
            boxes.append([*place, *[float(reading["diameter_mm"]) + (0.0 if sure else margin_mm)] * 3])
            labels.append(NODULE if sure else IGNORED)
    return {**item, "box": boxes, "label": labels}


def _known_lesions(row: Mapping[str, str], path: Path, output: Path) -> tuple[list[list[float]], list[int]]:
    """Write the instance mask of a chest's lesions; return boxes (LPS mm) and labels, NODULE for listed lesions."""
    mask = labels_of(path)
    listed = np.array(row["known_lesions_lps_mm_diameter_mm"].split(), dtype=np.float64).reshape(-1, 4)
    boxes, labels = [], []
    instances = np.zeros(mask.values.shape, dtype=np.uint8)
    for number, thing in enumerate(things_of(mask), start=1):
        instances[mask.values == thing.value] = number
        boxes.append([*thing.centre_lps_mm.round(3).tolist(), *[round(thing.diameter_mm, 3)] * 3])
        apart_mm = np.linalg.norm(listed[:, :3] - thing.centre_lps_mm, axis=1)
        labels.append(NODULE if (apart_mm < listed[:, 3] / 2).any() else IGNORED)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(output, instances, mask.affine_ras)
    return boxes, labels


def _findings(name: str, data_dir: Path) -> tuple[list[list[float]], list[int]]:
    """Return boxes (LPS mm) and labels of a host: its LUNA16 nodules; excluded and unread findings as ignored."""
    uid = SERIES_UIDS.get(name)
    nodules: list[list[float]] = []
    others = [list(row) for row in UNREAD_FINDINGS_LPS_MM.get(name, [])]
    for file, rows in (("annotations.csv", nodules), ("annotations_excluded.csv", others)):
        for row in table_rows(data_dir / "luna16" / file):
            if row["seriesuid"] == uid:
                diameter = float(row["diameter_mm"])
                position = [float(row[f"coord{axis}"]) for axis in "XYZ"]
                rows.append([*position, diameter if diameter > 0 else EXCLUDED_MM])
    others = [o for o in others if all(np.linalg.norm(np.subtract(o[:3], n[:3])) > n[3] / 2 for n in nodules)]
    boxes = [[*row[:3], row[3], row[3], row[3]] for row in nodules + others]
    return boxes, [NODULE] * len(nodules) + [IGNORED] * len(others)


def _host_mask(
    name: str, boxes: list[list[float]], image: nibabel.Nifti1Image, data_dir: Path, output: Path
) -> str | None:
    """Write the masks of a host's own nodules on its grid; ``None`` if no mask is known for any of them."""
    mask = np.zeros(image.shape, dtype=np.uint8)
    for file in sorted((data_dir / "lidc_nodules" / "mask").glob(f"{name}_*.nii.gz")):
        patch = nibabel.Nifti1Image.from_filename(file)
        to_patch = np.linalg.inv(patch.affine) @ image.affine
        part = np.asarray(patch.dataobj).astype(np.float32)
        inside = ndimage.affine_transform(part, to_patch[:3, :3], to_patch[:3, 3], image.shape, order=1) > 0.5
        if not boxes or not inside.any():
            continue
        centre = swap_lps_ras(apply_affine(image.affine, np.argwhere(inside).mean(0)))
        nearest = int(np.argmin([np.linalg.norm(centre - np.array(b[:3])) for b in boxes]))
        mask[inside] = nearest + 1
    if not mask.any():
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    return str(write_nifti(output, mask, image.affine).resolve())


def _with_insertions(item: Item, donors: list[Item], output: Path, seed: int) -> Item:
    """Copy a scan and insert each of the donors away from known findings: image, mask and datalist item."""
    image = nibabel.Nifti1Image.from_filename(item["image"])
    hu = np.asarray(image.dataobj).astype(np.float32)
    lungs = find_lungs(hu, image.affine, LungSearch(), source=item["name"])
    to_coarse = np.linalg.inv(lungs.affine_ras) @ image.affine
    closed = crop_by_affine(lungs.distance_mm, to_coarse, hu.shape, order=1) < 1.0
    known_lps_mm = np.reshape(item["box"], (-1, 6))[:, :3]
    voxels = apply_affine(np.linalg.inv(image.affine), swap_lps_ras(known_lps_mm))
    data: dict[Hashable, Any] = {
        "image": hu[None],
        "lung": closed[None],
        "nodule": np.array(
            [[*voxel, row[3]] for voxel, row in zip(voxels, item["box"], strict=True)], dtype=np.float32
        ),
        "label": np.array(item["label"], dtype=np.int64),
    }
    for turn, donor in enumerate(donors):
        insert = InsertNodulesd([donor], prob=1.0, most=1, scale=(1.0, 1.0))
        insert.set_random_state(seed * 1000 + turn)
        data = insert(data)
    output.mkdir(parents=True, exist_ok=True)
    name = f"{item['name']}-inserted-{seed}"
    files = {key: str((output / f"{name}-{key}.nii.gz").resolve()) for key in ("image", "mask")}
    for key, dtype in (("image", np.int16), ("mask", np.uint8)):
        write_nifti(Path(files[key]), data[key][0].round().astype(dtype), image.affine)
    rows = data["nodule"].astype(float)
    centres = swap_lps_ras(apply_affine(image.affine, rows[:, :3]))
    boxes = [[*c, d, d, d] for c, d in zip(centres.round(3).tolist(), rows[:, 3].round(3).tolist(), strict=True)]
    return {"name": name, **files, "box": boxes, "label": data["label"].tolist()}


def make_development_datalist(
    data_dir: str, output_dir: str, held_out: str = HELD_OUT_SCAN, leave_out: str = "", findings: str = ""
) -> str:
    """Write ``<output_dir>/datalist.json`` with the sections training, validation, donors and validation_donors.

    Args:
        data_dir: the development data, see this module's docstring.
        output_dir: receives the datalist, host masks, mirrored patches, and the validation scans with their insertions.
        held_out: the scan of ``scans_1mm`` that is never trained on and receives the held-out donors; its own nodules
            count as neither true nor false, since each copy contains them. If empty, all scans are trained on, and the
            section validation is empty.
        leave_out: no scan or chest whose name begins with one of these, separated by commas, is trained on, such as
            QIN for a fold by collection.
        findings: ``predictions.csv`` of an evaluation of the lungs that are trained on. The strongest findings that lie
            on nothing annotated or doubtful become their ``false_findings``.

    Returns:
        The datalist's path.

    Raises:
        FileNotFoundError: a part of the data is missing, such as the scan to hold out.
    """
    source, output = Path(data_dir), Path(output_dir)
    left_out = tuple(filter(None, leave_out.split(",")))
    lists: dict[str, list[Item]] = {"training": [], "validation": [], **_donors(source, held_out)}
    found = read_results(findings) if findings else None
    for item in _hosts(source, output):
        if item["name"] == held_out:
            donors = lists["validation_donors"]
            logger.info("inserting %d held-out nodules into %s", len(donors), held_out)
            copies = -(-len(donors) // VALIDATION_NODULES)  # each gets its share of the donors
            bare, target = {**item, "label": [IGNORED] * len(item["label"])}, output / "validation"
            lists["validation"] = [_with_insertions(bare, donors[n::copies], target, n) for n in range(copies)]
        elif not item["name"].startswith(left_out):
            lists["training"].append({**item, "false_findings": false_findings(item, found)} if found else item)
    if held_out and not lists["validation"]:
        _existing(source / "scans_1mm" / f"{held_out}.nii.gz")
    lists["training"] += [_mirrored(patch, output) for patch in patch_items(source, held_out, training=True)]
    output.mkdir(parents=True, exist_ok=True)
    path = write_json(output / "datalist.json", lists)
    logger.info("%s: %s", path, {key: len(value) for key, value in lists.items()})
    return str(path)


def false_findings(item: Item, found: Table) -> list[list[float]]:
    """Return the positions (LPS mm) of the strongest findings in a lung that are far from its boxes.

    Args:
        item: of the datalist, with ``name`` and ``box``.
        found: candidates of all lungs, by name.
    """
    here = np.array([uid == item["name"] for uid in found.series_uids], dtype=bool)
    order = np.argsort(-found.values[here], kind="stable")
    scores, places = found.values[here][order], found.positions_lps_mm[here][order]
    boxes = np.reshape(item["box"], (-1, 6))
    kept: list[list[float]] = []
    for place in places[scores >= LEAST_FALSE]:
        if (np.linalg.norm(boxes[:, :3] - place, axis=1) >= boxes[:, 3] / 2 + FALSE_MARGIN_MM).all():
            kept.append(place.round(2).tolist())
    return kept[:MOST_FALSE]


def _hosts(source: Path, output: Path) -> Iterator[dict[str, Any]]:
    """Yield datalist items of the lungs in ``scans_1mm``, then of the whole chests."""
    for path in sorted((source / "scans_1mm").glob("*.nii.gz")) or [source / "scans_1mm" / "*.nii.gz"]:
        name = path.name.removesuffix(".nii.gz")
        item: Item = {"name": name, "image": _existing(path), "weight": HOST_WEIGHT}
        item["box"], item["label"] = _findings(name, source)
        image = nibabel.Nifti1Image.from_filename(path)
        mask = _host_mask(name, item["box"], image, source, output / "masks" / path.name)
        yield {**item, "mask": mask} if mask else item
    chests = source / "chests" / "chests.csv"
    for row in table_rows(chests) if chests.is_file() else []:
        item = chest_item(row, source, output / "masks", IGNORED_MARGIN_MM)
        if "mask" not in item:  # nodules without a voxel teach no mask, but insertions do
            image = nibabel.Nifti1Image.from_filename(item["image"])
            target = output / "masks" / f"{item['name']}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            item["mask"] = str(write_nifti(target, np.zeros(image.shape, np.uint8), image.affine).resolve())
        yield item


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.development", make_development_datalist))
