"""Reads config.py, vocab.py and knowledge_map.py without executing them; raises `FormatError`, one line.
Also the quoting of strings and the limits of normalisation rules, for writers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .architecture import BLOCKS, SPECIALS, ModelConfig
from .rows import NUMBER, number
from .tokenizer import FORMS, OURS, ROLES, SPLITS, Specials, Vocabulary
from .weights_reader import HIDDEN, WINDOWS, FormatError

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
_BLOCK = re.compile(rf'BLOCK = "([a-z0-9]*)"{_TAIL}')
_FLOAT = r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,60}(?:e[+-]?[0-9]{1,3})?|e[+-]?[0-9]{1,3})"
_ASSIGNMENT = re.compile(rf"([A-Z0-9_]+) = (?:(0|[1-9][0-9]{{0,17}})|(True|False)|{_STRING}|({_FLOAT})){_TAIL}")
_WORD = re.compile(rf" *{_STRING}: (0|[1-9][0-9]{{0,8}}),{_TAIL}")
_PAIR = re.compile(rf" *\({_STRING}, {_STRING}\),{_TAIL}")
_SPECIAL = re.compile(rf' *{_STRING}: "([A-Z ]*)",{_TAIL}')
_STATISTIC = re.compile(rf" *{_STRING}: \(({NUMBER}), ({NUMBER}), ({NUMBER}), ({NUMBER})\),{_TAIL}")
_NEAR = rf"\({_STRING}, ({NUMBER})\),"
_ONE_NEAR = re.compile(_NEAR)
_NEIGHBOUR = re.compile(rf" *{_STRING}: \(((?:{_NEAR}(?: {_NEAR})*+)?)\),{_TAIL}")

# Without groups, alternatives and escapes, all regex engines agree on a pattern's meaning; "&&" and the like in a class
# are an operation in some.
_ATOM = r"[^\\\[\](){}.|^$?*+]|\[(?![^\]]*(?:&&|--|\|\||~~))[^\\\[\]^][^\\\[\]]*\]"
_ITEM = re.compile(rf"({_ATOM})([?*+]?)")
_PATTERN = re.compile(rf"(?:(?:{_ATOM})[?*+]?)++")
_RANGE = re.compile("(.)-(.)|(.)", re.DOTALL)
_MOST_RULES, _MOST_TEXT, _MOST_GROWTH = 100, 10_000, 1000


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
                reason = WINDOWS
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

    def value(self, text: str) -> float:
        """A number as Python reads it; it must be finite."""
        if not math.isfinite(found := number(text)):
            self.refuse("a number that is not finite")
        return found

    def _unescape(self, found: re.Match[str]) -> str:
        if found[1]:
            return {"n": "\n", "t": "\t"}.get(found[1], found[1])
        code = int(found[2] or found[3], 16)
        if 0xD800 <= code <= 0xDFFF or code > 0x10FFFF:
            self.refuse(f"\\u{code:04x} is not a character")
        return chr(code)


def read_config(path: Path) -> ModelConfig:
    """Read config.py, which also holds FORMAT and the number of PARAMETERS; without BLOCK, it is the original's."""
    source = _Source(path, CONFIG_MAGIC)
    values: dict[str, int | float | bool | str] = {}
    lines: dict[str, int] = {}
    blocks = [match[1] for line in source.lines if (match := _BLOCK.fullmatch(line))]
    block = blocks[0] if blocks and blocks[0] in BLOCKS else "original"
    settings = (*(name.upper() for name in ModelConfig.names(block)), "PARAMETERS")
    known = ("FORMAT", *(["BLOCK"] if blocks else []), *settings)
    for line in source:
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            source.refuse('not a setting; write NAME = 1, NAME = 1.5, NAME = True or NAME = "text"')
        name = match[1]
        if name in values:
            source.refuse(f"{name} is set twice; delete one")
        if name not in known:
            source.refuse(f"{name} is not a setting; known are {', '.join(known)}")
        lines[name] = source.number
        if match[2]:
            values[name] = int(match[2])
        elif match[5]:
            values[name] = source.value(match[5])
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
    algorithm = _setting(source, "ALGORITHM", ("bpe", "word"))
    foreign = any(line.startswith("SPLIT = ") for line in source.lines) and algorithm == "bpe"
    split, form, ignore_merges = SPLITS[0], FORMS[0], False
    if foreign:
        split, form = _setting(source, "SPLIT", SPLITS), _setting(source, "UNICODE", FORMS)
        ignore_merges = _setting(source, "IGNORE_MERGES", (True, False))
    rules = tuple(_pairs(source, source.section("NORMALISE = (", ")")))
    if reason := rules_error(rules) or ("needs UNICODE NFKC" if rules and form != "NFKC" else ""):
        source.refuse(f"NORMALISE {reason}")
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
    if len(words) != size or not (foreign or tuple(words)[:4] == SPECIALS):
        first = "" if foreign else f"; the first four must be {', '.join(SPECIALS)}"
        source.refuse(f"{len(words)} words, but VOCAB_SIZE is {size}{first}")
    specials = _specials(source, words) if foreign else OURS
    merges = tuple(_pairs(source, source.section("MERGES = (", ")")))
    if len(set(merges)) != len(merges) or (merges and algorithm == "word"):
        source.refuse("MERGES must not repeat a pair, and must be empty in a word vocabulary")
    source.expect(INVERSE)
    source.finish()
    return Vocabulary(algorithm, tuple(words), merges, rules, split, form, ignore_merges, specials)


