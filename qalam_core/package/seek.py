"""Reads rows of one tensor by seeking; the rest of the files is neither read nor checked."""

from __future__ import annotations

import mmap
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError, did_you_mean
from qalam_core.package.comments import lines_of
from qalam_core.package.runtime.rows import COMMENT, MATRIX_TYPES, RowType
from qalam_core.package.runtime.weights_reader import (
    BLOCK,
    COMMENT_START,
    END_OF_TENSOR,
    HEADER,
    NAMED_ROWS,
    FormatError,
    Lines,
    weight_files,
)
from qalam_core.package.runtime.weights_reader import read_rows as decode_rows
from qalam_core.package.runtime.weights_reader import read_values as decode_values

_HEADER = re.compile(b"^" + HEADER.pattern.encode() + b"\n", re.MULTILINE)
_MARK = b"\n" + COMMENT_START
_LONGEST_VALUE = 25  # bytes of a vector's value on its line, as exported

Shapes = Mapping[str, tuple[int, ...]]


class _Extent(NamedTuple):
    """The position of some rows of a tensor: the bytes `start` to `end` of a file."""

    path: Path
    start: int
    end: int
    first: int
    rows: int
    matrix: RowType | None
    lines: int | None  # as many as exported, all of the same length, so that row numbers give offsets; else None


def check_regular(path: Path) -> None:
    """Refuse anything but a regular file that may be read. It may have other hard links, as uv installs it."""
    reason = ""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            reason = "not a regular file; put the file itself here, not a link to it (cp -rL does)"
        elif not os.access(path, os.R_OK):
            reason = "no permission to read it; allow it with chmod u+r"
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); copy the package again, with its hidden files"
    if reason:
        raise PackageError(f"{path.name}:0: {reason}")


def read_rows(folder: Path, shapes: Shapes, name: str, start: int, stop: int) -> NDArray[np.float32]:
    """Rows `start` to `stop` (exclusive) of one tensor."""
    if name not in shapes:
        hint = did_you_mean(name, list(shapes), f"there are {', '.join(shapes)}")
        raise FormatError(f'weights.py:0: there is no tensor "{name}"; {hint}')
    if not 0 <= start <= stop <= shapes[name][0]:
        wanted = start if stop == start + 1 else f"{start} to {stop - 1}"
        raise FormatError(f'weights.py:0: "{name}" has the rows 0 to {shapes[name][0] - 1}, not {wanted}')
    shape = shapes[name][1:]
    files = weight_files(folder)
    pieces: list[NDArray[np.float32]] = [np.empty((0, *shape), np.float32)]
    while start < stop:  # memory is allocated part by part, for rows that exist
        part = _find_part(files, shapes, name, start)
        until = min(stop, part.first + part.rows)
        pieces.append(_decode(part, shape, start - part.first, until - part.first))
        start = until
    return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)


