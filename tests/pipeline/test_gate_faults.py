"""Evaluation and gate together, with faults planted in real trainings; benchmarks/bench_gate.py has more of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.bench_gate import Outcome, Sound, faults
from qalam_core.store import Store
from tests.conftest import Built

pytestmark = pytest.mark.usefixtures("processes")

CAUGHT_BY = {
    "labels shifted twice": "champion",
    "vocabulary off by one, in training": "unigram",
    "one block zeroed, in training": "champion",
    "1% of one matrix flipped, in the export": "integrity",
    "stored as f16 where f32 was asked": "integrity",
    "a tenth of the test split leaked": "contamination",
    "four paraphrases of each test document in training": "contamination",
    "a tokenizer of another run": "integrity",
    "tokenizer.json with the normaliser `vocalised`": "integrity",
    "trained ten times too short": "champion",
    "a generator that repeats itself": "repetition",
    "a generator that ends at once": "samples",
    "source renamed, trained five times too short": "champion",
    "documents cut to a quarter": "yardstick",
    "a rolled-back model, built again": "publish: rolled back",
    "a package over its budget": "package size",
}


@pytest.fixture(scope="module")
def sound(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound") / "store"
    shutil.copytree(built.store.root, folder)
    return Sound.build(built.recipe, Store(folder))  # every stage is cached


def test_every_planted_fault_is_refused_by_its_check(sound: Sound, tmp_path: Path) -> None:
    own = sound.decide(*sound.measure(sound.package.path / "model"))
    assert own.passed, own.reasons()
    planted = faults(sound, tmp_path)
    for fault, check in CAUGHT_BY.items():
        assert check in planted[fault]().refused_by, fault


def test_an_honest_retraining_passes(sound: Sound) -> None:
    honest, verdict = sound.again(seed=8)
    assert verdict.passed, verdict.reasons()
    assert honest.report.document_nats != sound.report.document_nats


def test_a_source_is_not_known_by_its_name(sound: Sound, tmp_path: Path) -> None:
    outcome = faults(sound, tmp_path)["source renamed"]()
    assert outcome == Outcome((), outcome.change), "measured again, or refused"
    assert outcome.change
    assert outcome.change.low < 0 < outcome.change.high
