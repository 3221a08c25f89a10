"""The overlay for fine-tuning: it begins with the released weights, and frozen parts stay as they are."""

from __future__ import annotations

import re

import pytest
import torch

from scripts.core.errors import SettingError
from scripts.train import trainable
from tests.bundle import ROOT, graph


def test_frozen_parts_do_not_move() -> None:
    parser = graph("train", "fine_tune", frozen=["stem", "stage2"])
    optimizer, network = parser.get_parsed_content("optimizer"), parser.get_parsed_content("network")
    released = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, released[name]) for name, value in network.state_dict().items())
    network(torch.randn(2, 1, 16, 16, 16)).square().mean().backward()
    optimizer.step()
    same = {name: torch.equal(value, released[name]) for name, value in network.named_parameters()}
    still = {name for name in same if name.startswith(("stem.", "stage2."))}
    assert {name for name, is_same in same.items() if is_same} == still


def test_without_frozen_parts_all_learn() -> None:
    parser = graph("train", "fine_tune")
    moved = sum(len(group["params"]) for group in parser.get_parsed_content("optimizer").param_groups)
    assert moved == len(list(parser.get_parsed_content("network").parameters()))


@pytest.mark.parametrize(("frozen", "said"), [(["head"], "got 'head'"), (["a", "b"], "the whole network")])
def test_names_that_cannot_be_frozen_are_refused(frozen: list[str], said: str) -> None:
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    with pytest.raises(SettingError, match=said):
        trainable(network, frozen)


def test_the_page_names_every_part_of_the_network() -> None:
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    (parts,) = re.findall(r"The parts are ([^.]*)\.", text)
    assert re.findall(r"`(\w+)`", parts) == [
        name for name, _ in graph("train", "fine_tune").get_parsed_content("network").named_children()
    ]
