"""One scan through the inference graph, each of its components timed where it runs.

The components are the graph's own, called by its own engine; only a stopwatch is put around each.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import nn

from scripts.core.errors import DataError
from scripts.core.geometry import spacing_mm
from scripts.core.records import SearchRegion
from scripts.preprocess.lungs import lung_mm3

from .stopwatch import Stage, Stopwatch, Timed

ROOT = Path(__file__).resolve().parents[2]
ENGINE, FILES, NETWORK, WINDOWS = "engine", "find files", "network", "cut and stitch windows"

# Laid over the graph: scans one after the other, in one thread, so that each moment belongs to one stage.
SERIAL = {"background": False}

# Components by class → stage; one that is not listed is a stage of its own name.
STAGES = {
    "LoadImaged": "read",
    "CopyItemsd": "keep the scan",
    "Orientationd": "orient",
    "CropToLungsd": "find lungs, crop",
    "Spacingd": "resample",
    "ToSpacingd": "resample",
    "ScaleHud": "scale and pad",
    "ScaleIntensityRanged": "scale and pad",
    "SpatialPadd": "scale and pad",
    "DivisiblePadd": "scale and pad",
    "SelectItemsd": "scale and pad",
    "DecodeCandidatesd": "decode",
    "DropOutsideLungsd": "decode",
    "OutlineNodulesd": "outline, measure",
    "WriteResultd": "write: the rest",
}
READING = (FILES, STAGES["LoadImaged"])  # stages up to the voxels in memory


@dataclass
class Searched:
    """What the search of one scan was about.

    Attributes:
        name: of the scan.
        shape, spacing_mm: of its own grid.
        lung_mm3: see :func:`scripts.preprocess.lungs.lung_mm3`.
        lungs_found: see :class:`scripts.core.records.SearchRegion`.
        box: voxels of the network's input (lungs, margin, padding).
        windows: times the network was called on one window; ``window_voxels``: all of their voxels.
        nodules: how many were found.
    """

    name: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    lung_mm3: float = 0.0
    lungs_found: bool = False
    box: tuple[int, ...] = ()
    windows: int = 0
    window_voxels: int = 0
    nodules: int = 0

    @property
    def litres(self) -> float:
        """Lung volume; a litre is a Mvoxel at 1 mm."""
        return self.lung_mm3 / 1e6


def graph(config_files: Sequence[str], **overrides: Any) -> ConfigParser:
    """A component graph of the bundle, whatever the working directory is.

    Args:
        config_files: laid over each other in this order, as the bundle's command line does.
        overrides: top-level keys.
    """
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files])
    for name, value in {"bundle_root": str(ROOT), **overrides}.items():
        parser[name] = value
    return parser


@contextmanager
def quiet() -> Iterator[None]:
    """Log warnings only, and not that MONAI lacks an optional GPU decoder (as in configs/logging.conf)."""
    before = logging.root.manager.disable
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def search(config_files: Sequence[str], **overrides: Any) -> tuple[dict[str, Stage], Searched]:
    """Search one scan with the inference graph; what it writes is thrown away.

    Returns:
        Each stage, and what was searched.

    Raises:
        DataError: the scan was refused (why has been printed), or it was not one.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        parser = graph(config_files, output_dir=folder, **SERIAL, **overrides)
        evaluator, log = parser.get_parsed_content("evaluator"), parser.get_parsed_content("log")
        watch, about = Stopwatch(parser.get_parsed_content("device")), Searched()
        _put_stopwatch(parser, evaluator, watch)
        _time_windows(evaluator.network, watch, about)
        _take_notes(parser, about)
        with watch.stage(ENGINE):
            evaluator.run()
        if log.failures or len(log.folders) != 1:
            raise DataError(
                f"{parser.get_parsed_content('input')}: expected one scan that can be searched, got "
                f"{len(log.folders)} and {len(log.failures)} refused; name one with --input"
            )
    return watch.stages, about


def _put_stopwatch(parser: ConfigParser, evaluator: Any, watch: Stopwatch) -> None:
    for part in ("preprocessing", "postprocessing"):
        _time_transforms(parser.get_parsed_content(part), watch)
    writer = parser.get_parsed_content("writer")
    writer.writers = tuple(Timed(one, f"write {one.filename}", watch) for one in writer.writers)
    evaluator.inferer = Timed(evaluator.inferer, WINDOWS, watch)
    evaluator.add_event_handler(Events.GET_BATCH_STARTED, lambda _: watch.begin(FILES))
    evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, lambda _: watch.end(FILES))


def _time_transforms(chain: Compose, watch: Stopwatch) -> None:
    """Put the stopwatch around each member, in place."""
    timed: list[Callable[..., Any]] = []
    for transform in chain.transforms:
        if isinstance(transform, Compose):
            _time_transforms(transform, watch)
            timed.append(transform)
        else:
            name = type(transform).__name__
            timed.append(Timed(transform, STAGES.get(name, name), watch))
    chain.transforms = tuple(timed)


def _time_windows(network: nn.Module, watch: Stopwatch, about: Searched) -> None:
    """Time and count the network's calls."""

    def end(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        about.windows += inputs[0].shape[0]
        about.window_voxels += inputs[0].numel()
        watch.end(NETWORK).voxels = about.window_voxels

    network.register_forward_pre_hook(lambda *_: watch.begin(NETWORK))
    network.register_forward_hook(end)


def _take_notes(parser: ConfigParser, about: Searched) -> None:
    """Fill ``about`` as the scan passes."""

    def note_scan(item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        distance, scan = item["lung_distance_mm"], item["scan"]
        about.lung_mm3 = lung_mm3(distance)
        about.name, about.lungs_found, about.box = (
            str(item["name"]),
            SearchRegion.of(item).lungs_found,
            tuple(item["image"].shape[1:]),
        )
        about.shape = tuple(scan.shape[1:])
        about.spacing_mm = tuple(spacing_mm(np.asarray(scan.affine, dtype=np.float64)).round(4).tolist())
        return item

    def note_nodules(item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        about.nodules = len(item.get("nodules", ()))
        return item

    before, after = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")
    before.transforms = (*before.transforms, note_scan)
    after.transforms = (*after.transforms[:-1], note_nodules, after.transforms[-1])


def median_search(
    config_files: Sequence[str], repeats: int, warm_ups: int = 1, **overrides: Any
) -> tuple[dict[str, Stage], Searched]:
    """Search one scan several times; each stage's seconds are medians, its memory is the most of all repeats."""
    for _ in range(warm_ups):
        search(config_files, **overrides)
    runs = [search(config_files, **overrides) for _ in range(repeats)]
    names = dict.fromkeys(name for stages, _ in runs for name in stages)
    return {name: _middle([stages[name] for stages, _ in runs if name in stages]) for name in names}, runs[-1][1]


def _middle(stages: Sequence[Stage]) -> Stage:
    def over_runs(name: str) -> Any:
        values = [getattr(stage, name) for stage in stages]
        return statistics.median(values) if name.endswith("seconds") else max(values)

    return Stage(**{field.name: over_runs(field.name) for field in fields(Stage)})
