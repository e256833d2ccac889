"""The lines of a package as things to rewrite: where a row stands, what it may say instead, and how to save it.
Takes a package that was read, gives places and new texts, and puts whole files in place of old ones.
It does not know why a row changes, nor what the manifest says about it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.package.runtime.rows import COMMENT, MATRIX_TYPES, shortest
from qalam_core.package.runtime.weights_reader import END_OF_TENSOR, FormatError, weight_files

__all__ = ["Part", "Place", "find_place", "new_line", "parts", "replace_files"]

Row = NDArray[np.float32]

_HEADER = re.compile(r'    "[^"]+": \("([a-z0-9]+)", \(([0-9]+),(?: ([0-9]+))?\), ([0-9]+), ([0-9]+), \(')
_LINE = re.compile(r"( *)(.*?)( *(?:#.*)?)")


@dataclass(frozen=True)
class Part:
    """One tensor's rows in one weights file: the file's bytes, and where its header and its end stand in them."""

    path: Path
    raw: bytes
    header: slice
    end: int  # where the line that closes the tensor begins
    dtype: str
    shape: tuple[int, ...]
    first: int
    rows: int


@dataclass(frozen=True)
class Place:
    """One row's line: its part, its text, where it stands in the bytes, and its number in an editor."""

    part: Part
    at: slice
    line: str
    number: int


def parts(folder: Path, tensor: str) -> Iterator[Part]:
    """Where a tensor's rows stand, file by file. The package was read before, so its grammar is in order."""
    for path in weight_files(folder):
        raw = path.read_bytes()
        start = raw.find(f'\n    "{tensor}": ('.encode()) + 1
        if not start:
            continue
        stop = raw.index(b"\n", start)
        match = _HEADER.fullmatch(raw[start:stop].decode())
        if match is None:
            raise PackageError(f"{path.name}:0: changed while it was edited; try again")
        shape = (int(match[2]),) if match[3] is None else (int(match[2]), int(match[3]))
        end = raw.index(f"\n{END_OF_TENSOR}\n".encode(), stop) + 1
        yield Part(path, raw, slice(start, stop), end, match[1], shape, int(match[4]), int(match[5]))


def find_place(folder: Path, tensor: str, row: int) -> Place:
    """The line of one row; comments and blank lines before it are stepped over."""
    for part in parts(folder, tensor):
        left = row - part.first
        if not 0 <= left < part.rows:
            continue
        start = part.header.stop + 1
        while start < part.end:
            stop = part.raw.index(b"\n", start)
            line = part.raw[start:stop].decode()
            if not COMMENT.fullmatch(line):
                if not left:
                    return Place(part, slice(start, stop), line, part.raw.count(b"\n", 0, start) + 1)
                left -= 1
            start = stop + 1
    raise PackageError(f'weights.py:0: row {row} of "{tensor}" is missing; read the package to learn why')


def new_line(place: Place, wanted: Row, old: Row, literal: str = "") -> str:
    """The line that gives exactly `wanted`: in the tensor's type where that can say it, else by hand.

    A row written by hand stays so, and numbers that stay keep their digits; the indent and a comment stay
    in any case. `literal` is a row's text from another line, tried first.
    """
    found = _LINE.fullmatch(place.line)
    assert found is not None  # any line without a line end matches
    indent, body, tail = found.groups()
    if len(place.part.shape) == 1:
        return f"{indent}{shortest(wanted)[0]},{tail}"
    if body.startswith("["):
        return f"{indent}{_by_hand(wanted, old, body.strip('[],').split(','))}{tail}"
    choices = [*([literal] if literal else []), _encoded(wanted, place.part.dtype)]
    exact = (body for body in choices if _says(body, wanted, place.part.dtype))
    return f"{indent}{next(exact, None) or _by_hand(wanted)}{tail}"


def _says(body: str, wanted: Row, dtype: str) -> bool:
    def refuse(reason: str) -> NoReturn:
        raise FormatError(reason)

    try:
        return MATRIX_TYPES[dtype].parse(body, len(wanted), refuse).tobytes() == wanted.tobytes()
    except FormatError:  # a value too large for the type
        return False


def _encoded(row: Row, dtype: str) -> str:
    return MATRIX_TYPES[dtype].encode(row[None]).tobytes().decode().strip()


def _by_hand(wanted: Row, old: Row | None = None, texts: list[str] | None = None) -> str:
    numbers = shortest(wanted)
    if old is not None and texts is not None:
        stays = wanted.view(np.uint32) == old.view(np.uint32)
        numbers = [text.strip() if stay else number for text, number, stay in zip(texts, numbers, stays, strict=True)]
    return f"[{', '.join(numbers)}],"


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Put new files in place of old ones, in the order given; each whole, and none before all are on the disk.

    The interpreter's caches of the old ones go too: they would be refused as somebody else's.
    """
    aside: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            aside[name] = folder / f".{name}.{os.getpid()}"
            with aside[name].open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(folder / name, aside[name])
        for name, path in aside.items():
            path.replace(folder / name)
            for cache in (folder / "__pycache__").glob(f"{Path(name).stem}.*.pyc"):
                cache.unlink()
    except OSError as error:
        raise PackageError(f"{folder}: cannot be written ({error.strerror}); make room or mend the rights") from None
    finally:
        for path in aside.values():
            with suppress(OSError):
                path.unlink()
