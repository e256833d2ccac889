"""How much of a test split was read: summaries over documents of every length."""

from __future__ import annotations

import pytest

from qalam_core.evaluation.contamination import contamination
from tests.conftest import sentences
from tests.corpus.test_fingerprints import read

TEXTS = sentences(40)


def test_copied_and_covered_are_shares_of_all_documents() -> None:
    found = contamination(TEXTS[20:30], read(*TEXTS[:22]))
    assert found.documents == 10
    assert found.copied == found.words_8.copied == found.words_13.copied == 0.2
    sizes = [len(text.split()) for text in TEXTS[20:30]]
    assert found.words_8.covered == pytest.approx(sum(sizes[:2]) / sum(sizes), abs=0.06)


def test_short_documents_count_when_they_were_read_exactly() -> None:
    """They have no n-grams, so that nothing else would be looked at."""
    found = contamination(["يقرأ القط", "يكتب الولد"], read("يقرأ القط.", TEXTS[0]))
    assert found.copied == 0.5


def test_a_paraphrase_has_short_runs_and_no_long_ones() -> None:
    texts = [f"{TEXTS[n]} {TEXTS[n + 1]}" for n in range(10)]
    changed = [" ".join("كلمة" if n % 10 == 9 else word for n, word in enumerate(text.split())) for text in texts]
    found = contamination(changed, read(*texts))
    assert found.words_13.copied == 0
    assert found.copied == found.words_8.copied == 1


def test_nothing_read_is_nothing_copied() -> None:
    assert contamination(TEXTS, read()).copied == 0
