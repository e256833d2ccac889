"""Merges two packages that come from one: three-way by tensor, row and word, whatever the order of the words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError
from qalam_core.files import digest, sha256_file
from qalam_core.package.comments import TOKEN_TENSORS
from qalam_core.package.editing.lines import Position, new_line, save, tensor_parts
from qalam_core.package.editing.seal import seal
from qalam_core.package.read import Package, changes
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.rows import COMMENT, MATRIX_TYPES, RowType
from qalam_core.package.runtime.tokenizer import Specials, Tokenizer, Vocabulary, token_bytes
from qalam_core.package.write import tensor_digest, with_newline, write

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
T = TypeVar("T")
HEADING = "## Merged"
_NUMBERED = re.compile(r"[0-9]+\. ")


class Side(StrEnum):
    """How a conflict is resolved: the row of one side, or the mean of both rows."""

    ours = "ours"
    theirs = "theirs"
    mean = "mean"


@dataclass(frozen=True)
class Conflict:
    """A row, or a setting, that both sides changed differently. `row` is a word, a row's number, or ""."""

    tensor: str
    row: str | int
    reason: str

    def __str__(self) -> str:
        row = f" {quote(self.row)}" if isinstance(self.row, str) and self.row else f" row {self.row}"
        return f"{self.tensor}{row if self.row != '' else ''}: {self.reason}"


@dataclass(frozen=True)
class Choices:
    """What resolves conflicts: `default` all of them, `rows` those of (tensor, word or row's number)."""

    default: Side | None = None
    rows: Mapping[tuple[str, str | int], Side] = field(default_factory=dict)

    def of(self, tensor: str, row: str | int) -> Side | None:
        """The resolution of one conflict; None if there is none."""
        return self.rows.get((tensor, row), self.default)


@dataclass(frozen=True)
class Merged:
    """The united content. With `conflicts` it is incomplete, and cannot be written.

    `theirs` counts the rows that were taken from theirs, by tensor; `resolved` lists what a choice decided. `means`
    has the numbers of rows that are means: they are rounded to the storage type, all other rows are kept to the bit.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    weights: dict[str, Floats]
    dtype: str
    conflicts: tuple[Conflict, ...]
    resolved: tuple[str, ...]
    theirs: dict[str, int]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    means: dict[str, Numbers]


class _Decisions:
    """Decides conflicts by the choices, and records both the decided and the open ones."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._unused = set(choices.rows)
        self.open: list[Conflict] = []
        self.made: dict[Conflict, Side] = {}

    def on(self, conflict: Conflict, possible: Sequence[Side] = tuple(Side)) -> Side:
        """The side of a conflict. While it is open, ours."""
        self._unused.discard((conflict.tensor, conflict.row))
        side = self._choices.of(conflict.tensor, conflict.row)
        if side is None or side not in possible:
            if conflict not in self.open:
                self.open.append(conflict)
            return Side.ours
        self.made[conflict] = side
        return side

    def check(self) -> None:
        """Refuse choices for rows that are not in conflict."""
        for tensor, row in sorted(self._unused, key=str):
            raise PackageError(f"--row {tensor} {row}: not in conflict; leave it out")


