"""The page about the networks says what the code is, and the pictures show it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scripts.network import CompactNet, PaperNet
from scripts.network.blocks import FuseUp
from scripts.network.config import network_in
from tools.network import describe
from tools.network.__main__ import main
from tools.network.anatomy import IMAGE, MAPS, NETWORKS, Anatomy, Link, anatomy, flops_per_voxel, group_of
from tools.network.describe import BEGIN, END, tables, with_generated
from tools.network.drawing import description, thousands

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def networks() -> dict[str, Anatomy]:
    return {name: anatomy(partial(network_in, files)) for name, files in NETWORKS.items()}


# --- what is in the project -------------------------------------------------------------------------------------------

AGAIN = "run python -m tools.network describe --output_dir docs"
PAGE = (DOCS / "network.md").read_text(encoding="utf-8")


def test_page_and_pictures_show_the_networks_of_the_code(networks: dict[str, Anatomy]) -> None:
    assert PAGE.split(BEGIN)[1].split(END)[0].strip() == tables(networks), AGAIN
    for name, files in NETWORKS.items():
        with Image.open(DOCS / "images" / f"network_{name}.png") as picture:
            assert picture.info["Description"] == description(networks[name]), AGAIN
        size = sum(parameter.numel() for parameter in network_in(files).parameters())
        assert sum(part.parameters for part in networks[name].parts) == size
        assert f"**{thousands(size)}**" in tables(networks)


# --- anatomy ----------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Two parts, of which one is used twice, and a sum outside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 2, stride=2)
        self.up = FuseUp(4, 4, 4)
        self.detect = nn.Conv3d(4, 5, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = self.stem(image)
        coarse = torch.nn.functional.max_pool3d(fine, 2)
        answer = self.detect(self.up(coarse, fine + 1.0))
        return torch.cat([answer, self.detect(fine)], dim=1) if self.training else answer


def test_links_of_a_network_small_enough_to_see_through() -> None:
    """What happens to a map between two parts belongs to neither: the map counts as it left the first."""
    assert anatomy(Toy).links == (
        Link(IMAGE, "stem", 1, 1),
        Link("stem", "up", 2, 4),
        Link("up", "detect", 2, 4),
        Link("detect", MAPS, 2, 5),
        Link("stem", "detect", 2, 4, training_only=True),
    )


def test_parts_of_a_network_small_enough_to_count_by_hand() -> None:
    stem, up, detect = anatomy(Toy).parts
    assert (stem.text, stem.outputs, stem.parameters) == ("convolution 2³", ((2, 4),), 4 * 8 + 4)
    assert stem.flops == pytest.approx(2 * 4 * 8 / 8)
    convolutions = 4 * 4 * (1 / 8 + 1 + 27 + 27)  # coarse map, skip, two of the residual block
    upsampling = 4 * 8  # multiply-adds: 4 channels read 8 voxels each
    assert up.flops == pytest.approx(2 * (convolutions + upsampling) / 8)
    assert (detect.parameters, detect.flops) == (25, pytest.approx(2 * 4 * 5 / 8))


def test_attention_costs_what_its_formula_says() -> None:
    """Per cell: value, output, offsets, weights and feed-forward are linear; each reading takes 8 voxels."""
    dim, heads, points, hidden, layers = 8, 2, 3, 16, 2
    network = CompactNet((4, 6, 8, 8), layers=layers, dim=dim, heads=heads, points=points, feed_forward=hidden)
    looks = heads * 2 * points  # two levels
    linear = 2 * dim * dim + dim * looks * (3 + 1) + 2 * dim * hidden
    cells = 1 / 8**3 + 1 / 16**3
    expected = layers * cells * 2 * (linear + 8 * looks * dim // heads)
    assert flops_per_voxel(network)["encoder"] == pytest.approx(expected)


def test_four_levels_cost_what_the_page_says() -> None:
    two, four = (sum(flops_per_voxel(PaperNet(levels=levels)).values()) for levels in ((8, 16), (2, 4, 8, 16)))
    assert 3.0 < four / two < 4.0
    assert "four cost more than three times the operations" in " ".join(PAGE.split())


def test_every_level_reaches_the_heads(networks: dict[str, Anatomy]) -> None:
    for network in networks.values():
        reached = {IMAGE}
        for link in network.links:
            assert link.source in reached, link
            reached.add(link.target)
        assert reached == {IMAGE, MAPS} | {part.name for part in network.parts}


def test_paper_learns_from_auxiliary_maps_and_compact_does_not() -> None:
    small = partial(PaperNet, (4, 6, 6, 6), (4, 6), lateral=6, dim=8, layers=1, heads=2, feed_forward=16)
    extra = [link for link in anatomy(small).links if link.training_only]
    assert extra == [Link("fusion", part, 2, 4, training_only=True) for part in ("detect", "mask")]
    narrow = partial(CompactNet, (4, 6, 8, 8), layers=1, dim=8, heads=2, feed_forward=16)
    assert not any(link.training_only for link in anatomy(narrow).links)


def test_a_part_without_a_group_is_noticed() -> None:
    with pytest.raises(ValueError, match="part wing: expected a name that starts as in GROUPS"):
        group_of("wing")


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_fills_the_page_and_draws(
    tmp_path: Path, networks: dict[str, Anatomy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "NETWORKS", {"compact": NETWORKS["compact"]})
    monkeypatch.setattr(describe, "anatomy", lambda _: networks["compact"])
    page = tmp_path / "network.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    assert main(["describe", "--output_dir", str(tmp_path)]) == 0
    table = tables({"compact": networks["compact"]})
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\n{table}\n\n{END}\nafter\n"
    pictures = [folder / "images" / "network_compact.png" for folder in (tmp_path, DOCS)]
    drawn, kept = (np.asarray(Image.open(path)) for path in pictures)
    assert drawn.shape == kept.shape
    assert np.mean(drawn != kept) < 0.02, AGAIN  # another font draws other letters


def test_a_page_without_marks_is_refused() -> None:
    for text in ("", BEGIN, END, f"{END}\n{BEGIN}"):
        with pytest.raises(ValueError, match=r"page\.md: expected the lines .* in this order"):
            with_generated(text, "table", Path("page.md"))
