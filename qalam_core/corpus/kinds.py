"""The kind of one file: a bounded sample of it -> the keys with which it can be read, and some of its documents."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from qalam_core.corpus.lines import CHUNK, Input, check_is_text, split
from qalam_core.corpus.mojibake import repair
from qalam_core.corpus.records import every_list, is_text_or_null, parsed
from qalam_core.corpus.sources import ReadSettings, SourceFile, parts
from qalam_core.corpus.writer import is_bytes
from qalam_core.errors import CorpusError
from qalam_core.files import is_unicode

SAMPLE = 4 << 20  # bytes that are read of a file, at most
ROWS = 1000  # rows that are read of a Parquet or Arrow file

LEAST = 0.1  # share of the Arabic letters of a file that the text of its records has

ENCODED = 1 << 16  # bytes that an encoding is guessed from

# Encodings of Arabic text; charset-normalizer chooses among these, as it would find Chinese in damaged Arabic.
ENCODINGS = [
    "utf_8", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be", "cp1256", "iso8859_6", "cp720",
]  # fmt: skip

ARABIC = re.compile("[\u0620-\u064a\u066e-\u06d3\ufb50-\ufdfb\ufe70-\ufefc]")
_OTHERS = re.compile("[ٹپچڈڑژکگںھہۆیےە]")  # letters that are frequent in Persian, Urdu and Kurdish alone
MARKS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]")  # they take no room on a line
_HEADER = re.compile(r"\w[\w .-]{0,39}")

NAMES = {
    "text": "plain text", "jsonl": "JSON Lines", "json": "JSON", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow",
}  # fmt: skip

Choice = tuple[str, str]  # of records and text: the path of a list, and the field of its records


@dataclass
class File:
    """What one file is: the keys that it needs, and a sample of its documents."""

    path: Path
    format: str
    size: int  # bytes on disk
    keys: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    share: float = 1.0  # of the file that the sample is
    units: dict[str, list[str]] = field(default_factory=dict)  # of plain text: the documents by unit
    wrapped: bool = False  # plain text whose lines end where the page did
    letters: int = 0  # Arabic ones of the sample
    lists: dict[str, list[Any]] = field(default_factory=dict)  # of records, by path
    choices: dict[Choice, int] = field(default_factory=dict)  # what can be read of them -> Arabic letters
    fields: list[str] = field(default_factory=list)  # some names, where none of them holds Arabic
    single: bool = False  # it is one record
    cut: bool = False  # the last record is not whole
    damaged: bool = False  # some records are not, or the text has a NUL

    @property
    def text_bytes(self) -> int:
        """Of the documents, as UTF-8."""
        return sum(len(text.encode("utf-8", "replace")) for text in self.texts)


def arabic_letters(text: str) -> int:
    """How many of the characters are letters of the Arabic script; of damaged text, once it is repaired."""
    return len(ARABIC.findall(text)) or len(ARABIC.findall(repair(text)[0]))


# -- one file --------------------------------------------------------------------------------------


def look(path: Path, most: int) -> File:
    """Detect one file, by its first bytes: at most so many. Raises CorpusError."""
    _, kind, compression = parts(path)
    file = File(path, kind, path.stat().st_size)
    if not file.size:
        return file
    reader = Input(SourceFile(ReadSettings(format="text", compression=compression, name=""), str(path), "", file.size))
    raw = b"".join(islice(reader.chunks(), min(SAMPLE, most) // CHUNK))
    file.share = min(1.0, reader.done / file.size)
    check_is_text(path, raw)
    table = "parquet" if raw.startswith(b"PAR1") else "arrow" if raw.startswith(b"ARROW1") else ""
    if table or kind in ("parquet", "arrow"):
        _table(file, table or kind, compressed=bool(compression))
    else:
        text = _decoded(file, raw)
        file.format, file.damaged = _format(text, kind, path), "\0" in text
        _PARSERS[file.format](file, text, file.share == 1)
        if file.damaged:
            file.keys["bad_records"] = "skip"
        if not all(map(is_unicode, file.texts)):
            file.keys["encoding_errors"] = "replace"
    file.letters = sum(map(arabic_letters, file.texts))
    if file.texts:
        file.keys["format"] = "auto" if file.format == kind else file.format
    return file


def _decoded(file: File, raw: bytes) -> str:
    """The sample as text, without a byte order mark; sets the file's encoding. Raises CorpusError."""
    encoding, errors = "utf_8", "strict"
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(raw, final=False)
    damaged = text.count("\ufffd")
    if "\0" in text or damaged > len(ARABIC.findall(text)):
        best = from_bytes(raw[:ENCODED], cp_isolation=ENCODINGS).best()
        if best is None:
            raise CorpusError(
                f"{file.path}: is no text in an encoding that Arabic has; convert it to UTF-8, or name other files"
            )
        encoding = best.encoding
        text = codecs.getincrementaldecoder(encoding)("replace").decode(raw, final=False)
        damaged = text.count("\ufffd")
    if damaged:
        errors = "replace"
    if not text.isascii() or b"\0" in raw:  # ASCII alone is in every encoding but those with NULs
        file.keys["encoding"] = codecs.lookup(encoding).name
    file.keys["encoding_errors"] = "replace" if errors == "replace" else "refuse"
    return text.removeprefix("\ufeff")


