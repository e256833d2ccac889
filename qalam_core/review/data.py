"""What changed between the documents of two prepared corpora: added, gone, moved between splits; by source and rule.

A document's id is the digest of its normalised text, so that the same text is the same document in both. Memory: 13
bytes per document of each corpus, and as much again while they are compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.arabic import Rules, normalise_array
from qalam_core.corpus.filtered import REJECTS
from qalam_core.corpus.fingerprints import id_numbers
from qalam_core.corpus.prepare import CorpusFacts, read_rejects
from qalam_core.corpus.splits import SPLITS, read_split, read_texts
from qalam_core.corpus.words import Hashes, mixed
from qalam_core.corpus.writer import HEAD
from qalam_core.recipe import Frozen
from qalam_core.review.results import Alarm

EXCERPT = 240  # characters of a document that are shown
_SAMPLES = 6  # documents of a kind
_SOURCES = 200  # that are listed, those with the most changes first
_RULES = 4  # whose documents are shown
_FEWER, _ENOUGH = 0.2, 20  # a source that loses this share of its documents, of at least so many, is an alarm
_REJECTS_BYTES = 64_000_000  # of a file of rejected documents in which gone documents are looked for


class Excerpt(Frozen):
    """The beginning of a document."""

    source: str
    id: str  # "" of a rejected document
    text: str  # at most EXCERPT characters
    characters: int  # of the whole document; of a rejected one, at most HEAD
    note: str = ""  # why it is gone, or from which split it moved to which


class SourceDocuments(Frozen):
    """The documents of a source in both corpora, or of all."""

    name: str
    old: int  # kept, in all splits
    new: int
    added: int
    gone: int
    moved: int


class RuleDocuments(Frozen):
    """How many documents of a source a rule rejected."""

    source: str
    rule: str
    old: int
    new: int


class Samples(Frozen):
    """Some documents, drawn by the seed, of `count`."""

    what: str  # "added", "gone", "moved", or "rejected as too short"
    count: int
    documents: tuple[Excerpt, ...]


class DataChanges(Frozen):
    """What changed between two corpora."""

    overall: SourceDocuments
    sources: tuple[SourceDocuments, ...]  # that changed, the most changed first, at most _SOURCES
    sources_changed: int
    unmatched: str  # why the documents cannot be matched, so that those counts are 0; "" where they were
    splits: dict[str, tuple[int, int]]  # documents of each split, old and new
    moves: dict[str, int]  # "train -> test": documents in both corpora
    gone_because: dict[str, int]  # rule, or another reason -> documents
    rules: tuple[RuleDocuments, ...]  # whose counts differ, the most changed first
    samples: tuple[Samples, ...]
    emptied: tuple[str, ...]  # sources with documents in the old corpus, and none in the new one

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Sources that lost all or many of their documents, and documents that only the old model has read."""
        found = [
            Alarm(section="data", severity="high", message=f"The source {name} has no documents any more.")
            for name in self.emptied
        ]
        found += [
            Alarm(
                section="data", severity="low",
                message=f"The source {row.name} has {row.old - row.new:,} fewer documents, of {row.old:,}.",
            )
            for row in self.sources
            if row.name not in self.emptied and row.old >= _ENOUGH and row.old - row.new > _FEWER * row.old
        ]  # fmt: skip
        if read := sum(count for way, count in self.moves.items() if way.startswith("train ->")):
            message = f"{read:,} documents that the old model was trained on are held out now: it knows them."
            found.append(Alarm(section="data", severity="low", message=message))
        return tuple(found)


class Prepared(NamedTuple):
    """A prepared corpus."""

    folder: Path
    facts: CorpusFacts
    normalisation: Rules


