"""Outcomes: shares, marks, intervals, and what changed between two models."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.evaluation.model_tests.outcomes import Outcome, Outcomes, flips


def outcome(number: int, passed: bool, mark: str = "", group: str = "") -> Outcome:
    return Outcome.model_validate(
        {"case": f"c{number}", "digest": f"{number:012x}", "kind": "pair", "group": group, "mark": mark,
         "passed": passed, "figures": {}}
    )  # fmt: skip


def outcomes(*passed: bool, mark: str = "", name: str = "a", begin: int = 0) -> Outcomes:
    return Outcomes(name=name, cases=tuple(outcome(begin + n, each, mark) for n, each in enumerate(passed)))


def test_known_failures_do_not_count() -> None:
    cases = (outcome(1, True), outcome(2, False), outcome(3, False, "known failure"), outcome(4, True, "known failure"))
    found = Outcomes(name="a", cases=cases)
    assert [case.state for case in cases] == ["passed", "failed", "known failure", "unexpectedly passed"]
    assert (found.passed, found.share) == (1, 0.5)
    assert found.meets(0.5)
    assert not found.meets(0.51)


def test_one_must_that_failed_fails_the_file_whatever_the_share() -> None:
    found = Outcomes(name="a", cases=(outcome(1, False, "must"), *(outcome(n, True) for n in range(2, 50))))
    assert not found.meets(0.0)
    assert [case.case for case in found.failures(0.0)] == ["c1"]


def test_failures_are_those_that_make_a_file_fail() -> None:
    found = outcomes(True, False)
    assert found.failures(0.5) == []
    assert [case.case for case in found.failures(0.6)] == ["c1"]


def test_the_interval_is_wilsons() -> None:
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I: 81 of 263, and 0 of 20
    assert outcomes(*[True] * 81, *[False] * 182).interval() == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert outcomes(*[False] * 20).interval() == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert Outcomes(name="a", cases=()).interval() == (0.0, 1.0)


def test_groups_keep_their_order_and_a_case_without_one_is_grouped_by_kind() -> None:
    cases = (outcome(1, True, group="b"), outcome(2, True, group="a"), outcome(3, False, group="b"), outcome(4, True))
    groups = Outcomes(name="x", cases=cases).groups()
    assert {name: len(group.cases) for name, group in groups.items()} == {"b": 2, "a": 1, "pair": 1}


def test_flips_are_matched_by_what_is_tested() -> None:
    before = [outcomes(True, True, False, False, name="old")]
    after = [outcomes(True, False, True, name="new"), outcomes(True, name="more", begin=9)]
    new, more, old = flips(before, after)
    assert (new.suite, new.common, new.same) == ("new", 3, 1)
    assert [flip.after.case for flip in new.lost] == ["c1"]
    assert [flip.after.case for flip in new.gained] == ["c2"]
    assert (more.common, [case.case for case in more.new]) == (0, ["c9"])
    assert (old.suite, [case.case for case in old.gone]) == ("old", ["c3"])


def test_no_flips_of_nothing() -> None:
    assert flips([], []) == []
    (same,) = flips([outcomes(True)], [outcomes(True)])
    assert (same.lost, same.gained, same.new, same.gone, same.p_worse) == ([], [], [], [], 1.0)


@pytest.mark.parametrize(("lost", "gained", "p"), [(5, 0, 1 / 32), (0, 5, 1.0), (3, 1, 5 / 16), (9, 1, 11 / 1024)])
def test_the_sign_test_is_exact(lost: int, gained: int, p: float) -> None:
    before = outcomes(*[True] * lost, *[False] * gained)
    after = outcomes(*[False] * lost, *[True] * gained)
    assert flips([before], [after])[0].p_worse == pytest.approx(p)


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_every_case_is_in_one_place(both: list[tuple[bool, bool]]) -> None:
    before, after = (outcomes(*(pair[side] for pair in both)) for side in (0, 1))
    (found,) = flips([before], [after])
    assert found.common == len(both)
    assert found.new == found.gone == []
    assert 0 < found.p_worse <= 1
