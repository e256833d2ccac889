"""Writes docs/conformance: texts and what a reader of the package format makes of them, as ours does.

`python -m tests.conformance` writes the files; docs/conformance/README.md says what is in them. tests/conformance.js
holds the page's reader against them.
"""

from __future__ import annotations

import base64
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.runtime.architecture import ModelConfig
from qalam_core.package.runtime.data_reader import INVERSE, read_config, read_vocabulary
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.rows import MATRIX_TYPES
from qalam_core.package.runtime.tokenizer import ROLES, SPLITS, Specials, Tokenizer, Vocabulary
from qalam_core.package.runtime.weights_reader import FormatError, read_weights
from qalam_core.package.vocabulary import ALPHABET, readable
from qalam_core.package.write import _config_text, _vocab_text
from tests import GOLDEN, ROOT
from tests.mutants import CONFIG_BPE, FOREIGN, FOREIGN_SMALL, mutant, small_steps
from tests.small_package import CONFIG, LLAMA, TINY, random_tensors, shard_texts, tiny_texts, vocabulary, without_blocks

FOLDER = ROOT / "docs" / "conformance"
MUTANTS = 2_100
Given = dict[str, Any]
"""What a reader is given: "files", name -> bytes, with "size" for vocab.py and "shapes" for weights."""

KINDS = {
    "encoding": "not UTF-8",
    "hidden": "hidden character|Windows line end",
    "cut": "cut off",
    "magic": "the first line must be|must begin with|a coding line",
    "pattern": "NORMALISE",
    "order": r"is set twice|is not a setting; known|is missing|is not a setting of|expected |already has id|"
    r"ids count up|is not in WORD2IDX|there twice|MERGES must|unexpected text|twice in this file|is not a tensor of|"
    r"continues at row|belongs here|a part is missing|only comments may come|(\d+) words, but VOCAB_SIZE is \1;",
    "size": "does not follow|words, but VOCAB_SIZE|numbers in a row of|a row of|config.py requires|should end here",
    "grammar": "not a setting; write|not a word|not a pair|not a special token|not a tensor header|not a matrix row|"
    "not a number|right-aligned",
    "value": "must be|is one of|not finite|not divisible|is odd|not a character|last bits|a scale|-128 is|roles are|"
    "has the role|the same bytes|a byte has no token|that is not in the vocabulary|not a storage type",
}
"""Kind of a refusal -> what our reader says then; the first that fits."""


def outcome(given: Given) -> dict[str, Any]:
    """{"accept": values} or {"refuse": kind}."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in given["files"].items():
            (folder / name).write_bytes(content)
        try:
            return {"accept": _values(folder, given)}
        except (FormatError, ValueError) as error:
            return {"refuse": next(kind for kind, says in KINDS.items() if re.search(says, str(error)))}


def _values(folder: Path, given: Given) -> Any:
    if "shapes" in given:
        found = read_weights(folder, {name: tuple(shape) for name, shape in given["shapes"].items()})
        return {name: packed(values) for name, values in found.items()}
    if "size" not in given:
        config = read_config(folder / "config.py")
        return {"BLOCK": config.block, **config.constants()}
    words = read_vocabulary(folder / "vocab.py", given["size"])
    Tokenizer(words)
    roles = {role: getattr(words.specials, role.lower()) for role in ROLES}
    return {
        "ALGORITHM": words.algorithm, "SPLIT": words.split, "UNICODE": words.form, "IGNORE_MERGES": words.ignore_merges,
        "NORMALISE": words.rules, "WORDS": words.words, "MERGES": words.merges, "SPECIALS": words.specials.ids(),
        **{role: index for role, index in roles.items() if index >= 0},
    }  # fmt: skip


def packed(values: NDArray[np.float32]) -> str:
    """Values as base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


# Texts: accepted as they are, and refused after one change.


def config_of(config: ModelConfig) -> Given:
    return {"files": {"config.py": _config_text(config).encode()}}


def vocabulary_of(words: Vocabulary) -> Given:
    return {"files": {"vocab.py": _vocab_text(words).encode()}, "size": len(words.words)}


RULES = (("ﷺ", "صلى الله عليه وسلم"), ("[\u064b-\u0652]+", ""), ("x ?y*", "z"), ("  +", " "))
WORDS = vocabulary(rules=RULES)
BPE = WORDS._replace(algorithm="bpe", words=(*CONFIG_BPE, "c", "bab"), merges=(("a", "b"), ("b", "ab")))
QWEN3 = ModelConfig(**{**LLAMA.arguments(), "block": "llama", "tied": False, "qk_norm": True})
SHAPES = without_blocks(TINY)
WIDE = {name: (6,) if len(shape) == 1 else (shape[0], 6) for name, shape in SHAPES.items()}


