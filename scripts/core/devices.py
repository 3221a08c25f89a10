"""The device to compute on."""

from __future__ import annotations

import torch

from .errors import SettingError


def checked_device(device: torch.device | str | int) -> torch.device:
    """Return a device after checking that tensors can be created on it.

    Raises:
        SettingError: the name is no device's, or this machine has no such device.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"device {device}: expected cpu, cuda or cuda:N, got another name; use --device cuda for a GPU, or "
            "--device cpu."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device {device}: expected a GPU that torch can use, found none; use --device cpu.")
    try:
        torch.zeros(1, device=chosen).cpu()
    except Exception as error:  # torch and its back ends raise almost any exception
        count = torch.cuda.device_count()
        raise SettingError(
            f"device {device}: expected a device that torch can use, found {count} GPUs, not this one; use "
            "--device cpu."
        ) from error
    return chosen
