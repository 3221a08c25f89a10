"""Precision, and tiles stitched at the stride of the output."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from scipy import ndimage
from torch import Tensor, nn

from scripts.core.errors import SettingError, UserError
from scripts.search.inferer import (
    BACKGROUND_LOGIT,
    PRECISIONS,
    PrecisionInferer,
    TileInferer,
    choose_precision,
    prepare_scan,
)
from scripts.search.tiles import BLOCK, Tiling, blocks_near, plan_tiles


@pytest.mark.parametrize(("name", "device"), [("float32", "cpu"), ("bfloat16", "cpu"), ("float16", "cuda")])
def test_named_precision_is_taken(name: str, device: str) -> None:
    assert choose_precision(name, torch.device(device)) == getattr(torch, name)


@pytest.mark.parametrize(
    ("name", "device", "known"),
    [("float16", "cpu", "auto, float32, bfloat16 on cpu")]
    + [(name, "cuda", "auto, float32, bfloat16, float16 on cuda") for name in ("half", "Float32", "", "float64")],
)
def test_other_precisions_are_refused_and_the_known_ones_listed(name: str, device: str, known: str) -> None:
    with pytest.raises(UserError, match=f"one of {known}, got '{name}'"):
        choose_precision(name, device)


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
    assert (choose_precision("auto", "cpu"), choose_precision("auto", "mps")) == (expected, torch.float32)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), torch.float32),  # V100
        ((7, 5), torch.float32),  # T4, RTX 20
        ((8, 0), torch.bfloat16),  # A100
        ((8, 6), torch.bfloat16),  # RTX 30
        ((9, 0), torch.bfloat16),  # H100
        ((12, 0), torch.bfloat16),  # RTX 50
    ],
)
def test_auto_takes_what_the_gpu_multiplies_itself(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    """The GPU's own number is given, not the answer; emulation, which torch counts as support, does not count."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision("auto", "cuda:0") == expected