def merge(base: Package, ours: Package, theirs: Package, choices: Choices = Choices()) -> Merged:
    """Unite the changes of ours and theirs since base.

    A row that one side changed is that side's, and one that both changed to the same bits is theirs and ours. Rows of
    the embedding and the head belong to words: words that a side added are added, and words that it removed are
    removed unless the other side changed their rows. Everything else is a conflict. Words are in the order of theirs
    if ours has the words of base, else in the order of ours, with those that only theirs has at the end.
    Raises PackageError for models of different architectures, and for choices that resolve nothing.
    """
    _check_architecture(base, ours, theirs)
    decisions = _Decisions(choices)
    vocabulary = _vocabulary(base, ours, theirs, decisions)
    config = replace(ours.config, vocab_size=len(vocabulary.words))
    weights, counts, means = {}, {}, {}
    for name in config.tensor_shapes():
        three = [package.weights[name] for package in (base, ours, theirs)]
        if name in TOKEN_TENSORS:
            numbers = [_numbers(package.vocabulary.words, vocabulary.words) for package in (base, ours, theirs)]
        else:
            numbers = [np.arange(len(three[0]))] * 3
        rows = vocabulary.words if name in TOKEN_TENSORS else range(len(three[0]))
        weights[name], counts[name], means[name] = _rows(name, three, numbers, rows, decisions)
    decisions.check()
    given = set(ours.vocabulary.words)
    return Merged(
        config=config,
        vocabulary=vocabulary,
        weights=weights,
        dtype=_one([package.manifest["dtype"] for package in (base, ours, theirs)]),
        conflicts=tuple(decisions.open),
        resolved=tuple(f"{conflict}: {side}" for conflict, side in decisions.made.items()),
        theirs={name: count for name, count in counts.items() if count},
        added=tuple(word for word in vocabulary.words if word not in given),
        removed=tuple(word for word in ours.vocabulary.words if word not in set(vocabulary.words)),
        means=means,
    )


def _check_architecture(base: Package, *sides: Package) -> None:
    for side in sides:
        for name, value, other in base.config.differences(side.config):
            if name not in ("VOCAB_SIZE", "PARAMETERS"):
                raise PackageError(f"{side.path}: {name} is {other}, in {base.path} {value}; rows cannot be united")
    for side in sides:
        if _kind(side.vocabulary) != _kind(base.vocabulary):
            raise PackageError(f"{side.path}: other tokenizer than {base.path}; rows cannot be united")


def _kind(vocabulary: Vocabulary) -> tuple[object, ...]:
    """What of a tokenizer no edit changes; special tokens by name."""
    roles = {vocabulary.words[index]: roles for index, roles in vocabulary.specials.roles().items()}
    return vocabulary.algorithm, vocabulary.split, vocabulary.form, vocabulary.ignore_merges, roles


def _one(three: Sequence[T], by: Sequence[object] = ()) -> T:
    """The value of the side that changed it, or whose value in `by` changed; of ours if both did."""
    base, ours, _ = by or three
    return three[2] if ours == base else three[1]


def _vocabulary(base: Package, ours: Package, theirs: Package, decisions: _Decisions) -> Vocabulary:
    old, one, other = base.vocabulary, ours.vocabulary, theirs.vocabulary
    rules = [old.rules, one.rules, other.rules]
    chosen = _one(rules)
    if rules[1] != rules[2] and rules[0] not in rules[1:]:
        conflict = Conflict("vocab.py", "NORMALISE", "both sides changed it")
        chosen = rules[2] if decisions.on(conflict, (Side.ours, Side.theirs)) is Side.theirs else rules[1]
    kept = _kept(base, ours, theirs, decisions)
    words = _united(old.words, one.words, other.words, kept)
    spelled = set(map(token_bytes, kept))
    makers = {pair for pair in old.merges if b"".join(map(token_bytes, pair)) in spelled}
    merges = _united(old.merges, one.merges, other.merges, makers)  # no text gives a word whose merge is gone
    numbers = {word: number for number, word in enumerate(words)}
    pad, unk, start, end, *others = (
        index if index < 0 else numbers[old.words[index]] for index in (*old.specials[:4], *old.specials.others)
    )
    specials = Specials(pad, unk, start, end, tuple(sorted(others)))
    united = old._replace(words=words, merges=merges, rules=chosen, specials=specials)
    try:
        Tokenizer(united)
    except ValueError as error:
        raise PackageError(f"vocab.py: the united words are no tokenizer ({error}); unite the words first") from None
    return united


def _kept(base: Package, ours: Package, theirs: Package, decisions: _Decisions) -> set[str]:
    """Words that one side removed and that stay, because the other side changed their rows and was chosen."""
    numbers = {word: number for number, word in enumerate(base.vocabulary.words)}
    kept = set()
    for side, gone, has in ((Side.ours, ours, theirs), (Side.theirs, theirs, ours)):
        there = set(gone.vocabulary.words)
        for number, word in enumerate(has.vocabulary.words):
            if word in there or (before := numbers.get(word)) is None:
                continue
            for name in TOKEN_TENSORS:
                if name in has.weights and not _same(has.weights[name][number], base.weights[name][before]):
                    conflict = Conflict(name, word, f"{side} removed the word, the other side changed its row")
                    if decisions.on(conflict, (Side.ours, Side.theirs)) is not side:
                        kept.add(word)
    return kept


