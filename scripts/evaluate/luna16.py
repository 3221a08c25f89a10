"""The command ``luna16``: scores the results of any nodule detector as the LUNA16 challenge does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from ..core.errors import SettingError
from ..core.files import writable_folder
from .outputs import scan_lists, text_table, write_evaluation
from .system import Reference, Resampling, evaluate
from .tables import Table, no_rows, pooled, read_findings, read_folds, read_results, read_series_uids

logger = logging.getLogger(__name__)


def luna16(
    *,
    results: Sequence[str],
    annotations: str,
    series_uids: str,
    output_dir: str,
    excluded: str = "",
    folds: Sequence[str] = (),
    pool: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Score nodule detections as the LUNA16 challenge does; write froc.json, froc.csv and froc.png.

    Args:
        results: one or several CSV files: seriesuid, coordX, coordY, coordZ (LPS mm), probability; each is a separate
            system unless pool is given.
        annotations: CSV of the nodules: seriesuid, coordX, coordY, coordZ, diameter_mm.
        series_uids: the scans to evaluate, one series UID per row, no header.
        output_dir: folder for the files; existing ones of the same names are replaced.
        excluded: CSV of findings that are neither nodule nor false positive, with the columns of annotations; a
            negative diameter means 10 mm.
        folds: CSV with seriesuid and fold, one datalist (JSON) for each fold, or a folder with a sub-folder of scans
            for each.
        pool: the results are parts of one system, such as its folds, each on different scans.
        resamples: number of resamples of the bootstrap over scans; 0 for no intervals.
        seed: seed of the bootstrap.

    Raises:
        UserError: a file cannot be evaluated, an option is out of range, or the folder cannot be written to.
    """
    if resamples < 0 or seed < 0:
        raise SettingError(
            f"--resamples, --seed: expected whole numbers of at least 0, got {resamples} and {seed}; correct them"
        )
    folder = writable_folder(output_dir)
    reference = _reference(annotations, series_uids, excluded, folds)
    tables: dict[str, Table] = {}
    for path in results:
        stem = Path(path).stem
        names = chain([stem], (f"{stem}-{n}" for n in count(2)))  # files of the same name get numbers
        tables[next(name for name in names if name not in tables)] = read_results(path)
    if pool:
        tables = {"pooled": pooled(list(tables.values()))}
    for table in tables.values():
        _warn_of(table)
    systems = [evaluate(name, table, reference, Resampling(resamples, seed)) for name, table in tables.items()]
    written = write_evaluation(folder, systems)
    print(text_table(systems))
    for system in systems:
        for line in scan_lists(system):
            logger.warning("%s", line)
        if system.pooled.froc.cpm is None:
            logger.warning("%s: sensitivity and CPM are undefined: there is no nodule to find", system.name)
    logger.info("written: %s", ", ".join(map(str, written)))


def _reference(annotations: str, series_uids: str, excluded: str, folds: Sequence[str]) -> Reference:
    """Read the reference; warn of irregularities that do not prevent scoring.

    Raises:
        TableError: a file cannot be used.
    """
    uids, repeats = read_series_uids(series_uids)
    if repeats:
        logger.warning("%s: %d rows repeat a series; each scan counts once", series_uids, repeats)
    if not excluded:
        logger.warning("no --excluded: candidates on excluded findings count as false positives")
    nodules, others = read_findings(annotations), read_findings(excluded) if excluded else no_rows(Path(annotations))
    listed = set(uids)
    unlisted = sum(uid not in listed for uid in (*nodules.series_uids, *others.series_uids))
    if unlisted:
        logger.warning("%d findings belong to series that are not in %s; not counted", unlisted, series_uids)
    given = read_folds(folds)
    kept = {name: [uid for uid in members if uid in listed] for name, members in given.items()}
    foreign = sum(map(len, given.values())) - sum(map(len, kept.values()))
    left = len(listed) - sum(map(len, kept.values())) if folds else 0
    if foreign:
        logger.warning("%d series of the folds are not in %s; not counted", foreign, series_uids)
    if left:
        logger.warning("%d scans of %s are in no fold; they count in the pooled result only", left, series_uids)
    return Reference(uids, nodules, others, kept)


def _warn_of(table: Table) -> None:
    """Warn of results that can be scored but may be mistakes: no candidates, or probabilities outside 0 to 1."""
    if not len(table.values):
        logger.warning("%s: no candidates, so every sensitivity and the CPM are 0", table.path)
    outside = int(((table.values < 0.0) | (table.values > 1.0)).sum())
    if outside:
        logger.warning("%s: %d probabilities outside 0 to 1; only their order counts", table.path, outside)
