"""How much of a test split was read: summaries over documents of every length."""

from __future__ import annotations

import pyarrow as pa
import pytest

from qalam_core.evaluation.contamination import contamination, repetition
from tests.conftest import sentences
from tests.corpus.test_fingerprints import read

TEXTS = sentences(40)


def test_copied_and_covered_are_shares_of_all_documents() -> None:
    found = contamination(TEXTS[20:30], read(*TEXTS[:22]))
    assert found.documents == 10
    assert found.worst.copied == found.words_8.copied == found.words_13.copied == 0.2
    sizes = [len(text.split()) for text in TEXTS[20:30]]
    assert found.words_8.covered == pytest.approx(sum(sizes[:2]) / sum(sizes), abs=0.06)


def test_short_documents_count_when_they_were_read_exactly() -> None:
    """They have no n-grams, so that nothing else would be looked at."""
    found = contamination(["يقرأ القط", "يكتب الولد"], read("يقرأ القط.", TEXTS[0]))
    assert found.worst.copied == 0.5


def test_a_paraphrase_has_short_runs_and_no_long_ones() -> None:
    texts = [f"{TEXTS[n]} {TEXTS[n + 1]}" for n in range(10)]
    changed = [" ".join("كلمة" if n % 10 == 9 else word for n, word in enumerate(text.split())) for text in texts]
    found = contamination(changed, read(*texts))
    assert found.words_13.copied == 0
    assert found.worst.copied == found.words_8.copied == 1


def test_nothing_read_is_nothing_copied() -> None:
    assert contamination(TEXTS, read()).worst.copied == 0


FORMULA = " ".join(TEXTS[:6])


def repetitive(count: int, start: int = 0) -> list[str]:
    """Documents of which a third is mostly a formula that all of the third share."""
    texts = (" ".join(f"كلمة{number}س{place}" for place in range(12)) for number in range(start, start + count))
    return [f"{FORMULA} {text}" if number % 3 == 0 else text for number, text in enumerate(texts)]


def test_a_formula_that_training_documents_share_is_expected_of_test_documents() -> None:
    others, sample, test = repetitive(300), repetitive(60, 300), repetitive(60, 360)
    control = repetition(pa.array(sample), read(*others))
    assert control.documents == 60
    found = contamination(test, read(*others), control)
    assert found.worst.copied == pytest.approx(control.words_8 / 60)
    assert 0 < found.worst.copied < found.worst.expected


def test_a_leak_shows_beside_the_formula() -> None:
    others, test = repetitive(300), repetitive(60, 360)
    control = repetition(pa.array(repetitive(60, 300)), read(*others))
    found = contamination(test, read(*others, *test), control)
    assert found.worst.copied == 1
    assert found.worst.expected <= 0.5


def test_copies_of_everything_are_not_excused_by_the_control() -> None:
    """Two sources with the same text, cut differently: the training documents repeat each other as well."""
    others = [" ".join(TEXTS[n : n + 3]) for n in range(0, 39, 3)]
    control = repetition(pa.array(TEXTS[:20]), read(*others))
    assert control.words_8 == 20
    found = contamination(TEXTS[20:38], read(*others), control)
    assert found.worst.copied - found.worst.expected == 0.5


def test_without_a_control_nothing_is_expected() -> None:
    assert contamination(TEXTS[:5], read(*TEXTS)).worst.expected == 0
