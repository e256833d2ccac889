"""Intervals against tables, against a plain jackknife, and by how often they contain the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.evaluation.intervals import effective, estimate, intervals, t_quantile
from tests.conftest import examples

positive = st.floats(0.1, 1000)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    [(0.975, 1, 12.7062), (0.95, 2, 2.91999), (0.975, 5, 2.57058), (0.95, 30, 1.69726), (0.975, 200, 1.97190),
     (0.975, 1e6, 1.95997), (0.5, 3, 0.0)],
)  # fmt: skip
def test_quantiles_are_those_of_tables(probability: float, freedom: float, expected: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=2e-5, rel=1e-5)


def test_the_error_is_that_of_a_plain_jackknife() -> None:
    random = np.random.default_rng(1)
    top, bottom = random.gamma(2, 50, 40), random.gamma(3, 40, 40)
    ratio = top.sum() / bottom.sum()
    without = [np.delete(top, n).sum() / np.delete(bottom, n).sum() for n in range(40)]
    found = estimate(top, bottom)
    assert found.ratio == pytest.approx(ratio)
    assert found.error == pytest.approx(math.sqrt(sum((one - ratio) ** 2 for one in without)) / ratio)
    assert found.effective == pytest.approx(effective(bottom))


def test_degrees_of_freedom_are_few_when_few_documents_decide() -> None:
    random = np.random.default_rng(3)
    size = np.full(200, 100.0)
    assert 40 < estimate(size * random.normal(1, 0.1, 200), size).freedom < 120
    one_differs = estimate(size * np.array([2.0] + [1.0] * 199), size)
    assert one_differs.freedom < 1.1
    one_is_large = np.array([2000.0] + [100.0] * 199)
    assert estimate(one_is_large * random.normal(1, 0.1, 200), one_is_large).freedom < 2


def test_pairing_narrows_the_interval() -> None:
    """A model that is 1% worse on every document is 1% worse with certainty, although documents differ."""
    nats = np.random.default_rng(1).gamma(1, 50, 30)
    alone, paired = intervals([nats * 1.01, nats * 1.01], [np.full(30, nats.mean()), nats], 0.95)
    assert alone[0] < 0.9 < 1.1 < alone[1]
    assert paired == pytest.approx((1.01, 1.01))


@pytest.mark.parametrize("trend", [0.0, 0.01])
@pytest.mark.parametrize("documents", [20, 50])
def test_coverage_with_heavy_tails(documents: int, trend: float) -> None:
    """Of 300 intervals at 95%, over documents some of which are most of the text, at least 92% contain the truth; the
    bootstrap's contained it in 68 to 86%."""
    random, hits = np.random.default_rng(documents), 0
    truth = 1.02 + trend * 1.5**2  # E[size log(size / median)] / E[size] is sigma^2
    for _ in range(300):
        logs = random.normal(0, 1.5, documents)
        size = np.exp(logs)
        change = 1.02 + trend * logs + 0.03 * random.standard_normal(documents)
        ((low, high),) = intervals([size * change], [size], 0.95)
        hits += low <= truth <= high
    assert hits >= 0.92 * 300


def test_a_document_with_most_of_the_text_does_not_hide_the_others() -> None:
    """49 documents are 6% worse, and one of 91% of the bytes is 0.5% better."""
    size = np.array([1.0] * 49 + [49 / 0.09 * 0.91])
    ((low, high),) = intervals([size * np.array([1.06] * 49 + [0.995])], [size], 0.95)
    assert low < 0.995
    assert high > 1.06
    assert effective(size) < 1.3


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=30), st.randoms(), st.floats(0.5, 0.999))
def test_neither_order_nor_unit_matters(rows: list[tuple[float, float]], random: object, confidence: float) -> None:
    top, bottom = np.array(rows).T
    order = sorted(range(len(rows)), key=lambda _: random.random())  # type: ignore[attr-defined]
    ((low, high),) = intervals([top], [bottom], confidence)
    ((low_2, high_2),) = intervals([top[order] * 8], [bottom[order] * 4], confidence)
    assert [low_2 / 2, high_2 / 2] == pytest.approx([low, high], rel=1e-6)
    assert low <= top.sum() / bottom.sum() * (1 + 1e-12)
    assert high >= top.sum() / bottom.sum() * (1 - 1e-12)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=20), st.floats(0, 0.1), st.floats(0, 0.1))
@settings(max_examples=examples(50))
def test_noise_never_narrows_the_interval(rows: list[tuple[float, float]], one: float, other: float) -> None:
    top, bottom = np.array(rows).T
    low, high = (estimate(top, bottom, noise).interval(0.9) for noise in sorted((one, other)))
    assert high[0] <= low[0] <= low[1] <= high[1]


def test_known_noise_alone_is_normal() -> None:
    low, high = estimate([2.0, 4.0], [1.0, 2.0], 0.01).interval(0.95)
    assert [low, high] == pytest.approx([2 * math.exp(-0.0195996), 2 * math.exp(0.0195996)], rel=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_p_value_is_the_level_at_which_the_interval_ends_there(noise: float) -> None:
    random = np.random.default_rng(2)
    size = random.gamma(3, 40, 60)
    found = estimate(size * random.normal(1.1, 0.05, 60), size, noise)
    for confidence in (0.5, 0.9, 0.99):
        low, high = found.interval(confidence)
        assert found.probability_above(low) == pytest.approx((1 - confidence) / 2, rel=0.01)
        assert found.probability_above(high) >= 0.5
    equal = estimate([2.0, 2.0], [1.0, 1.0])
    assert equal.probability_above(1.9) < 1e-8
    assert equal.probability_above(2.0) == 1.0


@pytest.mark.parametrize(
    ("top", "bottom"), [([3.0], [2.0]), ([3.0, 0.0], [2.0, 0.0]), ([], []), ([0.0] * 3, [1.0] * 3)]
)
def test_no_interval_without_evidence(top: list[float], bottom: list[float]) -> None:
    assert all(map(math.isnan, intervals([top], [bottom], 0.95)[0]))
    assert math.isnan(estimate(top, bottom).probability_above(1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_value_affects_only_its_own_interval(bad: float) -> None:
    broken, sound = intervals([[1.0, bad], [1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]], 0.95)
    assert all(map(math.isnan, broken))
    assert sound[0] < 1.5 < sound[1]
    assert math.isnan(estimate([1.0, bad], [1.0, 1.0]).ratio)


def test_effective_number_of_documents() -> None:
    assert effective([5.0] * 7) == pytest.approx(7)
    assert effective([1.0, 1e9]) == pytest.approx(1, abs=1e-6)
    assert effective([]) == 0
