"""The command ``luna16``: the ten official folds of LUNA16 as datalists, from the files as they are downloaded.

Source: the LUNA16 challenge (Setio et al., Medical Image Analysis 2017). Its ten subsets are the folds: fold k
validates on subset k and trains on the other nine. ``annotations.csv`` holds the nodules, ``annotations_excluded.csv``
(in its evaluation script's archive) the findings that are neither nodule nor false positive; they become
:data:`IGNORED`, with a diameter of 10 mm where it is given as -1.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import writable_folder, write_csv, write_json
from ..core.labels import IGNORED, NODULE
from ..evaluate.tables import read_findings, read_series_uids
from ..read.datalist import LUNG_MASKS, count_nodules
from ..read.discovery import files_below, is_image_file, scan_stem
from ..read.reader import ScanError, read_grid
from ..read.scan import Grid
from ..read.text_headers import data_fault
from .datalists import (
    LeftOut,
    PrepareError,
    Row,
    account_for,
    boxes_of,
    fault_of,
    inside_grid,
    path_in_datalist,
    refuse_if_strict,
    shown_place,
    sized,
)

logger = logging.getLogger(__name__)

FOLDS = 10
TABLES = ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
SOURCE = "download it, see docs/data.md"

_SUBSET = re.compile(r"subset_?(\d)(\.zip)?", re.IGNORECASE)

Findings = dict[str, list[tuple[Row, int]]]  # of each series: finding and label


@dataclass
class Tree:
    """What a folder holds of LUNA16.

    Attributes:
        scans: subset to series UID to image file.
        lung_masks: series UID to file.
        tables: name in :data:`TABLES` to the file of that name that is nearest to the top.
        archives: subsets whose archive lies there.
        left_out: files that are there twice or not whole.
    """

    scans: dict[int, dict[str, Path]] = field(default_factory=dict)
    lung_masks: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    archives: set[int] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)

    def place_of(self, uid: str) -> Path | None:
        """The file of a scan."""
        return next((scans[uid] for scans in self.scans.values() if uid in scans), None)


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
    nodules_path = Path(annotations) if annotations else tree.tables.get("annotations.csv")
    if nodules_path is None:
        raise PrepareError(
            f"{source}: expected annotations.csv in it, found none; {SOURCE}, or name it with --annotations"
        )
    logger.info("nodules: %s", nodules_path)
    others_path = Path(excluded) if excluded else tree.tables.get("annotations_excluded.csv")
    findings = _by_series(nodules_path, others_path)
    left_out = [*tree.left_out, *_missing_parts(tree, source, others_path), *_orphans(tree, findings)]
    items: dict[int, list[dict[str, Any]]] = {}
    for subset, scans in sorted(tree.scans.items()):
        for uid, path in sorted(scans.items()):
            grid = _usable_grid(path, left_out)
            if grid is not None:
                item: dict[str, Any] = {"name": uid, "image": path_in_datalist(path, target)}
                item |= _boxes(uid, grid, findings.get(uid, []), left_out) | _lungs(uid, tree, target, left_out)
                items.setdefault(subset, []).append(item)
    _write(items, left_out, target, strict=strict)


def _write(items: dict[int, list[dict[str, Any]]], left_out: list[LeftOut], target: Path, *, strict: bool) -> None:
    """Write the folds, the list of scans and the account."""
    if not items:
        reasons = "; ".join(f"{one.subject}: {one.reason}" for one in left_out[:3])
        raise PrepareError(f"expected scans that can be read, got none ({reasons}); download the subsets again")
    refuse_if_strict(left_out, strict)
    writable_folder(target)
    paths = {subset: target / f"dataset_fold{subset}.json" for subset in items}
    for subset, path in paths.items():
        training = [item for other, scans in items.items() if other != subset for item in scans]
        write_json(path, {"training": training, "validation": items[subset]})
        logger.info("%s: %d scans to train on, %d to validate on", path, len(training), len(items[subset]))
    everything = [item for scans in items.values() for item in scans]
    write_csv(target / "seriesuids.csv", sorted((item["name"],) for item in everything))
    account_for(left_out, target)
    nodules, labels = count_nodules(everything), [item["label"] for item in everything]
    with_nodules, ignored = sum(NODULE in own for own in labels), sum(map(len, labels)) - nodules
    logger.info("%d nodules in %d of %d scans, %d ignored findings", nodules, with_nodules, len(labels), ignored)
    if len(items) == 1:
        logger.warning("one subset alone: its fold has nothing to train on; a second subset is the least")
    for path in sorted(set(target.glob("dataset_fold?.json")) - set(paths.values())):
        logger.warning("%s is left from a former run: subset %s is not there now", path, path.stem[-1])


def find_tree(folder: Path) -> Tree:
    """Look for everything of LUNA16 below a folder; nothing is opened.

    Raises:
        PrepareError: no such folder, or no subset in it.
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
            former = tree.place_of(scan_stem(path))
            if former is None:
                tree.scans.setdefault(int(subset[1]), {})[scan_stem(path)] = path
            else:
                reason = f"the scan is there twice, {former.parent} counts"
                tree.left_out.append(LeftOut(reason, str(path), "remove one"))
    if not tree.scans:
        hint = f"; unpack {', '.join(f'subset{n}.zip' for n in sorted(tree.archives))}" if tree.archives else ""
        raise PrepareError(
            f"{folder}: expected folders subset0 to subset9 with .mhd files, found none{hint or '; check --luna16_dir'}"
        )
    return tree


