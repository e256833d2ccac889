"""Next words: the search finds what trying every sequence of tokens finds."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from qalam_core.evaluation.model_tests.next_words import Ids, WordBorders, _next, rank
from qalam_core.model import PureDynamicTransformer
from qalam_core.package.runtime.architecture import SPECIALS, START
from qalam_core.package.runtime.tokenizer import Vocabulary

WORDS = (*SPECIALS, " ا", "ب", " ب", "اب", "،", " ،", " ", "1")
BORDERS = WordBorders.of(Vocabulary("bpe", WORDS, (), ()))
PROMPT = (6, 5)
LONGEST = 4  # tokens and so letters of a word that the slow reference tries


@pytest.fixture
def model() -> PureDynamicTransformer:
    torch.manual_seed(5)
    made = PureDynamicTransformer(len(WORDS), 16, 2, 1, 12, 0.0).eval()
    with torch.no_grad():
        made.embedding.weight.mul_(8)  # so that probabilities differ
    return made


def chance(model: PureDynamicTransformer, prompt: Ids, ids: Ids) -> float:
    """ln P of the tokens and of a token after them that does not go on with the word, one forward pass for each."""
    total = 0.0
    for place, index in enumerate(ids):
        total += float(_next(model, START, prompt, [ids[:place]])[0][index])
    return total + math.log(np.exp(_next(model, START, prompt, [ids])[0])[~BORDERS.continues].sum())


def every_word(model: PureDynamicTransformer, prompt: Ids) -> dict[str, float]:
    """Each word of few tokens, with the probability of its likeliest spelling."""
    found: dict[str, float] = {}
    begins = BORDERS.begins if prompt else BORDERS.continues
    for length in range(1, LONGEST + 1):
        for ids in product(range(4, len(WORDS)), repeat=length):
            text = "".join(WORDS[index] for index in ids).strip()
            if text and begins[ids[0]] and all(BORDERS.continues[index] for index in ids[1:]):
                found[text] = max(chance(model, prompt, ids), found.get(text, -math.inf))
    return found


def test_what_begins_a_word_and_what_goes_on_with_it() -> None:
    assert [WORDS[index] for index in np.flatnonzero(BORDERS.begins)] == [" ا", " ب", " "]
    assert [WORDS[index] for index in np.flatnonzero(BORDERS.continues)] == ["ب", "اب", "1"]
    split = WordBorders.of(Vocabulary("bpe", (*SPECIALS, "\\xd8", "\\xa7", " \\xd8"), (), ()))
    assert split.continues.tolist() == [False] * 4 + [True, True, False]
    assert split.begins.tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("prompt", [PROMPT, ()])
def test_the_words_above_an_answer_are_those_of_the_slow_reference(model: PureDynamicTransformer, prompt: Ids) -> None:
    words = every_word(model, prompt)
    order = sorted(words, key=lambda word: -words[word])
    first = 4 if prompt else 5
    for answer in ((first,), (first, 5), (first, 7)):
        text = "".join(WORDS[index] for index in answer).strip()
        own = chance(model, prompt, answer)
        above = [word for word in order if words[word] > own and word != text and len(word) <= LONGEST]
        found = rank(model, BORDERS, prompt, [(text, answer)], 100)
        assert found.decided
        assert found.probability == pytest.approx(math.exp(own))
        assert [word for word, _ in found.above if len(word) <= LONGEST] == above
        few = rank(model, BORDERS, prompt, [(text, answer)], 2)
        assert len(few.above) == min(2, len(found.above))
        assert {word for word, _ in few.above} <= {word for word, _ in found.above}


def test_of_several_answers_the_best_one_counts_and_none_is_above_itself(model: PureDynamicTransformer) -> None:
    one, other = ("ا", (4,)), ("ب", (6,))
    each = [rank(model, BORDERS, PROMPT, [answer], 100).probability for answer in (one, other)]
    both = rank(model, BORDERS, PROMPT, [one, other], 100)
    assert both.probability == max(each)
    assert not {"ا", "ب"} & {word for word, _ in both.above}


def test_a_word_that_the_vocabulary_does_not_have_is_no_answer(model: PureDynamicTransformer) -> None:
    assert rank(model, BORDERS, PROMPT, [("س", ())], 5) == (0.0, [], True)
    assert rank(model, BORDERS, PROMPT, [("س", (1,))], 5).probability == 0


def test_words_of_a_word_vocabulary_are_tokens(model: PureDynamicTransformer) -> None:
    borders = WordBorders.of(Vocabulary("word", (*SPECIALS, "ا", "ب", "ج", "،", "د", "ه", "و", "1"), (), ()))
    logs = _next(model, START, PROMPT, [()])[0]
    for index in (4, 6, 8):
        found = rank(model, borders, PROMPT, [("x", (index,))], 100)
        assert found.probability == pytest.approx(math.exp(logs[index]))
        words = [n for n in np.flatnonzero(borders.begins).tolist() if logs[n] > logs[index]]
        assert len(found.above) == len(words)


def test_a_model_without_finite_probabilities_decides_nothing(model: PureDynamicTransformer) -> None:
    with torch.no_grad():
        model.embedding.weight[4] = math.nan
    assert not rank(model, BORDERS, PROMPT, [("ا", (4,))], 100).decided


def test_a_long_prompt_keeps_its_end(model: PureDynamicTransformer) -> None:
    long = PROMPT * 20
    assert rank(model, BORDERS, long, [("ا", (4,))], 3) == rank(model, BORDERS, long[2:], [("ا", (4,))], 3)
