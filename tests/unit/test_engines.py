"""Adapters to the engines: a training that stops and goes on, clipping, logging, pairing with the truth."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.optimizers import WarmupCosineSchedule
from torch.utils.data import DataLoader, Dataset

from scripts.dataset import EpochSampler
from scripts.engines import (
    EpochHandler,
    GradientClip,
    LossParts,
    PairWithTruthd,
    TrainingState,
    prepare_training_batch,
)
from scripts.losses import NoduleLoss
from scripts.transforms import IGNORED, NODULE, PADDING

ITERATIONS = 3  # per epoch


@pytest.fixture(autouse=True)
def _quiet_engines() -> Iterator[None]:
    """MONAI's engines add handlers to their loggers and set levels; put all of them back."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


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

    def __init__(self, path: Path, epochs: int, handlers: list[Any] | None = None) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.05)
        scheduler = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=4 * ITERATIONS)
        self.stream, sampler = Stream(), EpochSampler(2 * ITERATIONS)
        objects = {"network": self.network, "optimizer": optimizer, "scheduler": scheduler}
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
                *(handlers or []),
                TrainingState(str(path), objects),
            ],
            decollate=False,
        )

    def weights(self) -> np.ndarray:
        return torch.cat([p.detach().flatten() for p in self.network.parameters()]).numpy().copy()


class PowerCut:
    """Ends the program in the middle of an epoch."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Engine) -> None:
        def cut(_: Engine) -> None:
            raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), cut)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole.pt", 4)
    whole.trainer.run()
    killed = Run(tmp_path / "run" / "state.pt", 4, [PowerCut(2 * ITERATIONS + 2)])
    with pytest.raises(KeyboardInterrupt):
        killed.trainer.run()
    resumed = Run(tmp_path / "run" / "state.pt", 4)
    assert (resumed.trainer.state.epoch, resumed.trainer.state.iteration) == (2, 2 * ITERATIONS)
    resumed.trainer.run()
    np.testing.assert_array_equal(resumed.weights(), whole.weights())
    assert not np.allclose(resumed.weights(), killed.weights())
    assert whole.stream.seen == list(range(8 * ITERATIONS))
    assert resumed.stream.seen == list(range(4 * ITERATIONS, 8 * ITERATIONS))
    assert resumed.trainer.state.iteration == 4 * ITERATIONS


def test_a_complete_training_ends_at_once_and_goes_on_when_it_gets_more_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.pt"
    first = Run(path, 2)
    first.trainer.run()
    again = Run(path, 2)
    with caplog.at_level(logging.INFO):
        again.trainer.run()
    assert f"{path}: this training is complete after epoch 2; raise max_epochs to go on" in caplog.text
    assert again.stream.seen == []
    np.testing.assert_array_equal(again.weights(), first.weights())
    longer, whole = Run(path, 4), Run(tmp_path / "whole.pt", 4)
    longer.trainer.run()
    whole.trainer.run()
    np.testing.assert_array_equal(longer.weights(), whole.weights())


def test_state_is_plain_data_written_whole(tmp_path: Path) -> None:
    run = Run(tmp_path / "state.pt", 1)
    run.trainer.run()
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]  # no partial file stays
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state) == {"network", "optimizer", "scheduler", "progress"}
    assert state["progress"] == {"epoch": 1, "iteration": ITERATIONS}


def test_an_interrupted_write_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "state.pt", 1)
    run.trainer.run()

    def half(_: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    resumed = Run(tmp_path / "state.pt", 2)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="disk full"):
            resumed.trainer.run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["epoch"] == 1


def _one_step(tmp_path: Path, max_norm: float) -> np.ndarray:
    """What one step of plain gradient descent with a rate of 1 subtracts from the weights."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)
    before = torch.cat([p.detach().flatten() for p in network.parameters()]).numpy().copy()
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
    return before - torch.cat([p.detach().flatten() for p in network.parameters()]).numpy()


