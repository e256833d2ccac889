"""Detection: a bounded sample of the files of a source -> the keys with which the source can be read, and its size.

Nothing is executed or downloaded, and the same files give the same answer.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from qalam_core.corpus.lines import CHUNK, Input, split
from qalam_core.corpus.mojibake import repair
from qalam_core.corpus.readers import picked
from qalam_core.corpus.sources import ReadSettings, SourceFile, expand, parts
from qalam_core.errors import CorpusError
from qalam_core.files import is_unicode
from qalam_core.recipe import Source

SAMPLE = 1 << 20  # bytes that are read of a file...
FILES = 20  # ...and files of a source, spread over them
ROWS = 1000  # rows that are read of a Parquet or Arrow file

# Encodings of Arabic text; charset-normalizer chooses among these, as it would find Chinese in damaged Arabic.
ENCODINGS = [
    "utf_8", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be", "cp1256", "iso8859_6", "cp720",
]  # fmt: skip

_ARABIC = re.compile("[\u0620-\u064a\u066e-\u06d3\ufb50-\ufdfb\ufe70-\ufefc]")
_MARKS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]")  # they take no room on a line
_HEADER = re.compile(r"\w[\w .-]{0,39}")

_NOT_TEXT = {
    b"%PDF": "a PDF file; take its text out, for example with `pdftotext`",
    b"PK\x03\x04": "a zip archive, or a document of an office program; unpack it, or save it as plain text",
    b"\xd0\xcf\x11\xe0": "a document of an office program; save it as plain text",
    b"{\\rtf": "an RTF document; save it as plain text",
    b"SQLite format 3": "an SQLite database; export the text as CSV",
}
_COMPRESSED = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}


class Detected(NamedTuple):
    """A source that can be read, what was seen of it in one line, and estimates of what it holds."""

    source: Source
    what: str
    bytes: int  # UTF-8, of the documents' text
    documents: int
    shortest: int  # characters; only one document in twenty is shorter
    repair: bool  # some documents are Arabic only once damage by a wrong encoding is repaired


@dataclass
class _File:
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

    @property
    def text_bytes(self) -> int:
        return sum(len(text.encode("utf-8", "replace")) for text in self.texts)


def detect(source: Source) -> Detected:
    """How the files of `source` can be read. Raises CorpusError where there is no file, or no Arabic text."""
    paths = expand(source)[0]
    paths = [path for path in paths if parts(path)[1]] or paths  # a build passes others over
    count = min(len(paths), FILES)
    read = [_look(paths[place * len(paths) // count]) for place in range(count)]
    found = [file for file in read if file.letters]
    if not found:
        fields = next((file.keys["fields"] for file in read if file.keys.get("fields")), "")
        seen = f" (its fields: {fields})" if fields else ""
        raise CorpusError(f"{source.path}: no Arabic text was found{seen}; name files that hold some")
    for file in read:
        file.keys.pop("fields", None)
        if not file.letters and file.format not in ("text", found[0].format) and file.size:
            raise CorpusError(
                f"{file.path}: holds no Arabic text, and is no plain text that filters could reject; remove it, or "
                f"name the other files by a glob"
            )
    keys = _common(source, found)
    if any(file.format == "text" for file in found):
        keys |= _unit([file for file in found if file.format == "text"], len(paths))
        for file in found:
            file.texts = file.units.get(keys.get("unit", "line"), file.texts)
    sampled = sum(file.share * file.size for file in read)
    scale = sum(path.stat().st_size for path in paths) / max(sampled, 1)
    texts = [text for file in found for text in file.texts]
    lengths = sorted(len(_MARKS.sub("", text).strip()) for text in texts)
    detected = Source.model_validate({**source.model_dump(), **keys})
    return Detected(
        detected, _told(detected, found, len(paths)), int(scale * sum(file.text_bytes for file in found)),
        max(1, int(scale * len(texts))), lengths[len(lengths) // 20],
        any(arabic_letters(text) and not _ARABIC.search(text) for text in texts),
    )  # fmt: skip


def arabic_letters(text: str) -> int:
    """How many of the characters are letters of the Arabic script; of damaged text, once it is repaired."""
    return len(_ARABIC.findall(text)) or len(_ARABIC.findall(repair(text)[0]))


def _told(source: Source, found: Sequence[_File], files: int) -> str:
    """What was detected, as one line."""
    kinds = " and ".join(sorted({_NAMES[file.format] for file in found}))
    where = f"{files} files of {kinds}" if files > 1 else kinds
    more = [f"encoding {source.encoding}"] if source.encoding != "utf-8" else []
    if source.encoding_errors == "replace":
        more.append("damaged characters are replaced")
    if any(file.format != "text" for file in found):
        more.append(f"text in {source.text!r}" if source.text else "records are strings")
        more += [f"records in {source.records!r}"] if source.records else []
        more += [f"cells end at {source.delimiter!r}"] if source.delimiter else []
    more += ["bad records are skipped"] if source.bad_records == "skip" else []
    if any(file.format == "text" for file in found):
        wrapped = ", as lines are wrapped" if source.unit != "line" else ""
        more.append(f"a document is a {source.unit}{wrapped}")
    return f"{where}: {', '.join(more)}"


_NAMES = {
    "text": "plain text", "jsonl": "JSON Lines", "json": "JSON", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow",
}  # fmt: skip


def _common(source: Source, found: Sequence[_File]) -> dict[str, str]:
    """The keys that all files of a source need. Raises CorpusError where two need different ones."""
    keys: dict[str, str] = {}
    first: dict[str, Path] = {}
    for file in found:
        for key, value in file.keys.items():
            if keys.setdefault(key, value) == value:
                first.setdefault(key, file.path)
            elif key in ("bad_records", "encoding_errors"):
                keys[key] = max(value, keys[key])  # "replace" and "skip" are after "refuse"
            else:
                raise CorpusError(
                    f"{source.path}: files of different kinds: {key} is {keys[key]!r} for {first[key].name} and "
                    f"{value!r} for {file.path.name}; put them into different folders, and name each with --corpus"
                )
    return keys


# -- one file --------------------------------------------------------------------------------------


def _look(path: Path) -> _File:
    """Detect one file. Raises CorpusError."""
    _, kind, compression = parts(path)
    file = _File(path, kind, path.stat().st_size)
    if not file.size:
        return file
    reader = Input(SourceFile(ReadSettings(format="text", compression=compression, name=""), str(path), "", file.size))
    raw = b"".join(islice(reader.chunks(), SAMPLE // CHUNK))
    file.share = min(1.0, reader.done / file.size)
    for magic, what in _NOT_TEXT.items():
        if raw.startswith(magic):
            raise CorpusError(f"{path}: is {what}")
    for magic, suffix in _COMPRESSED.items():
        if raw.startswith(magic):
            raise CorpusError(f"{path}: is compressed, but its name does not show it; rename it to {path.name}{suffix}")
    table = "parquet" if raw.startswith(b"PAR1") else "arrow" if raw.startswith(b"ARROW1") else ""
    if table or kind in ("parquet", "arrow"):
        _table(file, table or kind, compressed=bool(compression))
    else:
        text = _decoded(file, raw)
        file.format = _format(text, kind, path)
        _PARSERS[file.format](file, text, file.share == 1)
        if "\0" in text:
            file.keys["bad_records"] = "skip"
        if not all(map(is_unicode, file.texts)):
            file.keys["encoding_errors"] = "replace"
    file.letters = sum(map(arabic_letters, file.texts))
    if file.texts:
        file.keys["format"] = "auto" if file.format == kind else file.format
    return file


def _decoded(file: _File, raw: bytes) -> str:
    """The sample as text, without a byte order mark; sets the file's encoding. Raises CorpusError."""
    encoding, errors = "utf_8", "strict"
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(raw, final=False)
    damaged = text.count("\ufffd")
    if "\0" in text or damaged > len(_ARABIC.findall(text)):
        best = from_bytes(raw[: SAMPLE // 16], cp_isolation=ENCODINGS).best()
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
        return "csv" if _has_header(text) else "text"
    return kind


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list | str)
    except (ValueError, RecursionError):
        return False


def _whole_lines(text: str, complete: bool) -> list[str]:
    """The lines of a sample, without the last one where that may be cut."""
    lines = split(text)
    return lines if complete or len(lines) < 2 else lines[:-1]


# -- plain text ------------------------------------------------------------------------------------


def _plain(file: _File, text: str, complete: bool) -> None:
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
    inner = [len(_MARKS.sub("", line).strip()) for block in blocks for line in block[:-1]]
    ends = [line.rstrip()[-1] for block in blocks for line in block[:-1]]
    if len(inner) < 5:
        return False
    width = sorted(inner)[int(len(inner) * 0.95)]
    full = sum(length >= 0.75 * width for length in inner) / len(inner)
    stopped = sum(end in ".؟?!۔:" for end in ends) / len(ends)
    return full >= 0.75 and stopped < 0.5 and 20 <= width <= 160


def _unit(found: Sequence[_File], files: int) -> dict[str, str]:
    """The unit of plain text: paragraphs or files where lines are wrapped, and there are enough of them."""
    wrapped = sum(file.size for file in found if file.wrapped)
    if 2 * wrapped <= sum(file.size for file in found):
        return {}
    paragraphs = [text for file in found for text in file.units["paragraph"]]
    if len(paragraphs) >= max(ENOUGH, 2 * len(found)):
        return {"unit": "paragraph"}
    return {"unit": "file"} if files >= ENOUGH else {}


ENOUGH = 30  # documents that can be divided into training, validation and test text


# -- records ---------------------------------------------------------------------------------------


def _json_lines(file: _File, text: str, complete: bool) -> None:
    lines = _whole_lines(text, complete)
    records, bad = [], 0
    for line in lines:
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError):
                bad += 1
    _choose(file, {"": records}, _holds_arabic(records), damaged=bad > 0)
    file.keys.pop("records", None)


