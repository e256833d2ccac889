"""Readers: one source file of any format -> one Arrow file with a row per document, as read, in bounded memory.
Documents of more than MAX_CHARS, or on a line of more than MAX_LINE bytes, are cut to HEAD characters, and marked.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from qalam_core.corpus.lines import MAX_LINE, Input, reading, split
from qalam_core.corpus.sources import SourceFile, data_files
from qalam_core.errors import CorpusError
from qalam_core.files import sha256_file
from qalam_core.progress import Progress, no_progress
from qalam_core.recipe import Frozen

DOCUMENTS = "documents.arrow"
SCHEMA = pa.schema([("text", pa.large_string()), ("source", pa.string()), ("cut", pa.bool_())])

HEAD = 1000  # characters kept of a document that is too long
MAX_CHARS = 8 << 20  # one document
MAX_JSON = 512 << 20  # bytes of one .json file, which is parsed at once
BATCH_CHARS = 2 << 20  # text per record batch...
BATCH_ROWS = 16384  # ...and documents


class IngestFacts(Frozen):
    """Counts of the documents of a file. Blank lines are neither documents nor counted."""

    documents: int
    bytes: int  # UTF-8
    cut: int  # documents that are too long
    replaced: int  # documents with bytes that were not UTF-8
    skipped_null: int  # records whose text is null; they are not documents


def ingest(file: SourceFile, out: Path, progress: Progress = no_progress) -> IngestFacts:
    """Read one file into `out`/documents.arrow, in its order. Progress is in bytes of the file. Raises CorpusError."""
    out.mkdir(parents=True, exist_ok=True)
    with closing(_Writer(out / DOCUMENTS, file, progress)) as writer:
        _READERS[file.settings.format](writer)
        writer.flush()
    facts = IngestFacts(**{name: writer.counts[name] for name in IngestFacts.model_fields})
    if not facts.documents:
        nulls = f" (the field {file.settings.text!r} is null in every record)" if facts.skipped_null else ""
        raise CorpusError(f"{file.path}: holds no documents{nulls}; remove it from the sources, or fill it")
    # Its digest names the artifact: text that changed since then must not be kept under it.
    with reading(file):
        same = file.hub is not None or sha256_file(Path(file.path)) == file.digest
    if not same:
        raise CorpusError(f"{file.path}: changed while it was read; run again when nothing writes to it")
    progress(file.size, file.size)
    return facts


class _Writer:
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
        self._arrow.close()

    def add(self, text: str, cut: bool = False) -> None:
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

    def add_field(self, record: Any, place: str) -> None:
        """Add the text of one record, which must be there and be text or null."""
        if not isinstance(record, dict) or self.field not in record:
            raise CorpusError(
                f"{place}: no field {self.field!r} ({_fields(record)}); set text to the one that holds the text"
            )
        value = record[self.field]
        if isinstance(value, str):
            self.add(value)
        elif value is None:
            self.counts["skipped_null"] += 1
        else:
            raise CorpusError(
                f"{place}: field {self.field!r} is {_kind(value)}, not text; set text to a field that holds text"
            )

    def add_column(self, column: pa.Array, before: int) -> None:
        """Add a slice of a text column. Arrow trusts a file's offsets and its UTF-8; both are checked here."""
        column.validate()
        values = column.cast(pa.large_string()).cast(pa.large_binary())
        values.validate(full=True)
        for number, value in enumerate(values.to_pylist(), before + 1):
            if value is None:
                self.counts["skipped_null"] += 1
            else:
                self.add(self.input.decode(value, 0, number))

    def flush(self) -> None:
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


# -- readers: one per format ----------------------------------------------------------------------


def _read_text(writer: _Writer) -> None:
    unit = writer.file.settings.unit
    if unit == "line":
        for line in writer.lines():
            if line.strip():
                writer.add(line)
        return

    # Lines are gathered until a blank one, or the end of the file; past MAX_CHARS they are no longer kept.
    gathered: list[str] = []
    chars, cut = 0, False

    def close() -> None:
        nonlocal chars, cut
        document = "\n".join(gathered)
        if document.strip():
            writer.add(document, cut)
        gathered.clear()
        chars, cut = 0, False

    for text, head in writer.input.blocks():
        if head:
            gathered.append(head.decode("utf-8", "ignore"))
            chars, cut = MAX_CHARS, True
        for line in split(text):
            if unit == "paragraph" and not line.strip():
                close()
            elif chars < MAX_CHARS:
                gathered.append(line)
                chars += len(line) + 1
            else:
                cut = cut or bool(line.strip())
    close()


def _read_jsonl(writer: _Writer) -> None:
    for number, line in enumerate(writer.lines(), 1):
        if line.strip():
            place = f"{writer.path}:{number}"
            writer.add_field(_parsed(line, place, "correct or remove this line"), place)


def _read_json(writer: _Writer) -> None:
    content, start, path = bytearray(), 0, writer.path
    for offset, chunk in writer.input.text_chunks():
        start = start or offset
        content += chunk
        if len(content) > MAX_JSON:
            raise CorpusError(
                f"{path}: over {MAX_JSON >> 20} MB, and .json is parsed at once; convert it to JSON Lines (one record "
                "per line, suffix .jsonl), which streams"
            )
    text = writer.input.decode(content, start)
    del content
    value = _parsed(text, path, 'for one record per line set format = "jsonl" on its source')
    del text
    where, records = "the top", writer.file.settings.records
    for key in records.split(".") if records else ():
        if not isinstance(value, dict) or key not in value:
            raise CorpusError(f"{path}: {where} has no key {key!r} ({_fields(value)}); correct records")
        value, where = value[key], repr(key)
    if not isinstance(value, list):
        raise CorpusError(f"{path}: {where} is not a list of records ({_fields(value)}); set records to the list's key")
    for number, record in enumerate(value, 1):
        writer.add_field(record, f"{path}: record {number}")


