"""What an evaluation writes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ignite.engine import Engine, Events

from ..metrics import RATES, CpmMetric

logger = logging.getLogger(__name__)


class SaveFroc:
    """Write the FROC readings of an evaluation as JSON once it is complete, and log them.

    Args:
        metric: the evaluation's metric.
        path: of the JSON file; its folder is made where it is missing.
    """

    def __init__(self, metric: CpmMetric, path: str) -> None:
        self.metric, self.path = metric, Path(path)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, _: Engine) -> None:
        curve = self.metric.froc
        if curve is None:
            return
        readings = dict(zip(map(str, RATES), (round(r, 4) for r in curve.readings), strict=True))
        content = {
            "scans": curve.scans,
            "nodules": curve.nodules,
            "sensitivity_at_false_positives_per_scan": readings,
            "cpm": curve.cpm,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        logger.info("%s: %s", self.path, content)
