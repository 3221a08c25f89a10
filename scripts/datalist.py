"""Datalists: which scans there are to learn from, and what is known to be in them.

Everything that a header can tell is checked when a list is loaded: a wrong path or a nodule in another frame is named
before a training starts, not when its turn comes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .discovery import is_image_file, scan_stem, with_unique_names
from .errors import UserError
from .geometry import apply_affine, swap_lps_ras
from .reader import ScanError, read_grid
from .transforms.nodules import IGNORED, NODULE

logger = logging.getLogger(__name__)

FILES = ("image", "mask", "lung_mask")  # keys of an item that name a file; the masks are optional
LUNG_MASKS = "seg-lungs"  # LUNA16's folder of lung masks, each named as its scan is
SHOWN_FAULTS = 10  # one message names this many entries; a wrong folder makes all of them wrong


class DatalistError(UserError, ValueError):
    """A datalist that cannot be used."""


def load_datalist(paths: str | Sequence[str], section: str, image_dir: str = "") -> list[dict[str, Any]]:
    """Join one section (``training``, ``validation``, ``donors`` …) of several datalists.

    Relative ``image``, ``mask`` and ``lung_mask`` paths start at their datalist's folder. Each item gets a ``name`` of
    its own: the one it has, or its image's file name without ending (LUNA16: the series UID). A datalist without the
    section adds nothing.

    Args:
        paths: of the datalists.
        section: of each of them.
        image_dir: where else images may be, for datalists that do not lie beside them (such as MONAI's LUNA16 folds):
            an image that is not at its path is looked for below this folder by its path, then by its file name without
            ending. LUNA16's lung masks, which bear the scans' names, are passed over.

    Raises:
        DatalistError: a datalist is missing or no such thing, or entries cannot be used: a file is missing, boxes or
            labels are malformed, a box lies outside its scan. The message names them.
    """
    items: list[dict[str, Any]] = []
    faults: list[str] = []
    elsewhere = ImageFolder(Path(image_dir)) if image_dir else None
    for path in [paths] if isinstance(paths, str) else paths:
        for number, entry in enumerate(_entries(Path(path), section)):
            where = f"{path}, {section}, item {number}"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
                faults.append(f"{where}: expected {{'image': path, …}}, got {str(entry)[:80]}")
                continue
            files = {key: str(Path(path).parent / entry[key]) for key in FILES if entry.get(key)}
            if elsewhere is not None and not Path(files["image"]).exists():
                files["image"] = elsewhere.find(entry["image"]) or files["image"]
            known = {key: value for key, value in entry.items() if key not in FILES}  # a null mask: there is none
            items.append({"name": scan_stem(Path(files["image"])), **known, **files})
            faults += [f"{where} ({Path(files['image']).name}): {fault}" for fault in _faults(items[-1])]
    if faults:
        more = f"\n… and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DatalistError(
            f"{len(faults)} datalist entries cannot be used; correct or remove them:\n"
            + "\n".join(faults[:SHOWN_FAULTS])
            + more
        )
    return with_unique_names(items)


class ImageFolder:
    """The images below a folder, by name; listed once, when the first one is asked for.

    Raises:
        DatalistError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatalistError(f"--image_dir {folder}: expected a folder with images, found none; check the path")
        self.folder = folder

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.lower().startswith((".", LUNG_MASKS)))
            for name in sorted(names):
                if is_image_file(name) and not name.startswith("."):
                    found.setdefault(scan_stem(Path(name)), []).append(Path(parent) / name)
        return found

    def find(self, image: str) -> str:
        """Where the image of that path, or of that name, is; empty where it is not there.

        Raises:
            DatalistError: several images have the name.
        """
        if (self.folder / image).exists():
            return str(self.folder / image)
        places = self._by_stem.get(scan_stem(Path(image)), [])
        if len(places) > 1:
            raise DatalistError(
                f"--image_dir {self.folder}: expected one image named {scan_stem(Path(image))}, found {len(places)} "
                f"({', '.join(map(str, places[:3]))}); remove all but one"
            )
        return str(places[0]) if places else ""


