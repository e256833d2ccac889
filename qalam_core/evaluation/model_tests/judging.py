"""The gate's checks of model tests: each file against its required share, and against the champion's outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qalam_core.evaluation.model_tests.outcomes import Flips, Outcome, Outcomes, flips
from qalam_core.evaluation.results import Check

SURE = 0.995
"""So surely must a file be worse to be refused: once in 200 trainings that differ by their seeds."""

_NAMED = 5  # cases of a file that a message names


def score_text(found: Outcomes) -> str:
    """ "arabic: 213 of 312 cases passed (68.3%, 63.0% to 73.2%)", and what is to be said of marked cases."""
    low, high = found.interval()
    text = f"{found.name}: {found.passed} of {len(found.counted)} cases passed"
    text += f" ({found.share:.1%}, {low:.1%} to {high:.1%})" if found.counted else ""
    expected, surprising = found.state("known failure"), found.state("unexpectedly passed")
    if expected:
        text += f", {len(expected)} failed as known"
    if surprising:
        text += f", {len(surprising)} known to fail passed ({_names(surprising)})"
    return text


def checks_of_tests(
    tests: Sequence[Outcomes], shares: Mapping[str, float], champion: Sequence[Outcomes] | None
) -> list[Check]:
    """The checks for the outcomes of a model; none where there are no tests.

    `shares` are required, by the name of the tests; `champion` are its outcomes, None where there is no champion.
    """
    checks = [_shares(tests, shares)] if shares else []
    if champion is not None and (tests or champion):
        checks.append(_against(flips(champion, tests)))
    return checks


def weakened(
    tests: Sequence[Outcomes], shares: Mapping[str, float], champion: Sequence[Outcomes], before: Mapping[str, float]
) -> list[str]:
    """What is required less than the champion had to pass: shares, cases marked as must, and cases that it passed and
    that count no more, being marked as known failures."""
    found = [
        f"share of tests {name}: {share:g} -> {f'{shares[name]:g}' if name in shares else 'no such tests'}"
        for name, share in before.items() if shares.get(name, 0.0) < share
    ]  # fmt: skip
    musts = {case.digest for suite in tests for case in suite.cases if case.mark == "must"}
    gone = [
        case for suite in champion for case in suite.cases if case.mark == "must" and case.digest not in musts
    ]  # fmt: skip
    passed = {case.digest for suite in champion for case in suite.counted if case.passed and case.mark != "must"}
    excused = [
        case for suite in tests for case in suite.cases if case.mark == "known failure" and case.digest in passed
    ]
    said = {"cases that must pass no more": gone, "cases that may fail now": excused}
    return [*found, *(f"{what}: {_names(cases)}" for what, cases in said.items() if cases)]


def _shares(tests: Sequence[Outcomes], shares: Mapping[str, float]) -> Check:
    measured = {found.name: found for found in tests}
    said, failed = [], 0
    for name, share in shares.items():
        found = measured.get(name)
        if found is None:
            said.append(f"{name}: not measured")
            failed += 1
            continue
        text = score_text(found) + (f"; at least {share:.1%} is required" if share else "; no share is required")
        if found.missed:
            text += f"; {len(found.missed)} that must pass failed ({_names(found.missed)})"
        said.append(text)
        failed += not found.meets(share)
    required = any(shares.values()) or any(case.mark == "must" for found in tests for case in found.cases) or failed
    return Check(
        name="tests", value=float(failed), limit=0.0 if required else None, passed=not failed,
        message=f"{'. '.join(said)}.",
    )  # fmt: skip


def _against(found: Sequence[Flips]) -> Check:
    """Fails for a file that is surely worse, and for a lost case that must pass."""
    said: list[str] = []
    faults: list[str] = []
    compared = sorted((each for each in found if each.common), key=lambda each: each.p_worse)
    for rank, each in enumerate(compared):  # Holm's correction
        if each.p_worse > (1 - SURE) / (len(compared) - rank):
            break
        faults.append(f"{each.suite} is surely worse ({SURE:.1%})")
    for each in found:
        lost = [flip.after for flip in each.lost if flip.after.mark != "known failure"]
        if musts := [case for case in lost if case.mark == "must"]:
            faults.append(f"{each.suite} lost cases that must pass: {_names(musts)}")
        if each.common:
            names = f" ({_names(lost)})" if lost else ""
            said.append(
                f"{each.suite}: of {each.common} common cases, {len(lost)} passed before and fail now{names}, and "
                f"{len(each.gained)} the other way round"
            )
        if each.new:
            said.append(f"{each.suite}: {len(each.new)} not compared, as the champion was not measured on them")
        if each.gone:
            said.append(f"{each.suite}: {len(each.gone)} not compared, as only the champion was measured on them")
    return Check(
        name="tests against the champion", value=float(len(faults)), limit=0.0 if compared else None,
        passed=not faults, message=". ".join([*faults, *said]) + ".",
    )  # fmt: skip


def _names(cases: Sequence[Outcome]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return ", ".join(case.case for case in cases[:_NAMED]) + more