def watched() -> tuple[nn.Module, list[torch.dtype]]:
    """A convolution, whose cells see themselves alone, and the list of the types that it computes in."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 2, stride=2)
    seen: list[torch.dtype] = []
    network.register_forward_hook(lambda _network, _inputs, answer: seen.append(answer.dtype))
    return network, seen


def _image(*shape: int) -> MetaTensor:
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    return MetaTensor(noise, affine=torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_network_runs_in_the_precision_and_answers_in_float32(name: str) -> None:
    (network, seen), image = watched(), _image(4, 6, 8).as_tensor()
    answer = PrecisionInferer(SimpleInferer(), name)(image, network)
    tolerance = 0.0 if name == "float32" else 0.02
    torch.testing.assert_close(answer, network(image), rtol=tolerance, atol=tolerance)
    assert seen == [PRECISIONS[name], torch.float32]  # with the call autocast ends


@pytest.mark.parametrize(
    ("name", "training", "words"),
    [
        ("double", False, "expected one of auto, float32, bfloat16, float16, got 'double'"),
        ("float16", True, "expected auto, float32 or bfloat16 in training, got 'float16'"),
    ],
)
def test_an_unknown_precision_and_training_in_float16_are_refused_at_once(
    name: str, training: bool, words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        PrecisionInferer(SimpleInferer(), name, training=training)


def test_further_arguments_reach_the_inner_inferer() -> None:
    image, network = torch.zeros(1), watched()[0]
    inner = Mock(return_value=image)
    PrecisionInferer(inner, "float32")(image, network, 5, extra="yes")
    inner.assert_called_once_with(image, network, 5, extra="yes")


# --- tiles

TILE = [32, 32, 32]


class Far(nn.Sequential):
    """A network that sees two cells around each; ``free`` tells whether its tiles may be cut."""

    def __init__(self, free: bool = True) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv3d(1, 3, 2, stride=2), nn.ReLU(), nn.Conv3d(3, 4, 5, padding=2))
        self.any_tile_size = free
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Any:
        self.shapes.append(tuple(image.shape))
        return super().forward(image)


def _lungs(inside: np.ndarray) -> MetaTensor:
    """Distances on the grid of 1 mm voxels."""
    distance = ndimage.distance_transform_edt(~inside).astype(np.float32)
    return MetaTensor(torch.from_numpy(distance)[None], affine=torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 80, 64), (96, 32, 48)])
@torch.no_grad()
def test_tiles_stitch_to_what_one_pass_gives(shape: tuple[int, int, int], overlap: float) -> None:
    """Exact for a network that looks at its own cell only."""
    (network, _), image = watched(), _image(*shape).as_tensor()
    stitched = PrecisionInferer(TileInferer(TILE, overlap, 2), "float32")(image, network)
    torch.testing.assert_close(stitched, network(image), rtol=0, atol=2e-6)


def _one_by_one(image: Tensor, network: nn.Module, tiles: list[Any]) -> Tensor:
    """The plain path: each tile by itself, weighted sums in double precision."""
    shape = [n // 2 for n in image.shape[2:]]
    maps, weights = np.zeros((4, *shape)), np.zeros(shape)
    for tile in tiles:
        crop = image[(0, 0, *(slice(p.start * BLOCK, p.stop * BLOCK) for p in tile))]
        pred = network(crop[None, None])[0].double().numpy()
        axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (0.125 * n)) ** 2) for n in pred.shape[1:]]
        weight = np.maximum(np.einsum("i,j,k->ijk", *axes), 1e-3)
        cells = tuple(slice(p.start * BLOCK // 2, p.stop * BLOCK // 2) for p in tile)
        maps[(slice(None), *cells)] += pred * weight
        weights[cells] += weight
    maps[:, weights > 0] /= weights[weights > 0]
    maps[0, weights == 0] = BACKGROUND_LOGIT
    return torch.from_numpy(maps)[None].float()


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("at_once", [1, 3])
@torch.no_grad()
def test_tiles_are_weighed_as_one_by_one(free: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = Far(free), _image(96, 48, 64)
    inside = np.zeros((96, 48, 64), dtype=bool)
    inside[4:20, 10:30, 4:60], inside[86:90, 22:26, 22:26] = True, True
    lungs = _lungs(inside)
    monkeypatch.setattr("scripts.search.inferer.LEAST_BLOCKS", 2)
    tiling = Tiling((4,) * 3, (2,) * 3, (2 if free else 4,) * 3)
    tiles = plan_tiles(blocks_near(lungs, 5.0, np.eye(4), inside.shape, BLOCK), tiling)
    found = TileInferer(TILE, 0.5, 2, 5.0, at_once=at_once)(image, network, lung_distance_mm=lungs)
    counts = [shape[0] for shape in network.shapes]
    assert (sum(counts), max(counts) <= at_once) == (len(tiles), True)
    assert all(shape[2:] == (32, 32, 32) for shape in network.shapes) is not free
    torch.testing.assert_close(found, _one_by_one(image.as_tensor(), network, tiles), rtol=0, atol=2e-5)


@torch.no_grad()
def test_near_the_lungs_nothing_depends_on_what_is_left_out() -> None:
    """The same tiles, some of them skipped: equal wherever something was searched."""
    network, image, inferer = Far(free=False), _image(128, 32, 32), TileInferer(TILE, 0.0, 2, 5.0)
    lungs = _lungs(np.isin(np.arange(128), range(4, 12))[:, None, None] & np.ones((1, 32, 32), dtype=bool))
    everything, near = inferer(image, network), inferer(image, network, lung_distance_mm=lungs)
    assert (near[0, 0] == BACKGROUND_LOGIT).sum() == 3 * 16**3
    torch.testing.assert_close(near[:, :, :16], everything[:, :, :16], rtol=0, atol=0)
    assert not near[:, 1:, 16:].any()


@pytest.mark.parametrize(
    ("size", "overlap", "blocks"),
    [
        *((160, 0.05, 1), (160, 0.1, 2), (96, 0.0, 0), (96, 0.1, 2), (96, 0.167, 2), (96, 0.25, 3), (96, 0.333, 4)),
        *((64, 0.0, 0), (64, 0.1, 1), (64, 0.5, 4), (16, 0.5, 1)),
    ],
)
def test_an_overlap_is_rounded_up_to_whole_blocks(size: int, overlap: float, blocks: int) -> None:
    inferer = TileInferer([size] * 3, overlap, 2)
    assert (inferer.tile_blocks, inferer.overlap_blocks) == ((size // 8,) * 3, (blocks,) * 3)


@pytest.mark.parametrize(
    ("size", "overlap", "stride", "words"),
    [(size, overlap, 2, "tile_overlap") for size, overlap in ((96, 0.6), (96, -0.5), (40, 0.0), (0, 0.1))]
    + [(64, 0.1, stride, f"stride {stride}: expected a divisor of 8") for stride in (3, 16)],
)
def test_tiles_that_cannot_be_stitched_are_refused(size: int, overlap: float, stride: int, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TileInferer([size] * 3, overlap, stride)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 40), (1, 1, 16, 32, 32), (2, 1, 32, 32, 32)])
def test_an_image_that_no_tile_fits_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match="pad it"):
        TileInferer(TILE, 0.5, 2)(torch.zeros(shape), Far())


# --- not enough memory


class Hungry(Far):
    """Runs out of memory for more than ``most`` tiles at once, or for the first ``times`` calls."""

    def __init__(self, most: int, times: int = 10**6) -> None:
        super().__init__()
        self.most, self.times = most, times

    def forward(self, image: Tensor) -> Any:
        if image.shape[0] > self.most and self.times > 0:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(image)


@torch.no_grad()
def test_too_little_memory_for_several_tiles_gives_the_same_one_by_one() -> None:
    image = _image(64, 64, 64)
    inferer = PrecisionInferer(TileInferer(TILE, 0.0, 2, at_once=4), "float32")
    plenty = inferer(image, Far())
    assert inferer.remarks == PrecisionInferer(SimpleInferer(), "float32").remarks == ()
    torch.testing.assert_close(inferer(image, Hungry(most=1)), plenty, rtol=0, atol=2e-5)
    assert inferer.remarks == ("cpu has too little memory for 4 tiles of the network at once",)
    with pytest.raises(MemoryError, match="cpu: too little memory for one tile"):
        inferer(image, Hungry(most=0))
    inferer(image, Far())
    assert inferer.remarks == ()  # of the last image


@torch.no_grad()
def test_too_little_memory_on_the_device_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU: the image says that it lies there; the network moves away and back."""
    moves: list[str] = []
    network, image = Hungry(most=0, times=2), _image(48, 32, 32)
    monkeypatch.setattr(network, "to", lambda device: moves.append(str(device)))
    inferer = TileInferer(TILE, 0.0, 2, at_once=2)
    monkeypatch.setattr("scripts.search.inferer.is_cpu", lambda device: False)
    found = PrecisionInferer(inferer, "float32")(image, network)
    torch.testing.assert_close(found, inferer(image, Far()), rtol=0, atol=2e-5)
    assert moves == ["cpu", "cpu"]  # there, and back to the image's device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.no_grad()
