"""What training saves: the best weights, and the state from which an interrupted training resumes exactly."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import CheckpointLoader
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..core.claims import BusyError, claims_on
from ..core.errors import SettingError, UserError, line_of
from ..core.files import replacing, writable_folder
from ..core.text import parse_bool
from ..network.checkpoint import save_weights, without_old_name

logger = logging.getLogger(__name__)

SCHEDULE_POSITION = ("last_epoch", "_step_count", "_last_lr")  # of a torch scheduler; its other entries are settings
PROGRESS = ("epoch", "iteration", "best_validation", "stale_validations")  # attributes of the engine's state


class StateError(UserError, ValueError):
    """A training state cannot be used: it does not fit this training, or another training is writing to its folder."""


class Validation:
    """Search the validation scans at intervals and after the last epoch; keep the best weights; stop early.

    Where the metric is undefined (no nodule to find), the newest weights are kept.

    Args:
        validator: searches the validation scans.
        interval: epochs between two validations.
        network: the network whose weights are kept, the same one that ``validator`` searches with.
        path: file for the best state dict. The newest weights of ``network`` are written beside it, for example as
            ``model_final.pt`` beside ``model.pt``.
        metric: name of the validator's metric; larger is better.
        patience: number of validations in a row without improvement after which training stops; 0 never stops it.

    Raises:
        SettingError: ``interval`` is below 1.
    """

    def __init__(
        self, validator: Evaluator, interval: int, network: nn.Module, path: str, *, metric: str, patience: int
    ) -> None:
        if interval < 1:
            raise SettingError(f"val_interval: expected at least 1 epoch, got {interval}")
        self.validator, self.interval, self.network = validator, interval, network
        self.path, self.metric, self.patience = Path(path), metric, patience

    def attach(self, engine: Engine) -> None:
        state: Any = engine.state  # these attributes are saved by TrainingState
        state.best_validation, state.stale_validations = None, 0
        engine.add_event_handler(Events.STARTED, self._end_if_stale)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate)

    def _validate(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval and engine.state.epoch != engine.state.max_epochs:
            return
        _share_buffers(self.network)
        if idist.get_rank() == 0:
            save_weights(self.network, self.path.with_stem(f"{self.path.stem}_final"))
        self.validator.run(engine.state.epoch)
        state: Any = engine.state
        value = float(self.validator.state.metrics.get(self.metric, math.nan))  # without scans there is no metric
        if math.isfinite(value) and state.best_validation is not None and value <= state.best_validation:
            state.stale_validations += 1
            logger.info("epoch %d: %s %.4f, best %.4f", state.epoch, self.metric, value, state.best_validation)
            self._end_if_stale(engine)
            return
        if math.isfinite(value):
            state.best_validation, state.stale_validations = value, 0
        if idist.get_rank() == 0:
            save_weights(self.network, self.path)
        logger.info("epoch %d: %s %.4f, kept in %s", state.epoch, self.metric, value, self.path)

    def _end_if_stale(self, engine: Engine) -> None:
        state: Any = engine.state
        if self.patience and state.stale_validations >= self.patience:
            logger.warning("%d validations without improvement: training stops", state.stale_validations)
            engine.terminate()


def _share_buffers(network: nn.Module) -> None:
    """Copy the first rank's batch statistics to all ranks, so that all of them search with exactly the same network."""
    if idist.get_world_size() > 1:
        for buffer in network.buffers():
            buffer.copy_(torch.as_tensor(idist.broadcast(buffer, src=0)))