def weights_of(dtype: str) -> Given:
    """Every form a row may take, among them one written by hand."""
    with tempfile.TemporaryDirectory() as place:
        text = tiny_texts(Path(place))[dtype]
    return {"files": {"weights.py": text}, "shapes": SHAPES}


def parts() -> Given:
    """A tensor in two files."""
    given = weights_of("f32")
    lines = given["files"]["weights.py"].decode().split("\n")
    at = next(number for number, line in enumerate(lines) if line.startswith('    "embedding.weight"'))
    end = lines.index("    )),", at)
    head, rows, rest = lines[at], lines[at + 1 : end], lines[end + 1 :]
    rows = [row for row in rows if not row.startswith("        #")]
    one = [*lines[:at], head.replace("0, 5,", "0, 2,"), *rows[:2], "    )),", "}", ""]
    two = [lines[0], "WEIGHTS = {", head.replace("0, 5,", "2, 3,"), *rows[2:], "    )),", *rest]
    return {**given, "files": {"weights.py": "\n".join(one).encode(), "weights_001.py": "\n".join(two).encode()}}


def changed(given: Given, old: str, new: str | bytes, file: str = "") -> Given:
    """The first `old` of a file, or its end if "", becomes `new`."""
    name = file or next(iter(given["files"]))
    content: bytes = given["files"][name]
    new = new if isinstance(new, bytes) else new.encode()
    assert old.encode() in content, old
    content = content.replace(old.encode(), new, 1) if old else content + new
    return {**given, "files": {**given["files"], name: content}}


def accepted() -> Iterator[tuple[str, Given]]:
    original, llama = config_of(CONFIG), config_of(LLAMA)
    yield "config of the original", original
    yield "config of llama", llama
    yield "config of llama, untied, with normalised queries and keys", config_of(QWEN3)
    yield "config with comments and blank lines", changed(original, "DIM = 8\n", "\n   # narrow\nDIM = 8  # channels\n")
    yield "config with an escape in a string", changed(original, '"gelu"', '"g\\u0065lu"')
    yield "config with a float by exponent", changed(llama, "ROPE_BASE = 500.0", "ROPE_BASE = 5e2")
    yield "vocab of words", vocabulary_of(WORDS)
    yield "vocab of byte pairs", vocabulary_of(BPE)
    yield "vocab of another project", vocabulary_of(FOREIGN_SMALL)
    yield "vocab of another project that has all bytes and no UNK", vocabulary_of(FOREIGN)
    yield "vocab with a comment after a word", changed(vocabulary_of(BPE), '"a": 4,', '"a": 4,  # alpha')
    yield "vocab with a backslash that begins no escape", changed(vocabulary_of(BPE), '"c": 10', '"\\\\q": 10')
    for dtype in MATRIX_TYPES:
        yield f"weights as {dtype}", weights_of(dtype)
        values = random_tensors(WIDE)
        yield f"weights as {dtype}, without padding", {
            "files": {"weights.py": shard_texts(values, dtype)[0]}, "shapes": WIDE,
        }  # fmt: skip
    yield "weights in two files", parts()
    f32 = weights_of("f32")
    yield "weights with a comment after a row", changed(f32, '",\n', '",  # note\n')
    yield "weights with numbers by hand", changed(f32, "[0.5, -1, 2e-3,", "[1e-45,3.4028235e38, 1e0,")
    yield "weights with other indents", changed(f32, "        [0.5", " [0.5")


