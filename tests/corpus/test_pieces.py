"""Pieces of large files: the same documents as the whole file, and cuts that come together behind a change."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.corpus import pieces as module
from qalam_core.corpus import sources
from qalam_core.corpus.pieces import growth, pieces
from qalam_core.corpus.prepare import PrepareSettings
from qalam_core.corpus.readers import DOCUMENTS, ingest
from qalam_core.corpus.sources import ReadSettings, SourceFile, resolve
from qalam_core.errors import CorpusError
from qalam_core.pipeline.filter import Filter
from qalam_core.recipe import Source
from qalam_core.store import Artifact
from tests.conftest import examples, tiny_recipe


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few kilobytes, read in smaller parts."""
    for name, value in (("LINES", 8), ("_READ", 512)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sources, "PIECE_BYTES", 2_000)


def line(rng: random.Random) -> str:
    return " ".join("".join(rng.choices("ابتثجحخدذرزسشصض", k=5)) for _ in range(rng.randint(1, 30)))


def documents(path: Path, out: Path, **options: str) -> list[str]:
    found: list[str] = []
    for number, file in enumerate(resolve([Source(path=str(path), **options)])):
        ingest(file, out / str(number))
        with pa.memory_map(str(out / str(number) / DOCUMENTS)) as mapped, pa.ipc.open_file(mapped) as reader:
            found += reader.read_all().column("text").to_pylist()
    return found


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_documents_are_those_of_the_whole_file(tmp_path: Path, unit: str, end: str) -> None:
    rng = random.Random(1)
    lines = [rng.choice([line(rng), line(rng), "", " \t"]) for _ in range(400)]
    path = tmp_path / "a.txt"
    path.write_bytes(end.join(lines).encode())
    found = documents(path, tmp_path / "out", unit=unit)
    assert len(resolve([Source(path=str(path), unit=unit)])) > 4
    if unit == "line":
        assert found == [text for text in lines if text.strip()]
    else:
        blocks = "\n".join(text if text.strip() else "" for text in lines).split("\n\n")
        assert found == [block.strip("\n") for block in blocks if block.strip()]


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 299), st.booleans())
def test_a_change_is_read_again_only_where_it_is(seed: int, place: int, added: bool) -> None:
    rng = random.Random(seed)
    lines = [line(rng) + "\n" for _ in range(300)]
    changed = [*lines[:place], *(["سطر جديد\n"] if added else []), *lines[place + (not added) :]]

    def cut(rows: list[str]) -> list[module.Piece]:
        return list(pieces(io.BytesIO("".join(rows).encode()), 2_000, blank=False))

    before, after = cut(lines), cut(changed)
    for rows, found in ((lines, before), (changed, after)):
        data = "".join(rows).encode()
        assert [piece.start for piece in found] == [0, *(piece.start + piece.size for piece in found)][:-1]
        for piece in found:
            part = data[piece.start : piece.start + piece.size]
            assert hashlib.sha256(part).hexdigest() == piece.digest
            assert data[: piece.start].count(b"\n") + 1 == piece.first_line
            assert len(part) < 2_000 + 120 * 330  # a line is at most 330 bytes; 120 without a cut are very unlikely
    at = len("".join(lines[:place]).encode())
    same = {piece.digest for piece in before if piece.start + piece.size <= at}
    assert same <= {piece.digest for piece in after}, "what is before a change stays"


def test_an_appended_line_changes_the_last_piece_alone(tmp_path: Path) -> None:
    rng = random.Random(2)
    path = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": line(rng)}, ensure_ascii=False) for _ in range(300)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    before = resolve([Source(path=str(path))])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "سطر جديد"}, ensure_ascii=False) + "\n")
    after = resolve([Source(path=str(path))])
    assert [one.digest for one in before[:-1]] == [one.digest for one in after[: len(before) - 1]]
    assert len(before) > 4


