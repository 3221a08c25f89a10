"""Whether inserted nodules look real: can a small network tell a donor in a host from the same donor in its own scan?

Each donor is rotated at random and used twice: as it is, and inserted by replacement into a crop of a training lung.
The network sees both within 2 mm of the mask; everything else is set to the HU of lung. Folds are by donor. An area
under the ROC curve of 0.5 means that the network cannot tell them apart. A picture shows the pairs that differ most.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.metrics import compute_roc_auc
from monai.networks.nets import Classifier
from monai.transforms import Compose
from scipy import ndimage
from torch import Tensor

from scripts.core.commands import run_function
from scripts.core.files import write_figure
from scripts.core.geometry import BoolArray
from scripts.train.crops import RandomCropd
from scripts.train.dataset import CropDataset
from scripts.train.insertion import InsertNodulesd

logger = logging.getLogger(__name__)

EDGE, CROP = 25, 64  # voxels of 1 mm: what the network sees, and the crop of the host
SEEN_MM = 2  # around the mask; donors are cut out with hardly more
LUNG_HU, RANGE_HU = -850.0, 500.0
LARGEST_MM = 12.0  # largest donors; others would not fit into EDGE
FOLDS, EPOCHS, BATCH = 3, 15, 32
SHOWN = 12  # pairs in the picture


def inserted(
    *, datalists: Sequence[str], cache_dir: str, output: str, pairs: int = 600, config_file: str = "configs/train.json"
) -> None:
    """Print how well inserted nodules can be distinguished from real ones, and draw the pairs that differ most.

    Args:
        datalists: with the lungs to insert into (``training``; only scans of weight above 0) and ``donors``.
        cache_dir: folder for the preprocessed lungs.
        output: PNG file to write, with the real nodules above the inserted ones.
        pairs: largest number of donors.
        config_file: the training graph.
    """
    parser = ConfigParser(ConfigParser.load_config_files(config_file))
    parser.update({"datalists": list(datalists), "cache_dir": cache_dir, "nodule_share": 0.0})
    hosts = parser["train"]["dataset"]
    crop = RandomCropd(CROP, jitter=0.0, turns=False, rotate_degrees=0.0, scale=(1.0, 1.0))
    hosts["transform"] = Compose([crop])
    donors = [one for one in parser.get_parsed_content("items#donors") if float(one["diameter_mm"]) < LARGEST_MM]
    chosen = np.random.default_rng(0).permutation(len(donors))[:pairs]
    found = list(_pairs([donors[n] for n in chosen], parser.get_parsed_content("train#dataset")))
    real, put = (torch.from_numpy(np.stack(side)[:, None]) for side in zip(*found, strict=True))
    scores = torch.stack([_scores(real, put, fold) for fold in range(FOLDS)]).sum(0)
    truth = torch.tensor([[1.0], [0.0]]).expand_as(scores)
    area = compute_roc_auc(scores.flatten(), truth.flatten())
    logger.info("%d donors, real and inserted: area under the ROC curve %.3f", len(real), area)
    _draw(Path(output), real[:, 0], put[:, 0], scores)


def _pairs(
    donors: Sequence[Mapping[str, Any]], hosts: CropDataset
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Yield each donor as it is and in a host, ``[EDGE, EDGE, EDGE]`` each, scaled; skip it if there is no place."""
    for number, donor in enumerate(donors):
        insert = InsertNodulesd([donor], prob=1.0, most=1, scale=(1.0, 1.0), bordering=0.3)
        insert.set_random_state(number)
        hu, soft = insert.turned(*insert.draw_donor(), (CROP,) * 3, np.zeros(3))
        item: Mapping[Any, Any] = hosts[number]
        known = len(item["label"])
        item = insert(item)
        if len(item["label"]) > known:
            inside = item["mask"][0] == known + 1
            yield _seen(hu, soft > 0.5), _seen(item["image"][0], inside)


def _seen(hu: npt.NDArray[np.float32], inside: BoolArray) -> npt.NDArray[np.float32]:
    """Return the mask and its surroundings, centred and scaled so that lung is 0."""
    near = ndimage.binary_dilation(inside, iterations=SEEN_MM)
    scaled = np.pad(np.where(near, (np.clip(hu, -1000.0, 300.0) - LUNG_HU) / RANGE_HU, 0.0), EDGE)
    start = np.argwhere(inside).mean(0).round().astype(int) + EDGE - EDGE // 2
    return np.asarray(scaled[tuple(slice(a, a + EDGE) for a in start)], dtype=np.float32)


def _scores(real: Tensor, put: Tensor, fold: int) -> Tensor:
    """Train on the other folds; return the logits ``[2, N]`` of being real for this fold's donors, 0 for the others."""
    held_out = torch.arange(len(real)) % FOLDS == fold
    x, y = torch.cat([real[~held_out], put[~held_out]]), torch.tensor([1.0, 0.0]).repeat_interleave(sum(~held_out))
    torch.manual_seed(fold)
    network = Classifier(real.shape[1:], 1, channels=(8, 16, 32), strides=(2, 2, 2), norm="BATCH")
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(x[batch])[:, 0], y[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    scores = torch.zeros(2, len(real))
    with torch.no_grad():
        scores[:, held_out] = torch.stack([network.eval()(side[held_out])[:, 0] for side in (real, put)])
    return scores


def _draw(path: Path, real: Tensor, put: Tensor, scores: Tensor) -> None:
    """Draw the middle slices of the pairs that differ most."""
    surest = (scores[0] - scores[1]).argsort(descending=True)[:SHOWN]
    figure = Figure(figsize=(SHOWN, 2.2), layout="constrained")
    for axes, image in zip(figure.subplots(2, SHOWN).flat, torch.cat([real[surest], put[surest]]), strict=False):
        axes.imshow(image[:, :, EDGE // 2], cmap="gray", vmin=-0.3, vmax=2.0)
        axes.axis("off")
    write_figure(path, figure)


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.inserted", inserted))
