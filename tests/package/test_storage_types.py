"""A storage type is one entry of MATRIX_TYPES, which is sufficient for all functions on packages."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read, read_tensor_rows, verify
from qalam_core.package.editing.diff import diff
from qalam_core.package.editing.rows import add_token, copy_row, scale_row, set_row, set_value
from qalam_core.package.editing.seal import seal
from qalam_core.package.interop.storage import convert
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.codings import Base64
from qalam_core.package.runtime.rows import MATRIX_TYPES, Floating, RowType, Scaled
from tests.small_package import CONFIG, contents, export, row_of, weights

EMBEDDING = "embedding.weight"
ROW = [0.5, -1.0, 0.25, 0.0, 2.0, 64.0, -0.125, 1.5]  # exact in each of the types below


def _widen(values: np.ndarray, out: np.ndarray) -> None:
    out[:] = values


NEW_TYPES: dict[str, RowType] = {
    "f64x": Floating("f64x", "<f8", lambda rows: rows.astype("<f8"), _widen),
    "f16be": Floating("f16be", ">f2", lambda rows: rows.astype(">f2"), _widen),
    "i8x": Scaled("i8x", Base64("<i1")),
}


@pytest.fixture(params=NEW_TYPES)
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RowType:
    row_type = NEW_TYPES[request.param]
    monkeypatch.setitem(MATRIX_TYPES, row_type.name, row_type)
    return row_type


def expected(row_type: RowType) -> dict[str, np.ndarray]:
    return {name: row_type.rounded(tensor) if tensor.ndim == 2 else tensor for name, tensor in weights().items()}


def test_an_unknown_storage_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r'^dtype "f64x": known are f32, f16, bf16, i8, q8$'):
        export(tmp_path / "model", dtype="f64x")


def test_a_new_type_is_written_and_read(tmp_path: Path, new: RowType) -> None:
    folder = export(tmp_path / "model", dtype=new.name)
    package = read(folder, strict=True)
    assert package.manifest["dtype"] == new.name
    for name, tensor in expected(new).items():
        assert package.weights[name].tobytes() == tensor.tobytes(), name
    strictly = reader.read_weights(folder, CONFIG.tensor_shapes(), block=0)
    assert all(strictly[name].tobytes() == tensor.tobytes() for name, tensor in package.weights.items())
    assert verify(folder) == []
    again = export(tmp_path / "again", dtype=new.name, weights=package.weights)
    assert contents(again) == contents(folder)
    if isinstance(new, Floating):
        text = (folder / "weights.py").read_text(encoding="utf-8").split(f'("{new.name}", (12, 8), 0, 12, (\n')[1]
        row = next(line for line in text.split("\n") if "#" not in line)
        stored = np.frombuffer(base64.b64decode(row.split('"')[1]), new.coding.dtype)
        assert np.array_equal(stored, package.weights[EMBEDDING][0])


def test_rows_of_a_new_type_are_read_by_seeking(tmp_path: Path, new: RowType) -> None:
    folder = export(tmp_path / "model", dtype=new.name)
    for name, tensor in expected(new).items():
        assert read_tensor_rows(folder, name).tobytes() == tensor.tobytes()
        assert read_tensor_rows(folder, name, 3, 7).tobytes() == tensor[3:7].tobytes()
        assert row_of(folder, name, len(tensor) - 1).tobytes() == tensor[-1].tobytes()


def test_rows_of_a_new_type_are_edited_in_its_form(tmp_path: Path, new: RowType) -> None:
    folder = export(tmp_path / "model", dtype=new.name)
    before, old = read(folder), contents(folder)
    changes = [
        set_row(folder, EMBEDDING, "القط", ROW), copy_row(folder, EMBEDDING, "يأكل", "السمك"),
        scale_row(folder, "pos_embedding", 3, 2), set_value(folder, "ln_out.bias", 2, 0, -3),
    ]  # fmt: skip
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    opening = new.opening.decode().strip()[:1]
    texts = [lines[change.line - 1].strip() for change in changes[:3]]
    if isinstance(new, Scaled):
        assert texts.pop(0).startswith("[0.5, -1.0, 0.25, ")  # a scale of its own cannot state these
    assert all(text.startswith(opening) for text in texts)
    after = read(folder)
    assert after.edited == (EMBEDDING, "pos_embedding", "ln_out.bias")
    assert after.weights[EMBEDDING][4].tolist() == ROW
    assert np.array_equal(after.weights[EMBEDDING][5], before.weights[EMBEDDING][6])
    assert np.array_equal(after.weights["pos_embedding"][3], before.weights["pos_embedding"][3] * 2)
    assert verify(folder) == [
        'embedding.weight: 2 of 12 rows changed since export: 4 ("القط"), 5 ("يأكل")',
        "pos_embedding: 1 of 10 rows changed since export: 3",
        "ln_out.bias: 1 of 8 rows changed since export: 2",
    ]
    assert {name for name, text in contents(folder).items() if text != old[name]} == {"weights.py"}
    assert {change.name for change in diff(before, after).tensors} == {EMBEDDING, "pos_embedding", "ln_out.bias"}
    seal(folder, "a type of its own")
    assert verify(folder) == []


def test_a_new_type_supports_new_tokens_and_conversion(tmp_path: Path, new: RowType) -> None:
    folder = export(tmp_path / "model", dtype=new.name)
    add_token(folder, "كلب", ["القط"])
    grown = read(folder)
    assert grown.vocabulary.words[-1] == "كلب"
    assert np.array_equal(grown.weights[EMBEDDING][12], grown.weights[EMBEDDING][4])
    seal(folder, "a dog")
    convert(folder, tmp_path / "f32", "f32")
    assert all(np.array_equal(read(tmp_path / "f32").weights[name], grown.weights[name]) for name in grown.weights)
    convert(tmp_path / "f32", tmp_path / "back", new.name)
    assert all(np.array_equal(read(tmp_path / "back").weights[name], grown.weights[name]) for name in grown.weights)
