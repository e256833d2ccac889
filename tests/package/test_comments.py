"""Weights files name the tokens of their rows; no reader reads them otherwise for it."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read, read_tensor_rows, verify
from qalam_core.package.comments import lines_of, rows_in, word_comment
from qalam_core.package.editing.rows import add_token, set_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.rows import MATRIX_TYPES
from tests.small_package import CONFIG, WORDS, export, named_rows, vocabulary, weights

EMBEDDING = "embedding.weight"
NAMES = re.compile(r'        # rows (\d+) to (\d+):((?: "(?:[^"\\]|\\.)*")*)( \.\.\.)? * #')


def named(folder: Path, dtype: str = "f32", count: int = 150, dim: int = 32, tied: bool = True) -> Path:
    """A package of so many words, two of which have characters that an editor hides or displays elsewhere."""
    config = replace(CONFIG, vocab_size=count, dim=dim, tied=tied, num_layers=1)
    words = (*WORDS[:4], "\u202eقلب\u2066", "\x1b[31m", *(f"كلمة{number}" for number in range(6, count)))
    return export(folder, config=config, weights=weights(config), vocabulary=vocabulary(words=words), dtype=dtype)


def comments(folder: Path) -> Iterator[tuple[int, int, list[str], bool]]:
    """(first row, last row, words as written, whether more are missing) of each comment, in order."""
    for path in reader.weight_files(folder):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if found := NAMES.fullmatch(line):
                yield int(found[1]), int(found[2]), re.findall(r'"(?:[^"\\]|\\.)*"', found[3]), bool(found[4])


def check_words(folder: Path, tensors: int = 1) -> None:
    """Each comment names words of its rows, and the comments of a tensor cover all rows once."""
    words = read(folder).vocabulary.words
    covered: list[int] = []
    for first, last, written, missing in comments(folder):
        covered += range(first, last + 1)
        assert written == [quote(word) for word in words[first : first + len(written)]]
        assert missing == (len(written) < last + 1 - first)
    assert covered == [*range(len(words))] * tensors


@pytest.mark.parametrize("limit", [10_000_000, 20_000])
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_the_words_of_rows_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, limit: int) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", limit)
    folder = named(tmp_path / "model", dtype, tied=False)
    check_words(folder, 2)
    files = reader.weight_files(folder)
    assert (len(files) > 1) == (limit == 20_000)
    assert all(path.stat().st_size <= limit for path in files)
    text = b"".join(path.read_bytes() for path in files)
    added = sum(len(line) + 1 for line in text.split(b"\n") if line.startswith(b"        # rows "))
    assert 0 < added < 0.02 * len(text) + (0 if limit > 20_000 else 64 * len(files) * 10)
    assert read(folder, strict=True).weights.keys()
    assert verify(folder) == []


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_rows_are_found_below_comments(tmp_path: Path, dtype: str) -> None:
    folder = named(tmp_path / "model", dtype)
    expected = read(folder).weights[EMBEDDING]
    strictly = reader.read_weights(folder, read(folder).config.tensor_shapes(), block=0)
    assert strictly[EMBEDDING].tobytes() == expected.tobytes()
    for start, stop in [*((row, row + 1) for row in range(150)), (0, 64), (63, 65), (64, 128), (10, 140), (149, 150)]:
        assert read_tensor_rows(folder, EMBEDDING, start, stop).tobytes() == expected[start:stop].tobytes()


def test_one_row_is_read_and_not_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = named(tmp_path / "model")
    taken: list[int] = []
    original = reader.Lines.__init__

    def counting(self: reader.Lines, path: Path, start: int, end: int) -> None:
        taken.append(end - start)
        original(self, path, start, end)

    monkeypatch.setattr(reader.Lines, "__init__", counting)
    for row in (0, 63, 64, 100, 149):
        read_tensor_rows(folder, EMBEDDING, row, row + 1)
    assert taken == [MATRIX_TYPES["f32"].width(32)] * 5


def lines_moved(lines: list[bytes], chance: random.Random) -> None:
    """Exchange, remove, repeat or add lines of the embedding; comments have the length of rows."""
    begin = next(number for number, line in enumerate(lines) if b'"embedding.weight"' in line) + 1
    marks = [number for number, line in enumerate(lines) if line.startswith(b"        # rows ")]
    at, other = chance.choice(marks), begin + chance.randrange(60)
    action = chance.randrange(5)
    if action == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 1:
        lines.insert(other, lines.pop(at))
    elif action == 2:
        lines.insert(other, lines[at])
    elif action == 3:
        del lines[at]
    else:
        lines[other] = lines[other] + b"  # mine"


@pytest.mark.parametrize("dtype", ["f32", "i8"])
def test_all_readers_agree_wherever_comments_are_moved(tmp_path: Path, dtype: str) -> None:
    chance = random.Random(dtype)
    with named_rows(4):
        folder = named(tmp_path / "model", dtype, count=60)
        shapes, whole = read(folder).config.tensor_shapes(), (folder / "weights.py").read_bytes()
        for _ in range(12):
            lines = whole.split(b"\n")
            for _ in range(chance.choice((1, 1, 2))):
                lines_moved(lines, chance)
            (folder / "weights.py").write_bytes(b"\n".join(lines))
            rows = reader.read_weights(folder, shapes, block=0)[EMBEDDING]
            for block in (reader.BLOCK, 800):
                assert reader.read_weights(folder, shapes, block=block)[EMBEDDING].tobytes() == rows.tobytes()
            for row in range(60):
                assert read_tensor_rows(folder, EMBEDDING, row, row + 1).tobytes() == rows[row : row + 1].tobytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("كلمة70", "كلم\u202e0", "weights.py:72: hidden character U+202E"),
        ("كلمة70", "كلم\u061c0", "weights.py:72: hidden character U+061C"),
        ("كلمة70", "كلم\u00a0a0", "weights.py:72: hidden character U+00A0"),
        ("كلمة70", "كلم\u200d0", "weights.py:72: hidden character U+200D"),
        ("كلمة70", "كلم\x1b00", "weights.py:72: hidden character U+001B"),
        ("        # rows 64", "       \t# rows 64", "weights.py:72: hidden character U+0009"),
        ("        # rows 64", "        + rows 64", "weights.py:72: not a matrix row"),
    ],
)
def test_what_a_comment_may_not_have_is_refused_alike(tmp_path: Path, old: str, new: str, message: str) -> None:
    folder = named(tmp_path / "model", dim=96)
    path = folder / "weights.py"
    text = path.read_text(encoding="utf-8")
    assert f'"{old}"' in text or old in text
    at = text.index(old, text.index("        # rows 64 "))
    path.write_bytes((text[:at] + new + text[at + len(old) :]).encode())
    for block in (reader.BLOCK, 0):
        with pytest.raises(reader.FormatError) as caught:
            reader.read_weights(folder, read_shapes(folder), block=block)
        assert str(caught.value).startswith(message), block


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from qalam_core.package.runtime.data_reader import read_config

    return read_config(folder / "config.py").tensor_shapes()


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    folder = named(tmp_path / "model", dim=96)
    text = (folder / "weights.py").read_bytes()
    (folder / "weights.py").write_bytes(text.replace("كلمة70".encode(), b"\xd8\xd8\xd8" + "مة70".encode() + b"\xd8", 1))
    with pytest.raises(PackageError, match=r"^weights\.py:72: not UTF-8"):
        read(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [150, 127, 128])
def test_a_new_token_is_named(tmp_path: Path, tied: bool, count: int) -> None:
    folder = named(tmp_path / "model", count=count, dim=96, tied=tied)
    changes = add_token(folder, "جديدة")
    check_words(folder, 1 if tied else 2)
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    row = read(folder).weights[EMBEDDING][count]
    assert MATRIX_TYPES["f32"].encode(row[None]).tobytes().decode().rstrip() == lines[changes[0].line - 1].rstrip()
    assert row_by_seeking(folder, count).tobytes() == row.tobytes()
    seal(folder, "a word")
    assert verify(folder) == []


def row_by_seeking(folder: Path, row: int) -> np.ndarray:
    return read_tensor_rows(folder, EMBEDDING, row, row + 1)[0]


def test_a_renamed_word_is_named_after_sealing(tmp_path: Path) -> None:
    folder = named(tmp_path / "model", dim=96)
    words = folder / "vocab.py"
    words.write_text(words.read_text(encoding="utf-8").replace('"كلمة70"', '"غيرها"'), encoding="utf-8", newline="\n")
    before = read(folder).weights[EMBEDDING]
    seal(folder, "another word")
    check_words(folder)
    assert (read(folder, strict=True).weights[EMBEDDING] == before).all()


def test_edits_keep_comments(tmp_path: Path) -> None:
    folder = named(tmp_path / "model", dim=96)
    set_row(folder, EMBEDDING, "كلمة70", [0.125] * 96)
    path = folder / "weights.py"
    own = path.read_bytes().replace(b"        # rows 64 to", b"        # mine: rows 64 to")
    path.write_bytes(own)
    check = read(folder).weights[EMBEDDING]
    assert row_by_seeking(folder, 70).tobytes() == check[70].tobytes() == np.full(96, 0.125, np.float32).tobytes()
    seal(folder, "a row")
    assert b"        # mine: rows 64 to" in path.read_bytes()


@pytest.mark.parametrize("width", [64, 100, 694])
def test_a_comment_is_as_long_as_a_row(width: int) -> None:
    for words in (("ا",), ("a" * 1000,), tuple(f" كلمة{number}" for number in range(64)), ('"\\\u202e',) * 64):
        line = word_comment(123_456_789, words, width)
        assert len(line) == width
        assert line.startswith(b"        # rows 123456789 to ")
        assert line.endswith(b" #\n")
        assert "\u202e" not in line.decode()


def test_the_lines_of_rows() -> None:
    assert all(rows_in(lines_of(rows)) == rows for rows in range(1000))
    assert all(lines_of(rows_in(lines)) <= lines for lines in range(1000))
