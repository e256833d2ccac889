"""What a model has read: the training documents that hold parts of a text, and the runs that have read a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from qalam_core.arabic import Rules, normalise_array
from qalam_core.corpus.fingerprints import SHORT, Fingerprints, Met
from qalam_core.corpus.readers import DOCUMENTS
from qalam_core.corpus.sources import resolve
from qalam_core.corpus.spans import MIN_WORDS, SHOWN, Hit, spans
from qalam_core.corpus.splits import read_texts
from qalam_core.errors import CorpusError, StoreError
from qalam_core.files import is_unicode
from qalam_core.pipeline.lineage import seen_of
from qalam_core.pipeline.prepare import shards_of
from qalam_core.progress import Progress, no_progress
from qalam_core.runs import RunRecord, Runs
from qalam_core.store import Artifact, ArtifactFile

# what normalisation turns into spaces and line ends; of Python's own white space it removes some
_SPACES = "\t\n\x0b\x0c\r\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD = re.compile(f"[^{_SPACES}]+")


# -- trace ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A training document that holds a span."""

    run: str  # that has read it: the one asked for, or else its nearest ancestor
    hit: Hit


@dataclass(frozen=True)
class Traced:
    """A span of the text, in its words."""

    start_word: int
    end_word: int  # exclusive
    documents: tuple[Source, ...]  # the first ones
    count: int  # of all documents that hold it


@dataclass(frozen=True)
class Trace:
    """The spans of a text that are in the training text of a run or of its ancestors."""

    run: str
    text: str
    min_words: int
    spans: tuple[Traced, ...]  # in the text's order; they may overlap
    searched: tuple[str, ...]  # runs
    missing: tuple[str, ...]  # ancestors whose training text was deleted, or is damaged

    @cached_property
    def words(self) -> list[tuple[int, int]]:
        """Where each word of the text begins and ends, in characters."""
        return [found.span() for found in _WORD.finditer(self.text)]

    @property
    def covered(self) -> int:
        """Words of the text that are in spans."""
        return len({word for span in self.spans for word in range(span.start_word, span.end_word)})


def trace(
    runs: Runs, run: str, text: str, min_words: int = MIN_WORDS, shown: int = SHOWN, progress: Progress = no_progress
) -> Trace:
    """Find the longest spans of `text` that occur word for word in what `run` or an ancestor was trained on.

    Words are compared as each corpus normalises them. Raises CorpusError when the text has no words, and StoreError
    when the run's own training text was deleted.
    """
    words = _words(text)
    record = runs.record(run)
    own = {} if record.proposal else {run: record.artifacts["prepare"][0]}
    corpora = {**own, **{one.run: one.corpus for one in record.lineage}}
    shards: dict[Rules, dict[str, tuple[str, ArtifactFile]]] = {}  # of each normalisation: digest -> nearest run, shard
    usable: dict[str, bool] = {}  # digest of a shard -> whether it has its bytes
    missing = []
    for name, key in corpora.items():
        corpus = runs.store.reference("prepare", key)
        files = shards_of(corpus, "train") if corpus.exists() else ()
        for file in files:
            if file.digest not in usable:
                usable[file.digest] = file.is_as_recorded()
        if not files or not all(usable[file.digest] for file in files):
            missing.append(name)
            continue
        of_rules = shards.setdefault(_rules(corpus), {})
        for file in files:
            of_rules.setdefault(file.digest, (name, file))
    if record.proposal and record.proposal.unknown:
        raise StoreError(f"run {run}: it is not known what its model has read: {record.proposal.unknown}")
    if run in missing:
        raise StoreError(
            f"run {run}: its training text, prepare {corpora[run][:12]}, was deleted or is damaged; build its recipe "
            "again from the same sources, which restores it"
        )
    found = [
        traced
        for rules, of_rules in shards.items()
        for traced in _traced(words, rules, list(of_rules.values()), min_words, shown, progress)
    ]
    searched = tuple(name for name in corpora if name not in missing)
    return Trace(run, text, min_words, tuple(_longest(found, shown)), searched, tuple(missing))


def _words(text: str) -> list[str]:
    if not is_unicode(text):
        raise CorpusError("the text is not UTF-8; convert it")
    if words := _WORD.findall(text):
        return words
    raise CorpusError("the text has no words; give it as an argument, as @FILE, or as - for standard input")


def _rules(corpus: Artifact) -> Rules:
    """The normalisation of a prepared corpus."""
    return tuple((pattern, replacement) for pattern, replacement in corpus.manifest.settings["normalisation"])


def _traced(
    words: Sequence[str], rules: Rules, shards: Sequence[tuple[str, ArtifactFile]], min_words: int, shown: int,
    progress: Progress,
) -> list[Traced]:  # fmt: skip
    """The spans in corpora of one normalisation, which may make several words of one, or none."""
    parts = [part.split() for part in normalise_array(pa.array(words, pa.large_string()), rules).to_pylist()]
    begins = np.cumsum([0, *map(len, parts)])
    readers = {file.path: run for run, file in shards}
    text = " ".join(part for of_word in parts for part in of_word)
    found = []
    for span in spans([text], list(readers), min_words, shown, progress)[0]:
        # whole words: the first one that begins in the span, and the last one that ends in it
        start = int(np.searchsorted(begins[:-1], span.start_word))
        end = int(np.searchsorted(begins[1:], span.end_word, side="right"))
        documents = tuple(Source(readers[hit.shard], hit) for hit in span.documents)
        if start < end:
            found.append(Traced(start, end, documents, span.count))
    return found


