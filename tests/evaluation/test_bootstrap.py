"""Intervals against a plain loop, against theory, and their bounded cost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qalam_core.evaluation import bootstrap
from qalam_core.evaluation.bootstrap import intervals


def test_intervals_equal_those_of_a_plain_loop() -> None:
    random = np.random.default_rng(1)
    top, bottom = random.gamma(2, 50, 40), random.gamma(3, 40, 40)
    found = intervals([top], [bottom], 0.9)[0]
    chosen = np.random.default_rng(2).integers(0, 40, (20_000, 40))
    expected = np.quantile([top[row].sum() / bottom[row].sum() for row in chosen], [0.05, 0.95])
    assert found == pytest.approx(expected.tolist(), rel=0.01)
    assert found == intervals([top], [bottom], 0.9)[0]


def test_pairing_narrows_the_interval() -> None:
    """A model that is 1% worse on every document is 1% worse with certainty, although documents differ."""
    nats = np.random.default_rng(1).gamma(1, 50, 30)
    alone, paired = intervals([nats * 1.01, nats * 1.01], [np.full(30, nats.mean()), nats], 0.95)
    assert alone[0] < 0.9 < 1.1 < alone[1]
    assert paired == pytest.approx((1.01, 1.01))


def test_coverage_is_the_nominal_one() -> None:
    """Of 95% intervals over documents of a known population, about 95% contain its ratio."""
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        bytes_ = random.integers(50, 500, 120)
        nats = bytes_ * random.normal(1.2, 0.3, 120)
        low, high = intervals([nats], [bytes_], 0.95, resamples=500)[0]
        hits += low <= 1.2 <= high
    assert 180 <= hits <= 199


def test_one_document_has_no_width() -> None:
    assert intervals([[3.0]], [[2.0]], 0.95) == [(1.5, 1.5)]


def test_many_documents_are_grouped_with_the_same_width(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    top, bottom = random.gamma(2, 50, 4000), np.full(4000, 100.0)
    exact = intervals([top], [bottom], 0.95, resamples=2000)[0]
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 400)
    grouped = intervals([top], [bottom], 0.95, resamples=2000)[0]
    assert grouped[1] - grouped[0] == pytest.approx(exact[1] - exact[0], rel=0.15)
    assert sum(grouped) == pytest.approx(sum(exact), rel=0.005)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_value_affects_only_its_own_interval(bad: float) -> None:
    broken, sound = intervals([[1.0, bad], [1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]], 0.95)
    assert all(map(math.isnan, broken))
    assert sound[0] >= 1
