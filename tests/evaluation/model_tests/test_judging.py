"""The gate's checks of model tests."""

from __future__ import annotations

from qalam_core.evaluation.comparison import Champion
from qalam_core.evaluation.cures import cures
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.model_tests.outcomes import Outcomes
from qalam_core.evaluation.results import Check, Verdict
from qalam_core.recipe import Requirements
from tests.evaluation.model_tests.test_outcomes import outcome, outcomes
from tests.evaluation.small_report import BUDGETS, report

GATE = Requirements()


def decided(
    tests: list[Outcomes], share: float, before: list[Outcomes] | None = None, before_share: float = 0.0
) -> Verdict:
    champion = None
    if before is not None:
        then = report().model_copy(update={"tests": tuple(before)})
        champion = Champion(then, gate=GATE, shares={one.name: before_share for one in before})
    made = report().model_copy(update={"tests": tuple(tests)})
    return decide(made, BUDGETS, GATE, champion, shares={one.name: share for one in tests})


def check(verdict: Verdict, name: str = "tests") -> Check:
    (found,) = [each for each in verdict.checks if each.name == name]
    return found


AGAINST = "tests against the champion"


def test_without_tests_there_is_no_check() -> None:
    names = [each.name for each in decided([], 1.0, []).checks]
    assert not {"tests", AGAINST} & set(names)


def test_a_share_that_is_not_reached_is_refused() -> None:
    three_of_four = [outcomes(True, True, True, False)]
    assert decided(three_of_four, 0.75).passed
    verdict = decided(three_of_four, 0.76)
    assert verdict.failed() == ["tests"]
    assert "a: 3 of 4 cases passed (75.0%, 30.1% to 95.4%); at least 76.0% is required" in check(verdict).message
    assert cures(verdict)[0].startswith("tests: ")


def test_a_share_of_zero_is_reported_and_required_nowhere() -> None:
    found = check(decided([outcomes(False, False)], 0.0))
    assert found.state == "reported"


def test_a_must_that_failed_is_refused_and_named() -> None:
    suite = Outcomes(name="a", cases=(outcome(1, True), outcome(2, False, "must")))
    verdict = decided([suite], 0.0)
    assert verdict.failed() == ["tests"]
    assert "1 that must pass failed (c2)" in check(verdict).message


def test_tests_that_were_not_measured_are_refused() -> None:
    """As of a package that cannot be read."""
    verdict = decide(report(), BUDGETS, GATE, None, shares={"a": 0.0})
    assert verdict.failed() == ["tests"]
    assert "a: not measured" in check(verdict).message


def test_a_known_failure_that_passes_is_said() -> None:
    suite = Outcomes(name="a", cases=(outcome(1, True), outcome(2, True, "known failure")))
    found = check(decided([suite], 1.0))
    assert found.passed
    assert "1 known to fail passed (c2)" in found.message


def test_what_the_champion_passed_and_this_model_fails_is_named_and_noise_is_not_refused() -> None:
    before = [outcomes(*[True] * 20, *[False] * 20)]
    after = [outcomes(*[True] * 10, *[False] * 10, *[True] * 9, *[False] * 11)]
    found = check(decided(after, 0.0, before), AGAINST)
    assert found.passed
    assert "of 40 common cases, 10 passed before and fail now (c10, c11, c12, c13, c14 and 5 more)" in found.message
    assert "9 the other way round" in found.message


def test_a_file_that_is_surely_worse_is_refused() -> None:
    before = [outcomes(*[True] * 40)]
    after = [outcomes(*[True] * 30, *[False] * 10)]
    verdict = decided(after, 0.0, before)
    assert verdict.failed() == [AGAINST]
    assert "a is surely worse" in check(verdict, AGAINST).message
    assert decided(before, 0.0, after).passed


def test_a_lost_must_is_refused_alone() -> None:
    before = [Outcomes(name="a", cases=(outcome(1, True, "must"), outcome(2, False)))]
    after = [Outcomes(name="a", cases=(outcome(1, False, "must"), outcome(2, True)))]
    assert decided(after, 0.0, before).failed() == ["tests", AGAINST]


def test_cases_that_were_not_measured_on_both_are_said_and_are_no_pass() -> None:
    found = check(decided([outcomes(True, True, begin=5)], 0.0, [outcomes(True, True, True)]), AGAINST)
    assert found.state == "reported"
    assert "a: 2 not compared, as the champion was not measured on them" in found.message
    assert "a: 3 not compared, as only the champion was measured on them" in found.message
    found = check(decided([outcomes(True)], 0.0, []), AGAINST)
    assert found.state == "reported"


def test_weaker_tests_are_a_looser_gate() -> None:
    must = Outcomes(name="a", cases=(outcome(1, True, "must"), outcome(2, True)))
    plain = outcomes(True, True, begin=1)
    assert decided([must], 0.5, [must], 0.5).passed
    lower = decided([must], 0.4, [must], 0.5)
    assert lower.failed() == ["gate settings"]
    assert "share of tests a: 0.5 -> 0.4" in check(lower, "gate settings").message
    unmarked = decided([plain], 0.5, [must], 0.5)
    assert unmarked.failed() == ["gate settings"]
    assert "cases that must pass no more: c1" in check(unmarked, "gate settings").message
    gone = decided([], 0.0, [must], 0.5)
    assert "gate settings" in gone.failed()
    assert "share of tests a: 0.5 -> no such tests" in check(gone, "gate settings").message


def test_a_case_that_the_champion_passed_is_no_known_failure() -> None:
    """Else a night could mark what it lost: neither the share nor the comparison with the champion counts it."""
    before = [outcomes(*[True] * 20)]
    marked = (outcome(n, False, "known failure") for n in range(10, 20))
    after = [Outcomes(name="a", cases=(*outcomes(*[True] * 10).cases, *marked))]
    verdict = decided(after, 1.0, before, 1.0)
    assert verdict.failed() == ["gate settings"]
    assert "cases that may fail now: c10, c11, c12, c13, c14 and 5 more" in check(verdict, "gate settings").message
    # one that the champion failed, or that was marked for it, may be
    failing = [Outcomes(name="a", cases=(outcome(1, False), outcome(2, True, "known failure")))]
    known = [Outcomes(name="a", cases=(outcome(1, False, "known failure"), outcome(2, False, "known failure")))]
    assert decided(known, 0.0, failing).passed
