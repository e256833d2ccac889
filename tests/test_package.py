from __future__ import annotations

import ast
import base64
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
from qalam_core.package import code_digests, read, read_tensor_row, verify
from qalam_core.package import write as write_package
from qalam_core.package.runtime import __version__, reader
from qalam_core.package.write import _write_weights, statistics
from tests.small_package import CONFIG, WORDS, contents, export, vocabulary, weights

SHAPES = reader.tensor_shapes(CONFIG)
FLOATS = {"f32": "<f4", "f16": "<f2"}


def run_file(path: Path) -> dict[str, Any]:
    """What plain import of a data file gives."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def python_values(entry: Any) -> np.ndarray:
    """The values of one WEIGHTS entry, by the specification and without the reader."""
    dtype, shape, _, rows, lines = entry
    if dtype == "dec":
        values = np.array([np.float64(value) for value in lines]).astype(np.float32)
    else:
        decoded = [
            np.frombuffer(base64.b64decode(line), FLOATS[dtype]) if isinstance(line, str)
            else np.array(line, np.float64).astype(FLOATS[dtype])
            for line in lines
        ]  # fmt: skip
        values = np.stack(decoded).astype(np.float32)
    assert values.shape == (rows, *shape[1:])
    return values


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return export(tmp_path / "model")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


@pytest.mark.parametrize("dtype", ["f32", "f16"])
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
    for name, tensor in weights(config).items():
        expected = tensor.astype(np.float16).astype(np.float32) if dtype == "f16" and tensor.ndim == 2 else tensor
        assert np.array_equal(package.weights[name], expected), name


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
            env={**os.environ, "PYTHONHASHSEED": seed}, cwd=Path(__file__).parent.parent,
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


def test_large_models_are_cut_at_row_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qalam_core.package.write"], "SHARD_LIMIT", 3000)
    folder = export(tmp_path / "model")
    files = [path.name for path in reader.weight_files(folder)]
    assert files[:3] == ["weights.py", "weights_001.py", "weights_002.py"]
    assert all((folder / name).stat().st_size <= 3000 for name in files)
    package = read(folder)
    for name, tensor in weights().items():
        assert np.array_equal(package.weights[name], tensor), name
        for row in (0, len(tensor) // 2, len(tensor) - 1):
            assert np.array_equal(read_tensor_row(folder, name, row).ravel(), np.ravel(tensor[row])), (
                name,
                row,
            )
    parts: dict[str, list[np.ndarray]] = {}
    for name in files:
        for tensor_name, entry in run_file(folder / name)["WEIGHTS"].items():
            parts.setdefault(tensor_name, []).append(python_values(entry))
    for name, pieces in parts.items():
        assert np.array_equal(np.concatenate(pieces), weights()[name])
    (folder / "weights_002.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(PackageError, match=r"weights_002\.py"):
        read(folder)


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
        (
            {"weights": {**weights(), "pos_embedding": np.full((10, 8), 1e5)}, "dtype": "f16"},
            "not finite in f16",
        ),
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
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in project


def test_a_release_keeps_its_code() -> None:
    """What a published version wrote stays readable: once its digests stand in releases.json, a change to
    a shipped file needs a new version."""
    folder = Path(__file__).parent.parent / "qalam_core" / "package"
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


TINY = {"VOCAB_SIZE": 5, "DIM": 5, "NUM_LAYERS": 0, "MAX_SEQ_LEN": 2, "TIED": True}
TINY_SHAPES = reader.tensor_shapes(TINY)


@pytest.fixture(scope="module")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A weights file of 45 values that holds every form a row may take."""
    folder, values = tmp_path_factory.mktemp("tiny"), weights(TINY)
    _write_weights(folder, values, "f32", {name: statistics(tensor) for name, tensor in values.items()})
    lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
    lines[7] = "        [0.5, -1, 2e-3, -0, -0.0],  # by hand"
    return "\n".join(lines).encode()


FRAGMENTS = [
    b"0", b"-", b"1", b"9", b"e5", b".", b",", b'"', b"=", b"A", b"\n", b" ", b"#", b"[", b"]", b"(", b")",
    b"+", b"_", b"\\", b"\r", b"\t", b"\xe2\x80\xae", b"nan", b"1e999", b"0x1", b"07", b"# x\n", b"/",
    b"f16", b"        0.5,\n",
    b'        "AAAAAAAAAAAAAAAAAAAAAAAAAAA=",\n', b"        [1, 2, 3, 4, 5],\n", b"}", b"{",
    b"-0,", b"1_0", b"\x00",
]  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_accepted_means_what_python_means(tmp_path: Path, tiny_text: bytes, data: st.DataObject) -> None:
    text = tiny_text
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 1, 2, 8, 39]))
        text = text[:at] + data.draw(st.sampled_from([b"", *FRAGMENTS])) + text[at + cut :]
    (tmp_path / "weights.py").write_bytes(text)
    results = []
    for block in (reader.BLOCK, 80, 0):
        try:
            results.append(reader.read_weights(tmp_path, TINY_SHAPES, block=block))
        except reader.FormatError as error:
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[1:] == results[:1] * 2
        assert "\n" not in results[0]
        return
    meant = ast.literal_eval(text.decode().partition("WEIGHTS = ")[2])
    for result in results:
        assert set(result) == set(meant)
        for name, entry in meant.items():
            assert result[name].tobytes() == python_values(entry).tobytes()


def test_a_comment_before_every_row_stays_linear(tmp_path: Path) -> None:
    config = {**TINY, "VOCAB_SIZE": 3000}
    values = weights(config)
    _write_weights(tmp_path, values, "f32", {name: statistics(tensor) for name, tensor in values.items()})
    text = (tmp_path / "weights.py").read_text(encoding="utf-8").replace('        "', '        # x\n        "')
    (tmp_path / "weights.py").write_bytes(text.encode())
    taken = []
    original = reader.Lines.peek

    def counting(self: reader.Lines, size: int) -> memoryview:
        taken.append(min(size, self.left))
        return original(self, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader.Lines, "peek", counting)
        result = reader.read_weights(tmp_path, reader.tensor_shapes(config))
    assert np.array_equal(result["embedding.weight"], weights(config)["embedding.weight"])
    assert sum(taken) < 8 * len(text)
