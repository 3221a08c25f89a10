"""The command ``donors``: cuts nodules out of their scans, so that training can insert them into others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ..core.files import writable_folder, write_json
from ..core.geometry import apply_affine, spacing_mm
from ..core.nifti import write_nifti
from ..read.datalist import nodule_rows
from ..read.discovery import with_unique_names
from ..read.instances import labels_of, on_grid
from ..read.reader import ScanError, read_scan
from .datalists import LeftOut, PrepareError, account_for, moved_item, read_lists, refuse_if_strict

logger = logging.getLogger(__name__)

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
    folder = writable_folder(target / "donors")
    scans = {item["image"]: item for sections in lists.values() for item in sections.get("training", ())}
    left_out: list[LeftOut] = []
    cut: dict[str, list[Item]] = {}
    for item in tqdm(with_unique_names(list(scans.values())), desc="scans", unit="scan", mininterval=1.0):
        try:
            cut[item["image"]] = cut_out(item, folder, left_out)
        except ScanError as error:
            cut[item["image"]] = []
            left_out.append(LeftOut("a file cannot be read", str(error)))
    refuse_if_strict(left_out, strict)
    account_for(left_out, target)
    if not any(cut.values()):
        raise PrepareError(
            f"--datalists {', '.join(map(str, lists))}: expected nodules with masks to train on, got none in "
            f"{len(scans)} scans; add masks, such as with the command luna16_masks"
        )
    for path, sections in lists.items():
        own = [donor for item in sections.get("training", ()) for donor in cut[item["image"]]]
        others = [one for one in sections.get("donors", ()) if Path(one["image"]).resolve().parent != folder.resolve()]
        sections["donors"] = [*others, *own]
        new = {section: [moved_item(item, target) for item in items] for section, items in sections.items()}
        logger.info("%s: %d donors", write_json(target / path.name, new), len(own))


def cut_out(item: Mapping[str, Any], folder: Path, left_out: list[LeftOut]) -> list[Item]:
    """Write image and mask of each nodule of a scan, with :data:`MARGIN_MM` around it; return the donors.

    Args:
        item: the scan's item in a datalist.
        folder: where to write them.
        left_out: receives the nodules without a voxel in the mask.

    Raises:
        ScanError: the scan or its mask cannot be read.
    """
    rows, made = nodule_rows(item), []
    if not rows:
        return []
    volume = read_scan(item["image"])
    mask = on_grid(labels_of(item["mask"]), volume.grid) if item.get("mask") else np.zeros(volume.grid.shape, np.uint8)
    boxes = dict(enumerate(ndimage.find_objects(mask)))
    margin = np.ceil(MARGIN_MM / spacing_mm(volume.affine_ras)).astype(int)
    for row in rows:
        name = f"{item['name']}_{row}"
        if boxes.get(row) is None:
            left_out.append(LeftOut("a nodule has no voxel in a mask", name, "it is trained on, but not inserted"))
            continue
        part = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(boxes[row], margin, strict=True))
        affine = volume.affine_ras.copy()
        affine[:3, 3] = apply_affine(affine, [side.start for side in part])
        files = {key: folder / f"{name}_{key}.nii.gz" for key in ("image", "mask")}
        write_nifti(files["image"], volume.image_hu[part], affine)
        write_nifti(files["mask"], (mask[part] == row + 1).astype(np.uint8), affine)
        texture = item["nodules"][row].get("texture") if "nodules" in item else None
        donor = {"name": name, **{key: str(file) for key, file in files.items()}}
        made.append({**donor, "diameter_mm": sum(item["box"][row][3:]) / 3.0, "weight": weight_of(texture)})
    return made


def weight_of(texture: float | None) -> float:
    """Return how often a donor is drawn, by LIDC's texture, if it is known."""
    return FAINT_WEIGHT if texture and texture < FAINT_TEXTURE else 1.0
