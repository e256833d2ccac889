"""Phrases that recur in the new documents of a source and did not before: templates, spam, a planted sentence.

A night's honest news repeats itself as well: names, titles, formulas. Those recurred before, or in few documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.corpus.words import Hashes, hash_ngrams, ngrams, words
from qalam_core.recipe import Frozen

WORDS = 8  # of a phrase
CHARACTERS = 2_000  # of the beginning, and of the end, of a document that are looked at
SHOWN = 200  # characters of a phrase
_SHARE = 0.2  # of the new documents
_TIMES = 5  # the share of the old ones


class Phrase(Frozen):
    """A phrase that recurs in the new documents of a source."""

    source: str
    text: str  # normalised, words separated by a space; at most SHOWN characters
    new: int  # documents with it, of `of_new` that were looked at
    of_new: int
    old: int
    of_old: int

    @property
    def message(self) -> str:
        """One sentence."""
        new, old = self.new / self.of_new, self.old / self.of_old
        return f'"{self.text}" is in {new:.0%} of the new documents of {self.source}, and in {old:.0%} of those before.'


class _Phrases(NamedTuple):
    """The different phrases of some documents."""

    hashes: Hashes  # (N,) sorted
    counts: NDArray[np.int64]  # (N,) documents with each
    first: NDArray[np.int64]  # (N,) the word at which each begins where it is first
    spelled: pa.Array  # the documents' words

    @staticmethod
    def of(texts: Sequence[str]) -> _Phrases:
        ends = [text if len(text) <= 2 * CHARACTERS else f"{text[:CHARACTERS]} {text[-CHARACTERS:]}" for text in texts]
        found = words(pa.array(ends, pa.large_string()))
        starts, borders = ngrams(found.borders, WORDS)
        documents = np.repeat(np.arange(len(texts)), np.diff(borders))
        hashes = hash_ngrams(found.hashes, starts, WORDS)
        order = np.lexsort((documents, hashes))  # stable: the first place of each phrase comes first
        again = np.zeros(len(order), np.bool_)
        again[1:] = (np.diff(hashes[order]) == 0) & (np.diff(documents[order]) == 0)
        once = order[~again]
        distinct, first, counts = np.unique(hashes[once], return_index=True, return_counts=True)
        return _Phrases(distinct, counts, starts[once[first]], found.distinct.take(pa.array(found.ids)))


def recurring(source: str, old: Sequence[str], new: Sequence[str]) -> Phrase | None:
    """The phrase that is in the most of the `new` documents of a source, of those that are in a fifth of them, and in a
    fifth of that share of the `old` ones at most; None where there is none."""
    before, now = _Phrases.of(old), _Phrases.of(new)
    often = np.flatnonzero(now.counts >= _SHARE * len(new))
    at = np.minimum(np.searchsorted(before.hashes, now.hashes[often]), max(len(before.hashes) - 1, 0))
    known = before.hashes[at] == now.hashes[often] if len(before.hashes) else np.zeros(len(often), np.bool_)
    counts = np.where(known, before.counts[at], 0) if len(before.hashes) else np.zeros(len(often), np.int64)
    rare = counts / len(old) <= now.counts[often] / len(new) / _TIMES
    often, counts = often[rare], counts[rare]
    if not len(often):
        return None
    best = np.lexsort((now.first[often], -now.counts[often]))[0]
    start = int(now.first[often[best]])
    text = " ".join(now.spelled.slice(start, WORDS).to_pylist())[:SHOWN]
    count = int(now.counts[often[best]])
    return Phrase(source=source, text=text, new=count, of_new=len(new), old=int(counts[best]), of_old=len(old))
