"""Datalists: which scans there are to learn from, and what is known to be in them.

Everything that a header can tell is checked when a list is loaded: a wrong path or a nodule in another frame is named
before a training starts, not when its turn comes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.geometry import apply_affine, swap_lps_ras
from ..core.labels import IGNORED, NODULE
from ..core.paths import kind_of
from .discovery import is_image_file, scan_stem, with_unique_names
from .reader import ScanError, read_grid
from .text_headers import data_files

logger = logging.getLogger(__name__)

FILES = ("image", "mask", "lung_mask")  # keys of an item that name a file; the masks are optional
LUNG_MASKS = "seg-lungs"  # LUNA16's folder of lung masks, each named as its scan is
SHOWN_FAULTS = 10  # one message names this many entries; a wrong folder makes all of them wrong
LARGEST_NODULE_MM = 100.0  # a lesion beyond 30 mm is a mass; what is larger is in other units, or no size
SAME_PLACE_MM = 0.5  # nodules closer than this are one, listed twice; LUNA16's closest are 2 mm apart
SAMPLE_BYTES = 65536  # of the beginning, middle and end of a file, which tell copies from other scans


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
    elsewhere = ImageFolder(Path(image_dir)) if image_dir else None
    files = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    return _checked([(f"{file}, {section}", file.parent, _entries(file, section)) for file in files], elsewhere)


def checked_items(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Items as another program hands them over (``train#dataset#data``), checked as those of a datalist file are.

    Args:
        items: with paths from the working directory on; those of :func:`load_datalist` have a name and stay as they
            are.

    Raises:
        DatalistError: see :func:`load_datalist`.
    """
    if all(isinstance(item, Mapping) and "name" in item for item in items):
        return list(items)
    return _checked([("data", Path(), items)])


