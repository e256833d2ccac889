"""Masking: e-mail addresses, phone numbers and IBANs in texts become `[email]`, `[phone]` and `[iban]`.

Recognised by their form alone, in Latin, Arabic and Persian digits, so some are missed and some numbers are none. All
patterns take linear time: what repeats is separated by what it cannot contain.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_DIGIT = "0-9\u0660-\u0669\u06f0-\u06f9"
_ZERO = "0\u0660\u06f0"
_LABEL = (
    "(?:هاتف|تلفون|تليفون|جوال|موبايل|محمول|نقال|فاكس|واتساب|واتس|للتواصل|للاتصال|اتصل"
    r"|(?i:tel|phone|mobile|fax|whatsapp|wa\.me))"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"
)
_IBAN = re.compile(
    rf"(?<![A-Za-z{_DIGIT}])[A-Z]{{2}}[{_DIGIT}]{{2}}(?:[ -]?[A-Z{_DIGIT}]){{11,30}}(?![A-Za-z{_DIGIT}])"
)
_POINT = ".:\u066b\u066c"  # within a number; a comma or a slash may also be between two of seven digits or more
_END = rf"(?![{_DIGIT}]|[{_POINT}][{_DIGIT}]|[,/][{_DIGIT}]{{1,6}}(?![{_DIGIT}]))"
_START = rf"(?:(?<![{_DIGIT}A-Za-z{_POINT},/-])|(?<=[{_DIGIT}]{{7}}[,/]))"
_DASH = "\u2010-\u2015\u2212-"  # also what NFKC makes of the no-break hyphen
_NUMBER = rf"(?:[ ){_DASH}]{{0,2}}[{_DIGIT}])"
_AREA = rf"(?:[{_DIGIT}]{{1,3}}[ {_DASH}]?\([{_DIGIT}]{{1,4}}\)|\(?[{_DIGIT}])"  # or a country and its (area)
_PHONE = re.compile(
    # abroad: +, 00 or a bracketed area; at home: a leading zero; or any number behind a word for it
    rf"{_START}(?:(?:\+ ?|[{_ZERO}]{{2}} ?){_AREA}{_NUMBER}{{6,13}}"
    rf"|\(?[{_ZERO}][{_DIGIT}]{_NUMBER}{{5,9}}){_END}"
    rf"|(?P<label>{_LABEL}\b[^\n{_DIGIT}+]{{0,20}})\+?[{_DIGIT}]{_NUMBER}{{6,13}}{_END}"
)
_DATE = re.compile(rf"[{_DIGIT}]{{1,4}}([/ {_DASH}])[{_DIGIT}]{{1,2}}\1[{_DIGIT}]{{1,4}}")
_SUSPECT = rf"@|{_NUMBER}{{6}}"  # for RE2, which has no lookaround: a superset


def mask(text: str) -> str:
    """The text with e-mail addresses, then IBANs, then phone numbers masked: an IBAN's digits are no phone number."""

    def masked(found: re.Match[str]) -> str:
        label = found["label"] or ""
        number = found[0].removeprefix(label)
        if _DATE.match(number.lstrip("(")):
            return found[0]
        opened = "(" if number.startswith("(") and ")" not in number else ""  # of what surrounds the number
        closed = ")" if number.count(")") > number.count("(") else ""
        return f"{label}{opened}[phone]{closed}"

    return _PHONE.sub(masked, _IBAN.sub("[iban]", _EMAIL.sub("[email]", text)))


def mask_array(texts: pa.LargeStringArray) -> tuple[pa.LargeStringArray, NDArray[np.bool_]]:
    """large_string texts -> the texts masked, and which of them are others now."""
    changed = np.zeros(len(texts), np.bool_)
    suspects = np.flatnonzero(pc.match_substring_regex(texts, pattern=_SUSPECT).to_numpy(zero_copy_only=False))
    read = texts.take(pa.array(suspects)).to_pylist()
    masked = [mask(text) for text in read]
    new = [text for text, before in zip(masked, read, strict=True) if text != before]
    if not new:
        return texts, changed
    changed[suspects[[text != before for text, before in zip(masked, read, strict=True)]]] = True
    return pc.replace_with_mask(texts, pa.array(changed), pa.array(new, pa.large_string())), changed
