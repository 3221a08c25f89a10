"""The command ``donors``: cuts nodules out of their scans, so that training can insert them into others."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ..core.files import digest_of, remove_abandoned, writable_folder, write_json
from ..core.geometry import apply_affine, spacing_mm
from ..core.nifti import write_nifti
from ..read.datalist import nodule_rows
from ..read.instances import labels_of, on_grid
from ..read.reader import ScanError, read_scan
from .checks import failed_mask_checks
from .datalists import LeftOut, PrepareError, account_for, moved_item, read_lists, refuse_if_strict

logger = logging.getLogger(__name__)

FOLDER = "donors"
MARGIN_MM = 10.0  # kept around a nodule's mask; what a nodule touches decides where it is inserted
FAINT_TEXTURE = 3.5  # LIDC's texture (1: ground glass, 5: solid) below which a nodule is not solid: one in nine
FAINT_WEIGHT = 3.0  # such nodules are drawn this many times as often as others

Item = dict[str, Any]


def donors(*, datalists: str | Sequence[str], output_dir: str, strict: bool = False) -> None:
    """Cut out the nodules that are trained on and have a mask, and add them to the datalists as donors.

    Args:
        datalists: datalists with masks, such as those of the commands lidc, luna16_masks and datalist.
        output_dir: folder for the datalists (under the same names; it may be theirs) and for donors/. The section
            donors of each datalist holds the nodules of its own training section.
        strict: stop with an error if a nodule cannot be cut out.

    Raises:
        UserError: a datalist cannot be used, no nodule can be cut out, a folder cannot be written to, or, with strict,
            a nodule is left out.
    """
    target = writable_folder(output_dir)
    lists = read_lists(datalists)
    folder = writable_folder(target / FOLDER)
    remove_abandoned(folder)
    training = {path: sections.get("training", []) for path, sections in lists.items()}
    scans = {_key(item): item for items in training.values() for item in items}  # folds have most of them in common
    left_out: list[LeftOut] = []
    cut: dict[str, list[Item]] = {}
    for key, item in tqdm(scans.items(), desc="scans", unit="scan", mininterval=1.0):
        try:
            cut[key] = cut_out(item, f"{item['name']}-{key}", folder, left_out)
        except ScanError as error:
            cut[key] = []
            left_out.append(LeftOut("a file cannot be read", str(error)))
    refuse_if_strict(left_out, strict)
    account_for(left_out, folder)
    if not any(cut.values()):
        raise PrepareError(
            f"--datalists {', '.join(map(str, lists))}: expected nodules with masks to train on, got none in "
            f"{len(scans)} scans; add masks, such as with the command luna16_masks"
        )
    for path, sections in lists.items():
        own = [donor for item in training[path] for donor in cut[_key(item)]]
        former = {folder.resolve(), (path.parent / FOLDER).resolve()}  # of an earlier run; scans may have moved since
        others = [one for one in sections.get("donors", []) if Path(one["image"]).parent.resolve() not in former]
        sections["donors"] = [*others, *own]
        new = {section: [moved_item(item, target) for item in items] for section, items in sections.items()}
        logger.info("%s: %d donors", write_json(target / path.name, new), len(own))


def _key(item: Mapping[str, Any]) -> str:
    """Return a short digest of a scan and its annotations, by which it is cut once, and its donors have their names."""
    files = [os.path.realpath(item.get(key, "")) for key in ("image", "mask")]
    return digest_of([files, item.get("box"), item.get("label")])[:8]


def cut_out(item: Mapping[str, Any], name: str, folder: Path, left_out: list[LeftOut]) -> list[Item]:
    """Write image and mask of each nodule of a scan, with :data:`MARGIN_MM` around it; return the donors.

    Args:
        item: the scan's item in a datalist.
        name: beginning of the donors' names.
        folder: where to write them.
        left_out: receives the nodules without a mask at their place.

    Raises:
        ScanError: the scan or its mask cannot be read.
    """
    rows, made = nodule_rows(item), []
    if not rows:
        return []
    volume = read_scan(item["image"])
    mask = on_grid(labels_of(item["mask"]), volume.grid) if item.get("mask") else np.zeros(volume.grid.shape, np.uint8)
    affine, margin = volume.affine_ras, np.ceil(MARGIN_MM / spacing_mm(volume.affine_ras)).astype(int)
    for row in rows:
        donor, inside = f"{name}_{row}", mask == row + 1
        box, diameter_mm = item["box"][row], sum(item["box"][row][3:]) / 3.0
        if failed := next(failed_mask_checks(inside, affine, np.asarray(box[:3]), diameter_mm), ""):
            advice = "correct the mask; until then the nodule is trained on, but not inserted"
            left_out.append(LeftOut("the mask of a nodule is missing or elsewhere", f"{donor}: {failed}", advice))
            continue
        (extent,) = ndimage.find_objects(inside.astype(np.uint8))
        part = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(extent, margin, strict=True))
        moved = affine.copy()
        moved[:3, 3] = apply_affine(affine, [side.start for side in part])
        files = {key: folder / f"{donor}_{key}.nii.gz" for key in ("image", "mask")}
        write_nifti(files["image"], volume.image_hu[part], moved)
        write_nifti(files["mask"], inside[part].astype(np.uint8), moved)
        paths = {key: str(file) for key, file in files.items()}
        made.append({"name": donor, **paths, "diameter_mm": diameter_mm, "weight": weight_of(_texture(item, row))})
    return made


def _texture(item: Mapping[str, Any], row: int) -> float | None:
    """Return LIDC's median texture of a nodule; ``None`` for a datalist that does not give it."""
    details = item.get("nodules")
    one = details[row] if isinstance(details, list) and row < len(details) else None
    texture = one.get("texture") if isinstance(one, dict) else None
    return texture if isinstance(texture, int | float) else None


def weight_of(texture: float | None) -> float:
    """Return how often a donor is drawn, by LIDC's texture, if it is known."""
    return FAINT_WEIGHT if texture and texture < FAINT_TEXTURE else 1.0
