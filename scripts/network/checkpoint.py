"""Loading weights into networks and saving them."""

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

OLD_NAME = "preset_name"  # weights of versions 0.2 and 0.3 contain a tensor of this name that belongs to no layer


class OneDnnConv3d(nn.Conv3d):
    """A convolution that always uses oneDNN on a CPU.

    In float32, PyTorch uses code of its own for a single image with few channels or cells, and for 1³ kernels in one
    thread, which takes up to ten times as long (``use_mkldnn`` in its Convolution.cpp).

    Args:
        like: the convolution whose parameters are taken over; its padding must be zeros, and given as numbers.
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
        if torch.compiler.is_compiling() or not is_plain:  # a compiler makes its own choice
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read or does not belong to the network."""


def load_network(
    network: nn.Module, device: torch.device | str, checkpoint: str = "", *, fuse: bool = False
) -> nn.Module:
    """Load weights, and move the network to a device in the memory format for fast convolutions.

    Args:
        network: the network as its configuration builds it.
        device: the device to run it on.
        checkpoint: path of a state dict (plain tensors); empty for none.
        fuse: return a copy for evaluation only, see :func:`fuse_batch_norms`.

    Returns:
        The same network (or its fused copy) on the device, in channels-last memory format.

    Raises:
        CheckpointError: the file does not exist, is not a state dict of plain tensors, or belongs to another network.
        SettingError: the device does not exist.
    """
    device = checked_device(device)
    if checkpoint:
        load_weights(network, checkpoint)
    if fuse:
        network = fuse_batch_norms(network)
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def fuse_batch_norms(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode that computes the same function in less time.

    Each batch norm is fused into the convolution before it, and the convolutions become :class:`OneDnnConv3d`. The
    copy's state dict is not that of a checkpoint, and training the copy would not be equivalent.
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
    """Load a state dict into ``network``, which is unchanged if this fails; errors as in :func:`load_network`."""
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
    """Return a state dict without the tensor :data:`OLD_NAME`, be it of a network or of a module that contains one."""
    return {name: value for name, value in state.items() if str(name).rpartition(".")[2] != OLD_NAME}


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's state dict (plain tensors, on the CPU) to ``path``, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = io.BytesIO()  # given a path, torch would store its name in the file
    torch.save(state, content)
    write_bytes(writable_folder(path.parent) / path.name, content.getvalue())


def _read_state(checkpoint: str) -> dict[Any, Any]:
    """Read a state dict without executing any code contained in the file."""
    if not Path(checkpoint).is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: expected a weights file, found none; check --checkpoint.")
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd bytes in a broken file: the error says enough
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise almost anything: KeyError, struct.error, UnicodeDecodeError, …
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
    """Describe a tensor that differs: its name, its shape in the network and its shape in the checkpoint."""
    shapes = (list(getattr(where[name], "shape", ())) if name in where else "none" for where in (own, state))
    return "{}, expected {}, got {}".format(name, *shapes)
