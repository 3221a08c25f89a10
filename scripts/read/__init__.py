"""From files of any format to a volume in HU and its affine, or a refusal; and the lists of scans."""

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