def _format(text: str, kind: str, path: Path) -> str:
    """The format of a sample; that of its suffix `kind`, unless its content is clearly another."""
    head = text.lstrip()[:1]
    if re.match(r"\s*<(!doctype|html|\?xml)\b", text, re.IGNORECASE):
        raise CorpusError(f"{path}: is HTML or XML; take its text out, or name other files")
    if head in ("{", "[") or kind in ("json", "jsonl"):
        lines = [line for line in split(text) if line.strip()]
        if lines and _is_json(lines[0]) and (len(lines) > 1 or kind == "jsonl"):
            return "jsonl"
        if head in ("{", "[") and kind != "text":
            return "json"
        if head in ("{", "[") and re.match(r'\s*(\{\s*"|\[\s*[\[{"])', text):
            return "json"
    if kind in ("", "text"):
        return "csv" if _is_table(text) else "text"
    return kind


def _is_json(line: str) -> bool:
    try:
        return isinstance(parsed(line), dict | list | str)
    except (ValueError, RecursionError):
        return False


def _whole_lines(text: str, complete: bool) -> list[str]:
    """The lines of a sample, without the last one where that may be cut."""
    lines = split(text)
    return lines if complete or len(lines) < 2 else lines[:-1]


# -- plain text ------------------------------------------------------------------------------------


def _plain(file: File, text: str, complete: bool) -> None:
    lines = _whole_lines(text, complete)
    blocks = [list(block) for full, block in groupby(lines, lambda line: bool(line.strip())) if full]
    file.units = {
        "line": [line for block in blocks for line in block],
        "paragraph": ["\n".join(block) for block in blocks],
        "file": ["\n".join(line for block in blocks for line in block)],
    }
    file.texts = file.units["line"]
    file.wrapped = _wrapped(blocks)


def _wrapped(blocks: Sequence[Sequence[str]]) -> bool:
    """Whether lines end where the page did: those that another follows in their paragraph are about equally long."""
    inner = [len(MARKS.sub("", line).strip()) for block in blocks for line in block[:-1]]
    ends = [line.rstrip()[-1] for block in blocks for line in block[:-1]]
    if len(inner) < 5:
        return False
    width = sorted(inner)[int(len(inner) * 0.95)]
    full = sum(length >= 0.75 * width for length in inner) / len(inner)
    stopped = sum(end in ".؟?!۔:" for end in ends) / len(ends)
    return full >= 0.75 and stopped < 0.5 and 20 <= width <= 160


# -- records ---------------------------------------------------------------------------------------


def _json_lines(file: File, text: str, complete: bool) -> None:
    records, problems = list[Any](), list[str]()
    for line in _whole_lines(text, complete):
        if line.strip():
            try:
                records.append(parsed(line))
            except (ValueError, RecursionError) as error:
                problems.append(str(error))
    if len(problems) > len(records):
        most = f"{len(problems)} of the first {len(problems) + len(records)} lines are not JSON ({problems[0]})"
        raise CorpusError(f"{file.path}: {most}; correct them, or name other files")
    file.damaged |= bool(problems)
    _choose(file, {"": records}, records)


def _json(file: File, text: str, complete: bool) -> None:
    try:
        value = json.loads(text if complete else _closed(text))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{file.path}: not JSON ({error}); correct it, or name other files") from None
    file.cut, lists = not complete, every_list(value)
    file.single = isinstance(value, dict) and not lists
    _choose(file, ({"": [value]} if isinstance(value, dict) else {}) | lists | _numbered(value), value)


