"""Tables: the text's column of CSV, Parquet and Arrow files, row by row or batch by batch."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from qalam_core.corpus.lines import MAX_LINE, split
from qalam_core.corpus.records import listed
from qalam_core.corpus.writer import MAX_CHARS, Writer, is_bytes
from qalam_core.errors import CorpusError

NUMBERED = re.compile("#[1-9][0-9]{0,3}")  # the number of a column, where the first line does not name them


def read_csv(writer: Writer) -> None:
    """Read the rows of a CSV file. Raises CorpusError."""
    path, field, delimiter = writer.path, writer.field, writer.file.settings.delimiter
    lines = _CsvLines(writer)
    csv.field_size_limit(MAX_CHARS)  # for the whole process: csv has no other way; the default is 128 KiB
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    place = width = 0  # no row is narrower than one cell
    first = list[str]()
    while True:
        lines.row.clear()
        try:
            row = next(rows, None)
            if delimiter == "\t" and row and any("\n" in cell and "\t" in cell for cell in row):
                raise csv.Error("a cell of several lines with tabs in it")
        except csv.Error as error:
            if not width:
                raise CorpusError(f"{path}:1: not CSV ({error}); correct the quotes in its first line") from None
            # where tabs end cells, a quote may be a character like any other
            row = lines.row[0].rstrip("\n").split("\t") if delimiter == "\t" else []
            if len(row) != width:
                writer.bad(
                    f"{path}:{lines.number - len(lines.row) + 1}: not CSV ({error}), so a quote is left open",
                    "correct or remove it",
                )
                row = []
            lines.again()
        if row is None:
            return
        if not row:
            continue
        if not width:
            place, width, first = _place(row, field, path), len(row), row
            if NUMBERED.fullmatch(field) is None:
                continue
        # a delimiter at the end of lines makes an empty cell, which only the first line or only the others may have
        if len(row) <= place or any(row[width:] + first[len(row) :]) or any("\0" in cell for cell in row):
            writer.bad(
                f"{path}:{lines.number}: the row has {len(row)} of {width} cells",
                f"correct or remove it (a cell with {delimiter!r} in it needs quotes)",
            )
        else:
            writer.add(row[place])


def _place(first: Sequence[str], field: str, path: str) -> int:
    """The place of the text in each row, by the first one, which names the columns unless the field is a number."""
    if NUMBERED.fullmatch(field):
        if int(field[1:]) > len(first):
            raise CorpusError(f"{path}: no column {field!r}: its first line has {len(first)} cells; correct text")
        return int(field[1:]) - 1
    if field not in first:
        raise CorpusError(f"{path}: no column {field!r} in its first line ({listed(first)}); {_columns(first)}")
    if first.count(field) > 1:
        raise CorpusError(f"{path}: there is more than one column {field!r}; rename them")
    return first.index(field)


class _CsvLines:
    """The lines of a CSV file; those of the last row are kept, so that after an open quote only its line is lost."""

    def __init__(self, writer: Writer) -> None:
        self.row: list[str] = []  # the lines of the row that is being read
        self.number = 0  # of the last line
        self._next: list[str] = []  # lines that are read again, the last one first
        self._lines = self._of(writer)

    def _of(self, writer: Writer) -> Iterator[str]:
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
    return 'set text to one, or to a number as "#2" if no line names the columns'


def read_parquet(writer: Writer) -> None:
    """Read a column of a Parquet file. Raises CorpusError."""
    with _parsing(writer, "Parquet") as path:
        if path.stat().st_size:
            _read_parquet_file(writer, path)


def _read_parquet_file(writer: Writer, path: Path) -> None:
    with pq.ParquetFile(path) as table:
        path_in = _column_path(writer, table.schema_arrow)
        rows = 0
        for batch in table.iter_batches(1024, columns=[".".join(path_in)]):
            writer.add_column(_nested(batch, path_in), rows)
            rows += len(batch)
            writer.input.done = writer.file.size * rows // table.metadata.num_rows


def read_arrow(writer: Writer) -> None:
    """Read a column of an Arrow file or stream. Raises CorpusError."""
    with _parsing(writer, "Arrow") as path:
        if path.stat().st_size:
            _read_arrow_file(writer, path)


def _read_arrow_file(writer: Writer, path: Path) -> None:
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
def _parsing(writer: Writer, kind: str) -> Iterator[Path]:
    """The file for random access, decompressed if necessary; errors of Arrow in the block become CorpusErrors."""
    with ExitStack() as stack:
        path = Path(writer.file.opened)
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


def _column_path(writer: Writer, schema: pa.Schema) -> list[str]:
    """The names that lead to the text's column, through structs. Raises CorpusError where there is none, or no text."""
    path, field = writer.path, writer.field
    columns = _columns_in(schema)
    there = listed([dotted for dotted, (_, kind) in columns.items() if not pa.types.is_struct(kind)])
    if field not in columns:
        raise CorpusError(f"{path}: no column {field!r} ({there}); set text to one of them")
    names, kind = columns[field]
    if schema.names.count(names[0]) > 1:
        raise CorpusError(f"{path}: there is more than one column {names[0]!r}; rename them")
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    strings = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    if not (strings or is_bytes(kind) or pa.types.is_null(kind)):  # null: no row of this file has a text
        problem = f"{path}: column {field!r} is {str(kind)[:100]}, not text ({there})"
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
