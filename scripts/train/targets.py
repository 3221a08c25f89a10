"""What the network should output in each cell, given the nodules of a crop.

Source: LWNet. The cells nearest to a nodule's centre are positive, the other cells of any nodule are ignored, and the
rest are background. Deviation: cells of the output stride are used instead of voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

POSITIVE, BACKGROUND, IGNORE = 1, 0, -1


@dataclass(frozen=True)
class CellTargets:
    """Targets of a batch on the output grid.

    Attributes:
        state: ``[B, I, J, K]`` int8: :data:`POSITIVE`, :data:`BACKGROUND` or :data:`IGNORE`.
        offset_mm: ``[B, 3, I, J, K]``, from the cell's centre to that of the nearest nodule; meaningful where positive.
        log_diameter: ``[B, I, J, K]``, natural log of that nodule's diameter in mm; diameters below 1 mm count as 1 mm;
            meaningful where positive.
        per_nodule: number of cells that one nodule makes positive, see ``positives`` of :func:`cell_targets`.
    """

    state: Tensor
    offset_mm: Tensor
    log_diameter: Tensor
    per_nodule: int


def cell_positions(shape: tuple[int, int, int], stride: int, device: torch.device) -> Tensor:
    """Return the cells' centres in input voxels, ``[3, I, J, K]``; cell c covers voxels c·s … c·s + s − 1."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) * stride + (stride - 1) / 2.0 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def cell_targets(
    nodule: Tensor, is_nodule: Tensor, is_there: Tensor, shape: tuple[int, int, int], *, stride: int, positives: int
) -> CellTargets:
    """Assign cells to nodules.

    Args:
        nodule: ``[B, N, 4]`` (i, j, k in input voxels of 1 mm; diameter in mm).
        is_nodule: ``[B, N]`` bool, rows to find.
        is_there: ``[B, N]`` bool, rows that exist (nodules and ignored findings).
        shape: the output grid ``(I, J, K)``.
        stride: voxels per cell.
        positives: number of cells nearest to each centre that are positive. Cells as near as the last of them are
            included, so that the choice does not depend on the order of the cells.

    Returns:
        The targets; without any row, everything is background.

    Example:
        >>> row = torch.tensor([[[8.0, 8.0, 8.0, 6.0]]])
        >>> there = torch.tensor([[True]])
        >>> targets = cell_targets(row, there, there, (8, 8, 8), stride=2, positives=7)
        >>> int((targets.state == POSITIVE).sum())
        7
    """
    if nodule.shape[1] == 0:  # the minimum over rows needs at least one: add a row that does not exist
        nodule, is_nodule, is_there = F.pad(nodule, (0, 0, 0, 1)), F.pad(is_nodule, (0, 1)), F.pad(is_there, (0, 1))
    cells = cell_positions(shape, stride, nodule.device)
    apart = nodule[:, :, :3, None, None, None] - cells  # [B, N, 3, I, J, K]
    squared = apart.square().sum(2)  # [B, N, I, J, K]
    far = torch.finfo(squared.dtype).max
    squared = torch.where(is_there[..., None, None, None], squared, far)
    reach = (nodule[:, :, 3] / 2.0 + stride / 2.0).square()[..., None, None, None]
    ignored = (squared <= reach).any(1)
    counted = torch.where(is_nodule[..., None, None, None], squared, far)
    nearest_distance, nearest = counted.min(1)
    owned = torch.gather(_nearest_cells(counted, positives), 1, nearest[:, None])[:, 0]
    positive = owned & (nearest_distance < far)  # a cell is positive only for its nearest nodule
    state = torch.where(positive, POSITIVE, torch.where(ignored, IGNORE, BACKGROUND)).to(torch.int8)
    index = nearest[:, None, None].expand(-1, 1, 3, *shape)
    offset = torch.gather(apart, 1, index)[:, 0]
    diameter = torch.gather(nodule[:, :, 3], 1, nearest.flatten(1)).reshape(nearest.shape)
    return CellTargets(state, offset, diameter.clamp_min(1.0).log(), positives)


def _nearest_cells(squared: Tensor, count: int) -> Tensor:
    """Return the ``count`` nearest cells of each row, including ties: ``[B, N, I, J, K]`` bool."""
    flat = squared.flatten(2)
    limit = flat.kthvalue(min(count, flat.shape[2]), dim=2).values
    return squared <= limit[..., None, None, None]
