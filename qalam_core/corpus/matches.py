"""Which documents of a corpus repeat another: joined by the ranges of their keys, each apart, and united at the end.

Documents are numbered in the order of the files and of the rows in them. What is kept does not depend on how many
ranges there are, as clusters are what all links together connect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from qalam_core.corpus.duplicates import BANDS, Digests, first_of, of_bands, unite
from qalam_core.corpus.filtered import batches, read_digests, read_keys
from qalam_core.corpus.filters import Reasons
from qalam_core.corpus.words import Hashes, Numbers
from qalam_core.progress import Progress, no_progress

MATCHES = "matches.arrow"

_KEYS = 1 << 21  # that are sorted together, about; a key needs some 80 bytes of memory
_SCHEMA = pa.schema([("row", pa.int64()), ("first", pa.int64()), ("similar", pa.bool_())])
_NONE = np.zeros(0, np.int64)


def match_documents(
    files: Sequence[tuple[Path, int]], partition: int, of: int, out: Path, progress: Progress = no_progress
) -> None:
    """Write matches.arrow into `out`: the links between documents that share a key of one partition of `of`.

    `files` are folders that `filter_documents` wrote, each with the number of its documents. A row links a document
    with the first one that has such a key; `similar`: a key of a band, else of a digest. Memory: _KEYS keys, whatever
    the number of documents. Progress is in ranges of keys.
    """
    out.mkdir(parents=True, exist_ok=True)
    firsts = np.cumsum([0, *(count for _, count in files)]).tolist()
    ranges = max(1, -(-firsts[-1] * (BANDS + 1) // (of * _KEYS)))
    with ipc.new_file(out / MATCHES, _SCHEMA) as file:
        for number in range(partition * ranges, (partition + 1) * ranges):
            low, high = ((border << 64) // (of * ranges) for border in (number, number + 1))
            parts = (
                (keys, rows + np.int64(first)) for (folder, _), first in zip(files, firsts, strict=False)
                for keys, rows in read_keys(folder, low, high)
            )  # fmt: skip
            _join(parts, file.write_batch)
            progress(number + 1 - partition * ranges, ranges)


def _join(parts: Iterator[tuple[Hashes, Numbers]], write: Callable[[pa.RecordBatch], None]) -> None:
    """Write the links between rows that have a key in common. Of a key that many have, one is kept in memory."""
    waiting, count = [(np.zeros(0, np.uint64), _NONE)], 0
    for keys, rows in parts:
        waiting.append((keys, rows))
        count += len(keys)
        if count > 2 * _KEYS:
            distinct = _linked(waiting, write)
            waiting, count = [distinct], len(distinct[0])
    _linked(waiting, write)


def _linked(parts: Sequence[tuple[Hashes, Numbers]], write: Callable[[pa.RecordBatch], None]) -> tuple[Hashes, Numbers]:
    """Write the links between rows that have a key in common; -> the distinct keys, and the first row of each."""
    keys, rows = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(keys)
    keys, rows = keys[order], rows[order]
    new = first_of(keys)
    starts = np.flatnonzero(new)
    firsts = np.minimum.reduceat(rows, starts) if len(rows) else rows
    several = ~(new & np.append(new[1:], True))
    row, first, similar = rows[several], firsts[np.cumsum(new)[several] - 1], of_bands(keys[several])
    by_row = np.flatnonzero(row != first)
    by_row = by_row[np.argsort(row[by_row], kind="stable")]  # and by key: the same order on every processor
    row, first, similar = row[by_row], first[by_row], similar[by_row]
    once = first_of(row) | first_of(first) | first_of(similar)  # of the bands that two documents share
    if len(row):
        write(pa.record_batch([row[once], first[once], similar[once]], schema=_SCHEMA))
    return keys[starts], firsts


@dataclass(frozen=True)
class Repeats:
    """The documents that share a key with another. Memory: about 100 bytes for each of these."""

    rows: Numbers  # in the corpus, sorted
    digests: Digests
    first: Numbers  # the first one with the same text, as an index of these arrays
    kept: Numbers  # the one that is kept in place of it and of what it is linked with: that with the smallest digest

    @classmethod
    def of(cls, matches: Sequence[Path], files: Sequence[Path]) -> Repeats:
        """From folders that `match_documents` wrote, one for each partition, and those that it read."""
        rows = _matched(matches)
        digests = np.concatenate([np.zeros(0, "S16"), *_digests(rows, files)])
        order = np.argsort(digests, kind="stable")
        new = first_of(digests[order])
        first, rank = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
        labels = first.copy()
        for one, other in _similar(matches, max(len(rows), 1 << 20)):
            unite(labels, np.searchsorted(rows, one), np.searchsorted(rows, other))
        rank[order] = np.arange(len(rows))
        lowest = np.full(len(rows), len(rows))
        np.minimum.at(lowest, labels, rank)
        return cls(rows, digests, first, order[lowest[labels]])

    def reasons(self, start: int, count: int) -> Reasons:
        """Why each of `count` documents from row `start` on is rejected, "" for those that are kept."""
        found = np.full(count, "", np.object_)
        at = np.arange(*np.searchsorted(self.rows, (start, start + count)))
        found[self.rows[at] - start] = np.where(
            self.first[at] != at, "duplicate", np.where(self.kept[at] != at, "near_duplicate", "")
        )
        return found

    def copies(self) -> tuple[Digests, Numbers]:
        """The digests of the documents that are kept in place of others, and how many each stands for, with itself."""
        documents = np.bincount(self.kept, minlength=len(self.rows))
        several = np.flatnonzero(documents > 1)
        return self.digests[several], documents[several]


def _matched(matches: Sequence[Path]) -> Numbers:
    """The rows that are in a link, sorted."""
    rows, waiting = _NONE, [_NONE]
    for batch, _ in batches([folder / MATCHES for folder in matches]):
        waiting += [_distinct([column.to_numpy()]) for column in batch.columns[:2]]
        if sum(map(len, waiting)) > len(rows) + _KEYS:
            rows = _distinct([rows, *waiting])
            waiting.clear()
    return _distinct([rows, *waiting])


def _distinct(parts: Sequence[Numbers]) -> Numbers:
    values = np.sort(np.concatenate(parts))  # numpy's `unique` takes ten times as long
    return values[first_of(values)]


def _digests(rows: Numbers, files: Sequence[Path]) -> Iterator[Digests]:
    """The digests of sorted rows."""
    start = 0
    for folder in files:
        for digests, _ in read_digests(folder):
            low, high = np.searchsorted(rows, (start, start + len(digests)))
            yield digests[rows[low:high] - start]
            start += len(digests)


def _similar(matches: Sequence[Path], count: int) -> Iterator[tuple[Numbers, Numbers]]:
    """The links of bands, in parts of about `count`."""
    waiting: list[Any] = []
    for batch, _ in batches([folder / MATCHES for folder in matches]):
        waiting.append(batch.filter(batch.column("similar")))
        if sum(map(len, waiting)) >= count:
            yield _rows(waiting)
            waiting.clear()
    if waiting:
        yield _rows(waiting)


def _rows(parts: Sequence[pa.RecordBatch]) -> tuple[Numbers, Numbers]:
    together = pa.concat_batches(parts)
    return together.column("row").to_numpy(), together.column("first").to_numpy()
