"""Mutates the data files of a small package: every reader gives the same values as Python, or refuses with one line.

`python -m tests.mutants --mutants 100000` takes minutes; the quick tests run a few hundred. The mutants are those of
`--seed`, so a failure is repeated by naming it again. `tests/fuzz_reader.py` is guided by coverage instead.
"""

from __future__ import annotations

import argparse
import ast
import base64
import binascii
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qalam_core.errors import PackageError
from qalam_core.package.interop import foreign_tokenizer
from qalam_core.package.interop.foreign_tokenizer import foreign_vocabulary
from qalam_core.package.read import _card, _check_attributes, _manifest, read_checksums
from qalam_core.package.runtime import codings, data_reader
from qalam_core.package.runtime import weights_reader as reader
from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import Specials, Tokenizer, Vocabulary
from qalam_core.package.seek import read_rows
from qalam_core.package.vocabulary import ALPHABET, readable, says_the_same, tokenizer_json, vocabulary_of
from qalam_core.package.write import GITATTRIBUTES
from tests.small_package import (
    CONFIG,
    FRAGMENTS,
    contents,
    export,
    named_rows,
    python_values,
    random_tensors,
    save_shards,
    shard_texts,
    vocabulary,
    without_blocks,
)

WIDTHS = (5, 96, 192, 384, 768)
"""Columns of the mutated matrices: rows of base64 with padding and, in every storage type, without."""

WORDS = [
    *FRAGMENTS, b"=", b"==", b"===", b"True", b"1.0", b"null", b"NaN", b"\\ud800", b"\\u0041", b"\\x41", b"\\",
    b"a*a*b", b"START", b"END PAD", b"qwen2", b"False",
    b"coding: latin-1", b"'", b":", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"[" * 2000,
    b"9" * 5000, b"1e400", b'"x": (("y", 0.5),),\n', b'"x": (1, 2, 3, 4),\n', b'("[a]+", "bb"),\n',
    b"\x1b[31m", b"\xc2\x85",
]  # fmt: skip
Refusals = (PackageError, reader.FormatError)


def mutant(chance: random.Random, text: bytes) -> bytes:
    """A text with one to four changes: bytes, pieces inserted, deleted or repeated, lines exchanged, a cut."""
    changed = bytearray(text)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        at = chance.randrange(size + 1)
        near = min(size, at + chance.choice((1, 2, 4, chance.randrange(1, 80))))
        change = chance.randrange(8)
        if change == 0 and at < size:
            changed[at] = chance.randrange(256)
        elif change == 1:
            changed[at:at] = chance.choice(WORDS)
        elif change == 2:
            changed[at:near] = chance.choice(WORDS)
        elif change == 3:
            del changed[at:near]
        elif change == 4:
            other = chance.randrange(size + 1)
            changed[at:at] = changed[other : other + near - at]
        elif change == 5:  # the ends of rows, where padding, quotes and commas are
            end = max(0, changed.find(b"\n", at) - chance.randrange(8))
            changed[end : end + chance.randrange(3)] = chance.choice(WORDS)
        elif change == 6:
            lines = bytes(changed).split(b"\n")
            one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[one], lines[two] = lines[two], chance.choice((lines[one], lines[two]))
            changed = bytearray(b"\n".join(lines))
        elif change == 7 and not chance.randrange(8):
            del changed[at:]
    return bytes(changed)


@contextmanager
def without_pybase64() -> Iterator[None]:
    """Decode by the standard library alone, as where pybase64 is not installed."""
    before = codings._encode, codings._decode
    codings._encode, codings._decode = base64.b64encode, partial(binascii.a2b_base64, strict_mode=True)
    try:
        yield
    finally:
        codings._encode, codings._decode = before


@contextmanager
def small_steps() -> Iterator[None]:
    """Read through 64 KiB, more than any mutant has, because clearing 2 MB takes half of the time; name row by row."""
    before, reader._WINDOW = reader._WINDOW, 1 << 16
    try:
        with named_rows(2):
            yield
    finally:
        reader._WINDOW = before


def outcome(task: Callable[[], Any]) -> tuple[Any, str]:
    """(value, "") or (None, the refusal), which is one line; any other exception is an error of the reader."""
    try:
        return task(), ""
    except Refusals as error:
        reason = str(error)
    assert reason.isprintable(), ascii(reason)
    return None, reason


def weights_texts(width: int) -> dict[str, bytes]:
    """For each storage type a weights file of a model with rows of this width."""
    return {dtype: shard_texts(random_tensors(weights_shapes(width)), dtype)[0] for dtype in MATRIX_TYPES}


