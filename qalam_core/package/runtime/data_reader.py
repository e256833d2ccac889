"""Reads config.py, vocab.py and knowledge_map.py without executing them; raises `FormatError`, one line.
Also the quoting of strings that the writer uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .architecture import SPECIALS, ModelConfig
from .tokenizer import Vocabulary
from .weights_reader import HIDDEN, FormatError

CONFIG_MAGIC, VOCAB_MAGIC, KNOWLEDGE_MAGIC = "# qalam config 1", "# qalam vocab 1", "# qalam knowledge 1"
INVERSE = "IDX2WORD = {index: word for word, index in WORD2IDX.items()}"
"""The only expression in a package's data files; the reader compares it and never executes it."""

SIZE_LIMIT = 64 << 20
FORMAT = 1

_HIDDEN = re.compile(f"[{HIDDEN}]")
_UNSAFE = re.compile(f'["\\\\{HIDDEN}]')
_HIDDEN_IN_FILE = re.compile("[" + HIDDEN.replace("\x00-\x1f", "\x00-\t\x0b-\x1f", 1) + "]")
_NAMED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
_STRING = r'"((?:[^"\\]|\\["\\nt]|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})*+)"'
_ESCAPE = re.compile(r"\\(?:([\"\\nt])|u(.{4})|U(.{8}))")
_TAIL = r" *(?:#.*)?"
_COMMENT = re.compile(_TAIL)
_ASSIGNMENT = re.compile(rf"([A-Z0-9_]+) = (?:(0|[1-9][0-9]{{0,17}})|(True|False)|{_STRING}){_TAIL}")
_WORD = re.compile(rf" *{_STRING}: (0|[1-9][0-9]{{0,8}}),{_TAIL}")
_PAIR = re.compile(rf" *\({_STRING}, {_STRING}\),{_TAIL}")
_DECIMAL = r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-][0-9]{1,3})?"
_NUMBERS = rf"{_DECIMAL}(?:, {_DECIMAL})*+"
_NEAREST = rf'(?:\("(?:[^"\\]|\\.)*+", {_DECIMAL}\),(?: (?=\())?)*+'
_FACT = re.compile(rf" *{_STRING}: \((?:{_NUMBERS}|{_NEAREST})\),{_TAIL}")
# A normalisation pattern is a sequence of literals and classes, each with an optional quantifier. Without groups,
# alternatives and escapes, matching takes polynomial time and all regex engines agree on its meaning.
_PATTERN = re.compile(r"(?:(?:[^\\\[\](){}.|^$?*+]|\[[^\\\[\]^][^\\\[\]]*\])[?*+]?)+")


def quote(text: str) -> str:
    """A Python string literal in which every character that an editor would not show is escaped."""
    if not _UNSAFE.search(text):
        return f'"{text}"'
    text = re.sub(r'["\\\n\t]', lambda found: _NAMED[found[0]], text)
    return f'"{_HIDDEN.sub(_code, text)}"'


