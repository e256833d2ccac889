"""Outcomes of model tests, as frozen records, and their comparison between two models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import comb
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field

from qalam_core.recipe import Frozen


class Outcome(Frozen):
    """What became of a case."""

    case: str  # its id
    digest: str  # of what is tested
    kind: str
    group: str = ""
    mark: Literal["", "must", "known failure"] = ""
    passed: bool
    figures: dict[str, float]  # by name: nats, bits, probabilities, counts
    shown: dict[str, str] = Field(default_factory=dict)  # label -> text, of a case that failed

    @property
    def state(self) -> Literal["passed", "failed", "known failure", "unexpectedly passed"]:
        """As a test runner says it."""
        if self.mark == "known failure":
            return "unexpectedly passed" if self.passed else "known failure"
        return "passed" if self.passed else "failed"


class Outcomes(Frozen):
    """The outcomes of a file of cases, in its order."""

    name: str
    cases: tuple[Outcome, ...]

    @property
    def counted(self) -> list[Outcome]:
        """The cases that the share is of: all but known failures."""
        return [case for case in self.cases if case.mark != "known failure"]

    @property
    def passed(self) -> int:
        """How many of the counted cases passed."""
        return sum(case.passed for case in self.counted)

    @property
    def share(self) -> float:
        """The share of the counted cases that passed; 1 where all are known failures."""
        return self.passed / len(self.counted) if self.counted else 1.0

    @property
    def missed(self) -> list[Outcome]:
        """Cases that had to pass, and failed."""
        return [case for case in self.cases if case.mark == "must" and not case.passed]

    def state(self, state: str) -> list[Outcome]:
        """The cases in a state."""
        return [case for case in self.cases if case.state == state]

    def meets(self, share: float) -> bool:
        """Whether enough cases passed, and all that had to."""
        return self.share >= share and not self.missed

    def failures(self, share: float) -> list[Outcome]:
        """The cases because of which it does not meet `share`: none where it does."""
        return self.state("failed") if self.share < share else self.missed

    def groups(self) -> dict[str, Outcomes]:
        """By what the cases are about, in order of appearance."""
        found: dict[str, list[Outcome]] = {}
        for case in self.cases:
            found.setdefault(case.group or case.kind, []).append(case)
        return {name: Outcomes(name=name, cases=tuple(cases)) for name, cases in found.items()}

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the share, as if cases were independent: Wilson's score interval; (0, 1) without counted cases.

        Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (1927).
        """
        count = len(self.counted)
        if not count:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        middle = (self.passed + z * z / 2) / (count + z * z)
        half = z / (count + z * z) * (self.passed * (1 - self.share) + z * z / 4) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)


class Flip(NamedTuple):
    """A case with another outcome than before."""

    suite: str
    before: Outcome
    after: Outcome


class Flips(NamedTuple):
    """Cases of one suite under two models, matched by what is tested."""

    suite: str
    lost: list[Flip]  # passed before, and fail now
    gained: list[Flip]
    same: int
    new: list[Outcome]  # that the former model was not measured on
    gone: list[Outcome]  # that only the former model was measured on

    @property
    def common(self) -> int:
        """How many cases both models were measured on."""
        return self.same + len(self.lost) + len(self.gained)

    @property
    def p_worse(self) -> float:
        """The probability of as many losses among the flips, if losses and gains were as likely: exact sign test.

        Known failures do not count. Source: McNemar, Note on the Sampling Error of the Difference Between Correlated
        Proportions or Percentages (1947).
        """
        lost, gained = (sum(flip.after.mark != "known failure" for flip in each) for each in (self.lost, self.gained))
        count = lost + gained
        return float(sum(comb(count, k) for k in range(lost, count + 1)) / 2**count)


def flips(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> list[Flips]:
    """What changed from one model's outcomes to another's, by suite of the latter, and suites that are gone last.

    A case is found by its digest in any suite, as suites may be renamed and divided.
    """
    old = {case.digest: case for suite in before for case in suite.cases}
    now = {case.digest for suite in after for case in suite.cases}
    found = [_flips(suite.name, suite.cases, old) for suite in after]
    for suite in before:
        gone = [case for case in suite.cases if case.digest not in now]
        place = next((n for n, each in enumerate(found) if each.suite == suite.name), None)
        if place is not None:
            found[place] = found[place]._replace(gone=gone)
        elif gone:
            found.append(Flips(suite.name, [], [], 0, [], gone))
    return found


def _flips(suite: str, cases: Iterable[Outcome], old: dict[str, Outcome]) -> Flips:
    result = Flips(suite, [], [], 0, [], [])
    same = 0
    for case in cases:
        before = old.get(case.digest)
        if before is None:
            result.new.append(case)
        elif before.passed == case.passed:
            same += 1
        else:
            (result.gained if case.passed else result.lost).append(Flip(suite, before, case))
    return result._replace(same=same)
