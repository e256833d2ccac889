from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qalam_core.errors import PackageError
from qalam_core.package import code_digests, read, read_tensor, read_tensor_row, read_tensor_rows, verify
from qalam_core.package import write as write_package
from qalam_core.package.runtime import __version__
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES, Scaled
from qalam_core.package.seek import read_row
from tests import ROOT
from tests.small_package import (
    CONFIG,
    FRAGMENTS,
    TINY,
    WORDS,
    check_it_means_what_python_means,
    contents,
    export,
    python_row,
    python_values,
    save_shards,
    shard_texts,
    tiny_texts,
    vocabulary,
    weights,
)

SHAPES = reader.tensor_shapes(CONFIG)


def run_file(path: Path) -> dict[str, Any]:
    """What plain import of a data file gives."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return export(tmp_path / "model")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_read_writes_the_same_bytes(tmp_path: Path, dtype: str, tied: bool) -> None:
    config = {**CONFIG, "TIED": tied}
    first = export(tmp_path / "a", config=config, dtype=dtype)
    package = read(first, strict=True)
    write_package(
        tmp_path / "b", config=package.config, vocabulary=package.vocabulary, weights=package.weights,
        card="# بطاقة", provenance=package.manifest["provenance"], dtype=package.manifest["dtype"],
    )  # fmt: skip
    assert contents(first) == contents(tmp_path / "b")
    assert package.edited == ()
    for name, entry in run_file(first / "weights.py")["WEIGHTS"].items():
        assert entry[0] == (dtype if "(" in str(entry[1]) and len(entry[1]) == 2 else "dec")
        assert package.weights[name].tobytes() == python_values(entry).tobytes(), name
        if dtype == "f32" or entry[0] == "dec":
            assert package.weights[name].tobytes() == weights(config)[name].tobytes()


@pytest.mark.parametrize(
    ("dtype", "share"), [("f32", 0.0), ("f16", 0.00022), ("bf16", 0.0018), ("i8", 0.0073), ("q8", 0.0073)]
)
def test_rounding_costs_what_the_documentation_says(dtype: str, share: float) -> None:
    values = np.random.default_rng(0).normal(0, 0.02, (2000, 256)).astype(np.float32)
    error = MATRIX_TYPES[dtype].rounded(values) - values
    assert np.sqrt(np.square(error, dtype=np.float64).mean()) / 0.02 <= share


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ANY_ROW = st.lists(FINITE, min_size=1, max_size=9) | st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@settings(max_examples=150)
@given(row=ANY_ROW)
def test_any_row_is_stored_once_and_for_all(dtype: str, row: list[float]) -> None:
    """Rounding a second time changes nothing, both ways of reading agree, and Python reads the same."""
    row_type, values = MATRIX_TYPES[dtype], np.array([row, row[::-1]], np.float32)
    rounded = row_type.rounded(values)
    if not np.isfinite(rounded).all():
        assert dtype in ("f16", "bf16")
        return
    lines = row_type.encode(values)
    assert lines.tobytes() == row_type.encode(rounded).tobytes()
    assert lines.shape == (2, row_type.width(len(row)))
    out = np.empty_like(values)
    assert row_type.decode(lines, out) == 2
    assert out.tobytes() == rounded.tobytes()
    for line, expected in zip(lines, rounded, strict=True):
        text = line.tobytes().decode().rstrip("\n")
        assert row_type.parse(text, len(row), pytest.fail).tobytes() == expected.tobytes()
        assert python_row(dtype, ast.literal_eval(text.strip().rstrip(","))).tobytes() == expected.tobytes()
    largest = np.abs(values[0]).max()
    if isinstance(row_type, Scaled) and largest > 1e-35:
        assert np.abs(rounded - values).max() <= largest / 127 * 0.503
        assert np.abs(rounded).max() <= largest


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """Every value of the type comes back; what lies between goes to the nearer, and halfway to the even one."""
    upper = np.arange(1 << 16, dtype=np.uint32)
    upper = upper[(upper & 0x7F80) != 0x7F80]
    bf16 = MATRIX_TYPES["bf16"]

    def rounded(lower: int) -> np.ndarray:
        return bf16.rounded((upper << 16 | lower).view(np.float32)[None]).view(np.uint32)[0] >> 16

    assert np.array_equal(rounded(0), upper)
    assert np.array_equal(rounded(0x7FFF), upper)
    assert np.array_equal(rounded(0x8000), upper + (upper & 1))
    assert np.array_equal(rounded(0x8001), upper + 1)


@pytest.mark.parametrize("dtype", ["i8", "q8"])
def test_the_scale_of_a_row(dtype: str) -> None:
    """Its largest magnitude / 127, so that 127 is reached; a row too small for any scale is zero."""
    row_type = MATRIX_TYPES[dtype]
    rows = np.array([[0, -0.0], [1.27, -2.54], [1e-37, 1e-38], [2e-36, -1e-36], [3.4e38, -3.4e38]], np.float32)
    texts = [line.tobytes().decode().strip() for line in row_type.encode(rows)]
    scales = [text[1:15] for text in texts]
    assert scales[0] == scales[2] == "0.00000000e+00"
    assert float(scales[1]) == pytest.approx(0.02, rel=2e-5)
    if dtype == "q8":
        assert texts[0] == '(0.00000000e+00, "   0   0"),'
        assert texts[1][15:] == ', "  64-127"),'
    rounded = row_type.rounded(rows)
    assert rounded[0].tobytes() == rounded[2].tobytes() == bytes(8)
    assert rounded[3:] == pytest.approx(rows[3:], rel=0.01)


def test_every_scale_reads_as_python_reads_it() -> None:
    random = np.random.default_rng(0)
    scales = (10.0 ** random.uniform(-37, 36, 3000)).astype(np.float32)
    texts = [f"{scale:.8e}" for scale in scales.tolist()] + ["1.17549435e-38", "2.67927900e+36", "9.99999999e-01"]
    lines = "".join(f'        ({text}, " 127"),\n' for text in texts).encode()
    out = np.empty((len(texts), 1), np.float32)
    assert MATRIX_TYPES["q8"].decode(np.frombuffer(lines, np.uint8).reshape(len(texts), -1), out) == len(texts)
    assert np.array_equal(out[:, 0], np.array([float(text) for text in texts]).astype(np.float32) * np.float32(127))


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
    assert read_tensor_row(folder, "blocks.1.fc1.weight", 7).tobytes() == expected.tobytes()
    for name, entry in run_file(folder / "weights.py")["WEIGHTS"].items():
        assert package.weights[name].tobytes() == python_values(entry).tobytes(), name
        for row in (0, len(entry[4]) - 1):
            assert np.array_equal(read_tensor_row(folder, name, row).ravel(), package.weights[name][row].ravel())
    assert verify(folder) == [
        'embedding.weight: 2 of 12 rows changed since export: 0 ("<PAD>"), 11 ("في")',
        "blocks.1.fc1.weight: 1 of 32 rows changed since export: 7",
    ]


def test_the_bytes_depend_on_no_hash_seed_and_not_on_pybase64(tmp_path: Path, package: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "if sys.argv[2] == 'bare': sys.modules['pybase64'] = None\n"
        "from tests.small_package import export; from qalam_core.package import read\n"
        "read(export(Path(sys.argv[1])), strict=True)"
    )
    for seed, kind in (("1", "bare"), ("2", "fast")):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", script, str(folder), kind], check=True,
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT,
        )  # fmt: skip
        assert contents(folder) == contents(package)


def test_plain_import_gives_the_same_values(package: Path) -> None:
    loaded = read(package)
    entries = run_file(package / "weights.py")["WEIGHTS"]
    assert list(entries) == list(loaded.weights)
    for name, entry in entries.items():
        assert np.array_equal(python_values(entry), loaded.weights[name]), name
    words = run_file(package / "vocab.py")
    assert tuple(words["WORD2IDX"]) == loaded.vocabulary.words
    assert words["IDX2WORD"] == dict(enumerate(loaded.vocabulary.words))
    assert words["NORMALISE"] == loaded.vocabulary.rules
    assert words["MERGES"] == loaded.vocabulary.merges
    config = run_file(package / "config.py")
    assert {key: config[key] for key in loaded.config} == loaded.config
    assert run_file(package / "knowledge_map.py")["NEIGHBOURS"]["القط"]


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_large_models_are_cut_at_row_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 2000)
    folder = export(tmp_path / "model", dtype=dtype)
    row_type = MATRIX_TYPES[dtype]
    expected = {name: row_type.rounded(tensor) if tensor.ndim == 2 else tensor for name, tensor in weights().items()}
    files = [path.name for path in reader.weight_files(folder)]
    assert files[:3] == ["weights.py", "weights_001.py", "weights_002.py"]
    assert all((folder / name).stat().st_size <= 2000 for name in files)
    package = read(folder)
    for name, tensor in expected.items():
        assert np.array_equal(package.weights[name], tensor), name
        for row in range(len(tensor)):
            assert np.array_equal(read_tensor_row(folder, name, row).ravel(), np.ravel(tensor[row])), (name, row)
    parts: dict[str, list[np.ndarray]] = {}
    for name in files:
        for tensor_name, entry in run_file(folder / name)["WEIGHTS"].items():
            parts.setdefault(tensor_name, []).append(python_values(entry))
    for name, pieces in parts.items():
        assert np.array_equal(np.concatenate(pieces), expected[name])
    (folder / "weights_002.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(PackageError, match=r"weights_002\.py"):
        read(folder)


def test_tensors_may_stand_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 2000)
    values = dict(reversed(weights().items()))
    save_shards(tmp_path, shard_texts(values, "f32"))
    loaded = reader.read_weights(tmp_path, SHAPES)
    assert list(loaded) == list(SHAPES)
    for name, tensor in values.items():
        assert np.array_equal(loaded[name], tensor)
        assert np.array_equal(read_row(tmp_path, SHAPES, name, 3).ravel(), tensor[3].ravel())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 3, 1, 2, 4, 5, 6], r'weights_001\.py:6: "embedding.weight" has 5 of 12 rows; its next part belongs here'),
        ([0, 2, 1, 3, 4, 5, 6], r'weights_001\.py:5: "embedding.weight" goes on at row 5 of 12, not 10 \+ 2'),
        ([1, 0, 2, 3, 4, 5, 6], r'weights\.py:5: "embedding.weight" goes on at row 0 of 12, not 5 \+ 5'),
        ([0, 0, 1, 2, 3, 4, 5], r'weights_001\.py:6: "embedding.weight" goes on at row 5 of 12, not 0 \+ 5'),
        ([0, 1, 2, 3, 4, 5, 6, 0], r'weights_007\.py:6: "embedding.weight" goes on at row 12 of 12, not 0 \+ 5'),
        ([0, 1, 2, 3, 5, 6], r'weights_004\.py:6: "pos_embedding" has 5 of 10 rows; its next part belongs here'),
        ([0, 1, 2, 3, 4, 5], r'weights_005\.py:0: "ln_out.bias" has 0 of 8 rows; a part is missing'),
    ],
)
def test_parts_in_the_wrong_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int], message: str
) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 800)
    config = {**CONFIG, "NUM_LAYERS": 0}
    texts = shard_texts(weights(config), "f32")
    assert len(texts) == 7
    save_shards(tmp_path, [texts[index] for index in order])
    with pytest.raises(reader.FormatError, match=message):
        reader.read_weights(tmp_path, reader.tensor_shapes(config))


def test_an_untouched_package_verifies(package: Path) -> None:
    assert verify(package) == []


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
    assert np.array_equal(read_tensor_row(package, "embedding.weight", 5), expected)
    assert np.array_equal(read_tensor_row(package, "embedding.weight", 6), weights()["embedding.weight"][6])
    assert read_tensor_row(package, "ln_out.bias", 2) == -3
    values = run_file(package / "weights.py")["WEIGHTS"]
    assert np.array_equal(python_values(values["embedding.weight"]), loaded.weights["embedding.weight"])
    with pytest.raises(PackageError, match=r'"embedding\.weight" changed'):
        read(package, strict=True)


def test_a_changed_text_with_the_same_values_is_told_apart(package: Path) -> None:
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


def test_words_show_nothing_hidden_and_come_back(tmp_path: Path) -> None:
    words = (
        "<PAD>",
        "<UNK>",
        "<START>",
        "<END>",
        *["\u202e", "\u200f", "\ufeff", "\xa0", "\\xd8", '"\\n\n\t', "\U000e0041", "é"],
    )
    words = (*words, *(f"w{index}" for index in range(12 - len(words))))
    folder = export(tmp_path / "model", vocabulary=vocabulary(words=words, rules=(("[\x00\u200e]", ""),)))
    text = (folder / "vocab.py").read_text(encoding="utf-8")
    assert not re.search(f"[{reader.HIDDEN}]".replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"), text)
    assert read(folder).vocabulary.words == words
    assert tuple(run_file(folder / "vocab.py")["WORD2IDX"]) == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "f64"}, 'dtype "f64"'),
        ({"config": {**CONFIG, "NUM_HEADS": 3}}, "not divisible"),
        ({"config": {**CONFIG, "DEPTH": 3}}, "DEPTH is no setting"),
        ({"config": {**CONFIG, "PARAMETERS": 3}}, "PARAMETERS"),
        ({"weights": {**weights(), "extra": np.zeros(3)}}, '"extra" is no tensor'),
        ({"weights": {**weights(), "ln_out.bias": np.zeros(3)}}, "shape"),
        ({"weights": {**weights(), "ln_out.bias": np.full(8, np.nan)}}, "not finite"),
        ({"weights": {**weights(), "pos_embedding": np.full((10, 8), 1e5)}, "dtype": "f16"}, "not finite in f16"),
        ({"weights": {**weights(), "pos_embedding": np.full((10, 8), 3.4e38)}, "dtype": "bf16"}, "not finite in bf16"),
        ({"weights": {**weights(), "pos_embedding": np.full((10, 8), np.inf)}, "dtype": "i8"}, "not finite in i8"),
        ({"weights": {**weights(), "pos_embedding": np.full((10, 8), np.nan)}, "dtype": "q8"}, "not finite in q8"),
        ({"weights": {**weights(), "pos_embedding": np.full((10, 8), 1e39)}, "dtype": "q8"}, "not finite in q8"),
        ({"vocabulary": vocabulary(words=("<PAD>",))}, "1 words"),
        ({"vocabulary": vocabulary(words=WORDS[::-1])}, "first four"),
        ({"vocabulary": vocabulary(algorithm="unigram")}, "unigram"),
        ({"vocabulary": vocabulary(algorithm="bpe", merges=(("x", "y"),))}, "merge 0"),
        ({"vocabulary": vocabulary(words=(*WORDS[:11], "\ud800"))}, "surrogates not allowed"),
    ],
)
def test_the_writer_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        export(tmp_path / "model", **changes)


def test_the_writer_overwrites_nothing(package: Path) -> None:
    with pytest.raises(PackageError, match="not an empty folder"):
        export(package)


def test_float32_extremes_survive_as_decimals(tmp_path: Path) -> None:
    limits = np.finfo(np.float32)
    values = np.array(
        [limits.max, limits.tiny, limits.smallest_subnormal, -0.0, 0.1, 1 / 3, 16777217, 1e-10], np.float32
    )
    folder = export(tmp_path / "model", weights={**weights(), "ln_out.bias": values})
    assert read(folder).weights["ln_out.bias"].tobytes() == values.tobytes()
    assert python_values(run_file(folder / "weights.py")["WEIGHTS"]["ln_out.bias"]).tobytes() == values.tobytes()


def test_the_version_in_a_package_is_the_release(package: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in project


def test_a_release_keeps_its_code() -> None:
    """What a published version wrote stays readable: once its digests stand in releases.json, a change to
    a shipped file needs a new version."""
    folder = ROOT / "qalam_core" / "package"
    releases = json.loads((folder / "releases.json").read_text(encoding="utf-8"))
    assert releases.get(__version__, code_digests()) == code_digests()


def test_a_package_of_an_earlier_release_is_read(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    releases = tmp_path / "releases.json"
    releases.write_text(json.dumps({"0.0.9": code_digests()}), encoding="utf-8")
    module = import_module("qalam_core.package.read")
    monkeypatch.setattr(module, "code_digests", lambda: dict.fromkeys(code_digests(), "0" * 64))
    with pytest.raises(PackageError, match="not the code of a release known here"):
        read(package)
    monkeypatch.setattr(module, "_RELEASES", releases)
    assert read(package).edited == ()


def test_nothing_a_clock_or_a_path_says_is_in_the_manifest(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) == {"dtype", "files", "format", "provenance", "tensors"}
    assert str(package) not in str(manifest)


def test_a_row_that_is_not_there(package: Path) -> None:
    for name, row in (("embedding.weight", 12), ("embedding.weight", -1), ("no_such", 0)):
        with pytest.raises(PackageError, match="there is no row"):
            read_tensor_row(package, name, row)
    (package / "weights.py").write_bytes(b"")
    with pytest.raises(PackageError, match="empty"):
        read_tensor_row(package, "embedding.weight", 0)
    (package / "weights.py").unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        read_tensor_row(package, "embedding.weight", 0)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


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
        assert same(read_tensor(folder, name), tensor), name
        for start, stop in ((0, 1), (2, 2), (3, len(tensor)), (1, 6), (len(tensor) - 1, len(tensor))):
            assert same(read_tensor_rows(folder, name, start, stop), tensor[start:stop]), (name, start, stop)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_rows_edited_to_the_usual_number_of_bytes(tmp_path: Path, dtype: str) -> None:
    folder = export(tmp_path / "model", dtype=dtype)
    lines = (folder / "weights.py").read_bytes().split(b"\n")
    start = next(number for number, line in enumerate(lines) if b'"embedding.weight"' in line) + 1
    width = len(lines[start]) + 1
    lines[start + 2 : start + 4] = [b"[1,1,1,1,1,1,1,1],", b"[2,2,2,2,2,2,2,2],#".ljust(2 * width - 20, b"x")]
    (folder / "weights.py").write_bytes(b"\n".join(lines))
    expected = read(folder).weights["embedding.weight"]
    for first in range(12):
        assert same(read_tensor_row(folder, "embedding.weight", first), expected[first])
        for stop in range(first, 13):
            assert same(read_tensor_rows(folder, "embedding.weight", first, stop), expected[first:stop])


def test_reading_a_tensor_touches_only_what_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 2000)
    folder = export(tmp_path / "model")
    expected = read(folder).weights["blocks.0.fc1.weight"]
    holding = [path for path in reader.weight_files(folder) if b'"blocks.0.fc1.weight"' in path.read_bytes()]
    assert len(holding) > 1
    for path in reader.weight_files(folder):
        if path not in holding:  # its first header still tells that it is another tensor's
            path.write_bytes(path.read_bytes().partition(b", (\n")[0] + b", (\n        damaged\n")
    opened: list[str] = []
    original = reader.Lines.__init__

    def counting(self: reader.Lines, path: Path) -> None:
        opened.append(path.name)
        original(self, path)

    monkeypatch.setattr(reader.Lines, "__init__", counting)
    assert same(read_tensor(folder, "blocks.0.fc1.weight"), expected)
    assert opened == [path.name for path in holding]
    opened.clear()
    assert same(read_tensor_rows(folder, "blocks.0.fc1.weight", 0, 2), expected[:2])
    assert opened == [holding[0].name]


def test_a_damaged_tensor_does_not_hinder_another(package: Path) -> None:
    expected = read(package).weights
    edit(
        package / "weights.py",
        '"blocks.0.out.bias": ("dec", (8,), 0, 8, (\n',
        '"blocks.0.out.bias": ("dec", (8,), 0, 8, (\nx\n',
    )
    assert same(read_tensor(package, "blocks.0.fc1.weight"), expected["blocks.0.fc1.weight"])
    assert same(read_tensor(package, "embedding.weight"), expected["embedding.weight"])
    with pytest.raises(PackageError, match=r"^weights\.py:0: not a number; .*$"):
        read_tensor(package, "blocks.0.out.bias")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('(12, 8), 0, 12, (\n', '(12, 9), 0, 12, (\n', r"is \(12, 9\), but config\.py demands \(12, 8\)"),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 11, (\n', "a row too many"),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 13, (\n', "has 12 rows, not 0 \\+ 13"),
        ('(12, 8), 0, 12, (\n        "', '(12, 8), 0, 12, (\n        # "', "the file ends inside a tensor"),
        ('("f32", (12, 8)', '("f64", (12, 8)', 'cannot be stored as "f64"'),
        ('(12, 8), 0, 12, (\n        "', '(12, 8), 0, 12, (\n        "!', r"^weights\.py:0: "),
        ('(12, 8), 0, 12, (\n', '(12, 8), 0, 12, (\n# \u202e\n', r"hidden character U\+202E"),
        ('"embedding.weight"', '"embedding_weight"', 'row 0 of "embedding.weight" is missing'),
    ],
)  # fmt: skip
def test_a_tensor_that_is_wrong(package: Path, old: str, new: str, message: str) -> None:
    edit(package / "weights.py", old, new)
    with pytest.raises(PackageError, match=message) as caught:
        read_tensor(package, "embedding.weight")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("weights.py:0: ")


def test_tensors_and_rows_that_are_not_there(package: Path) -> None:
    for start, stop in ((0, 13), (-1, 2), (3, 2), (12, 13)):
        with pytest.raises(
            PackageError, match=rf"^weights\.py:0: there are no rows {start} to {stop} of .*; it has 12$"
        ):
            read_tensor_rows(package, "embedding.weight", start, stop)
    with pytest.raises(PackageError, match=r'^weights\.py:0: there is no tensor "no_such"$'):
        read_tensor(package, "no_such")
    with pytest.raises(PackageError, match=r'^weights\.py:0: there is no tensor "no_such"$'):
        read_tensor_rows(package, "no_such", 0, 1)
    (package / "weights.py").unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        read_tensor(package, "embedding.weight")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tiny_texts(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_accepted_means_what_python_means(
    tmp_path: Path, tiny: dict[str, bytes], dtype: str, data: st.DataObject
) -> None:
    text = tiny[dtype]
    assert check_it_means_what_python_means(tmp_path, text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 1, 2, 8, 39]))
        text = text[:at] + data.draw(st.sampled_from([b"", *FRAGMENTS])) + text[at + cut :]
    check_it_means_what_python_means(tmp_path, text)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_a_comment_before_every_row_stays_linear(tmp_path: Path, dtype: str) -> None:
    config = {**TINY, "VOCAB_SIZE": 3000}
    values = weights(config)
    save_shards(tmp_path, shard_texts(values, dtype))
    text = re.sub(
        '^        (?=["(])', "        # x\n        ", (tmp_path / "weights.py").read_text(), flags=re.MULTILINE
    )
    (tmp_path / "weights.py").write_bytes(text.encode())
    taken = []
    original = reader.Lines.peek

    def counting(self: reader.Lines, size: int) -> memoryview:
        taken.append(min(size, self.left))
        return original(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader.Lines, "peek", counting)
        result = reader.read_weights(tmp_path, reader.tensor_shapes(config))
    assert np.array_equal(result["embedding.weight"], MATRIX_TYPES[dtype].rounded(values["embedding.weight"]))
    assert sum(taken) < 8 * len(text)
