"""The gate, by planted faults: each must fail its own check, and no other."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Budgets, Check, Report, Verdict
from qalam_core.recipe import Requirements
from tests.evaluation.small_report import BUDGETS, report


def failed(verdict: Verdict) -> list[str]:
    assert verdict.passed == (not verdict.reasons())
    return [check.name for check in verdict.checks if not check.passed]


def test_a_sound_model_passes() -> None:
    verdict = decide(report(), BUDGETS, Requirements(), report(model=1.51))
    assert verdict.passed
    assert verdict.reasons() == []
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)
    assert all(check.message.endswith(".") for check in verdict.checks)


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
    "leaked": (report(copied=0.03), BUDGETS, "contamination", "0.03; at most 0.02"),
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


def test_the_trigram_is_always_reported_and_required_only_on_demand() -> None:
    worse = report(model=1.7)
    reported = next(c for c in decide(worse, BUDGETS, Requirements(), None).checks if c.name == "trigram")
    assert reported.passed
    assert reported.limit is None
    assert "1.6000" in reported.message
    assert failed(decide(worse, BUDGETS, Requirements(beat_trigram=True), None)) == ["trigram"]
    assert failed(decide(report(), BUDGETS, Requirements(beat_trigram=True), None)) == []


def check_of(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def test_champion_regression() -> None:
    gate = Requirements(tolerance=0.01)
    assert failed(decide(report(model=1.52), BUDGETS, gate, report(model=1.5))) == ["champion"]
    assert failed(decide(report(model=1.514), BUDGETS, gate, report(model=1.5))) == []
    assert failed(decide(report(model=1.4), BUDGETS, gate, report(model=1.5))) == []
    assert "champion" in failed(decide(report(model=math.nan), BUDGETS, gate, report(model=1.5)))
    message = check_of(decide(report(model=1.53), BUDGETS, gate, report(model=1.5)), "champion").message
    assert "+2.00% to +2.00% (95% confidence)" in message


def drawn(mean: float, noise: float, count: int = 60) -> tuple[float, ...]:
    """Nats of documents: the first champion's times about `mean`."""
    base = np.random.default_rng(0).gamma(4, 2, count)
    return tuple((base * (mean + noise * np.random.default_rng(1).standard_normal(count))).tolist())


def test_only_what_is_worse_with_confidence_is_refused() -> None:
    champion = report(spread=drawn(1.0, 0.0))
    noisy, certain = report(spread=drawn(1.02, 0.1)), report(spread=drawn(1.02, 0.01))
    assert failed(decide(noisy, BUDGETS, Requirements(tolerance=0.01), champion)) == []
    assert failed(decide(certain, BUDGETS, Requirements(tolerance=0.01), champion)) == ["champion"]
    # less confidence is required to refuse, so more is refused
    assert failed(
        decide(report(spread=drawn(1.04, 0.1)), BUDGETS, Requirements(tolerance=0.01, confidence=0.5), champion)
    ) == ["champion"]
    comparison = decide(noisy, BUDGETS, Requirements(tolerance=0.01), champion).comparison
    assert comparison is not None
    assert comparison.overall.change.low < 0.01 < comparison.overall.change.high
    assert comparison.sources["news"].documents == 60


def test_documents_are_matched_by_digest() -> None:
    """Half of the documents are new and bad: only the common ones decide."""
    champion = report(spread=drawn(1.0, 0.0))
    nats = drawn(1.0, 0.0)
    moved = report(test_digest="b" * 64, spread=(*nats[30:], *(n * 9 for n in nats[:30]))).model_copy(
        update={"document_digests": (*champion.document_digests[30:], *(f"new{n}" for n in range(30)))}
    )
    verdict = decide(moved, BUDGETS, Requirements(tolerance=0.01), champion)
    assert failed(verdict) == []
    assert verdict.comparison is not None
    assert verdict.comparison.overall.documents == 30
    assert verdict.comparison.overall.model == verdict.comparison.overall.champion
    assert "the 30 documents that both" in check_of(verdict, "champion").message
    worse = moved.model_copy(update={"document_nats": tuple(n * 1.05 for n in moved.document_nats)})
    assert failed(decide(worse, BUDGETS, Requirements(tolerance=0.01), champion)) == ["champion"]


def test_other_test_documents_cannot_be_compared() -> None:
    other = report(model=1.2, test_digest="b" * 64).model_copy(update={"document_digests": ()})
    verdict = decide(report(model=1.8), BUDGETS, Requirements(), other)
    check = check_of(verdict, "champion")
    assert check.passed
    assert "cannot be compared" in check.message
    assert check.limit is None
    assert verdict.comparison is None


def test_a_report_of_an_earlier_release_can_be_champion() -> None:
    old = report(model=1.5).model_dump(
        exclude={"document_digests": True, "document_slices": True, "contamination": True,
                 "integrity": {"trained_ids_agree", "storage_agrees"}, "overall": {"intervals"}}
    )  # fmt: skip
    champion = Report.model_validate(old)
    assert failed(decide(report(model=1.56), BUDGETS, Requirements(), champion)) == ["champion"]
    assert "contamination" not in [check.name for check in decide(champion, BUDGETS, Requirements(), champion).checks]


def test_a_difference_within_the_rounding_limit_is_allowed() -> None:
    rounded = report(checkpoint_difference=0.002, checkpoint_limit=0.002)
    assert failed(decide(rounded, BUDGETS, Requirements(), None)) == []
