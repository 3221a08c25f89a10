"""The command ``luna16_masks``: outlines of LIDC-IDRI for the nodules of LUNA16, so that one list trains both tasks.

LUNA16 took its scans and nodules from LIDC-IDRI; the series UID names the same scan in both. A scan gets a mask only
when all of its nodules are found: one without an outline would teach that there is nothing to outline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.files import digest_of, read_record, stamp, writable_folder, write_csv, write_json
from ..core.labels import NODULE
from ..core.nifti import write_nifti
from ..read.datalist import FILES, load_datalist
from ..read.instances import Match, instance_mask, labels_of, match_rows
from ..read.reader import ScanError, read_grid
from .datalists import LeftOut, PrepareError, account_for, path_in_datalist, refuse_if_strict

logger = logging.getLogger(__name__)

FORMAT = 2  # raised whenever the same input gives other masks
MATCH_COLUMNS = (
    *("seriesuid", "row", "coordX", "coordY", "coordZ", "diameter_mm", "result"),
    *("lidc_value", "distance_mm", "mask_mm3", "mask_diameter_mm"),
)

Item = dict[str, Any]


@dataclass(frozen=True)
class Outlined:
    """What became of one scan.

    Attributes:
        mask: its new mask; ``None`` where it gets none.
        rows: a row of ``matches.csv`` for each nodule.
        left_out: why it gets none.
    """

    mask: Path | None
    rows: list[list[Any]]
    left_out: list[LeftOut]


def luna16_masks(
    *, datalists: str | Sequence[str], lidc: str | Sequence[str], output_dir: str, strict: bool = False
) -> None:
    """Attach LIDC-IDRI's outlines to LUNA16's nodules. Stop it and start it again as you like.

    Args:
        datalists: of the command luna16.
        lidc: the output folder of the command lidc, or datalists from it.
        output_dir: gets the datalists under their names, masks/, and matches.csv, a row for each nodule.
        strict: take a nodule without an outline for an error.

    Raises:
        UserError: a datalist that cannot be used, a folder that cannot be written to, or with strict a nodule without
            an outline.
    """
    target = writable_folder(output_dir)
    paths = [Path(path) for path in ([datalists] if isinstance(datalists, str) else datalists)]
    names = [path.name for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PrepareError(f"--datalists: expected names of their own, got {', '.join(twice)} again; run them apart")
    lists = {path: _sections(path) for path in paths}
    masks = _lidc_masks([lidc] if isinstance(lidc, str) else lidc)
    scans = {item["name"]: item for sections in lists.values() for items in sections.values() for item in items}
    writable_folder(target / "masks")
    done = {
        name: _outline(item, masks.get(name), target)
        for name, item in tqdm(sorted(scans.items()), desc="masks", unit="scan", mininterval=1.0)
    }
    left_out = [one for outlined in done.values() for one in outlined.left_out]
    refuse_if_strict(left_out, strict)
    for path, sections in lists.items():
        new = {
            section: [_with_mask(item, done[item["name"]].mask, target) for item in items]
            for section, items in sections.items()
        }
        logger.info("%s", write_json(target / path.name, new))
    rows = [row for outlined in done.values() for row in outlined.rows]
    write_csv(target / "matches.csv", [MATCH_COLUMNS, *rows])
    account_for(left_out, target)
    logger.info(
        "%d of %d nodules outlined; %d of %d scans with nodules have a mask",
        *(sum(row[6] == "matched" for row in rows), len(rows)),
        *(sum(o.mask is not None for o in done.values()), sum(bool(o.rows) for o in done.values())),
    )


def _sections(path: Path) -> dict[str, list[Item]]:
    """Every section of a datalist, checked, with paths that hold from here."""
    content = read_record(path)
    if not content:
        raise PrepareError(f"{path}: expected a datalist (JSON with sections), got none; check --datalists")
    return {section: load_datalist(str(path), section) for section in content}


def _lidc_masks(places: Sequence[str]) -> dict[str, Path]:
    """LIDC's masks by series UID, from its datalists; each of its folds holds all of them."""
    masks: dict[str, Path] = {}
    for place in map(Path, places):
        lists = sorted(place.glob("*.json")) if place.is_dir() else [place] if place.is_file() else []
        if not lists:
            raise PrepareError(f"--lidc {place}: expected datalists of the command lidc, found none; check the path")
        for path in lists:
            for entry in [entry for entries in read_record(path).values() for entry in entries]:
                if entry.get("mask"):
                    masks.setdefault(str(entry["name"]), path.parent / entry["mask"])
    return masks


