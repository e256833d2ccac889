"""Fingerprints of the texts that a model, and the models before it, have read: enough to recognise a text exactly,
nearly or in part, and not to reconstruct it.

Texts are folded first, so that neither the normalisation of a corpus nor punctuation changes a fingerprint: NFKC, the
profile `search` (no vowel marks, one alef, one ya), lower case, ASCII digits, and letters and digits alone. Per
document there is one 64-bit hash with the document's id and source, and 14 band keys of near-duplicate detection
(duplicates.py); of all documents together, the set of their distinct 8-grams of words, and that of their lines that are
too short for one.

Size: 130 bytes per document, 8 per distinct short line, and 4 per distinct 8-gram, as 44 bits of a hash: among n of
them, an unknown one is taken for known with probability n / 2^44, 6e-6 at 10^8. Memory to build or unite: about four
times as much.
Source: Brown et al., Language Models are Few-Shot Learners (2020), appendix C, for overlap of n-grams of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.arabic import NORMALISATIONS, normalise_array
from qalam_core.corpus.duplicates import BANDS, band_keys
from qalam_core.corpus.words import Hashes, Words, hash_ngrams, mixed, ngrams, words

SHORT, LONG = 8, 13  # words of the n-grams whose coverage is measured; only the short ones are kept
MIN_LINE = 3  # words of a line that is looked up; shorter ones say little
NEW_WORDS, NEW_SHARE = 16, 1 / 8  # a text counts as read when no more than these are outside of what is known

_BUCKET_BITS, _KEPT_BITS = 12, 44  # of a hash; the bucket is not stored with it
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd
_SETS = ("bands", "lines", "ngrams", "buckets")
_PENDING = 1 << 22  # values that are gathered before they are sorted

# spellings that fonts and keyboards confuse, and digits of other scripts
_FOLDED = (
    ("[یېۍ]", "ي"), ("[کڪ]", "ك"), ("[ەہۀ]", "ه"), ("ؤ", "و"), ("ئ", "ي"), *((f"[{a}{b}]", str(n)) for n, (a, b) in
    enumerate(zip("٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", strict=True))),
)  # fmt: skip


@dataclass(frozen=True)
class Folded(Words):
    """The words of texts, and of their lines."""

    lines: NDArray[np.int64]  # (L + 1,) where each line's words begin
    first_lines: NDArray[np.int64]  # (D + 1,) where each document's lines begin

    def by_line(self) -> Words:
        """The words of all lines."""
        return Words(self.ids, self.lines, self.distinct)


def folded(texts: pa.Array) -> Folded:
    """The words of texts, raw or normalised, as they are compared: runs of letters and digits, marks ignored."""
    texts = normalise_array(texts.cast(pa.large_string()), NORMALISATIONS["search"])
    split = pc.split_pattern(texts, "\n")
    first_lines = split.offsets.to_numpy().astype(np.int64)
    first_lines -= first_lines[0]
    lines = split.flatten()
    # other characters separate words: a comma is often followed by no space
    for pattern, replacement in ((r"\pM+", ""), (r"[^\pL\pN]+", " ")):
        lines = pc.replace_substring_regex(lines, pattern=pattern, replacement=replacement)
    found = words(lines)
    spellings = pc.utf8_lower(found.distinct)  # distinct words are much less text
    for pattern, replacement in _FOLDED:
        spellings = pc.replace_substring_regex(spellings, pattern=pattern, replacement=replacement)
    coded = pc.dictionary_encode(spellings)
    ids = coded.indices.to_numpy().astype(np.int64)[found.ids]
    return Folded(ids, found.borders[first_lines], coded.dictionary, found.borders, first_lines)


def document_hashes(found: Words) -> Hashes:
    """(D,) a hash of each document's words, in order; that of a document without words is 0."""
    if not len(found.ids):
        return np.zeros(len(found.sizes), np.uint64)
    powers = np.full(int(found.sizes.max()), _BASE, np.uint64)
    places = np.arange(len(found.ids)) - found.borders[:-1][found.documents]
    terms = found.hashes * np.cumprod(powers, dtype=np.uint64)[places]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return np.where(found.sizes > 0, mixed(np.diff(sums[found.borders])), np.uint64(0))


def id_numbers(ids: Sequence[str]) -> Hashes:
    """Ids of documents, 16 hex digits or a longer digest of which these are the first, as numbers."""
    return np.array([int(digits[:16], 16) for digits in ids], np.uint64)


