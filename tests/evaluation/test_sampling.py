"""Samples: bounded, the same in any shards, stable when a corpus grows, and fair to slices."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from qalam_core.evaluation.baselines import characters
from qalam_core.evaluation.sampling import budgets, held_out_sample, training_sample
from tests.evaluation.small_evaluation import batch_of

START, END = 2, 3

Documents = list[tuple[str, str]]


def shards(folder: Path, documents: Documents, per_shard: int, per_batch: int = 7) -> list[Path]:
    folder.mkdir()
    paths = []
    for start in range(0, len(documents), per_shard):
        names, texts = zip(*documents[start : start + per_shard], strict=True)
        batch = batch_of(list(texts)).append_column("source", pa.array(names))
        paths.append(folder / f"test-{start:05d}.arrow")
        with ipc.new_file(paths[-1], batch.schema) as writer:
            writer.write_table(pa.Table.from_batches([batch]), per_batch)
    return paths


def documents(count: int, name: str = "news", size: int = 200) -> Documents:
    made = random.Random(f"{name} {count}")
    return [(name, f"{name} {n} " + "ب" * made.randrange(size // 4, size * 3 // 4)) for n in range(count)]


def size(chosen: Documents) -> int:
    return sum(len(text.encode()) for _, text in chosen)


def test_a_split_that_fits_is_read_whole(tmp_path: Path) -> None:
    everything = documents(50)
    for limit in (None, size(everything)):
        found = held_out_sample(shards(tmp_path / str(limit), everything, 20), limit)
        assert found.documents == everything
        assert (found.counted.documents, found.counted.of, found.counted.size) == (50, 50, size(everything))
        assert not found.counted.sampled
    assert held_out_sample([], None).documents == []


def test_a_sample_is_bounded_and_the_same_in_any_shards(tmp_path: Path) -> None:
    everything = documents(400)
    limit = size(everything) // 5
    found = held_out_sample(shards(tmp_path / "a", everything, 400), limit)
    assert limit * 0.9 < found.counted.size == size(found.documents) <= limit
    assert found.counted.of == 400
    assert found.counted.documents == len(found.documents) == pytest.approx(80, abs=8)
    assert found.documents == [pair for pair in everything if pair in found.documents]  # in order
    others = everything[::-1]
    again = held_out_sample(shards(tmp_path / "b", others, 33, 5), limit)
    assert sorted(again.documents) == sorted(found.documents)


def test_a_corpus_that_grows_keeps_most_of_its_sample(tmp_path: Path) -> None:
    everything = documents(400)
    limit = size(everything) // 5
    before = held_out_sample(shards(tmp_path / "a", everything[:380], 100), limit).documents
    after = held_out_sample(shards(tmp_path / "b", everything, 100), limit).documents
    assert len(set(before) & set(after)) > 0.9 * len(before)


def test_a_renamed_source_changes_no_choice(tmp_path: Path) -> None:
    everything = documents(300)
    renamed = [("other", text) for _, text in everything]
    limit = size(everything) // 3
    some, others = (
        held_out_sample(shards(tmp_path / name, given, 100), limit).documents
        for name, given in (("a", everything), ("b", renamed))
    )
    assert [text for _, text in some] == [text for _, text in others]


def test_small_slices_are_whole_and_large_ones_keep_their_share(tmp_path: Path) -> None:
    everything = [*documents(600, "large"), *documents(300, "middle"), *documents(5, "small")]
    limit = size(everything) // 4
    found = held_out_sample(shards(tmp_path / "a", everything, 100), limit)
    chosen = {name: [pair for pair in found.documents if pair[0] == name] for name in ("large", "middle", "small")}
    assert found.counted.size <= limit
    assert len(chosen["small"]) == 5
    assert len(chosen["large"]) > len(chosen["middle"]) > limit / size(everything) * 300 * 0.9


def testbudgets_sum_to_the_limit() -> None:
    for sizes in ([1000], [10, 10, 10_000], [5, 900, 900], [100] * 40):
        found = budgets(np.array(sizes), limit := sum(sizes) // 3)
        assert (found <= sizes).all()
        assert limit - len(sizes) <= found.sum() <= limit
        assert (found >= np.minimum(sizes, limit // (2 * len(sizes)))).all()


def test_a_huge_document_does_not_displace_the_others(tmp_path: Path) -> None:
    for number in range(10):  # whatever its draw
        everything = [("news", f"{number} " + "ج" * 50_000), *documents(100)]
        found = held_out_sample(shards(tmp_path / str(number), everything, 50), 10_000)
        assert len(found.documents) > 20
        assert found.counted.size <= 10_000
    alone = held_out_sample(shards(tmp_path / "alone", [("a", "ج" * 9_000), ("a", "ح" * 9_000)], 5), 100)
    assert len(alone.documents) == 1


def tokens(texts: list[str]) -> np.ndarray:
    """A document's length in tokens is half of its length in characters."""
    return np.array([i for text in texts for i in (START, *[4 + len(text) % 90] * (len(text) // 2), END)], np.uint16)


def test_training_text_that_fits_is_counted_whole() -> None:
    texts = [text for _, text in documents(40)]
    parts = [tokens(texts[:13]), tokens(texts[13:])]
    found = training_sample([batch_of(texts[:30]), batch_of(texts[30:])], parts, head=3)
    assert all(some is other for some, other in zip(found.tokens, parts, strict=True))
    assert found.characters.tolist() == characters(pa.array(texts, pa.large_string())).tolist()
    assert found.head == texts[:3]
    assert not found.counted.tokens.sampled
    assert (found.counted.tokens.size, found.counted.characters.size) == (sum(map(len, parts)), sum(map(len, texts)))


@pytest.mark.parametrize("per_batch", [1, 7, 300])
def test_training_text_is_sampled_over_all_shards(per_batch: int) -> None:
    texts = [text for _, text in documents(300)]
    batches = [batch_of(texts[n : n + per_batch]) for n in range(0, 300, per_batch)]
    limit = sum(map(len, texts)) // 6
    found = training_sample(batches, [tokens(texts[:100]), tokens(texts[100:])], 3, limit)
    drawn = "".join(chr(c - 4) if c > END else "\n" for c in found.characters.tolist()).split("\n")
    chosen = [text for text in drawn if text]
    assert chosen == [text for text in texts if text in chosen]  # whole documents, in order
    assert limit * 0.9 < sum(map(len, chosen)) == found.counted.characters.size <= limit
    places = [texts.index(text) for text in chosen]
    assert min(places) < 60
    assert max(places) > 240
    ids = np.concatenate(found.tokens)
    assert limit * 0.9 < len(ids) == found.counted.tokens.size <= limit
    assert (ids == START).sum() == found.counted.tokens.documents > found.counted.characters.documents == len(chosen)
    assert found.counted.tokens.of == found.counted.characters.of == 300


def test_of_a_document_beyond_the_limit_the_beginning_is_counted() -> None:
    texts = ["ا" * 90_000, "ب" * 80_000]
    found = training_sample([batch_of(texts)], [tokens(texts)], 1, 1000)
    assert len(found.characters) == 1000 + 2
    assert (found.counted.characters.size, found.counted.characters.documents) == (1000, 1)
    assert len(found.tokens[0]) == found.counted.tokens.size == 1000
    assert found.tokens[0][0] == START
