"""Keeping the champion's tokenizer while it fits new text; and the work and time that a plan says."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qalam_core.corpus.sources import resolve
from qalam_core.errors import StoreError
from qalam_core.pipeline.audit import reproduce
from qalam_core.pipeline.build import InPlace, build, ingested, read_by
from qalam_core.pipeline.plan import plan
from qalam_core.pipeline.prepare import Prepare
from qalam_core.pipeline.tokenize import Tokenize
from qalam_core.pipeline.vocab import TOKENIZER, EarlierTokenizer, Keeping, Vocab, VocabFacts
from qalam_core.recipe import Recipe
from qalam_core.reports.tables import kept_text
from qalam_core.runs import KeptTokenizer
from qalam_core.store import Artifact, Store
from tests.conftest import sentences, tiny_recipe

FOREIGN = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"


def foreign(count: int) -> list[str]:
    """Documents of words that no sentence has."""
    random_ = random.Random(3)
    return [" ".join("".join(random_.choices(FOREIGN, k=6)) for _ in range(20)) for _ in range(count)]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(store: Store, recipe: Recipe) -> Artifact:
    executor = InPlace(store)
    return executor.run(Prepare.of(recipe, ingested(recipe, resolve(recipe.corpus.sources), executor)))


@pytest.mark.parametrize(("new", "kept"), [(sentences(1500)[400:], True), (foreign(600), False), (foreign(20), True)])
def test_it_is_kept_while_it_fits_enough_new_text(new: list[str], kept: bool, tmp_path: Path, store: Store) -> None:
    old = sentences(400)
    before = prepared(store, tiny_recipe(write(tmp_path / "a.jsonl", old)))
    recipe = tiny_recipe(write(tmp_path / "b.jsonl", [*old, *new]))
    after = prepared(store, recipe)
    first = store.build(Vocab.of(recipe, before))
    facts = first.facts(VocabFacts)
    earlier = EarlierTokenizer(
        "tiny-1",
        first.file(TOKENIZER),
        read_by(before, None, InPlace(store))[-1],
        Keeping(before=facts.fit, limit=0.05),
    )
    stage = Vocab.of(recipe, after, earlier)
    second = store.build(stage)
    judged = second.facts(VocabFacts).judged
    assert judged
    assert judged.kept == kept
    assert (second.file(TOKENIZER).digest == first.file(TOKENIZER).digest) == kept
    assert judged.new.documents == pytest.approx(0.8 * len(new), rel=0.3)  # those of training, and no others
    assert (judged.regrown is None) == kept
    # a baseline is that of the text that a tokenizer was trained on, however often it is kept
    assert (second.facts(VocabFacts).fit == facts.fit) == kept
    if not kept:
        assert judged.regrown
        assert judged.regrown.tokens < judged.new.tokens
        assert 260 <= judged.shared < 320
    said = kept_text(KeptTokenizer(run="tiny-1", artifact="", content="", seen="", judged=judged))
    assert said.startswith("kept from run tiny-1:" if kept else "trained anew, and not kept from run tiny-1:")
    assert ("With the new one they take" in said) != kept
    assert ("too little text" in said) == (len(new) == 20)
    # shards that the run has read are skipped, and the figures are the same
    read = frozenset(shard.digest for shard in stage.train)
    assert Vocab.of(recipe, after, replace(earlier, shards=read)).identity == stage.identity
    # a shard keeps its tokens under a tokenizer with the same content
    same = [a.identity == b.identity for a, b in zip(
        Tokenize.all_of(after, first), Tokenize.all_of(after, second), strict=True)]  # fmt: skip
    assert all(same) if kept else not any(same)


def test_a_tokenizer_that_was_damaged_is_not_kept(tmp_path: Path, store: Store) -> None:
    recipe = tiny_recipe(write(tmp_path / "a.jsonl", sentences(100)))
    corpus = prepared(store, recipe)
    first = store.build(Vocab.of(recipe, corpus))
    keeping = Keeping(before=first.facts(VocabFacts).fit, limit=0.05)
    earlier = EarlierTokenizer("tiny-1", first.file(TOKENIZER), read_by(corpus, None, InPlace(store))[-1], keeping)
    (first.path / TOKENIZER).write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match=r"missing or damaged, and the tokenizer of run tiny-1 was to be kept"):
        store.build(Vocab.of(recipe, corpus, earlier))


def nightly(files: Sequence[Path], **tokenizer: Any) -> Recipe:
    sources = [{"path": str(path), "name": "news"} for path in files]
    return tiny_recipe(
        files[0], corpus={"sources": sources}, tokenizer={"keep": "champion", **tokenizer},
        train={"start": "champion", "steps": 10}, gate={"tolerance": 5.0, "max_copied": 1.0},
    )  # fmt: skip


def test_a_chain_of_nights(processes: None, tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Kept, kept without new text, kept over a kept one, built again from text alone, then a vocabulary of another
    size."""
    texts = sentences(700)
    parts = {"a": texts[:400], "b": texts[400:550], "c": texts[550:]}
    days = [write(tmp_path / f"{name}.jsonl", part) for name, part in parts.items()]
    first = build(nightly(days[:1]), store)
    assert first.promoted
    assert first.record.tokenizer is None

    recipe = nightly(days[:2])
    found = plan(recipe, store)
    (row,) = [row for row in found.rows if row.stage == "vocab"]
    assert row.reasons[-1].startswith(f"keeps the tokenizer of run {first.run}, unless")
    work = {part.stage: part.amount for part in found.work}
    size = days[1].stat().st_size
    assert (work["ingest"], work["train"]) == (size, 10)
    assert size <= work["filter"] <= size + days[0].stat().st_size  # neighbouring small files are filtered together
    assert 0.5 * size < work["tokenize"] < size  # the new text, without what is held out for the test
    assert [part.stage for part in found.work if part.seconds is None] == ["fold"]  # there was none before
    second = build(recipe, store)
    assert second.promoted
    assert set(second.record.built) == set(work)
    kept = second.record.tokenizer
    assert kept
    assert (kept.run, kept.judged.kept) == (first.run, True)
    for name in ("model/MODEL_CARD.md", "report.md", "report.html"):
        assert f"kept from run {first.run}" in (second.folder / name).read_text(encoding="utf-8")

    assert build(recipe, store).cached  # a night without new text
    assert plan(recipe, store).complete

    third = build(nightly(days), store)
    again = third.record.tokenizer
    assert again
    assert (again.run, again.judged.before) == (second.run, kept.judged.before)
    assert len({(each.folder / "tokenizer.json").read_bytes() for each in (first, second, third)}) == 1

    for name, lineage in ((second.run, True), (third.run, False)):
        rebuilt = reproduce(store, name, Store(tmp_path / f"fresh-{name}"), lineage=lineage)
        assert rebuilt.matches
        assert ("was copied" in "".join(rebuilt.notes)) != lineage

    with caplog.at_level(logging.WARNING):
        assert not plan(nightly(days, vocab_size=330), store).complete
    assert f"that of champion {third.run} is not kept: vocab_size: 320 -> 330" in caplog.text
