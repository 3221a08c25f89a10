"""Which network: a preset chosen by its name, and the name inside the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError

PRESET_NAME = "preset_name"  # of the buffer, and so of the entry in every state dict


class PresetError(UserError, ValueError):
    """A preset that is not there."""


def choose_preset(presets: Mapping[str, Callable[[], nn.Module]], preset: str) -> nn.Module:
    """Build one of several networks and write its name into it.

    The name becomes a buffer (its ASCII codes). A buffer stands in the plain state dict, so whatever carries weights
    carries the name with them, without knowing of it: checkpoints, ``copy_model_state``, ``ckpt_export``, federated
    weights, averaged weights. A name beside the tensors would get lost there, or would break what expects tensors only.

    Args:
        presets: builders by name; only the chosen one is called.
        preset: its name, in ASCII.

    Returns:
        The network with a buffer ``preset_name``, uint8, ``[letters]``.

    Raises:
        PresetError: for an unknown name.
    """
    if not isinstance(preset, str) or preset not in presets:
        raise PresetError(f"preset: expected one of {', '.join(sorted(presets))}, got {preset!r}; use --preset NAME.")
    network = presets[preset]()
    network.register_buffer(PRESET_NAME, torch.tensor(list(preset.encode("ascii")), dtype=torch.uint8))
    return network


def preset_of(source: nn.Module | Mapping[str, Any]) -> str | None:
    """Name of the preset in a network or state dict; ``None`` where there is none, as in one built without a preset."""
    content = getattr(source, PRESET_NAME, None) if isinstance(source, nn.Module) else source.get(PRESET_NAME)
    if not isinstance(content, Tensor) or content.dtype != torch.uint8 or content.ndim != 1:
        return None
    return bytes(content.tolist()).decode("ascii", errors="replace")
