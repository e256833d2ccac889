"""The changes of one weights file, as git shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read
from qalam_core.package.editing.rows import add_token, scale_row, set_value
from qalam_core.package.editing.weights_diff import as_text, changes_of, is_weights, read_parts
from qalam_core.package.runtime.rows import MATRIX_TYPES
from tests.small_package import WORDS, edit, export

EMBEDDING = "embedding.weight"


@pytest.mark.parametrize("dtype", [*MATRIX_TYPES])
def test_a_file_alone_has_the_values_of_its_package(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    parts = read_parts(folder / "weights.py")
    for name, tensor in read(folder).weights.items():
        np.testing.assert_array_equal(parts[name].values.reshape(tensor.shape), tensor)


@pytest.mark.parametrize("dtype", [*MATRIX_TYPES])
def test_changed_rows_have_their_words_and_columns(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    before = read_parts(folder / "weights.py")
    old = float(before[EMBEDDING].values[5, 2])
    set_value(folder, EMBEDDING, "يأكل", 2, 0.75)
    scale_row(folder, EMBEDDING, "القط", 1.5)
    set_value(folder, "ln_out.bias", 3, 0, 2)
    add_token(folder, "كتاب")
    after = read_parts(folder / "weights.py")
    lines = changes_of(before, after, WORDS, (*WORDS, "كتاب"))
    assert f"column 2 {old:.6g} -> 0.75" in next(line for line in lines if "يأكل" in line)
    assert any("of 8 columns, most column" in line and "القط" in line for line in lines)
    assert f'{EMBEDDING} "كتاب": row added' in lines
    assert any(line.startswith("ln_out.bias row 3: ") and line.endswith(" -> 2") for line in lines)
    assert len(lines) == 4
    assert any(line.startswith("embedding.weight row 5: ") for line in changes_of(before, after, None, None))
    assert changes_of(before, before, WORDS, WORDS) == []


def test_a_permuted_vocabulary_changes_nothing(tmp_path: Path) -> None:
    folder = export(tmp_path / "model")
    before = read_parts(folder / "weights.py")
    order = [0, 1, 2, 3, *range(11, 3, -1)]
    after = {**before, EMBEDDING: before[EMBEDDING]._replace(values=before[EMBEDDING].values[order])}
    assert changes_of(before, after, WORDS, [WORDS[row] for row in order]) == []
    assert changes_of(before, after, WORDS, WORDS[:5])[0].startswith("embedding.weight row ")


def test_long_lists_are_counted(tmp_path: Path) -> None:
    before = read_parts(export(tmp_path / "model") / "weights.py")
    after = {name: part._replace(values=part.values + np.float32(1)) for name, part in before.items()}
    lines = changes_of(before, after, WORDS, WORDS, shown=2)
    assert len([line for line in lines if line.startswith(EMBEDDING)]) == 3
    assert "embedding.weight: and 10 more of 12 rows" in lines


def test_a_line_of_text_differs_whenever_its_row_does(tmp_path: Path) -> None:
    folder = export(tmp_path / "model")
    before = [*as_text(read_parts(folder / "weights.py"), WORDS)]
    set_value(folder, EMBEDDING, "القط", 7, float(np.nextafter(read(folder).weights[EMBEDDING][4, 7], np.float32(9))))
    after = [*as_text(read_parts(folder / "weights.py"), WORDS)]
    (changed,) = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed.startswith('embedding.weight "القط": norm ')
    assert len(before) == sum(map(len, read(folder).weights.values()))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(12, 8), 0, 12", "(12, 8), 0, 999999999", "more values than the file has bytes"),
        ('("f32", (12, 8)', '("f99", (12, 8)', "not a storage type"),
        ("    )),", "    ))", "should end here"),
        ("\n}\n", "\n}\nimport os\n", "unexpected text after"),
        ("WEIGHTS = {", "import os", "not a weights file"),
        ('    "embedding.weight"', "    embedding", "not a tensor header"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = export(tmp_path / "model") / "weights.py"
    edit(path, old, new)
    with pytest.raises(PackageError, match=reason) as caught:
        read_parts(path)
    assert "\n" not in str(caught.value)
    assert is_weights(path)
    assert not is_weights(path.with_name("vocab.py"))
