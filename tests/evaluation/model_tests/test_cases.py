"""Files of cases: what is read, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.errors import RecipeError
from qalam_core.evaluation.model_tests import cases
from qalam_core.evaluation.model_tests.cases import KINDS, Never, Pair, Suite
from qalam_core.recipe import ModelTests

STANDARD = NORMALISATIONS["standard"]
PAIR: dict[str, Any] = {"kind": "pair", "right": "قرأ الولد الكتاب", "wrong": "قرأت الولد الكتاب"}
EVERY_KIND: list[dict[str, Any]] = [
    PAIR,
    {"kind": "cloze", "prompt": "قال رسول", "answers": ["الله"], "k": 3},
    {"kind": "never", "prompts": ["قال", ""], "strings": ["كتاب"], "patterns": ["[0-9]{9}"], "samples": 2},
    {"kind": "knows", "prompt": "عاصمة مصر", "text": "القاهرة", "max_bits": 2.5},
    {"kind": "invariance", "spellings": ["إلى", "الى"], "max_difference": 0.2},
]


def load(folder: Path, *lines: dict[str, Any] | str, rules: Any = STANDARD) -> Suite:
    path = folder / "cases.jsonl"
    text = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return Suite.load(ModelTests.of(str(path), 1.0), rules)


def refused(folder: Path, *lines: dict[str, Any] | str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, *lines)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_kind_is_read_and_named_by_what_it_tests(tmp_path: Path) -> None:
    suite = load(tmp_path, *EVERY_KIND)
    assert [type(case) for case in suite.cases] == list(KINDS.values())
    assert suite.name == "cases"
    marked = load(tmp_path, {**PAIR, "id": "one", "group": "verbs", "mark": "must"}).cases[0]
    assert marked.name == "one"
    assert marked.digest == suite.cases[0].digest == suite.cases[0].name


def test_texts_are_normalised_as_documents_are(tmp_path: Path) -> None:
    vocalised = {**PAIR, "right": "قَرَأَ الوَلَدُ الكِتَابَ"}
    (case,) = load(tmp_path, vocalised).cases
    assert isinstance(case, Pair)
    assert case.right == PAIR["right"]
    assert case.digest == load(tmp_path, PAIR).cases[0].digest
    (kept,) = load(tmp_path, vocalised, rules=NORMALISATIONS["vocalised"]).cases
    assert kept.digest != case.digest


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not valid JSON; a case is one JSON object"),
        ("[1]", "must be a JSON object"),
        ('{"kind": "pair", "kind": "pair"}', "holds a key twice"),
        ('{"kind": "pair", "right": "\\ud800", "wrong": "x"}', "half of a surrogate pair"),
        ({}, "kind is missing"),
        ({"kind": ["pair"]}, "kind is missing or no string"),
        ({"kind": "pairs"}, 'kind is "pairs"; did you mean "pair"?'),
        ({**PAIR, "rigt": ""}, 'rigt: unknown key; did you mean "right"?'),
        ({"kind": "pair", "right": "ا"}, "wrong: missing"),
        ({**PAIR, "wrong": 3}, "wrong: "),
        ({**PAIR, "mark": "xfail"}, "mark: "),
        ({**PAIR, "right": "َ"}, "a text is empty once normalised"),
        ({**PAIR, "wrong": "قَرأَ الولدُ الكتابَ"}, "the same text once normalised"),
        ({"kind": "cloze", "prompt": "", "answers": []}, "answers: "),
        ({"kind": "cloze", "prompt": "", "answers": ["ملك الروم"]}, 'the answer "ملك الروم" is not one word'),
        ({"kind": "cloze", "prompt": "", "answers": ["ملك"], "k": 0}, "k: "),
        ({"kind": "never"}, "names nothing to look for"),
        ({"kind": "never", "patterns": ["("]}, 'the pattern "(" is not one of RE2'),
        ({"kind": "never", "patterns": ["a*"]}, "matches the empty text"),
        ({"kind": "never", "strings": ["قال"], "prompts": ["كما قال"]}, 'itself contains "قال"'),
        ({"kind": "never", "strings": ["قال"], "samples": 10**6}, "samples: "),
        ({"kind": "knows", "prompt": "", "text": "ا", "max_bits": 0}, "max_bits: "),
        ({"kind": "invariance", "spellings": ["ا", "ا"], "max_difference": 1}, "both spellings are the same text"),
        ({"kind": "invariance", "spellings": ["ا"], "max_difference": 1}, "spellings"),
        ({"kind": "invariance", "spellings": ["ا", "ب"], "max_difference": -1}, "max_difference: "),
    ],
)
def test_a_bad_line_is_one_line_with_its_place(tmp_path: Path, line: dict[str, Any] | str, told: str) -> None:
    message = refused(tmp_path, EVERY_KIND[1], "", line)
    assert f"{tmp_path / 'cases.jsonl'}:3: " in message
    assert told in message


def test_duplicates_name_both_lines(tmp_path: Path) -> None:
    twin = {**PAIR, "right": "قَرأ الولد الكتاب", "id": "other"}
    assert ":2: the same case is on line 1 as well" in refused(tmp_path, PAIR, twin)
    named = [{**case, "id": "one"} for case in EVERY_KIND[:2]]
    assert ':2: the id "one" is on line 1 as well' in refused(tmp_path, *named)


def test_a_file_that_cannot_be_used_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no cases" in refused(tmp_path, "", " ")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    for path, told in (("absent.jsonl", "there is no file"), (".", "is not a text file"), ("latin.jsonl", "in UTF-8")):
        with pytest.raises(RecipeError, match=told):
            Suite.load(ModelTests(path=str(tmp_path / path), name="x"), STANDARD)
    with pytest.raises(RecipeError, match='no suite "arabik" comes with Al-Qalam; did you mean "arabic"'):
        Suite.load(ModelTests.of("suite:arabik", 1.0), STANDARD)
    with pytest.raises(RecipeError, match="no suite"):
        Suite.load(ModelTests(path="suite:../cases", name="x"), STANDARD)
    monkeypatch.setattr(cases, "MAX_CASES", 1)
    assert "has 2 cases, and 1 are the most" in refused(tmp_path, *EVERY_KIND[:2])
    monkeypatch.setattr(cases, "FILE_LIMIT", 10)
    assert "larger than 10 bytes" in refused(tmp_path, PAIR)


def test_the_digest_is_of_the_content_and_not_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, moved = load(tmp_path, PAIR), load(tmp_path / "other", PAIR)
    assert first.digest == moved.digest
    assert load(tmp_path, PAIR, EVERY_KIND[1]).digest != first.digest


def test_strings_and_patterns_are_found() -> None:
    case = Never(strings=("كلمة",), patterns=("[0-9]{3}", "ab|c"))
    assert case.found_in("هذه كلمة هنا") == "كلمة"
    assert case.found_in("في عام 1984 وبعده") == "198"
    assert case.found_in("xaby") == "ab"
    assert not case.found_in("لا شيء 12")
