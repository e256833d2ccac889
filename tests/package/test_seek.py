from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read, read_tensor_rows
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES
from tests.flows.cli.command import qalam
from tests.small_package import edit, export, row_of


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_missing_rows_and_files_are_reported(package: Path) -> None:
    for name, row, message in (
        ("embedding.weight", 12, "has the rows 0 to 11, not 12"),
        ("embedding.weight", -1, "has the rows 0 to 11, not -1"),
        ("no_such", 0, 'there is no tensor "no_such"'),
    ):
        with pytest.raises(PackageError, match=message):
            row_of(package, name, row)
    (package / "weights.py").write_bytes(b"")
    with pytest.raises(PackageError, match="empty"):
        row_of(package, "embedding.weight", 0)
    (package / "weights.py").unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        row_of(package, "embedding.weight", 0)


@pytest.mark.parametrize("limit", [10_000_000, 2000])
@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_tensor_is_read_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, limit: int
) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", limit)
    folder = export(tmp_path / "model", dtype=dtype)
    assert (len(reader.weight_files(folder)) > 1) == (limit == 2000)
    for path in reader.weight_files(folder):  # in every tensor a comment, and in some a row by hand
        text = re.sub(
            rb'(, 8\), \d+, \d+, \(\n[^\n]+\n)        ["(][^\n]+',
            rb"\1  [0.1, -1, 2e-3, -0, 0.25, 1, -0.0, 7],",
            path.read_bytes(),
        )
        path.write_bytes(text.replace(b", (\n", b", (\n        # read me\n"))
    assert b"[0.1" in (folder / "weights.py").read_bytes()
    for name, tensor in read(folder).weights.items():
        assert same(read_tensor_rows(folder, name), tensor), name
        for start, stop in ((0, 1), (2, 2), (3, len(tensor)), (1, 6), (len(tensor) - 1, len(tensor))):
            assert same(read_tensor_rows(folder, name, start, stop), tensor[start:stop]), (name, start, stop)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_edited_rows_with_an_unchanged_total_size(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    lines = (folder / "weights.py").read_bytes().split(b"\n")
    start = next(number for number, line in enumerate(lines) if b'"embedding.weight"' in line) + 1
    width = len(lines[start]) + 1
    lines[start + 2 : start + 4] = [b"[1,1,1,1,1,1,1,1],", b"[2,2,2,2,2,2,2,2],#".ljust(2 * width - 20, b"x")]
    (folder / "weights.py").write_bytes(b"\n".join(lines))
    expected = read(folder).weights["embedding.weight"]
    for first in range(12):
        assert same(row_of(folder, "embedding.weight", first), expected[first])
        for stop in range(first, 13):
            assert same(read_tensor_rows(folder, "embedding.weight", first, stop), expected[first:stop])


def test_reading_a_tensor_opens_only_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 2000)
    folder = export(tmp_path / "model")
    expected = read(folder).weights["blocks.0.fc1.weight"]
    holding = [path for path in reader.weight_files(folder) if b'"blocks.0.fc1.weight"' in path.read_bytes()]
    assert len(holding) > 1
    for path in reader.weight_files(folder):
        if path not in holding:  # its first header still names another tensor
            path.write_bytes(path.read_bytes().partition(b", (\n")[0] + b", (\n        damaged\n")
    opened: list[str] = []
    original = reader.Lines.__init__

    def counting(self: reader.Lines, path: Path, *span: int) -> None:
        opened.append(path.name)
        original(self, path, *span)

    monkeypatch.setattr(reader.Lines, "__init__", counting)
    assert same(read_tensor_rows(folder, "blocks.0.fc1.weight"), expected)
    assert opened == [path.name for path in holding]
    opened.clear()
    assert same(read_tensor_rows(folder, "blocks.0.fc1.weight", 0, 2), expected[:2])
    assert opened == [holding[0].name]


def test_a_damaged_tensor_does_not_prevent_reading_another(package: Path) -> None:
    expected = read(package).weights
    edit(
        package / "weights.py",
        '"blocks.0.out.bias": ("dec", (8,), 0, 8, (\n',
        '"blocks.0.out.bias": ("dec", (8,), 0, 8, (\nx\n',
    )
    assert same(read_tensor_rows(package, "blocks.0.fc1.weight"), expected["blocks.0.fc1.weight"])
    assert same(read_tensor_rows(package, "embedding.weight"), expected["embedding.weight"])
    with pytest.raises(PackageError, match=r"^weights\.py:0: not a number; .*$"):
        read_tensor_rows(package, "blocks.0.out.bias")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('(12, 8), 0, 12, (\n', '(12, 9), 0, 12, (\n', r"is \(12, 9\), but config\.py requires \(12, 8\)"),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 11, (\n', "a row too many"),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 13, (\n', "has 12 rows, not 0 \\+ 13"),
        ('(12, 8), 0, 12, (\n        "', '(12, 8), 0, 12, (\n        # "', "the file ends inside a tensor"),
        ('("f32", (12, 8)', '("f64", (12, 8)', 'cannot be stored as "f64"'),
        ('(12, 8), 0, 12, (\n        "', '(12, 8), 0, 12, (\n        "!', r"^weights\.py:0: "),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 12, (\n# \u202e\n', r"hidden character U\+202E"),
        ('"embedding.weight"', '"embedding_weight"', 'row 0 of "embedding.weight" is missing'),
    ],
)  # fmt: skip
def test_a_damaged_tensor_is_refused(package: Path, old: str, new: str, message: str) -> None:
    edit(package / "weights.py", old, new)
    with pytest.raises(PackageError, match=message) as caught:
        read_tensor_rows(package, "embedding.weight")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("weights.py:0: ")


def test_unknown_tensors_and_rows_are_refused(package: Path) -> None:
    for start, stop, wanted in ((0, 13, "0 to 12"), (-1, 2, "-1 to 1"), (3, 2, "3 to 1"), (12, 13, "12")):
        with pytest.raises(PackageError, match=rf"^weights\.py:0: .* has the rows 0 to 11, not {wanted}$"):
            read_tensor_rows(package, "embedding.weight", start, stop)
    for rows in ((), (0, 1)):
        with pytest.raises(PackageError, match=r'^weights\.py:0: there is no tensor "no_such"; there are embedding\.'):
            read_tensor_rows(package, "no_such", *rows)
    (package / "weights.py").unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        read_tensor_rows(package, "embedding.weight")


def test_qalam_show_reads_only_the_bytes_of_a_row(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[int, ...]] = []
    original = reader.Lines.__init__

    def counting(self: reader.Lines, path: Path, *span: int) -> None:
        spans.append(span)
        original(self, path, *span)

    text = (package / "weights.py").read_text(encoding="utf-8")
    line = text.split('"embedding.weight"')[1].split("\n")[6]
    monkeypatch.setattr(reader.Lines, "__init__", counting)
    done = qalam("show", package, "embedding.weight", "--row", "5")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()[-1].split()) == 8
    start = len(text.partition(line)[0].encode())
    assert spans == [(start, start + len(line) + 1)]
