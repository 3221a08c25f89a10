"""Filling a cache before training starts: in parallel over scans, with an estimate of disk space and time.

Each process works through the missing scans in its own random order and skips those that exist by then. Several
processes that fill one cache at once (ranks of a training, or separate commands) thus share the work without
communicating.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset
from torch.utils.data import DataLoader

from ...core.errors import reason_of, user_error_in
from ...core.geometry import voxel_volume_mm3
from ...core.text import shown_duration
from ...read.datalist import checked_items
from ...read.reader import ScanError, read_grid
from .scans import CacheError, ScanCache

logger = logging.getLogger(__name__)

LOG_EVERY_S = 30.0
ASKED_HEADERS = 50  # most scans whose headers are read for an estimate: a DICOM series has hundreds of files
BYTES_PER_VOXEL = 3.0  # int16 image and uint8 lungs; a uint8 mask adds one
COARSE_BYTES_PER_MM3 = 4.0 / 64.0  # float32 on a grid of 4 mm, over the whole scan
LUNG_BOX_SHARE = {"least": 0.2, "usual": 0.5, "most": 1.0}  # share of a scan's volume; 0.43 in LIDC-IDRI-0001

Item = Mapping[str, Any]


def workers_of_rank(most: int) -> int:
    """Return how many worker processes a rank uses to fill a cache.

    The lesser of ``most`` and the number of processors is divided among the machine's ranks; each gets at least one.
    """
    return max(1, min(most, os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def fill_cache(
    cache: ScanCache,
    lists: Mapping[str, Sequence[Item]],
    *,
    workers: int,
    spacing_mm: Sequence[float],
    skip_broken: bool = False,
    remove_unused: bool = False,
) -> dict[str, list[Item]]:
    """Compute the entries of several datalists that a cache does not have yet.

    Args:
        cache: the cache to fill.
        lists: items by section; several sections may contain the same scan.
        workers: number of worker processes; 0 computes in this process.
        spacing_mm: ``[3]``, spacing of the entries, for the estimate of disk space.
        skip_broken: leave out scans that cannot be preprocessed.
        remove_unused: delete entries that belong to no item of these lists.

    Returns:
        The lists without the scans that were left out; the cache keeps track of those (:attr:`ScanCache.left_out`).

    Raises:
        CacheError: there is no scan; entries do not fit on the disk or cannot be written; scans cannot be preprocessed
            (without ``skip_broken``, or if leaving them out would empty a list). All scans are tried first, and all
            failures are named.
    """
    if not any(lists.values()):
        raise CacheError(
            "datalists: expected at least one scan, got none; --dataset_dir must hold a datalist.json (python -m "
            "scripts.prepare makes them)"
        )
    cache.prepare()
    lists = {name: checked_items(items) for name, items in lists.items()}
    folders = {name: [cache.folder(item) for item in items] for name, items in lists.items()}
    wanted = {f: item for name, items in lists.items() for f, item in zip(folders[name], items, strict=True)}
    _report_unused(cache, set(wanted), remove_unused)
    missing = [item for folder, item in wanted.items() if not folder.exists()]
    reasons = _add_all(cache, missing, workers, spacing_mm) if missing else {}
    cache.left_out |= (broken := {folder for folder in wanted if folder.name in reasons})
    usable = {
        name: [item for folder, item in zip(folders[name], items, strict=True) if folder not in broken]
        for name, items in lists.items()
    }
    if broken:
        emptied = [name for name, items in lists.items() if items and not usable[name]]
        _judge([(_name(wanted[folder]), reasons[folder.name]) for folder in broken], skip_broken, emptied)
    ready = wanted.keys() - broken
    logger.info("%s: %d scans are ready, %.2f GB", cache.cache_dir, len(ready), _size_gb(ready))
    return usable


def _judge(broken: Sequence[tuple[str, str]], skip: bool, emptied: Sequence[str]) -> None:
    """Log which scans (name, reason) are left out, or raise a CacheError if the lists cannot be used without them."""
    width = max(len(name) for name, _ in broken)
    table = "\n".join(f"  {name:{width}}  {reason}" for name, reason in sorted(broken))
    if skip and not emptied:
        logger.warning("%d scans cannot be preprocessed and are left out:\n%s", len(broken), table)
        return
    advice = "correct them, remove them from the datalists, or leave them out with --skip_broken true"
    if skip:
        advice = f"no scan of {', '.join(emptied)} is left; correct them, or choose other datalists"
    raise CacheError(f"{len(broken)} scans cannot be preprocessed; {advice}:\n{table}")


def _add_all(cache: ScanCache, items: Sequence[Item], workers: int, spacing_mm: Sequence[float]) -> dict[str, str]:
    """Compute entries; return the reasons of those that failed, by folder name.

    Raises:
        CacheError: the disk is too small, an entry cannot be written, or a worker died.
    """
    _check_room(cache.cache_dir, items, spacing_mm)
    logger.info("preprocessing %d scans with %d workers", len(items), workers)
    reasons: dict[str, str] = {}
    began = last_logged = time.monotonic()
    for done, (folder, reason, is_fatal) in enumerate(_outcomes(cache, items, workers), 1):
        if is_fatal:
            raise CacheError(reason)
        if reason:
            reasons[folder] = reason
        now = time.monotonic()
        if now - last_logged > LOG_EVERY_S or done == len(items):
            last_logged, scan_s = now, (now - began) / done
            left = shown_duration(scan_s * (len(items) - done))
            logger.info("cached %d of %d scans, %.1f s per scan, %s left", done, len(items), scan_s, left)
    return reasons


def _outcomes(cache: ScanCache, items: Sequence[Item], workers: int) -> Iterator[tuple[str, str, bool]]:
    """Add items to the cache in random order; yield what :func:`_added` returns for each."""
    order = np.random.default_rng().permutation(len(items))  # differs between processes; no result depends on it
    loader: DataLoader[Any] = DataLoader(
        Dataset(items, partial(_added, cache)),
        batch_size=None,
        sampler=order.tolist(),
        num_workers=min(workers, len(items)),
        in_order=False,
        generator=torch.Generator(),  # advancing the global one would make training depend on what was cached before
    )
    try:
        yield from loader
    except RuntimeError as error:
        raise CacheError(
            f"expected {workers} workers to keep running, got '{error}', perhaps out of memory; cached scans are kept: "
            "run the same command again with fewer --cache_workers"
        ) from error


def _added(cache: ScanCache, item: Item) -> tuple[str, str, bool]:
    """Return an item's folder name, why it cannot be added ("" if it was), and whether that holds for all items."""
    try:
        return cache.add(item).name, "", False
    except Exception as error:
        if user_error_in(error) is None:
            logger.error("%s: unexpected error", _name(item), exc_info=error)
        return cache.folder(item).name, reason_of(error), isinstance(error, CacheError)


