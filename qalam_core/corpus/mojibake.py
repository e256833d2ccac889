"""Mojibake: repairs Arabic text whose bytes were decoded with the wrong encoding.

Three kinds are recognised. UTF-8 read as cp1252, cp1254 or Latin-1 (U+0639 became U+00D8 U+00B9); cp1256, the encoding
of Arabic Windows, read as one of these (a run of accented letters and no plain ones); and whatever ftfy recognises. The
first two may have happened twice. A pattern finds suspects in native code; other texts are not touched.

Some decoders drop what an encoding leaves undefined, and some tools soft hyphens. The rest of such a letter is not
completed: U+00D9 alone was a feh, a damma or a kasra. The text counts as repaired in part.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Outcome = Literal["", "whole", "part", "not"]
"""How much of the damage to a text was undone; "" where there was none."""

# How the encodings show each byte from 0x80 on; where one is undefined, some decoders pass the byte through.
_SHOWN = {
    byte: {chr(byte), *(bytes([byte]).decode(name, "ignore") or chr(byte) for name in ("cp1252", "cp1254"))}
    for byte in range(0x80, 0x100)
}
_BYTE = {ord(char): chr(byte) for byte, chars in _SHOWN.items() for char in chars}
_CP1256 = {char: byte.encode("latin-1").decode("cp1256") for char, byte in _BYTE.items()}


def _shown(first: int, last: int) -> str:
    """A regex class of the characters that the bytes of a range are shown as."""
    return "[" + "".join(sorted(char for byte in range(first, last + 1) for char in _SHOWN[byte])) + "]"


_LEAD = _shown(0xC2, 0xF4)  # the first byte of a UTF-8 sequence
_NEXT = _shown(0x80, 0xBF)  # the others
_WELL_FORMED = (  # The Unicode Standard, table 3-7; further bytes are any
    (1, (0xC2, 0xDF)), (2, (0xE0, 0xE0), (0xA0, 0xBF)), (2, (0xE1, 0xEC)), (2, (0xED, 0xED), (0x80, 0x9F)),
    (2, (0xEE, 0xEF)), (3, (0xF0, 0xF0), (0x90, 0xBF)), (3, (0xF1, 0xF3)), (3, (0xF4, 0xF4), (0x80, 0x8F)),
)  # fmt: skip
_SEQUENCE = "|".join(
    "".join(_shown(*span) for span in spans) + _NEXT * (more + 1 - len(spans)) for more, *spans in _WELL_FORMED
)
# letters that show a byte which is an Arabic letter or mark in cp1256; some French letters have the same byte in both
_ARABIC = [
    char for char in map(chr, _BYTE) if _BYTE[ord(char)] >= "\u00c0" and "\u0600" < _CP1256[ord(char)] < "\u0700"
]
_LETTER = f"[{''.join(filter(str.isalpha, _ARABIC))}]"

# Sequences that do not occur in Latin languages.
_UTF8_SIGN = f"(?:{_shown(0xD8, 0xDB)}{_NEXT}){{2}}"  # two Arabic letters
_CP1256_SIGN = f"{_LETTER}{{3}}"
_FTFY_SIGN = f"[\u00c2\u00c3\u00e2]{_NEXT}|[\u00f0\u011f][\u0178\u009f]"
_SUSPECT = "|".join((_UTF8_SIGN, _CP1256_SIGN, _FTFY_SIGN))

_SEQUENCES = re.compile(f"((?:{_SEQUENCE})+)")
_UTF8 = re.compile(_UTF8_SIGN)
_CP1256_WORD = re.compile(f"(?<![A-Za-z]){_LETTER}{{3,}}(?![A-Za-z])")
_LETTERS = re.compile(_LETTER)
_PLAIN = re.compile("[A-Za-z]")


def repair_array(texts: pa.Array) -> tuple[pa.Array, NDArray[np.object_]]:
    """large_string texts -> the texts repaired, and an Outcome for each."""
    outcomes = np.full(len(texts), "", np.object_)
    suspects = np.flatnonzero(pc.match_substring_regex(texts, pattern=_SUSPECT).to_numpy(zero_copy_only=False))
    if not len(suspects):
        return texts, outcomes
    repaired = [repair(text) for text in texts.take(pa.array(suspects)).to_pylist()]
    outcomes[suspects] = [outcome for _, outcome in repaired]
    changed = np.isin(outcomes, ("whole", "part"))
    new = pa.array([text for text, outcome in repaired if outcome in ("whole", "part")], pa.large_string())
    return pc.replace_with_mask(texts, pa.array(changed), new), outcomes


def repair(text: str) -> tuple[str, Outcome]:
    """Repair one text; what is not recognised stays as it is."""
    decoded, complete = _decoded(text)
    chance = len(text) - len(decoded) < len(_LETTERS.findall(text)) / 4  # a few letters of cp1256 look like a sequence
    if chance and _is_cp1256(text) and not _UTF8.search(text):
        return text.translate(_CP1256), "whole"
    if decoded != text and (_UTF8.search(decoded) or _is_cp1256(decoded)):  # it happened twice
        again, outcome = repair(decoded)
        return again, outcome if complete else "part"
    if _UTF8.search(text):
        return decoded, "whole" if complete else "part"
    if re.search(_FTFY_SIGN, text):
        import ftfy  # slow to import, and few texts need it
        from ftfy.badness import is_bad

        fixed = ftfy.fix_encoding(text)
        if fixed == text:
            return text, "not" if is_bad(text) else ""
        if fixed == decoded or (complete and fixed == _decoded(decoded)[0]):
            return fixed, "part" if is_bad(fixed) else "whole"
        return decoded, "not" if decoded == text else "part"  # where bytes are missing, ftfy guesses them
    return text, ""


def _decoded(text: str) -> tuple[str, bool]:
    """UTF-8 sequences decoded, and whether no byte of one is left."""
    parts = _SEQUENCES.split(text)  # every second one is a match
    complete = not any(re.search(_LEAD, part) for part in parts[::2])
    parts[1::2] = [part.translate(_BYTE).encode("latin-1").decode() for part in parts[1::2]]
    return "".join(parts), complete


def _is_cp1256(text: str) -> bool:
    """Whether the text has words of such letters alone. In Latin languages only capitals make a few."""
    words = _CP1256_WORD.findall(text)
    telling = {word for word in words if not word.isupper()}
    mostly = len(_LETTERS.findall(text)) > len(_PLAIN.findall(text))
    return len(telling) > 2 or (mostly and (len(telling) > 0 or len(words) > 1))
