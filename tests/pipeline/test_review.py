"""Reviews of real runs and packages: those that builds write against the champion, and what is missing in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qalam_core.errors import PackageError, StoreError
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.pipeline import publish
from qalam_core.pipeline.build import build
from qalam_core.pipeline.export import PACKAGE
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.review import Side, review
from qalam_core.reports.tables import NO_CHAMPION
from qalam_core.review.summary import SECTIONS, Review
from qalam_core.runs import Runs
from qalam_core.store import Store
from tests.conftest import tiny_recipe, write_corpus

STEPS = {"steps": 30, "checkpoint_every": 30, "validate_every": 30}


class Pair:
    """A champion, and a run with other text, another tokenizer, and a looser gate."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.runs = Runs(self.store)
        self.recipe = tiny_recipe(write_corpus(folder / "stories.jsonl", 300), train=STEPS)
        self.old = build(self.recipe, self.store)
        write_corpus(folder / "stories.jsonl", 330, seed=1)
        changed = tiny_recipe(
            folder / "stories.jsonl", train=STEPS, tokenizer={"vocab_size": 340}, gate={"tolerance": 0.2}
        )
        self.changed = changed.model_copy(update={"seed": 8})
        self.new = build(self.changed, self.store)

    def reviewed(self) -> Review:
        return review(Side.of(self.runs, self.old.run), Side.of(self.runs, self.new.run))


@pytest.fixture(scope="session")
def pair(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("review"))


@pytest.fixture
def copy(pair: Pair, tmp_path: Path) -> Runs:
    """A copy of the store that a test may damage."""
    shutil.copytree(pair.store.root, tmp_path / "store")
    return Runs(Store(tmp_path / "store"))


def between(runs: Runs, pair: Pair) -> Review:
    return review(Side.of(runs, pair.old.run), Side.of(runs, pair.new.run))


def written(published: Published) -> Review:
    return Review.model_validate_json((published.folder / "review.json").read_bytes())


def test_a_first_build_has_no_review_and_says_so(pair: Pair) -> None:
    assert pair.old.review == NO_CHAMPION
    assert not (pair.old.folder / "review.html").exists()
    assert all(NO_CHAMPION in (pair.old.folder / f"report.{kind}").read_text() for kind in ("html", "md"))


def test_a_build_writes_the_review_against_the_champion(pair: Pair) -> None:
    found = written(pair.new)
    assert found == pair.new.review
    assert (found.old.name, found.new.name) == (pair.old.run, pair.new.run)
    assert not found.unseen(), found.unseen()
    assert found.gate in ("waiting", "refused")
    assert found.reasons == tuple(pair.new.verdict.reasons())
    page = (pair.new.folder / "review.html").read_text(encoding="utf-8")
    assert str(pair.store.root) not in page and len(page) < 2_000_000
    report = (pair.new.folder / "report.html").read_text(encoding="utf-8")
    assert '<a href="review.html">' in report
    text = (pair.new.folder / "report.md").read_text(encoding="utf-8")
    assert "`review.html`" in text
    assert text.index("1. recipe: The gate is looser (gate.tolerance 0.035 -&gt; 0.2)") < text.index("5. weights: ")


def test_it_is_a_function_of_the_content(pair: Pair) -> None:
    assert pair.reviewed() == written(pair.new)


def test_the_sections_show_what_changed(pair: Pair) -> None:
    found = written(pair.new)
    assert found.recipe and found.data and found.tokenizer and found.behaviour and found.weights
    assert [change.key for change in found.recipe.values] == ["gate.tolerance", "seed", "tokenizer.vocab_size"]
    assert found.data.overall.added > 300 and found.data.overall.gone > 250
    assert [text.name for text in found.behaviour.texts] == ["held-out text", "training text"]
    assert {text.name for text in found.tokenizer.texts} == {"held-out text", "raw text"} and not found.tokenizer.same
    assert any(alarm.section == "recipe" and alarm.severity == "high" for alarm in found.alarms)


def test_what_arrived_goes_from_one_nights_review_to_the_next(processes: None, tmp_path: Path) -> None:
    """A source that stops is an alarm on that night, on the terminal's line as well; the review before has its past."""
    store, published = Store(tmp_path / "store"), list[Published]()
    for number in range(5):
        write_corpus(tmp_path / "a.jsonl", 200 + 20 * number)
        write_corpus(tmp_path / "b.jsonl", 200 + 20 * min(number, 3), seed=1)
        sources = [{"path": str(tmp_path / f"{name}.jsonl"), "name": name} for name in "ab"]
        recipe = tiny_recipe(tmp_path, corpus={"sources": sources}, train=STEPS, gate={"tolerance": 1.0})
        published.append(build(recipe, store))
    *before, last = map(written, published[1:])
    assert not [alarm for found in before for alarm in found.alarms if alarm.section == "data"]
    assert last.data and len(last.data.arrivals["a"]) == 4 and last.data.arrivals["b"][0] == 0
    (alarm,) = (alarm for alarm in last.alarms if alarm.section == "data")
    assert alarm.message.startswith("The source b has no new documents, and had ")
    assert last.sentences["data"].startswith("The source b has no new documents")
    (published[3].folder / "review.json").write_text("{", encoding="utf-8")
    runs = Runs(store)
    again = review(Side.of(runs, published[3].run), Side.of(runs, published[4].run))
    assert "what arrived in the builds before is not known" in again.unseen()[0] and not again.clean


