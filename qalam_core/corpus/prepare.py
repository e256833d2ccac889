"""Preparing a corpus: documents as read -> normalised, filtered, deduplicated text in three splits.
Takes documents.arrow files and the settings; gives Arrow shards per split, the rejected documents with their reasons,
and counts.
It does not know where documents came from, beyond their slice's name, nor what a token is.

Whether a document is kept depends on its text, and on whether the corpus holds the same text or nearly the same;
which split it is in depends on its text alone. So a corpus that grows keeps its held-out documents held out.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.corpus.duplicates import Clusters, Digests, Seen
from qalam_core.corpus.judge import REASONS, Judged, JudgeSettings, check_languages, judge
from qalam_core.corpus.readers import HEAD
from qalam_core.corpus.splits import SPLITS, Shards, Shares, ids, read_texts, reassignments, required_splits, split_of
from qalam_core.errors import CorpusError
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Corpus, Frozen

__all__ = [
    "REJECTS", "CorpusFacts", "PrepareSettings", "SliceCounts", "SplitCounts", "prepare", "read_rejects",
]  # fmt: skip

REJECTS = "rejects.arrow"

_TEXTS = "texts"  # in the spool: what the first pass keeps
_FIRST = 80  # percent of the progress in the first pass; the second only writes

_SPOOLED = pa.schema([("text", pa.large_string()), ("source", pa.string())])
_REJECTED = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("reason", pa.string())])


class PrepareSettings(JudgeSettings, Shares):
    """Everything that the prepared corpus depends on, beside the documents."""

    shard_mb: int

    @classmethod
    def of(cls, corpus: Corpus) -> PrepareSettings:
        """What the recipe's corpus section says. Raises RecipeError."""
        return cls(
            **dict(JudgeSettings.of(corpus)), validation=corpus.validation, test=corpus.test, shard_mb=corpus.shard_mb
        )


class SliceCounts(Frozen):
    """What became of documents; `rejected` is by reason."""

    read: int
    kept: int
    repaired: int
    rejected: dict[str, int]


class SplitCounts(Frozen):
    """What a split holds."""

    documents: int
    characters: int
    bytes: int  # UTF-8
    shards: int


class CorpusFacts(SliceCounts):
    """Counts of a prepared corpus, of all documents and by slice."""

    sources: dict[str, SliceCounts]
    splits: dict[str, SplitCounts]


def prepare(
    documents: Sequence[Path], settings: PrepareSettings, out: Path, progress: Progress = no_progress
) -> CorpusFacts:
    """Clean, deduplicate and split `documents`, in their order, into `out`; -> counts.

    Writes train-00000.arrow and so on, each of half to twice `shard_mb` MB of text (columns id: the first 16 hex digits
    of the text's sha256, text, source), and rejects.arrow (at most HEAD characters as read, or as normalised for
    near-duplicates, source, reason). Every document is in one of them. Memory: a few record batches, and what
    duplicates.py states per document. On disk it needs the corpus's size again while it works. Progress is in bytes of
    the files. A split by hash may be empty by chance in a small corpus; `reassignments` corrects that. Raises
    CorpusError when a slice, or a split with a share, is left with nothing, and RecipeError.
    """
    check_languages(settings)
    out.mkdir(parents=True, exist_ok=True)
    total = sum(path.stat().st_size for path in documents)
    counts = _Counts()
    shards = [Shards(out, split, settings.shard_mb * 1_000_000) for split in SPLITS]
    spool = out / "spool"
    with ipc.new_file(out / REJECTS, _REJECTED) as rejects:
        with Clusters(spool) as clusters, ipc.new_file(spool / _TEXTS, _SPOOLED) as kept:
            seen = Seen()
            for batch, done in _judged(documents, settings):
                fresh = seen.add(batch.digests, batch.reasons == "")
                batch.reasons[(batch.reasons == "") & ~fresh] = "duplicate"
                counts.add(batch)
                rejected = np.flatnonzero(batch.reasons != "")
                _reject(rejects, batch.read, batch.slices, batch.reasons, rejected)
                kept.write_batch(
                    pa.record_batch([_filtered(batch.texts, fresh), _filtered(batch.slices, fresh)], schema=_SPOOLED)
                )
                clusters.add(batch.digests[fresh], batch.long[fresh], batch.keys[fresh[batch.long]])
                progress(done * _FIRST // 100, total)
            del seen
            digests, dropped = clusters.finish()
        reassigned = reassignments(digests[~dropped], settings)
        row = 0
        for batch, share in _spooled(spool / _TEXTS):
            rows = slice(row, row + len(batch))
            row += len(batch)
            _write(shards, batch, digests[rows], dropped[rows], settings, reassigned)
            near = np.full(len(batch), "near_duplicate", np.object_)
            counts.reject(batch.column("source"), np.where(dropped[rows], near, ""))
            _reject(rejects, batch.column("text"), batch.column("source"), near, np.flatnonzero(dropped[rows]))
            progress(int(total * (_FIRST + (100 - _FIRST) * share) / 100), total)
    for shard in shards:
        shard.close()
    shutil.rmtree(spool)
    facts = counts.facts({split: shard.counts for split, shard in zip(SPLITS, shards, strict=True)})
    _check(facts, settings)
    progress(total, total)
    return facts


def read_rejects(folder: Path, reason: str, count: int) -> Iterator[tuple[str, str]]:
    """(slice, text) of up to `count` documents that were rejected for `reason`, spread over the whole corpus."""
    batches = list(read_texts(folder / REJECTS))  # mapped, not read
    rows = [np.flatnonzero(pc.equal(batch.column("reason"), reason)) for batch in batches]
    ends = np.cumsum([0, *map(len, rows)])
    for place in np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).astype(int)):
        index = int(np.searchsorted(ends, place, side="right")) - 1
        row = batches[index].slice(int(rows[index][place - ends[index]]), 1).to_pylist()[0]
        yield row["source"], row["text"]


