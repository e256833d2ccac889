"""Edits rows, values and tokens of a package in their lines, without executing its code.
The manifest is not changed, so `verify` reports the edit until `seal` accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError, did_you_mean
from qalam_core.package.comments import TOKEN_TENSORS, is_named, word_comment
from qalam_core.package.editing.lines import Position, TensorPart, find_row_line, new_line, save, tensor_parts
from qalam_core.package.read import Package, read
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary, token_bytes
from qalam_core.package.runtime.weights_reader import NAMED_ROWS
from qalam_core.package.vocabulary import tokenizer_json

Row = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A rewritten line: its position, its row, and the Euclidean norm of the change."""

    file: str
    line: int
    tensor: str
    row: int
    word: str
    moved: float

    def __str__(self) -> str:
        word = f" ({quote(self.word)})" if self.word else ""
        return f"{self.file}:{self.line}: {self.tensor} row {self.row}{word} moved by {self.moved:.3g}"


def find_row(vocabulary: Vocabulary, tensor: str, row: int | str) -> int:
    """The number of a row, given by number or, in `embedding.weight` and `lm_head.weight`, by token.

    Digits are a number; a token of digits is written in double quotes. A byte-pair token that begins with a space is
    also found without it, if there is no token without.
    """
    if isinstance(row, int):
        return row
    if row.isascii() and row.isdigit():
        return int(row)
    if tensor not in TOKEN_TENSORS:
        raise PackageError(f'row "{row}": rows of "{tensor}" have no tokens; give the number of a row')
    word = row[1:-1] if len(row) > 2 and row[0] == row[-1] == '"' else row
    for form in (row, word, f" {word}"):
        if form in vocabulary.words:
            return vocabulary.words.index(form)
    pieces = " + ".join(map(quote, Tokenizer(vocabulary).tokenize(word)[:8]))
    cure = "add it first" if vocabulary.algorithm == "word" else f"in a text it becomes {pieces}; use one of these"
    raise PackageError(f"{quote(word)} is not a token of this model; {cure}")


def set_row(folder: Path, tensor: str, row: int | str, values: Sequence[float]) -> Change:
    """Set a row (for one dimension, a value)."""

    def given(old: Row) -> Wide:
        if len(values) != len(old):
            raise PackageError(f'"{tensor}": {len(values)} numbers for a row of {len(old)}; give one per value')
        return np.asarray(values, np.float64)

    return _rewrite(folder, tensor, row, given)


def set_value(folder: Path, tensor: str, row: int | str, column: int, value: float) -> Change:
    """Set one value of a row; in one dimension the column is 0."""

    def with_value(old: Row) -> Wide:
        if not 0 <= column < len(old):
            raise PackageError(f'"{tensor}" has no column {column}; columns are 0 to {len(old) - 1}')
        return np.where(np.arange(len(old)) == column, value, old.astype(np.float64))

    return _rewrite(folder, tensor, row, with_value)


def scale_row(folder: Path, tensor: str, row: int | str, factor: float) -> Change:
    """Multiply a row by a number."""
    return _rewrite(folder, tensor, row, lambda old: old.astype(np.float64) * factor)


def copy_row(folder: Path, tensor: str, row: int | str, source: int | str) -> Change:
    """Copy the values of another row of the same tensor."""
    return _rewrite(folder, tensor, row, lambda other: other.astype(np.float64), source)


def _rewrite(
    folder: Path, tensor: str, row: int | str, make: Callable[[Row], Wide], source: int | str | None = None
) -> Change:
    """Replace a row by `make` of the row `source`, by default of itself."""
    folder = Path(folder)
    package = read(folder)
    number = checked_row(package.vocabulary, package.weights, tensor, row)
    origin = number if source is None else checked_row(package.vocabulary, package.weights, tensor, source)
    old = package.weights[tensor][number].reshape(-1)
    wanted = _finite(make(package.weights[tensor][origin].reshape(-1)), tensor)
    position = find_row_line(folder, tensor, number)
    literal = "" if source is None else _literal(folder, position, tensor, origin)
    line = new_line(position, wanted, old, literal)
    if line != position.line:
        raw, span = position.part.raw, position.span
        save(folder, {position.part.path.name: raw[: span.start] + line.encode() + raw[span.stop :]})
    word = package.vocabulary.words[number] if tensor in TOKEN_TENSORS else ""
    moved = float(np.linalg.norm(wanted.astype(np.float64) - old))
    return Change(position.part.path.name, position.number, tensor, number, word, moved)


