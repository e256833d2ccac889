"""Duplicates: keys depend on the text alone, and clusters are connected components."""

from __future__ import annotations

import hashlib
import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus.duplicates import BANDS, GRAM, band_keys, by_key, document_keys, of_bands, unite
from qalam_core.corpus.words import hash_ngrams, ngrams, words
from tests.conftest import examples
from tests.corpus.preparing import prepare_files
from tests.corpus.test_prepare import kept, part, write


def links(values: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Every item with the next one of the same value."""
    order = np.argsort(values, kind="stable")
    equal = np.flatnonzero(np.array(values)[order[1:]] == np.array(values)[order[:-1]])
    return order[equal], order[equal + 1]


@given(st.lists(st.lists(st.integers(0, 12), min_size=15, max_size=15), max_size=4))
def test_labels_are_connected_components(bands: list[list[int]]) -> None:
    labels = np.arange(15)
    groups = [{row} for row in range(15)]
    for band in bands:
        unite(labels, *links(band))
        for key in set(band):
            same = {row for row in range(15) if band[row] == key}
            joined = set().union(*(group for group in groups if group & same))
            groups = [group for group in groups if not group & same] + [joined]
    assert labels.tolist() == [min(next(group for group in groups if row in group)) for row in range(15)]


def test_a_long_chain_is_one_cluster() -> None:
    rows = np.random.default_rng(0).permutation(10_000)
    labels = np.arange(10_000)
    for shift in (0, 1):  # neighbours in a random order are linked, in pairs
        values = np.empty(10_000, np.int64)
        values[rows] = (np.arange(10_000) + shift) // 2
        unite(labels, *links(values.tolist()))
    assert not labels.any()


@given(st.lists(st.integers(0, 3), max_size=40), st.randoms(use_true_random=False))
def test_sorted_keys_are_the_same_in_any_order(values: list[int], order: random.Random) -> None:
    pairs = [(value, row) for row, value in enumerate(values)]
    order.shuffle(pairs)
    keys, rows = by_key(np.array([key for key, _ in pairs], np.uint64), np.array([row for _, row in pairs], np.int64))
    assert list(zip(keys.tolist(), rows.tolist(), strict=True)) == sorted(pairs)


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
    """The texts that are kept of files with `batch` texts each."""
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name, f"{start}.arrow") for start in range(0, len(texts), batch)]
        for number, path in enumerate(files):
            write(path, [("a", text) for text in texts[number * batch :][:batch]])
        prepare_files([("a", path) for path in files], part(near_duplicates=True, min_arabic=0.0), Path(name, "out"))
        return {text for rows in kept(Path(name)).values() for _, _, text in rows}


@settings(deadline=None, max_examples=examples(10))
@given(st.integers(0, 10_000), st.integers(1, 30), st.randoms(use_true_random=False))
def test_of_similar_texts_the_smallest_digest_is_kept_in_any_order(seed: int, batch: int, order: random.Random) -> None:
    texts = corpus(seed)
    found = kept_of(texts, batch)
    rank = {text: hashlib.sha256(text.encode()).digest() for text in texts}
    order.shuffle(texts)
    assert kept_of(texts, 7) == found
    for one in texts:
        alike = [other for other in texts if other != one and similar(one, other) > 0.95]
        assert one not in found or all(other not in found and rank[one] < rank[other] for other in alike)
        if len(shingles(one)) == 0 or max(similar(one, other) for other in texts if other != one) < 0.2:
            assert one in found


def test_keys_of_different_kinds_differ() -> None:
    """Also where their hashes are equal."""
    long, bands = np.array([False, True]), np.full((1, BANDS), 7 << 60, np.uint64)
    keys, rows = document_keys(np.array([bytes([0x70]) + bytes(15), b"other"], "S16"), long, bands)
    assert len(set(keys.tolist())) == len(keys) == BANDS + 2
    assert sorted(rows.tolist()) == [0, *[1] * (BANDS + 1)]
    assert of_bands(keys).sum() == BANDS
    assert set((keys >> np.uint64(4)).tolist()) > {7 << 56}


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
