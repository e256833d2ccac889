"""A chain of nights: which of its builds are from scratch; and killed with kill -9, it ends with the same bytes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from qalam_core.pipeline.build import build
from qalam_core.pipeline.collect import collect
from qalam_core.pipeline.lineage import cold_is_next
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import tiny_recipe, write_corpus
from tests.pipeline.test_build import assert_same_result, assert_tidy, start
from tests.reports.test_chain import Nights, against


@pytest.mark.parametrize("every", [2, 3, 7])
@pytest.mark.parametrize("better", [True, False])
def test_one_build_in_so_many_is_from_scratch_whether_it_becomes_champion_or_not(every: int, better: bool) -> None:
    nights, compared, cold = 0, False, [0]
    for number in range(1, 50):
        if cold_is_next(nights, every) and not compared:
            cold.append(number)
            nights, compared = (0, False) if better else (nights, True)
        else:
            nights, compared = nights + 1, False
    assert cold == list(range(0, 50, every))


def test_without_the_setting_none_is_and_with_one_all_are() -> None:
    assert not any(cold_is_next(nights, 0) for nights in range(20))
    assert all(cold_is_next(nights, 1) for nights in range(20))


def test_gc_keeps_the_last_run_from_scratch_by_which_the_drift_is_known(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    nights.many(2)
    scratch = against(1.5, 1.6, 0.05, 0.08)
    former = nights.add(comparison=scratch, cold=True, champion=False)
    *_, champion = nights.many(2)
    cold = nights.add(comparison=scratch, cold=True, champion=False)
    parent, last = nights.many(8)[-2:]
    said = nights.text(last)
    assert set(collect(nights.runs.store, 1, delete=True).kept) == {champion, cold, parent, last}
    assert nights.text(last) == said
    assert former not in nights.runs
    assert f"than run {cold}, which began from scratch" in said


GATE = {"tolerance": 5.0, "max_copied": 1.0, "max_repeated": 1.0, "max_empty": 1.0, "beat_unigram": 0.0}


@pytest.mark.usefixtures("processes")
def test_a_chain_that_is_killed_twice_ends_with_the_same_bytes(tmp_path: Path) -> None:
    corpus = tmp_path / "stories.jsonl"
    train = {"start": "continue", "steps": 20, "checkpoint_every": 4, "log_every": 1, "validate_every": 100}
    recipe = tiny_recipe(corpus, corpus={"test": 0.15}, train=train, gate=GATE)
    calm, killed = Store(tmp_path / "calm"), Store(tmp_path / "killed")
    ends = {4: "train at 6", 5: "prepare"}  # night -> where its first build ends
    for night in range(6):
        write_corpus(corpus, 300 + 60 * night)
        if night == min(ends):
            shutil.copytree(calm.root, killed.root)
        reference = build(recipe, calm)
        assert reference.champion, reference.decision
        assert len(reference.record.lineage) == night
        if night in ends:
            with start(recipe, killed, ends[night]) as process:
                _, errors = process.communicate()
            assert process.returncode == -signal.SIGKILL, errors
            assert len(Runs(killed).ids()) == night, "the killed build has published a run"
            if ends[night] != "prepare":
                assert [*killed.root.glob("artifacts/train/*.partial/checkpoint-*")], "killed before a checkpoint"
        if night >= min(ends):
            assert_same_result(build(recipe, killed), reference)
    assert_tidy(killed)
