"""What is said about failed checks: each has a cure, and the settings that it names exist."""

from __future__ import annotations

import re

from qalam_core.evaluation.comparison import Anchor, Champion
from qalam_core.evaluation.cures import CURES, cures
from qalam_core.evaluation.gate import decide
from qalam_core.recipe import Recipe, Requirements
from tests.evaluation.model_tests.test_outcomes import outcomes
from tests.evaluation.small_report import BUDGETS, report


def test_every_check_that_can_fail_has_a_cure() -> None:
    made = report(model=1.95, unknown=0.9).model_copy(update={"tests": (outcomes(True),)})
    champion, anchors = Champion(report(), 1.0, Requirements()), [Anchor(report(), 1.0)] * 5
    unknown = made.model_copy(update={"contamination": None})  # what the model has read is not recorded
    verdicts = [decide(each, BUDGETS, Requirements(), champion, anchors, {"a": 1.0}) for each in (made, unknown)]
    names = {check.name for each in verdicts for check in each.checks}
    verdict = verdicts[0]
    assert names - {"verbatim copy"} == set(CURES)
    failed = [check.name for check in verdict.checks if not check.passed]
    assert {"unigram", "unknown words"} <= set(failed)
    assert [cure.partition(": ")[0] for cure in cures(verdict)] == failed


def test_cures_name_settings_that_exist() -> None:
    named = [pair for cure in CURES.values() for pair in re.findall(r"\b([a-z]+)\.([a-z_]+)\b", cure)]
    assert len(named) > len(CURES) / 2
    for section, key in named:
        part = Recipe.model_fields[section].annotation
        assert part is not None
        assert key in part.model_fields, f"{section}.{key}"
