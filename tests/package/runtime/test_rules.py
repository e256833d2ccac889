"""Normalisation rules: whatever is accepted takes linear time, in the text and whatever the text is."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.errors import PackageError
from qalam_core.package import read
from qalam_core.package.runtime.data_reader import rules_error
from qalam_core.package.runtime.tokenizer import normalise
from qalam_core.package.vocabulary import tokenizer_json, vocabulary_of
from tests.small_package import edit, export, vocabulary

SLOW = [
    "a*a*b", "a*a*a*a*a*a*a*a*b", "a*b", "a+b", "[ab]+c", "xa*a*b", "x[a-z]*b", "xa+[ab]+c", "a?a?b", "xa?a*b",
    "a?" * 25 + "a" * 25, "[^a]*b", "[\u0600-\u06ff]*\u0640[\u0600-\u06ff]*x", " *\n", "[ \n]*x",
]  # fmt: skip
AMBIGUOUS = [
    "a*", "a?", "a*b*", "", "[a&&b]", "[a--b]", "[a||b]", "[a~~b]", "[z-a]", "a|b", "(a)", "a{2}", "\\d", ".", "^a",
    "a$", "a**", "a+?", "[[a]", "[]",
]  # fmt: skip
FAST = [
    "a",
    "ab",
    "a+",
    "ab*",
    "a?b",
    " ?\n[ \n]*",
    "xa*b",
    "x[ab]*c",
    "xa*xb*x",
    "[ab]?c+d*",
    "x[a-c]+[d-f]+",
    "  +",
    "[a-b-c]d",
]


@pytest.mark.parametrize("pattern", [*SLOW, *AMBIGUOUS])
def test_patterns_that_are_slow_or_ambiguous_are_refused(pattern: str) -> None:
    assert rules_error([(pattern, "")]).startswith("pattern: ")


@pytest.mark.parametrize("pattern", FAST)
def test_linear_patterns_are_accepted(pattern: str) -> None:
    assert rules_error([(pattern, "")]) == ""
    assert "\n" not in rules_error([(pattern * 3, "")])


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_projects_own_rules_are_accepted(name: str) -> None:
    assert rules_error(NORMALISATIONS[name]) == ""


def test_rules_that_blow_up_a_text_or_a_package_are_refused() -> None:
    assert "1000 times" in rules_error([("a", "aa")] * 10)
    assert "1000 times" in rules_error([("a", "a" * 1001)])
    assert rules_error([("a", "a" * 1000)]) == ""
    assert rules_error([("ab", "ba")] * 100) == ""
    assert "at most 100 pairs" in rules_error([("a", "")] * 101)
    assert "10000 characters" in rules_error([("a" * 10_001, "")])
    start = time.process_time()
    for wide in (
        "[" + "".join(map(chr, range(0x4E00, 0x4E00 + 4900))) + "]",
        "x" * 9000,
        "[" * 9000,
        "[a" * 4500,
        "a?" * 4500,
    ):
        rules_error([(f"y{wide}*{wide}z", "")])
        rules_error([(wide, "")])
    assert time.process_time() - start < 1


def steps(pattern: str, text: str, limit: int) -> int:
    """The steps of a backtracking engine that replaces every match, as `re` does; at most a little over `limit`."""
    items = [
        (re.compile(atom), quantifier) for atom, quantifier in re.findall(r"(\[[^]]*\]|.)([?*+]?)", pattern, re.DOTALL)
    ]
    fits = [[atom.fullmatch(char) is not None for char in text] for atom, _ in items]
    taken = 0

    def match(item: int, at: int) -> int:
        nonlocal taken
        taken += 1
        if item == len(items) or taken > limit:
            return at
        quantifier, end = items[item][1], at
        most = 1 if quantifier in ("", "?") else len(text)
        while end < len(text) and end - at < most and fits[item][end]:
            end += 1
            taken += 1
        for stop in range(end, at + (quantifier in ("", "+")) - 1, -1):
            if (found := match(item + 1, stop)) >= 0:
                return found
        return -1

    at = 0
    while at <= len(text) and taken <= limit:
        found = match(0, at)
        at = found if found > at else at + 1
    return taken


def test_accepted_patterns_take_linear_time_on_any_text() -> None:
    chance = random.Random(5)
    accepted = refused_and_slow = 0
    for _ in range(1000):
        atoms = chance.choices(["a", "b", "[ab]", "[b-d]", "c", "x"], k=chance.randrange(1, 6))
        pattern = "".join(atom + chance.choice(["", "", "", "?", "*", "+"]) for atom in atoms)
        fine = not rules_error([(pattern, "")])
        if not fine and chance.random() < 0.8:
            continue
        runs = [chance.choice("abcx") * chance.choice((1, 2, 40)) for _ in range(40)]
        texts = ["a" * 150, ("x" + "a" * 30 + "b" * 20) * 3, "".join(runs)[:150]]
        limit = 4 * (len(atoms) + 1) * 151
        worst = max(steps(pattern, text, limit) for text in texts)
        accepted += fine
        refused_and_slow += not fine and worst > limit
        assert not fine or worst <= limit, (pattern, worst)
    assert accepted > 200
    assert refused_and_slow > 10  # so this measure tells the two apart
    assert all(steps(pattern, "a" * 150, 5000) > 5000 for pattern in ("a*a*b", "a*b", "a+b"))


def test_a_slow_pattern_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    rules = (("a*a*b", ""),)
    with pytest.raises(PackageError, match=r"^vocabulary: NORMALISE pattern: "):
        export(tmp_path / "written", vocabulary=vocabulary(rules=rules))
    assert not (tmp_path / "written").exists()
    with pytest.raises(PackageError, match=r"^tokenizer\.json:0: "):
        vocabulary_of(tokenizer_json(vocabulary(rules=rules)))
    package = export(tmp_path / "model", vocabulary=vocabulary(rules=(("ab", ""),)))
    edit(package / "vocab.py", '"ab"', '"a*b"')
    with pytest.raises(PackageError, match=r"^vocab\.py:8: NORMALISE pattern: "):
        read(package)


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_projects_own_rules_take_linear_time(name: str) -> None:
    texts = ["\u0640\u064e", "\u0627\u0640", "\u0640", "\u0627", " ", " \n", "\u0627\u064e\u0640\u064e"]
    for text in texts:
        start = time.process_time()
        normalise(text * (20_000 // len(text)), NORMALISATIONS[name])
        assert time.process_time() - start < 1, ascii(text)
