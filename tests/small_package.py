"""A tiny model and its package, for tests of the format and of its runtime."""

from __future__ import annotations

import ast
import base64
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qalam_core.arabic import NORMALISATIONS
from qalam_core.package import ModelConfig, Vocabulary, comments, read, read_tensor_rows, seek, write
from qalam_core.package.editing import rows
from qalam_core.package.releases import code_files
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.statistics import statistics
from qalam_core.package.write import _shard_text, _shards
from tests import GOLDEN

writer = sys.modules["qalam_core.package.write"]
Shapes = Mapping[str, tuple[int, ...]]

CONFIG = ModelConfig(vocab_size=12, dim=8, num_heads=2, num_layers=2, max_seq_len=10)
LLAMA = ModelConfig(
    vocab_size=12, dim=8, num_heads=4, num_layers=2, max_seq_len=10, block="llama", num_kv_heads=2, head_dim=6,
    hidden_dim=20, rope_base=500.0, norm_epsilon=1e-5, qk_norm=False,
)  # fmt: skip
WORDS = ("<PAD>", "<UNK>", "<START>", "<END>", "القط", "يأكل", "السمك", '"', "\\", "تشكيلٌ", "😀", "في")


def vocabulary(**changes: Any) -> Vocabulary:
    return Vocabulary("word", WORDS, (), NORMALISATIONS["vocalised"])._replace(**changes)