def _checked(
    lists: Iterable[tuple[str, Path, Sequence[Any]]], elsewhere: ImageFolder | None = None
) -> list[dict[str, Any]]:
    """Items of lists, each with words that name it and the folder at which its paths start."""
    items: list[dict[str, Any]] = []
    faults: list[str] = []
    for source, folder, entries in lists:
        first = len(items)
        for number, entry in enumerate(entries):
            where = f"{source}, item {number}"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
                faults.append(f"{where}: expected {{'image': path, …}}, got {str(entry)[:80]}")
                continue
            wrong = _wrong_kinds(entry)
            if wrong:
                faults.append(f"{where}: {wrong}")
                continue
            files = {key: str(folder / entry[key]) for key in FILES if entry.get(key)}
            if elsewhere is not None and not Path(files["image"]).exists():
                files["image"] = elsewhere.find(entry["image"]) or files["image"]
            # A mask, box or label that is null: there is none.
            known = {k: v for k, v in entry.items() if k not in FILES and not (k in ("box", "label") and v is None)}
            items.append({"name": scan_stem(Path(files["image"])), **known, **files})
            faults += [f"{where} ({Path(files['image']).name}): {fault}" for fault in _faults(items[-1])]
        if not faults:
            _in_full(items[first:])
            faults += [f"{source}: {fault}" for fault in _corners(items[first:])]
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
    if kind_of(path) != "file":
        raise DatalistError(
            f"datalist {path}: expected a JSON file, found none; make one with python -m scripts.prepare"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise DatalistError(f"datalist {path}: expected JSON, got something else ({error}); correct it") from error
    entries = content.get(section, []) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DatalistError(
            f'datalist {path}: expected {{"{section}": [items …]}}, got {type(content).__name__}; correct the datalist'
        )
    return entries


def _wrong_kinds(entry: Mapping[str, Any]) -> str:
    """Which value of an entry is of a kind that it cannot be; "" for none."""
    for key in FILES:
        if not isinstance(entry.get(key), str | None):
            return f"{key}: expected a path, got {str(entry[key])[:60]}"
    if not isinstance(entry.get("name", ""), str):
        return f"name: expected text, got {str(entry['name'])[:60]}"
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        return f"weight: expected a number from 0, got {str(weight)[:60]}"
    return ""


def _in_full(items: Sequence[dict[str, Any]]) -> None:
    """Write boxes and labels of checked items as lists, one label a box, also where a single one stands alone."""
    for item in items:
        if "box" in item:
            item["box"] = np.asarray(item["box"], dtype=np.float64).reshape(-1, 6).tolist()
        if "label" in item:
            item["label"] = np.asarray(item["label"], dtype=np.int64).reshape(-1).tolist()


def _corners(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether all boxes of a list read as first and last corner: centres have larger coordinates than sizes."""
    boxes = np.array([box for item in items for box in item.get("box", [])]).reshape(-1, 6)
    sides_mm = boxes[:, 3:] - boxes[:, :3]
    is_cube = np.isclose(boxes[:, 3:], boxes[:, 3:4], rtol=1e-3).all(axis=1)
    if len(boxes) and (~is_cube & (sides_mm > 0).all(axis=1) & (sides_mm <= LARGEST_NODULE_MM).all(axis=1)).all():
        yield (
            f"box: expected [x, y, z, w, h, d], centre and size, got {len(boxes)} boxes that read as corners "
            f"(x1, y1, z1, x2, y2, z2), such as {boxes[0].tolist()}; write centre and size in LPS mm"
        )


def _faults(item: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one item, its paths being complete."""
    missing = [f"{key} {item[key]}: expected a file, found none" for key in FILES if _is_missing(item, key)]
    yield from missing
    try:
        boxes = np.asarray(item.get("box", []), dtype=np.float64).reshape(-1, 6)
        given = np.asarray(item.get("label", [NODULE] * len(boxes))).reshape(-1)
        whole = given.dtype.kind in "iu" or (given.dtype.kind == "f" and set(given) <= {float(NODULE), float(IGNORED)})
        if len(given) and not whole:
            raise ValueError("labels that are no whole numbers")
        labels = given.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        yield f"box: expected [[x, y, z, w, h, d], …] in LPS mm, label: whole numbers, got {str(item.get('box'))[:60]}"
        return
    if len(labels) != len(boxes):
        yield f"expected one label per box, got {len(boxes)} boxes and {len(labels)} labels"
    if not set(labels.tolist()) <= {NODULE, IGNORED}:
        yield f"label: expected {NODULE} (nodule) or {IGNORED} (neither nodule nor background), got {labels.tolist()}"
    if not np.isfinite(boxes).all() or (boxes[:, 3:] <= 0).any():
        yield f"box: expected finite centres and sizes above 0 mm, got {boxes.tolist()}"
    elif (boxes[:, 3:] > LARGEST_NODULE_MM).any():
        yield (
            f"box: expected sizes up to {LARGEST_NODULE_MM:g} mm, got {boxes[:, 3:].max():g} mm; are these corners "
            "(x1, y1, z1, x2, y2, z2)? Write [x, y, z, w, h, d], centre and size"
        )
    elif len(boxes) and not missing:
        yield from _listed_twice(boxes[labels == NODULE] if len(labels) == len(boxes) else boxes)
        yield from _boxes_outside(item["image"], boxes)


def _listed_twice(boxes: np.ndarray) -> Iterator[str]:
    """Nodules whose centres and sizes are those of earlier ones; one within another has a size of its own."""
    for number in range(1, len(boxes)):
        if (np.abs(boxes[:number] - boxes[number]).max(axis=1) < SAME_PLACE_MM).any():
            yield f"box: expected each nodule once, got two at {boxes[number, :3].tolist()} LPS mm; remove one"


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
        DatalistError: no scan, or neither a nodule nor a donor in the training list, or a scan in both lists.
    """
    nodules = count_nodules(training)
    advice = "--dataset_dir must hold a datalist.json with a training section (python -m scripts.prepare makes them)"
    if not training:
        raise DatalistError(f"training list: expected at least one scan, got none; {advice}")
    if not nodules and not donors:
        raise DatalistError(
            f"training list: expected nodules or donors, got {len(training)} scans without any; {advice}"
        )
    twice = _in_both(training, validation)
    if twice:
        raise DatalistError(
            f"training and validation list: expected different scans, got {len(twice)} in both, such as "
            f"{' and '.join(twice[0])}; take them out of one of the lists"
        )
    for one, other in _in_both(donors, validation):
        logger.warning("validation list: the donor %s is the scan %s; it is no unseen scan then", one, other)
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


def _in_both(some: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Images of two lists that are one scan: the same file, a copy of it, or one series UID."""
    pairs: dict[str, tuple[str, str]] = {}
    seen: dict[Any, str] = {}
    sizes = {_sizes(Path(item["image"])) for item in some if item.get("image")}
    sizes &= {_sizes(Path(item["image"])) for item in others if item.get("image")}
    for is_other, items in ((False, some), (True, others)):
        for item in items:
            if not item.get("image"):
                continue
            image = str(item["image"])
            marks: list[Any] = [os.path.realpath(image)]
            if re.fullmatch(r"\d+(\.\d+){5,}", str(item.get("name", ""))):
                marks.append(item["name"])
            if (own := _sizes(Path(image))) in sizes and any(own):
                marks.append((own, _sample(Path(image))))
            for mark in marks:
                if is_other and mark in seen:
                    pairs[image] = (seen[mark], image)
                elif not is_other:
                    seen[mark] = image
    return list(pairs.values())


def _voxel_files(image: Path) -> list[Path]:
    """The files that hold the voxels of a scan."""
    if image.is_dir():
        return sorted(path for path in image.rglob("*") if path.is_file())
    return list(data_files(image)) or [image]


def _sizes(image: Path) -> tuple[int, ...]:
    return tuple(sorted(file.stat().st_size for file in _voxel_files(image) if file.is_file()))


def _sample(image: Path) -> str:
    """Digest of some pieces of a scan's largest file."""
    digest = hashlib.sha256()
    largest = max(_voxel_files(image), key=lambda file: (file.stat().st_size, file.name))
    size = largest.stat().st_size
    with largest.open("rb") as file:
        for start in (0, size // 2, max(size - SAMPLE_BYTES, 0)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def image_mask_pairs(items: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Absolute paths of the scans that have a mask, as ``image`` and ``label``: what MONAI's statistics read."""
    return [{"image": os.path.abspath(i["image"]), "label": os.path.abspath(i["mask"])} for i in items if "mask" in i]


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
