"""The comments of weights files: they are for people, and no reader uses what they say."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.weights_reader import END_OF_TENSOR, HEADER, NAMED_ROWS
from qalam_core.package.statistics import Measured, are_of

TOKEN_TENSORS = ("embedding.weight", "lm_head.weight")
"""Tensors with one row per token."""

_LEAST_WIDTH = 64  # room for the row numbers and a word
_FIGURES = re.compile(
    rb"    # mean=(\S+) std=(\S+) min=(\S+) max=(\S+) \(as exported\)(?=\n" + HEADER.pattern.encode() + rb"\n)"
)
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


def restated(text: bytes, measured: Measured, words: Sequence[str]) -> bytes:
    """A weights file with the figures and words of today in those comments that stand as exported.

    Figures of tensors that are not in `measured` stay as they are, and so do words if `words` is empty.
    """

    def current(found: re.Match[bytes]) -> bytes:
        figures = measured.get(found[5].decode())
        if figures is None or _say(found.groups()[:4], figures):
            return found[0]
        return f"    {header_comment(figures)}".encode()

    text = _FIGURES.sub(current, text)
    for name in TOKEN_TENSORS if words else ():
        if start := text.find(f'\n    "{name}": ('.encode()) + 1:
            end = text.index(f"\n{END_OF_TENSOR}\n".encode(), start)
            text = text[:start] + renamed(text[start:end], words) + text[end:]
    return text


def _say(stated: Collection[bytes], figures: tuple[float, ...]) -> bool:
    try:
        return are_of([*map(float, stated)], figures, digits=4)
    except ValueError:
        return False


def renamed(rows: bytes, words: Sequence[str]) -> bytes:
    """The lines of some rows with the words of today in those comments that stand as exported."""

    def current(found: re.Match[bytes]) -> bytes:
        first, last = int(found[1]), int(found[2])
        if not first <= last < min(first + NAMED_ROWS, len(words)):
            return found[0]
        return word_comment(first, words[first : last + 1], len(found[0]))

    return _ROWS.sub(current, rows)