def data_changes(old: Prepared, new: Prepared, seed: int) -> DataChanges:
    """Compare two prepared corpora; the samples are drawn by `seed`, and do not depend on the shards."""
    before, after, names = _Documents.read(old, new)
    unmatched = ""
    if old.normalisation != new.normalisation:
        unmatched = "the texts were normalised otherwise, and a document's id is the digest of its normalised text"
        found = {what: np.zeros(0, np.int64) for what in ("added", "gone", "moved")}
        places = np.zeros(0, np.int64)
    else:
        place = _places(before.ids, after.ids)
        moved = np.flatnonzero((place >= 0) & (after.splits != before.splits[place]))
        places = place[moved]
        found = {
            "added": np.flatnonzero(place < 0), "gone": np.flatnonzero(_places(after.ids, before.ids) < 0),
            "moved": moved,
        }  # fmt: skip
    of = {"added": after, "gone": before, "moved": after}
    counts = {what: np.bincount(of[what].sources[rows], minlength=len(names)) for what, rows in found.items()}
    kept = [np.bincount(side.sources, minlength=len(names)) for side in (before, after)]
    rows = [
        SourceDocuments(name=name, old=int(kept[0][number]), new=int(kept[1][number]),
                        **{what: int(counts[what][number]) for what in counts})
        for number, name in enumerate(names)
    ]  # fmt: skip
    changed = [row for row in rows if row.added or row.gone or row.moved or row.old != row.new]
    changed.sort(key=lambda row: (-max(row.added + row.gone + row.moved, abs(row.new - row.old)), row.name))
    directions = [f"{SPLITS[a]} -> {SPLITS[b]}" for a, b in zip(
        before.splits[places].tolist(), after.splits[found["moved"]].tolist(), strict=True)]  # fmt: skip
    gone = before.ids[found["gone"]]
    because = _why_gone(gone, before.sources[found["gone"]], names, new) if len(gone) else {}
    rules = _rules(old.facts, new.facts)
    notes = {"added": dict[int, str](), "gone": because,
             "moved": dict(zip(after.ids[found["moved"]].tolist(), directions, strict=True))}  # fmt: skip
    folders = {"added": new.folder, "gone": old.folder, "moved": new.folder}
    samples = [
        Samples(what=what, count=len(rows_of), documents=_sample(
            folders[what], of[what], rows_of, seed, notes[what]))
        for what, rows_of in found.items() if len(rows_of)
    ]  # fmt: skip
    samples += _rejected(new, rules)
    return DataChanges(
        overall=SourceDocuments(
            name="all", old=len(before.ids), new=len(after.ids),
            **{what: len(rows_of) for what, rows_of in found.items()},
        ),
        sources=tuple(changed[:_SOURCES]), sources_changed=len(changed), unmatched=unmatched,
        splits={split: tuple(_in_split(side.facts, split) for side in (old, new)) for split in SPLITS},
        moves=dict(sorted(Counter(directions).items())),
        gone_because=_counted(because.get(number, _UNKNOWN) for number in gone.tolist()),
        rules=rules, samples=tuple(samples),
        emptied=tuple(row.name for row in rows if row.old and not row.new),
    )  # fmt: skip


_UNKNOWN = "not among the rejected documents: it is not in the sources, or its text changed"


class _Documents(NamedTuple):
    """The documents of a corpus, in order."""

    ids: Hashes
    splits: NDArray[np.int8]  # index into SPLITS
    sources: NDArray[np.int32]  # index into the names of both corpora

    @staticmethod
    def read(*corpora: Prepared) -> tuple[_Documents, _Documents, list[str]]:
        """The documents of two corpora, and the names of their sources, sorted."""
        names = {name: at for at, name in enumerate(sorted({name for each in corpora for name in each.facts.sources}))}
        found = [_Documents._of(corpus.folder, names) for corpus in corpora]
        return found[0], found[1], list(names)

    @staticmethod
    def _of(folder: Path, names: Mapping[str, int]) -> _Documents:
        ids, splits, sources = [np.zeros(0, np.uint64)], [np.zeros(0, np.int8)], [np.zeros(0, np.int32)]
        for number, split in enumerate(SPLITS):
            for batch in _batches(folder, split):
                ids.append(id_numbers(batch.column("id").to_pylist()))
                splits.append(np.full(len(batch), number, np.int8))
                of_batch = batch.column("source").dictionary_encode()
                numbers = np.array([names[name] for name in of_batch.dictionary.to_pylist()], np.int32)
                sources.append(numbers[of_batch.indices.to_numpy()])
        return _Documents(np.concatenate(ids), np.concatenate(splits), np.concatenate(sources))


