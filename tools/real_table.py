"""One row per network from its evaluations of the sections that :mod:`.real_nodules` lists.

The whole chests say which threshold gives how many false findings a scan; at these thresholds nodules are counted in
all three sections. Masks are compared for what was found from the evaluation's own ``--threshold`` on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.core.commands import run_function
from scripts.core.geometry import FloatArray
from scripts.evaluate.system import Reference
from scripts.evaluate.tables import read_findings, read_results, read_series_uids
from scripts.metrics.luna16 import UNKNOWN_SCAN, Candidates, Matches, match

logger = logging.getLogger(__name__)

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
CROPS = ("context", "patches")
SMALL_MM = 10.0


def real_table(evaluations: Sequence[str], chests: str = "") -> str:
    """The rows as a Markdown table.

    Args:
        evaluations: a folder for each network, with the evaluations of the sections in ``context``, ``patches`` and
            ``chests``.
        chests: only chests whose names begin with this count, for networks that were trained on the others.

    Returns:
        Found nodules at each rate of false findings per chest, of ``context`` and ``patches``, then of the chests;
        mean Dice, all and below 10 mm, with the number of masks.

    Raises:
        TableError: an evaluation without its tables.
    """
    heads = ["Weights", *(f"{rate:g}" for rate in RATES), *(f"in chests at {rate:g}" for rate in RATES), "Dice"]
    lines = [
        heads,
        ["---"] * len(heads),
        *([Path(folder).name, *_cells(Path(folder), chests)] for folder in evaluations),
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    logger.info("%s", table)
    return table


def _cells(folder: Path, chests: str) -> list[str]:
    whole = _matches(folder / "chests", chests)
    crops = np.concatenate([_matches(folder / name).nodule_scores for name in CROPS])
    thresholds = [threshold_at(whole, rate) for rate in RATES]
    return [
        *(
            f"{int((scores > limit).sum())} of {len(scores)}"
            for scores in (crops, whole.nodule_scores)
            for limit in thresholds
        ),
        _dice(folder),
    ]


def _matches(folder: Path, beginning: str = "") -> Matches:
    """What became of the candidates and nodules of an evaluation, or of its scans with such names."""
    uids = [uid for uid in read_series_uids(folder / "seriesuids.csv")[0] if uid.startswith(beginning)]
    nodules, excluded = (read_findings(folder / f"{name}.csv") for name in ("annotations", "annotations_excluded"))
    found = read_results(folder / "predictions.csv")
    scans = found.scans({uid: n for n, uid in enumerate(uids)}, UNKNOWN_SCAN)
    candidates = Candidates(scans, found.positions_lps_mm, found.values)
    return match(candidates, Reference.of(uids, nodules, excluded).findings, len(uids))


def threshold_at(matches: Matches, rate: float) -> float:
    """The probability above which there are at most ``rate`` false findings a scan."""
    falling = np.sort(matches.false_scores)[::-1]
    allowed = int(rate * matches.counts.scans)
    return float(falling[allowed]) if allowed < len(falling) else 0.0


def _dice(folder: Path) -> str:
    """Mean Dice of the masks of ``context`` and ``patches``, all and of small nodules."""
    nodules = [
        nodule
        for name in CROPS
        for nodule in json.loads((folder / name / "outlines.json").read_text(encoding="utf-8"))["nodules"]["matched"]
    ]
    dice: FloatArray = np.array([nodule["overlap"]["dice"] for nodule in nodules])
    small = np.array([nodule["diameter_mm"] < SMALL_MM for nodule in nodules])
    return f"{dice.mean():.3f} ({len(dice)}), {dice[small].mean():.3f} ({small.sum()})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 when it failed, 2 when the command line is wrong."""
    return run_function("python -m tools.real_table", real_table, arguments)


if __name__ == "__main__":
    sys.exit(main())
