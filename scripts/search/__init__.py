"""From a scan on the grid of the network to the maps that it gives: tiles near the lungs, stitched."""

from .inferer import PrecisionInferer, TileInferer, prepare_scan

__all__ = ["PrecisionInferer", "TileInferer", "prepare_scan"]
