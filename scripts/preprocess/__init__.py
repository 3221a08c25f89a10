"""From a scan as read to the network's input: lungs, grid, intensities, nodules in voxels."""

from .boxes import BoxesToNodulesd, PadNodulesd
from .lung_search import LungSearch, lung_network
from .lungs import CropToLungsd, find_lungs
from .resampling import ScaleHud, ToSpacingd
from .to_grid import scan_to_grid

__all__ = [
    "BoxesToNodulesd",
    "CropToLungsd",
    "LungSearch",
    "PadNodulesd",
    "ScaleHud",
    "ToSpacingd",
    "find_lungs",
    "lung_network",
    "scan_to_grid",
]
