"""Training data: an endless, reproducible stream of crops from cached scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from ..core.geometry import FloatArray, apply_affine, swap_lps_ras
from ..core.labels import NODULE
from ..read.datalist import DatalistError
from .cache import CachedScans, ScanCache
from .insertion import PARENCHYMA_HU, size_weight


class CropDataset(Dataset):
    """An endless stream of crops: the same index gives the same crop, in any process and in any order.

    A crop is centred near a false finding (an item's ``false_findings``, ``[[x, y, z], …]``, LPS mm), near a nodule
    (drawn by size, :func:`.insertion.size_weight`) or near random parenchyma of a random scan. An item's ``weight``
    (default 1) sets how often its scan is drawn for the latter.

    Args:
        data: datalist items, see :class:`.cache.CachedScans`.
        cache: holds the preprocessed scans.
        transform: applied to the item of each crop (``image``, ``lung``, ``nodule``, ``label``, ``centre``
            and, if the scan has one, ``mask``).
        seed: of the stream.
        nodule_share: of the other crops, the share centred near an annotated nodule; without any nodule it is 0.
        false_share: share of crops that are centred near a false finding; without any it is 0.

    Raises:
        DatalistError: there is no scan, a weight is negative, or all weights are 0.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        cache: ScanCache,
        transform: Compose,
        *,
        seed: int,
        nodule_share: float,
        false_share: float = 0.0,
    ) -> None:
        scans = CachedScans(data, cache)
        if len(scans) == 0:
            raise DatalistError(
                "training list: expected at least one scan, got none; --dataset_dir must hold a datalist.json with a "
                "training section (make one with python -m scripts.prepare)"
            )
        self.scans, self.transform, self.seed = scans, transform, seed
        self.nodules: list[tuple[int, npt.NDArray[np.float32]]] = []
        self.false_findings: list[tuple[int, FloatArray]] = []
        for number in range(len(scans)):
            item = scans[number]
            rows = np.asarray(item["nodule"])[np.asarray(item["label"]) == NODULE]
            self.nodules += [(number, row) for row in rows]
            places_lps_mm = np.reshape(scans.data[number].get("false_findings", []), (-1, 3))
            places = apply_affine(np.linalg.inv(item["affine"]), swap_lps_ras(places_lps_mm))
            self.false_findings += [(number, place) for place in places]
        scan_weights = np.array([float(item.get("weight", 1.0)) for item in scans.data])
        if scan_weights.min() < 0 or scan_weights.max() == 0:
            raise DatalistError(
                "training list: expected weights from 0, one of them above 0, got "
                f"{sorted(set(scan_weights.tolist()))}; correct the datalists"
            )
        self._scan_chances = scan_weights / scan_weights.sum()
        weights = np.array([size_weight(float(row[3])) for _, row in self.nodules])
        self._nodule_chances = weights / max(weights.sum(), 1e-9)
        self.nodule_share = nodule_share if self.nodules else 0.0
        self.false_share = false_share if self.false_findings else 0.0

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, index])
        if self.false_share and rng.random() < self.false_share:
            scan, centre = self.false_findings[int(rng.integers(len(self.false_findings)))]
            item = self.scans[scan]
            item["centre"] = centre
        elif rng.random() < self.nodule_share:
            scan, row = self.nodules[int(rng.choice(len(self.nodules), p=self._nodule_chances))]
            item = self.scans[scan]
            item["centre"] = row[:3]
        else:
            item = self.scans[int(rng.choice(len(self.scans), p=self._scan_chances))]
            item["centre"] = _parenchyma_voxel(item, rng)
        self.transform.set_random_state(int(rng.integers(2**31)))
        return dict(self.transform(item))


def _parenchyma_voxel(item: Mapping[str, Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random voxel of aerated lung, or any voxel if 200 draws find none."""
    image_hu, lung = item["image"], item["lung"]
    for _ in range(200):
        voxel = rng.integers(0, image_hu.shape)
        i, j, k = (slice(max(v - 2, 0), v + 3) for v in voxel)
        if lung[tuple(voxel)] and PARENCHYMA_HU[0] < image_hu[i, j, k].mean() < PARENCHYMA_HU[1]:
            break
    return voxel


class EpochSampler(Sampler[int]):
    """Consecutive indices of an endless stream, ``length`` per epoch and rank; the ranks take turns.

    Call :meth:`set_epoch` with the 1-based epoch number before each epoch, so that a resumed run continues where it
    stopped.

    Args:
        length: crops per epoch and rank.
        rank, ranks: index of this process, and number of processes.
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
