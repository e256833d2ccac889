"""Token shards on disk, memory-mapped without a copy, and the batches that training draws from them.

A shard is one Arrow IPC file with one record batch and one column, `tokens`: a large list of uint16 or uint32 per
document, <START> ids <END>. The lists' values are one flat array, the lists' offsets are the document borders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qalam_core.errors import TrainingError

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def write_shard(
    path: Path, encoded: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]], vocab_size: int, start: int, end: int
) -> tuple[int, int]:
    """Write batches of documents (flat ids, and how many each has) as one shard, each between `start` and `end`.

    -> (documents, tokens). Memory: 2 bytes per token (4 with more than 65,536 entries).
    """
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    pieces: list[npt.NDArray[Any]] = [np.empty(0, dtype)]
    lengths: list[npt.NDArray[Any]] = [np.zeros(1, np.int64)]
    for ids, counts in encoded:
        closed = np.cumsum(counts + 2)
        piece = np.empty(len(ids) + 2 * len(counts), dtype)
        inner = np.ones(len(piece), np.bool_)
        for places, special in ((closed - counts - 2, start), (closed - 1, end)):
            piece[places], inner[places] = special, False
        piece[inner] = ids
        pieces.append(piece)
        lengths.append(counts + 2)
    values = np.concatenate(pieces)
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
    batch = pa.record_batch([lists], names=["tokens"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return len(offsets) - 1, len(values)


def flattened(documents: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lists of ids as a batch for `write_shard`: flat, and their lengths."""
    lengths = np.array([len(ids) for ids in documents], np.int64)
    return np.fromiter(chain.from_iterable(documents), np.int64, int(lengths.sum())), lengths


def _lists(path: Path) -> pa.LargeListArray:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).column("tokens")


def flat(path: Path) -> Ids:
    """All ids of a shard in one array: a view of the mapped file, not a copy."""
    ids: Ids = _lists(path).flatten().to_numpy(zero_copy_only=True)
    return ids


def documents(path: Path) -> Iterator[Ids]:
    """The ids of each document of a shard, <START> and <END> included: views of the mapped file."""
    ids, offsets = flat(path), _lists(path).offsets.to_numpy(zero_copy_only=True)
    for begin, end in pairwise(offsets - offsets[0]):
        yield ids[begin:end]


class Batches:
    """Random access to training batches: `batches[step]` depends on the seed and the step alone.

    Each epoch divides every shard into windows of `length` + 1 tokens, from a random offset, and visits each window
    once, in a random order. Both come from PCG64([seed, epoch]).
    """

    def __init__(self, shards: Sequence[Path], batch_size: int, length: int, seed: int) -> None:
        self._ids = [ids for ids in map(flat, shards) if len(ids)]
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self.tokens = sum(map(len, self._ids))
        longest = max(map(len, self._ids), default=0)
        # one window less than would fit: the number of windows is then the same for every offset
        windows = np.array([max(0, len(ids) // length - 1) for ids in self._ids], np.int64)
        if not windows.sum():
            raise TrainingError(
                f"a context of {length} tokens needs a shard of at least {2 * length} tokens, "
                f"and the longest has {longest}; lower model.max_seq_len, or add text"
            )
        self._first = np.concatenate([[0], np.cumsum(windows)])
        self._epoch = -1

    @cached_property
    def per_epoch(self) -> int:
        """Batches in one pass over the tokens; at least 1."""
        return max(1, int(self._first[-1]) // self._batch_size)

    def __getitem__(self, step: int) -> npt.NDArray[np.int64]:
        """The batch of `step` (from 0), int64 of shape (batch_size, length + 1)."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._offsets = random.integers(0, self._length, len(self._ids))
            self._order = random.permutation(int(self._first[-1]))
            self._epoch = epoch
        # with mode="wrap" fewer windows than a batch still fill it
        chosen = self._order.take(np.arange(self._batch_size) + place * self._batch_size, mode="wrap")
        shard = np.searchsorted(self._first, chosen, side="right") - 1
        begin = (chosen - self._first[shard]) * self._length + self._offsets[shard]
        columns = np.arange(self._length + 1)
        rows = np.empty((self._batch_size, self._length + 1), np.int64)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self._ids[number][begin[here, None] + columns]
        return rows
