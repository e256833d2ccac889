"""Documents that could be held out: folded and hashed once, and looked up in what was read whenever a corpus that holds
them is prepared. So a lookup does not need their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.corpus.duplicates import BANDS, Digests
from qalam_core.corpus.filtered import TEXTS, batches, read_digests
from qalam_core.corpus.fingerprints import SHORT, Fingerprints, Hashed, folded
from qalam_core.corpus.splits import ENCODE_BYTES, Shares, below
from qalam_core.corpus.words import Hashes
from qalam_core.progress import Progress, no_progress

FOLDED = "folded.arrow"

_LOOKED_UP = 16_000_000  # bytes of FOLDED that are looked up at once: a lookup needs about eight times as much memory
_HASHES = pa.large_list(pa.uint64())
_SCHEMA = pa.schema([
    ("digest", pa.binary(16)), ("document", pa.uint64()), ("lines", _HASHES),
    ("line_sizes", pa.large_list(pa.int64())), ("bands", _HASHES), ("ngrams", _HASHES),
])  # fmt: skip


def fold_documents(filtered: Path, shares: Shares, out: Path, progress: Progress = no_progress) -> None:
    """Write folded.arrow into `out`: what is looked up of the documents that `shares` could hold out.

    `filtered` is a folder that `filter_documents` wrote. A row is a document: the first 16 bytes of its text's sha256,
    and the arrays of `Hashed`. Memory: ENCODE_BYTES of text, and its hashes. Progress is in bytes of the texts.
    """
    out.mkdir(parents=True, exist_ok=True)
    total = (filtered / TEXTS).stat().st_size
    digests: list[Digests] = []
    texts: list[pa.Array] = []
    with ipc.new_file(out / FOLDED, _SCHEMA) as file:

        def write() -> None:
            if texts:
                file.write_batch(_batch(np.concatenate(digests), Hashed.of(folded(pa.concat_arrays(texts)))))
            digests.clear()
            texts.clear()

        for (batch, done), (found, _) in zip(batches([filtered / TEXTS]), read_digests(filtered), strict=True):
            chosen = below(found, shares.test + shares.validation)
            digests.append(found[chosen])
            texts.append(batch.column("text").filter(pa.array(chosen)))
            if sum(part.nbytes for part in texts) >= ENCODE_BYTES:
                write()
            progress(done, total)
        write()


@dataclass(frozen=True)
class HeldOut:
    """Of documents that could be held out: which count as read."""

    seen: Fingerprints
    digests: Digests  # sorted
    documents: Hashes  # as in `Hashed`
    read: NDArray[np.bool_]

    @classmethod
    def of(cls, seen: Fingerprints, folders: Sequence[Path]) -> HeldOut:
        """Of the documents that `fold_documents` wrote into `folders`. Memory: 25 bytes for each."""
        digests, documents, read = [np.zeros(0, "S16")], [np.zeros(0, np.uint64)], [np.zeros(0, np.bool_)]
        for found, hashed in _gathered(folders):
            digests.append(found)
            documents.append(hashed.documents)
            read.append(seen.meets_hashed(hashed).read)
        together = np.concatenate(digests)
        order = np.argsort(together)
        return cls(seen, together[order], np.concatenate(documents)[order], np.concatenate(read)[order])

    def look_up(self, digests: Digests, texts: pa.Array) -> tuple[Hashes, NDArray[np.bool_]]:
        """The hashes of documents, and which count as read; texts are folded where that was not done before."""
        place = np.minimum(np.searchsorted(self.digests, digests), max(len(self.digests) - 1, 0))
        missing = self.digests[place] != digests if len(self.digests) else np.ones(len(digests), np.bool_)
        documents, read = np.zeros(len(digests), np.uint64), np.zeros(len(digests), np.bool_)
        documents[~missing], read[~missing] = self.documents[place[~missing]], self.read[place[~missing]]
        if missing.any():
            hashed = Hashed.of(folded(texts.filter(pa.array(missing))))
            documents[missing], read[missing] = hashed.documents, self.seen.meets_hashed(hashed).read
        return documents, read


def _batch(digests: Digests, found: Hashed) -> pa.RecordBatch:
    ngrams = np.concatenate([[0], np.cumsum(np.maximum(found.sizes - SHORT + 1, 0))])
    bands = np.concatenate([[0], np.cumsum(np.where(found.long, BANDS, 0))])
    columns = [
        pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests.tobytes())]),
        pa.array(found.documents),
        _lists(found.first_lines, found.lines), _lists(found.first_lines, found.line_sizes),
        _lists(bands, found.bands.reshape(-1)), _lists(ngrams, found.ngrams),
    ]  # fmt: skip
    return pa.record_batch(columns, schema=_SCHEMA)


def _lists(borders: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(borders), pa.array(values))


def _gathered(folders: Sequence[Path]) -> Iterator[tuple[Digests, Hashed]]:
    """What `fold_documents` wrote, in parts of about _LOOKED_UP bytes."""
    waiting: list[pa.RecordBatch] = []
    for batch, _ in batches([folder / FOLDED for folder in folders]):
        if waiting and sum(part.nbytes for part in waiting) + batch.nbytes > _LOOKED_UP:
            yield _read(pa.concat_batches(waiting))
            waiting.clear()
        waiting.append(batch)
    if waiting:
        yield _read(pa.concat_batches(waiting))


def _read(batch: pa.RecordBatch) -> tuple[Digests, Hashed]:
    """The inverse of `_batch`."""
    digests = np.frombuffer(batch.column("digest").buffers()[1] or b"", "S16")[: len(batch)]
    lines, sizes, bands, ngrams = (batch.column(name) for name in ("lines", "line_sizes", "bands", "ngrams"))
    long = np.diff(bands.offsets.to_numpy()) > 0
    hashed = Hashed(
        batch.column("document").to_numpy(), lines.offsets.to_numpy(), lines.values.to_numpy(),
        sizes.values.to_numpy(), long, bands.values.to_numpy().reshape(-1, BANDS), ngrams.values.to_numpy(),
    )  # fmt: skip
    return digests, hashed
