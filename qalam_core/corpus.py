"""The corpus: documents as read -> normalised, filtered, deduplicated text in three splits.
Takes documents.arrow files and the recipe's corpus part; gives Arrow shards per split, the rejected
documents with their reasons, and counts.
It does not know where documents came from, beyond their slice's name, nor what a token is.

Whether a document is kept depends on its text and on whether the same text came before; which split it is
in depends on its text alone. So a corpus that grows keeps its held-out documents held out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from qalam_core.arabic import normalise_array
from qalam_core.documents import HEAD, ingest
from qalam_core.errors import CorpusError
from qalam_core.recipe import Corpus
from qalam_core.sources import SourceFile, resolve
from qalam_core.store import Progress, silent

__all__ = [
    "REASONS", "REJECTS", "SPLITS", "SourceFile", "ingest", "prepare", "read_split", "read_texts", "resolve",
]  # fmt: skip

SPLITS = ("train", "validation", "test")
REASONS = ("empty", "too_short", "too_long", "not_arabic", "duplicate")  # in the order that they are tried
REJECTS = "rejects.arrow"

_KEPT = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("source", pa.string())])
_REJECTED = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("reason", pa.string())])

# Letters of the Arabic script (Arabic, Supplement, Extended-A and -B) as they stand after NFKC.
_ARABIC = (
    "[\u0620-\u063f\u0641-\u064a\u066e\u066f\u0671-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06fc\u06ff"
    "\u0750-\u077f\u0870-\u0887\u0889-\u088f\u08a0-\u08c9]+"
)

WRITE_BYTES = 1 << 20  # text per record batch of a shard

Digests = npt.NDArray[np.bytes_]


def prepare(documents: Sequence[Path], corpus: Corpus, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Clean, deduplicate and split `documents`, in their order, into `out`; gives counts.

    Writes train-00000.arrow and so on, each of about `corpus.shard_mb` MB of text (columns id: the first 16
    hex digits of the text's sha256, text, source), and rejects.arrow (at most HEAD characters as read,
    source, reason). Every document is in one of them. Memory: a few record batches, and an index of 16
    bytes per kept document (three times that while it is merged). Progress is in bytes of the files.
    A split by hash may be empty by chance in a small corpus; `_filled` says what is done then.
    Raises CorpusError when a slice, or a split with a share, is left with nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = _pass(documents, corpus, out, {}, progress)
    moved = _filled(result, corpus)
    if moved:
        for file in out.glob("*.arrow"):
            file.unlink()
        result = _pass(documents, corpus, out, moved, silent)
    _check(result, corpus)
    return result.facts()


def read_split(folder: Path, split: str) -> list[Path]:
    """The shards of one split ("train", "validation" or "test"), in order; none when its share is 0."""
    return sorted(folder.glob(f"{split}-*.arrow"))


def read_texts(shard: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, mapped into memory rather than read."""
    with pa.memory_map(str(shard)) as mapped, ipc.open_file(mapped) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


# -- one pass -------------------------------------------------------------------------------------


