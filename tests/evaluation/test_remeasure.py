"""A package, measured on the test documents of another model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.evaluation.comparison import Remeasured
from qalam_core.evaluation.remeasure import of_report, remeasure
from qalam_core.evaluation.results import Report
from qalam_core.progress import no_progress
from tests.evaluation.small_evaluation import Exported, copy_of


def measured(exported: Exported, texts: Sequence[str], seen: Fingerprints | None = None) -> Remeasured:
    return remeasure(exported.package, "the champion", texts, seen, "cpu", no_progress)


def test_the_same_package_on_the_same_texts_has_the_same_figures(exported: Exported, report: Report) -> None:
    texts = [text for _, text in exported.test]
    found = measured(exported, texts)
    assert found.problem == ""
    assert found.nats == pytest.approx(report.document_nats, abs=2e-6)
    assert found.excluded == (False,) * len(texts)
    # on other texts
    assert measured(exported, texts[3:]).nats == pytest.approx(report.document_nats[3:], rel=1e-5)


def test_texts_that_the_lineage_has_read_are_excluded(exported: Exported) -> None:
    texts = [text for _, text in exported.test]
    batch = pa.record_batch({"id": [f"{n:016x}" for n in range(2)], "text": texts[:2], "source": ["a", "a"]})
    assert measured(exported, texts, Fingerprints.of([batch])).excluded[:2] == (True, True)
    assert np.sum(measured(exported, texts, Fingerprints.of([batch])).excluded) < len(texts)


def test_texts_that_its_tokenizer_would_change_are_not_measured(exported: Exported) -> None:
    found = measured(exported, ["قال الولد", "قَالَ الوَلَدُ"])
    assert found.nats == ()
    assert "normalisation of the champion changes 1 of 2 test documents" in found.problem


def test_a_package_that_is_missing_or_was_changed_is_not_measured(exported: Exported, tmp_path: Path) -> None:
    missing = remeasure(tmp_path / "nowhere", "the champion", ["قال"], None, "cpu", no_progress)
    assert "cannot be read" in missing.problem
    changed = copy_of(exported, tmp_path)
    (changed.package / "MODEL_CARD.md").write_text("another")
    assert "changed since export" in measured(changed, ["قال"]).problem
    assert str(tmp_path) not in measured(changed, ["قال"]).problem


def test_texts_are_found_in_the_order_of_the_report(report: Report, exported: Exported) -> None:
    texts = [text for _, text in exported.test]
    assert of_report(report, [*reversed(texts), "another"]) == texts
    assert of_report(report, texts[1:]) is None, "one is missing"