def refused() -> Iterator[tuple[str, str, Given]]:
    """(kind, what is wrong, what is given)."""
    original, llama, words, bpe = config_of(CONFIG), config_of(LLAMA), vocabulary_of(WORDS), vocabulary_of(BPE)
    foreign, f32, i8, q8 = vocabulary_of(FOREIGN_SMALL), weights_of("f32"), weights_of("i8"), weights_of("q8")
    for given, line in ((original, "TIED"), (words, "MERGES"), (f32, "WEIGHTS")):
        yield "encoding", "a byte that is not UTF-8", changed(given, line, b"# \xff\n" + line.encode())
        yield "encoding", "half of a surrogate pair", changed(given, line, b"# \xed\xa0\x80\n" + line.encode())
        for what, char in (
            ("a byte order mark", "\ufeff"),
            ("a tab", "\t"),
            ("a no-break space", "\xa0"),
            ("a zero-width space", "\u200b"),
            ("a bidirectional override", "\u202e"),
            ("a form feed", "\f"),
            ("a tag", "\U000e0041"),
            ("private use", "\ue000"),
        ):
            yield "hidden", what, changed(given, line, f"# {char}\n{line}")
        yield "hidden", "Windows line ends", changed(given, "\n", "\r\n")
        yield "cut", "no line end at the end", changed(given, "", "# end")
        yield "magic", "another version", changed(given, " 1\n", " 2\n")
        yield "magic", "a blank line before the first", changed(given, "#", "\n#")
        yield "magic", "a coding line", changed(given, " 1\n", " 1\n# -*- coding: latin-1 -*-\n")
    for new, kind, what in (
        ("DIM = 08", "grammar", "a leading zero"),
        ("DIM = +8", "grammar", "a sign"),
        ("DIM = 0x8", "grammar", "hexadecimal"),
        ("DIM = 1_0", "grammar", "an underscore"),
        ("DIM = 4 + 4", "grammar", "an expression"),
        (" DIM = 8", "grammar", "an indent"),
        ("DIM = '8'", "grammar", "single quotes"),
        ("DIM=8", "grammar", "no spaces"),
        ("DIM = 8; X = 1", "grammar", "two statements"),
        ("DIM = 8.0", "value", "a float where an integer is due"),
        ("DIM = True", "value", "a truth value where an integer is due"),
        ("DIM = 0", "value", "zero"),
        ("DIM = 1000001", "value", "more than the most"),
        ("DIM = 7", "value", "heads that do not divide"),
        ("DIM = 16", "size", "PARAMETERS of another model"),
        ("DIM = 8\nDIM = 8", "order", "a setting twice"),
        ("DIM = 8\nHEAD_DIM = 4", "order", "a setting of another block"),
        ("DIM = 8\nEXTRA = 4", "order", "an unknown setting"),
        ("", "order", "a setting that is missing"),
    ):
        yield kind, what, changed(original, "DIM = 8", new)
    yield "value", "FORMAT is True", changed(original, "FORMAT = 1", "FORMAT = True")
    yield "value", "FORMAT 2", changed(original, "FORMAT = 1", "FORMAT = 2")
    yield "value", "TIED is a number", changed(original, "TIED = True", "TIED = 1")
    yield "value", "an unknown activation", changed(original, '"gelu"', '"relu"')
    yield "value", "an unknown block", changed(original, "FORMAT = 1", 'FORMAT = 1\nBLOCK = "other"')
    yield "value", "an integer where a float is due", changed(llama, "ROPE_BASE = 500.0", "ROPE_BASE = 500")
    yield "value", "a float that is not finite", changed(llama, "ROPE_BASE = 500.0", "ROPE_BASE = 1e999")
    yield "value", "a float below the least", changed(llama, "NORM_EPSILON = 1e-05", "NORM_EPSILON = 1e-13")
    yield "value", "an odd head", changed(llama, "HEAD_DIM = 6", "HEAD_DIM = 5")
    yield "value", "keys that do not divide queries", changed(llama, "NUM_KV_HEADS = 2", "NUM_KV_HEADS = 3")

    yield "order", "an unknown algorithm", changed(words, '"word"', '"unigram"')
    yield "order", "an id that is skipped", changed(words, ": 5,", ": 6,")
    yield "order", "a word twice", changed(words, '"يأكل"', '"القط"')
    yield "order", "special tokens that are not the first four", changed(words, "<END>", "<end>")
    yield "size", "more words than VOCAB_SIZE", changed(words, "}\nMERGES", '    "x": 12,\n}\nMERGES')
    yield "grammar", "no comma after a word", changed(words, ": 5,", ": 5")
    yield "grammar", "an unknown escape", changed(words, '"القط"', '"\\x41"')
    yield "grammar", "an escape with upper-case digits", changed(words, '"القط"', '"\\u00AB"')
    yield "value", "an escape of a surrogate", changed(words, '"القط"', '"\\ud800"')
    yield "value", "an escape beyond Unicode", changed(words, '"القط"', '"\\U00110000"')
    yield "order", "another expression at the end", changed(words, "IDX2WORD = {index", "IDX2WORD = {id")
    yield "order", "text after the end", changed(words, "", "X = 1\n")
    yield "cut", "a section without its end", changed(words, f")\n{INVERSE}\n", "")
    yield "order", "merges of words", changed(words, "MERGES = (\n", 'MERGES = (\n    ("a", "b"),\n')
    yield "order", "a merge twice", changed(bpe, '    ("a", "b"),\n', '    ("a", "b"),\n' * 2)
    yield "value", "a merge of an unknown token", changed(bpe, '("a", "b")', '("a", "x")')
    yield "value", "two tokens of the same bytes", changed(bpe, '"c": 10', '"\\\\x61": 10')
    yield "value", "a token without bytes", changed(bpe, '"c": 10', '"": 10')
    yield "order", "an unknown split", changed(foreign, '"qwen2"', '"qwen3"')
    yield "order", "an unknown Unicode form", changed(foreign, '"NFC"', '"NFD"')
    yield "order", "settings in another order", changed(foreign, "IGNORE_MERGES", "UNICODE")
    yield "value", "an unknown role", changed(foreign, '"START"', '"BOS"')
    yield "value", "a role of two tokens", changed(foreign, '"UNK"', '"UNK END"')
    yield "order", "a special token that is no word", changed(foreign, '    "<s>": "START', '    "<t>": "START')
    yield "value", "a byte without a token, and no UNK", changed(foreign, '"UNK"', '""')
    yield "pattern", "rules without NFKC", changed(foreign, "NORMALISE = (\n", 'NORMALISE = (\n    ("a", "b"),\n')
    for what, pattern in (
        ("a group", "(a)"),
        ("an alternative", "a|b"),
        ("any character", "a.b"),
        ("a negated class", "[^a]"),
        ("a class with an escape", "[\\\\d]"),
        ("a class with an operation", "[a&&b]"),
        ("a class in a class", "[[a]]"),
        ("a range that is upside down", "[z-a]"),
        ("the empty pattern", ""),
        ("what matches the empty text", "a*"),
        ("a repeat at the start", "a*b"),
        ("a repeat after its own character", "aa*b"),
        ("two repeats", "xa*a*b"),
        ("two options", "a?b?c"),
        ("a repeat that overlaps a class", "[a-f]c*d"),
        ("a repeat of a repeat", "a+*"),
    ):
        yield "pattern", what, changed(bpe, "NORMALISE = (\n", f'NORMALISE = (\n    ("{pattern}", ""),\n')
    yield (
        "pattern",
        "a text becomes too long",
        changed(bpe, "NORMALISE = (\n", f'NORMALISE = (\n    ("a", "{"b" * 1001}"),\n'),
    )

    row = re.findall(rb'        "([A-Za-z0-9+/]+=)",', f32["files"]["weights.py"])[0].decode()
    for old, new, kind, what in (
        (row, row[:-2] + ("B=" if row[-2] != "B" else "C="), "value", "base64 whose last bits are not zero"),
        (row, row[:8] + row[12:], "size", "a row that is too short"),
        (row, row[:-1], "size", "base64 without padding"),
        (row, row[:4] + "-" + row[5:], "grammar", "another alphabet"),
        (row, row[:4] + " " + row[5:], "grammar", "a space in base64"),
        (row, "AADAfwAAAAAAAAAAAAAAAAAAAAA=", "value", "not a number"),
        (row, "AACAfwAAAAAAAAAAAAAAAAAAAAA=", "value", "infinity"),
        ("[0.5, -1", "[0.5, 1e39", "value", "a number beyond float32"),
        ("[0.5, -1", "[0.5, 007", "grammar", "a leading zero"),
        ("[0.5, -1", "[0.5, +1", "grammar", "a plus"),
        ("[0.5, -1", "[.5, -1", "grammar", "no digit before the point"),
        ("[0.5, -1", "[5., -1", "grammar", "no digit behind the point"),
        ("[0.5, -1", "[0.5, nan", "grammar", "nan"),
        ("[0.5, -1", "[0.5, 1_0", "grammar", "an underscore"),
        ("[0.5, -1", "[0.5,, -1", "grammar", "two commas"),
        ("[0.5, -1", "[0.5", "size", "four numbers in a row of five"),
        ("[0.5, -1", "[0.5, 1, 1", "size", "six numbers in a row of five"),
        ("-0.0]", "-0.0, ]", "grammar", "a comma at the end"),
        ('"f32", (5, 5)', '"f32", (5, 6)', "size", "another shape"),
        ('"f32", (5, 5)', '"f64", (5, 5)', "value", "an unknown type"),
        ('"dec", (5,)', '"f32", (5,)', "value", "a vector as f32"),
        ('"f32", (5, 5)', '"f32", (5,5)', "grammar", "no space in a shape"),
        ("(5, 5), 0, 5", "(5, 5), 1, 4", "order", "a part that does not begin at 0"),
        ("(5, 5), 0, 5", "(5, 5), 0, 4", "size", "a row too many"),
        ('"embedding.weight"', '"other.weight"', "order", "an unknown tensor"),
        ("    )),\n", "    )),  # end\n", "size", "a comment behind a tensor's end"),
        ("WEIGHTS = {", "X = 1\nWEIGHTS = {", "order", "another assignment"),
        ("", "\n", "order", "a blank line after the end"),
        ("", "# end\n", "order", "a comment after the end"),
    ):
        yield kind, what, changed(f32, old, new)
    scale = re.findall(rb"\(([1-9]\.[0-9]{8}e-[0-9]{2})", i8["files"]["weights.py"])[0].decode()
    for new, kind, what in (
        ("1.17549400e-38", "value", "a scale below the least"),
        ("2.70000000e+36", "value", "a scale above the most"),
        ("0.00000000e+00", "value", "a scale of zero and other values"),
        ("1.0000000e-03", "grammar", "a scale of eight digits"),
        ("1.00000000e-00", "grammar", "a negative exponent of zero"),
        ("-" + scale, "grammar", "a negative scale"),
    ):
        yield kind, what, changed(i8, scale, new)
    one = re.findall(rb'\([1-9].{13}, "(.{8})"\)', i8["files"]["weights.py"])[0].decode()
    yield "value", "-128", changed(i8, one, "gAAAAAA=")
    cells = re.findall(rb'\([1-9].{13}, "(.{20})"\)', q8["files"]["weights.py"])[0].decode()
    for what, cell in (
        ("-128 in a cell", "-128"),
        ("minus zero", "  -0"),
        ("a cell that is left-aligned", "1   "),
        ("zeros in front", "0001"),
    ):
        yield "grammar", what, changed(q8, cells, cell + cells[4:])
    split = parts()
    second = split["files"]["weights_001.py"]
    yield "order", "a part that is missing", {**split, "files": {"weights.py": split["files"]["weights.py"]}}
    yield "order", "a gap between parts", changed(split, "2, 3,", "3, 2,", "weights_001.py")
    yield "order", "a tensor twice in a file", changed(f32, "}\n", second.decode().partition("{\n")[2])
    yield "cut", "fewer bytes than values", {**f32, "shapes": {**SHAPES, "embedding.weight": (10**6, 10**3)}}


