"""13-grams of words that test and training text share, against brute force and by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.evaluation.contamination import GRAM, covered


def brute(test: list[str], train: list[str]) -> list[float]:
    grams = {tuple(words[i : i + GRAM]) for text in train for words in [text.split()] for i in range(len(words) - 12)}
    shares = []
    for words in map(str.split, test):
        inside = {i + k for i in range(len(words) - 12) if tuple(words[i : i + GRAM]) in grams for k in range(GRAM)}
        shares.append(len(inside) / len(words) if len(words) >= GRAM else math.nan)
    return shares


words = st.sampled_from(["قال", "من", "في"])
text = st.one_of(
    st.lists(words, max_size=30).map(" ".join),
    st.integers(0, 10).map(lambda start: " ".join(str(n) for n in range(start, start + 20))),
)


@given(st.lists(text, max_size=4), st.lists(text, max_size=4))
def test_shares_equal_brute_force(test: list[str], train: list[str]) -> None:
    batches = [pa.array(train[:1], pa.string()), pa.array(train[1:], pa.string())]
    np.testing.assert_allclose(covered(test, batches), brute(test, train))


def test_a_copied_document_is_covered_and_another_is_not() -> None:
    numbers = [str(n) for n in range(200)]
    random.Random(1).shuffle(numbers)
    copied, own = " ".join(numbers[:50]), " ".join(numbers[100:150])
    train = pa.array(["مقدمة " + copied + " خاتمة", " ".join(numbers[140:160])])
    assert covered([copied, own, "قصير"], [train])[:2].tolist() == [1.0, 0.0]
    assert math.isnan(covered(["قصير"], [train])[0])


def test_an_ngram_does_not_cross_documents() -> None:
    words = [str(n) for n in range(20)]
    halves = pa.array([" ".join(words[:10]), " ".join(words[10:])])
    assert covered([" ".join(words)], [halves]).tolist() == [0.0]
