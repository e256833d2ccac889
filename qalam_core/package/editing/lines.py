"""The lines of a package: finds a row's line, encodes new values, and replaces files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.files import replace_files
from qalam_core.package.runtime.rows import COMMENT, MATRIX_TYPES, RowType, shortest
from qalam_core.package.runtime.weights_reader import END_OF_TENSOR, HEADER, FormatError, weight_files

Row = NDArray[np.float32]

_LINE = re.compile(r"( *)(.*?)( *(?:#.*)?)")


@dataclass(frozen=True)
class TensorPart:
    """A tensor's rows in one weights file: the file's bytes, and the offsets of its header and end."""

    path: Path
    raw: bytes
    header: slice
    end: int  # start of the line that closes the tensor
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class Position:
    """A row's line: its part, byte range, text and line number."""

    part: TensorPart
    span: slice
    line: str
    number: int


def tensor_parts(folder: Path, tensor: str) -> Iterator[TensorPart]:
    """The parts of a tensor, file by file. The package must have been read before, which checks the grammar."""
    for path in weight_files(folder):
        raw = path.read_bytes()
        start = raw.find(f'\n    "{tensor}": ('.encode()) + 1
        if not start:
            continue
        stop = raw.index(b"\n", start)
        match = HEADER.fullmatch(raw[start:stop].decode())
        if match is None:
            raise PackageError(f"{path.name}:0: changed while it was edited; try again")
        shape = (int(match[3]),) if match[4] is None else (int(match[3]), int(match[4]))
        end = raw.index(f"\n{END_OF_TENSOR}\n".encode(), stop) + 1
        yield TensorPart(path, raw, slice(start, stop), end, match[2], shape, int(match[5]), int(match[6]))


def find_row_line(folder: Path, tensor: str, row: int) -> Position:
    """The line of one row; skips comments and blank lines."""
    for part in tensor_parts(folder, tensor):
        left = row - part.first
        if not 0 <= left < part.rows:
            continue
        start = part.header.stop + 1
        while start < part.end:
            stop = part.raw.index(b"\n", start)
            line = part.raw[start:stop].decode()
            if not COMMENT.fullmatch(line):
                if not left:
                    return Position(part, slice(start, stop), line, part.raw.count(b"\n", 0, start) + 1)
                left -= 1
            start = stop + 1
    raise PackageError(f'weights.py:0: row {row} of "{tensor}" is missing; read the package to learn why')


def new_line(position: Position, wanted: Row, old: Row, literal: str = "") -> str:
    """The line that gives exactly `wanted`: in the tensor's storage type if possible, else as a list of numbers.

    A list of numbers stays one, and its unchanged numbers keep their digits; indent and comment are always kept.
    `literal` is the text of a row on another line, tried first.
    """
    found = _LINE.fullmatch(position.line)
    assert found is not None  # any single line matches
    indent, body, tail = found.groups()
    numbers = shortest(wanted)
    if len(position.part.shape) == 1:
        return f"{indent}{numbers[0]},{tail}"
    if body.startswith("["):
        texts, same = body.strip("[],").split(","), wanted.view(np.uint32) == old.view(np.uint32)
        numbers = [text.strip() if keep else new for text, new, keep in zip(texts, numbers, same, strict=True)]
    else:
        row_type = MATRIX_TYPES[position.part.dtype]
        for text in (literal, row_type.encode(wanted[None]).tobytes().decode().strip()):
            if text and _is_exact(text, wanted, row_type):
                return f"{indent}{text}{tail}"
    return f"{indent}[{', '.join(numbers)}],{tail}"


def _is_exact(text: str, wanted: Row, row_type: RowType) -> bool:
    def refuse(reason: str) -> NoReturn:
        raise FormatError(reason)

    try:
        return row_type.parse(text, len(wanted), refuse).tobytes() == wanted.tobytes()
    except FormatError:  # a value too large for the type
        return False


def save(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of a package, in the given order; each atomically, none before all are on the disk.

    Deletes the interpreter's caches of the old files, which `verify` would refuse.
    """
    try:
        replace_files(folder, contents)
        for name in contents:
            for cache in (folder / "__pycache__").glob(f"{Path(name).stem}.*.pyc"):
                cache.unlink()
    except OSError as error:
        raise PackageError(
            f"{folder}: cannot be written ({error.strerror}); free some space, or fix the permissions"
        ) from None
