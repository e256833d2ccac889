"""The kind of a file: the same documents in files of every kind are read back, with no key given."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from qalam_core.corpus import kinds, lines
from qalam_core.corpus.detect import detect
from qalam_core.errors import CorpusError
from qalam_core.recipe import Source
from tests.corpus.documents import NUMBERED, TEXTS, dumps, read_back, table

KINDS: dict[str, tuple[str, str]] = {  # name -> suffix and content
    "lines": ("txt", "\n".join(TEXTS)),
    "windows line ends": ("txt", "\r\n".join(TEXTS)),
    "blank lines between": ("txt", "\n\n\n".join(TEXTS)),
    "no suffix": ("", "\n".join(TEXTS)),
    "another suffix": ("text", "\n".join(TEXTS)),
    "comma": ("csv", table(",", ["id", "kind", "content"])),
    "semicolon": ("csv", table(";", ["id", "kind", "content", "label"])),
    "bar": ("csv", table("|", ["id", "kind", "text"])),
    "tab": ("tsv", table("\t", ["id", "kind", "النص"])),
    "tab in csv": ("csv", table("\t", ["id", "kind", "body"])),
    "semicolon in tsv": ("tsv", table(";", ["id", "kind", "body"])),
    "table in txt": ("txt", table("\t", ["id", "kind", "body"])),
    "one column": ("csv", "text\n" + "\n".join(f'"{text}"' for text in TEXTS)),
    "records": ("jsonl", "\n".join(dumps({"id": n, "title": "خبر", "content": t}) for n, t in NUMBERED)),
    "nested": ("jsonl", "\n".join(dumps({"translation": {"en": "a text " * 20, "ar": t}}) for t in TEXTS)),
    "string per line": ("jsonl", "\n".join(map(dumps, TEXTS))),
    "escaped": ("jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
    "lines in json": ("json", "\n".join(dumps({"content": text}) for text in TEXTS)),
    "list in jsonl": ("jsonl", dumps([{"content": text} for text in TEXTS], indent=1)),
    "list": ("json", dumps([{"body": text} for text in TEXTS])),
    "strings": ("json", dumps(TEXTS)),
    "under a key": (
        "json",
        dumps({"meta": {"title": "كتاب"}, "chapters": [{"arabic": "باب"}], "hadiths": [{"arabic": t} for t in TEXTS]}),
    ),
    "under keys": ("json", dumps({"data": {"items": [{"t": {"body": text}} for text in TEXTS]}}, indent=2)),
    "object of lists": ("json", dumps({str(n): [{"n": n, "words": t}] for n, t in NUMBERED})),
    "lists in a list": ("json", dumps([{"name": "باب", "verses": [{"text": text}]} for text in TEXTS])),
    "objects of objects": ("json", dumps({str(n): {"verses": [{"text": t}]} for n, t in NUMBERED})),
    "texts that keys count": (
        "json",
        dumps({"juz": [], "verse": {f"verse_{n}": t for n, t in NUMBERED}}),
    ),
    "numbers and texts": ("json", dumps({str(n): text for n, text in NUMBERED})),
    "column by column": (
        "json",
        dumps({"id": {"0": 0, "1": 1}, "text": {str(n): t for n, t in NUMBERED}}),
    ),
    "null among texts": ("json", dumps([{"text": None}, *({"text": text} for text in TEXTS)])),
    "bad record": ("json", dumps([{"text": text} for text in TEXTS] + [{"other": 1}])),
    "damaged line": ("jsonl", "\n".join([*(dumps({"text": text}) for text in TEXTS), '{"text": '])),
    "byte order marks between": ("jsonl", "".join(f"\ufeff{dumps({'text': text})}\n" for text in TEXTS)),
    "wide row": ("csv", table(",", ["id", "kind", "text"]) + "1,2,3,4\n"),
    "no name for the index": ("csv", table(",", ["", "kind", "text"])),
    "NUL": ("txt", "\n".join(TEXTS) + "\n\0\0"),
    "no header": ("tsv", "".join(f"{n}\tخبر\t{text}\n" for n, text in NUMBERED)),
    "no header, text first": ("tsv", "".join(f"{text}\tpos\n" for text in TEXTS)),
    "no header in txt": ("txt", "".join(f"{n}|{n + 1}|{text}\n" for n, text in NUMBERED) + "# a licence\n"),
    "no header, one column": ("csv", "\n".join(TEXTS)),
    "object of records": ("json", dumps({str(n): {"n": n, "body": text} for n, text in NUMBERED})),
    "beside another language": ("json", dumps([{"ur": f"یہ ایک کتاب ہے {t}", "ar": t} for t in TEXTS])),
    "dotted key": ("json", dumps([{"a.b": text} for text in TEXTS])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_with_no_key_given(kind: str, tmp_path: Path) -> None:
    suffix, content = KINDS[kind]
    path = tmp_path / f"texts.{suffix}".rstrip(".")
    path.write_text(content, encoding="utf-8", newline="")
    assert read_back(Source(path=str(path)), tmp_path) == TEXTS
    assert detect(Source(path=str(path))) == detect(Source(path=str(path)))


def test_a_first_line_like_the_others_names_no_columns(tmp_path: Path) -> None:
    path, texts = tmp_path / "texts.csv", ["خبر اليوم", *TEXTS]
    path.write_text("".join(f"{text},خبر\n" for text in texts), encoding="utf-8")
    assert read_back(Source(path=str(path)), tmp_path) == texts
    assert "column 1, and no line names the columns" in detect(Source(path=str(path))).what


def test_one_column_may_have_any_character(tmp_path: Path) -> None:
    path, texts = tmp_path / "texts.csv", [", ".join(TEXTS[: 1 + n % 3]) for n in range(40)]
    path.write_text("\n".join(["text", *texts]), encoding="utf-8")
    assert read_back(Source(path=str(path)), tmp_path) == texts


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "cp1256", "iso8859-6"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["lines", "semicolon", "records", "list"])
def test_every_encoding_of_arabic_is_found(kind: str, encoding: str, tmp_path: Path) -> None:
    suffix, content = KINDS[kind]
    (tmp_path / f"texts.{suffix}").write_bytes(content.encode(encoding))
    assert read_back(Source(path=str(tmp_path / f"texts.{suffix}")), tmp_path) == TEXTS


COMPRESSED: list[tuple[str, Callable[[bytes], bytes]]] = [
    (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)
]  # fmt: skip


@pytest.mark.parametrize(("ending", "compress"), COMPRESSED)
@pytest.mark.parametrize("kind", ["lines", "tab", "nested", "object of lists"])
def test_compressed_files_are_looked_into(
    kind: str, ending: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    suffix, content = KINDS[kind]
    path = tmp_path / f"texts.{suffix}{ending}"
    path.write_bytes(compress(content.encode()))
    assert read_back(Source(path=str(path)), tmp_path) == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_of_arrow(kind: str, tmp_path: Path) -> None:
    rows = pa.table({"id": range(len(TEXTS)), "sent": pa.array([{"ar": text, "en": "a text"} for text in TEXTS])})
    path = tmp_path / f"texts.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path)
    else:
        with ipc.new_file(path, rows.schema) as out:
            out.write_table(rows)
    assert detect(Source(path=str(path))).source.text == "sent.ar"
    assert read_back(Source(path=str(path)), tmp_path) == TEXTS


def test_damaged_text_is_found_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(TEXTS).encode() + b"\n\xd9\n" + TEXTS[0].encode())
    found = detect(Source(path=str(path)))
    assert (found.source.encoding, found.source.encoding_errors) == ("utf-8", "replace")
    assert "replaced" in found.what
    path.write_text("\n".join(TEXTS).encode().decode("latin-1"), encoding="utf-8")
    assert detect(Source(path=str(path))).repair


# -- the sample ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lines", "semicolon", "records", "list", "object of lists", "under a key"])
def test_only_the_beginning_of_a_large_file_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are those of the whole, and so is its size, about, wherever the sample ends."""
    monkeypatch.setattr(kinds, "SAMPLE", 1 << 15)
    monkeypatch.setattr(kinds, "CHUNK", 1 << 13)
    monkeypatch.setattr(lines, "CHUNK", 1 << 13)
    count = (1 << 16) // sum(len(text.encode()) for text in TEXTS)
    texts = [f"{text} {number}" for number in range(count) for text in TEXTS]
    rows = "".join(f"{n};{text};0\n" for n, text in enumerate(texts))
    records = [{"id": n, "kind": "خبر", "content": text} for n, text in enumerate(texts)]
    content = {
        "lines": "\n".join(texts), "semicolon": f"id;content;label\n{rows}",
        "records": "\n".join(map(dumps, records)), "list": dumps(records),
        "object of lists": dumps({"a": records[:80], "b": records[80:]}),
        "under a key": dumps({"chapters": [{"content": "باب"}], "hadiths": records}),
    }[kind]  # fmt: skip
    path = tmp_path / f"texts.{KINDS[kind][0]}"
    path.write_text(content, encoding="utf-8")
    found = detect(Source(path=str(path)))
    assert found.source.bad_records == "refuse"
    assert found.source.encoding_errors == "refuse"
    assert found.documents == pytest.approx(len(texts), rel=0.1)
    assert found.bytes == pytest.approx(sum(len(text.encode()) for text in texts), rel=0.1)
    assert (found.source.text, found.source.records) == {
        "lines": ("text", ""), "object of lists": ("content", "*"), "under a key": ("content", "hadiths"),
    }.get(kind, ("content", ""))  # fmt: skip


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b"", "no Arabic text was found"),
    "English": ("a.txt", b"an English text\n" * 9, "no Arabic text was found"),
    "no field": ("a.jsonl", b'{"title": "a", "body": {"en": "b"}}\n' * 9, r"its fields: title, body\.en"),
    "no list": ("a.json", dumps([[[[[[TEXTS[0]]]]]]]).encode(), "no field of a list of records; write a"),
    "lists in records": (
        "a.jsonl",
        (dumps({"a": [{"b": TEXTS[0]}]}) + "\n").encode() * 9,
        "no field of a list of records",
    ),
    "PDF": ("a.txt", b"%PDF-1.7\n...", "a PDF file; take its text out"),
    "archive": ("a.docx", b"PK\x03\x04\0\0", "a zip archive"),
    "HTML": ("a.txt", b"<!DOCTYPE html><html></html>", "HTML or XML"),
    "compressed": ("a.txt", gzip.compress("\n".join(TEXTS).encode()), "rename it to a.txt.gz"),
    "binary": ("a.txt", bytes(range(256)) * 20, "no text in an encoding"),
    "not JSON": ("a.json", b'{"a": [1, 2', "not JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_line_with_the_file(kind: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as refused:
        detect(Source(path=str(path)))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_field_with_little_of_the_arabic_is_not_chosen(tmp_path: Path) -> None:
    """A title, where the texts are in records of records: a corpus of titles would be silent about the rest."""
    inner = [{"context": text, "qas": [{"question": "ما هذا؟"}]} for text in TEXTS]
    (tmp_path / "a.json").write_text(dumps({"data": [{"title": "قطط", "paragraphs": inner}]}), encoding="utf-8")
    with pytest.raises(CorpusError, match="most of its Arabic text is in no field of a list of records"):
        detect(Source(path=str(tmp_path)))


def test_lines_most_of_which_are_no_json_are_an_error(tmp_path: Path) -> None:
    lines = [dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *(line[1:] for line in lines), "x"]), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl: 41 of the first 81 lines are not JSON \("):
        detect(Source(path=str(tmp_path)))
