"""Tells a `.pyc` the interpreter made from a source file from one that somebody planted.
Takes two paths, gives a yes or a no; the cache is parsed as plain bytes, never unmarshalled, never run.
It does not know packages.

Two true compilations of one file may differ in bytes: marshal marks shared objects by how often they
happened to be referenced. So both are read into nested tuples with every reference resolved, and compared.
"""

from __future__ import annotations

import importlib.util
import marshal
import struct
from pathlib import Path
from typing import Any

__all__ = ["is_own_cache"]

_HEADER = 16
_SIZE_LIMIT = 128 << 20
_DEPTH_LIMIT = 200
_WORDS_BEFORE, _OBJECTS, _OBJECTS_AFTER = (
    5,
    9,
    2,
)  # of a code object since Python 3.11; its first line between


def is_own_cache(cache: Path, source: Path) -> bool:
    """Whether `cache` holds what this interpreter compiles `source` to, for this very state of `source`."""
    levels = {Path(importlib.util.cache_from_source(str(source), optimization=o)).name: int(o or 0)
              for o in ("", "1", "2")}  # fmt: skip
    if cache.name not in levels or cache.stat().st_size > _SIZE_LIMIT:
        return False
    raw, text = cache.read_bytes(), source.read_bytes()
    if raw[:4] != importlib.util.MAGIC_NUMBER or len(raw) < _HEADER:
        return False
    flags, first, second = struct.unpack_from("<III", raw, 4)
    status = source.stat()
    if flags == 0:  # an older state of the file would be compiled anew, and never run
        fresh = (first, second) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    else:
        fresh = flags in (1, 3) and raw[8:16] == importlib.util.source_hash(text)
    if not fresh:
        return False
    try:
        found = _Marshalled(raw[_HEADER:]).whole()
        code = compile(text, "", "exec", dont_inherit=True, optimize=levels[cache.name])
        return bool(found == _Marshalled(marshal.dumps(code)).whole())
    except (ValueError, IndexError, struct.error, RecursionError, SyntaxError):
        return False


class _Marshalled:
    """Marshal data as nested tuples of (type, content); ValueError on whatever a compilation never holds."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.depth = raw, 0, 0
        self.references: list[Any] = []

    def whole(self) -> Any:
        value = self._value()
        if self.at != len(self.raw):
            raise ValueError("bytes after the end")
        return value

    def _bytes(self, size: int) -> bytes:
        if not 0 <= size <= len(self.raw) - self.at:
            raise ValueError("cut off")
        self.at += size
        return self.raw[self.at - size : self.at]

    def _count(self, size: int = 4) -> int:
        return int.from_bytes(self._bytes(size), "little", signed=size == 4)

    def _value(self) -> Any:
        self.depth += 1
        if self.depth > _DEPTH_LIMIT:
            raise ValueError("too deep")
        byte = self._bytes(1)[0]
        kind = chr(byte & 0x7F)
        place = len(self.references)
        if byte & 0x80:
            self.references.append(None)
        value = self._content(kind)
        if byte & 0x80:
            self.references[place] = value
        self.depth -= 1
        return value

    def _content(self, kind: str) -> Any:
        if kind == "r":
            value = self.references[self._count()]
            if value is None:
                raise ValueError("refers to itself")
            return value
        if kind in "NTF.S":
            return (kind,)
        if kind == "i":
            return kind, self._bytes(4)
        if kind in "gy":
            return kind, self._bytes(8 if kind == "g" else 16)
        if kind == "l":
            return kind, self._bytes(
                4 + 2 * abs(int.from_bytes(self.raw[self.at : self.at + 4], "little", signed=True))
            )
        if kind == "s":
            return kind, self._bytes(self._count())
        if kind in "uaAtzZ":  # one string may be stored short, ASCII or interned
            return "u", self._bytes(self._count(1 if kind in "zZ" else 4))
        if kind in "()<>":
            count = self._count(1 if kind == ")" else 4)
            items = [self._value() for _ in range(count)]
            return ("(", *items) if kind in "()" else (kind, frozenset(items))
        if kind == ":":
            return kind, *(self._value() for _ in range(3))
        if kind == "c":
            return self._code()
        raise ValueError(f"unknown type {kind!r}")

    def _code(self) -> Any:
        words = self._bytes(4 * _WORDS_BEFORE)
        objects = [self._value() for _ in range(_OBJECTS - 1)]
        del objects[5]  # the file name, which may be where the package once lay
        line = self._bytes(4)
        tables = [self._value() for _ in range(_OBJECTS_AFTER)]
        return "c", words, *objects, line, *tables
