"""Precision, and windows stitched at the stride of the output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from torch import Tensor, nn

from scripts.errors import UserError
from scripts.inferer import PRECISIONS, PrecisionError, PrecisionInferer, WindowError, WindowInferer, choose_precision


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_named_precision_is_taken(name: str) -> None:
    assert choose_precision(name, "cpu") == getattr(torch, name)
    assert choose_precision(name, torch.device("cuda:0")) == getattr(torch, name)


def test_half_precision_needs_a_gpu() -> None:
    assert choose_precision("float16", "cuda") == torch.float16
    with pytest.raises(UserError, match=r"one of auto, float32, bfloat16 on cpu, got 'float16'"):
        choose_precision("float16", "cpu")


@pytest.mark.parametrize("name", ["half", "Float32", "", "float64"])
def test_unknown_precision_is_refused_and_the_known_ones_listed(name: str) -> None:
    with pytest.raises(ValueError, match=f"one of auto, float32, bfloat16, float16 on cuda, got '{name}'"):
        choose_precision(name, "cuda")


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_tile": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_tile": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_tile": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_asks_the_processor(monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert choose_precision("auto", "cpu") == expected


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_asks_the_gpu(monkeypatch: pytest.MonkeyPatch, able: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert choose_precision("auto", "cuda:0") == expected


def test_auto_is_float32_elsewhere() -> None:
    assert choose_precision("auto", "mps") == torch.float32


class Watched(nn.Module):
    """A convolution that notes the type it computes in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 3, 2, stride=2)
        self.seen: list[torch.dtype] = []

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.convolution(image)
        self.seen.append(answer.dtype)
        return answer


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_network_runs_in_the_precision_and_answers_in_float32(name: str) -> None:
    network, image = Watched(), torch.randn(1, 1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    answer = PrecisionInferer(SimpleInferer(), name)(image, network)
    assert network.seen == [PRECISIONS[name]]
    assert answer.dtype == torch.float32
    tolerance = 0.0 if name == "float32" else 0.02
    torch.testing.assert_close(answer, network(image), rtol=tolerance, atol=tolerance)


def test_autocast_ends_with_the_call() -> None:
    network, image = Watched(), torch.zeros(1, 1, 4, 6, 8)
    PrecisionInferer(SimpleInferer(), "bfloat16")(image, network)
    network(image)
    assert network.seen == [torch.bfloat16, torch.float32]


def test_unknown_precision_is_refused_before_the_network_runs() -> None:
    network = Watched()
    with pytest.raises(ValueError, match="'double'"):
        PrecisionInferer(SimpleInferer(), "double")(torch.zeros(1, 1, 4, 6, 8), network)
    assert network.seen == []


def test_further_arguments_reach_the_inner_inferer() -> None:
    class Noting(Inferer):
        def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
            self.got = (args, kwargs)
            return inputs

    inner = Noting()
    PrecisionInferer(inner, "float32")(torch.zeros(1), Watched(), 5, extra="yes")
    assert inner.got == ((5,), {"extra": "yes"})


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("shape", [(16, 16, 16), (18, 40, 34), (52, 20, 30)])
def test_windows_stitch_to_what_one_pass_gives(shape: tuple[int, int, int], overlap: float) -> None:
    """Exact for a network that looks at its own cell only; sizes even, not multiples of the window."""
    network, image = Watched(), torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    windows = SlidingWindowInferer((16, 16, 16), sw_batch_size=2, overlap=overlap, mode="gaussian")
    with torch.no_grad():
        stitched = PrecisionInferer(windows, "float32")(image, network)
        assert stitched.shape == (1, 3, *(n // 2 for n in shape))
        torch.testing.assert_close(stitched, network(image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("overlap", [0.3, 0.28, 1.0, -0.5])
def test_windows_that_cannot_be_stitched_are_refused(overlap: float) -> None:
    with pytest.raises(WindowError, match="window_overlap"):
        WindowInferer([96, 96, 96], overlap, 2)


def test_float16_is_not_trained_in() -> None:
    with pytest.raises(PrecisionError, match="expected auto, float32 or bfloat16 in training, got 'float16'"):
        PrecisionInferer(SimpleInferer(), "float16", training=True)
    for precision in ("auto", "float32", "bfloat16"):
        PrecisionInferer(SimpleInferer(), precision, training=True)


@pytest.mark.parametrize(("edge", "expected"), [(32, torch.float32), (48, torch.bfloat16)])
def test_crops_whose_bfloat16_gradients_would_be_wrong_are_trained_in_float32(
    edge: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.inferer.choose_precision", lambda *_: torch.bfloat16)
    seen = []

    def network(image: Tensor) -> Tensor:
        answer = nn.functional.conv3d(image, torch.ones(1, 1, 1, 1, 1))
        seen.append(answer.dtype)
        return answer

    crop = torch.zeros(1, 1, edge, edge, edge)
    PrecisionInferer(SimpleInferer(), "auto", training=True)(crop, network)
    assert seen == [expected]
    if edge == 32:
        with pytest.raises(PrecisionError, match="expected crops of 48 voxels or more on a CPU"):
            PrecisionInferer(SimpleInferer(), "bfloat16", training=True)(crop, network)
