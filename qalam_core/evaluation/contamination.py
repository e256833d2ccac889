"""Contamination: how much of the test documents occurs in the training text, by 13-grams of words.

Words, not tokens, so that the figure does not depend on the tokenizer.
Source: Brown et al., Language Models are Few-Shot Learners (2020), appendix C, for 13-grams. Coverage is counted rather
than "any hit", because formulas and quotations recur in Arabic prose without being a leak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.corpus.words import Hashes, hash_ngrams, mixed
from qalam_core.evaluation.results import Contamination, rounded

GRAM = 13  # words
COPIED = 0.5  # a test document counts as copied when more than this share of its words is in such n-grams


def covered(test: Sequence[str], train: Iterable[pa.Array]) -> NDArray[np.float64]:
    """Per test document, the share of its words in a GRAM-gram that occurs in some training document.

    NaN for a document of fewer words. Words are separated by white space. Memory is bounded by the test documents:
    their n-grams are kept as 64-bit hashes, and `train` is read once.
    """
    words, documents = _words(pa.array(test, pa.string()))
    known = words.unique()
    starts, hashes = _ngrams(words, documents, known)
    distinct, place = np.unique(hashes, return_inverse=True)
    found = np.zeros(len(distinct), np.bool_)
    for batch in train if len(distinct) else ():
        _, theirs = _ngrams(*_words(batch), known)
        at = np.minimum(np.searchsorted(distinct, theirs), len(distinct) - 1)
        found[at[distinct[at] == theirs]] = True
    hits = starts[found[place]]
    edges = np.zeros(len(words) + 1, np.int64)
    np.add.at(edges, hits, 1)
    np.add.at(edges, hits + GRAM, -1)
    inside = np.cumsum(edges[:-1]) > 0
    sizes = np.bincount(documents, minlength=len(test))
    with np.errstate(invalid="ignore"):
        shares = np.bincount(documents, inside, minlength=len(test)) / sizes
    return np.where(sizes >= GRAM, shares, np.nan)


def summary(shares: NDArray[np.float64], words: NDArray[np.int64]) -> Contamination:
    """Over all documents, from the shares that `covered` gives and their numbers of words."""
    long = ~np.isnan(shares)
    total = int(words[long].sum())
    return Contamination(
        documents=int(long.sum()),
        copied=rounded((shares[long] > COPIED).mean()) if total else 0.0,
        covered=rounded((shares[long] * words[long]).sum() / total) if total else 0.0,
    )


def _words(texts: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """All words, concatenated, and the index of each word's document."""
    lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    sizes = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return lists.flatten(), np.repeat(np.arange(len(texts)), sizes)


def _ngrams(words: pa.Array, documents: NDArray[np.int64], known: pa.Array) -> tuple[NDArray[np.int64], Hashes]:
    """The start index of each GRAM-gram of known words within one document, and its hash."""
    last = len(words) - GRAM + 1
    if last <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    ids = pc.fill_null(pc.index_in(words, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    unknown = np.concatenate([[0], np.cumsum(ids < 0)])
    one = documents[:last] == documents[GRAM - 1 :]
    starts = np.flatnonzero(one & (unknown[GRAM:] == unknown[:-GRAM]))
    values = mixed(ids.astype(np.uint64))
    return starts, hash_ngrams(values, starts, GRAM)
