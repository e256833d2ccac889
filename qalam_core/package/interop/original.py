"""Imports packages of the original Al-Qalam (weights as base64 of zlib in a Python dict) without executing them.

Deflate can expand a thousandfold, so the output is bounded by the shapes from the config, by each shape's bytes while
decompressing, and for all tensors by the size of weights.py.
"""

from __future__ import annotations

import binascii
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.interop import common
from qalam_core.package.runtime.architecture import SPECIALS, ModelConfig
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary
from qalam_core.package.write import write

INFLATION_LIMIT = 16
"""Maximum bytes of weights per byte of weights.py. Trained float32 compresses by a tenth, a bomb a thousandfold."""
_SIZES = ("VOCAB_SIZE", "DIM", "NUM_HEADS", "NUM_LAYERS", "MAX_SEQ_LEN")
_OTHER_LINES = 200  # the dict is surrounded by a few imports and two small functions
_OTHER_WIDTH = 4096

_DOCSTRING = re.compile(r'(?:#[^\n]*\n)*\s*"""(?:[^"\\]|"(?!""))*+"""\n')
_SETTING = re.compile(r'([A-Z][A-Z0-9_]*) = (?:(0|[1-9][0-9]{0,17})|"[^"\\]*")')
_INVERSE = "IDX2WORD = {v: k for k, v in WORD2IDX.items()}"
_WORD = re.compile(r"""(?:'([^'\\]*+(?:\\.[^'\\]*+)*+)'|"([^"\\]*+(?:\\.[^"\\]*+)*+)"): (0|[1-9][0-9]{0,8})""")
_ESCAPE = re.compile(r"\\(?:([\\'\"nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|)")
_NAMED = {"n": "\n", "r": "\r", "t": "\t"}
_TENSOR = re.compile(
    rb' {4}"([a-z0-9_.]{1,64})": \("([A-Za-z0-9+/]++={0,2})", \(([1-9][0-9]{0,8}(?:,|(?:, [1-9][0-9]{0,8}){1,2}))\)\),'
)


def import_original(folder: Path, out: Path, *, dtype: str = "f32") -> list[str]:
    """Convert a package of the original Al-Qalam into a package `out`; -> remarks.

    Weights are bit-identical, the tokenizer is not. The original keeps adjacent Arabic letters, marks, digits and
    punctuation in one token and drops everything else. Ours, "word" with the normalisation "search", separates
    punctuation and digits from letters, drops vowel marks and tatweel, and gives <UNK> for what the original drops.
    A remark has the number of words that are unreachable for that reason. Rows of the embedding beyond the words are
    dropped, with a remark.
    """
    from qalam_core.arabic import NORMALISATIONS  # imports pyarrow, which packages do not need otherwise

    folder = common.source_folder(folder, "a package of the original")
    common.free_folder(out)
    files = [folder / name for name in ("config.py", "vocab.py", "weights.py")]
    for path in files:
        if path.is_symlink():
            _refuse(path.name, 0, "a link; put the file itself here")
    config = _read_config(files[0])
    words = _read_words(files[1], config.vocab_size)
    weights = _read_weights(files[2], config)
    config, weights, dropped = common.without_padding(config, weights, len(words), files[0].name)
    vocabulary = Vocabulary("word", words, (), NORMALISATIONS["search"])
    tokenizer = Tokenizer(vocabulary)
    lost = sum(tokenizer.encode(word) != [index] for index, word in enumerate(words[4:], 4))
    remarks = [
        "the tokenizer separates punctuation and digits from letters, drops marks and tatweel, and gives <UNK> where "
        f"the original's gave nothing; {lost} of {len(words)} words are unreachable",
        *dropped,
    ]
    sources = common.provenance(files)
    card = common.card(f"It was imported from a package of the original Al-Qalam. Note: {'; '.join(remarks)}.", sources)
    write(
        out, config=config, vocabulary=vocabulary, weights=weights, card=card, provenance=sources, dtype=dtype,
    )  # fmt: skip
    return remarks


def _refuse(file: str, line: int, reason: str) -> NoReturn:
    raise PackageError(f"{file}:{line}: {reason}")


