"""Readers: one source file -> one Arrow file with a row per document, as read.
Takes a `SourceFile` (text, JSON, CSV, Parquet, Arrow, compressed or not, or a Hugging Face data set) and streams it in
bounded memory; what cannot be read is a CorpusError of one line with file, place and cure.
It does not know which documents are kept; judge.py decides that.

Of a document of more than MAX_CHARS characters, or on a line of more than MAX_LINE bytes, only the first HEAD
characters are kept, marked `cut`, and it is rejected later as too long.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

__all__ = ["DOCUMENTS", "HEAD", "SCHEMA", "IngestFacts", "ingest"]

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
    skipped_null: int  # records whose text is null, which are no documents


def ingest(file: SourceFile, out: Path, progress: Progress = no_progress) -> IngestFacts:
    """Read one file into `out`/documents.arrow, in its order. Progress is in bytes of the file. Raises CorpusError."""
    out.mkdir(parents=True, exist_ok=True)
    with _Writer(out / DOCUMENTS, file, progress) as writer:
        _READERS[file.settings.format](file, writer)
        writer.flush()
    facts = IngestFacts(**writer.counts)
    if not facts.documents:
        nulls = f" (the field {file.settings.text!r} is null in every record)" if facts.skipped_null else ""
        raise CorpusError(f"{file.path}: holds no documents{nulls}; remove it from the sources, or fill it")
    # Its digest names the artifact: text that changed since then must not be kept under it.
    with reading(file):
        same = file.hub is not None or sha256_file(Path(file.path)) == file.sha256
    if not same:
        raise CorpusError(f"{file.path}: changed while it was read; run again when nothing writes to it")
    progress(file.size, file.size)
    return facts


class _Writer:
    """Documents in, record batches out; counts what passes."""

    def __init__(self, path: Path, file: SourceFile, progress: Progress) -> None:
        self.file = file
        self.folder = path.parent  # for temporary files
        self.counts = {"documents": 0, "bytes": 0, "cut": 0, "replaced": 0, "skipped_null": 0}
        self._progress = progress
        self.input = Input(file)
        self._texts: list[str] = []
        self._cuts: list[bool] = []
        self._chars = 0
        self._arrow = ipc.new_file(path, SCHEMA)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._arrow.close()

    def add(self, text: str, cut: bool = False) -> None:
        if len(text) > MAX_CHARS:
            cut = True
        if cut:
            text = text[:HEAD]
        self._texts.append(text)
        self._cuts.append(cut)
        self._chars += len(text)
        if self._chars > BATCH_CHARS or len(self._texts) >= BATCH_ROWS:
            self.flush()

    def add_head(self, head: bytes) -> None:
        """Add the start of a line that is too long."""
        self.add(head.decode("utf-8", "ignore"), cut=True)

    def skip_null(self) -> None:
        self.counts["skipped_null"] += 1

    def flush(self) -> None:
        if not self._texts:
            return
        try:
            texts = pa.array(self._texts, pa.large_string())
        except UnicodeEncodeError:
            texts = pa.array([self._repaired(text, row) for row, text in enumerate(self._texts)], pa.large_string())
        names = pa.repeat(pa.scalar(self.file.settings.name, pa.string()), len(texts))
        self._arrow.write_batch(pa.record_batch([texts, names, pa.array(self._cuts)], schema=SCHEMA))
        self.counts["documents"] += len(texts)
        self.counts["bytes"] += pc.sum(pc.binary_length(texts)).as_py()
        self.counts["cut"] += sum(self._cuts)
        self._texts, self._cuts, self._chars = [], [], 0
        self._progress(min(self.input.done, self.file.size), self.file.size)

    def _repaired(self, text: str, row: int) -> str:
        """A text whose lone surrogates (bytes that were not UTF-8, or halves of JSON escapes) are U+FFFD."""
        repaired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if repaired != text and not self.input.lossy:
            raise CorpusError(
                f"{self.file.path}: document {self.counts['documents'] + row + 1} holds half of a surrogate "
                f'pair, which is no character; correct it, or set encoding_errors = "replace" on its source'
            )
        self.counts["replaced"] += repaired != text
        return repaired


# -- readers: one a format ------------------------------------------------------------------------


def _read_text(file: SourceFile, writer: _Writer) -> None:
    unit = file.settings.unit
    if unit == "line":
        for text, head in writer.input.blocks():
            if head:
                writer.add_head(head)
            for line in split(text):
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


def _read_jsonl(file: SourceFile, writer: _Writer) -> None:
    number = 0
    for text, head in writer.input.blocks():
        if head:
            writer.add_head(head)
        for line in split(text):
            number += 1
            if line.strip():
                place = f"{file.path}:{number}"
                _add_field(_parsed(line, place, "correct or remove this line"), place, file, writer)


def _read_json(file: SourceFile, writer: _Writer) -> None:
    whole = bytearray()
    start = 0
    for offset, chunk in writer.input.text_chunks():
        start = start or offset
        whole += chunk
        if len(whole) > MAX_JSON:
            raise CorpusError(
                f"{file.path}: over {MAX_JSON >> 20} MB, and .json is parsed at once; turn it into "
                f"JSON Lines (one record a line, suffix .jsonl), which streams"
            )
    text = writer.input.decode(whole, start)
    del whole
    value = _parsed(text, file.path, 'for one record a line set format = "jsonl" on its source')
    del text
    way = "the top"
    for key in file.settings.records.split(".") if file.settings.records else ():
        if not isinstance(value, dict) or key not in value:
            raise CorpusError(f"{file.path}: {way} has no key {key!r} ({_fields(value)}); correct records")
        value, way = value[key], repr(key)
    if not isinstance(value, list):
        raise CorpusError(
            f"{file.path}: {way} is no list of records ({_fields(value)}); set records to the key that does"
        )
    for number, record in enumerate(value, 1):
        _add_field(record, f"{file.path}: record {number}", file, writer)


def _parsed(text: str, place: str, cure: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise CorpusError(f"{place}: not JSON at {where} ({error.msg}); {cure}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets nested as deep
        raise CorpusError(f"{place}: not JSON that can be read ({error}); {cure}") from None


def _add_field(record: Any, place: str, file: SourceFile, writer: _Writer) -> None:
    """The text of one record, which must be there and be text; null is counted and left out."""
    field = file.settings.text
    if not isinstance(record, dict) or field not in record:
        raise CorpusError(f"{place}: no field {field!r} ({_fields(record)}); set text to the one that holds the text")
    value = record[field]
    if value is None:
        writer.skip_null()
    elif isinstance(value, str):
        writer.add(value)
    else:
        raise CorpusError(f"{place}: field {field!r} is {_kind(value)}, not text; set text to a field that holds text")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _fields(value: object) -> str:
    """What a record has instead, for a message."""
    if not isinstance(value, dict):
        return f"it is {_kind(value)}"
    return _listed([str(key) for key in value])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:12])
    return f"there are: {shown}{', ...' if len(names) > 12 else ''}" if names else "there are none"


def _read_csv(file: SourceFile, writer: _Writer) -> None:
    def lines() -> Iterator[str]:
        for text, head in writer.input.blocks():
            if head:
                raise CorpusError(
                    f"{file.path}: a line is longer than {MAX_LINE >> 20} MB; remove it, or is this no CSV?"
                )
            yield from (line + "\n" for line in split(text))

    csv.field_size_limit(MAX_CHARS)  # of this process, the module knows no other; the default is 128 KiB
    rows = csv.reader(lines(), strict=True)
    field = file.settings.text
    try:
        header = next(rows, [])
        if field not in header:
            raise CorpusError(
                f"{file.path}: no column {field!r} in its first line ({_listed(header)}); set text to one"
            )
        column = header.index(field)
        for row in rows:
            if len(row) > column:
                writer.add(row[column])
            elif row:
                raise CorpusError(
                    f"{file.path}:{rows.line_num}: the row has {len(row)} of {len(header)} cells, "
                    f"and {field!r} is not among them; correct or remove it"
                )
    except csv.Error as error:
        raise CorpusError(f"{file.path}:{rows.line_num}: not CSV ({error}); is a quote left open?") from None


def _read_parquet(file: SourceFile, writer: _Writer) -> None:
    with _plain(file, writer) as path, _parsing(file, "Parquet"), pq.ParquetFile(path) as table:
        _check_type(file, table.schema_arrow)
        rows = 0
        for batch in table.iter_batches(1024, columns=[file.settings.text]):
            _add_column(batch.column(0), rows, file, writer)
            rows += len(batch)
            writer.input.done = file.size * rows // table.metadata.num_rows


def _read_arrow(file: SourceFile, writer: _Writer) -> None:
    with _plain(file, writer) as path, _parsing(file, "Arrow"), pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
        _check_type(file, table.schema)
        batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
        rows = 0
        for batch in batches:
            column = batch.column(file.settings.text)
            for start in range(0, len(column), 1024):  # a batch may be the whole file
                _add_column(column.slice(start, 1024), rows + start, file, writer)
            rows += len(column)
            writer.input.done = mapped.tell()


@contextmanager
def _plain(file: SourceFile, writer: _Writer) -> Iterator[Path]:
    """The file where it can be sought in: itself, or decompressed into a temporary file."""
    if not file.settings.compression:
        yield Path(file.path)
        return
    with tempfile.TemporaryDirectory(dir=writer.folder) as folder:
        path = Path(folder, "plain")
        with path.open("wb") as out:
            for chunk in writer.input.chunks():
                out.write(chunk)
        yield path


@contextmanager
def _parsing(file: SourceFile, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        # Arrow's own complaints carry no errno; the disk's do, and those are the writing side's too
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error).splitlines()[0][:120]
        raise CorpusError(
            f"{file.path}: not a whole {kind} file ({reason}); fetch it again, or correct format"
        ) from None


def _check_type(file: SourceFile, schema: pa.Schema) -> None:
    field = file.settings.text
    if schema.get_field_index(field) < 0:
        raise CorpusError(f"{file.path}: no column {field!r} ({_listed(schema.names)}); set text to one of them")
    kind = schema.field(field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        raise CorpusError(f"{file.path}: column {field!r} is {kind}, not text; set text to a column that holds text")


def _add_column(column: pa.Array, before: int, file: SourceFile, writer: _Writer) -> None:
    """A slice of a text column. Arrow trusts a file's offsets and its UTF-8; both are checked here."""
    column.validate()
    values = column.cast(pa.large_string()).cast(pa.large_binary())
    values.validate(full=True)
    for row, value in enumerate(values.to_pylist()):
        if value is None:
            writer.skip_null()
        else:
            writer.add(writer.input.decode(value, 0, before + row + 1))


