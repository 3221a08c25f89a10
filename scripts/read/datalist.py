"""Datalists: the scans to train and evaluate on, and their annotations.

Everything that can be checked from headers alone is checked when a list is loaded, so that a wrong path or a nodule in
another frame is reported before training starts, not when that scan is first read.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import UserError
from ..core.labels import IGNORED, NODULE
from ..core.paths import kind_of
from .discovery import files_below, is_image_file, read_datalist, scan_stem, with_unique_names
from .reader import ScanError, read_grid
from .text_headers import files_of

logger = logging.getLogger(__name__)

FILES = ("image", "mask", "lung_mask")  # keys of an item that name a file; the masks are optional
LUNG_MASKS = "seg-lungs"  # prefix of LUNA16's folder of lung masks, whose files have the same names as the scans
SHOWN_FAULTS = 10  # entries named in one message; a wrong folder makes all of them wrong
LARGEST_NODULE_MM = 100.0  # lesions above 30 mm are masses; anything above this is in other units, or not a size
SAME_PLACE_MM = 0.5  # nodules closer than this are one nodule listed twice; LUNA16's closest are 2 mm apart
SAMPLE_BYTES = 65536  # hashed at the start, middle and end of a file, to tell copies of a scan from other scans


class DatalistError(UserError, ValueError):
    """The datalist cannot be used."""


def load_datalist(paths: str | Sequence[str], section: str, image_dir: str = "") -> list[dict[str, Any]]:
    """Load one section (``training``, ``validation``, ``donors`` …) of several datalists as one list.

    Relative ``image``, ``mask`` and ``lung_mask`` paths are resolved against the folder of their datalist. Each item
    gets a unique ``name``: the one it has, or the file name of its image without extension (LUNA16: the series UID). A
    datalist without the section adds nothing.

    Args:
        paths: one datalist, or several.
        section: the section to take from each of them.
        image_dir: a folder to search for images, for datalists that are not stored beside them (such as MONAI's LUNA16
            folds): an image that is not found at its path is looked up below this folder by its path, then by its file
            name without extension. LUNA16's lung masks, which have the same names as the scans, are skipped.

    Raises:
        DatalistError: a datalist is missing or not a datalist, or entries cannot be used: a file is missing, boxes or
            labels are malformed, a box lies outside its scan. The message names the entries.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "scan.nii.gz").write_bytes(b"")
        >>> entry = {"image": "scan.nii.gz", "box": [], "label": []}
        >>> _ = (folder / "datalist.json").write_text(json.dumps({"validation": [entry]}))
        >>> [item] = load_datalist(str(folder / "datalist.json"), "validation")
        >>> item["name"]
        'scan'
    """
    elsewhere = _finder(Path(image_dir)) if image_dir else None
    files = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    return _checked([(f"{file}, {section}", file.parent, _entries(file, section)) for file in files], elsewhere)


def checked_items(items: Sequence[Any]) -> list[dict[str, Any]]:
    """Check items that another program passes in (``train#dataset#data``) in the same way as those of a datalist file.

    Args:
        items: items whose paths are relative to the working directory. If all of them have a name, as those of
            :func:`load_datalist` do, they are returned unchanged.

    Raises:
        DatalistError: see :func:`load_datalist`.
    """
    if all(isinstance(item, Mapping) and "name" in item for item in items):
        return list(items)
    return _checked([("data", Path(), items)])


def _checked(
    lists: Iterable[tuple[str, Path, Sequence[Any]]], elsewhere: Callable[[str], str] | None = None
) -> list[dict[str, Any]]:
    """Check the items of several lists: for each, its name in messages, the folder of its paths, and its entries.

    Raises:
        DatalistError: see :func:`load_datalist`.
    """
    items: list[dict[str, Any]] = []
    faults: list[str] = []
    for source, folder, entries in lists:
        first = len(items)
        for number, entry in enumerate(entries):
            try:
                items.append(_checked_item(entry, folder, elsewhere))
            except (DatalistError, ScanError) as error:
                faults.append(f"{source}, item {number}: {error}")
        faults += [f"{source}: {fault}" for fault in _corners(items[first:])]
    if faults:
        more = [f"… and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        head = f"{len(faults)} datalist entries cannot be used; correct or remove them:"
        raise DatalistError("\n".join([head, *faults[:SHOWN_FAULTS], *more]))
    return with_unique_names(items)


def _checked_item(entry: Any, folder: Path, elsewhere: Callable[[str], str] | None) -> dict[str, Any]:
    """Return an entry with complete paths and boxes and labels as lists (if it has them), without null values.

    Raises:
        DatalistError: the entry cannot be used; the message says why.
        ScanError: it has boxes, and the header of its image cannot be read.
    """
    item = {key: value for key, value in dict(entry).items() if value is not None} if isinstance(entry, Mapping) else {}
    image, weight = item.get("image"), item.get("weight", 1.0)
    is_weight = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf
    if not image or not isinstance(image, str):
        raise DatalistError(f"expected {{'image': path, …}}, got {str(entry)[:80]}")
    for key, kind in (*((key, "a path") for key in FILES), ("name", "text")):
        if not isinstance(item.get(key, ""), str):
            raise DatalistError(f"{key}: expected {kind}, got {str(item.get(key))[:60]}")
    if not is_weight:
        raise DatalistError(f"weight: expected a number from 0, got {str(weight)[:60]}")
    files = {key: str(folder / path) for key in FILES if (path := item.pop(key, ""))}
    if elsewhere is not None and not Path(files["image"]).exists():
        files["image"] = elsewhere(str(image)) or files["image"]
    for key, path in files.items():
        if not Path(path).exists():
            raise DatalistError(f"{key} {path}: expected a file, found none")
    boxes, labels = _checked_boxes(item)
    places = _checked_places(item.get("false_findings", []))
    if len(boxes) or len(places):
        _check_inside(files["image"], {"box": boxes[:, :3], "false_findings": places})
    lists = {key: rows.tolist() for key, rows in (("box", boxes), ("label", labels)) if key in item}
    return {"name": scan_stem(Path(files["image"])), **item, **lists, **files}


def _finder(folder: Path) -> Callable[[str], str]:
    """Return a function that finds an image below a folder by its path, otherwise by its name; "" if there is none.

    Raises:
        DatalistError: there is no such folder; from the returned function: several images have the name.
    """
    if not folder.is_dir():
        raise DatalistError(f"--image_dir {folder}: expected a folder with images, found none; check the path")
    found: dict[str, list[Path]] = {}
    for path in files_below(folder):
        parts = path.relative_to(folder).parts
        if is_image_file(path) and not any(part.lower().startswith(LUNG_MASKS) for part in parts):
            found.setdefault(scan_stem(path), []).append(path)

    def place_of(image: str) -> str:
        name = scan_stem(Path(image))
        places = [folder / image] if (folder / image).exists() else found.get(name, [])
        if len(places) > 1:
            raise DatalistError(
                f"--image_dir {folder}: expected one image named {name}, found {len(places)} "
                f"({', '.join(map(str, places[:3]))}); remove all but one"
            )
        return str(places[0]) if places else ""

    return place_of


def _entries(path: Path, section: str) -> list[Any]:
    """Return one section of a datalist as stored in the file; empty if it is absent.

    Raises:
        DatalistError: no such file, not JSON, or not an object whose section is a list.
    """
    if kind_of(path) != "file":
        raise DatalistError(
            f"datalist {path}: expected a JSON file, found none; make one with python -m scripts.prepare"
        )
    content = read_datalist(path, DatalistError)
    entries = content.get(section, []) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DatalistError(
            f'datalist {path}: expected {{"{section}": [items …]}}, got {type(content).__name__}; correct the datalist'
        )
    return entries


def _corners(items: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a fault if every box of a list can be read as two opposite corners instead of centre and size."""
    boxes = np.array([box for item in items for box in item.get("box", [])]).reshape(-1, 6)
    sides_mm = boxes[:, 3:] - boxes[:, :3]
    is_cube = np.isclose(boxes[:, 3:], boxes[:, 3:4], rtol=1e-3).all(axis=1)
    if len(boxes) and (~is_cube & (sides_mm > 0).all(axis=1) & (sides_mm <= LARGEST_NODULE_MM).all(axis=1)).all():
        yield (
            f"box: expected [x, y, z, w, h, d], centre and size, got {len(boxes)} boxes that read as corners "
            f"(x1, y1, z1, x2, y2, z2), such as {boxes[0].tolist()}; write centre and size in LPS mm"
        )


def _checked_boxes(item: Mapping[str, Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the boxes ``[N, 6]`` and labels ``[N]`` of an item; a single box may be given without outer brackets.

    Raises:
        DatalistError: they are malformed, or a nodule is listed twice.
    """
    shown = str(item.get("box"))[:60]
    try:
        boxes = np.asarray(item.get("box", []), dtype=np.float64).reshape(-1, 6)
        labels = np.asarray(item.get("label", [NODULE] * len(boxes))).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DatalistError(f"box: expected [[x, y, z, w, h, d], …] in LPS mm, one label each, got {shown}") from error
    if len(labels) and (labels.dtype.kind not in "iuf" or not set(labels.tolist()) <= {NODULE, IGNORED}):
        raise DatalistError(
            f"label: expected {NODULE} (nodule) or {IGNORED} (neither nodule nor background), got {labels.tolist()}"
        )
    if len(labels) != len(boxes):
        raise DatalistError(f"expected one label per box, got {len(boxes)} boxes and {len(labels)} labels")
    if not np.isfinite(boxes).all() or (boxes[:, 3:] <= 0).any():
        raise DatalistError(f"box: expected finite centres and sizes above 0 mm, got {shown}")
    if (boxes[:, 3:] > LARGEST_NODULE_MM).any():
        raise DatalistError(
            f"box: expected sizes up to {LARGEST_NODULE_MM:g} mm, got {boxes[:, 3:].max():g} mm; are these "
            "corners (x1, y1, z1, x2, y2, z2)? Write [x, y, z, w, h, d], centre and size"
        )
    nodules = boxes[labels == NODULE]
    for number, nodule in enumerate(nodules):  # sizes are compared too: a nodule may lie inside a larger one
        if (np.abs(nodules[:number] - nodule).max(axis=1) < SAME_PLACE_MM).any():
            place = nodule[:3].tolist()
            raise DatalistError(f"box: expected each nodule once, got two at {place} LPS mm; remove one")
    return boxes, labels.astype(np.int64)


def _checked_places(rows: Any) -> npt.NDArray[np.float64]:
    """Return the positions ``[N, 3]`` of ``false_findings``.

    Raises:
        DatalistError: they are malformed.
    """
    try:
        places = np.asarray(rows, dtype=np.float64).reshape(len(rows), 3)
    except (TypeError, ValueError):
        places = np.full((1, 3), np.nan)
    if not np.isfinite(places).all():
        raise DatalistError(f"false_findings: expected [[x, y, z], …] in LPS mm, got {str(rows)[:60]}")
    return places


def _check_inside(image: str, centres_lps_mm: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Refuse centres, listed by key, that lie outside all voxels of the scan; only its header is read.

    Raises:
        DatalistError: a centre lies outside.
        ScanError: the header cannot be read.
    """
    grid = read_grid(image)
    for key, centres in centres_lps_mm.items():
        for number in np.flatnonzero(~grid.holds(centres)):
            centre = centres[number]
            raise DatalistError(
                f"{key} {number}: expected a centre inside the scan of {grid.shape} voxels, got {centre.tolist()} LPS "
                f"mm, which is voxel {grid.voxels(centre).round(1).tolist()}; is it in another frame (RAS, voxels)?"
            )


def nodule_rows(item: Mapping[str, Any]) -> list[int]:
    """Return the indices of an item's boxes that are nodules; excluded findings are left out."""
    labels = item.get("label", [NODULE] * len(item.get("box", [])))
    return [number for number, label in enumerate(labels) if label == NODULE]


def count_nodules(items: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of nodules in all items; excluded findings do not count."""
    return sum(len(nodule_rows(item)) for item in items)


def check_training_lists(
    training: Sequence[Mapping[str, Any]], donors: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse lists that cannot be trained on; warn if there is nothing to validate, or if a donor is validated on.

    Args:
        training: scans to take crops from.
        donors: items whose nodules are inserted into them.
        validation: scans to validate on at intervals.

    Raises:
        DatalistError: the training list has no scan, there is neither a nodule nor a donor, or a scan is in both the
            training and the validation list.
    """
    nodules, found = count_nodules(training), count_nodules(validation)
    twice = _in_both(training, validation)
    advice = "--dataset_dir must hold a datalist.json with a training section (python -m scripts.prepare makes them)"
    if not training:
        raise DatalistError(f"training list: expected at least one scan, got none; {advice}")
    if not nodules and not donors:
        raise DatalistError(
            f"training list: expected nodules or donors, got {len(training)} scans without any; {advice}"
        )
    if twice:
        one, other = twice[0]
        raise DatalistError(
            f"training and validation list: expected different scans, got {len(twice)} in both, such as {one} and "
            f"{other}; remove them from one of the lists"
        )
    for one, other in _in_both(donors, validation):
        logger.warning("validation list: scan %s is also the donor %s, so it is not unseen", other, one)
    logger.info("training list: %d scans, %d nodules, %d donors", len(training), nodules, len(donors))
    if found:
        logger.info("validation list: %d scans, %d nodules", len(validation), found)
    else:
        logger.warning(
            "validation list: expected nodules to find, got none in %d scans; the validation metric is undefined, and "
            "the newest weights are kept instead of the best",
            len(validation),
        )


def _in_both(some: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return pairs of images of two lists that are the same scan: same file, a copy of it, or the same series UID."""
    seen = {mark: str(item["image"]) for item in some for mark in _marks(item)}
    pairs = {str(item["image"]): seen[mark] for item in others for mark in _marks(item) if mark in seen}
    return [(one, other) for other, one in pairs.items()]


def _marks(item: Mapping[str, Any]) -> Iterator[str]:
    """Yield marks that identify an item's scan: its real path, its series UID, a hash of parts of its largest file.

    Nothing is yielded for an item without an image; an item whose name is not a UID has no second mark, and one without
    data has no hash.
    """
    if not item.get("image"):
        return
    image = Path(item["image"])
    yield os.path.realpath(image)
    if re.fullmatch(r"\d+(\.\d+){5,}", str(item.get("name", ""))):
        yield str(item["name"])
    files = [file for file in files_of(image) if file.is_file()]
    largest = max(files, key=lambda file: (file.stat().st_size, file.name), default=None)
    size = largest.stat().st_size if largest else 0
    if largest and size:
        digest = hashlib.sha256(f"{len(files)} files, {size} bytes".encode())
        with largest.open("rb") as stream:
            for start in (0, size // 2, max(size - SAMPLE_BYTES, 0)):
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
        yield digest.hexdigest()


def image_mask_pairs(items: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the absolute paths of scans and masks as ``image`` and ``label``, the form MONAI's statistics expect.

    Items without a mask are left out.
    """
    return [{"image": os.path.abspath(i["image"]), "label": os.path.abspath(i["mask"])} for i in items if "mask" in i]


def check_evaluation_list(items: Sequence[Mapping[str, Any]], section: str) -> None:
    """Refuse an empty evaluation list.

    Raises:
        DatalistError: the list contains no scan.
    """
    if not items:
        raise DatalistError(
            f"evaluation: expected scans in the section '{section}' of the datalists, got none; check --datalists, "
            "--dataset_dir and --section"
        )
