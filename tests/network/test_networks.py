"""Laws that every network obeys."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from scripts.network import CompactNet, PaperNet, load_network
from scripts.network.blocks import COARSEST_STRIDE, PRIOR_PROBABILITY
from tests.networks import TOLERANCE, as_if_trained, noise

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(16, 32, 48), (48, 16, 32), (32, 64, 16)]

# Narrow ones of every kind that is built otherwise, and both as they are.
SMALL: dict[str, Callable[[], nn.Module]] = {
    "compact": partial(CompactNet, (4, 6, 8, 8), layers=2, dim=8, heads=2, feed_forward=16),
    "compact, a mask logit per cell": partial(
        CompactNet, (4, 6, 8, 8), layers=1, dim=8, heads=2, feed_forward=16, mask_logits=1
    ),
    "compact without encoder": partial(CompactNet, (4, 6, 8, 8), layers=0, dim=8, heads=2, feed_forward=16),
    "paper": partial(PaperNet, (4, 6, 6, 6), (4, 6), lateral=6, dim=8, layers=2, heads=2, feed_forward=16, dropout=0.0),
    "paper with four levels": partial(
        PaperNet, (4, 6, 6, 6), (4, 6), lateral=6, levels=(2, 4, 8, 16), dim=8, layers=1, heads=2, feed_forward=16
    ),
}
FULL: dict[str, Callable[[], nn.Module]] = {"compact": CompactNet, "paper": PaperNet}
# The paper's depth at a quarter of its width: its bfloat16 takes a minute on a processor that does not multiply it.
DEEP = partial(PaperNet, (8, 16, 32, 32), (8, 16), lateral=16, dim=32, layers=6, heads=4, feed_forward=64, dropout=0.0)
CHANNELS = {"compact": 13, "compact, a mask logit per cell": 6, "compact without encoder": 13}
WITHOUT_QUERIES = ("compact without encoder", "encoder.level_embedding")  # nothing reads it there


def build(network: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return network()


@pytest.fixture(scope="module", params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    """A narrow network, as if trained; not to be changed."""
    return as_if_trained(build(SMALL[request.param]))


@pytest.fixture(scope="module", params=FULL)
def full(request: pytest.FixtureRequest) -> nn.Module:
    """A network as it is, as if trained; not to be changed."""
    return as_if_trained(build(FULL[request.param]))


# --- the maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_one_set_of_maps_at_half_the_size(name: str) -> None:
    network = as_if_trained(build(SMALL[name]))
    for shape in SHAPES:
        with torch.no_grad():
            maps = network(noise(2, 1, *shape))
        assert network.out_channels == CHANNELS.get(name, 6)
        assert maps.shape == (2, network.out_channels, *(n // network.stride for n in shape))
        assert maps.isfinite().all()
        assert maps.std() > 0.1


@pytest.mark.parametrize("shape", [(24, 32, 32), (32, 34, 32), (32, 32, 31), (8, 16, 16), (100, 96, 96)])
def test_sizes_that_are_no_multiples_of_16_are_refused(small: nn.Module, shape: tuple[int, int, int]) -> None:
    i, j, k = shape
    with pytest.raises(ValueError, match=rf"multiples of {COARSEST_STRIDE} voxels, got \({i}, {j}, {k}\); pad it"):
        small(torch.zeros(1, 1, *shape))


def test_items_of_a_batch_do_not_see_each_other(small: nn.Module) -> None:
    batch = noise(3, 1, 16, 32, 48)
    with torch.no_grad():
        together, alone = small(batch), torch.cat([small(item[None]) for item in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_every_parameter(name: str) -> None:
    """The level embedding joins the queries only, which fresh attention does not look at."""
    network = as_if_trained(build(SMALL[name])).train()
    network(noise(2, 1, 32, 32, 48)).square().mean().backward()
    without = [(name, own) for own, one in network.named_parameters() if one.grad is None or not one.grad.any()]
    assert without == ([WITHOUT_QUERIES] if name == WITHOUT_QUERIES[0] else [])


@pytest.mark.parametrize("name", FULL)
def test_nodules_are_rare_before_training(name: str) -> None:
    with torch.no_grad():
        logits = build(FULL[name]).eval()(noise(1, 1, 32, 32, 32))[:, 0]
    assert torch.sigmoid(logits).mean().item() == pytest.approx(PRIOR_PROBABILITY, rel=0.1)


# --- other precisions and layouts -------------------------------------------------------------------------------------


def test_channels_last_gives_the_same_maps(full: nn.Module) -> None:
    batch = noise(2, 1, 16, 32, 48)
    ready = load_network(copy.deepcopy(full), "cpu")
    with torch.no_grad():
        maps = full(batch)
        assert torch.equal(maps, full(batch.clone()))
        torch.testing.assert_close(ready(batch), maps, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("make", "most", "mean"),
    [pytest.param(CompactNet, 0.15, 0.015, id="compact"), pytest.param(DEEP, 0.2, 0.03, id="paper, narrow")],
)
def test_bfloat16_stays_close_to_float32(make: Callable[[], nn.Module], most: float, mean: float) -> None:
    """bfloat16 keeps 8 bits. Where measured, values strayed by 0.09 of the maps' spread at most and 0.009 on average
    for compact, and by 0.12 and 0.019 through the six encoder layers (0.18 and 0.021 at the paper's full width)."""
    network = as_if_trained(build(make))
    image = noise(1, 1, 48, 64, 48)  # no shorter edge is searched in bfloat16 on a CPU
    with torch.no_grad():
        exact = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(image)
    assert rough.dtype == torch.bfloat16
    strayed = (rough.float() - exact).abs() / exact.std(dim=(0, 2, 3, 4), keepdim=True)
    assert strayed.max() < most
    assert strayed.mean() < mean


# --- other runtimes ---------------------------------------------------------------------------------------------------


def test_scripted_and_exported_networks_equal_the_eager_one(small: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 announces the end of scripting
        scripted = torch.jit.script(small)
    with torch.no_grad():
        exported = torch.export.export(small, (noise(2, 1, *SHAPES[0]),)).module()
        for number, shape in enumerate(SHAPES):
            image = noise(2, 1, *shape, seed=number + 1)
            for other in (scripted, exported) if shape == SHAPES[0] else (scripted,):
                torch.testing.assert_close(other(image), small(image), rtol=0, atol=TOLERANCE)
    with pytest.raises(Exception, match=r"multiples of 16 voxels, got \(16, 16, 24\)"):
        scripted(torch.zeros(1, 1, 16, 16, 24))


def test_onnx_runtime_agrees(tmp_path: Path) -> None:
    """With the paper's network; docs/export.md exports the compact one."""
    network = as_if_trained(SMALL["paper with four levels"]())
    example, image = noise(1, 1, 16, 32, 48), noise(1, 1, 16, 32, 48, seed=1)
    with warnings.catch_warnings():
        # The exporter of torch 2.13 asks its own tree library an old question.
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
        torch.onnx.export(
            network, (example,), str(tmp_path / "model.onnx"), dynamo=True, opset_version=20, verbose=False
        )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (maps,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(maps, network(image).numpy(), rtol=0, atol=TOLERANCE)
