"""Two models on the same texts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from qalam_core.package.read import Package
from qalam_core.review import behaviour as module
from qalam_core.review.behaviour import EXCERPT, behaviour
from qalam_core.review.results import Behaviour
from tests.review.small_models import CONFIG, WORDS, package, pairs, texts
from tests.review.test_reading import bpe

HERE, THERE = WORDS[4:100], WORDS[150:]
TEXTS = {
    "held-out text": pairs(here=texts(40, HERE), there=texts(40, THERE, 1)),
    "training text": pairs(here=texts(20, HERE, 2)),
}
OLD = package()


def reviewed(new: Package, old: Package = OLD, given: dict[str, list[tuple[str, str]]] = TEXTS) -> Behaviour:
    return behaviour(old, new, given, ("كلمة",), seed=1)


def forgot(words: slice, cost: float) -> Package:
    """A model with a head of its own, which finds some words unlikely: features have a constant part."""
    untied = replace(CONFIG, tied=False)
    bias = np.zeros(CONFIG.dim, np.float32)
    bias[0] = 3.0
    table = package(config=untied).weights["lm_head.weight"].copy()
    table[words, 0] -= cost / bias[0]
    return package(config=untied, tensors={"lm_head.weight": table, "ln_out.bias": bias})


def test_the_same_model_shows_no_change() -> None:
    found = reviewed(package())
    assert (found.alarms, found.unavailable) == ((), ())
    for text in found.texts:
        assert text.change == 0.0
        assert (text.gained, text.lost, text.more, text.less, text.cheaper, text.dearer) == ((), (), (), (), (), ())
        assert [part.change for part in (*text.slices, *text.positions)] == [0.0] * (
            len(text.slices) + len(text.positions)
        )
    assert [text.name for text in found.texts] == ["held-out text", "training text"]


def test_a_review_is_a_function_of_what_it_is_given() -> None:
    found = reviewed(package(3))
    assert found == reviewed(package(3))
    json.loads(found.model_dump_json())


def test_a_slice_that_was_forgotten_is_named_first() -> None:
    found = reviewed(forgot(slice(150, None), 1.0), forgot(slice(150, None), 0.0))
    assert (found.texts[0].slices[0].name, found.texts[0].slices[0].alarm) == ("there", True)
    assert not found.texts[0].slices[1].alarm
    assert any('Slice "there" of the held-out text' in alarm.message for alarm in found.alarms)
    assert {document.slice for document in found.texts[0].lost} == {"there"}


def test_excerpts_are_parts_of_documents() -> None:
    whole = {"held-out text": pairs(a=texts(6, length=200), b=["قصير"])}
    for new in (package(5), package(5, bpe(400).vocabulary)):
        text = reviewed(new, given=whole).texts[0]
        assert text.gained or text.lost
        for document in (*text.gained, *text.lost):
            shown = "".join(piece.text for piece in document.pieces)
            assert 0 < len(shown) <= EXCERPT
            assert any(each[document.start :].startswith(shown) for _, each in whole["held-out text"])
            assert (document.change > 0) == (document in text.lost)


def test_positions_cover_the_context_and_the_text() -> None:
    text = reviewed(package(4)).texts[0]
    assert [part.name for part in text.positions] == ["0-7", "8-15", "16-31"]
    assert sum(part.bytes for part in text.positions) == text.counted.size


def test_a_position_is_an_alarm_only_where_both_cut_texts_alike() -> None:
    sharp, positions = {"ln_out.weight": np.full(CONFIG.dim, 4, np.float32)}, OLD.weights["pos_embedding"].copy()
    positions[:8] = 100 * OLD.weights["embedding.weight"][120]  # a word that no text has
    changed = {**sharp, "pos_embedding": positions}
    alike = reviewed(package(tensors=changed), package(tensors=sharp)).texts[0]
    assert (alike.positions[0].name, alike.positions[0].alarm) == ("0-7", True)
    other = reviewed(package(vocabulary=bpe(400).vocabulary, tensors=changed), package(tensors=sharp)).texts[0]
    assert not any(part.alarm for part in other.positions)


def test_what_is_not_there_is_said() -> None:
    found = reviewed(package(2), given={"held-out text": [], "training text": [("a", "  ")]})
    assert found.texts == ()
    assert len(found.unavailable) == 2
    positions = np.full((CONFIG.max_seq_len, CONFIG.dim), np.inf, np.float32)
    found = reviewed(package(tensors={"pos_embedding": positions}))
    assert (found.texts, found.prompts, len(found.unavailable)) == ((), (), 1)
    assert [alarm.message for alarm in found.alarms] == ["The new model gives probabilities that are not finite."]


def test_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXT_BYTES", 2000)
    found = reviewed(package(1))
    assert all(text.counted.size <= 2500 for text in found.texts)
    assert found.texts[0].counted.of == 80
    assert found.texts[0].counted.sampled


def test_few_documents_have_no_z() -> None:
    text = reviewed(package(1), given={"held-out text": pairs(a=texts(2), b=texts(1))}).texts[0]
    assert text.z is None
    assert [part.z for part in text.slices] == [None, None]
    assert "too few documents (3)" in reviewed(package(1), given={"held-out text": pairs(a=texts(3))}).unavailable[0]
    assert not text.alarm


def test_words_that_cannot_be_compared_are_said() -> None:
    found = reviewed(package(1, bpe(300).vocabulary))
    assert (found.texts[0].more, found.texts[0].less) == ((), ())
    assert "no comparable word" in found.unavailable[0]
    assert found.texts[0].by_first_token
