"""Normalisation of Arabic text. Rules are data: tokenizer.json and a package contain those of the corpus."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

Rules = tuple[tuple[str, str], ...]
"""(pattern, replacement) pairs. A text is normalised by NFKC, each pair in order, NFKC again, and strip.

The second NFKC makes it idempotent: deleting a joiner can make a letter and its mark adjacent. Patterns are literal
characters and classes of them, which RE2 (Arrow), Oniguruma (tokenizers) and Python's `re`
interpret in the same way.
"""

_CONTROLS = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1 except tab, line ends and NEL
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffd"  # bidi, zero-width
)
_MARKS = "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff"
_TATWEEL = "\u0640"

_SPACES: Rules = (
    ("[\r\x0b\x0c\x85\u2028\u2029]", "\n"),
    ("[\t\u1680]", " "),
    ("  +", " "),  # twice as fast as a class that matches at every space
    (" ?\n[ \n]*", "\n"),
)
_VOCALISED: Rules = ((f"[{_CONTROLS}{_TATWEEL}]+", ""), *_SPACES)
_STANDARD: Rules = ((f"[{_CONTROLS}{_TATWEEL}{_MARKS}]+", ""), *_SPACES)
_SEARCH: Rules = (*_STANDARD, ("[أإآٱ]", "ا"), ("ى", "ي"), ("ة", "ه"))

NORMALISATIONS: dict[str, Rules] = {
    "standard": _STANDARD,  # letters are kept; vowel marks, tatweel and invisible controls are removed
    "vocalised": _VOCALISED,  # as standard, with vowel marks
    "search": _SEARCH,  # as standard, and folds alef, ya and ta marbuta, as the original did
}


def normalise_array(texts: pa.Array, rules: Rules) -> pa.Array:
    """Normalise each text of a string array by `rules`; nulls and the type are kept."""
    texts = pc.utf8_normalize(texts, form="NFKC")
    for pattern, replacement in rules:
        texts = pc.replace_substring_regex(texts, pattern=pattern, replacement=replacement)
    return pc.utf8_trim_whitespace(pc.utf8_normalize(texts, form="NFKC"))


def normalise(text: str, rules: Rules = _STANDARD) -> str:
    """Normalise one text by `rules`."""
    result: str = normalise_array(pa.array([text], pa.large_string()), rules)[0].as_py()
    return result
