"""Count-based baselines: two over token ids that a trained model must beat, and one over the letters of words.
Takes the training split's token arrays (START ids END per document), gives nats per token of other arrays; the speller
takes the vocabulary's words and gives nats per word.
It does not know files, tokenizers or neural networks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.runtime.architecture import START

__all__ = ["MAX_TOKENS", "KneserNeyTrigram", "Speller", "Unigram"]

MAX_TOKENS = 20_000_000
"""Baselines are fitted on at most this many tokens, the first ones: about 1.5 GB of peak memory."""

_KEY_BITS = 64

Ids = NDArray[np.integer]
Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Unigram:
    """Add-k unigram: P(w) = (c(w) + k) / (N + k V), N the training tokens other than START."""

    nats_by_id: Floats

    @classmethod
    def fit(cls, tokens: Sequence[Ids], vocab_size: int, k: float = 1.0, max_tokens: int = MAX_TOKENS) -> Unigram:
        """Count the first `max_tokens` ids of `tokens`; every id must be below `vocab_size`."""
        stream = _first(tokens, max_tokens)
        counts = np.bincount(stream[stream != START], minlength=vocab_size).astype(np.float64)
        return cls(np.log(counts.sum() + k * vocab_size) - np.log(counts + k))

    def nats(self, ids: Ids) -> Floats:
        """-ln P of each token of `ids` (concatenated documents); 0 at each START, which is given, not predicted."""
        nats: Floats = np.where(ids == START, 0.0, self.nats_by_id[ids])
        return nats


@dataclass(frozen=True)
class _Order:
    """One order's counts: n-gram keys, ascending, and for each context the sum and number of its n-grams."""

    keys: Keys
    counts: Counts
    contexts: Keys
    totals: Floats
    types: Floats
    discount: float

    @classmethod
    def of(cls, keys: Keys, counts: Counts, bits: int) -> _Order:
        """From distinct ascending keys whose low `bits` are the predicted token."""
        contexts_of_keys = keys >> np.uint64(bits)
        starts = _run_starts(contexts_of_keys)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return cls(
            keys=keys,
            counts=counts,
            contexts=contexts_of_keys[starts],
            totals=np.add.reduceat(counts, starts).astype(np.float64) if len(starts) else np.zeros(0),
            types=np.diff(starts, append=len(keys)).astype(np.float64),
            # without n-grams seen once the estimate would be 0, and unseen ones impossible
            discount=once / (once + 2 * twice) if once else 0.5,
        )

    def interpolate(self, contexts: Keys, keys: Keys, lower: Floats) -> Floats:
        """(max(c - D, 0) + D types lower) / total; where the context was never seen, `lower` as it is."""
        if len(self.keys) == 0:
            return lower
        place, seen = _find(self.contexts, contexts)
        total = np.where(seen, self.totals[place], 1.0)
        at, known = _find(self.keys, keys)
        counted = np.where(known, np.maximum(self.counts[at] - self.discount, 0.0), 0.0)
        mixed: Floats = np.where(seen, (counted + self.discount * self.types[place] * lower) / total, lower)
        return mixed


@dataclass(frozen=True)
class KneserNeyTrigram:
    """Interpolated Kneser-Ney trigram with one absolute discount per order (Chen and Goodman 1999).

    P(w | u v) = (max(c(u v w) - D, 0) + D N(u v .) P(w | v)) / c(u v), N counting distinct continuations;
    P(w | v) and P(w) have the same form over continuation counts, N(. v w) and N(. w), and below them
    stands the uniform 1/V. D = n1 / (n1 + 2 n2) per order, n1 and n2 the n-grams counted once and twice.
    The first token of a document has START alone as its context. Nothing can stand before START, so
    the bigrams that it opens keep their plain counts.
    """

    vocab_size: int
    bits: int
    unigrams: _Order
    bigrams: _Order
    trigrams: _Order

    @classmethod
    def fit(cls, tokens: Sequence[Ids], vocab_size: int, max_tokens: int = MAX_TOKENS) -> KneserNeyTrigram:
        """Count the first `max_tokens` ids of `tokens`; ValueError when three ids do not fit 64 bits."""
        bits = max(1, (vocab_size - 1).bit_length())
        if 3 * bits > _KEY_BITS:
            raise ValueError(f"a vocabulary of {vocab_size} is too large; trigrams of at most {2**21} ids fit 64 bits")
        stream = _first(tokens, max_tokens)
        pair_keys, triple_keys, firsts, thirds = _packed(stream, bits)
        trigram_keys, trigram_counts = np.unique(triple_keys[thirds], return_counts=True)
        opening_keys, opening_counts = np.unique(pair_keys[firsts], return_counts=True)
        followed_keys, followed_counts = np.unique(trigram_keys & np.uint64((1 << 2 * bits) - 1), return_counts=True)
        bigram_keys = np.concatenate([opening_keys, followed_keys])  # disjoint: START opens only the former
        order = np.argsort(bigram_keys)
        bigram_keys = bigram_keys[order]
        bigram_counts = np.concatenate([opening_counts, followed_counts])[order]
        word_keys, word_counts = np.unique(bigram_keys & np.uint64((1 << bits) - 1), return_counts=True)
        return cls(
            vocab_size,
            bits,
            _Order.of(word_keys, word_counts, bits),
            _Order.of(bigram_keys, bigram_counts, bits),
            _Order.of(trigram_keys, trigram_counts, bits),
        )

    def nats(self, ids: Ids) -> Floats:
        """-ln P of each token of `ids` (documents in a row, each opened by START); 0 at each START."""
        nats = np.zeros(len(ids))
        pair_keys, triple_keys, firsts, thirds = _packed(ids, self.bits)
        word = np.uint64(self.bits)
        predicted = firsts | thirds
        word_keys = pair_keys & np.uint64((1 << self.bits) - 1)
        uniform = np.full(len(ids), 1 / self.vocab_size)
        p1 = self.unigrams.interpolate(np.zeros(len(ids), np.uint64), word_keys, uniform)
        p2 = self.bigrams.interpolate(pair_keys >> word, pair_keys, p1)
        p3 = self.trigrams.interpolate(triple_keys >> word, triple_keys, p2)
        nats[predicted] = -np.log(np.where(thirds, p3, p2)[predicted])
        return nats