def test_gradients_are_clipped_to_their_norm_and_keep_their_direction(tmp_path: Path) -> None:
    free, clipped = _one_step(tmp_path, 1e9), _one_step(tmp_path, 0.25)
    assert np.linalg.norm(free) > 1
    assert np.linalg.norm(clipped) == pytest.approx(0.25, rel=1e-4)
    np.testing.assert_allclose(clipped, free * 0.25 / np.linalg.norm(free), rtol=1e-3)


def test_gradients_below_the_norm_stay(tmp_path: Path) -> None:
    free = _one_step(tmp_path, 1e9)
    np.testing.assert_array_equal(_one_step(tmp_path, float(np.linalg.norm(free)) + 1), free)


def _log_losses(interval: int, first_iteration: int, losses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    loss = NoduleLoss()

    def step(_: Engine, batch: float) -> None:
        loss.parts = {"class": batch, "mask": 10 * batch}

    engine = Engine(step)
    LossParts(loss, interval).attach(engine)
    engine.state.iteration = first_iteration
    engine.state.epoch, engine.state.max_epochs, engine.state.epoch_length = 0, 1, first_iteration + len(losses)
    with caplog.at_level(logging.INFO, logger="scripts.engines"):
        engine.run(losses)


def test_loss_parts_are_logged_as_means_of_their_interval(caplog: pytest.LogCaptureFixture) -> None:
    _log_losses(2, 0, [1.0, 2.0, 3.0, 5.0, 7.0], caplog)
    lines = [record.getMessage() for record in caplog.records if record.name == "scripts.engines"]
    assert lines == ["iteration 2: class 1.5000, mask 15.0000", "iteration 4: class 4.0000, mask 40.0000"]


def test_loss_parts_after_a_resume_are_means_of_what_ran(caplog: pytest.LogCaptureFixture) -> None:
    _log_losses(3, 4, [2.0, 4.0], caplog)
    lines = [record.getMessage() for record in caplog.records if record.name == "scripts.engines"]
    assert lines == ["iteration 6: class 3.0000, mask 30.0000"]


def test_epoch_handler_names_the_epoch_that_begins() -> None:
    sampler, epochs = EpochSampler(2), []
    engine = Engine(lambda engine, batch: epochs.append(sampler.epoch))
    EpochHandler(sampler).attach(engine)
    engine.run([0, 1], max_epochs=3)
    assert epochs == [1, 1, 2, 2, 3, 3]


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
    assert candidates is data["candidates"]
    np.testing.assert_allclose(
        truth.centres_ras_mm, [[6, -4, 5], [10, -5, 3]]
    )  # x = 10 - 2 j, y = i - 5, z = k / 2 + 3
    np.testing.assert_allclose(truth.diameters_mm, [6, 8])
    assert truth.is_nodule.tolist() == [True, False]
    assert isinstance(data["pred"], torch.Tensor)


def test_pairing_takes_a_scan_without_nodules() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4, dtype=torch.float64))
    data = {"image": image, "nodule": np.zeros((0, 4), np.float32), "label": np.zeros(0, np.int64), "candidates": []}
    truth = PairWithTruthd()(data)["pred"][1]
    assert truth.centres_ras_mm.shape == (0, 3)
    assert truth.is_nodule.shape == (0,)


def test_a_batch_is_split_into_input_and_target() -> None:
    batch = {name: torch.ones(2) * n for n, name in enumerate(("image", "nodule", "label", "mask", "has_mask"))}
    image, target = prepare_training_batch(batch, torch.device("meta"), False)
    assert set(target) == {"nodule", "label", "mask", "has_mask"}
    assert image.device.type == "meta"
    assert all(value.device.type == "meta" for value in target.values())
    image, target = prepare_training_batch(batch, torch.device("cpu"), True)
    assert image is batch["image"]
    assert target["mask"] is batch["mask"]
