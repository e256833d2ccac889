"""The records of an evaluation: as JSON and back."""

from __future__ import annotations

import json
import math

import pytest

from qalam_core.evaluation.comparison import Champion
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Budgets, Report, Verdict
from qalam_core.recipe import Requirements
from tests.evaluation.small_report import BUDGETS, report


@pytest.mark.parametrize("bits", [1.5, math.inf])
def test_values_survive_json(bits: float) -> None:
    made = report(model=bits)
    assert Report.model_validate_json(made.model_dump_json()) == made
    assert made.model_dump_json() == report(model=bits).model_dump_json()
    verdict = decide(made, BUDGETS, Requirements(), Champion(made))
    assert Verdict.model_validate_json(verdict.model_dump_json()).model_dump_json() == verdict.model_dump_json()
    assert Budgets.model_validate_json(BUDGETS.model_dump_json()) == BUDGETS


def test_nan_is_valid_json_and_stays_nan() -> None:
    text = report(model=math.nan).model_dump_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert math.isnan(Report.model_validate_json(text).overall.bits_per_byte.model)


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BUDGETS.package_mb = 1.0  # type: ignore[misc]