def mutants() -> dict[str, Any]:
    """Texts, and changes of them with the index of their values; null where they are refused."""
    texts: list[Given] = [config_of(CONFIG), config_of(QWEN3)]
    texts += [vocabulary_of(words) for words in (WORDS, BPE, FOREIGN_SMALL)]
    texts += [weights_of(dtype) for dtype in MATRIX_TYPES]
    values: list[Any] = []
    found = []
    with small_steps():
        for number in range(MUTANTS):
            place = number % len(texts)
            [(name, text)] = texts[place]["files"].items()
            other = mutant(random.Random(f"conformance {number}"), text)
            result = outcome({**texts[place], "files": {name: other}})
            if "accept" in result and result["accept"] not in values:
                values.append(result["accept"])
            found.append([place, *_splice(text, other), values.index(result["accept"]) if "accept" in result else None])
    return {"texts": [_written(text) for text in texts], "values": values, "mutants": found}


def _splice(old: bytes, new: bytes) -> tuple[int, int, str]:
    """(begin, end, text): what replaces old[begin:end], its bytes as characters up to U+00FF."""
    most = min(len(old), len(new))
    begin = next((at for at in range(most) if old[at] != new[at]), most)
    tail = next((at for at in range(most - begin) if old[-1 - at] != new[-1 - at]), most - begin)
    return begin, len(old) - tail, new[begin : len(new) - tail].decode("latin-1")


