"""Text of others -- of a corpus, a model, a recipe, a path -- made safe to show beside our own."""

from __future__ import annotations

import re

# Control characters, line ends, the controls of writing direction, surrogates and tags. A list, and not a property of
# Python's Unicode version: model cards are hashed. The joiners U+200C and U+200D are letters' forms, and stay.
_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e007f"
)
_IN_LINES = re.compile(f"[{_CONTROLS}]")
_IN_A_LINE = re.compile(f"[\t\n{_CONTROLS}]")


def printable(text: str, lines: bool = False) -> str:
    """`text` with each character that a terminal, a browser or an editor would obey as its escape, such as \\u001b.

    It is then one line, or with `lines` as many as it was, and cannot change the direction of what is beside it. The
    escapes are those of JSON, TOML and Python, so that JSON stays the same value. Markup is another matter, of each
    medium: the terminal's console takes none, plots neither, templates escape it.
    """
    return (_IN_LINES if lines else _IN_A_LINE).sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