def _united(base: Sequence[T], ours: Sequence[T], theirs: Sequence[T], kept: set[T]) -> tuple[T, ...]:
    """The items of both sides without those of base that a side removed, but for the kept ones."""
    first, second = (theirs, ours) if ours == base else (ours, theirs)
    old, one, other = set(base), set(first), set(second)

    def stays(item: T) -> bool:
        return item in kept or item not in old or (item in one and item in other)

    return (*filter(stays, first), *(item for item in second if item not in one and stays(item)))


def _numbers(words: Sequence[str], wanted: Sequence[str]) -> Numbers:
    """The row of each wanted word; -1 if it is not there."""
    rows = {word: number for number, word in enumerate(words)}
    return np.array([rows.get(word, -1) for word in wanted], np.int64)


def _rows(
    name: str, three: Sequence[Floats], numbers: Sequence[Numbers], rows: Sequence[str | int], decisions: _Decisions
) -> tuple[Floats, int, Numbers]:
    """The merged tensor, the number of its rows that are theirs, and its rows that are means."""
    base, ours, theirs = (
        values if np.array_equal(wanted, np.arange(len(values))) else values[np.maximum(wanted, 0)]
        for values, wanted in zip(three, numbers, strict=True)
    )
    in_base, in_ours, in_theirs = (wanted >= 0 for wanted in numbers)
    by_ours = in_ours & (~in_base | _differs(ours, base))
    by_theirs = in_theirs & (~in_base | _differs(theirs, base))
    merged, means, taken = ours.copy(), [], (by_theirs & ~by_ours) | ~in_ours
    merged[taken] = theirs[taken]
    count = int((taken & _differs(theirs, ours) | ~in_ours).sum())
    for row in map(int, np.flatnonzero(by_ours & by_theirs & _differs(ours, theirs))):
        reason = "both sides changed it" if in_base[row] else "both sides added it, with other values"
        side = decisions.on(Conflict(name, rows[row], reason))
        if side is Side.theirs:
            merged[row] = theirs[row]
        elif side is Side.mean:
            merged[row] = (ours[row].astype(np.float64) + theirs[row]) / 2
            means.append(row)
    return merged, count, np.array(means, np.int64)


def _differs(some: Floats, other: Floats) -> NDArray[np.bool_]:
    """Which rows differ in a bit."""
    left, right = (np.ascontiguousarray(values).view(np.uint32) for values in (some, other))
    differs: NDArray[np.bool_] = (left != right).reshape(len(left), -1).any(1)
    return differs


def _same(some: Floats, other: Floats) -> bool:
    return some.tobytes() == other.tobytes()


def write_merged(folder: Path, merged: Merged, base: Package, ours: Package, theirs: Package) -> None:
    """Write a merged package into `folder`, absent or empty, sealed; its card says what it is made of.

    Rows that the storage type cannot hold, such as edited ones, are written as lists of numbers, to the bit. Comments
    in the data files are not kept. Raises PackageError while there are conflicts.
    """
    if merged.conflicts:
        raise PackageError(f"{merged.conflicts[0]}; choose a side, here and in {len(merged.conflicts) - 1} more")
    row_type = MATRIX_TYPES[merged.dtype]
    exact = {name: _inexact(values, row_type, merged.means[name]) for name, values in merged.weights.items()}
    stored = {name: _without(values, exact[name]) for name, values in merged.weights.items()}
    packages = {"base": base, "ours": ours, "theirs": theirs}
    provenance = {**_provenance(base, ours, theirs), **{f"merged {name}": model(of) for name, of in packages.items()}}
    cards = [(package.path / "MODEL_CARD.md").read_text(encoding="utf-8") for package in packages.values()]
    write(
        folder, config=merged.config, vocabulary=merged.vocabulary, weights=stored, card=_one(cards),
        provenance=provenance, dtype=merged.dtype,
    )  # fmt: skip
    for name, numbers in exact.items():
        if len(numbers):
            _set_rows(folder, name, dict(zip(map(int, numbers), merged.weights[name][numbers], strict=True)))
    card = with_newline((folder / "MODEL_CARD.md").read_text(encoding="utf-8"))
    save(folder, {"MODEL_CARD.md": (card + _section(merged, packages, cards)).encode()})
    seal(folder, f'merged, as the section "{HEADING[3:]}" says')