def _parsed(text: str, place: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise CorpusError(f"{place}: not JSON at {where} ({error.msg}); {cure}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of nested brackets
        raise CorpusError(f"{place}: not JSON that can be read ({error}); {cure}") from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _fields(value: object) -> str:
    """What a record has instead, for a message."""
    return _listed([str(key) for key in value]) if isinstance(value, dict) else f"it is {_kind(value)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:12])
    return f"there are: {shown}{', ...' if len(names) > 12 else ''}" if names else "there are none"


def _read_csv(writer: _Writer) -> None:
    path, field = writer.path, writer.field

    def lines() -> Iterator[str]:
        for text, head in writer.input.blocks():
            if head:
                raise CorpusError(f"{path}: a line is longer than {MAX_LINE >> 20} MB; remove it, if this is CSV")
            yield from (line + "\n" for line in split(text))

    csv.field_size_limit(MAX_CHARS)  # for the whole process: csv has no other way; the default is 128 KiB
    rows = csv.reader(lines(), strict=True)
    try:
        header = next(rows, [])
        if field not in header:
            raise CorpusError(f"{path}: no column {field!r} in its first line ({_listed(header)}); set text to one")
        column = header.index(field)
        for row in rows:
            if len(row) > column:
                writer.add(row[column])
            elif row:
                raise CorpusError(
                    f"{path}:{rows.line_num}: the row has {len(row)} of {len(header)} cells, and {field!r} is not "
                    "among them; correct or remove it"
                )
    except csv.Error as error:
        raise CorpusError(f"{path}:{rows.line_num}: not CSV ({error}); is a quote left open?") from None


def _read_parquet(writer: _Writer) -> None:
    with _parsing(writer, "Parquet") as path, pq.ParquetFile(path) as table:
        _check_type(writer, table.schema_arrow)
        rows = 0
        for batch in table.iter_batches(1024, columns=[writer.field]):
            writer.add_column(batch.column(0), rows)
            rows += len(batch)
            writer.input.done = writer.file.size * rows // table.metadata.num_rows


def _read_arrow(writer: _Writer) -> None:
    with _parsing(writer, "Arrow") as path, pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
        _check_type(writer, table.schema)
        rows = 0
        for batch in map(table.get_batch, range(table.num_record_batches)) if is_file else table:
            column = batch.column(writer.field)
            for start in range(0, len(column), 1024):  # a batch may be the whole file
                writer.add_column(column.slice(start, 1024), rows + start)
            rows += len(column)
            writer.input.done = mapped.tell()


@contextmanager
def _parsing(writer: _Writer, kind: str) -> Iterator[Path]:
    """The file for random access, decompressed if necessary; errors of Arrow in the block become CorpusErrors."""
    with ExitStack() as stack:
        path = Path(writer.path)
        if writer.file.settings.compression:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=writer.folder)), "plain")
            with path.open("wb") as out:
                out.writelines(writer.input.chunks())
        try:
            yield path
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            # errors of Arrow's own have no errno; the disk's have, and may be those of writing
            if isinstance(error, OSError) and error.errno:
                raise
            problem = f"truncated or damaged {kind} file ({str(error).splitlines()[0][:120]})"
            raise CorpusError(f"{writer.path}: {problem}; fetch it again, or correct format") from None


def _check_type(writer: _Writer, schema: pa.Schema) -> None:
    path, field = writer.path, writer.field
    if schema.get_field_index(field) < 0:
        raise CorpusError(f"{path}: no column {field!r} ({_listed(schema.names)}); set text to one of them")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise CorpusError(f"{path}: column {field!r} is {kind}, not text; set text to a column that holds text")


def _read_hub(writer: _Writer) -> None:
    # The library's cache is deleted with this folder; offline it obeys HF_HUB_OFFLINE.
    with tempfile.TemporaryDirectory(dir=writer.folder) as cache:
        for number, record in enumerate(_hub_records(writer.file, cache), 1):
            writer.add_field(record, f"{writer.path}: record {number}")


def _hub_records(file: SourceFile, cache: str) -> Iterator[Any]:
    import datasets  # slow to import, and most corpora are plain files

    source = file.hub
    assert source is not None
    files = data_files(source) or None
    try:
        rows = datasets.load_dataset(
            file.path.removeprefix("hf:"), source.config or None, split=source.split, data_files=files,
            revision=source.revision or None, streaming=True, cache_dir=cache,
        )  # fmt: skip
        if rows.column_names and source.text in rows.column_names:
            rows = rows.select_columns([source.text])  # leaves images and sound undecoded
        yield from rows
    except Exception as error:  # builders raise many types; in any case the data set cannot be read
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CorpusError(
            f"{file.path}: cannot be read ({reason}); check name, config, split and revision, and the network unless "
            "HF_HUB_OFFLINE is set"
        ) from None


_READERS: dict[str, Callable[[_Writer], None]] = {
    "text": _read_text, "jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet,
    "arrow": _read_arrow, "hf": _read_hub,
}  # fmt: skip
