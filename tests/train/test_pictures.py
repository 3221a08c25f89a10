"""Pictures of a validation: what they choose to show, where marks lie, and that every scan gives one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import ANY, Mock

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.colors import to_rgba
from monai.data import MetaTensor
from PIL import Image

from scripts.core.geometry import apply_affine
from scripts.core.labels import IGNORED, NODULE
from scripts.core.records import Detection
from scripts.train import PredictionPictures
from scripts.train.pictures import FOUND, TRUE, Scene, draw_scenes

AFFINE_RAS = np.array([[1.0, 0, 0, -20], [0, 1.0, 0, 30], [0, 0, 1.0, -100], [0, 0, 0, 1]])
SHAPE = (80, 70, 60)


def candidate(voxel: tuple[float, float, float], diameter_mm: float, probability: float) -> Detection:
    x, y, z = apply_affine(AFFINE_RAS, voxel).tolist()
    return Detection((x, y, z), diameter_mm, probability)


def item(nodules: list[list[float]], candidates: list[Detection], **more: Any) -> dict[str, Any]:
    image = torch.full((1, *SHAPE), -0.5)
    return {
        "name": "chest",
        "image": MetaTensor(image, affine=torch.from_numpy(AFFINE_RAS)),
        "nodule": np.array(nodules, dtype=np.float32).reshape(-1, 4),
        "label": np.full(len(nodules), NODULE),
        "candidates": candidates,
        **more,
    }


def outlined_maps(centre: tuple[int, int, int], radius: int) -> torch.Tensor:
    """Maps whose mask logits are 4 in a ball of the fine grid and −4 elsewhere."""
    apart = np.linalg.norm(np.indices(SHAPE) - np.array(centre).reshape(3, 1, 1, 1), axis=0)
    fine = torch.from_numpy(np.where(apart < radius, 4.0, -4.0)).float()[None, None]
    cells = torch.nn.functional.avg_pool3d(fine, 2)[0]
    return torch.cat([torch.zeros(5, *cells.shape[1:]), cells])


def test_close_ups_show_the_largest_nodules_and_the_strongest_false_findings() -> None:
    nodules = [[10, 10, 10, 5], [40, 40, 40, 20], [60, 20, 30, 8], [20, 50, 30, 4], [50, 50, 50, 30]]
    label = np.array([NODULE] * 4 + [IGNORED])
    found = [candidate((41, 42, 40), 18, 0.9), candidate((70, 60, 50), 5, 0.7), candidate((10, 10, 14), 5, 0.6)]
    sights = Scene(item(nodules, found, label=label), 2, 1).sights()
    assert [title for _, title in sights] == [
        "nodule of 20 mm: found, p = 0.90",
        "nodule of 8 mm: missed",
        "nodule of 5 mm: missed",
        "false finding, p = 0.70",
    ]
    np.testing.assert_allclose([sights[0][0], sights[3][0]], [[40, 40, 40], [70, 60, 50]])


def test_marks_lie_at_their_places_right_on_the_left() -> None:
    scene = Scene(item([[40, 30, 20, 10]], [candidate((42, 31, 20), 9, 0.8)]), 2, 1)
    overview, close_up = draw_scenes([scene]).axes[:2]
    rings = {ring.get_edgecolor(): ring.center for ring in overview.patches}
    assert rings == {to_rgba(TRUE): pytest.approx((40, 20)), to_rgba(FOUND): pytest.approx((42, 20))}
    assert overview.xaxis_inverted()  # i grows to the patient's right, which is on the left
    assert not overview.yaxis_inverted()
    (ring,) = close_up.patches
    # The close-up begins 32 voxels left of the nodule, at 8; rings are 1.5 mm wider.
    assert (*ring.center, ring.radius) == pytest.approx((32, 30, 5 + 1.5))


@pytest.mark.parametrize(("probability", "lines"), [(0.8, 1), (0.1, 0)])
def test_the_predicted_outline_is_drawn_where_something_was_found(probability: float, lines: int) -> None:
    """A ball of 6 voxels; the picture begins at voxel 8 along i."""
    maps = outlined_maps((40, 30, 20), 6)
    scene = Scene(item([[40, 30, 20, 12]], [candidate((40, 30, 20), 12, probability)], maps=maps[:6]), 2, 1)
    close_up = draw_scenes([scene]).axes[1]
    paths = [path for collection in close_up.collections for path in collection.get_paths() if len(path.vertices)]
    assert len(paths) == lines
    for path in paths:
        assert np.linalg.norm(path.vertices - [40 - 8, 30], axis=1) == pytest.approx(6.0, abs=1.0)


def test_a_picture_per_validation_of_the_first_scans(tmp_path: Path) -> None:
    def step(engine: Engine, scan: dict[str, Any]) -> list[dict[str, Any]]:
        engine.state.batch = [{key: scan[key] for key in ("name", "image", "nodule", "label")}]
        return [{"candidates": scan["candidates"]}]

    writer, evaluator = Mock(), Engine(step)
    PredictionPictures(str(tmp_path / "pictures"), 2, scans=2, writer=writer).attach(evaluator)
    evaluator.state.epoch = 0
    evaluator.run([item([[40, 30, 20, 10]], []), item([], [candidate((5, 5, 5), 4, 0.3)]), item([], [])], max_epochs=1)
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name == "epoch_0001.png"
    size = (15 * 90, round(6.6 * 90))  # two rows
    with Image.open(path) as image:
        assert image.size == size
    writer.add_image.assert_called_once_with("predictions", ANY, 1, dataformats="HWC")
    assert writer.add_image.call_args.args[1].shape == (*size[::-1], 3)
