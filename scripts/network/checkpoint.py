"""Weights into networks, and out of them."""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..core.devices import checked_device
from ..core.errors import UserError
from ..core.files import writable_folder, write_bytes

OLD_NAME = "preset_name"  # weights of 0.2 and 0.3 have a tensor of this name that belongs to no layer


class OneDnnConv3d(nn.Conv3d):
    """A convolution that on a CPU is always oneDNN's.

    In float32 PyTorch multiplies a single image of few channels or cells, or by a kernel of 1³ in one thread, with code
    of its own, which takes up to ten times as long (``use_mkldnn`` in its Convolution.cpp).

    Args:
        like: the convolution whose parameters it takes over, padded with zeros by numbers.
    """

    def __init__(self, like: nn.Conv3d) -> None:
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # type: ignore[arg-type]
            like.stride,  # type: ignore[arg-type]
            like.padding,  # type: ignore[arg-type]
            like.dilation,  # type: ignore[arg-type]
            like.groups,
            device="meta",
        )
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if torch.compiler.is_compiling() or not is_plain:  # a compiler chooses for itself
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not belong to the network."""


def ready_network(
    network: nn.Module, device: torch.device | str, checkpoint: str = "", *, fold: bool = False
) -> nn.Module:
    """Load weights, and place the network for fast convolutions.

    Args:
        network: as its configuration builds it.
        device: where it shall run.
        checkpoint: path of a state dict (plain tensors); empty for none.
        fold: only evaluate it: see :func:`folded`.

    Returns:
        The same network (or its folded copy) on the device, in channels-last memory format.

    Raises:
        CheckpointError: no such file, no state dict of plain tensors, or one of another network.
        DeviceError: a device that is not there.
    """
    device = checked_device(device)
    if checkpoint:
        load_weights(network, checkpoint)
    if fold:
        network = folded(network)
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation that computes the same in less time.

    Each batch norm is folded into the convolution before it, and convolutions are :class:`OneDnnConv3d`. The copy's
    state dict is not that of a checkpoint, and training it is another thing.
    """
    network = copy.deepcopy(network).eval()
    for members in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for n, (convolution, norm) in enumerate(itertools.pairwise(list(members))):
            if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                members[n], members[n + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    for parent in list(network.modules()) if torch.backends.mkldnn.is_available() else ():
        for name, child in parent.named_children():
            if type(child) is nn.Conv3d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                setattr(parent, name, OneDnnConv3d(child))
    return network


def load_weights(network: nn.Module, checkpoint: str) -> None:
    """Load a state dict into ``network``, which stays as it is when that fails; see :func:`ready_network`."""
    state, own = without_old_name(_read_state(checkpoint)), network.state_dict()
    wrong = [n for n in own if n not in state or not _fits(state[n], own[n])]
    extra = [n for n in state if n not in own]
    if wrong or extra:
        raise CheckpointError(
            f"checkpoint {checkpoint}: expected the {len(own)} tensors of {type(network).__name__}, got {len(state)}, "
            f"of which {len(extra)} do not belong to it; {len(wrong)} are missing or of another shape "
            f"(first: {_difference((wrong + extra)[0], own, state)}). Use the weights of this network, or the network "
            "of these weights."
        )
    network.load_state_dict(state)


def without_old_name(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict without the tensor :data:`OLD_NAME`, of a network or of one that holds it."""
    return {name: value for name, value in state.items() if str(name).rpartition(".")[2] != OLD_NAME}


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's state dict (plain tensors, on the CPU) to ``path``, whole or not at all.

    Raises:
        OutputError: when it cannot be written.
    """
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = io.BytesIO()  # given a path, torch would write its name into the file
    torch.save(state, content)
    write_bytes(writable_folder(path.parent) / path.name, content.getvalue())


def _read_state(checkpoint: str) -> dict[Any, Any]:
    """Read a state dict without running any code of the file."""
    if not Path(checkpoint).is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: expected a file of weights, found none; check --checkpoint.")
    try:
        with warnings.catch_warnings(action="ignore"):  # about the odd bytes of a broken file: the error says enough
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise nearly anything: KeyError, struct.error, UnicodeDecodeError, …
        raise CheckpointError(
            f"checkpoint {checkpoint}: expected weights saved by torch, got a file that cannot be read as such "
            f"({type(error).__name__}); download or train it again."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint {checkpoint}: expected a state dict, got {type(state).__name__}; save network.state_dict()."
        )
    return state


def _fits(value: object, own: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == own.shape


def _difference(name: str, own: Mapping[str, Any], state: Mapping[Any, Any]) -> str:
    """A tensor that is not alike in both, with its shapes."""
    shapes = (list(getattr(where[name], "shape", ())) if name in where else "none" for where in (own, state))
    return "{}, expected {}, got {}".format(name, *shapes)
