"""The LUNA16 evaluation on arrays: each rule by hand, laws, a plain loop, and the challenge's own readings."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.metrics import (
    RATES,
    SIZE_CLASSES,
    UNKNOWN_SCAN,
    Candidates,
    Findings,
    Froc,
    confidence_of,
    froc_of,
    match,
    size_class,
)
from scripts.metrics.froc import Counts, SizeReadings, curve

Row = tuple[int, float, float]  # scan, x mm, score or diameter mm


def candidates(*rows: Row) -> Candidates:
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return Candidates(table[:, 0].astype(np.int64), table[:, 1:2] * [1.0, 0.0, 0.0], table[:, 2])


def findings(nodules: Sequence[Row], excluded: Sequence[Row] = ()) -> Findings:
    table = np.array([*nodules, *excluded], dtype=np.float64).reshape(-1, 3)
    kinds = np.arange(len(table)) < len(nodules)
    return Findings(table[:, 0].astype(np.int64), table[:, 1:2] * [1.0, 0.0, 0.0], table[:, 2], kinds)


ONE = findings([(0, 0.0, 10.0)])


def luna16_froc(found: Candidates, reference: Findings, scans: int, **limit: int) -> Froc:
    return froc_of(match(found, reference, scans, **limit))


# --- rules, by hand ---------------------------------------------------------------------------------------------------


def test_the_listed_scans_alone_are_counted() -> None:
    """Those without candidates stay in the denominator; candidates and findings of others are dropped."""
    found = candidates((0, 50.0, 0.9), (0, 0.0, 0.5), (UNKNOWN_SCAN, 0.0, 1.0), (UNKNOWN_SCAN, 99.0, 1.0))
    scored = luna16_froc(found, findings([(0, 0.0, 10.0), (UNKNOWN_SCAN, 0.0, 10.0)]), 4)
    assert (scored.false_positives_per_scan.tolist(), scored.readings) == ([0.0, 0.25, 0.25], (0.0, *[1.0] * 6))
    assert scored.counts == Counts(
        true_positives=1,
        false_positives=1,
        false_negatives=0,
        candidates_scored=2,
        nodules=1,
        ignored_on_excluded=0,
        ignored_double=0,
        scans=4,
        scans_without_candidates=3,
        candidates_of_unknown_scans=2,
        candidates_over_limit=0,
    )


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.9, 0.8, 0.7], 3),  # as many as allowed
        ([0.9, 0.8, 0.7, 0.6], 3),  # one more: those above the fourth
        ([0.9, 0.8, 0.7, 0.7], 2),  # a tie at the limit: both of it go
        ([0.9, 0.7, 0.7, 0.7, 0.1], 1),
        ([0.7, 0.7, 0.7, 0.7], 0),  # all tied: none is above the fourth
        ([0.7, 0.7, 0.7], 3),
        ([0.9, 0.8, 0.7, 0.6, 0.6, 0.6], 3),  # a tie below the limit does not matter
    ],
)
def test_the_limit_of_candidates_per_scan(scores: list[float], kept: int) -> None:
    found = candidates(*((0, 100.0 * n, score) for n, score in enumerate(scores, start=1)), (1, 500.0, 0.01))
    counts = luna16_froc(found, ONE, 2, max_candidates=3).counts
    assert counts.candidates_scored == counts.false_positives == kept + 1
    assert (counts.candidates_over_limit, counts.scans_without_candidates) == (len(scores) - kept, 0)


@pytest.mark.parametrize(("score", "true", "false"), [(0.5005, 1, 99), (0.4, 0, 100)])
def test_the_limit_is_100_and_comes_before_matching(score: float, true: int, false: int) -> None:
    """A hit that is the lowest but one takes the place of the lowest; the 101st is gone."""
    others = [(0, 100.0 + n, 0.5 + n / 1000.0) for n in range(100)]
    counts = luna16_froc(candidates(*others, (0, 0.0, score)), ONE, 1).counts
    assert (counts.true_positives, counts.false_positives) == (true, false)


@pytest.mark.parametrize("kind", ["nodule", "excluded"])
@pytest.mark.parametrize(
    ("diameter", "x_mm", "inside"), [(-1.0, 4.999, True), (-1.0, 5.0, False), (-1.0, 9.0, False), (0.0, 0.0, False)]
)
def test_a_negative_diameter_is_a_diameter_of_10_mm(kind: str, diameter: float, x_mm: float, inside: bool) -> None:
    one = (0, 0.0, diameter)
    reference = findings([one]) if kind == "nodule" else findings([(0, 90.0, 8.0)], [one])
    counts = luna16_froc(candidates((0, x_mm, 0.9)), reference, 1).counts
    found = {"nodule": counts.true_positives, "excluded": counts.ignored_on_excluded, None: counts.false_positives}
    assert found == {"nodule": 0, "excluded": 0, None: 0} | {kind if inside else None: 1}


def test_equal_scores_are_one_step_and_readings_are_linear() -> None:
    scored = luna16_froc(candidates(*((scan, 0.0, 0.5) for scan in range(4))), ONE, 4)  # one hit, three false
    points = [scored.thresholds.tolist(), scored.false_positives_per_scan.tolist(), scored.sensitivity.tolist()]
    assert points == [[math.inf, 0.5], [0.0, 0.75], [0.0, 1.0]]
    assert scored.readings == pytest.approx((1 / 6, 1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize(("total", "read"), [(150, 1.0), (155, 0.0)])
def test_the_last_bit_is_that_of_the_challenge(total: int, read: float) -> None:
    """A hit after 111 false positives, 1/8 per scan. 111 / 155 * 155 is 111 + 1.4e-14, so the rise lies just beyond."""
    false = np.concatenate([np.arange(112.0), np.arange(111.0, total + 1)])
    x, y = curve(false, (np.arange(len(false)) >= 112).astype(np.float64), 888, 1)
    assert x[111] == x[112] == pytest.approx(0.125, abs=1e-15)
    assert np.interp(RATES, x, y)[0] == read


@pytest.mark.parametrize("wrong", [-2, 3])
def test_an_index_that_is_no_scan_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="scan indices from -1 to 2"):
        luna16_froc(candidates((wrong, 0.0, 0.9)), ONE, 3)


# --- undefined cases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[], [(0, 90.0, 0.9)]], ids=["no candidates", "no hit"])
def test_nothing_found_is_zero_and_nothing_to_find_undefined(rows: list[Row]) -> None:
    scored = luna16_froc(candidates(*rows), ONE, 1)
    assert (scored.cpm, scored.readings) == (0.0, (0.0,) * 7)
    matches = match(candidates(*rows), findings([], [(0, 0.0, 10.0)]), 1)
    assert (froc_of(matches).cpm, confidence_of(matches, resamples=5)) == (None, None)
    assert np.isnan(froc_of(matches).readings).all()


def test_without_false_positives_all_hits_are_at_rate_0() -> None:
    hit = luna16_froc(candidates((0, 0.0, 0.9)), findings([(0, 0.0, 10.0), (0, 50.0, 10.0)]), 1)
    assert (hit.cpm, hit.false_positives_per_scan.tolist()) == (0.5, [0.0, 0.0])


# --- size classes -----------------------------------------------------------------------------------------------------


def test_to_which_class_a_bound_belongs() -> None:
    sizes = np.array([2.99, 3.0, 5.99, 6.0, 10.0, 10.01, 30.0])
    assert [SIZE_CLASSES[n] for n in size_class(sizes)] == ["<3", "3-6", "3-6", "6-10", "6-10", ">10", ">10"]


def test_sensitivity_by_size_at_the_rates_of_the_whole_system() -> None:
    reference = findings([(0, 0.0, 5.0), (0, 50.0, 8.0), (1, 0.0, 8.0), (1, 50.0, 20.0)])
    found = candidates((0, 0.0, 0.9), (0, 90.0, 0.8), (1, 0.0, 0.7), (1, 90.0, 0.6), (1, 50.0, 0.5))
    assert luna16_froc(found, reference, 2).sizes[1:] == (
        SizeReadings("3-6", 1, 1, (1.0,) * 7),
        SizeReadings("6-10", 2, 1, (0.0, 0.0, *[0.5] * 5)),
        SizeReadings(">10", 1, 1, (0.0, 0.0, 0.0, *[1.0] * 4)),
    )


# --- laws -------------------------------------------------------------------------------------------------------------

SCANS = 4
REFERENCE = findings(
    [(0, 0.0, 10.0), (0, 4.0, 6.0), (0, 30.0, 12.0), (1, 0.0, 8.0), (3, 10.0, 30.0), (3, 20.0, 20.0)],
    [(0, 60.0, -1.0), (1, 3.0, 8.0), (2, 0.0, -1.0)],
)
FOUND = st.lists(
    st.tuples(st.integers(-1, SCANS - 1), st.integers(-10, 80).map(float), st.integers(0, 12).map(lambda n: n / 12.0)),
    max_size=40,
)
few = settings(max_examples=60)


def by_loops(rows: list[Row], limit: int) -> tuple[list[float], dict[str, int]]:
    """The rules of the challenge as plain loops over scans, nodules and candidates: curve readings and counts."""
    hits: list[float] = []
    false: list[float] = []
    counts = dict.fromkeys(("false_negatives", "candidates_scored", "ignored_on_excluded", "ignored_double"), 0)
    for scan in range(SCANS):
        own = [(x, score) for s, x, score in rows if s == scan]
        if len(own) > limit:
            lowest = sorted((score for _, score in own), reverse=True)[limit]
            own = [(x, score) for x, score in own if score > lowest]
        counts["candidates_scored"] += len(own)
        left = set(range(len(own)))
        for n in np.flatnonzero(REFERENCE.scans == scan):
            diameter = REFERENCE.diameters_mm[n] if REFERENCE.diameters_mm[n] >= 0 else 10.0
            apart = [(x - REFERENCE.positions_mm[n, 0]) ** 2 for x, _ in own]
            inside = [i for i, d in enumerate(apart) if d < (diameter / 2.0) ** 2]
            if not REFERENCE.is_nodule[n]:
                counts["ignored_on_excluded"] += len(left & set(inside))
            elif inside:
                hits.append(max(own[i][1] for i in inside))
                counts["ignored_double"] += len(inside) - 1
            else:
                counts["false_negatives"] += 1
            left -= set(inside)
        false += [own[i][1] for i in left]
    levels = sorted({*hits, *false}, reverse=True)
    x = [0.0] + [sum(f >= level for f in false) / SCANS for level in levels]
    y = [0.0] + [sum(h >= level for h in hits) / REFERENCE.is_nodule.sum() for level in levels]
    return np.interp(RATES, x, y).tolist(), counts | {"true_positives": len(hits), "false_positives": len(false)}


@settings(max_examples=200)
@given(FOUND, st.integers(1, 12))
def test_the_arrays_do_what_plain_loops_do(rows: list[Row], limit: int) -> None:
    scored = luna16_froc(candidates(*rows), REFERENCE, SCANS, max_candidates=limit)
    readings, counts = by_loops(rows, limit)
    assert {name: getattr(scored.counts, name) for name in counts} == counts
    assert scored.readings == pytest.approx(readings, abs=1e-12)


@few
@given(FOUND, st.randoms(use_true_random=False), st.permutations(range(SCANS)))
def test_order_of_rows_and_scans_and_size_of_scores_do_not_count(
    rows: list[Row], random: Any, order: Sequence[int]
) -> None:
    shuffled = sorted(((s, x, 3.0 * score - 40.0) for s, x, score in rows), key=lambda _: random.random())
    renamed = [(order[s] if s >= 0 else s, x, score) for s, x, score in shuffled]
    backwards = np.arange(len(REFERENCE.scans))[::-1]
    reference = Findings(
        np.array(order)[REFERENCE.scans][backwards],
        REFERENCE.positions_mm[backwards],
        REFERENCE.diameters_mm[backwards],
        REFERENCE.is_nodule[backwards],
    )
    plain = match(candidates(*rows), REFERENCE, SCANS)
    first, second = froc_of(plain), luna16_froc(candidates(*renamed), reference, SCANS)
    assert (first.counts, first.readings) == (second.counts, second.readings)
    np.testing.assert_array_equal(first.false_positives_per_scan, second.false_positives_per_scan)
    np.testing.assert_array_equal(first.sensitivity, second.sensitivity)
    again = confidence_of(match(candidates(*shuffled), REFERENCE, SCANS), resamples=10)
    drawn = confidence_of(plain, resamples=10)
    assert (again.readings, again.cpm) == (drawn.readings, drawn.cpm)


@few
@given(FOUND)
def test_sensitivity_never_falls_and_size_classes_add_up_to_the_whole(rows: list[Row]) -> None:
    scored = luna16_froc(candidates(*rows), REFERENCE, SCANS)
    for rising in (scored.false_positives_per_scan, scored.sensitivity, scored.readings):
        assert (np.diff(rising) >= 0.0).all()
    assert scored.cpm == pytest.approx(sum(scored.readings) / len(RATES))
    filled = [s for s in scored.sizes if s.nodules]
    totals = sum(s.nodules for s in filled), sum(s.true_positives for s in scored.sizes)
    assert totals == (scored.counts.nodules, scored.counts.true_positives)
    together = np.sum([np.array(s.readings) * s.nodules for s in filled], axis=0) / scored.counts.nodules
    assert together == pytest.approx(scored.readings, abs=1e-12)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def test_each_resample_has_its_own_nodules_in_the_denominator() -> None:
    """Scan 0: one nodule, hit. Scan 1: three, missed. Resamples of two scans: 1/1, 1/4 or 0/6."""
    reference = findings([(0, 0.0, 10.0), (1, 0.0, 9.0), (1, 30.0, 9.0), (1, 60.0, 9.0)])
    matches = match(candidates((0, 0.0, 0.9)), reference, 2)
    for level, bounds in ((0.4, (0.25, 0.25)), (0.95, (0.0, 1.0))):  # 0.4: 30th to 70th percentile, of 1/4 : 1/2 : 1/4
        drawn = confidence_of(matches, resamples=400, level=level)
        assert (drawn.cpm.low, drawn.cpm.high, drawn.undefined) == (*bounds, 0)
    drawn = confidence_of(match(candidates((0, 0.0, 0.9)), ONE, 2), resamples=400, seed=1)
    assert 60 < drawn.undefined < 140  # a quarter of them draws the empty scan twice
    assert {(b.low, b.high) for b in (*drawn.readings, drawn.cpm)} == {(1.0, 1.0)}
    assert (drawn.band_low == 1.0).all()


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    reference = findings([(n, 0.0, 10.0) for n in range(30)])
    found = candidates(*((n, float(rng.choice([0.0, 50.0])), float(rng.random())) for n in range(30) for _ in range(2)))
    matches = match(found, reference, 30)
    first, again, other = (confidence_of(matches, resamples=40, seed=seed) for seed in (3, 3, 4))
    assert (first.readings, first.cpm) == (again.readings, again.cpm)
    assert first.cpm != other.cpm
    assert first.cpm.low < froc_of(matches).cpm < first.cpm.high


# --- speed ------------------------------------------------------------------------------------------------------------


def test_888_scans_with_54_000_candidates_take_seconds() -> None:
    """Measured: 0.3 s to score, 0.5 s for 1000 resamples; the bounds are those promised."""
    rng, is_nodule = np.random.default_rng(0), np.arange(36_000) < 1186
    (scans, places), (of, centres) = (
        (rng.integers(0, 888, n), rng.uniform(-150, 150, (n, 3))) for n in (54_000, 36_000)
    )
    found = Candidates(scans, places, rng.random(54_000))
    reference = Findings(of, centres, np.where(is_nodule, 8.0, -1.0), is_nodule)
    began = time.process_time()
    matches = match(found, reference, 888)
    froc_of(matches)
    scored = time.process_time()
    confidence_of(matches)
    assert scored - began < 1.0
    assert time.process_time() - scored < 10.0