@dataclass(frozen=True)
class Hashed:
    """All of D texts that is looked up in fingerprints."""

    documents: Hashes
    first_lines: NDArray[np.int64]  # (D + 1,) where each document's lines begin
    lines: Hashes
    line_sizes: NDArray[np.int64]  # words of each line
    long: NDArray[np.bool_]  # (D,) which have band keys
    bands: Hashes  # (long ones, BANDS)
    ngrams: Hashes  # the kept bits of the 8-grams' hashes, document by document

    @classmethod
    def of(cls, found: Folded) -> Hashed:
        """Of texts that `folded` has split."""
        by_line = found.by_line()
        lines = document_hashes(by_line)
        long, bands = _band_keys(found)
        return cls(document_hashes(found), found.first_lines, lines, by_line.sizes, long, bands, _hashes(found))

    @cached_property
    def borders(self) -> NDArray[np.int64]:
        """(D + 1,) where each document's words begin."""
        return np.concatenate([[0], np.cumsum(self.line_sizes)])[self.first_lines]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(D,) words of each document."""
        return np.diff(self.borders)

    @cached_property
    def of_words(self) -> NDArray[np.int64]:
        """(N,) the document of each word."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


class Met(NamedTuple):
    """How D texts meet fingerprints; shares are NaN for texts that are shorter than the n-gram."""

    exactly: NDArray[np.bool_]
    nearly: NDArray[np.bool_]  # a band key is known
    short: NDArray[np.float64]  # share of the words that are in known 8-grams, or in lines that are known
    long: NDArray[np.float64]  # the same of 13 words, all of whose 8-grams are known
    words: NDArray[np.int64]
    stretch: NDArray[np.int64]  # words of the longest run of which all 8-grams are known
    line: NDArray[np.int64]  # words of the longest line that is a document that was read

    @property
    def read(self) -> NDArray[np.bool_]:
        """Whether each text counts as read."""
        mostly = np.nan_to_num(self.short) > 0.5  # of a text of few words as well
        new = (1 - np.nan_to_num(self.short)) * self.words
        few = new <= np.maximum(NEW_WORDS, NEW_SHARE * self.words)
        read: NDArray[np.bool_] = (mostly | (self.line >= SHORT)) & few
        return self.exactly | self.nearly | read


