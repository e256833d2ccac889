"""Finds one row of one tensor by stepping over whole tensors, without reading what precedes it.
Takes a package folder, the shapes its config demands, a name and a row, gives that row's float32 values.
It does not know whether the rest of the file is in order: that is for a whole read to say.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.runtime.reader import (
    COMMENT,
    END_OF_TENSOR,
    MATRIX_TYPES,
    FormatError,
    parse_row,
    parse_value,
    row_width,
    weight_files,
)

__all__ = ["read_row"]

_HEADER = re.compile(
    rb'^    "([A-Za-z0-9_.]+)": \("([a-z0-9]+)", \([0-9, ]+\), ([0-9]{1,9}), ([0-9]{1,9}), \(\n', re.MULTILINE
)


def read_row(folder: Path, shapes: Mapping[str, tuple[int, ...]], name: str, row: int) -> NDArray[np.float32]:
    """One row of one tensor, found by stepping over whole tensors; for untouched files in microseconds."""
    if name not in shapes or not 0 <= row < shapes[name][0]:
        raise FormatError(f'weights.py:0: there is no row {row} of "{name}"')
    for path in weight_files(folder):
        try:
            file = path.open("rb")
        except OSError as error:
            raise FormatError(f"{path.name}:0: cannot be read ({error.strerror}); export again") from None
        with file:
            if not os.fstat(file.fileno()).st_size:
                raise FormatError(f"{path.name}:0: empty; export again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
                found = _find_row(text, path.name, shapes, name, row)
        if found is not None:
            return found
    raise FormatError(f'weights.py:0: row {row} of "{name}" is missing')


def _find_row(
    text: mmap.mmap, file: str, shapes: Mapping[str, tuple[int, ...]], name: str, row: int
) -> NDArray[np.float32] | None:
    position = 0
    while match := _HEADER.search(text, position):
        here, dtype, first, rows = match[1].decode(), match[2].decode(), int(match[3]), int(match[4])
        position = match.end()
        shape = shapes.get(here, ())
        matrix = MATRIX_TYPES.get(dtype) if len(shape) == 2 else None
        end = position + rows * row_width(shape[1], matrix) if matrix is not None else -1
        closing = f"{END_OF_TENSOR}\n".encode()
        whole = matrix is not None and text[end : end + len(closing)] == closing
        if here == name and first <= row < first + rows:
            return _row_in(text, file, position, row - first, shape, matrix, whole)
        # a matrix in which nothing was edited is stepped over; any other is searched for its end
        position = end if whole else text.find(b"\n" + closing, position)
        if position < 0:
            break
    return None


def _row_in(
    text: mmap.mmap,
    file: str,
    position: int,
    row: int,
    shape: tuple[int, ...],
    matrix: np.dtype[Any] | None,
    whole: bool,
) -> NDArray[np.float32]:
    text.seek(position)
    if whole and matrix is not None:
        text.seek(position + row * row_width(shape[1], matrix))
        row = 0
    while True:
        raw = text.readline()
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if not raw or line == END_OF_TENSOR:
            raise FormatError(f"{file}:0: a row is missing; read the whole package to learn where")
        if COMMENT.fullmatch(line):
            continue
        if row == 0:
            break
        row -= 1

    def refuse(reason: str) -> NoReturn:
        raise FormatError(f"{file}:0: {reason}")  # lines were stepped over, not counted

    if matrix is not None:
        return parse_row(line, shape[1], matrix, refuse)
    return np.array([parse_value(line, refuse)], np.float32)
