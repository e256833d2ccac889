"""Preparing a corpus: documents that passed the filters -> deduplicated text in three splits.

Whether such a document is kept depends on whether the corpus holds the same text or nearly the same;
which split it is in depends on its text alone. So a corpus that grows keeps its held-out documents held out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.arabic import NORMALISATIONS, Rules
from qalam_core.corpus.duplicates import Digests
from qalam_core.corpus.filtered import COUNTED, REJECTED, REJECTS, TEXTS, FilterFacts, batches, read_digests, reject
from qalam_core.corpus.filters import REASONS, FilterSettings, Reasons
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.corpus.held_out import HeldOut
from qalam_core.corpus.matches import Repeats
from qalam_core.corpus.pieces import growth
from qalam_core.corpus.splits import SPLITS, Shards, Shares, assign, below, half, read_texts, required_splits
from qalam_core.corpus.words import Hashes, Numbers
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import CorpusError
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Corpus, Frozen

log = logging.getLogger(__name__)

SHARD_MB, SHARD_GROWTH = 16, 16  # of a corpus that has not grown; and at most, as a worker holds a shard's tokens
_UNREPAIRED = "look as if they had been decoded with a wrong encoding; corpus.repair = true undoes that"
HELD_OUT, COPIES = "held_out.arrow", "copies.arrow"


class PrepareSettings(Shares):
    """Everything that the prepared corpus depends on, besides the documents that passed the filters."""

    normalisation: Rules  # that the filters applied: what is looked for in the corpus needs them
    shard_mb: int
    validation_mb: int  # of text, at most; 0: any
    test_mb: int

    @classmethod
    def of(cls, corpus: Corpus, size: int = 0) -> PrepareSettings:
        """From the recipe's corpus section, for sources of `size` bytes."""
        return cls(
            validation=corpus.validation, test=corpus.test, normalisation=NORMALISATIONS[corpus.normalisation],
            shard_mb=corpus.shard_mb or SHARD_MB * growth(size, SHARD_GROWTH),
            validation_mb=corpus.validation_mb, test_mb=corpus.test_mb,
        )  # fmt: skip


class FilteredFiles(NamedTuple):
    """What `filter_documents` made of some files of one slice."""

    slice: str
    folder: Path
    facts: FilterFacts


class SliceCounts(Frozen):
    """Counts of documents, and of what was read but is none; `rejected` is by reason."""

    read: int
    kept: int
    repaired: int  # wholly
    rejected: dict[str, int]
    cut: int = 0  # too long to be read whole; all are rejected
    replaced: int = 0  # with U+FFFD, in place of bytes that could not be decoded, or in the source itself
    skipped_null: int = 0  # records without text
    skipped: int = 0  # records that could not be read
    passed_over: int = 0  # files without documents
    repaired_in_part: int = 0  # letters of the damage are left, as their bytes are lost; these are rejected
    not_repaired: int = 0  # although damage is recognised, or as corpus.repair is off; these are filtered as they are
    masked: int = 0  # with an address or a number that corpus.mask_pii replaced
    seen_by_ancestor: int = 0  # kept for training instead of held out, because an ancestor of the model has read it


class SplitCounts(Frozen):
    """The size of a split."""

    documents: int
    characters: int
    bytes: int  # UTF-8
    shards: int


class CorpusFacts(SliceCounts):
    """Counts of a prepared corpus, of all documents and by slice."""

    sources: dict[str, SliceCounts]
    splits: dict[str, SplitCounts]
    with_copies: int = 0  # documents that are kept in place of others, equal or nearly
    most_copies: int = 1  # of one document, itself included


