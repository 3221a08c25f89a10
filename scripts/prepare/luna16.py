"""The command ``luna16``: the ten official folds of LUNA16 as datalists, from the files as they are downloaded.

Source: the LUNA16 challenge (Setio et al., Medical Image Analysis 2017). Its ten subsets are the folds: fold k
validates on subset k and trains on the other nine. ``annotations.csv`` holds the nodules, ``annotations_excluded.csv``
(in its evaluation script's archive) the findings that are neither nodule nor false positive; they become
:data:`IGNORED`, with a diameter of 10 mm where it is given as -1.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import writable_folder
from ..core.labels import IGNORED, NODULE
from ..evaluate.tables import Table, read_findings, read_series_uids, write_table
from ..metrics.luna16 import UNKNOWN_DIAMETER_MM
from ..read.datalist import LARGEST_NODULE_MM, LUNG_MASKS, count_nodules
from ..read.discovery import IMAGE_SUFFIXES, scan_stem
from ..read.reader import ScanError, read_grid
from ..read.scan import Grid
from ..read.text_headers import data_fault
from .datalists import (
    LeftOut,
    PrepareError,
    account_for,
    boxes_of,
    inside_grid,
    is_same_place,
    path_in_datalist,
    refuse_if_strict,
    write_datalist,
)

logger = logging.getLogger(__name__)

FOLDS = 10
TABLES = ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
SOURCE = "download it, see docs/data.md"

_SUBSET = re.compile(r"subset_?(\d)(\.zip)?", re.IGNORECASE)


@dataclass
class Tree:
    """What a folder holds of LUNA16.

    Attributes:
        scans: subset to series UID to image file.
        lung_masks: series UID to file.
        tables: name in :data:`TABLES` to the files of that name, the nearest to the top first.
        archives: subsets whose archive lies there.
        left_out: files that are there twice or not whole.
    """

    scans: dict[int, dict[str, Path]] = field(default_factory=dict)
    lung_masks: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, list[Path]] = field(default_factory=dict)
    archives: set[int] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)

    def subset_of(self, uid: str) -> int | None:
        """The subset that holds a scan."""
        return next((subset for subset, scans in self.scans.items() if uid in scans), None)


def luna16(
    *, luna16_dir: str, output_dir: str, annotations: str = "", excluded: str = "", strict: bool = False
) -> None:
    """Write the ten folds of LUNA16 as datalists: dataset_fold0.json to dataset_fold9.json, and seriesuids.csv.

    Args:
        luna16_dir: folder with subset0 to subset9 (at any depth, some of them suffice), annotations.csv, and, if
            there, annotations_excluded.csv, seriesuids.csv and the lung masks seg-lungs-LUNA16.
        output_dir: gets the datalists; former ones are replaced.
        annotations: the nodules, if not annotations.csv below luna16_dir.
        excluded: the excluded findings, if not annotations_excluded.csv below luna16_dir.
        strict: take it for an error when something is missing.

    Raises:
        UserError: no scans, no annotations, a table that cannot be read, a folder that cannot be written to, or with
            strict anything that is missing.
    """
    source, target = Path(luna16_dir), Path(output_dir)
    tree = find_tree(source)
    nodules = read_findings(_table(tree, "annotations.csv", annotations, source))
    others_path = excluded or next(iter(tree.tables.get("annotations_excluded.csv", [])), None)
    others = read_findings(others_path) if others_path else None
    left_out = [*tree.left_out, *_missing_parts(tree, source, others_path is None)]
    findings = _by_series(nodules, others)
    left_out += _orphans(tree, findings)
    items: dict[int, list[dict[str, Any]]] = {}
    for subset, scans in sorted(tree.scans.items()):
        items[subset] = []
        for uid, path in sorted(scans.items()):
            grid = _usable_grid(path, left_out)
            if grid is not None:
                item = {"name": uid, "image": path_in_datalist(path, target)}
                items[subset].append(item | _marks(uid, grid, findings.get(uid, []), left_out))
                items[subset][-1] |= _lungs(uid, tree, target, left_out)
    _write(items, left_out, target, strict=strict)


def _write(items: dict[int, list[dict[str, Any]]], left_out: list[LeftOut], target: Path, *, strict: bool) -> None:
    """Write the folds, the list of scans and the account."""
    items = {subset: scans for subset, scans in items.items() if scans}
    if not items:
        reasons = "; ".join(f"{one.subject}: {one.reason}" for one in left_out[:3])
        raise PrepareError(f"expected scans that can be read, got none ({reasons}); download the subsets again")
    refuse_if_strict(left_out, strict)
    writable_folder(target)
    for subset in items:
        training = [item for other, scans in items.items() if other != subset for item in scans]
        path = write_datalist(
            target / f"dataset_fold{subset}.json", {"training": training, "validation": items[subset]}
        )
        logger.info("%s: %d scans to train on, %d to validate on", path, len(training), len(items[subset]))
    everything = [item for scans in items.values() for item in scans]
    write_table(target / "seriesuids.csv", None, [(item["name"],) for item in sorted(everything, key=_name)])
    account_for(left_out, target)
    _say(everything)
    if len(items) == 1:
        logger.warning("one subset alone: its fold has nothing to train on; a second subset is the least")
    for path in sorted(target.glob("dataset_fold?.json")):
        if path.name not in {f"dataset_fold{subset}.json" for subset in items}:
            logger.warning("%s is left from a former run: subset %s is not there now", path, path.stem[-1])


def _say(items: Sequence[dict[str, Any]]) -> None:
    """How much there is."""
    nodules = count_nodules(items)
    with_nodules = sum(NODULE in item["label"] for item in items)
    ignored = sum(len(item["label"]) for item in items) - nodules
    logger.info("%d nodules in %d of %d scans, %d ignored findings", nodules, with_nodules, len(items), ignored)


def _name(item: dict[str, Any]) -> str:
    return str(item["name"])


def find_tree(folder: Path) -> Tree:
    """Look for everything of LUNA16 below a folder; nothing is opened.

    Raises:
        PrepareError: no such folder, or no subset in it.
    """
    if not folder.is_dir():
        raise PrepareError(f"{folder}: expected a folder with subset0 to subset9, found none; check --luna16_dir")
    tree = Tree()
    for path, parts in _files_below(folder):
        subset = next((m for part in reversed(parts[:-1]) if (m := _SUBSET.fullmatch(part)) and not m[2]), None)
        if path.name in TABLES:
            tree.tables.setdefault(path.name, []).append(path)
        elif (archive := _SUBSET.fullmatch(path.name)) and archive[2]:
            tree.archives.add(int(archive[1]))
        elif not path.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        elif any(part.lower().startswith(LUNG_MASKS) for part in parts[:-1]):
            tree.lung_masks.setdefault(scan_stem(path), path)
        elif subset is not None:
            _add_scan(tree, int(subset[1]), path)
    for paths in tree.tables.values():
        paths.sort(key=lambda path: (len(path.parts), str(path)))
    if not tree.scans:
        hint = f"; unpack {', '.join(f'subset{n}.zip' for n in sorted(tree.archives))}" if tree.archives else ""
        raise PrepareError(
            f"{folder}: expected folders subset0 to subset9 with .mhd files, found none{hint or '; check --luna16_dir'}"
        )
    return tree


def _files_below(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files with their parts below and including ``folder``, in a stable order; hidden ones apart.

    The folder's own name counts, so that ``--luna16_dir …/subset3`` is understood.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent) / name
                yield path, (folder.resolve().name, *path.relative_to(folder).parts)


def _add_scan(tree: Tree, subset: int, path: Path) -> None:
    uid = scan_stem(path)
    former = tree.subset_of(uid)
    if former is not None:
        tree.left_out.append(
            LeftOut(f"the scan is there twice, {tree.scans[former][uid].parent} counts", str(path), "remove one")
        )
        return
    tree.scans.setdefault(subset, {})[uid] = path


def _table(tree: Tree, name: str, given: str, source: Path) -> Path:
    """The table that was given, or the one nearest to the top of the folder."""
    if given:
        return Path(given)
    if name not in tree.tables:
        raise PrepareError(f"{source}: expected {name} in it, found none; {SOURCE}, or name it with --annotations")
    logger.info("nodules: %s", tree.tables[name][0])
    return tree.tables[name][0]


def _missing_parts(tree: Tree, source: Path, no_excluded: bool) -> Iterator[LeftOut]:
    """Subsets, scans and tables that LUNA16 has and the folder has not."""
    for subset in range(FOLDS):
        if subset not in tree.scans:
            advice = f"unpack subset{subset}.zip" if subset in tree.archives else SOURCE
            yield LeftOut("the subset is not there", f"subset{subset}", advice)
    if no_excluded:
        advice = f"{SOURCE} (evaluationScript.zip), or name it with --excluded"
        yield LeftOut("no excluded findings: all but nodules is background", "annotations_excluded.csv", advice)
    if "seriesuids.csv" in tree.tables and len(tree.scans) == FOLDS:
        listed, _ = read_series_uids(tree.tables["seriesuids.csv"][0])
        for uid in listed:
            if tree.subset_of(uid) is None:
                yield LeftOut("a scan of LUNA16 is not there", uid, f"unpack the subsets again below {source}")


Finding = tuple[float, float, float, float, int]  # centre LPS mm, diameter mm, label


def _by_series(nodules: Table, others: Table | None) -> dict[str, list[Finding]]:
    """Findings of each series; nodules come first, so that their values in a mask stay small."""
    findings: dict[str, list[Finding]] = {}
    for table, label in ((nodules, NODULE), (others, IGNORED)):
        if table is None:
            continue
        for uid, (x, y, z), value in zip(table.series_uids, table.positions_lps_mm.tolist(), table.values, strict=True):
            diameter_mm = float(value) if value >= 0 or label == NODULE else UNKNOWN_DIAMETER_MM
            findings.setdefault(uid, []).append((x, y, z, diameter_mm, label))
    return findings


def _orphans(tree: Tree, findings: dict[str, list[Finding]]) -> Iterator[LeftOut]:
    """Nodules whose scan is not there; told only for scans that no missing subset can hold."""
    if len(tree.scans) < FOLDS:
        count = sum(f[4] == NODULE for uid, rows in findings.items() if tree.subset_of(uid) is None for f in rows)
        if count:
            logger.info("%d nodules belong to scans of the subsets that are not there", count)
        return
    for uid, rows in sorted(findings.items()):
        count = sum(row[4] == NODULE for row in rows)
        if count and tree.subset_of(uid) is None:
            yield LeftOut("nodules of a scan that is in no subset", f"{uid} ({count})", "unpack the subsets again")


def _usable_grid(path: Path, left_out: list[LeftOut]) -> Grid | None:
    """Size and position of a scan by its header; a reason in ``left_out`` where it cannot be used."""
    try:
        grid = read_grid(str(path))
        fault = data_fault(path)
    except ScanError as error:
        left_out.append(LeftOut("the header cannot be read", str(path), str(error).split(": ", 1)[-1]))
        return None
    if fault:
        left_out.append(LeftOut(fault, str(path), "unpack the archive again"))
        return None
    return grid


def _marks(uid: str, grid: Grid, rows: Sequence[Finding], left_out: list[LeftOut]) -> dict[str, Any]:
    """Boxes and labels of a scan; empty for a scan without findings."""
    kept: list[Finding] = []
    for row in rows:
        fault = ""
        if not inside_grid(grid, row[:3])[0]:
            fault = "a finding's centre lies outside its scan"
        elif row[3] <= 0:
            fault = "a finding has no size"
        elif row[3] > LARGEST_NODULE_MM:
            fault = f"a finding is larger than {LARGEST_NODULE_MM:g} mm"
        elif row[4] == NODULE and any(is_same_place(row, other) for other in kept if other[4] == NODULE):
            fault = "a nodule is listed twice"
        if fault:
            place = ", ".join(f"{v:g}" for v in row[:3])
            left_out.append(LeftOut(fault, f"{uid} at ({place}) LPS mm", "take annotations and scans of one release"))
        else:
            kept.append(row)
    return {"box": boxes_of(kept), "label": [row[4] for row in kept]}


def _lungs(uid: str, tree: Tree, target: Path, left_out: list[LeftOut]) -> dict[str, str]:
    """The lung mask of a scan; nothing where LUNA16's masks were not downloaded."""
    path = tree.lung_masks.get(uid)
    if path is None:
        if tree.lung_masks:
            left_out.append(LeftOut("the lung mask is not there", uid, "unpack seg-lungs-LUNA16.zip again"))
        return {}
    fault = data_fault(path)
    if fault:
        left_out.append(LeftOut(f"lung mask: {fault}", str(path), "unpack seg-lungs-LUNA16.zip again"))
        return {}
    return {"lung_mask": path_in_datalist(path, target)}