def _json(file: _File, text: str, complete: bool) -> None:
    try:
        value = json.loads(text if complete else _closed(text))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{file.path}: not JSON ({error}); correct it, or name other files") from None
    _choose(file, _lists(value), _holds_arabic(value), complete)


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


def _lists(value: Any, depth: int = 4) -> dict[str, list[Any]]:
    """Every list of records in a JSON value, by its path as `records` names it."""
    found = {"": value} if isinstance(value, list) else {}
    if not depth or not isinstance(value, list | dict):
        return found
    children = list(value.values()) if isinstance(value, dict) else value
    inner = [_lists(child, depth - 1) for child in children if isinstance(child, list | dict)]
    if isinstance(value, dict):
        keys = [key for key, child in value.items() if isinstance(child, list | dict)]
        for key, lists in zip(keys, inner, strict=True):
            if key and "." not in key and key != "*":
                found |= {_dotted(key, path): records for path, records in lists.items()}
    if inner and len(inner) == len(children):  # a path with * has to be there in each of them
        for path in inner[0]:
            if len(inner) > 1 and all(path in lists for lists in inner):
                found[_dotted("*", path)] = [record for lists in inner for record in lists[path]]
    return found


def _dotted(key: str, path: str) -> str:
    return f"{key}.{path}" if path else key


