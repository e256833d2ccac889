"""Cases of model tests, read from files of JSON Lines: one class for each kind. docs/testing.md defines the kinds."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError, model_validator

from qalam_core.arabic import Rules, normalise_array
from qalam_core.errors import RecipeError, did_you_mean
from qalam_core.files import digest, disk_problem, json_object, read_bytes, sha256_bytes
from qalam_core.recipe import SHIPPED, Frozen, ModelTests, explain

FILE_LIMIT = 16 << 20  # bytes
MAX_CASES = 20_000  # of a file: outcomes are kept by case
_FOLDER = Path(__file__).parent / "suites"

Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Prompt = Annotated[str, Field(max_length=10_000)]
Label = Annotated[str, Field(max_length=80)]


class Case(Frozen):
    """What all kinds have. Subclasses name their fields of text in `texts`; `check` sees them normalised."""

    texts: ClassVar[tuple[str, ...]]

    id: Label = ""  # the beginning of the digest when empty
    group: Label = ""  # what the case is about; reports count by group
    mark: Literal["", "must", "known failure"] = ""

    @property
    def digest(self) -> str:
        """48 bits of what is tested: the same in another file, under another id and with another mark."""
        return digest({k: v for k, v in self.canonical().items() if k not in ("id", "group", "mark")})[:12]

    @property
    def name(self) -> str:
        """Its id, or the digest."""
        return self.id or self.digest

    def replaced(self, function: Callable[[str], str]) -> Self:
        """The case with `function` applied to its texts."""
        values = {name: getattr(self, name) for name in self.texts}
        return self.model_copy(update={
            name: function(value) if isinstance(value, str) else tuple(map(function, value))
            for name, value in values.items()
        })  # fmt: skip

    def all_texts(self) -> list[str]:
        """Every text of it."""
        values = (getattr(self, name) for name in self.texts)
        return [text for value in values for text in ((value,) if isinstance(value, str) else value)]

    def check(self) -> None:
        """Raise ValueError for a case that could not tell models apart."""


class Pair(Case):
    """Two texts, of which the right one must be likelier."""

    texts = ("right", "wrong")
    kind: Literal["pair"] = "pair"
    right: Text
    wrong: Text

    def check(self) -> None:
        """Both differ, and neither is empty."""
        _not_empty(self.right, self.wrong)
        if self.right == self.wrong:
            raise ValueError("right and wrong are the same text once normalised; let them differ in letters")


class Cloze(Case):
    """A prompt, after which one of the answers must be among the k most probable next words."""

    texts = ("prompt", "answers")
    kind: Literal["cloze"] = "cloze"
    prompt: Prompt
    answers: tuple[Text, ...] = Field(min_length=1, max_length=20)
    k: int = Field(1, ge=1, le=100)

    def check(self) -> None:
        """Answers are single words."""
        _not_empty(*self.answers)
        for answer in self.answers:
            if not all(is_in_word(char) for char in answer):
                raise ValueError(f'the answer "{answer}" is not one word of letters and digits')


class Never(Case):
    """Strings and patterns that no sample after the prompts may contain."""

    texts = ("prompts", "strings")
    kind: Literal["never"] = "never"
    prompts: tuple[Prompt, ...] = Field(("",), min_length=1, max_length=100)
    strings: tuple[Text, ...] = Field((), max_length=1000)
    patterns: tuple[Text, ...] = Field((), max_length=100)  # of RE2, which takes linear time
    samples: int = Field(16, ge=1, le=256)  # for each prompt
    tokens: int = Field(64, ge=1, le=512)  # at most, of each sample

    def check(self) -> None:
        """There is something to look for, and no prompt holds it."""
        _not_empty(*self.strings)
        if not self.strings and not self.patterns:
            raise ValueError('names nothing to look for; give "strings" or "patterns"')
        for pattern in self.patterns:
            try:
                if _match("", pattern) is not None:
                    raise ValueError(f'the pattern "{pattern}" matches the empty text')
            except pa.ArrowInvalid as error:
                raise ValueError(f'the pattern "{pattern}" is not one of RE2 ({str(error).splitlines()[0]})') from None
        for prompt in self.prompts:
            if found := self.found_in(prompt):
                raise ValueError(f'the prompt "{prompt}" itself contains "{found}"')

    def found_in(self, text: str) -> str:
        """The first string or match of a pattern in a normalised text, "" for none."""
        found = next((string for string in self.strings if string in text), "")
        return found or next((part for pattern in self.patterns if (part := _match(text, pattern)) is not None), "")


class Knows(Case):
    """A text that must follow the prompt: in at most `max_bits` per byte, or, without that, by greedy decoding."""

    texts = ("prompt", "text")
    kind: Literal["knows"] = "knows"
    prompt: Prompt
    text: Text
    max_bits: float | None = Field(None, gt=0, allow_inf_nan=False)

    def check(self) -> None:
        """The text is not empty."""
        _not_empty(self.text)

    @property
    def whole(self) -> str:
        """Prompt and text."""
        return f"{self.prompt} {self.text}" if self.prompt else self.text


class Invariance(Case):
    """Two spellings, whose bits per character may differ by at most `max_difference`."""

    texts = ("spellings",)
    kind: Literal["invariance"] = "invariance"
    spellings: tuple[Text, Text]
    max_difference: float = Field(ge=0, allow_inf_nan=False)

    def check(self) -> None:
        """Neither is empty; spellings that normalisation makes the same are what a case may hope for."""
        _not_empty(*self.spellings)

    @model_validator(mode="after")
    def _spellings_differ(self) -> Self:
        if self.spellings[0] == self.spellings[1]:
            raise ValueError("both spellings are the same text")
        return self


KINDS: dict[str, type[Case]] = {
    "pair": Pair, "cloze": Cloze, "never": Never, "knows": Knows, "invariance": Invariance,
}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """The cases of a file, with normalised texts."""

    name: str
    digest: str  # sha256 of the file
    cases: tuple[Case, ...]

    @classmethod
    def load(cls, tests: ModelTests, rules: Rules) -> Suite:
        """Read a file of cases. Raises RecipeError with the file, the line and a cure."""
        path, where = _path(tests.path)
        try:
            content = read_bytes(path, FILE_LIMIT)
            lines = content.decode().removeprefix("\ufeff").split("\n")
        except FileNotFoundError:
            raise RecipeError(f"tests: there is no file {where}; create it, or correct the path") from None
        except (IsADirectoryError, UnicodeDecodeError):
            raise RecipeError(f"tests: {where} is not a text file in UTF-8, with one JSON object a line") from None
        except ValueError as error:
            raise RecipeError(f"tests: {where} is {error}; divide it") from None
        except OSError as error:
            raise RecipeError(f"tests: {disk_problem(error) or f'{where} cannot be read: {error.strerror}'}") from None
        numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not numbered:
            raise RecipeError(f"tests: {where} has no cases; add some, or leave the file out")
        if len(numbered) > MAX_CASES:
            raise RecipeError(f"tests: {where} has {len(numbered)} cases, and {MAX_CASES} are the most; divide it")
        read = [(number, _parsed(line, f"{where}:{number}")) for number, line in numbered]
        return cls(tests.name, sha256_bytes(content), _normalised(read, rules, where))


def suites(tests: Sequence[ModelTests], rules: Rules) -> tuple[Suite, ...]:
    """The suites that a recipe names. Raises RecipeError."""
    return tuple(Suite.load(each, rules) for each in tests)


def is_in_word(char: str) -> bool:
    """Whether a word may hold a character: letters, marks and digits."""
    return unicodedata.category(char)[0] in "LMN"


def _path(path: str) -> tuple[Path, str]:
    """The file of a path of the recipe, and its name in messages."""
    if not path.startswith(SHIPPED):
        return Path(path), path
    name, known = path.removeprefix(SHIPPED), sorted(file.stem for file in _FOLDER.glob("*.jsonl"))
    if name not in known:
        hint = did_you_mean(name, known, f"there are {', '.join(known)}")
        raise RecipeError(f'tests: no suite "{name}" comes with Al-Qalam; {hint}')
    return _FOLDER / f"{name}.jsonl", path


def _parsed(line: str, where: str) -> Case:
    try:
        record: dict[str, Any] = json_object(line)
    except ValueError as error:
        raise RecipeError(f"tests: {where}: {error}; a case is one JSON object on a line of its own") from None
    kind = record.get("kind")
    found = KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        given = f'"{kind}"' if isinstance(kind, str) else "missing or no string"
        hint = did_you_mean(kind if isinstance(kind, str) else "", list(KINDS), f"the kinds are {', '.join(KINDS)}")
        raise RecipeError(f"tests: {where}: kind is {given}; {hint}")
    try:
        return found.model_validate_json(line, strict=True)
    except ValidationError as error:
        raise RecipeError(f"tests: {where}: {explain(error, found)}") from None


def _normalised(read: Sequence[tuple[int, Case]], rules: Rules, where: str) -> tuple[Case, ...]:
    """The cases with normalised texts. Raises RecipeError for one that cannot be judged, or that is there twice."""
    texts = [text for _, case in read for text in case.all_texts()]
    normal = dict(zip(texts, normalise_array(pa.array(texts, pa.large_string()), rules).to_pylist(), strict=True))
    found: list[Case] = []
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for number, case in read:
        case = case.replaced(normal.__getitem__)
        try:
            case.check()
        except ValueError as error:
            raise RecipeError(f"tests: {where}:{number}: {error}") from None
        for seen, key, what in ((digests, case.digest, "the same case"), (names, case.name, f'the id "{case.name}"')):
            if (first := seen.setdefault(key, number)) != number:
                raise RecipeError(f"tests: {where}:{number}: {what} is on line {first} as well; remove or change one")
        found.append(case)
    return tuple(found)


def _not_empty(*texts: str) -> None:
    if not all(texts):
        raise ValueError("a text is empty once normalised; give it letters")


def _match(text: str, pattern: str) -> str | None:
    """The first match of a pattern of RE2, None for none."""
    array = pa.array([text], pa.large_string())
    if not pc.match_substring_regex(array, pattern=pattern)[0].as_py():
        return None
    found: str = pc.extract_regex(array, pattern=f"(?P<found>{pattern})")[0]["found"].as_py()
    return found