def _batches(folder: Path, *splits: str) -> Iterator[pa.RecordBatch]:
    return (batch for split in splits or SPLITS for shard in read_split(folder, split) for batch in read_texts(shard))


def _places(known: Hashes, wanted: Hashes) -> NDArray[np.int64]:
    """The place in `known` of each of `wanted`, -1 where it is not there."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
    return np.where(known[at] == wanted, at, -1)


def _in_split(facts: CorpusFacts, split: str) -> int:
    return facts.splits[split].documents if split in facts.splits else 0


def _counted(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))


def _why_gone(gone: Hashes, sources: NDArray[np.int32], names: Sequence[str], new: Prepared) -> dict[int, str]:
    """Id -> why a document is not in the new corpus, where that is known: its source is not, or a rule rejected it."""
    found = {
        number: "its source is not in the recipe"
        for number, source in zip(gone.tolist(), sources.tolist(), strict=True)
        if names[source] not in new.facts.sources
    }
    rejects = new.folder / REJECTS
    if len(found) == len(gone) or rejects.stat().st_size > _REJECTS_BYTES:
        return found
    wanted = set(gone.tolist()) - found.keys()
    for batch in read_texts(rejects):
        texts = normalise_array(batch.column("text"), new.normalisation).to_pylist()
        for text, reason in zip(texts, batch.column("reason").to_pylist(), strict=True):
            number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            if number in wanted:
                found.setdefault(number, reason.replace("_", " "))
    return found


def _rules(old: CorpusFacts, new: CorpusFacts) -> tuple[RuleDocuments, ...]:
    found = []
    for source in sorted({*old.sources, *new.sources}):
        before, after = (facts.sources[source].rejected if source in facts.sources else {} for facts in (old, new))
        for rule in sorted({*before, *after}):
            counts = before.get(rule, 0), after.get(rule, 0)
            if counts[0] != counts[1]:
                found.append(RuleDocuments(source=source, rule=rule, old=counts[0], new=counts[1]))
    found.sort(key=lambda row: -abs(row.new - row.old))
    return tuple(found[:_SOURCES])


def _sample(
    folder: Path, documents: _Documents, rows: NDArray[np.int64], seed: int, notes: Mapping[int, str]
) -> tuple[Excerpt, ...]:
    """Documents of `rows`, drawn by hashes of (seed, id): one of each source in turn, the most frequent first."""
    drawn = mixed(documents.ids[rows] + np.uint64(seed))
    sources = documents.sources[rows]
    order = np.lexsort((drawn, sources))
    turn = np.arange(len(rows)) - np.searchsorted(sources[order], sources[order])
    often = np.bincount(sources)[sources[order]]
    chosen = rows[order[np.lexsort((drawn[order], -often, turn))[:_SAMPLES]]]
    wanted = set(documents.ids[chosen].tolist())
    found: dict[int, Excerpt] = {}
    for batch in _batches(folder):
        numbers = id_numbers(batch.column("id").to_pylist()).tolist()
        for at in (at for at, number in enumerate(numbers) if number in wanted):
            row = batch.slice(at, 1).to_pylist()[0]
            found[numbers[at]] = _excerpt(row["source"], row["id"], row["text"], notes.get(numbers[at], ""))
        if len(found) == len(wanted):
            break
    return tuple(found[number] for number in documents.ids[chosen].tolist())


def _excerpt(source: str, id_: str, text: str, note: str) -> Excerpt:
    return Excerpt(source=source, id=id_, text=text[:EXCERPT], characters=len(text), note=note)


def _rejected(new: Prepared, rules: Sequence[RuleDocuments]) -> list[Samples]:
    """Documents that were rejected by the rules that reject more of them than before, spread over the corpus."""
    more = Counter[str]()
    for row in rules:
        more[row.rule] += row.new - row.old
    found = []
    for rule, count in more.most_common(_RULES):
        if count > 0:
            texts = read_rejects(new.folder, rule, 2)
            total = new.facts.rejected.get(rule, 0)
            documents = tuple(_excerpt(source, "", text[:HEAD], "") for source, text in texts)
            found.append(Samples(what=f"rejected as {rule.replace('_', ' ')}", count=total, documents=documents))
    return found