def _setting(source: _Source, name: str, known: Sequence[Any]) -> Any:
    """The value of the next line, `name = VALUE`, which must be one of `known`."""
    match = _ASSIGNMENT.fullmatch(next(iter(source), ""))
    value: object = match and (match[4] if match[3] is None else match[3] == "True")
    if match is None or match[1] != name or value not in known:
        texts = [quote(value) if isinstance(value, str) else str(value) for value in known]
        source.refuse(f"expected {name} = {' or '.join(texts)} here")
    return value


def _specials(source: _Source, words: dict[str, int]) -> Specials:
    """The special tokens of a foreign tokenizer, each with its roles."""
    roles, ids = dict[str, int](), list[int]()
    for line in source.section("SPECIALS = {", "}"):
        match = _SPECIAL.fullmatch(line)
        if match is None:
            source.refuse('not a special token; write "name": "START END", with its roles, and a comma at the end')
        index = words.get(source.string(match[1]), -1)
        if index < 0 or index in ids:
            source.refuse("this special token is not in WORD2IDX" if index < 0 else "this special token is there twice")
        ids.append(index)
        for role in match[2].split():
            if role not in ROLES or role in roles:
                source.refuse(f"roles are {', '.join(ROLES)}, and each belongs to one token")
            roles[role] = index
    if not {"START", "END"} <= roles.keys():
        source.refuse("no special token has the role START, or END; where a text begins and ends is needed")
    pad, unk, start, end = (roles.get(role, -1) for role in ROLES)
    return Specials(pad, unk, start, end, tuple(sorted({*ids} - {pad, unk, start, end})))


def _pairs(source: _Source, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        match = _PAIR.fullmatch(line)
        if match is None:
            source.refuse('not a pair; write ("left", "right"), with a comma at the end')
        yield source.string(match[1]), source.string(match[2])


def rules_error(rules: Sequence[tuple[str, str]]) -> str:
    """Why these normalisation rules could take more than linear time, or mean different things to two regex engines;
    "" if neither.
    """
    if len(rules) > _MOST_RULES or sum(len(pattern) + len(by) for pattern, by in rules) > _MOST_TEXT:
        return f"may have at most {_MOST_RULES} pairs, and {_MOST_TEXT} characters in all"
    growth = 1.0
    for pattern, by in rules:
        if reason := _pattern_error(pattern):
            return f"pattern: {reason}"
        shortest = sum(found[2] in ("", "+") for found in _ITEM.finditer(pattern))
        growth *= max(1.0, len(by) / shortest)
    return "" if growth <= _MOST_GROWTH else f"may not make a text more than {_MOST_GROWTH} times as long"


def _pattern_error(pattern: str) -> str:
    """Why a pattern is not usable, or ""; see docs/package_format.md for why the others take linear time."""
    if not _PATTERN.fullmatch(pattern):
        return "only literals, [classes] and the quantifiers ?, *, + are allowed"
    try:
        if re.fullmatch(pattern, ""):  # engines disagree about where an empty match is replaced
            return "it must need at least one character"
    except re.error:
        return "a [class] is not valid"
    items = [found.groups() for found in _ITEM.finditer(pattern)]
    last = max(place for place, (_, quantifier) in enumerate(items) if quantifier in ("", "+"))
    if sum(quantifier == "?" for _, quantifier in items[:last]) > 1:
        return 'only one "?" may come before a character that it needs'
    for place, (atom, quantifier) in enumerate(items[:last]):
        if quantifier in ("*", "+"):
            before, once = items[place - 1] if place else ("", "?")
            if once or _overlap(before, atom):
                return "a repeat before a character that it needs must follow one that the repeat does not match"
    return ""


def _overlap(some: str, other: str) -> bool:
    """Whether two literals or classes have a character in common."""
    ranges = []
    for side, atom in enumerate((some, other)):
        for first, last, one in _RANGE.findall(atom[1:-1] if len(atom) > 1 else atom):
            ranges.append((one or first, one or last, side))
    ends = ["", ""]
    for first, last, side in sorted(ranges):
        if first <= ends[1 - side]:
            return True
        ends[side] = max(ends[side], last)
    return False


class Knowledge(NamedTuple):
    """The content of knowledge_map.py."""

    statistics: dict[str, tuple[float, ...]]  # tensor: mean, standard deviation, minimum, maximum
    neighbours: dict[str, tuple[tuple[str, float], ...]]  # word: similar words, with their cosine similarity


def read_knowledge(path: Path) -> Knowledge:
    """Read knowledge_map.py: plain facts, one per line."""
    source = _Source(path, KNOWLEDGE_MAGIC)
    found = Knowledge({}, {})

    def name(text: str, section: dict[str, Any]) -> str:
        decoded = source.string(text)
        if decoded in section:
            source.refuse("this name is twice in its section; Python would keep the last")
        return decoded

    for line in source.section("STATISTICS = {", "}"):
        match = _STATISTIC.fullmatch(line)
        if match is None:
            source.refuse('not a fact; write "tensor": (mean, std, min, max), with a comma at the end')
        found.statistics[name(match[1], found.statistics)] = tuple(map(source.value, match.groups()[1:]))
    for line in source.section("NEIGHBOURS = {", "}"):
        match = _NEIGHBOUR.fullmatch(line)
        if match is None:
            source.refuse('not a fact; write "word": (("other", 0.5), ("third", 0.25),), with a comma at the end')
        nearest = tuple((source.string(near[1]), source.value(near[2])) for near in _ONE_NEAR.finditer(match[2]))
        found.neighbours[name(match[1], found.neighbours)] = nearest
    source.finish()
    return found
