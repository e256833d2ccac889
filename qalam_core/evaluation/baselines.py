"""Count-based baselines: unigram and trigram over token ids, and a character bigram for unknown words.

Token arrays are 1-D, START ids END for each document; costs are nats per token.
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
        """-ln P of each token of `ids`; 0 at each START, which is not predicted."""
        nats: Floats = np.where(ids == START, 0.0, self.nats_by_id[ids])
        return nats


@dataclass(frozen=True)
class _Order:
    """The counts of one order: ascending n-gram keys, and for each context the sum and number of its n-grams."""

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
            # without n-grams seen once the estimate would be 0, and unseen n-grams would have no probability
            discount=once / (once + 2 * twice) if once else 0.5,
        )

    def interpolate(self, contexts: Keys, keys: Keys, lower: Floats) -> Floats:
        """(max(c - D, 0) + D types lower) / total; `lower` for a context that was never seen."""
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

    P(w | u v) = (max(c(u v w) - D, 0) + D N(u v .) P(w | v)) / c(u v), where N counts distinct continuations;
    P(w | v) and P(w) have the same form over continuation counts, N(. v w) and N(. w), and back off to the uniform
    1/V. D = n1 / (n1 + 2 n2) per order, n1 and n2 the n-grams counted once and twice. The first token of a document
    has START alone as its context. Nothing precedes START, so bigrams that begin with it keep their plain counts.
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
        """-ln P of each token of `ids`; 0 at each START."""
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
    """The cost of spelling an unknown word by an add-one character bigram, so that <UNK> is not free.

    nats(word) = -sum ln P(c_i | c_{i-1}) over the characters and an end symbol, from a start symbol;
    P(b | a) = (n(a b) + 1) / (n(a) + A), A the characters of the words it was fitted on, the end symbol, and one
    symbol for all other characters. Each of those costs that symbol, and ln 1,114,112 (the code points of Unicode).
    """

    pairs: Counter[tuple[str, str]]
    singles: Counter[str]
    alphabet: frozenset[str]

    OTHER: ClassVar[str] = "other"
    EDGE: ClassVar[str] = "edge"  # longer than one character, so that neither symbol is a letter

    @classmethod
    def fit(cls, words: Iterable[str]) -> Speller:
        """Count the character pairs of the words, each word once."""
        pairs: Counter[tuple[str, str]] = Counter()
        for word in words:
            pairs.update(pairwise([cls.EDGE, *word, cls.EDGE]))
        singles: Counter[str] = Counter()
        for (before, _), count in pairs.items():
            singles[before] += count
        return cls(pairs, singles, frozenset(singles) - {cls.EDGE})

    def nats(self, word: str) -> float:
        """-ln P of the characters of `word` and its end."""
        known = [letter if letter in self.alphabet else self.OTHER for letter in word]
        symbols = len(self.alphabet) + 2
        cost = known.count(self.OTHER) * math.log(0x110000)
        for before, after in pairwise([self.EDGE, *known, self.EDGE]):
            cost -= math.log((self.pairs[(before, after)] + 1) / (self.singles[before] + symbols))
        return cost


def _first(tokens: Sequence[Ids], limit: int) -> Ids:
    """The first `limit` ids, in one array; documents do not cross the arrays."""
    kept: list[Ids] = [np.zeros(0, np.uint16)]
    for part in tokens:
        assert len(part) == 0 or part[0] == START, "every token array begins with START"
        kept.append(part[: max(0, limit)])
        limit -= len(part)
    return np.concatenate(kept)


def _packed(ids: Ids, bits: int) -> tuple[Keys, Keys, NDArray[np.bool_], NDArray[np.bool_]]:
    """Per position: the key of the bigram and of the trigram that end there, and masks of documents' first tokens
    (only START precedes them) and of later ones."""
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
    """The indices where runs of equal values begin, in an ascending array."""
    starts: NDArray[np.int64] = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint64(1)))
    return starts


def _find(sorted_keys: Keys, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each key a valid index into `sorted_keys` (not empty), and whether the key is there."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
