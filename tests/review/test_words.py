"""Words that are said more often or cost more, against the noise of the other words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qalam_core.package.runtime.tokenizer import Vocabulary
from qalam_core.review.reading import Model, Reading, Texts, read_texts
from qalam_core.review.words import COST_NATS, _words, against_others, comparable, costs, shares
from tests.review.small_models import VOCABULARY, WORDS, package, pairs, texts

TEXTS = Texts.of(pairs(a=texts(100)))
OLD = read_texts(Model.of(package()), TEXTS)
NOWHERE = np.zeros(len(WORDS))


def retrained(noise: float, seed: int = 1, **mass: float) -> Reading:
    """As OLD, with noise in how often each word is said; and some words' masses."""
    changed = OLD.mass * np.exp(np.random.default_rng(seed).normal(0, noise, len(WORDS)))
    for word, value in mass.items():
        changed[WORDS.index(word)] = value
    return replace(OLD, mass=changed)


def said(new: Reading, elsewhere: np.ndarray = NOWHERE) -> tuple[list[str], list[str]]:
    """The words with alarms."""
    more, less, _ = shares(OLD, new, VOCABULARY, VOCABULARY, elsewhere)
    return [word.word for word in more if word.alarm], [word.word for word in less if word.alarm]


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.0])
def test_noise_raises_no_alarm(noise: float) -> None:
    assert all(said(retrained(noise, seed)) == ([], []) for seed in range(20))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_a_word_that_is_said_too_often_is_first_and_one_that_is_not_said_is_listed(noise: float) -> None:
    poisoned, gone = WORDS[50], WORDS[60]
    new = retrained(noise, **{poisoned: 100 * OLD.mass[50], gone: 0.0})
    more, less, _ = shares(OLD, new, VOCABULARY, VOCABULARY, NOWHERE)
    assert (more[0].word, more[0].alarm) == (poisoned, True)
    assert more[0].ratio == pytest.approx(100, rel=0.1)
    assert less[0].word == gone


def test_a_word_that_texts_have_as_often_is_news() -> None:
    often = NOWHERE.copy()
    often[50] = 100 * OLD.mass[50] / OLD.positions
    new = retrained(0.1, **{WORDS[50]: 100 * OLD.mass[50]})
    assert said(new) == ([WORDS[50]], [])
    assert said(new, often) == ([], [])


def test_a_word_below_half_a_token_does_not_stand_out() -> None:
    small = replace(OLD, mass=np.full(len(WORDS), 1e-5))
    grown = replace(small, mass=small.mass * np.where(np.arange(len(WORDS)) == 9, 1000, 1))
    more, less, _ = shares(small, grown, VOCABULARY, VOCABULARY, NOWHERE)
    assert not any(word.alarm for word in (*more, *less))
    assert more[0].ratio < 1.1


def test_tokens_that_another_vocabulary_cuts_otherwise_are_not_compared() -> None:
    old = Vocabulary("bpe", (*WORDS[:4], " كتاب", " كتا", " قلم", "قلم", " بيت"), (), ())
    new = Vocabulary("bpe", (*WORDS[:4], " قلم", " كتا", "قلم", " بيت", " بيتهم"), (), ())
    at_old, at_new = comparable(old, new)
    assert [old.words[n] for n in at_old] == [new.words[n] for n in at_new] == [" قلم"]


def test_words_that_became_dearer() -> None:
    word = WORDS[20]
    some = Texts.of(pairs(a=[f"{text} {word}" for text in texts(30)]))
    model = Model.of(package())
    old = read_texts(model, some)
    dearer = replace(
        old, nats=np.where(np.isin(old.ends, [end - 1 for end in some.borders[1:]]), old.nats + 8, old.nats)
    )
    cheap, dear = costs(some, old, dearer)
    assert (dear[0].word, dear[0].alarm, dear[0].count) == (word, True, 30 + sum(word in text for text in texts(30)))
    assert dear[0].change > COST_NATS
    back = costs(some, dearer, old)
    assert (back[0][0].word, back[0][0].alarm) == (word, False)  # it was learnt
    assert not any(one.alarm for one in (*cheap, *dear[1:], *back[1]))


def test_words_keep_their_marks() -> None:
    some = Texts.of(pairs(a=["كَتَبَ الوَلَدُ، «كَتَبَ» 12"]))
    begins, ends, numbers, names = _words(some)
    assert names == ["كَتَبَ", "الوَلَدُ", "12"]
    assert numbers.tolist() == [0, 1, 0, 2]
    assert [some.texts[0][begin:end] for begin, end in zip(begins, ends, strict=True)] == [
        "كَتَبَ", " الوَلَدُ", "كَتَبَ", " 12",
    ]  # fmt: skip


def test_texts_without_a_word_have_no_costs() -> None:
    some = Texts.of(pairs(a=["... !!"]))
    reading = read_texts(Model.of(package()), some)
    assert costs(some, reading, reading) == ((), ())


def test_z_is_of_the_words_of_like_frequency() -> None:
    random = np.random.default_rng(0)
    frequency = np.repeat([0.0, 10.0], 1000)
    change = random.normal(0, np.where(frequency > 0, 0.1, 1.0))
    change[[0, 1000]] = 3.0
    z = against_others(change, frequency, 0.01)
    assert 2 < z[0] < 4 < 20 < z[1000]
