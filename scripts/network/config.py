"""The network that a configuration defines."""

from __future__ import annotations

from collections.abc import Sequence

from monai.bundle import ConfigParser
from torch import nn

from ..core.paths import CONFIGS

TRAIN, PAPER = (str(CONFIGS / f"{name}.json") for name in ("train", "paper"))


def network_in(config_files: Sequence[str]) -> nn.Module:
    """Build the ``network_def`` of configuration files, the later ones overlaying the earlier, without weights."""
    network: nn.Module = ConfigParser(ConfigParser.load_config_files(config_files)).get_parsed_content("network_def")
    return network
