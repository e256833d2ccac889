"""Which tests of models came out otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from qalam_core.evaluation.model_tests.judging import SURE
from qalam_core.evaluation.model_tests.outcomes import Flip, Outcomes, flips
from qalam_core.recipe import Frozen
from qalam_core.review.results import Alarm

SHOWN = 20  # cases of each kind


class SuiteFlips(Frozen):
    """The cases of one file of tests that came out otherwise; ids, bounded."""

    name: str
    lost: tuple[str, ...]  # passed before, and fail now
    lost_count: int
    gained: tuple[str, ...]
    gained_count: int
    same: int
    uncompared: int  # that only one of the models was measured on
    alarm: bool = False


class ModelTestFlips(Frozen):
    """The same of all files of tests."""

    suites: tuple[SuiteFlips, ...]
    alarms: tuple[Alarm, ...]

    @property
    def sentence(self) -> str:
        """In a few words, "" where no test came out otherwise."""
        lost, gained = (sum(getattr(suite, f"{what}_count") for suite in self.suites) for what in ("lost", "gained"))
        cases = sum(suite.same for suite in self.suites) + lost + gained
        return f"{lost:,} newly failing and {gained:,} newly passing of {cases:,} tests" if lost + gained else ""


def model_test_flips(old: Sequence[Outcomes], new: Sequence[Outcomes]) -> ModelTestFlips:
    """What the outcomes of two models differ in. A known failure is shown, and is no alarm."""
    suites, alarms, both = [], [], flips(old, new)
    compared = sum(each.common > 0 for each in both)
    for found in both:
        must = [flip.after.case for flip in found.lost if flip.after.mark == "must"]
        if must:
            more = f" and {len(must) - 1:,} more" if len(must) > 1 else ""
            alarms.append(Alarm(section="behaviour", severity="high", message=(
                f'Test "{must[0]}"{more} of {found.suite} must pass, and fails where it passed before.'
            )))  # fmt: skip
        surely = found.common > 0 and found.p_worse < (1 - SURE) / compared
        if surely:
            alarms.append(Alarm(section="behaviour", severity="high", message=(
                f"{found.suite} has {len(found.lost):,} newly failing tests and {len(found.gained):,} newly passing "
                "ones: more losses than chance gives."
            )))  # fmt: skip
        suites.append(SuiteFlips(
            name=found.suite, lost=_ids(found.lost), lost_count=len(found.lost), gained=_ids(found.gained),
            gained_count=len(found.gained), same=found.same, uncompared=len(found.new) + len(found.gone),
            alarm=bool(must) or surely,
        ))  # fmt: skip
    return ModelTestFlips(suites=tuple(suites), alarms=tuple(alarms))


def _ids(found: Sequence[Flip]) -> tuple[str, ...]:
    return tuple(flip.after.case for flip in found[:SHOWN])