# -- the two passes -------------------------------------------------------------------------------


def _judged(documents: Sequence[Path], settings: JudgeSettings) -> Iterator[tuple[Judged, int]]:
    """Every batch of every file, judged, in order, and the bytes of all files up to it.

    A few are processed at once: Arrow and numpy release the interpreter lock.
    """
    workers = min(pa.cpu_count(), 4)
    ahead: deque[tuple[Future[Judged], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        before = 0
        for path in documents:
            size = path.stat().st_size
            # read, not mapped: pages of a file that is read once would only count as this process's memory
            with pa.OSFile(str(path)) as file, ipc.open_file(file) as reader:
                for index in range(reader.num_record_batches):
                    done = before + size * (index + 1) // reader.num_record_batches
                    ahead.append((pool.submit(judge, reader.get_batch(index), settings), done))
                    if len(ahead) > workers:
                        judged, upto = ahead.popleft()
                        yield judged.result(), upto
            before += size
        while ahead:
            judged, upto = ahead.popleft()
            yield judged.result(), upto


def _spooled(path: Path) -> Iterator[tuple[pa.RecordBatch, float]]:
    """The batches of what was kept so far, each with the share that is then done."""
    with pa.OSFile(str(path)) as file, ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index), (index + 1) / reader.num_record_batches


def _write(
    shards: Sequence[Shards], batch: pa.RecordBatch, digests: Digests, dropped: NDArray[np.bool_], shares: Shares,
    reassigned: Mapping[str, int],
) -> None:  # fmt: skip
    """Write what is kept to the shards of its split."""
    split = split_of(digests, shares)
    if reassigned:
        split[:] = [reassigned.get(name, own) for name, own in zip(ids(digests), split, strict=True)]
    split[dropped] = -1
    for index, shard in enumerate(shards):
        rows = split == index
        shard.write(_filtered(batch.column("text"), rows), _filtered(batch.column("source"), rows), digests[rows])


def _reject(
    rejects: Any, texts: pa.Array, names: pa.Array, reasons: NDArray[np.object_], rows: NDArray[np.intp]
) -> None:
    if len(rows):
        heads = pc.utf8_slice_codeunits(texts.take(pa.array(rows)), 0, HEAD)
        rejects.write_batch(
            pa.record_batch([heads, names.take(pa.array(rows)), pa.array(reasons[rows], pa.string())], schema=_REJECTED)
        )


def _filtered(values: pa.Array, rows: NDArray[np.bool_]) -> pa.Array:
    return values if rows.all() else values.filter(pa.array(rows))


# -- counts ---------------------------------------------------------------------------------------


@dataclass
class _Counts:
    """Documents of each slice that were read, repaired, and rejected for each reason."""

    read: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (slice, reason)

    def add(self, batch: Judged) -> None:
        self.read.update(_counted(batch.slices))
        self.repaired.update(_counted(batch.slices.filter(pa.array(batch.repaired))))
        self.reject(batch.slices, batch.reasons)

    def reject(self, names: pa.Array, reasons: NDArray[np.object_]) -> None:
        for reason in set(reasons[reasons != ""].tolist()):
            for name, count in _counted(names.filter(pa.array(reasons == reason))).items():
                self.rejected[name, reason] += count

    def facts(self, splits: Mapping[str, Counter[str]]) -> CorpusFacts:
        return CorpusFacts(
            **dict(self._of(self.read.keys())),
            sources={name: self._of({name}) for name in self.read},
            splits={
                split: SplitCounts(**{key: counts[key] for key in SplitCounts.model_fields})
                for split, counts in splits.items()
            },
        )

    def _of(self, names: Collection[str]) -> SliceCounts:
        reasons: Counter[str] = Counter()
        for (name, reason), count in self.rejected.items():
            reasons[reason] += count if name in names else 0
        read = sum(self.read[name] for name in names)
        return SliceCounts(
            read=read,
            kept=read - reasons.total(),
            repaired=sum(self.repaired[name] for name in names),
            rejected={reason: reasons[reason] for reason in REASONS if reasons[reason]},
        )


def _counted(values: pa.Array) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}


def _check(facts: CorpusFacts, settings: PrepareSettings) -> None:
    cures = {
        "empty": "nothing is left of them once marks and controls are removed",
        "too_short": f"corpus.min_chars is {settings.min_chars}; lower it, or join lines with unit",
        "too_long": f"corpus.max_chars is {settings.max_chars}; raise it, or cut the text up with unit",
        "not_arabic": f"corpus.min_arabic is {settings.min_arabic}; lower it, or name the field with Arabic",
        "duplicate": "the same text came before",
        "near_duplicate": "nearly the same text is kept; or set corpus.near_duplicates = false",
    }

    def why(rejected: Mapping[str, int]) -> str:
        worst = sorted(rejected, key=lambda reason: -rejected[reason])
        rule = "a rule of the source's filters; change its threshold in corpus.thresholds, or filters"
        return "; ".join(f"{rejected[reason]} {reason} ({cures.get(reason, rule)})" for reason in worst) or (
            "none rejected"
        )

    for name, counts in facts.sources.items():
        if not counts.kept:
            raise CorpusError(
                f"{name}: a source with no usable documents; of {counts.read} read: {why(counts.rejected)}"
            )
    empty = [SPLITS[i] for i in required_splits(settings) if not facts.splits[SPLITS[i]].documents]
    if empty:
        raise CorpusError(
            f"corpus: {facts.kept} documents are too few to split, {' and '.join(empty)} would be empty; "
            f"add text; of {facts.read} read: {why(facts.rejected)}"
        )
