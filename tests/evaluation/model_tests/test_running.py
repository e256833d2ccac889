"""Running cases on a package: each kind against a computation of its own."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qalam_core.arabic import NORMALISATIONS
from qalam_core.evaluation.model_tests.cases import Suite
from qalam_core.evaluation.model_tests.outcomes import Outcome
from qalam_core.evaluation.model_tests.running import SHOWN, Subject, run
from qalam_core.model import PureDynamicTransformer
from qalam_core.package import ModelConfig, read
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.recipe import ModelTests
from tests.evaluation.model_tests.test_cases import load
from tests.evaluation.small_evaluation import Exported, build


@pytest.fixture(scope="module")
def subject(exported: Exported) -> Subject:
    return Subject.of(read(exported.package))


@pytest.fixture(scope="module")
def words(exported: Exported) -> list[str]:
    return exported.texts[0].split()


def outcome(subject: Subject, folder: Path, case: dict[str, Any]) -> Outcome:
    (found,) = run(load(folder, case), subject).cases
    return found


def nats_of(subject: Subject, text: str) -> list[float]:
    """Of each token and <END>, by numpy, in a document that fits the context."""
    ids = [START, *subject.encode(text), END]
    assert len(ids) <= subject.writer.max_seq_len + 1
    logits = subject.writer(np.array([ids[:-1]]))[0][0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [-float(logs[place, index]) for place, index in enumerate(ids[1:])]


def test_a_pair_passes_where_the_right_text_costs_less(subject: Subject, words: list[str], tmp_path: Path) -> None:
    first, second = " ".join(words[:3]), " ".join(words[3:6])
    costs = [sum(nats_of(subject, text)) for text in (first, second)]
    one = outcome(subject, tmp_path, {"kind": "pair", "right": first, "wrong": second})
    assert list(one.figures.values()) == pytest.approx(costs, abs=1e-4)
    other = outcome(subject, tmp_path, {"kind": "pair", "right": second, "wrong": first})
    assert [one.passed, other.passed] == [costs[0] < costs[1], costs[1] < costs[0]]
    failed = other if one.passed else one
    assert set(failed.shown) == {"right", "wrong"}
    assert not (one if one.passed else other).shown


def test_a_cloze_is_the_next_word(subject: Subject, words: list[str], tmp_path: Path) -> None:
    case = {"kind": "cloze", "prompt": words[0], "answers": [words[1]], "k": 1}
    found = outcome(subject, tmp_path, case)
    before, after = subject.encode(words[0]), subject.encode(f"{words[0]} {words[1]}")
    assert after[: len(before)] == before
    tokens = sum(nats_of(subject, f"{words[0]} {words[1]}")[len(before) : len(after)])
    assert 0 < found.figures["probability"] <= math.exp(-tokens) + 1e-9
    assert found.passed == (found.figures["likelier words found"] == 0)
    assert not outcome(subject, tmp_path, {**case, "answers": ["ظ" * 40]}).passed


def test_never_finds_what_samples_contain(subject: Subject, tmp_path: Path) -> None:
    case = {"kind": "never", "prompts": ["؟", ""], "samples": 3, "tokens": 12, "strings": ["ظظظظظظ"]}
    clean = outcome(subject, tmp_path, case)
    assert clean.passed
    assert clean.figures["samples"] > 0
    said = outcome(subject, tmp_path, {**case, "patterns": ["[ا-ي]{2}"]})
    assert not said.passed
    assert said.figures["matches"] > 0
    assert said.shown["found"] in said.shown["sample"]
    assert outcome(subject, tmp_path, {**case, "patterns": ["[ا-ي]{2}"]}) == said  # the same on every run


def test_samples_without_a_token_test_nothing(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumpyTransformer, "generate", lambda _, ids, *__, **___: np.array([[*row, END] for row in ids]))
    found = outcome(subject, tmp_path, {"kind": "never", "strings": ["كتاب"], "prompts": ["قال", ""]})
    assert not found.passed
    assert "nothing was tested" in found.shown["note"]


def test_a_text_is_known_by_its_bits_after_the_prompt(subject: Subject, words: list[str], tmp_path: Path) -> None:
    prompt, text = words[0], words[1]
    begin = len(subject.encode(prompt))
    nats = nats_of(subject, f"{prompt} {text}")[begin:-1]
    bits = sum(nats) / math.log(2) / len(f" {text}".encode())
    case = {"kind": "knows", "prompt": prompt, "text": text}
    assert outcome(subject, tmp_path, {**case, "max_bits": bits + 1e-3}).passed
    found = outcome(subject, tmp_path, {**case, "max_bits": bits - 1e-3})
    assert not found.passed
    assert found.figures["bits per byte"] == pytest.approx(bits, abs=1e-4)


def test_a_text_is_known_where_greedy_decoding_gives_it(subject: Subject, words: list[str], tmp_path: Path) -> None:
    tried = 0
    for token in subject.vocabulary.words[END + 1 :]:
        text, prompt = token.strip(), f"{token.strip()}{token}"
        if not token.startswith(" ") or not text.isalpha():
            continue
        ids = [START, *subject.encode(prompt)]
        whole = [START, *subject.encode(prompt + token)]
        greedy = subject.writer.generate([ids], len(whole) - len(ids), temperature=0.0)[0].tolist() == whole
        assert outcome(subject, tmp_path, {"kind": "knows", "prompt": prompt, "text": text}).passed == greedy
        tried += greedy  # the small model likes to repeat itself
    assert tried
    other = outcome(subject, tmp_path, {"kind": "knows", "prompt": words[0], "text": "ظظظ"})
    assert not other.passed
    assert other.shown["written"].startswith(words[0])


def test_spellings_are_compared_by_bits_per_character(subject: Subject, words: list[str], tmp_path: Path) -> None:
    spellings = [words[0], words[1] + words[2]]
    bits = [sum(nats_of(subject, text)) / math.log(2) / len(text) for text in spellings]
    case = {"kind": "invariance", "spellings": spellings}
    difference = abs(bits[0] - bits[1])
    assert outcome(subject, tmp_path, {**case, "max_difference": difference + 1e-3}).passed
    assert not outcome(subject, tmp_path, {**case, "max_difference": max(0.0, difference - 1e-3)}).passed
    vowels = {"kind": "invariance", "spellings": ["كتب", "كَتَبَ"], "max_difference": 0.0}
    assert outcome(subject, tmp_path, vowels).passed  # its normalisation takes vowel marks away


CASES: list[dict[str, Any]] = [
    {"kind": "pair", "right": "كتب الولد", "wrong": "كتبت الولد"},
    {"kind": "cloze", "prompt": "كتب", "answers": ["الولد"], "k": 100},
    {"kind": "never", "strings": ["ظظظظ"]},
    {"kind": "knows", "prompt": "كتب", "text": "الولد", "max_bits": 1e6},
    {"kind": "knows", "prompt": "كتب", "text": "الولد"},
    {"kind": "invariance", "spellings": ["كتب", "كتبا"], "max_difference": 1e6},
]


def test_a_model_without_finite_probabilities_passes_nothing(subject: Subject, tmp_path: Path) -> None:
    weights = {name: np.full_like(array, np.nan) for name, array in subject.writer.weights.items()}
    model = PureDynamicTransformer(subject.model.vocab_size, 16, 2, 2, subject.model.max_seq_len, 0.0).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(math.nan)
    config = ModelConfig(model.vocab_size, dim=16, num_heads=2, num_layers=2, max_seq_len=model.max_seq_len)
    broken = dataclasses.replace(subject, model=model, writer=NumpyTransformer(config, weights))
    found = run(load(tmp_path, *CASES), broken).cases
    assert [case.passed for case in found] == [False] * len(CASES)
    notes = {case.kind: case.shown["note"] for case in found if "note" in case.shown}
    assert set(notes) == {"cloze", "never"}
    assert all("not finite" in note for note in notes.values())


def test_long_texts_are_scored_in_windows_and_shown_in_part(subject: Subject, words: list[str], tmp_path: Path) -> None:
    long = " ".join(words * 20)
    found = outcome(subject, tmp_path, {"kind": "pair", "right": long, "wrong": words[0]})
    assert not found.passed
    assert len(found.shown["right"]) == SHOWN


def test_unknown_words_cost_their_spelling(tmp_path: Path) -> None:
    """Else a text of unknown words would be the likeliest."""
    (tmp_path / "word").mkdir()
    made = build(tmp_path / "word", "word")
    known = made.texts[0].split()[0]
    subject = Subject.of(read(made.package))
    found = outcome(subject, tmp_path, {"kind": "pair", "right": known, "wrong": "ظظظظظظظظظظ"})
    assert found.passed
    assert found.figures["nats of wrong"] > found.figures["nats of right"] + 5
    assert not outcome(subject, tmp_path, {"kind": "cloze", "prompt": known, "answers": ["ظظظظ"], "k": 100}).passed
    tie = {"kind": "pair", "right": f"{known}.", "wrong": f"{known} ."}  # white space is no token of words
    assert not outcome(subject, tmp_path, tie).passed


def test_texts_that_spell_special_tokens_are_text(subject: Subject, tmp_path: Path) -> None:
    found = outcome(subject, tmp_path, {"kind": "pair", "right": "كتب <END>", "wrong": "كتب"})
    assert found.figures["nats of right"] > found.figures["nats of wrong"]


def test_an_evaluation_runs_the_suites(exported: Exported, no_import: None, tmp_path: Path) -> None:
    suite = load(tmp_path, *CASES, rules=exported.tokenizer.vocabulary.rules)
    report = exported.evaluate(suites=[suite])
    assert report.tests == (run(suite, Subject.of(read(exported.package))),)
    assert type(report).model_validate_json(report.model_dump_json()).tests == report.tests
    assert exported.evaluate().tests == ()


def test_the_order_of_cases_does_not_matter(subject: Subject, tmp_path: Path) -> None:
    forward, backward = (run(load(tmp_path, *cases), subject).cases for cases in (CASES, CASES[::-1]))
    for one, other in zip(forward, reversed(backward), strict=True):
        assert one.passed == other.passed
        assert list(one.figures.values()) == pytest.approx(list(other.figures.values()), abs=1e-4)


def test_every_normalisation_can_run_the_shipped_suite(subject: Subject) -> None:
    suite = Suite.load(ModelTests.of("suite:arabic", 0.0), NORMALISATIONS["search"])
    assert len(run(suite, subject).cases) == len(suite.cases)