def weights_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Two matrices and two vectors; a vector has three values, so that most mutations are in the matrices."""
    found = without_blocks(ModelConfig(vocab_size=3, dim=width, num_heads=1, num_layers=1, max_seq_len=2))
    return {name: shape if len(shape) == 2 else (3,) for name, shape in found.items()}


def check_weights(folder: Path, width: int, text: bytes) -> bool:
    """Blocks, small blocks, line by line, and seeking, each with pybase64 and without; -> whether it is accepted."""
    shapes = weights_shapes(width)
    save_shards(folder, [text])

    def read(block: int) -> tuple[Any, str]:
        return outcome(lambda: reader.read_weights(folder, shapes, block=block))

    def seek(name: str, start: int, stop: int) -> tuple[Any, str]:
        return outcome(lambda: read_rows(folder, shapes, name, start, stop))

    results = [read(block) for block in (reader.BLOCK, 80, 0)]  # the last one uses no fast decoder
    sought = {name: seek(name, 0, shape[0]) for name, shape in shapes.items()}
    with without_pybase64():
        results.append(read(reader.BLOCK))
        slowly = {name: seek(name, 0, shape[0]) for name, shape in shapes.items()}
    assert len({reason for _, reason in results}) == 1, results
    for name, (values, reason) in sought.items():
        assert slowly[name][1] == reason
        for row in {0, shapes[name][0] - 1} if values is not None else ():
            assert seek(name, row, row + 1)[0].tobytes() == values[row : row + 1].tobytes()
        assert values is None or values.tobytes() == slowly[name][0].tobytes()
    if results[0][1]:
        return False
    meant = ast.literal_eval(text.decode().partition("WEIGHTS = ")[2])
    assert set(meant) == set(shapes)
    for name, entry in meant.items():
        expected = python_values(entry).tobytes()
        assert sought[name][0] is not None, sought[name]
        assert all(values.tobytes() == expected for values in (sought[name][0], *(found[name] for found, _ in results)))
    return True


def _python(text: bytes) -> dict[str, Any]:
    """The assignments of a data file as Python reads them; IDX2WORD is the only expression."""
    found = {}
    for statement in ast.parse(text).body:
        assert isinstance(statement, ast.Assign)
        assert isinstance(statement.targets[0], ast.Name)
        if statement.targets[0].id != "IDX2WORD":
            value = statement.value
            if isinstance(value, ast.Dict):  # a literal, but a key twice is an error
                assert len({ast.literal_eval(key) for key in value.keys if key}) == len(value.keys)
            found[statement.targets[0].id] = ast.literal_eval(value)
    return found


def _check_config(path: Path) -> bool:
    config, reason = outcome(lambda: data_reader.read_config(path))
    assert reason or repr({"FORMAT": 1, **config.constants()}) == repr(
        {name: _python(path.read_bytes())[name] for name in ("FORMAT", *config.constants())}
    )
    return not reason


def _check_vocabulary(path: Path) -> bool:
    found, reason = outcome(lambda: data_reader.read_vocabulary(path, CONFIG.vocab_size))
    if reason:
        return False
    meant = _python(path.read_bytes())
    assert found == Vocabulary(
        meant["ALGORITHM"], tuple(meant["WORD2IDX"]), meant["MERGES"], meant["NORMALISE"],
        meant.get("SPLIT", "al-qalam"), meant.get("UNICODE", "NFKC"), meant.get("IGNORE_MERGES", False), found.specials,
    )  # fmt: skip
    if "SPECIALS" in meant:
        roles = {name: set(roles.split()) for name, roles in meant["SPECIALS"].items()}
        assert roles == {found.words[index]: set(of.split()) for index, of in found.specials.roles().items()}
    assert [*meant["WORD2IDX"].values()] == [*range(CONFIG.vocab_size)]
    try:
        tokenizer = Tokenizer(found)
    except ValueError:
        return False
    tokenizer.encode("القط يأكل السمكــ" * 20)
    assert says_the_same(tokenizer_json(found), found)
    assert found.is_foreign or tokenizer_json(vocabulary_of(tokenizer_json(found))) == tokenizer_json(found)
    return True


def _check_knowledge(path: Path) -> bool:
    found, reason = outcome(lambda: data_reader.read_knowledge(path))
    if not reason:
        meant = _python(path.read_bytes())
        assert repr(found.statistics) == repr({name: tuple(map(float, of)) for name, of in meant["STATISTICS"].items()})
        assert repr(found.neighbours) == repr(
            {name: tuple((word, float(near)) for word, near in of) for name, of in meant["NEIGHBOURS"].items()}
        )
    return not reason


def _check_manifest(path: Path) -> bool:
    found, reason = outcome(lambda: _manifest(path.parent))
    if not reason:
        assert found == json.loads(path.read_text(encoding="utf-8"))
        assert type(found["format"]) is int
        json.dumps(found, ensure_ascii=False).encode()
    return not reason


def _check_checksums(path: Path) -> bool:
    found, reason = outcome(lambda: read_checksums(path))
    if not reason:
        meant = json.loads(path.read_text(encoding="utf-8"))
        assert {name: base64.b64encode(rows).decode() for name, rows in found.items()} == meant
    return not reason


@contextmanager
def _few_probes() -> Iterator[None]:
    probes, foreign_tokenizer.PROBES = foreign_tokenizer.PROBES, 50
    try:
        yield
    finally:
        foreign_tokenizer.PROBES = probes


def _check_tokenizer(path: Path) -> bool:
    """As an import reads a tokenizer.json from elsewhere: a vocabulary whose tokenizer.json means the same."""
    text = path.read_bytes().decode("utf-8", "replace")
    if "<|endoftext|>" in text:
        roles = {"START": "<|endoftext|>", "END": "<|endoftext|>"}
        with _few_probes():
            _, reason = outcome(lambda: foreign_vocabulary(text, roles))
        return not reason  # it has compared ids itself
    found, reason = outcome(lambda: vocabulary_of(text))
    if not reason:
        given, ours = json.loads(text), json.loads(tokenizer_json(found))
        assert [given[part] for part in ("model", "normalizer")] == [ours[part] for part in ("model", "normalizer")]
        assert not data_reader.rules_error(found.rules)
    return not reason


def _check_card(path: Path) -> bool:
    found, reason = outcome(lambda: _card(path))
    assert reason or all(char.isprintable() or char in "\n\t" or char.isspace() or ord(char) > 0x9F for char in found)
    return not reason


def _check_gitattributes(path: Path) -> bool:
    _, reason = outcome(lambda: _check_attributes(path))
    assert bool(reason) == (path.read_bytes() not in GITATTRIBUTES)
    return not reason


FILES: dict[str, Callable[[Path], bool]] = {
    "config.py": _check_config, "vocab.py": _check_vocabulary, "knowledge_map.py": _check_knowledge,
    "manifest.json": _check_manifest, "rows.json": _check_checksums, "tokenizer.json": _check_tokenizer,
    "MODEL_CARD.md": _check_card, ".gitattributes": _check_gitattributes,
}  # fmt: skip
"""Data file -> the check of one version of it, in a folder of its own; -> whether it was accepted."""


def run(name: str, mutants: int, seed: int) -> int:
    """Check mutants of a data file (of weights.py, of every width and type in turn); -> how many were accepted."""
    chance, accepted = random.Random(f"{name} {seed}"), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if name == "weights.py":
            with small_steps():
                texts = [(width, text) for width in WIDTHS for text in weights_texts(width).values()]
                assert max(len(text) for _, text in texts) < 60_000
                for number in range(mutants):
                    width, text = texts[number % len(texts)]
                    accepted += _named(name, number, partial(check_weights, folder, width), chance, text)
            return accepted
        originals = [contents(export(folder / "word"))[name]]
        if name == "tokenizer.json":
            byte_pairs = vocabulary(algorithm="bpe", words=(*CONFIG_BPE,), merges=(("a", "b"),))
            originals += [tokenizer_json(byte_pairs).encode(), tokenizer_json(FOREIGN).encode()]
        if name == "vocab.py":
            originals.append(contents(export(folder / "foreign", vocabulary=FOREIGN_SMALL))[name])
        (folder / "alone").mkdir()
        path = folder / "alone" / name
        for number in range(mutants):

            def check(text: bytes) -> bool:
                path.write_bytes(text)
                return FILES[name](path)

            accepted += _named(name, number, check, chance, originals[number % len(originals)])
    return accepted


_BYTES = tuple(map(readable, ALPHABET.values()))
FOREIGN = Vocabulary(
    "bpe", (*_BYTES, "ab", "<|endoftext|>", "<x>"), (("a", "b"),), (), "llama3", "none", True,
    Specials(-1, -1, 257, 257, (258,)),
)  # fmt: skip
FOREIGN_SMALL = Vocabulary(
    "bpe", ("a", "b", "ab", "\\xd8", "\\\\", " a", "<s>", "</s>", "<x>", "c", "d", "e"), (("a", "b"),), (), "qwen2",
    "NFC", False, Specials(-1, 8, 6, 7, ()),
)  # fmt: skip
CONFIG_BPE = ("<PAD>", "<UNK>", "<START>", "<END>", "a", "b", "ab", "\\xd8", "\\\\", " a")


def _named(name: str, number: int, check: Callable[[bytes], bool], chance: random.Random, original: bytes) -> bool:
    text = mutant(chance, original)
    try:
        return check(text)
    except BaseException as error:
        error.add_note(f"mutant {number} of {name}: {text[:4000]!r}")
        raise


def main() -> None:
    """Run the mutants of one or of all data files, and print how many were accepted."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--mutants", type=int, default=10_000, help="of each file")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--file", choices=("weights.py", *FILES), help="only this one")
    chosen = options.parse_args()
    for name in [chosen.file] if chosen.file else ["weights.py", *FILES]:
        accepted = run(name, chosen.mutants, chosen.seed)
        print(f"{name}: {chosen.mutants} mutants, {accepted} accepted, no difference", flush=True)


if __name__ == "__main__":
    main()
