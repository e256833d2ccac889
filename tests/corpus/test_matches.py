"""Repeats are found by ranges of keys: what is kept is the same, byte for byte, however many ranges there are."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus import filtered, matches
from qalam_core.corpus.duplicates import band_keys
from qalam_core.corpus.filtered import KEYS, filter_documents, read_keys
from qalam_core.corpus.filters import FilterSettings
from qalam_core.corpus.matches import MATCHES, Repeats, match_documents
from qalam_core.corpus.splits import read_texts
from qalam_core.corpus.words import words
from tests.conftest import examples
from tests.corpus.preparing import prepare_files
from tests.corpus.test_prepare import content, family, kept, page, part, rejected, write

SETTINGS = FilterSettings.of(part(near_duplicates=True, min_arabic=0.0), "none")


def corpus(seed: int) -> list[str]:
    """Texts of which many are repeated, change by change, so that the ends of a chain have little in common."""
    rng = random.Random(seed)
    texts = [" ".join(page(rng, 3)) for _ in range(12)]  # too short for bands
    for _ in range(rng.randint(1, 8)):
        chain = page(rng, 80)
        for _ in range(rng.randint(1, 12)):
            texts.append(" ".join(chain))
            start = rng.randrange(70)
            chain[start : start + rng.choice([1, 1, 3, 30])] = page(rng, 2)
    texts += rng.choices(texts, k=rng.randint(0, 60))
    rng.shuffle(texts)
    return texts


def cut(texts: Sequence[str], seed: int, most: int) -> Iterator[list[str]]:
    """Files of up to `most` texts."""
    rng, start = random.Random(seed), 0
    while start < len(texts):
        count = rng.randint(1, most)
        yield list(texts[start : start + count])
        start += count


@contextmanager
def small(keys: int, run: int) -> Iterator[None]:
    """About so many keys are sorted at once, in `match` and in `filter`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matches, "_KEYS", keys)
        patch.setattr(filtered, "_RUN", run)
        yield


def found(folder: Path, files: Sequence[Sequence[str]], of: int, batch: int = 5) -> Repeats:
    """What repeats in files, joined in `of` partitions."""
    made = []
    for number, texts in enumerate(files):
        path = write(folder / f"{number}.arrow", [("a", text) for text in texts], batch)
        facts = filter_documents([path], SETTINGS, folder / f"filtered-{number}")
        made.append((folder / f"filtered-{number}", facts.passed))
    for number in range(of):
        match_documents(made, number, of, folder / f"matches-{number}")
    return Repeats.of([folder / f"matches-{number}" for number in range(of)], [path for path, _ in made])


def expected(texts: Sequence[str]) -> tuple[list[str], dict[bytes, int]]:
    """The reason for each, and the copies of each that is kept in place of others, pair by pair."""
    digests = [hashlib.sha256(text.encode()).digest()[:16].rstrip(b"\0") for text in texts]  # as numpy has them
    long, bands = band_keys(words(pa.array(texts, pa.large_string())))
    keys = [set[tuple[int, int]]() for _ in texts]
    for row, values in zip(np.flatnonzero(long), bands.tolist(), strict=True):
        keys[row] = set(enumerate(values))
    cluster = list(range(len(texts)))
    for one in range(len(texts)):
        for other in range(one):
            if (digests[one] == digests[other] or keys[one] & keys[other]) and cluster[one] != cluster[other]:
                gone, cluster = cluster[one], [cluster[other] if own == cluster[one] else own for own in cluster]
                assert gone not in cluster
    lowest = {number: min(d for d, own in zip(digests, cluster, strict=True) if own == number) for number in cluster}
    reasons = [
        "duplicate" if digest in digests[:row] else "" if lowest[cluster[row]] == digest else "near_duplicate"
        for row, digest in enumerate(digests)
    ]
    return reasons, {lowest[number]: cluster.count(number) for number in cluster if cluster.count(number) > 1}


@settings(max_examples=examples(12))
@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(1, 9), st.integers(90, 900), st.integers(1, 400))
def test_repeats_are_those_of_comparing_every_pair(seed: int, most: int, of: int, keys: int, run: int) -> None:
    texts = corpus(seed)
    with tempfile.TemporaryDirectory() as name, small(keys, run):
        repeats = found(Path(name), list(cut(texts, seed, most)), of)
    reasons, copies = expected(texts)
    assert repeats.reasons(0, len(texts)).tolist() == reasons
    assert [reason for row in range(len(texts)) for reason in repeats.reasons(row, 1)] == reasons
    assert dict(zip(*(values.tolist() for values in repeats.copies()), strict=True)) == copies


