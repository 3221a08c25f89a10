"""The networks: blocks, deformable attention, one builder per preset, and weights."""

from .checkpoint import CheckpointError, DeviceError, load_weights, ready_network
from .compact import CompactNet, compact

__all__ = ["CheckpointError", "CompactNet", "DeviceError", "compact", "load_weights", "ready_network"]
