"""Words and n-grams of words of many normalised texts at once, as flat arrays with document borders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplication modulo 2 to the 64 loses no bits


@dataclass(frozen=True)
class Words:
    """The N words of D documents, concatenated; words are separated by white space."""

    ids: Numbers  # (N,) indices into `distinct`
    borders: Numbers  # (D + 1,) where each document's words begin; the last is N
    distinct: pa.Array  # the spellings

    @property
    def sizes(self) -> Numbers:
        """(D,) words of each document."""
        return np.diff(self.borders)

    @cached_property
    def documents(self) -> Numbers:
        """(N,) the document of each word."""
        return np.repeat(np.arange(len(self.borders) - 1), self.sizes)

    @cached_property
    def hashes(self) -> Hashes:
        """(N,) 64-bit hashes that depend on the word's spelling alone."""
        return _spellings(self.distinct).take(self.ids)

    def summed(self, per_spelling: Numbers) -> Numbers:
        """(D,) a number of each distinct word, summed over each document's words."""
        sums = np.concatenate([[0], np.cumsum(per_spelling[self.ids], dtype=np.int64)])
        return np.diff(sums[self.borders])


def words(texts: pa.Array) -> Words:
    """The words of `texts` (large_string)."""
    lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    borders = lists.offsets.to_numpy().astype(np.int64)
    coded = pc.dictionary_encode(lists.values.slice(borders[0], borders[-1] - borders[0]))
    found = coded.indices.to_numpy().astype(np.int64)
    borders = borders - borders[0]
    empty = pc.index(coded.dictionary, "").as_py()
    if empty >= 0:  # a text without words is split into one empty word
        is_word = found != empty
        borders = np.concatenate([[0], np.cumsum(is_word)])[borders]
        found = found[is_word]
    return Words(found, borders, coded.dictionary)


def ngrams(borders: Numbers, n: int) -> tuple[Numbers, Numbers]:
    """Where each `n`-gram within one document begins, and (D + 1,) where each document's n-grams begin.

    `borders` (D + 1,) are where each document's words begin.
    """
    counts = np.maximum(np.diff(borders) - n + 1, 0)
    first = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(borders[:-1] - first[:-1], counts) + np.arange(first[-1]), first


def hash_ngrams(values: Hashes, starts: Numbers, n: int) -> Hashes:
    """A hash of the `n` values that begin at each of `starts`."""
    hashes = np.zeros(len(starts), np.uint64)
    for step in range(n):
        hashes = hashes * np.uint64(_BASE) + values[starts + step]
    return hashes


def mixed(values: Hashes) -> Hashes:
    """splitmix64's finalizer: mixes the bits of each number."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _spellings(strings: pa.Array) -> Hashes:
    """A hash of each string's bytes: differences of one running polynomial, shifted to where each begins."""
    if not len(strings):
        return np.zeros(0, np.uint64)
    _, offsets, data = strings.buffers()
    borders = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    letters = np.frombuffer(data or b"", np.uint8)[borders[0] : borders[-1]].astype(np.uint64) + np.uint64(1)
    borders = borders - borders[0]
    powers = _powers(_BASE, len(letters) + 1)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters * powers[1:], dtype=np.uint64)])
    back = _powers(pow(_BASE, -1, 1 << 64), len(letters) + 1)
    return mixed((sums[borders[1:]] - sums[borders[:-1]]) * back[borders[:-1]])


def _powers(base: int, count: int) -> Hashes:
    """1, base, base squared and so on, modulo 2 to the 64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
