"""Adapters to the engines: a training that stops and goes on, clipping, logging, pairing with the truth."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, Dataset

from scripts.core.labels import IGNORED, NODULE, PADDING
from scripts.core.processes import MACHINE
from scripts.train import (
    ClassificationLoss,
    EpochHandler,
    GradientClip,
    MaskLoss,
    NoduleLoss,
    PairWithTruthd,
    RegressionLoss,
    StepLog,
    StopOnBadLoss,
    TrainingState,
    Validation,
    WeightAverage,
    ema,
    prepare_training_batch,
)
from scripts.train.checkpoints import StateError
from scripts.train.dataset import EpochSampler
from scripts.train.handlers import BrokenLossError

pytestmark = pytest.mark.usefixtures("quiet_engines")

ITERATIONS = 3  # per epoch


class Stream(Dataset):
    """Endless regression data; notes the numbers that were asked for."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.seen.append(index)
        x = torch.from_numpy(np.random.default_rng(index).normal(size=4).astype(np.float32))
        return {"image": x, "label": x.sum(dim=0, keepdim=True) * 2 + 1}


class Run:
    """A tiny training with everything that has a state: AdamW, a schedule per iteration, numbered epochs."""

    def __init__(
        self,
        path: Path,
        epochs: int,
        handlers: Sequence[Any] = (),
        *,
        planned: int = 4,
        length: int = ITERATIONS,
        **settings: float,
    ) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout(0.2))
        self.average = ema(self.network, decay=0.9)
        self.optimizer = optimizer = torch.optim.AdamW(self.network.parameters(), **{"lr": 0.05, **settings})
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=planned * length)
        self.stream, sampler = Stream(), EpochSampler(2 * length)
        objects = {"network": self.network, "average": self.average, "optimizer": optimizer, "scheduler": scheduler}
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(self.stream, sampler=sampler, batch_size=2),
            network=self.network,
            optimizer=optimizer,
            loss_function=torch.nn.MSELoss(),
            train_handlers=[
                EpochHandler(sampler),
                LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
                WeightAverage(self.average, self.network),
                *handlers,
                TrainingState(str(path), objects),
            ],
        )

    def run(self) -> Run:
        self.trainer.run()
        return self

    def run_until_a_power_cut(self, iteration: int) -> Run:
        def cut(_: Engine) -> None:
            raise KeyboardInterrupt

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), cut)
        with pytest.raises(KeyboardInterrupt):
            self.trainer.run()
        return self

    def weights(self) -> np.ndarray:
        """All of the network, then of its average."""
        return _weights(self.network, self.average)


def _weights(*networks: torch.nn.Module) -> np.ndarray:
    return torch.cat([parameters_to_vector(network.parameters()) for network in networks]).detach().numpy()


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole.pt", 4).run()
    killed = Run(tmp_path / "run" / "state.pt", 4).run_until_a_power_cut(2 * ITERATIONS + 2)
    resumed = Run(tmp_path / "run" / "state.pt", 4)
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (2, 2 * ITERATIONS)
    resumed.run()
    np.testing.assert_array_equal(resumed.weights(), whole.weights())
    assert not np.allclose(resumed.weights(), killed.weights())
    assert whole.stream.seen == list(range(8 * ITERATIONS))
    assert resumed.stream.seen == list(range(4 * ITERATIONS, 8 * ITERATIONS))
    steps = [int(resumed.average.n_averaged), int(whole.average.n_averaged), resumed.trainer.state.iteration]
    assert steps == [4 * ITERATIONS] * 3


def test_a_complete_training_ends_at_once_and_goes_on_when_it_gets_more_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.pt"
    first, again = Run(path, 2).run(), Run(path, 2).run()
    assert f"{path}: this training is complete after epoch 2; raise max_epochs to continue" in caplog.text
    assert again.stream.seen == []
    np.testing.assert_array_equal(again.weights(), first.weights())
    longer, whole = Run(path, 4).run(), Run(tmp_path / "whole.pt", 4).run()
    np.testing.assert_array_equal(longer.weights(), whole.weights())


