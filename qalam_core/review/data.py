"""What changed between the documents of two prepared corpora: added, gone, moved between splits; by source and rule.

A document's id is the digest of its normalised text, so that the same text is the same document in both. Memory: 13
bytes per document of each corpus, and as much again while they are compared; and 100 million characters of drawn
documents.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, starmap
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from qalam_core.arabic import Rules, normalise_array
from qalam_core.corpus.filtered import REJECTS
from qalam_core.corpus.filters import REASONS
from qalam_core.corpus.fingerprints import Fingerprints, id_numbers
from qalam_core.corpus.prepare import CorpusFacts, read_rejects
from qalam_core.corpus.splits import SPLITS, read_split, read_texts
from qalam_core.corpus.words import Hashes, mixed
from qalam_core.corpus.writer import HEAD
from qalam_core.evaluation.contamination import copied
from qalam_core.recipe import Frozen
from qalam_core.review.phrases import CHARACTERS, Phrase, recurring
from qalam_core.review.results import Alarm

EXCERPT = 240  # characters of a document that are shown
_COMPARED, _READ = 50, 200  # sources with the most new documents, and documents of each, whose texts are compared
_HELD_OUT = 2_000  # documents that both hold out, that are looked at
_MET, _MET_SHARE = 5, 0.02  # of them that the new model alone has read: so many, and more than this share
_CHARACTERS = 50_000_000  # of all drawn documents that are held at a time
_RESIZED = 2.5  # times the median size
_SAMPLES = 6  # documents of a kind
_SOURCES = 200  # that are listed, those with the most changes first
_RULES = 4  # whose documents are shown
_FEWER, _ENOUGH = 0.2, 20  # a source that loses this share of its documents, of at least so many, is an alarm
_SHIFT = 0.1  # of all documents; a source whose share has grown by so much is an alarm
_BUILDS = 15  # whose new documents are remembered
_KNOWN = 3  # of them that had new documents of a source, before what it usually has is known
_DUE = 10  # new documents that a source would usually have had by now, before their absence is an alarm
_SURGE = 2  # times the most new documents that a source ever had, and _ENOUGH more of them
_REJECTED = 0.5  # of the documents that a source has more than before, and twice as often as before
_WAYS = [f"{old} -> {new}" for old in SPLITS for new in SPLITS]
_UNKNOWN = (
    f"not among the rejected documents: it is not in the sources, its text changed, or it is longer than {HEAD:,}"
)
_NOT_SOUGHT = "unknown: it was not looked for among the rejected documents, which are too many"
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


class Rejected(Frozen):
    """A source most of whose further documents were rejected."""

    source: str
    read: int  # more than before
    rejected: int  # of them
    rule: str  # that rejected most of them, "" where it also rejects documents that were kept before

    @property
    def message(self) -> str:
        """One sentence."""
        of_them = f"{self.rejected:,} of the {self.read:,} documents that the source {self.source} has more than before"
        rule = f", most as {self.rule.replace('_', ' ')}" if self.rule else ""
        return f"{of_them} are rejected{rule}."


class Resized(Frozen):
    """A source whose new documents are much shorter or longer than those before."""

    source: str
    old: int  # characters, the median
    new: int

    @property
    def message(self) -> str:
        """One sentence."""
        return f"Half of the new documents of {self.source} have at most {self.new:,} characters; it was {self.old:,}."


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
    rejected: tuple[Rejected, ...] = ()  # sources most of whose further documents were rejected
    held_out: int = 0  # documents that both hold out, at most _HELD_OUT
    met: int = 0  # of them, those that the new model has mostly read in another form, and the old one had not
    resized: tuple[Resized, ...] = ()  # sources whose new documents are much shorter or longer than those before
    phrases: tuple[Phrase, ...] = ()  # that recur in the new documents of a source, and did not before
    arrivals: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    """Source -> its new documents in this build and in those before it, newest first, at most _BUILDS. Builds without
    any new document do not count. It begins anew where documents could not be matched."""
    unavailable: tuple[str, ...] = ()  # what was not compared, and why: one sentence each

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Sources that lost all or many of their documents, or are more of all than before; whose new ones are none,
        many more than ever, mostly rejected, unlike those before in size, or repeat a phrase; and documents that only
        the old model has read."""
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
        shares = [
            (row.name, row.old / max(self.overall.old, 1), row.new / max(self.overall.new, 1)) for row in self.sources
        ]
        found += [
            Alarm(
                section="data", severity="low",
                message=f"The source {name} is {new:.0%} of the documents, and was {old:.0%}.",
            )
            for name, old, new in shares if new - old >= _SHIFT
        ]  # fmt: skip
        messages = [*_unusual(self.arrivals, self.emptied), *(one.message for one in self.rejected)]
        messages += [one.message for one in self.resized]
        messages += _of_phrases(self.phrases)
        found += [Alarm(section="data", severity="low", message=message) for message in messages]
        if self.met >= _MET and self.met > _MET_SHARE * self.held_out:
            of_them = f"{self.met:,} of {self.held_out:,} documents that both hold out"
            message = (
                f"The new model has read most of {of_them}, in another form, and the old one had not: it knows them."
            )
            found.append(Alarm(section="data", severity="high", message=message))
        if read := sum(count for way, count in self.moves.items() if way.startswith("train ->")):
            message = f"{read:,} documents that the old model was trained on are held out now: it knows them."
            found.append(Alarm(section="data", severity="low", message=message))
        return tuple(found)