def checked_row(vocabulary: Vocabulary, weights: Mapping[str, Row], tensor: str, row: int | str) -> int:
    """As `find_row`. Raises PackageError where the model has no such tensor, or the tensor no such row."""
    if tensor not in weights:
        if tensor == "lm_head.weight":
            raise PackageError('"lm_head.weight" is tied to "embedding.weight"; edit the latter')
        hint = did_you_mean(tensor, list(weights), f"there are {', '.join(weights)}")
        raise PackageError(f'"{tensor}" is not a tensor of this model; {hint}')
    number = find_row(vocabulary, tensor, row)
    count = len(weights[tensor])
    if not 0 <= number < count:
        raise PackageError(f'"{tensor}" has no row {number}; rows are 0 to {count - 1}')
    return number


def _finite(values: Wide, tensor: str) -> Row:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise PackageError(f'"{tensor}": a value that is not finite in float32; use finite numbers')
    return single


def _literal(folder: Path, target: Position, tensor: str, source: int) -> str:
    """The text of another row, if it has the storage type of the target's line."""
    position = find_row_line(folder, tensor, source)
    return position.line.partition("#")[0].strip() if position.part.dtype == target.part.dtype else ""


def add_token(folder: Path, token: str, like: Sequence[int | str] = ()) -> list[Change]:
    """Add a token with the next id; its row, also in an untied head, is the mean of the rows of `like`.

    In a word vocabulary the default row is that of <UNK>, which the model saw instead of the word. A byte-pair
    vocabulary produces a token only by a merge, so it must be the concatenation of two existing tokens; the merge gets
    the last rank, and the new token replaces the two in all texts. " word" is a word inside a text, "word" one at its
    beginning. tokenizer.json is generated again. Several files change one after the other: if the machine stops in
    between, `read` reports the file that does not match, and the package must be restored from a copy.
    """
    folder = Path(folder)
    package = read(folder)
    grown, numbers = with_token(package.vocabulary, package.weights, token, like)
    tensors = [name for name in TOKEN_TENSORS if name in package.weights]
    contents: dict[str, bytes] = {}
    changes = [_append(folder, contents, package, name, numbers, grown.words) for name in tensors]
    contents["tokenizer.json"] = tokenizer_json(grown).encode()
    contents["vocab.py"] = _vocab(folder, package.vocabulary, grown)
    contents["config.py"] = _config(folder, package, len(tensors))
    save(folder, contents)
    return changes


def with_token(
    vocabulary: Vocabulary, weights: Mapping[str, Row], token: str, like: Sequence[int | str]
) -> tuple[Vocabulary, list[int]]:
    """The vocabulary with the token that `add_token` adds, and the numbers of the rows of which its own is the mean.

    Raises PackageError for a token that no text would have.
    """
    if not token.strip() or not token.isprintable():
        raise PackageError(f"{token!a}: a token must be a word of printable characters")
    if vocabulary.algorithm == "bpe":
        readable, pair = _merge_for(vocabulary, token)
    else:
        readable, pair = _whole_word(vocabulary, token), None
    numbers = [checked_row(vocabulary, weights, "embedding.weight", row) for row in like]
    parts = pair or (vocabulary.words[vocabulary.specials.unk],)
    merges = (*vocabulary.merges, pair) if pair else vocabulary.merges
    grown = vocabulary._replace(words=(*vocabulary.words, readable), merges=merges)
    return grown, numbers or [vocabulary.words.index(part) for part in parts]


def mean_row(weights: Mapping[str, Row], tensor: str, rows: Sequence[int]) -> Row:
    """With which a new token's row begins in one of the tensors that have a row for each."""
    return _finite(weights[tensor][rows].mean(0, dtype=np.float64), tensor)


def _whole_word(vocabulary: Vocabulary, token: str) -> str:
    if token in vocabulary.words:
        raise PackageError(f"{quote(token)} is already a token; edit its row")
    pieces = Tokenizer(vocabulary).tokenize(token)
    if pieces != [token]:
        becomes = " + ".join(map(quote, pieces[:8])) or "nothing"
        raise PackageError(f"{quote(token)} would never occur: in a text it becomes {becomes}; add that")
    return token