@dataclass
class _Result:
    seen: _Seen = field(default_factory=lambda: _Seen())
    read: Counter[str] = field(default_factory=Counter)  # by slice
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (slice, reason)
    splits: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})

    def facts(self) -> dict[str, Any]:
        def reasons(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
            total: Counter[str] = Counter()
            for reason, count in counts:
                total[reason] += count
            return {reason: total[reason] for reason in REASONS if total[reason]}

        read, rejected = self.read.total(), self.rejected.total()
        return {
            "read": read,
            "kept": read - rejected,
            "rejected": reasons((reason, count) for (_, reason), count in self.rejected.items()),
            "sources": {
                name: {
                    "read": count,
                    "kept": self.kept(name),
                    "rejected": reasons((why, n) for (of, why), n in self.rejected.items() if of == name),
                }
                for name, count in self.read.items()
            },
            "splits": {
                split: {key: counts[key] for key in ("documents", "characters", "bytes", "shards")}
                for split, counts in self.splits.items()
            },
        }

    def kept(self, name: str) -> int:
        return self.read[name] - sum(count for (of, _), count in self.rejected.items() if of == name)


def _pass(
    documents: Sequence[Path], corpus: Corpus, out: Path, moved: Mapping[str, int], progress: Progress
) -> _Result:
    """Judge and write everything once; `moved` (id -> index of a split) overrides the split by hash."""
    result = _Result()
    shards = [_Shards(out, split, corpus.shard_mb * 1_000_000, result.splits[split]) for split in SPLITS]
    total = sum(path.stat().st_size for path in documents)
    with ipc.new_file(out / REJECTS, _REJECTED) as rejects:
        for batch in _judged(documents, corpus):
            fresh = result.seen.add(batch.digests, batch.reasons == "")
            batch.reasons[(batch.reasons == "") & ~fresh] = "duplicate"
            names, owner = np.unique(batch.names, return_inverse=True)
            for index, name in enumerate(names):
                result.read[str(name)] += int((owner == index).sum())
                reasons, counts = np.unique(batch.reasons[owner == index], return_counts=True)
                for reason, count in zip(reasons, counts, strict=True):
                    if reason:
                        result.rejected[str(name), str(reason)] += int(count)
            rejected = np.flatnonzero(batch.reasons != "")
            if len(rejected):
                rejects.write_batch(batch.rejects(rejected))
            split = _split_of(batch.digests, corpus)
            split[batch.reasons != ""] = -1
            if moved:
                rows = np.flatnonzero(split >= 0)
                split[rows] = [moved.get(id_, split[row]) for id_, row in zip(batch.ids(rows), rows, strict=True)]
            for index, shard in enumerate(shards):
                kept = np.flatnonzero(split == index)
                if len(kept):
                    shard.write(batch.kept(kept), int(batch.characters[kept].sum()))
            progress(batch.done, total)
    for shard in shards:
        shard.close()
    progress(total, total)
    return result


def _split_of(digests: Digests, corpus: Corpus) -> npt.NDArray[np.int8]:
    """Index into SPLITS by the digest's first 8 bytes, read as a share of their range: test comes lowest."""
    share = _leading(digests) / 2.0**64
    held_out = np.where(share < corpus.test, SPLITS.index("test"), SPLITS.index("validation"))
    return np.where(share < corpus.test + corpus.validation, held_out, SPLITS.index("train")).astype(np.int8)


def _leading(digests: Digests) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def _filled(result: _Result, corpus: Corpus) -> dict[str, int]:
    """Moves (id -> split) that leave no wanted split empty, where a small corpus had one by chance.

    The fullest split gives its document with the smallest digest: a function of the texts alone.
    """
    wanted = _wanted(corpus)
    counts = [result.splits[SPLITS[index]]["documents"] for index in wanted]
    if all(counts) or sum(counts) < len(wanted):
        return {}
    digests = result.seen.sorted()
    split = _split_of(digests, corpus)
    members = {index: [f"{head:016x}" for head in _leading(digests[split == index])] for index in wanted}
    moved: dict[str, int] = {}
    for index in wanted:
        if not members[index]:
            donor = max(wanted, key=lambda other: len(members[other]))
            members[index].append(members[donor].pop(0))
            moved[members[index][0]] = index
    return moved


def _wanted(corpus: Corpus) -> list[int]:
    """Indices of the splits that must not be empty."""
    shares = {"train": 1.0, "validation": corpus.validation, "test": corpus.test}
    return [index for index, split in enumerate(SPLITS) if shares[split] > 0]


def _check(result: _Result, corpus: Corpus) -> None:
    cures = {
        "empty": "nothing is left of them once marks and controls are gone",
        "too_short": f"corpus.min_chars is {corpus.min_chars}; lower it, or join lines with unit",
        "too_long": f"corpus.max_chars is {corpus.max_chars}; raise it, or cut the text up with unit",
        "not_arabic": f"corpus.min_arabic is {corpus.min_arabic}; lower it, or name the field with Arabic",
        "duplicate": "the same text came before",
    }

    def why(rejected: Mapping[str, int]) -> str:
        worst = sorted(rejected, key=lambda reason: -rejected[reason])
        return "; ".join(f"{rejected[reason]} {reason} ({cures[reason]})" for reason in worst) or "none rejected"

    facts = result.facts()
    for name, counts in facts["sources"].items():
        if not counts["kept"]:
            raise CorpusError(
                f"{name}: a source with no usable documents; of {counts['read']} read: {why(counts['rejected'])}"
            )
    empty = [SPLITS[i] for i in _wanted(corpus) if not facts["splits"][SPLITS[i]]["documents"]]
    if empty:
        raise CorpusError(
            f"corpus: {facts['kept']} documents are too few to split, {' and '.join(empty)} would be empty; "
            f"add text; of {facts['read']} read: {why(facts['rejected'])}"
        )


# -- judging --------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """Documents with the verdict on each; the duplicates are found later, in order."""

    read: pa.Array
    names: npt.NDArray[np.object_]
    texts: pa.Array  # normalised
    characters: npt.NDArray[np.int64]
    digests: Digests
    reasons: npt.NDArray[np.str_]  # "" for what is kept
    done: int  # bytes of all files up to here

    def ids(self, rows: npt.NDArray[np.intp]) -> list[str]:
        return [f"{head:016x}" for head in _leading(self.digests[rows])]

    def kept(self, rows: npt.NDArray[np.intp]) -> pa.RecordBatch:
        return pa.record_batch([self.ids(rows), self.texts.take(pa.array(rows)), self.names[rows]], schema=_KEPT)

    def rejects(self, rows: npt.NDArray[np.intp]) -> pa.RecordBatch:
        heads = pc.utf8_slice_codeunits(self.read.take(pa.array(rows)), 0, HEAD)
        return pa.record_batch([heads, self.names[rows], self.reasons[rows]], schema=_REJECTED)


def _judged(documents: Sequence[Path], corpus: Corpus) -> Iterator[_Batch]:
    """Every batch of every file, judged, in order. A few are in the works at once: Arrow frees the GIL."""
    workers = min(pa.cpu_count(), 4)
    ahead: deque[Future[_Batch]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        before = 0
        for path in documents:
            size = path.stat().st_size
            # read, not mapped: pages of a file that is passed once would only count as this process's memory
            with pa.OSFile(str(path)) as file, ipc.open_file(file) as reader:
                for index in range(reader.num_record_batches):
                    done = before + size * (index + 1) // reader.num_record_batches
                    ahead.append(pool.submit(_judge, reader.get_batch(index), corpus, done))
                    if len(ahead) > workers:
                        yield ahead.popleft().result()
            before += size
        while ahead:
            yield ahead.popleft().result()


def _judge(batch: pa.RecordBatch, corpus: Corpus, done: int) -> _Batch:
    read = batch.column("text")
    cut = batch.column("cut").to_numpy(zero_copy_only=False)
    texts = normalise_array(read, corpus.profile)
    characters = pc.utf8_length(texts).to_numpy()
    letters = pc.replace_substring_regex(texts, pattern=r"\PL+", replacement="")
    foreign = pc.utf8_length(pc.replace_substring_regex(letters, pattern=_ARABIC, replacement="")).to_numpy()
    among = pc.utf8_length(letters).to_numpy()
    reasons = np.select(
        [
            cut,
            characters == 0,
            characters < corpus.min_chars,
            characters > corpus.max_chars,
            among - foreign < corpus.min_arabic * np.maximum(among, 1),  # no letters at all: no Arabic
        ],
        ["too_long", "empty", "too_short", "too_long", "not_arabic"],
        default="",
    )
    names = batch.column("source").to_numpy(zero_copy_only=False)
    return _Batch(read, names, texts, characters, _digests(texts), reasons, done)


def _digests(texts: pa.Array) -> Digests:
    """The first 16 bytes of each text's sha256."""
    _, offsets, data = texts.buffers()
    borders = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    view = memoryview(data or b"")
    sha256 = hashlib.sha256
    heads = b"".join([sha256(view[a:b]).digest()[:16] for a, b in pairwise(borders)])
    return np.frombuffer(heads, "S16")


class _Seen:
    """The digests kept so far: sorted arrays, each at least twice as long as the next, 16 bytes a digest."""

    def __init__(self) -> None:
        self._levels: list[Digests] = []

    def add(self, digests: Digests, candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Add the digests of `candidates`; says which of them came for the first time."""
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

    def sorted(self) -> Digests:
        return np.sort(np.concatenate(self._levels)) if self._levels else np.empty(0, "S16")


# -- writing --------------------------------------------------------------------------------------


class _Shards:
    """The files of one split; a file is full once its text reaches `limit` bytes."""

    def __init__(self, folder: Path, split: str, limit: int, counts: Counter[str]) -> None:
        self._folder, self._split, self._limit, self._counts = folder, split, limit, counts
        self._filled = 0
        self._waiting: list[pa.RecordBatch] = []  # joined, so that many small files make no small batches
        self._waiting_bytes = 0
        self._file: Any = None

    def write(self, batch: pa.RecordBatch, characters: int) -> None:
        self._counts["documents"] += len(batch)
        self._counts["characters"] += characters
        sizes = pc.binary_length(batch.column("text")).to_numpy()
        self._counts["bytes"] += int(sizes.sum())
        while len(batch):
            ends = np.cumsum(sizes)
            count = min(int(np.searchsorted(ends, self._limit - self._filled)) + 1, len(batch))
            self._waiting.append(batch.slice(0, count))
            self._filled += int(ends[count - 1])
            self._waiting_bytes += int(ends[count - 1])
            if self._waiting_bytes >= WRITE_BYTES:
                self._flush()
            if self._filled >= self._limit:
                self.close()
            batch, sizes = batch.slice(count), sizes[count:]

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            path = self._folder / f"{self._split}-{self._counts['shards']:05}.arrow"
            self._file = ipc.new_file(path, _KEPT)
            self._counts["shards"] += 1
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        self._file.write_table(table)
        self._waiting, self._waiting_bytes = [], 0

    def close(self) -> None:
        self._flush()
        if self._file is not None:
            self._file.close()
        self._file, self._filled = None, 0
