"""The command ``calibrate``: makes weights whose probabilities agree with the share of true candidates."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.errors import DataError
from ..network.checkpoint import load_weights, save_weights
from ..network.compact import CompactNet
from ..network.config import TRAIN, network_in

logger = logging.getLogger(__name__)


def calibrate(*, checkpoint: str, operating: str, output: str, config_file: Sequence[str] = (TRAIN,)) -> None:
    """Write weights with calibrated nodule logits: slope times logit plus intercept. The order of scores is unchanged.

    Args:
        checkpoint: the weights to calibrate.
        operating: operating.json of an evaluation of these weights on scans that were not trained on.
        output: the file of weights to write.
        config_file: the training configuration of the weights, and any that override it.

    Raises:
        UserError: files cannot be read or do not belong together, or the output cannot be written.
    """
    slope, intercept = read_calibration(operating)
    network = network_in(config_file)
    load_weights(network, checkpoint)
    apply_calibration(network, slope, intercept)
    save_weights(network, output)
    logger.info("%s: %.4f · logit %+.4f", output, slope, intercept)


def read_calibration(operating: str) -> tuple[float, float]:
    """Return the slope and intercept of the calibration in an evaluation's ``operating.json``.

    Raises:
        DataError: the file does not exist, has no calibration, or its slope is not above 0.
    """
    try:
        record: Any = json.loads(Path(operating).read_text(encoding="utf-8"))["calibration"]
        slope, intercept = float(record["slope"]), float(record["intercept"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{operating}: expected the operating.json of an evaluation with true and false candidates, got "
            f"{type(error).__name__}: {error}; run the evaluation on scans with nodules first."
        ) from error
    if not slope > 0.0:
        raise DataError(f"{operating}: expected a slope above 0, got {slope:g}; evaluate the weights again.")
    return slope, intercept


def apply_calibration(network: Any, slope: float, intercept: float) -> None:
    """Scale and shift the nodule logit by changing the weights of the network's heads in place.

    The nodule logit is the first channel of ``detect``; the part of it that ``coarse`` adds in a :class:`CompactNet`
    is scaled too.
    """
    rows = [parameter[:1] for parameter in network.detect.parameters()]
    if isinstance(network, CompactNet):
        rows += [parameter[: network.stride**3] for parameter in network.coarse.parameters()]
    with torch.no_grad():
        for row in rows:
            row *= slope
        network.detect.bias[0] += intercept
