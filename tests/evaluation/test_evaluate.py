"""End-to-end evaluation of a small package: the report is the same every time."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.errors import CorpusError
from qalam_core.evaluation import evaluate as evaluation
from qalam_core.evaluation.gate import decide
from qalam_core.evaluation.results import Baselines, Counted, Report
from qalam_core.evaluation.sampling import training_sample
from qalam_core.package import read
from qalam_core.pipeline.evaluate import Evaluate
from qalam_core.recipe import Requirements
from tests.evaluation.small_evaluation import Exported, batch_of, build, copy_of


@pytest.mark.usefixtures("processes")
def test_the_report_is_the_same_every_time_and_survives_json(exported: Exported, report: Report) -> None:
    again = exported.evaluate()
    assert again.model_dump_json() == report.model_dump_json()
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert str(exported.package) not in report.model_dump_json()


@pytest.mark.usefixtures("no_import")
def test_a_seed_changes_samples_and_nothing_else(exported: Exported, report: Report) -> None:
    other = exported.evaluate(seed=2)
    assert other.samples != report.samples
    assert other.document_nats == report.document_nats


@pytest.mark.usefixtures("no_import")
def test_progress_counts_tokens_and_reaches_its_total(exported: Exported, report: Report) -> None:
    assert Evaluate.unit == "tokens"
    seen: list[tuple[int, int]] = []
    exported.evaluate(progress=lambda done, total, _="": seen.append((done, total)))
    assert seen[-1] == (report.overall.tokens, report.overall.tokens)
    assert seen == sorted(seen)


def test_no_test_documents_is_a_user_error(exported: Exported) -> None:
    with pytest.raises(CorpusError, match=r"corpus\.test"):
        exported.evaluate(test=[])


def test_documents_carry_digests_and_slices(exported: Exported, report: Report) -> None:
    assert len(set(report.document_digests)) == len(exported.test)
    assert all(len(digest) == 12 for digest in report.document_digests)
    names = list(report.sources)
    assert [names[number] for number in report.document_slices] == [source for source, _ in exported.test]


def test_intervals_hold_their_figures(report: Report) -> None:
    for part in (report.overall, *report.sources.values()):
        bits, found = part.bits_per_byte, part.intervals
        assert found is not None
        assert found.model.low <= bits.model <= found.model.high
        assert found.unigram.low <= bits.model / bits.unigram - 1 <= found.unigram.high
        assert found.ngram.low <= bits.model / bits.ngram - 1 <= found.ngram.high
        assert found.characters.low <= bits.model / bits.characters - 1 <= found.characters.high
        assert found.model.low < found.model.high


def test_tensors_are_reported_in_the_packages_order(exported: Exported, report: Report) -> None:
    weights = read(exported.package).weights
    assert list(report.tensors) == list(weights)
    for name, found in report.tensors.items():
        assert found.shape == weights[name].shape
        assert found.mean == pytest.approx(weights[name].mean(dtype=np.float64), rel=1e-4, abs=1e-6)
        assert found.std == pytest.approx(weights[name].std(dtype=np.float64), rel=1e-4, abs=1e-6)
        assert (found.minimum, found.maximum) == pytest.approx((weights[name].min(), weights[name].max()), rel=1e-5)
    assert list(Report.model_validate_json(report.model_dump_json()).tensors) == list(weights)


@pytest.mark.usefixtures("no_import")
def test_leaked_test_text_is_found(exported: Exported, report: Report) -> None:
    assert report.contamination is not None
    assert report.contamination.documents > 5
    assert report.contamination.worst.copied == 0
    leaked = batch_of([*exported.texts, *(text for _, text in exported.test[:6])])
    seen = Fingerprints.of([leaked.append_column("source", pa.array(["a"] * len(leaked)))])
    measured = exported.measure(seen=seen)
    found = measured[0].contamination
    assert found is not None
    assert found.worst.copied == pytest.approx(6 / len(exported.test), abs=1e-6)
    assert "contamination" in [
        check.name for check in decide(*measured, Requirements(), None).checks if not check.passed
    ]


@pytest.mark.usefixtures("no_import")
def test_the_report_says_what_was_counted(exported: Exported, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.test == Counted(documents=12, of=12, size=report.overall.bytes)
    tokens, letters = sum(map(len, exported.train)), sum(map(len, exported.texts))
    assert report.baselines == Baselines(
        tokens=Counted(documents=60, of=60, size=tokens), characters=Counted(documents=60, of=60, size=letters)
    )
    monkeypatch.setattr(evaluation, "training_sample", partial(training_sample, limit=1000))
    sampled = exported.evaluate(split_documents=40)
    assert sampled.test is not None
    assert (sampled.test.documents, sampled.test.of, sampled.test.sampled) == (12, 40, True)
    assert sampled.baselines is not None
    assert sampled.baselines.characters.sampled
    assert 800 < sampled.baselines.characters.size <= 1000
    assert sampled.bits_per_byte.characters > report.bits_per_byte.characters
    assert sampled.document_nats == report.document_nats


@pytest.mark.usefixtures("no_import")
def test_an_empty_document_is_no_error(exported: Exported, report: Report) -> None:
    found = exported.evaluate(test=[*exported.test, ("empty", "")])
    assert found.document_nats[:-1] == pytest.approx(report.document_nats, abs=1e-4)
    assert found.document_character_nats[-1] > 0
    assert found.document_bytes[-1] == 0


def test_a_package_that_is_refused_still_gets_a_report(exported: Exported, tmp_path: Path) -> None:
    broken = copy_of(exported, tmp_path)
    with (broken.package / "weights.py").open("a") as file:
        file.write("import os\n")
    report, budgets = broken.measure()
    assert not report.integrity.loads_without_execution
    assert math.isnan(report.bits_per_byte.model)
    assert "weights.py" in report.integrity.problem
    assert str(tmp_path) not in report.integrity.problem
    assert Report.model_validate_json(report.model_dump_json()).test_digest == report.test_digest
    assert not decide(report, budgets, Requirements(), None).passed


@pytest.mark.usefixtures("no_import")
def test_a_diverged_model_gets_a_report(tmp_path: Path) -> None:
    made = build(tmp_path, scale=1e30)
    report, budgets = made.measure()
    assert not math.isfinite(report.bits_per_byte.model)
    assert report.samples == ()
    assert "unigram" in [c.name for c in decide(report, budgets, Requirements(), None).checks if not c.passed]