def _missing_parts(tree: Tree, source: Path, others: Path | None) -> Iterator[LeftOut]:
    """Subsets, scans and tables that LUNA16 has and the folder has not."""
    for subset in range(FOLDS):
        if subset not in tree.scans:
            advice = f"unpack subset{subset}.zip" if subset in tree.archives else SOURCE
            yield LeftOut("the subset is not there", f"subset{subset}", advice)
    if others is None:
        advice = f"{SOURCE} (evaluationScript.zip), or name it with --excluded"
        yield LeftOut("no excluded findings: all but nodules is background", "annotations_excluded.csv", advice)
    if "seriesuids.csv" in tree.tables and len(tree.scans) == FOLDS:
        for uid in read_series_uids(tree.tables["seriesuids.csv"])[0]:
            if tree.place_of(uid) is None:
                yield LeftOut("a scan of LUNA16 is not there", uid, f"unpack the subsets again below {source}")


def _by_series(nodules: Path, others: Path | None) -> Findings:
    """Findings of each series; nodules come first, so that their values in a mask stay small."""
    findings: Findings = defaultdict(list)
    for path, label in ((nodules, NODULE), (others, IGNORED)):
        if path is not None:
            table = read_findings(path)
            places = table.positions_lps_mm.tolist()
            for uid, (x, y, z), diameter_mm in zip(table.series_uids, places, table.values.tolist(), strict=True):
                findings[uid].append((sized((x, y, z, diameter_mm), label), label))
    return findings


def _orphans(tree: Tree, findings: Findings) -> Iterator[LeftOut]:
    """Nodules whose scan is not there; told only for scans that no missing subset can hold."""
    counts = {uid: sum(label == NODULE for _, label in rows) for uid, rows in sorted(findings.items())}
    lost = {uid: count for uid, count in counts.items() if count and tree.place_of(uid) is None}
    if len(tree.scans) == FOLDS:
        for uid, count in lost.items():
            yield LeftOut("nodules of a scan that is in no subset", f"{uid} ({count})", "unpack the subsets again")
    elif lost:
        logger.info("%d nodules belong to scans of the subsets that are not there", sum(lost.values()))


def _usable_grid(path: Path, left_out: list[LeftOut]) -> Grid | None:
    """Size and position of a scan by its header; a reason in ``left_out`` where it cannot be used."""
    try:
        grid = read_grid(str(path))
    except ScanError as error:
        left_out.append(LeftOut("the header cannot be read", str(path), str(error).split(": ", 1)[-1]))
        return None
    fault = data_fault(path)
    if fault:
        left_out.append(LeftOut(fault, str(path), "unpack the archive again"))
    return None if fault else grid


def _boxes(uid: str, grid: Grid, findings: Sequence[tuple[Row, int]], left_out: list[LeftOut]) -> dict[str, Any]:
    """Boxes and labels of a scan; empty for a scan without findings."""
    kept: list[tuple[Row, int]] = []
    for row, label in findings:
        fault = fault_of(row, label, [other for other, kind in kept if kind == NODULE])
        if not inside_grid(grid, row[:3])[0]:
            fault = "a finding's centre lies outside its scan"
        if fault:
            advice = "take annotations and scans of one release"
            left_out.append(LeftOut(fault, f"{uid} at {shown_place(row)}", advice))
        else:
            kept.append((row, label))
    return {"box": boxes_of([row for row, _ in kept]), "label": [label for _, label in kept]}


def _lungs(uid: str, tree: Tree, target: Path, left_out: list[LeftOut]) -> dict[str, str]:
    """The lung mask of a scan; nothing where LUNA16's masks were not downloaded."""
    path = tree.lung_masks.get(uid)
    fault = "the lung mask is not there" if path is None else data_fault(path)
    if path is not None and not fault:
        return {"lung_mask": path_in_datalist(path, target)}
    if tree.lung_masks:
        reason = fault if path is None else f"lung mask: {fault}"
        left_out.append(LeftOut(reason, str(path or uid), "unpack seg-lungs-LUNA16.zip again"))
    return {}
