"""The corpus: documents as read -> normalised, filtered, deduplicated text in three splits.
Takes documents.arrow files and the recipe's corpus part; gives Arrow shards per split, the rejected
documents with their reasons, and counts.
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
from qalam_core.corpus.judge import REASONS, Judged, check_languages, filters_by_slice, judge
from qalam_core.corpus.readers import HEAD, ingest
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.corpus.splits import SPLITS, Shards, ids, moves, read_split, read_texts, split_of, wanted
from qalam_core.errors import CorpusError
from qalam_core.recipe import Corpus, Filters
from qalam_core.store import Progress, silent

__all__ = [
    "REASONS", "REJECTS", "SPLITS", "SourceFile", "filters_by_slice", "ingest", "prepare", "read_rejects",
    "read_split", "read_texts", "resolve",
]  # fmt: skip

REJECTS = "rejects.arrow"

_TEXTS = "texts"  # in the spool: what the first pass keeps
_FIRST = 80  # percent of the bar that the first pass takes; the second only writes

_SPOOLED = pa.schema([("text", pa.large_string()), ("source", pa.string())])
_REJECTED = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("reason", pa.string())])


def prepare(documents: Sequence[Path], corpus: Corpus, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Clean, deduplicate and split `documents`, in their order, into `out`; gives counts.

    Writes train-00000.arrow and so on, each of half to twice `corpus.shard_mb` MB of text (columns id: the first 16
    hex digits of the text's sha256, text, source), and rejects.arrow (at most HEAD characters as read, or as
    normalised for near-duplicates, source, reason). Every document is in one of them. Memory: a few record batches,
    and what duplicates.py says a document. On disk it needs the corpus's size again while it works. Progress is in
    bytes of the files. A split by hash may be empty by chance in a small corpus; `moves` says what is done then.
    Raises CorpusError when a slice, or a split with a share, is left with nothing, and RecipeError.
    """
    filters = filters_by_slice(corpus)
    check_languages(corpus, filters)
    out.mkdir(parents=True, exist_ok=True)
    total = sum(path.stat().st_size for path in documents)
    counts = _Counts()
    shards = [Shards(out, split, corpus.shard_mb * 1_000_000) for split in SPLITS]
    spool = out / "spool"
    with ipc.new_file(out / REJECTS, _REJECTED) as rejects:
        with Clusters(spool) as clusters, ipc.new_file(spool / _TEXTS, _SPOOLED) as kept:
            seen = Seen()
            for batch, done in _judged(documents, corpus, filters):
                fresh = seen.add(batch.digests, batch.reasons == "")
                batch.reasons[(batch.reasons == "") & ~fresh] = "duplicate"
                counts.add(batch)
                rejected = np.flatnonzero(batch.reasons != "")
                _reject(rejects, batch.read, batch.names, batch.reasons, rejected)
                kept.write_batch(
                    pa.record_batch([_taken(batch.texts, fresh), _taken(batch.names, fresh)], schema=_SPOOLED)
                )
                clusters.add(batch.digests[fresh], batch.long[fresh], batch.keys[fresh[batch.long]])
                progress(done * _FIRST // 100, total)
            del seen
            digests, goes = clusters.finish()
        moved = moves(digests[~goes], corpus)
        row = 0
        for batch, share in _spooled(spool / _TEXTS):
            rows = slice(row, row + len(batch))
            row += len(batch)
            _write(shards, batch, digests[rows], goes[rows], corpus, moved)
            near = np.full(len(batch), "near_duplicate", np.object_)
            counts.reject(batch.column("source"), np.where(goes[rows], near, ""))
            _reject(rejects, batch.column("text"), batch.column("source"), near, np.flatnonzero(goes[rows]))
            progress(int(total * (_FIRST + (100 - _FIRST) * share) / 100), total)
    for shard in shards:
        shard.close()
    shutil.rmtree(spool)
    facts = counts.facts({split: shard.counts for split, shard in zip(SPLITS, shards, strict=True)})
    _check(facts, corpus)
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


def _judged(documents: Sequence[Path], corpus: Corpus, filters: Mapping[str, Filters]) -> Iterator[tuple[Judged, int]]:
    """Every batch of every file, judged, in order, and the bytes of all files up to it.

    A few are in the works at once: Arrow and numpy free the interpreter.
    """
    workers = min(pa.cpu_count(), 4)
    ahead: deque[tuple[Future[Judged], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        before = 0
        for path in documents:
            size = path.stat().st_size
            # read, not mapped: pages of a file that is passed once would only count as this process's memory
            with pa.OSFile(str(path)) as file, ipc.open_file(file) as reader:
                for index in range(reader.num_record_batches):
                    done = before + size * (index + 1) // reader.num_record_batches
                    ahead.append((pool.submit(judge, reader.get_batch(index), corpus, filters), done))
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
    shards: Sequence[Shards], batch: pa.RecordBatch, digests: Digests, goes: NDArray[np.bool_], corpus: Corpus,
    moved: Mapping[str, int],
) -> None:  # fmt: skip
    """Write what stays to the shards of its split."""
    split = split_of(digests, corpus)
    if moved:
        split[:] = [moved.get(name, own) for name, own in zip(ids(digests), split, strict=True)]
    split[goes] = -1
    for index, shard in enumerate(shards):
        mine = split == index
        shard.write(_taken(batch.column("text"), mine), _taken(batch.column("source"), mine), digests[mine])


def _reject(
    rejects: Any, texts: pa.Array, names: pa.Array, reasons: NDArray[np.object_], rows: NDArray[np.intp]
) -> None:
    if len(rows):
        heads = pc.utf8_slice_codeunits(texts.take(pa.array(rows)), 0, HEAD)
        rejects.write_batch(
            pa.record_batch([heads, names.take(pa.array(rows)), pa.array(reasons[rows], pa.string())], schema=_REJECTED)
        )


def _taken(values: pa.Array, rows: NDArray[np.bool_]) -> pa.Array:
    return values if rows.all() else values.filter(pa.array(rows))


# -- counts ---------------------------------------------------------------------------------------


@dataclass
class _Counts:
    """How many documents of each slice were read, repaired, and rejected for each reason."""

    read: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (slice, reason)

    def add(self, batch: Judged) -> None:
        self.read.update(_counted(batch.names))
        self.repaired.update(_counted(batch.names.filter(pa.array(batch.repaired))))
        self.reject(batch.names, batch.reasons)

    def reject(self, names: pa.Array, reasons: NDArray[np.object_]) -> None:
        for reason in set(reasons[reasons != ""].tolist()):
            for name, count in _counted(names.filter(pa.array(reasons == reason))).items():
                self.rejected[name, reason] += count

    def facts(self, splits: Mapping[str, Counter[str]]) -> dict[str, Any]:
        return {
            **self._of(self.read.keys()),
            "sources": {name: self._of({name}) for name in self.read},
            "splits": {
                split: {key: counts[key] for key in ("documents", "characters", "bytes", "shards")}
                for split, counts in splits.items()
            },
        }

    def _of(self, names: Collection[str]) -> dict[str, Any]:
        reasons: Counter[str] = Counter()
        for (name, reason), count in self.rejected.items():
            reasons[reason] += count if name in names else 0
        read = sum(self.read[name] for name in names)
        return {
            "read": read,
            "kept": read - reasons.total(),
            "repaired": sum(self.repaired[name] for name in names),
            "rejected": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        }


def _counted(values: pa.Array) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}


def _check(facts: Mapping[str, Any], corpus: Corpus) -> None:
    cures = {
        "empty": "nothing is left of them once marks and controls are gone",
        "too_short": f"corpus.min_chars is {corpus.min_chars}; lower it, or join lines with unit",
        "too_long": f"corpus.max_chars is {corpus.max_chars}; raise it, or cut the text up with unit",
        "not_arabic": f"corpus.min_arabic is {corpus.min_arabic}; lower it, or name the field with Arabic",
        "duplicate": "the same text came before",
        "near_duplicate": "nearly the same text is kept; or set corpus.near_duplicates = false",
    }

    def why(rejected: Mapping[str, int]) -> str:
        worst = sorted(rejected, key=lambda reason: -rejected[reason])
        rule = "a rule of the source's filters; change its threshold in corpus.thresholds, or filters"
        return "; ".join(f"{rejected[reason]} {reason} ({cures.get(reason, rule)})" for reason in worst) or (
            "none rejected"
        )

    for name, counts in facts["sources"].items():
        if not counts["kept"]:
            raise CorpusError(
                f"{name}: a source with no usable documents; of {counts['read']} read: {why(counts['rejected'])}"
            )
    empty = [SPLITS[i] for i in wanted(corpus) if not facts["splits"][SPLITS[i]]["documents"]]
    if empty:
        raise CorpusError(
            f"corpus: {facts['kept']} documents are too few to split, {' and '.join(empty)} would be empty; "
            f"add text; of {facts['read']} read: {why(facts['rejected'])}"
        )
