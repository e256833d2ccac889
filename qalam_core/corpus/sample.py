"""A sample of a split, of bounded size: the documents that a vocabulary is trained on.

The documents with the lowest hashes of (seed, id) are drawn, and an id is the digest of the text: the same documents
are drawn from the same corpus in any order and in any shards, and one that is added displaces few of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.corpus.splits import read_texts


def sample(shards: Sequence[Path], limit: int, seed: int) -> Iterator[pa.LargeStringArray]:
    """Texts of at most `limit` bytes in all, at least one, in batches. Memory: 16 bytes per document drawn."""
    threshold = _threshold(shards, limit, seed)
    for shard in shards:
        for batch in read_texts(shard):
            yield batch.column("text").filter(pa.array(draws(batch, seed) < threshold))


def _threshold(shards: Sequence[Path], limit: int, seed: int) -> np.uint64:
    """The draw below which documents fit into `limit` bytes."""
    drawn, sizes = np.empty(0, np.uint64), np.empty(0, np.int64)
    threshold = np.uint64(2**64 - 1)

    def cut() -> None:
        nonlocal drawn, sizes, threshold
        order = np.argsort(drawn, kind="stable")
        drawn, sizes = drawn[order], sizes[order]
        fits = max(1, int(np.searchsorted(np.cumsum(sizes), limit, side="right")))
        if fits < len(drawn):
            threshold = drawn[fits]
            drawn, sizes = drawn[:fits], sizes[:fits]

    for shard in shards:
        for batch in read_texts(shard):
            drawn_here = draws(batch, seed)
            below = drawn_here < threshold
            drawn = np.append(drawn, drawn_here[below])
            sizes = np.append(sizes, pc.binary_length(batch.column("text")).to_numpy()[below])
            if sizes.sum() > 2 * limit:  # not after each batch: sorting would take longer than reading
                cut()
    cut()
    return threshold


def draws(batch: pa.RecordBatch, seed: int) -> NDArray[np.uint64]:
    """A hash of (seed, id) for each document of a batch."""
    salt = b"%d:" % seed
    heads = [hashlib.sha256(salt + id_.encode()).digest()[:8] for id_ in batch.column("id").to_pylist()]
    return np.frombuffer(b"".join(heads), ">u8").astype(np.uint64)
