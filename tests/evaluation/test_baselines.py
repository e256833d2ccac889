"""The baselines against hand-computed values, against a plain slow reference, and as probabilities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qalam_core.evaluation import baselines
from qalam_core.evaluation.baselines import CHARACTERS, KneserNey, Speller, Unigram, characters
from tests.conftest import examples

START, END = 2, 3
V = 9

documents = st.lists(st.lists(st.integers(4, V - 1), max_size=8), min_size=1, max_size=12)


def stream(docs: list[list[int]], dtype: type = np.uint16) -> np.ndarray:
    return np.array([token for doc in docs for token in [START, *doc, END]], dtype=dtype)


class SlowKneserNey:
    """The same model with dictionaries, one n-gram at a time."""

    def __init__(self, docs: list[list[int]], order: int) -> None:
        seen: Counter[tuple[int, ...]] = Counter()
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for doc in docs:
            words = [START, *doc, END]
            for i in range(1, len(words)):
                for n in range(1, min(order, i + 1) + 1):
                    gram = tuple(words[i - n + 1 : i + 1])
                    seen[gram] += 1
                    if i >= n:
                        before[gram].add(words[i - n])
        self.orders: list[dict[tuple[int, ...], int]] = [{} for _ in range(order)]
        for gram, count in seen.items():
            plain = len(gram) == order or gram[0] == START
            self.orders[len(gram) - 1][gram] = count if plain else len(before[gram])

    def probability(self, context: tuple[int, ...], word: int) -> float:
        lower = 1 / V
        for order, counts in enumerate(self.orders[: len(context) + 1]):
            here = context[len(context) - order :]
            followers = {gram[-1]: n for gram, n in counts.items() if gram[:-1] == here}
            if not followers:
                continue
            once = sum(n == 1 for n in counts.values())
            twice = sum(n == 2 for n in counts.values())
            discount = once / (once + 2 * twice) if once else 0.5
            kept = max(followers.get(word, 0) - discount, 0)
            lower = (kept + discount * len(followers) * lower) / sum(followers.values())
        return lower

    def nats(self, docs: list[list[int]]) -> list[float]:
        order = len(self.orders)
        found = []
        for doc in docs:
            words = [START, *doc, END]
            contexts = [tuple(words[max(0, i - order + 1) : i]) for i in range(1, len(words))]
            found += [0.0] + [-math.log(self.probability(c, w)) for c, w in zip(contexts, words[1:], strict=True)]
        return found


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
    nats = KneserNey.fit([stream([[4, 5], [4, 6]])], V, 3).nats(np.array([START, 4, 5]))
    assert nats == pytest.approx([0, -math.log(p2_of_4_after_start), -math.log(p2_of_5_after_4)])


@given(documents, documents, st.integers(1, 10), st.sampled_from([12, 24, 64]))
@settings(max_examples=examples(60), deadline=None)
def test_ngrams_equal_the_slow_reference(
    train: list[list[int]], test: list[list[int]], order: int, key_bits: int
) -> None:
    """Also where a number holds a few symbols only, so that n-grams are compared in several steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_KEY_BITS", key_bits)
        found = KneserNey.fit([stream(train)], V, order).nats(stream(test))
    assert found == pytest.approx(SlowKneserNey(train, order).nats(test), rel=1e-9)


@given(documents, st.lists(st.integers(0, V - 1).filter(lambda token: token != START), max_size=6), st.integers(1, 6))
@settings(max_examples=examples(60), deadline=None)
def test_probabilities_sum_to_one(train: list[list[int]], context: list[int], order: int) -> None:
    model, unigram = KneserNey.fit([stream(train)], V, order), Unigram.fit([stream(train)], V)
    # START itself is scored 0 by convention, so its probability (uniform floor only) is left out and bounded
    words = [w for w in range(V) if w != START]
    scored = model.nats(np.array([token for w in words for token in (START, *context, w)]))
    total = np.exp(-scored[len(context) + 1 :: len(context) + 2]).sum()
    whole = [START, *context]
    slow = SlowKneserNey(train, order).probability(tuple(whole[max(0, len(whole) - order + 1) :]), START)
    assert total + slow == pytest.approx(1)
    assert sum(np.exp(-unigram.nats_by_id)) == pytest.approx(1)


def test_contexts_do_not_cross_documents() -> None:
    model = KneserNey.fit([stream([[4, 5], [6, 7]])], V, 3)
    apart = np.concatenate([model.nats(stream([[4, 5]])), model.nats(stream([[6, 7]]))])
    assert model.nats(stream([[4, 5], [6, 7]])) == pytest.approx(apart)


def test_parts_count_as_one_stream() -> None:
    docs = [[4, 5, 6], [5, 6], [6, 4, 4]]
    test, parts = stream([[4, 5, 6, 4, 4]]), [stream(docs[:1]), stream(docs[1:], np.uint32)]
    together = KneserNey.fit([stream(docs)], V, 3)
    assert KneserNey.fit(parts, V, 3).nats(test) == pytest.approx(together.nats(test))
    assert Unigram.fit(parts, V).nats(test) == pytest.approx(Unigram.fit([stream(docs)], V).nats(test))


def test_what_is_scored_is_not_counted() -> None:
    model = KneserNey.fit([stream([[4, 5, 6]])], V, 3)
    once = model.nats(stream([[7, 8]]))
    assert model.nats(stream([[7, 8]] * 5)) == pytest.approx(np.tile(once, 5))


def test_without_training_text_all_tokens_are_alike() -> None:
    for model in (KneserNey.fit([], V, 4), Unigram.fit([], V)):
        assert model.nats(np.array([START, 4, END])) == pytest.approx([0, math.log(V), math.log(V)])


def test_large_ids() -> None:
    top = 2**21 - 1
    model = KneserNey.fit([stream([[top, top, 4]], np.uint32)], 2**21, 4)
    assert model.nats(np.array([START, top, top, 4], np.uint32))[1:].max() < math.log(2**21)


def test_characters_are_code_points_between_borders() -> None:
    found = characters(pa.array(["اب", "", "\0\U0001f600"], pa.large_string()))
    assert found.tolist() == [START, 4 + 0x627, 4 + 0x628, END, START, END, START, 4, 4 + 0x1F600, END]
    assert found.max() < CHARACTERS
    assert not len(characters(pa.array([], pa.large_string())))


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
