"""Runs after they were built: reproduced in an empty store, rolled back, and garbage-collected."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from qalam_core.errors import CorpusError, StoreError
from qalam_core.pipeline.audit import reproduce
from qalam_core.pipeline.build import STAGES, build
from qalam_core.pipeline.collect import collect
from qalam_core.runs import Promotion, Runs
from qalam_core.store import Store
from tests.conftest import Built, tiny_recipe, write_corpus
from tests.flows.processes import qalam

DAY = 24 * 3600.0


class Lineage:
    """Three runs of one recipe name: each passed against the one before, and the last has another seed."""

    def __init__(self, folder: Path) -> None:
        self.corpus = write_corpus(folder / "stories.jsonl", 300)
        self.store = Store(folder / "store")
        parts: list[dict[str, Any]] = [{}, {"gate": {"tolerance": 0.5}}, {"seed": 8, "gate": {"tolerance": 0.5}}]
        self.runs = [self.build(**each) for each in parts]

    def build(self, **parts: Any) -> str:
        seed = parts.pop("seed", 7)
        recipe = tiny_recipe(self.corpus, train={"steps": 20}, **parts).model_copy(update={"seed": seed})
        return build(recipe, self.store).run


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
    """The last one: its gate compared it with an earlier champion, which the empty store does not have."""
    seen: list[tuple[int, int]] = []
    found = reproduce(lineage.store, lineage.runs[-1], Store(tmp_path / "fresh"), lambda *at: seen.append(at))
    assert found.matches, [row for row in found.rows if not row.matches]
    assert found.again == lineage.runs[-1]
    assert {row.stage for row in found.rows} == {*(stage.name for stage in STAGES), "run"}
    assert found.rows[0].then == found.rows[0].now != ""
    assert all(row.compared for row in found.rows)
    assert found.notes == ()
    assert seen[-1] == (20, 20)
    assert Runs(lineage.store).record(lineage.runs[-1]).incumbent == lineage.runs[1]


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


def test_an_incumbent_that_was_deleted_is_named(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    shutil.rmtree(Runs(mine).folder(lineage.runs[1]))
    with pytest.raises(StoreError, match=lineage.runs[1]):
        reproduce(mine, lineage.runs[-1], Store(tmp_path / "fresh"))


@pytest.mark.parametrize(
    ("parent", "incumbent", "needed"),
    [("", "", ()), ("b", "a", ("b", "a")), ("a", "a", ("a",)), ("", "a", ("a",)), ("b", "", ("b",))],
)
def test_a_run_needs_its_parent_and_its_incumbent(
    built: Built, parent: str, incumbent: str, needed: tuple[str, ...]
) -> None:
    record = built.published.record.model_copy(update={"parent": parent, "incumbent": incumbent})
    assert record.needed_runs() == needed


# -- champions --------------------------------------------------------------------------------------


def test_rollback_undoes_one_promotion_after_the_other(mine: Store, lineage: Lineage) -> None:
    first, second, third = lineage.runs
    before = (mine.root / "champions" / "tiny.jsonl").read_bytes()
    assert Runs(mine).champion("tiny") == third
    assert Runs(mine).rollback("tiny", "t1", "it rhymes", "amal") == second
    assert Runs(mine).rollback("tiny", "t2", "it rhymes", "amal") == first
    with pytest.raises(StoreError, match="nothing came before"):
        Runs(mine).rollback("tiny", "t3", "it rhymes", "amal")
    Runs(mine).promote("tiny", Promotion(run=third, when="t4", why="after all", who="amal"))
    assert Runs(mine).rollback("tiny", "t5", "no", "amal") == first
    history = Runs(mine).promotions("tiny")
    assert [line.run for line in history] == [first, second, third, second, first, third, first]
    assert history[3] == Promotion(run=second, when="t1", why="it rhymes", who="amal", action="rollback")
    assert history[0].who == "gate"
    # append-only: the earlier lines keep their bytes
    assert (mine.root / "champions" / "tiny.jsonl").read_bytes().startswith(before)


def test_rollback_skips_a_deleted_run(mine: Store, lineage: Lineage) -> None:
    shutil.rmtree(Runs(mine).folder(lineage.runs[1]))
    assert Runs(mine).rollback("tiny", "t", "w", "amal") == lineage.runs[0]


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
    # the last is champion, the second is what a rollback returns to
    assert found.runs == (lineage.runs[0],)
    assert not found.deleted
    assert tree(mine) == before


@pytest.mark.usefixtures("processes")
def test_collect_keeps_what_kept_runs_need(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    first, second, third = lineage.runs
    found = collect(mine, keep=1, delete=True, now=later())
    assert found.runs == (first,)
    assert found.deleted
    assert found.bytes > 0
    # all the others are shared with the second
    assert [name.partition("/")[0] for name in found.artifacts] == ["gate"]
    assert Runs(mine).ids() == [second, third]
    assert reproduce(mine, third, Store(tmp_path / "fresh")).matches
    assert Runs(mine).rollback("tiny", "t", "w", "amal") == second
    assert not list(mine.root.rglob("*.deleted"))


def test_collect_keeps_an_incumbent_that_is_neither_champion_nor_recent(mine: Store, lineage: Lineage) -> None:
    first, second, third = lineage.runs
    Runs(mine).promote("tiny", Promotion(run=first, when="t", why="w", who="amal"))
    Runs(mine).promote(
        "tiny", Promotion(run=third, when="t", why="w", who="amal")
    )  # a rollback returns to the first now
    assert Runs(mine).record(third).incumbent == second
    assert set(collect(mine, keep=1, now=later()).kept) == {first, second, third}


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
    build(tiny_recipe(lineage.corpus, train={"steps": 20}), mine)
    assert sum(used > old + 1 for used in mine.artifacts().values()) >= len(STAGES)


def test_keeping_nothing_is_refused(mine: Store) -> None:
    with pytest.raises(StoreError, match="at least 1"):
        collect(mine, keep=0)


# -- the command line -------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_the_commands(mine: Store, lineage: Lineage, tmp_path: Path) -> None:
    first, second, third = lineage.runs
    back = qalam("rollback", "tiny", "--store", mine.root, "--why", "it rhymes", "--who", "amal")
    assert back.returncode == 0, back.stderr
    assert f"{second} is the champion of tiny again" in back.stdout
    history = qalam("history", "tiny", "--store", mine.root).stdout.splitlines()
    assert len(history) == 4
    assert history[-1].endswith(f"{second}  rollback by amal: it rhymes")
    assert qalam("promote", third, "--store", mine.root).returncode == 0
    dry = qalam("gc", "--keep", "1", "--store", mine.root)
    assert dry.returncode == 0
    assert "would be deleted (with --delete)" in dry.stdout
    assert set(Runs(mine).ids()) == set(lineage.runs)
    again = qalam("reproduce", first, "--store", mine.root, "--in", tmp_path / "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{first} is reproduced" in again.stdout
    assert (tmp_path / "again" / "runs" / first).is_dir()
    (Runs(mine).folder(first) / "model" / "vocab.py").write_text("", encoding="utf-8")
    differs = qalam("reproduce", first, "--store", mine.root)
    assert differs.returncode == 1
    assert "model/vocab.py" in differs.stdout
