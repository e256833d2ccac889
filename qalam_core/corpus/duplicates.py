"""Duplicates: the keys that documents share when they are equal, exactly or nearly.

Near-duplicates are found by MinHash and banding: 14 bands of 8 values over 5-grams of words, as in FineWeb2 (Penedo et
al. 2025, arXiv 2506.20920), so that two documents share a band with probability 1 - (1 - s^8)^14 when their 5-grams
have Jaccard similarity s: 65% at s = 0.72, 92% at 0.8. Documents that share a band, directly or through others, form a
cluster, of which the one with the smallest digest is kept. As the held-out splits take the lowest digests, no cluster
is in training and in a held-out split, and a document that joins a held-out document's cluster later is either dropped
or held out in its place. matches.py finds the documents that share a key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rensa
from numpy.typing import NDArray

from qalam_core.corpus.words import Hashes, Numbers, Words, hash_ngrams, mixed, ngrams

GRAM = 5  # words
BANDS = 14
ROWS = 8  # values per band

_KINDS = np.uint64(15)  # the bits of a key that have its kind: the number of its band, or BANDS for a digest's key

_SEED = 1

Digests = NDArray[np.bytes_]


def band_keys(words: Words) -> tuple[NDArray[np.bool_], Hashes]:
    """Which documents have GRAM words or more, and their band keys, (documents, BANDS)."""
    starts, borders = ngrams(words.borders, GRAM)
    long = np.diff(borders) > 0
    if not long.any():
        return long, np.zeros((0, BANDS), np.uint64)
    rows = np.append(borders[:-1][long], borders[-1]).astype(np.uint64)
    hashes = mixed(hash_ngrams(words.hashes, starts, GRAM))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, BANDS * ROWS, _SEED)
    values = np.array(matrix.to_rows(), np.uint64).reshape(-1, BANDS, ROWS)
    keys = np.zeros(values.shape[:2], np.uint64)
    for row in range(ROWS):
        keys = mixed(keys ^ values[:, :, row])
    return long, keys


def document_keys(digests: Digests, long: NDArray[np.bool_], bands: Hashes) -> tuple[Hashes, Numbers]:
    """The keys of documents, and the row of each: one of its digest, and those of its `bands` if it is `long`.

    Keys of different kinds differ.
    """
    rows, kinds = np.arange(len(digests)), np.arange(BANDS, dtype=np.uint64)
    heads = np.ascontiguousarray(digests).view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
    keys = np.concatenate([(bands & ~_KINDS | kinds).reshape(-1), heads & ~_KINDS | np.uint64(BANDS)])
    return keys, np.concatenate([np.repeat(rows[long], BANDS), rows])


def by_key(keys: Hashes, rows: Numbers) -> tuple[Hashes, Numbers]:
    """Sorted by key, and by row where keys are equal."""
    order = np.argsort(keys)  # several times as fast as a stable sort; the order of equal keys depends on the processor
    keys, rows = keys[order], rows[order]
    new = first_of(keys)
    tied = ~(new & np.append(new[1:], True))
    rows[tied] = rows[tied][np.lexsort((rows[tied], keys[tied]))]
    return keys, rows


def first_of(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which elements of a sorted array are not the same as the one before."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def of_bands(keys: Hashes) -> NDArray[np.bool_]:
    """Which keys are of bands: documents that share one are similar. Of the others they are equal, almost surely."""
    found: NDArray[np.bool_] = keys & _KINDS != BANDS
    return found


def unite(labels: Numbers, one: Numbers, other: Numbers) -> None:
    """Label the items that are linked, one[i] with other[i], with the smallest label of their cluster, in place:
    union-find over arrays. A label is an item that is its own label."""
    while len(one):
        a, b = labels[one], labels[other]
        low = np.minimum(a, b)
        np.minimum.at(labels, a, low)
        np.minimum.at(labels, b, low)
        while (flat := labels[labels] != labels).any():  # path compression
            labels[flat] = labels[labels[flat]]
        apart = labels[one] != labels[other]
        one, other = one[apart], other[apart]
