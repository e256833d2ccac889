"""Mojibake: repairs Arabic text whose bytes were decoded with the wrong encoding.

Three kinds are recognised. UTF-8 read as cp1252 or Latin-1 (U+0639 became U+00D8 U+00B9); cp1256, the encoding of
Arabic Windows, read as either (a run of accented capitals and no plain letters); and whatever ftfy recognises, such as
text that was damaged twice. A pattern finds suspects in native code; other texts are not touched.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# How both encodings show each byte from 0x80 on; cp1252 leaves five undefined, and decoders pass those through.
_LATIN = {byte: {chr(byte), bytes([byte]).decode("cp1252", "ignore") or chr(byte)} for byte in range(0x80, 0x100)}
_BYTE = {ord(char): chr(byte) for byte, chars in _LATIN.items() for char in chars}
_CP1256 = {char: byte.encode("latin-1").decode("cp1256") for char, byte in _BYTE.items()}


def _shown(first: int, last: int) -> str:
    """A regex class of the characters that the bytes of a range are shown as."""
    return "[" + "".join(sorted(char for byte in range(first, last + 1) for char in _LATIN[byte])) + "]"


_NEXT = _shown(0x80, 0xBF)  # the second and later bytes of a UTF-8 sequence
_SEQUENCE = f"[\u00c2-\u00df]{_NEXT}|[\u00e0-\u00ef]{_NEXT}{_NEXT}|[\u00f0-\u00f4]{_NEXT}{_NEXT}{_NEXT}"
_ARABIC = f"(?:[\u00d8-\u00db]{_NEXT})"  # how two bytes of an Arabic letter are shown
_ACCENTED = "[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]"

# Sequences that do not occur in Latin languages.
_UTF8_SIGN = f"{_ARABIC}{{2}}"
_CP1256_SIGN = f"{_ACCENTED}{{3}}"
_FTFY_SIGN = f"[\u00c2\u00c3\u00e2]{_NEXT}"
_SUSPECT = "|".join((_UTF8_SIGN, _CP1256_SIGN, _FTFY_SIGN))

_SEQUENCES = re.compile(f"(?:{_SEQUENCE})+")
_UTF8 = re.compile(_UTF8_SIGN)
_CP1256_WORD = re.compile(f"(?<![A-Za-z]){_ACCENTED}{{3,}}(?![A-Za-z])")
_ACCENTS = re.compile(_ACCENTED)
_PLAIN = re.compile("[A-Za-z]")


def repair_array(texts: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """large_string texts -> the texts repaired, and which of them were changed."""
    changed = np.zeros(len(texts), np.bool_)
    suspects = np.flatnonzero(pc.match_substring_regex(texts, pattern=_SUSPECT).to_numpy(zero_copy_only=False))
    if not len(suspects):
        return texts, changed
    before = texts.take(pa.array(suspects)).to_pylist()
    after = [repair(text) for text in before]
    changed[suspects] = [old != new for old, new in zip(before, after, strict=True)]
    new = pa.array([text for text, row in zip(after, suspects, strict=True) if changed[row]], pa.large_string())
    return pc.replace_with_mask(texts, pa.array(changed), new), changed


def repair(text: str) -> str:
    """Repair one text; what is not recognised stays as it is."""
    if _UTF8.search(text):
        return _SEQUENCES.sub(_decoded, text)
    # in Latin languages a few letters in a hundred are accented, and words of accented letters alone hardly occur
    words = len(_CP1256_WORD.findall(text))
    if words > 2 or (words and len(_ACCENTS.findall(text)) > len(_PLAIN.findall(text))):
        return text.translate(_CP1256)
    if re.search(_FTFY_SIGN, text):
        import ftfy  # slow to import, and few texts need it

        return ftfy.fix_encoding(text)
    return text


def _decoded(sequences: re.Match[str]) -> str:
    """The bytes of a match decoded as UTF-8; the match itself where they are not UTF-8."""
    try:
        return sequences[0].translate(_BYTE).encode("latin-1").decode()
    except UnicodeDecodeError:
        return sequences[0]