class Prepared(NamedTuple):
    """A prepared corpus."""

    folder: Path
    facts: CorpusFacts
    normalisation: Rules
    seen: Path | None = None  # the record of what the model and its ancestors have read; None where there is none


def data_changes(
    old: Prepared, new: Prepared, seed: int, earlier: Mapping[str, tuple[int, ...]] | str = MappingProxyType({})
) -> DataChanges:
    """Compare two prepared corpora; the samples are drawn by `seed`, and do not depend on the shards.

    `earlier` are the arrivals that the review of the old model has, or why they are not known.
    """
    before, after, names = _Documents.read(old, new)
    unmatched, held_out, met = "", 0, 0
    if old.normalisation != new.normalisation:
        unmatched = "the texts were normalised otherwise, and a document's id is the digest of its normalised text"
        added = moved = _Chosen.documents(after, np.zeros(0, np.int64))
        gone = _Chosen.documents(before, np.zeros(0, np.int64))
    else:
        place = _finder(before.ids)(after.ids)
        at = np.flatnonzero((place >= 0) & (after.splits != before.splits[place]))
        moved = _Chosen(after, at, before.splits[place[at]] * len(SPLITS) + after.splits[at], _WAYS)
        added = _Chosen.documents(after, np.flatnonzero(place < 0))
        left = np.flatnonzero(_finder(after.ids)(before.ids) < 0)
        gone = _Chosen(before, left, *_why_gone(before, left, names, new))
        held_out, met = _met(old, new, before, after, place, seed)
    rules = _rules(old.facts, new.facts)
    rows = list(_by_source(names, before, after, {"added": added, "gone": gone, "moved": moved}))
    changed = [row for row in rows if row.added or row.gone or row.moved or row.old != row.new]
    changed.sort(key=lambda row: (-max(row.added + row.gone + row.moved, abs(row.new - row.old)), row.name))
    texts = _old_and_new(names, old.folder, before, new.folder, added, seed)
    kinds = (("added", new.folder, added), ("gone", old.folder, gone), ("moved", new.folder, moved))
    samples = [
        Samples(what=what, count=len(some.rows), documents=_sample(folder, some, seed))
        for what, folder, some in kinds
        if len(some.rows)
    ]
    return DataChanges(
        overall=SourceDocuments(
            name="all", old=len(before.ids), new=len(after.ids), added=len(added.rows), gone=len(gone.rows),
            moved=len(moved.rows),
        ),
        sources=tuple(changed[:_SOURCES]), sources_changed=len(changed), unmatched=unmatched,
        splits={split: (_in_split(old.facts, split), _in_split(new.facts, split)) for split in SPLITS},
        moves=moved.counts(), gone_because=gone.counts(), rules=rules, samples=(*samples, *_rejected(new, rules)),
        emptied=tuple(row.name for row in rows if row.old and not row.new),
        rejected=() if unmatched else tuple(_mostly_rejected(rows, old.facts, new.facts)),
        held_out=held_out, met=met, resized=tuple(_resized(texts)),
        phrases=tuple(filter(None, starmap(recurring, texts))),
        arrivals={} if unmatched else _arrivals(rows, {} if isinstance(earlier, str) else earlier),
        unavailable=tuple(_unknown(old, new, earlier)),
    )  # fmt: skip