def _choose(
    file: _File, lists: dict[str, list[Any]], arabic: bool = False, complete: bool = True, damaged: bool = False
) -> None:
    """Choose the list and the field with the most Arabic; every list of an object, where one of them is not most.

    Where the sample is not `complete`, the last record may be cut. Some records may be `damaged`, and there may be
    `arabic` that is in none. Raises CorpusError where it is.
    """
    scores: dict[tuple[str, str], int] = {}
    for place, found in lists.items():
        for field_, texts in _fields(found).items():
            scores[place, field_] = sum(map(arabic_letters, texts))
    names = {field_: None for _, field_ in scores if field_}
    if not scores or not max(scores.values()):
        if arabic:
            raise CorpusError(
                f"{file.path}: its Arabic text is in no field of a list of records; write a file with one "
                '{"text": "..."} per line, and the suffix .jsonl'
            )
        file.keys["fields"] = ", ".join(list(names)[:12])
        return

    def rank(choice: tuple[str, str]) -> float:  # the first of equals: `max` keeps the order
        return scores[choice] * 0.8 ** choice[0].split(".").count("*")

    path, chosen = max(scores, key=rank)
    records = lists[path]
    file.keys |= {"text": chosen, "records": path}
    file.texts = _fields(records)[chosen]
    whole = records[: None if complete else -1]
    damaged = damaged or not all(_is_text_or_null(record, chosen) for record in whole)
    file.keys["bad_records"] = "skip" if damaged else "refuse"


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