def _check_room(cache_dir: Path, items: Sequence[Item], spacing_mm: Sequence[float]) -> None:
    """Log how much disk space the entries need and how much is free.

    Raises:
        CacheError: there is less than the entries need at least.
    """
    need_gb = _estimate_gb(items, spacing_mm)
    free_gb = shutil.disk_usage(cache_dir).free / 1e9
    logger.info(
        "%s: about %.1f GB for %d scans to preprocess (at most %.1f GB), %.1f GB free",
        cache_dir,
        need_gb["usual"],
        len(items),
        need_gb["most"],
        free_gb,
    )
    if need_gb["least"] > free_gb:
        raise CacheError(
            f"cache_dir {cache_dir}: expected about {need_gb['usual']:.1f} GB of free disk for {len(items)} scans to "
            f"preprocess, got {free_gb:.1f} GB; free some, or choose another folder with --cache_dir"
        )
    if need_gb["usual"] > free_gb:
        logger.warning("%s: the disk may be full before all scans are preprocessed", cache_dir)


def _estimate_gb(items: Sequence[Item], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Estimate the least, usual and most disk space of entries from some scans' headers; 0 if none can be read."""
    asked = [items[n] for n in np.unique(np.linspace(0, len(items) - 1, ASKED_HEADERS).round().astype(int))]
    sizes = []
    for item in asked:
        try:
            grid = read_grid(item["image"])
        except (ScanError, OSError):
            continue  # reported with its reason when it is preprocessed
        volume_mm3 = float(np.prod(grid.shape)) * voxel_volume_mm3(grid.affine_ras)
        fine = (BYTES_PER_VOXEL + bool(item.get("mask"))) * volume_mm3 / float(np.prod(spacing_mm))
        sizes.append((fine, COARSE_BYTES_PER_MM3 * volume_mm3))
    fine_bytes, coarse_bytes = np.mean(sizes, axis=0) * len(items) if sizes else (0.0, 0.0)
    return {name: float(share * fine_bytes + coarse_bytes) / 1e9 for name, share in LUNG_BOX_SHARE.items()}


def _report_unused(cache: ScanCache, wanted: set[Path], remove: bool) -> None:
    """Log how many entries belong to no listed scan and their size, and delete them if ``remove`` is set."""
    unused = [folder for folder in cache.entries() if folder not in wanted]
    if not unused:
        return
    found = f"{cache.cache_dir}: {len(unused)} entries ({_size_gb(unused):.2f} GB) belong to no scan of these datalists"
    if not remove:
        logger.info("%s; --remove_unused true deletes them", found)
        return
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info("%s and are deleted", found)


def _size_gb(folders: Iterable[Path]) -> float:
    """Return the disk space of entries; those that another process deletes meanwhile count as 0."""
    total = 0
    for folder in folders:
        with suppress(FileNotFoundError):
            total += sum(file.stat().st_size for file in folder.iterdir())
    return total / 1e9


def _name(item: Item) -> str:
    return str(item.get("name", item["image"]))