def _find_part(files: list[Path], shapes: Shapes, name: str, row: int) -> _Extent:
    places = {tensor: place for place, tensor in enumerate(shapes)}

    def begins_after(path: Path) -> bool:  # as exported, parts are in the order of the shapes
        with _mapped(path) as text:
            found = _HEADER.search(text)
            return found is not None and (places.get(found[1].decode(), -1), int(found[5])) > (places[name], row)

    likely = files[max(0, bisect_left(files, True, key=begins_after) - 1)]
    for path in (likely, *files):  # the others are searched only if somebody reordered the tensors
        with _mapped(path) as text:
            found = _find_in(text, path, shapes, name, row)
        if found is not None:
            return found
    raise FormatError(f'weights.py:0: row {row} of "{name}" is missing')


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    check_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise FormatError(f"{path.name}:0: cannot be read ({error.strerror}); export again") from None
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise FormatError(f"{path.name}:0: empty; export again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            yield text


def _find_in(text: mmap.mmap, path: Path, shapes: Shapes, name: str, row: int) -> _Extent | None:
    position, closing = 0, f"{END_OF_TENSOR}\n".encode()
    while match := _HEADER.search(text, position):
        here, dtype, first, rows = match[1].decode(), match[2].decode(), int(match[5]), int(match[6])
        stated = (int(match[3]),) if match[4] is None else (int(match[3]), int(match[4]))
        position = match.end()
        shape = shapes.get(here, ())
        matrix = MATRIX_TYPES.get(dtype) if len(shape) == 2 else None
        end, lines = -1, None
        if matrix is not None:  # an unedited matrix is skipped by its size; in any other tensor its end is searched for
            lines = lines_of(rows) if text[position : position + len(COMMENT_START)] == COMMENT_START else rows
            end = position + lines * matrix.width(shape[1])
        if text[end : end + len(closing)] != closing:
            end, lines = _end(text, position, rows, closing), None
        if here == name and first <= row < first + rows:
            refused = f'{path.name}:0: "{name}"'
            if stated != shape:
                raise FormatError(f"{refused} is {stated}, but config.py requires {shape}")
            if matrix is None and (len(shape) == 2 or dtype != "dec"):
                raise FormatError(f'{refused} cannot be stored as "{dtype[:80]}"')
            if first + rows > shape[0]:
                raise FormatError(f"{refused} has {shape[0]} rows, not {first} + {rows}")
            return _Extent(path, position, end if end >= 0 else len(text), first, rows, matrix, lines)
        if end < 0:
            break
        position = end
    return None


def _named(part: _Extent, width: int) -> bool:
    """Whether every comment of a part stands where the exporter writes it, so that all its other lines are rows."""
    places = range(part.start, part.end, (1 + NAMED_ROWS) * width)
    with part.path.open("rb", buffering=0) as file:  # reading a few bytes is faster than mapping their page
        return all(os.pread(file.fileno(), len(_MARK), at - 1) == _MARK for at in places)


def _end(text: mmap.mmap, position: int, rows: int, closing: bytes) -> int:
    near = text[position : position + _LONGEST_VALUE * rows + len(closing)].find(b"\n" + closing)
    return 1 + (position + near if near >= 0 else text.find(b"\n" + closing, position)) or -1


def _decode(part: _Extent, shape: tuple[int, ...], start: int, stop: int) -> NDArray[np.float32]:
    """Rows `start` to `stop` of a part, decoded by the package reader's functions."""
    if part.lines is not None and part.matrix is not None and start < stop and (start, stop) != (0, part.rows):
        width = part.matrix.width(shape[0])
        named = part.lines > part.rows
        if named and not _named(part, width):  # somebody moved them
            return _decode(part._replace(lines=None), shape, start, stop)
        begin, end = ((lines_of(row + 1) - 1 if named else row) * width for row in (start, stop - 1))
        near = part._replace(start=part.start + begin, end=part.start + end + width, rows=stop - start)
        try:
            return _decode(near, shape, 0, near.rows)
        except FormatError:
            pass  # rows of other widths with the same total size, or a bad row: read the part from its start
    # a value takes more than one byte of text: rows that cannot be there are not allocated
    if stop * (shape[0] if shape else 1) > part.end - part.start:
        raise FormatError(f"{part.path.name}:0: a row is missing; read the package for the line")
    values = np.empty((stop, *shape), np.float32)
    with _ExtentLines(part) as lines:
        if part.matrix is not None:
            decode_rows(lines, values, part.matrix, BLOCK)
        else:
            decode_values(lines, values, BLOCK)
        while stop == part.rows and (line := lines.line()) is not None:
            if not COMMENT.fullmatch(line):
                lines.refuse("a row too many; read the package for the line")
    return values[start:].copy() if start else values


class _ExtentLines(Lines):
    """The lines of a part; errors have line 0, because earlier lines were not counted."""

    def __init__(self, part: _Extent) -> None:
        super().__init__(part.path, part.start, part.end)
        self.number = 2  # past the lines that Python searches for a coding

    def refuse(self, reason: str) -> NoReturn:
        raise FormatError(f"{self.name}:0: {reason}")
