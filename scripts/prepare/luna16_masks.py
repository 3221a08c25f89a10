"""The command ``luna16_masks``: adds masks from LIDC-IDRI to LUNA16's datalists, so that one list trains both tasks.

LUNA16 took its scans and nodules from LIDC-IDRI; a series UID names the same scan in both. A nodule that is not found
in LIDC-IDRI has no voxel in the mask: training then teaches where it is, but not its mask.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.files import digest_of, read_record, stamp, writable_folder, write_csv, write_json
from ..core.nifti import write_nifti
from ..read.datalist import nodule_rows
from ..read.instances import Match, instance_mask, labels_of, match_rows
from ..read.reader import ScanError, read_grid
from .datalists import LeftOut, PrepareError, account_for, moved_item, read_lists, refuse_if_strict
from .lidc.readings import RATINGS

logger = logging.getLogger(__name__)

FORMAT = 3  # increased whenever the same input gives different masks
MATCH_COLUMNS = (
    "seriesuid",
    "row",
    "coordX",
    "coordY",
    "coordZ",
    "diameter_mm",
    "result",
    "lidc_value",
    "distance_mm",
    "mask_mm3",
    "mask_diameter_mm",
)

ROW, RESULT, VALUE = map(MATCH_COLUMNS.index, ("row", "result", "lidc_value"))
MATCHED = "matched"

Item = dict[str, Any]


def luna16_masks(
    *, datalists: str | Sequence[str], lidc: str | Sequence[str], output_dir: str, strict: bool = False
) -> None:
    """Add LIDC-IDRI's masks to LUNA16's nodules. It can be stopped and restarted.

    Args:
        datalists: datalists made by the command luna16.
        lidc: output folder of the command lidc, or datalists in it.
        output_dir: folder for the datalists (under the same names), masks/, and matches.csv with a row per nodule.
        strict: stop with an error if a nodule has no mask.

    Raises:
        UserError: a datalist cannot be used, a folder cannot be written to, or, with strict, a nodule has no mask.
    """
    target = writable_folder(output_dir)
    lists = read_lists(datalists)
    series = _lidc_series([lidc] if isinstance(lidc, str) else lidc)
    donors = {path: sections.pop("donors", []) for path, sections in lists.items()}
    scans = {item["name"]: item for sections in lists.values() for items in sections.values() for item in items}
    folder = writable_folder(target / "masks")
    done = {
        name: _mask_record(item, series[name]["mask"] if name in series else None, folder)
        for name, item in tqdm(sorted(scans.items()), desc="masks", unit="scan", mininterval=1.0)
    }
    left_out = [LeftOut(*one) for record in done.values() for one in record["left_out"]]
    refuse_if_strict(left_out, strict)
    has_nodules = [name for name, record in done.items() if record["rows"]]
    masks = {name: folder / f"{name}.nii.gz" for name in has_nodules if _is_matched(done[name])}
    for path, sections in lists.items():
        new = {
            section: [
                moved_item(_with_mask(item, masks.get(item["name"])) | _readings(item, done, series), target)
                for item in items
            ]
            for section, items in sections.items()
        }
        new |= {"donors": [moved_item(donor, target) for donor in donors[path]]} if donors[path] else {}
        logger.info("%s", write_json(target / path.name, new))
    rows = [row for record in done.values() for row in record["rows"]]
    write_csv(target / "matches.csv", [MATCH_COLUMNS, *rows])
    account_for(left_out, target)
    logger.info(
        "%d of %d nodules have a mask; %d of %d scans with nodules have a mask",
        *(sum(row[RESULT] == MATCHED for row in rows), len(rows), len(masks), len(has_nodules)),
    )


def _lidc_series(places: Sequence[str]) -> dict[str, Item]:
    """Return LIDC's items with a mask by series UID, from its datalists; each fold lists all of them.

    Raises:
        PrepareError: a place has no datalist.
    """
    series: dict[str, Item] = {}
    for place in map(Path, places):
        lists = sorted(place.glob("*.json")) if place.is_dir() else [place] if place.is_file() else []
        if not lists:
            raise PrepareError(f"--lidc {place}: expected datalists of the command lidc, found none; check the path")
        for path in lists:
            for entry in [entry for entries in read_record(path).values() for entry in entries]:
                if entry.get("mask"):
                    series.setdefault(str(entry["name"]), {**entry, "mask": path.parent / entry["mask"]})
    return series


def _nodules(item: Mapping[str, Any]) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Return row number, centre and diameter (LPS mm) of an item's nodules; excluded findings get no mask."""
    return [(row, (*item["box"][row][:3], sum(item["box"][row][3:]) / 3.0)) for row in nodule_rows(item)]


