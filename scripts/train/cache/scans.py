"""Preprocessed scans, cached as plain arrays: each is computed once and then read as memory maps.

An entry is a folder named by a hash of everything its content depends on. If a file, box, setting, weight of the lung
search or line of code changes, another entry is made, and the old one is never read again. An entry is written beside
its final place and then renamed, so an interruption never leaves a partial entry there; leftovers of an interruption
are removed when the cache is filled the next time (:meth:`ScanCache.prepare`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch.utils.data import Dataset

from ...core.errors import UserError
from ...core.files import beside, digest_of, remove_abandoned, stamp, writable_folder
from ...core.geometry import FloatArray, spacing_mm
from ...read.datalist import FILES, checked_items
from ...read.text_headers import files_of
from ..crops import crop_by_affine
from .fingerprint import fingerprint

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"[0-9a-f]{24}")


class CacheError(UserError, RuntimeError):
    """A cache cannot be filled."""


class ScanCache:
    """A folder of preprocessed scans; several processes may use it at once.

    Args:
        preprocessing: returns ``image`` ``[1, I, J, K]``, ``lung_distance_mm``, ``nodule``, ``label`` and, if the item
            has one, ``mask``.
        cache_dir: folder of the entries.
    """

    def __init__(self, preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]], cache_dir: str) -> None:
        self.preprocessing = preprocessing
        self.cache_dir = Path(cache_dir)
        self.left_out: set[Path] = set()  # entries that cannot be computed (:func:`.filling.fill_cache`)
        self.made_by = fingerprint([preprocessing, _arrays])

    def folder(self, item: Mapping[str, Any]) -> Path:
        """Return the folder of a datalist item's entry, whether or not it exists yet."""
        stamps = {key: [stamp(f) for f in files_of(Path(item[key]))] for key in FILES if item.get(key)}
        return self.cache_dir / digest_of([self.made_by, stamps, item.get("box"), item.get("label")])[:24]

    def add(self, item: Mapping[str, Any]) -> Path:
        """Compute the entry of an item unless it exists.

        Returns:
            The folder of the entry.

        Raises:
            CacheError: the entry cannot be written.
            Exception: whatever the preprocessing raises.
        """
        folder = self.folder(item)
        if not folder.exists():
            ready = self.preprocessing(item)
            try:
                self._write(folder, _arrays(ready))
            except OSError as error:
                raise CacheError(
                    f"cache_dir {self.cache_dir}: expected a folder to write to, got '{error}'; free space, correct "
                    "its permissions, or choose another one with --cache_dir"
                ) from error
        return folder

    def _write(self, folder: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        with beside(folder) as partial:
            partial.mkdir(parents=True)
            for name, array in arrays.items():
                with (partial / f"{name}.npy").open("wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())  # written before the rename, so that a power cut leaves no empty files
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise

    def prepare(self) -> None:
        """Create the folder, and remove partial entries that no process is writing any more.

        Raises:
            CacheError: the folder cannot be created or written to.
        """
        try:
            remove_abandoned(writable_folder(self.cache_dir))
        except OSError as error:
            raise CacheError(
                f"cache_dir {self.cache_dir}: expected a folder to write to, got '{error}'; choose another one"
            ) from error

    def entries(self) -> Iterator[Path]:
        """Yield the folders of all entries, used or not."""
        yield from (folder for folder in sorted(self.cache_dir.iterdir()) if _ENTRY.fullmatch(folder.name))


class CachedScans(Dataset):
    """The scans of a datalist, read from a cache; missing entries are computed when they are first read.

    Args:
        data: datalist items, from :func:`...read.datalist.load_datalist` or from another program
            (:func:`...read.datalist.checked_items`); those that the cache has left out are dropped.
        cache: holds the preprocessed scans.
        transform: applied to each scan that is read; ``None`` for none.

    Raises:
        DatalistError: an item cannot be used.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache: ScanCache,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        items = checked_items(data)
        self.data = [item for item in items if cache.folder(item) not in cache.left_out] if cache.left_out else items
        self.cache, self.transform = cache, transform
        self._folders: dict[int, Path] = {}  # each is computed once: a DICOM folder has hundreds of files to stat

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        """Read one scan.

        Returns:
            The scan after the transform, which gets ``image`` (int16 HU), ``lung`` and, if there is one, ``mask``
            (uint8) as ``[I, J, K]`` memory maps; ``affine`` ``[4, 4]`` to RAS mm; ``lung_distance_mm`` ``[I', J', K']``
            and its ``lung_distance_affine``; ``nodule`` ``[N, 4]`` and ``label`` ``[N]``; ``voxel_mm`` ``[3]``, size
            of the file's voxels along the axes of ``image``; ``name``.

        Raises:
            CacheError, Exception: see :meth:`ScanCache.add`.
        """
        item = self.data[index]
        folder = self._folders.get(index) or self.cache.folder(item)
        self._folders[index] = folder
        if not folder.exists():
            logger.info("preprocessing %s", item["image"])
            folder = self.cache.add(item)
        mapped = {"image": "r", "lung": "r", "mask": "r"}
        arrays = {f.stem: np.load(f, mmap_mode=mapped.get(f.stem)) for f in sorted(folder.glob("*.npy"))}  # type: ignore[arg-type]
        scan = {"name": str(item["name"]), **arrays}
        return scan if self.transform is None else self.transform(scan)


class CachedToTensorsd(Transform):
    """Convert what :class:`CachedScans` returns to the tensors from which a whole-scan search starts.

    Writes two MetaTensors: ``image`` ``[1, I, J, K]``, float32 HU, and ``lung_distance_mm`` ``[1, I', J', K']``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key, affine in (("image", "affine"), ("lung_distance_mm", "lung_distance_affine")):
            array = torch.from_numpy(np.array(item[key], dtype=np.float32))[None]
            item[key] = MetaTensor(array, affine=torch.from_numpy(np.array(item.pop(affine), dtype=np.float64)))
        return item


def _arrays(ready: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that are cached for a preprocessed item; see :meth:`CachedScans.__getitem__`."""
    image, distance = ready["image"], ready["lung_distance_mm"]
    arrays: dict[str, npt.NDArray[Any]] = {
        "image": np.clip(np.round(np.asarray(image[0])), -32768, 32767).astype(np.int16),
        "affine": np.asarray(image.affine, dtype=np.float64),
        "voxel_mm": _voxel_mm(image),
        "lung": _lungs_on_grid(distance, image),
        "lung_distance_mm": np.asarray(distance[0], dtype=np.float32),
        "lung_distance_affine": np.asarray(distance.affine, dtype=np.float64),
        "nodule": np.asarray(ready["nodule"], dtype=np.float32),
        "label": np.asarray(ready["label"], dtype=np.int64),
    }
    return arrays | ({"mask": np.asarray(ready["mask"][0]).astype(np.uint8)} if "mask" in ready else {})


def _voxel_mm(image: MetaTensor) -> FloatArray:
    """Return the size of the voxels that were read, ``[3]``, along those axes of the image that they are closest to."""
    now = np.asarray(image.affine, dtype=np.float64)
    read = np.asarray(image.meta.get("original_affine", now), dtype=np.float64)
    along = np.abs(np.linalg.inv(now)[:3, :3] @ read[:3, :3]).argmax(axis=0)
    voxel_mm = np.empty(3)
    voxel_mm[along] = spacing_mm(read)
    return voxel_mm


def _lungs_on_grid(distance_mm: MetaTensor, image: MetaTensor) -> npt.NDArray[np.uint8]:
    """Resample the closed lungs, which were found on a coarse grid, to the grid of the image: 1 inside."""
    to_coarse = np.linalg.inv(np.asarray(distance_mm.affine)) @ np.asarray(image.affine)
    size = (image.shape[1], image.shape[2], image.shape[3])
    return (crop_by_affine(distance_mm[0].numpy(), to_coarse, size, order=1) < 1.0).astype(np.uint8)
