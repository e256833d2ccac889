"""Reads weights files, the rows-of-Python-text format, without executing anything.
Takes a package folder and the shapes its config demands, gives float32 arrays or one `FormatError` line.
It does not know manifests, vocabularies or models.

The whole grammar is in docs/package_format.md. Two paths give the same values: whole blocks of rows whose
structural columns are as the writer leaves them are decoded at once; any other line is read by the book.
Nothing is allocated or repeated on the word of a count alone: the bytes behind it must be there.
"""

from __future__ import annotations

import binascii
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

try:  # several times faster, and nothing else: values and refusals are the same without it
    from pybase64 import b64decode as _fast_decode
except ImportError:
    _fast_decode = None  # type: ignore[assignment]

__all__ = [
    "COMMENT", "END_OF_TENSOR", "HIDDEN", "MAGIC", "MATRIX_TYPES", "FormatError", "parse_row", "parse_value",
    "read_weights", "row_width", "tensor_shapes", "weight_files",
]  # fmt: skip

MAGIC = "# qalam weights 1"
MATRIX_TYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}
"""Storage types of two-dimensional tensors; one-dimensional ones are always `dec`, a float a line."""

LINE_LIMIT = 1 << 20
BLOCK = 1 << 19
_WINDOW = 1 << 21

# Whatever an editor does not show, or shows elsewhere than it stands: controls, bidirectional marks,
# zero-width and odd spaces, fillers, variation selectors, surrogates, private use, tags.
HIDDEN = (
    "\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f"
    "\u205f-\u206f\u3000\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U0010ffff"
)
_HIDDEN = re.compile(f"[{HIDDEN}]")
_CODING = re.compile(r"coding[:=]")
_INTEGER = r"-?(?:0|[1-9][0-9]{0,19})"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]{{1,60}})?(?:e[+-]?[0-9]{{1,3}})?"
_HEADER = re.compile(
    r' {4}"([A-Za-z0-9_.]{1,200})": \("([a-z0-9]{1,8})", \(([1-9][0-9]{0,8}),(?: ([1-9][0-9]{0,8}))?\), '
    r"(0|[1-9][0-9]{0,8}), ([1-9][0-9]{0,8}), \("
)
COMMENT = re.compile(r" *(?:#.*)?")
_TEXT_ROW = re.compile(r' *"([A-Za-z0-9+/]+={0,2})", *(?:#.*)?')
_LIST_ROW = re.compile(rf" *\[({_NUMBER}(?:, *{_NUMBER})*+)\], *(?:#.*)?")
_VALUE_ROW = re.compile(rf" *({_NUMBER}), *(?:#.*)?")
_VALUE_BLOCK = re.compile(  # only what has a point or an exponent: "-0" is the integer 0, "-0.0" is not
    rb"(?: {8}-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,60}(?:e[+-]?[0-9]{1,3})?|e[+-]?[0-9]{1,3}),\n)*+"
)
_OPEN = np.frombuffer(b'        "', np.uint8)
_CLOSE = np.frombuffer(b'",\n', np.uint8)
END_OF_TENSOR = "    )),"


class FormatError(ValueError):
    """A file says something it may not: `<file>:<line>: what; how to mend`."""


