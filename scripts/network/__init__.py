"""The networks: blocks, deformable attention, and one builder per preset."""

from .compact import CompactNet, compact

__all__ = ["CompactNet", "compact"]
