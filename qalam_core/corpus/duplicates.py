"""Duplicates: which documents equal another, exactly or nearly, in a corpus of any size.

Near-duplicates are found by MinHash and banding: 14 bands of 8 values over 5-grams of words, as in FineWeb2 (Penedo et
al. 2025, arXiv 2506.20920), so that two documents share a band with probability 1 - (1 - s^8)^14 when their 5-grams
have Jaccard similarity s: 65% at s = 0.72, 92% at 0.8. Documents that share a band, directly or through others, form a
cluster, of which the one with the smallest digest is kept. As the held-out splits take the lowest digests, no cluster
is in training and in a held-out split, and a document that joins a held-out document's cluster later is either dropped
or held out in its place.

Memory: 16 bytes per document for the digests, three times that while they are merged, then at most 64 while clusters
are found. Temporary disk space: 136 bytes per document.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from qalam_core.corpus.words import Hashes, Numbers, Words, hash_ngrams, mixed, ngrams

GRAM = 5  # words
BANDS = 14
ROWS = 8  # values per band

_SEED = 1

Digests = NDArray[np.bytes_]


class KnownDigests:
    """The digests kept so far: sorted arrays, each at least twice as long as the next, 16 bytes per digest."""

    def __init__(self) -> None:
        self._levels: list[Digests] = []

    def add(self, digests: Digests, candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add the digests of `candidates`; -> which of them are new."""
        rows = np.flatnonzero(candidates)
        unique, first = np.unique(digests[rows], return_index=True)
        new = np.ones(len(unique), np.bool_)
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, unique), len(level) - 1)
            new &= level[at] != unique
        if new.any():
            self._levels.append(unique[new])
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            merged = np.concatenate(self._levels[-2:])
            merged.sort(kind="stable")  # two sorted runs: one merge
            self._levels[-2:] = [merged]
        fresh = np.zeros(len(digests), np.bool_)
        fresh[rows[first[new]]] = True
        return fresh


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


class Clusters:
    """Collects digests and band keys of documents in files of `folder`, and finds the clusters among them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"band-{band:02}" for band in range(BANDS)]
        self._digests, self._rows = folder / "digests", folder / "rows"
        with ExitStack() as opened:  # closes them when one cannot be opened
            paths = (self._digests, self._rows, *self._paths)
            self._files = [opened.enter_context(path.open("wb")) for path in paths]
            self._open = opened.pop_all()
        self._count = 0

    def add(self, digests: Digests, long: NDArray[np.bool_], keys: Hashes) -> None:
        """Add documents: the digests of all, and the keys of those that are `long` enough to have some."""
        rows = self._count + np.flatnonzero(long)
        self._count += len(digests)
        for file, values in zip(self._files, (digests, rows, *keys.T), strict=True):
            file.write(np.ascontiguousarray(values).tobytes())

    def finish(self) -> tuple[Digests, NDArray[np.bool_], Numbers]:
        """-> all digests, which documents to drop, and the row of the one that is kept in place of each.

        Rows are in the order in which documents were added.
        """
        self.close()
        rows = np.fromfile(self._rows, np.int64)
        labels = np.arange(len(rows))
        for path in self._paths:
            _join(labels, np.fromfile(path, np.uint64))
        digests = np.fromfile(self._digests, "S16")
        dropped = np.zeros(self._count, np.bool_)
        members = np.flatnonzero(np.bincount(labels, minlength=1)[labels] > 1) if len(labels) else labels
        by_digest = members[np.argsort(digests[rows[members]], kind="stable")]
        _, first, cluster = np.unique(labels[by_digest], return_index=True, return_inverse=True)
        kept = np.arange(self._count)
        kept[rows[by_digest]] = rows[by_digest[first]][cluster]
        dropped[rows[members]] = True
        dropped[rows[by_digest[first]]] = False
        return digests, dropped, kept

    def close(self) -> None:
        """Close the files."""
        self._open.close()


def _join(labels: Numbers, keys: Hashes) -> None:
    """Label documents that share a key with the smallest row of their cluster, in place: union-find over arrays."""
    order = np.argsort(keys)
    ordered = keys[order]
    del keys
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    one, other = order[equal], order[equal + 1]
    del order, ordered
    while len(one):
        a, b = labels[one], labels[other]
        low = np.minimum(a, b)
        np.minimum.at(labels, a, low)
        np.minimum.at(labels, b, low)
        while (flat := labels[labels] != labels).any():  # path compression
            labels[flat] = labels[labels[flat]]
        apart = labels[one] != labels[other]
        one, other = one[apart], other[apart]