def _holds_arabic(value: Any) -> bool:
    return arabic_letters(json.dumps(value, ensure_ascii=False)) > 0


def _is_text_or_null(record: Any, path: str) -> bool:
    try:
        return isinstance(picked(record, path), str | None)
    except KeyError:
        return False


def _csv(file: _File, text: str, complete: bool) -> None:
    lines = _whole_lines(text, complete)
    delimiter, rows = _table_of(lines)
    header, body = rows[0], rows[1:]
    whole = [row for row in body if len(row) == len(header)]
    columns = [[row[place] for row in whole] for place in range(len(header))]
    scores = [sum(map(arabic_letters, cells)) for cells in columns]
    if not any(scores):
        file.keys["fields"] = ", ".join(header[:12])
        return
    place = scores.index(max(scores))
    name = header[place]
    is_name = _HEADER.fullmatch(name) and len(name.split()) < 4 and header.count(name) == 1
    if not is_name or any(cell.strip().isdigit() for cell in header):
        names = delimiter.join("text" if n == place else f"column{n + 1}" for n in range(len(header)))
        raise CorpusError(
            f"{file.path}: its first line, {delimiter.join(header)[:40]!r}, does not name the columns; a first line "
            f"has to, such as {names!r}"
        )
    usual = "\t" if ".tsv" in [suffix.lower() for suffix in file.path.suffixes[-2:]] else ","
    file.keys["delimiter"] = "" if delimiter == usual else delimiter
    damaged = len(whole) < len(body) or not _is_strict(lines, delimiter, complete)
    file.keys |= {"text": name, "bad_records": "skip" if damaged else "refuse"}
    file.texts = columns[place]


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
    """The delimiter with which most rows are as wide as the first one, at least two cells, and the rows."""
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
    return ",", [[line] for line in lines if line.strip()]


def _has_header(text: str) -> bool:
    """Whether a text without a telling suffix is a table: its first line names columns, and others are as wide."""
    lines = split(text)[:200]
    delimiter, rows = _table_of(lines)
    names = all(re.fullmatch("[A-Za-z_][A-Za-z0-9_ ]*", cell.strip()) for cell in rows[0]) if rows else False
    return len(rows) > 2 and len(rows[0]) > 1 and names and bool(delimiter)


def _table(file: _File, kind: str, compressed: bool) -> None:
    """Parquet and Arrow: the column with the most Arabic of the first rows."""
    file.format = kind
    if compressed:
        raise CorpusError(f"{file.path}: {_NAMES[kind]} is compressed inside already; decompress the file")
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
        raise CorpusError(f"{file.path}: not {_NAMES[kind]} ({str(error).splitlines()[0][:120]})") from None
    if batch is None:
        return
    rows = batch.slice(0, ROWS).to_pylist()
    file.share = len(rows) / max(total, batch.num_rows)
    _choose(file, {"": rows})
    file.keys.pop("records", None)
    file.keys.pop("bad_records", None)


_PARSERS = {"text": _plain, "jsonl": _json_lines, "json": _json, "csv": _csv}