def delete(runs: Runs, run: str, stage: str) -> None:
    for key in runs.record(run).artifacts[stage]:
        shutil.rmtree(runs.store.artifact_folder(stage, key))


def test_a_deleted_corpus_is_not_available(pair: Pair, copy: Runs) -> None:
    delete(copy, pair.new.run, "prepare")
    found = between(copy, pair)
    assert found.missing == {"data": f"the corpus of run {pair.new.run} was deleted from the store"}
    assert found.behaviour and found.behaviour.texts, "the other one's text is measured"
    delete(copy, pair.old.run, "prepare")
    found = between(copy, pair)
    assert set(found.missing) == {"data", "behaviour"}
    assert found.tokenizer and found.tokenizer.unavailable and found.weights
    assert "could not be looked at" in found.verdict and not found.clean


def test_a_damaged_shard_is_not_available(pair: Pair, copy: Runs) -> None:
    corpus = copy.store.artifact("prepare", copy.record(pair.new.run).artifacts["prepare"][0])
    for shard in corpus.path.glob("test-*.arrow"):
        shard.unlink()
    assert {"data", "behaviour"} >= set(between(copy, pair).missing) > set()


def test_a_damaged_package_is_not_available(pair: Pair, copy: Runs) -> None:
    (copy.folder(pair.old.run) / PACKAGE / "config.py").write_text("import os\n")
    found = between(copy, pair)
    assert set(found.missing) == {"tokenizer", "behaviour", "weights"}
    assert found.recipe and found.data
    assert str(copy.store.root) not in found.to_json().decode(), "a review does not depend on the machine"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_package_that_was_edited_in_its_run_is_not_the_one_that_the_gate_passed(
    sealed: bool, pair: Pair, copy: Runs
) -> None:
    package = copy.folder(pair.new.run) / PACKAGE
    scale_row(package, "embedding.weight", "ال", 1.5)
    if sealed:
        seal(package, "louder")
    found = between(copy, pair)
    assert set(found.missing) == {"tokenizer", "behaviour", "weights"}
    assert ("changed since the run was published" if sealed else "embedding.weight") in found.missing["weights"]
    assert not found.clean
    assert str(copy.store.root) not in found.to_json().decode()


@pytest.mark.parametrize("damage", ["package", "run", "error"])
def test_a_build_publishes_whatever_is_wrong_with_its_review(
    damage: str, pair: Pair, copy: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A champion whose package is damaged, or that was deleted after the gate read it; and a fault of ours."""
    shutil.rmtree(copy.folder(pair.new.run))
    before: Callable[..., Any] = publish.create_run
    if damage == "package":
        (copy.folder(pair.old.run) / PACKAGE / "weights.py").write_text("x = 1\n")
    elif damage == "run":
        monkeypatch.setattr(publish, "create_run", lambda *arguments: _without(copy, pair.old.run, before, *arguments))
    else:
        monkeypatch.setattr(publish, "review", lambda *_: 1 / 0)
    again = build(pair.changed, copy.store)
    assert again.run == pair.new.run
    assert (again.folder / "report.html").exists()
    if damage == "error":
        assert "failed (ZeroDivisionError" in str(again.review) or "no readable review" in str(again.review)
        assert "ZeroDivisionError" in (again.folder / "report.md").read_text(encoding="utf-8")
    else:
        found = written(again)
        assert {"tokenizer", "behaviour", "weights"} <= set(found.missing)
        assert ("recipe" in found.missing) == (damage == "run")
        assert str(copy.store.root) not in found.to_json().decode()


def _without(runs: Runs, run: str, create: Callable[..., Any], *arguments: object) -> object:
    runs.delete(run)
    return create(*arguments)


def test_an_edited_package_has_the_recipe_of_its_run(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(pair.new.folder / PACKAGE, folder)
    side = Side.of(pair.runs, str(folder))
    assert (side.name, side.run) == ("edited", pair.new.run)
    found = review(Side.of(pair.runs, pair.new.run), side)
    assert found.gate == "none" and found.verdict.startswith("No gate has judged edited; ")
    assert found.recipe and not found.recipe.values and not found.alarms
    assert found.missing == {"tests": "edited is not a run, and its tests are not recorded; see `qalam test`"}


def test_a_package_of_no_run_has_no_recipe(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(pair.new.folder / PACKAGE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"]["checkpoint"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = review(Side.of(pair.runs, str(folder)), Side.of(pair.runs, pair.new.run))
    why = "the package foreign is not of a run in the store"
    assert found.missing == dict.fromkeys(("recipe", "data", "tests"), why)
    assert found.behaviour and found.weights and tuple(found.sentences) == SECTIONS


def test_what_is_neither_a_run_nor_a_package(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not in"):
        Side.of(pair.runs, "demo-none")
    with pytest.raises(PackageError):
        Side.of(pair.runs, str(tmp_path))
