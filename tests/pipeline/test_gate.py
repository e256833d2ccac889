"""The runs that the gate compares with: which they are, and what is read of them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_texts
from qalam_core.evaluation.results import Check, Verdict
from qalam_core.pipeline.build import History, InPlace, build, stages_in_order
from qalam_core.pipeline.collect import collect
from qalam_core.pipeline.gate import Gate, Incumbent, Incumbents, incumbents, verdict_of
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.publish import Published, publish
from qalam_core.progress import no_progress
from qalam_core.runs import Runs
from qalam_core.store import Artifact, Store
from tests.conftest import Built, tiny_recipe, write_corpus

pytestmark = pytest.mark.usefixtures("processes")


class Invented:
    """Runs that were never built: copies of one, with evaluations of their own."""

    def __init__(self, built: Built, folder: Path) -> None:
        self.built, self.runs = built, Runs(Store(folder / "invented"))

    def add(self, evaluation: str, verdict: str = "") -> str:
        """A run with this evaluation and verdict."""
        run = f"tiny-{evaluation}{verdict}"
        if run in self.runs:
            return run
        target = self.runs.store.root / "runs" / run
        shutil.copytree(self.built.published.folder, target)
        record = json.loads((target / "run.json").read_bytes())
        record["artifacts"] |= {"evaluate": [evaluation], "gate": [f"{evaluation}{verdict}"]}
        record["files"] = {}  # its package is invented
        (target / "run.json").write_text(json.dumps(record))
        manifest = json.loads((target / "model" / "manifest.json").read_bytes())
        manifest["tensors"]["embedding.weight"] = evaluation
        (target / "model" / "manifest.json").write_text(json.dumps(manifest))
        return run

    def promote(self, evaluation: str, verdict: str = "") -> None:
        run = self.add(evaluation, verdict)
        self.runs.promote("tiny", run, when="2030-01-01", why="test", who="tester")

    def rollback(self) -> None:
        self.runs.rollback("tiny", when="2030-01-01", why="test", who="tester")

    def of(self, evaluation: str) -> list[str]:
        """The champion and the anchors of a model with this evaluation."""
        found = incumbents(self.built.recipe, Artifact("evaluate", evaluation, Path()), self.runs)
        assert not (found.anchors and not found.champion)
        return [one.run.removeprefix("tiny-") for one in (found.champion, *found.anchors) if one]


@pytest.fixture
def history(built: Built, tmp_path: Path) -> Invented:
    return Invented(built, tmp_path)


def test_all_champions_count_newest_first(history: Invented) -> None:
    assert history.of("e") == []
    for name in "abcd":
        history.promote(name)
    assert history.of("e") == ["d", "c", "b", "a"]


def test_a_rolled_back_champion_and_a_deleted_one_do_not_count(history: Invented) -> None:
    for name in "abcd":
        history.promote(name)
    history.rollback()
    assert history.of("e") == ["c", "b", "a"]
    history.runs.delete("tiny-b")
    assert history.of("e") == ["c", "a"]


def test_of_runs_with_one_evaluation_one_counts(history: Invented) -> None:
    for name, verdict in ("a1", "b1", "b2", "a2"):
        history.promote(name, verdict)
    assert history.of("e") == ["a2", "b2"]


def test_at_most_so_many_are_read(history: Invented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qalam_core.pipeline.gate.MAX_ANCHORS", 2)
    for name in "abcd":
        history.promote(name)
    assert history.of("e") == ["d", "c", "b"]


@pytest.mark.parametrize("seed", range(8))
def test_a_champion_that_is_built_again_is_compared_with_the_same_runs(history: Invented, seed: int) -> None:
    """Whatever happened before it became champion."""
    choice, made = random.Random(seed), 0
    for _ in range(8):
        champion = history.runs.champion("tiny")
        if champion and choice.random() < 0.3 and history.runs.rollback_target("tiny"):
            history.rollback()
            continue
        made += 1
        name = f"{made:x}"
        before = history.of(name)
        history.promote(name)
        assert history.of(name) == before


class Night(NamedTuple):
    """A model on texts of which its champion's test split has none."""

    store: Store
    champion: str
    published: Published

    def artifact(self, stage: str) -> Artifact:
        return next(one for one in self.published.artifacts if one.stage == stage)

    @property
    def verdict(self) -> Verdict:
        return self.published.verdict

    def again(self, folder: Path, **changes: Any) -> Verdict:
        """The verdict now, with other inputs of the stage."""
        corpus, seen, package, evaluation = map(self.artifact, ("prepare", "seen", "export", "evaluate"))
        champion = Incumbents(Incumbent.of(Runs(self.store), self.champion))
        stage = Gate.of(self.published.record.recipe, corpus, seen, package, evaluation, champion)
        replace(stage, **changes).run(folder, no_progress)
        return verdict_of(Artifact("gate", "", folder))


