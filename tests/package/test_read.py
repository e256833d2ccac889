from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from qalam_core.errors import PackageError
from qalam_core.package import read, verify
from qalam_core.package.editing.rows import scale_row
from qalam_core.package.editing.seal import seal
from qalam_core.package.release.sign import sign, verify_signature
from qalam_core.package.release.wheel import wheel
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES
from tests.package.conftest import write_key
from tests.small_package import edit, export, python_values, row_of, run_file, weights


def test_an_untouched_package_verifies(package: Path) -> None:
    assert verify(package) == []


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_plain_import_and_hand_edits_in_every_type(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    for name, row in (("embedding.weight", 0), ("embedding.weight", 11), ("blocks.1.fc1.weight", 7)):
        start = next(number for number, line in enumerate(lines) if f'"{name}"' in line) + 1
        lines[start + row] = "  [0.1, -1, 2e-3, -0, 0.25, 1.5e+2, -0.0, 7000000],   # by hand"
    (folder / "weights.py").write_bytes("\n".join(lines).encode())
    package = read(folder)
    expected = np.array([0.1, -1, 2e-3, 0, 0.25, 150, -0.0, 7e6], np.float32)  # as written, whatever the type
    assert package.weights["embedding.weight"][11].tobytes() == expected.tobytes()
    assert row_of(folder, "blocks.1.fc1.weight", 7).tobytes() == expected.tobytes()
    for name, entry in run_file(folder / "weights.py")["WEIGHTS"].items():
        assert package.weights[name].tobytes() == python_values(entry).tobytes(), name
        for row in (0, len(entry[4]) - 1):
            assert np.array_equal(row_of(folder, name, row).ravel(), package.weights[name][row].ravel())
    assert verify(folder) == [
        'embedding.weight: 2 of 12 rows changed since export: 0 ("<PAD>"), 11 ("في")',
        "blocks.1.fc1.weight: 1 of 32 rows changed since export: 7",
    ]


def test_rows_rewritten_by_hand_load_and_are_named(package: Path) -> None:
    lines = (package / "weights.py").read_text(encoding="utf-8").split("\n")
    start = next(number for number, line in enumerate(lines) if '"embedding.weight"' in line) + 1
    lines[start + 5] = "        [0.5, -1, 2e-3, -0, 0.25, 1.5e+2, -0.0, 7],  # by hand"
    lines.insert(start + 3, "\n   # a note\n")
    bias = next(number for number, line in enumerate(lines) if '"ln_out.bias"' in line) + 1
    lines[bias + 2] = "    -3, # was small"
    (package / "weights.py").write_bytes("\n".join(lines).encode())
    loaded = read(package)
    expected = np.array([0.5, -1, 2e-3, 0, 0.25, 150, -0.0, 7], np.float32)
    assert loaded.weights["embedding.weight"][5].tobytes() == expected.tobytes()
    assert loaded.edited == ("embedding.weight", "ln_out.bias")
    assert verify(package) == [
        'embedding.weight: 1 of 12 rows changed since export: 5 ("يأكل")',
        "ln_out.bias: 1 of 8 rows changed since export: 2",
    ]
    assert np.array_equal(row_of(package, "embedding.weight", 5), expected)
    assert np.array_equal(row_of(package, "embedding.weight", 6), weights()["embedding.weight"][6])
    assert row_of(package, "ln_out.bias", 2) == -3
    values = run_file(package / "weights.py")["WEIGHTS"]
    assert np.array_equal(python_values(values["embedding.weight"]), loaded.weights["embedding.weight"])
    with pytest.raises(PackageError, match=r'"embedding\.weight" changed'):
        read(package, strict=True)


def test_a_changed_text_with_the_same_values_is_reported_as_such(package: Path) -> None:
    edit(package / "weights.py", "WEIGHTS = {", "# a remark\nWEIGHTS = {")
    edit(package / "config.py", "DIM = 8", "DIM = 8  # small")
    edit(package / "MODEL_CARD.md", "بطاقة", "بطاقة أخرى")
    assert verify(package) == [
        "MODEL_CARD.md: changed since export",
        "config.py: changed since export",
        "weights.py: the text changed, every value is as exported",
    ]
    with pytest.raises(PackageError, match=r"MODEL_CARD\.md:0: changed since export"):
        read(package, strict=True)


def test_a_word_may_be_edited(package: Path) -> None:
    edit(package / "vocab.py", '"القط"', '"القطة"')
    assert read(package).vocabulary.words[4] == "القطة"
    assert verify(package) == ["vocab.py: changed since export"]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights files that are decoded from now on, once for each time."""
    names: list[str] = []
    original = reader.Lines.__init__

    def counting(self: reader.Lines, path: Path) -> None:
        names.append(path.name)
        original(self, path)

    monkeypatch.setattr(reader.Lines, "__init__", counting)
    return names


def test_whatever_needs_a_package_reads_it_once(package: Path, tmp_path: Path, decoded: list[str]) -> None:
    """Sealing, a wheel and a signature verify the package that they have read, and do not read it again."""
    key, public = write_key(tmp_path, ec.derive_private_key(1234567, ec.SECP256R1()))
    scale_row(package, "embedding.weight", 5, 2)
    tasks: dict[str, Callable[[], object]] = {
        "read": lambda: read(package, strict=False),
        "verify": lambda: verify(package),
        "seal": lambda: seal(package, "twice as loud"),
        "wheel": lambda: wheel(package, tmp_path / "wheels", "my_model"),
        "sign": lambda: sign(package, key),
    }
    for name, task in tasks.items():
        decoded.clear()
        task()
        assert decoded == ["weights.py"], name
    decoded.clear()
    verify_signature(package, public)  # files by their digests: what they mean is not its question
    assert decoded == []
