"""What changed between two tokenizers."""

from __future__ import annotations

import pytest

from qalam_core.arabic import NORMALISATIONS
from qalam_core.review import tokenizer
from qalam_core.review.tokenizer import tokenizer_changes
from tests.review.small_models import VOCABULARY, WORDS, package, texts
from tests.review.test_reading import bpe


def test_the_same_tokenizer_shows_nothing() -> None:
    found = tokenizer_changes(package(), package(1), {"held-out text": texts(3)})
    assert found.same
    assert (found.gained, found.lost, found.renumbered, found.alarms, found.unavailable) == (0, 0, 0, (), ())
    assert found.texts[0].old == found.texts[0].new == 1.0


def test_words_gained_lost_and_renumbered() -> None:
    words = (*WORDS[:4], "جديد", *WORDS[5:])
    renumbered = (*words[:-2], words[-1], words[-2])
    found = tokenizer_changes(package(), package(1, VOCABULARY._replace(words=renumbered)), {})
    assert (found.gained_words, found.lost_words, found.renumbered) == (("جديد",), (WORDS[4],), 2)
    assert not found.same


def test_raw_text_is_given_with_its_marks() -> None:
    """A tokenizer that keeps vowel marks takes more tokens for vocalised text, and as many for plain text."""
    plain, vocalised = ["كتب الولد الدرس"] * 20, ["كَتَبَ الوَلَدُ الدَّرْسَ"] * 20
    keeps = bpe(320).vocabulary._replace(rules=NORMALISATIONS["vocalised"])
    found = tokenizer_changes(
        package(0, bpe(320).vocabulary), package(0, keeps), {"raw text": vocalised, "plain": plain}
    )
    assert [text.name for text in found.texts if text.new > 1.3 * text.old] == ["raw text"]
    assert found.texts[0].old == found.texts[1].old
    assert found.normalisation_changed
    assert [alarm.message.partition(" ")[0] for alarm in found.alarms] == ["Text", "The"]


def test_unknown_words_raise_an_alarm() -> None:
    found = tokenizer_changes(
        package(), package(0, VOCABULARY._replace(words=WORDS[:100])), {"held-out text": texts(9)}
    )
    assert found.texts[0].new_unknown > 0.5 > found.texts[0].old_unknown
    assert "of the tokens of the held-out text are unknown" in found.alarms[0].message


def test_text_that_is_not_there_is_said() -> None:
    found = tokenizer_changes(package(), package(), {"raw text": [], "held-out text": [""]})
    assert found.texts == ()
    assert len(found.unavailable) == 2


def test_a_huge_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "TEXT_BYTES", 1000)
    found = tokenizer_changes(package(), package(), {"raw text": ["كلمة " * 10_000, "كلمة"]})
    assert found.texts[0].words == 200