def _merge_for(vocabulary: Vocabulary, token: str) -> tuple[str, tuple[str, str]]:
    """A byte-pair token in readable form, and the two tokens that are merged into it."""
    tokenizer = Tokenizer(vocabulary)
    before = "." if token.startswith(" ") else ""  # a text's own first space is dropped
    known = len(tokenizer.tokenize(before))
    pieces = tokenizer.tokenize(before + token)[known:]
    spelled = b"".join(map(token_bytes, pieces))
    if spelled != token.encode():
        becomes = quote(spelled.decode("utf-8", "replace"))
        raise PackageError(f"{quote(token)} would never occur: in a text it becomes {becomes}; add that")
    if len(pieces) == 1:
        raise PackageError(f"{quote(token)} is already a token; edit its row")
    if len(pieces) > 2:
        shown = " + ".join(map(quote, pieces[:8]))
        raise PackageError(f"{quote(token)} is {len(pieces)} tokens, {shown}, but a merge joins two; add a part first")
    readable = spelled.decode().replace("\\", "\\\\")
    if readable in vocabulary.words:
        raise PackageError(f"{quote(token)} is already a token, but no text produces it; choose another")
    pair = pieces[0], pieces[1]
    grown = vocabulary._replace(words=(*vocabulary.words, readable), merges=(*vocabulary.merges, pair))
    if Tokenizer(grown).tokenize(before + token)[known:] != [readable]:
        raise PackageError(f"{quote(token)} is split into two pieces, which no merge joins; choose one word")
    return readable, pair


def _append(
    folder: Path, contents: dict[str, bytes], package: Package, tensor: str, like: list[int], words: tuple[str, ...]
) -> Change:
    """Append the row of the last word to a tensor and update the shape in every header; the new files go into
    `contents`."""
    count, columns = package.weights[tensor].shape
    wanted = mean_row(package.weights, tensor, like)
    literal = ""
    for part in tensor_parts(folder, tensor):
        name = part.path.name
        raw = contents.get(name, part.raw)
        shift = len(raw) - len(part.raw)  # growth of an earlier tensor in this file
        last = part.first + part.rows == count
        header = f'    "{tensor}": ("{part.dtype}", ({count + 1}, {columns}), {part.first}, {part.rows + last}, ('
        start, stop, end = part.header.start + shift, part.header.stop + shift, part.end + shift
        rows = raw[stop:end]
        if last:
            rows = _named(rows, tensor, part, words)
            number = raw.count(b"\n", 0, stop) + rows.count(b"\n") + 1
            position = Position(part, slice(end, end), '        "",', number)
            if len(like) == 1:
                literal = _literal(folder, position, tensor, like[0])
            line = new_line(position, wanted, wanted, literal)
            rows += f"{line}\n".encode()
            change = Change(name, number, tensor, count, words[-1], float(np.linalg.norm(wanted.astype(np.float64))))
        contents[name] = raw[:start] + header.encode() + rows + raw[end:]
    return change


def _named(rows: bytes, tensor: str, part: TensorPart, words: tuple[str, ...]) -> bytes:
    """The lines of a tensor's last part, with the comment that names the row of the last word, which is to follow."""
    width, count = MATRIX_TYPES[part.dtype].width(part.shape[1]), len(words) - 1
    if not is_named(tensor, width):
        return rows
    first = count - part.rows % NAMED_ROWS
    named = word_comment(first, words[first:], width)
    if first == count:
        return rows + named
    before, old, after = rows.rpartition(word_comment(first, words[first:count], width))
    return before + named + after if old else rows  # a comment that somebody rewrote stays


def _vocab(folder: Path, before: Vocabulary, grown: Vocabulary) -> bytes:
    text = (folder / "vocab.py").read_text(encoding="utf-8")
    added = [("WORD2IDX = {", "}", f"{quote(grown.words[-1])}: {len(before.words)}")]
    for left, right in grown.merges[len(before.merges) :]:
        added.append(("MERGES = (", ")", f"({quote(left)}, {quote(right)})"))
    for opening, closing, entry in added:
        end = text.index(f"\n{closing}\n", text.index(f"\n{opening}\n"))
        text = f"{text[:end]}\n    {entry},{text[end:]}"
    return text.encode()


def _config(folder: Path, package: Package, tensors: int) -> bytes:
    text = (folder / "config.py").read_text(encoding="utf-8")
    config = package.config
    grown = {"VOCAB_SIZE": config.vocab_size + 1, "PARAMETERS": config.parameters + tensors * config.dim}
    for name, value in grown.items():
        text = re.sub(rf"(?m)^{name} = [0-9]+", f"{name} = {value}", text, count=1)
    return text.encode()
