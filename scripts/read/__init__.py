"""From files of any format to a volume in HU and its affine, or a refusal; and the lists of scans."""

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