def _code(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xD800 <= code <= 0xDFFF:
        raise ValueError(f"surrogate U+{code:04X} is not text")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Source:
    """A small file as checked lines; iterating skips blank lines and comments."""

    def __init__(self, path: Path, magic: str) -> None:
        self.name, self.number = path.name, 0
        try:
            with path.open("rb") as file:
                raw = file.read(SIZE_LIMIT + 1)
        except OSError as error:
            self.refuse(f"cannot be read ({error.strerror}); export again")
        if len(raw) > SIZE_LIMIT:
            self.refuse(f"larger than {SIZE_LIMIT} bytes")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            self.refuse("not UTF-8; save the file as UTF-8", raw.count(b"\n", 0, error.start) + 1)
        if found := _HIDDEN_IN_FILE.search(text):
            reason = f"hidden character U+{ord(found[0]):04X}; delete it or write it as an escape"
            if found[0] == "\r":
                reason = "Windows line end; check out with LF, as .gitattributes requires"
            self.refuse(reason, text.count("\n", 0, found.start()) + 1)
        self.lines = text.split("\n")
        if self.lines.pop():
            self.refuse("the last line has no line end; the file was cut off", len(self.lines) + 1)
        if not self.lines or self.lines[0] != magic:
            self.refuse(f'the first line must be "{magic}"', 1)
        if len(self.lines) > 1 and re.search(r"#.*coding[:=]", self.lines[1]):
            self.refuse("a coding line changes how Python reads the file; delete it", 2)

    def refuse(self, reason: str, number: int | None = None) -> NoReturn:
        raise FormatError(f"{self.name}:{self.number if number is None else number}: {reason}")

    def __iter__(self) -> Iterator[str]:
        for line in self.lines[self.number :]:
            self.number += 1
            if not _COMMENT.fullmatch(line):
                yield line

    def section(self, opening: str, closing: str) -> Iterator[str]:
        """The lines between an exact opening line and an exact closing line."""
        self.expect(opening)
        for line in self:
            if line == closing:
                return
            yield line
        self.refuse(f'"{closing}" is missing; the file was cut off')

    def expect(self, wanted: str) -> None:
        if next(iter(self), None) != wanted:
            self.refuse(f'expected "{wanted}" here, with only comments before it')

    def finish(self) -> None:
        if next(iter(self), None) is not None:
            self.refuse("unexpected text after the end")

    def string(self, text: str) -> str:
        """Decode the escapes inside a literal."""
        return _ESCAPE.sub(self._unescape, text) if "\\" in text else text

    def _unescape(self, found: re.Match[str]) -> str:
        if found[1]:
            return {"n": "\n", "t": "\t"}.get(found[1], found[1])
        code = int(found[2] or found[3], 16)
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            self.refuse(f"\\u{code:04x} is not a character")
        return chr(code)


def read_config(path: Path) -> ModelConfig:
    """Read config.py, which also holds FORMAT and the number of PARAMETERS."""
    source = _Source(path, CONFIG_MAGIC)
    values: dict[str, int | bool | str] = {}
    lines: dict[str, int] = {}
    known = ("FORMAT", *(name.upper() for name in ModelConfig.names()), "PARAMETERS")
    for line in source:
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            source.refuse('not a setting; write NAME = 1, NAME = True or NAME = "text"')
        name = match[1]
        if name in values:
            source.refuse(f"{name} is set twice; delete one")
        if name not in known:
            source.refuse(f"{name} is not a setting; known are {', '.join(known)}")
        lines[name] = source.number
        if match[2]:
            values[name] = int(match[2])
        else:
            values[name] = match[3] == "True" if match[3] else source.string(match[4])
    if missing := [name for name in known if name not in values]:
        source.refuse(f"{missing[0]} is missing")
    version, parameters = values.pop("FORMAT"), values.pop("PARAMETERS")
    if type(version) is not int or version != FORMAT:  # True equals 1
        source.refuse(f"FORMAT must be {FORMAT}", lines["FORMAT"])
    try:
        config = ModelConfig(**{name.lower(): value for name, value in values.items()})  # type: ignore[arg-type]
    except ValueError as error:  # its first word is the setting's name
        source.refuse(str(error), lines.get(str(error).partition(" ")[0]))
    if type(parameters) is not int or parameters != config.parameters:
        source.refuse(
            f"PARAMETERS does not follow from the other settings, which give {config.parameters}", lines["PARAMETERS"]
        )
    return config


def read_vocabulary(path: Path, size: int) -> Vocabulary:
    """Read vocab.py, whose WORD2IDX must hold exactly `size` words in id order."""
    source = _Source(path, VOCAB_MAGIC)
    match = _ASSIGNMENT.fullmatch(next(iter(source), ""))
    if match is None or match[1] != "ALGORITHM" or match[4] not in ("bpe", "word"):
        source.refuse('expected ALGORITHM = "bpe" or "word" here')
    algorithm: str = match[4]
    rules = tuple(_pairs(source, source.section("NORMALISE = (", ")")))
    for pattern, _ in rules:
        if not is_usable(pattern):
            source.refuse("a NORMALISE pattern may contain only literals, [classes] and the quantifiers ?, *, +")
    words = dict[str, int]()
    for line in source.section("WORD2IDX = {", "}"):
        found = _WORD.fullmatch(line)
        if found is None:
            source.refuse('not a word; write "word": id, with a comma at the end')
        word = source.string(found[1])
        if int(found[2]) != len(words):
            source.refuse(f"id {found[2]}, expected {len(words)}; ids count up by one per line")
        if word in words:
            source.refuse(f"this word already has id {words[word]}")
        words[word] = len(words)
    if len(words) != size or tuple(words)[:4] != SPECIALS:
        source.refuse(f"{len(words)} words, but VOCAB_SIZE is {size}; the first four must be {', '.join(SPECIALS)}")
    merges = tuple(_pairs(source, source.section("MERGES = (", ")")))
    if len(set(merges)) != len(merges) or (merges and algorithm == "word"):
        source.refuse("MERGES must not repeat a pair, and must be empty in a word vocabulary")
    source.expect(INVERSE)
    source.finish()
    return Vocabulary(algorithm, tuple(words), merges, rules)


def _pairs(source: _Source, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = _PAIR.fullmatch(line)
        if match is None:
            source.refuse('not a pair; write ("left", "right"), with a comma at the end')
        yield source.string(match[1]), source.string(match[2])


def is_usable(pattern: str) -> bool:
    """Whether a normalisation pattern is valid and consists of literals, classes and quantifiers only."""
    try:
        return _PATTERN.fullmatch(pattern) is not None and re.compile(pattern) is not None
    except re.error:
        return False


def check_knowledge(path: Path) -> None:
    """Refuse a knowledge_map.py that is not plain facts, one per line."""
    source = _Source(path, KNOWLEDGE_MAGIC)
    for section in ("STATISTICS", "NEIGHBOURS"):
        for line in source.section(f"{section} = {{", "}"):
            match = _FACT.fullmatch(line)
            if match is None:
                source.refuse('not a fact; write "name": (numbers or (word, number) pairs), with a comma')
    source.finish()