def _statements(path: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines after the docstring, except blank lines and comments."""
    text = common.small_text(path).replace("\r\n", "\n")
    begin = match.end() if (match := _DOCSTRING.match(text)) else 0
    lines = enumerate(text[begin:].split("\n"), text.count("\n", 0, begin) + 1)
    return [(number, line) for number, line in lines if line.strip() and not line.startswith("#")]


def _read_config(path: Path) -> ModelConfig:
    found: dict[str, int | None] = {}
    for number, line in _statements(path):
        match = _SETTING.fullmatch(line)
        if match is None:
            _refuse(path.name, number, 'not a setting; write NAME = 1 or NAME = "text"')
        if match[1] in found:
            _refuse(path.name, number, f"{match[1][:80]} is set twice; delete one")
        found[match[1]] = int(match[2]) if match[2] else None
    if missing := [name for name in _SIZES if found.get(name) is None]:
        _refuse(path.name, 0, f"{missing[0]} is missing, or not an integer")
    config = common.model_config({name.lower(): found[name] for name in _SIZES}, path.name)
    if found.get("PARAMETERS") not in (None, config.parameters):
        _refuse(path.name, 0, f"PARAMETERS is {found['PARAMETERS']}, but the other settings give {config.parameters}")
    return config


def _read_words(path: Path, size: int) -> tuple[str, ...]:
    statements = _statements(path)
    if len(statements) != 2 or statements[1][1] != _INVERSE or not statements[0][1].startswith("WORD2IDX = {"):
        _refuse(path.name, 0, "must contain WORD2IDX = {...} on one line, the usual IDX2WORD line, and nothing else")
    number, line = statements[0]
    words: dict[int, str] = {}
    at = len("WORD2IDX = {")
    while match := _WORD.match(line, at):
        index = int(match[3])
        if index in words:
            _refuse(path.name, number, f"two words have id {index}; ids must be unique")
        words[index] = _unescaped(match[2] if match[1] is None else match[1], path.name, number)
        at = match.end() + 2 * line.startswith(", ", match.end())
        if at == match.end():
            break
    if line[at:] != "}":
        _refuse(path.name, number, f"character {at + 1}: neither 'word': id nor the end of the dict")
    if len(words) > size or sorted(words) != list(range(len(words))):
        reason = f"{len(words)} words, but VOCAB_SIZE is {size}; ids must count up from 0, without a gap, below it"
        _refuse(path.name, number, reason)
    ordered = tuple(words[index] for index in range(len(words)))
    if len(set(ordered)) != len(words):
        _refuse(path.name, number, "a word has two ids; Python would keep the last")
    if ordered[: len(SPECIALS)] != SPECIALS:
        _refuse(path.name, number, f"ids 0 to 3 must be {', '.join(SPECIALS)}")
    return ordered


def _unescaped(text: str, file: str, number: int) -> str:
    def character(found: re.Match[str]) -> str:
        code = int(found[2] or found[3] or found[4] or "110000", 16)
        if found[1]:
            return _NAMED.get(found[1], found[1])
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            _refuse(file, number, "an escape that Python's repr does not produce")
        return chr(code)

    return _ESCAPE.sub(character, text)


def _read_weights(path: Path, config: ModelConfig) -> common.Tensors:
    shapes = config.tensor_shapes()
    if not path.is_file():
        _refuse(path.name, 0, "no such file; the folder is incomplete")
    promised, size = 4 * sum(math.prod(shape) for shape in shapes.values()), path.stat().st_size
    if promised > INFLATION_LIMIT * size:
        _refuse(path.name, 0, f"{size} bytes, too few for {promised} bytes of weights; fetch it again")
    # base64 of deflate, which adds at most five bytes per 16 kB; then the name and the shape
    longest = max(math.prod(shape) for shape in shapes.values())
    limit = 4 * longest * 4 // 3 * 101 // 100 + _OTHER_WIDTH
    weights: common.Tensors = {}
    with path.open("rb") as file:
        number = _skip(file, path.name, 0, b"WEIGHTS = {")
        while True:
            number += 1
            line = file.readline(limit + 1)
            if not line.endswith(b"\n"):
                cut = "longer than any tensor of this config" if len(line) > limit else "the file was cut off"
                _refuse(path.name, number, cut)
            line = line.rstrip(b"\r\n")
            if line == b"}":
                break
            name, tensor = _tensor(line, shapes, path.name, number)
            if name in weights:
                _refuse(path.name, number, f'"{name}" is there twice; Python would keep the last')
            weights[name] = tensor
        _skip(file, path.name, number)
    if missing := [name for name in shapes if name not in weights]:
        _refuse(path.name, 0, f'"{missing[0]}" is missing; config.py requires it')
    return weights


def _skip(file: BinaryIO, name: str, number: int, until: bytes = b"") -> int:
    """Skip code, which must not change WEIGHTS, up to a line or to the end of the file; -> the last line's number."""
    for at in range(number + 1, number + _OTHER_LINES):
        line = file.readline(_OTHER_WIDTH)
        if line.rstrip(b"\r\n") == until if until else not line:
            return at
        if line.lstrip().startswith(b"WEIGHTS") or (line and not line.endswith(b"\n")):
            _refuse(name, at, "changes WEIGHTS, or is too long for code around them; only data is read")
    reason = '"WEIGHTS = {" is missing' if until else "too many lines after the weights"
    _refuse(name, number + _OTHER_LINES, f"{reason}; this is not a file of the original")


def _tensor(line: bytes, shapes: dict[str, tuple[int, ...]], file: str, number: int) -> tuple[str, NDArray[np.float32]]:
    match = _TENSOR.fullmatch(line)
    if match is None:
        _refuse(file, number, 'not a tensor; write "name": ("base64", (shape)),')
    name = match[1].decode()
    shape = tuple(int(size) for size in match[3].decode().rstrip(",").split(", "))
    if name not in shapes:
        _refuse(file, number, f'"{name}" is not a tensor of this config')
    stored = (1, *shapes[name]) if name == "pos_embedding" else shapes[name]
    if shape != stored:
        _refuse(file, number, f'"{name}" is {shape}, but config.py requires {stored}')
    size = 4 * math.prod(shape)
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(binascii.a2b_base64(match[2], strict_mode=True), size + 1)
    except (ValueError, zlib.error):
        _refuse(file, number, f'"{name}" is not base64 of zlib; the file is damaged')
    if len(raw) != size or not inflater.eof or inflater.unused_data:
        more = "more" if len(raw) > size or inflater.unused_data else "less"
        _refuse(file, number, f'"{name}" holds {more} than the {size} bytes of its shape; the file is damaged')
    return name, np.frombuffer(raw, "<f4").astype(np.float32).reshape(shapes[name])
