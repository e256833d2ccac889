"""Filters: the vectorised measures equal those of a loop over each document, and rules compare them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core import recipe
from qalam_core.arabic import NORMALISATIONS, normalise
from qalam_core.corpus import prepare as preparation
from qalam_core.corpus.filters import REASONS, FilterSettings, Thresholds, first_violation
from qalam_core.corpus.measures import MEASURES, STOP_WORDS, Floats
from qalam_core.corpus.prepare import read_rejects
from qalam_core.corpus.words import Words, words
from qalam_core.corpus.writer import SCHEMA
from qalam_core.filter_profiles import FILTER_PROFILES, RULES, rules_of
from qalam_core.recipe import Corpus, Filters, Source
from tests.conftest import examples
from tests.corpus.preparing import prepare_files

WEB = list(FILTER_PROFILES["web"].items())

known = st.text(st.characters(max_codepoint=0x6FF), max_size=20)  # letters in every version of Unicode
few = st.text(alphabet="اب 1.\n", max_size=60)  # much repeats
pieces = [
    "في",
    "من",
    "قال،",
    "إلى",
    "كتاب",
    "12",
    "***",
    "«نعم».",
    "20540.21",
    "8%.",
    "7:39-8:40",
    "ل«نا»",
    "لا-",
    "...",
    "\n",
]
some = st.lists(st.sampled_from(pieces), max_size=40)
texts = st.lists(st.one_of(few, some.map(" ".join), known).map(normalise), max_size=6)


def by_loop(text: str) -> dict[str, float]:
    """Every measure of one text, by its definition."""
    tokens = text.split()
    lines = text.split("\n")
    again = [line in lines[:number] for number, line in enumerate(lines)]
    parts, symbols = parts_of(tokens)
    letters = ["".join(c for c in token if unicodedata.category(c)[0] == "L") for token in tokens]
    lettered = sum(c == "_" or unicodedata.category(c)[0] in "LN" for part in parts for c in part)
    found = {
        "words": len(parts),
        "average_word": lettered / max(len(parts), 1),
        "alphabetic": sum(any(unicodedata.category(c)[0] == "L" for c in part) for part in parts)
        / max(len(parts) + symbols, 1),
        "stop_words": sum(
            word in letters or normalise(word, NORMALISATIONS["search"]) in letters for word in STOP_WORDS[1:]
        ) + ("،" in text),
        "line_punctuation": sum(bool(re.search(r"""[.!?؟۔:؛][)\]"'»”’]*$""", line)) for line in lines) / len(lines),
        "newlines": text.count("\n") / max(len(parts) + symbols, 1),
        "duplicate_lines": sum(again) / len(lines),
        "duplicate_line_chars": sum(len(line) for line, seen in zip(lines, again, strict=True) if seen)
        / max(sum(map(len, lines)), 1),
    }  # fmt: skip
    total = max(len(text), 1)
    for n in range(2, 11):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            most = max((c for c in counts.values() if c > 1), default=0)
            longest = max((len(" ".join(gram)) for gram, c in counts.items() if c == most), default=0) if most else 0
            found[f"top_{n}gram"] = min(most * longest / total, 1)
        else:
            covered = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(n)}
            found[f"duplicate_{n}gram"] = sum(len(tokens[i]) for i in covered) / total
    return found


def parts_of(tokens: list[str]) -> tuple[list[str], int]:
    """The words in strings without white space, and how many symbols there are besides, as spaCy counts them."""
    parts, symbols = list[str](), 0
    for token in tokens:
        runs = [(wordly, "".join(run)) for wordly, run in itertools.groupby(token, _is_wordly)]
        for place, (wordly, run) in enumerate(runs):
            before, after = place > 0, place + 1 < len(runs)
            if wordly and place >= 2 and len(runs[place - 1][1]) == 1:
                parts[-1] += runs[place - 1][1] + run  # a single symbol joins two words
            elif wordly:
                parts.append(run)
            elif not (before and after and len(run) == 1):
                at = 1 if before and run[0] == "-" else 2 if before and re.match(r"""[)\]"'»”’%]\.""", run) else 0
                symbols += len(re.sub(r"\.\.+", ".", run[at:]))
    return parts, symbols


