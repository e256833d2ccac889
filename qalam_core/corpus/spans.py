"""Verbatim spans: which parts of a text stand word for word in the documents of a corpus, and in which documents.

The corpus is scanned once, as bytes. A word's signature is its first 8 bytes and its length; n-grams of signatures are
looked up among those of the texts. What is found is compared as spelled: the matched passages and the texts are sorted
together by their suffixes, as in Manber and Myers, Suffix arrays (1993), by doubling, so that the time is bounded for
texts that repeat themselves too. The result is exact.

Memory: about ten times a record batch for each thread, 200 bytes per word of the texts and of GATHERED words of matched
passages, and 8 bytes per document that holds a span.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.corpus.fingerprints import id_numbers, known
from qalam_core.corpus.splits import read_texts
from qalam_core.corpus.words import Hashes, Numbers, mixed
from qalam_core.files import sha256_bytes
from qalam_core.progress import Progress, no_progress

MIN_WORDS = 5  # of a span, unless another number is asked for
SHOWN = 5  # documents that are named for each span
GATHERED = 1 << 18  # words of matched passages that are sorted at once

_CONTEXT = 160  # bytes before and after a span
_TABLE_BITS = 20  # a table of 1 MB, which stays in a core's cache
_HIGH = np.uint64(64 - _TABLE_BITS)
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd
_PADDING = 8  # bytes before and after the text of a batch
_HEADS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # a word's bytes among 8, by its length


@dataclass(frozen=True)
class Hit:
    """A document that holds a span, and the text around the span's first occurrence in it."""

    source: str
    id: str
    shard: Path
    before: str
    after: str


@dataclass(frozen=True)
class Span:
    """A span of a text that is part of no longer one."""

    start_word: int
    end_word: int  # exclusive
    documents: tuple[Hit, ...]  # the first ones of the corpus
    count: int  # of all documents that hold it; documents of one id are one


def spans(
    texts: Sequence[str], shards: Sequence[Path], min_words: int = MIN_WORDS, shown: int = SHOWN,
    progress: Progress = no_progress,
) -> list[list[Span]]:  # fmt: skip
    """For each text its maximal spans of at least `min_words` words that occur in one document, in their order.

    Texts and `shards` (of a prepared corpus) are normalised alike. Words are separated by spaces and line ends.
    `progress` is in bytes of the shards.
    """
    queries = _Queries.of(texts, min_words)
    found = _Found(queries, shown)
    if len(queries.ngrams):
        passages: list[_Passages] = []
        for passage in _scan(queries, shards, progress):
            passages.append(passage)
            if sum(len(one.ids) for one in passages) >= GATHERED:
                found.add(passages)
                passages = []
        found.add(passages)
    return found.spans(shards)


@dataclass(frozen=True)
class _Located:
    """The words of documents, by where they are in a buffer of bytes."""

    buffer: NDArray[np.uint8]  # with _PADDING bytes before and after the documents
    documents: Numbers  # (D + 1,) where each document begins
    starts: Numbers  # (N,) of the words
    ends: Numbers
    borders: Numbers  # (D + 1,) where each document's words begin

    @classmethod
    def of(cls, texts: pa.LargeStringArray) -> _Located:
        """All bytes but spaces and line ends are words, as there are no other white space and controls."""
        _, offsets, data = texts.buffers()
        places = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        content = np.frombuffer(data or b"", np.uint8)[places[0] : places[-1]]
        documents = places - places[0] + _PADDING
        buffer = np.zeros(len(content) + 2 * _PADDING, np.uint8)
        buffer[_PADDING:-_PADDING] = content
        inside = buffer > ord(" ")
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        inner = documents[1:-1]
        between = np.unique(inner[inside[inner] & inside[inner - 1]])  # no space between two documents
        edges = np.insert(edges, np.repeat(np.searchsorted(edges, between), 2), np.repeat(between, 2))
        starts = edges[::2]
        return cls(buffer, documents, starts, edges[1::2], np.searchsorted(starts, documents))

    def hashes(self, size: int) -> Hashes:
        """Of the signatures of each n-gram of `size` words; some are in two documents."""
        lengths = self.ends - self.starts
        heads: Hashes = np.ndarray(len(self.buffer) - 7, np.uint64, self.buffer, strides=(1,))  # at every byte
        signatures = heads[self.starts] & _HEADS.take(lengths, mode="clip")
        signatures = mixed(signatures + lengths.astype(np.uint64) * _BASE)
        count = max(0, len(signatures) - size + 1)
        hashes = np.zeros(count, np.uint64)
        for step in range(size):
            hashes *= _BASE
            hashes += signatures[step : step + count]
        return hashes

    def spelled(self, chosen: Numbers) -> pa.LargeBinaryArray:
        """The bytes of some words."""
        places, borders = _ranges(self.starts[chosen], self.ends[chosen])
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(chosen), [None, pa.py_buffer(borders), pa.py_buffer(self.buffer[places])]
        )


