"""The page about the networks: its tables and drawings are made from the code, so that they are never out of date."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from scripts.core.errors import DataError
from scripts.network.config import network_in

from .anatomy import COUNT_SIZE, GROUPS, NETWORKS, Anatomy, anatomy
from .drawing import draw, thousands

logger = logging.getLogger(__name__)

PAGE = "network.md"
BEGIN = "<!-- from here to the end mark: python -m tools.network describe --output_dir docs -->"
END = "<!-- end -->"


def describe(output_dir: str) -> None:
    """Write the tables and drawings of the networks.

    Args:
        output_dir: receives ``images/network_<name>.png``, and the tables in ``network.md`` between its two marks (if
            there is no such page, one without text is created).

    Raises:
        DataError: for a page without the marks.
    """
    folder = Path(output_dir)
    page = folder / PAGE
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    networks = {name: anatomy(partial(network_in, files)) for name, files in NETWORKS.items()}
    text = with_generated(text, tables(networks), page)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        size, flops = (sum(getattr(part, what) for part in network.parts) for what in ("parameters", "flops"))
        title = f"{name}: {thousands(size)} parameters, {flops / 1000:.0f} kFLOP per voxel"
        draw(network, title, folder / "images" / f"network_{name}.png")
    page.write_text(text, encoding="utf-8")
    logger.info("%s: %s", page, ", ".join(networks))


def tables(networks: Mapping[str, Anatomy]) -> str:
    """Return the parameters and operations of each group of parts, in Markdown."""
    giga = [sum(part.flops for part in network.parts) * COUNT_SIZE**3 / 1e9 for network in networks.values()]
    lines = [
        ["Part", *(f"{name}, {what}" for what in ("parameters", "kFLOP per voxel") for name in networks)],
        ["---", *["---:"] * (2 * len(networks))],
        *([group, *_sums(networks, group)] for group in GROUPS),
        ["**all**", *(f"**{number}**" for number in _sums(networks, ""))],
        [f"GFLOP for a tile of {COUNT_SIZE}³", *["–"] * len(networks), *(f"{number:.0f}" for number in giga)],
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sums(networks: Mapping[str, Anatomy], group: str) -> list[str]:
    """Return parameters, then kFLOP per voxel, of each network's parts in a group (of all parts if it is empty)."""
    parts = [[part for part in network.parts if group in ("", part.group)] for network in networks.values()]
    sizes = [thousands(sum(part.parameters for part in own)) if own else "–" for own in parts]
    return [*sizes, *(f"{sum(part.flops for part in own) / 1000:.2f}" if own else "–" for own in parts)]


def with_generated(text: str, generated: str, page: Path, mark: str = BEGIN) -> str:
    """Return the page's text with the part between the marks replaced; ``mark`` is the first of them.

    Raises:
        DataError: a mark is missing, or they are in the wrong order.
    """
    before, begin, rest = text.partition(mark)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page}: expected the lines {mark!r} and {END!r} in this order; add them")
    return f"{before}{mark}\n\n{generated}\n\n{END}{after}"
