"""Evaluation and gate together, with faults planted in real trainings; benchmarks/bench_gate.py has more of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.bench_gate import Sound, faults
from qalam_core.store import Store
from tests.conftest import Built

pytestmark = pytest.mark.usefixtures("processes")

CAUGHT_BY = {
    "labels shifted twice": "champion",
    "a tenth of the test split leaked": "contamination",
    "four paraphrases of each test document in training": "contamination",
    "a tokenizer of another run": "integrity",
    "tokenizer.json with the normaliser `vocalised`": "integrity",
    "a generator that repeats itself": "repetition",
    "a generator that ends at once": "samples",
    "source renamed, trained five times too short": "champion",
    "a package over its budget": "package size",
}


@pytest.fixture(scope="module")
def sound(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound") / "store"
    shutil.copytree(built.store.root, folder)
    return Sound.build(built.recipe, Store(folder))  # every stage is cached


def test_every_planted_fault_is_refused_by_its_check(sound: Sound, tmp_path: Path) -> None:
    own = sound.decide(sound.report)
    assert own.passed, own.reasons()
    planted = faults(sound, tmp_path)
    for fault, check in CAUGHT_BY.items():
        assert check in planted[fault]().refused_by, fault


def test_an_honest_retraining_passes_though_its_source_has_another_name(sound: Sound) -> None:
    honest, verdict = sound.again(seed=8, **sound.renamed())
    assert verdict.passed, verdict.reasons()
    assert honest.report.document_nats != sound.report.document_nats
    assert list(honest.report.sources) == ["renamed"]
    assert verdict.comparison
    assert not verdict.comparison.measured_again, "documents are matched by their text"
    assert verdict.comparison.overall.documents == len(sound.report.document_nats)