def _ranges(starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
    """The numbers of several ranges, one after the other, and where those of each begin."""
    borders = np.concatenate([[0], np.cumsum(ends - starts)])
    return np.repeat(starts - borders[:-1], ends - starts) + np.arange(borders[-1]), borders


@dataclass(frozen=True)
class _Queries:
    """The texts, one after the other."""

    size: int  # words of an n-gram
    ids: Numbers  # (N,) of their words, indices into `distinct`
    borders: Numbers  # where each text's words begin
    distinct: pa.LargeBinaryArray
    ngrams: Hashes  # of signatures, sorted
    table: NDArray[np.bool_]  # by the high bits of such a hash, whether it may be among them

    @classmethod
    def of(cls, texts: Sequence[str], size: int) -> _Queries:
        located = _Located.of(pa.array(texts, pa.large_string()))
        coded = located.spelled(np.arange(len(located.starts))).dictionary_encode()
        starts, _ = _ranges(located.borders[:-1], np.maximum(located.borders[1:] - size + 1, located.borders[:-1]))
        hashes = np.unique(located.hashes(size)[starts])
        table = np.zeros(1 << _TABLE_BITS, np.bool_)
        table[hashes >> _HIGH] = True
        return cls(size, coded.indices.to_numpy().astype(np.int64), located.borders, coded.dictionary, hashes, table)


class _Passages(NamedTuple):
    """Passages of a record batch all of whose n-grams are among the texts', each followed by one word of id -1."""

    shard: int
    batch: int
    ids: Numbers  # (N,) of the words, as in the texts; -1 for others
    rows: Numbers  # (N,) the document
    names: Hashes  # (N,) its id, as a number
    starts: Numbers  # (N,) bytes, within the document
    ends: Numbers


def _scan(queries: _Queries, shards: Sequence[Path], progress: Progress) -> Iterator[_Passages]:
    """The passages of all shards, in order, from threads: numpy and Arrow release the interpreter lock."""
    sizes = np.cumsum([0, *(shard.stat().st_size for shard in shards)]).tolist()
    workers = min(pa.cpu_count(), 4)
    ahead: deque[Future[_Passages]] = deque()

    def finished() -> _Passages:
        passages = ahead.popleft().result()
        progress(sizes[passages.shard], sizes[-1])
        return passages

    with ThreadPoolExecutor(workers) as pool:
        for number, shard in enumerate(shards):
            for index, batch in enumerate(read_texts(shard)):
                ahead.append(pool.submit(_passages, queries, number, index, batch))
                if len(ahead) > 2 * workers:
                    yield finished()
        while ahead:
            yield finished()
    progress(sizes[-1], sizes[-1])


def _passages(queries: _Queries, shard: int, index: int, batch: pa.RecordBatch) -> _Passages:
    size, located = queries.size, _Located.of(batch.column("text"))
    hashes = located.hashes(size)
    hits = np.flatnonzero(queries.table[hashes >> _HIGH])
    hits = hits[known(queries.ngrams, hashes[hits])]
    rows = np.searchsorted(located.borders, hits, side="right") - 1
    inside = hits + size <= located.borders[rows + 1]
    hits, rows = hits[inside], rows[inside]
    apart = (np.diff(hits) > size) | (np.diff(rows) > 0)
    first, last = (np.ones(len(hits), np.bool_) for _ in range(2))
    first[1:], last[:-1] = apart, apart
    chosen, borders = _ranges(hits[first], hits[last] + size + 1)  # and one word more
    chosen = np.minimum(chosen, len(located.starts) - 1)
    found = pc.index_in(located.spelled(chosen), queries.distinct).fill_null(-1)
    ids = found.to_numpy().astype(np.int64)
    ids[borders[1:] - 1] = -1
    rows = np.repeat(rows[first], np.diff(borders))
    documents, place = np.unique(rows, return_inverse=True)
    names = id_numbers(batch.column("id").take(pa.array(documents)).to_pylist())[place]
    begin = located.documents[rows]
    return _Passages(shard, index, ids, rows, names, located.starts[chosen] - begin, located.ends[chosen] - begin)


class _Place(NamedTuple):
    """Where a span is: in bytes of a document."""

    shard: int
    batch: int
    row: int
    start: int
    end: int


@dataclass
class _Holders:
    """The documents that hold one sequence of words."""

    names: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))  # sorted
    first: list[_Place] = field(default_factory=list)


