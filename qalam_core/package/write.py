"""Writes a model as a folder of Python source (docs/package_format.md); the same input gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.files import WRONG_PLACE, is_unicode, sha256_bytes
from qalam_core.package.comments import header_comment, is_named, lines_of, rows_in, word_comment
from qalam_core.package.releases import code_files
from qalam_core.package.runtime.architecture import SPECIALS, ModelConfig
from qalam_core.package.runtime.data_reader import CONFIG_MAGIC, FORMAT, INVERSE, VOCAB_MAGIC, quote, rules_error
from qalam_core.package.runtime.rows import MATRIX_TYPES, RowType, shortest
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary
from qalam_core.package.runtime.weights_reader import MAGIC, NAMED_ROWS, Threads, weight_file
from qalam_core.package.statistics import PREAMBLE, Measured, knowledge_text, statistics
from qalam_core.package.vocabulary import tokenizer_json

SHARD_LIMIT = 16_000_000
_TEXT = "text eol=lf diff merge -linguist-generated"  # also where the attributes of a folder above say otherwise
GITATTRIBUTES = (
    "".join(f"{name} {_TEXT}\n" for name in (".gitattributes", "*.py", "*.json", "*.md")).encode(),
    b".gitattributes text eol=lf\n*.py text eol=lf\n*.json text eol=lf\n*.md text eol=lf\n",
    b"*.py text eol=lf\n*.json text eol=lf\n*.md text eol=lf\n",
)
"""The contents of .gitattributes that readers accept; the first one is written."""

_BLOCK = 1 << 20
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # not tab and line feed
_MARKS = re.compile("[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed\u08d3-\u08ff]")

Weights = Mapping[str, NDArray[np.float32]]


def write(
    folder: Path,
    *,
    config: ModelConfig,
    vocabulary: Vocabulary,
    weights: Mapping[str, NDArray[Any]],
    card: str,
    provenance: Mapping[str, str],
    dtype: str = "f32",
) -> None:
    """Write a package into `folder`, which must be absent or empty; manifest.json last. Raises PackageError.

    `weights` are the tensors that `config` requires. `dtype` is the storage type of the matrices: values are rounded to
    it, and the manifest has the digests of the rounded values.
    """
    row_type = MATRIX_TYPES.get(dtype)
    if row_type is None:
        raise PackageError(f'dtype "{dtype}": known are {", ".join(MATRIX_TYPES)}')
    with Threads(os.cpu_count()) as pool:  # its work releases the GIL
        values = _checked_weights(pool, config, weights, row_type)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PackageError(f"{folder}: not an empty folder; choose another name or delete it")
        _check_vocabulary(vocabulary, config.vocab_size)
        for file, reason in (("MODEL_CARD.md", card_error(card)), ("manifest.json", provenance_error(provenance))):
            if reason:
                raise PackageError(f"{file}:0: {reason}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except WRONG_PLACE as error:
            raise PackageError(f"{folder}: cannot be created ({error.strerror}); name another folder") from None
        measured = dict(zip(values, pool.map(statistics, values.values()), strict=True))
        weight_files = _write_weights(pool, folder, values, row_type, measured, vocabulary.words)
        digests = pool.map(tensor_digest, values.values())
        texts = {
            **code_files(),
            ".gitattributes": GITATTRIBUTES[0],
            "MODEL_CARD.md": with_newline(card).encode(),
            "config.py": _config_text(config).encode(),
            "knowledge_map.py": knowledge_text(measured, values["embedding.weight"], vocabulary).encode(),
            "tokenizer.json": tokenizer_json(vocabulary).encode(),
            "vocab.py": _vocab_text(vocabulary).encode(),
            "rows.json": rows_json(values),
        }
        files = dict(weight_files)
        tensors = dict(zip(values, digests, strict=True))
    for name, text in texts.items():
        (folder / name).write_bytes(text)
        files[name] = sha256_bytes(text)
    manifest = {"dtype": dtype, "files": files, "format": FORMAT, "provenance": dict(provenance), "tensors": tensors}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))


def replace_card(folder: Path, card: str, provenance: Mapping[str, str] | None = None) -> None:
    """Replace a package's card and its digest in the manifest, which also gets entries of `provenance`; all other bytes
    stay."""
    if reason := card_error(card):
        raise PackageError(f"MODEL_CARD.md:0: {reason}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "MODEL_CARD.md").write_bytes(text := with_newline(card).encode())
    manifest["files"]["MODEL_CARD.md"] = sha256_bytes(text)
    manifest["provenance"] |= provenance or {}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))


def tensor_digest(tensor: NDArray[np.float32]) -> str:
    """sha256 of a tensor's values as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(tensor, "<f4").data).hexdigest()


