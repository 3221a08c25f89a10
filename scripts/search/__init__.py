"""From a scan on the network's grid to the network's output maps: tiles near the lungs, stitched together."""

from .inferer import PrecisionInferer, TileInferer, prepare_scan

__all__ = ["PrecisionInferer", "TileInferer", "prepare_scan"]
