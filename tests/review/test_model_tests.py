"""Flips of model tests in a review."""

from __future__ import annotations

from typing import Literal

import pytest

from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes
from qalam_core.review.model_tests import SHOWN, model_test_flips
from tests.review.small_review import model_tests, review


def suite(passed: list[bool], mark: Literal["", "must", "known failure"] = "", name: str = "agreement") -> Outcomes:
    cases = (
        Outcome(case=f"case-{number}", digest=f"{number:064x}", kind="pair", mark=mark, passed=one, figures={})
        for number, one in enumerate(passed)
    )
    return Outcomes(name=name, cases=tuple(cases))


def test_as_many_losses_as_gains_are_counted_and_no_alarm() -> None:
    found = model_test_flips([suite([True] * 30 + [False] * 30)], [suite([False] * 30 + [True] * 30)])
    (one,) = found.suites
    assert (one.lost_count, one.gained_count, one.same, one.uncompared) == (30, 30, 0, 0)
    assert len(one.lost) == len(one.gained) == SHOWN
    assert not found.alarms
    assert found.sentence == "30 newly failing and 30 newly passing of 60 tests"


def test_losses_that_chance_does_not_give_are_an_alarm() -> None:
    found = model_test_flips([suite([True] * 60)], [suite([False] * 12 + [True] * 48)])
    assert found.suites[0].alarm
    assert [alarm.severity for alarm in found.alarms] == ["high"]
    assert not model_test_flips([suite([True] * 60)], [suite([False] * 5 + [True] * 55)]).alarms


def test_one_test_that_must_pass_is_an_alarm_and_a_known_failure_is_none() -> None:
    before, after = [True] * 9, [True] * 8 + [False]
    assert model_test_flips([suite(before, "must")], [suite(after, "must")]).alarms
    assert not model_test_flips([suite(before, "known failure")], [suite(after, "known failure")]).alarms


@pytest.mark.parametrize("one_side", [0, 1])
def test_tests_of_one_model_alone_are_not_compared(one_side: int) -> None:
    sides: list[list[Outcomes]] = [[], []]
    sides[one_side] = [suite([True] * 7)]
    found = model_test_flips(*sides)
    assert [row.uncompared for row in found.suites] == [7]
    assert found.suites[0].same == 0
    assert not found.sentence


def test_the_sentence_of_behaviour_has_the_flips() -> None:
    assert "2 newly failing and" in review(tests=model_tests()).sentences["behaviour"]


def test_tests_that_were_not_compared_are_named() -> None:
    found = review(tests=None)
    assert any(line.startswith("tests: ") for line in found.unseen())
    assert not found.clean
