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
from qalam_core.corpus.fingerprints import SHORT, Fingerprints, folded, id_numbers, known
from qalam_core.corpus.words import Words
from qalam_core.errors import CorpusError
from qalam_core.files import sha256_bytes

_ID = re.compile("[0-9a-fA-F]{16,64}")


@dataclass(frozen=True)
class Excluded:
    """The entries of an exclusion file.

    Each line is an id (16 hex digits) or sha256 of a document, a text, or a JSON object with the key `text` or `id`. A
    text excludes the documents that equal it, nearly equal it or consist mostly of it, and, from 8 words on, those that
    contain it; all are compared as fingerprints.py folds them.
    """

    digest: str  # of the file
    ids: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Excluded:
        """Read an exclusion file. Raises CorpusError, with the line."""
        ids: list[str] = []
        texts: list[str] = []
        try:
            content = path.read_bytes()
            lines = content.decode().splitlines()
        except FileNotFoundError:
            raise CorpusError(f"corpus.exclude: there is no file {path}; create it, or leave the setting out") from None
        except (IsADirectoryError, UnicodeDecodeError):
            raise CorpusError(f"corpus.exclude: {path} is not a text file in UTF-8, with one entry a line") from None
        for number, line in enumerate(lines, 1):
            entry = _entry(line.strip(), f"{path}:{number}")
            if not entry:
                continue
            if not _ID.fullmatch(entry) and not any(map(str.isalnum, entry)):
                raise CorpusError(f"corpus.exclude: {path}:{number}: an entry with no letters or digits; remove it")
            (ids if _ID.fullmatch(entry) else texts).append(entry)
        if not ids and not texts:
            raise CorpusError(f"corpus.exclude: {path} has no entries; add some, or leave the setting out")
        return cls(sha256_bytes(content), tuple(ids), tuple(texts))

    def holds(self, texts: pa.LargeStringArray, digests: Digests) -> NDArray[np.bool_]:
        """Which normalised texts, with their digests, are excluded."""
        heads = np.ascontiguousarray(digests).view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
        found = known(np.sort(id_numbers(self.ids)), heads)
        if not self.texts:
            return found
        met = self._fingerprints.meets(texts)
        found |= met.read
        candidates = np.flatnonzero((met.short > 0) & ~found)
        if self._contained and len(candidates):
            for row, text in zip(candidates, _joined(folded(texts.take(pa.array(candidates)))), strict=True):
                found[row] = any(part in text for part in self._contained)
        return found

    def read_by(self, seen: Fingerprints) -> list[str]:
        """The entries that a model has read, as far as fingerprints tell."""
        by_id = known(np.sort(seen.ids), id_numbers(self.ids))
        met = seen.meets(pa.array(self.texts, pa.large_string()))
        return [entry for entry, read in zip((*self.ids, *self.texts), [*by_id, *met.read], strict=True) if read]

    @cached_property
    def _fingerprints(self) -> Fingerprints:
        columns = {"id": ["0"] * len(self.texts), "text": list(self.texts), "source": [""] * len(self.texts)}
        return Fingerprints.of([pa.RecordBatch.from_pydict(columns)])

    @cached_property
    def _contained(self) -> list[str]:
        """The texts that are looked for within documents."""
        found = folded(pa.array(self.texts, pa.large_string()))
        return [text for text, size in zip(_joined(found), found.sizes, strict=True) if size >= SHORT]


def _entry(line: str, place: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
        value = record.get("id") or record["text"]
    except (ValueError, KeyError):
        value = None
    if not isinstance(value, str):
        raise CorpusError(f'corpus.exclude: {place}: expected a JSON object with the key "text" or "id"')
    return value.strip()


def _joined(found: Words) -> Iterator[str]:
    """The words of each text with one space before, between and after them."""
    spellings = found.distinct.to_pylist()
    for begin, end in zip(found.borders[:-1], found.borders[1:], strict=True):
        yield f" {' '.join(spellings[index] for index in found.ids[begin:end])} "
