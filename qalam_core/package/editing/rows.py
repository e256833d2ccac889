"""Edits single rows, values and tokens of a package, in the lines that state them.
Takes a package folder and the new values, gives a `Change` that says which line changed, and by how much.
It executes no code of the package. The manifest stays as it was, so `verify` names the change until `seal` accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qalam_core.errors import PackageError, did_you_mean
from qalam_core.package.editing.lines import Position, find_row_line, new_line, save, tensor_parts
from qalam_core.package.read import TOKEN_TENSORS, Package, read
from qalam_core.package.runtime.architecture import SPECIALS, UNK
from qalam_core.package.runtime.data_reader import quote
from qalam_core.package.runtime.tokenizer import Tokenizer, Vocabulary, token_bytes
from qalam_core.package.vocabulary import tokenizer_json

__all__ = ["Change", "add_token", "copy_row", "find_row", "scale_row", "set_row", "set_value"]


@dataclass(frozen=True)
class Change:
    """One line that was rewritten: where it is, which row it states, and the Euclidean distance of the change."""

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
    """The number of a row that is named by number or, in `embedding.weight` and `lm_head.weight`, by token.

    Digits are a number; a token of digits stands in double quotes. A byte-pair token that begins with the
    space before a word is found without it, unless there is one without.
    """
    if isinstance(row, int):
        return row
    if row.isascii() and row.isdigit():
        return int(row)
    if tensor not in TOKEN_TENSORS:
        raise PackageError(f'row "{row}": rows of "{tensor}" belong to no token; name one by its number')
    word = row[1:-1] if len(row) > 2 and row[0] == row[-1] == '"' else row
    for form in (row, word, f" {word}"):
        if form in vocabulary.words:
            return vocabulary.words.index(form)
    pieces = " + ".join(map(quote, Tokenizer(vocabulary).tokenize(word)[:8]))
    cure = "add it first" if vocabulary.algorithm == "word" else f"a text spells it {pieces}; name one of these"
    raise PackageError(f"{quote(word)} is no token of this model; {cure}")


def set_row(folder: Path, tensor: str, row: int | str, values: Sequence[float]) -> Change:
    """Give a row (for one dimension, a value) these numbers."""

    def given(old: NDArray[np.float32], package: Package) -> NDArray[np.float64]:
        if len(values) != len(old):
            raise PackageError(f'"{tensor}": {len(values)} numbers for a row of {len(old)}; give one for each')
        return np.asarray(values, np.float64)

    return _rewrite(folder, tensor, row, given)


def set_value(folder: Path, tensor: str, row: int | str, column: int, value: float) -> Change:
    """Give one value of a row this number; in one dimension the column is 0."""

    def with_value(old: NDArray[np.float32], package: Package) -> NDArray[np.float64]:
        if not 0 <= column < len(old):
            raise PackageError(f'"{tensor}" has no column {column}; they count from 0 to {len(old) - 1}')
        wanted = old.astype(np.float64)
        wanted[column] = value
        return wanted

    return _rewrite(folder, tensor, row, with_value)


def scale_row(folder: Path, tensor: str, row: int | str, factor: float) -> Change:
    """Multiply a row by a number."""
    return _rewrite(folder, tensor, row, lambda old, package: old.astype(np.float64) * factor)


def copy_row(folder: Path, tensor: str, row: int | str, source: int | str) -> Change:
    """Give a row the values of another row of the same tensor."""

    def other(old: NDArray[np.float32], package: Package) -> NDArray[np.float64]:
        return _row(package, tensor, _checked_row(package, tensor, source)).astype(np.float64)

    return _rewrite(folder, tensor, row, other, source)


def _rewrite(
    folder: Path,
    tensor: str,
    row: int | str,
    make: Callable[[NDArray[np.float32], Package], NDArray[np.float64]],
    source: int | str | None = None,
) -> Change:
    folder = Path(folder)
    package = read(folder)
    number = _checked_row(package, tensor, row)
    old = _row(package, tensor, number)
    wanted = _finite(make(old, package), tensor)
    position = find_row_line(folder, tensor, number)
    literal = "" if source is None else _literal(folder, position, tensor, _checked_row(package, tensor, source))
    line = new_line(position, wanted, old, literal)
    if line != position.line:
        raw, span = position.part.raw, position.span
        save(folder, {position.part.path.name: raw[: span.start] + line.encode() + raw[span.stop :]})
    word = package.vocabulary.words[number] if tensor in TOKEN_TENSORS else ""
    moved = float(np.linalg.norm(wanted.astype(np.float64) - old))
    return Change(position.part.path.name, position.number, tensor, number, word, moved)


def _checked_row(package: Package, tensor: str, row: int | str) -> int:
    if tensor not in package.weights:
        if tensor == "lm_head.weight":
            raise PackageError('"lm_head.weight" is tied to "embedding.weight"; edit that one')
        hint = did_you_mean(tensor, list(package.weights), f"there are {', '.join(package.weights)}")
        raise PackageError(f'"{tensor}" is no tensor of this model; {hint}')
    number = find_row(package.vocabulary, tensor, row)
    if not 0 <= number < len(package.weights[tensor]):
        last = len(package.weights[tensor]) - 1
        raise PackageError(f'"{tensor}" has no row {number}; they count from 0 to {last}')
    return number


def _row(package: Package, tensor: str, row: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = package.weights[tensor][row].reshape(-1)
    return values


def _finite(values: NDArray[np.float64], tensor: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise PackageError(f'"{tensor}": a value that is not finite in float32; weights are ordinary numbers')
    return single


def _literal(folder: Path, target: Position, tensor: str, source: int) -> str:
    """The text of another row, where it means the same in the target's line."""
    position = find_row_line(folder, tensor, source)
    return position.line.partition("#")[0].strip() if position.part.dtype == target.part.dtype else ""