def unchanged_side(base: Package, ours: Package, theirs: Package) -> Package | None:
    """The package that a merge gives without looking at rows: that of the side which alone changed a file, or of both
    if their files are equal. None if rows must be united.
    """
    three = [
        {name: sha256_file(package.path / name) for name in (*package.manifest["files"], "manifest.json")}
        for package in (base, ours, theirs)
    ]
    return _one([base, ours, theirs], three) if three[1] == three[2] or three[0] in three[1:] else None


def model(package: Package) -> str:
    """Digest of what a package holds now: configuration, words, tokenizer and values."""
    tensors = {name: tensor_digest(values) for name, values in package.weights.items()}
    return digest({"config": package.config.constants(), "vocabulary": [*package.vocabulary], "tensors": tensors})


def _provenance(base: Package, ours: Package, theirs: Package) -> dict[str, str]:
    """Three-way by name; of ours where both sides changed it."""
    sides = [package.manifest["provenance"] for package in (base, ours, theirs)]
    names = dict.fromkeys((*sides[1], *sides[2]))
    values = {name: _one([side.get(name) for side in sides]) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _inexact(values: Floats, row_type: RowType, means: Numbers) -> Numbers:
    """The rows of a matrix that would change when they are stored; means may be rounded."""
    if values.ndim == 1:
        return np.array([], np.int64)
    with np.errstate(all="ignore"):
        rounded = row_type.rounded(values)
    changed = _differs(rounded, values)
    changed[means] = ~np.isfinite(rounded[means]).all(1)
    return np.flatnonzero(changed)


def _without(values: Floats, numbers: Numbers) -> Floats:
    if not len(numbers):
        return values
    values = values.copy()
    values[numbers] = 0
    return values


def _set_rows(folder: Path, tensor: str, rows: Mapping[int, Floats]) -> None:
    """Write rows of a matrix as exactly these values."""
    for part in [*tensor_parts(folder, tensor)]:
        start, number = part.header.stop + 1, part.first
        lines = part.raw[start : part.end].split(b"\n")
        for at, line in enumerate(lines[:-1]):
            text = line.decode()
            if COMMENT.fullmatch(text):
                continue
            if (values := rows.get(number)) is not None:
                position = Position(part, slice(0, 0), text, 0)
                lines[at] = new_line(position, values, values).encode()
            number += 1
        save(folder, {part.path.name: part.raw[:start] + b"\n".join(lines) + part.raw[part.end :]})


def _section(merged: Merged, packages: Mapping[str, Package], cards: Sequence[str]) -> str:
    """The card's section about a merge."""
    known = set(cards[0].split("\n")) | set(_one(cards).split("\n"))
    notes = [line for line in cards[2].split("\n") if _NUMBERED.match(line) and line not in known]
    lines = [f"- {name}: model `{model(package)}`" for name, package in packages.items()]
    lines += [f"- {name}, not sealed: {change}" for name, package in packages.items() for change in changes(package)]
    lines += [f"- from theirs: {count} rows of `{name}`" for name, count in merged.theirs.items()]
    lines += _words("words added to ours", merged.added) + _words("words removed from ours", merged.removed)
    lines += [f"- both sides changed {line}" for line in merged.resolved]
    lines += [f"- edit noted in the card of theirs: {line}" for line in notes]
    intro = "United by row and word from three packages. Figures above were measured before it."
    return "\n".join(["", HEADING, "", intro, "", *lines, ""])


def _words(what: str, words: Iterable[str]) -> list[str]:
    return [f"- {what}: {', '.join(map(quote, words))}"] if words else []
