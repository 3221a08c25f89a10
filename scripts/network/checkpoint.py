"""Weights into networks."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not belong to the network."""


def ready_network(network: nn.Module, device: torch.device | str, checkpoint: str = "") -> nn.Module:
    """Load weights, and place the network for fast convolutions.

    Args:
        network: as its preset builds it.
        device: where it shall run.
        checkpoint: path of a state dict (plain tensors); empty for none.

    Returns:
        The same network on the device, in channels-last memory format.

    Raises:
        CheckpointError: no such file, no state dict, or one of another network.
    """
    if checkpoint:
        load_weights(network, checkpoint)
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def load_weights(network: nn.Module, checkpoint: str) -> None:
    """Load a state dict into ``network``; see :func:`ready_network`."""
    if not Path(checkpoint).is_file():
        raise CheckpointError(f"checkpoint {checkpoint}: expected a file of weights, found none; check --checkpoint.")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint}: expected weights saved by torch, got a file that cannot be read as such "
            f"({type(error).__name__}); download or train it again."
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {checkpoint}: expected a state dict, got {type(state).__name__}.")
    own = network.state_dict()
    wrong = [n for n in own if n not in state or tuple(state[n].shape) != tuple(own[n].shape)]
    extra = [n for n in state if n not in own]
    if wrong or extra:
        raise CheckpointError(
            f"checkpoint {checkpoint}: expected the {len(own)} tensors of {type(network).__name__}, got {len(state)}, "
            f"of which {len(extra)} do not belong to it; {len(wrong)} are missing or of another shape "
            f"(first: {(wrong + extra)[0]}). Use the weights of this network, or the network of these weights."
        )
    network.load_state_dict(state)
