"""Compares two packages by content: settings, words, tensors, and rows by their words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.inference import generate
from qalam_core.package.read import Package
from qalam_core.package.runtime.data_reader import quote

Floats = NDArray[np.float32]
SHOWN = 8
_BLOCK = 1 << 20
_TOKENIZER = ("algorithm", "merges", "rules", "split", "form", "ignore_merges", "specials")


@dataclass(frozen=True)
class RowChange:
    """A changed row (in one dimension, a value) and the Euclidean norms of its change and of its old values."""

    row: int  # in the second package
    word: str  # "" if rows have no words
    moved: float
    before: float


@dataclass(frozen=True)
class TensorChange:
    """A tensor with `changed` of `rows` common rows changed, the norms over all rows, and the largest changes."""

    name: str
    changed: int
    rows: int
    moved: float
    before: float
    largest: tuple[RowChange, ...]


@dataclass(frozen=True)
class Difference:
    """Changes from the first package to the second; false if the contents are equal.

    Rows of the embedding and the head are compared by word, not by id; other tensors are compared if their shapes
    agree, else listed in `reshaped`. `stored` has the storage types, `continuations` the greedy continuations of a
    prompt by each model.
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
    """Compare two packages; each changed tensor lists the `shown` rows with the largest changes."""
    old, new = first.vocabulary, second.vocabulary
    position = {word: index for index, word in enumerate(old.words)}
    pairs = [(position[word], index) for index, word in enumerate(new.words) if word in position]
    common_first, common_second = np.array(pairs, np.int64).reshape(-1, 2).T
    known = set(new.words)
    reshaped, tensors = {}, []
    for name in [name for name in first.weights if name in second.weights]:
        before, after, by_word = first.weights[name], second.weights[name], name in TOKEN_TENSORS
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
        config={name: (before, after) for name, before, after in first.config.differences(second.config)},
        stored=(first.manifest["dtype"], second.manifest["dtype"]),
        tokenizer=tuple(name for name in _TOKENIZER if getattr(old, name) != getattr(new, name)),
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
    name: str, before: Floats, after: Floats, words: tuple[str, ...], numbers: NDArray[np.int64] | None, shown: int
) -> TensorChange | None:
    """The changes of two tensors with corresponding rows; None if no value differs."""
    rows = len(before)
    before, after = before.reshape(rows, -1), after.reshape(rows, -1)
    moved, length, differs = np.empty(rows), np.empty(rows), np.empty(rows, bool)
    step = max(1, _BLOCK // before.shape[1])
    for start in range(0, rows, step):
        part = slice(start, start + step)
        old = before[part].astype(np.float64)
        moved[part] = np.linalg.norm(after[part] - old, axis=1)
        length[part] = np.linalg.norm(old, axis=1)
        differs[part] = (after[part].view(np.uint32) != before[part].view(np.uint32)).any(1)  # as verify: also -0.0
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
    """The relative change of a tensor; infinite if all old values are zero."""
    return change.moved / change.before if change.before else np.inf


def _constant(value: object) -> str:
    """A constant of config.py, which a model of another block does not have."""
    return quote(value) if isinstance(value, str) else "absent" if value is None else str(value)


def render(difference: Difference) -> str:
    """The difference as lines of text, tensors with the largest relative change first."""
    lines = [f"{name}: {_constant(old)} -> {_constant(new)}" for name, (old, new) in difference.config.items()]
    if difference.stored[0] != difference.stored[1]:
        lines.append(f"stored as: {difference.stored[0]} -> {difference.stored[1]}")
    lines += [f"tokenizer: other {name}" for name in difference.tokenizer]
    for sign, words in (("+", difference.added), ("-", difference.removed)):
        if words:
            more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
            lines.append(f"words {sign}{len(words)}: {', '.join(map(quote, words[:SHOWN]))}{more}")
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