def _written(given: Given) -> dict[str, Any]:
    """Files that are UTF-8 as text, others as base64."""
    files: dict[str, Any] = {}
    for name, content in given["files"].items():
        try:
            files[name] = content.decode()
        except UnicodeDecodeError:
            files[name] = {"base64": base64.b64encode(content).decode()}
    return {**given, "files": files}


def reading() -> list[dict[str, Any]]:
    """Texts with the outcome, which is the one that is meant."""
    vectors = []
    for name, given in accepted():
        result = outcome(given)
        assert "accept" in result, (name, result)
        vectors.append({"name": name, **_written(given), **result})
    for kind, name, given in refused():
        result = outcome(given)
        assert result == {"refuse": kind}, (name, kind, result)
        vectors.append({"name": name, **_written(given), **result})
    return vectors


# What a model does with a text.

TEXTS = (
    "", " ", "القط يأكل السمك", "الكتابُ  ثمَّ \u0640\u0640 1234567 و١٢٣٤٥؟!", "ﷺ ﻻ ﬁ ①", "e\u0301\u0323 Å", "😀👍🏽 𝔄𝔅",
    "汉字 ไทย हिन्दी", "x" * 40, "<START> <UNK>", "a\n\n \t b\r\n  c ", "a\x85b\u2028c\u3000d\ufeff", "\ufeffab a'ſl",
    "don't I'LL it's x'ſ", "12121 1211\r\n\r\n\tab\n ab  'll 'LL'ſ''s a\u0301b \u0301", "!!\n\n!! \n.' ١١٢a",
    "\tab1.a  \n\n  a 's'S 'l abab'bs  ", "  12345 1 \r\n a",
)  # fmt: skip

