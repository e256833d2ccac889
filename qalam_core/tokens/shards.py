"""Token shards on disk, memory-mapped without a copy, and the batches that training draws from them.

A shard is one Arrow IPC file with one record batch. Its column `tokens` is a large list of uint16 or uint32 per
document, <START> ids <END>: the lists' values are one flat array, the lists' offsets are the document borders. The
columns `id` (uint64) and `source` (dictionary of strings) say which document it is, where the writer knew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qalam_core.errors import TrainingError

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Labels(NamedTuple):
    """Which documents a shard has, in order."""

    ids: npt.NDArray[np.uint64]
    sources: npt.NDArray[np.int32]  # of each document, the number of its source's name
    names: tuple[str, ...]

    @classmethod
    def of(cls, ids: npt.NDArray[np.uint64], sources: pa.Array) -> Labels:
        """From the names of the sources, as strings or as a dictionary."""
        coded = sources if pa.types.is_dictionary(sources.type) else sources.dictionary_encode()
        return cls(ids, coded.indices.to_numpy().astype(np.int32), tuple(coded.dictionary.to_pylist()))

    @classmethod
    def joined(cls, parts: Sequence[Labels]) -> Labels:
        """Of several shards, with one list of names."""
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        number = {name: place for place, name in enumerate(names)}
        sources = [np.array([number[name] for name in part.names], np.int32)[part.sources] for part in parts]
        return cls(np.concatenate([part.ids for part in parts]), np.concatenate(sources), names)

    def take(self, rows: npt.NDArray[np.int64]) -> Labels:
        """Of some documents, in another order."""
        return Labels(self.ids[rows], self.sources[rows], self.names)


def write_shard(
    path: Path, encoded: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]], vocab_size: int, start: int, end: int,
    labels: Labels | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Write batches of documents (flat ids, and how many each has) as one shard, each between `start` and `end`.

    -> (documents, tokens). Memory: 2 bytes per token (4 with more than 65,536 entries).
    """
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    written = bytearray()  # grows in place, where joining arrays would take as much memory again
    lengths: list[npt.NDArray[Any]] = [np.zeros(1, np.int64)]
    for ids, counts in encoded:
        closed = np.cumsum(counts + 2)
        piece = np.empty(len(ids) + 2 * len(counts), dtype)
        inner = np.ones(len(piece), np.bool_)
        for places, special in ((closed - counts - 2, start), (closed - 1, end)):
            piece[places], inner[places] = special, False
        piece[inner] = ids
        written += piece.tobytes()
        lengths.append(counts + 2)
    values = np.frombuffer(written, dtype)
    offsets = np.cumsum(np.concatenate(lengths), dtype=np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
    columns: dict[str, Any] = {"tokens": lists}
    if labels is not None:
        sources = pa.DictionaryArray.from_arrays(pa.array(labels.sources), pa.array(labels.names, pa.string()))
        columns |= {"id": pa.array(labels.ids, pa.uint64()), "source": sources}
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return len(offsets) - 1, len(values)


def flattened(documents: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lists of ids as a batch for `write_shard`: flat, and their lengths."""
    lengths = np.array([len(ids) for ids in documents], np.int64)
    return np.fromiter(chain.from_iterable(documents), np.int64, int(lengths.sum())), lengths


def _batch(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0)


def _lists(path: Path) -> pa.LargeListArray:
    return _batch(path).column("tokens")


def labels(path: Path) -> Labels:
    """Which documents a shard has; without a name and with id 0 where its writer did not know."""
    batch = _batch(path)
    if "id" not in batch.schema.names:
        return Labels(np.zeros(len(batch), np.uint64), np.zeros(len(batch), np.int32), ("",))
    return Labels.of(batch.column("id").to_numpy(), batch.column("source"))


def flat(path: Path) -> Ids:
    """All ids of a shard in one array: a view of the mapped file, not a copy."""
    ids: Ids = _lists(path).flatten().to_numpy(zero_copy_only=True)
    return ids


def documents(path: Path) -> Iterator[Ids]:
    """The ids of each document of a shard, <START> and <END> included: views of the mapped file."""
    ids, offsets = flat(path), _lists(path).offsets.to_numpy(zero_copy_only=True)
    for begin, end in pairwise(offsets - offsets[0]):
        yield ids[begin:end]


class Mixture(NamedTuple):
    """How often documents are read in one pass."""

    weights: Mapping[str, float] = MappingProxyType({})  # by source; 1 where it is not named
    # ids, ascending, and how many documents each stands for; 1 where it is not named
    copies: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]] | None = None

    @classmethod
    def load(cls, weights: Mapping[str, float], copies: str) -> Mixture:
        """With the file of copies that `prepare` wrote, unless its path is empty."""
        if not copies:
            return cls(weights)
        batch = _batch(Path(copies))
        return cls(weights, (batch.column("id").to_numpy(), batch.column("copies").to_numpy()))

    def of(self, documents: Labels) -> npt.NDArray[np.float64]:
        """The weight of each document: that of its source, times 1 + the whole part of log2 of its copies."""
        weights = np.array([self.weights.get(name, 1.0) for name in documents.names])[documents.sources]
        if self.copies and len(self.copies[0]):
            known, copies = self.copies
            at = np.minimum(np.searchsorted(known, documents.ids), len(known) - 1)
            weights *= 1 + np.floor(np.log2(np.where(known[at] == documents.ids, copies[at], 1)))
        return weights


class Batches:
    """Random access to training batches: `batches[step]` depends on the seed, the step and the mixture alone.

    Each epoch divides every shard into windows of `length` + 1 tokens, from a random offset, and visits each window, in
    a random order, as often as the mixture weighs the document in which it would begin without the offset. Of a
    fraction, as many windows are visited, and the others in the next epochs, so that the count is the same in each. All
    comes from PCG64([seed, epoch]), the windows of fractions from PCG64([seed, group, round]).
    """

    def __init__(
        self,
        shards: Sequence[Path],
        batch_size: int,
        length: int,
        seed: int,
        mixture: Mixture = Mixture(),  # noqa: B008
    ) -> None:
        shards = [shard for shard in shards if len(flat(shard))]
        self._ids = [flat(shard) for shard in shards]
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
        self._shards, self._mixture, self._epoch = shards, mixture, -1

    @cached_property
    def _groups(self) -> list[tuple[float, npt.NDArray[np.int64]]]:
        """The windows of each weight, by weight; one group where nothing is weighed."""
        every = np.arange(int(self._first[-1]))
        if not self._mixture.weights and self._mixture.copies is None:
            return [(1.0, every)]
        weights = np.concatenate([
            self._mixture.of(labels(shard))[place] for shard, place in zip(self._shards, self._documents, strict=True)
        ])  # fmt: skip
        return [(float(weight), np.flatnonzero(weights == weight)) for weight in np.unique(weights)]

    @cached_property
    def _documents(self) -> list[npt.NDArray[np.int64]]:
        """Of each shard, the document in which each window begins, before the offset."""
        found = []
        for shard, count in zip(self._shards, np.diff(self._first), strict=True):
            offsets = _lists(shard).offsets.to_numpy(zero_copy_only=True)
            found.append(np.searchsorted(offsets - offsets[0], np.arange(count) * self._length, side="right") - 1)
        return found

    @cached_property
    def windows(self) -> int:
        """How many windows an epoch visits."""
        return sum(int(weight) * len(members) + _share(weight, members) for weight, members in self._groups)

    @cached_property
    def per_epoch(self) -> int:
        """Batches in one pass; at least 1."""
        return max(1, self.windows // self._batch_size)

    def _visited(self, epoch: int) -> npt.NDArray[np.int64]:
        """The windows that an epoch visits, not yet in its order."""
        parts = []
        for number, (weight, members) in enumerate(self._groups):
            parts += [members] * int(weight)
            if share := _share(weight, members):
                rounds, places = np.divmod(epoch * share + np.arange(share), len(members))
                for turn in np.unique(rounds).tolist():
                    random = np.random.Generator(np.random.PCG64([self._seed, number, turn]))
                    parts.append(members[random.permutation(len(members))[places[rounds == turn]]])
        return np.concatenate(parts)

    def _start(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """-> the offset of each shard, and the windows in the order of an epoch."""
        random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        offsets = random.integers(0, self._length, len(self._ids))
        return offsets, self._visited(epoch)[random.permutation(self.windows)]

    def _chosen(self, order: npt.NDArray[np.int64], place: int, batches: int = 1) -> npt.NDArray[np.int64]:
        # with mode="wrap" fewer windows than a batch still fill it
        return order.take(np.arange(self._batch_size * batches) + place * self._batch_size, mode="wrap")

    def __getitem__(self, step: int) -> npt.NDArray[np.int64]:
        """The batch of `step` (from 0), int64 of shape (batch_size, length + 1)."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._offsets, self._order = self._start(epoch)
            self._epoch = epoch
        chosen = self._chosen(self._order, place)
        shard = np.searchsorted(self._first, chosen, side="right") - 1
        begin = (chosen - self._first[shard]) * self._length + self._offsets[shard]
        columns = np.arange(self._length + 1)
        rows = np.empty((self._batch_size, self._length + 1), np.int64)
        for number in np.unique(shard):
            here = shard == number
            rows[here] = self._ids[number][begin[here, None] + columns]
        return rows

    def read(self, steps: int) -> dict[str, tuple[int, int]]:
        """By source, its tokens, and how many the first `steps` batches read: windows count for their document's."""
        every = Labels.joined([labels(shard) for shard in self._shards])
        lengths = [_lists(shard).value_lengths().to_numpy() for shard in self._shards]
        first = np.cumsum([0, *map(len, lengths)])
        of_window = np.concatenate(
            [every.sources[place + before] for place, before in zip(self._documents, first[:-1].tolist(), strict=True)]
        )
        read, tokens = np.zeros(len(every.names), np.int64), np.bincount(every.sources, np.concatenate(lengths))
        for epoch in range(-(-steps // self.per_epoch)):
            batches = min(self.per_epoch, steps - epoch * self.per_epoch)
            chosen = self._chosen(self._start(epoch)[1], 0, batches)
            read += np.bincount(of_window[chosen], minlength=len(every.names)) * self._length
        found = {name: (int(tokens[place]), int(read[place])) for place, name in enumerate(every.names)}
        return dict(sorted(found.items()))


def _share(weight: float, members: npt.NDArray[np.int64]) -> int:
    """How many windows of a group the fraction of its weight is; at least 1, so that none is never read."""
    return max(1, round(part * len(members))) if (part := weight - int(weight)) else 0
