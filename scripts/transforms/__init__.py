"""From a scan as read to what the network sees: lung box, nodules in voxels, training crops, nodule insertion."""

from .crops import RandomCropd
from .insertion import InsertNodulesd
from .lung_search import LungSearch, Part
from .lungs import CropToLungsd, find_lungs
from .nodules import IGNORED, NODULE, PADDING, BoxesToNodulesd, PadNodulesd
from .resampling import ScaleHud, ToSpacingd
from .to_grid import scan_to_grid

__all__ = [
    "IGNORED",
    "NODULE",
    "PADDING",
    "BoxesToNodulesd",
    "CropToLungsd",
    "InsertNodulesd",
    "LungSearch",
    "PadNodulesd",
    "Part",
    "RandomCropd",
    "ScaleHud",
    "ToSpacingd",
    "find_lungs",
    "scan_to_grid",
]
