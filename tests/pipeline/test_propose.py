"""An edited package goes through the gate as a build does, and what is not known of it is never counted as good."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import PackageError, StoreError, TrainingError
from qalam_core.package.editing.rows import add_token, scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.read import read, verify
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.write import write
from qalam_core.pipeline.audit import remeasure, reproduce
from qalam_core.pipeline.build import build, propose
from qalam_core.pipeline.collect import collect
from qalam_core.pipeline.find import find, trace
from qalam_core.pipeline.lineage import last_without, readers
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.prepare import shards_of
from qalam_core.pipeline.propose import EDITED, Candidate, Propose, candidate, parent_of
from qalam_core.pipeline.publish import Published
from qalam_core.recipe import Recipe
from qalam_core.runs import exceptions
from qalam_core.store import Store
from tests.conftest import Built, sentences
from tests.small_package import random_tensors

WORD = "ال"


def copied(published: Published, folder: Path) -> Path:
    shutil.copytree(published.folder / "model", folder)
    return folder


def edited(published: Published, folder: Path, factor: float = 1.001, note: str = "louder") -> Path:
    """A sealed package with one row scaled."""
    copied(published, folder)
    scale_row(folder, "embedding.weight", WORD, factor)
    seal(folder, note)
    return folder


def proposal(mine: Built, folder: Path, recipe: Recipe | None = None) -> Published:
    return propose(candidate(mine.runs, folder, "a better row", "amal", recipe), mine.store)


def starting(recipe: Recipe, start: str = "champion", **train: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"start": start, **train})})


@pytest.fixture(scope="module")
def passed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A store in which an edit was proposed and passed; must not be written to."""
    home = tmp_path_factory.mktemp("passed")
    shutil.copytree(built.store.root, home / "store")
    mine = Built(built.recipe, Store(home / "store"), built.published)
    return mine._replace(published=proposal(mine, edited(built.published, home / "package")))


@pytest.fixture
def after(passed: Built, tmp_path: Path) -> Built:
    """A copy of that store which a test may change."""
    shutil.copytree(passed.store.root, tmp_path / "store")
    return passed._replace(store=Store(tmp_path / "store"))


# -- passing --------------------------------------------------------------------------------------


def test_an_edit_that_passes_is_champion(built: Built, passed: Built) -> None:
    made, parent = passed.published, built.published
    record = made.record
    assert made.promoted, made.decision
    assert passed.runs.champion("tiny") == made.run
    assert (record.parent, record.incumbent) == (parent.run, parent.run)
    assert record.seen.lineage == parent.record.seen.own
    assert record.seen.own == {}
    assert record.proposal
    assert (record.proposal.why, record.proposal.who, record.proposal.unknown) == ("a better row", "amal", "")
    assert record.proposal.edits[0].startswith("1. louder (embedding.weight: 1 of 320 rows changed")
    assert record.proposal.changes[0].startswith("embedding.weight: 1 of 320 rows, moved ")
    assert record.artifacts["prepare"] == parent.record.artifacts["prepare"]  # the test split that its parent held out
    assert record.artifacts["seen"] == parent.record.artifacts["seen"]
    assert "train" not in record.artifacts
    assert passed.runs.promotions("tiny")[-1].why == "passed the gate, proposed by amal: a better row"