def _entries(path: Path, section: str) -> list[Any]:
    """The section of one datalist as it stands in the file; empty where it is absent."""
    if not path.is_file():
        raise DatalistError(
            f"datalist {path}: expected a JSON file, found none; make one with python -m scripts.prepare"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatalistError(f"datalist {path}: expected JSON, got something else ({error}); correct it") from error
    entries = content.get(section, []) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DatalistError(
            f'datalist {path}: expected {{"{section}": [items …]}}, got {type(content).__name__}; correct the datalist'
        )
    return entries


def _faults(item: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one item, its paths being complete."""
    missing = [f"{key} {item[key]}: expected a file, found none" for key in FILES if _is_missing(item, key)]
    yield from missing
    try:
        boxes = np.asarray(item.get("box", []), dtype=np.float64).reshape(-1, 6)
        labels = np.asarray(item.get("label", [NODULE] * len(boxes)), dtype=np.int64).reshape(-1)
    except (TypeError, ValueError):
        yield f"box: expected [[x, y, z, w, h, d], …] in LPS mm, label: whole numbers, got {str(item.get('box'))[:60]}"
        return
    if len(labels) != len(boxes):
        yield f"expected one label per box, got {len(boxes)} boxes and {len(labels)} labels"
    if not set(labels.tolist()) <= {NODULE, IGNORED}:
        yield f"label: expected {NODULE} (nodule) or {IGNORED} (neither nodule nor background), got {labels.tolist()}"
    if not np.isfinite(boxes).all() or (boxes[:, 3:] <= 0).any():
        yield f"box: expected finite centres and sizes above 0 mm, got {boxes.tolist()}"
    elif len(boxes) and not missing:
        yield from _boxes_outside(item["image"], boxes)


def _is_missing(item: Mapping[str, Any], key: str) -> bool:
    return bool(item.get(key)) and not Path(item[key]).exists()


def _boxes_outside(image: str, boxes: np.ndarray) -> Iterator[str]:
    """Boxes whose centre lies in no voxel of the scan, by its header."""
    try:
        grid = read_grid(image)
    except ScanError as error:
        yield str(error)
        return
    voxels = apply_affine(np.linalg.inv(grid.affine_ras), swap_lps_ras(boxes[:, :3]))
    outside = ((voxels < -0.5) | (voxels > np.array(grid.shape) - 0.5)).any(axis=1)
    for number in np.flatnonzero(outside):
        yield (
            f"box {number}: expected a centre inside the scan of {grid.shape} voxels, got {boxes[number, :3].tolist()} "
            f"LPS mm, which is voxel {voxels[number].round(1).tolist()}; is it in another frame (RAS, voxels)?"
        )


def count_nodules(items: Sequence[Mapping[str, Any]]) -> int:
    """Number of nodules to find; ignored findings do not count."""
    return sum(
        sum(label == NODULE for label in item.get("label", [NODULE] * len(item.get("box", [])))) for item in items
    )


def check_training_lists(
    training: Sequence[Mapping[str, Any]], donors: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse lists that nothing can be learned from; warn where nothing can be validated.

    Args:
        training: scans to crop from.
        donors: nodules to insert into them.
        validation: scans to search at intervals.

    Raises:
        DatalistError: no scan, or neither a nodule nor a donor in the training list.
    """
    nodules = count_nodules(training)
    advice = "--dataset_dir must hold a datalist.json with a training section (python -m scripts.prepare makes them)"
    if not training:
        raise DatalistError(f"training list: expected at least one scan, got none; {advice}")
    if not nodules and not donors:
        raise DatalistError(
            f"training list: expected nodules or donors, got {len(training)} scans without any; {advice}"
        )
    logger.info("training list: %d scans, %d nodules, %d donors", len(training), nodules, len(donors))
    found = count_nodules(validation)
    if not found:
        logger.warning(
            "validation list: expected nodules to find, got none in %d scans; the validation metric is undefined, and "
            "the newest weights are kept instead of the best",
            len(validation),
        )
    else:
        logger.info("validation list: %d scans, %d nodules", len(validation), found)


def check_evaluation_list(items: Sequence[Mapping[str, Any]], section: str) -> None:
    """Refuse to evaluate nothing.

    Raises:
        DatalistError: no scan in the list.
    """
    if not items:
        raise DatalistError(
            f"evaluation: expected scans in the section '{section}' of the datalists, got none; check --datalists, "
            "--dataset_dir and --section"
        )
