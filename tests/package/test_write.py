from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qalam_core.errors import PackageError
from qalam_core.package import read
from qalam_core.package import write as write_package
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.architecture import SPECIALS
from qalam_core.package.runtime.rows import MATRIX_TYPES
from tests import ROOT
from tests.small_package import (
    CONFIG,
    WORDS,
    contents,
    export,
    python_values,
    row_of,
    run_file,
    vocabulary,
    weights,
)


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_round_trip_gives_the_same_bytes(tmp_path: Path, dtype: str, tied: bool) -> None:
    config = replace(CONFIG, tied=tied)
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


@pytest.mark.usefixtures("processes")
def test_the_bytes_do_not_depend_on_the_hash_seed_or_pybase64(tmp_path: Path, package: Path) -> None:
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
    assert {key: config[key] for key in loaded.config.constants()} == loaded.config.constants()
    assert run_file(package / "knowledge_map.py")["NEIGHBOURS"]["القط"]


@pytest.mark.parametrize("dtype", MATRIX_TYPES)
def test_large_models_are_split_between_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
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
            assert np.array_equal(row_of(folder, name, row).ravel(), np.ravel(tensor[row])), (name, row)
    parts: dict[str, list[np.ndarray]] = {}
    for name in files:
        for tensor_name, entry in run_file(folder / name)["WEIGHTS"].items():
            parts.setdefault(tensor_name, []).append(python_values(entry))
    for name, pieces in parts.items():
        assert np.array_equal(np.concatenate(pieces), expected[name])
    (folder / "weights_002.py").rename(tmp_path / "elsewhere.py")
    with pytest.raises(PackageError, match=r"weights_002\.py"):
        read(folder)


def test_hidden_characters_are_escaped_and_restored(tmp_path: Path) -> None:
    words: tuple[str, ...] = (*SPECIALS, "\u202e", "\u200f", "\ufeff", "\xa0", "\\xd8", '"\\n\n\t', "\U000e0041", "é")
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
        ({"weights": {**weights(), "extra": np.zeros(3)}}, '"extra" is not a tensor'),
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
def test_invalid_arguments_of_write_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        export(tmp_path / "model", **changes)


def test_write_refuses_a_folder_that_is_not_empty(package: Path) -> None:
    with pytest.raises(PackageError, match="not an empty folder"):
        export(package)


def test_float32_extremes_are_exact_as_decimals(tmp_path: Path) -> None:
    limits = np.finfo(np.float32)
    values = np.array(
        [limits.max, limits.tiny, limits.smallest_subnormal, -0.0, 0.1, 1 / 3, 16777217, 1e-10], np.float32
    )
    folder = export(tmp_path / "model", weights={**weights(), "ln_out.bias": values})
    assert read(folder).weights["ln_out.bias"].tobytes() == values.tobytes()
    assert python_values(run_file(folder / "weights.py")["WEIGHTS"]["ln_out.bias"]).tobytes() == values.tobytes()


def test_the_manifest_has_no_times_or_paths(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) == {"dtype", "files", "format", "provenance", "tensors"}
    assert str(package) not in str(manifest)