@pytest.fixture(scope="module")
def night(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    shutil.copytree(built.store.root, folder / "store")
    store = Store(folder / "store")
    recipe = tiny_recipe(write_corpus(folder / "stories.jsonl", 500, seed=5), gate={"tolerance": 1.0})
    return Night(store, built.published.run, build(recipe, store))


def check(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def test_without_common_documents_the_champion_is_measured_again(night: Night, tmp_path: Path) -> None:
    comparison = night.verdict.comparison
    assert comparison
    assert comparison.measured_again
    assert check(night.verdict, "yardstick").passed
    assert "measured again" in check(night.verdict, "yardstick").message
    # the champion's texts have the same words, so that it is about as good on these
    assert comparison.overall.champion == pytest.approx(comparison.overall.model, rel=0.3)
    assert night.published.record.incumbent == night.champion
    assert not check(night.verdict, "gate settings").passed  # 1.0 is looser than the champion's
    assert night.published.waits
    assert night.again(tmp_path) == night.verdict


def test_of_two_builds_at_once_the_second_is_compared_with_the_first_before_it_is_champion(
    corpus_file: Path, store: Store
) -> None:
    first, slow, fast = (
        tiny_recipe(corpus_file, train={"steps": 20}, gate={"tolerance": 5.0}).model_copy(update={"seed": seed})
        for seed in range(3)
    )
    runs, old = Runs(store), build(first, store).run
    judged = stages_in_order(slow, resolve(slow.corpus.sources), History(runs), InPlace(store))
    new = build(fast, store)
    assert new.promoted, new.decision
    late = publish(runs, slow, judged)
    assert late.verdict.passed
    assert (late.champion, late.promoted, late.same_as) == (False, False, "")
    assert late.decision.startswith(f"passed, but not promoted: it was compared with {old}, and {new.run} is champion")
    assert runs.champion("tiny") == new.run
    again = build(slow, store)
    assert (again.record.incumbent, again.champion) == (new.run, True)
    assert again.run != late.run, "another verdict"


def test_champions_that_were_deleted_still_count(mine: Built) -> None:
    """By what the verdict of the champion has of them, whichever garbage collection leaves."""
    levels: dict[str, float] = {mine.published.run: 1.0}
    gate = mine.recipe.gate.model_copy(update={"tolerance": 5.0, "slice_tolerance": 5.0})
    for seed in (8, 9, 10, 11):
        made = build(mine.recipe.model_copy(update={"seed": seed, "gate": gate}), mine.store)
        if not made.champion:  # the first one has a looser gate
            assert made.waits
            mine.runs.promote("tiny", made.run, when="t", why="w", who="amal")
        assert made.verdict.comparison
        assert made.verdict.comparison.levels == levels
        levels = {made.run: made.verdict.comparison.level, **levels}
        collect(mine.store, 1, delete=True)
    assert mine.published.run not in mine.runs
    message = check(made.verdict, "earlier champions").message
    assert "Of 3 before the champion, 2 were compared on common documents, 1 through those between, and 0" in message


def test_what_the_champion_has_read_is_left_out(night: Night, tmp_path: Path) -> None:
    """Its record of what it has read becomes the new model's, without that record's test documents and with them."""
    record = Runs(night.store).record(night.champion)
    (key,) = record.artifacts["seen"]
    folder = night.store.reference("seen", key).path
    kept = shutil.copytree(folder, tmp_path / "kept")
    try:
        for file in folder.glob("*.arrow"):
            file.unlink()
        leaked = build(
            tiny_recipe(Path(night.published.record.recipe.corpus.sources[0].path),
                        corpus={"test": 0.001, "validation": 0.0}, train={"steps": 1}),
            Store(tmp_path / "leaked"),
        )  # fmt: skip
        seen = next(one for one in leaked.artifacts if one.stage == "seen")
        for file in seen.path.glob("*.arrow"):
            shutil.copy(file, folder)
        (tmp_path / "out").mkdir()
        verdict = night.again(tmp_path / "out")
        assert not check(verdict, "yardstick").passed
        assert "that the champion has read" in check(verdict, "yardstick").message
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)


def test_the_model_has_to_be_as_good_on_the_champions_documents(night: Night, tmp_path: Path) -> None:
    """It is not when it has read them, when they are gone, and when its package cannot be read."""
    (theirs,) = Runs(night.store).record(night.champion).artifacts["prepare"]
    test = shards_of(night.store.reference("prepare", theirs), "test")
    read = Fingerprints.of(batch for shard in test for batch in read_texts(shard.path))
    (tmp_path / "read").mkdir()
    read.save(tmp_path / "read")
    faults: dict[str, dict[str, Any]] = {
        "that the model has read": {"seen": Artifact("seen", "", tmp_path / "read")},
        "the store has their texts no more": {"incumbent_test": ()},
        "the package of the model cannot be read": {"package": Artifact("export", "", tmp_path)},
    }
    for number, (reason, changes) in enumerate(faults.items()):
        (out := tmp_path / str(number)).mkdir()
        found = check(night.again(out, **changes), "yardstick")
        assert not found.passed
        assert reason in found.message


def test_a_champion_of_another_normalisation_is_no_yardstick(night: Night, tmp_path: Path) -> None:
    """Its tokenizer may leave the texts as they are, because they have less than it is used to."""
    file = Runs(night.store).folder(night.champion) / "run.json"
    before = file.read_bytes()
    try:
        record = json.loads(before)
        record["recipe"]["corpus"]["normalisation"] = "vocalised"
        file.write_text(json.dumps(record), encoding="utf-8")
        found = check(night.again(tmp_path), "yardstick")
        assert not found.passed
        assert "was normalised as vocalised" in found.message
    finally:
        file.write_bytes(before)


def test_a_package_that_was_changed_is_no_yardstick(night: Night, tmp_path: Path) -> None:
    card = Runs(night.store).folder(night.champion) / "model" / "MODEL_CARD.md"
    before = card.read_bytes()
    try:
        card.write_bytes(b"another")
        verdict = night.again(tmp_path)
        found = check(verdict, "yardstick")
        assert not found.passed
        assert "MODEL_CARD.md" in found.message
        assert "--accept-new-yardstick" in found.message
        assert verdict.comparison is None
    finally:
        card.write_bytes(before)
