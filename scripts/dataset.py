"""Training data: preprocessed scans kept on disk, and an endless, reproducible stream of crops from them."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from torch.utils.data import Dataset, Sampler

from .datalist import DatalistError
from .transforms.crops import crop_by_affine
from .transforms.insertion import PARENCHYMA_HU, size_weight
from .transforms.nodules import NODULE

logger = logging.getLogger(__name__)

CACHE_VERSION = 2  # raised whenever the same scan and settings give other arrays


class CachedScans(Dataset):
    """Scans as the preprocessing leaves them, each computed once and then read from disk as memory maps.

    An entry is a folder of plain arrays, one for each key that :meth:`__getitem__` gives, named by a hash of the item,
    the size and time of its files, and ``settings``. It appears by a rename, so an interrupted run leaves no half
    entry.

    Args:
        data: datalist items.
        preprocessing: gives ``image`` ``[1, I, J, K]``, ``lung_distance_mm``, ``nodule``, ``label`` and, when the item
            has one, ``mask``.
        cache_dir: where entries live.
        settings: text that changes whenever the preprocessing's result does.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        cache_dir: str,
        settings: str,
    ) -> None:
        self.data = list(data)
        self.preprocessing = preprocessing
        self.cache_dir = Path(cache_dir)
        self.settings = settings
        self._folders: dict[int, Path] = {}  # looked up once: a DICOM folder has hundreds of files to stat

    def __len__(self) -> int:
        return len(self.data)

    def _folder(self, item: Mapping[str, Any]) -> Path:
        files = [f for key in ("image", "mask") if item.get(key) for f in _files_of(Path(item[key]))]
        stamps = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        text = json.dumps([CACHE_VERSION, self.settings, stamps, item.get("box"), item.get("label")], sort_keys=True)
        return self.cache_dir / hashlib.sha256(text.encode()).hexdigest()[:24]

    def _compute(self, item: Mapping[str, Any], folder: Path) -> None:
        logger.info("preprocessing %s", item["image"])
        ready = self.preprocessing(item)
        rows = len(ready["label"])
        mask = np.asarray(ready["mask"][0]) if "mask" in ready else None
        if mask is not None and mask.max(initial=0) > rows:
            raise DatalistError(
                f"{item['mask']}: expected values 0 to {rows}, a nodule's being its number in the datalist from 1, "
                f"got {mask.max():g}; correct the mask or the datalist's boxes"
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, array in _arrays(ready).items():
            np.save(partial / f"{name}.npy", array)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)  # another process was faster

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one scan.

        Returns:
            ``image`` (int16 HU), ``lung`` and, when there is one, ``mask`` (uint8), ``[I, J, K]`` memory maps;
            ``affine`` ``[4, 4]`` to RAS mm; ``lung_distance_mm`` ``[I', J', K']`` and its ``lung_distance_affine``;
            ``nodule`` ``[N, 4]`` and ``label`` ``[N]``; ``name``, the item's or its file's.

        Raises:
            DatalistError: the mask holds a value that belongs to no nodule of the item.
        """
        item = self.data[index]
        folder = self._folders.get(index) or self._folder(item)
        self._folders[index] = folder
        if not folder.exists():
            self._compute(item, folder)
        mapped = {"image": "r", "lung": "r", "mask": "r"}
        arrays = {f.stem: np.load(f, mmap_mode=mapped.get(f.stem)) for f in sorted(folder.glob("*.npy"))}  # type: ignore[arg-type]
        return {"name": str(item.get("name", Path(item["image"]).name)), **arrays}


class CachedToTensorsd(Transform):
    """Turn what :class:`CachedScans` gives into the tensors that a whole-scan search starts from.

    Writes two MetaTensors: ``image`` ``[1, I, J, K]``, float32 HU, and ``lung_distance_mm`` ``[1, I', J', K']``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key, affine in (("image", "affine"), ("lung_distance_mm", "lung_distance_affine")):
            array = torch.from_numpy(np.array(item[key], dtype=np.float32))[None]
            item[key] = MetaTensor(array, affine=torch.from_numpy(np.array(item.pop(affine), dtype=np.float64)))
        return item


def _files_of(path: Path) -> list[Path]:
    """The files a scan consists of: all of a DICOM folder; of a MetaImage, header and data."""
    if path.is_dir():
        return sorted(f for f in path.rglob("*") if f.is_file())
    if path.suffix.lower() in (".mhd", ".nhdr"):
        return sorted(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    return [path]


def _arrays(ready: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """What is kept of a preprocessed item; see :meth:`CachedScans.__getitem__`."""
    image, distance = ready["image"], ready["lung_distance_mm"]
    arrays: dict[str, npt.NDArray[Any]] = {
        "image": np.clip(np.round(np.asarray(image[0])), -32768, 32767).astype(np.int16),
        "affine": np.asarray(image.affine, dtype=np.float64),
        "lung": _lungs_on_grid(distance, image),
        "lung_distance_mm": np.asarray(distance[0], dtype=np.float32),
        "lung_distance_affine": np.asarray(distance.affine, dtype=np.float64),
        "nodule": np.asarray(ready["nodule"], dtype=np.float32),
        "label": np.asarray(ready["label"], dtype=np.int64),
    }
    return arrays | ({"mask": np.asarray(ready["mask"][0]).astype(np.uint8)} if "mask" in ready else {})


class CropDataset(Dataset):
    """Crop ``index`` of an endless stream: the same index gives the same crop, in any process, in any order.

    A crop lies around a nodule (drawn by size, :func:`..transforms.insertion.size_weight`) or around a random piece
    of parenchyma of a random scan; an item's ``weight`` (default 1) says how often that scan is drawn for the latter.

    Args:
        scans: where crops are cut from.
        transform: applied to each crop's item (``image``, ``nodule``, ``label``, ``centre``, maybe ``mask``).
        seed: of the stream.
        nodule_share: share of crops around a listed nodule.

    Raises:
        ValueError: no scan, or none with a weight.
    """

    def __init__(self, scans: CachedScans, transform: Compose, *, seed: int, nodule_share: float) -> None:
        if len(scans) == 0:
            raise DatalistError(
                "training list: expected at least one scan, got none; --dataset_dir must hold a datalist.json with a "
                "training section (make one with python -m scripts.prepare)"
            )
        self.scans, self.transform, self.seed = scans, transform, seed
        self.nodules: list[tuple[int, npt.NDArray[np.float32]]] = []
        for number in range(len(scans)):
            item = scans[number]
            rows = np.asarray(item["nodule"])[np.asarray(item["label"]) == NODULE]
            self.nodules += [(number, row) for row in rows]
        scan_weights = np.array([float(item.get("weight", 1.0)) for item in scans.data])
        if scan_weights.min() < 0 or scan_weights.max() == 0:
            raise ValueError(
                "training list: expected weights from 0, one of them above 0, got "
                f"{sorted(set(scan_weights.tolist()))}; correct the datalists"
            )
        self._scan_chances = scan_weights / scan_weights.sum()
        weights = np.array([size_weight(float(row[3])) for _, row in self.nodules])
        self._nodule_chances = weights / max(weights.sum(), 1e-9)
        self.nodule_share = nodule_share if self.nodules else 0.0

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.nodule_share:
            scan, row = self.nodules[int(rng.choice(len(self.nodules), p=self._nodule_chances))]
            item = self.scans[scan]
            item["centre"] = row[:3]
        else:
            item = self.scans[int(rng.choice(len(self.scans), p=self._scan_chances))]
            item["centre"] = _parenchyma_voxel(item, rng)
        item["has_mask"] = "mask" in item or not (np.asarray(item["label"]) == NODULE).any()
        self.transform.set_random_state(int(rng.integers(2**31)))
        return dict(self.transform(item))


def _lungs_on_grid(distance_mm: MetaTensor, image: MetaTensor) -> npt.NDArray[np.uint8]:
    """The closed lungs, found on a coarse grid, on the grid of the image: 1 inside."""
    to_coarse = np.linalg.inv(np.asarray(distance_mm.affine)) @ np.asarray(image.affine)
    size = (image.shape[1], image.shape[2], image.shape[3])
    return (crop_by_affine(distance_mm[0].numpy(), to_coarse, size, order=1) < 1.0).astype(np.uint8)


def _parenchyma_voxel(item: Mapping[str, Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A random voxel of aerated lung; after 200 draws any voxel."""
    image_hu, lung = item["image"], item["lung"]
    for _ in range(200):
        voxel = rng.integers(0, image_hu.shape)
        i, j, k = (slice(max(v - 2, 0), v + 3) for v in voxel)
        if lung[tuple(voxel)] and PARENCHYMA_HU[0] < image_hu[i, j, k].mean() < PARENCHYMA_HU[1]:
            break
    return voxel


class EpochSampler(Sampler[int]):
    """Consecutive numbers of an endless stream, ``length`` per epoch; ranks take turns.

    Call :meth:`set_epoch` with the 1-based epoch before it starts, so that a resumed run goes on where it stopped.

    Args:
        length: crops per epoch and rank.
        rank, ranks: this process among all.
    """

    def __init__(self, length: int, rank: int = 0, ranks: int = 1) -> None:
        self.length, self.rank, self.ranks = length, rank, ranks
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        first = (self.epoch - 1) * self.length * self.ranks
        return iter(range(first + self.rank, first + self.length * self.ranks, self.ranks))