def _mask_record(item: Item, lidc: Path | None, folder: Path) -> Item:
    """Make one scan's mask, unless an earlier run has made it from the same files.

    Returns:
        The scan's record: ``rows`` of ``matches.csv``, one for each nodule, and ``left_out``, the nodules without a
        match and why. If none is matched, the scan gets no mask.
    """
    nodules = _nodules(item)
    if lidc is None or not nodules:
        return _judged(item, nodules, [Match(row, reason="LIDC has no such series") for row, _ in nodules])
    path, record = (folder / f"{item['name']}{ending}" for ending in (".nii.gz", ".json"))
    made_from = digest_of([FORMAT, nodules, stamp(item["image"]), stamp(lidc)])
    former = read_record(record)
    if former.get("stamp") == made_from and path.is_file() is _is_matched(former):
        return former
    try:
        labels, grid = labels_of(lidc), read_grid(item["image"])
    except ScanError as error:
        return _judged(item, nodules, [Match(row, reason=f"unreadable: {error}") for row, _ in nodules])
    mask, matches = instance_mask(labels, match_rows(labels, nodules), grid)
    made = _judged(item, nodules, matches)
    if _is_matched(made):
        write_nifti(path, mask, grid.affine_ras)
    else:
        path.unlink(missing_ok=True)
    write_json(record, {"stamp": made_from, **made})
    return made


def _is_matched(record: Mapping[str, Any]) -> bool:
    """Whether any nodule of a scan has a mask."""
    return any(row[RESULT] == MATCHED for row in record["rows"])


def _judged(item: Item, nodules: Sequence[tuple[int, Sequence[float]]], matches: Sequence[Match]) -> Item:
    """Return a row of the table for every nodule, and an entry in ``left_out`` for each without a match."""
    rows, left_out = [], []
    for (row, place), match in zip(nodules, matches, strict=True):
        result: list[Any] = [match.reason, "", "", "", ""]
        if match.thing is None:
            subject = f"{item['name']} nodule {row}"
            left_out.append([match.reason, subject, "it is used for detection only"])
        else:
            sizes = [round(match.thing.volume_mm3, 2), round(match.thing.diameter_mm, 3)]
            result = [MATCHED, match.thing.value, round(match.distance_mm, 3), *sizes]
        rows.append([item["name"], row, *(round(v, 4) for v in place), *result])
    return {"rows": rows, "left_out": left_out}


def _with_mask(item: Item, mask: Path | None) -> Item:
    """Return an item with the new mask, or none."""
    return {key: value for key, value in item.items() if key != "mask"} | ({"mask": mask} if mask else {})


def _readings(item: Item, done: Mapping[str, Item], series: Mapping[str, Item]) -> Item:
    """Return as ``nodules`` what LIDC's readers said of each box, empty for what is not matched; or nothing."""
    given = {one["mask_label"]: one for one in series.get(item["name"], {}).get("nodules", ())}
    values = {row[ROW]: row[VALUE] for row in done[item["name"]]["rows"]}
    found = [given.get(values.get(row), {}) for row in range(len(item.get("box", ())))]
    kept = [{key: value for key, value in one.items() if key in (*RATINGS, "readers")} for one in found]
    return {"nodules": kept} if any(kept) else {}
