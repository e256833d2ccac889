"""Figures over held-out documents, against plain arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.evaluation.baselines import CHARACTER_ORDER, CHARACTERS, KneserNey, Speller, Unigram, characters
from qalam_core.evaluation.results import Report
from qalam_core.evaluation.scoring import _windows
from qalam_core.package.runtime.architecture import END, START, UNK
from tests.evaluation.small_evaluation import CONTEXT, Exported, build


@given(st.integers(1, 200), st.integers(2, 40))
def test_windows_score_each_position_once_with_half_a_context(length: int, context: int) -> None:
    next_scored = 0
    for start, scored in _windows(length, context):
        assert scored == next_scored
        assert 0 <= start <= scored < length
        assert scored == 0 or scored - start >= context / 2
        next_scored = min(start + context, length)
        assert next_scored > scored
    assert next_scored == length


def test_model_bits_equal_plain_arithmetic(exported: Exported, report: Report) -> None:
    """Each token alone, by the definition: in the window with the most context that predicts it."""
    for place, (_, text) in enumerate(exported.test):
        ids = [START, *exported.tokenizer.encode(text), END]
        expected = 0.0
        for target in range(1, len(ids)):
            begin = max(s for s, scored in _windows(len(ids) - 1, CONTEXT) if scored < target)
            with torch.inference_mode():
                logits = exported.model(torch.tensor([ids[begin:target]]))[0][0, -1]
            expected -= torch.log_softmax(logits, -1)[ids[target]].item()
        assert report.document_nats[place] == pytest.approx(expected, rel=1e-5)
        assert report.document_bytes[place] == len(text.encode())
    total = sum(report.document_nats) / math.log(2) / sum(report.document_bytes)
    assert report.bits_per_byte.model == pytest.approx(total, abs=1e-6)
    assert any(len(exported.tokenizer.encode(text)) > 2 * CONTEXT for _, text in exported.test)


def test_baseline_bits_count_the_same_tokens(exported: Exported, report: Report) -> None:
    unigram = Unigram.fit(exported.train, len(exported.tokenizer))
    nats = sum(
        unigram.nats(np.array([START, *exported.tokenizer.encode(text), END])).sum() for _, text in exported.test
    )
    size = sum(report.document_bytes)
    assert report.bits_per_byte.unigram == pytest.approx(nats / math.log(2) / size, abs=1e-6)
    assert report.bits_per_byte.ngram < report.bits_per_byte.model  # the model is random
    trained = [characters(pa.array(exported.texts, pa.large_string()))]
    counted = KneserNey.fit(trained, CHARACTERS, CHARACTER_ORDER)
    for place, (_, text) in enumerate(exported.test):  # alone as among the others
        alone = counted.nats(characters(pa.array([text], pa.large_string()))).sum()
        assert report.document_character_nats[place] == pytest.approx(alone, abs=1e-6)
    total = sum(report.document_character_nats) / math.log(2) / size
    assert report.bits_per_byte.characters == pytest.approx(total, abs=1e-6)
    assert report.bits_per_byte.ngram == pytest.approx(sum(report.document_ngram_nats) / math.log(2) / size, abs=1e-6)


@pytest.mark.usefixtures("processes")
def test_unknown_words_pay_for_their_spelling(tmp_path: Path) -> None:
    made = build(tmp_path, algorithm="word", scale=0.0)  # all logits 0: ln V a token
    found = made.evaluate()
    assert found.integrity.intact, found.integrity
    speller = Speller.fit(made.tokenizer.words[4:])
    _, text = made.test[-1]
    ids, words = made.tokenizer.encode(text), made.tokenizer.tokenize(text)
    assert ids == [UNK] * len(words)
    spelling = sum(speller.nats(word) for word in words)
    expected = (len(ids) + 1) * math.log(len(made.tokenizer)) + spelling
    assert found.document_nats[-1] == pytest.approx(expected, rel=1e-5)
    unigram = Unigram.fit(made.train, len(made.tokenizer))
    nats = [unigram.nats(np.array([START, *made.tokenizer.encode(text), END])) for _, text in made.test]
    unknown = [
        speller.nats(word)
        for _, text in made.test
        for word in made.tokenizer.tokenize(text)
        if word not in made.tokenizer.word2idx
    ]
    bits = (sum(part.sum() for part in nats) + sum(unknown)) / math.log(2) / found.overall.bytes
    assert found.bits_per_byte.unigram == pytest.approx(bits, abs=1e-6)
    assert found.overall.unknown_rate > 0


@pytest.mark.usefixtures("no_import")
def test_text_that_spells_a_special_token_is_text(exported: Exported) -> None:
    plain = exported.evaluate(test=[("a", "قال <END> ثم <UNK>")])
    assert plain.overall.unknown_rate == 0
    assert plain.overall.tokens == len(exported.tokenizer.encode("قال <END> ثم <UNK>")) + 1


def test_sources_add_up(exported: Exported, report: Report) -> None:
    assert list(report.sources) == ["books", "news"]
    for field in ("documents", "bytes", "tokens", "words"):
        total = getattr(report.overall, field)
        assert sum(getattr(part, field) for part in report.sources.values()) == total
    weighted = sum(part.bits_per_byte.model * part.bytes for part in report.sources.values())
    assert weighted / report.overall.bytes == pytest.approx(report.bits_per_byte.model, abs=1e-5)
    ids = [len(exported.tokenizer.encode(text)) for _, text in exported.test]
    assert report.overall.tokens == sum(ids) + len(ids)
    words = sum(len(text.split()) for _, text in exported.test)
    assert report.overall.tokens_per_word == pytest.approx(sum(ids) / words, abs=1e-6)


@pytest.mark.usefixtures("no_import")
def test_digests_are_of_the_texts_alone_in_order(exported: Exported, report: Report) -> None:
    reversed_ = exported.evaluate(test=exported.test[::-1])
    assert reversed_.test_digest != report.test_digest
    assert reversed_.document_digests == report.document_digests[::-1]
    renamed = exported.evaluate(test=[("other", text) for _, text in exported.test])
    assert renamed.test_digest == report.test_digest
    assert renamed.document_digests == report.document_digests
    joined = exported.evaluate(test=[("a", "".join(text for _, text in exported.test))])
    assert joined.test_digest != report.test_digest
