"""Reads scans of any supported format as a volume in HU with its affine, or refuses them; and reads datalists."""

from .datalist import check_evaluation_list, check_training_lists, image_mask_pairs, load_datalist
from .reader import LabelReader, ScanReader

__all__ = [
    "LabelReader",
    "ScanReader",
    "check_evaluation_list",
    "check_training_lists",
    "image_mask_pairs",
    "load_datalist",
]
