"""Runs after they were built: reproduced in an empty store, rolled back, and garbage-collected."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from qalam_core.errors import CorpusError, StoreError
from qalam_core.files import replace_file
from qalam_core.pipeline.audit import Reproduction, Row, reproduce
from qalam_core.pipeline.build import STAGES, build
from qalam_core.pipeline.collect import FRESH_SECONDS, collect
from qalam_core.pipeline.lineage import warm_start
from qalam_core.pipeline.prepare import Documents
from qalam_core.recipe import Recipe
from qalam_core.runs import Promotion, Runs, TrainFacts
from qalam_core.store import Store
from tests.conftest import judged, tiny_recipe, write_corpus

DAY = 24 * 3600.0


class Lineage:
    """Four nights of one recipe, each with a source file of its own: the second begins with the weights of the first,
    and the others continue the training of the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store")
        self.runs = [self.night(self.store, night) for night in range(4)]

    def night(self, store: Store, night: int) -> str:
        """Build a night, and make it champion, whatever the gate says."""
        run = build(self.recipe(night), store).run
        Runs(store).promote("tiny", run, when=f"2030-01-0{1 + night}", why="night", who="tester")
        return run

    def recipe(self, night: int) -> Recipe:
        corpus = self.folder / f"night-{night}.jsonl"
        if not corpus.exists():
            write_corpus(corpus, 300 + 30 * night)
        start = "champion" if night < 2 else "continue"
        train = {"steps": 15, "checkpoint_every": 15, "validate_every": 15, "start": start}
        return tiny_recipe(corpus, train=train, gate={"tolerance": 0.9})