class TrainingState:
    """Save the state of a training after each epoch, and resume from it when it exists.

    What training has reached is restored: weights, optimizer moments, step counts, scores and random generators. What
    the user chooses is taken from the current configuration: a changed learning rate, weight decay or number of epochs
    takes effect.

    A training that was interrupted at any point and restarted takes the same steps as an uninterrupted one, because the
    state includes the random generators and an unfinished epoch is repeated. (Of several ranks, only the first one's
    generators are saved.) A completed training ends at once; it continues when ``max_epochs`` is raised. Attach this
    handler last, so that the state includes what the other handlers did in the epoch. If a ``CheckpointLoader`` was
    attached before, training starts from its weights and nothing is restored.

    Args:
        path: the checkpoint; it is written under a temporary name and then renamed.
        objects: everything with ``state_dict`` and ``load_state_dict``: network, optimizer, scheduler …
        resume: ``False`` neither writes a state nor resumes from one, for example where another program counts the
            rounds.

    Raises:
        StateError: another training is writing to the folder, or the state in ``path`` does not fit the objects, was
            saved with another epoch length, or has completed more than ``max_epochs`` epochs.
    """

    def __init__(self, path: str, objects: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path, self.objects = Path(path), dict(objects)
        self.resume = parse_bool("resume", resume)
        self._epochs_done = 0
        self._random: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        if not self.resume:
            return
        if idist.get_rank() == 0:
            self._claim()
            engine.add_event_handler(Events.COMPLETED, lambda: claims_on(self.path.parent).release(self.path.name))
        if self.path.exists() and not _loads_weights(engine):
            self._restore(engine)
            engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        state: dict[str, Any] = {name: thing.state_dict() for name, thing in self.objects.items()}
        state["progress"] = {name: getattr(engine.state, name, None) for name in PROGRESS}
        state["random"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        with replacing(self.path) as new:
            torch.save(state, new)

    def _claim(self) -> None:
        """Claim the folder for this training: two trainings in one folder would resume from each other's states."""
        try:
            claims_on(writable_folder(self.path.parent)).take(self.path.name, "training")
        except BusyError as error:
            raise StateError(
                f"{self.path}: expected a folder of this training alone, got one that another training is writing to; "
                "wait until it ends, or choose another --output_dir."
            ) from error

    def _restore(self, engine: Engine) -> None:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, thing in self.objects.items():
                thing.load_state_dict(_reached(thing, state[name]))
            for name in PROGRESS:
                setattr(engine.state, name, state["progress"][name])
            self._random = state["random"]
        except Exception as error:  # damaged files and foreign states raise almost any type
            raise StateError(
                f"{self.path}: expected the state of this training, got a file that does not fit it "
                f"({line_of(error)}); choose another --output_dir, or use the network and settings it was started with."
            ) from error
        self._epochs_done = engine.state.epoch
        self._check_progress(engine)
        logger.info("resuming from %s after epoch %d", self.path, engine.state.epoch)

    def _check_progress(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.epoch_length and state.iteration != state.epoch * state.epoch_length:
            raise StateError(
                f"{self.path}: expected epochs of {state.epoch_length} steps, got a training with epochs of "
                f"{state.iteration / state.epoch:g}; use that epoch_length, or choose another --output_dir."
            )
        if state.max_epochs and state.epoch > state.max_epochs:
            raise StateError(
                f"{self.path}: expected a training of at most {state.max_epochs} epochs, got one after epoch "
                f"{state.epoch}; raise max_epochs, or choose another --output_dir."
            )

    def _begin(self, engine: Engine) -> None:
        """Restore the random generators; end the run if ignite reset a completed training to epoch 0."""
        if engine.state.epoch < self._epochs_done:
            logger.warning(
                "%s: this training is complete after epoch %d; raise max_epochs to continue, or choose another "
                "--output_dir",
                self.path,
                self._epochs_done,
            )
            engine.terminate()
        elif self._random is not None:
            torch.set_rng_state(self._random["cpu"])
            if self._random["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._random["cuda"])
            self._random = None


def _loads_weights(engine: Engine) -> bool:
    """Whether a ``CheckpointLoader`` is attached, as MONAI Label does."""
    handlers = engine._event_handlers[Events.STARTED]
    return any(isinstance(handler, CheckpointLoader) for handler, *_ in handlers)


def _reached(thing: Any, saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Combine a saved state with the current settings; with equal settings the saved state is returned bit for bit.

    The learning rate of a parameter group is the saved one, multiplied by the ratio of the current to the saved initial
    rate; the schedule continues from there.
    """
    now = thing.state_dict()
    if isinstance(thing, LRScheduler):
        return {**now, **{key: saved[key] for key in SCHEDULE_POSITION if key in saved}}
    if not isinstance(thing, Optimizer):
        return without_old_name(saved)
    groups = []
    for today, before in zip(now["param_groups"], saved["param_groups"], strict=True):
        first, wanted = before.get("initial_lr", before["lr"]), today.get("initial_lr", today["lr"])
        rate = before["lr"] if first == wanted else before["lr"] * (wanted / first if first else 0.0)
        groups.append({**before, **today, "params": before["params"], "lr": rate})
    return {**saved, "param_groups": groups}