def _longest(found: Sequence[Traced], shown: int) -> list[Traced]:
    """The spans that are part of no longer one; of equal ones the documents together."""
    together: dict[tuple[int, int], Traced] = {}
    for span in found:
        place = span.start_word, -span.end_word
        if other := together.get(place):
            documents = (*other.documents, *span.documents)[:shown]
            span = Traced(span.start_word, span.end_word, documents, other.count + span.count)
        together[place] = span
    result: list[Traced] = []
    for _, span in sorted(together.items()):
        if not result or span.end_word > result[-1].end_word:
            result.append(span)
    return result


# -- find -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meeting:
    """How one text meets others, all folded as fingerprints.py says; shares are None for texts that are too short."""

    exactly: bool  # as a whole document
    nearly: bool  # as a near-duplicate of one
    words_8: float | None  # share of its words that are in known 8-grams or lines
    words_13: float | None  # share of its words that are in 13-grams all of whose 8-grams are known

    @classmethod
    def of(cls, met: Met, row: int) -> Meeting:
        """Of one text."""
        shares = (None if np.isnan(part[row]) else float(part[row]) for part in (met.short, met.long))
        return cls(bool(met.exactly[row]), bool(met.nearly[row]), *shares)

    @property
    def meets(self) -> bool:
        """Whether anything is common."""
        return self.exactly or self.nearly or bool(self.words_8)


@dataclass(frozen=True)
class Place:
    """A document of a source file that meets the text, whether or not it was kept for training."""

    source: str
    file: str  # its path, or its sha256 where the recipe's sources no longer have it
    document: int  # from 1, in the file's order; blank lines are not documents
    meeting: Meeting  # of the document, with the text


@dataclass(frozen=True)
class Findings:
    """Which runs have read a text."""

    words: int
    readers: dict[str, Meeting]  # runs whose lineage meets the text, oldest first; of the text, with what they read
    clear: tuple[str, ...]  # runs whose lineage does not
    unknown: tuple[str, ...]  # runs without an undamaged record of what they have read
    places: tuple[Place, ...]  # the best ones
    count: int  # of all documents that meet the text
    deleted: int  # source files of these runs whose documents were deleted, and not searched

    @property
    def too_short(self) -> bool:
        """Whether the text was compared with whole documents and lines alone."""
        return self.words < SHORT


Rank = tuple[bool, bool, float]
"""Of a document: whether it meets the text exactly, whether nearly, and how many of its words do."""


def find(runs: Runs, text: str, shown: int = SHOWN, progress: Progress = no_progress) -> Findings:
    """Find the runs that have read `text`, themselves or through an ancestor, and the source documents it is in.

    Raises CorpusError when the text has no words.
    """
    _words(text)
    query = pa.array([text], pa.large_string())
    readers: dict[str, Meeting] = {}
    clear, unknown = [], []
    records = runs.records()
    own = Fingerprints.of([pa.record_batch({"id": ["0"], "text": query, "source": [""]})])
    words = int(own.meets(query).words[0])
    if not words:
        raise CorpusError("the text has no letters or digits, and cannot be found; give another one")
    for run, record in records.items():
        seen = seen_of(runs, record)
        if seen is None:
            unknown.append(run)
        elif (meeting := Meeting.of(Fingerprints.load(runs.store.here(seen).path).meets(query), 0)).meets:
            readers[run] = meeting
        else:
            clear.append(run)
    chain = dict.fromkeys(
        one for run in (*readers, *unknown) for one in (run, *(past.run for past in records[run].lineage))
    )
    known = [records[run] for run in chain if run in records]
    found = [
        runs.store.reference("ingest", key)
        for key in dict.fromkeys(k for r in known for k in r.artifacts.get("ingest", ()))
    ]
    kept = [artifact for artifact in found if artifact.exists()]
    places = list(_places(own, kept, progress))
    places.sort(key=lambda place: place[0], reverse=True)  # stable: the first file first
    named = _files(known) if places else {}
    best = (replace(place, file=named.get(digest, f"sha256 {digest}")) for _, digest, place in places[:shown])
    return Findings(
        words, readers, tuple(clear), tuple(unknown), tuple(best), len(places), len(found) - len(kept)
    )  # fmt: skip


def _places(own: Fingerprints, ingested: Sequence[Artifact], progress: Progress) -> Iterator[tuple[Rank, str, Place]]:
    """The documents that meet the text, each with its rank and the digest of its file."""
    with ThreadPoolExecutor(min(pa.cpu_count(), 4)) as pool:
        for number, artifact in enumerate(ingested):
            batches = list(read_texts(artifact.path / DOCUMENTS))  # mapped, not read
            before, digest = 1, artifact.manifest.inputs["file"]
            for batch, met in zip(batches, pool.map(own.meets, (b.column("text") for b in batches)), strict=True):
                rows = np.flatnonzero(met.exactly | met.nearly | (np.nan_to_num(met.short) > 0))
                for row in rows.tolist():
                    meeting = Meeting.of(met, row)
                    rank = meeting.exactly, meeting.nearly, (meeting.words_8 or 0.0) * int(met.words[row])
                    yield rank, digest, Place(batch.column("source")[row].as_py(), "", before + row, meeting)
                before += len(batch)
            progress(number + 1, len(ingested))


def _files(records: Sequence[RunRecord]) -> dict[str, str]:
    """Digest -> path of the sources' files as they are now; sources that cannot be read are omitted."""
    found: dict[str, str] = {}
    for source in dict.fromkeys(source for record in records for source in record.recipe.corpus.sources):
        with suppress(CorpusError):
            for file in resolve([source]):
                part = f", from line {file.piece.first_line}" if file.piece else ""
                found.setdefault(file.digest, f"{file.path}{part}")
    return found
