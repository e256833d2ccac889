"""The writer: the documents of one source file -> an Arrow file with a row for each, and their counts.
Documents of more than MAX_CHARS, or on a line of more than MAX_LINE bytes, are cut to HEAD characters, and marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from qalam_core.corpus.lines import Input, split
from qalam_core.corpus.records import fields_of, kind_of, picked
from qalam_core.corpus.sources import SourceFile
from qalam_core.errors import CorpusError
from qalam_core.progress import Progress
from qalam_core.recipe import Frozen

SCHEMA = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("cut", pa.bool_())])

HEAD = 1000  # characters kept of a document that is too long
MAX_CHARS = 8 << 20  # one document
BATCH_CHARS = 2 << 20  # text per record batch...
BATCH_ROWS = 16384  # ...and documents


class IngestFacts(Frozen):
    """Counts of the documents of a file. Blank lines are neither documents nor counted."""

    documents: int
    bytes: int  # UTF-8
    cut: int  # documents that are too long
    replaced: int  # documents with bytes that could not be decoded
    skipped_null: int  # records whose text is null; they are not documents
    skipped: int = 0  # records that could not be read or have no text; they are not documents
    passed_over: int = 0  # 1 for a file that was found, not named, and holds no documents


class Writer:
    """Writes the documents of one file as record batches, and counts them."""

    def __init__(self, path: Path, file: SourceFile, progress: Progress) -> None:
        self.file, self.path, self.field = file, file.path, file.settings.text
        self.folder = path.parent  # for temporary files
        self.counts: Counter[str] = Counter()  # by the names of IngestFacts
        self.input = Input(file)
        self._progress = progress
        self._texts, self._cuts, self._chars = list[str](), list[bool](), 0
        self._arrow = ipc.new_file(path, SCHEMA)

    def close(self) -> None:
        """Complete the file."""
        self._arrow.close()

    def add(self, text: str, cut: bool = False) -> None:
        """Add a document."""
        cut = cut or len(text) > MAX_CHARS
        if cut:
            text = text[:HEAD]
        self._texts.append(text)
        self._cuts.append(cut)
        self._chars += len(text)
        if self._chars > BATCH_CHARS or len(self._texts) >= BATCH_ROWS:
            self.flush()

    def lines(self) -> Iterator[str]:
        """The lines of the input; of one that is too long the start is added as a document instead."""
        for text, head in self.input.blocks():
            if head:
                self.add(head.decode("utf-8", "ignore"), cut=True)
            yield from split(text)

    def add_record(self, record: Any, place: str) -> None:
        """Add the text of one record, which must be there and be text or null."""
        try:
            value = picked(record, self.field)
        except KeyError:
            cure = "set text to the one that holds the text"
            if isinstance(record, str):
                cure = 'set text = "" on its source, if every record is its text'
            elif isinstance(record, list) and self.file.settings.format == "jsonl":
                cure = 'for one list of records set format = "json" on its source'
            self.bad(f"{place}: no field {self.field!r} ({fields_of(record)})", cure)
            return
        if isinstance(value, str):
            self.add(value)
        elif value is None:
            self.counts["skipped_null"] += 1
        else:
            problem = f"{place}: {f'field {self.field!r} ' if self.field else ''}is {kind_of(value)}, not text"
            cure = "set text to a field that holds text"
            if isinstance(value, dict):
                problem += f" ({fields_of(record)})"
            elif isinstance(value, list) and self.file.settings.format == "json" and self.field:
                keys = ".".join(filter(None, (self.file.settings.records, "*", self.field)))
                cure = f'set records = "{keys}" on its source, if its items are the records'
            self.bad(problem, cure)

    @property
    def holds_documents(self) -> bool:
        """Whether a document was added."""
        return bool(self._texts or self.counts["documents"])

    def bad(self, problem: str, cure: str) -> None:
        """Count a record that is not a document. Raises CorpusError where they are refused; `cure` is for all of them.

        After good records only this one is wrong, and another setting would be no cure.
        """
        if self.file.settings.bad_records == "skip":
            self.counts["skipped"] += 1
            return
        if self.holds_documents:
            cure = "correct or remove it"
        raise CorpusError(f'{problem}; {cure}, or set bad_records = "skip" on its source')

    def add_column(self, column: pa.Array, before: int) -> None:
        """Add a slice of a text column. Arrow trusts a file's offsets and its UTF-8; both are checked here."""
        column.validate()
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not is_bytes(column.type):
            column = column.cast(pa.large_string())
        values = column.cast(pa.large_binary())
        values.validate(full=True)
        for number, value in enumerate(values.to_pylist(), before + 1):
            if value is None:
                self.counts["skipped_null"] += 1
            else:
                self.add(self.input.decode(value, 0, number))

    def flush(self) -> None:
        """Write the documents that were added since the last time."""
        if not self._texts:
            return
        try:
            texts = pa.array(self._texts, pa.large_string())
        except UnicodeEncodeError:
            texts = pa.array([self._repaired(text, row) for row, text in enumerate(self._texts)], pa.large_string())
        names = pa.repeat(pa.scalar(self.file.settings.name, pa.string()), len(texts))
        self._arrow.write_batch(pa.record_batch([texts, names, pa.array(self._cuts)], schema=SCHEMA))
        size = pc.sum(pc.binary_length(texts)).as_py()
        self.counts.update(documents=len(texts), bytes=size, cut=sum(self._cuts))
        self._texts, self._cuts, self._chars = [], [], 0
        self._progress(min(self.input.done, self.file.size), self.file.size)

    def _repaired(self, text: str, row: int) -> str:
        """Replace lone surrogates (bytes that were not UTF-8, or halves of JSON escapes) by U+FFFD."""
        repaired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if repaired != text and not self.input.lossy:
            raise CorpusError(
                f"{self.path}: document {self.counts['documents'] + row + 1} holds half of a surrogate pair, which is "
                'not a character; correct it, or set encoding_errors = "replace" on its source'
            )
        self.counts["replaced"] += repaired != text
        return repaired


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column has bytes, which are text where a writer had no type for it, as older Spark and Hive."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(value) or pa.types.is_large_binary(value))