def _arrivals(rows: Sequence[SourceDocuments], earlier: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Those of this build before the `earlier` ones, of the sources that there are still."""
    if not any(row.added for row in rows):
        return dict(earlier)
    return {row.name: (row.added, *earlier.get(row.name, ()))[:_BUILDS] for row in rows if row.new}


def _unusual(arrivals: Mapping[str, tuple[int, ...]], emptied: Collection[str]) -> Iterator[str]:
    """One sentence for each source that has been silent for longer than ever before, or has many more new documents."""
    for name, (now, *counts) in ((name, counts) for name, counts in arrivals.items() if name not in emptied):
        most, silent = max(counts, default=0), next((at for at, n in enumerate((now, *counts)) if n), len(counts) + 1)
        usual = counts[silent - 1 :] if silent else counts
        if sum(map(bool, usual)) < _KNOWN:
            continue
        mean = sum(usual) / len(usual)
        if silent > _longest_silence(usual) and silent * mean >= _DUE:
            builds = "" if silent == 1 else f" for {silent} builds"
            before = f"{mean:,.0f} a build in the {len(usual)} builds before"
            yield f"The source {name} has no new documents{builds}, and had {before}."
        elif now >= _SURGE * most and now - most >= _ENOUGH:
            before = f"at most {most:,} in the {len(counts)} builds before"
            yield f"The source {name} has {now:,} new documents, and had {before}."


def _longest_silence(counts: Sequence[int]) -> int:
    """The most builds in a row without a new document."""
    return max((len(list(group)) for some, group in groupby(counts, key=bool) if not some), default=0)


def _mostly_rejected(rows: Sequence[SourceDocuments], old: CorpusFacts, new: CorpusFacts) -> Iterator[Rejected]:
    for row in rows:
        if row.name not in old.sources or row.name not in new.sources:
            continue
        was, now = old.sources[row.name], new.sources[row.name]
        read = now.read - was.read
        before = sum(was.rejected.values()) / max(was.read, 1)
        rejected = read - max(row.added, row.new - row.old)  # some may have been of another source
        if read >= _ENOUGH and rejected >= max(_REJECTED, 2 * before) * read:
            rules = {rule: count - was.rejected.get(rule, 0) for rule, count in now.rejected.items()}
            rule = max(rules, key=lambda rule: rules[rule]) if sum(rules.values()) == rejected else ""
            yield Rejected(source=row.name, read=read, rejected=rejected, rule=rule)


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


def _old_and_new(
    names: Sequence[str], old: Path, before: _Documents, new: Path, added: _Chosen, seed: int
) -> list[tuple[str, list[str], list[str]]]:
    """Source, some of its old documents, and some of its new ones, where it has enough of both."""
    counts = np.bincount(added.of.sources[added.rows], minlength=len(names))
    there = np.bincount(before.sources, minlength=len(names))
    order = [int(at) for at in np.argsort(-counts, kind="stable") if min(counts[at], there[at]) >= _ENOUGH]
    sources = sorted(order[:_COMPARED])
    was = _drawn_texts(old, before, np.arange(len(before.ids)), sources, seed)
    now = _drawn_texts(new, added.of, added.rows, sources, seed)
    return [(names[source], was[source], now[source]) for source in sources]


def _unknown(old: Prepared, new: Prepared, earlier: Mapping[str, tuple[int, ...]] | str) -> Iterator[str]:
    if isinstance(earlier, str):
        yield f"what arrived in the builds before is not known: {earlier}"
    if not (old.seen and new.seen):
        yield "whether held-out documents were read is not known: the store has no record of what both models read"


def _met(
    old: Prepared, new: Prepared, before: _Documents, after: _Documents, place: NDArray[np.int64], seed: int
) -> tuple[int, int]:
    """How many documents both hold out, and how many of these the new model alone has mostly read; `place` is where the
    documents of the new corpus are in the old one, negative for others."""
    if not (old.seen and new.seen):
        return 0, 0
    test = SPLITS.index("test")
    rows = np.flatnonzero((place >= 0) & (after.splits == test) & (before.splits[place] == test))
    every = _Documents(after.ids, after.splits, np.zeros_like(after.sources))
    texts = _drawn_texts(new.folder, every, rows, [0], seed, _HELD_OUT)[0]
    known, knew = (copied(texts, Fingerprints.load(seen)) for seen in (new.seen, old.seen))
    return len(texts), int((known & ~knew).sum())


def _resized(texts: Iterable[tuple[str, list[str], list[str]]]) -> Iterator[Resized]:
    for name, old, new in texts:
        before, now = (int(np.median([len(text) for text in some])) for some in (old, new))
        if max(before, now) >= _RESIZED * min(before, now):
            yield Resized(source=name, old=before, new=now)


def _of_phrases(phrases: Sequence[Phrase]) -> Iterator[str]:
    """One sentence for each phrase, also where several sources have it."""
    for text in dict.fromkeys(phrase.text for phrase in phrases):
        first, *others = (phrase for phrase in phrases if phrase.text == text)
        more = f" {len(others):,} other source{'s have' if len(others) > 1 else ' has'} it as well." if others else ""
        yield f"{first.message}{more}"


def _drawn_texts(
    folder: Path, of: _Documents, rows: NDArray[np.int64], sources: Sequence[int], seed: int, most: int = _READ
) -> dict[int, list[str]]:
    """Source -> at most `most` of its documents among `rows`, drawn by hashes of (seed, id); of long ones, where there
    are many, the beginning and the end."""
    drawn = rows[np.argsort(mixed(of.ids[rows] + np.uint64(seed)), kind="stable")]
    chosen = [np.sort(drawn[of.sources[drawn] == source][:most]) for source in sources]
    wanted = np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))
    texts: dict[int, list[str]] = {source: [] for source in sources}
    half, start = max(CHARACTERS, _CHARACTERS // max(len(wanted), 1) // 2), 0
    for batch in _batches(folder) if len(wanted) else ():
        low, high = np.searchsorted(wanted, (start, start + len(batch)))
        here = wanted[low:high]
        for source, text in zip(
            of.sources[here].tolist(), batch.column("text").take(pa.array(here - start)).to_pylist(), strict=True
        ):
            texts[source].append(text if len(text) <= 2 * half else f"{text[:half]} {text[-half:]}")
        start += len(batch)
    return texts


class _Chosen(NamedTuple):
    """Some documents of a corpus, each with a label."""

    of: _Documents
    rows: NDArray[np.int64]
    label: NDArray[np.int8]  # index into `labels` of each
    labels: Sequence[str]

    @classmethod
    def documents(cls, of: _Documents, rows: NDArray[np.int64]) -> _Chosen:
        return cls(of, rows, np.zeros(len(rows), np.int8), ("",))

    def counts(self) -> dict[str, int]:
        """Label -> how many have it, the most frequent first."""
        found = zip(self.labels, np.bincount(self.label, minlength=len(self.labels)).tolist(), strict=True)
        return dict(sorted(((label, count) for label, count in found if count), key=lambda pair: (-pair[1], pair[0])))


def _by_source(
    names: Sequence[str], before: _Documents, after: _Documents, chosen: Mapping[str, _Chosen]
) -> Iterator[SourceDocuments]:
    counts = {what: np.bincount(some.of.sources[some.rows], minlength=len(names)) for what, some in chosen.items()}
    counts |= {"old": np.bincount(before.sources, minlength=len(names))}
    counts |= {"new": np.bincount(after.sources, minlength=len(names))}
    for number, name in enumerate(names):
        yield SourceDocuments(name=name, **{what: int(found[number]) for what, found in counts.items()})


def _finder(known: Hashes) -> Callable[[Hashes], NDArray[np.int64]]:
    """A function that gives the place of ids in `known`, -1 where they are not there."""
    order = np.argsort(known)

    def find(wanted: Hashes) -> NDArray[np.int64]:
        if not len(known):
            return np.full(len(wanted), -1, np.int64)
        at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)]
        return np.where(known[at] == wanted, at, -1)

    return find


def _in_split(facts: CorpusFacts, split: str) -> int:
    return facts.splits[split].documents if split in facts.splits else 0


def _why_gone(
    gone: _Documents, rows: NDArray[np.int64], names: Sequence[str], new: Prepared
) -> tuple[NDArray[np.int8], list[str]]:
    """Why documents are not in the new corpus, as labels: their source is not, or a rule rejects them."""
    labels = [_UNKNOWN, "its source is not in the recipe", *(rule.replace("_", " ") for rule in REASONS)]
    absent = np.array([name not in new.facts.sources for name in names], np.bool_)
    label = absent[gone.sources[rows]].astype(np.int8)
    rejects = new.folder / REJECTS
    if label.all():
        return label, labels
    if rejects.stat().st_size > _REJECTS_BYTES:
        return label, [_NOT_SOUGHT, *labels[1:]]
    find = _finder(gone.ids[rows])
    for batch in read_texts(rejects):
        texts = normalise_array(batch.column("text"), new.normalisation).to_pylist()
        heads = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
        at = find(np.frombuffer(heads, ">u8").astype(np.uint64))
        for row in np.flatnonzero(at >= 0).tolist():
            if not label[at[row]]:
                label[at[row]] = 2 + REASONS.index(batch.column("reason")[row].as_py())
    return label, labels


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


def _sample(folder: Path, some: _Chosen, seed: int) -> tuple[Excerpt, ...]:
    """Documents drawn by hashes of (seed, id): one of each source in turn, the most frequent first."""
    ids, sources = some.of.ids[some.rows], some.of.sources[some.rows]
    drawn = mixed(ids + np.uint64(seed))
    order = np.lexsort((drawn, sources))
    turn = np.arange(len(order)) - np.searchsorted(sources[order], sources[order])
    often = np.bincount(sources)[sources[order]]
    chosen = order[np.lexsort((drawn[order], -often, turn))[:_SAMPLES]]
    notes = {int(ids[at]): some.labels[int(some.label[at])] for at in chosen}
    found: dict[int, Excerpt] = {}
    for batch in _batches(folder):
        numbers = id_numbers(batch.column("id").to_pylist()).tolist()
        for at in (at for at, number in enumerate(numbers) if number in notes):
            row = batch.slice(at, 1).to_pylist()[0]
            found[numbers[at]] = _excerpt(row["source"], row["id"], row["text"], notes[numbers[at]])
        if len(found) == len(notes):
            break
    return tuple(found[number] for number in notes)


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
