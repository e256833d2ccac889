"""Mojibake: repairs Arabic text whose bytes were decoded with the wrong encoding.

Four kinds are recognised. UTF-8 read as cp1252, cp1254 or Latin-1 (U+0639 became U+00D8 U+00B9); UTF-8 read as the
encodings of Arabic and Russian Windows, of the Mac or of a console, of which the first looks like Arabic; cp1256 or
ISO 8859-6 read as one of the first three (a run of accented letters and no plain ones); and whatever ftfy recognises.
All but the last may have happened several times. A pattern finds suspects in native code; other texts are not touched.

Some decoders drop what an encoding leaves undefined, and some tools soft hyphens. The rest of such a letter is not
completed: U+00D9 alone was a feh, a damma or a kasra. The text counts as repaired in part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Outcome = Literal["", "whole", "part", "not"]
"""How much of the damage to a text was undone; "" where there was none."""

TIMES = 5  # that damage may have happened; a text could be made that takes a time for each of its characters

_WELL_FORMED = (  # The Unicode Standard, table 3-7; further bytes are any
    (1, (0xC2, 0xDF)), (2, (0xE0, 0xE0), (0xA0, 0xBF)), (2, (0xE1, 0xEC)), (2, (0xED, 0xED), (0x80, 0x9F)),
    (2, (0xEE, 0xEF)), (3, (0xF0, 0xF0), (0x90, 0xBF)), (3, (0xF1, 0xF3)), (3, (0xF4, 0xF4), (0x80, 0x8F)),
)  # fmt: skip


class _Reading(NamedTuple):
    """How UTF-8 looks where it was read as another encoding."""

    byte: Mapping[int, str]  # a character that was shown -> the byte, as a character
    next: str  # regex class of the bytes of a sequence after the first
    lead: str  # of the first ones
    first: str  # of the first ones of Arabic letters, which have two
    sign: str  # regex of three letters in a row: of fewer, one may be a letter with a quote or comma
    broken: str  # regex of the beginning of a sign or an emoji, as no text has it
    sequences: re.Pattern[str]  # a group of well-formed sequences

    @classmethod
    def of(cls, *encodings: str) -> _Reading:
        """Where an encoding has nothing for a byte, some decoders pass the byte through."""
        shown = {
            byte: {bytes([byte]).decode(name, "ignore") or chr(byte) for name in encodings}
            for byte in range(0x80, 0x100)
        }

        def chars(first: int, last: int) -> str:
            return "[" + "".join(sorted(char for byte in range(first, last + 1) for char in shown[byte])) + "]"

        more = chars(0x80, 0xBF)
        sequence = "|".join(
            "".join(chars(*span) for span in spans) + more * (size + 1 - len(spans)) for size, *spans in _WELL_FORMED
        )
        sign = f"(?:{chars(0xD8, 0xD9)}{more}){{3}}"
        broken = f"{chars(0xE2, 0xE2)}{more}|{chars(0xF0, 0xF0)}{chars(0x9F, 0x9F)}"
        byte = {ord(char): chr(byte) for byte, found in shown.items() for char in found}
        sequences = re.compile(f"((?:{sequence})+)")
        return cls(byte, more, chars(0xC2, 0xF4), chars(0xD8, 0xDB), sign, broken, sequences)


_LATIN = _Reading.of("latin-1", "cp1252", "cp1254")
_BYTE = _LATIN.byte
_OTHERS = [_Reading.of(name) for name in ("cp1256", "mac_roman", "cp1251", "cp437", "cp850")]
_WORD = re.compile("[^ \t\r\n]+")  # a no-break space may be a byte

_CP1256 = {char: byte.encode("latin-1").decode("cp1256") for char, byte in _BYTE.items()}
_ISO_8859_6 = {char: byte.encode("latin-1").decode("iso8859-6", "ignore") or byte for char, byte in _BYTE.items()}
# letters that show a byte which is an Arabic letter or mark in cp1256; some French letters have the same byte in both
_ARABIC = [
    char for char in map(chr, _BYTE) if _BYTE[ord(char)] >= "\u00c0" and "\u0600" < _CP1256[ord(char)] < "\u0700"
]
_LETTER = f"[{''.join(filter(str.isalpha, _ARABIC))}]"

# Sequences that do not occur in Latin languages.
_UTF8_SIGN = f"(?:{_LATIN.first}{_LATIN.next}){{2}}"  # two Arabic letters
_CP1256_SIGN = f"{_LETTER}{{3}}"
_FTFY_SIGN = f"[\u00c2\u00c3\u00e2]{_LATIN.next}|[\u00f0\u011f][\u0178\u009f]"
_SUSPECT = "|".join((_UTF8_SIGN, _CP1256_SIGN, _FTFY_SIGN, *(reading.sign for reading in _OTHERS)))

_UTF8 = re.compile(_UTF8_SIGN)
_CP1256_WORD = re.compile(f"(?<![A-Za-z]){_LETTER}{{3,}}(?![A-Za-z])")
_LETTERS = re.compile(_LETTER)
_PLAIN = re.compile("[A-Za-z]")

_LETTERS_OF = [
    {chr(char) for char, shown in table.items() if shown.isalpha() and "\u0600" < shown < "\u0700"}
    for table in (_CP1256, _ISO_8859_6)
]
# Letters that show a byte which is an Arabic letter in one of the two alone: fa, qaf, kaf, ya; and ha, waw, ya.
_CP1256_ALONE, _ISO_8859_6_ALONE = (
    re.compile(f"[{''.join(char for char in map(chr, _BYTE) if char.isalpha() and char in one - other)}]")
    for one, other in (_LETTERS_OF, _LETTERS_OF[::-1])
)


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


def repair(text: str, times: int = TIMES) -> tuple[str, Outcome]:
    """Repair one text, whose damage may have happened several times; what is not recognised stays as it is."""
    others = [_words_decoded(text, reading) for reading in _OTHERS if re.search(reading.sign, text)]
    if others:  # some consoles show half of the letters in the same way: the shortest is the one with most of them
        decoded, complete = min(others, key=lambda found: len(found[0]))
        return _again(decoded, complete, times) if decoded != text else (text, "not")
    decoded, complete = _decoded(text)
    chance = len(text) - len(decoded) < len(_LETTERS.findall(text)) / 4  # a few letters of cp1256 look like a sequence
    if chance and _is_cp1256(text) and not _UTF8.search(text):
        return text.translate(_ISO_8859_6 if _is_iso_8859_6(text) else _CP1256), "whole"
    if decoded != text and _hides_arabic(decoded, times):
        return _again(decoded, complete, times)
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


def _again(decoded: str, complete: bool, times: int) -> tuple[str, Outcome]:
    """What was decoded, repaired again where it is damaged still."""
    text, outcome = repair(decoded, times - 1) if times else (decoded, "part")
    return text, (outcome or "whole") if complete else "part"


def _decoded(text: str, reading: _Reading = _LATIN) -> tuple[str, bool]:
    """UTF-8 sequences decoded, and whether no byte of one is left."""
    parts = reading.sequences.split(text)  # every second one is a match
    complete = not any(re.search(reading.lead, part) for part in parts[::2])
    parts[1::2] = [part.translate(reading.byte).encode("latin-1").decode() for part in parts[1::2]]
    return "".join(parts), complete


def _words_decoded(text: str, reading: _Reading) -> tuple[str, bool]:
    """As `_decoded`, of the complete words: in others what looks like a sequence may be a letter and a comma."""
    complete = True

    def decoded(word: re.Match[str]) -> str:
        nonlocal complete
        new, whole = _decoded(word[0], reading)
        if whole:
            return new
        rest = reading.sequences.sub("", word[0])
        lost = re.search(f"{reading.sign}|{reading.broken}", word[0]) or re.fullmatch(f"{reading.first}+", rest)
        complete = complete and not lost
        return word[0]

    return _WORD.sub(decoded, text), complete


def _hides_arabic(text: str, times: int) -> bool:
    """Whether there is damaged Arabic in a text, under any further damage."""
    if _UTF8.search(text) or _is_cp1256(text) or any(re.search(other.sign, text) for other in _OTHERS):
        return True
    decoded, _ = _decoded(text)
    return decoded != text and times > 0 and _hides_arabic(decoded, times - 1)


def _is_iso_8859_6(text: str) -> bool:
    """Whether what looks like cp1256 has more of the letters that only ISO 8859-6 has there."""
    words = "".join(word for word in text.split() if not _PLAIN.search(word))
    return len(_ISO_8859_6_ALONE.findall(words)) > len(_CP1256_ALONE.findall(words))


def _is_cp1256(text: str) -> bool:
    """Whether the text has words of such letters alone. In Latin languages only capitals make a few."""
    words = _CP1256_WORD.findall(text)
    telling = {word for word in words if not word.isupper()}
    mostly = len(_LETTERS.findall(text)) > len(_PLAIN.findall(text))
    return len(telling) > 2 or (mostly and (len(telling) > 0 or len(words) > 1))