def add_token(folder: Path, token: str, like: Sequence[int | str] = ()) -> list[Change]:
    """Add a token with the next id; its row, also in an untied head, is the mean of the rows of `like`.

    A word vocabulary uses the token wherever a text has that word; by default its row starts as that of <UNK>, which
    the model saw in its place. A byte-pair vocabulary reaches a token only through a merge, so it must be the
    concatenation of two existing tokens; the merge gets the last rank, and from then on every text in which these two
    are adjacent is spelled with the new one. " word" is the word inside a text, "word" the word at its beginning.
    tokenizer.json is written again from the vocabulary. Several files change, one after the other: should the machine
    stop in between, `read` says which does not fit, and a backup copy is the cure.
    """
    folder = Path(folder)
    package = read(folder)
    words = package.vocabulary
    if not token.strip() or not token.isprintable():
        raise PackageError(f"{token!a}: a token is a word of printable characters; give one")
    if words.algorithm == "bpe":
        readable, pair = _merge_for(words, token)
    else:
        readable, pair = _whole_word(words, token), None
    numbers = [_checked_row(package, "embedding.weight", row) for row in like]
    numbers = numbers or [words.words.index(part) for part in pair or (SPECIALS[UNK],)]
    tensors = [name for name in TOKEN_TENSORS if name in package.weights]
    contents: dict[str, bytes] = {}
    changes = [_append(folder, contents, package, name, numbers, readable) for name in tensors]
    if package.tokenizer_json != tokenizer_json(words):
        raise PackageError("tokenizer.json:0: states another tokenizer than vocab.py; restore it first")
    merges = (*words.merges, pair) if pair else words.merges
    contents["tokenizer.json"] = tokenizer_json(words._replace(words=(*words.words, readable), merges=merges)).encode()
    contents["vocab.py"] = _vocab(folder, words, readable, pair)
    contents["config.py"] = _config(folder, package, len(tensors))
    save(folder, contents)
    return changes


def _whole_word(vocabulary: Vocabulary, token: str) -> str:
    if token in vocabulary.words:
        raise PackageError(f"{quote(token)} is a token already; edit its row")
    pieces = Tokenizer(vocabulary).tokenize(token)
    if pieces != [token]:
        becomes = " + ".join(map(quote, pieces[:8])) or "nothing"
        raise PackageError(f"{quote(token)} would never be met: in a text it becomes {becomes}; add that")
    return token