class Lines:
    """A window over one file: blocks for the fast path, checked lines for the slow one.

    `number` is the line read last, `left` the bytes not taken yet. Memory is the window's 2 MB.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.number = 0
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise FormatError(f"{path.name}:0: cannot be read ({error.strerror}); export again") from None
        self.left = os.fstat(self._file.fileno()).st_size
        self._window = bytearray(_WINDOW)
        self._view = memoryview(self._window)
        self._start = self._end = 0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def refuse(self, reason: str) -> NoReturn:
        """Raise `FormatError` at the line read last."""
        raise FormatError(f"{self.name}:{self.number}: {reason}")

    def peek(self, size: int) -> memoryview:
        """The next `size` bytes, or as many as there are; they stay to be taken."""
        if self._end - self._start < size:
            rest = self._end - self._start
            self._view[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
            while self._end < _WINDOW and (count := self._file.readinto(self._view[self._end :])):
                self._end += count
        return self._view[self._start : min(self._start + size, self._end)]

    def take(self, size: int, lines: int) -> None:
        """Step over `size` peeked bytes that hold `lines` whole lines."""
        self._start += size
        self.left -= size
        self.number += lines

    def line(self) -> str | None:
        """The next line without its end, checked for hidden characters; None after the last."""
        end = self._window.find(b"\n", self._start, self._end)
        if end < 0:
            self.peek(LINE_LIMIT + 1)
            end = self._window.find(b"\n", self._start, self._end)
        raw = bytes(self._view[self._start : end if end >= 0 else self._end])
        if end < 0 and not raw:
            return None
        self.take(len(raw) + 1, 1)
        if len(raw) > LINE_LIMIT:
            self.refuse(f"longer than {LINE_LIMIT} bytes; one matrix row a line")
        if end < 0:
            self.refuse("the last line has no line end; the file was cut off")
        return self._checked(raw)

    def content(self) -> str:
        """The next line that is neither blank nor a comment; the end of the file is refused."""
        line = self.line()
        while line is not None and COMMENT.fullmatch(line):
            line = self.line()
        if line is None:
            self.refuse("the file ends here; something was cut off after this line")
        return line

    def _checked(self, raw: bytes) -> str:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            self.refuse("not UTF-8; save the file as UTF-8")
        if text.endswith("\r"):
            self.refuse("Windows line end; check out with LF, as .gitattributes asks")
        if found := _HIDDEN.search(text):
            self.refuse(f"hidden character U+{ord(found[0]):04X}; delete it or write it as an escape")
        if self.number == 2 and _CODING.search(text):
            self.refuse("a coding line changes how Python reads the file; delete it")
        return text


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a config demands, in file order."""
    dim, shapes = int(config["DIM"]), dict[str, tuple[int, ...]]()
    shapes["embedding.weight"] = (int(config["VOCAB_SIZE"]), dim)
    shapes["pos_embedding"] = (int(config["MAX_SEQ_LEN"]), dim)
    for index in range(int(config["NUM_LAYERS"])):
        for part, rows, columns in (("qkv", 3, 1), ("out", 1, 1), ("fc1", 4, 1), ("fc2", 1, 4)):
            norm = {"qkv": "ln1", "fc1": "ln2"}.get(part)
            if norm:
                shapes[f"blocks.{index}.{norm}.weight"] = shapes[f"blocks.{index}.{norm}.bias"] = (dim,)
            shapes[f"blocks.{index}.{part}.weight"] = (rows * dim, columns * dim)
            shapes[f"blocks.{index}.{part}.bias"] = (rows * dim,)
    shapes["ln_out.weight"] = shapes["ln_out.bias"] = (dim,)
    if not config["TIED"]:
        shapes["lm_head.weight"] = shapes["embedding.weight"]
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """weights.py, weights_001.py, ... up to the first number that is missing."""
    files = [folder / "weights.py"]
    while (path := folder / f"weights_{len(files):03d}.py").exists():
        files.append(path)
    return files


