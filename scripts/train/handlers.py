"""Handlers of the training engine: epochs, gradient clipping, weight averaging, invalid losses and logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.engines.utils import IterationEvents
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..core.errors import SettingError, UserError
from ..core.text import shown_duration
from ..network import save_weights
from .dataset import EpochSampler
from .losses import NoduleLoss

logger = logging.getLogger(__name__)


class EpochHandler:
    """Pass the number of each new epoch to the sampler, also after a resume.

    Args:
        sampler: see :class:`.dataset.EpochSampler`.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: self.sampler.set_epoch(e.state.epoch))


class GradientClip:
    """Clip the norm of the gradients after each backward pass.

    The norm before clipping is stored in ``engine.state.gradient_norm``.

    Args:
        network: the network whose gradients are clipped.
        max_norm: largest L2 norm.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        engine.state.gradient_norm = float(norm)  # type: ignore[attr-defined]


def ema(network: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network for an exponential moving average (EMA) of the network's weights.

    Early in training the decay is smaller, ``(1 + n) / (10 + n)`` after n steps, so that in a short training the
    initial weights do not dominate. Buffers (batch statistics) are copied from the original, not averaged.

    Args:
        network: the network to average; see :class:`WeightAverage`.
        decay: share of the previous average that is kept in each step, in [0, 1); 0 makes the copy equal to the
            original.

    Returns:
        torch's AveragedModel; its ``module`` is the averaged network.

    Raises:
        SettingError: ``decay`` is out of range.
    """
    if not 0.0 <= decay < 1.0:
        raise SettingError(f"average_decay: expected a number from 0 to below 1, got {decay}")

    def follow(average: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
        kept = min(decay, (1.0 + float(steps)) / (10.0 + float(steps)))
        return torch.lerp(current, average, kept)

    return AveragedModel(network, avg_fn=follow)


def trainable(network: nn.Module, frozen: Sequence[str]) -> list[nn.Parameter]:
    """Freeze parts of a network and return the parameters that remain to be optimized.

    Frozen parameters get no gradient. Batch norms in frozen parts still update their running statistics.

    Args:
        network: the whole network.
        frozen: names of the parts to freeze, such as ``stem`` or ``stage4.0``; if empty, the whole network is trained.

    Raises:
        SettingError: a name is not a part of the network, or nothing is left to train.
    """
    parts = dict(network.named_modules())
    unknown = [name for name in frozen if not name or name not in parts]
    if unknown:
        tops = ", ".join(name for name, _ in network.named_children())
        raise SettingError(f"frozen: expected parts of the network ({tops}), got {', '.join(map(repr, unknown))}")
    for name in frozen:
        parts[name].requires_grad_(False)
    moved = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not moved:
        raise SettingError("frozen: expected at least one part left to train, got the whole network; leave one out")
    return moved


class WeightAverage:
    """Update the averaged weights after each step; see :func:`ema`.

    If the network's weights are replaced between two runs of the engine (as in a round of federated learning), the
    average restarts from the new weights.
    """

    def __init__(self, average: AveragedModel, network: nn.Module) -> None:
        self.average, self.network = average, network
        self._versions: list[int] | None = None  # of the parameters after the last step; each in-place change raises it

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._begin_again_if_replaced)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow)

    def _begin_again_if_replaced(self, _: Engine) -> None:
        if self._versions is not None and self._versions != self._current():
            self.average.n_averaged.zero_()  # so that the next step copies the weights

    def _follow(self, _: Engine) -> None:
        self.average.update_parameters(self.network)
        self._versions = self._current()

    def _current(self) -> list[int]:
        return [parameter._version for parameter in self.network.parameters()]


class BrokenLossError(UserError, ArithmeticError):
    """A loss or its gradient has become NaN or infinite."""


class StopOnBadLoss:
    """Stop training when the loss or its gradient is NaN or infinite, before the weights are updated with it.

    The gradient is judged by its norm, as stored by :class:`GradientClip`, which must be attached before.

    Args:
        network: its weights are saved to ``path`` when training stops.
        path: file for that state dict; ``state.pt`` of the last complete epoch is left unchanged.

    Raises:
        BrokenLossError: from the training engine's run.
    """

    def __init__(self, network: nn.Module, path: str) -> None:
        self.network, self.path = network, Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        state: Any = engine.state
        values = {"loss": float(state.output["loss"].detach()), "gradient norm": getattr(state, "gradient_norm", 0.0)}
        for what, value in values.items():
            if not math.isfinite(value):
                save_weights(self.network, self.path)
                raise BrokenLossError(
                    f"iteration {state.iteration} (epoch {state.epoch}): expected a finite {what}, got {value}; the "
                    f"weights before this step are in {self.path}. Lower learning_rate or use --precision float32; "
                    "the same command then resumes from the last complete epoch."
                )


class StepLog:
    """Log the loss and its parts, the time per step, the share of it spent waiting for data, and the time left.

    Args:
        loss: see :class:`.losses.NoduleLoss`.
        interval: steps between two log lines.
    """

    def __init__(self, loss: NoduleLoss, interval: int) -> None:
        self.loss, self.interval = loss, interval
        self.waited, self.worked = Timer(), Timer()
        self._seen: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        self.waited.attach(engine, pause=Events.GET_BATCH_COMPLETED, resume=Events.GET_BATCH_STARTED)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)  # waits for the GPU: before the timer stops
        self.worked.attach(engine, pause=Events.ITERATION_COMPLETED, resume=Events.GET_BATCH_COMPLETED)
        for timer in (self.waited, self.worked):
            engine.add_event_handler(Events.STARTED, timer.pause)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self._report)

    def _add(self, engine: Engine) -> None:
        output: Any = engine.state.output
        one = output[0] if isinstance(output, list) else output  # if decollated, each item has the loss of the batch
        self._seen.append({"loss": float(one["loss"]), **self.loss.parts})

    def _report(self, engine: Engine) -> None:
        state: Any = engine.state
        steps = len(self._seen)
        means = ", ".join(f"{name} {sum(one[name] for one in self._seen) / steps:.4f}" for name in self._seen[0])
        waited_s, worked_s = self.waited.value(), self.worked.value()
        step_s = (waited_s + worked_s) / steps
        total = state.max_epochs * state.epoch_length
        logger.info(
            "step %d of %d: %s; %.2f s per step, %.0f %% of it waiting for data, %s left",
            state.iteration,
            total,
            means,
            step_s,
            100 * waited_s / (waited_s + worked_s),
            shown_duration(step_s * (total - state.iteration)),
        )
        for timer in (self.waited, self.worked):
            timer.reset().pause()
        self._seen.clear()
