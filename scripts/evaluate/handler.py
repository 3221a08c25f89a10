"""Writes the results of an evaluation run from a configuration: the tables scored, and the files of ``luna16``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..core.files import writable_folder, write_csv, write_json
from ..core.geometry import swap_lps_ras
from ..metrics import FrocMetric, MaskMetric, ScoredScan
from .operating import summary, write_operating
from .outputs import scan_lists, text_table, write_evaluation
from .system import Resampling, Score, System
from .tables import FINDING_COLUMNS, LUNA16_COLUMNS

logger = logging.getLogger(__name__)


class SaveEvaluation:
    """Ignite handler that writes what was scored and the scores when an evaluation is complete, on the first rank only.

    ``predictions.csv``, ``annotations.csv``, ``annotations_excluded.csv`` and ``seriesuids.csv`` contain what was
    scored (LPS mm, with all digits), so that ``python -m scripts.evaluate luna16`` computes the same numbers from them;
    ``froc.json``, ``froc.csv`` and ``froc.png`` are those that this command writes. ``masks.json`` contains the scores
    of the masks, ``operating.json`` and ``reliability.png`` thresholds, calibration and sensitivity per litre of lung
    (:mod:`.operating`).

    Args:
        metric: the evaluation's metric.
        output_dir: folder for the files; it is made if it does not exist.
        masks: the metric of the masks; ``None`` for no ``masks.json``.
        resamples: number of resamples of the bootstrap over scans; 0 for no intervals.
        seed: seed of the bootstrap.
    """

    def __init__(
        self,
        metric: FrocMetric,
        output_dir: str,
        masks: MaskMetric | None = None,
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.metric, self.output_dir, self.masks = metric, Path(output_dir), masks
        self.resampling = Resampling(resamples, seed)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, idist.one_rank_only()(self.write))

    def write(self) -> None:
        """Write the files of the metric's last run.

        Raises:
            ValueError: the metric has not been computed.
            OutputError: the folder cannot be written to.
        """
        if self.metric.matches is None:
            raise ValueError("expected a metric that has been computed, got none; run the evaluation first")
        folder = writable_folder(self.output_dir)
        named = {scan.truth.name or f"unnamed_{n:04d}": scan for n, scan in enumerate(self.metric.scans)}
        _write_tables(folder, named)
        empty = tuple(name for name, scan in named.items() if not scan.detections)
        score = Score.of(self.metric.matches, self.resampling)
        system = System("predictions", score, scans_without_candidates=empty)
        write_evaluation(folder, [system])
        operating = write_operating(folder, score.froc, self.metric.matches, named, self.resampling)
        logger.info("%s\n%s", folder / "froc.json", "\n".join([text_table([system]), *scan_lists(system)]))
        logger.info("%s\n%s", folder / "operating.json", "\n".join(summary(operating)))
        if self.masks is not None and self.masks.scores is not None:
            record, missing = self.masks.scores.to_dict(), self.masks.scores.without_reference
            path = write_json(folder / "masks.json", record)
            logger.info("%s\n%s", path, "\n".join(_mask_lines(record["summary"])))
            if missing:
                logger.warning("%d nodules have no voxel in the reference masks: not scored", missing)


def _mask_lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each setting of the mask metric: Dice and the other scores, each the mean over nodules."""
    for setting, sizes in summary.items():
        if sizes is not None:
            means = {name: sizes["all"][name]["mean"] for name in ("dice", "iou", "hd95_mm", "surface_dice_1mm")}
            shown = ", ".join(f"{name} {'-' if mean is None else f'{mean:.3f}'}" for name, mean in means.items())
            yield f"masks, {setting.replace('_', ' ')}: {sizes['all']['nodules']} nodules, mean {shown}"


def _write_tables(folder: Path, scans: dict[str, ScoredScan]) -> None:
    found = [(name, *one.centre_lps_mm, one.probability) for name, scan in scans.items() for one in scan.detections]
    write_csv(folder / "predictions.csv", [LUNA16_COLUMNS, *found])
    write_csv(folder / "seriesuids.csv", [(name,) for name in scans])
    for table, wanted in (("annotations", True), ("annotations_excluded", False)):
        rows: list[tuple[object, ...]] = [FINDING_COLUMNS]
        for name, (_, truth) in scans.items():
            findings = zip(swap_lps_ras(truth.centres_ras_mm), truth.diameters_mm, truth.is_nodule, strict=True)
            rows += [(name, *centre.tolist(), float(d)) for centre, d, kind in findings if bool(kind) == wanted]
        write_csv(folder / f"{table}.csv", rows)