def read_weights(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, block: int = BLOCK
) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a package as float32, in the order of `shapes`.

    `block` bytes are decoded at once; 0 reads each line by the book, with the same result.
    """
    files = weight_files(folder)
    try:
        bytes_left = sum(path.stat().st_size for path in files)
    except OSError as error:
        raise FormatError(f"weights.py:0: cannot be read ({error.strerror}); export again") from None
    weights: dict[str, NDArray[np.float32]] = {}
    filled: dict[str, int] = {}
    for path in files:
        with Lines(path) as lines:
            bytes_left -= lines.left
            _read_file(lines, bytes_left, shapes, weights, filled, block)
    for name, shape in shapes.items():
        if filled.get(name, 0) != shape[0]:
            have = filled.get(name, 0)
            raise FormatError(f'{files[-1].name}:0: "{name}" has {have} of {shape[0]} rows; a part is missing')
    return {name: weights[name] for name in shapes}


def _read_file(
    lines: Lines,
    bytes_after: int,
    shapes: Mapping[str, tuple[int, ...]],
    weights: dict[str, NDArray[np.float32]],
    filled: dict[str, int],
    block: int,
) -> None:
    if lines.line() != MAGIC:
        lines.refuse(f'a weights file begins with "{MAGIC}"')
    if lines.content() != "WEIGHTS = {":
        lines.refuse('only comments may stand before "WEIGHTS = {"')
    seen: set[str] = set()
    while (line := lines.content()) != "}":
        name, dtype, first, rows = _header(lines, line, shapes)
        shape = shapes[name]
        if name in seen:
            lines.refuse(f'"{name}" stands twice in this file; Python would keep the last')
        seen.add(name)
        last = next(reversed(filled), name)
        if last != name and filled[last] < shapes[last][0]:  # also bounds what is allocated and not filled
            lines.refuse(f'"{last}" has {filled[last]} of {shapes[last][0]} rows; its next part belongs here')
        if first != filled.get(name, 0) or first + rows > shape[0]:
            lines.refuse(f'"{name}" goes on at row {filled.get(name, 0)} of {shape[0]}, not {first} + {rows}')
        # the shortest text of a value is two bytes, so a count that more than fills the files is a lie
        if 2 * math.prod(shape[1:]) * rows > lines.left or (
            2 * math.prod(shape[1:]) * (shape[0] - first) > lines.left + bytes_after
        ):
            lines.refuse(f'"{name}" says more values than the files have bytes for; something was cut off')
        if name not in weights:
            weights[name] = np.empty(shape, np.float32)
        filled[name] = first + rows
        part = weights[name][first : first + rows]
        if dtype == "dec":
            _read_values(lines, part, block)
        else:
            _read_rows(lines, part, MATRIX_TYPES[dtype], block)
        if lines.content() != END_OF_TENSOR:
            lines.refuse(f'"{name}" should end here with "{END_OF_TENSOR.strip()}"; a row too many?')
    if lines.line() is not None:
        lines.refuse('nothing may follow the closing "}"')


def _header(lines: Lines, line: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str, int, int]:
    match = _HEADER.fullmatch(line)
    if match is None:
        lines.refuse("not a tensor header; only data may stand here, written as the exporter writes it")
    name, dtype, first, rows = match[1], match[2], int(match[5]), int(match[6])
    shape = (int(match[3]),) if match[4] is None else (int(match[3]), int(match[4]))
    if name not in shapes:
        lines.refuse(f'"{name}" is no tensor of this model; see config.py')
    if shape != shapes[name]:
        lines.refuse(f'"{name}" is {shape}, but config.py demands {shapes[name]}')
    if dtype not in (MATRIX_TYPES if len(shape) == 2 else ("dec",)):
        lines.refuse(f'"{dtype}" is no storage type for {len(shape)} dimensions')
    return name, dtype, first, rows


def _read_rows(lines: Lines, out: NDArray[np.float32], dtype: np.dtype[Any], block: int) -> None:
    most = step = min(block, _WINDOW // 2) // row_width(out.shape[1], dtype)
    row = 0
    while row < len(out):
        if step:
            wanted = out[row : row + step]
            done = _bulk_rows(lines, wanted, dtype)
            row += done
            if done == len(wanted):
                step = min(2 * step, most)
                continue
            step = max(1, step // 2)  # so that a comment before every row stays linear
        line = lines.line()
        if line is None:
            lines.refuse("the file ends inside a tensor; it was cut off")
        if not COMMENT.fullmatch(line):
            out[row] = parse_row(line, out.shape[1], dtype, lines.refuse)
            row += 1


def row_width(columns: int, dtype: np.dtype[Any]) -> int:
    """Bytes of a matrix row's line as exported, its line end included."""
    return len(_OPEN) + -(-columns * dtype.itemsize // 3) * 4 + len(_CLOSE)


def _bulk_rows(lines: Lines, out: NDArray[np.float32], dtype: np.dtype[Any]) -> int:
    """Decode the rows at the window's head that look as exported; how many these were."""
    columns, stride = out.shape[1], row_width(out.shape[1], dtype)
    row_bytes = columns * dtype.itemsize
    pad = -row_bytes % 3
    view = lines.peek(len(out) * stride)
    count = len(view) // stride
    grid = np.frombuffer(view, np.uint8, count * stride).reshape(count, stride)
    good = (grid[:, : len(_OPEN)] == _OPEN).all(1) & (grid[:, -len(_CLOSE) :] == _CLOSE).all(1)
    if pad:
        good &= (grid[:, -len(_CLOSE) - pad : -len(_CLOSE)] == ord("=")).all(1)
    if not good.all():
        count = int(good.argmin())
    if not count:
        return 0
    text = grid[:count, len(_OPEN) : -len(_CLOSE)].copy()
    if pad:  # "A" is zero bits: the whole block decodes at once, with surplus bytes that must be zero
        text[:, -pad:] = ord("A")
    try:
        raw = _decode(text)
    except ValueError:
        return 0  # the line that is wrong will be named by the book
    if pad and np.ndarray((count, pad), np.uint8, raw, row_bytes, (row_bytes + pad, 1)).any():
        return 0
    out[:count] = np.ndarray((count, columns), dtype, raw, 0, (row_bytes + pad, dtype.itemsize))
    if not np.isfinite(out[:count]).all():
        return 0
    lines.take(count * stride, count)
    return count


def _decode(text: Any) -> bytes:
    if _fast_decode is not None:
        raw: bytes = _fast_decode(text, validate=True)
        return raw
    return binascii.a2b_base64(text, strict_mode=True)


def parse_row(line: str, columns: int, dtype: np.dtype[Any], refuse: Callable[[str], NoReturn]) -> NDArray[np.float32]:
    """One line by the book: base64, or numbers in brackets, of exactly `columns` finite values."""
    if match := _LIST_ROW.fullmatch(line):
        texts = match[1].split(",")
        if len(texts) != columns:
            refuse(f"{len(texts)} numbers in a row of {columns}")
        with np.errstate(over="ignore"):
            values = np.array([_number(text) for text in texts], np.float64).astype(dtype)
    elif match := _TEXT_ROW.fullmatch(line):
        raw = binascii.a2b_base64(match[1]) if len(match[1]) % 4 == 0 else b""
        if len(raw) != columns * dtype.itemsize:
            refuse(f"a row of {columns} values takes {columns * dtype.itemsize} bytes of base64")
        if binascii.b2a_base64(raw, newline=False) != match[1].encode():
            refuse("base64 whose last bits are not zero; encode the row again")
        values = np.frombuffer(raw, dtype)
    else:
        refuse('not a matrix row; write "<base64>", or [0.5, -1, ...], with a comma at the end')
    if not np.isfinite(values).all():
        refuse(f"a value that is not finite in {dtype.name}; weights are ordinary numbers")
    return values.astype(np.float32)


def _read_values(lines: Lines, out: NDArray[np.float32], block: int) -> None:
    done = 0
    while done < len(out):
        match = _VALUE_BLOCK.match(lines.peek(min(block, 1 << 16)))
        if match and match.end():
            numbers = match[0].split(b",\n", len(out) - done)
            rest = numbers.pop()  # what follows the last value wanted: lines after this tensor's rows
            values = np.array([float(number) for number in numbers], np.float64)
            if np.abs(values).max() <= np.finfo(np.float32).max:
                out[done : done + len(values)] = values
                lines.take(match.end() - len(rest), len(values))
                done += len(values)
                continue
        line = lines.line()
        if line is None:
            lines.refuse("the file ends inside a tensor; it was cut off")
        if COMMENT.fullmatch(line):
            continue
        out[done] = parse_value(line, lines.refuse)
        done += 1


def parse_value(line: str, refuse: Callable[[str], NoReturn]) -> np.float32:
    """One line by the book: a finite number."""
    match = _VALUE_ROW.fullmatch(line)
    if match is None:
        refuse("not a number; write one a line, with a comma at the end")
    with np.errstate(over="ignore"):
        value = np.float32(_number(match[1]))
    if not np.isfinite(value):
        refuse("a value that is not finite in float32; weights are ordinary numbers")
    return value


def _number(text: str) -> float:
    return float(text) if "." in text or "e" in text else float(int(text))
