"""The plan of a build: what is reused, what is built, and why, before anything runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.errors import CorpusError, StoreError
from qalam_core.pipeline.build import History, NotBuiltError, Reuse, build, stages_in_order
from qalam_core.pipeline.estimate import continued_steps
from qalam_core.pipeline.lineage import WarmStart, warm_start
from qalam_core.pipeline.plan import Plan, Reasons, plan
from qalam_core.pipeline.prepare import Documents
from qalam_core.pipeline.vocab import Vocab
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import COLD, Built, sentences, tiny_recipe, write_corpus

VOCAB_VERSION = Vocab.version


def rows(found: Plan, stage: str) -> list[tuple[str, str]]:
    return [(row.action, "; ".join(row.reasons)) for row in found.rows if row.stage == stage]


def to_build(found: Plan) -> list[str]:
    return [row.stage for row in found.rows if row.action == "build"]


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    data = recipe.canonical()
    data[section] = {**data[section], **values}
    return Recipe.parse(data)


def test_a_finished_build_is_all_reuse(built: Built) -> None:
    found = plan(built.recipe, built.store)
    assert found.complete
    assert found.against == built.published.run
    assert [row.digest for row in found.rows] == [artifact.digest for artifact in built.published.artifacts]
    assert all(row.reasons == () for row in found.rows)


def test_it_writes_nothing_and_acquires_no_lock(built: Built, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.store.root.rglob("*")}
    plan(built.recipe, built.store)
    plan(changed(built.recipe, "train", steps=7), built.store)
    assert {path: path.stat().st_mtime_ns for path in built.store.root.rglob("*")} == before
    plan(built.recipe, Store(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists() or not list((tmp_path / "nowhere").iterdir())


def test_a_first_build_says_so(built: Built, tmp_path: Path) -> None:
    found = plan(built.recipe, Store(tmp_path / "empty"))
    assert to_build(found) == [stage.name for stage in COLD]
    assert rows(found, "ingest") == [("build", "first build")]
    assert rows(found, "vocab") == [("build", "after prepare")]
    assert found.against == ""
    assert not found.complete


@pytest.mark.parametrize(
    ("section", "key", "value", "stage", "why"),
    [
        ("corpus", "min_chars", 21, "filter", "min_chars: 20 -> 21"),
        ("corpus", "thresholds", {"max_average_word": 12.0}, "filter", "rules"),
        ("tokenizer", "min_freq", 3, "vocab", "min_freq: 2 -> 3"),
        ("train", "steps", 61, "train", "optimisation.steps: 60 -> 61"),
        ("model", "dropout", 0.1, "train", "model.dropout: 0.0 -> 0.1"),
        ("package", "dtype", "q8", "export", "dtype: f32 -> q8"),
        ("gate", "prompts", ["كان"], "evaluate", "prompts: "),
        ("gate", "tolerance", 0.04, "gate", "tolerance: 0.035 -> 0.04"),
    ],
)
def test_a_changed_setting_is_named_at_the_stage_that_it_affects(
    built: Built, section: str, key: str, value: Any, stage: str, why: str
) -> None:
    found = plan(changed(built.recipe, section, **{key: value}), built.store)
    order = [kind.name for kind in COLD]
    first = order.index(stage)
    # everything before it is reused, and everything that may depend on it is not
    assert to_build(found)[0] == stage
    assert set(order[:first]).isdisjoint(to_build(found))
    assert set(order[first:]) >= set(to_build(found))
    assert why in rows(found, stage)[0][1]
    built_again = [row for row in found.rows if row.action == "build" and row.stage != stage]
    assert all(any("is built again" in reason for reason in row.reasons) for row in built_again), built_again


def test_a_plan_predicts_the_build(mine: Built) -> None:
    """Every stage that the plan reuses is reused, and every digest that it lists as new is built."""
    for section, values in (("gate", {"tolerance": 0.04}), ("package", {"dtype": "q8"}), ("corpus", {"min_chars": 30})):
        recipe = changed(mine.recipe, section, **values)
        found = plan(recipe, mine.store)
        published = build(recipe, mine.store)
        cached = {artifact.digest for artifact in published.artifacts if artifact.cached}
        fresh = {artifact.digest for artifact in published.artifacts if not artifact.cached}
        assert {row.digest for row in found.rows if row.action == "reuse"} <= cached
        assert {row.digest for row in found.rows if row.action == "build" and row.digest} <= fresh
        assert plan(recipe, mine.store).complete


def test_a_new_and_a_changed_file_are_named(mine: Built, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text(sentences(1, seed=5)[0] + "\n", encoding="utf-8")
    corpus = mine.recipe.canonical()["corpus"]
    more = Recipe.parse(
        {
            **mine.recipe.canonical(),
            "corpus": {**corpus, "sources": [*corpus["sources"], {"path": str(tmp_path / "more.txt")}]},
        }
    )
    found = plan(more, mine.store)
    assert rows(found, "ingest") == [("reuse", ""), ("build", f"{tmp_path / 'more.txt'} is new or changed")]
    assert rows(found, "filter")[-1] == ("build", "ingest is built again")
    # the same file with other content: old and new digest
    other = write_corpus(tmp_path / "stories.jsonl", 390)
    edited = tiny_recipe(other)
    ((action, why),) = rows(plan(edited, mine.store), "ingest")
    assert action == "build"
    then, now = (resolve(recipe.corpus.sources)[0].digest[:12] for recipe in (mine.recipe, edited))
    assert why == f"{other}: file: {then} -> {now}"


@pytest.mark.usefixtures("processes")
def test_a_removed_file_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2):
        write_corpus(folder / f"{number}.jsonl", 200, seed=number)
    store, recipe = Store(tmp_path / "store"), tiny_recipe(folder, train={"steps": 1})
    build(recipe, store)
    (folder / "1.jsonl").unlink()
    found = plan(recipe, store)
    assert rows(found, "ingest") == [("reuse", "")]
    assert rows(found, "filter") == [("build", "documents: 1 gone or changed")]


def test_deleted_and_damaged_artifacts_are_reasons(mine: Built) -> None:
    train = next(artifact for artifact in mine.published.artifacts if artifact.stage == "train")
    weights = train.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert rows(plan(mine.recipe, mine.store), "train") == [("build", "its earlier result was deleted or damaged")]
    shutil.rmtree(train.path)
    found = plan(mine.recipe, mine.store)
    assert rows(found, "train") == [("build", "its earlier result was deleted or damaged")]
    assert to_build(found) == ["train", "export", "evaluate", "gate"]
    shutil.rmtree(mine.store.root / "artifacts")
    assert to_build(plan(mine.recipe, mine.store)) == [stage.name for stage in COLD]


def test_a_damaged_run_record_does_not_prevent_a_plan(mine: Built) -> None:
    (mine.runs.folder(mine.published.run) / "run.json").write_text("{")
    (mine.store.root / "champions" / "tiny.jsonl").unlink()
    found = plan(mine.recipe, mine.store)
    assert found.against == ""
    assert found.complete


@pytest.mark.usefixtures("processes")
def test_the_champions_record_is_read_before_anything_is_planned_or_built(mine: Built) -> None:
    """The gate needs it, and a training would be for nothing."""
    (mine.runs.folder(mine.published.run) / "run.json").write_text('{"format": "of another release"}')
    for recipe in (mine.recipe, changed(mine.recipe, "train", steps=61)):
        for work in (plan, build):
            with pytest.raises(
                StoreError, match=r"run\.json: damaged, or written by another release; .* another store"
            ):
                work(recipe, mine.store)


def test_the_facts_of_another_version_are_not_read(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocab, "version", 99)
    found = plan(built.recipe, built.store)
    assert rows(found, "vocab") == [("build", f"version of the stage: {VOCAB_VERSION} -> 99")]
    assert rows(found, "train") == [("build", "after vocab")]


def test_a_source_that_is_added_in_front_changes_no_other(built: Built, tmp_path: Path) -> None:
    new = {"name": "new", "path": str(write_corpus(tmp_path / "new.jsonl", 50))}
    sources = [new, *built.recipe.canonical()["corpus"]["sources"]]
    found = plan(changed(built.recipe, "corpus", sources=sources), built.store)
    assert [row.action for row in found.rows if row.stage == "ingest"] == ["build", "reuse"]
    assert rows(found, "filter")[0] == ("build", "ingest is built again")


def test_reuse_takes_all_stages_from_the_store_or_none(mine: Built) -> None:
    for artifact in mine.published.artifacts:
        os.utime(artifact.path / "manifest.json", (0, 0))
    executor, files = Reuse(mine.store), resolve(mine.recipe.corpus.sources)
    assert stages_in_order(mine.recipe, files, History(mine.runs), executor) == list(mine.published.artifacts)
    assert [artifact for _, artifact in executor.found] == list(mine.published.artifacts)
    assert min(mine.store.artifacts().values()) > 0  # in use, for garbage collection
    with pytest.raises(NotBuiltError, match=r"^train$"):
        stages_in_order(changed(mine.recipe, "train", steps=61), files, History(mine.runs), Reuse(mine.store))


def test_a_warm_start_is_what_it_resolves_to(built: Built, caplog: pytest.LogCaptureFixture) -> None:
    """The champion, where anything but the request differs from its training; else what the champion began with."""
    artifacts = built.published.artifacts
    read, filtered = ([made for made in artifacts if made.stage == stage] for stage in ("ingest", "filter"))
    documents = Documents(read, filtered)

    def resolved(**train: Any) -> WarmStart | None:
        return warm_start(changed(built.recipe, "train", **train), documents, built.runs)

    for train in ({"start": "champion", "steps": 61}, {"start": built.published.run}):
        start = resolved(**train)
        assert start is not None
        assert start.parent.run == built.published.run
    assert not caplog.records
    assert resolved(start="champion") is None
    assert f"there is no new text since champion {built.published.run}" in caplog.text
    found = plan(changed(built.recipe, "train", start="champion"), built.store)
    assert {row.digest for row in found.rows} == {made.digest for made in built.published.artifacts}


def test_errors_are_those_of_a_build(built: Built, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        plan(tiny_recipe(tmp_path / "missing.txt"), built.store)


def test_a_build_gives_the_same_reasons(mine: Built) -> None:
    """They are what `qalam build` prints with each stage that it builds."""
    recipe = changed(mine.recipe, "train", steps=61)
    reasons = Reasons(Runs(mine.store), recipe.name)
    why: dict[str, tuple[str, ...]] = {}

    class Watched:
        def run(self, stage: Any) -> Any:
            made = mine.store.build(stage)
            if not made.cached:
                why[stage.name] = reasons.why(stage)
            return made

        def map(self, stages: Any) -> Any:
            return [self.run(stage) for stage in stages]

    from qalam_core.pipeline.build import stages_in_order

    stages_in_order(recipe, resolve(recipe.corpus.sources), History(mine.runs), Watched())
    assert why["train"] == ("optimisation.steps: 60 -> 61",)
    assert why["export"][-1].startswith("checkpoint: ")
    assert json.dumps(why)


def test_the_steps_of_a_continued_training_follow_the_new_text(built: Built) -> None:
    recipe, records = changed(built.recipe, "train", start="continue", replay=0.5), [built.published.record]
    few, many = (continued_steps(built.runs, records, recipe, size) for size in (20_000, 200_000))
    assert 1 < few < many / 5
    half = changed(built.recipe, "train", start="continue", replay=0.75)
    assert continued_steps(built.runs, records, half, 200_000) > 1.8 * many
    assert continued_steps(built.runs, [], recipe, 20_000) == recipe.train.steps
