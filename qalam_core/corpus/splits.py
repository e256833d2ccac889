"""Splits: which of train, validation and test a document is in, and the Arrow shards of each split.

Shards have content-defined borders: once a shard is half full, a document's digest decides whether it ends there. So a
file that is added to the corpus changes the shards around its own text; later ones keep their borders and bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.corpus.duplicates import Digests
from qalam_core.recipe import Frozen

SPLITS = ("train", "validation", "test")

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("source", pa.string())])

WRITE_BYTES = 1 << 20  # text per record batch of a shard
ENCODE_BYTES = 8_000_000  # text that is encoded at once; each thread needs about ten times as much memory


class Shares(Frozen):
    """Shares of the documents that are held out."""

    validation: float
    test: float


def read_split(folder: Path, split: str) -> list[Path]:
    """The shards of one split, in order; none when its share is 0."""
    return sorted(folder.glob(f"{split}-*.arrow"))


def read_texts(shard: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, mapped into memory rather than read."""
    with pa.memory_map(str(shard)) as mapped, ipc.open_file(mapped) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def text_chunks(shard: Path) -> Iterator[pa.LargeStringArray]:
    """The texts of a shard, joined to about ENCODE_BYTES each: in more text, more words repeat."""
    gathered: list[pa.Array] = []
    for batch in read_texts(shard):
        gathered.append(batch.column("text"))
        if sum(map(text_bytes, gathered)) >= ENCODE_BYTES:
            yield pa.concat_arrays(gathered)
            gathered.clear()
    if gathered:
        yield pa.concat_arrays(gathered)


def text_bytes(texts: pa.LargeStringArray) -> int:
    """UTF-8 bytes of texts."""
    return pc.sum(pc.binary_length(texts)).as_py() or 0


def ids(digests: Digests) -> list[str]:
    """The first 16 hex digits of each digest."""
    return [f"{head:016x}" for head in half(digests, 0).tolist()]


def half(digests: Digests, which: int) -> NDArray[np.uint64]:
    """The first or second 8 bytes of each digest, as a number."""
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 2)[:, which].astype(np.uint64)


def required_splits(shares: Shares) -> list[int]:
    """Indices of the splits that must not be empty."""
    return [index for index, share in enumerate((1.0, shares.validation, shares.test)) if share > 0]


def below(digests: Digests, share: float) -> NDArray[np.bool_]:
    """Which digests are in the lowest `share` of all possible ones, by their first 8 bytes."""
    found: NDArray[np.bool_] = half(digests, 0) / 2.0**64 < share
    return found


def assign(digests: Digests, shares: Shares, others: int = 0) -> NDArray[np.int8]:
    """The split of each document, an index into SPLITS, by its digest's first 8 bytes: test takes the lowest.

    A required split that is empty by chance, in a small corpus, gets the smallest digest of the largest split.
    `others` are training documents besides, with larger digests than two that are among `digests`.
    """
    train, validation, test = range(len(SPLITS))
    held_out = np.where(below(digests, shares.test), test, validation)
    split = np.where(below(digests, shares.test + shares.validation), held_out, train).astype(np.int8)
    needed = required_splits(shares)
    counts = np.bincount(split, minlength=len(SPLITS))[needed]
    if counts.all() or counts.sum() + others < len(needed):
        return split
    members = {index: sorted(np.flatnonzero(split == index), key=digests.__getitem__) for index in needed}
    for index in needed:
        if not members[index]:
            largest = max(needed, key=lambda other: len(members[other]) + (others if other == train else 0))
            members[index].append(members[largest].pop(0))
            split[members[index][0]] = index
    return split


class Shards:
    """The files of one split, each of half to twice `size` bytes of text but for the last."""

    def __init__(self, folder: Path, split: str, size: int) -> None:
        self.counts: Counter[str] = Counter()  # documents, characters, bytes, shards
        self._folder, self._split, self._size = folder, split, size
        self._waiting: list[pa.RecordBatch] = []
        self._filled, self._waiting_bytes = 0, 0
        self._file: Any = None

    def write(self, texts: pa.Array, names: pa.Array, digests: Digests) -> None:
        """Add documents, in their order."""
        if not len(texts):
            return
        sizes = pc.binary_length(texts).to_numpy()
        self.counts["documents"] += len(texts)
        self.counts["characters"] += pc.sum(pc.utf8_length(texts)).as_py()
        self.counts["bytes"] += int(sizes.sum())
        # with this probability per byte, a half full shard is full at its end, on average
        ending = np.flatnonzero(half(digests, 1) / 2.0**64 < sizes / (self._size / 2))
        batch = pa.record_batch([pa.array(ids(digests), pa.string()), texts, names], schema=SCHEMA)
        start = 0
        while start < len(batch):
            ends = self._filled + np.cumsum(sizes[start:])
            half_full = start + int(np.searchsorted(ends, self._size / 2))
            over = start + int(np.searchsorted(ends, 2 * self._size, side="right"))
            over = max(over, start + (not self._filled))  # one document may be larger than a shard
            border = np.searchsorted(ending, half_full)
            end = min(int(ending[border]) + 1 if border < len(ending) else len(batch) + 1, over)
            self._add(batch.slice(start, min(end, len(batch)) - start), sizes[start:end])
            if end < len(batch) or (border < len(ending) and int(ending[border]) + 1 == len(batch) <= over):
                self.close()
            start = end

    def _add(self, batch: pa.RecordBatch, sizes: NDArray[np.int64]) -> None:
        """Add documents to the current file; its record batches have content-defined borders as well."""
        self._filled += int(sizes.sum())
        while len(batch):
            ends = self._waiting_bytes + np.cumsum(sizes)
            count = min(int(np.searchsorted(ends, WRITE_BYTES)) + 1, len(batch))
            self._waiting.append(batch.slice(0, count))
            self._waiting_bytes = int(ends[count - 1])
            if self._waiting_bytes >= WRITE_BYTES:
                self._flush()
            batch, sizes = batch.slice(count), sizes[count:]

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            path = self._folder / f"{self._split}-{self.counts['shards']:05}.arrow"
            self._file = ipc.new_file(path, SCHEMA)
            self.counts["shards"] += 1
        # concatenated even when there is one: a slice would be written with all of its parent's buffers
        self._file.write_batch(pa.concat_batches(self._waiting))
        self._waiting, self._waiting_bytes = [], 0

    def close(self) -> None:
        """End the current file; documents added later begin another."""
        self._flush()
        if self._file is not None:
            self._file.close()
        self._file, self._filled = None, 0
