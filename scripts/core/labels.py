"""Numbers that stand in arrays: labels of nodules, parts of the chest."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

NODULE = 0  # label of a nodule in datalists (MONAI's own LUNA16 folds use it)
IGNORED = 1  # a finding that is neither nodule nor background: no loss there, neither hit nor false finding
PADDING = -1  # a row that is not there

Parts = npt.NDArray[np.uint8]


class Part(IntEnum):
    """What a cell of the lung search can be; also the channels of its network."""

    OUTSIDE = 0  # room air, clothes, electrodes, couch, padding
    BODY = 1
    LEFT_LUNG = 2
    RIGHT_LUNG = 3
    AIRWAY = 4  # lumen of trachea and main bronchi
