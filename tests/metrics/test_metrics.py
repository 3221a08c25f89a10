"""FROC and CPM of the bundle's records: by hand in fractions, and as an ignite metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from ignite.engine import Engine
from monai.handlers import from_engine

from scripts.core.records import Detection
from scripts.metrics import Froc, FrocMetric, ScanTruth, ScoredScan, froc_of, match_scans


def truth(*findings: tuple[float, float, bool], name: str = "") -> ScanTruth:
    """Findings (x mm, diameter mm, is a nodule) on the x axis."""
    x_mm, diameters_mm, is_nodule = np.array(findings, dtype=np.float64).reshape(-1, 3).T
    return ScanTruth(x_mm[:, None] * [1.0, 0.0, 0.0], diameters_mm, is_nodule == 1.0, name)


NOTHING = truth()


def at(x_mm: float, probability: float) -> Detection:
    return Detection((x_mm, 0.0, 0.0), 5.0, probability)


def scored(found: Sequence[Detection], reference: ScanTruth) -> ScoredScan:
    return ScoredScan(tuple(found), reference)


def froc(detections: Sequence[Sequence[Detection]], truths: Sequence[ScanTruth]) -> Froc:
    return froc_of(match_scans([scored(d, t) for d, t in zip(detections, truths, strict=True)]))


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_curve_by_hand() -> None:
    truths = [
        truth((0.0, 10.0, True), (50.0, 6.0, True)),
        truth((0.0, 8.0, True), (90.0, 20.0, False)),
        NOTHING,
        NOTHING,
    ]
    detections = [
        [at(1.0, 0.9), at(-2.0, 0.3), at(51.0, 0.7), at(20.0, 0.6)],  # hit, the same again, hit, false
        [at(85.0, 0.95)],  # on an excluded finding: neither; the nodule at 0 is missed
        [at(0.0, 0.8), at(9.0, 0.5)],  # false, false
        [],
    ]
    curve = froc(detections, truths)
    expected = [(0, 0), (0, 1 / 3), (1 / 4, 1 / 3), (1 / 4, 2 / 3), (2 / 4, 2 / 3), (3 / 4, 2 / 3)]
    np.testing.assert_allclose(np.column_stack([curve.false_positives_per_scan, curve.sensitivity]), expected)
    assert (*curve.readings, curve.cpm) == pytest.approx((1 / 3, *[2 / 3] * 6, 13 / 21))
    assert (curve.counts.nodules, curve.counts.scans) == (3, 4)


def test_a_hit_is_nearer_than_the_radius_in_space() -> None:
    nodule = ScanTruth(np.array([[10.0, -20.0, 30.0]]), np.array([10.0]), np.array([True]))
    for centre, cpm in (((12.8, -22.8, 32.8), 1.0), ((13.0, -23.0, 33.0), 0.0)):  # 4.85 and 5.2 mm away
        assert froc([[Detection(centre, 5.0, 0.9)]], [nodule]).cpm == cpm


# --- as an ignite metric ----------------------------------------------------------------------------------------------


def test_the_metric_gathers_the_scans_of_a_run_and_forgets_those_before() -> None:
    nodule = truth((0.0, 10.0, True))
    batches = [
        [{"pred": scored([at(0.0, 0.9)], nodule)}],
        [{"pred": scored([at(90.0, 0.95)], nodule)}, {"pred": scored([], NOTHING)}],
    ]
    engine, metric = Engine(lambda _, batch: batch), FrocMetric(output_transform=from_engine("pred"))
    metric.attach(engine, "cpm")
    expected = froc([[at(0.0, 0.9)], [at(90.0, 0.95)], []], [nodule, nodule, NOTHING])
    assert 0.0 < expected.cpm < 0.5  # type: ignore[operator]
    engine.run(batches, max_epochs=2)
    assert engine.state.metrics["cpm"] == expected.cpm
    assert metric.scans == tuple(one["pred"] for batch in batches for one in batch)  # without a name all count
    engine.run(batches[:1], max_epochs=3)
    assert engine.state.metrics["cpm"] == 1.0


def test_the_metric_without_nodules_is_undefined_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    metric = FrocMetric()
    for seen in ([scored([at(0.0, 0.9)], NOTHING)], []):
        metric.reset()
        metric.update(seen)
        assert (metric.froc, math.isnan(metric.compute())) == (None, True)
        assert f"CPM of {len(seen)} scans is undefined" in caplog.text


def test_a_scan_seen_twice_counts_once_and_two_of_one_name_are_refused() -> None:
    one, two = truth((0.0, 10.0, True), name="b"), truth((50.0, 6.0, True), name="a")
    metric = FrocMetric()
    metric.update([scored([at(0.0, 0.9)], one), scored([at(9.0, 0.5)], two), scored([at(0.0, 0.9)], one)])
    assert metric.compute() == froc([[at(0.0, 0.9)], [at(9.0, 0.5)]], [one, two]).cpm
    assert [scan.truth.name for scan in metric.scans] == ["a", "b"]
    metric.update([scored([], truth((1.0, 10.0, True), name="a"))])
    with pytest.raises(ValueError, match="one scan named 'a', got two"):
        metric.compute()
