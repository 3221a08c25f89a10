"""Thin adapters between our data and MONAI's stock engines."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.transforms import Transform

from .dataset import EpochSampler
from .geometry import apply_affine
from .losses import NoduleLoss
from .metrics import RATES, CpmMetric, ScanTruth
from .transforms.nodules import NODULE, PADDING

logger = logging.getLogger(__name__)

TARGET_KEYS = ("nodule", "label", "mask", "has_mask")


def prepare_training_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Split a batch of crops into the network's input and the loss's target, on the device."""
    target = {key: batch[key].to(device, non_blocking=non_blocking) for key in TARGET_KEYS}
    return batch["image"].to(device, non_blocking=non_blocking), target


class PairWithTruthd(Transform):
    """Put what the metric compares, ``(candidates, truth)``, in the place of the maps (``pred``).

    Reads ``candidates``, ``nodule``, ``label`` and the affine of ``image``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = np.asarray(item["label"])
        rows = np.asarray(item["nodule"], dtype=np.float64)[label != PADDING]
        centres = apply_affine(np.asarray(item["image"].affine), rows[:, :3])
        item["pred"] = item["candidates"], ScanTruth(centres, rows[:, 3], label[label != PADDING] == NODULE)
        return item


class EpochHandler:
    """Tell the sampler which epoch begins, also after a resume.

    Args:
        sampler: see :class:`.dataset.EpochSampler`.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.sampler.set_epoch(e.state.epoch))


class GradientClip:
    """Clip the gradients' norm after each backward pass.

    Args:
        network: whose gradients.
        max_norm: largest L2 norm.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        def clip(_: Engine) -> None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)

        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, clip)


class LossParts:
    """Log the mean of each part of the loss.

    Args:
        loss: see :class:`.losses.NoduleLoss`.
        interval: iterations between two lines.
    """

    def __init__(self, loss: NoduleLoss, interval: int) -> None:
        self.loss, self.interval = loss, interval
        self._sums: dict[str, float] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._report)

    def _add(self, _: Engine) -> None:
        self._count += 1
        for name, value in self.loss.parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _report(self, engine: Engine) -> None:
        means = ", ".join(f"{name} {value / self._count:.4f}" for name, value in self._sums.items())
        logger.info("iteration %d: %s", engine.state.iteration, means)
        self._sums.clear()
        self._count = 0


class TrainingState:
    """Write the state of a training after each epoch, and go on from it when it is there.

    A training that is complete ends at once; ``max_epochs`` raised, it goes on.

    Args:
        path: the checkpoint; written to a temporary name, then renamed.
        objects: what has ``state_dict`` and ``load_state_dict``: network, optimizer, scheduler.
    """

    def __init__(self, path: str, objects: Mapping[str, Any]) -> None:
        self.path, self.objects = Path(path), dict(objects)
        self._epochs_done = 0

    def attach(self, engine: Engine) -> None:
        if self.path.exists():
            self._restore(engine)
            engine.add_event_handler(Events.STARTED, self._end_if_complete)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        state: dict[str, Any] = {name: thing.state_dict() for name, thing in self.objects.items()}
        state["progress"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _restore(self, engine: Engine) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, thing in self.objects.items():
            thing.load_state_dict(state[name])
        engine.state.epoch, engine.state.iteration = state["progress"]["epoch"], state["progress"]["iteration"]
        self._epochs_done = engine.state.epoch
        logger.info("going on from %s after epoch %d", self.path, engine.state.epoch)

    def _end_if_complete(self, engine: Engine) -> None:
        """End a run that ignite has set back to epoch 0, as it does where ``max_epochs`` are done already."""
        if engine.state.epoch < self._epochs_done:
            logger.warning(
                "%s: this training is complete after epoch %d; raise max_epochs to go on, or name another output_dir",
                self.path,
                self._epochs_done,
            )
            engine.terminate()


class SaveFroc:
    """Write the FROC readings of an evaluation as JSON once it is complete, and log them.

    Args:
        metric: the evaluation's metric.
        path: of the JSON file; its folder is made where it is missing.
    """

    def __init__(self, metric: CpmMetric, path: str) -> None:
        self.metric, self.path = metric, Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, _: Engine) -> None:
        curve = self.metric.froc
        if curve is None:
            return
        readings = dict(zip(map(str, RATES), (round(r, 4) for r in curve.readings), strict=True))
        content = {
            "scans": curve.scans,
            "nodules": curve.nodules,
            "sensitivity_at_false_positives_per_scan": readings,
            "cpm": curve.cpm,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        logger.info("%s: %s", self.path, content)