def _nodules(item: Mapping[str, Any]) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Row number, centre and diameter (LPS mm) of the nodules of an item; ignored findings get no outline."""
    labels = item.get("label", [NODULE] * len(item.get("box", [])))
    rows = zip(item.get("box", []), labels, strict=True)
    return [(n, (*box[:3], sum(box[3:]) / 3.0)) for n, (box, label) in enumerate(rows) if label == NODULE]


def _outline(item: Item, lidc: Path | None, target: Path) -> Outlined:
    """Make one scan's mask, or take the one of a former run from the same files."""
    nodules = _nodules(item)
    if not nodules:
        return Outlined(None, [], [])
    if lidc is None:
        return _judged(item, nodules, [Match(row, None, float("nan"), "LIDC has no such series") for row, _ in nodules])
    path, record = (target / "masks" / f"{item['name']}{ending}" for ending in (".nii.gz", ".json"))
    made_from = digest_of([FORMAT, nodules, stamp(item["image"]), stamp(lidc)])
    former = read_record(record)
    if former.get("stamp") == made_from and path.is_file() == former["has_mask"]:
        left_out = [LeftOut(*one) for one in former["left_out"]]
        return Outlined(path if former["has_mask"] else None, former["rows"], left_out)
    try:
        labels, grid = labels_of(lidc), read_grid(item["image"])
    except ScanError as error:
        return _judged(item, nodules, [Match(row, None, float("nan"), f"unreadable: {error}") for row, _ in nodules])
    mask, matches = instance_mask(labels, match_rows(labels, nodules), grid)
    outlined = _judged(item, nodules, matches)
    if outlined.left_out:
        path.unlink(missing_ok=True)
    else:
        outlined = Outlined(write_nifti(path, mask, grid.affine_ras), outlined.rows, [])
    told = [[one.reason, one.subject, one.advice] for one in outlined.left_out]
    write_json(record, {"stamp": made_from, "has_mask": not told, "rows": outlined.rows, "left_out": told})
    return outlined


def _judged(item: Item, nodules: Sequence[tuple[int, Sequence[float]]], matches: Sequence[Match]) -> Outlined:
    """The rows of the table, and what was left out, the scan's other nodules included."""
    rows, left_out = [], []
    for (row, place), match in zip(nodules, matches, strict=True):
        result: list[Any] = [match.reason, "", "", "", ""]
        if match.thing is not None:
            sizes = [round(match.thing.volume_mm3, 2), round(match.thing.diameter_mm, 3)]
            result = ["matched", match.thing.value, round(match.distance_mm, 3), *sizes]
        rows.append([item["name"], row, *(round(v, 4) for v in place), *result])
        if match.reason:
            left_out.append(LeftOut(match.reason, f"{item['name']} nodule {row}", "the scan trains detection alone"))
    return Outlined(None, rows, left_out)


def _with_mask(item: Item, mask: Path | None, target: Path) -> Item:
    """An item with its files named from the new datalist's folder."""
    files = {key: item[key] for key in FILES if item.get(key) and key != "mask"} | ({"mask": mask} if mask else {})
    new = {key: value for key, value in item.items() if key != "mask"}
    return new | {key: path_in_datalist(Path(path), target) for key, path in files.items()}
