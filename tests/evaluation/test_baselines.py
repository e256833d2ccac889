"""The baselines against hand-computed values, against a plain slow reference, and as probabilities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.evaluation.baselines import KneserNeyTrigram, Speller, Unigram

START, END = 2, 3
V = 9

documents = st.lists(st.lists(st.integers(4, V - 1), max_size=8), min_size=1, max_size=12)


def stream(docs: list[list[int]], dtype: type = np.uint16) -> np.ndarray:
    return np.array([token for doc in docs for token in [START, *doc, END]], dtype=dtype)


class SlowKneserNey:
    """The same model with dictionaries, one n-gram at a time."""

    def __init__(self, docs: list[list[int]]) -> None:
        trigrams: Counter[tuple[int, int, int]] = Counter()
        openings: Counter[tuple[int, int]] = Counter()
        for doc in docs:
            words = [START, *doc, END]
            openings[(START, words[1])] += 1
            for i in range(2, len(words)):
                trigrams[(words[i - 2], words[i - 1], words[i])] += 1
        before = defaultdict(set)
        for u, v, w in trigrams:
            before[(v, w)].add(u)
        bigrams = Counter({pair: len(us) for pair, us in before.items()})
        bigrams.update(openings)
        left = defaultdict(set)
        for v, w in bigrams:
            left[w].add(v)
        self.orders: list[dict[Any, int]] = [
            {((), w): len(vs) for w, vs in left.items()},
            {((v,), w): n for (v, w), n in bigrams.items()},
            {((u, v), w): n for (u, v, w), n in trigrams.items()},
        ]

    def probability(self, context: tuple[int, ...], word: int) -> float:
        lower = 1 / V
        for order, counts in enumerate(self.orders[: len(context) + 1]):
            here = context[len(context) - order :]
            followers = {w: n for (c, w), n in counts.items() if c == here}
            if not followers:
                continue
            once = sum(n == 1 for n in counts.values())
            twice = sum(n == 2 for n in counts.values())
            discount = once / (once + 2 * twice) if once else 0.5
            kept = max(followers.get(word, 0) - discount, 0)
            lower = (kept + discount * len(followers) * lower) / sum(followers.values())
        return lower


def test_unigram_by_hand() -> None:
    model = Unigram.fit([stream([[4, 4, 5]])], V)  # 4 twice, 5 once, END once: N = 4
    nats = model.nats(np.array([START, 4, 6, END]))
    assert nats == pytest.approx([0, -math.log(3 / 13), -math.log(1 / 13), -math.log(2 / 13)])


def test_unigram_smoothing_strength() -> None:
    model = Unigram.fit([stream([[4]])], V, k=0.5)
    assert model.nats(np.array([5])) == pytest.approx([-math.log(0.5 / (2 + 0.5 * V))])


def test_trigram_by_hand() -> None:
    # documents [4 5] and [4 6]: trigrams S45 S46 45E 46E once each, so D3 = 1 and context (S, 4) gives
    # everything to the bigrams. Bigrams: S4 twice (plain count), 45 46 5E 6E once: D2 = 4/(4+2) = 2/3.
    # Words by distinct words before: 4, 5, 6 one each, END two: D1 = 3/(3+2) = 3/5, total 5.
    p1_of_4 = (1 - 3 / 5) / 5 + 3 / 5 * 4 / 5 / V
    p2_of_5_after_4 = (1 - 2 / 3) / 2 + 2 / 3 * 2 / 2 * p1_of_4  # 5 is as frequent as 4
    p2_of_4_after_start = (2 - 2 / 3) / 2 + 2 / 3 * 1 / 2 * p1_of_4
    nats = KneserNeyTrigram.fit([stream([[4, 5], [4, 6]])], V).nats(np.array([START, 4, 5]))
    assert nats == pytest.approx([0, -math.log(p2_of_4_after_start), -math.log(p2_of_5_after_4)])


@given(documents, documents)
@settings(max_examples=60, deadline=None)
def test_trigram_equals_the_slow_reference(train: list[list[int]], test: list[list[int]]) -> None:
    slow = SlowKneserNey(train)
    expected = []
    for doc in test:
        words = [START, *doc, END]
        contexts = [tuple(words[max(0, i - 2) : i]) for i in range(1, len(words))]
        expected += [0.0] + [-math.log(slow.probability(c, w)) for c, w in zip(contexts, words[1:], strict=True)]
    assert KneserNeyTrigram.fit([stream(train)], V).nats(stream(test)) == pytest.approx(expected, rel=1e-12)


@given(documents, st.lists(st.integers(0, V - 1).filter(lambda token: token != START), max_size=4))
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one(train: list[list[int]], context: list[int]) -> None:
    trigram = KneserNeyTrigram.fit([stream(train)], V)
    unigram = Unigram.fit([stream(train)], V)
    # START itself is scored 0 by convention, so its probability (uniform floor only) is left out and bounded
    words = [w for w in range(V) if w != START]
    total = sum(math.exp(-trigram.nats(np.array([START, *context, w]))[-1]) for w in words)
    slow = SlowKneserNey(train).probability(tuple([START, *context][-2:]), START)
    assert total + slow == pytest.approx(1)
    assert sum(np.exp(-unigram.nats_by_id)) == pytest.approx(1)


def test_contexts_do_not_cross_documents() -> None:
    model = KneserNeyTrigram.fit([stream([[4, 5], [6, 7]])], V)
    apart = np.concatenate([model.nats(stream([[4, 5]])), model.nats(stream([[6, 7]]))])
    assert model.nats(stream([[4, 5], [6, 7]])) == pytest.approx(apart)


def test_parts_count_as_one_stream_and_the_limit_holds() -> None:
    docs = [[4, 5, 6], [5, 6], [6, 4, 4]]
    together = KneserNeyTrigram.fit([stream(docs)], V)
    parts = KneserNeyTrigram.fit([stream(docs[:1]), stream(docs[1:], np.uint32)], V)
    test = stream([[4, 5, 6, 4, 4]])
    assert parts.nats(test) == pytest.approx(together.nats(test))
    limited = KneserNeyTrigram.fit([stream(docs)], V, max_tokens=5)  # START 4 5 6 END
    assert limited.nats(test) == pytest.approx(KneserNeyTrigram.fit([stream(docs[:1])], V).nats(test))


def test_without_training_text_all_tokens_are_alike() -> None:
    for model in (KneserNeyTrigram.fit([], V), Unigram.fit([], V)):
        assert model.nats(np.array([START, 4, END])) == pytest.approx([0, math.log(V), math.log(V)])


def test_vocabulary_beyond_the_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        KneserNeyTrigram.fit([stream([[4]])], 2**21 + 1)
    top = 2**21 - 1  # the largest id that fits
    model = KneserNeyTrigram.fit([stream([[top, top, 4]], np.uint32)], 2**21)
    assert model.nats(np.array([START, top, top, 4], np.uint32))[1:].max() < math.log(2**21)


def test_speller_by_hand() -> None:
    speller = Speller.fit(["اب", "ا"])  # two letters, the end, the other: A = 4
    begins, ends = 3 / (2 + 4), 2 / (2 + 4)  # edge-alef twice of two; alef-edge once of two
    assert speller.nats("ا") == pytest.approx(-math.log(begins) - math.log(ends))
    stranger = -math.log(1 / (2 + 4)) - math.log(1 / 4) + math.log(0x110000)
    assert speller.nats("ج") == pytest.approx(stranger)


def test_speller_is_a_probability() -> None:
    speller = Speller.fit(["اب", "ا", "باب"])
    for before in [*speller.alphabet, Speller.EDGE, Speller.OTHER]:
        after = [*speller.alphabet, Speller.EDGE, Speller.OTHER]
        total = sum((speller.pairs[(before, b)] + 1) / (speller.singles[before] + 4) for b in after)
        assert total == pytest.approx(1)
    assert speller.nats("اب") < speller.nats("بببب")
