"""Beyond LUNA16's curve: thresholds, calibration, the curve per litre, and the pictures of the worst cases."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from scipy import special

from scripts.core.records import Detection
from scripts.evaluate.__main__ import main
from scripts.evaluate.calibrate import apply_calibration
from scripts.evaluate.handler import SaveEvaluation
from scripts.evaluate.operating import threshold_at
from scripts.evaluate.worst import HALF_WIDTH_MM, WorstCases, worst_of
from scripts.metrics import (
    LITRE_RATES,
    Candidates,
    Findings,
    FrocMetric,
    Matches,
    Reliability,
    ScanTruth,
    ScoredScan,
    calibration_of,
    froc_of,
    match,
    per_litre_of,
)
from scripts.network.checkpoint import load_weights, save_weights
from scripts.network.compact import CompactNet

FAR_MM = 100.0


def matches(hits: list[float], false: list[float], missed: int = 0, scans: int = 1) -> Matches:
    """Nodules of 10 mm in a row, found with these scores or missed, and false candidates far from them."""
    nodules = len(hits) + missed
    places = np.array([[FAR_MM * n, 0.0, 0.0] for n in range(nodules)]).reshape(-1, 3)
    wrong = np.array([[FAR_MM * n, FAR_MM, 0.0] for n in range(len(false))]).reshape(-1, 3)
    candidates = Candidates(
        np.zeros(len(hits) + len(false), np.int64),
        np.concatenate([places[: len(hits)], wrong]),
        np.array([*hits, *false], dtype=np.float64),
    )
    findings = Findings(np.zeros(nodules, np.int64), places, np.full(nodules, 10.0), np.ones(nodules, bool))
    return match(candidates, findings, scans, max_candidates=10**9)


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.5, 0.0), (0.4, 1.0), (1.2, -3.0)])
def test_the_fit_finds_what_was_drawn(slope: float, intercept: float) -> None:
    """Scores of known calibration: the share of true ones at a logit z is sigmoid(slope · z + intercept)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0, 20000)
    true = rng.random(len(logits)) < special.expit(slope * logits + intercept)
    calibration = calibration_of(special.expit(logits[true]), special.expit(logits[~true]))
    assert calibration is not None
    assert calibration.slope == pytest.approx(slope, rel=0.06)
    assert calibration.intercept == pytest.approx(intercept, abs=0.1)
    assert calibration.after.expected_error < 0.015
    if slope != 1.0:
        assert calibration.before.expected_error > 0.04


def test_reliability_by_hand() -> None:
    reliability = Reliability.of(np.array([0.05, 0.15, 0.15, 1.0]), np.array([False, True, False, True]))
    filled = {n: (one.candidates, one.true_share) for n, one in enumerate(reliability.bins) if one.candidates}
    assert filled == {0: (1, 0), 1: (2, 0.5), 9: (1, 1)}
    assert math.isnan(reliability.bins[5].true_share)
    assert reliability.expected_error == pytest.approx((0.05 + 2 * 0.35 + 0.0) / 4)


@pytest.mark.parametrize(
    ("hits", "false", "possible"),
    [([], [], False), ([0.9], [], False), ([], [0.9], False), ([1.0, 1.0, 0.4], [0.0, 0.6], True)],
)
def test_both_kinds_of_candidates_are_needed_and_may_be_certain(
    hits: list[float], false: list[float], possible: bool
) -> None:
    calibration = calibration_of(np.array([-np.inf, *hits]), np.array(false))
    assert (calibration is not None) == possible
    assert calibration is None or math.isfinite(calibration.slope + calibration.intercept)


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="expected probabilities, got scores from -1 to 3"):
        calibration_of(np.array([3.0]), np.array([-1.0]))


# --- per litre and thresholds -----------------------------------------------------------------------------------------


def test_per_litre_by_hand() -> None:
    """Two litres: hit, false, hit, false, false, hit; a fourth nodule is missed."""
    read = per_litre_of(matches([0.9, 0.7, 0.4], [0.8, 0.6, 0.5], missed=1), 2.0, resamples=0)
    assert dict(zip(LITRE_RATES, read.readings, strict=True)) == pytest.approx(
        {0.0625: 0.25, 0.125: 0.25, 0.25: 0.25, 0.5: 0.5, 1.0: 0.5, 2.0: 0.75}
    )
    assert read.intervals == ()


