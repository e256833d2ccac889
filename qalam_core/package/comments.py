"""The comments of weights files: they are for people, and no reader uses what they say."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.weights_reader import NAMED_ROWS

TOKEN_TENSORS = ("embedding.weight", "lm_head.weight")
"""Tensors with one row per token."""

_LEAST_WIDTH = 64  # room for the row numbers and a word
_ROWS = re.compile(rb"        # rows ([0-9]{1,10}) to ([0-9]{1,10}):[^\n]* #\n")


def header_comment(figures: tuple[float, float, float, float]) -> str:
    """The comment above a tensor in a weights file, from its `statistics`."""
    mean, std, low, high = figures
    return f"# mean={mean:.3e} std={std:.3e} min={low:.3e} max={high:.3e} (as exported)"


def is_named(tensor: str, width: int) -> bool:
    """Whether the exporter names the tokens of a tensor's rows, given the bytes of a row."""
    return tensor in TOKEN_TENSORS and width >= _LEAST_WIDTH


def lines_of(rows: int) -> int:
    """The number of lines of so many rows with their comments."""
    return rows + -(-rows // NAMED_ROWS)


def rows_in(lines: int) -> int:
    """The number of rows that fit into so many lines with their comments."""
    return lines - -(-lines // (1 + NAMED_ROWS))


def word_comment(first: int, words: Sequence[str], width: int) -> bytes:
    """The line before the rows of these words, from row `first` on: `width` bytes, so as many words as fit.

    A line of the length of a row keeps all lines of a matrix equal in length, which is how readers find rows quickly.
    """
    line = f"        # rows {first} to {first + len(words) - 1}:".encode()
    room = width - len(line) - len(" #\n")
    named = []
    for word in words:
        named.append(b" " + quote(word).encode())
        room -= len(named[-1])
        if room < 0:
            break
    if room < 0:
        while named and room < len(" ..."):
            room += len(named.pop())
        named.append(b" ...")
    return (line + b"".join(named)).ljust(width - len(" #\n")) + b" #\n"


def renamed(rows: bytes, words: Sequence[str]) -> bytes:
    """The lines of some rows with the words of today in those comments that stand as exported."""

    def current(found: re.Match[bytes]) -> bytes:
        first, last = int(found[1]), int(found[2])
        if not first <= last < min(first + NAMED_ROWS, len(words)):
            return found[0]
        return word_comment(first, words[first : last + 1], len(found[0]))

    return _ROWS.sub(current, rows)
