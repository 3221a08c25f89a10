"""How the network is applied: numeric precision, and tiles that cover the lungs."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.engines import default_prepare_batch
from monai.inferers import Inferer
from torch import Tensor, nn

from ..core.errors import SettingError
from ..network.blocks import COARSEST_STRIDE
from .tiles import BLOCK, Box, Tiling, batches, blocks_near, plan_tiles

logger = logging.getLogger(__name__)

BACKGROUND_LOGIT = -20.0  # of cells that are not searched: probability 2e-9
LEAST_BLOCKS = 64 // BLOCK  # shortest edge of a tile that is cut: 64 voxels
HALF_VOXEL = 0.5  # tolerance for rounded shares: 0.167 of 96 voxels counts as 16
LEAST_WEIGHT = 1e-3  # of a cell in the corner of a tile, relative to 1 at its centre

Apply = Callable[[Tensor], Tensor]  # applies the network to several tiles of one size

NATIVE_BFLOAT16 = (8, 0)  # compute capability of Ampere; a T4 or an RTX 20 has 7.5

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(precision: str, device: torch.device | str) -> torch.dtype:
    """Return the number type to compute in.

    ``auto`` chooses bfloat16 if the processor multiplies it natively (CUDA from Ampere on; x86 with AVX512-BF16 or
    AMX), otherwise float32.

    Raises:
        SettingError: the name is unknown, or is float16 on a CPU.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind == "cuda":
            return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
        able = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(able.get(name, False) for name in ("avx512_bf16", "amx_tile"))
        return torch.bfloat16 if native else torch.float32
    if precision not in PRECISIONS or (precision == "float16" and kind == "cpu"):
        usable = [name for name in PRECISIONS if name != "float16" or kind != "cpu"]
        raise SettingError(f"precision: expected one of {', '.join(['auto', *usable])} on {kind}, got {precision!r}")
    return PRECISIONS[precision]


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether a GPU multiplies bfloat16 in hardware (NVIDIA from Ampere on); others emulate it, slower than float32."""
    if torch.version.hip is not None:  # AMD numbers its GPUs differently
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cuda.get_device_capability(device) >= NATIVE_BFLOAT16


class PrecisionInferer(Inferer):
    """Call another inferer under autocast and return its predictions in float32.

    Args:
        inferer: applies the network.
        precision: see :func:`choose_precision`.
        training: whether gradients are needed, which float16 would round to zero. With ``auto``, float32 is used where
            bfloat16 gradients are wrong (:func:`breaks_bfloat16_gradients`).

    Raises:
        SettingError: the precision is unknown, or float16 in training; or, on a call, float16 on a CPU, or bfloat16
            where its gradients are wrong.
    """

    def __init__(self, inferer: Inferer, precision: str, training: bool = False) -> None:
        super().__init__()
        if training and precision == "float16":
            raise SettingError(
                "precision: expected auto, float32 or bfloat16 in training, got 'float16', in which small gradients "
                "become zero; use bfloat16"
            )
        if precision not in ("auto", *PRECISIONS):
            raise SettingError(f"precision: expected one of {', '.join(['auto', *PRECISIONS])}, got {precision!r}")
        self.inferer, self.precision, self.training = inferer, precision, training

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the last image, for its report."""
        return getattr(self.inferer, "remarks", ())

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        dtype = choose_precision(self.precision, inputs.device)
        if self.training and dtype == torch.bfloat16 and breaks_bfloat16_gradients(inputs):
            if self.precision != "auto":
                raise SettingError(
                    f"precision bfloat16: expected crops of 48 voxels or more on a CPU, got {tuple(inputs.shape[2:])}; "
                    "raise crop_size, or use --precision float32"
                )
            dtype = torch.float32
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return self.inferer(inputs, network, *args, **kwargs).float()


def prepare_scan(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Any, ...]:
    """Prepare a batch of whole scans, as MONAI's ``prepare_batch``; the distances to the lungs go to the inferer."""
    image, label = default_prepare_batch(dict(batch), device, non_blocking, **kwargs)
    return image, label, (), {"lung_distance_mm": batch["lung_distance_mm"]}


