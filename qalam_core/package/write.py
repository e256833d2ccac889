"""Writes a model as a folder of Python source: the same input gives the same bytes, always.
Takes a config, a vocabulary, weights and two texts, gives the files described in docs/package_format.md.
It does not know how any of them came about, nor does it read a package back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.runtime.reader import MAGIC, MATRIX_TYPES, row_width, tensor_shapes
from qalam_core.package.runtime.settings import (
    CONFIG_LIMITS,
    CONFIG_MAGIC,
    INVERSE,
    KNOWLEDGE_MAGIC,
    SPECIALS,
    VOCAB_MAGIC,
    check_config,
    quote,
)
from qalam_core.package.runtime.tokenizer import Tokenizer

try:  # the same text, several times faster
    from pybase64 import b64encode
except ImportError:
    b64encode = base64.b64encode  # type: ignore[assignment]

__all__ = ["CODE", "FORMAT", "Vocabulary", "code_digests", "code_files", "row_checksums", "write"]

FORMAT = 1
SHARD_LIMIT = 16_000_000
CODE = ("__init__.py", "__main__.py", "loader.py", "model.py", "reader.py", "runtime.py", "settings.py",
        "tokenizer.py")  # fmt: skip
NEIGHBOUR_WORDS, NEIGHBOURS = 32, 8

_PREAMBLE = "# fmt: off\n# ruff: noqa\n"
_GITATTRIBUTES = "*.py text eol=lf\n*.json text eol=lf\n*.md text eol=lf\n"
_BLOCK = 1 << 20

Weights = Mapping[str, NDArray[np.float32]]
Measured = Mapping[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as data; tokens and merges are in the readable form that runtime/tokenizer.py explains."""

    algorithm: str
    words: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    rules: tuple[tuple[str, str], ...]
    tokenizer_json: str


def write(
    folder: Path,
    *,
    config: Mapping[str, int | str | bool],
    vocabulary: Vocabulary,
    weights: Mapping[str, NDArray[Any]],
    card: str,
    provenance: Mapping[str, str],
    dtype: str = "f32",
) -> None:
    """Write a package into `folder`, which must be absent or empty; manifest.json comes last.

    FORMAT and PARAMETERS may be left out of `config`. `dtype` is the storage type of the matrices;
    what it rounds is rounded here, and the manifest speaks of the rounded values.
    """
    values = _checked_weights(config, weights, dtype)
    full = _full_config(config, values)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder}: not an empty folder; choose another name or delete it")
    _check_vocabulary(vocabulary, int(full["VOCAB_SIZE"]))
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name: statistics(tensor) for name, tensor in values.items()}
    texts = {
        **code_files(),
        ".gitattributes": _GITATTRIBUTES.encode(),
        "MODEL_CARD.md": _ended(card).encode(),
        "config.py": _config_text(full).encode(),
        "knowledge_map.py": _knowledge_text(measured, values["embedding.weight"], vocabulary.words).encode(),
        "tokenizer.json": vocabulary.tokenizer_json.encode(),
        "vocab.py": _vocab_text(vocabulary).encode(),
        "rows.json": _json({name: _packed(row_checksums(tensor)) for name, tensor in values.items()}),
    }
    files = _write_weights(folder, values, dtype, measured)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
        files[name] = hashlib.sha256(text).hexdigest()
    manifest = {
        "dtype": dtype,
        "files": files,
        "format": FORMAT,
        "provenance": dict(provenance),
        "tensors": {name: tensor_digest(tensor) for name, tensor in values.items()},
    }
    (folder / "manifest.json").write_bytes(_json(manifest))


def code_files() -> dict[str, bytes]:
    """The source files every package carries, as this release writes them."""
    here = Path(__file__).parent
    return {name: (here.parent / name if name == "model.py" else here / "runtime" / name).read_bytes() for name in CODE}


def code_digests() -> dict[str, str]:
    """sha256 of each of those files: an exported package depends on them as on its weights."""
    return {name: hashlib.sha256(text).hexdigest() for name, text in code_files().items()}