def test_errors_name_the_line_and_the_byte_of_the_file(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [json.dumps({"text": line(rng)}, ensure_ascii=False).encode() for _ in range(200)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([*rows, b'{"text": 1}', b'{"text": "\xff"}']) + b"\n")
    *_, last = resolve([Source(path=str(path))])
    with pytest.raises(CorpusError, match=rf"{path.name}: byte {path.read_bytes().index(bytes([255]))} is not UTF-8"):
        ingest(last, tmp_path / "out")
    path.write_bytes(b"\n".join([*rows, b'{"text": 1}']) + b"\n")
    *_, last = resolve([Source(path=str(path))])
    with pytest.raises(CorpusError, match=rf"{path.name}:201: field 'text' is a number"):
        ingest(last, tmp_path / "out")


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.txt", "gone.csv"])
def test_a_file_that_was_deleted_since_it_was_found_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sources, "expand", lambda _: ([tmp_path / name], {}))
    with pytest.raises(CorpusError, match=rf"{name} \(cannot be read \(No such file"):
        resolve([Source(path=str(tmp_path / "*"))])


@given(st.integers(0, 4 * 10**12))
def test_parts_grow_with_the_corpus_in_steps(size: int) -> None:
    times = growth(size)
    assert times == 1 or size > 32 * 10**9, "a corpus below the first step is cut as ever"
    if 32 * 10**9 < size <= 2 * 10**12:
        assert 1_000 <= size / (16 * 10**6 * times) <= 2_000
    assert growth(2 * size) in (times, 2 * times)
    assert growth(size, most=16) == min(times, 16)


def test_pieces_grow_with_what_all_sources_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP_BYTES", 100_000)
    rng = random.Random(4)
    text = "".join(line(rng) + "\n" for _ in range(500))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "one" / "a.bin").write_bytes(bytes(1_000_000))  # passed over
    size = len(text.encode())
    assert 60_000 < size < 100_000
    one = Source(path=str(tmp_path / "one"))
    before = resolve([one, Source(path=str(tmp_path / "one" / "a.txt"))])  # one file, although it is named twice
    assert all(2_000 <= file.size < 6_000 for file in before[:-1])
    for number in range(2):
        (tmp_path / f"{number}.txt").write_bytes(b"x" * 100_000)
    after = resolve([one, *(Source(path=str(tmp_path / f"{number}.txt")) for number in range(2))])
    cut = [file for file in after if Path(file.path).name == "a.txt"]
    assert all(8_000 <= file.size < 12_000 for file in cut[:-1])
    assert len(cut) > 2
    assert sum(file.size for file in cut) == sum(file.size for file in before) == size


def test_groups_grow_with_what_all_sources_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of larger groups are ends of smaller ones."""
    read = ReadSettings(format="text", compression="", name="stories")
    files = [SourceFile(read, str(n), hashlib.sha256(b"%d" % n).hexdigest(), 1_000_000) for n in range(2_000)]
    documents = [Artifact("ingest", file.digest, tmp_path) for file in files]

    def ends() -> set[str]:
        found = Filter.all_of(tiny_recipe(tmp_path), files, documents)
        assert [made for stage in found for made in stage.documents] == documents
        return {stage.documents[-1].digest for stage in found}

    small = ends()
    monkeypatch.setattr(module, "STEP_BYTES", 500_000_000)  # a quarter of what they hold
    large = ends()
    assert large < small
    assert 90 < len(small) < 160
    assert 18 < len(large) < 50


def test_shards_grow_unless_the_recipe_names_their_size(tmp_path: Path) -> None:
    corpus = tiny_recipe(tmp_path).corpus
    assert corpus.shard_mb == 0
    named = corpus.model_copy(update={"shard_mb": 16})
    assert PrepareSettings.of(corpus, 32 * 10**9) == PrepareSettings.of(named, 10**12)
    assert [PrepareSettings.of(corpus, size).shard_mb for size in (0, 33 * 10**9, 10**12)] == [16, 32, 256]
