"""Continuations of a common beginning: the same scores as of each text alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.evaluation.continuations import continuation_scores
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from tests.small_package import CONFIG, LLAMA, weights

MODELS = {name: NumpyTransformer(config, weights(config)) for name, config in (("ours", CONFIG), ("llama", LLAMA))}
IDS = st.integers(0, CONFIG.vocab_size - 1)


def alone(model: NumpyTransformer, text: list[int], known: int) -> tuple[float, bool]:
    logits = model(np.array([text[:-1]]))[0][0].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = range(known, len(text))
    return sum(logs[place - 1, text[place]] for place in places), all(
        logits[place - 1].argmax() == text[place] for place in places
    )


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
def test_scores_are_those_of_each_text_alone(name: str, data: Any) -> None:
    model = MODELS[name]
    begin = [2, *data.draw(st.lists(IDS, max_size=5))]
    ends = data.draw(st.lists(st.lists(IDS, min_size=1, max_size=5), min_size=1, max_size=5))
    texts = [begin + end for end in ends]
    known = [data.draw(st.integers(1, len(text) - 1)) for text in texts]
    found = continuation_scores(model, texts, known)
    for (score, greedy), text, place in zip(found, texts, known, strict=True):
        wanted, largest = alone(model, text, place)
        assert score == pytest.approx(wanted, abs=1e-4)
        assert greedy == largest


def test_the_longest_text_that_fits_the_context() -> None:
    model, size = MODELS["ours"], CONFIG.max_seq_len + 1
    text = [2] + [5] * (size - 1)
    ((score, _),) = continuation_scores(model, [text], [1])
    assert score == pytest.approx(alone(model, text, 1)[0], abs=1e-4)
