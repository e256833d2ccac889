"""The lines of a package: where a row is, which text states new values, and saving the files.
Takes a package folder that was read, gives line positions and new lines, and replaces files.
It does not know why a row changes, nor what the manifest says about it.
"""

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
from qalam_core.package.runtime.rows import COMMENT, MATRIX_TYPES, shortest
from qalam_core.package.runtime.weights_reader import END_OF_TENSOR, HEADER, FormatError, weight_files

__all__ = ["Position", "TensorPart", "find_row_line", "new_line", "save", "tensor_parts"]

Row = NDArray[np.float32]

_LINE = re.compile(r"( *)(.*?)( *(?:#.*)?)")


@dataclass(frozen=True)
class TensorPart:
    """A tensor's rows in one weights file: the file's bytes, and where its header and its end are in them."""

    path: Path
    raw: bytes
    header: slice
    end: int  # where the line that closes the tensor begins
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class Position:
    """A row's line: its part, its bytes' range and text, and its line number."""

    part: TensorPart
    span: slice
    line: str
    number: int


def tensor_parts(folder: Path, tensor: str) -> Iterator[TensorPart]:
    """Where a tensor's rows are, file by file. The package was read before, so it follows the grammar."""
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
    """The line of one row; comments and blank lines are skipped."""
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
    """The line that gives exactly `wanted`: in the tensor's storage type where possible, else as a list of numbers.

    A row that is a list of numbers stays one, and unchanged numbers keep their digits; the indent and a comment are
    kept in any case. `literal` is a row's text from another line, tried first.
    """
    found = _LINE.fullmatch(position.line)
    assert found is not None  # any line without a line end matches
    indent, body, tail = found.groups()
    if len(position.part.shape) == 1:
        return f"{indent}{shortest(wanted)[0]},{tail}"
    if body.startswith("["):
        return f"{indent}{_as_list(wanted, old, body.strip('[],').split(','))}{tail}"
    choices = [*([literal] if literal else []), _encoded(wanted, position.part.dtype)]
    exact = (body for body in choices if _states(body, wanted, position.part.dtype))
    return f"{indent}{next(exact, None) or _as_list(wanted)}{tail}"


def _states(body: str, wanted: Row, dtype: str) -> bool:
    def refuse(reason: str) -> NoReturn:
        raise FormatError(reason)

    try:
        return MATRIX_TYPES[dtype].parse(body, len(wanted), refuse).tobytes() == wanted.tobytes()
    except FormatError:  # a value too large for the type
        return False


def _encoded(row: Row, dtype: str) -> str:
    return MATRIX_TYPES[dtype].encode(row[None]).tobytes().decode().strip()


def _as_list(wanted: Row, old: Row | None = None, texts: list[str] | None = None) -> str:
    numbers = shortest(wanted)
    if old is not None and texts is not None:
        unchanged = wanted.view(np.uint32) == old.view(np.uint32)
        numbers = [
            text.strip() if same else number for text, number, same in zip(texts, numbers, unchanged, strict=True)
        ]
    return f"[{', '.join(numbers)}],"


def save(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of a package, in the given order; each atomically, none before all are on the disk.

    The interpreter's caches of the old ones are deleted: they would be refused as somebody else's.
    """
    try:
        replace_files(folder, contents)
        for name in contents:
            for cache in (folder / "__pycache__").glob(f"{Path(name).stem}.*.pyc"):
                cache.unlink()
    except OSError as error:
        raise PackageError(
            f"{folder}: cannot be written ({error.strerror}); free some space, or correct the permissions"
        ) from None