@dataclass(frozen=True)
class Fingerprints:
    """What was read, as sorted sets; of equal documents the first one's id and source are kept."""

    documents: Hashes
    ids: Hashes  # of each document: the first 8 bytes of the sha256 of its text, as in the corpus's shards
    sources: NDArray[np.uint16]  # of each document, an index into `names`
    names: tuple[str, ...]
    bands: Hashes
    lines: Hashes  # those of MIN_LINE to SHORT - 1 words
    ngrams: NDArray[np.uint32]  # by bucket, each sorted
    buckets: NDArray[np.int64]  # (4097,) where each bucket begins

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> Fingerprints:
        """Of documents as in a corpus's shards (columns id, text, source), in order."""
        documents, ids, sources = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint16)]
        names: dict[str, int] = {}
        bands, lines, kept = _Distinct(), _Distinct(), _Distinct()
        for batch in batches:
            found = folded(batch.column("text"))
            documents.append(document_hashes(found))
            ids.append(id_numbers(batch.column("id").to_pylist()))
            coded = batch.column("source").dictionary_encode()
            places = [names.setdefault(name, len(names)) for name in coded.dictionary.to_pylist()]
            sources.append(np.array(places, np.uint16)[coded.indices.to_numpy(zero_copy_only=False)])
            bands.add(_band_keys(found)[1].reshape(-1))
            by_line = found.by_line()
            lines.add(document_hashes(by_line)[(by_line.sizes >= MIN_LINE) & (by_line.sizes < SHORT)])
            kept.add(_hashes(found))
        hashes, first = np.unique(np.concatenate(documents), return_index=True)
        of_first = np.concatenate(ids)[first], np.concatenate(sources)[first]
        return cls(hashes, *of_first, tuple(names), bands.values(), lines.values(), *_bucketed(kept.values()))

    @classmethod
    def union(cls, parts: Sequence[Fingerprints], sets: Sequence[Fingerprints] | None = None) -> Fingerprints:
        """All together; of equal documents the first one's id and source are kept.

        `sets` are those whose sets of band keys, lines and 8-grams have what all of `parts` have, if these are fewer.
        """
        sets = parts if sets is None else sets
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        sources = [np.array([names.index(name) for name in part.names], np.uint16)[part.sources] for part in parts]
        hashes, first = np.unique(np.concatenate([part.documents for part in parts]), return_index=True)
        ids = np.concatenate([part.ids for part in parts])[first]
        bands, lines = (_united([getattr(part, name) for part in sets], np.uint64) for name in _SETS[:2])
        # bucket by bucket, which are small enough for the processor's cache
        buckets = [
            _united([part.ngrams[part.buckets[n] : part.buckets[n + 1]] for part in sets], np.uint32)
            for n in range(2**_BUCKET_BITS)
        ]
        borders = np.concatenate([[0], np.cumsum([len(bucket) for bucket in buckets])]).astype(np.int64)
        of_first = np.concatenate(sources)[first]
        return cls(hashes, ids, of_first, names, bands, lines, np.concatenate(buckets), borders)

    def save(self, folder: Path) -> None:
        """Write documents.arrow, bands.arrow, lines.arrow, ngrams.arrow and buckets.arrow."""
        source = pa.DictionaryArray.from_arrays(pa.array(self.sources), pa.array(self.names, pa.string()))
        _write(folder / "documents.arrow", hash=pa.array(self.documents), id=pa.array(self.ids), source=source)
        for name in _SETS:
            _write(folder / f"{name}.arrow", **{name: pa.array(getattr(self, name))})

    @classmethod
    def load(cls, folder: Path) -> Fingerprints:
        """Of files that `save` wrote; mapped into memory."""
        documents = _mapped(folder / "documents.arrow")
        hashes, ids = (documents.column(name).to_numpy() for name in ("hash", "id"))
        source = documents.column("source")
        sets = [_mapped(folder / f"{name}.arrow").column(name).to_numpy() for name in _SETS]
        return cls(hashes, ids, source.indices.to_numpy(), tuple(source.dictionary.to_pylist()), *sets)

    def common(self, other: Fingerprints) -> Fingerprints:
        """The documents, and of each set what `other` has as well: what its texts meet here, and no more."""
        ngrams = np.repeat(np.arange(len(other.buckets) - 1, dtype=np.uint64), np.diff(other.buckets)) << np.uint64(32)
        ngrams |= other.ngrams
        bands, lines = other.bands[known(self.bands, other.bands)], other.lines[known(self.lines, other.lines)]
        kept, buckets = _bucketed(ngrams[self._known_ngrams(ngrams)])
        return replace(self, bands=bands, lines=lines, ngrams=kept, buckets=buckets)

    def counts(self) -> dict[str, int]:
        """Distinct documents by source."""
        return self._by_source(np.ones(len(self.documents), np.bool_))

    def absent_from(self, hashes: Hashes) -> dict[str, int]:
        """By source, the documents whose hash is not among sorted `hashes`."""
        return self._by_source(~known(hashes, self.documents))

    def unread(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which documents of a batch of a shard are new: neither the same text nor the same words were read."""
        new = ~known(self._sorted_ids, id_numbers(batch.column("id").to_pylist()))
        texts = batch.column("text").filter(pa.array(new))
        new[new] = ~known(self.documents, document_hashes(folded(texts)))
        return new

    @cached_property
    def _sorted_ids(self) -> Hashes:
        return np.sort(self.ids)

    def _by_source(self, chosen: NDArray[np.bool_]) -> dict[str, int]:
        counts = np.bincount(self.sources[chosen], minlength=len(self.names)).tolist()
        return {name: count for name, count in sorted(zip(self.names, counts, strict=True)) if count}

    def meets(self, texts: pa.Array) -> Met:
        """How each text, raw or normalised, meets what was read."""
        return self.meets_hashed(Hashed.of(folded(texts)))

    def meets_hashed(self, found: Hashed) -> Met:
        """The same of texts that are folded and hashed."""
        exactly = known(self.documents, found.documents) & (found.sizes > 0)
        long_enough = found.line_sizes >= MIN_LINE
        line_is_document = known(self.documents, found.lines) & long_enough
        line_is_known = line_is_document | (known(self.lines, found.lines) & long_enough)
        nearly = np.zeros(len(exactly), np.bool_)
        nearly[found.long] = known(self.bands, found.bands.reshape(-1)).reshape(-1, BANDS).any(1)
        starts, borders = ngrams(found.borders, SHORT)
        short_hits = self._known_ngrams(found.ngrams)
        documents = found.of_words[starts]
        step = LONG - SHORT + 1  # 8-grams in one of 13 words
        hits = np.concatenate([[0], np.cumsum(short_hits)])
        ends = np.minimum(np.arange(len(starts)) + step, len(starts))
        in_document = borders[1:][documents] >= np.arange(len(starts)) + step
        long_hits = in_document & (hits[ends] - hits[:-1] == step)
        covered = _covered(found, starts[short_hits], SHORT) | np.repeat(line_is_known, found.line_sizes)
        short, long_ = (
            np.where((found.sizes >= size) | (counts > 0), counts / np.maximum(found.sizes, 1), np.nan)
            for size, counts in (
                (SHORT, _counts(found, covered)), (LONG, _counts(found, _covered(found, starts[long_hits], LONG)))
            )
        )  # fmt: skip
        longest = _longest_run(short_hits, borders)
        stretch = np.where(longest > 0, longest + SHORT - 1, 0)
        # a document may have no lines
        longest_line = np.zeros(len(exactly), np.int64)
        of_line = np.repeat(np.arange(len(exactly)), np.diff(found.first_lines))
        np.maximum.at(longest_line, of_line, np.where(line_is_document, found.line_sizes, 0))
        return Met(exactly, nearly, short, long_, found.sizes, stretch, longest_line)

    def _known_ngrams(self, hashes: Hashes) -> NDArray[np.bool_]:
        values, place = np.unique(hashes, return_inverse=True)
        found = np.zeros(len(values), np.bool_)
        bounds = np.searchsorted(values, np.arange(2**_BUCKET_BITS + 1, dtype=np.uint64) << np.uint64(32))
        for bucket in np.flatnonzero(np.diff(bounds)):
            asked = slice(bounds[bucket], bounds[bucket + 1])
            stored = self.ngrams[self.buckets[bucket] : self.buckets[bucket + 1]]
            found[asked] = known(stored, values[asked].astype(np.uint32))
        return found[place]


def _write(path: Path, **columns: pa.Array) -> None:
    batch = pa.record_batch(columns)
    with ipc.new_file(path, batch.schema) as file:  # not np.save: its error on a full disk has no errno
        file.write_batch(batch)


def _mapped(path: Path) -> pa.RecordBatch:
    with pa.memory_map(str(path)) as mapped, ipc.open_file(mapped) as file:
        return file.get_batch(0)


class _Distinct:
    """Gathers 64-bit values, of which most may repeat; memory is bounded by the distinct ones."""

    def __init__(self) -> None:
        self._values = np.zeros(0, np.uint64)
        self._pending: list[Hashes] = []

    def add(self, values: Hashes) -> None:
        self._pending.append(_distinct(values))
        if sum(map(len, self._pending)) > max(_PENDING, len(self._values) // 2):
            self.values()

    def values(self) -> Hashes:
        """All distinct ones, sorted."""
        gathered = np.concatenate([self._values, *self._pending])
        self._values = gathered[:0]  # the parts are freed before the whole is sorted
        self._pending.clear()
        self._values = _distinct(gathered)
        return self._values


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The distinct values, sorted; `values` are sorted in place. Several times as fast as np.unique, which hashes
    integers first."""
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _united(parts: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    return _distinct(np.concatenate([np.zeros(0, kind), *parts]))


def _band_keys(found: Words) -> tuple[NDArray[np.bool_], Hashes]:
    """As band_keys, with distinct keys for the same value in different bands."""
    long, keys = band_keys(found)
    return long, keys ^ mixed(np.arange(1, BANDS + 1, dtype=np.uint64))


def _hashes(found: Words) -> Hashes:
    """The kept bits of the 8-grams' hashes."""
    starts, _ = ngrams(found.borders, SHORT)
    return mixed(hash_ngrams(found.hashes, starts, SHORT)) >> np.uint64(64 - _KEPT_BITS)


def _bucketed(values: Hashes) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    borders = np.searchsorted(values, np.arange(2**_BUCKET_BITS + 1, dtype=np.uint64) << np.uint64(32))
    return values.astype(np.uint32), borders.astype(np.int64)


def known(ordered: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    found: NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
    return found


def _counts(found: Hashed, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(D,) chosen words of each document."""
    return np.bincount(found.of_words[chosen], minlength=len(found.sizes))


def _covered(found: Hashed, starts: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """(N,) which words are in n-grams of `size` words that begin at `starts`."""
    edges = np.zeros(len(found.of_words) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + size, -1)
    inside: NDArray[np.bool_] = np.cumsum(edges[:-1]) > 0
    return inside


def _longest_run(hits: NDArray[np.bool_], borders: NDArray[np.int64]) -> NDArray[np.int64]:
    """(D,) the longest run of hits in each part of an array."""
    documents = np.repeat(np.arange(len(borders) - 1), np.diff(borders))
    places = np.arange(len(hits))
    last_miss = np.maximum.accumulate(np.where(hits, -1, places)) if len(hits) else places
    lengths = places - np.maximum(last_miss, borders[:-1][documents] - 1)
    longest = np.zeros(len(borders) - 1, np.int64)
    np.maximum.at(longest, documents, np.where(hits, lengths, 0))
    return longest
