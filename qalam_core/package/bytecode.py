"""Tells whether a `.pyc` file is this interpreter's compilation of a source file, without unmarshalling it.

Two compilations of one file may differ in bytes, because marshal marks shared objects by their reference counts. So
both are parsed into nested tuples with all references resolved, and these are compared.
"""

from __future__ import annotations

import importlib.util
import marshal
import struct
from pathlib import Path
from typing import Any

_HEADER = 16
_SIZE_LIMIT = 128 << 20
_DEPTH_LIMIT = 200
_FIXED_SIZES = {"i": 4, "g": 8, "y": 16}


def is_own_cache(cache: Path, source: Path) -> bool:
    """Whether `cache` is what this interpreter compiles the current content of `source` to."""
    levels = {Path(importlib.util.cache_from_source(str(source), optimization=o)).name: int(o or 0)
              for o in ("", "1", "2")}  # fmt: skip
    if cache.name not in levels or cache.stat().st_size > _SIZE_LIMIT:
        return False
    raw, text = cache.read_bytes(), source.read_bytes()
    if raw[:4] != importlib.util.MAGIC_NUMBER or len(raw) < _HEADER:
        return False
    flags, first, second = struct.unpack_from("<III", raw, 4)
    status = source.stat()
    if flags == 0:  # a cache of another time or size would be replaced on import, never executed
        fresh = (first, second) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    else:
        fresh = flags in (1, 3) and raw[8:16] == importlib.util.source_hash(text)
    if not fresh:
        return False
    try:
        found = _Marshalled(raw[_HEADER:]).parse()
        code = compile(text, "", "exec", dont_inherit=True, optimize=levels[cache.name])
        return bool(found == _Marshalled(marshal.dumps(code)).parse())
    except (ValueError, IndexError, struct.error, RecursionError, SyntaxError):
        return False


class _Marshalled:
    """Marshal data as nested tuples of (type, content); ValueError for anything that no compilation contains."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at, self.depth = raw, 0, 0
        self.references: list[Any] = []

    def parse(self) -> Any:
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

    def _values(self, count: int) -> list[Any]:
        return [self._value() for _ in range(count)]

    def _value(self) -> Any:
        self.depth += 1
        if self.depth > _DEPTH_LIMIT:
            raise ValueError("too deep")
        byte = self._bytes(1)[0]
        place = len(self.references)
        if byte & 0x80:  # later values may refer to this one
            self.references.append(None)
        value = self._content(chr(byte & 0x7F))
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
        if kind in _FIXED_SIZES:
            return kind, self._bytes(_FIXED_SIZES[kind])
        if kind == "l":
            digits = self._count()
            return kind, digits, self._bytes(2 * abs(digits))
        if kind == "s":
            return kind, self._bytes(self._count())
        if kind in "uaAtzZ":  # a string may be stored short, as ASCII or interned
            return "u", self._bytes(self._count(1 if kind in "zZ" else 4))
        if kind in "()<>":
            items = self._values(self._count(1 if kind == ")" else 4))
            return ("(", *items) if kind in "()" else (kind, frozenset(items))
        if kind == ":":
            return kind, *self._values(3)
        if kind == "c":  # a code object, as in Python 3.11 and later
            words, objects = self._bytes(20), self._values(8)
            del objects[5]  # the file name, which depends on the package's folder at compilation
            return kind, words, *objects, self._bytes(4), *self._values(2)
        raise ValueError(f"unknown type {kind!r}")