def row_checksums(tensor: NDArray[np.float32]) -> NDArray[np.uint32]:
    """CRC-32 of each row (each value, for one dimension), to find edited rows."""
    rows = np.ascontiguousarray(tensor, "<f4").reshape(len(tensor), -1)
    return np.fromiter((zlib.crc32(row.data) for row in rows), "<u4", len(rows))


def rows_json(weights: Weights) -> bytes:
    """The content of rows.json: the checksums of all rows of all tensors."""
    checksums = {name: row_checksums(tensor).tobytes() for name, tensor in weights.items()}
    return json_bytes({name: base64.b64encode(raw).decode() for name, raw in checksums.items()})


def json_bytes(value: object) -> bytes:
    """JSON in the form of packages: sorted keys, a final newline."""
    return (json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def with_newline(text: str) -> str:
    """The text, with a final newline."""
    return text if text.endswith("\n") else text + "\n"


def card_error(card: str) -> str:
    """Why a text cannot be MODEL_CARD.md, which people read in terminals and web pages; "" if it can."""
    if found := _CONTROL.search(card):
        return f"control character U+{ord(found[0]):04X}; delete it"
    return "" if is_unicode(card) else "half of a surrogate pair, which is not Unicode text; delete it"


def provenance_error(provenance: Mapping[str, str]) -> str:
    """Why a manifest cannot have these names and texts; "" if it can."""
    for name, text in provenance.items():
        if card_error(pair := name + text) or "\n" in pair or "\t" in pair:
            return f'"provenance" has a control character at {name!a:.80}; use plain text in one line'
    return ""


def _checked_weights(
    pool: Threads, config: ModelConfig, weights: Mapping[str, NDArray[Any]], row_type: RowType
) -> dict[str, NDArray[np.float32]]:
    """The values as a reader gets them: float32, matrices rounded to their storage type."""
    shapes = config.tensor_shapes()
    if extra := sorted(set(weights) - set(shapes)):
        raise PackageError(f'"{extra[0]}" is not a tensor of this model; see its config')
    for name, shape in shapes.items():
        tensor = weights.get(name)
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise PackageError(f'"{name}" is {found}; the config requires {shape}')

    def stored(name: str) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(weights[name], np.float32)
        if values.ndim == 2 and row_type.rounds:
            given, values = values, np.empty_like(values)
            step = max(1, _BLOCK // 4 // values.shape[1])
            for start in range(0, len(values), step):
                block = given[start : start + step]
                values[start : start + step] = row_type.rounded(block) if np.isfinite(block).all() else block
        if not all(np.isfinite(part).all() for part in np.array_split(values, 1 + values.size // _BLOCK)):
            raise PackageError(f'"{name}" has a value that is not finite in {row_type.name}; did training diverge?')
        return values

    return dict(zip(shapes, pool.map(stored, shapes), strict=True))


def _check_vocabulary(vocabulary: Vocabulary, size: int) -> None:
    words = vocabulary.words
    if len(words) != size:
        raise PackageError(f"vocabulary: {len(words)} words, but VOCAB_SIZE is {size}")
    if len(set(words)) != size:
        raise PackageError("vocabulary: words must be unique")
    if not vocabulary.is_foreign and words[:4] != SPECIALS:
        raise PackageError(f"vocabulary: the first four words must be {', '.join(SPECIALS)}")
    if reason := rules_error(vocabulary.rules):
        raise PackageError(f"vocabulary: NORMALISE {reason}")
    try:
        "".join(chain(words, *vocabulary.merges, *vocabulary.rules)).encode()
        Tokenizer(vocabulary)
    except ValueError as error:
        raise PackageError(f"vocabulary: {error}") from None


def _config_text(config: ModelConfig) -> str:
    constants = {"FORMAT": FORMAT, **config.constants()}
    lines = [f"{key} = {quote(value) if isinstance(value, str) else value}" for key, value in constants.items()]
    return f"{CONFIG_MAGIC}\n{PREAMBLE}" + "\n".join([*lines, ""])


def _vocab_text(vocabulary: Vocabulary) -> str:
    words = [f"    {quote(word)}: {index}," for index, word in enumerate(vocabulary.words)]
    rules = [f"    ({_quote_rule(left)}, {_quote_rule(right)})," for left, right in vocabulary.rules]
    merges = [f"    ({quote(left)}, {quote(right)})," for left, right in vocabulary.merges]
    settings, specials = list[str](), list[str]()
    if vocabulary.is_foreign:
        settings = [f'SPLIT = "{vocabulary.split}"', f'UNICODE = "{vocabulary.form}"']
        settings.append(f"IGNORE_MERGES = {vocabulary.ignore_merges}")
        named = [(vocabulary.words[index], roles) for index, roles in vocabulary.specials.roles().items()]
        specials = ["SPECIALS = {", *(f'    {quote(name)}: "{roles}",' for name, roles in named), "}"]
    order = "# the pairs whose pattern has a character that NFKC would replace, NFKC, the other pairs, NFKC, strip"
    lines = [
        f"ALGORITHM = {quote(vocabulary.algorithm)}",
        *settings,
        *([order] if vocabulary.form == "NFKC" else []),
        *("NORMALISE = (", *rules, ")"),
        *("WORD2IDX = {", *words, "}"),
        *specials,
        *("MERGES = (", *merges, ")"),
        *(INVERSE, ""),
    ]
    return f"{VOCAB_MAGIC}\n{PREAMBLE}" + "\n".join(lines)


def _quote_rule(text: str) -> str:
    """As `quote`, and combining marks, which an editor would attach to their neighbours, are escaped too."""
    return _MARKS.sub(lambda found: f"\\u{ord(found[0]):04x}", quote(text))


def _write_weights(
    pool: Threads, folder: Path, values: Weights, row_type: RowType, measured: Measured, words: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """Write weights.py, weights_001.py, ..., each at most SHARD_LIMIT bytes; yields names and digests."""

    def write_shard(numbered: tuple[int, list[_Rows]]) -> tuple[str, str]:
        number, shard = numbered
        name = weight_file(number)
        digest = hashlib.sha256()
        with (folder / name).open("wb", buffering=0) as file:
            for text in _shard_text(values, row_type, measured, words, shard):
                file.write(text)
                digest.update(text)
        return name, digest.hexdigest()

    return pool.map(write_shard, enumerate(_shards(values, row_type)))


_Rows = tuple[str, int, int]  # tensor, first row, rows


def _shards(values: Weights, row_type: RowType) -> Iterator[list[_Rows]]:
    """Fill each file with complete rows, in tensor order, up to the limit."""
    shard: list[_Rows] = []
    free = SHARD_LIMIT
    for name, tensor in values.items():
        first, rows = 0, len(tensor)
        # 24 bytes suffice for the longest float32 with its line, 512 for the headers and the comment
        width = row_type.width(tensor.shape[1]) if tensor.ndim == 2 else 24
        while first < rows:
            lines = (free - 512) // width
            fitting = min(rows_in(lines) if is_named(name, width) else lines, rows - first)
            if fitting <= 0 and shard:
                yield shard
                shard, free = [], SHARD_LIMIT
                continue
            fitting = max(1, fitting)
            shard.append((name, first, fitting))
            first += fitting
            free -= 512 + (lines_of(fitting) if is_named(name, width) else fitting) * width
    yield shard


def _shard_text(
    values: Weights, row_type: RowType, measured: Measured, words: tuple[str, ...], shard: list[_Rows]
) -> Iterator[bytes | memoryview]:
    yield f"{MAGIC}\n{PREAMBLE}WEIGHTS = {{\n".encode()
    for name, first, rows in shard:
        tensor = values[name]
        if not first:
            yield f"    {header_comment(measured[name])}\n".encode()
        kind = row_type.name if tensor.ndim == 2 else "dec"
        yield f'    "{name}": ("{kind}", {tensor.shape}, {first}, {rows}, (\n'.encode()
        part = tensor[first : first + rows]
        if tensor.ndim == 2:
            width = row_type.width(tensor.shape[1])
            step = -(-_BLOCK // width // NAMED_ROWS) * NAMED_ROWS
            for start in range(0, rows, step):
                lines = row_type.encode(part[start : start + step])
                if not is_named(name, width):
                    yield lines.data
                    continue
                named: list[bytes | memoryview] = []
                for at in range(0, len(lines), NAMED_ROWS):
                    group, row = lines[at : at + NAMED_ROWS], first + start + at
                    named += word_comment(row, words[row : row + len(group)], width), group.data
                yield b"".join(named)  # the page cache reads a file faster that was not written in small pieces
        else:
            yield "".join(f"        {text},\n" for text in shortest(part)).encode()
        yield b"    )),\n"
    yield b"}\n"
