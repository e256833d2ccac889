"""What a chain of warm starts has read: no leak into the held-out splits, the same account everywhere, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from qalam_core.corpus.fingerprints import Fingerprints, document_hashes, folded
from qalam_core.corpus.prepare import HELD_OUT, CorpusFacts
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import CorpusError, TrainingError
from qalam_core.evaluation.contamination import repetition
from qalam_core.package.read import read
from qalam_core.pipeline.build import InPlace, build, ingested, read_by
from qalam_core.pipeline.fingerprint import Fingerprint, FingerprintSettings
from qalam_core.pipeline.prepare import Prepare, shards_of
from qalam_core.pipeline.publish import Published
from qalam_core.pipeline.seen import Seen, SeenSettings
from qalam_core.recipe import Recipe
from qalam_core.runs import Runs, SeenFacts
from qalam_core.store import Artifact, Store
from tests.conftest import sentences, tiny_recipe


def write(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepared(store: Store, recipe: Recipe, seen: Artifact | None = None) -> Artifact:
    executor = InPlace(store)
    return executor.run(Prepare.of(recipe, ingested(recipe, resolve(recipe.corpus.sources), executor), seen))


def split(corpus: Artifact, *names: str) -> list[str]:
    shards = shards_of(corpus, *names)
    return [text for shard in shards for batch in read_texts(shard.path) for text in batch.column("text").to_pylist()]


# -- leaks ----------------------------------------------------------------------------------------

TEXTS = sentences(600)
"""The parent's corpus."""


def republished(text: str) -> str:
    return f"{text} أعيد نشر هذا النص"


ARMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a parent that held out less": (TEXTS, {}),
    "another share of the corpus": (TEXTS, {"test": 0.5, "validation": 0.1}),
    "every text republished with an added line": ([*map(republished, TEXTS)], {}),
    "another normalisation": (TEXTS, {"normalisation": "search"}),
    "other splits by a prefix": ([f"خبر: {text}" for text in TEXTS], {}),
    "documents cut in half": ([" ".join(text.split()[: len(text.split()) // 2 + 1]) for text in TEXTS], {}),
}
PARENT = {"a parent that held out less": {"test": 0.01, "validation": 0.01}}


@pytest.mark.parametrize("arm", ARMS)
def test_what_an_ancestor_has_read_is_not_held_out(arm: str, tmp_path: Path, store: Store) -> None:
    texts, settings = ARMS[arm]
    before = tiny_recipe(write(tmp_path / "before.jsonl", TEXTS), corpus=PARENT.get(arm, {}))
    *_, seen = read_by(prepared(store, before), None, InPlace(store))
    after = tiny_recipe(
        write(tmp_path / "after.jsonl", [*texts, *sentences(900, seed=5)[600:]]), corpus={"min_chars": 5, **settings}
    )
    without, corpus = prepared(store, after), prepared(store, after, seen)
    known = Fingerprints.load(seen.path)
    for name in ("test", "validation"):
        leaked = known.meets(pa.array(split(without, name))).read
        assert leaked.sum() > 5, "the arm leaks nothing"
        assert not known.meets(pa.array(split(corpus, name))).read.any()
    facts = corpus.facts(CorpusFacts)
    moved = len(split(without, "test", "validation")) - len(split(corpus, "test", "validation"))
    assert facts.seen_by_ancestor == sum(part.seen_by_ancestor for part in facts.sources.values()) == moved
    assert sorted(split(corpus, "train", "test", "validation")) == sorted(
        split(without, "train", "test", "validation")
    ), "no document is lost"


def test_an_honest_corpus_that_grows_keeps_its_held_out_documents(tmp_path: Path, store: Store) -> None:
    before = tiny_recipe(write(tmp_path / "a.jsonl", TEXTS))
    corpus = prepared(store, before)
    *_, seen = read_by(corpus, None, InPlace(store))
    after = tiny_recipe(write(tmp_path / "b.jsonl", sentences(1200)))
    grown = prepared(store, after, seen)
    facts = grown.facts(CorpusFacts)
    assert facts.seen_by_ancestor <= 0.005 * facts.kept  # texts of few words resemble each other
    assert len(set(split(corpus, "test")) & set(split(grown, "train"))) <= facts.seen_by_ancestor


def test_the_control_is_of_documents_that_no_ancestor_has_read(tmp_path: Path, store: Store) -> None:
    """As those that are held out: else a corpus that an ancestor has read would excuse any leak."""
    *_, parent = read_by(prepared(store, tiny_recipe(write(tmp_path / "a.jsonl", TEXTS))), None, InPlace(store))
    new = sentences(1200)[600:]

    def child(name: str, texts: list[str]) -> Artifact:
        corpus, executor = prepared(store, tiny_recipe(write(tmp_path / name, texts)), parent), InPlace(store)
        prints = tuple(executor.map(Fingerprint.all_of(corpus)))
        held_out = corpus.file(HELD_OUT)
        return executor.run(Seen(SeenSettings(), prints, shards_of(corpus, "train"), held_out, parent))

    own = parent.facts(SeenFacts).repetition
    assert 20 < own.documents < 90  # about a tenth
    assert child("b.jsonl", TEXTS).facts(SeenFacts).repetition == own  # the parent's alone
    assert child("c.jsonl", new).facts(SeenFacts).repetition.documents > own.documents + 20


@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS[200:], *sentences(900, seed=5)[600:]], [*TEXTS, "؟!", "..."]])
def test_what_is_looked_up_is_what_folding_all_texts_again_gives(
    texts: list[str], tmp_path: Path, store: Store
) -> None:
    """The record, what is gone and the control, when all, some or none of the text was read by the parent."""
    settings = {"corpus": {"min_arabic": 0.0, "min_chars": 1}}
    *_, parent = read_by(prepared(store, tiny_recipe(write(tmp_path / "a.jsonl", TEXTS), **settings)), None,
                         InPlace(store))  # fmt: skip
    corpus = prepared(store, tiny_recipe(write(tmp_path / "b.jsonl", texts), **settings), parent)
    start = SimpleNamespace(seen=parent)
    *_, seen = read_by(corpus, start, InPlace(store))  # type: ignore[arg-type]
    before = Fingerprints.load(parent.path)
    control = FingerprintSettings.of(corpus).control
    batches = [batch for shard in shards_of(corpus, "train") for batch in read_texts(shard.path)]
    sample = [batch.filter(control(batch)) for batch in batches]
    others = Fingerprints.of(batch.filter(pc.invert(control(batch))) for batch in batches)
    own = Fingerprints.union([others, Fingerprints.of(sample)])
    (tmp_path / "expected").mkdir()
    Fingerprints.union([own, before]).save(tmp_path / "expected")
    for path in (tmp_path / "expected").iterdir():
        assert path.read_bytes() == (seen.path / path.name).read_bytes(), path.name
    held_out = document_hashes(folded(pa.array(split(corpus, "test", "validation"), pa.large_string())))
    facts, of_parent = seen.facts(SeenFacts), parent.facts(SeenFacts)
    assert facts.own == own.counts()
    assert facts.gone == before.absent_from(np.unique(np.concatenate([own.documents, held_out])))
    control_texts = pa.Table.from_batches(sample).column("text").combine_chunks()
    unread = control_texts.filter(pa.array(~before.meets(control_texts).read))
    assert facts.repetition == repetition(unread, others).pooled(of_parent.repetition)
    assert len(unread) > 10 or texts != [*TEXTS[200:], *sentences(900, seed=5)[600:]]


def test_a_corpus_that_was_read_whole_is_one_line(tmp_path: Path, store: Store) -> None:
    """Never a test split of what the model knows, and never an empty one."""
    recipe = tiny_recipe(write(tmp_path / "a.jsonl", TEXTS), corpus={"test": 0.001, "validation": 0.0})
    first = prepared(store, recipe)
    *_, seen = read_by(first, None, InPlace(store))
    only = write(tmp_path / "b.jsonl", split(first, "train"))
    with pytest.raises(CorpusError, match=r"were read by an ancestor of the model; add new text"):
        prepared(store, tiny_recipe(only), seen)


# -- a chain --------------------------------------------------------------------------------------


class Chain(NamedTuple):
    """Three nights: each begins with the weights of the one before; the last has lost 30 documents."""

    recipe: Recipe
    store: Store
    nights: tuple[Published, ...]