@dataclass(frozen=True)
class Speller:
    """The cost of an unknown word's letters: an add-one character bigram, so that <UNK> is not free.

    nats(word) = -sum ln P(c_i | c_{i-1}) over the characters and an end symbol, from a start symbol;
    P(b | a) = (n(a b) + 1) / (n(a) + A), A the characters of the fitting words, the end symbol, and one
    symbol for every other character. Such a character pays for that symbol, and ln 1,114,112 (the code
    points of Unicode) to be named.
    """

    pairs: Counter[tuple[str, str]]
    singles: Counter[str]
    alphabet: frozenset[str]

    OTHER: ClassVar[str] = "other"
    EDGE: ClassVar[str] = "edge"  # longer than one character, so that neither symbol is ever a letter

    @classmethod
    def fit(cls, words: Iterable[str]) -> Speller:
        """Count the words' letters, each word once."""
        pairs: Counter[tuple[str, str]] = Counter()
        for word in words:
            pairs.update(pairwise([cls.EDGE, *word, cls.EDGE]))
        singles: Counter[str] = Counter()
        for (before, _), count in pairs.items():
            singles[before] += count
        return cls(pairs, singles, frozenset(singles) - {cls.EDGE})

    def nats(self, word: str) -> float:
        """-ln of the probability of spelling `word`, its end included."""
        known = [letter if letter in self.alphabet else self.OTHER for letter in word]
        symbols = len(self.alphabet) + 2
        cost = known.count(self.OTHER) * math.log(0x110000)
        for before, after in pairwise([self.EDGE, *known, self.EDGE]):
            cost -= math.log((self.pairs[(before, after)] + 1) / (self.singles[before] + symbols))
        return cost


def _first(tokens: Sequence[Ids], limit: int) -> Ids:
    """The first `limit` ids, in one array; documents do not cross the arrays."""
    taken: list[Ids] = []
    left = limit
    for part in tokens:
        if left <= 0:
            break
        assert len(part) == 0 or part[0] == START, "every token array begins with START"
        taken.append(part[:left])
        left -= len(part)
    return np.concatenate(taken) if taken else np.zeros(0, np.uint16)


def _packed(ids: Ids, bits: int) -> tuple[Keys, Keys, NDArray[np.bool_], NDArray[np.bool_]]:
    """Per position: the key of (previous, this), of (the two previous, this), and which context is real.

    The third array marks a document's first token (START alone before it), the fourth the later ones.
    """
    shift = np.uint64(bits)
    words = ids.astype(np.uint64)
    pair_keys = words.copy()
    pair_keys[1:] |= words[:-1] << shift
    triple_keys = pair_keys.copy()
    triple_keys[2:] |= words[:-2] << (shift + shift)
    start = ids == START
    after_start = np.zeros(len(ids), np.bool_)
    after_start[1:] = start[:-1]
    firsts = after_start & ~start
    thirds = ~after_start & ~start
    return pair_keys, triple_keys, firsts, thirds


def _run_starts(values: Keys) -> NDArray[np.int64]:
    """Where each run of equal values begins, in an ascending array."""
    starts: NDArray[np.int64] = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint64(1)))
    return starts


def _find(sorted_keys: Keys, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """A valid index into `sorted_keys` (not empty) for each key, and whether the key is really there."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
