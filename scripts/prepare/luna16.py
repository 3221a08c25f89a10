"""The command ``luna16``: makes datalists of the ten official folds of LUNA16 from the files as downloaded.

Source: the LUNA16 challenge (Setio et al., Medical Image Analysis 2017). Its ten subsets are the folds: fold k
validates on subset k and trains on the other nine. ``annotations.csv`` lists the nodules, ``annotations_excluded.csv``
(in the archive of its evaluation script) the findings that are neither nodule nor false positive. These get the label
:data:`IGNORED`, and a diameter of 10 mm where the file gives -1.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import writable_folder, write_csv
from ..core.labels import IGNORED, NODULE
from ..evaluate.tables import read_findings, read_series_uids
from ..read.datalist import LUNG_MASKS
from ..read.discovery import files_below, is_image_file, scan_stem
from ..read.reader import ScanError, read_grid
from ..read.scan import Grid
from ..read.text_headers import data_fault
from .datalists import (
    Annotation,
    LeftOut,
    PrepareError,
    account_for,
    path_in_datalist,
    refuse_if_strict,
    usable,
    write_folds,
)

logger = logging.getLogger(__name__)

FOLDS = 10
TABLES = ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
SOURCE = "download it, see docs/data.md"

_SUBSET = re.compile(r"subset_?(\d)(\.zip)?", re.IGNORECASE)


@dataclass
class Tree:
    """The files of LUNA16 found below a folder.

    Attributes:
        scans: series UID to subset and image file.
        lung_masks: series UID to file.
        tables: name in :data:`TABLES` to the first file of that name; a folder's own files come before its subfolders.
        archives: subsets whose zip archive was found.
        left_out: scans that were found twice.
    """

    scans: dict[str, tuple[int, Path]] = field(default_factory=dict)
    lung_masks: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    archives: set[int] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def subsets(self) -> set[int]:
        """The subsets that have scans."""
        return {subset for subset, _ in self.scans.values()}


def luna16(
    *, luna16_dir: str, output_dir: str, annotations: str = "", excluded: str = "", strict: bool = False
) -> None:
    """Write the ten folds of LUNA16 as datalists: dataset_fold0.json to dataset_fold9.json, and seriesuids.csv.

    Args:
        luna16_dir: folder with subset0 to subset9 (at any depth; not all are needed), annotations.csv, and optionally
            annotations_excluded.csv, seriesuids.csv and the lung masks seg-lungs-LUNA16.
        output_dir: folder for the datalists; existing ones are replaced.
        annotations: CSV of the nodules, if it is not annotations.csv below luna16_dir.
        excluded: CSV of the excluded findings, if it is not annotations_excluded.csv below luna16_dir.
        strict: stop with an error if anything is missing.

    Raises:
        UserError: there are no scans or no annotations, a table cannot be read, the folder cannot be written to, or,
            with strict, anything is missing.
    """
    source, target = Path(luna16_dir), Path(output_dir)
    tree = find_tree(source)
    nodules, others, series_uids = (tree.tables.get(name) for name in TABLES)
    nodules, others = Path(annotations) if annotations else nodules, Path(excluded) if excluded else others
    if nodules is None:
        raise PrepareError(
            f"{source}: expected annotations.csv in it, found none; {SOURCE}, or name it with --annotations"
        )
    logger.info("nodules: %s", nodules)
    found = _by_series(nodules, others)
    left_out = [*tree.left_out, *_missing_parts(tree, source, others, series_uids), *_orphans(tree, found)]
    items: list[tuple[int, dict[str, Any]]] = []
    for uid, (subset, path) in sorted(tree.scans.items(), key=lambda scan: (scan[1][0], scan[0])):
        grid = _usable_grid(path)
        if isinstance(grid, LeftOut):
            left_out.append(grid)
            continue
        boxes, unusable = usable(found.get(uid, []), grid, "use annotations and scans of the same release")
        lungs, missing = _lungs(uid, tree, target)
        left_out += [*unusable, *missing]
        items.append((subset, {"name": uid, "image": path_in_datalist(path, target)} | boxes | lungs))
    _write(items, left_out, target, strict=strict)


def _write(items: Sequence[tuple[int, dict[str, Any]]], left_out: list[LeftOut], target: Path, *, strict: bool) -> None:
    """Write the folds, the list of scans and the list of what was left out.

    Raises:
        PrepareError: no scan can be read, or, if ``strict``, something was left out.
        OutputError: the folder cannot be written to.
    """
    reasons = "; ".join(f"{one.subject}: {one.reason}" for one in left_out[:3])
    if not items:
        raise PrepareError(f"expected scans that can be read, got none ({reasons}); download the subsets again")
    refuse_if_strict(left_out, strict)
    writable_folder(target)
    subsets = sorted({subset for subset, _ in items})
    write_folds(target, subsets, items)
    write_csv(target / "seriesuids.csv", sorted((item["name"],) for _, item in items))
    account_for(left_out, target)
    labels = [item["label"] for _, item in items]
    nodules, ignored = (sum(own.count(label) for own in labels) for label in (NODULE, IGNORED))
    with_nodules = sum(NODULE in own for own in labels)
    logger.info("%d nodules in %d of %d scans, %d ignored findings", nodules, with_nodules, len(labels), ignored)
    if len(subsets) == 1:
        logger.warning("only one subset: its fold has nothing to train on; add at least a second subset")
    written = {target / f"dataset_fold{subset}.json" for subset in subsets}
    for path in sorted(set(target.glob("dataset_fold?.json")) - written):
        logger.warning("%s is left over from an earlier run: subset %s is no longer there", path, path.stem[-1])


def find_tree(folder: Path) -> Tree:
    """Find the files of LUNA16 below a folder, without opening any.

    Raises:
        PrepareError: there is no such folder, or it contains no subset with scans.
    """
    if not folder.is_dir():
        raise PrepareError(f"{folder}: expected a folder with subset0 to subset9, found none; check --luna16_dir")
    tree = Tree()
    for path in files_below(folder):
        parents = (folder.resolve().name, *path.relative_to(folder).parts[:-1])  # --luna16_dir may be a subset itself
        subset = next((m for part in reversed(parents) if (m := _SUBSET.fullmatch(part)) and not m[2]), None)
        if path.name in TABLES:
            tree.tables.setdefault(path.name, path)
        elif (archive := _SUBSET.fullmatch(path.name)) and archive[2]:
            tree.archives.add(int(archive[1]))
        elif is_image_file(path) and any(part.lower().startswith(LUNG_MASKS) for part in parents):
            tree.lung_masks.setdefault(scan_stem(path), path)
        elif is_image_file(path) and subset is not None:
            _, former = tree.scans.setdefault(scan_stem(path), (int(subset[1]), path))
            if former != path:
                reason = f"the scan is there twice, the one in {former.parent} is used"
                tree.left_out.append(LeftOut(reason, str(path), "remove one"))
    archives = ", ".join(f"subset{n}.zip" for n in sorted(tree.archives))
    advice = f"unpack {archives}" if archives else "check --luna16_dir"
    if not tree.scans:
        raise PrepareError(f"{folder}: expected folders subset0 to subset9 with .mhd files, found none; {advice}")
    return tree


def _missing_parts(tree: Tree, source: Path, others: Path | None, series_uids: Path | None) -> Iterator[LeftOut]:
    """Yield the subsets, scans and tables of LUNA16 that are missing; scans only if no subset is."""
    missing = sorted(set(range(FOLDS)) - tree.subsets)
    for subset in missing:
        advice = f"unpack subset{subset}.zip" if subset in tree.archives else SOURCE
        yield LeftOut("the subset is not there", f"subset{subset}", advice)
    if others is None:
        advice = f"{SOURCE} (evaluationScript.zip), or name it with --excluded"
        yield LeftOut("no excluded findings: everything but nodules is background", "annotations_excluded.csv", advice)
    if series_uids and not missing:
        for uid in read_series_uids(series_uids)[0]:
            if uid not in tree.scans:
                yield LeftOut("a scan of LUNA16 is not there", uid, f"unpack the subsets again below {source}")


def _by_series(nodules: Path, others: Path | None) -> dict[str, list[Annotation]]:
    """Return the annotations of each series, nodules first, so that their values in a mask stay small."""
    found: dict[str, list[Annotation]] = defaultdict(list)
    for path, label in ((nodules, NODULE), (others, IGNORED)):
        if path is not None:
            table = read_findings(path)
            places = table.positions_lps_mm.tolist()
            for uid, (x, y, z), diameter_mm in zip(table.series_uids, places, table.values.tolist(), strict=True):
                found[uid].append(Annotation((x, y, z), diameter_mm, label, uid))
    return found


def _orphans(tree: Tree, found: dict[str, list[Annotation]]) -> Iterator[LeftOut]:
    """Yield the scans that are missing although they have nodules, if all subsets are there; otherwise log a count."""
    lost = sorted(set(found) - set(tree.scans))
    counts = {uid: sum(one.label == NODULE for one in found[uid]) for uid in lost}
    if len(tree.subsets) == FOLDS:
        for uid, count in counts.items():
            if count:
                yield LeftOut("nodules of a scan that is in no subset", f"{uid} ({count})", "unpack the subsets again")
    elif any(counts.values()):
        logger.info("%d nodules belong to scans of missing subsets", sum(counts.values()))


def _usable_grid(path: Path) -> Grid | LeftOut:
    """Return a scan's grid from its header, or why the scan cannot be used."""
    try:
        grid = read_grid(str(path))
    except ScanError as error:
        return LeftOut("the header cannot be read", str(path), str(error).split(": ", 1)[-1])
    fault = data_fault(path)
    return LeftOut(fault, str(path), "unpack the archive again") if fault else grid


def _lungs(uid: str, tree: Tree, target: Path) -> tuple[dict[str, Any], list[LeftOut]]:
    """Return a scan's lung mask as ``lung_mask``, or nothing if it is missing or damaged, and that as left out.

    Nothing is left out if LUNA16's lung masks were not downloaded at all.
    """
    path = tree.lung_masks.get(uid)
    fault = "the lung mask is not there" if path is None else data_fault(path)
    if path is not None and not fault:
        return {"lung_mask": path_in_datalist(path, target)}, []
    reason = fault if path is None else f"lung mask: {fault}"
    missing = LeftOut(reason, str(path or uid), "unpack seg-lungs-LUNA16.zip again")
    return {}, [missing] if tree.lung_masks else []
