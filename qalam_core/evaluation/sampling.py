"""Samples of bounded size: the held-out documents that are measured, and the training text that baselines count.

Whole documents are drawn, those with the lowest hashes of (seed, id), and an id is the digest of the text: the same
documents are drawn from the same corpus in any shards, and a corpus that grows displaces few of them. The seed is
fixed, not the recipe's, so that models of other seeds are measured on the same documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qalam_core.corpus.sample import draws
from qalam_core.corpus.splits import read_texts
from qalam_core.evaluation.baselines import Ids, characters
from qalam_core.evaluation.results import Baselines, Counted
from qalam_core.package.runtime.architecture import START

SEED = 20_120_823
COUNTED = 20_000_000
"""Baselines are counted on at most so many tokens, and so many characters."""

Draws = NDArray[np.uint64]
Sizes = NDArray[np.int64]
Chosen = NDArray[np.bool_]


class HeldOutSample(NamedTuple):
    """Some documents of a held-out split, as (slice, text), and how many they are."""

    documents: list[tuple[str, str]]
    counted: Counted  # size in bytes


def held_out_sample(shards: Sequence[Path], limit: int | None) -> HeldOutSample:
    """Documents of about `limit` bytes at most, in the corpus's order; all of them for None.

    Every slice keeps its share, at least one document, and small ones more than that (`budgets`). Memory: the sample,
    and 20 bytes per document of the split.
    """
    names: dict[str, int] = {}
    drawn, sizes, slices = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in _batches(shards):
        drawn.append(draws(batch, SEED))
        sizes.append(pc.binary_length(batch.column("text")).to_numpy().astype(np.int64))  # reads offsets, not text
        numbers = [names.setdefault(name, len(names)) for name in batch.column("source").to_pylist()]
        slices.append(np.array(numbers, np.int64))
    drawn_D, sizes_D, slice_D = np.concatenate(drawn), np.concatenate(sizes), np.concatenate(slices)
    chosen_D = np.ones(len(sizes_D), np.bool_)
    if limit is not None and sizes_D.sum() > limit:
        shares = budgets(np.bincount(slice_D, sizes_D).astype(np.int64), limit)
        for number, budget in enumerate(shares.tolist()):
            members = np.flatnonzero(slice_D == number)
            # one that is larger than the budget is passed over, unless all are
            members = members[sizes_D[members] <= max(budget, int(sizes_D[members].min()))]
            chosen_D[slice_D == number] = False
            chosen_D[members] = lowest(drawn_D[members], sizes_D[members], budget)
    documents: list[tuple[str, str]] = []
    place = 0
    for batch in _batches(shards):
        some = batch.filter(pa.array(chosen_D[place : place + len(batch)]))
        place += len(batch)
        documents += zip(some.column("source").to_pylist(), some.column("text").to_pylist(), strict=True)
    counted = Counted(documents=len(documents), of=len(sizes_D), size=int(sizes_D[chosen_D].sum()))
    return HeldOutSample(documents, counted)


def _batches(shards: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    return (batch for shard in shards for batch in read_texts(shard))


def budgets(sizes: Sizes, limit: int) -> Sizes:
    """The bytes that are drawn from each slice.

    Half of the limit is divided evenly; what small slices leave of it, and the other half, by size. So a slice that
    has less than its even part is kept whole.
    """
    even = np.minimum(sizes, limit // (2 * len(sizes)))
    rest = sizes - even
    shares: Sizes = even + (rest * ((limit - even.sum()) / max(1, rest.sum()))).astype(np.int64)
    return shares


def lowest(drawn: Draws, sizes: Sizes, limit: int) -> Chosen:
    """Which documents are drawn: in the order of their draws, until the next one does not fit; at least one."""
    order = np.argsort(drawn, kind="stable")
    chosen = np.zeros(len(sizes), np.bool_)
    chosen[order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right")))]] = True
    return chosen


class TrainingSample(NamedTuple):
    """Training text for baselines, as streams of START ids END."""

    tokens: list[Ids]
    characters: Ids
    counted: Baselines
    head: list[str]  # the texts of the first documents


def training_sample(
    texts: Iterable[pa.RecordBatch], tokens: Sequence[Ids], head: int, limit: int = COUNTED
) -> TrainingSample:
    """At most `limit` tokens and `limit` characters, each of documents drawn from all of them.

    `texts` are record batches with the columns `id` and `text`, `tokens` the same documents in the same order. Of a
    document that is longer than the limit, the beginning is taken. Memory: about twice the sample, and 8 bytes per
    training document.
    """
    drawn = [np.zeros(0, np.uint64)]
    first: list[str] = []
    written = _Characters(limit)
    for batch in texts:
        drawn.append(draws(batch, SEED))
        written.add(drawn[-1], batch.column("text").cast(pa.large_string()))
        if len(first) < head:
            first += batch.column("text").slice(0, head - len(first)).to_pylist()
    written.cut()
    drawn_D = np.concatenate(drawn)
    lengths = [np.diff(np.flatnonzero(part == START), append=len(part)) for part in tokens]
    sizes_D = np.minimum(np.concatenate([np.zeros(0, np.int64), *lengths]), limit)
    assert len(sizes_D) == len(drawn_D), "texts and tokens are not of the same documents"
    chosen_D = np.ones(len(drawn_D), np.bool_)
    if sizes_D.sum() > limit:
        chosen_D = lowest(drawn_D, sizes_D, limit)
    borders = np.cumsum([0, *map(len, lengths)])
    counted = Baselines(
        tokens=Counted(documents=int(chosen_D.sum()), of=len(drawn_D), size=int(sizes_D[chosen_D].sum())),
        characters=Counted(documents=len(written.drawn), of=len(drawn_D), size=int(written.sizes.sum())),
    )
    streams = [
        _documents(part, sizes, chosen_D[begin:end], limit)
        for part, sizes, (begin, end) in zip(tokens, lengths, pairwise(borders), strict=True)
    ]
    return TrainingSample(streams, characters(written.texts), counted, first)


def _documents(part: Ids, sizes: Sizes, chosen: Chosen, limit: int) -> Ids:
    """The chosen documents of a token array, at most `limit` tokens of each."""
    if chosen.all() and len(part) <= limit:
        return part
    inside = np.repeat(chosen, sizes)
    for begin, size in zip((np.cumsum(sizes) - sizes)[sizes > limit], sizes[sizes > limit], strict=True):
        inside[begin + limit : begin + size] = False
    return part[inside]


class _Characters:
    """The texts with the lowest draws, of at most `limit` characters in all."""

    def __init__(self, limit: int) -> None:
        self.drawn, self.sizes = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._parts: list[pa.Array] = [pa.array([], pa.large_string())]
        self._limit = limit
        self._threshold = np.uint64(2**64 - 1)

    @property
    def texts(self) -> pa.Array:
        """In the order in which they were added."""
        return pa.concat_arrays(self._parts)

    def add(self, drawn: Draws, texts: pa.Array) -> None:
        """Add documents; those above the threshold are not read."""
        below = drawn < self._threshold
        some = texts.filter(pa.array(below))
        sizes = pc.utf8_length(some).to_numpy().astype(np.int64)
        if (sizes > self._limit).any():
            some, sizes = pc.utf8_slice_codeunits(some, 0, self._limit), np.minimum(sizes, self._limit)
        self.drawn, self.sizes = np.append(self.drawn, drawn[below]), np.append(self.sizes, sizes)
        self._parts.append(some)
        if self.sizes.sum() > 2 * self._limit:  # not after each batch: sorting would take longer than reading
            self.cut()

    def cut(self) -> None:
        """Drop what does not fit."""
        if self.sizes.sum() > self._limit:
            chosen = lowest(self.drawn, self.sizes, self._limit)
            self._threshold = self.drawn[~chosen].min()
            self._parts = [self.texts.filter(pa.array(chosen))]
            self.drawn, self.sizes = self.drawn[chosen], self.sizes[chosen]