PAIRED = [ALPHABET[byte] for byte in b"abslES12' .!\n\r\t\xcc\x81\xd9\xa1\xc5\xbf"]
"""Every two of these are a token, so that ids show where a text was split; the last six are U+0301, U+0661, U+017F."""


def paired(**changes: Any) -> Vocabulary:
    """A vocabulary of another project with all bytes and these pairs."""
    merges = tuple((readable(one), readable(two)) for one in PAIRED for two in PAIRED)
    singles = tuple(map(readable, ALPHABET.values()))
    pairs = tuple(readable(one + two) for one in PAIRED for two in PAIRED)
    words = (*singles, *pairs, "<s>")
    return FOREIGN._replace(
        words=words, merges=merges, specials=Specials(-1, -1, len(words) - 1, len(words) - 1), **changes
    )


def tokenizing() -> dict[str, Any]:
    """Vocabularies, and texts with their ids in each and the text of these ids."""
    foreign = [paired(split=split, form="none") for split in SPLITS]
    foreign += [paired(split="llama3", form="NFC", ignore_merges=True), paired(form="NFKC", split="al-qalam")]
    found = [vocabulary(), read_vocabulary(GOLDEN / "tiny_package" / "vocab.py", 300), BPE, *foreign]
    tokenizers = [Tokenizer(words) for words in found]
    return {
        "vocabularies": [_written(vocabulary_of(words)) for words in found],
        "texts": [
            {"text": text, "ids": [one.encode(text) for one in tokenizers],
             "decoded": [one.decode(one.encode(text)) for one in tokenizers]}
            for text in TEXTS
        ],
    }  # fmt: skip


def generating() -> list[dict[str, Any]]:
    """Small models with the logits after some ids, and what they continue greedily, also beyond their context."""
    untied = ModelConfig(
        vocab_size=12, dim=9, num_heads=3, num_layers=1, max_seq_len=8, tied=False, activation="gelu_tanh"
    )
    found = []
    for config in (CONFIG, untied, LLAMA, QWEN3):
        weights = random_tensors(config.tensor_shapes(), seed=1)
        model = NumpyTransformer(config, weights)
        ids = [2, 5, 9, 4]
        found.append({
            "files": {"config.py": _config_text(config), "weights.py": shard_texts(weights, "f32")[0].decode()},
            "ids": ids, "logits": packed(model([ids])[0][0, -1]),
            "greedy": model.generate([ids], 20, 0)[0, len(ids) :].tolist(),
        })  # fmt: skip
    return found


FILES: dict[str, Callable[[], Any]] = {
    "reading.json": reading, "mutants.json": mutants, "tokenizing.json": tokenizing, "generating.json": generating,
}  # fmt: skip


def main() -> None:
    """Write the files."""
    for name, vectors in FILES.items():
        (FOLDER / name).write_text(written(vectors()), encoding="utf-8")


def written(vectors: Any) -> str:
    """Vectors as JSON, one a line."""
    parts = vectors if isinstance(vectors, dict) else {"vectors": vectors}
    lists = [f'"{name}": [\n' + ",\n".join(map(_line, part)) + "\n]" for name, part in parts.items()]
    return "{" + ",\n".join(lists) + "}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


if __name__ == "__main__":
    main()