def prepare(
    files: Sequence[FilteredFiles], matches: Sequence[Path], settings: PrepareSettings, filters: FilterSettings,
    out: Path, progress: Progress = no_progress, read: Sequence[tuple[str, IngestFacts]] = (),
    seen: Fingerprints | None = None, folds: Sequence[Path] = (),
) -> CorpusFacts:  # fmt: skip
    """Deduplicate and split the documents of `files`, in their order, into `out`; -> counts.

    `matches` are the folders that `match_documents` wrote about `files`, one for each partition.

    Writes train-00000.arrow and so on, each of half to twice `shard_mb` MB of text (columns id: the first 16 hex digits
    of the text's sha256, text, source), and rejects.arrow (text: at most HEAD characters; source, reason). Every
    document is in one of them. copies.arrow has the documents that were kept in place of others (id as a number,
    copies: how many, itself included), by id. Memory: a few record batches, what `Repeats` states, and 40 bytes for
    each document that the shares hold out. Progress is in bytes of the files.

    `seen` is what the ancestors of the model have read: what would be held out and meets it goes to training instead.
    Texts of which `fold_documents` wrote the hashes into a folder of `folds` are not folded for that. With `seen`, also
    writes held_out.arrow (hash: those of the folded documents that are held out, sorted).

    `read` has the slice and the facts of each file that was read, for the counts; `filters` are the settings of the
    filters, for errors. Raises CorpusError when a slice, or a split with a share, would be empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    total = sum((file.folder / TEXTS).stat().st_size for file in files)
    counts = _Counts(files, read)
    shards = [Shards(out, split, settings.shard_mb * 1_000_000) for split in SPLITS]
    repeats = Repeats.of(matches, [file.folder for file in files])
    copies = _copies(*repeats.copies())
    with ipc.new_file(out / COPIES, copies.schema) as file:
        file.write_batch(copies)
    splits = _Splits.of(files, repeats, settings)
    held_out = HeldOut.of(seen, folds) if seen else None
    hashes = [np.zeros(0, np.uint64)]
    row, done = 0, 0
    with ipc.new_file(out / REJECTS, REJECTED) as rejects:
        for batch, _ in batches([file.folder / REJECTS for file in files]):
            rejects.write_batch(batch)
        for file in files:
            for (batch, _), (digests, _) in zip(batches([file.folder / TEXTS]), read_digests(file.folder), strict=True):
                reasons = repeats.reasons(row, len(batch))
                row += len(batch)
                counts.reject(batch.column("source"), reasons)
                reject(rejects, batch.column("text"), batch.column("source"), reasons, np.flatnonzero(reasons != ""))
                split = np.where(reasons == "", splits.of_documents(digests), -1)
                if held_out:
                    to_training, of_others = _to_training(split, digests, batch, held_out)
                    counts.count("seen_by_ancestor", to_training)
                    hashes.append(of_others)
                for index, shard in enumerate(shards):
                    own = split == index
                    text, source = (_selected(batch.column(name), own) for name in ("text", "source"))
                    shard.write(text, source, digests[own])
                done += batch.nbytes
                progress(min(done, total), total)
    for shard in shards:
        shard.close()
    if held_out:
        written = pa.record_batch({"hash": np.unique(np.concatenate(hashes))})
        with ipc.new_file(out / HELD_OUT, written.schema) as file:
            file.write_batch(written)
    facts = counts.facts(shards, copies.column("copies").to_numpy())
    _check(facts, settings, filters)
    if facts.not_repaired and not filters.repair:
        log.warning("%s of %s documents %s", f"{facts.not_repaired:,}", f"{facts.read:,}", _UNREPAIRED)
    progress(total, total)
    return facts


def read_rejects(folder: Path, reason: str, count: int) -> Iterator[tuple[str, str]]:
    """(slice, text) of up to `count` documents that were rejected for `reason`, spread evenly over the corpus."""
    batches = list(read_texts(folder / REJECTS))  # mapped, not read
    rows = [np.flatnonzero(pc.equal(batch.column("reason"), reason)) for batch in batches]
    ends = np.cumsum([0, *map(len, rows)])
    for place in np.unique(np.linspace(0, ends[-1] - 1, min(count, ends[-1])).astype(int)):
        index = int(np.searchsorted(ends, place, side="right")) - 1
        row = batches[index].slice(int(rows[index][place - ends[index]]), 1).to_pylist()[0]
        yield row["source"], row["text"]


def _to_training(
    split: NDArray[np.int8], digests: Digests, batch: pa.RecordBatch, held_out: HeldOut
) -> tuple[pa.Array, Hashes]:
    """Reassign held-out documents that count as read, in place; -> their slices, and the hashes of the others."""
    rows = np.flatnonzero(split > 0)
    chosen = batch.take(pa.array(rows))
    hashes, read = held_out.look_up(digests[rows], chosen.column("text"))
    split[rows[read]] = 0
    return chosen.column("source").filter(pa.array(read)), hashes[~read]


def _copies(digests: Digests, documents: Numbers) -> pa.RecordBatch:
    """COPIES, of the documents that are kept in place of others."""
    ids = half(digests, 0)
    by_id = np.argsort(ids)
    return pa.record_batch({"id": ids[by_id], "copies": documents[by_id].astype(np.int32)})


class _Splits(NamedTuple):
    """Which split documents are in: those that could be held out, and the rest in training."""

    digests: Digests  # sorted
    split: NDArray[np.int8]

    @classmethod
    def of(cls, files: Sequence[FilteredFiles], repeats: Repeats, settings: PrepareSettings) -> _Splits:
        """From the digests and sizes of all documents that are kept."""
        low, sizes, training = [np.zeros(0, "S16")], [np.zeros(0, np.int32)], np.zeros(0, "S16")
        row, others = 0, 0
        for file in files:
            for digests, of_texts in read_digests(file.folder):
                kept = repeats.reasons(row, len(digests)) == ""
                row += len(digests)
                could = below(digests, settings.test + settings.validation)
                low.append(digests[kept & could])
                sizes.append(of_texts[kept & could])
                rest = digests[kept & ~could]
                others += len(rest)
                lower = rest[rest < training[-1]] if len(training) == 2 else rest
                training = np.sort(np.concatenate([training, lower]))[:2]  # which `assign` may have to hold out
        chosen = np.concatenate([*low, training])
        split = assign(chosen, settings, others - len(training))
        bytes_of = np.concatenate([*sizes, np.zeros(len(training), np.int32)]).astype(np.int64)
        for name, most in (("validation", settings.validation_mb), ("test", settings.test_mb)):
            if most:
                _cap(split, SPLITS.index(name), chosen, bytes_of, most * 1_000_000)
        order = np.argsort(chosen)
        return cls(chosen[order], split[order])

    def of_documents(self, digests: Digests) -> NDArray[np.int8]:
        """An index into SPLITS for each document that is kept."""
        split = np.zeros(len(digests), np.int8)
        if len(self.digests):
            known = np.flatnonzero(half(digests, 0) <= half(self.digests[-1:], 0))
            place = np.searchsorted(self.digests, digests[known])
            found = self.digests[np.minimum(place, len(self.digests) - 1)] == digests[known]
            split[known[found]] = self.split[place[found]]
        return split


def _cap(split: NDArray[np.int8], index: int, digests: Digests, sizes: NDArray[np.int64], most: int) -> None:
    """Reassign to training, in place, what a split has beyond `most` bytes of text. The lowest digests stay, so that a
    corpus that grows holds out some of what it did, and nothing that it trained on; one document stays in any case."""
    rows = np.flatnonzero(split == index)
    rows = rows[np.argsort(digests[rows])]
    split[rows[1:][np.cumsum(sizes[rows])[1:] > most]] = 0


def _selected(values: pa.Array, rows: NDArray[np.bool_]) -> pa.Array:
    return values if rows.all() else values.filter(pa.array(rows))


class _Counts:
    """What became of the documents of each slice."""

    def __init__(self, files: Sequence[FilteredFiles], read: Sequence[tuple[str, IngestFacts]]) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()  # by (slice, field of SliceCounts)
        self.rejected: Counter[tuple[str, str]] = Counter()  # by (slice, reason)
        for name, of_file in read:
            for what in ("skipped_null", "skipped", "passed_over"):
                self.counts[name, what] += getattr(of_file, what)
        for name, _, filtered in files:
            for what in ("read", *COUNTED):
                self.counts[name, what] += getattr(filtered, what)
            for reason, count in filtered.rejected.items():
                self.rejected[name, reason] += count

    def count(self, what: str, names: pa.Array) -> None:
        for name, count in _counted(names).items():
            self.counts[name, what] += count

    def reject(self, names: pa.Array, reasons: Reasons) -> None:
        for reason in set(reasons[reasons != ""].tolist()):
            for name, count in _counted(names.filter(pa.array(reasons == reason))).items():
                self.rejected[name, reason] += count

    def facts(self, shards: Sequence[Shards], copies: Numbers) -> CorpusFacts:
        sizes = [SplitCounts(**{key: shard.counts[key] for key in SplitCounts.model_fields}) for shard in shards]
        splits = dict(zip(SPLITS, sizes, strict=True))
        sources = {name: self._of({name}) for name, what in self.counts if what == "read"}
        return CorpusFacts(
            **dict(self._of({name for name, _ in self.counts})), sources=sources, splits=splits,
            with_copies=len(copies), most_copies=int(copies.max(initial=1)),
        )  # fmt: skip

    def _of(self, names: Collection[str]) -> SliceCounts:
        found = {reason: sum(self.rejected[name, reason] for name in names) for reason in REASONS}
        rejected = {reason: count for reason, count in found.items() if count}
        plain = [what for what in SliceCounts.model_fields if what not in ("kept", "rejected")]
        counts = {what: sum(self.counts[name, what] for name in names) for what in plain}
        return SliceCounts(**counts, kept=counts["read"] - sum(rejected.values()), rejected=rejected)


def _counted(values: pa.Array) -> dict[str, int]:
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}


def _check(facts: CorpusFacts, settings: PrepareSettings, filters: FilterSettings) -> None:
    rule = "a rule of the source's filters; change its threshold in corpus.thresholds, or filters"
    cures = {
        "damaged": f"the share of U+FFFD, in place of bytes that could not be decoded, is above corpus.max_damaged "
        f"({filters.max_damaged:g}); set the source's encoding, or raise it",
        "mojibake": "bytes of their letters were lost when they were decoded; decode the source again, or set "
        "corpus.repair = false to have them filtered as they are",
        "empty": "nothing is left once marks and controls are removed",
        "too_short": f"corpus.min_chars is {filters.min_chars}; lower it, or join lines with unit",
        "too_long": f"corpus.max_chars is {filters.max_chars}; raise it, or split the text with unit",
        "not_arabic": f"corpus.min_arabic is {filters.min_arabic}; lower it, or name the field with Arabic",
        "excluded": "corpus.exclude names it",
        "duplicate": "the same text came before",
        "near_duplicate": "nearly the same text is kept; or set corpus.near_duplicates = false",
    }

    def why(counts: SliceCounts) -> str:
        worst = sorted(counts.rejected.items(), key=lambda pair: -pair[1])
        rejected = "; ".join(f"{count} {reason} ({cures.get(reason, rule)})" for reason, count in worst)
        damaged = ""
        if counts.not_repaired and not filters.repair:
            damaged = f"; {counts.not_repaired} {_UNREPAIRED}"
        return f"of {counts.read} read: {rejected or 'none rejected'}{damaged}"

    for name, counts in facts.sources.items():
        if not counts.kept:
            raise CorpusError(f"{name}: a source with no usable documents; {why(counts)}")
    empty = [SPLITS[i] for i in required_splits(settings) if not facts.splits[SPLITS[i]].documents]
    if empty:
        seen = (
            f"{facts.seen_by_ancestor} that would be held out were read by an ancestor of the model; "
            'add new text, or set train.start to "scratch"'
        )
        raise CorpusError(
            f"corpus: {facts.kept} documents are too few to split, {' and '.join(empty)} would be empty; "
            f"{seen if facts.seen_by_ancestor else 'add text'}; {why(facts)}"
        )
