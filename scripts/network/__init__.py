"""The networks: blocks, deformable attention, one class per preset, the choice between them, and weights."""

from .blocks import mask_on_voxels
from .checkpoint import CheckpointError, load_weights, ready_network, save_weights
from .compact import CompactNet, compact
from .paper import PaperNet, paper
from .presets import PresetError, choose_preset, preset_of

__all__ = [
    "CheckpointError",
    "CompactNet",
    "PaperNet",
    "PresetError",
    "choose_preset",
    "compact",
    "load_weights",
    "mask_on_voxels",
    "paper",
    "preset_of",
    "ready_network",
    "save_weights",
]