def _numbered(value: Any, path: str = "", depth: int = 4) -> dict[str, list[Any]]:
    """The texts of objects whose keys count them, as {"verse_1": "...", "verse_2": "..."}, by their path."""
    if not isinstance(value, dict) or not depth:
        return {}
    counted = {re.sub(r"[0-9]+$", "", key) for key in value}
    if len(value) > 1 and len(counted) == 1 and not counted & {*value}:
        texts = [*value.values()]
        return {f"{path}*": texts} if all(isinstance(text, str | None) for text in texts) else {}
    return {
        found: texts
        for key, each in value.items() if key and "." not in key and key != "*"
        for found, texts in _numbered(each, f"{path}{key}.", depth - 1).items()
    }  # fmt: skip


def _closed(text: str) -> str:
    """The start of a JSON text, cut after its last complete value and closed."""
    stack, best, closing = list[str](), 0, ""
    for token in re.finditer(r'"(?:[^"\\]|\\.)*"|["\[\]{},]', text):
        mark = token[0]
        if mark == '"':  # the last string, whose end is not in the sample
            break
        if mark in "[{":
            stack.append("]" if mark == "[" else "}")
        elif mark in "]}" and stack:
            stack.pop()
        elif mark == ",":
            best, closing = token.start(), "".join(reversed(stack))
    return text[:best] + closing


def _choose(file: File, lists: dict[str, list[Any]], value: Any) -> None:
    """Choose the list and the field with the most Arabic; every list of an object, where one of them is not most.

    Raises CorpusError where the `value` that holds the lists has Arabic text, and none of it can be chosen.
    """
    file.lists = lists
    for place, records in lists.items():
        for field_, texts in _fields(records).items():
            file.choices[place, field_] = _worth(texts)
    if isinstance(value, dict):  # no record itself by a field that records in it have
        for place, field_ in list(file.choices):
            if not place and any((other, field_) in file.choices for other in lists if other):
                del file.choices[place, field_]
    every = arabic_letters(json.dumps(value, ensure_ascii=False, default=str))
    if any(file.choices.values()):
        take(file, most_arabic(file.choices))
    if every and sum(map(arabic_letters, file.texts)) < LEAST * every:
        most = "most of " if file.texts else ""
        raise CorpusError(
            f"{file.path}: {most}its Arabic text is in no field of a list of records; write a file with one "
            '{"text": "..."} per line, and the suffix .jsonl'
        )
    if not file.texts:
        file.fields = list(dict.fromkeys(field_ for _, field_ in file.choices if field_))


def most_arabic(choices: Mapping[Choice, int]) -> Choice:
    """The choice with the most Arabic letters, the first of equals; a path with * has to have some more."""
    return max(choices, key=lambda choice: choices[choice] * 0.8 ** choice[0].split(".").count("*"))


def take(file: File, choice: Choice) -> None:
    """Read a file of records by this choice, whose list it has."""
    path, file.keys["text"] = choice
    records = file.lists[path]
    file.texts = _fields(records).get(file.keys["text"], [])
    if file.format == "json":
        file.keys["records"] = path
    if file.format in ("json", "jsonl"):
        whole = records[:-1] if file.cut else records
        damaged = file.damaged or not all(is_text_or_null(record, file.keys["text"]) for record in whole)
        file.keys["bad_records"] = "skip" if damaged else "refuse"


def _worth(texts: Sequence[str]) -> int:
    """How many Arabic letters some texts have; few, where they seem to be of another language."""
    letters, others = sum(map(arabic_letters, texts)), sum(len(_OTHERS.findall(text)) for text in texts)
    return max(letters - 10 * others, int(letters > 0))


def _fields(records: Sequence[Any]) -> dict[str, list[str]]:
    """The strings of records by the path of their field; "" for records that are strings."""
    found: dict[str, list[str]] = {}

    def add(value: Any, path: str, depth: int) -> None:
        if isinstance(value, str):
            found.setdefault(path, []).append(value)
        elif isinstance(value, dict) and depth:
            for key, part in value.items():
                if key and ("." not in key or isinstance(part, str)):  # as the reader finds it
                    add(part, f"{path}.{key}" if path else key, depth - 1)

    for record in records:
        add(record, "", 4)
    return found


def _csv(file: File, text: str, complete: bool) -> None:
    lines = _whole_lines(text, complete)
    delimiter, rows = _table_of(lines)
    first = rows[0]
    whole = [row for row in rows if len(row) == len(first)]
    scores = [_worth([row[place] for row in whole]) for place in range(len(first))]
    if not any(scores):
        file.fields = first
        return
    place = scores.index(max(scores))
    named = _names_columns(whole, place)
    usual = "\t" if ".tsv" in [suffix.lower() for suffix in file.path.suffixes[-2:]] else ","
    file.keys["delimiter"] = "" if delimiter == usual else delimiter
    damaged = len(whole) < len(rows) or not _is_strict(lines, delimiter, complete)
    file.keys |= {"text": first[place] if named else f"#{place + 1}", "bad_records": "skip" if damaged else "refuse"}
    file.texts = [row[place] for row in whole[named:]]


