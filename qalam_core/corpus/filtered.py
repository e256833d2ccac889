"""Filtering files: their documents as read -> those that their own text lets pass, normalised, with the keys by which
duplicates are found; and the others, with the reason. What a document becomes depends on its text and the settings
alone, so that only new files are filtered again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from qalam_core.corpus.duplicates import Digests, by_key, document_keys
from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filters import Filtered, FilterSettings, Reasons, check_languages, filter_batch
from qalam_core.corpus.words import Hashes, Numbers
from qalam_core.corpus.writer import HEAD
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Frozen

TEXTS, DIGESTS, KEYS, REJECTS = "texts.arrow", "digests.arrow", "keys.arrow", "rejects.arrow"

_TEXTS = pa.schema([("text", pa.large_string()), ("source", pa.string())])
_DIGESTS = pa.schema([("digest", pa.binary(16)), ("bytes", pa.int32())])
_KEYS = pa.schema([("key", pa.uint64()), ("row", pa.uint32())])
_RUN = 1 << 20  # keys that are sorted together, at least
REJECTED = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("reason", pa.string())])


class FilterFacts(Frozen):
    """Counts of the documents of some files of one source; `rejected` is by reason."""

    read: int
    repaired: int  # wholly
    repaired_in_part: int  # letters of the damage are left, as their bytes are lost; these are rejected
    not_repaired: int  # although damage is recognised, or as corpus.repair is off; these are filtered as they are
    masked: int  # with an address or a number that corpus.mask_pii replaced
    cut: int  # too long to be read whole; all are rejected
    replaced: int  # with U+FFFD
    rejected: dict[str, int]

    @property
    def passed(self) -> int:
        """Documents that passed the filters."""
        return self.read - sum(self.rejected.values())


COUNTED = tuple(name for name in FilterFacts.model_fields if name not in ("read", "rejected"))
"""What is counted of documents besides their number: each is a field of Filtered, too."""


def filter_documents(
    files: Sequence[Path], settings: FilterSettings, out: Path, progress: Progress = no_progress,
    excluded: Excluded | None = None,
) -> FilterFacts:  # fmt: skip
    """Filter the documents of files that were read, in their order, into the folder `out`; -> counts.

    Writes texts.arrow (text: normalised; source) and, row for row, digests.arrow (digest: the first 16 bytes of the
    text's sha256; bytes: of the text, UTF-8); keys.arrow (key, row: of `document_keys`), each record batch sorted by
    key; and rejects.arrow (text: at most HEAD characters as read; source, reason). `excluded` documents are rejected.
    Progress is in bytes of the files. Raises RecipeError.
    """
    check_languages(settings)
    out.mkdir(parents=True, exist_ok=True)
    counts, rejected = Counter[str](), Counter[str]()
    total = sum(path.stat().st_size for path in files)
    with (
        ipc.new_file(out / TEXTS, _TEXTS) as texts,
        ipc.new_file(out / DIGESTS, _DIGESTS) as digests,
        _Keys(out / KEYS) as keys,
        ipc.new_file(out / REJECTS, REJECTED) as rejects,
    ):
        for batch, done in _filtered(files, settings, excluded):
            counts["read"] += len(batch.read)
            for what in COUNTED:
                counts[what] += int(getattr(batch, what).sum())
            passed = batch.reasons == ""
            rejected.update(batch.reasons[~passed].tolist())
            columns = [batch.texts.filter(pa.array(passed)), batch.slices.filter(pa.array(passed))]
            texts.write_batch(pa.record_batch(columns, schema=_TEXTS))
            digests.write_batch(_digests(batch.digests[passed], columns[0]))
            keys.add(batch.digests[passed], batch.long[passed], batch.keys[passed[batch.long]])
            reject(rejects, batch.read, batch.slices, batch.reasons, np.flatnonzero(~passed))
            progress(done, total)
    return FilterFacts(
        **{what: counts[what] for what in FilterFacts.model_fields if what != "rejected"},
        rejected=dict(sorted(rejected.items())),
    )


def read_digests(folder: Path) -> Iterator[tuple[Digests, NDArray[np.int32]]]:
    """Digests of the documents that `filter_documents` wrote, and the bytes of their texts, in batches as theirs."""
    for batch, _ in batches([folder / DIGESTS]):
        yield np.frombuffer(batch.column("digest").buffers()[1] or b"", "S16"), batch.column("bytes").to_numpy()


def read_keys(folder: Path, low: int, high: int) -> Iterator[tuple[Hashes, NDArray[np.uint32]]]:
    """The keys from `low` to below `high` that `filter_documents` wrote, and their rows, in sorted parts."""
    # mapped: no more than the part is read, and its pages are given back with the file
    with pa.memory_map(str(folder / KEYS)) as file, ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            keys, rows = (column.to_numpy() for column in reader.get_batch(index).columns)
            part = slice(np.searchsorted(keys, np.uint64(low)), np.searchsorted(keys, np.uint64(high - 1), "right"))
            yield keys[part].copy(), rows[part].copy()


def batches(paths: Sequence[Path]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Every record batch of some files, in order, and about how many of their bytes have been read."""
    before = 0
    for path in paths:
        size = path.stat().st_size
        # read, not mapped: pages of a file that is read once would only count as this process's memory
        with pa.OSFile(str(path)) as file, ipc.open_file(file) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index), before + size * (index + 1) // reader.num_record_batches
        before += size


def _digests(digests: Digests, texts: pa.Array) -> pa.RecordBatch:
    fixed = pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(digests.tobytes())])
    return pa.record_batch([fixed, pc.binary_length(texts).cast(pa.int32())], schema=_DIGESTS)


class _Keys:
    """The file of keys; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file: Any = ipc.new_file(path, _KEYS)
        self._waiting: list[tuple[Hashes, Numbers]] = []
        self._documents = 0

    def __enter__(self) -> _Keys:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, digests: Digests, long: NDArray[np.bool_], bands: Hashes) -> None:
        """Add the keys of the next documents; `bands` are of the `long` ones."""
        keys, rows = document_keys(digests, long, bands)
        self._waiting.append((keys, rows + self._documents))
        self._documents += len(digests)
        if sum(len(keys) for keys, _ in self._waiting) >= _RUN:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            keys, rows = by_key(*map(np.concatenate, zip(*self._waiting, strict=True)))
            self._file.write_batch(pa.record_batch([keys, pa.array(rows, pa.uint32())], schema=_KEYS))  # checked
            self._waiting.clear()


def reject(rejects: Any, texts: pa.Array, names: pa.Array, reasons: Reasons, rows: NDArray[np.intp]) -> None:
    """Write the documents of `rows` to a file of rejects."""
    if len(rows):
        chosen = pa.array(rows)
        heads = pc.utf8_slice_codeunits(texts.take(chosen), 0, HEAD)
        columns = [heads, names.take(chosen), pa.array(reasons[rows], pa.string())]
        rejects.write_batch(pa.record_batch(columns, schema=REJECTED))


def _filtered(
    files: Sequence[Path], settings: FilterSettings, excluded: Excluded | None
) -> Iterator[tuple[Filtered, int]]:
    """As `batches`, but filtered: a few at once, in threads, as Arrow and numpy release the interpreter lock."""
    workers = min(pa.cpu_count(), 4)
    ahead: deque[tuple[Future[Filtered], int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch, done in batches(files):
            ahead.append((pool.submit(filter_batch, batch, settings, excluded), done))
            if len(ahead) > workers:
                future, upto = ahead.popleft()
                yield future.result(), upto
        while ahead:
            future, upto = ahead.popleft()
            yield future.result(), upto
