"""Weights into networks: what fits is loaded, everything else is refused with one message that names the file."""

from __future__ import annotations

import copy
import io
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.core.errors import SettingError
from scripts.core.files import OutputError
from scripts.network import CheckpointError, CompactNet, PaperNet, load_network, load_weights, save_weights
from scripts.network.checkpoint import without_old_name
from tests.networks import TOLERANCE, as_if_trained, noise

RELEASED = Path(__file__).resolve().parents[2] / "models" / "model.pt"


def small_network(seed: int = 0, width: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, width, 3), nn.BatchNorm3d(width))


def saved(tmp_path: Path, content: object) -> str:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    return str(path)


def refusal(checkpoint: str) -> str:
    """The message of the refusal, after which the network is as it was."""
    network = small_network()
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, checkpoint)
    same(network, small_network().state_dict())
    message = str(caught.value)
    assert message.startswith(f"checkpoint {checkpoint}: expected ")
    assert "\n" not in message
    return message


def same(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Assert that a network has exactly these tensors."""
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


def test_load_network_is_the_same_one_with_weights_in_channels_last(tmp_path: Path) -> None:
    """Those of older versions have a tensor that belongs to no layer."""
    trained, fresh = small_network(seed=1), small_network(seed=2)
    trained(torch.randn(2, 1, 5, 6, 7))  # moves the running statistics of the batch norm, which belong to the weights
    old = {"preset_name": torch.zeros(7, dtype=torch.uint8), **trained.state_dict()}
    assert load_network(fresh, "cpu", saved(tmp_path, old)) is fresh
    same(fresh, trained.state_dict())
    assert list(without_old_name({f"module.{name}": value for name, value in old.items()})) == [
        f"module.{name}" for name in trained.state_dict()
    ]
    wide = load_network(nn.Conv3d(4, 4, 3), torch.device("cpu")).weight
    assert isinstance(wide, Tensor)
    assert wide.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("build", [CompactNet, PaperNet])
def test_folded_networks_compute_the_same_with_fewer_layers(build: Callable[[], nn.Module]) -> None:
    network = as_if_trained(build())
    before = copy.deepcopy(network.state_dict())
    ready = load_network(network, "cpu", fuse=True)
    assert sum(isinstance(module, nn.BatchNorm3d) for module in network.modules()) > 10
    assert not any(isinstance(module, nn.BatchNorm3d) for module in ready.modules())
    image = noise(1, 1, 32, 48, 32)
    with torch.no_grad(), torch.profiler.profile() as profile:
        maps = ready(image)
    assert not [event.name for event in profile.events() if "slow_conv3d" in event.name]
    with torch.no_grad():
        torch.testing.assert_close(maps, network(image), rtol=0, atol=10 * TOLERANCE)
    same(network, before)
    assert getattr(ready, "any_tile_size", False) is getattr(network, "any_tile_size", False)


@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_folded_convolutions_keep_to_the_precision_that_is_asked_for(padding: int | str) -> None:
    plain = nn.Sequential(nn.Conv3d(2, 3, 3, padding=padding))
    ready, image = load_network(plain, "cpu", fuse=True), noise(1, 2, 5, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(ready(image), plain(image), rtol=0, atol=TOLERANCE)
        assert torch.equal(ready.double()(image.double()), plain.double()(image.double()))
        with torch.autocast("cpu"):
            assert torch.equal(ready.float()(image), plain.float()(image))
    assert ready.to("meta")(image.to("meta")).shape == plain(image).shape  # operations are counted there


OWN = small_network().state_dict()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            small_network(width=4).state_dict(),
            "the 7 tensors of Sequential, got 7, of which 0 do not belong to it; 6 are missing or of another shape "
            "(first: 0.weight, expected [3, 1, 3, 3, 3], got [4, 1, 3, 3, 3]). Use the weights of this network, or the",
        ),
        (nn.Linear(2, 2).state_dict(), "got 2, of which 2 do not belong to it; 7 are missing"),
        (
            OWN | {"2.weight": torch.zeros(1)},
            "1 do not belong to it; 0 are missing or of another shape (first: 2.weight",
        ),
        ({"network": OWN, "progress": {"epoch": 3}}, "got 2, of which 2 do not belong to it"),
        (OWN | {"0.bias": [0.0] * 3}, "1 are missing or of another shape (first: 0.bias, expected [3], got [])"),
        (torch.zeros(3), "a state dict, got Tensor; save network.state_dict()"),
        ([1, 2], "a state dict, got list; save network.state_dict()"),
    ],
    ids=["widths", "network", "more", "training", "no tensor", "a tensor", "a list"],
)
def test_other_weights(content: object, said: str, tmp_path: Path) -> None:
    assert said in refusal(saved(tmp_path, content))


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pt", tmp_path):
        assert "found none; check --checkpoint" in refusal(str(path))


def torch_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(OWN, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        *(
            whole[: int(share * len(whole))]
            for whole in map(torch_file, (True, False))
            for share in (0, 0.01, 0.5, 0.999)
        ),
    ],
    ids=["text", "HDF5", "web page", "git-lfs pointer", *(f"truncated {n}" for n in range(8))],
)
def test_other_kinds_of_file_and_truncated_ones(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    said = (
        r"expected weights saved by torch, got a file that cannot be read as such \(\w+\); download or train it again"
    )
    assert re.search(said, refusal(str(path)))


class Trap:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, plain: bool) -> None:
    folder = tmp_path / "trapped"
    content = {"0.weight": Trap(folder)}
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(content)) if plain else torch.save(content, path)
    assert "a file that cannot be read as such (UnpicklingError)" in refusal(str(path))
    assert not folder.exists()
    torch.load(path, weights_only=False) if not plain else pickle.loads(path.read_bytes())
    assert folder.exists(), "the trap does not work, so the test shows nothing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(SettingError, match="found none; use --device cpu"):
        load_network(torch.nn.Conv3d(1, 1, 1), "cuda:0")


def test_released_weights_are_the_networks_tensors_alone() -> None:
    state = torch.load(RELEASED, weights_only=True)
    own = CompactNet().state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saved_weights_are_a_plain_state_dict_that_loads(tmp_path: Path) -> None:
    trained, fresh = small_network(seed=1), small_network(seed=2)
    path = tmp_path / "new" / "model.pt"
    for _ in range(2):
        save_weights(load_network(trained, "cpu"), path)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]
    assert list(torch.load(path, weights_only=True)) == list(OWN)
    load_weights(fresh, str(path))
    same(fresh, trained.state_dict())
    with pytest.raises(OutputError, match="expected a folder that can be written to"):
        save_weights(trained, path / "model.pt")
    other = tmp_path / "other.pt"
    save_weights(trained, other)
    assert other.read_bytes() == path.read_bytes(), "a name or a time is written into the file"


def test_interrupted_saving_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    save_weights(small_network(seed=1), path)
    before = path.read_bytes()

    def fill_the_disk(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OutputError, match=r"model\.pt: expected room for \d+ bytes .*No space left"):
        save_weights(small_network(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
