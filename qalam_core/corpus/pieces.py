"""Pieces: where a large file of lines is cut, so that one that grew or changed is read again only where it did.

A piece ends behind the first line after PIECE_BYTES whose checksum is a multiple of LINES: the cuts depend on the text
around them alone, and come together again behind a change.
Source: Muthitacharoen et al., A Low-bandwidth Network File System (2001), section 3.1, for content-defined cuts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PIECE_BYTES = 16 << 20
LINES = 256  # mean number of lines after PIECE_BYTES

_READ = 1 << 20


class Piece(NamedTuple):
    """A part of a file."""

    digest: str  # sha256 of its bytes
    size: int  # bytes
    start: int  # offset in the file
    first_line: int  # counted from 1


def pieces(file: BinaryIO, blank: bool) -> Iterator[Piece]:
    """The pieces of a file, in order; one of no bytes for an empty file. With `blank`, they end behind blank lines.

    Raises OSError.
    """
    start, line = 0, 1
    while True:
        file.seek(start)
        sha256, size, lines = hashlib.sha256(), 0, 0
        while size < PIECE_BYTES and (data := file.read(min(_READ, PIECE_BYTES - size))):
            sha256.update(data)
            size += len(data)
            lines += data.count(b"\n")
        checksum, ended = 0, False
        while not ended and (data := file.readline(_READ)):
            sha256.update(data)
            size += len(data)
            complete = data.endswith(b"\n")
            lines += complete
            # of the last line that is not blank; of a long one, of its end
            checksum = checksum if blank and not data.strip() else zlib.crc32(data)
            ended = complete and checksum % LINES == 0 and not (blank and data.strip())
        if size or not start:
            yield Piece(sha256.hexdigest(), size, start, line)
        start, line = start + size, line + lines
        if not ended:
            return