@settings(max_examples=examples(8))
@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(2, 20), st.sampled_from([(0, 0), (1, 1)]))
def test_a_corpus_is_the_same_bytes_for_any_number_of_partitions(
    seed: int, most: int, of: int, limits: tuple[int, int]
) -> None:
    texts = corpus(seed)
    most_mb = {"validation_mb": limits[0], "test_mb": limits[1]}
    section = part(near_duplicates=True, validation=0.2, test=0.3, **most_mb)
    with tempfile.TemporaryDirectory() as name:

        def prepared(place: str, number: int, files: Sequence[Sequence[str]], partitions: int) -> dict[str, bytes]:
            folder = Path(name, place)
            paths = [
                ("a", write(folder / f"{one}.arrow", [("a", text) for text in of_file], batch=number))
                for one, of_file in enumerate(files)
            ]
            prepare_files(paths, section, folder / "out", partitions=partitions)
            return content(folder)

        files = list(cut(texts, seed, most))
        one = prepared("one", 9, files, 1)
        with small(200, 70):
            assert prepared("many", 9, files, of) == one
            prepared("other", 4, [texts], 3)  # in one file, whose rejects are in other record batches
        splits, rejects = kept(Path(name, "one")), rejected(Path(name, "one"))
        assert (kept(Path(name, "other")), rejected(Path(name, "other"))) == (splits, rejects)
        shards = {path for path in one if path != "rejects.arrow"}
        assert all((Path(name, "other", "out") / path).read_bytes() == one[path] for path in shards)


def pairs(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[tuple[int, int]]:
    return sorted(pair for keys, rows in parts for pair in zip(keys.tolist(), rows.tolist(), strict=True))


def test_keys_are_in_sorted_runs_and_a_range_has_its_own(tmp_path: Path) -> None:
    texts = corpus(3)
    with small(1, 200):
        found(tmp_path, [texts], 1)
    folder = tmp_path / "filtered-0"
    runs = [(batch["key"].to_numpy(), batch["row"].to_numpy()) for batch in read_texts(folder / KEYS)]
    assert len(runs) > 2
    assert all((keys[1:] >= keys[:-1]).all() for keys, _ in runs)
    everything = pairs(runs)
    assert {row for _, row in everything} == set(range(len(texts)))
    borders = [0, everything[5][0], everything[5][0] + 1, 1 << 63, 1 << 64]  # also at a key
    parts = [pairs(read_keys(folder, low, high)) for low, high in pairwise(borders)]
    assert [pair for of_range in parts for pair in of_range] == everything
    for (low, high), of_range in zip(pairwise(borders), parts, strict=True):
        assert all(low <= key < high for key, _ in of_range)


def test_a_key_of_all_documents_is_kept_once_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges cannot divide it."""
    sorted_at_once: list[int] = []
    linked = matches._linked

    def counted(parts: Sequence[tuple[np.ndarray, np.ndarray]], write: Any) -> tuple[np.ndarray, np.ndarray]:
        sorted_at_once.append(sum(len(keys) for keys, _ in parts))
        return linked(parts, write)

    monkeypatch.setattr(matches, "_linked", counted)
    texts = family(random.Random(1), 400)
    with small(500, 15 * 20):
        repeats = found(tmp_path, [texts[start : start + 100] for start in range(0, 400, 100)], 1, batch=20)
    assert repeats.reasons(0, 400).tolist().count("") == 1
    assert repeats.copies()[1].tolist() == [400]
    assert max(sorted_at_once) < 1500  # of 6,000
    links: list[pa.RecordBatch] = []
    with small(30, 1):
        matches._join(((np.array([16], np.uint64), np.array([row])) for row in range(400)), links.append)
    assert {row: link["first"][at].as_py() for link in links for at, row in enumerate(link["row"].to_pylist())} == (
        dict.fromkeys(range(1, 400), 0)
    )
    assert len(links) > 3


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.integers(1, 9), st.randoms(use_true_random=False))
def test_links_are_written_in_one_order(values: list[int], size: int, order: random.Random) -> None:
    """Though equal keys are sorted in another one, as on another processor."""
    pairs = [(value * 16, row) for row, value in enumerate(values)]
    written = []
    for _ in range(2):
        links: list[pa.RecordBatch] = []
        arrays = [np.array(pairs[start : start + size]).T for start in range(0, len(pairs), size)]
        matches._linked([(keys.astype(np.uint64), rows) for keys, rows in arrays], links.append)
        written.append([link.to_pylist() for link in links])
        order.shuffle(pairs)
    assert written[0] == written[1]


def test_a_digest_of_which_only_a_part_is_equal_is_no_repeat(tmp_path: Path) -> None:
    """Keys have 60 bits of a digest: the digests themselves decide."""
    found(tmp_path, [["واحد", "اثنان"]], 1)
    link = pa.record_batch([[1], [0], [False]], schema=matches._SCHEMA)
    with pa.ipc.new_file(tmp_path / "matches-0" / MATCHES, link.schema) as file:
        file.write_batch(link)
    repeats = Repeats.of([tmp_path / "matches-0"], [tmp_path / "filtered-0"])
    assert repeats.reasons(0, 2).tolist() == ["", ""]
    assert not len(repeats.copies()[0])


def test_no_documents_are_no_repeats(tmp_path: Path) -> None:
    corpora: list[list[list[str]]] = [[], [[]], [[], ["واحد"], []]]
    for number, files in enumerate(corpora):
        repeats = found(tmp_path / str(number), files, 3)
        assert not len(repeats.rows)
        assert repeats.reasons(0, 2).tolist() == ["", ""]
        assert all(not len(batch) for batch in read_texts(tmp_path / str(number) / "matches-0" / MATCHES))
