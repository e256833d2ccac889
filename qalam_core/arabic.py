"""Normalisation of Arabic text. Rules are data: tokenizer.json and a package contain those of the corpus."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

Rules = tuple[tuple[str, str], ...]
"""(pattern, replacement) pairs. A text is normalised by NFKC, each pair in order, NFKC again, and strip.

A pattern that names a character which NFKC would replace could match nothing after it, and is applied before it. The
second NFKC makes it idempotent: deleting a joiner can make a letter and its mark adjacent. Patterns are literal
characters and classes of them, which RE2 (Arrow), Oniguruma (tokenizers) and Python's `re`
interpret in the same way.
"""

_CONTROLS = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1 except tab, line ends and NEL
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc"  # bidi, zero-width
)
_MADDA = "\u0653"
_HAMZA = "\u0654\u0655"  # above and below: letters, although Unicode calls them marks
_VOWELS = "\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652\u0670"  # in the order into which NFKC brings them
_MARKS = (
    "\u0610-\u061a\u064b-\u0653\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed"
    "\u0898-\u089f\u08ca-\u08e1\u08e3-\u08ff"
)
_TATWEEL = "\u0640"
_SHAPED = "\ufc5e\ufc5f\ufc60\ufc61\ufc62\ufc63\ufe70\ufe72\ufe74\ufe76\ufe78\ufe7a\ufe7c\ufe7e"  # isolated marks

# NFKC would make a space and a mark of these, and split the word that they are in.
_SIGNS: Rules = (
    ("[\u00a8\u00b4\u00b8\u02d8\u02d9\u02db\u02dd\u0384\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed\u1fee"
     "\u1ffd\u1ffe]", "'"),
    ("[\u00af\u2017\u203e\ufe49-\ufe4c\uffe3]", "_"),
    ("[\u02da\u309b\u309c]", "\u00b0"),
    ("\u02dc", "~"),
    ("\u037a", "\u03b9"),
)  # fmt: skip
# NFKC would write the words of these onto the word before, which they often follow without a space.
_PHRASES: Rules = (
    ("\ufdfa", " \ufdfa"),
    ("\ufdfb", " \ufdfb"),
    ("[ا\ufe8d\ufe8e]\ufdf2", "\ufdf2"),  # NFKC writes its alef, which fonts and PDF files have before it
    *((f"[(] {words}", f"({words}") for words in ("صلى الله عليه وسلم", "جل جلاله")),
)
_SPACES: Rules = (
    ("[\r\x0b\x0c\x85\u2028\u2029]", "\n"),
    ("[\t\u1680]", " "),
    ("  +", " "),  # twice as fast as a class that matches at every space
    (" ?\n[ \n]*", "\n"),
)

# A hamza on a tatweel would be composed with the letter before it once the tatweel is gone: it gets the seat of plain
# spelling instead. A control may part an alef from its madda.
_PARTED: Rules = ((f"[{_CONTROLS}]+", ""), (f"ا{_MADDA}", "آ"))
_BARE: Rules = (*_PARTED, (f"[{_MARKS}]+", ""), (f"{_TATWEEL}[{_HAMZA}]", "ئ"))
_WITH_VOWELS: Rules = (
    *_PARTED,
    # vowels between a tatweel and its hamza follow the hamza then; each needs a rule, the last one first
    *((vowel + hamza, hamza + vowel) for vowel in reversed(_VOWELS) for hamza in _HAMZA),
    *((f"{_TATWEEL}{f'[{_MARKS}]' * others}[{_HAMZA}]", "ئ") for others in range(4)),  # others are lost
    (f"{_TATWEEL}{_TATWEEL}+", _TATWEEL),
    *((f"ا[{_MARKS}]?{_TATWEEL}{mark}{_MADDA}+", "ا") for mark in ("", f"[{_MARKS}]")),  # and the alef stays one
)
_SHAPES: Rules = ((f"[{_SHAPED}]", ""),)
_UNSHAPED: Rules = tuple((shape, unicodedata.normalize("NFKC", shape).lstrip(" ")) for shape in _SHAPED)
_NO_HAMZA: Rules = ((f"[{_HAMZA}]+", ""),)

_STANDARD: Rules = (*_SHAPES, *_SIGNS, *_PHRASES, *_BARE, (f"[{_CONTROLS}{_TATWEEL}{_MARKS}]+", ""), *_SPACES)
_VOCALISED: Rules = (*_UNSHAPED, *_SIGNS, *_PHRASES, *_WITH_VOWELS, (f"[{_CONTROLS}{_TATWEEL}]+", ""), *_SPACES)
_SEARCH: Rules = (*_STANDARD, *_NO_HAMZA, ("[أإآٱ]", "ا"), ("ى", "ي"), ("ة", "ه"))

NORMALISATIONS: dict[str, Rules] = {
    "standard": _STANDARD,  # letters are kept; vowel marks, tatweel and invisible controls are removed
    "vocalised": _VOCALISED,  # as standard, with vowel marks
    "search": _SEARCH,  # as standard, and folds alef, ya and ta marbuta, as the original did
}

# Few texts have a character without which these rules change nothing, and looking for one costs as much as one rule.
_RARE_RULES = frozenset((*_SHAPES, *_UNSHAPED, *_SIGNS, *_PHRASES, *_BARE, *_WITH_VOWELS, *_NO_HAMZA))
_RARE = f"[{_MADDA}{_HAMZA}{_SHAPED}\ufdf2\ufdfa\ufdfb{''.join(pattern.strip('[]') for pattern, _ in _SIGNS)}]"


def normalise_array(texts: pa.Array, rules: Rules) -> pa.Array:
    """Normalise each text of a string array by `rules`; nulls and the type are kept."""
    rare = pc.fill_null(pc.match_substring_regex(texts, pattern=_RARE), False)
    common = _applied(texts, tuple(rule for rule in rules if rule not in _RARE_RULES))
    return pc.replace_with_mask(common, rare, _applied(texts.filter(rare), rules)) if pc.any(rare).as_py() else common


def _applied(texts: pa.Array, rules: Rules) -> pa.Array:
    texts = pc.utf8_normalize(_replaced(texts, (rule for rule in rules if _is_first(rule[0]))), form="NFKC")
    texts = _replaced(texts, (rule for rule in rules if not _is_first(rule[0])))
    return pc.utf8_trim_whitespace(pc.utf8_normalize(texts, form="NFKC"))


def _replaced(texts: pa.Array, rules: Iterable[tuple[str, str]]) -> pa.Array:
    for pattern, replacement in rules:
        texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=replacement)
    return texts


@cache
def _is_first(pattern: str) -> bool:
    """Whether a rule with this pattern is applied before NFKC."""
    return not all(unicodedata.is_normalized("NFKC", char) for char in pattern)


def normalise(text: str, rules: Rules = _STANDARD) -> str:
    """Normalise one text by `rules`."""
    result: str = normalise_array(pa.array([text], pa.large_string()), rules)[0].as_py()
    return result
