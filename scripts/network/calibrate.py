"""The command ``calibrate``: weights whose probabilities can be taken at their word."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from ..errors import UserError
from .checkpoint import load_weights, save_weights
from .describe import CONFIG
from .presets import choose_preset

logger = logging.getLogger(__name__)


class CalibrationError(UserError, ValueError):
    """A calibration that cannot be used."""


def calibrate(*, checkpoint: str, operating: str, output: str, preset: str = "compact") -> None:
    """Write weights whose nodule logit is ``scale * logit + shift`` of those given; the order of scores stays.

    Args:
        checkpoint: the weights.
        operating: operating.json of an evaluation of these weights on scans that were not trained on.
        output: the weights to write.
        preset: whose weights they are.

    Raises:
        UserError: files that cannot be read or do not belong together, a place that cannot be written to.
    """
    scale, shift = read_fit(operating)
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser["preset"] = preset
    network = choose_preset(parser.get_parsed_content("presets"), preset)
    load_weights(network, checkpoint)
    apply_fit(network, scale, shift)
    save_weights(network, output)
    logger.info("%s: %.4f * logit %+.4f", output, scale, shift)


def read_fit(operating: str) -> tuple[float, float]:
    """Scale and shift of an evaluation's ``operating.json``.

    Raises:
        CalibrationError: no such file, or without a usable fit.
    """
    try:
        record: Any = json.loads(Path(operating).read_text(encoding="utf-8"))
        scale, shift = (float(record["calibration"][name]) for name in ("scale", "shift"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CalibrationError(
            f"{operating}: expected the operating.json of an evaluation with true and false candidates, got "
            f"{type(error).__name__}: {error}; run the evaluation on scans with nodules first."
        ) from error
    if not scale > 0.0:
        raise CalibrationError(
            f"{operating}: expected a scale above 0, got {scale:g}: higher scores are less often true; these weights "
            "have learned nothing yet, train them first."
        )
    return scale, shift


def apply_fit(network: nn.Module, scale: float, shift: float) -> None:
    """Fold the fit into the network's detection head, in place; its first channel is the nodule logit."""
    head: Any = network.detect
    with torch.no_grad():
        head.weight[0] *= scale
        head.bias[0] = scale * head.bias[0] + shift
