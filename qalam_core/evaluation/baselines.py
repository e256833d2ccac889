"""Count-based baselines: a unigram over token ids, Kneser-Ney n-grams over tokens and over characters, and a character
bigram for unknown words.

Streams are 1-D arrays of ids, START ids END for each document; costs are nats per position.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.package.runtime.architecture import END, SPECIALS, START

TOKEN_ORDER, CHARACTER_ORDER = 4, 10

CHARACTERS = len(SPECIALS) + 0x110000
"""Symbols of a character stream: the special ones, and each code point of Unicode after them."""

_KEY_BITS = 64

Ids = NDArray[np.integer]
Numbers = NDArray[np.int32]
Floats = NDArray[np.float64]
Unsigned = TypeVar("Unsigned", np.uint32, np.uint64)


@dataclass(frozen=True)
class Unigram:
    """Add-k unigram: P(w) = (c(w) + k) / (N + k V), N the training tokens other than START."""

    nats_by_id: Floats

    @classmethod
    def fit(cls, streams: Sequence[Ids], vocab_size: int, k: float = 1.0) -> Unigram:
        """Count all of `streams`; every id must be below `vocab_size`."""
        counts = np.zeros(vocab_size)
        for stream in streams:
            counts += np.bincount(stream, minlength=vocab_size)
        counts[START] = 0
        return cls(np.log(counts.sum() + k * vocab_size) - np.log(counts + k))

    def nats(self, ids: Ids) -> Floats:
        """-ln P of each token of `ids`; 0 at each START, which is not predicted."""
        nats: Floats = np.where(ids == START, 0.0, self.nats_by_id[ids])
        return nats


@dataclass(frozen=True)
class KneserNey:
    """Interpolated Kneser-Ney n-grams with one absolute discount per order (Chen and Goodman 1999, equation 20).

    P(w | h) = (max(c(h w) - D, 0) + D N(h .) P(w | h')) / c(h .), where h' is h without its first symbol, N counts
    distinct continuations, and c of the longest n-grams is their number. Shorter ones have continuation counts, the
    number of distinct symbols before them, but for those that begin with START, which nothing precedes: these keep
    their number. P(w) backs off to the uniform 1/V. D = n1 / (n1 + 2 n2) per order, n1 and n2 the n-grams with counts
    1 and 2. Contexts do not reach beyond a document's START, which is never predicted.

    Counting and scoring are one pass: the positions of the training text and of the scored text are sorted together by
    the `order` symbols that end there, read backwards. All occurrences of an n-gram are then neighbours, for every n at
    once, so that one sort numbers the n-grams of all orders, exactly. Memory: about 50 bytes per symbol.
    """

    stream: Ids
    vocab_size: int
    order: int

    @classmethod
    def fit(cls, streams: Sequence[Ids], vocab_size: int, order: int) -> KneserNey:
        """Count all of `streams`; every id must be below `vocab_size`, and documents do not cross the arrays."""
        assert all(len(stream) == 0 or stream[0] == START for stream in streams), "every stream begins with START"
        return cls(np.concatenate([np.zeros(0, np.uint16), *streams]), vocab_size, order)

    def nats(self, ids: Ids) -> Floats:
        """-ln P of each symbol of `ids`, which begin with START; 0 at each START."""
        assert len(ids) and ids[0] == START
        known = len(self.stream)
        text = np.concatenate([self.stream, ids]).astype(np.min_scalar_type(self.vocab_size), copy=False)
        depth, place, shared = _sorted_positions(text, self.order)
        trained_before = np.zeros(len(text) + 1, np.int32)  # per place in the order: training positions before it
        np.cumsum(place < known, dtype=np.int32, out=trained_before[1:])
        scored = np.arange(known, len(text))
        chance = np.full(len(ids), 1 / self.vocab_size)
        before = np.zeros(len(text), np.int32)  # per position: number of the (n-1)-gram that ends there
        contexts = 1
        starts = _places(shared < 1)
        for n in range(1, self.order + 1):
            # places where the n-grams, and the (n+1)-grams, begin
            longer = _places(shared < n + 1) if n < self.order else starts
            counts = np.diff(trained_before[starts], append=trained_before[-1])
            here = place[starts]
            whole = depth[here] >= n
            if n == 1:
                whole &= text[here] != START
            seen = whole & (counts > 0)
            if n < self.order:
                trained = np.diff(trained_before[longer], append=trained_before[-1]) > 0
                before_them = np.add.reduceat(trained, np.flatnonzero(shared[longer] < n), dtype=np.int32)
                counts = np.where(depth[here] == n, counts, before_them)
            counts[~seen] = 0
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            # without n-grams seen once the estimate would be 0, and unseen n-grams would have no probability
            discount = once / (once + 2 * twice) if once else 0.5
            # the scored positions with n symbols from START on, and the numbers of their contexts
            deep = scored[depth[scored] >= n] if n > 1 else scored[text[scored] != START]
            needed, theirs = np.unique(
                before[deep - 1] if n > 1 else np.zeros(len(deep), np.int32), return_inverse=True
            )
            which = np.zeros(contexts, np.int32)
            which[needed] = np.arange(1, len(needed) + 1)
            context = which[before[here[seen] - 1]] if n > 1 else which[np.zeros(int(seen.sum()), np.int32)]
            followers = counts[seen][context > 0]
            context = context[context > 0] - 1
            total = np.bincount(context, followers, len(needed))
            types = np.bincount(context, minlength=len(needed))
            number = np.empty(len(text), np.int32)
            number[place] = np.cumsum(shared < n, dtype=np.int32) - 1
            follows = total[theirs] > 0
            deep, theirs = deep[follows], theirs[follows]
            kept = np.maximum(counts[number[deep]] - discount, 0.0)
            chance[deep - known] = (kept + discount * types[theirs] * chance[deep - known]) / total[theirs]
            before, contexts, starts = number, len(starts), longer
        nats: Floats = np.where(ids == START, 0.0, -np.log(chance))
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


def characters(texts: pa.Array) -> Ids:
    """The characters of texts as one stream: after the special symbols, in the order of Unicode."""
    parts: list[Ids] = [np.zeros(0, np.uint32)]
    for text in texts.to_pylist():
        parts.append(np.frombuffer(f"\0{text}\0".encode("utf-32-le"), np.uint32) + np.uint32(len(SPECIALS)))
        parts[-1][0], parts[-1][-1] = START, END
    return np.concatenate(parts)


def _places(flags: NDArray[np.bool_]) -> Numbers:
    """Where flags are set; half as large as numpy's."""
    return np.flatnonzero(flags).astype(np.int32)


def _sorted_positions(text: Ids, order: int) -> tuple[NDArray[np.uint8], Numbers, NDArray[np.uint8]]:
    """Positions sorted by the up to `order` symbols that end there, the last one first.

    -> per position, how many symbols from its document's START to it, at most `order`; the positions in order; and per
    place, how many of these symbols it shares with the place before, `order` when it shares all that there are.
    """
    depth = np.ones(len(text), np.uint8)
    inside = text != START
    for n in range(1, order):
        # those whose left neighbour has n symbols
        np.copyto(depth[1:], n + 1, where=inside[1:] & (depth[:-1] == n))
    alphabet = np.flatnonzero(np.bincount(text))
    digit = np.zeros(int(alphabet[-1]) + 1, np.uint64)
    digit[alphabet] = np.arange(1, len(alphabet) + 1)  # 0 is what precedes a document
    bits = len(alphabet).bit_length()
    width = min(order, _KEY_BITS // bits)
    # one number for `width` symbols, the position's own in the highest bits
    own = digit[text]
    own <<= np.uint64(bits * (width - 1))
    packed = own.copy()
    for _ in range(width - 1):
        earlier = packed[:-1] >> np.uint64(bits)
        earlier *= inside[1:]
        np.bitwise_or(own[1:], earlier, out=packed[1:])
    del own
    place = np.argsort(packed).astype(np.int32)
    keys, length = packed, width
    while length < order:  # twice as many symbols, by the ranks of both halves
        ordered = keys[place]
        rank = np.empty(len(text), np.uint32)
        rank[place] = np.cumsum(np.append(True, ordered[1:] != ordered[:-1]), dtype=np.uint32)
        del ordered
        keys = rank.astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= _earlier(rank, depth, length)
        place = np.argsort(keys).astype(np.int32)
        length *= 2
    del keys
    shared = np.zeros(len(text), np.uint8)
    equal = np.append(False, np.ones(len(text) - 1, np.bool_))
    for begin in range(0, order, width):
        differ = _earlier(packed, depth, begin)[place]
        differ[1:] ^= differ[:-1].copy()
        for n in range(min(width, order - begin)):
            shared += equal & (differ >> np.uint64(bits * (width - 1 - n)) == 0)
        equal &= differ == 0
    return depth, place, shared


def _earlier(values: NDArray[Unsigned], depth: NDArray[np.uint8], distance: int) -> NDArray[Unsigned]:
    """Per position, the value of the one `distance` before it in the same document, and 0 where there is none."""
    if not distance:
        return values
    earlier = np.zeros_like(values)
    np.copyto(earlier[distance:], values[:-distance], where=depth[distance:] > distance)
    return earlier