def breaks_bfloat16_gradients(inputs: Tensor) -> bool:
    """Whether bfloat16 gradients may be wrong: on a CPU, if the coarsest level has two cells along an axis.

    On CPUs, PyTorch 2.13 computes wrong gradients of bfloat16 convolutions on a 2³ grid (correct on 1³, 3³, 4³).
    """
    return inputs.device.type == "cpu" and any(n // COARSEST_STRIDE == 2 for n in inputs.shape[2:])


class TileInferer(Inferer):
    """Apply a network to tiles near the lungs, and stitch its maps with Gaussian weights.

    The tiles are those of :func:`.tiles.plan_tiles`. For a network whose attribute ``any_tile_size`` is true, they are
    cut to what they have to cover, and may be longer along one axis and shorter along another. The output of any other
    network depends on the tile's size; its tiles all have ``tile_size``.

    If a GPU has too little memory, the tiles go through the network one by one, and if that fails, through the network
    on the CPU. The tiles stay the same, and so does the result, up to rounding.

    Args:
        tile_size: ``[3]`` voxels, size of the largest tile.
        overlap: smallest share of ``tile_size`` that neighbouring tiles have in common, rounded up to whole blocks of 8
            voxels.
        stride: input voxels per output cell, a divisor of 8.
        reach_mm: what is farther from the lungs than this is not searched.
        at_once: number of tiles of one size that go through the network together.

    Attributes:
        remarks: remarks on the last image, for its report.

    Raises:
        SettingError: the tile size is not a multiple of :data:`..network.blocks.COARSEST_STRIDE` voxels, or the
            overlap is more than half, or the stride does not divide a block; or, on a call, there is not exactly one
            image, its size is not such a multiple or is smaller than a tile, or nothing in it is near the lungs.
        MemoryError: on a call, the memory does not suffice for a single tile, and there is no CPU to fall back to.

    Example:
        >>> def network(tile):
        ...     return torch.zeros(len(tile), 13, *(n // 2 for n in tile.shape[2:]))
        >>> search = TileInferer(tile_size=[64, 64, 64], overlap=0.25, stride=2)
        >>> search(torch.zeros(1, 1, 96, 64, 64), network).shape
        torch.Size([1, 13, 48, 32, 32])
    """

    def __init__(
        self, tile_size: Sequence[int], overlap: float, stride: int, reach_mm: float = math.inf, *, at_once: int = 1
    ) -> None:
        super().__init__()
        self.tile_blocks = tuple(int(n) // BLOCK for n in tile_size)
        if not 0.0 <= overlap <= 0.5 or any(n % COARSEST_STRIDE for n in tile_size) or not all(self.tile_blocks):
            raise SettingError(
                f"tile_size {list(tile_size)} with tile_overlap {overlap}: expected multiples of "
                f"{COARSEST_STRIDE} voxels, and an overlap from 0 to 0.5; 160 with 0.05 is a good choice"
            )
        if BLOCK % stride:
            raise SettingError(
                f"stride {stride}: expected a divisor of {BLOCK}, the voxels of a block; choose another network"
            )
        self.stride, self.reach_mm, self.at_once = stride, reach_mm, at_once
        wished = [math.ceil((n * overlap - HALF_VOXEL) / BLOCK) for n in tile_size]
        self.overlap_blocks = tuple(min(n, tile - 1) for n, tile in zip(wished, self.tile_blocks, strict=True))
        self.remarks: tuple[str, ...] = ()

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        lung_distance_mm: MetaTensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Search one image.

        Args:
            inputs: ``[1, C, I, J, K]``; a MetaTensor if distances are given.
            network: maps ``[B, C, I, J, K]`` to ``[B, C', I/s, J/s, K/s]``.
            args, kwargs: passed to the network.
            lung_distance_mm: ``[…, I', J', K']``, distance to the lungs, on a grid of its own; if it is missing, or
                ``inputs`` is not a MetaTensor, everything is searched.

        Returns:
            ``[1, C', I/s, J/s, K/s]`` float32. Cells outside all tiles are background: :data:`BACKGROUND_LOGIT` in the
            first channel, 0 in the others.
        """
        shape = tuple(inputs.shape[2:])
        blocks = tuple(n // BLOCK for n in shape)
        is_whole = all(n % COARSEST_STRIDE == 0 for n in shape)
        is_large = all(n >= tile for n, tile in zip(blocks, self.tile_blocks, strict=True))
        if inputs.shape[0] != 1 or not is_whole or not is_large:
            raise SettingError(
                f"image: expected one whose edges are multiples of {COARSEST_STRIDE} voxels, at least a tile of "
                f"{[n * BLOCK for n in self.tile_blocks]}, got {list(inputs.shape)}; pad it"
            )
        wanted = np.ones(blocks, dtype=bool)
        if lung_distance_mm is not None and isinstance(inputs, MetaTensor):
            wanted = blocks_near(lung_distance_mm, self.reach_mm, inputs.affine, shape, BLOCK)
        may_cut = getattr(network, "any_tile_size", False)
        least = tuple(min(n, LEAST_BLOCKS) for n in self.tile_blocks) if may_cut else self.tile_blocks
        tiles = plan_tiles(wanted, Tiling(self.tile_blocks, self.overlap_blocks, least))
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return self._within_memory(image, tiles, network, lambda batch: network(batch, *args, **kwargs))

    def _within_memory(self, image: Tensor, tiles: list[Box], network: Callable[..., Any], apply: Apply) -> Tensor:
        """Call :meth:`_stitch`, and each time that memory runs out, repeat it with less."""
        self.remarks = ()
        for at_once in dict.fromkeys((self.at_once, 1)):
            with contextlib.suppress(torch.OutOfMemoryError):
                return self._stitch(image, tiles, apply, at_once)
            # Here the exception is released, and with it the tensors that its frames held.
            self._remark(f"{image.device} has too little memory for {at_once} tiles of the network at once")
            torch.cuda.empty_cache()
        if is_cpu(image.device) or not isinstance(network, nn.Module):
            raise MemoryError(f"{image.device}: too little memory for one tile of the network")
        self._remark("the network ran on the CPU instead, which is slower")
        network.to("cpu")
        try:
            return self._stitch(image.cpu(), tiles, apply, 1)
        finally:
            network.to(image.device)

    def _remark(self, remark: str) -> None:
        logger.warning("%s", remark)
        self.remarks += (remark,)

    def _stitch(self, image: Tensor, tiles: list[Box], apply: Apply, at_once: int) -> Tensor:
        """Stitch the tiles' maps: a cell is the mean of the tiles that contain it, weighted by how central it is."""
        cells = [n // self.stride for n in image.shape[2:]]
        weights = torch.zeros(cells, device=image.device)
        maps: Tensor | None = None
        for group in batches(tiles, at_once):
            preds = apply(torch.cat([image[:, :, *_scaled(tile, BLOCK)] for tile in group])).float()
            if maps is None:
                maps = torch.zeros([preds.shape[1], *cells], device=image.device)
            weight = gaussian(tuple(preds.shape[2:]), image.device)
            for tile, pred in zip(group, preds, strict=True):
                place = _scaled(tile, BLOCK // self.stride)
                maps[:, *place].addcmul_(pred, weight)
                weights[place].add_(weight)
        if maps is None:
            raise SettingError("image: expected something near the lungs to search, got nothing")
        maps /= weights.clamp_min(LEAST_WEIGHT)
        maps[0][weights == 0] = BACKGROUND_LOGIT
        return maps[None]


def _scaled(tile: Box, factor: int) -> Box:
    return tuple(slice(part.start * factor, part.stop * factor) for part in tile)


def is_cpu(device: torch.device) -> bool:
    """Whether the device is the CPU, so that there is no other device to fall back to."""
    return device.type == "cpu"


def gaussian(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return MONAI's Gaussian weights of a tile's cells: ``[I, J, K]``, 1 at the centre, >= :data:`LEAST_WEIGHT`."""
    weight = compute_importance_map(shape, mode="gaussian", sigma_scale=0.125, device=device, dtype=torch.float32)
    return weight.clamp_min(LEAST_WEIGHT)
