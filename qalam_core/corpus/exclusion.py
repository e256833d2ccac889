"""Exclusion: documents that must not be in a corpus, listed in a file by text, id or digest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qalam_core.corpus.duplicates import Digests
from qalam_core.corpus.fingerprints import SHORT, Fingerprints, Hashed, Met, document_hashes, folded, id_numbers, known
from qalam_core.corpus.splits import half
from qalam_core.corpus.words import Hashes, Words, ngrams
from qalam_core.errors import CorpusError
from qalam_core.files import sha256_bytes

RUN = 16  # words
MIN_WORDS = 3  # of a text, and of its lines

_ID = re.compile("[0-9a-fA-F]{16,64}")
_NEARLY_ID = re.compile("[\"'(]?(0x|sha256:)?(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,}")


@dataclass(frozen=True)
class Excluded:
    """The entries of an exclusion file.

    Each line is an id (16 hex digits) or sha256 of a document, a text, or a JSON object with the key `text` or `id`. A
    text excludes the documents that equal it, or one of its lines, or nearly equal it; those that share a run of RUN
    words with it; and those that contain it or are contained in it, if that is at least 8 words. All are compared as
    fingerprints.py folds them. The same relation says whether a model has read an entry.
    """

    digest: str  # of the file
    ids: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Excluded:
        """Read an exclusion file. Raises CorpusError, with the line, for an entry that could not meet anything."""
        ids: list[str] = []
        texts: list[str] = []
        try:
            content = path.read_bytes()
            lines = content.decode().split("\n")
        except FileNotFoundError:
            raise CorpusError(f"corpus.exclude: there is no file {path}; create it, or leave the setting out") from None
        except (IsADirectoryError, UnicodeDecodeError):
            raise CorpusError(f"corpus.exclude: {path} is not a text file in UTF-8, with one entry a line") from None
        for number, line in enumerate(lines, 1):
            for entry in _entries(line.strip("\ufeff \t\r"), f"{path}:{number}"):
                (ids if _ID.fullmatch(entry) else texts).append(entry)
        if not ids and not texts:
            raise CorpusError(f"corpus.exclude: {path} has no entries; add some, or leave the setting out")
        return cls(sha256_bytes(content), tuple(ids), tuple(texts))

    @property
    def entries(self) -> tuple[str, ...]:
        """All of them: ids, then texts."""
        return (*self.ids, *self.texts)

    def holds(self, texts: pa.LargeStringArray, digests: Digests) -> NDArray[np.bool_]:
        """Which normalised texts, with their digests, are excluded."""
        found = known(np.sort(id_numbers(self.ids)), half(digests, 0))
        if not self.texts:
            return found
        words = folded(texts)
        met = self._fingerprints.meets_hashed(Hashed.of(words))
        found |= _related(met) | known(self._lines[0], document_hashes(words))
        if self._contained:
            candidates = np.flatnonzero((met.short > 0) & ~found)
            for row, text in zip(candidates, _joined(words, candidates), strict=True):
                found[row] = any(part in text for part in self._contained)
        return found

    def read_by(self, seen: Fingerprints) -> list[str]:
        """The entries that a model has read, as far as fingerprints tell."""
        by_id = known(np.sort(seen.ids), id_numbers(self.ids))
        by_text = _related(seen.meets(pa.array(self.texts, pa.large_string())))
        for hashes, entries in (self._lines, self._parts):
            by_text[entries[known(seen.documents, hashes)]] = True
        return [entry for entry, read in zip(self.entries, [*by_id, *by_text], strict=True) if read]

    @cached_property
    def _fingerprints(self) -> Fingerprints:
        columns = {"id": ["0"] * len(self.texts), "text": list(self.texts), "source": [""] * len(self.texts)}
        return Fingerprints.of([pa.RecordBatch.from_pydict(columns)])

    @cached_property
    def _contained(self) -> list[str]:
        """The texts that are looked for within documents."""
        found = folded(pa.array(self.texts, pa.large_string()))
        return list(_joined(found, np.flatnonzero(found.sizes >= SHORT)))

    @cached_property
    def _lines(self) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of the texts' lines as documents, sorted, and the text of each."""
        lines = [(line, number) for number, text in enumerate(self.texts) for line in text.splitlines()]
        found = folded(pa.array([line for line, _ in lines], pa.large_string()))
        numbers = np.array([number for _, number in lines], np.int64)
        return _sorted(document_hashes(found), numbers, found.sizes >= MIN_WORDS)

    @cached_property
    def _parts(self) -> tuple[Hashes, NDArray[np.int64]]:
        """Hashes of the texts' runs of 8 to RUN - 1 words as documents, sorted, and the text of each."""
        found = folded(pa.array(self.texts, pa.large_string()))
        hashes, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for size in range(SHORT, RUN):
            starts, _ = ngrams(found.borders, size)
            ids = found.ids[starts[:, None] + np.arange(size)].reshape(-1)
            runs = Words(ids, np.arange(len(starts) + 1) * size, found.distinct)
            hashes.append(document_hashes(runs))
            numbers.append(found.documents[starts])
        return _sorted(np.concatenate(hashes), np.concatenate(numbers))


def _related(met: Met) -> NDArray[np.bool_]:
    """Whether texts equal, nearly equal, or share a long run of words with what fingerprints record."""
    return met.exactly | met.nearly | ((met.words >= SHORT) & (met.stretch >= np.minimum(met.words, RUN)))


def _sorted(
    hashes: Hashes, numbers: NDArray[np.int64], chosen: NDArray[np.bool_] | slice = slice(None)
) -> tuple[Hashes, NDArray[np.int64]]:
    hashes, numbers = hashes[chosen], numbers[chosen]
    order = np.argsort(hashes)
    return hashes[order], numbers[order]


def _entries(line: str, place: str) -> list[str]:
    """The entries of a line. Raises CorpusError for what is neither an id nor a text."""
    found = [line] if line else []
    if line.startswith(("{", "[")):
        try:
            record = json.loads(line)
            text, name = record.get("text"), record.get("id")
        except (ValueError, AttributeError):
            text = name = None
        # beside a text, an id may be of another kind
        values = [name] if text is None or _ID.fullmatch(str(name)) else []
        found = [value.strip() for value in (*values, text) if isinstance(value, str)]
        if not found:
            raise CorpusError(f'corpus.exclude: {place}: expected a JSON object with the key "text" or "id"')
    for entry in found:
        if not _ID.fullmatch(entry) and (_NEARLY_ID.match(entry) or len(folded(pa.array([entry])).ids) < MIN_WORDS):
            raise CorpusError(
                f"corpus.exclude: {place}: neither an id (16 to 64 hex digits, alone) nor a text of at least "
                f"{MIN_WORDS} words; correct it, or remove it"
            )
    return found


def _joined(found: Words, rows: NDArray[np.intp]) -> Iterator[str]:
    """The words of some texts with one space before, between and after them."""
    spellings = found.distinct.to_pylist() if len(rows) else []
    for begin, end in zip(found.borders[rows], found.borders[rows + 1], strict=True):
        yield f" {' '.join(spellings[index] for index in found.ids[begin:end])} "
