"""Lines: a source file's bytes -> decompressed, checked and decoded complete lines, in bounded memory."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from qalam_core.corpus.sources import SourceFile
from qalam_core.errors import CorpusError

CHUNK = 1 << 20  # bytes per read
MAX_LINE = 16 << 20  # bytes of one line
HEAD = 4000  # bytes kept of a longer line


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn errors of reading into CorpusErrors. Wrap only reads: a full disk is not an error of the source."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno:
            raise CorpusError(f"{file.path}: cannot be read ({error.strerror}); check its permissions") from None
        problem = "truncated" if "end" in str(error) or "runcated" in str(error) else "damaged"
        kind = f"{file.settings.compression} file".strip()
        raise CorpusError(f"{file.path}: {problem} {kind}; fetch it again, or correct its suffix") from None


class Input:
    """A file that is being read; `done` of its bytes, as they are on disk, have been read."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.lossy = file.settings.encoding_errors == "replace"
        self.done = 0

    def chunks(self) -> Iterator[bytes]:
        """The decompressed bytes, CHUNK at a time."""
        with ExitStack() as stack:
            with reading(self.file):
                raw = stack.enter_context(pa.OSFile(self.file.path))
                stream: Any = raw
                compression = self.file.settings.compression
                if compression == "xz":  # Arrow does not support it
                    stream = stack.enter_context(lzma.open(raw))
                elif compression:
                    stream = stack.enter_context(pa.CompressedInputStream(raw, compression))
            while True:
                with reading(self.file):
                    chunk: bytes = stream.read(CHUNK)
                    self.done = raw.tell()
                if not chunk:
                    break
                yield chunk

    def text_chunks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) without a byte order mark. Raises CorpusError where they cannot be UTF-8 text."""
        offset = 0
        for chunk in self.chunks():
            if not offset and chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise CorpusError(f"{self.file.path}: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
            nul = chunk.find(b"\0")
            if nul >= 0:
                raise CorpusError(
                    f"{self.file.path}: byte {offset + nul} is NUL, so this is not UTF-8 text (binary, or UTF-16?); "
                    "name its real format, or remove it from the sources"
                )
            mark = 3 if not offset and chunk.startswith(b"\xef\xbb\xbf") else 0
            yield offset + mark, chunk[mark:]
            offset += len(chunk)

    def blocks(self) -> Iterator[tuple[str, bytes]]:
        """(text of complete lines, b""), or ("", start of a line) for a line of more than MAX_LINE bytes."""
        pending = bytearray()  # the unfinished last line
        start = 0  # where it starts, in bytes from the file's beginning
        skipping = False
        for offset, chunk in self.text_chunks():
            if not pending:
                start = offset
            if skipping:
                ends = [end for end in (chunk.find(b"\n"), chunk.find(b"\r")) if end >= 0]
                if not ends:
                    continue
                skipping = False
                start += min(ends)
                chunk = chunk[min(ends) :]  # the line end begins the next text, so that line counts stay right
            # a \r at the end of the last chunk is still pending, as it may be half of \r\n
            unread = max(0, len(pending) - 1)
            pending += chunk
            end = max(pending.rfind(b"\n", unread), pending.rfind(b"\r", unread, len(pending) - 1)) + 1
            if end:
                yield self.decode(pending[:end], start), b""
                del pending[:end]
                start += end
            elif len(pending) > MAX_LINE and not pending.endswith(b"\r"):
                yield "", bytes(pending[:HEAD])
                pending.clear()
                skipping = True
        if pending:
            yield self.decode(pending, start), b""

    def decode(self, block: bytes | bytearray, offset: int, record: int = 0) -> str:
        """Decode UTF-8 at `offset` of the file, or of its `record`. Raises CorpusError with the place."""
        try:  # surrogates are replaced by readers.py
            return block.decode("utf-8", "surrogateescape" if self.lossy else "strict")
        except UnicodeDecodeError as error:
            place = f"record {record}, byte" if record else "byte"
            raise CorpusError(
                f"{self.file.path}: {place} {offset + error.start} is not UTF-8; convert the file to UTF-8, "
                f'or set encoding_errors = "replace" on its source'
            ) from None


def split(text: str) -> list[str]:
    """The lines of a text; they end with \\n, \\r\\n or \\r and nothing else: U+2028 does not end one."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines
