"""The networks: shared blocks, deformable attention, one class per network, and loading and saving weights."""

from .blocks import mask_on_voxels
from .checkpoint import CheckpointError, load_weights, ready_network, save_weights
from .compact import CompactNet
from .paper import PaperNet

__all__ = [
    "CheckpointError",
    "CompactNet",
    "PaperNet",
    "load_weights",
    "mask_on_voxels",
    "ready_network",
    "save_weights",
]