def test_a_gpu_without_memory_gives_the_answer_of_the_cpu() -> None:
    image, inferer = _image(64, 64, 64), TileInferer(TILE, 0.5, 2, at_once=2)
    expected, network = inferer(image, Far()), Far().cuda()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        found = inferer(image.cuda(), network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "CPU" in inferer.remarks[-1]
    assert next(network.parameters()).is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5)


def test_a_whole_scan_goes_to_the_inferer_with_its_lungs() -> None:
    batch = {"image": _image(2, 2, 2), "lung_distance_mm": _image(1, 1, 1), "label": torch.ones(1)}
    image, label, *arguments = prepare_scan(batch, "cpu")
    assert (image.shape, label) == ((1, 1, 2, 2, 2), batch["label"])
    assert arguments == [(), {"lung_distance_mm": batch["lung_distance_mm"]}]


# --- training


@pytest.mark.parametrize(("edge", "expected"), [(32, torch.float32), (48, torch.bfloat16)])
def test_crops_whose_bfloat16_gradients_would_be_wrong_are_trained_in_float32(
    edge: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.search.inferer.choose_precision", lambda *_: torch.bfloat16)
    network, seen = watched()
    PrecisionInferer(SimpleInferer(), "auto", training=True)(torch.zeros(1, 1, edge, edge, edge), network)
    assert seen == [expected]


def test_bfloat16_by_name_is_refused_where_its_gradients_would_be_wrong() -> None:
    with pytest.raises(SettingError, match="expected crops of 48 voxels or more on a CPU"):
        PrecisionInferer(SimpleInferer(), "bfloat16", training=True)(torch.zeros(1, 1, 32, 32, 32), watched()[0])
