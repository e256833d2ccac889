"""Compares two packages by what they mean: settings, words, tensors, rows named by their words.
Takes two packages that were read, gives a `Difference` of plain values, and on request its text.
It does not know which of the two is better; with a prompt it shows how each goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.inference import generate
from qalam_core.package.read import TOKEN_TENSORS, Package
from qalam_core.package.runtime.data_reader import quote

__all__ = ["Difference", "RowChange", "TensorChange", "diff", "render"]

SHOWN = 8
_BLOCK = 1 << 20


@dataclass(frozen=True)
class RowChange:
    """One row (in one dimension, one value): its number in the second package, and the length of the change."""

    row: int
    word: str  # "" where rows belong to no word
    moved: float
    before: float  # the row's length in the first package


@dataclass(frozen=True)
class TensorChange:
    """A tensor whose rows changed: how many of how many that both hold, how far in all, and the largest."""

    name: str
    changed: int
    rows: int
    moved: float
    before: float
    largest: tuple[RowChange, ...]


@dataclass(frozen=True)
class Difference:
    """What differs from the first package to the second; everything is empty when both mean the same.

    Rows of the embedding and the head are compared word by word, wherever a word stands; other tensors are
    compared when their shapes agree, and named in `reshaped` when not. `stored` is each package's storage
    type. `continuations` holds a prompt as each goes on with it, likeliest token first; None without one.
    """

    config: dict[str, tuple[Any, Any]]
    stored: tuple[str, str]
    tokenizer: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    renumbered: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    tensors: tuple[TensorChange, ...]
    continuations: tuple[str, str] | None = None

    def __bool__(self) -> bool:
        return bool(
            self.config or self.tokenizer or self.added or self.removed or self.renumbered or self.only_first
            or self.only_second or self.reshaped or self.tensors
        )  # fmt: skip


def diff(
    first: Package, second: Package, prompt: str | None = None, tokens: int = 20, shown: int = SHOWN
) -> Difference:
    """Compare two packages; `shown` rows of each changed tensor are named, those that moved most."""
    old, new = first.vocabulary, second.vocabulary
    position = {word: index for index, word in enumerate(old.words)}
    pairs = [(position[word], index) for index, word in enumerate(new.words) if word in position]
    common_first, common_second = (np.array(side) for side in zip(*pairs, strict=True))
    known = set(new.words)
    reshaped, tensors = {}, []
    for name, before in first.weights.items():
        after = second.weights.get(name)
        if after is None:
            continue
        by_word = name in TOKEN_TENSORS
        if before.shape[1:] != after.shape[1:] or (not by_word and before.shape != after.shape):
            reshaped[name] = before.shape, after.shape
        elif by_word and old.words != new.words:
            tensors.append(_tensor(name, before[common_first], after[common_second], new.words, common_second, shown))
        else:
            tensors.append(_tensor(name, before, after, new.words if by_word else (), None, shown))
    continuations = None
    if prompt is not None:
        continuations = (generate(first, prompt, tokens, 0), generate(second, prompt, tokens, 0))
    return Difference(
        config={
            name: (old_value, new_value)
            for (name, old_value), new_value in zip(
                first.config.constants().items(), second.config.constants().values(), strict=True
            )
            if old_value != new_value
        },
        stored=(first.manifest["dtype"], second.manifest["dtype"]),
        tokenizer=tuple(name for name in ("algorithm", "merges", "rules") if getattr(old, name) != getattr(new, name)),
        added=tuple(word for word in new.words if word not in position),
        removed=tuple(word for word in old.words if word not in known),
        renumbered=int((common_first != common_second).sum()),
        only_first=tuple(name for name in first.weights if name not in second.weights),
        only_second=tuple(name for name in second.weights if name not in first.weights),
        reshaped=reshaped,
        tensors=tuple(sorted((found for found in tensors if found), key=lambda found: -_share(found))),
        continuations=continuations,
    )


def _tensor(
    name: str,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    words: tuple[str, ...],
    numbers: NDArray[np.int64] | None,
    shown: int,
) -> TensorChange | None:
    """The changes of two tensors whose rows correspond; None when no value differs."""
    rows = len(before)
    before, after = before.reshape(rows, -1), after.reshape(rows, -1)
    moved, length, differs = np.empty(rows), np.empty(rows), np.empty(rows, bool)
    step = max(1, _BLOCK // before.shape[1])
    for start in range(0, rows, step):
        part = slice(start, start + step)
        old = before[part].astype(np.float64)
        moved[part] = np.linalg.norm(after[part] - old, axis=1)
        length[part] = np.linalg.norm(old, axis=1)
        differs[part] = (after[part] != before[part]).any(1)
    if not differs.any():
        return None
    order = np.lexsort((np.arange(rows), -moved, ~differs))[: min(shown, int(differs.sum()))]
    largest = []
    for at in map(int, order):
        number = at if numbers is None else int(numbers[at])
        largest.append(RowChange(number, words[number] if words else "", float(moved[at]), float(length[at])))
    return TensorChange(
        name, int(differs.sum()), rows, float(np.linalg.norm(moved)), float(np.linalg.norm(length)), tuple(largest)
    )


def _share(change: TensorChange) -> float:
    """How far a tensor moved for its size; from nothing to something is farthest."""
    return change.moved / change.before if change.before else np.inf


def render(difference: Difference) -> str:
    """The difference as lines of text, the largest change of tensors first."""
    lines = [f"{name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in difference.config.items()]
    if difference.stored[0] != difference.stored[1]:
        lines.append(f"stored as: {difference.stored[0]} -> {difference.stored[1]}")
    lines += [f"tokenizer: other {name}" for name in difference.tokenizer]
    for sign, words in (("+", difference.added), ("-", difference.removed)):
        if words:
            lines.append(f"words {sign}{len(words)}: {_listed([quote(word) for word in words])}")
    if difference.renumbered:
        lines.append(f"words with another id: {difference.renumbered}")
    lines += [f"{name}: only in the first" for name in difference.only_first]
    lines += [f"{name}: only in the second" for name in difference.only_second]
    lines += [f"{name}: {old} -> {new}" for name, (old, new) in difference.reshaped.items()]
    for tensor in difference.tensors:
        lines.append(
            f"{tensor.name}: {tensor.changed} of {tensor.rows} rows, moved {tensor.moved:.3g} of {tensor.before:.3g}"
        )
        for row in tensor.largest:
            word = f" {quote(row.word)}" if row.word else ""
            lines.append(f"    {row.row}{word}: moved {row.moved:.3g} of {row.before:.3g}")
        if tensor.changed > len(tensor.largest):
            lines.append(f"    and {tensor.changed - len(tensor.largest)} more")
    if not lines:
        lines.append("no difference in settings, words or values")
    if difference.continuations is not None:
        old, new = difference.continuations
        lines += [f"first:  {old}", f"second: {new}"] if old != new else [f"both: {old}"]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return quote(value) if isinstance(value, str) else str(value)


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
