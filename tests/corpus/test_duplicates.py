"""Duplicates: the index is a set, clusters are connected components, and of each the smallest digest is kept."""

from __future__ import annotations

import hashlib
import random
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus.duplicates import BANDS, GRAM, Clusters, KnownDigests, _join, band_keys
from qalam_core.corpus.words import hash_ngrams, ngrams, words
from tests.conftest import examples


def digests(values: list[str]) -> np.ndarray:
    return np.array([hashlib.sha256(value.encode()).digest()[:16] for value in values], "S16")


@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=20), max_size=20))
def test_the_index_of_duplicates_is_a_set(batches: list[list[tuple[int, bool]]]) -> None:
    seen, model = KnownDigests(), set[int]()
    for batch in batches:
        expected = []
        for n, candidate in batch:
            expected.append(candidate and n not in model)
            model |= {n} if candidate else set()
        candidates = np.array([candidate for _, candidate in batch], bool)
        assert seen.add(digests([str(n) for n, _ in batch]), candidates).tolist() == expected
    assert sum(map(len, seen._levels)) == len(model)


@given(st.lists(st.lists(st.integers(0, 12), min_size=15, max_size=15), max_size=4))
def test_labels_are_connected_components(bands: list[list[int]]) -> None:
    labels = np.arange(15)
    groups = [{row} for row in range(15)]
    for band in bands:
        _join(labels, np.array(band, np.uint64))
        for key in set(band):
            same = {row for row in range(15) if band[row] == key}
            joined = set().union(*(group for group in groups if group & same))
            groups = [group for group in groups if not group & same] + [joined]
    assert labels.tolist() == [min(next(group for group in groups if row in group)) for row in range(15)]


def test_a_long_chain_is_one_cluster() -> None:
    rows = np.random.default_rng(0).permutation(10_000)
    labels = np.arange(10_000)
    for shift in (0, 1):  # neighbours in a random order share a key, in pairs
        keys = np.empty(10_000, np.uint64)
        keys[rows] = (np.arange(10_000) + shift) // 2
        _join(labels, keys)
    assert not labels.any()


def sentence(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("ابتثجحخدرسشصطعفقكلمنهوي", k=5)) for _ in range(count)]


def shingles(text: str) -> set[tuple[str, ...]]:
    tokens = text.split()
    return {tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)}


def similar(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b) if a | b else 0.0


def corpus(seed: int) -> list[str]:
    """Distinct texts; some are copies of others with a word or half of the words changed, some are too short."""
    rng = random.Random(seed)
    texts = [" ".join(sentence(rng, rng.choice([2, 4, 5, 120, 200]))) for _ in range(12)]
    for text in rng.choices(texts, k=12):
        changed = text.split()
        for _ in range(rng.choice([1, 1, 2, len(changed) // 2])):
            changed[rng.randrange(len(changed))] = sentence(rng, 1)[0]
        texts.append(" ".join(changed))
    return sorted(set(texts))


def kept_of(texts: list[str], batch: int) -> set[str]:
    with tempfile.TemporaryDirectory() as folder, closing(Clusters(Path(folder, "index"))) as clusters:
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            clusters.add(digests(part), *band_keys(words(pa.array(part, pa.large_string()))))
        given, dropped, kept = clusters.finish()
    assert given.tolist() == digests(texts).tolist()
    assert np.array_equal(dropped, kept != np.arange(len(texts)))  # each is dropped for another one
    assert not dropped[kept].any()  # which is kept itself
    return {text for text, drop in zip(texts, dropped, strict=True) if not drop}


@settings(deadline=None, max_examples=examples(10))
@given(st.integers(0, 10_000), st.integers(1, 30), st.randoms(use_true_random=False))
def test_of_similar_texts_the_smallest_digest_is_kept_in_any_order(seed: int, batch: int, order: random.Random) -> None:
    texts = corpus(seed)
    kept = kept_of(texts, batch)
    rank = {text: hashlib.sha256(text.encode()).digest() for text in texts}
    order.shuffle(texts)
    assert kept_of(texts, 7) == kept
    for one in texts:
        alike = [other for other in texts if other != one and similar(one, other) > 0.95]
        assert one not in kept or all(other not in kept and rank[one] < rank[other] for other in alike)
        if len(shingles(one)) == 0 or max(similar(one, other) for other in texts if other != one) < 0.2:
            assert one in kept


def test_keys_depend_on_the_text_alone() -> None:
    rng = random.Random(1)
    texts = [" ".join(sentence(rng, count)) for count in (3, 40, 5, 4, 80)]
    long, keys = band_keys(words(pa.array(texts, pa.large_string())))
    assert long.tolist() == [False, True, True, False, True]
    assert keys.shape == (3, BANDS)
    for row, text in enumerate(text for text, is_long in zip(texts, long, strict=True) if is_long):
        # among others, and as a slice of a larger array
        sliced = pa.array(["x y", text, "z"], pa.large_string()).slice(1, 1)
        assert band_keys(words(sliced))[1].tolist() == [keys[row].tolist()]
    # pinned: the library's numbers decide what is kept
    assert keys[0, 0] == PINNED


PINNED = 1184547246898188185


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=6), st.integers(1, 6))
def test_ngrams_are_within_one_document(documents: list[list[str]], n: int) -> None:
    found = words(pa.array([" ".join(tokens) for tokens in documents], pa.large_string()))
    starts, borders = ngrams(found.borders, n)
    hashes = hash_ngrams(found.hashes, starts, n)
    expected = [tuple(tokens[i : i + n]) for tokens in documents for i in range(len(tokens) - n + 1)]
    assert len(expected) == len(hashes) == borders[-1]
    one: dict[tuple[str, ...], int] = {}
    for gram, value in zip(expected, hashes.tolist(), strict=True):
        assert one.setdefault(gram, value) == value
    assert len(set(one.values())) == len(one)
