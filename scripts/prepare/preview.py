"""The command ``preview``: draws contact sheets of a datalist's nodules, to notice a wrong frame before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from tqdm import tqdm

from ..core.errors import SettingError
from ..core.files import read_record, writable_folder, write_figure
from ..core.geometry import swap_lps_ras
from ..core.records import Detection, ScanResult
from ..read.datalist import load_datalist, nodule_rows
from ..read.discovery import SECTIONS
from ..read.instances import labels_of, on_grid
from ..read.reader import ScanError, read_scan
from ..report.html.pictures import Picture, Window, close_ups, outline_lines
from .checks import ALARMING_SHARE, failed_checks, lungs_of
from .datalists import PrepareError

logger = logging.getLogger(__name__)

WINDOW = Window(-500.0, 1500.0)  # lung, with the mediastinum still visible: -1250 to 250 HU
FIELD_OF_VIEW_MM, SCALE_MM = 60.0, 10.0
COLUMNS, ROWS = 3, 5  # nodules on a page; each is a pair of pictures
INCHES, TITLE_INCHES, HEAD_INCHES = 1.8, 0.4, 0.8  # edge of a picture; height of the title above it, of the page's head
BACKGROUND, TEXT, FAINT = "#12161c", "#e8ecf1", "#8b97a6"
OUTLINE, OTHERS, BOX, SUSPECT = "#ffb000", "#b98a2c", "#4cc9f0", "#ff6b6b"
LEGEND = {"box of the datalist": BOX, "outline": OUTLINE, "of others": OTHERS, "suspect": SUSPECT}

Item = dict[str, Any]


@dataclass(frozen=True)
class Sight:
    """One nodule as drawn.

    Attributes:
        name: name of its scan.
        row: index of its box in the datalist's item.
        size_lps_mm: size of its box along x, y, z.
        pictures: axial and coronal plane through the centre of the box.
        has_mask: whether the scan has a mask.
        failed_checks: the sanity checks that the box fails; empty for none.
    """

    name: str
    row: int
    size_lps_mm: tuple[float, float, float]
    pictures: tuple[Picture, Picture]
    has_mask: bool
    failed_checks: tuple[str, ...]


def preview(
    *, datalist: str, output: str, section: str = "", nodules: int = 60, seed: int = 0, image_dir: str = ""
) -> None:
    """Draw nodules of a datalist, axial and coronal, with box and outline, and report suspect boxes.

    Args:
        datalist: the JSON file.
        output: the PNG file to write; further pages get -2, -3 … before the extension.
        section: section of the datalist; by default all that contain scans.
        nodules: number of nodules, chosen at random; 0 for all.
        seed: seed of the choice.
        image_dir: folder to search for images that are not at their paths, as in training.

    Raises:
        UserError: the datalist cannot be used or has no nodule, no scan can be read, or the file cannot be written.
    """
    target = Path(output)
    if target.suffix.lower() != ".png":
        raise SettingError(f"--output {output}: expected a name that ends in .png; correct it")
    if min(nodules, seed) < 0:
        raise SettingError(f"--nodules, --seed: expected whole numbers of at least 0, got {nodules} and {seed}")
    # load_datalist refuses a file that cannot be read.
    known = [name for name in SECTIONS if read_record(Path(datalist)).get(name)] or ["training"]
    items = [item for one in ([section] if section else known) for item in load_datalist(datalist, one, image_dir)]
    chosen = choose(items, nodules, seed)
    if not chosen:
        raise PrepareError(
            f"{datalist}: expected nodules to show, got none in {len(items)} scans; choose another section"
        )
    writable_folder(target.parent)
    sights = []
    for item, rows in tqdm(chosen, desc="scans", unit="scan", mininterval=1.0):
        try:
            sights += list(look_at(item, rows))
        except ScanError as error:
            logger.warning("not shown: %s", error)
    if not sights:
        raise PrepareError(f"{datalist}: expected scans that can be read, got none; the lines above say why")
    for path in _write_pages(sights, target, Path(datalist).name):
        logger.info("%s", path)
    _report(sights)


def choose(items: Sequence[Item], count: int, seed: int) -> list[tuple[Item, list[int]]]:
    """Choose nodules at random, grouped by scan, so that each scan is read once.

    Args:
        items: items of a datalist.
        count: number of nodules; 0 for all.
        seed: seed of the choice.

    Returns:
        Items in their order, each with the indices of its chosen boxes; items without any are left out.
    """
    places = [(n, row) for n, item in enumerate(items) for row in nodule_rows(item)]
    if 0 < count < len(places):
        drawn = np.random.default_rng(seed).choice(len(places), count, replace=False)
        places = [places[n] for n in sorted(drawn)]
    rows: dict[int, list[int]] = {}
    for n, row in places:
        rows.setdefault(n, []).append(row)
    return [(items[n], chosen) for n, chosen in rows.items()]


def look_at(item: Item, rows: Sequence[int]) -> Iterator[Sight]:
    """Yield the pictures of some nodules of one scan, with the sanity checks that their boxes fail.

    Args:
        item: the scan's item in the datalist.
        rows: indices of the boxes to show.

    Raises:
        ScanError: the scan or its mask cannot be read.
    """
    volume = read_scan(item["image"])
    mask = on_grid(labels_of(item["mask"]), volume.grid) if item.get("mask") else None
    lungs = lungs_of(volume)
    scan = ScanResult(
        name=str(item["name"]),
        source=str(item["image"]),
        image_hu=volume.image_hu,
        affine_ras=volume.affine_ras,
        mask=np.zeros(volume.grid.shape, np.uint16) if mask is None else mask.astype(np.uint16),
        nodules=(),
        candidates=(),
        outside_lungs=0,
    )
    for row in rows:
        box = [float(v) for v in item["box"][row]]
        x, y, z = swap_lps_ras(box[:3]).tolist()
        nodule = Detection((x, y, z), float(np.mean(box[3:])), 1.0)
        axial, coronal, _ = close_ups(scan, nodule, WINDOW, FIELD_OF_VIEW_MM, label=row + 1)
        pictures = axial.middle, coronal.middle
        found = tuple(failed_checks(volume, lungs, box, mask, row + 1))
        yield Sight(scan.name, row, (box[3], box[4], box[5]), pictures, mask is not None, found)


def _write_pages(sights: Sequence[Sight], target: Path, title: str) -> Iterator[Path]:
    per_page = COLUMNS * ROWS
    pages = -(-len(sights) // per_page)
    for page in range(pages):
        figure = draw_page(sights[page * per_page : (page + 1) * per_page], f"{title}, page {page + 1} of {pages}")
        path = target if page == 0 else target.with_name(f"{target.stem}-{page + 1}{target.suffix}")
        yield write_figure(path, figure, dpi=100, facecolor=BACKGROUND, metadata={"Software": None})


def draw_page(sights: Sequence[Sight], title: str) -> Figure:
    """Draw one page of nodules in rows, at least one nodule."""
    columns, rows = min(COLUMNS, len(sights)), -(-len(sights) // COLUMNS)
    width = 2 * INCHES * max(columns, 2)  # the head needs room for its legend
    height = HEAD_INCHES + rows * (INCHES + TITLE_INCHES)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND, layout="constrained")
    figure.suptitle(title, color=TEXT, fontsize=11, weight="bold")
    patches = [Patch(color=colour, label=words) for words, colour in LEGEND.items()]
    style: dict[str, Any] = {"labelcolor": FAINT, "fontsize": 8.5, "frameon": False}
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), **style)
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat[2 * len(sights) :]:
        axes.set_axis_off()
    for sight, (left, right) in zip(sights, grid.reshape(-1, 2), strict=False):
        left.set_title(_name(sight), loc="left", color=SUSPECT if sight.failed_checks else TEXT, fontsize=7.5)
        for axes, picture in zip((left, right), sight.pictures, strict=True):
            _draw(axes, picture, sight)
    return figure


def _name(sight: Sight) -> str:
    """Return the two lines above the pictures: scan, number and size; failed sanity checks, or a missing mask."""
    name = sight.name if len(sight.name) <= 30 else f"…{sight.name[-29:]}"
    extra = "" if sight.has_mask else "no mask"
    return f"{name}  #{sight.row + 1}  {np.mean(sight.size_lps_mm):.1f} mm\n{'; '.join(sight.failed_checks) or extra}"


def _draw(axes: Axes, picture: Picture, sight: Sight) -> None:
    """Draw one picture with its outlines, its box, the letters for its sides and the scale."""
    width, height = picture.width_mm, picture.height_mm
    axes.imshow(picture.grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="bilinear")
    for path, colour in ((picture.other_outlines, OTHERS), (picture.outline, OUTLINE)):
        for line in outline_lines(path):
            axes.plot(line[:, 0], line[:, 1], color=colour, linewidth=1.1)
    across = sight.size_lps_mm[picture.view.column_axis], sight.size_lps_mm[picture.view.row_axis]
    corner = (width - across[0]) / 2.0, (height - across[1]) / 2.0
    axes.add_patch(Rectangle(corner, *across, fill=False, edgecolor=BOX, linewidth=0.9, linestyle=(0, (4, 2))))
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_edgecolor(SUSPECT if sight.failed_checks else "#2b323c")
    _letters(axes, picture)


def _letters(axes: Axes, picture: Picture) -> None:
    """Draw the letters for the sides and the scale, with dark edges so that they are visible on bone as well as air."""
    width, height = picture.width_mm, picture.height_mm
    edge = [withStroke(linewidth=1.6, foreground=BACKGROUND)]
    style: dict[str, Any] = {"fontsize": 6.5, "color": TEXT, "path_effects": edge}
    axes.text(0.03 * width, 0.5 * height, picture.view.left, va="center", **style)
    axes.text(0.5 * width, 0.03 * height, picture.view.top, va="top", ha="center", **style)
    axes.text(0.97 * width, 0.97 * height, f"{SCALE_MM:g} mm", va="bottom", ha="right", **style)
    right, bottom = 0.97 * width, 0.87 * height
    axes.plot([right - SCALE_MM, right], [bottom, bottom], color=TEXT, linewidth=1.2, path_effects=edge)


def _report(sights: Sequence[Sight]) -> None:
    """Log the suspect boxes and their number, and a warning if there are too many."""
    suspect = [sight for sight in sights if sight.failed_checks]
    for sight in suspect:
        logger.warning("suspect box: %s, nodule %d: %s", sight.name, sight.row + 1, "; ".join(sight.failed_checks))
    logger.info("%d of %d boxes shown are suspect", len(suspect), len(sights))
    if len(suspect) > ALARMING_SHARE * len(sights):
        logger.warning(
            "so many suspect boxes suggest a wrong frame: positions must be in LPS mm (x to the left, y to the back)"
        )