def _is_wordly(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN" or char == "_"


@settings(max_examples=examples(20), deadline=None)
@given(texts)
def test_measures_equal_a_loop(texts: list[str]) -> None:
    array = pa.array(texts, pa.large_string())
    found: dict[str, Floats] = {}
    for measure in set(MEASURES.values()):
        found |= measure(array, words(array))
    assert found.keys() == MEASURES.keys() == {rule[4:] for rule in RULES} - {"language"}  # measured text by text
    for row, text in enumerate(texts):
        assert {name: float(values[row]) for name, values in found.items()} == pytest.approx(by_loop(text))


@settings(max_examples=examples(25), deadline=None)
@given(texts, st.sampled_from(["short", "prose", "web"]))
def test_the_first_violated_rule_is_named(texts: list[str], profile: str) -> None:
    limits = {rule: limit for rule, limit in FILTER_PROFILES[profile].items() if rule != "min_language"}
    array = pa.array(texts, pa.large_string())
    reasons = first_violation(array, words(array), list(limits.items()))
    for text, reason in zip(texts, reasons, strict=True):
        value = by_loop(text)
        violated = [
            rule for rule in RULES if rule in limits
            and (value[rule[4:]] < limits[rule] if rule[:4] == "min_" else value[rule[4:]] > limits[rule])
        ]  # fmt: skip
        assert reason == (violated[0] if violated else "")


@pytest.mark.parametrize(
    ("text", "words_", "alphabetic"),
    [
        ("بلغ المؤشر 20540.21 نقطة", 4, 3 / 4),
        ("ارتفع 8%.", 2, 1 / 2),
        ("الموقع www.example.com/a?b=c اليوم", 3, 1),
        ("قال «نعم».", 2, 2 / 3),
        ("سبق- الساعة 7:39", 3, 2 / 3),
        ("ثم... سكت .", 2, 2 / 4),
        ("! ؟ ، *", 0, 0),
    ],
)
def test_words_and_symbols_are_counted_about_as_spacy_does(text: str, words_: int, alphabetic: float) -> None:
    array = pa.array([text], pa.large_string())
    found = MEASURES["alphabetic"](array, words(array))
    assert (found["words"][0], found["alphabetic"][0]) == (words_, pytest.approx(alphabetic))


PAGE = (
    "قال الوزير إن العمل في المشروع بدأ من أول العام، وإن الناس على علم به. "
    "وذكر أن المدينة كانت بين الجبل والبحر، وأن أهلها عملوا في التجارة بعد الحرب. "
    "ثم تحدث عن السوق الذي بناه التجار مع عمال المدينة، وهو اليوم أكبر أسواق البلاد. "
    "ولم يكن أحد يظن أن القرية الصغيرة تصير ميناء يقصده الغرباء كل صيف."
)


OTHER = (
    "كتب الشاعر قصيدة عن البحر والقمر. وكانت من أجمل ما قيل في وصف الليل على الشاطئ. "
    "وقد قرأها الطلاب في المدارس سنوات طويلة حتى حفظها الجميع."
)


def bad_pages() -> list[tuple[str, str]]:
    menu = "\n".join(f"قسم الأخبار {'ابتثجحخدذرزسش'[n] * 3} في كل يوم من أيام العام" for n in range(12))
    return [
        ("min_words", "جملة قصيرة من كلمات قليلة في سطر."),
        ("min_average_word", "و " * 60),
        ("max_average_word", "كلماتطويلةجدالامعنىلها " * 60),
        ("min_alphabetic", PAGE + " 12345 - 6789 - 10 / " * 20),
        ("min_stop_words", " ".join("".join(p) for p in itertools.permutations("كتبس")) * 3 + "."),
        ("min_line_punctuation", menu),
        ("max_newlines", PAGE.replace(" ", "\n", 20).replace("\n", ".\n", 8)),
        ("max_duplicate_lines", PAGE + "\n" + "\n".join(["اقرأ المزيد من الأخبار في موقعنا."] * 6)),
        ("max_top_2gram", PAGE + " نعم جميل" * 60 + "."),
        ("max_duplicate_5gram", PAGE + " " + OTHER + " " + PAGE[:170] + "."),
    ]  # fmt: skip


@pytest.mark.parametrize(("rule", "text"), bad_pages(), ids=[rule for rule, _ in bad_pages()])
def test_each_bad_page_violates_its_rule(rule: str, text: str) -> None:
    array = pa.array([normalise(text), PAGE], pa.large_string())
    assert first_violation(array, words(array), WEB, ["ar"]).tolist() == [rule, ""]


def test_vowel_marks_do_not_change_the_average_word() -> None:
    vocalised = "".join(char + "\u064e" * (char.isalpha() and n % 3 != 0) for n, char in enumerate(PAGE))
    array = pa.array(
        [normalise(vocalised, NORMALISATIONS["vocalised"]), normalise(PAGE, NORMALISATIONS["search"])],
        pa.large_string(),
    )
    assert array[0].as_py().count("\u064e") > 100
    assert first_violation(array, words(array), WEB, ["ar"]).tolist() == ["", ""]
    found = MEASURES["average_word"](array, words(array))["average_word"]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("این یک متن فارسی است که برای آزمایش نوشته شده است و باید فارسی شناخته شود. " * 2, "fa"),
        ("یہ ایک اردو متن ہے جو جانچ کے لیے لکھا گیا ہے اور اسے اردو ہی سمجھا جانا چاہیے۔ " * 2, "ur"),
    ],
)
def test_another_language_of_the_script_is_rejected(text: str, language: str) -> None:
    array = pa.array([normalise(text), PAGE, "قصير"], pa.large_string())
    found, rules = words(array), [("min_language", 0.5)]
    assert first_violation(array, found, rules, ["ar", "arz", "ary"]).tolist() == ["min_language", "", ""]
    assert first_violation(array, found, rules, [language]).tolist() == ["", "min_language", ""]