def test_state_is_plain_data_and_an_interrupted_write_keeps_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "state.pt"
    Run(path, 1).run()
    assert list(tmp_path.iterdir()) == [path]  # no partial file stays
    state = torch.load(path, weights_only=True)
    assert set(state) == {"network", "average", "optimizer", "scheduler", "progress", "random"}
    progress = {"epoch": 1, "iteration": ITERATIONS, "best_validation": None, "stale_validations": None}
    assert state["progress"] == progress
    resumed = Run(path, 2)
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        resumed.run()
    assert torch.load(path, weights_only=True)["progress"] == progress


def _one_step(max_norm: float) -> np.ndarray:
    """What one step of plain gradient descent with a rate of 1 subtracts from the weights."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)
    before = _weights(network)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Stream(), sampler=range(2), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[GradientClip(network, max_norm)],
        decollate=False,
    ).run()
    return before - _weights(network)


def test_gradients_are_clipped_to_their_norm_and_keep_their_direction() -> None:
    free, clipped = _one_step(1e9), _one_step(0.25)
    norm = float(np.linalg.norm(free))
    assert norm > 1
    np.testing.assert_allclose(clipped, free * 0.25 / norm, rtol=1e-3)
    np.testing.assert_array_equal(_one_step(norm + 1), free)


def _rates(run: Run) -> list[float]:
    """The learning rate of each step of a run."""
    rates: list[float] = []
    run.trainer.add_event_handler(Events.ITERATION_STARTED, lambda _: rates.append(run.optimizer.param_groups[0]["lr"]))
    run.run()
    return rates


def test_a_schedule_that_was_made_longer_goes_on_along_the_longer_curve(tmp_path: Path) -> None:
    """From its second step on; the first one still has the rate that was due."""
    whole = _rates(Run(tmp_path / "whole.pt", 8, planned=8))
    Run(tmp_path / "state.pt", 4).run()
    longer = _rates(Run(tmp_path / "state.pt", 8, planned=8))
    assert longer[1:] == pytest.approx(whole[4 * ITERATIONS + 1 :])
    assert longer[-1] < 0.2 * longer[1]


def test_settings_that_were_changed_count_after_a_resume(tmp_path: Path) -> None:
    whole = _rates(Run(tmp_path / "whole.pt", 4))
    Run(tmp_path / "state.pt", 2).run()
    lower = Run(tmp_path / "state.pt", 4, lr=0.005, weight_decay=0.5)
    assert lower.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert _rates(lower) == pytest.approx([rate / 10 for rate in whole[2 * ITERATIONS :]])


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    """They would go on from each other's states; the claim of one that has ended is none."""
    owner = {"machine": MACHINE, "process": os.getppid(), "token": "t", "about": "training"}
    claim, path = tmp_path / ".state.pt.claim", tmp_path / "state.pt"
    claim.write_text(json.dumps(owner))
    with pytest.raises(StateError, match=r"state\.pt: expected a folder of this training alone.*--output_dir"):
        Run(path, 1)
    claim.write_text(json.dumps(owner | {"process": 2**22 + 1}))
    Run(path, 1).run()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("epochs", "length", "change", "said"),
    [
        (4, 5, lambda path: None, "expected epochs of 5 steps, got a training with epochs of 3; use that"),
        (1, ITERATIONS, lambda path: None, "expected a training of at most 1 epochs, got one after epoch 2; raise"),
        (
            *(4, ITERATIONS, lambda path: torch.save({"network": {"other": torch.zeros(3)}}, path)),
            "expected the state of this training, got a file .* --output_dir",
        ),
        (
            *(4, ITERATIONS, lambda path: path.write_bytes(b"")),
            "expected the state of this training, got a file .*EOFError.* --output_dir",
        ),
    ],
    ids=["epoch length", "fewer epochs", "another network", "empty file"],
)
def test_what_cannot_go_on_is_refused(
    tmp_path: Path, epochs: int, length: int, change: Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "state.pt"
    Run(path, 2).run()
    change(path)
    with pytest.raises(StateError, match=rf"state\.pt: {said}"):
        Run(path, epochs, length=length)


# --- averaged weights


def test_the_average_forgets_its_beginning_first_and_then_by_its_decay() -> None:
    """Weights 0, 1, 1, 1 …: after step n the average keeps min(decay, (1 + n) / (10 + n)) of what it was."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    average = ema(network, decay=0.2)
    seen = []
    for value in (0.0, 1.0, 1.0, 1.0):
        torch.nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        seen.append(float(average.module.weight.detach()))
    # The first step copies; then (1 + 1) / (10 + 1) = 2/11 is kept, then the decay, 1/5, twice.
    assert seen == pytest.approx([0.0, 1 - 2 / 11, 1 - 2 / 55, 1 - 2 / 275])


def test_the_average_has_the_buffers_of_the_network() -> None:
    network = torch.nn.BatchNorm1d(2)
    average = ema(network, decay=0.99)
    network(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) + 5)
    average.update_parameters(network)
    torch.testing.assert_close(dict(average.module.named_buffers()), dict(network.named_buffers()))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="average_decay: expected a number from 0 to below 1"):
        ema(torch.nn.Linear(1, 1), decay)


# --- broken losses


def _break_loss(run: Run) -> None:
    run.trainer.state.batch["label"] *= float("nan")


def _break_gradient_of_a_sound_loss(run: Run) -> None:
    run.network[0].weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("breaking", "said"),
    [(_break_loss, "loss, got nan"), (_break_gradient_of_a_sound_loss, "gradient norm, got (nan|inf)")],
)
def test_a_broken_loss_or_gradient_ends_the_training_before_it_reaches_the_weights(
    tmp_path: Path, breaking: Callable[[Run], None], said: str
) -> None:
    sound = Run(tmp_path / "sound.pt", 1).run_until_a_power_cut(ITERATIONS - 1)
    run = Run(tmp_path / "state.pt", 1)
    for handler in (GradientClip(run.network, 1e9), StopOnBadLoss(run.network, str(tmp_path / "out" / "stopped.pt"))):
        handler.attach(run.trainer)
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=ITERATIONS), lambda _: breaking(run))
    with pytest.raises(BrokenLossError, match=rf"iteration {ITERATIONS} \(epoch 1\): expected a finite {said}"):
        run.run()
    kept = torch.load(tmp_path / "out" / "stopped.pt", weights_only=True)
    for state in (kept, run.network.state_dict()):
        torch.testing.assert_close(dict(state), dict(sound.network.state_dict()), rtol=0, atol=0)
    assert not (tmp_path / "state.pt").exists()


# --- validation


class FakeValidator:
    """Gives one score after the other; ``None`` for a validation without scans, which has no metric."""

    def __init__(self, scores: Sequence[float | None]) -> None:
        self.scores, self.state = scores, SimpleNamespace(metrics={})
        self.epochs: list[int] = []

    def run(self, epoch: int) -> None:
        score = self.scores[len(self.epochs)]
        self.epochs.append(epoch)
        self.state.metrics = {} if score is None else {"score": score}


NAN = float("nan")
FALLING = [0.1, 0.5, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("scores", "epochs", "interval", "patience", "validated", "kept"),
    [
        ([0.2, 0.6, 0.6, 0.5], 4, 1, 0, [1, 2, 3, 4], 2),  # the best, and of equals the first
        ([0.1, 0.2, 0.3], 5, 2, 0, [2, 4, 5], 5),  # the last epoch whatever the interval
        ([NAN, NAN, NAN], 3, 1, 1, [1, 2, 3], 3),  # without a metric the newest
        ([None, None], 2, 1, 1, [1, 2], 2),
        (FALLING, 6, 1, 0, [1, 2, 3, 4, 5, 6], 2),
        (FALLING, 6, 1, 1, [1, 2, 3], 2),  # a training that no longer improves ends
        (FALLING, 6, 1, 2, [1, 2, 3, 4], 2),
    ],
)
def test_the_best_weights_are_kept(
    scores: list[float | None],
    epochs: int,
    interval: int,
    patience: int,
    validated: list[int],
    kept: int,
    tmp_path: Path,
) -> None:
    """Of a network whose only weight is the number of the epoch."""
    network, validator = torch.nn.Linear(1, 1, bias=False), FakeValidator(scores)
    engine = Engine(lambda engine, _: torch.nn.init.constant_(network.weight, float(engine.state.epoch)))
    path = str(tmp_path / "model.pt")
    Validation(validator, interval, network, path, metric="score", patience=patience).attach(engine)  # type: ignore[arg-type]
    engine.run([0], max_epochs=epochs)
    assert validator.epochs == validated
    assert engine.state.epoch == validated[-1]
    weights = [int(torch.load(tmp_path / name, weights_only=True)["weight"]) for name in ("model.pt", "model_final.pt")]
    assert weights == [kept, validated[-1]]
    best = [score for score in scores if score is not None and not np.isnan(score)]
    assert engine.state.best_validation == (max(best) if best else None)


def test_the_best_score_survives_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    def run(scores: list[float], epochs: int) -> Any:
        network = torch.nn.Linear(1, 1)  # with new weights
        validation = Validation(FakeValidator(scores), 1, network, str(path), metric="score", patience=0)  # type: ignore[arg-type]
        return Run(tmp_path / "state.pt", epochs, [validation]).run().trainer.state

    run([0.7, 0.9], 2)
    kept = path.read_bytes()
    state = run([0.8, 0.6], 4)
    assert (state.best_validation, state.stale_validations) == (0.9, 2)
    assert path.read_bytes() == kept


# --- the log


@pytest.mark.parametrize(
    ("interval", "done", "batches", "expected"),
    [
        (
            *(2, 0, [1.0, 2.0, 3.0, 5.0, 7.0]),
            [
                "step 2 of 5: loss 16.5000, class 1.5000, mask 15.0000",
                "step 4 of 5: loss 44.0000, class 4.0000, mask 40.0000",
            ],
        ),
        (3, 4, [2.0, 4.0], ["step 6 of 6: loss 33.0000, class 3.0000, mask 30.0000"]),  # after a resume
    ],
)
def test_the_log_tells_means_of_an_interval_and_how_long_a_step_waits_for_data(
    interval: int, done: int, batches: list[float], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Steps that do nothing but wait 0.05 s for their data."""
    loss = NoduleLoss(ClassificationLoss(), RegressionLoss(), MaskLoss())

    def step(_: Engine, batch: float) -> dict[str, torch.Tensor]:
        loss.parts = {"class": batch, "mask": 10 * batch}
        return {"loss": torch.tensor(11 * batch)}

    def slowly() -> Iterator[float]:
        for value in batches:
            time.sleep(0.05)
            yield value

    engine = Engine(step)
    StepLog(loss, interval).attach(engine)
    engine.state.iteration = done
    engine.state.epoch, engine.state.max_epochs, engine.state.epoch_length = 0, 1, done + len(batches)
    with caplog.at_level(logging.INFO, logger="scripts.train"):
        engine.run(slowly())
    told = [record.getMessage() for record in caplog.records if record.name.startswith("scripts.train")]
    assert [line.split(";")[0] for line in told] == expected
    for line in told:
        found = re.search(r"; ([\d.]+) s per step, (\d+) % of it waiting for data, \d\.\d s left", line)
        assert 0.05 <= float(found[1]) < 0.5
        assert int(found[2]) > 80


def test_pairing_gives_world_positions_without_padding() -> None:
    affine = torch.tensor([[0, -2.0, 0, 10], [1, 0, 0, -5], [0, 0, 0.5, 3], [0, 0, 0, 1]], dtype=torch.float64)
    data = {
        "image": MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine),
        "nodule": torch.tensor([[1.0, 2, 4, 6], [0, 0, 0, 8], [9, 9, 9, 9]]),
        "label": torch.tensor([NODULE, IGNORED, PADDING]),
        "candidates": ["kept as they are"],
        "pred": torch.zeros(5),
    }
    candidates, truth = PairWithTruthd()(data)["pred"]
    assert candidates == ("kept as they are",)
    expected = [[6, -4, 5], [10, -5, 3]]  # x = 10 - 2 j, y = i - 5, z = k / 2 + 3
    np.testing.assert_allclose(truth.centres_ras_mm, expected)
    np.testing.assert_allclose(truth.diameters_mm, [6, 8])
    assert truth.is_nodule.tolist() == [True, False]
    assert isinstance(data["pred"], torch.Tensor)
    nothing = {"nodule": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64), "candidates": []}
    assert PairWithTruthd()({**data, **nothing})["pred"][1].centres_ras_mm.shape == (0, 3)


def test_a_batch_is_split_into_input_and_target() -> None:
    batch = {name: torch.ones(2) * n for n, name in enumerate(("image", "nodule", "label", "mask"))}
    image, target = prepare_training_batch(batch, torch.device("meta"), False)
    assert set(target) == {"nodule", "label", "mask"}
    assert {value.device.type for value in (image, *target.values())} == {"meta"}
