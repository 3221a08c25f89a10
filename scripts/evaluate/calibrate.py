"""The command ``calibrate``: weights whose probabilities can be taken at their word."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import UserError
from ..network.checkpoint import load_weights, save_weights
from ..network.compact import STRIDE, CompactNet
from ..network.config import CONFIG, presets_in
from ..network.presets import choose_preset

logger = logging.getLogger(__name__)


class CalibrationError(UserError, ValueError):
    """A calibration that cannot be used."""


def calibrate(*, checkpoint: str, operating: str, output: str, preset: str = "compact") -> None:
    """Write weights whose nodule logit is that of the given ones divided by the temperature; the order of scores stays.

    Args:
        checkpoint: the weights.
        operating: operating.json of an evaluation of these weights on scans that were not trained on.
        output: the weights to write.
        preset: whose weights they are.

    Raises:
        UserError: files that cannot be read or do not belong together, a place that cannot be written to.
    """
    temperature = read_temperature(operating)
    network = choose_preset(presets_in(CONFIG), preset)
    load_weights(network, checkpoint)
    apply_temperature(network, temperature)
    save_weights(network, output)
    logger.info("%s: logits divided by %.4f", output, temperature)


def read_temperature(operating: str) -> float:
    """The temperature in an evaluation's ``operating.json``.

    Raises:
        CalibrationError: no such file, or without a usable temperature.
    """
    try:
        record: Any = json.loads(Path(operating).read_text(encoding="utf-8"))
        temperature = float(record["calibration"]["temperature"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(
            f"{operating}: expected the operating.json of an evaluation with true and false candidates, got "
            f"{type(error).__name__}: {error}; run the evaluation on scans with nodules first."
        ) from error
    if not temperature > 0.0:
        raise CalibrationError(
            f"{operating}: expected a temperature above 0, got {temperature:g}; evaluate the weights again."
        )
    return temperature


def apply_temperature(network: nn.Module, temperature: float) -> None:
    """Fold a temperature into the network's heads, in place: the nodule logit is the first channel of each."""
    with torch.no_grad():
        for rows in _nodule_logit_rows(network):
            rows /= temperature


def _nodule_logit_rows(network: Any) -> Iterator[torch.Tensor]:
    """The parts of weights and biases that write the nodule logit."""
    for parameter in network.detect.parameters():
        yield parameter[:1]
    if isinstance(network, CompactNet):
        for parameter in network.coarse.parameters():
            yield parameter[: STRIDE**3]