def weights(config: ModelConfig = CONFIG, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
    return random_tensors(config.tensor_shapes(), seed, scale)


def random_tensors(shapes: Shapes, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: random.normal(1.0 if "ln" in name and name.endswith("weight") else 0.0, scale, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def without_blocks(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a model but for its blocks: a weights file of every kind of tensor that is still short."""
    return {name: shape for name, shape in config.tensor_shapes().items() if not name.startswith("blocks.")}


def export(folder: Path, **changes: Any) -> Path:
    config = changes.pop("config", CONFIG)
    arguments: dict[str, Any] = {
        "config": config, "vocabulary": vocabulary(), "weights": weights(config), "card": "# بطاقة",
        "provenance": {"recipe": "0" * 64},
    }  # fmt: skip
    write(folder, **{**arguments, **changes})
    return folder


def golden_package(folder: Path) -> Path:
    """The package of tests/golden: its data files from there, and the code that every package carries."""
    shutil.copytree(GOLDEN / "tiny_package", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in code_files().items():
        (folder / name).write_bytes(content)
    return folder


def row_of(folder: Path, name: str, row: int) -> np.ndarray:
    """One row of a tensor (of a vector, one value), read by seeking."""
    return read_tensor_rows(folder, name, row, row + 1).reshape(-1)


def run_file(path: Path) -> dict[str, Any]:
    """What plain import of a data file gives."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def edit(path: Path, old: str, new: str) -> None:
    """Replace the first `old` in a file, which must be present."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())


def same_weights(some: Path, other: Path) -> bool:
    """Whether two packages hold the same tensors, to the bit."""
    left, right = read(some).weights, read(other).weights
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def shard_texts(values: dict[str, np.ndarray], dtype: str) -> list[bytes]:
    """The content of weights.py, weights_001.py, ..."""
    row_type, measured = MATRIX_TYPES[dtype], {name: statistics(tensor) for name, tensor in values.items()}
    words = tuple(f"كلمة{row}" for row in range(max(map(len, values.values()))))
    return [b"".join(_shard_text(values, row_type, measured, words, shard)) for shard in _shards(values, row_type)]


@contextmanager
def named_rows(count: int) -> Iterator[None]:
    """Groups of so many rows below the comments that name them: small tensors have several then."""
    modules = reader, seek, comments, writer, rows
    before = reader.NAMED_ROWS
    for module in modules:
        module.NAMED_ROWS = count  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.NAMED_ROWS = before  # type: ignore[attr-defined]


def save_shards(folder: Path, texts: list[bytes]) -> None:
    for number, text in enumerate(texts):
        (folder / (f"weights_{number:03d}.py" if number else "weights.py")).write_bytes(text)


def python_row(dtype: str, row: Any) -> np.ndarray:
    """The values of one matrix row as Python sees it, by the specification and without the reader."""
    if isinstance(row, list):
        return np.array(row, np.float64).astype(np.float32)
    if dtype == "f32":
        return np.frombuffer(base64.b64decode(row), "<f4")
    if dtype == "f16":
        return np.frombuffer(base64.b64decode(row), "<f2").astype(np.float32)
    if dtype == "bf16":
        return (np.frombuffer(base64.b64decode(row), "<u2").astype("<u4") << 16).view("<f4")
    scale, text = row
    if dtype == "i8":
        integers = np.frombuffer(base64.b64decode(text), "<i1")
    else:
        integers = np.array([int(text[at : at + 4]) for at in range(0, len(text), 4)], np.int8)
    return np.float32(scale) * integers.astype(np.float32)


def python_values(entry: Any) -> np.ndarray:
    """The values of one WEIGHTS entry."""
    dtype, shape, _, rows, lines = entry
    if dtype == "dec":
        values = np.array([np.float64(value) for value in lines]).astype(np.float32)
    else:
        values = np.stack([python_row(dtype, line) for line in lines])
    assert values.shape == (rows, *shape[1:])
    return values


TINY = ModelConfig(vocab_size=5, dim=5, num_heads=1, num_layers=1, max_seq_len=2)
TINY_SHAPES = without_blocks(TINY)


def tiny_texts(folder: Path) -> dict[str, bytes]:
    """For each type a weights file of 45 values that holds every form a row may take."""
    values, texts = random_tensors(TINY_SHAPES), {}
    values["embedding.weight"][1] = 0
    for dtype in MATRIX_TYPES:
        save_shards(folder, shard_texts(values, dtype))
        lines = (folder / "weights.py").read_text(encoding="utf-8").split("\n")
        lines[8] = "        [0.5, -1, 2e-3, -0, -0.0],  # by hand"
        texts[dtype] = "\n".join(lines).encode()
    return texts


FRAGMENTS = [
    b"0", b"-", b"1", b"9", b"e5", b".", b",", b'"', b"=", b"A", b"\n", b" ", b"#", b"[", b"]", b"(", b")",
    b"+", b"_", b"\\", b"\r", b"\t", b"\xe2\x80\xae", b"nan", b"1e999", b"0x1", b"07", b"# x\n", b"/",
    b"f16", b"        0.5,\n",
    b'        "AAAAAAAAAAAAAAAAAAAAAAAAAAA=",\n', b"        [1, 2, 3, 4, 5],\n", b"}", b"{",
    b"-0,", b"1_0", b"\x00", b"gICA", b"e-00", b"e-39", b"e+36", b"0.00000000e+00", b" -0", b"-128", b"  12", b"-1 2",
    b'        (1.00000000e-03, "   1  -2  33 -44 127"),\n', b'        (1.00000000e-03, "AAAAAAA="),\n',
]  # fmt: skip


def check_it_means_what_python_means(folder: Path, text: bytes) -> bool:
    """Whether this weights.py of the tiny model is accepted; however it is read, the outcome must be one.

    The same refusal, one line, or the values that Python gives the text. Anything else raises.
    """
    (folder / "weights.py").write_bytes(text)
    results: list[dict[str, np.ndarray] | str] = []
    for block in (reader.BLOCK, 80, 0):
        try:
            results.append(reader.read_weights(folder, TINY_SHAPES, block=block))
        except reader.FormatError as error:
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[1:] == results[:1] * 2
        assert "\n" not in results[0]
        return False
    meant = ast.literal_eval(text.decode().partition("WEIGHTS = ")[2])
    for result in results:
        assert isinstance(result, dict), result
        assert set(result) == set(meant)
        for name, entry in meant.items():
            assert result[name].tobytes() == python_values(entry).tobytes()
    return True