@pytest.fixture(scope="module")
def chain(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    train = {"start": "champion", "steps": 20, "checkpoint_every": 20}
    recipe = tiny_recipe(folder / "stories.jsonl", train=train, gate={"tolerance": 0.9})
    store, texts = Store(folder / "store"), sentences(520)
    nights = []
    for night in (texts[:400], texts[:460], texts[30:]):
        write(folder / "stories.jsonl", night)
        nights.append(build(recipe, store))
    return Chain(recipe, store, tuple(nights))


def test_every_account_of_a_chain_is_the_same(chain: Chain) -> None:
    first, second, third = (night.record for night in chain.nights)
    assert all(night.promoted for night in chain.nights)
    assert first.lineage == ()
    assert [one.run for one in second.lineage] == [chain.nights[0].run]
    assert [one.run for one in third.lineage] == [chain.nights[1].run, chain.nights[0].run]
    assert third.lineage[1:] == second.lineage
    assert third.lineage[0].documents == second.seen.own
    assert third.lineage[0].corpus == second.artifacts["prepare"][0]
    total = sum(third.seen.lineage.values())
    assert total == sum(third.seen.own.values()) + sum(third.seen.gone.values())
    assert third.seen.gone["stories"] > 15
    model = chain.nights[2].folder / "model"
    card = (model / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"from the weights of run {chain.nights[1].run}" in card
    assert f"{total} distinct documents in all" in card
    assert f"(stories {third.seen.gone['stories']}); the model may still repeat them" in card
    assert f"| {chain.nights[0].run} | stories {first.seen.own['stories']} |" in card
    assert "scratch" not in card
    assert "من الصفر" not in card
    provenance = read(model).manifest["provenance"]
    parent = Runs(chain.store).package(chain.nights[1].run).package
    assert provenance["initial_weights"] == f"run {chain.nights[1].run}, package {parent}"
    assert (provenance["ancestors"], provenance["seen"]) == ("2", third.artifacts["seen"][0])
    cold = read(chain.nights[0].folder / "model").manifest["provenance"]
    assert (cold["ancestors"], cold["initial_weights"]) == ("0", "random")


def test_what_was_read_is_the_union_of_all_nights(chain: Chain) -> None:
    seen = Fingerprints.load(chain.store.artifact("seen", chain.nights[2].record.artifacts["seen"][0]).path)
    for night in chain.nights:
        corpus = chain.store.artifact("prepare", night.record.artifacts["prepare"][0])
        assert seen.meets(pa.array(split(corpus, "train"))).exactly.all()
    held_out = split(corpus, "test", "validation")
    assert not seen.meets(pa.array(held_out)).read.any()


def test_a_night_without_news_is_reused(chain: Chain) -> None:
    again = build(chain.recipe, chain.store)
    assert again.cached
    assert again.run == chain.nights[2].run


@pytest.fixture
def copy(chain: Chain, tmp_path: Path) -> Chain:
    """A copy that a test may change, in which the recipe's text is the last night's."""
    shutil.copytree(chain.store.root, tmp_path / "store")
    return chain._replace(store=Store(tmp_path / "store"))


@pytest.mark.parametrize("named", [True, False])
def test_a_parent_without_a_record_of_what_it_read_is_refused(named: bool, copy: Chain) -> None:
    night = copy.nights[2]
    shutil.rmtree(copy.store.artifact("seen", night.record.artifacts["seen"][0]).path)
    train = copy.recipe.train.model_copy(update={"start": night.run if named else "champion", "steps": 21})
    with pytest.raises(TrainingError, match=rf"texts that run {night.run} has read.*build its recipe again"):
        build(copy.recipe.model_copy(update={"train": train}), copy.store)


@pytest.mark.parametrize("start", ["champion", "continue"])
def test_a_lineage_that_read_an_excluded_text_is_refused(start: str, copy: Chain, tmp_path: Path) -> None:
    """Also when only the first night had it."""
    first = copy.store.artifact("prepare", copy.nights[0].record.artifacts["prepare"][0])
    gone = next(text for text in split(first, "train") if text in sentences(30))
    (tmp_path / "exclude.txt").write_text(gone + "\n", encoding="utf-8")
    corpus = copy.recipe.corpus.model_copy(update={"exclude": str(tmp_path / "exclude.txt")})
    train = copy.recipe.train.model_copy(update={"start": start})
    with pytest.raises(TrainingError, match=r"has read 1 of the texts in .*exclude\.txt; `qalam forget`"):
        build(copy.recipe.model_copy(update={"corpus": corpus, "train": train}), copy.store)