def tensor_digest(tensor: NDArray[np.float32]) -> str:
    """sha256 of a tensor's values as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(tensor, "<f4").data).hexdigest()


def row_checksums(tensor: NDArray[np.float32]) -> NDArray[np.uint32]:
    """CRC-32 of each row (of each value, for one dimension): enough to name what was edited."""
    rows = np.ascontiguousarray(tensor, "<f4").reshape(len(tensor), -1)
    return np.array([zlib.crc32(row.data) for row in rows], "<u4")


def _packed(checksums: NDArray[np.uint32]) -> str:
    return base64.b64encode(checksums.tobytes()).decode()


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _ended(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _checked_weights(
    config: Mapping[str, int | str | bool], weights: Mapping[str, NDArray[Any]], dtype: str
) -> dict[str, NDArray[np.float32]]:
    if dtype not in MATRIX_TYPES:
        raise PackageError(f'dtype "{dtype}": known are {", ".join(MATRIX_TYPES)}')
    shapes = tensor_shapes(config)
    if extra := sorted(set(weights) - set(shapes)):
        raise PackageError(f'"{extra[0]}" is no tensor of this model; its config has no place for it')
    values = dict[str, NDArray[np.float32]]()
    for name, shape in shapes.items():
        tensor = weights.get(name)
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise PackageError(f'"{name}" is {found}; the config demands {shape}')
        with np.errstate(over="ignore"):
            stored = tensor.astype(MATRIX_TYPES[dtype] if tensor.ndim == 2 else np.float32, copy=False)
        if not np.isfinite(stored).all():
            raise PackageError(f'"{name}" holds a value that is not finite in {dtype}; the model diverged?')
        values[name] = stored.astype(np.float32, copy=False)
    return values


def _full_config(config: Mapping[str, int | str | bool], values: Weights) -> dict[str, int | float | str | bool]:
    facts = {"FORMAT": FORMAT, "PARAMETERS": sum(tensor.size for tensor in values.values())}
    for name, value in facts.items():
        if config.get(name, value) != value:
            raise PackageError(f"config {name} is {config[name]}, but this package's is {value}; leave it out")
    merged: dict[str, int | float | str | bool] = {**config, **facts}
    if reason := check_config(merged):
        raise PackageError(f"config: {reason}")
    return {name: merged[name] for name in CONFIG_LIMITS}


def _check_vocabulary(vocabulary: Vocabulary, size: int) -> None:
    words = vocabulary.words
    if len(words) != size:
        raise PackageError(f"vocabulary: {len(words)} words, but VOCAB_SIZE is {size}")
    if words[:4] != SPECIALS or len(set(words)) != size:
        raise PackageError(f"vocabulary: words must differ, and the first four be {', '.join(SPECIALS)}")
    texts = [*words, *(text for pair in (*vocabulary.merges, *vocabulary.rules) for text in pair)]
    try:
        "".join([*texts, vocabulary.tokenizer_json]).encode()
        Tokenizer(vocabulary.algorithm, words, vocabulary.merges, vocabulary.rules)
    except ValueError as error:
        raise PackageError(f"vocabulary: {error}") from None


def _config_text(config: Mapping[str, int | float | str | bool]) -> str:
    lines = [f"{key} = {quote(value) if isinstance(value, str) else value}" for key, value in config.items()]
    return "\n".join([CONFIG_MAGIC, *lines, ""])


def _vocab_text(vocabulary: Vocabulary) -> str:
    words = [f"    {quote(word)}: {index}," for index, word in enumerate(vocabulary.words)]
    rules = [f"    ({_quote_rule(left)}, {_quote_rule(right)})," for left, right in vocabulary.rules]
    merges = [f"    ({quote(left)}, {quote(right)})," for left, right in vocabulary.merges]
    lines = [
        f"ALGORITHM = {quote(vocabulary.algorithm)}",
        "# NFKC, then each (pattern, replacement) in order, then NFKC and strip",
        *("NORMALISE = (", *rules, ")"),
        *("WORD2IDX = {", *words, "}"),
        *("MERGES = (", *merges, ")"),
        *(INVERSE, ""),
    ]
    return f"{VOCAB_MAGIC}\n{_PREAMBLE}" + "\n".join(lines)


def _quote_rule(text: str) -> str:
    """As `quote`; marks that would sit on their neighbours are escaped too, as here they stand alone."""
    return re.sub("[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\u08d3-\u08ff]", _code, quote(text))


def _code(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _write_weights(folder: Path, values: Weights, dtype: str, measured: Measured) -> dict[str, str]:
    """weights.py and its continuations, each at most SHARD_LIMIT bytes; their names and digests."""
    digests: dict[str, str] = {}
    parts = list(_shards(values, dtype))
    for number, shard in enumerate(parts):
        name = f"weights_{number:03d}.py" if number else "weights.py"
        digest = hashlib.sha256()
        with (folder / name).open("wb") as file:
            for text in _shard_text(values, dtype, measured, shard):
                file.write(text)
                digest.update(text)
        digests[name] = digest.hexdigest()
    return digests


Part = tuple[str, int, int]  # tensor, first row, rows


def _shards(values: Weights, dtype: str) -> Iterator[list[Part]]:
    """Fill each file with whole rows, in tensor order, up to the limit."""
    shard: list[Part] = []
    room = SHARD_LIMIT
    for name, tensor in values.items():
        first, rows = 0, len(tensor)
        # 24 bytes hold the longest float32 on its line; 512 the headers and the comment
        width = row_width(tensor.shape[1], MATRIX_TYPES[dtype]) if tensor.ndim == 2 else 24
        while first < rows:
            fitting = min((room - 512) // width, rows - first)
            if fitting <= 0 and shard:
                yield shard
                shard, room = [], SHARD_LIMIT
                continue
            fitting = max(1, fitting)
            shard.append((name, first, fitting))
            first += fitting
            room -= 512 + fitting * width
    yield shard


def _shard_text(values: Weights, dtype: str, measured: Measured, shard: list[Part]) -> Iterator[bytes]:
    yield f"{MAGIC}\n{_PREAMBLE}WEIGHTS = {{\n".encode()
    for name, first, rows in shard:
        tensor = values[name]
        if not first:
            mean, std, low, high = measured[name]
            yield f"    # mean={mean:.3e} std={std:.3e} min={low:.3e} max={high:.3e} (as exported)\n".encode()
        kind = dtype if tensor.ndim == 2 else "dec"
        yield f'    "{name}": ("{kind}", {tensor.shape}, {first}, {rows}, (\n'.encode()
        part = tensor[first : first + rows]
        yield from _matrix_text(part, dtype) if tensor.ndim == 2 else [_values_text(part)]
        yield b"    )),\n"
    yield b"}\n"


def _matrix_text(rows: NDArray[np.float32], dtype: str) -> Iterator[bytes]:
    width = row_width(rows.shape[1], MATRIX_TYPES[dtype])
    row_bytes = rows.shape[1] * MATRIX_TYPES[dtype].itemsize
    pad = -row_bytes % 3
    step = max(1, _BLOCK // width)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(MATRIX_TYPES[dtype])
        raw = np.zeros((len(block), row_bytes + pad), np.uint8)
        raw[:, :row_bytes] = block.view(np.uint8)
        text = np.empty((len(block), width), np.uint8)
        text[:, :9] = np.frombuffer(b'        "', np.uint8)
        text[:, 9:-3] = np.frombuffer(b64encode(raw.data), np.uint8).reshape(len(block), -1)
        if pad:  # zero bytes up to a multiple of three encode as "A"; canonical base64 says "="
            text[:, -3 - pad : -3] = ord("=")
        text[:, -3:] = np.frombuffer(b'",\n', np.uint8)
        yield text.tobytes()


def _values_text(values: NDArray[np.float32]) -> bytes:
    return "".join(f"        {shortest(value)},\n" for value in values).encode()


def shortest(value: np.float32) -> str:
    """The shortest decimal that reads back as the same float32, with a point or an exponent."""
    text = repr(float(str(value)))
    return text if np.float32(float(text)) == value else repr(float(value))


def statistics(tensor: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """(mean, standard deviation, least, largest) in float64, block by block."""
    flat = tensor.reshape(-1)
    blocks = [flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK)]
    mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / len(flat)
    squares = sum(float(np.square(block - np.float64(mean)).sum()) for block in blocks)
    return mean, float(np.sqrt(squares / len(flat))), float(flat.min()), float(flat.max())


def _knowledge_text(measured: Measured, embedding_VC: NDArray[np.float32], words: tuple[str, ...]) -> str:
    facts = [f"    {quote(name)}: ({', '.join(f'{value:.6e}' for value in four)})," for name, four in measured.items()]
    neighbours = [
        f"    {quote(word)}: ({' '.join(f'({quote(near)}, {cosine:.3f}),' for near, cosine in nearest)}),"
        for word, nearest in _nearest(embedding_VC, words)
    ]
    lines = [
        "# what can be read off the weights, as exported",
        "# tensor: (mean, standard deviation, least, largest)",
        *("STATISTICS = {", *facts, "}"),
        "# frequent word: the tokens whose embeddings point most nearly the same way, with the cosine",
        *("NEIGHBOURS = {", *neighbours, "}", ""),
    ]
    return f"{KNOWLEDGE_MAGIC}\n{_PREAMBLE}" + "\n".join(lines)


def _nearest(
    embedding_VC: NDArray[np.float32], words: tuple[str, ...]
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    ordinary = (index for index, word in enumerate(words) if index > 3 and _ordinary(word))
    chosen = list(islice(ordinary, NEIGHBOUR_WORDS))
    length_V = np.sqrt(np.einsum("vc,vc->v", embedding_VC, embedding_VC, dtype=np.float64))
    length_V = np.maximum(length_V, 1e-30)
    cosines_NV = np.empty((len(chosen), len(words)))
    query_NC = embedding_VC[chosen].astype(np.float64) / length_V[chosen, None]
    for start in range(0, len(words), 4096):
        block = embedding_VC[start : start + 4096].astype(np.float64)
        cosines_NV[:, start : start + 4096] = query_NC @ block.T / length_V[start : start + 4096]
    for index, row in zip(chosen, np.round(cosines_NV, 3), strict=True):
        row[[0, 1, 2, 3, index]] = -2
        order = np.lexsort((np.arange(len(row)), -row))[:NEIGHBOURS]  # equal to three digits: lower id first
        yield words[index], [(words[near], float(row[near]) + 0.0) for near in order if row[near] > -2]


def _ordinary(word: str) -> bool:
    letters = word.strip()
    return len(letters) > 1 and all(unicodedata.category(char)[0] in "LM" for char in letters)
