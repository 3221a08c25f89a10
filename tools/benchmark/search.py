"""One scan through the inference graph, with each of its components timed in place.

The components are those of the graph, called by its own engine; only a stopwatch is added around each.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.transforms import Compose

from scripts.core.errors import DataError
from scripts.core.geometry import spacing_mm
from scripts.core.records import SearchRegion
from scripts.preprocess.lungs import lung_mm3

from .stopwatch import Stage, Stopwatch, Timed

ROOT = Path(__file__).resolve().parents[2]
ENGINE, FILES, NETWORK, TILES = "engine", "find files", "network", "cut and stitch tiles"

# Component class → stage; a component that is not listed is a stage with the name of its class.
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
    "SegmentNodulesd": "segment, measure",
    "WriteResultd": "write: the rest",
}
READING = (FILES, STAGES["LoadImaged"])  # stages until the voxels are in memory


@dataclass
class Searched:
    """How long the search of one scan took, and facts about the scan.

    Attributes:
        stages: by name.
        shape, spacing_mm: of the scan's own grid.
        litres: see :func:`scripts.preprocess.lungs.lung_mm3`; a litre is a Mvoxel at 1 mm.
        lungs_found: see :class:`scripts.core.records.SearchRegion`.
        box: voxels of the network's input (lungs, margin, padding).
        tiles: number of tiles for which the network was called.
        tile_voxels: voxels of all these tiles.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    litres: float = 0.0
    lungs_found: bool = False
    box: tuple[int, ...] = ()
    tiles: int = 0
    tile_voxels: int = 0

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def seconds_after_reading(self) -> float:
        return sum(stage.seconds for name, stage in self.stages.items() if name not in READING)


def graph(config_files: Sequence[str], **overrides: Any) -> ConfigParser:
    """Return a component graph of the bundle, independently of the working directory.

    Args:
        config_files: laid over each other in this order, as on the bundle's command line.
        overrides: top-level keys.
    """
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files])
    parser.update({"bundle_root": str(ROOT), **overrides})
    return parser


def search(config_files: Sequence[str], **overrides: Any) -> Searched:
    """Search one scan with the inference graph; its output files are discarded.

    Reading, searching and writing run in sequence, in one thread, so that each moment belongs to one stage.

    Raises:
        DataError: the scan was refused (the reason has been printed), or there was not exactly one.
    """
    with tempfile.TemporaryDirectory() as folder:
        parser = graph(config_files, output_dir=folder, background=False, **overrides)
        content = parser.get_parsed_content
        watch = Stopwatch(content("device"))
        about = Searched(watch.stages)
        for part in ("preprocessing", "postprocessing"):
            _timed(content(part), watch)
        content("preprocessing").transforms += (partial(_note_scan, about),)
        _time_engine(content("evaluator"), content("writer"), watch, about)
        with watch.stage(ENGINE):
            content("evaluator").run()
        log = content("log")
        if log.failures or len(log.folders) != 1:
            raise DataError(
                f"{content('input')}: expected one scan that can be searched, got "
                f"{len(log.folders)} and {len(log.failures)} refused; name one with --input"
            )
    return about


def _time_engine(evaluator: Any, writer: Any, watch: Stopwatch, about: Searched) -> None:
    """Add the stopwatch to file search, tiles, network and writers, and count the tiles."""

    def begin_network(_: Any, inputs: tuple[Any, ...]) -> None:
        about.tiles += inputs[0].shape[0]
        about.tile_voxels += inputs[0].numel()
        watch.begin(NETWORK)

    writer.writers = tuple(Timed(one, f"write {one.filename}", watch) for one in writer.writers)
    evaluator.inferer = Timed(evaluator.inferer, TILES, watch)
    evaluator.add_event_handler(Events.GET_BATCH_STARTED, lambda _: watch.begin(FILES))
    evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, lambda _: watch.end(FILES))
    evaluator.network.register_forward_pre_hook(begin_network)
    evaluator.network.register_forward_hook(lambda *_: watch.end(NETWORK))


def _timed(transform: Callable[..., Any], watch: Stopwatch) -> Callable[..., Any]:
    """Wrap a transform in the stopwatch; of a chain, each member is wrapped in place."""
    if isinstance(transform, Compose):
        transform.transforms = tuple(_timed(one, watch) for one in transform.transforms)
        return transform
    name = type(transform).__name__
    return Timed(transform, STAGES.get(name, name), watch)


def _note_scan(about: Searched, item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
    """Store facts about the scan in ``about`` as it passes; return the item unchanged."""
    scan = item["scan"]
    about.litres = lung_mm3(item["lung_distance_mm"]) / 1e6
    about.lungs_found, about.box = SearchRegion.of(item).lungs_found, tuple(item["image"].shape[1:])
    about.shape = tuple(scan.shape[1:])
    about.spacing_mm = tuple(spacing_mm(np.asarray(scan.affine, dtype=np.float64)).round(4).tolist())
    return item


def median_search(config_files: Sequence[str], repeats: int, **overrides: Any) -> Searched:
    """Search one scan several times, after a warm-up that does not count.

    The seconds of each stage are medians; its memory is the maximum over all repeats.
    """
    search(config_files, **overrides)
    runs = [search(config_files, **overrides) for _ in range(repeats)]
    stages = {}
    for name in runs[-1].stages:
        same = [run.stages[name] for run in runs]
        seconds, cpu_seconds = (
            statistics.median(getattr(one, what) for one in same) for what in ("seconds", "cpu_seconds")
        )
        stages[name] = Stage(seconds, cpu_seconds, max(one.peak_bytes for one in same))
    return replace(runs[-1], stages=stages)
