"""What two models say after a prompt."""

from __future__ import annotations

import numpy as np
import pytest

from qalam_core.review.prompts import CONTINUED, prompt_change
from qalam_core.review.reading import Model
from tests.review.small_models import CONFIG, VOCABULARY, WORDS, package
from tests.review.test_reading import bpe

OLD = Model.of(package())


@pytest.mark.parametrize("prompt", ["", WORDS[9], "كلمة غريبة", "ب " * 500, "<END>\x00\u202e"])
def test_the_same_model_says_the_same(prompt: str) -> None:
    found = prompt_change(OLD, OLD, prompt)
    assert (found.divergence, found.old_to_new, found.new_to_old) == (0.0, 0.0, 0.0)
    assert (found.old, found.new) == ("", "")
    assert found.prompt == prompt


def test_a_word_that_is_always_next_is_named() -> None:
    table = OLD.package.weights["embedding.weight"].copy()
    table[50] = 10
    zeros, ones = np.zeros(CONFIG.dim, np.float32), np.ones(CONFIG.dim, np.float32)
    tensors = {"embedding.weight": table, "ln_out.weight": zeros, "ln_out.bias": ones}
    found = prompt_change(OLD, Model.of(package(tensors=tensors)), "")
    assert found.next_words[0].word == WORDS[50]
    assert found.divergence > 0.9
    assert found.new.split() == [WORDS[50]] * len(found.new.split())
    assert 0 < len(found.new.split()) <= CONTINUED


def test_other_vocabularies_are_compared_on_common_words() -> None:
    other = Model.of(package(0, VOCABULARY._replace(words=(*WORDS[:4], *WORDS[:100:-1]))))
    found = prompt_change(OLD, other, WORDS[200])
    assert 0 < found.divergence <= 1
    assert sum(word.old for word in found.next_words) <= 1.001
    assert "…" in {word.word for word in prompt_change(OLD, Model.of(package(0, bpe(300).vocabulary)), "").next_words}