def _read_hub(file: SourceFile, writer: _Writer) -> None:
    import datasets  # slow to import, and most corpora are plain files

    source = file.hub
    assert source is not None
    name = file.path.removeprefix("hf:")
    # The library's cache is deleted with this folder; offline it obeys HF_HUB_OFFLINE.
    with tempfile.TemporaryDirectory(dir=writer.folder) as cache:
        try:
            rows = datasets.load_dataset(
                name,
                source.config or None,
                split=source.split,
                revision=source.revision or None,
                data_files=data_files(source) or None,
                streaming=True,
                cache_dir=cache,
            )
            if rows.column_names and source.text in rows.column_names:
                rows = rows.select_columns([source.text])  # leaves images and sound undecoded
            rows = iter(rows)
        except CorpusError:
            raise
        except Exception as error:  # builders raise many types; in any case the data set cannot be read
            raise _unusable(file, error) from None
        number = 0
        while True:
            try:
                record = next(rows, None)
            except Exception as error:
                raise _unusable(file, error) from None
            if record is None:
                break
            number += 1
            _add_field(record, f"{file.path}: record {number}", file, writer)


def _unusable(file: SourceFile, error: Exception) -> CorpusError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CorpusError(
        f"{file.path}: cannot be read ({reason}); check name, config, split and revision, and the "
        f"network unless HF_HUB_OFFLINE is set"
    )


_READERS: dict[str, Callable[[SourceFile, _Writer], None]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "hf": _read_hub,
}
