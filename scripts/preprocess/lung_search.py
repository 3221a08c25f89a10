"""Labelling of lungs, airway, body and surroundings by a small network on a 4 mm copy of the scan.

The copy consists of cell means, so that slices of 0.5 or 5 mm, and sharp and soft kernels, look alike on it. The
network sees the whole copy at once: it recognises what lies below the diaphragm, between arm and chest or on the couch
by its position, not by its density alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from ..core.errors import UserError, line_of
from ..core.geometry import FloatArray, spacing_mm
from ..core.labels import Part, Parts
from ..core.paths import BUNDLE_ROOT

CELL_MM = 4.0  # fine enough to find a lung's border to within a few millimetres, in about 1 ms per slice
HU_RANGE = (-1024.0, 400.0)  # is scaled to [-1, 1]: from room air to contrast medium and spongy bone
COARSEST_CELLS = 16  # cells of the copy per cell of the network's coarsest level, along each axis
TISSUE_ABOVE_HU = -500.0  # mean of a cell: denser than lung, clothes and foam
ROOM_CELLS = 8  # margin around the tissue
FEWEST_CELLS = 32  # smallest size that the network sees: the coarsest level's norm needs more than one value
# Layers of blocks averaged at once: they fit in the cache. A whole volume in float32 would take twice the memory.
SLAB_BLOCKS = 4
RELEASED = str(BUNDLE_ROOT / "models" / "lung_search.pt")


class LungWeightsError(UserError, ValueError):
    """A file does not contain the weights of the lung network."""


@dataclass(frozen=True)
class CoarseScan:
    """A scan on the coarse grid of the lung search.

    Attributes:
        hu: ``[I', J', K']`` float32, mean of each cell, HU.
        step: ``[3]`` voxels of the scan per cell, fractional.
        affine_ras: ``[4, 4]``, cell to RAS mm.
    """

    hu: npt.NDArray[np.float32]
    step: FloatArray
    affine_ras: FloatArray

    @property
    def cell_mm(self) -> FloatArray:
        """Size of a cell, ``[3]`` mm: about :data:`CELL_MM`, such that whole cells fill the scan."""
        return spacing_mm(self.affine_ras)


class LungSearch:
    """Find the parts of a chest.

    Args:
        checkpoint: path of the weights, a plain state dict; ``""`` for none (a network to be trained).
        network: maps scaled HU ``[1, 1, I', J', K']`` to logits of :class:`Part` ``[1, 5, I', J', K']``; default
            :func:`lung_network`.

    Raises:
        LungWeightsError: the file does not exist or does not contain the network's weights.
    """

    def __init__(self, checkpoint: str = RELEASED, network: nn.Module | None = None) -> None:
        self.network = lung_network() if network is None else network
        if checkpoint:
            _load(self.network, checkpoint)
        self.network.eval()

    def __call__(self, scan: CoarseScan) -> Parts:
        """Return the parts of a scan with axes in RAS order: ``[I', J', K']`` uint8, values of :class:`Part`."""
        parts = np.full(scan.hu.shape, Part.OUTSIDE, dtype=np.uint8)
        box = _around_tissue(scan.hu)
        cells = torch.from_numpy(np.ascontiguousarray(scan.hu[box]))[None, None]
        with torch.inference_mode():
            logits = self.network(scaled(cells).to(memory_format=torch.channels_last_3d))[0]
            best = logits.max(dim=0).indices  # argmax takes a hundred times as long here
        parts[box] = best[tuple(slice(n) for n in cells.shape[2:])].numpy()
        return parts


def _around_tissue(hu: npt.NDArray[np.float32]) -> tuple[slice, ...]:
    """Return the box of the tissue plus :data:`ROOM_CELLS`, so that the amount of air around it does not matter."""
    dense = hu > TISSUE_ABOVE_HU
    if not dense.any():
        return tuple(slice(n) for n in hu.shape)
    ends = [np.flatnonzero(dense.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(int(at[0]) - ROOM_CELLS, 0), int(at[-1]) + 1 + ROOM_CELLS) for at in ends)


def lung_network(channels: Sequence[int] = (8, 16, 24, 32, 48)) -> nn.Module:
    """Build MONAI's U-Net with about 160 000 parameters, which the released weights belong to.

    Args:
        channels: channels of its five levels, each at half the resolution of the one before.
    """
    strides = (2,) * (len(channels) - 1)
    norm = ("instance", {"affine": True})  # per scan, so the same in training and in use
    network = UNet(3, 1, len(Part), tuple(channels), strides, num_res_units=0, act="relu", norm=norm)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def scaled(cells_hu: Tensor) -> Tensor:
    """Scale :data:`HU_RANGE` to [-1, 1], and pad with the border to whole cells of the network's coarsest level.

    Args:
        cells_hu: ``[B, 1, I', J', K']``, HU.

    Returns:
        The padded cells; each axis is a multiple of :data:`COARSEST_CELLS` and at least :data:`FEWEST_CELLS` long.
    """
    low, high = HU_RANGE
    wanted = [max(-(-n // COARSEST_CELLS) * COARSEST_CELLS, FEWEST_CELLS) for n in cells_hu.shape[2:]]
    missing = [side for n, m in zip(cells_hu.shape[:1:-1], reversed(wanted), strict=True) for side in (0, m - n)]
    return F.pad(((cells_hu - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0), missing, mode="replicate")


def coarse_scan(image: npt.NDArray[Any], affine_ras: FloatArray) -> CoarseScan:
    """Average a volume over cells of :data:`CELL_MM`; along an axis with longer voxels it is interpolated instead.

    Args:
        image: ``[I, J, K]``, of any number type, in any memory order.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
    """
    slowest_first = np.argsort([-abs(stride) for stride in image.strides], kind="stable")
    turned, voxel_mm = image.transpose(slowest_first), spacing_mm(affine_ras)[slowest_first]
    shape = np.array(turned.shape)
    block = np.clip((CELL_MM / 2.0 / voxel_mm).astype(np.int64), 1, shape)
    cells = np.maximum(np.round(shape * voxel_mm / CELL_MM).astype(np.int64), 1)
    step = shape / cells
    values = _block_means(turned, block)
    for axis in range(3):
        shares = _shares(values.shape[axis], float(step[axis] / block[axis]), int(cells[axis]))
        values = torch.tensordot(values, shares, ([axis], [1])).movedim(-1, axis)
    back = np.argsort(slowest_first)
    step = step[back]
    affine = affine_ras @ np.diag([*step, 1.0])
    affine[:3, 3] = affine_ras[:3, :3] @ ((step - 1.0) / 2.0) + affine_ras[:3, 3]
    return CoarseScan(np.ascontiguousarray(values.numpy().transpose(back)), step, affine)


def _block_means(image: npt.NDArray[Any], block: npt.NDArray[np.int64]) -> Tensor:
    """Average blocks of whole voxels, one slab at a time."""
    thick, *sides = (int(n) for n in block)
    means = []
    for start in range(0, len(image), thick * SLAB_BLOCKS):
        slab = torch.from_numpy(np.ascontiguousarray(image[start : start + thick * SLAB_BLOCKS], dtype=np.float32))
        kernel = (min(thick, len(slab)), *sides)
        means.append(F.avg_pool3d(slab[None], kernel, ceil_mode=True, count_include_pad=False)[0])
    return torch.cat(means)


def _shares(blocks: int, step: float, cells: int) -> Tensor:
    """Return the weight of each block in the mean of each cell, which is ``step`` blocks long: ``[cells, blocks]``."""
    edges = np.arange(cells + 1) * step
    if step >= 1.0:
        low = np.maximum(edges[:-1, None], np.arange(blocks))
        shares = np.clip(np.minimum(edges[1:, None], np.arange(blocks) + 1.0) - low, 0.0, None)
    else:
        middle = np.clip((edges[:-1] + edges[1:] - 1.0) / 2.0, 0.0, blocks - 1.0)
        shares = np.clip(1.0 - np.abs(middle[:, None] - np.arange(blocks)), 0.0, None)
    return torch.from_numpy((shares / shares.sum(axis=1, keepdims=True)).astype(np.float32))


def _load(network: nn.Module, checkpoint: str) -> None:
    path = Path(checkpoint)
    if not path.is_file():
        raise LungWeightsError(
            f"lung_checkpoint {path}: expected the weights of the lung network, got no such file; give "
            "models/lung_search.pt"
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many types of exception for a damaged or foreign file
        raise LungWeightsError(
            f"lung_checkpoint {path}: expected the weights of the lung network (a state dict), got: "
            f"{line_of(error)}; give models/lung_search.pt, or what train_lungs.json wrote"
        ) from error
