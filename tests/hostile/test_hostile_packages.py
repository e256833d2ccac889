"""Hostile packages: each is refused with a one-line error, and nothing in it is executed."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read, read_tensor_rows, verify
from qalam_core.package.read import read_checksums, read_vocabulary_of
from qalam_core.package.runtime import weights_reader as reader
from tests.small_package import CONFIG, edit, export, random_tensors, shard_texts, without_blocks

ZEROS = "0" * 64
TRIPWIRE = "open(__import__('os').environ['QALAM_TRIPWIRE'], 'w').close()"
GOOD_ROW = re.compile(r'        "[A-Za-z0-9+/]{43}=",\n')


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QALAM_TRIPWIRE", str(tmp_path / "it ran"))
    return export(tmp_path / "model")


def refused(package: Path, message: str, by: Callable[[Path], object] = read) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        by(package)
    text = str(caught.value)
    assert "\n" not in text
    assert re.match(r"[^:\n]+(\.py|\.json|\.md|\.so|\.pth|\.pyc|[^:]*):[0-9]+: |/.*: ", text), text
    assert not (package.parent / "it ran").exists()
    assert not any(name.startswith("model.") or name == "model" for name in sys.modules)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert old in text, old
    path.write_bytes(text.replace(old, new, 1).encode("utf-8", "surrogatepass"))


def row(new: str) -> Callable[[str], str]:
    return lambda text: GOOD_ROW.sub(lambda _: f"        {new}\n", text, count=1)


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


def encoded(values: list[float]) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


ZERO_ROW = encoded([0.0] * 8)
HEADER = '"embedding.weight": ("f32", (12, 8), 0, 12, ('
WEIGHTS_CASES = {
    "a call before the dict": (swap("WEIGHTS = {", f"{TRIPWIRE}\nWEIGHTS = {{"), "only comments"),
    "a call after the dict": (lambda text: text + TRIPWIRE + "\n", "unexpected text after"),
    "a comment after the dict": (lambda text: text + "# bye\n", "unexpected text after"),
    "a call as a row": (row(f"{TRIPWIRE},"), "not a matrix row"),
    "a call in a list": (row(f"[{TRIPWIRE}, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "a call as a tensor": (swap(HEADER, f'"x": {TRIPWIRE}, {HEADER}'), "not a tensor header"),
    "a name": (row("__import__,"), "not a matrix row"),
    "an operator": (row("[1+1, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "an f-string": (row(f'f"{{{TRIPWIRE}}}",'), "not a matrix row"),
    "a byte string": (row(f'b"{ZERO_ROW}",'), "not a matrix row"),
    "implicit concatenation": (row(f'"{ZERO_ROW}" "",'), "not a matrix row"),
    "concatenation over lines": (row(f'"{ZERO_ROW}"'), "not a matrix row"),
    "an escape": (row('"\\x41AA",'), "not a matrix row"),
    "a line continued": (row(f'"{ZERO_ROW}",\\'), "not a matrix row"),
    "no magic": (lambda text: text.partition("\n")[2], "must begin with"),
    "a byte order mark": (lambda text: "\ufeff" + text, "hidden character U.FEFF"),
    "a second coding line": (swap("# fmt: off", "# -*- coding: utf-7 -*-"), "coding line"),
    "Windows line ends": (lambda text: text.replace("\n", "\r\n"), "Windows line end"),
    "a lone carriage return": (swap("# fmt: off", f"# fmt: off\r{TRIPWIRE}"), "hidden character U.000D"),
    "a tab": (row(f'\t"{ZERO_ROW}",'), "hidden character U.0009"),
    "a form feed": (row(f'\f"{ZERO_ROW}",'), "hidden character U.000C"),
    "a NUL": (row(f'"{ZERO_ROW}",  # \0'), "hidden character U.0000"),
    "a bidi control in a comment": (swap("# fmt: off", "# fmt: \u202eoff"), "hidden character U.202E"),
    "not UTF-8": (swap("# fmt: off", "# \ud800"), "not UTF-8"),
    "007": (row("[007, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "1_000": (row("[1_000, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "hexadecimal": (row("[0x10, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "nan": (row("[nan, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "inf": (row("[inf, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "overflow": (row("[1e999, 0, 0, 0, 0, 0, 0, 0],"), "not finite"),
    "float32 overflow": (row("[1e39, 0, 0, 0, 0, 0, 0, 0],"), "not finite"),
    "an endless integer": (row(f"[{'9' * 5000}, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "a value too many": (row("[0, 0, 0, 0, 0, 0, 0, 0, 0],"), "9 numbers in a row of 8"),
    "a value too few": (row("[0, 0, 0, 0, 0, 0, 0],"), "7 numbers in a row of 8"),
    "a complex number": (row("[1j, 0, 0, 0, 0, 0, 0, 0],"), "not a matrix row"),
    "a nested list": (row("[[0, 0, 0, 0, 0, 0, 0, 0]],"), "not a matrix row"),
    "base64 cut short": (row(f'"{ZERO_ROW[:40]}",'), "bytes of base64"),
    "base64 of another alphabet": (row(f'"{ZERO_ROW.replace("A", "-", 1)}",'), "not a matrix row"),
    "base64 padded inside": (row(f'"AA=={ZERO_ROW[4:]}",'), "not a matrix row"),
    "base64 not canonical": (row(f'"{ZERO_ROW[:-2]}B=",'), "last bits"),
    "base64 of nan": (row(f'"{encoded([np.nan] + [0.0] * 7)}",'), "not finite"),
    "base64 of inf": (row(f'"{encoded([0.0] * 7 + [np.inf])}",'), "not finite"),
    "base64 of a zlib stream": (row(f'"{base64.b64encode(b"x" * 31).decode()}",'), "bytes of base64"),
    "a row missing": (lambda text: GOOD_ROW.sub("", text, count=1), "not a matrix row"),
    "a row twice": (lambda text: GOOD_ROW.sub(lambda m: m[0] * 2, text, count=1), "should end here"),
    "a longer shape": (swap("(12, 8), 0, 12", "(13, 8), 0, 13"), "config.py requires"),
    "an absurd shape": (swap("(12, 8), 0, 12", "(999999999, 999999999), 0, 1"), "config.py requires"),
    "a zero shape": (swap("(12, 8), 0, 12", "(0, 8), 0, 0"), "not a tensor header"),
    "a negative row": (swap("(12, 8), 0, 12", "(12, 8), -1, 12"), "not a tensor header"),
    "three dimensions": (swap("(12, 8), 0, 12", "(12, 8, 1), 0, 12"), "not a tensor header"),
    "rows past the end": (swap("(12, 8), 0, 12", "(12, 8), 0, 13"), "continues at row 0 of 12"),
    "a part out of order": (swap("(12, 8), 0, 12", "(12, 8), 1, 11"), "continues at row 0 of 12"),
    "an unknown dtype": (swap('("f32", (12', '("f64", (12'), "not a storage type"),
    "dec for a matrix": (swap('("f32", (12', '("dec", (12'), "not a storage type"),
    "f32 for a vector": (swap('("dec", (8,)', '("f32", (8,)'), "not a storage type"),
    "an unknown tensor": (swap('"ln_out.bias"', '"ln_out.evil"'), "not a tensor of this model"),
    "a path as a name": (swap('"ln_out.bias"', '"../../x"'), "not a tensor header"),
    "a tensor twice": (
        swap('"pos_embedding": ("f32", (10', '"embedding.weight": ("f32", (12'), "twice in this file",
    ),
    "a tensor missing": (lambda text: text[: text.index('    "ln_out.bias"')] + "}\n", "0 of 8 rows"),
    "cut off in a tensor": (lambda text: text[: len(text) // 2].rpartition("\n")[0] + "\n", "cut off"),
    "cut off in a line": (lambda text: text[: len(text) // 2], "line end"),
    "no closing brace": (lambda text: text[:-2], "file ends after this line"),
    "an empty file": (lambda text: "", "more values than the files have bytes"),
    "an endless line": (swap("# fmt: off", "#" + " " * (2 << 20)), "longer than"),
    "a word among the values": (
        swap('"dec", (8,), 0, 8, (\n', '"dec", (8,), 0, 8, (\n        True,\n'), "not a number",
    ),
    "a value not finite": (
        swap('"dec", (8,), 0, 8, (\n', '"dec", (8,), 0, 8, (\n        1e39,\n'), "not finite",
    ),
    "a walrus": (row("(x := 1),"), "not a matrix row"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS_CASES)
def test_hostile_weights_are_refused(package: Path, case: str) -> None:
    change, message = WEIGHTS_CASES[case]
    path = package / "weights.py"
    before = path.read_bytes()
    path.write_bytes(change(before.decode()).encode("utf-8", "surrogatepass"))
    assert path.read_bytes() != before
    refused(package, message)


STEPS = base64.b64encode(bytes(8)).decode()  # eight zeros
DECIMALS = "   0" * 8
TYPE_CASES = {
    "f32": [
        (f'(1.00000000e-03, "{STEPS}"),', "not a matrix row"),
        (f'"{STEPS}",', "bytes of base64"),
    ],
    "f16": [
        (f'"{base64.b64encode(np.full(8, np.inf, "<f2").tobytes()).decode()}",', "not finite"),
        (f'"{base64.b64encode(np.full(8, np.nan, "<f2").tobytes()).decode()}",', "not finite"),
        (f'"{ZERO_ROW}",', "16 bytes of base64"),
    ],
    "bf16": [
        (f'"{base64.b64encode(np.full(8, 0x7F80, "<u2").tobytes()).decode()}",', "not finite"),
        (f'"{base64.b64encode(np.full(8, 0xFFC0, "<u2").tobytes()).decode()}",', "not finite"),
        (f'"{ZERO_ROW}",', "16 bytes of base64"),
    ],
    "i8": [
        (f'"{STEPS}",', "not a matrix row"),
        (f'(1.00000000e-03, "{STEPS[:-2]}B="),', "last bits"),
        (f'(1.00000000e-03, "{STEPS[:-4]}"),', "8 bytes of base64"),
        (f'(1.00000000e-03, "{base64.b64encode(bytes([0] * 7 + [128])).decode()}"),', "-128"),
        (f'(0.00000000e+00, "{base64.b64encode(bytes([0] * 7 + [1])).decode()}"),', "scale of zero"),
        (f'(1.00000000e-03, "{DECIMALS}"),', "not a matrix row"),
    ],
    "q8": [
        (f'"{DECIMALS}",', "not a matrix row"),
        (f'(1.00000000e-03, "{DECIMALS[:-4]}"),', "32 characters"),
        (f'(1.00000000e-03, "{DECIMALS} "),', "32 characters"),
        (f'(0.00000000e+00, "{DECIMALS[4:]}   1"),', "scale of zero"),
        (f'(1.00000000e-03, "{STEPS}"),', "not a matrix row"),
        *((f'(1.00000000e-03, "{DECIMALS[4:]}{cell}"),', "right-aligned in four")
          for cell in ("-128", " 128", " 200", "   -", "    ", "  -0", " -05", "0005", " 005", "5   ", "--05", "- 05",
                       " 1 0", "1000", "-1-1", "  1-", "-  1")),
        *((f'(1.00000000e-03, "{DECIMALS[4:]}{cell}"),', "not a matrix row")
          for cell in ("  +1", "  1_", " 1.0", " 0x1", "  \\x", "1e01")),
    ],
}  # fmt: skip
SCALES = [
    "1e-3", "1.0000000e-03", "1.000000000e-3", "1.00000000e-003", "01.0000000e-03", "1.00000000E-03", "1.00000000e003",
    "0.10000000e-03", "1.00000000e-00", "0.00000000e-00", "0.00000000e+01", "-1.0000000e-03", "-1.00000000e-03",
    "+1.00000000e-03", "nan", "inf", "1.00000000e+0_", "1_00000000e-03", "1.00000000e- 3", "1.000000000-03", "1",
    "True", "__import__('os')",
]  # fmt: skip
FAR_SCALES = [
    "1.00000000e-60",
    "1.17549400e-38",
    "9.99999999e-39",
    "2.67939000e+36",
    "1.00000000e+37",
    "9.99999999e+99",
]
CASES_BY_TYPE = [
    *((dtype, new, message) for dtype, cases in TYPE_CASES.items() for new, message in cases),
    *((dtype, f'({scale}, "{text}"),', message)
      for scales, message in ((SCALES, "not a matrix row"), (FAR_SCALES, "a scale must be zero, or from"))
      for scale in scales for dtype, text in (("i8", STEPS), ("q8", DECIMALS))),
    *((dtype, new, "not a matrix row") for dtype, text in (("i8", STEPS), ("q8", DECIMALS)) for new in (
        f'(1.00000000e-03, "{text}", 1),', f'[1.00000000e-03, "{text}"],', f'(1.00000000e-03,"{text}"),',
        f'(1.00000000e-03, b"{text}"),', f'(1.00000000e-03, "{text}" ""),', f'(1.00000000e-03, "{text}")',
        f'((1.00000000e-03, "{text}")),', f"(1.00000000e-03, {TRIPWIRE}),", f'({TRIPWIRE}, "{text}"),', "(1, 2),",
    )),
    *((dtype, new, message) for dtype in TYPE_CASES for new, message in (
        ("[1e39, 0, 0, 0, 0, 0, 0, 0],", "not finite"), ("[0, 0],", "2 numbers in a row of 8"),
        ("[0, 0, 0, 0, 0, 0, 0, 0] * 2,", "not a matrix row"), (f"{TRIPWIRE},", "not a matrix row"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "new", "message"), CASES_BY_TYPE)
def test_hostile_rows_of_each_type_are_refused(tmp_path: Path, dtype: str, new: str, message: str) -> None:
    """The block decoder and the strict parser give the same error at the same line."""
    shapes = without_blocks(CONFIG)
    lines = shard_texts(random_tensors(shapes), dtype)[0].decode().split("\n")
    at = next(number for number, line in enumerate(lines) if '"embedding.weight"' in line) + 4
    lines[at] = f"        {new}"
    (tmp_path / "weights.py").write_bytes("\n".join(lines).encode())
    texts = set()
    for block in (reader.BLOCK, 0):
        with pytest.raises(reader.FormatError, match=message) as caught:
            reader.read_weights(tmp_path, shapes, block=block)
        texts.add(str(caught.value))
    assert len(texts) == 1
    assert texts.pop().startswith(f"weights.py:{at + 1}: ")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.py", "DIM = 8", f"DIM = {TRIPWIRE}", "not a setting"),
        ("config.py", "DIM = 8", "DIM = 0", "between 1 and"),
        ("config.py", "DIM = 8", "DIM = 99999999", "between 1 and"),
        ("config.py", "DIM = 8", "DIM = 9", "not divisible"),
        ("config.py", "DIM = 8", "DIM = 16", "PARAMETERS does not follow"),
        ("config.py", "DIM = 8", "DIM = True", "of type int"),
        ("config.py", "DIM = 8", "DIM = 8\nDIM = 8", "twice"),
        ("config.py", "DIM = 8", "DIM = 8\nDEPTH = 8", "not a setting"),
        ("config.py", "DIM = 8\n", "", "DIM is missing"),
        ("config.py", "DIM = 8", "DIM = 08", "not a setting"),
        ("config.py", "FORMAT = 1", "FORMAT = 2", "FORMAT must be 1"),
        ("config.py", "FORMAT = 1", "FORMAT = True", "FORMAT must be 1"),
        ("config.py", "DIM = 8", "DIM = 0", "^config.py:6: DIM must be"),
        ("config.py", '"gelu"', '"relu"', "^config.py:11: ACTIVATION is one of"),
        ("config.py", "PARAMETERS = 1", "PARAMETERS = 2", "^config.py:12: PARAMETERS does not follow"),
        ("config.py", "PARAMETERS = ", "PARAMETERS = True  # ", "PARAMETERS does not follow"),
        ("config.py", '"gelu"', '"relu"', "ACTIVATION"),
        ("config.py", "NUM_LAYERS = 2", "NUM_LAYERS = 2; import os", "not a setting"),
        ("vocab.py", '"القط": 4,', '"القط": 5,', "ids count up"),
        ("vocab.py", '"القط": 4,', '"<PAD>": 4,', "already has id 0"),
        ("vocab.py", '"القط": 4,', f"{TRIPWIRE}: 4,", "not a word"),
        ("vocab.py", '"القط": 4,', '"\\N{BULLET}": 4,', "not a word"),
        ("vocab.py", '"القط": 4,', '"\\x41": 4,', "not a word"),
        ("vocab.py", '"القط": 4,', '"\\ud800": 4,', "not a character"),
        ("vocab.py", '"القط": 4,', '"\\Uffffffff": 4,', "not a character"),
        ("vocab.py", '"القط": 4,', '"ال\u200fقط": 4,', "hidden character"),
        ("vocab.py", '"القط": 4,', '"القط" "x": 4,', "not a word"),
        ("vocab.py", '    "في": 11,\n', "", "11 words"),
        ("vocab.py", '"<END>": 3,', '"<end>": 3,', "first four"),
        ("vocab.py", "NORMALISE = (\n", 'NORMALISE = (\n    ("(a+)+$", ""),\n', "NORMALISE pattern"),
        ("vocab.py", "NORMALISE = (\n", 'NORMALISE = (\n    ("[z-a]", ""),\n', "NORMALISE pattern"),
        ("vocab.py", "NORMALISE = (\n", f"{TRIPWIRE}\nNORMALISE = (\n", "expected "),
        ("vocab.py", "MERGES = (\n", 'MERGES = (\n    ("a", "b"),\n', "MERGES"),
        ("vocab.py", "WORD2IDX.items()}", f"WORD2IDX.items() if {TRIPWIRE}}}", "expected "),
        ("vocab.py", "WORD2IDX.items()}\n", f"WORD2IDX.items()}}\n{TRIPWIRE}\n", "unexpected text after"),
        ("vocab.py", "# fmt: off", "# vim: set fileencoding=utf-7 : coding=utf-7", "coding line"),
        ("knowledge_map.py", "STATISTICS = {\n", f'STATISTICS = {{\n    "x": ({TRIPWIRE}),\n', "not a fact"),
        ("knowledge_map.py", "STATISTICS = {\n", f"{TRIPWIRE}\nSTATISTICS = {{\n", "expected "),
        ("loader.py", "_FOLDER = ", f"{TRIPWIRE}\n_FOLDER = ", "not the code of a known release"),
        ("__init__.py", "__all__", f"{TRIPWIRE}\n__all__", "not the code of a known release"),
        ("model.py", "END = 3", "END = 4", "not the code of a known release"),
        ("weights_reader.py", "BLOCK = 1", "BLOCK = 2", "not the code of a known release"),
        ("architecture.py", "ACTIVATIONS = ", f"{TRIPWIRE}\nACTIVATIONS = ", "not the code of a known release"),
        ("codings.py", "Coding = ", f"{TRIPWIRE}\nCoding = ", "not the code of a known release"),
        ("rows.py", "_STEPS = ", f"{TRIPWIRE}\n_STEPS = ", "not the code of a known release"),
        ("numpy_model.py", "0.3275911", "0.3275912", "not the code of a known release"),
        ("tokenizer.py", "_CACHE_SIZE", "_CACHE_SIZF", "not the code of a known release"),
        ("data_reader.py", "SIZE_LIMIT", "SIZE_LIMIX", "not the code of a known release"),
        ("__main__.py", "def main", f"{TRIPWIRE}\ndef main", "not the code of a known release"),
        ("manifest.json", '"format": 1', '"format": 2', "reads format 1"),
        ("manifest.json", '"format": 1', '"format": 1, "format": 1', "key twice"),
        ("manifest.json", '"format": 1', '"format": 1, "x": 1', "nothing else"),
        ("manifest.json", '"dtype": "f32"', '"dtype": "zz"', "dtype must be one of"),
        ("manifest.json", '"vocab.py"', '"../../etc/passwd"', "vocab.py is not listed"),
        ("manifest.json", '"vocab.py":', '"../x.py": "' + ZEROS + '", "vocab.py":', "not a file of a package"),
        ("manifest.json", '"vocab.py":', '"weights_002.py": "' + ZEROS + '", "vocab.py":', "without a gap"),
        ("manifest.json", '"vocab.py":', '"weights_001.py": "' + ZEROS + '", "vocab.py":', "cannot be read"),
        ("manifest.json", '"ln_out.bias"', '"ln_out.evil"', "other tensors"),
        ("manifest.json", '"format": 1', '"format": ' + "[" * 100_000, "lists and objects"),
    ],
)  # fmt: skip
def test_other_hostile_files_are_refused(package: Path, name: str, old: str, new: str, message: str) -> None:
    replace(package / name, old, new)
    refused(package, message)


@pytest.mark.parametrize("name", ["evil.py", "x.so", "x.pth", "Weights.py", "x.pyc", "weights_001.py", "م.py"])
def test_unlisted_files_are_refused(package: Path, name: str) -> None:
    (package / name).write_text(TRIPWIRE)
    refused(package, "not listed in manifest")


def test_unlisted_folders_are_refused(package: Path) -> None:
    (package / "weights").mkdir()
    (package / "weights" / "__init__.py").write_text(TRIPWIRE)
    refused(package, "not listed in manifest")


@pytest.mark.parametrize("name", ["weights.py", "manifest.json", "MODEL_CARD.md"])
def test_links_are_refused(package: Path, name: str) -> None:
    (package / name).rename(package.parent / "outside")
    (package / name).symlink_to("../outside")
    refused(package, "not a regular file")


def first_row(package: Path) -> object:
    return read_tensor_rows(package, "embedding.weight", 0, 1)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("config.py", (read, first_row, read_vocabulary_of)),
        ("vocab.py", (read, read_vocabulary_of)),
        ("weights.py", (read, first_row)),
    ],
)
def test_special_and_missing_files_are_refused(
    package: Path, name: str, readers: tuple[Callable[[Path], object], ...]
) -> None:
    (package / name).unlink()
    for by in readers:
        refused(package, "cannot be read", by)
    os.mkfifo(package / name)  # opening it would wait for a writer
    for by in readers:
        refused(package, "not a regular file", by)


def test_a_huge_file_is_refused_before_it_is_read(package: Path) -> None:
    for name in ("rows.json", "MODEL_CARD.md"):
        before = (package / name).read_bytes()
        os.truncate(package / name, 5 << 30)  # sparse: it takes no space
        refused(package, rf"^{name}:0: larger than")
        (package / name).write_bytes(before)


def test_many_nested_values_are_refused_before_they_are_parsed(package: Path) -> None:
    replace(package / "rows.json", "{", '{"x": [' + "[]," * 1000 + "0],")
    refused(package, "lists and objects", lambda package: read_checksums(package / "rows.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["rows.json", ""])  # a file that only `verify` opens, and the package itself
def test_no_permission_is_one_line(package: Path, name: str) -> None:
    (package / name).chmod(0)
    refused(package, "no permission to read it")
    (package / name).chmod(0o700)


def test_a_folder_that_is_not_a_package_is_refused(package: Path) -> None:
    (package.parent / "link").symlink_to(package)
    refused(package.parent / "link", "not a folder")
    refused(package.parent / "absent", "not a folder")
    (package / "manifest.json").unlink()
    refused(package, "no manifest")


def test_row_counts_without_bytes_allocate_nothing(package: Path) -> None:
    replace(package / "weights.py", "(12, 8), 0, 12", "(100000000, 8), 0, 12")
    shapes = {"embedding.weight": (100_000_000, 8)}
    with pytest.raises(reader.FormatError, match="more values than the files have bytes"):
        reader.read_weights(package, shapes)


# -- __pycache__: what plain import would run ----------------------------------------------------


def compiled(package: Path, name: str, source: str | None = None, optimise: int = 0) -> Path:
    cache = Path(importlib.util.cache_from_source(str(package / name), optimization=str(optimise or "")))
    path = package / name
    if source is not None:
        path = package.parent / "planted.py"
        path.write_text(source)
        stamp = (package / name).stat()
        path.write_bytes(path.read_bytes().ljust(stamp.st_size, b"\n"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    py_compile.compile(str(path), str(cache), dfile=str(package / name), doraise=True, optimize=optimise)
    return cache


def test_the_interpreters_own_caches_are_accepted(package: Path) -> None:
    for name in (
        "__init__.py",
        "loader.py",
        "model.py",
        "numpy_model.py",
        "weights.py",
        "vocab.py",
        "data_reader.py",
    ):
        compiled(package, name)
    compiled(package, "weights_reader.py", optimise=2)
    assert verify(package) == []


@pytest.mark.usefixtures("processes")
def test_a_package_that_was_imported_verifies(package: Path) -> None:
    script = "import model, model.vocab, model.weights, model.model; model.load_model('numpy')"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run([sys.executable, "-c", script], cwd=package.parent, check=True, env=environment)
    assert (package / "__pycache__").is_dir()
    assert verify(package) == []


def test_a_cache_of_an_edited_file_is_accepted_and_an_older_one_refused(package: Path) -> None:
    """Who edits weights by hand, and imports them as Python, can still seal; code is compared with releases anyway."""
    compiled(package, "weights.py")
    edit(package / "weights.py", "(as exported)", "(once)")
    refused(package, "__pycache__/weights.*delete it", verify)
    compiled(package, "weights.py")
    assert verify(package) == ["weights.py: the text changed, every value is as exported"]
    edit(package / "loader.py", "torch", "torhc")
    compiled(package, "loader.py")
    refused(package, "loader.py", verify)


def test_planted_caches_are_refused(package: Path) -> None:
    cache = compiled(package, "loader.py", TRIPWIRE)
    assert read(package).edited == ()  # reading never looks there
    refused(package, "__pycache__/loader.*delete it", verify)
    raw = compiled(package, "loader.py").read_bytes()
    for planted in (
        raw[:4] + (1).to_bytes(4, "little") + raw[8:],  # a hash that is none
        raw[:-9] + b"evil" + raw[-5:],
        raw + b"N",
        raw[:40],
        b"",
    ):
        cache.write_bytes(planted)
        refused(package, "__pycache__/loader.*delete it", verify)


def test_caches_without_a_matching_source_are_refused(package: Path) -> None:
    (package / "__pycache__").mkdir()
    for name in ("evil.cpython-311.pyc", "loader.pyc", "loader.py", "x.so", "loader.cpython-299.pyc"):
        path = package / "__pycache__" / name
        path.write_bytes(b"x")
        refused(package, "delete it", verify)
        path.unlink()
    cache = compiled(package, "weights.py")
    replace(package / "weights.py", "WEIGHTS = {", "# edited\nWEIGHTS = {")
    refused(package, "delete it", verify)
    cache.unlink()
    shutil.rmtree(package / "__pycache__")
    (package / "__pycache__").symlink_to("/tmp")
    refused(package, "a link", verify)


def test_a_changed_rows_file_is_reported(package: Path) -> None:
    replace(package / "rows.json", '": "', '": "!')
    replace(package / "vocab.py", '"القط"', '"القطة"')
    assert "rows.json: changed since export" in verify(package)
    manifest = json.loads((package / "manifest.json").read_text())
    assert "rows.json" in manifest["files"]
