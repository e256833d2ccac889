"""Pieces: where a large file of lines is cut, so that one that grew or changed is read again only where it did; and how
much larger the parts of a corpus are when it is large.

A piece ends behind the first line after its least size whose checksum is a multiple of LINES: the cuts depend on the
text around them alone, and come together again behind a change.
Source: Muthitacharoen et al., A Low-bandwidth Network File System (2001), section 3.1, for content-defined cuts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PIECE_BYTES = 16 << 20  # the least, of a corpus that has not grown
LINES = 256  # mean number of lines after the least size

STEP_BYTES = 32_000_000_000  # of sources, up to which nothing has grown: 2,000 parts of 16 MB

_READ = 1 << 20


class Piece(NamedTuple):
    """A part of a file."""

    digest: str  # sha256 of its bytes
    size: int  # bytes
    start: int  # offset in the file
    first_line: int  # counted from 1


def growth(size: int, most: int = 64) -> int:
    """How many times 16 MB the parts of a corpus have, whose sources have `size` bytes: 1, 2, 4 and so on up to `most`.

    So there are 1,000 to 2,000 parts, up to 2 TB. All of them change at a step, which is why steps are far apart.
    Pieces and groups are read in record batches, whatever their size.
    """
    return min(most, 1 << (max(0, size - 1) // STEP_BYTES).bit_length())


def pieces(file: BinaryIO, least: int, blank: bool) -> Iterator[Piece]:
    """The pieces of a file, in order, of `least` bytes or more but for the last; one of no bytes for an empty file.

    With `blank`, they end behind blank lines.

    Raises OSError.
    """
    start, line = 0, 1
    while True:
        file.seek(start)
        sha256, size, lines = hashlib.sha256(), 0, 0
        while size < least and (data := file.read(min(_READ, least - size))):
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
