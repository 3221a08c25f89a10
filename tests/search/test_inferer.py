"""Precision, and tiles stitched at the stride of the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
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
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("auto", "mps") == torch.float32


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
    assert answer.dtype == torch.float32
    tolerance = 0.0 if name == "float32" else 0.02
    torch.testing.assert_close(answer, network(image), rtol=tolerance, atol=tolerance)
    assert network.seen == [PRECISIONS[name], torch.float32]  # with the call autocast ends
    with pytest.raises(ValueError, match="'double'"):
        PrecisionInferer(SimpleInferer(), "double")(image, network)
    assert len(network.seen) == 2


def test_further_arguments_reach_the_inner_inferer() -> None:
    class Noting(Inferer):
        def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
            self.got = (args, kwargs)
            return inputs

    inner = Noting()
    PrecisionInferer(inner, "float32")(torch.zeros(1), Watched(), 5, extra="yes")
    assert inner.got == ((5,), {"extra": "yes"})


# --- tiles

TILE = [32, 32, 32]


class Far(nn.Module):
    """A network that sees two cells around each; ``free`` tells whether its tiles may be cut."""

    def __init__(self, free: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.any_tile_size = free
        self.near = nn.Conv3d(1, 3, 2, stride=2)
        self.far = nn.Conv3d(3, 4, 5, padding=2)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape))
        answer: Tensor = self.far(torch.relu(self.near(image)))
        return answer


def _image(*shape: int) -> MetaTensor:
    noise = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    return MetaTensor(noise, affine=torch.eye(4, dtype=torch.float64))


def _lungs(inside: np.ndarray) -> MetaTensor:
    """Distances on the grid of 1 mm voxels."""
    distance = ndimage.distance_transform_edt(~inside).astype(np.float32)
    return MetaTensor(torch.from_numpy(distance)[None], affine=torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 80, 64), (96, 32, 48)])
def test_tiles_stitch_to_what_one_pass_gives(shape: tuple[int, int, int], overlap: float) -> None:
    """Exact for a network that looks at its own cell only."""
    network, image = Watched(), torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stitched = PrecisionInferer(TileInferer(TILE, overlap, 2), "float32")(image, network)
        assert stitched.shape == (1, 3, *(n // 2 for n in shape))
        torch.testing.assert_close(stitched, network(image), rtol=0, atol=2e-6)


def _one_by_one(image: Tensor, network: nn.Module, tiles: list[Any]) -> Tensor:
    """The plain path: each tile by itself, weighted sums in double precision."""
    shape = [n // 2 for n in image.shape[2:]]
    maps, weights = np.zeros((4, *shape)), np.zeros(shape)
    for tile in tiles:
        crop = image[(0, 0, *(slice(p.start * BLOCK, p.stop * BLOCK) for p in tile))]
        pred = network(crop[None, None])[0].double().numpy()
        sizes = pred.shape[1:]
        axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (0.125 * n)) ** 2) for n in sizes]
        weight = np.maximum(np.einsum("i,j,k->ijk", *axes), 1e-3)
        cells = tuple(slice(p.start * BLOCK // 2, p.stop * BLOCK // 2) for p in tile)
        maps[(slice(None), *cells)] += pred * weight
        weights[cells] += weight
    maps[:, weights > 0] /= weights[weights > 0]
    maps[0, weights == 0] = BACKGROUND_LOGIT
    return torch.from_numpy(maps)[None].float()


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("at_once", [1, 3])
def test_tiles_are_weighed_as_one_by_one(free: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = Far(free), _image(96, 48, 64)
    inside = np.zeros((96, 48, 64), dtype=bool)
    inside[4:20, 10:30, 4:60], inside[86:90, 22:26, 22:26] = True, True
    lungs = _lungs(inside)
    monkeypatch.setattr("scripts.search.inferer.LEAST_BLOCKS", 2)
    tiling = Tiling((4,) * 3, (2,) * 3, (2 if free else 4,) * 3)
    tiles = plan_tiles(blocks_near(lungs, 5.0, np.eye(4), inside.shape, BLOCK), tiling)
    with torch.no_grad():
        found = TileInferer(TILE, 0.5, 2, 5.0, at_once=at_once)(image, network, lung_distance_mm=lungs)
        assert sum(shape[0] for shape in network.shapes) == len(tiles)
        assert max(shape[0] for shape in network.shapes) <= at_once
        assert all(shape[2:] == (32, 32, 32) for shape in network.shapes) is not free
        torch.testing.assert_close(found, _one_by_one(image.as_tensor(), network, tiles), rtol=0, atol=2e-5)


def test_near_the_lungs_nothing_depends_on_what_is_left_out() -> None:
    """The same tiles, some of them skipped: equal wherever something was searched."""
    network, image = Far(free=False), _image(128, 32, 32)
    inside = np.zeros((128, 32, 32), dtype=bool)
    inside[4:12] = True
    inferer = TileInferer(TILE, 0.0, 2, 5.0)
    with torch.no_grad():
        everything = inferer(image, network)
        near = inferer(image, network, lung_distance_mm=_lungs(inside))
    assert (near[0, 0] == BACKGROUND_LOGIT).sum() == 3 * 16**3
    torch.testing.assert_close(near[:, :, :16], everything[:, :, :16], rtol=0, atol=0)
    assert not near[:, 1:, 16:].any()


def test_an_overlap_is_rounded_up_to_whole_blocks() -> None:
    sizes = {(160, 0.05): (20, 1), (96, 0.1): (12, 2), (96, 0.25): (12, 3), (64, 0.5): (8, 4), (96, 0.0): (12, 0)}
    for (size, overlap), blocks in sizes.items():
        inferer = TileInferer([size] * 3, overlap, 2)
        assert (inferer.tile_blocks[0], inferer.overlap_blocks[0]) == blocks


@pytest.mark.parametrize(("size", "overlap"), [(96, 0.6), (96, -0.5), (40, 0.0), (0, 0.1)])
def test_tiles_that_cannot_be_stitched_are_refused(size: int, overlap: float) -> None:
    with pytest.raises(SettingError, match="tile_overlap"):
        TileInferer([size] * 3, overlap, 2)


@pytest.mark.parametrize("stride", [3, 16])
def test_a_stride_that_divides_no_block_is_refused(stride: int) -> None:
    with pytest.raises(SettingError, match=f"stride {stride}: expected a divisor of 8"):
        TileInferer([64] * 3, 0.1, stride)


@pytest.mark.parametrize(
    ("size", "overlap", "blocks"),
    [(96, 0.167, 2), (96, 0.25, 3), (96, 0.333, 4), (160, 0.1, 2), (64, 0.1, 1), (64, 0.0, 0), (16, 0.5, 1)],
)
def test_tiles_overlap_by_whole_blocks_and_no_less_than_asked(size: int, overlap: float, blocks: int) -> None:
    assert TileInferer([size] * 3, overlap, 2).overlap_blocks == (blocks,) * 3


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

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[0] > self.most and self.times > 0:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(image)


def test_too_little_memory_for_several_tiles_gives_the_same_one_by_one() -> None:
    image = _image(64, 64, 64)
    inferer = TileInferer(TILE, 0.0, 2, at_once=4)
    wrapped = PrecisionInferer(inferer, "float32")
    with torch.no_grad():
        plenty = wrapped(image, Far())
        assert wrapped.remarks == PrecisionInferer(SimpleInferer(), "float32").remarks == ()
        scarce = wrapped(image, Hungry(most=1))
        torch.testing.assert_close(scarce, plenty, rtol=0, atol=2e-5)
        assert wrapped.remarks == ("cpu has too little memory for 4 tiles of the network at once",)
        with pytest.raises(MemoryError, match="cpu: too little memory for one tile"):
            inferer(image, Hungry(most=0))
        wrapped(image, Far())
    assert wrapped.remarks == ()  # of the last image


def test_too_little_memory_on_the_device_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU: the image says that it lies there; the network moves away and back."""
    moves: list[str] = []
    network, image = Hungry(most=0, times=2), _image(48, 32, 32)
    monkeypatch.setattr(network, "to", lambda device: moves.append(str(device)))
    inferer = TileInferer(TILE, 0.0, 2, at_once=2)
    monkeypatch.setattr("scripts.search.inferer.is_cpu", lambda device: False)
    with torch.no_grad():
        found = PrecisionInferer(inferer, "float32")(image, network)
        torch.testing.assert_close(found, inferer(image, Far()), rtol=0, atol=2e-5)
    assert moves == ["cpu", "cpu"]  # there, and back to the image's device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_without_memory_gives_the_answer_of_the_cpu() -> None:
    image, inferer = _image(64, 64, 64), TileInferer(TILE, 0.5, 2, at_once=2)
    with torch.no_grad():
        expected = inferer(image, Far())
        network = Far().cuda()
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
    image, label, arguments, keywords = prepare_scan(batch, "cpu")
    assert image.shape == (1, 1, 2, 2, 2)
    assert label is not None
    assert arguments == ()
    assert keywords == {"lung_distance_mm": batch["lung_distance_mm"]}


# --- training


def test_float16_is_not_trained_in() -> None:
    with pytest.raises(SettingError, match="expected auto, float32 or bfloat16 in training, got 'float16'"):
        PrecisionInferer(SimpleInferer(), "float16", training=True)


@pytest.mark.parametrize(("edge", "expected"), [(32, torch.float32), (48, torch.bfloat16)])
def test_crops_whose_bfloat16_gradients_would_be_wrong_are_trained_in_float32(
    edge: int, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.search.inferer.choose_precision", lambda *_: torch.bfloat16)
    network, crop = Watched(), torch.zeros(1, 1, edge, edge, edge)
    PrecisionInferer(SimpleInferer(), "auto", training=True)(crop, network)
    assert network.seen == [expected]
    if edge == 32:
        with pytest.raises(SettingError, match="expected crops of 48 voxels or more on a CPU"):
            PrecisionInferer(SimpleInferer(), "bfloat16", training=True)(crop, network)
