"""The networks: shared blocks, deformable attention, one class per network, and loading and saving weights."""

from .blocks import mask_on_voxels
from .checkpoint import CheckpointError, load_network, load_weights, save_weights
from .compact import CompactNet
from .paper import PaperNet

__all__ = [
    "CheckpointError",
    "CompactNet",
    "PaperNet",
    "load_network",
    "load_weights",
    "mask_on_voxels",
    "save_weights",
]
