"""Steps of the training graph: how many a second, and the share of the time spent waiting for crops."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, Events

from .search import ROOT, graph, quiet

AT_THE_END = ("scripts.train.Validation", "scripts.train.TrainingState")  # handlers of an epoch's end: not measured
WARM_UP_STEPS = 5  # the queue of crops fills, convolutions choose their ways


@dataclass(frozen=True)
class Speed:
    """Of one number of workers.

    Attributes:
        workers: processes that make crops; 0: the training process makes them itself.
        batch_size, crop_size: of the graph.
        steps: measured.
        steps_per_s: of all time, waiting included.
        waiting: share of the time in which a step waited for its crops.
    """

    workers: int
    batch_size: int
    crop_size: int
    steps: int
    steps_per_s: float
    waiting: float


class StepTimes:
    """Sum the seconds of steps after the first ``skipped``: all of them, and those spent waiting for data."""

    def __init__(self, skipped: int = WARM_UP_STEPS) -> None:
        self.skipped = skipped
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0
        self._begun = self._got = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._receive)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._finish)

    def _begin(self, _: Engine) -> None:
        self._begun = time.perf_counter()

    def _receive(self, _: Engine) -> None:
        self._got = time.perf_counter()

    def _finish(self, engine: Engine) -> None:
        if engine.state.iteration > self.skipped:
            outputs: Any = engine.state.output  # decollated in the bundle's trainer
            loss = (outputs[0] if isinstance(outputs, list) else outputs)["loss"]
            float(torch.as_tensor(loss).detach())  # waits for a GPU
            self.steps += 1
            self.waited += self._got - self._begun
            self.seconds += time.perf_counter() - self._begun


def train_steps(dataset_dir: str, workers: int, steps: int, **overrides: Any) -> Speed:
    """Train for a few steps from random weights; nothing of it is kept but the cache of scans.

    Args:
        dataset_dir: as the training graph takes it.
        workers: see :class:`Speed`.
        steps: measured, after :data:`WARM_UP_STEPS`.
        overrides: of the training graph.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = {"num_workers": workers, "epoch_length": steps + WARM_UP_STEPS, "max_epochs": 1}
        folders = {"dataset_dir": dataset_dir, "output_dir": folder}
        parser = graph([str(ROOT / "configs" / "train.json")], **folders, **{**settings, **overrides})
        parser["train::handlers"] = [one for one in parser["train::handlers"] if one["_target_"] not in AT_THE_END]
        trainer, times = parser.get_parsed_content("train::trainer"), StepTimes()
        times.attach(trainer)
        trainer.run()
        batch, crop = (int(parser.get_parsed_content(name)) for name in ("batch_size", "crop_size"))
        parser.get_parsed_content("writer").close()
    return Speed(workers, batch, crop, times.steps, times.steps / times.seconds, times.waited / times.seconds)