class _Found:
    """The longest match that begins at each word of the texts, among the passages so far."""

    def __init__(self, queries: _Queries, shown: int) -> None:
        self._queries, self._shown = queries, shown
        self._lengths = np.zeros(len(queries.ids), np.int64)
        self._sequences: dict[int, str] = {}  # word -> digest of the span that begins with it
        self._holders: dict[str, _Holders] = {}

    def add(self, passages: Sequence[_Passages]) -> None:
        """Compare with more passages."""
        if not sum(len(one.ids) for one in passages):
            return
        suffixes = _Suffixes.of(self._queries, np.concatenate([one.ids for one in passages]))
        lengths = suffixes.longest()
        # of these no longer match begins one word before, so that the spans that remain in the end are among them
        chosen = self._maximal(lengths) & (lengths >= self._lengths)
        self._lengths = np.maximum(self._lengths, lengths)
        fresh: dict[str, tuple[int, int]] = {}
        for word in np.flatnonzero(chosen & self._maximal(self._lengths)).tolist():
            length = int(lengths[word])
            self._sequences[word] = sha256_bytes(self._queries.ids[word : word + length].tobytes())
            fresh.setdefault(self._sequences[word], (word, length))
        maximal = self._maximal(self._lengths)
        self._sequences = {word: sequence for word, sequence in self._sequences.items() if maximal[word]}
        used = set(self._sequences.values())
        self._holders = {key: holders for key, holders in self._holders.items() if key in used}
        borders = np.cumsum([0, *(len(one.ids) for one in passages)])
        names = np.concatenate([one.names for one in passages])
        for key, (word, length) in fresh.items():
            holders = self._holders.setdefault(key, _Holders())
            places = suffixes.occurrences(word, length)
            found, first = np.unique(names[places], return_index=True)
            new = np.sort(first[~known(holders.names, found)])
            for place in places[new[: self._shown - len(holders.first)]].tolist():
                number = int(np.searchsorted(borders, place, side="right")) - 1
                one, at = passages[number], place - int(borders[number])
                inside = int(one.starts[at]), int(one.ends[at + length - 1])
                holders.first.append(_Place(one.shard, one.batch, int(one.rows[at]), *inside))
            holders.names = np.union1d(holders.names, found)

    def spans(self, shards: Sequence[Path]) -> list[list[Span]]:
        """The spans of each text."""
        places = {place for holders in self._holders.values() for place in holders.first}
        hits = dict(_hits(shards, sorted(places)))
        result: list[list[Span]] = [[] for _ in self._queries.borders[1:]]
        for word, key in sorted(self._sequences.items()):
            text = int(np.searchsorted(self._queries.borders, word, side="right")) - 1
            start, holders = word - int(self._queries.borders[text]), self._holders[key]
            documents = tuple(hits[place] for place in holders.first)
            result[text].append(Span(start, start + int(self._lengths[word]), documents, len(holders.names)))
        return result

    def _maximal(self, lengths: Numbers) -> NDArray[np.bool_]:
        """Whether the match of each word is a span that the match of the word before does not contain."""
        before = np.concatenate([[0], lengths[:-1]])
        before[self._queries.borders[:-1][np.diff(self._queries.borders) > 0]] = 0
        found: NDArray[np.bool_] = (lengths >= self._queries.size) & (before <= lengths)
        return found