@pytest.fixture(scope="session")
def lineage(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(tmp_path_factory.mktemp("lineage"))


@pytest.fixture
def mine(lineage: Lineage, tmp_path: Path) -> Store:
    shutil.copytree(lineage.store.root, tmp_path / "store")
    return Store(tmp_path / "store")


# -- reproduce --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_a_run_is_reproduced_to_the_byte(lineage: Lineage, tmp_path: Path) -> None:
    """The last one: it began with the weights of an earlier run, and its gate compared it with one."""
    seen: list[tuple[int, int]] = []
    run = lineage.runs[-1]
    record = Runs(lineage.store).record(run)
    assert record.parent == lineage.runs[-2]
    assert record.incumbent
    found = reproduce(lineage.store, run, Store(tmp_path / "fresh"), lambda *at: seen.append(at))
    assert found.matches, [row for row in found.rows if not row.matches]
    assert found.again == run
    assert {row.stage for row in found.rows} == {*(stage.name for stage in STAGES), "run"}
    assert found.rows[0].then == found.rows[0].now != ""
    assert all(row.compared and row.decided for row in found.rows)
    assert found.count == f"{len(found.rows)} of {len(found.rows)} match"
    assert found.basis.startswith(f"its parent's weights were copied from the store (run {lineage.runs[-2]})")
    assert found.notes == ()
    assert Runs(lineage.store).record(run).lineage[0].state, "from which its training continued"
    assert seen[-1][0] == seen[-1][1] > 0
    fresh = Runs(Store(tmp_path / "fresh"))
    assert fresh.ids() == [run], "nothing is copied"
    assert fresh.promotions("tiny") == [], "and nobody has decided anything there"


@pytest.mark.usefixtures("processes")
def test_a_lineage_is_reproduced_from_text_alone(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    """The weights of the ancestors are not read: they are not there."""
    *ancestors, run = chain = lineage.runs[:3]
    for ancestor in ancestors:
        (Runs(mine).folder(ancestor) / "model" / "weights.py").unlink()
    shutil.rmtree(mine.root / "artifacts" / "train")
    found = reproduce(mine, run, Store(tmp_path / "fresh"), lineage=True)
    fresh = Runs(Store(tmp_path / "fresh"))
    assert [row.then for row in found.rows if row.stage == "run"] == chain
    assert fresh.ids() == chain
    assert Runs(mine).record(run).lineage[0].state, "the last one continued the training before it"
    assert found.basis == "the model was built again from text alone, with the 2 runs before it"
    wrong = {name for row in found.rows for name in row.differing}
    # what was deleted, and what was found where the gate measured the package of an incumbent again
    assert wrong - {"verdict.json"} == {"model/weights.py"}
    assert all(row.then == row.now for row in found.rows)


@pytest.mark.usefixtures("processes")
def test_an_ancestor_that_comes_out_otherwise_ends_the_rebuild(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    """Its child would begin with other weights, so that a comparison would say nothing."""
    runs = Runs(mine)
    first, second, *_ = lineage.runs
    for run in lineage.runs[1:]:
        record = runs.record(run).canonical()
        for ancestor in record["lineage"]:
            if ancestor["run"] == first:
                ancestor["package"] = "0" * 64
        (runs.folder(run) / "run.json").write_text(json.dumps(record), encoding="utf-8")
    found = reproduce(mine, second, Store(tmp_path / "fresh"), lineage=True)
    assert not found.matches
    assert found.again == ""
    assert f"run {first} differs, so that run {second}, which began with it, was not built" in found.notes
    assert Runs(Store(tmp_path / "fresh")).ids() == [first]


@pytest.mark.usefixtures("processes")
def test_any_run_is_reproduced_after_any_history(lineage: Lineage, tmp_path: Path) -> None:
    """Nights are built after random decisions, so that parents and incumbents differ, and more decisions follow."""
    draw = random.Random(3)
    for number in range(2):
        store = Store(tmp_path / f"store{number}")
        shutil.copytree(lineage.store.root, store.root)
        runs = Runs(store)

        def decide(runs: Runs = runs) -> None:
            for _ in range(draw.randint(1, 4)):
                if draw.random() < 0.5 and runs.rollback_target("tiny"):
                    runs.rollback("tiny", "t", "w", "amal")
                else:
                    runs.promote("tiny", draw.choice(runs.ids()), when="t", why="w", who="amal")

        decide()
        champion = runs.champion("tiny")
        built = build(lineage.recipe(4 + number), store)
        assert built.record.parent == champion
        decide()
        for run in (built.run, draw.choice(lineage.runs)):
            found = reproduce(store, run, Store(tmp_path / f"fresh-{number}-{run}"))
            assert found.matches, [row for row in found.rows if not row.matches]
            assert found.again == run


def test_what_was_deleted_is_not_counted_as_a_match() -> None:
    same, other = Row("train", "a", "a", ()), Row("export", "a", "b", ())
    deleted, undecided = Row("vocab", "a", "a", (), compared=False), Row("gate", "a", "b", (), decided=False)
    for rows, count in (
        ((same, same), "2 of 2 match"),
        ((same, deleted, undecided), "1 of 3 match, and 2 could not be compared"),
        ((same, other, deleted), "1 of 3 match, and 1 could not be compared"),
        ((deleted,), "0 of 1 match, and 1 could not be compared"),
    ):
        assert Reproduction("tiny-a", "tiny-a", rows, "", ()).count == count


@pytest.mark.usefixtures("processes")
def test_what_differs_is_named(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    run = lineage.runs[0]
    runs = Runs(mine)
    record = runs.record(run).canonical()
    record["dependencies"]["numpy"] = "0.1"
    record["artifacts"]["train"] = ["0" * 64]
    (runs.folder(run) / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (runs.folder(run) / "model" / "vocab.py").write_text("WORDS = []\n", encoding="utf-8")
    checked = mine.artifact_folder("gate", record["artifacts"]["gate"][0]) / "verdict.json"
    checked.write_text(checked.read_text(encoding="utf-8").replace("integrity", "honesty"), encoding="utf-8")
    manifest = checked.with_name("manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"sha256": "', '"sha256": "f'), encoding="utf-8")
    found = reproduce(mine, run, Store(tmp_path / "fresh"))
    assert not found.matches
    wrong = {row.stage: row for row in found.rows if not row.matches}
    assert set(wrong) == {"train", "gate", "run"}
    assert wrong["train"].differing == ()
    assert not wrong["train"].compared
    assert wrong["gate"].differing == ("verdict.json",)
    assert wrong["run"].differing == ("model/vocab.py",)
    assert any(note.startswith("numpy was 0.1, and is ") for note in found.notes)
    assert found.basis == "the model was built again from text alone", "it is a cold run"


@pytest.mark.usefixtures("processes")
def test_a_missing_or_changed_source_is_named_before_anything_is_built(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "text.jsonl", 300)
    store = Store(tmp_path / "store")
    run = build(tiny_recipe(corpus, train={"steps": 1}), store).run
    write_corpus(corpus, 300, seed=1)
    with pytest.raises(CorpusError, match=r"text\.jsonl has changed since.*sha256 was [0-9a-f]{12}"):
        reproduce(store, run, Store(tmp_path / "fresh"))
    corpus.unlink()
    with pytest.raises(CorpusError, match=r"a source is missing.*text\.jsonl"):
        reproduce(store, run, Store(tmp_path / "fresh"))
    assert not (tmp_path / "fresh").exists()


def test_a_run_is_not_reproduced_in_a_store_in_use(lineage: Lineage) -> None:
    with pytest.raises(StoreError, match="not empty"):
        reproduce(lineage.store, lineage.runs[0], lineage.store)


@pytest.mark.usefixtures("processes")
def test_a_verdict_whose_incumbent_was_deleted_is_not_compared(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    """Everything else is, and a difference there is still one."""
    run = lineage.runs[-1]
    record = Runs(mine).record(run)
    old = lineage.runs[0]
    changed = record.model_copy(update={"anchors": (*record.anchors, "tiny-000000000000"), "incumbent": old})
    (Runs(mine).folder(run) / "run.json").write_bytes(changed.to_json())
    shutil.rmtree(Runs(mine).folder(old))
    (Runs(mine).folder(run) / "model" / "vocab.py").write_text("WORDS = []\n", encoding="utf-8")
    found = reproduce(mine, run, Store(tmp_path / "fresh"))
    assert not found.matches
    assert [(row.stage, row.differing) for row in found.rows if not row.matches] == [("run", ("model/vocab.py",))]
    assert {row.stage for row in found.rows if not row.decided} == {"gate", "run"}
    assert found.again != run, "another verdict"
    (note,) = found.notes
    assert re.match(rf"the verdict of {run} is not compared: run {old} and [12] more, which the gate compared it", note)


def test_what_a_warm_start_needs_is_named(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    first, second, third, _ = lineage.runs
    shutil.rmtree(mine.root / "artifacts" / "seen")
    fresh = Store(tmp_path / "fresh")
    with pytest.raises(StoreError, match=f"parent's weights: the record of what was read by run {first} was deleted"):
        reproduce(mine, second, fresh)
    shutil.copytree(lineage.store.root / "artifacts" / "seen", mine.root / "artifacts" / "seen")
    shutil.rmtree(mine.root / "artifacts" / "train")
    with pytest.raises(StoreError, match=f"parent's weights: the state of the training of run {second} was deleted"):
        reproduce(mine, third, fresh)
    shutil.rmtree(Runs(mine).folder(first))
    with pytest.raises(StoreError, match=f"run {second} cannot .* from its parent's weights: run {first} was deleted"):
        reproduce(mine, second, fresh)
    with pytest.raises(StoreError, match=f"lineage of run {third} cannot be built again: run {first} was deleted"):
        reproduce(mine, third, fresh, lineage=True)
    assert not fresh.root.exists()


def test_an_ancestor_whose_source_changed_is_named_before_anything_is_built(
    mine: Store, lineage: Lineage, tmp_path: Path
) -> None:
    runs, changed = Runs(mine), write_corpus(tmp_path / "changed.jsonl", 300, seed=1)
    first, *_, last = lineage.runs
    record = runs.record(first).canonical()
    record["recipe"]["corpus"]["sources"][0]["path"] = str(changed)
    (runs.folder(first) / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CorpusError, match=rf"run {first} cannot be built again: .*changed\.jsonl has changed since"):
        reproduce(mine, last, Store(tmp_path / "fresh"), lineage=True)
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("parent", "incumbent", "needed"),
    [("", "", ()), ("b", "a", ("b", "a")), ("a", "a", ("a",)), ("", "a", ("a",)), ("b", "", ("b",))],
)
def test_a_run_needs_its_parent_and_its_incumbent(
    lineage: Lineage, parent: str, incumbent: str, needed: tuple[str, ...]
) -> None:
    record = Runs(lineage.store).record(lineage.runs[-1])
    ancestors = (record.lineage[0].model_copy(update={"run": parent}), *record.lineage[1:]) if parent else ()
    record = record.model_copy(update={"lineage": ancestors, "incumbent": incumbent, "anchors": ("c",)})
    assert record.needed_runs() == needed


# -- continued trainings ------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_a_continued_build_that_is_stopped_ends_with_the_same_bits(
    mine: Store, lineage: Lineage, tmp_path: Path
) -> None:
    other = Store(shutil.copytree(mine.root, tmp_path / "other"))

    class StopError(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if done >= 3:
            raise StopError

    with pytest.raises(StopError):
        build(lineage.recipe(4), mine, stop)
    assert list(mine.root.glob("artifacts/train/*.partial/checkpoint-*"))
    resumed, straight = (build(lineage.recipe(4), store) for store in (mine, other))
    (one, two) = ([made.manifest for made in night.artifacts if made.stage == "train"] for night in (resumed, straight))
    for name in ("model.safetensors", "state.safetensors"):
        assert one[0].files[name] == two[0].files[name]
    assert resumed.record.lineage[0].state


@pytest.mark.usefixtures("processes")
def test_without_a_new_document_the_model_stays_as_it_is(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    """Though a file has changed: nothing is trained."""
    recipe = lineage.recipe(3)
    corpus = Path(shutil.copy(recipe.corpus.sources[0].path, tmp_path / "text.jsonl"))
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text + text, encoding="utf-8")
    source = recipe.corpus.sources[0].model_copy(update={"path": str(corpus)})
    changed = recipe.corpus.model_copy(update={"sources": (source,)})
    night = build(recipe.model_copy(update={"corpus": changed}), mine)
    facts = next(made.facts(TrainFacts) for made in night.artifacts if made.stage == "train")
    last, runs = lineage.runs[-1], Runs(mine)
    assert (facts.steps, facts.warm_start) == (0, runs.package(last))
    assert night.run != last
    assert runs.model(night.run) == runs.model(last)
    assert runs.record(night.run).lineage[0].state


def test_where_no_state_is_left_the_weights_are_taken_and_it_is_said(
    mine: Store, lineage: Lineage, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, runs, last = lineage.recipe(3), Runs(mine), lineage.runs[-1]

    def state_for(**train: object) -> object:
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"replay": 0.5, **train})})
        start = warm_start(changed, Documents([], []), runs)
        assert start is not None
        assert start.parent.run == last
        return start.state

    assert state_for()
    assert state_for(start="champion", seed=8) is None
    assert not caplog.records
    assert state_for(optimizer="adamw") is None
    message = f"run {last} left no state of its training that can be continued: its weights alone are taken, for 15"
    assert message in caplog.text
    caplog.clear()
    (training,) = runs.record(last).artifacts["train"]
    (mine.artifact_folder("train", training) / "state.safetensors").unlink()
    assert state_for() is None
    assert message in caplog.text


def test_every_so_many_builds_one_starts_from_scratch(mine: Store, lineage: Lineage) -> None:
    """Once for a champion: where it was not better, the chain goes on."""
    recipe, runs, (first, *_, last) = lineage.recipe(3), Runs(mine), lineage.runs

    def parent(every: int) -> str:
        train = recipe.train.model_copy(update={"replay": 0.5, "cold_every": every})
        start = warm_start(recipe.model_copy(update={"train": train}), Documents([], []), runs)
        return start.parent.run if start else ""

    assert [parent(every) for every in (0, 3, 4, 5)] == [last, last, "", last]
    cold = shutil.copytree(runs.folder(first), runs.folder(first).with_name("tiny-000000000000"))
    os.utime(cold / "run.json")
    assert parent(4) == last


# -- champions --------------------------------------------------------------------------------------


def test_rollback_undoes_one_promotion_after_the_other(mine: Store, lineage: Lineage) -> None:
    first, second, third, fourth = lineage.runs
    runs = Runs(mine)
    before = (mine.root / "champions" / "tiny.jsonl").read_bytes()
    earlier = runs.promotions("tiny")
    assert runs.champion("tiny") == fourth
    for when, expected in (("t1", third), ("t2", second), ("t3", first)):
        assert runs.rollback("tiny", when, "it rhymes", "amal") == expected
    with pytest.raises(StoreError, match="nothing came before"):
        runs.rollback("tiny", "t4", "it rhymes", "amal")
    runs.promote("tiny", third, when="t5", why="after all", who="amal")
    assert runs.rollback("tiny", "t6", "no", "amal") == first
    history = runs.promotions("tiny")[len(earlier) :]
    assert [line.run for line in history] == [third, second, first, third, first]
    assert history[0] == Promotion(
        run=third, model=runs.model(third), when="t1", why="it rhymes", who="amal", action="rollback",
        undone=runs.model(fourth),
    )  # fmt: skip
    # append-only: the earlier lines keep their bytes
    assert (mine.root / "champions" / "tiny.jsonl").read_bytes().startswith(before)


def test_rollback_skips_a_deleted_run(mine: Store, lineage: Lineage) -> None:
    shutil.rmtree(Runs(mine).folder(lineage.runs[2]))
    assert Runs(mine).rollback("tiny", "t", "w", "amal") == lineage.runs[1]
    assert next(Runs(mine).champions("tiny"))[0] == lineage.runs[1]


@pytest.mark.parametrize("rolled_back", [True, False])
def test_a_rolled_back_night_does_not_return_the_next_night(mine: Store, lineage: Lineage, rolled_back: bool) -> None:
    """Its text is still there, so that the next night builds the same model again, and it passes again."""
    runs, (*_, third, fourth) = Runs(mine), lineage.runs
    passed = runs.record(fourth).model_copy(update={"verdict": judged()})
    (runs.folder(fourth) / "run.json").write_bytes(passed.to_json())
    if rolled_back:
        runs.rollback("tiny", "2030-05-06", "wrong dates", "amal")
        held = "passed, but not promoted: rolled back on 2030-05-06 by amal: wrong dates"
    else:
        runs.promote("tiny", third, when="t", why="w", who="amal")
        held = "passed, but not promoted: it was champion before, promoted on "
    again = build(lineage.recipe(3), mine)
    assert again.run == fourth
    assert again.verdict.passed
    assert not again.champion
    assert not again.promoted
    assert again.decision.startswith(held)
    assert runs.champion("tiny") == third


def test_nothing_to_roll_back(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no champion"):
        Runs(Store(tmp_path)).rollback("tiny", "t", "w", "amal")


# -- garbage collection ------------------------------------------------------------------------------------


def later() -> float:
    return time.time() + 2 * DAY


def tree(store: Store) -> set[Path]:
    return {path for path in store.root.rglob("*") if path.is_file() and path.parent.name != "locks"}


def test_a_dry_run_deletes_nothing_and_lists_what_would_be_deleted(mine: Store, lineage: Lineage) -> None:
    before = tree(mine)
    found = collect(mine, keep=1, now=later())
    first, second, third, fourth = lineage.runs
    # the last is champion, a rollback returns to the third, and that began with the second
    assert found.runs == (first,)
    assert not found.deleted
    assert found.lost == (
        f"{second}: not from its parent's weights, nor from text: it began from {first}",
        *([f"{second}: without its verdict: the gate compared it with {first}"]),
        f"{third}: from its parent's weights, and not from text: {first} came before it",
        *without_verdict(mine, third, first),
        f"{fourth}: from its parent's weights, and not from text: {first} came before it",
        *without_verdict(mine, fourth, first),
    )
    assert tree(mine) == before


def without_verdict(store: Store, run: str, deleted: str) -> list[str]:
    record = Runs(store).record(run)
    compared = deleted in (record.incumbent, *record.anchors)
    return [f"{run}: without its verdict: the gate compared it with {deleted}"] * compared


@pytest.mark.usefixtures("processes")
def test_collect_keeps_what_kept_runs_need(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    first, second, third, fourth = lineage.runs
    read_by_first = Runs(mine).record(second).lineage[0].seen
    found = collect(mine, keep=1, delete=True, now=later())
    assert found.runs == (first,)
    assert found.deleted
    assert found.bytes > 0
    assert "seen" not in [name.partition("/")[0] for name in found.artifacts]
    assert mine.artifact("seen", read_by_first).exists(), "what the second had not to hold out"
    assert Runs(mine).ids() == [second, third, fourth]
    assert collect(mine, keep=1, now=later()).lost == (), "what is lost already is not listed again"
    assert reproduce(mine, third, Store(tmp_path / "third")).matches
    with pytest.raises(StoreError, match=first):
        reproduce(mine, second, Store(tmp_path / "fresh"))
    with pytest.raises(StoreError, match=first):
        reproduce(mine, fourth, Store(tmp_path / "fresh"), lineage=True)
    assert Runs(mine).rollback("tiny", "t", "w", "amal") == third
    assert not list(mine.root.rglob("*.deleted"))


def test_collect_keeps_an_incumbent_that_is_neither_champion_nor_recent(mine: Store, lineage: Lineage) -> None:
    first, second, third, fourth = lineage.runs
    record = Runs(mine).record(fourth)
    (Runs(mine).folder(fourth) / "run.json").write_bytes(record.model_copy(update={"incumbent": first}).to_json())
    assert set(collect(mine, keep=1, now=later()).kept) == {first, second, third, fourth}


def test_fresh_artifacts_and_those_being_built_are_kept(mine: Store, lineage: Lineage) -> None:
    scrap = mine.root / "artifacts" / "train" / ("a" * 64 + ".partial")
    scrap.mkdir()
    (scrap / "checkpoint").write_bytes(b"x" * 1000)
    name = f"train/{scrap.name}"
    assert name not in collect(mine, keep=5).artifacts  # a killed build may continue from it
    assert name in collect(mine, keep=5, now=later()).artifacts
    with mine.locked("train-" + "a" * 64):
        found = collect(mine, keep=5, delete=True, now=later())
        assert found.busy == ("train-" + "a" * 64,)
        assert found.artifacts == ()
        assert not mine.delete_artifact(name, later())  # as if a build had begun in between
    assert not mine.delete_artifact(name, time.time() - DAY)  # or it had been used
    assert scrap.exists()
    collect(mine, keep=5, delete=True, now=later())
    assert not scrap.exists()


def test_reuse_makes_an_artifact_fresh(mine: Store, lineage: Lineage) -> None:
    old = time.time() - 30 * DAY
    for path in (mine.root / "artifacts").rglob("*"):
        os.utime(path, (old, old))
    assert all(used < old + 1 for used in mine.artifacts().values())
    build(lineage.recipe(3), mine)
    assert sum(used > old + 1 for used in mine.artifacts().values()) >= len(STAGES)


def test_what_killed_processes_left_is_deleted_after_a_day(store: Store) -> None:
    """Not before, when another machine may be writing it; and nothing else that is hidden."""
    left = {
        ".reproducing-x": "artifacts/train", ".writable.0123456789abcdef": "",
        f"artifacts/train/.{'a' * 64}.deleted": "model.safetensors", "champions/.tiny.jsonl.0123456789abcdef": "",
        "runs/.tiny-0123456789ab.partial": "run.json",
    }  # fmt: skip
    for name, file in {**left, ".gitignore": "", "runs/.notes": ""}.items():
        replace_file(store.root / name / file, b"x")
    assert collect(store, 1, delete=True).abandoned == ()
    tomorrow = time.time() + FRESH_SECONDS + 60
    found = collect(store, 1, now=tomorrow)
    assert sorted(found.abandoned) == sorted(left)
    assert (found.bytes, collect(store, 1, delete=True, now=tomorrow).abandoned) == (len(left), found.abandoned)
    rest = [str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()]
    assert sorted(rest) == [".gitignore", "runs/.notes"]


def test_keeping_nothing_is_refused(mine: Store) -> None:
    with pytest.raises(StoreError, match="at least 1"):
        collect(mine, keep=0)
