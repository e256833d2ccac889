from __future__ import annotations

import sys
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


@pytest.mark.parametrize("dtype", ["[]", "{}", "null", "1", '"f64"'])
def test_a_manifest_with_another_storage_type_is_refused(package: Path, dtype: str) -> None:
    edit(package / "manifest.json", '"dtype": "f32"', f'"dtype": {dtype}')
    with pytest.raises(PackageError, match="dtype must be one of") as caught:
        read(package)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_plain_import_and_hand_edits_in_every_type(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    for name, row in (("embedding.weight", 0), ("embedding.weight", 11), ("blocks.1.fc1.weight", 7)):
        start = next(number for number, line in enumerate(lines) if f'"{name}"' in line) + 1
        lines[start + row] = "  [0.1, -1, 2e-3, -0, 0.25, 1.5e+2, -0.0, 7000000],   # by hand"
    (folder / "weights.py").write_bytes("\n".join(lines).encode())
    package = read(folder)
    expected = np.array([0.1, -1, 2e-3, 0, 0.25, 150, -0.0, 7e6], np.float32)  # as written, in every type
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


def test_rows_edited_by_hand_load_and_are_reported(package: Path) -> None:
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


_opened: list[str] | None = None


def _on_audit_event(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and str(arguments[0]).endswith("weights.py"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_on_audit_event)  # a hook cannot be removed


class Reads:
    """Counts how often weights.py is decoded, and how often it is opened for that or any other reason."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = 0
        original = reader.Lines.__init__

        def counting(lines: reader.Lines, path: Path, *span: int) -> None:
            self.decoded += 1
            original(lines, path, *span)

        monkeypatch.setattr(reader.Lines, "__init__", counting)

    def of(self, task: Callable[[], object]) -> tuple[int, int]:
        """(decoded, opened) while a task runs."""
        global _opened
        self.decoded, _opened = 0, []
        try:
            task()
            return self.decoded, len(_opened)
        finally:
            _opened = None


def test_each_command_decodes_a_package_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other opens: for digests and comments (verify), copies (wheel), comments and digests (seal), and the file's own
    digest (sign)."""
    key, public = write_key(tmp_path, ec.derive_private_key(1234567, ec.SECP256R1()))
    scale_row(package, "embedding.weight", 5, 2)
    reads = Reads(monkeypatch)
    assert reads.of(lambda: read(package)) == (1, 1)
    assert reads.of(lambda: verify(package)) == (1, 2)
    assert reads.of(lambda: wheel(package, tmp_path / "wheels", "my_model", edited=True)) == (1, 3)
    assert reads.of(lambda: seal(package, "twice as loud")) == (1, 3)
    assert reads.of(lambda: sign(package, key)) == (1, 3)
    assert reads.of(lambda: verify_signature(package, public)) == (0, 1)  # only digests
