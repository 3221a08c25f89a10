"""What is lung, airway, body and surroundings: a small network on a 4 mm copy of the scan.

The copy is made of cell means, so slices of 0.5 or 5 mm, sharp and soft kernels look alike on it. The network sees all
of it at once: what lies below the diaphragm, between arm and chest or on the couch is told by where it lies, not by its
density alone.
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

from ..core.errors import UserError
from ..core.geometry import FloatArray, spacing_mm
from ..core.labels import Part, Parts

CELL_MM = 4.0  # fine enough for a lung's border to a few millimetres, a thousandth of a second per slice
HU_RANGE = (-1024.0, 400.0)  # becomes -1 to 1: room air to contrast medium and spongy bone
COARSEST_CELLS = 16  # cells of the network's coarsest level along each axis
TISSUE_ABOVE_HU = -500.0  # the mean of a cell: denser than lung, clothes and foam
ROOM_CELLS = 8  # around it
FEWEST_CELLS = 32  # what it sees at least: the norm of the coarsest level needs more than one value
SLAB_BLOCKS = 4  # of blocks averaged at once: they stay in the cache, and a volume in float32 is twice the scan
BUNDLE_ROOT = Path(__file__).resolve().parents[2]
RELEASED = str(BUNDLE_ROOT / "models" / "lung_search.pt")


class LungWeightsError(UserError, ValueError):
    """Weights that are not those of the lung network."""


@dataclass(frozen=True)
class CoarseScan:
    """A scan on the grid of the search.

    Attributes:
        hu: ``[I', J', K']`` float32, means of the cells.
        step: ``[3]`` voxels of the scan per cell, fractional.
        affine_ras: ``[4, 4]``, cell to RAS mm.
    """

    hu: npt.NDArray[np.float32]
    step: FloatArray
    affine_ras: FloatArray

    @property
    def cell_mm(self) -> FloatArray:
        """``[3]``: about :data:`CELL_MM`, or the scan's own spacing where that is coarser."""
        return spacing_mm(self.affine_ras)


class LungSearch:
    """Find the parts of a chest.

    Args:
        checkpoint: the weights, a plain state dict; ``""`` for none (a network to be trained).
        network: ``[1, 1, I', J', K']``, scaled HU, to ``[1, 5, I', J', K']``, logits of :class:`Part`; default
            :func:`lung_network`.

    Raises:
        LungWeightsError: no such file, or not the network's weights.
    """

    def __init__(self, checkpoint: str = RELEASED, network: nn.Module | None = None) -> None:
        self.network = lung_network() if network is None else network
        if checkpoint:
            _load(self.network, checkpoint)
        self.network.eval()

    def __call__(self, scan: CoarseScan) -> Parts:
        """The parts of a scan in RAS order: ``[I', J', K']`` uint8, values of :class:`Part`."""
        parts = np.full(scan.hu.shape, Part.OUTSIDE, dtype=np.uint8)
        box = _around_tissue(scan.hu)
        cells = torch.from_numpy(np.ascontiguousarray(scan.hu[box]))[None, None]
        with torch.inference_mode():
            logits = self.network(scaled(cells).to(memory_format=torch.channels_last_3d))[0]
            best = logits.max(dim=0).indices  # argmax takes a hundred times as long here
        parts[box] = best[tuple(slice(n) for n in cells.shape[2:])].numpy()
        return parts


def _around_tissue(hu: npt.NDArray[np.float32]) -> tuple[slice, ...]:
    """The box of what is denser than air, and some room: how much air a scan shows beyond must not matter."""
    dense = hu > TISSUE_ABOVE_HU
    if not dense.any():
        return tuple(slice(n) for n in hu.shape)
    ends = [np.flatnonzero(dense.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(int(at[0]) - ROOM_CELLS, 0), int(at[-1]) + 1 + ROOM_CELLS) for at in ends)


def lung_network(channels: Sequence[int] = (8, 16, 24, 32, 48)) -> nn.Module:
    """MONAI's U-Net of about 160 000 parameters that the released weights belong to.

    Args:
        channels: of its five levels, each half as fine as the one before.
    """
    strides = (2,) * (len(channels) - 1)
    norm = ("instance", {"affine": True})  # of one scan at a time, the same in training and in use
    network = UNet(3, 1, len(Part), tuple(channels), strides, num_res_units=0, act="relu", norm=norm)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def scaled(cells_hu: Tensor) -> Tensor:
    """Map :data:`HU_RANGE` to [-1, 1], and repeat the border to whole cells of the network's coarsest level.

    Args:
        cells_hu: ``[B, 1, I', J', K']``, HU.
    """
    low, high = HU_RANGE
    wanted = [max(-(-n // COARSEST_CELLS) * COARSEST_CELLS, FEWEST_CELLS) for n in cells_hu.shape[2:]]
    missing = [side for n, m in zip(cells_hu.shape[:1:-1], reversed(wanted), strict=True) for side in (0, m - n)]
    return F.pad(((cells_hu - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0), missing, mode="replicate")


def coarse_scan(image: npt.NDArray[Any], affine_ras: FloatArray) -> CoarseScan:
    """Average a volume over cells of :data:`CELL_MM`; along an axis of longer voxels it is interpolated.

    Args:
        image: ``[I, J, K]``, any number type, in any order in memory.
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
    """Means of blocks of whole voxels, a slab at a time."""
    thick, *sides = (int(n) for n in block)
    means = []
    for start in range(0, len(image), thick * SLAB_BLOCKS):
        slab = torch.from_numpy(np.ascontiguousarray(image[start : start + thick * SLAB_BLOCKS], dtype=np.float32))
        kernel = (min(thick, len(slab)), *sides)
        means.append(F.avg_pool3d(slab[None], kernel, ceil_mode=True, count_include_pad=False)[0])
    return torch.cat(means)


def _shares(blocks: int, step: float, cells: int) -> Tensor:
    """``[cells, blocks]``: how much of each block goes into the mean of a cell ``step`` blocks long."""
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
    except Exception as error:  # torch raises many kinds for a damaged or strange file
        raise LungWeightsError(
            f"lung_checkpoint {path}: expected the weights of the lung network (a state dict), got: "
            f"{str(error).splitlines()[0]}; give models/lung_search.pt, or what train_lungs.json wrote"
        ) from error
