"""Reads scans of any supported format as a volume in HU with its affine, or refuses them; and reads datalists."""

from .datalist import check_evaluation_list, check_training_lists, image_mask_pairs, load_datalist
from .reader import LabelReader, ScanError, ScanReader, find_scans, read_grid, read_labels, read_scan

__all__ = [
    "LabelReader",
    "ScanError",
    "ScanReader",
    "check_evaluation_list",
    "check_training_lists",
    "find_scans",
    "image_mask_pairs",
    "load_datalist",
    "read_grid",
    "read_labels",
    "read_scan",
]