def _merge_for(vocabulary: Vocabulary, token: str) -> tuple[str, tuple[str, str]]:
    """A byte-pair token in readable form, and the two tokens that make it."""
    tokenizer = Tokenizer(vocabulary)
    before = "." if token.startswith(" ") else ""  # a text's own first space is dropped
    known = len(tokenizer.tokenize(before))
    pieces = tokenizer.tokenize(before + token)[known:]
    spelled = b"".join(map(token_bytes, pieces))
    if spelled != token.encode():
        becomes = quote(spelled.decode("utf-8", "replace"))
        raise PackageError(f"{quote(token)} would never be met: in a text it becomes {becomes}; add that")
    if len(pieces) == 1:
        raise PackageError(f"{quote(token)} is a token already; edit its row")
    if len(pieces) > 2:
        shown = " + ".join(map(quote, pieces[:8]))
        raise PackageError(f"{quote(token)} is {len(pieces)} tokens, {shown}, and a merge joins two; add a part first")
    readable = spelled.decode().replace("\\", "\\\\")
    if readable in vocabulary.words:
        raise PackageError(f"{quote(token)} is a token that no text is spelled with; choose another")
    pair = pieces[0], pieces[1]
    grown = vocabulary._replace(words=(*vocabulary.words, readable), merges=(*vocabulary.merges, pair))
    if Tokenizer(grown).tokenize(before + token)[known:] != [readable]:
        raise PackageError(f"{quote(token)} is two pieces of a text, which no merge joins; choose one word")
    return readable, pair


def _append(
    folder: Path, contents: dict[str, bytes], package: Package, tensor: str, like: list[int], word: str
) -> Change:
    """Append a row to a tensor and state its new shape in every header; into `contents`."""
    count, columns = package.weights[tensor].shape
    wanted = _finite(package.weights[tensor][like].mean(0, dtype=np.float64), tensor)
    literal = ""
    for part in tensor_parts(folder, tensor):
        name = part.path.name
        raw = contents.get(name, part.raw)
        shift = len(raw) - len(part.raw)  # an earlier tensor in this file may have grown
        last = part.first + part.rows == count
        header = f'    "{tensor}": ("{part.dtype}", ({count + 1}, {columns}), {part.first}, {part.rows + last}, ('
        start, stop, end = part.header.start + shift, part.header.stop + shift, part.end + shift
        rows = raw[stop:end]
        if last:
            number = raw.count(b"\n", 0, end) + 1
            position = Position(part, slice(end, end), '        "",', number)
            if len(like) == 1:
                literal = _literal(folder, position, tensor, like[0])
            line = new_line(position, wanted, wanted, literal)
            rows += f"{line}\n".encode()
            change = Change(name, number, tensor, count, word, float(np.linalg.norm(wanted.astype(np.float64))))
        contents[name] = raw[:start] + header.encode() + rows + raw[end:]
    return change


def _vocab(folder: Path, vocabulary: Vocabulary, readable: str, pair: tuple[str, str] | None) -> bytes:
    text = (folder / "vocab.py").read_text(encoding="utf-8")
    text = _insert(text, "WORD2IDX = {", "}", f"    {quote(readable)}: {len(vocabulary.words)},")
    if pair:
        text = _insert(text, "MERGES = (", ")", f"    ({quote(pair[0])}, {quote(pair[1])}),")
    return text.encode()


def _insert(text: str, opening: str, closing: str, line: str) -> str:
    """Put a line before the one that closes a section."""
    start = text.index(f"\n{opening}\n")
    end = text.index(f"\n{closing}\n", start)
    return f"{text[:end]}\n{line}{text[end:]}"


def _config(folder: Path, package: Package, tensors: int) -> bytes:
    text = (folder / "config.py").read_text(encoding="utf-8")
    config = package.config
    grown = {"VOCAB_SIZE": config.vocab_size + 1, "PARAMETERS": config.parameters + tensors * config.dim}
    for name, value in grown.items():
        text = re.sub(rf"(?m)^{name} = [0-9]+", f"{name} = {value}", text, count=1)
    return text.encode()
