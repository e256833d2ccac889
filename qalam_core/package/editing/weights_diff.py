"""The changes of one weights file, row by row, as git shows them: a file alone, whose words may be in another file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.editing.diff import SHOWN
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.weights_reader import (
    BLOCK,
    END_OF_TENSOR,
    HEADER,
    MAGIC,
    FormatError,
    Lines,
    read_rows,
    read_values,
)

_COLUMNS = 3  # more changed columns of a row are counted, and the largest change is shown


class Part(NamedTuple):
    """The rows of a tensor in one file: the number of the first, of the whole tensor, the storage type, the values."""

    first: int
    total: int
    dtype: str
    values: NDArray[np.float32]  # (rows, columns)


def is_weights(path: Path) -> bool:
    """Whether a file says that it is a weights file."""
    with path.open("rb") as file:
        return file.read(len(MAGIC) + 1) == f"{MAGIC}\n".encode()


def read_parts(path: Path) -> dict[str, Part]:
    """What one weights file holds, by the readers of packages. Raises PackageError. Memory: the values."""
    try:
        with Lines(path) as lines:
            return dict(_parts(lines, path.stat().st_size))
    except FormatError as error:
        raise PackageError(str(error)) from None


def _parts(lines: Lines, size: int) -> Iterator[tuple[str, Part]]:
    if lines.line() != MAGIC or lines.content() != "WEIGHTS = {":
        lines.refuse("not a weights file")
    while (line := lines.content()) != "}":
        match = HEADER.fullmatch(line)
        if match is None:
            lines.refuse("not a tensor header; write it exactly as the exporter does")
        name, dtype, total, columns, first, rows = match.groups()
        shape = int(rows), int(columns or 1)
        if shape[0] * shape[1] > size:  # a value takes more than one byte of text
            lines.refuse("more values than the file has bytes; it was cut off")
        if dtype not in (MATRIX_TYPES if columns else ("dec",)):
            lines.refuse(f'"{dtype}" is not a storage type for such a tensor')
        values = np.empty(shape, np.float32)
        if columns:
            read_rows(lines, values, MATRIX_TYPES[dtype], BLOCK)
        else:
            read_values(lines, values.reshape(-1), BLOCK)
        if lines.content() != END_OF_TENSOR:
            lines.refuse(f'"{name}" should end here with "{END_OF_TENSOR.strip()}"')
        yield name, Part(int(first), int(total), dtype, values)
    if lines.line() is not None:
        lines.refuse('unexpected text after the closing "}"')


def changes_of(
    old: Mapping[str, Part],
    new: Mapping[str, Part],
    old_words: Sequence[str] | None,
    new_words: Sequence[str] | None,
    shown: int = SHOWN,
) -> list[str]:
    """One line for each changed row, at most `shown` of each tensor, the largest changes first.

    Rows of the embedding and the head are compared by word, if the words of both are known (None: they are not), else
    by number. A row that only one file has may have moved to another file of its package.
    """
    lines = [f"{name}: not in the old file" for name in new if name not in old]
    lines += [f"{name}: not in the new file" for name in old if name not in new]
    for name in [name for name in new if name in old]:
        lines += _changes(name, old[name], new[name], old_words, new_words, shown)
    return lines


def _changes(
    name: str, old: Part, new: Part, old_words: Sequence[str] | None, new_words: Sequence[str] | None, shown: int
) -> Iterator[str]:
    if old.dtype != new.dtype:
        yield f"{name}: stored as {new.dtype}, was {old.dtype}"
    if old.values.shape[1] != new.values.shape[1]:
        yield f"{name}: rows of {new.values.shape[1]} values, were {old.values.shape[1]}"
        return
    before, after = _keys(name, old, old_words), _keys(name, new, new_words)
    if isinstance(next(iter(before), None), str) != isinstance(next(iter(after), None), str):
        before, after = _keys(name, old, None), _keys(name, new, None)
    common = [key for key in after if key in before]
    some, other = (part.values[[keys[key] for key in common]] for part, keys in ((old, before), (new, after)))
    changed = np.flatnonzero((some.view(np.uint32) != other.view(np.uint32)).any(1))
    moved = np.linalg.norm(other[changed].astype(np.float64) - some[changed], axis=1)
    for at in np.lexsort((changed, -moved))[:shown]:
        row = int(changed[at])
        yield f"{_label(name, common[row])}: {_moved(some[row], other[row], float(moved[at]))}"
    if len(changed) > shown:
        yield f"{name}: and {len(changed) - shown} more of {len(common)} rows"
    for what, ones, others in (("added", after, before), ("removed", before, after)):
        keys = [key for key in ones if key not in others]
        yield from (f"{_label(name, key)}: row {what}" for key in keys[:shown])
        if len(keys) > shown:
            yield f"{name}: and {len(keys) - shown} more rows {what}"


def _keys(name: str, part: Part, words: Sequence[str] | None) -> dict[str | int, int]:
    """The word of each row, or its number in the tensor -> its number in the part."""
    if name in TOKEN_TENSORS and words is not None and len(words) == part.total:
        return {word: row for row, word in enumerate(words[part.first : part.first + len(part.values)])}
    return {part.first + row: row for row in range(len(part.values))}


def _label(name: str, key: str | int) -> str:
    return f"{name} {quote(key)}" if isinstance(key, str) else f"{name} row {key}"


def _moved(old: NDArray[np.float32], new: NDArray[np.float32], moved: float) -> str:
    if len(old) == 1:
        return f"{old[0]:.6g} -> {new[0]:.6g}"
    columns = np.flatnonzero(old.view(np.uint32) != new.view(np.uint32))
    largest = columns[np.argsort(-np.abs(new[columns].astype(np.float64) - old[columns]), kind="stable")]
    shown = largest if len(columns) <= _COLUMNS else largest[:1]
    texts = [f"column {column} {old[column]:.6g} -> {new[column]:.6g}" for column in shown]
    many = f"{len(columns)} of {len(old)} columns, most " if len(columns) > _COLUMNS else ""
    length = float(np.linalg.norm(old.astype(np.float64)))
    return f"moved {moved:.3g} of {length:.3g}; {many}{', '.join(texts)}"


def as_text(parts: Mapping[str, Part], words: Sequence[str] | None) -> Iterator[str]:
    """One line for each row: its word or number, its Euclidean norm, its first values, and its CRC-32, so that the
    line differs whenever the row does.
    """
    for name, part in parts.items():
        for key, row in _keys(name, part, words).items():
            values = part.values[row]
            if len(values) == 1:
                yield f"{_label(name, key)}: {values[0]!s}"
                continue
            first = " ".join(f"{value:.6g}" for value in values[:4])
            norm = float(np.linalg.norm(values.astype(np.float64)))
            checksum = zlib.crc32(np.ascontiguousarray(values, "<f4").data)
            yield f"{_label(name, key)}: norm {norm:.6g}, {first} ... ({len(values)} values, crc {checksum:08x})"