def _names_columns(rows: Sequence[Sequence[str]], place: int) -> bool:
    """Whether the first row names the columns, that of the text at `place` above all, and is no row like the others."""
    first, name = rows[0], rows[0][place]
    others = [row for row in rows[1:] if row != first]
    return (
        _HEADER.fullmatch(name) is not None
        and len(name.split()) < 4
        and first.count(name) == 1
        and not any(cell.strip().isdigit() for cell in first)
        and not any(cell and cell == row[n] for row in others for n, cell in enumerate(first))
    )


def _is_strict(lines: Sequence[str], delimiter: str, complete: bool) -> bool:
    """Whether the quotes are as the reader demands it; at the end of a sample one may be open."""
    rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    try:
        for _ in rows:
            pass
    except csv.Error:
        return not complete and rows.line_num == len(lines)
    return True


def _table_of(lines: Sequence[str]) -> tuple[str, list[list[str]]]:
    """The delimiter with which most rows are as wide as the first one, at least two cells, and the rows, at least one.

    A table of one column has a delimiter that is in no line.
    """
    best: tuple[float, int, str, list[list[str]]] = (0.0, 0, ",", [])
    for delimiter in ",;\t|":
        try:
            rows = [row for row in csv.reader((line + "\n" for line in lines), delimiter=delimiter) if row]
        except csv.Error:
            continue
        width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
        if width > 1 and len(rows[0]) == width:
            share = sum(len(row) == width for row in rows) / len(rows)
            if share > best[0]:
                best = (share, width, delimiter, rows)
    if best[0] >= 0.5:
        return best[2], best[3]
    unused = next((each for each in ",;\t|" if not any(each in line for line in lines)), ",")
    return unused, [[line] for line in lines if line.strip()] or [[""]]


def _is_table(text: str) -> bool:
    """Whether a text without a telling suffix is a table: its first line names columns, or nearly all lines have as
    many cells as the first one, with the Arabic in one of them. Of a verse with a tab in it both halves are Arabic.
    """
    delimiter, rows = _table_of(split(text)[:200])
    whole = [row for row in rows if len(row) == len(rows[0]) > 1]
    if all(re.fullmatch("[A-Za-z_][A-Za-z0-9_ ]*", cell.strip()) for cell in rows[0]):
        return len(whole) > 2
    letters = [sum(arabic_letters(row[place]) for row in whole) for place in range(len(rows[0]))]
    alike = len(whole) >= max(10, 0.95 * len(rows))
    return delimiter in "\t|" and alike and max(letters) > 0.9 * sum(letters)


def _table(file: File, kind: str, compressed: bool) -> None:
    """Parquet and Arrow: the column with the most Arabic of the first rows."""
    file.format = kind
    if compressed:
        raise CorpusError(f"{file.path}: {NAMES[kind]} is compressed inside already; decompress the file")
    try:
        if kind == "parquet":
            with pq.ParquetFile(file.path) as table:
                batch = next(table.iter_batches(ROWS), None)
                total = table.metadata.num_rows
        else:
            with pa.memory_map(str(file.path)) as mapped:
                arrow = mapped.read(6) == b"ARROW1"
                mapped.seek(0)
                batches = ipc.open_file(mapped) if arrow else ipc.open_stream(mapped)
                batch = batches.get_batch(0) if arrow else next(iter(batches), None)
                total = sum(batches.get_batch(n).num_rows for n in range(batches.num_record_batches)) if arrow else 0
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise CorpusError(f"{file.path}: not {NAMES[kind]} ({str(error).splitlines()[0][:120]})") from None
    if batch is None:
        return
    batch = batch.slice(0, ROWS)
    for place, column in enumerate(batch.columns):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):  # text that has no type for it
            if is_bytes(column.type):
                batch = batch.set_column(place, batch.schema.names[place], column.cast(pa.large_string()))
    rows = batch.to_pylist()
    file.share = len(rows) / max(total, batch.num_rows)
    _choose(file, {"": rows}, rows)


_PARSERS = {"text": _plain, "jsonl": _json_lines, "json": _json, "csv": _csv}
