"""How the network is applied: numeric precision, and windows over a whole lung box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SlidingWindowInferer
from torch import Tensor

from .errors import UserError
from .network.blocks import COARSEST_STRIDE

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PrecisionError(UserError, ValueError):
    """A precision that does not exist, or not on this device."""


def choose_precision(precision: str, device: torch.device | str) -> torch.dtype:
    """The number type to compute in.

    ``auto`` takes bfloat16 where the processor multiplies it natively (CUDA from Ampere on; x86 with AVX512-BF16
    or AMX) and float32 elsewhere.

    Raises:
        PrecisionError: unknown name, or float16 on a CPU.
    """
    kind = torch.device(device).type
    if precision == "auto":
        if kind == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        able = torch.cpu.get_capabilities() if kind == "cpu" else {}
        native = any(able.get(name, False) for name in ("avx512_bf16", "amx_tile"))
        return torch.bfloat16 if native else torch.float32
    if precision not in PRECISIONS or (precision == "float16" and kind == "cpu"):
        usable = [name for name in PRECISIONS if name != "float16" or kind != "cpu"]
        raise PrecisionError(f"precision: expected one of {', '.join(['auto', *usable])} on {kind}, got {precision!r}")
    return PRECISIONS[precision]


class PrecisionInferer(Inferer):
    """Call another inferer under autocast; predictions come back in float32.

    Args:
        inferer: how to apply the network.
        precision: see :func:`choose_precision`.
        training: whether gradients are wanted, which float16 would round to zero.

    Raises:
        PrecisionError: float16 in training.
    """

    def __init__(self, inferer: Inferer, precision: str, training: bool = False) -> None:
        super().__init__()
        if training and precision == "float16":
            raise PrecisionError(
                "precision: expected auto, float32 or bfloat16 in training, got 'float16', in which small gradients "
                "become zero; use bfloat16"
            )
        self.inferer, self.precision, self.training = inferer, precision, training

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        dtype = choose_precision(self.precision, inputs.device)
        if self.training and dtype == torch.bfloat16 and breaks_bfloat16_gradients(inputs):
            if self.precision != "auto":
                raise PrecisionError(
                    f"precision bfloat16: expected crops of 48 voxels or more on a CPU, got {tuple(inputs.shape[2:])}; "
                    "raise crop_size, or use --precision float32"
                )
            dtype = torch.float32
        with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return self.inferer(inputs, network, *args, **kwargs).float()


def breaks_bfloat16_gradients(inputs: Tensor) -> bool:
    """Whether the coarsest level has two cells along an axis.

    PyTorch 2.13 computes wrong gradients of bfloat16 convolutions on a 2³ grid on CPUs (right on 1³, 3³, 4³).
    """
    return inputs.device.type == "cpu" and any(n // COARSEST_STRIDE == 2 for n in inputs.shape[2:])


class WindowError(UserError, ValueError):
    """Windows that cannot be stitched at the output's stride."""


class WindowInferer(SlidingWindowInferer):
    """MONAI's sliding window with Gaussian weights, for maps at a stride.

    Where a window or the step between windows is no multiple of the stride, MONAI stitches wrong values without a
    word; both are refused here.

    Args:
        window_size: ``[3]`` voxels.
        overlap: share of a window that it has in common with the next.
        stride: input voxels per output cell.

    Raises:
        WindowError: see above.
    """

    def __init__(self, window_size: Sequence[int], overlap: float, stride: int) -> None:
        steps = [edge * (1.0 - overlap) for edge in window_size]
        if not 0.0 <= overlap < 1.0 or any(int(n) % stride for n in (*window_size, *steps)):
            raise WindowError(
                f"window_size {list(window_size)} with window_overlap {overlap}: expected windows and steps that are "
                f"multiples of {stride} voxels, got steps of {[int(n) for n in steps]}; 0.25 or 0.5 fit 96"
            )
        super().__init__(roi_size=window_size, sw_batch_size=1, overlap=overlap, mode="gaussian")
