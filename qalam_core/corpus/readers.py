"""Readers: one source file of any format -> one Arrow file with a row per document, as read, in bounded memory.
Documents of more than MAX_CHARS, or on a line of more than MAX_LINE bytes, are cut to HEAD characters, and marked.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
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

log = logging.getLogger(__name__)

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
    replaced: int  # documents with bytes that could not be decoded
    skipped_null: int  # records whose text is null; they are not documents
    skipped: int = 0  # records that could not be read or have no text; they are not documents
    passed_over: int = 0  # 1 for a file that was found, not named, and holds no documents


def ingest(file: SourceFile, out: Path, progress: Progress = no_progress) -> IngestFacts:
    """Read one file into `out`/documents.arrow, in its order. Progress is in bytes of the file. Raises CorpusError."""
    out.mkdir(parents=True, exist_ok=True)
    with closing(_Writer(out / DOCUMENTS, file, progress)) as writer:
        if file.size or file.hub:
            _READERS[file.settings.format](writer)
        writer.flush()
    writer.counts["passed_over"] = int(not writer.counts["documents"])
    facts = IngestFacts(**{name: writer.counts[name] for name in IngestFacts.model_fields})
    if facts.passed_over:
        why = [f"in {facts.skipped_null} records {file.settings.text!r} is null"] if facts.skipped_null else []
        why += [f"{facts.skipped} bad records were skipped"] if facts.skipped else []
        problem = f"{file.path}: holds no documents" + (f" ({', '.join(why)})" if why else "")
        if not file.settings.found:
            raise CorpusError(f"{problem}; remove it from the sources, or fill it")
        log.warning("%s; it is passed over", problem)
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
            self.bad(f"{place}: no field {self.field!r} ({_fields(record)})", cure)
            return
        if isinstance(value, str):
            self.add(value)
        elif value is None:
            self.counts["skipped_null"] += 1
        else:
            problem = f"{place}: {f'field {self.field!r} ' if self.field else ''}is {_kind(value)}, not text"
            cure = "set text to a field that holds text"
            if isinstance(value, dict):
                problem += f" ({_fields(record)})"
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

    def add(document: str, cut: bool = False) -> None:
        if "\0" in document:  # only where bad records are skipped; else it was refused before
            writer.counts["skipped"] += 1
        elif document.strip():
            writer.add(document, cut)

    if unit == "line":
        for line in writer.lines():
            add(line)
        return

    # Lines are gathered until a blank one, or the end of the file; past MAX_CHARS they are no longer kept.
    gathered: list[str] = []
    chars, cut = 0, False

    def close() -> None:
        nonlocal chars, cut
        add("\n".join(gathered), cut)
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
        if not line.strip():
            continue
        place = f"{writer.path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"{place}: {_not_json(error)}"
            if line.strip() in ("[", "{") and not writer.holds_documents:
                raise CorpusError(
                    f'{problem}; for one value over many lines set format = "json" on its source'
                ) from None
            writer.bad(problem, "correct or remove it")
        else:
            writer.add_record(record, place)


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
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = f"{path}: {_not_json(error)}"
        raise CorpusError(f'{problem}; for one record per line set format = "jsonl" on its source') from None
    del text
    number = 0
    for records in _lists(value, writer.file.settings.records, path, "the top"):
        for number, record in enumerate(records, number + 1):  # noqa: B020  numbered over all lists
            writer.add_record(record, f"{path}: record {number}")


def _lists(value: Any, keys: str, path: str, where: str) -> Iterator[list[Any]]:
    """The lists of records at dotted `keys` of a JSON value, where * stands for each key of an object or list.

    What is no list at a * in the end is a record itself, as in an object of records.
    """
    if not keys:
        if not isinstance(value, list):
            raise CorpusError(f"{path}: {where} is not a list of records ({_fields(value)}); {_way_to_list(value)}")
        yield value
        return
    key, _, rest = keys.partition(".")
    if key == "*" and isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from _lists(each if rest or isinstance(each, list) else [each], rest, path, repr(name))
    elif isinstance(value, dict) and (keys in value or key in value):
        key, rest = (keys, "") if keys in value else (key, rest)  # a key that has dots itself
        yield from _lists(value[key], rest, path, repr(key))
    else:
        raise CorpusError(f"{path}: {where} has no key {key!r} ({_fields(value)}); correct records")


def _way_to_list(value: Any) -> str:
    found = _list_keys(value)
    if not found:
        return "convert it to a list of records, or to one record per line (suffix .jsonl)"
    shown = " or ".join(json.dumps(keys, ensure_ascii=False) for keys in found[:4])
    return f"set records = {shown} on its source"


def _list_keys(value: Any, depth: int = 3) -> list[str]:
    """The lists in an object as `records` names them."""
    if not isinstance(value, dict) or not depth:
        return []
    values = list(value.values())
    if len(values) > 1 and all(isinstance(each, list) for each in values):
        return ["*"]
    found = [
        keys
        for key, each in value.items()
        for keys in ([key] if isinstance(each, list) else [f"{key}.{inner}" for inner in _list_keys(each, depth - 1)])
    ]
    alike = len(values) > 1 and all(isinstance(each, dict) and each.keys() & values[0].keys() for each in values)
    return ["*" + found[0].removeprefix(next(iter(value))) if found else "*"] if alike else found


def picked(record: Any, field: str) -> Any:
    """The value of a field, as "a.b" when it is nested; the record itself for "". Raises KeyError."""
    if not field:
        return record
    if isinstance(record, dict):
        if field in record:
            return record[field]
        for dot in re.finditer(r"\.", field):  # the names may have dots themselves
            outer = field[: dot.start()]
            if outer in record:
                return None if record[outer] is None else picked(record[outer], field[dot.end() :])
    raise KeyError(field)


def _not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"not JSON at {where} ({error.msg})"
    return f"not JSON that can be read ({error})"  # numbers of thousands of digits, thousands of nested brackets


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _fields(value: object) -> str:
    """What a record has instead, for a message."""
    return _listed(_paths(value)) if isinstance(value, dict) else f"it is {_kind(value)}"


def _paths(record: Mapping[Any, Any], depth: int = 3) -> list[str]:
    """The fields of a record as `text` names them."""
    found = list[str]()
    for key, value in islice(record.items(), 100):
        nested = _paths(value, depth - 1) if isinstance(value, dict) and depth > 1 else []
        found += [f"{key}.{inner}" for inner in nested] or [str(key)]
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:12])
    return f"there are: {shown}{', ...' if len(names) > 12 else ''}" if names else "there are none"


def _read_csv(writer: _Writer) -> None:
    path, field, delimiter = writer.path, writer.field, writer.file.settings.delimiter
    lines = _CsvLines(writer)
    csv.field_size_limit(MAX_CHARS)  # for the whole process: csv has no other way; the default is 128 KiB
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        lines.row.clear()
        try:
            row = next(rows, None)
        except csv.Error as error:
            if not header:
                raise CorpusError(f"{path}:1: not CSV ({error}); correct the quotes in its first line") from None
            writer.bad(
                f"{path}:{lines.number - len(lines.row) + 1}: not CSV ({error}), so a quote is left open",
                "correct or remove it",
            )
            lines.again()
            continue
        if row is None:
            return
        if not header:
            header = row
            if row and field not in row:
                raise CorpusError(f"{path}: no column {field!r} in its first line ({_listed(row)}); {_columns(row)}")
        elif not row:
            continue
        elif len(row) != len(header) or any("\0" in cell for cell in row):
            writer.bad(
                f"{path}:{lines.number}: the row has {len(row)} of {len(header)} cells",
                f"correct or remove it (a cell with {delimiter!r} in it needs quotes)",
            )
        else:
            writer.add(row[header.index(field)])


class _CsvLines:
    """The lines of a CSV file; those of the last row are kept, so that after an open quote only its line is lost."""

    def __init__(self, writer: _Writer) -> None:
        self.row: list[str] = []  # the lines of the row that is being read
        self.number = 0  # of the last line
        self._next: list[str] = []  # lines that are read again, the last one first
        self._lines = self._of(writer)

    def _of(self, writer: _Writer) -> Iterator[str]:
        for text, head in writer.input.blocks():
            if head:
                raise CorpusError(
                    f"{writer.path}: a line is longer than {MAX_LINE >> 20} MB; remove it, if this is CSV"
                )
            yield from (line + "\n" for line in split(text))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._next.pop() if self._next else next(self._lines)
        self.number += 1
        self.row.append(line)
        return line

    def again(self) -> None:
        """Go back to the second line of the row."""
        self.number -= len(self.row) - 1
        self._next += reversed(self.row[1:])


def _columns(header: Sequence[str]) -> str:
    """What to do about a header without the column of the text."""
    for other in ";\t|,":
        if len(header) == 1 and other in header[0]:
            return f"set delimiter = {json.dumps(other)} on its source, and text to one of its columns"
    return "set text to one, or add a line with the names of the columns if it has none"


def _read_parquet(writer: _Writer) -> None:
    with _parsing(writer, "Parquet") as path:
        if path.stat().st_size:
            _read_parquet_file(writer, path)


def _read_parquet_file(writer: _Writer, path: Path) -> None:
    with pq.ParquetFile(path) as table:
        path_in = _column_path(writer, table.schema_arrow)
        rows = 0
        for batch in table.iter_batches(1024, columns=[".".join(path_in)]):
            writer.add_column(_nested(batch, path_in), rows)
            rows += len(batch)
            writer.input.done = writer.file.size * rows // table.metadata.num_rows


def _read_arrow(writer: _Writer) -> None:
    with _parsing(writer, "Arrow") as path:
        if path.stat().st_size:
            _read_arrow_file(writer, path)


def _read_arrow_file(writer: _Writer, path: Path) -> None:
    with pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
        path_in = _column_path(writer, table.schema)
        rows = 0
        for batch in map(table.get_batch, range(table.num_record_batches)) if is_file else table:
            column = _nested(batch, path_in)
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


def _column_path(writer: _Writer, schema: pa.Schema) -> list[str]:
    """The names that lead to the text's column, through structs. Raises CorpusError where there is none, or no text."""
    path, field = writer.path, writer.field
    columns = _columns_in(schema)
    listed = _listed([dotted for dotted, (_, kind) in columns.items() if not pa.types.is_struct(kind)])
    if field not in columns:
        raise CorpusError(f"{path}: no column {field!r} ({listed}); set text to one of them")
    names, kind = columns[field]
    if schema.names.count(names[0]) > 1:
        raise CorpusError(f"{path}: there is more than one column {names[0]!r}; rename them")
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        problem = f"{path}: column {field!r} is {str(kind)[:100]}, not text ({listed})"
        raise CorpusError(f"{problem}; set text to a column that holds text")
    return names


def _columns_in(fields: Iterable[pa.Field], outer: Sequence[str] = ()) -> dict[str, tuple[list[str], pa.DataType]]:
    """The columns, and those in structs, as `text` names them -> the names that lead there, and the type."""
    found = dict[str, tuple[list[str], pa.DataType]]()
    for field in fields:
        names = [*outer, field.name]
        found[".".join(names)] = names, field.type
        if pa.types.is_struct(field.type):
            found = _columns_in(field.type, names) | found
    return found


def _nested(batch: pa.RecordBatch, names: Sequence[str]) -> pa.Array:
    column = batch.column(names[0])
    return pc.struct_field(column, list(names[1:])) if names[1:] else column


def _read_hub(writer: _Writer) -> None:
    # The library's cache is deleted with this folder; offline it obeys HF_HUB_OFFLINE.
    with tempfile.TemporaryDirectory(dir=writer.folder) as cache:
        for number, record in enumerate(_hub_records(writer.file, cache), 1):
            writer.add_record(record, f"{writer.path}: record {number}")


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
        for name in (source.text, source.text.partition(".")[0]):
            if rows.column_names and name in rows.column_names:
                rows = rows.select_columns([name])  # leaves images and sound undecoded
                break
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
