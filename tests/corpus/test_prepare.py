"""Preparing a corpus: every document is kept once or rejected with a reason, and keeps its split."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus import splits as module
from qalam_core.corpus.filtered import REJECTS
from qalam_core.corpus.filters import REASONS, FilterSettings, filters_by_slice, weights_by_slice
from qalam_core.corpus.prepare import COPIES, CorpusFacts, SliceCounts, SplitCounts, read_rejects
from qalam_core.corpus.readers import ingest
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.splits import SPLITS, Shards, Shares, read_split, read_texts
from qalam_core.corpus.writer import SCHEMA, IngestFacts
from qalam_core.errors import CorpusError, RecipeError
from qalam_core.filter_profiles import FILTER_PROFILES
from qalam_core.recipe import Corpus, Filters, Normalisation, Source
from tests.conftest import examples
from tests.corpus.preparing import prepare_files

Document = tuple[str, str]  # (slice, text)


def part(**options: Any) -> Corpus:
    """A corpus section that keeps everything, unless `options` say otherwise."""
    return Corpus(
        sources=(Source(path="x"),), **{"min_chars": 1, "filters": "none", "near_duplicates": False, **options}
    )


def write(path: Path, documents: Sequence[Document], batch: int = 1000, cut: frozenset[int] = frozenset()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ipc.new_file(path, SCHEMA) as writer:
        for start in range(0, len(documents), batch):
            rows = documents[start : start + batch]
            writer.write_batch(
                pa.record_batch(
                    [
                        [text for _, text in rows],
                        [name for name, _ in rows],
                        [start + i in cut for i in range(len(rows))],
                    ],
                    schema=SCHEMA,
                )
            )
    return path


def run(folder: Path, documents: Sequence[Document], corpus: Corpus, **options: Any) -> CorpusFacts:
    """Prepare documents, those of a slice in one file."""
    names = dict.fromkeys(name for name, _ in documents)
    files = [
        (name, write(folder / f"{name}.arrow", [document for document in documents if document[0] == name], **options))
        for name in names
    ]
    return prepare_files(files, corpus, folder / "out")


def kept(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    return {
        split: [
            (row["id"], row["source"], row["text"])
            for shard in read_split(folder / "out", split)
            for batch in read_texts(shard)
            for row in batch.to_pylist()
        ]
        for split in SPLITS
    }


def rejected(folder: Path) -> list[dict[str, str]]:
    with ipc.open_file(folder / "out" / REJECTS) as reader:
        rows: list[dict[str, str]] = reader.read_all().to_pylist()
    return rows


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def sentences(count: int, seed: int = 0, name: str = "news") -> list[Document]:
    rng = random.Random(seed)
    words = ["قال", "في", "من", "الكتاب", "السلام", "على", "يوم", "بيت", "كبير", "مدينة"]
    return [(name, " ".join(rng.choices(words, k=12)) + f" {seed} {n}") for n in range(count)]


def test_each_rule_rejects_with_its_reason(tmp_path: Path) -> None:
    good = sentences(100)
    bad = {
        "empty": "\u200f\u064b ",
        "too_short": "سلام",
        "too_long": "كلمة " * 100,
        "not_arabic": "an English sentence مع كلمتين",
        "duplicate": good[3][1].replace("ا", "ا\u064e"),  # the same once normalised
    }
    digits = [("news", "١٢٣ 456 789 ١٢٣ 456 789")]  # no letters at all: not Arabic text
    documents = good + [("news", text) for text in bad.values()] + digits
    facts = run(tmp_path, documents, part(min_chars=10, max_chars=300))
    expected = {**bad, "duplicate": good[3][1]}  # of duplicates the normalised text
    assert sorted((row["reason"], row["text"]) for row in rejected(tmp_path)) == sorted(
        [*expected.items(), ("not_arabic", digits[0][1])]
    )
    assert facts.rejected == {**dict.fromkeys(bad, 1), "not_arabic": 2}
    assert set(bad) < set(REASONS)
    assert (facts.read, facts.kept) == (106, 100)
    assert facts.sources == {"news": SliceCounts(read=106, kept=100, repaired=0, rejected=facts.rejected)}


def test_shares_of_arabic_are_of_letters(tmp_path: Path) -> None:
    documents = [*sentences(50), ("news", "اب ab!!! 1234"), ("news", "ابج ab"), ("news", "اب abc")]
    run(tmp_path, documents, part(min_arabic=0.5))
    assert [row["text"] for row in rejected(tmp_path)] == ["اب abc"]
    run(tmp_path, documents, part(min_arabic=0.0))
    assert rejected(tmp_path) == []


@pytest.mark.parametrize("normalisation", ["standard", "vocalised", "search"])
def test_text_is_normalised_and_named_by_its_hash(tmp_path: Path, normalisation: Normalisation) -> None:
    documents = [(name, f"{text} إلى مدرسةٌ\u200f") for name, text in sentences(60)]
    facts = run(tmp_path, documents, part(normalisation=normalisation))
    rows = [row for split in kept(tmp_path).values() for row in split]
    rules = NORMALISATIONS[normalisation]
    assert {text for _, _, text in rows} == {normalise(text, rules) for _, text in documents}
    for key, _, text in rows:
        assert key == hashlib.sha256(text.encode()).hexdigest()[:16]
    for split, texts in kept(tmp_path).items():
        assert facts.splits[split] == SplitCounts(
            documents=len(texts),
            characters=sum(len(text) for _, _, text in texts),
            bytes=sum(len(text.encode()) for _, _, text in texts),
            shards=len(read_split(tmp_path / "out", split)),
        )


def test_the_split_follows_from_the_id(tmp_path: Path) -> None:
    run(tmp_path, sentences(500), part(validation=0.2, test=0.3))
    for split, rows in kept(tmp_path).items():
        for key, _, _ in rows:
            share = int(key, 16) / 2**64
            assert split == ("test" if share < 0.3 else "validation" if share < 0.5 else "train")


def test_a_cut_document_is_too_long_for_any_limit(tmp_path: Path) -> None:
    run(tmp_path, [*sentences(20), ("news", "بداية")], part(min_chars=10), cut=frozenset({20}))
    assert rejected(tmp_path) == [{"text": "بداية", "source": "news", "reason": "too_long"}]


def test_rejects_are_kept_short(tmp_path: Path) -> None:
    run(tmp_path, [*sentences(20), ("news", "ب" * 5000)], part(max_chars=4000))
    assert rejected(tmp_path)[0]["text"] == "ب" * 1000


def test_the_first_of_equal_documents_is_kept_across_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.arrow", sentences(40, name="a"), batch=7)
    second = write(tmp_path / "b.arrow", [*sentences(40, name="b"), *sentences(5, seed=1, name="b")], batch=11)
    facts = prepare_files([("a", first), ("b", second)], part(), tmp_path / "out")
    assert facts.sources["a"] == SliceCounts(read=40, kept=40, repaired=0, rejected={})
    assert facts.sources["b"] == SliceCounts(read=45, kept=5, repaired=0, rejected={"duplicate": 40})


def test_shards_have_about_the_configured_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES", 100_000)
    documents = [("news", f"{'كلمة ' * 500}{n}") for n in range(1000)]  # 4.5 kB each
    facts = run(tmp_path, documents, part(shard_mb=1), batch=64)
    shards = read_split(tmp_path / "out", "train")
    assert [shard.name for shard in shards] == [f"train-{n:05}.arrow" for n in range(len(shards))]
    sizes = [
        sum(len(text.as_py().encode()) for batch in read_texts(shard) for text in batch["text"]) for shard in shards
    ]
    assert all(500_000 <= size <= 2_000_000 for size in sizes[:-1])
    assert len(sizes) == facts.splits["train"].shards > 2
    assert sum(sizes) == facts.splits["train"].bytes


def test_held_out_splits_have_a_limit(tmp_path: Path) -> None:
    """Whose documents are the lowest digests of those without one; a corpus that grows trains on what it held out, and
    holds out nothing that it trained on."""
    documents = [("news", f"{'كلمة ' * 500}{n}") for n in range(2000)]  # 4.5 kB each
    limits = {"validation": 0.2, "test": 0.3, "test_mb": 1, "validation_mb": 1}
    run(tmp_path / "all", documents, part(**{**limits, "test_mb": 0, "validation_mb": 0}), batch=300)
    run(tmp_path / "half", documents[:1000], part(**limits), batch=300)
    facts = run(tmp_path / "most", documents, part(**limits), batch=17)
    every, half, most = (kept(tmp_path / name) for name in ("all", "half", "most"))
    ids = {split: {row[0] for row in rows} for split, rows in most.items()}
    assert sum(map(len, ids.values())) == 2000
    for split in ("validation", "test"):
        assert 990_000 < facts.splits[split].bytes <= 1_000_000
        assert sorted(ids[split]) == sorted(row[0] for row in every[split])[: len(ids[split])]
        assert ids[split].isdisjoint(row[0] for row in half["train"])


def test_a_document_above_the_limit_is_held_out_all_the_same(tmp_path: Path) -> None:
    documents = [("news", f"{'كلمة ' * 130_000}{n}") for n in range(8)]  # 1.2 MB each
    facts = run(tmp_path, documents, part(validation=0.2, test=0.5, test_mb=1, max_chars=10_000_000))
    assert facts.splits["test"].documents == 1


def test_progress_is_in_bytes_and_ends_at_the_total(tmp_path: Path) -> None:
    path = write(tmp_path / "in.arrow", sentences(50), batch=5)
    seen: list[tuple[int, int]] = []
    files = [("a", path), ("b", write(tmp_path / "b.arrow", sentences(50, seed=1, name="b"), batch=5))]
    prepare_files(files, part(), tmp_path / "out", lambda done, total, _="": seen.append((done, total)))
    total = sum(file.stat().st_size for file in tmp_path.glob("out-filtered-*/texts.arrow"))
    assert seen[-1] == (total, total)
    assert len({done for done, _ in seen}) > 10


# -- near-duplicates ------------------------------------------------------------------------------


def page(rng: random.Random, words: int = 120) -> list[str]:
    return ["".join(rng.choices("ابتثجحخدرسشصطعفقكلمنهوي", k=5)) for _ in range(words)]


def family(rng: random.Random, size: int) -> list[str]:
    """Near-duplicates: texts that differ in one word."""
    words = page(rng)
    return [" ".join([*words[:60], "".join(rng.choices("ابتث", k=6)), *words[60:]]) for _ in range(size)]


@settings(max_examples=examples(6), deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_no_cluster_is_in_two_splits_and_its_smallest_digest_is_kept(seed: int, batch: int) -> None:
    rng = random.Random(seed)
    families = [family(rng, rng.randint(1, 5)) for _ in range(15)]
    documents = [(rng.choice("ab"), text) for texts in families for text in texts] + SEEDS["a"] + SEEDS["b"]
    corpus = part(near_duplicates=True, validation=0.3, test=0.3)
    with tempfile.TemporaryDirectory() as name:
        facts = run(Path(name, "1"), documents, corpus, batch=batch)
        splits = kept(Path(name, "1"))
        where = {text: split for split, rows in splits.items() for _, _, text in rows}
        for texts in families:
            remaining = [text for text in texts if text in where]
            assert remaining == [min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())]
        assert facts.rejected.get("near_duplicate", 0) == sum(len(set(texts)) - 1 for texts in families)

        rng.shuffle(documents)
        run(Path(name, "2"), documents, corpus, batch=11)
        again = {text: split for split, rows in kept(Path(name, "2")).items() for _, _, text in rows}
        assert again == where

        # a document that joins a held-out document's cluster later is dropped, or takes its place in the same split
        more = [("a", texts[0] + " زيادة") for texts in families]
        run(Path(name, "3"), [*more, *documents], corpus, batch=11)
        later = {text: split for split, rows in kept(Path(name, "3")).items() for _, _, text in rows}
        for texts, (_, added) in zip(families, more, strict=True):
            [before], [after] = ([t for t in [*texts, added] if t in found] for found in (where, later))
            assert SPLITS.index(later[after]) >= SPLITS.index(where[before])  # towards test, never towards train
            assert after in (before, added)


@settings(max_examples=examples(6), deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40))
def test_copies_are_counted_for_the_document_that_is_kept(seed: int, batch: int) -> None:
    rng = random.Random(seed)
    families = [family(rng, rng.randint(1, 5)) for _ in range(12)]
    repeated = {text: rng.choice([1, 1, 1, 2, 7]) for texts in families for text in texts}
    documents = [(rng.choice("ab"), text) for text, times in repeated.items() for _ in range(times)]
    rng.shuffle(documents)
    documents += SEEDS["a"] + SEEDS["b"]
    with tempfile.TemporaryDirectory() as name:
        facts = run(Path(name), documents, part(near_duplicates=True, validation=0.2, test=0.2), batch=batch)
        ids = {number: text for rows in kept(Path(name)).values() for number, _, text in rows}
        with pa.OSFile(str(Path(name, "out", COPIES))) as file:
            table = pa.ipc.open_file(file).read_all()
    expected = {
        min(texts, key=lambda text: hashlib.sha256(text.encode()).digest()): sum(repeated[text] for text in set(texts))
        for texts in families
    }
    found = {
        ids[f"{number:016x}"]: count
        for number, count in zip(table["id"].to_pylist(), table["copies"].to_pylist(), strict=True)
    }
    assert found == {text: count for text, count in expected.items() if count > 1}
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    assert (facts.with_copies, facts.most_copies) == (len(found), max([1, *found.values()]))


def test_the_spool_is_deleted_and_rejects_are_spread(tmp_path: Path) -> None:
    rng = random.Random(3)
    documents = [("news", text) for _ in range(30) for text in family(rng, 3)] + [("news", "ab")] * 9
    facts = run(tmp_path, documents, part(near_duplicates=True), batch=4)
    assert sorted(content(tmp_path)) == [COPIES, REJECTS, *(f"{split}-00000.arrow" for split in sorted(SPLITS))]
    assert facts.rejected == {"not_arabic": 9, "near_duplicate": 60}
    near = [row["text"] for row in rejected(tmp_path) if row["reason"] == "near_duplicate"]
    assert [text for _, text in read_rejects(tmp_path / "out", "near_duplicate", 100)] == near
    assert list(read_rejects(tmp_path / "out", "near_duplicate", 2)) == [("news", near[0]), ("news", near[-1])]
    assert list(read_rejects(tmp_path / "out", "empty", 5)) == []


# -- filters and repair ---------------------------------------------------------------------------


def test_each_source_has_its_filters(tmp_path: Path) -> None:
    long = "جملة قصيرة من كلمات قليلة في سطر"
    documents = [(name, f"{long} {n}") for n in range(40) for name in ("web", "verse", "x")]
    documents += [("x", "*** --- !!! سلام ... ??? ///"), ("x", "سلام عليكم")]
    sources = (Source(path="a", name="web", filters="web"), Source(path="b", name="verse", filters="none"))
    corpus = part(filters="short", thresholds={"min_words": 9}).model_copy(update={"sources": sources})
    documents += [("web", "من قال " + " ".join(page(random.Random(n), 60)) + " في البيت.") for n in range(10)]
    facts = run(tmp_path, documents, corpus)
    assert facts.sources["web"].rejected["min_words"] == 40
    assert facts.sources["verse"].kept == 40
    assert facts.sources["x"].rejected["min_alphabetic"] == 1


def test_sources_of_one_name_cannot_differ_in_filters(tmp_path: Path) -> None:
    sources = (Source(path="a", name="n", filters="web"), Source(path="b", name="n"))
    corpus = part().model_copy(update={"sources": sources})
    with pytest.raises(RecipeError, match=r'"n" names two sources with different filters \(web and none\)'):
        run(tmp_path, sentences(10), corpus)
    with pytest.raises(RecipeError, match=r'"arr" is not known; did you mean "ar[yz]?"'):
        run(tmp_path, sentences(10), part(filters="web", languages=("arr",)))


def test_sources_of_one_name_cannot_differ_in_weight() -> None:
    sources = (Source(path="a", name="n", weight=2), Source(path="b", name="n"), Source(path="c", weight=0.5))
    with pytest.raises(RecipeError, match=r'"n" names two sources with different weights \(2.0 and 1.0\)'):
        weights_by_slice(part().model_copy(update={"sources": sources}))
    assert weights_by_slice(part().model_copy(update={"sources": sources[1:]})) == {"n": 1.0, "c": 0.5}


def test_repaired_documents_are_counted(tmp_path: Path) -> None:
    good = sentences(60)
    damaged = [("old", text.encode().decode("latin-1")) for _, text in sentences(30, seed=1)]
    facts = run(tmp_path, good + damaged, part(repair=True))
    assert facts.repaired == facts.sources["old"].repaired == 30
    assert facts.sources["news"].repaired == 0
    assert facts.kept == 90
    with pytest.raises(
        CorpusError, match=r"old: a source with no usable documents.*; 30 look as if .* corpus\.repair = "
    ):
        run(tmp_path / "off", good + damaged, part())


def test_damage_that_passes_every_rule_is_counted_where_repair_is_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """UTF-8 that was read as cp1256 consists of Arabic letters."""
    sound = sentences(60)
    damaged = [("old", text.encode().decode("cp1256", "ignore")) for _, text in sentences(30, seed=1)]
    facts = run(tmp_path, sound + damaged, part())
    assert (facts.not_repaired, facts.sources["old"].not_repaired, facts.sources["news"].not_repaired) == (30, 30, 0)
    assert facts.sources["old"].kept
    assert "30 of 90 documents look as if they had been decoded with a wrong encoding" in caplog.text
    caplog.clear()
    assert run(tmp_path / "on", sound + damaged, part(repair=True)).not_repaired == 0
    assert "wrong encoding" not in caplog.text


def test_documents_that_are_repaired_in_part_are_rejected(tmp_path: Path) -> None:
    sound, other = sentences(60), sentences(8, seed=1)
    lost = [("old", f"{text} الفرق والحجم".encode().decode("cp1252", "ignore")) for _, text in other[:5]]
    hopeless = [("old", f"{text} ðŸ˜ ðŸ˜") for _, text in other[5:]]  # emoji without their last byte
    facts = run(tmp_path, [*sound, *lost, *hopeless], part(repair=True))
    assert facts.rejected == {"mojibake": 5}
    assert (facts.repaired, facts.repaired_in_part, facts.not_repaired) == (0, 5, 3)
    assert facts.sources["old"].kept == 3
    assert [source for source, _ in read_rejects(tmp_path / "out", "mojibake", 9)] == ["old"] * 5


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", ["none", "short", "prose", "web"])
def test_a_damaged_document_is_rejected_whatever_its_filters(tmp_path: Path, filters: Filters) -> None:
    damaged = [
        "سيعق\ufffd المؤ\ufffdمر في العاصمة", "\ufffd" * 200, "\ufffd", "\ufffd english \ufffd",
        "سلام \ufffd\u064b" * 90,
    ]  # fmt: skip
    documents = [*sentences(50), *(("old", text) for text in damaged), *sentences(5, seed=1, name="old")]
    thresholds = {"min_words": 3, "min_stop_words": 0, "min_line_punctuation": 0, "min_alphabetic": 0.1}
    facts = run(tmp_path, documents, part(filters=filters, thresholds=thresholds, languages=(), min_chars=5))
    assert facts.rejected["damaged"] == facts.sources["old"].rejected["damaged"] == len(damaged)
    assert facts.replaced == facts.sources["old"].replaced == len(damaged)
    assert facts.sources["news"].replaced == 0


@pytest.mark.parametrize("normalisation", sorted(NORMALISATIONS))
def test_a_lost_letter_makes_no_other_word(tmp_path: Path, normalisation: Normalisation) -> None:
    """Wherever a letter of a kept document is lost, U+FFFD stays in its place."""
    word = "والمستشفيات"
    lost = [f"{word[:place]}\ufffd{word[place + 1 :]}" for place in range(len(word))]
    numbered = zip(lost, sentences(len(lost)), strict=True)
    documents = [("news", f"{text} رقم {name} {'بيت كبير ' * 200}") for name, (_, text) in numbered]
    facts = run(tmp_path, documents, part(normalisation=normalisation, max_damaged=0.01))
    assert (facts.kept, facts.replaced) == (len(lost), len(lost))
    found = {text.split()[-401] for rows in kept(tmp_path).values() for _, _, text in rows}
    assert found == {normalise(name, NORMALISATIONS[normalisation]) for name in lost}
    assert all(name.count("\ufffd") == 1 for name in found)


def test_a_damaged_document_below_the_share_is_kept(tmp_path: Path) -> None:
    documents = [*sentences(50), *(("old", f"{text} بيت\ufffd") for _, text in sentences(20, seed=1))]
    longest = max(len(text) for name, text in documents if name == "old")
    assert run(tmp_path / "1", documents, part(max_damaged=0.5)).sources["old"].kept == 20
    with pytest.raises(
        CorpusError, match=r"old: .*20 damaged \(the share of U\+FFFD.* \(0\.001\); set the source's enc"
    ):
        run(tmp_path / "2", documents, part())
    with pytest.raises(CorpusError, match="20 damaged"):
        run(tmp_path / "3", documents, part(max_damaged=0.99 / longest))


def test_what_was_read_in_part_or_not_at_all_is_counted_for_each_source(tmp_path: Path) -> None:
    news = write(tmp_path / "news.arrow", sentences(40))
    old = write(tmp_path / "old.arrow", [*sentences(29, seed=1, name="old"), ("old", "بداية")], cut=frozenset({29}))
    more = write(tmp_path / "more.arrow", sentences(1, seed=2, name="old"))
    facts = IngestFacts(documents=1, bytes=1, cut=0, replaced=0, skipped_null=3, skipped=4, passed_over=0)
    found = prepare_files([("news", news), ("old", old), ("old", more)], part(), tmp_path / "out", read=facts)
    assert (found.read, found.cut, found.skipped_null, found.skipped) == (71, 1, 9, 12)
    assert {name: (counts.cut, counts.skipped_null, counts.skipped) for name, counts in found.sources.items()} == {
        "news": (0, 3, 4), "old": (1, 6, 8),
    }  # fmt: skip


# -- settings -------------------------------------------------------------------------------------


def canonical(**options: Any) -> dict[str, Any]:
    corpus = part(**options)
    return FilterSettings.of(corpus, corpus.filters).canonical()


@pytest.mark.parametrize("filters", ["short", "prose", "web"])
def test_settings_contain_the_thresholds_of_the_profile(filters: Filters, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rule = canonical(filters=filters), "min_alphabetic"
    profile = FILTER_PROFILES[filters]
    assert before["rules"] == [[name, limit] for name, limit in profile.items()]
    monkeypatch.setitem(FILTER_PROFILES, filters, {**profile, rule: 0.123})
    after = canonical(filters=filters)
    assert {key for key in before if before[key] != after[key]} == {"rules"}
    assert dict(after["rules"])[rule] == 0.123
    assert canonical(filters=filters, thresholds={rule: profile[rule]}) == before  # a recipe's threshold overrides it


def test_each_source_has_the_settings_of_its_own_filters() -> None:
    sources = (Source(path="a", name="pages", filters="web"), Source(path="b", name="plain"))
    corpus = part().model_copy(update={"sources": sources})
    assert filters_by_slice(corpus) == {"pages": "web", "plain": "none"}
    assert dict(FilterSettings.of(corpus, "web").rules) == FILTER_PROFILES["web"]
    assert FilterSettings.of(corpus, "none") == FilterSettings.of(part(), "none")
    assert FilterSettings.of(corpus, "none").languages == ()


def test_settings_contain_the_rules_of_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = canonical()
    assert before["normalisation"] == [list(rule) for rule in NORMALISATIONS["standard"]]
    monkeypatch.setitem(NORMALISATIONS, "standard", (*NORMALISATIONS["standard"], ("\u0622", "\u0627")))
    after = canonical()
    assert {key for key in before if before[key] != after[key]} == {"normalisation"}
    assert canonical(normalisation="vocalised") != before


# -- shards ---------------------------------------------------------------------------------------


def test_adding_a_file_changes_few_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_BYTES", 20_000)
    rng = random.Random(0)
    vocabulary = page(rng, 5000)

    def file(name: str, count: int) -> Path:
        texts = (" ".join(rng.choices(vocabulary, k=rng.randint(20, 400))) for _ in range(count))
        return write(tmp_path / f"{name}.arrow", [(name, text) for text in texts])

    def shards(files: list[Path]) -> set[str]:
        named = [(path.stem, path) for path in files]
        prepare_files(named, part(near_duplicates=True, shard_mb=1), tmp_path / "out")
        found = {hashlib.sha256(path.read_bytes()).hexdigest() for path in read_split(tmp_path / "out", "train")}
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        return found

    files, more = [file(f"n{n}", 900) for n in range(3)], file("more", 150)  # 6 MB
    before = shards(files)
    assert len(before) >= 4
    for place in (0, 3):
        assert len(before - shards([*files[:place], more, *files[place:]])) <= 3


@given(st.lists(st.integers(1, 400), min_size=1, max_size=200), st.integers(1, 30), st.integers(0, 99))
@settings(max_examples=examples(40), deadline=None)
def test_shards_do_not_depend_on_the_batches(sizes: list[int], batch: int, seed: int) -> None:
    rng = random.Random(seed)
    documents = ["a" * size for size in sizes]
    digests = np.array([rng.randbytes(16) for _ in sizes], "S16").view("V16").view("S16")
    written = []
    for step in (batch, len(documents)):
        with tempfile.TemporaryDirectory() as name:
            shards = Shards(Path(name), "train", 1000)
            for start in range(0, len(documents), step):
                texts = pa.array(documents[start : start + step], pa.large_string())
                shards.write(texts, pa.array(["n"] * len(texts)), digests[start : start + step])
            shards.close()
            files = read_split(Path(name), "train")
            found = [[t.as_py() for b in read_texts(path) for t in b["text"]] for path in files]
            written.append([path.read_bytes() for path in files])
        assert [text for shard in found for text in shard] == documents
        assert all(500 <= sum(map(len, shard)) <= 2000 for shard in found[:-1])
        assert sum(map(len, found[-1])) <= 2000
        assert shards.counts["shards"] == len(found)
    assert written[0] == written[1]


# -- small corpora --------------------------------------------------------------------------------


@settings(max_examples=examples(30), deadline=None)
@given(count=st.integers(3, 30), seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_no_split_of_a_small_corpus_is_empty(count: int, seed: int, order: random.Random) -> None:
    documents = sentences(count, seed)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder, "a"), documents, part())
        first = kept(Path(folder, "a"))
        assert all(first.values())
        assert sum(len(rows) for rows in first.values()) == count
        shuffled = documents.copy()
        order.shuffle(shuffled)
        run(Path(folder, "b"), shuffled, part())
        second = kept(Path(folder, "b"))
        assert {split: set(rows) for split, rows in first.items()} == {s: set(rows) for s, rows in second.items()}


@given(st.sets(st.integers(0, 255), max_size=12), st.sampled_from([0.0, 0.004, 0.1]), st.sampled_from([0.004, 0.1]))
@example({1, 2, 3, 50, 51, 52, 53}, 0.004, 0.1)
def test_two_training_documents_are_enough_to_assign_all(heads: set[int], validation: float, test: float) -> None:
    shares = Shares(validation=validation, test=test)
    digests = np.array([bytes([head, *[1] * 15]) for head in sorted(heads)], "S16")
    whole = module.assign(digests, shares)
    chosen = int(module.below(digests, validation + test).sum()) + 2
    assert whole[:chosen].tolist() == module.assign(digests[:chosen], shares, max(0, len(digests) - chosen)).tolist()
    assert not whole[chosen:].any()


def test_a_split_without_a_share_has_no_file(tmp_path: Path) -> None:
    facts = run(tmp_path, sentences(30), part(validation=0.0))
    assert read_split(tmp_path / "out", "validation") == []
    assert facts.splits["validation"] == SplitCounts(documents=0, characters=0, bytes=0, shards=0)


# -- what cannot be prepared ----------------------------------------------------------------------


def fails(folder: Path, documents: Sequence[Document], corpus: Corpus, *parts: str) -> None:
    with pytest.raises(CorpusError) as caught:
        run(folder, documents, corpus)
    assert "\n" not in str(caught.value)
    for text in parts:
        assert text in str(caught.value)


def test_a_source_without_usable_documents_is_an_error(tmp_path: Path) -> None:
    documents = [*sentences(30), ("books", "abc"), ("books", "def"), ("books", "قصير")]
    parts = (
        "books",
        "no usable documents",
        "2 not_arabic (corpus.min_arabic is 0.5",
        "1 too_short (corpus.min_chars is 5",
    )
    fails(tmp_path, documents, part(min_chars=5, min_arabic=0.5), "books", "3 too_short")
    fails(
        tmp_path,
        [*documents[:30], ("books", "abc def"), ("books", "def abc"), ("books", "قصير")],
        part(min_chars=5),
        *parts,
    )
    fails(tmp_path, [*sentences(30), *sentences(3, name="copy")], part(), "copy", "3 duplicate")


def test_too_few_documents_are_an_error(tmp_path: Path) -> None:
    fails(tmp_path, [*sentences(2), ("news", "x")], part(), "2 documents are too few", "1 not_arabic")
    fails(tmp_path, [], part(), "0 documents are too few", "train and validation and test would be empty")


# -- properties -----------------------------------------------------------------------------------

texts = st.one_of(
    st.text(alphabet="ابتثج حخد\u064b\u200f\u0640", max_size=30),
    st.text(alphabet="abAB 12é漢", max_size=30),
    st.text(max_size=30),
    st.sampled_from(["ﷺ", "لا إله إلا الله", "\x00", "e\u0301", "ﻻ", "👩‍👩‍👧", "\ufeff"]),
)
corpora = st.lists(st.tuples(st.sampled_from(["a", "b"]), texts), max_size=60)
SEEDS = {name: sentences(40, seed, name) for seed, name in enumerate(["a", "b"])}  # no slice is left empty


@settings(max_examples=examples(10), deadline=None)
@given(documents=corpora, batch=st.integers(5, 50), shuffle=st.randoms(use_true_random=False))
def test_every_document_is_kept_or_rejected_and_keeps_its_split(
    documents: list[Document], batch: int, shuffle: random.Random
) -> None:
    documents = [*SEEDS["a"], *documents, *SEEDS["b"]]
    corpus = part(validation=0.3, test=0.3, max_chars=60)
    with tempfile.TemporaryDirectory() as name:
        first, again, other = (Path(name, place) for place in "123")
        facts = run(first, documents, corpus, batch=batch)
        splits, rejects = kept(first), rejected(first)

        assert facts.read == len(documents) == facts.kept + len(rejects)
        assert facts.kept == sum(len(rows) for rows in splits.values())
        assert Counter(row["reason"] for row in rejects) == facts.rejected
        read = Counter(normalise(text) for _, text in documents)
        out = Counter(text for rows in splits.values() for _, _, text in rows)
        assert max(out.values()) == 1
        assert read == out + Counter(normalise(row["text"]) for row in rejects)

        run(again, documents, corpus, batch=batch)
        assert content(first) == content(again)

        shuffled = documents.copy()
        shuffle.shuffle(shuffled)
        run(other, shuffled, corpus, batch=batch)
        for split in SPLITS:
            assert {text for _, _, text in kept(other)[split]} == {text for _, _, text in splits[split]}


@settings(max_examples=examples(15), deadline=None)
@given(documents=corpora, added=texts)
def test_adding_a_document_does_not_move_others(documents: list[Document], added: str) -> None:
    documents = [*SEEDS["a"], *SEEDS["b"], *documents]
    corpus = part(validation=0.3, test=0.3)
    with tempfile.TemporaryDirectory() as name:
        run(Path(name, "a"), documents, corpus)
        run(Path(name, "b"), [("a", added), *documents], corpus)
        before, after = (
            {text: split for split, rows in kept(Path(name, place)).items() for _, _, text in rows} for place in "ab"
        )
        assert {text: after[text] for text in before} == before
        assert set(after) - set(before) <= {normalise(added)}


def test_from_a_file_to_the_splits(tmp_path: Path) -> None:
    path = tmp_path / "news.txt"
    path.write_text("\n".join(text for _, text in sentences(200)), encoding="utf-8")
    [file] = resolve([Source(path=str(path))])
    ingest(file, tmp_path / "in")
    facts = prepare_files([("news", tmp_path / "in" / "documents.arrow")], part(), tmp_path / "out")
    assert facts.kept == 200
    assert {source for rows in kept(tmp_path).values() for _, source, _ in rows} == {"news"}
