"""From a scan as read to what the network sees: lung box, nodules in voxels, training crops, nodule insertion."""

from .crops import RandomCropd
from .insertion import InsertNodulesd
from .lungs import CropToLungsd, find_lungs
from .nodules import IGNORED, NODULE, PADDING, BoxesToNodulesd, PadNodulesd
from .resampling import ScaleHud, ToSpacingd

__all__ = [
    "IGNORED",
    "NODULE",
    "PADDING",
    "BoxesToNodulesd",
    "CropToLungsd",
    "InsertNodulesd",
    "PadNodulesd",
    "RandomCropd",
    "ScaleHud",
    "ToSpacingd",
    "find_lungs",
]