def test_intervals_per_litre_come_from_nodules() -> None:
    """Of 50 nodules 30 are found without any false finding: the interval is that of the binomial distribution."""
    read, again = (per_litre_of(matches([0.9] * 30, [0.1], missed=20), 1.0, resamples=2000) for _ in range(2))
    spread = 1.96 * math.sqrt(0.6 * 0.4 / 50)
    assert read.readings[0] == pytest.approx(0.6)
    assert astuple(read.intervals[0]) == pytest.approx((0.6 - spread, 0.6 + spread), abs=0.03)
    assert again == read


def test_without_nodules_nothing_is_read() -> None:
    read = per_litre_of(matches([], [0.5]), 1.0)
    assert all(math.isnan(value) for value in read.readings)
    assert read.intervals == ()


def test_a_threshold_lets_through_what_its_rate_allows() -> None:
    froc = froc_of(matches([0.9, 0.4], [0.8, 0.6, 0.6, 0.3], scans=2))
    expected = {0.125: 0.9, 0.5: 0.8, 1.0: 0.8, 1.5: 0.4, 2.0: 0.3}
    assert {rate: threshold_at(froc, rate) for rate in expected} == expected
    assert threshold_at(froc_of(matches([], [0.8])), 0.5) is None


# --- what an evaluation writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "litres", [[4.0] * 6, [0.0] * 6, [4.0] * 5 + [0.0]], ids=["all lungs", "no lungs", "all but one"]
)
def test_an_evaluation_leaves_its_operating_points(litres: list[float], tmp_path: Path) -> None:
    """Without the lungs of every scan there is no rate per litre."""
    metric = FrocMetric()
    rng = np.random.default_rng(0)
    for n, own_litres in enumerate(litres):
        centres = rng.uniform(-100, 100, (2, 3))
        found = (at(centres[0], 0.9), at((500.0, 0.0, 0.0), 0.1 * n))
        truth = ScanTruth(centres, np.array([10.0, 8.0]), np.ones(2, bool), f"scan {n}", own_litres)
        metric.update([ScoredScan(found, truth)])
    metric.compute()
    SaveEvaluation(metric, str(tmp_path), resamples=20).write()
    record = json.loads((tmp_path / "operating.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert record["threshold_at"]["0.125"] == 0.9
    assert record["calibration"]["before"]["bins"][9]["true_share"] == 1.0
    assert is_picture(tmp_path / "reliability.png")
    read = record["per_litre"]
    assert (read is not None) == (min(litres) > 0)
    if read is not None:
        halves = dict.fromkeys(("0.0625", "0.125", "0.25", "0.5", "1", "2"), 0.5)
        assert (read["litres"], read["sensitivity_at"]) == (24.0, halves)
        assert read["scans"]["scan 3"] == {"litres": 4.0, "nodules": 2}


# --- the worst cases --------------------------------------------------------------------------------------------------

SIZE = 60
NODULES = np.array([[20.0, 20.0, 20.0], [40.0, 40.0, 40.0], [10.0, 50.0, 10.0]])


def run_worst(folder: Path, candidates: list[Detection], copies: int = 1, most: int = 12) -> dict[str, Any]:
    """One scan (several times) whose third finding is an excluded one."""
    image = torch.full((1, SIZE, SIZE, SIZE), -0.8)
    for i, j, k in NODULES.astype(int):
        image[0, i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] = 0.4
    truth = ScanTruth(NODULES, np.array([8.0, 12.0, -1.0]), np.array([True, True, False]), "scan")
    worst = WorstCases(str(folder), threshold=0.5, most=most)
    engine = Engine(lambda engine, batch: [{"pred": ScoredScan(tuple(candidates), truth)}])
    worst.attach(engine)
    engine.run([[{"image": MetaTensor(image, affine=torch.eye(4))}]] * copies)
    kinds = ("misses", "false_findings")
    return {kind: worst_of([case for named, case in worst._seen if named == kind], worst.most) for kind in kinds}


def at(place: Any, probability: float) -> Detection:
    return Detection(tuple(map(float, place)), 6.0, probability)


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_misses_and_false_findings_are_told_apart(tmp_path: Path) -> None:
    places = [*NODULES[:2], NODULES[2] + [0, 0, 4], (5, 5, 50), (5, 50, 50), (50, 5, 50)]
    found = [at(place, probability) for place, probability in zip(places, (0.9, 0.3, 0.8, 0.7, 0.2, 0.5), strict=True)]
    cases = run_worst(tmp_path, found, copies=3)
    titles = {kind: [case.title for case in those] for kind, those in cases.items()}
    assert titles == {"misses": ["12.0 mm, p 0.30"], "false_findings": ["p 0.70", "p 0.50"]}  # the threshold counts
    assert all(is_picture(tmp_path / f"{kind}.png") for kind in cases)


def test_a_picture_has_its_finding_in_the_middle_and_darkness_beyond_the_scan(tmp_path: Path) -> None:
    (case,) = run_worst(tmp_path, [at(NODULES[0], 0.9)])["misses"]
    h, axial = HALF_WIDTH_MM, case.picture[0]
    assert case.picture.shape == (2, 2 * h + 1, 2 * h + 1)
    assert (case.picture[:, h - 2 : h + 3, h - 2 : h + 3] == np.float32(0.4)).all()
    assert (case.picture[:, h, h + 4] == np.float32(-0.8)).all()
    assert (axial[:, 0] == -1.0).all()  # right of the scan's last column, i = 60, which is the picture's left edge
    assert axial[h, -1] == np.float32(-0.8)


def test_the_worst_stay_and_nothing_gives_no_file(tmp_path: Path) -> None:
    false = [at((5, 5 * n, 55), 0.5 + 0.04 * n) for n in range(10)]
    cases = run_worst(tmp_path / "most", [*[at(n, 0.9) for n in NODULES], *false], most=3)
    assert [case.title for case in cases["false_findings"]] == ["p 0.86", "p 0.82", "p 0.78"]
    assert not (tmp_path / "most" / "misses.png").exists()


# --- calibrated weights -----------------------------------------------------------------------------------------------


def test_folding_the_line_changes_the_nodule_logit_alone() -> None:
    torch.manual_seed(0)
    network = CompactNet().eval()
    for parameter in network.coarse.write.parameters():
        torch.nn.init.normal_(parameter)
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        before = network(image)
        apply_calibration(network, 2.5, -1.5)
        after = network(image)
    torch.testing.assert_close(after[:, 0], 2.5 * before[:, 0] - 1.5, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=0)


def test_the_command_writes_calibrated_weights(tmp_path: Path) -> None:
    network, mended = CompactNet(), CompactNet()
    save_weights(network, tmp_path / "model.pt")
    (tmp_path / "operating.json").write_text('{"calibration": {"slope": 2.0, "intercept": -1.0}}')
    options = {"checkpoint": "model.pt", "operating": "operating.json", "output": "mended.pt"}
    assert main(["calibrate", *(f"--{option}={tmp_path / file}" for option, file in options.items())]) == 0
    load_weights(mended, str(tmp_path / "mended.pt"))
    torch.testing.assert_close(mended.detect.bias[0], 2.0 * network.detect.bias[0] - 1.0)  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ('{"calibration": null}', "TypeError"),
        ('{"calibration": {"slope": -1.0, "intercept": 0}}', "expected a slope above 0, got -1"),
        ('{"calibration": {"slope": 0.0, "intercept": 0}}', "expected a slope above 0, got 0"),
        ('{"calibration": {"slope": NaN, "intercept": 0}}', "expected a slope above 0, got nan"),
    ],
)
def test_an_unusable_calibration_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "operating.json").write_text(content)
    options = ["--checkpoint", "none.pt", "--operating", str(tmp_path / "operating.json"), "--output"]
    assert main(["calibrate", *options, str(tmp_path / "out.pt")]) == 1
    assert message in caplog.text
    assert not (tmp_path / "out.pt").exists()
