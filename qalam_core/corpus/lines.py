"""Lines: a source file's bytes -> decompressed, checked and decoded complete lines, in bounded memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from qalam_core.corpus.sources import SourceFile
from qalam_core.errors import CorpusError

CHUNK = 1 << 20  # bytes per read
MAX_LINE = 16 << 20  # bytes of one line
HEAD = 4000  # bytes kept of a longer line

_MARKS = {  # byte order marks; those of UTF-32 first, because one begins as that of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8",
}  # fmt: skip
_SAMPLE = 1 << 16  # bytes that an encoding is guessed from, for the advice in an error

_NOT_TEXT = {
    b"%PDF": "a PDF file; take its text out, for example with `pdftotext`",
    b"PK\x03\x04": "a zip archive, or a document of an office program; unpack it, or save it as plain text",
    b"\xd0\xcf\x11\xe0": "a document of an office program; save it as plain text",
    b"{\\rtf": "an RTF document; save it as plain text",
    b"SQLite format 3": "an SQLite database; export the text as CSV",
}
_COMPRESSED = {rb"\x1f\x8b": ".gz", rb"BZh[1-9]1AY&SY": ".bz2", rb"\xfd7zXZ": ".xz", rb"\x28\xb5\x2f\xfd": ".zst"}

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {"bz2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}

# What could not be decoded passes through UTF-8 as a byte that is not valid there, and is counted with the others.
_LOST = "qalam.lost"


def _lost(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error(_LOST, _lost)


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn errors of reading into CorpusErrors. Wrap only reads: a full disk is not an error of the source."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise CorpusError(f"{file.path}: cannot be read ({error.strerror}); check its permissions") from None
        if "requires too much memory" in str(error):
            raise CorpusError(
                f"{file.path}: zstd file with a window of more than 128 MB; decompress it (zstd -d --long=31 --rm "
                "FILE), and name the file that this writes"
            ) from None
        problem = "truncated" if "end" in str(error) or "runcated" in str(error) else "damaged"
        kind = f"{file.settings.compression} file".strip()
        raise CorpusError(f"{file.path}: {problem} {kind}; fetch it again, or correct its suffix") from None


class Input:
    """A file that is being read; `done` of its bytes, as they are on disk, have been read."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.lossy = file.settings.encoding_errors == "replace"
        self.start = file.piece.start if file.piece else 0
        self.done = 0

    def chunks(self) -> Iterator[bytes]:
        """The decompressed bytes, CHUNK at a time."""
        with ExitStack() as stack:
            with reading(self.file):
                raw = stack.enter_context(pa.OSFile(self.file.opened))
                stream: Any = raw
                compression = self.file.settings.compression
                if compression == "gzip":  # Arrow does not support zeros after the end
                    stream = stack.enter_context(gzip.open(raw))
                elif compression and compression not in _DECOMPRESSORS:
                    stream = stack.enter_context(pa.CompressedInputStream(raw, compression))
                chunks: Iterator[bytes] = iter(lambda: stream.read(CHUNK), b"")
                if self.file.piece:
                    raw.seek(self.start)
                    chunks = iter(lambda: raw.read(min(CHUNK, self.start + self.file.size - raw.tell())), b"")
                if compression in _DECOMPRESSORS:
                    chunks = _streams(raw, _DECOMPRESSORS[compression])
            while True:
                with reading(self.file):
                    chunk = next(chunks, b"")
                    self.done = raw.tell() - self.start
                if not chunk:
                    break
                yield chunk

    def text_chunks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, UTF-8) without a byte order mark; offsets are of bytes in the file if that is UTF-8, else of UTF-8.

        Raises CorpusError for what cannot be text in the source's encoding.
        """
        offset = self.start
        for chunk in self._utf8():
            nul = chunk.find(b"\0") if self.file.settings.bad_records == "refuse" else -1
            if nul >= 0:
                raise CorpusError(
                    f"{self.file.path}: byte {offset + nul} is NUL, which is not text; if the file is text, remove it "
                    'or set bad_records = "skip" on its source; else set its real format'
                )
            mark = 3 if not offset and chunk.startswith(codecs.BOM_UTF8) else 0
            yield offset + mark, chunk[mark:]
            offset += len(chunk)

    def _utf8(self) -> Iterator[bytes]:
        """The bytes, transcoded to UTF-8; where that is their encoding, they are checked when they are decoded."""
        encoding, offset = self.file.settings.encoding, 0
        decoder = codecs.getincrementaldecoder(encoding)(_LOST if self.lossy else "strict")
        for chunk in self.chunks():
            if not offset:
                check_is_text(Path(self.file.path), chunk)
                self._check_encoding(chunk[:_SAMPLE])
            if encoding == "utf-8":
                yield chunk
            else:
                yield self._transcoded(decoder, chunk, offset)
            offset += len(chunk)
        if encoding != "utf-8":
            yield self._transcoded(decoder, b"", offset)

    def _transcoded(self, decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int) -> bytes:
        encoding = self.file.settings.encoding
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
            return text.encode("utf-8", _LOST if self.lossy else "strict")
        except UnicodeError as error:
            place = offset - len(pending) + getattr(error, "start", 0)
            raise CorpusError(
                f"{self.file.path}: byte {place} is not {encoding}; correct encoding on its source, or set "
                'encoding_errors = "replace"'
            ) from None

    def _check_encoding(self, sample: bytes) -> None:
        """Raise CorpusError where the beginning shows that it is in another Unicode encoding than the source's."""
        encoding = self.file.settings.encoding
        marked = next((name for mark, name in _MARKS.items() if sample.startswith(mark)), "")
        found = marked or (_wide(sample) if b"\0" in sample else "utf-8" if _is_utf8(sample) else "")
        fits = encoding.startswith(found) if marked or found == "utf-8" else found in (encoding, f"{encoding}-le")
        if marked and fits and encoding.endswith(("-le", "-be")):  # of its own byte order
            fits = sample.startswith("\ufeff".encode(encoding))
        if found and not fits:
            raise CorpusError(f'{self.file.path}: is {found.upper()}; set encoding = "{found}" on its source')

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
            legacy = "" if record else _legacy(bytes(block[max(0, error.start - _SAMPLE // 2) :][:_SAMPLE]))
            cure = "correct it" if record else "set encoding on its source to the one that it has"
            if legacy:
                cure = f'the text reads as Arabic in {legacy}: set encoding = "{legacy}" on its source'
            raise CorpusError(
                f"{self.file.path}: {place} {offset + error.start} is not UTF-8; {cure}"
                + ("" if legacy else ', or encoding_errors = "replace" if a few bytes are damaged')
            ) from None


def check_is_text(path: Path, start: bytes) -> None:
    """Raise CorpusError for the start of a file that is something else, whatever its name says."""
    for magic, what in _NOT_TEXT.items():
        if start.startswith(magic):
            raise CorpusError(f"{path}: is {what}")
    for pattern, suffix in _COMPRESSED.items():
        if re.match(pattern, start):
            raise CorpusError(f"{path}: is compressed, but its name does not show it; rename it to {path.name}{suffix}")


def _streams(raw: Any, start: Callable[[], Any]) -> Iterator[bytes]:
    """The decompressed streams of a file, which zeros may follow: tapes and dd write them. Raises EOFError, OSError.

    Python's own files end without an error at anything that follows, and xz's at some zeros with one.
    """
    data = raw.read(CHUNK)
    while data:
        stream = start()
        while not stream.eof:
            if chunk := stream.decompress(data, CHUNK):
                yield chunk
            data = raw.read(CHUNK) if stream.needs_input else b""
            if stream.needs_input and not data:
                raise EOFError("the file ends within a stream")
        data = stream.unused_data.lstrip(b"\0")
        while not data and (more := raw.read(CHUNK)):
            data = more.lstrip(b"\0")


def _wide(sample: bytes) -> str:
    """The encoding of UTF-16 or UTF-32 without a byte order mark, "" when it is neither."""
    sample = sample[: len(sample) // 4 * 4]  # cut within no character
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = sample.decode(encoding, "replace")
        common = sum(_is_arabic(char) or (char.isascii() and (char.isprintable() or char.isspace())) for char in text)
        if common > 0.8 * len(text):
            return encoding
    return ""


def _legacy(sample: bytes) -> str:
    """The encoding of one byte per character in which a sample is Arabic, "" when there is none, or it is UTF-8."""
    high = sum(byte >= 0x80 for byte in sample)
    if sum(char > "\x7f" for char in sample.decode("utf-8", "ignore")) * 2 > high / 2:
        return ""  # most of it is valid: damaged UTF-8, which is some kind of Arabic in these encodings too

    def arabic(encoding: str) -> float:
        words = (word for word in sample.decode(encoding, "replace").split() if not word.isascii())
        letters = [char for word in words for char in word if char.isalpha() or not char.isascii()]
        return sum(map(_is_arabic, letters)) / max(1, len(letters))

    best = max("cp1256", "iso8859-6", key=arabic)
    return best if arabic(best) > 0.8 else ""


def _is_utf8(sample: bytes) -> bool:
    """Whether a sample is UTF-8 and, by its number of other characters than ASCII's, not by chance."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(sample)
    return "\ufffd" not in text and sum(char > "\x7f" for char in text) >= 4


def _is_arabic(char: str) -> bool:
    return "\u0600" <= char <= "\u06ff"


def split(text: str) -> list[str]:
    """The lines of a text; they end with \\n, \\r\\n or \\r and nothing else: U+2028 does not end one."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines
