"""The presets of a training graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from monai.bundle import ConfigParser
from torch import nn

from .compact import compact
from .paper import paper

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train.json"
DEFAULTS: dict[str, Callable[[], nn.Module]] = {"compact": compact, "paper": paper}


def presets_in(config_file: Path) -> Mapping[str, Callable[[], nn.Module]]:
    """Builders of the presets that a training graph offers, by name; the code's own if it names none."""
    parser = ConfigParser()
    parser.read_config(str(config_file))
    if "presets" not in parser:
        return DEFAULTS
    return {name: parser.get_parsed_content(f"presets::{name}") for name in parser["presets"]}