def test_the_published_package_is_the_edit_and_says_so(built: Built, passed: Built) -> None:
    model = passed.published.folder / "model"
    package, before = read(model, strict=True), read(built.published.folder / "model")
    row = package.vocabulary.words.index(WORD)
    assert np.allclose(package.weights["embedding.weight"][row], before.weights["embedding.weight"][row] * 1.001)
    assert [name for name in before.weights if not np.array_equal(package.weights[name], before.weights[name])] == [
        "embedding.weight"
    ]
    card = (model / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"those of an earlier model, run {built.published.run}, edited by a person and not trained since" in card
    assert "Proposed by amal: a better row (1. louder" in card
    assert "trained from scratch" not in card
    assert "من الصفر" not in card
    assert "were measured before these edits" not in card  # they were measured after it
    provenance = package.manifest["provenance"]
    assert provenance["proposal"] == passed.published.record.artifacts["propose"][0]
    assert provenance["initial_weights"].startswith(f"run {built.published.run}, package ")
    # the line of the edited row is the person's, not an export's
    text = (passed.published.folder / "model" / "weights.py").read_bytes()
    assert text == (passed.store.root.parent / "package" / "weights.py").read_bytes()
    for name in ("report.md", "report.html"):
        report = (passed.published.folder / name).read_text(encoding="utf-8")
        assert "a better row" in report
        assert "no training was run" in report
    assert "| same tensors as the checkpoint | does not apply |" in (passed.published.folder / "report.md").read_text(
        encoding="utf-8"
    )


def test_a_repeated_proposal_is_the_same_run(after: Built) -> None:
    runs = after.runs.ids()
    again = propose(candidate(after.runs, after_package(after), "another reason", "badr"), after.store)
    assert (again.run, again.cached, again.promoted) == (after.published.run, True, False)
    assert again.record.proposal
    assert again.record.proposal.why == "a better row"
    assert after.runs.ids() == runs


def after_package(after: Built) -> Path:
    """The package as it was proposed, which the store keeps."""
    record = after.runs.record(after.published.run)
    return Candidate.recorded(after.runs, record).package.path


def test_two_at_once_are_one_run(mine: Built, tmp_path: Path) -> None:
    package, made = edited(mine.published, tmp_path / "package"), list[Published]()
    both = [threading.Thread(target=lambda: made.append(proposal(mine, package))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.run for one in made] == [made[0].run] * 2
    assert [line.run for line in mine.runs.promotions("tiny")] == [mine.published.run, made[0].run]


def test_an_edit_of_an_edit_is_its_child(after: Built, tmp_path: Path) -> None:
    second = candidate(after.runs, edited(after.published, tmp_path / "second", note="louder again"), "more", "amal")
    assert [one.run for one in second.lineage] == [after.published.run, after.published.record.parent]
    assert [line[:15] for line in second.proposal.edits] == ["2. louder again"]
    assert second.lineage[0].documents == {}
    assert second.seen is not None
    assert second.kept == after.published.record.tokenizer


# -- refusals -------------------------------------------------------------------------------------


def test_a_poisoned_edit_is_refused(mine: Built, tmp_path: Path) -> None:
    made = proposal(mine, edited(mine.published, tmp_path / "package", 30.0))
    assert not made.verdict.passed
    assert "champion" in made.verdict.failed()
    assert mine.runs.champion("tiny") == mine.published.run
    assert made.run in mine.runs  # kept, as every refused run


def test_what_is_not_sealed_or_not_an_edit_is_one_line(mine: Built, tmp_path: Path) -> None:
    package = copied(mine.published, tmp_path / "package")
    with pytest.raises(PackageError, match=rf"the model of run {mine.published.run}, without an edit; `qalam promote"):
        candidate(mine.runs, package, "why", "who")
    scale_row(package, "embedding.weight", WORD, 1.5)
    with pytest.raises(
        PackageError, match=r"not sealed: embedding\.weight: 1 of 320 rows .* `qalam seal \S+ --note TEXT`"
    ):
        candidate(mine.runs, package, "why", "who")
    seal(package, "louder")
    with pytest.raises(PackageError, match="--why is blank"):
        candidate(mine.runs, package, " \n ", "who")
    with pytest.raises(PackageError, match="at most 500 characters"):
        candidate(mine.runs, package, "x" * 501, "who")
    with pytest.raises(PackageError, match=r"the package of run \S+ itself; copy it elsewhere"):
        candidate(mine.runs, mine.published.folder / "model", "why", "who")
    (package / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PackageError, match=r"notes\.txt is not part of the package; delete it"):
        candidate(mine.runs, package, "why", "who")
    assert len(mine.runs.ids()) == 1


@pytest.mark.parametrize("file", ["model/manifest.json", "report.json"])
def test_a_run_that_was_changed_since_it_was_measured_is_no_longer_that_model(
    file: str, mine: Built, tmp_path: Path
) -> None:
    """An edit in the run's own folder, sealed, would else be a champion that no gate has seen; a report that was made
    worse would let any model pass."""
    home, calls = mine.published.folder, list[Callable[[], object]]()
    if file == "report.json":
        report = mine.runs.report(mine.published.run)
        worse = tuple(2 * nats for nats in report.document_nats)
        (home / file).write_text(report.model_copy(update={"document_nats": worse}).model_dump_json(), encoding="utf-8")
        calls += [lambda: mine.runs.report(mine.published.run)]
    else:
        scale_row(home / "model", "embedding.weight", WORD, 30.0)
        seal(home / "model", "louder")
        copied(mine.published, tmp_path / "copy")
        calls += [
            lambda: proposal(mine, tmp_path / "copy"),
            lambda: mine.runs.promote("tiny", mine.published.run, when="t", why="w", who="amal"),
            lambda: mine.runs.offer("tiny", mine.published.run, "t"),
            lambda: build(starting(mine.recipe, steps=3), mine.store),
            lambda: plan(starting(mine.recipe, steps=3), mine.store),
            lambda: mine.runs.package_folder(mine.published.run),  # which is served, tested and exported
        ]
    calls.append(lambda: build(mine.recipe.model_copy(update={"seed": 8}), mine.store))
    for call in calls:
        with pytest.raises(StoreError, match=f"{file}: changed since the run was published.*restore it"):
            call()
    assert len(mine.runs.ids()) == 1


def test_a_hostile_package_is_refused_before_anything_is_written(mine: Built, tmp_path: Path) -> None:
    package = edited(mine.published, tmp_path / "package")
    before = mine.store.artifacts().keys()
    for name, content in (("loader.py", b"import os\n"), ("extra.py", b"print(1)\n")):
        hostile = tmp_path / name
        shutil.copytree(package, hostile)
        (hostile / name).write_bytes(content)
        with pytest.raises(PackageError, match=name):
            candidate(mine.runs, hostile, "why", "who")
    linked = tmp_path / "linked"
    shutil.copytree(package, linked)
    (linked / "weights.py").unlink()
    (linked / "weights.py").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match=r"weights\.py"):
        candidate(mine.runs, linked, "why", "who")
    assert mine.store.artifacts().keys() == before


def test_a_package_that_changes_while_it_is_read_is_refused(mine: Built, tmp_path: Path) -> None:
    package = edited(mine.published, tmp_path / "package")
    found = candidate(mine.runs, package, "why", "who")
    scale_row(package, "embedding.weight", WORD, 2.0)
    seal(package, "changed meanwhile")
    with pytest.raises(PackageError, match="changed while it was copied; propose it again"):
        propose(found, mine.store)
    shutil.rmtree(package)
    with pytest.raises(PackageError, match="not a folder"):
        propose(found, mine.store)


# -- unknown lineage ------------------------------------------------------------------------------


def imported(mine: Built, folder: Path) -> Path:
    """The champion's model, as a package that no run exported."""
    package = read(mine.published.folder / "model")
    write(
        folder, config=package.config, vocabulary=package.vocabulary, weights=package.weights, card="# imported\n",
        provenance={},
    )  # fmt: skip
    return folder


def test_an_imported_package_waits_for_a_person(mine: Built, tmp_path: Path) -> None:
    package = imported(mine, tmp_path / "package")
    with pytest.raises(PackageError, match=r"no run in \S+ exported it, .* name them with --recipe"):
        candidate(mine.runs, package, "why", "who")
    made = proposal(mine, package, mine.recipe)
    assert made.verdict.failed() == ["lineage"], made.decision
    assert (made.waits, made.champion) == (True, False)
    assert exceptions(made.verdict) == {"unknown-lineage": ("lineage",)}
    assert "--accept-unknown-lineage" in made.decision
    assert made.record.origin == "a package that no run of this store exported"
    card = (made.folder / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "It was not trained here, and what it has read is not known." in card
    assert "scratch" not in card
    assert made.run in find(mine.runs, sentences(1)[0]).unknown
    with pytest.raises(StoreError, match="not known what its model has read: no run of this store"):
        trace(mine.runs, made.run, sentences(1)[0])
    mine.runs.promote("tiny", made.run, when="2026-01-01T00:00:00+00:00", why="trusted", who="amal",
                      accepted=["unknown-lineage"])  # fmt: skip
    with pytest.raises(TrainingError, match=rf"texts that run {made.run} has read"):
        build(starting(mine.recipe), mine.store)


def test_a_package_of_another_block_is_proposed_with_its_own_shape(mine: Built, tmp_path: Path) -> None:
    vocabulary = read(mine.published.folder / "model").vocabulary
    shape: dict[str, Any] = {
        "block": "llama", "num_kv_heads": 1, "head_dim": 6, "hidden_dim": 20, "rope_base": 500.0, "norm_epsilon": 1e-5,
        "qk_norm": True,
    }  # fmt: skip
    for name, context in (("package", 24), ("short", 1)):
        config = ModelConfig(len(vocabulary.words), 15, 2, 1, context, **shape)
        weights = random_tensors(config.tensor_shapes(), 0, 0.1)
        write(
            tmp_path / name, config=config, vocabulary=vocabulary, weights=weights, card="# imported\n", provenance={}
        )
    made = proposal(mine, tmp_path / "package", mine.recipe)
    assert not made.champion
    model = mine.runs.record(made.run).recipe.model
    assert {name: getattr(model, name) for name in shape} == shape
    assert (model.dim, model.num_heads, model.max_seq_len) == (15, 2, 24)
    with pytest.raises(PackageError, match="no recipe can have this architecture: max_seq_len: "):
        candidate(mine.runs, tmp_path / "short", "why", "who", mine.recipe)


def test_more_than_an_edit_waits_for_a_person(mine: Built, tmp_path: Path) -> None:
    """Provenance can be copied into a package that was trained elsewhere on the test documents."""
    before = read(mine.published.folder / "model")
    generator = np.random.default_rng(0)
    weights = {
        name: (tensor + 1e-6 * generator.standard_normal(tensor.shape)).astype(np.float32)
        for name, tensor in before.weights.items()
    }
    write(
        tmp_path / "package", config=before.config, vocabulary=before.vocabulary, weights=weights, card="# mine\n",
        provenance=before.manifest["provenance"],
    )  # fmt: skip
    found = candidate(mine.runs, tmp_path / "package", "fine-tuned", "amal")
    assert found.lineage[0].run == mine.published.run
    assert "more than the 10% of an edit: it may have been trained" in found.proposal.unknown
    made = propose(found, mine.store)
    assert "lineage" in made.verdict.failed()
    assert not made.champion
    assert "seen" not in made.record.artifacts
    child = edited(made, tmp_path / "child")
    assert "is an edit of run" in candidate(mine.runs, child, "a small edit of it", "amal").proposal.unknown


def test_small_edits_of_edits_are_no_way_around_it(mine: Built, tmp_path: Path) -> None:
    """Each of fewer values than an edit may have; no gate has to pass those between."""
    made, shares = mine.published, []
    for step in range(4):
        package = read(made.folder / "model")
        weights = {name: tensor.copy() for name, tensor in package.weights.items()}
        rows = slice(80 * step, 80 * (step + 1))
        for name in ("embedding.weight", "lm_head.weight"):
            if name in weights:
                weights[name][rows] += 0.001
        write(
            tmp_path / f"package{step}", config=package.config, vocabulary=package.vocabulary, weights=weights,
            card="# mine\n", provenance=package.manifest["provenance"],
        )  # fmt: skip
        found = candidate(mine.runs, tmp_path / f"package{step}", "a part of it", "amal")
        shares.append(found.proposal.share)
        assert (found.proposal.unknown == "") == (shares[-1] <= EDITED)
        made = propose(replace(found, only_judged=True), mine.store)
    steps = np.diff([0.0, *shares])
    assert max(steps) <= EDITED, "each is an edit"
    assert shares[-1] == pytest.approx(4 * steps[0])
    assert "and the edits before it, more than the 10% of an edit" in found.proposal.unknown


def test_another_storage_type_is_no_training(mine: Built, tmp_path: Path) -> None:
    before = read(mine.published.folder / "model")
    write(
        tmp_path / "package", config=before.config, vocabulary=before.vocabulary, weights=before.weights,
        card="# small\n", provenance=before.manifest["provenance"], dtype="q8",
    )  # fmt: skip
    assert candidate(mine.runs, tmp_path / "package", "smaller", "amal").proposal.unknown == ""


def test_a_parent_without_a_record_of_what_it_read(mine: Built, tmp_path: Path) -> None:
    shutil.rmtree(mine.store.artifact("seen", mine.published.record.artifacts["seen"][0]).path)
    found = candidate(mine.runs, edited(mine.published, tmp_path / "package"), "why", "who")
    assert found.seen is None
    assert "was deleted or damaged" in found.proposal.unknown


# -- words ----------------------------------------------------------------------------------------


def test_an_edited_vocabulary_is_measured_with_its_own_tokens(mine: Built, tmp_path: Path) -> None:
    package = copied(mine.published, tmp_path / "package")
    words = read(package).vocabulary.words
    first, second = pair(words)
    add_token(package, first + second)
    seal(package, "one more word")
    found = candidate(mine.runs, package, "a word", "amal")
    assert found.tokenizer is None
    assert found.proposal.unknown == ""
    made = propose(found, mine.store)
    assert "vocab" not in made.record.artifacts
    assert made.record.artifacts["tokenize"] != mine.published.record.artifacts["tokenize"]
    integrity = mine.runs.report(made.run).integrity
    assert integrity.trained_ids_agree
    assert integrity.tokenizer_agrees
    assert integrity.intact


def pair(words: tuple[str, ...]) -> tuple[str, str]:
    """Two tokens that make a new one."""
    known = [word for word in words if len(word) == 1 and word.isalpha()]
    return next((a, b) for a in known for b in known if a + b not in words)


# -- afterwards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["champion", "continue"])
def test_a_night_after_a_promoted_edit_keeps_the_edit(
    start: str, after: Built, caplog: pytest.LogCaptureFixture
) -> None:
    """A build like its parent's must not find the parent's training, which has not the edit."""
    night = build(starting(after.recipe, start, steps=60), after.store)
    assert night.record.parent == after.published.run
    assert night.record.lineage[0].package == after.runs.package(after.published.run).package
    assert night.record.lineage[1].changes[0].startswith("edited: 1. louder")
    assert night.record.lineage[0].state == ""
    assert not night.cached
    said = f"run {after.published.run} is an edit, and not a training that can be continued" in caplog.text
    assert said == (start == "continue")
    again = build(starting(after.recipe, start, steps=60), after.store)
    assert (again.run, again.cached) == (night.run, True)
    found = reproduce(after.store, night.run, Store(after.store.root.parent / "fresh"), lineage=True)
    assert found.matches, [row for row in found.rows if not row.matches]
    assert any("is a proposal: its package and its corpus were copied" in note for note in found.notes)


def test_the_plan_after_an_edit_counts_all_steps(after: Built) -> None:
    """Its weights alone are taken, so that nothing is continued."""
    planned = plan(starting(after.recipe, "continue", steps=61), after.store)
    assert [part.amount for part in planned.work if part.stage == "train"] == [61]


def test_a_proposal_is_measured_again(after: Built, tmp_path: Path) -> None:
    run = after.published.run
    found = reproduce(after.store, run, Store(tmp_path / "fresh"))
    assert found.matches, found.rows
    assert {row.stage for row in found.rows} == {"propose", "tokenize", "evaluate", "gate", "run"}
    assert "no recipe gives the weights of a proposal" in found.basis
    shutil.rmtree(after.store.reference("propose", after.published.record.artifacts["propose"][0]).path)
    with pytest.raises(StoreError, match=r"is a proposal, whose package as it was proposed was deleted"):
        reproduce(after.store, run, Store(tmp_path / "another"))


def test_the_champion_is_measured_on_the_current_text(after: Built) -> None:
    record = after.published.record
    corpus = after.store.artifact("prepare", record.artifacts["prepare"][0])
    tokens = [after.store.artifact("tokenize", key) for key in record.artifacts["tokenize"]]
    assert remeasure(after.store, after.recipe, after.published.run, corpus, tokens).passed


def test_what_an_edit_has_read_is_what_its_parent_has(after: Built) -> None:
    text = sentences(1)[0]
    assert {after.published.run, after.published.record.parent} <= find(after.runs, text).readers.keys()
    traced = trace(after.runs, after.published.run, text)
    assert traced.searched == (after.published.record.parent,)
    assert traced.covered == len(text.split())


def test_what_is_forgotten_starts_before_the_edit_or_from_it(after: Built, tmp_path: Path) -> None:
    """The edit is kept where its parent has not read the text, and lost, with its parent, where it has."""
    entries = tmp_path / "exclude.txt"
    record, corpus = (
        after.published.record,
        after.store.artifact("prepare", after.published.record.artifacts["prepare"][0]),
    )
    shards = shards_of(corpus, "train")
    read_ = next(batch.column("text")[0].as_py() for shard in shards for batch in read_texts(shard.path))
    for text, start, count in ((read_, "", 2), (sentences(1, seed=99)[0] * 2, after.published.run, 0)):
        entries.write_text(text + "\n", encoding="utf-8")
        excluded = Excluded.load(entries)
        assert last_without(after.recipe, excluded, after.runs) == start
        assert [run for run in (record.parent, after.published.run) if run in readers(after.runs, excluded)] == [
            record.parent, after.published.run,
        ][:count]  # fmt: skip


def test_garbage_collection_keeps_what_was_proposed(after: Built) -> None:
    record = after.published.record
    collect(after.store, 1, delete=True, fresh_seconds=-1.0)
    assert after.runs.ids() == [record.parent, after.published.run]
    for stage in (Propose.name, "evaluate", "gate", "prepare", "seen"):
        assert after.store.artifact(stage, record.artifacts[stage][0])


def test_parents_by_provenance(passed: Built) -> None:
    manifest = json.loads((passed.published.folder / "model" / "manifest.json").read_text(encoding="utf-8"))
    provenance = manifest["provenance"]
    parent = passed.published.record.parent
    assert parent_of(passed.runs, provenance) == passed.published.run
    assert parent_of(passed.runs, {key: text for key, text in provenance.items() if key != "proposal"}) == parent
    assert parent_of(passed.runs, {**provenance, "proposal": "0" * 64, "seen": "0" * 64}) is None
    assert parent_of(passed.runs, {}) is None
    assert parent_of(passed.runs, {"proposal": ""}) is None
    assert verify(passed.published.folder / "model") == []