def test_a_recipes_thresholds_replace_those_of_the_profiles() -> None:
    corpus = Corpus(sources=(Source(path="x"),), thresholds={"min_words": 5})
    assert dict(rules(corpus, "web"))["min_words"] == 5
    assert dict(rules(corpus, "web"))["max_words"] == FILTER_PROFILES["web"]["max_words"]
    assert "min_words" not in dict(rules(corpus, "short"))
    assert "min_language" not in dict(rules(corpus.model_copy(update={"languages": ()}), "web"))
    assert list(FILTER_PROFILES["prose"]) == [rule for rule in RULES if rule in FILTER_PROFILES["prose"]]


def rules(corpus: Corpus, filters: Filters) -> Thresholds:
    """The rules of a filter profile with the corpus's thresholds."""
    return FilterSettings.of(corpus, filters).rules


def test_rules_of_profiles_that_differ_are_all_known() -> None:
    assert rules_of(FILTER_PROFILES) == RULES
    profiles: dict[str, dict[str, float]] = {
        "web": {"min_words": 5, "max_words": 90, "max_newlines": 0.2},
        "prose": {"min_words": 2, "min_stop_words": 2},
        "none": {},
    }
    assert rules_of(profiles) == ("min_words", "max_words", "max_newlines", "min_stop_words")


def test_a_rule_of_one_profile_alone_is_known_and_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='there is no rule "min_newlines"'):
        Corpus(sources=(Source(path="x"),), thresholds={"min_newlines": 0.01})
    monkeypatch.setitem(FILTER_PROFILES, "prose", {**FILTER_PROFILES["prose"], "min_newlines": 0.5})
    assert set(rules_of(FILTER_PROFILES)) == {*RULES, "min_newlines"}
    monkeypatch.setattr(recipe, "RULES", rules_of(FILTER_PROFILES))
    corpus = Corpus(sources=(Source(path="x"),), thresholds={"min_newlines": 0.01})
    assert dict(rules(corpus, "prose"))["min_newlines"] == 0.01
    assert "min_newlines" not in dict(rules(corpus, "web"))
    array = pa.array([PAGE, PAGE.replace(". ", ".\n")], pa.large_string())
    assert first_violation(array, words(array), rules(corpus, "prose"), ["ar"]).tolist() == ["min_newlines", ""]
    assert first_violation(array, words(array), rules(corpus, "web"), ["ar"]).tolist() == ["", ""]


def exclamations(texts: pa.Array, words: Words) -> dict[str, Floats]:
    """A measure that the library does not have: exclamation marks per word."""
    marks = np.array([text.count("!") for text in texts.to_pylist()])
    return {"exclamations": marks / np.maximum(words.sizes, 1)}


def test_a_new_measure_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "exclamations", exclamations)
    array = pa.array(["كتاب جديد! جدا!! رائع!", PAGE], pa.large_string())
    rule, other = ("max_exclamations", 0.5), ("min_words", 2)
    assert first_violation(array, words(array), [other, rule]).tolist() == ["max_exclamations", ""]
    assert first_violation(array, words(array), [other]).tolist() == ["", ""]


def test_a_new_rule_is_applied_by_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A measure and its threshold in a profile: recipes know the rule, documents are rejected by it, and counted."""
    monkeypatch.setitem(MEASURES, "exclamations", exclamations)
    monkeypatch.setitem(FILTER_PROFILES, "short", {**FILTER_PROFILES["short"], "max_exclamations": 0.5})
    rules = rules_of(FILTER_PROFILES)  # what RULES is where the entries are in the source
    monkeypatch.setattr(recipe, "RULES", rules)
    monkeypatch.setattr(preparation, "REASONS", (*REASONS, *(rule for rule in rules if rule not in RULES)))
    texts = [f"جملة من كلمات قليلة رقمها {'ابتثجحخدذرزسشصضطظعغفقكلمنهوي'[n]}" for n in range(20)]
    texts += ["كتاب جديد! جدا!! رائع!", "كتاب جديد جدا ورائع!"]
    with ipc.new_file(tmp_path / "in.arrow", SCHEMA) as writer:
        writer.write_batch(pa.record_batch([texts, ["news"] * 22, [False] * 22], schema=SCHEMA))
    for limit, rejected in ((0.5, 1), (0.1, 2)):
        options = {"min_chars": 1, "near_duplicates": False, "thresholds": {"max_exclamations": limit}}
        corpus = Corpus(sources=(Source(path="x"),), **options)
        facts = prepare_files([("news", tmp_path / "in.arrow")], corpus, tmp_path / "out")
        assert facts.rejected == facts.sources["news"].rejected == {"max_exclamations": rejected}
        found = list(read_rejects(tmp_path / "out", "max_exclamations", 5))
        assert found == [("news", text) for text in texts[20 : 20 + rejected]]
