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
    "vocabulary off by one, in training": "unigram",
    "one block zeroed, in training": "champion",
    "1% of one matrix flipped, in the export": "integrity",
    "stored as f16 where f32 was asked": "integrity",
    "a tenth of the test split leaked": "contamination",
    "a tokenizer of another run": "integrity",
    "trained ten times too short": "champion",
    "a generator that repeats itself": "repetition",
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
        verdict = planted[fault]()
        assert not verdict.passed, fault
        assert check in [c.name for c in verdict.checks if not c.passed], (fault, verdict.reasons())


def test_an_honest_retraining_passes(sound: Sound) -> None:
    honest = sound.again(seed=8)
    verdict = sound.decide(honest.report, honest.budgets)
    assert verdict.passed, verdict.reasons()
    assert honest.report.document_nats != sound.report.document_nats