@dataclass(frozen=True)
class _Suffixes:
    """The suffixes of texts and passages: of each position, ranks by its first 1, 2, 4, ... words."""

    words: Numbers  # positions of the texts' words
    passages: int  # position where the passages begin
    left: Numbers  # (N,) words up to the end of the text or passage
    ranks: list[Numbers]  # each (N,); the last is finer than any match
    orders: dict[int, Numbers] = field(default_factory=dict)  # level -> positions of passages, by rank

    @classmethod
    def of(cls, queries: _Queries, ids: Numbers) -> _Suffixes:
        borders = queries.borders
        ends = np.unique(borders[1:])
        own = np.insert(queries.ids, ends, -1)  # one more word of id -1 after each text
        words = np.flatnonzero(own >= 0)
        joined = np.concatenate([own, ids]) + 1
        places = np.arange(len(joined))
        ending = np.where(joined == 0, places, len(joined))
        left = np.minimum.accumulate(ending[::-1])[::-1] - places
        ranks = [joined]
        while True:
            level, span = ranks[-1], 1 << (len(ranks) - 1)
            here = np.zeros(int(level.max()) + 1, np.bool_)
            here[level[len(own) :][left[len(own) :] >= span]] = True
            if not here[level[: len(own)][left[: len(own)] >= span]].any():
                return cls(words, len(own), left, ranks)
            after = np.where(left > span, level[np.minimum(places + span, len(level) - 1)], 0)
            ranks.append(np.unique(level * (level.max() + 1) + after, return_inverse=True)[1])

    def longest(self) -> Numbers:
        """The length of the longest match that begins at each word of the texts: with a neighbour in the order."""
        order = np.argsort(self.ranks[-1], kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        of_passage = order >= self.passages
        before = np.maximum.accumulate(np.where(of_passage, np.arange(len(order)), -1))
        after = np.minimum.accumulate(np.where(of_passage, np.arange(len(order)), len(order))[::-1])[::-1]
        result = np.zeros(len(self.words), np.int64)
        for neighbour in (before[place[self.words]], after[place[self.words]]):
            valid = (neighbour >= 0) & (neighbour < len(order))
            one, other = self.words[valid], order[neighbour[valid]]
            length = np.zeros(len(one), np.int64)
            for level in reversed(range(len(self.ranks) - 1)):
                ranks, span = self.ranks[level], 1 << level
                same = (ranks[one + length] == ranks[other + length]) & (self.left[one + length] >= span)
                length += same * span
            result[valid] = np.maximum(result[valid], length)
        return result

    def occurrences(self, word: int, length: int) -> Numbers:
        """Where in the passages, from 0, the `length` words from `word` on occur, in order."""
        level = length.bit_length() - 1
        ranks, start, end = self.ranks[level], int(self.words[word]), length - (1 << level)
        own = ranks[self.passages :]
        if level not in self.orders:
            self.orders[level] = np.argsort(own, kind="stable")
        order = self.orders[level]
        first, last = (int(np.searchsorted(own, ranks[start], side, sorter=order)) for side in ("left", "right"))
        places: Numbers = order[first:last]
        places = places[self.left[self.passages :][places] >= length]
        ending: Numbers = places[own[places + end] == ranks[start + end]]
        return ending


def _hits(shards: Sequence[Path], places: Sequence[_Place]) -> Iterator[tuple[_Place, Hit]]:
    """The documents of sorted places."""
    for number, of_shard in groupby(places, key=lambda place: place.shard):
        batches = list(read_texts(shards[number]))  # mapped, not read
        for place in of_shard:
            batch = batches[place.batch]
            name, text, source = (batch.column(column)[place.row] for column in ("id", "text", "source"))
            content = memoryview(text.as_buffer())
            before = content[max(0, place.start - _CONTEXT) : place.start]
            after = content[place.end : place.end + _CONTEXT]
            around = (_cut(part) for part in (before, after))
            yield place, Hit(source.as_py(), name.as_py(), shards[number], *around)


def _cut(content: memoryview) -> str:
    """A part of a text that may begin or end within a character."""
    return " ".join(bytes(content).decode("utf-8", "ignore").split())
