"""Integer codes used in arrays: labels of annotations, parts of the chest."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .geometry import BoolArray

NODULE = 0  # label of a nodule in datalists (MONAI's own LUNA16 folds use it)
IGNORED = 1  # an excluded finding: no loss is computed there; it counts neither as hit nor as false positive
PADDING = -1  # an empty row, which fills up an item to a fixed number of rows

Parts = npt.NDArray[np.uint8]


class Part(IntEnum):
    """The classes of a cell in the lung search; also the output channels of its network."""

    OUTSIDE = 0  # room air, clothes, electrodes, couch, padding
    BODY = 1
    LEFT_LUNG = 2
    RIGHT_LUNG = 3
    AIRWAY = 4  # lumen of trachea and main bronchi


def is_lung(parts: Parts) -> BoolArray:
    """Return the cells of both lungs, bool."""
    return np.asarray((parts == Part.LEFT_LUNG) | (parts == Part.RIGHT_LUNG))
