"""The network of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

TRAIN, PAPER = (str(Path(__file__).resolve().parents[2] / "configs" / f"{name}.json") for name in ("train", "paper"))


def definition_in(config_files: Sequence[str]) -> Any:
    """The ``network_def`` of configuration files laid over each other, as it is written there."""
    return ConfigParser.load_config_files(config_files)["network_def"]


def network_in(config_files: Sequence[str]) -> nn.Module:
    """The network that it describes, without weights."""
    network: nn.Module = ConfigParser(ConfigParser.load_config_files(config_files)).get_parsed_content("network_def")
    return network
