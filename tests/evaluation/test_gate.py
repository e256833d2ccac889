"""The gate, by planted faults: each must fail its own check, and no other."""

from __future__ import annotations

import math
import re

import pytest
from pydantic import ValidationError

from qalam_core.evaluation.comparison import Champion
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Budgets, Check, Report, Verdict
from qalam_core.recipe import Requirements
from tests.conftest import judged
from tests.evaluation.small_report import BUDGETS, report


def failed(verdict: Verdict) -> list[str]:
    assert verdict.passed == (not verdict.reasons())
    return [check.name for check in verdict.checks if not check.passed]


def test_a_sound_model_passes() -> None:
    verdict = decide(report(), BUDGETS, Requirements(), Champion(report(model=1.51), gate=Requirements()))
    assert verdict.passed
    assert verdict.reasons() == []
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)
    assert all(check.message.endswith(".") for check in verdict.checks)


@pytest.mark.parametrize("checks", [(), judged("unigram").checks, (*judged().checks, *judged("unigram").checks)])
def test_no_verdict_passes_without_its_checks(checks: tuple[Check, ...]) -> None:
    with pytest.raises(ValidationError, match="a check failed, or there is none"):
        Verdict(passed=True, checks=checks)


FAULTS: dict[str, tuple[Report, Budgets, str, str]] = {
    "above unigram": (report(model=1.95), BUDGETS, "unigram", "1.9500.*1.9000.*2.6% worse"),
    "nan": (report(model=math.nan), BUDGETS, "unigram", "nan"),
    "infinite": (report(model=math.inf), BUDGETS, "unigram", "inf"),
    "logits differ": (report(checkpoint_difference=1e-6), BUDGETS, "integrity", "1e-06.*at most 0"),
    "logits are nan": (report(checkpoint_difference=math.nan), BUDGETS, "integrity", "nan"),
    "unreadable": (
        report(loads_without_execution=False, verifies=False, problem="weights.py:7: a call"),
        BUDGETS,
        "integrity",
        r"cannot be read.*\(weights.py:7: a call\)\.$",
    ),
    "edited": (report(verifies=False), BUDGETS, "integrity", "does not verify"),
    "other tensors": (report(tensors_agree=False), BUDGETS, "integrity", "tensors differ from the checkpoint"),
    "import fails": (report(loads_by_import=False), BUDGETS, "integrity", "plain import"),
    "import differs": (report(import_difference=0.5), BUDGETS, "integrity", "0.5"),
    "import is nan": (report(import_difference=math.nan), BUDGETS, "integrity", "nan"),
    "numpy differs": (report(numpy_backend_agrees=False, numpy_difference=0.1), BUDGETS, "integrity", "0.1"),
    "tokenizer differs": (report(tokenizer_agrees=False), BUDGETS, "integrity", "other ids"),
    "too many unknown": (report(unknown=0.6), BUDGETS, "unknown words", "0.6; at most 0.5"),
    "oversize": (report(), Budgets(package_mb=2001.0, load_seconds=1), "package size", "at most 2000 MB"),
    "too slow": (report(), Budgets(package_mb=1, load_seconds=61), "load time", "61 s; at most 60 s"),
    "load time unknown": (report(), Budgets(package_mb=1, load_seconds=math.nan), "load time", "nan"),
    "tokenizer of another run": (report(trained_ids_agree=False), BUDGETS, "integrity", "other ids than those that"),
    "wrong dtype": (report(storage_agrees=False), BUDGETS, "integrity", "another type"),
    "leaked": (report(copied=0.03), BUDGETS, "contamination", "3.0% by n-grams of 8 words; at most 2.0%"),
    "repetition": (report(repeated=0.9), BUDGETS, "repetition", "0.9; at most 0.3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_check(fault: str) -> None:
    made, budgets, name, message = FAULTS[fault]
    verdict = decide(made, budgets, Requirements(), None)
    assert failed(verdict) == [name]
    assert verdict.reasons() == [next(c.message for c in verdict.checks if c.name == name)]
    assert re.search(message, verdict.reasons()[0])


def test_beat_unigram_requires_its_share() -> None:
    gate = Requirements(beat_unigram=0.2)
    assert failed(decide(report(model=1.53), BUDGETS, gate, None)) == ["unigram"]
    assert failed(decide(report(model=1.51), BUDGETS, gate, None)) == []


BASELINES = {"token 4-gram": "beat_ngram", "character 10-gram": "beat_characters"}


@pytest.mark.parametrize("name", BASELINES)
def test_an_ngram_is_always_reported_and_required_only_on_demand(name: str) -> None:
    worse, required = report(model=1.7), Requirements.model_validate({BASELINES[name]: True})
    reported = check_of(decide(worse, BUDGETS, Requirements(), None), name)
    assert reported.passed
    assert reported.limit is None
    assert "worse" in reported.message
    assert failed(decide(worse, BUDGETS, required, None)) == [name]
    assert failed(decide(report(), BUDGETS, required, None)) == []


def check_of(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def test_a_difference_within_the_rounding_limit_is_allowed() -> None:
    rounded = report(checkpoint_difference=0.002, checkpoint_limit=0.002)
    assert failed(decide(rounded, BUDGETS, Requirements(), None)) == []


def test_the_first_model_has_nothing_to_be_compared_with() -> None:
    verdict = decide(report(), BUDGETS, Requirements(), None)
    assert verdict.passed
    assert verdict.comparison is None
    assert "no champion yet" in check_of(verdict, "champion").message


def test_a_model_without_figures_never_passes() -> None:
    broken = report(model=math.nan)
    assert {"unigram", "champion"} <= set(failed(decide(broken, BUDGETS, Requirements(), Champion(report()))))
    # nor is one compared with it
    assert "yardstick" in failed(decide(report(), BUDGETS, Requirements(), Champion(broken)))
