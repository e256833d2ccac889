"""The suite that comes with the project: what its pairs are, and that no model passes it without reading context."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.evaluation.model_tests.cases import Pair, Suite
from qalam_core.recipe import ModelTests

SWAPPED = "word-order"  # its pairs have the same words


def pairs(normalisation: str = "standard") -> list[Pair]:
    suite = Suite.load(ModelTests.of("suite:arabic", 0.0), NORMALISATIONS[normalisation])
    assert all(isinstance(case, Pair) for case in suite.cases)
    return [case for case in suite.cases if isinstance(case, Pair)]


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_every_pair_can_be_judged_under_every_normalisation(normalisation: str) -> None:
    found = pairs(normalisation)
    assert len(found) >= 300
    counts = Counter(case.group for case in found)
    assert len(counts) >= 10
    assert min(counts.values()) >= 20
    assert len({case.id for case in found}) == len(found)
    assert len({text for case in found for text in (case.right, case.wrong)}) == 2 * len(found)


def contrast(case: Pair) -> tuple[str, str]:
    """The words in which the texts differ."""
    right, wrong = case.right.split(), case.wrong.split()
    assert len(right) == len(wrong), case.id
    (places,) = [[n for n, words in enumerate(zip(right, wrong, strict=True)) if words[0] != words[1]]]
    assert len(places) == 1, case.id
    return right[places[0]], wrong[places[0]]


def test_the_texts_differ_in_one_word_or_in_the_order_of_two_neighbours() -> None:
    for case in pairs():
        if case.group != SWAPPED:
            contrast(case)
            continue
        right, wrong = case.right.split(), case.wrong.split()
        first, second = (n for n, words in enumerate(zip(right, wrong, strict=True)) if words[0] != words[1])
        assert second == first + 1, case.id
        assert (right[first], right[second]) == (wrong[second], wrong[first]), case.id


def test_each_form_is_right_as_often_as_it_is_wrong() -> None:
    """So neither masculine nor feminine, long nor short, frequent nor rare words are right more often."""
    counts = Counter((case.group, *contrast(case)) for case in pairs() if case.group != SWAPPED)
    assert all(counts[group, wrong, right] == count for (group, right, wrong), count in counts.items())
    longer = [len(case.right) - len(case.wrong) for case in pairs()]
    assert sum(size > 0 for size in longer) == sum(size < 0 for size in longer)


def test_a_model_without_context_passes_half() -> None:
    """Any unigram: here one with a random cost for each word, under which swapped words are a tie."""
    cost: dict[str, float] = {}
    chosen = random.Random(1)

    def nats(text: str) -> float:
        return sum(cost.setdefault(word, chosen.expovariate(1)) for word in sorted(text.split()))

    for group in {case.group for case in pairs()} - {SWAPPED}:
        passed = [nats(case.right) < nats(case.wrong) for case in pairs() if case.group == group]
        assert sum(passed) * 2 == len(passed), group


def test_shuffled_pairs_are_near_half() -> None:
    """A rule that sees the texts alone, such as the shorter or the first in the alphabet, on sides that are drawn."""
    chosen = random.Random(2)
    drawn = [(case.right, case.wrong) if chosen.random() < 0.5 else (case.wrong, case.right) for case in pairs()]
    for rule in (lambda text: (text,), lambda text: (len(text), text)):
        assert 0.45 < sum(rule(one) < rule(other) for one, other in drawn) / len(drawn) < 0.55
