"""Repairing text that was decoded with the wrong encoding: damaged text is restored, other text is unchanged."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.corpus.mojibake import repair, repair_array

LETTERS = "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئةى"
# words of Arabic with its punctuation, digits, marks, quotation marks, presentation forms and controls among them
arabic_words = st.text(alphabet=LETTERS, min_size=3, max_size=8)
anything = st.text(alphabet=LETTERS + " \n،؛؟.!٠١٢٣«»—“”…\u064b\u064e\u0651\u0640\u200f\u200cﷺﻻپچگ2026ab", max_size=60)
texts = st.tuples(arabic_words, anything, arabic_words).map(" ".join)


def as_cp1252(data: bytes) -> str:
    """Decode as browsers do: the five bytes that cp1252 leaves undefined pass through."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data)


@given(texts)
def test_utf8_that_was_read_as_latin_is_restored(text: str) -> None:
    assert repair(as_cp1252(text.encode())) == text
    assert repair(text.encode().decode("latin-1")) == text


@given(texts)
def test_cp1256_that_was_read_as_latin_is_restored(text: str) -> None:
    data = text.encode("cp1256", "ignore")
    assert repair(as_cp1252(data)) == data.decode("cp1256")
    assert repair(data.decode("latin-1")) == data.decode("cp1256")


def test_every_letter_is_restored_among_others() -> None:
    for code in range(0x600, 0x700):
        text = f"سلام {chr(code)} سلام"
        assert repair(as_cp1252(text.encode())) == text


@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("ãÑÍÈÇ", "مرحبا"),
        ("Ù…Ø±Ø­Ø¨Ø§", "مرحبا"),
        (as_cp1252(as_cp1252("مرحبا بك".encode()).encode()), "مرحبا بك"),  # twice
        ("cafÃ© trÃ¨s bon", "café très bon"),
        (
            "ÕÍíÍ Ãä ãæÇÞÚ ÇáÊæÇÕá jQuery(document).ready(function(){})",
            "صحيح أن مواقع التواصل jQuery(document).ready(function(){})",
        ),
    ],
)  # fmt: skip
def test_known_damage_is_repaired(damaged: str, meant: str) -> None:
    assert repair(damaged) == meant


french_words = (
    "été « Où … » OÙ… créée ÉTÉ À côté l’œuvre Noël, ça naïve – «été» “déjà” Âge ÎLE PÂTÉ déçu; café? 5 £ © élève’"
)
french = st.lists(st.sampled_from(french_words.split()), max_size=30).map(" ".join)


@given(st.one_of(texts, french, st.text(alphabet="abcDEF .,'\n", max_size=40)))
def test_undamaged_text_is_not_changed(text: str) -> None:
    assert repair(text) == text


def test_only_what_changed_is_marked_as_changed() -> None:
    values = ["مرحبا", "ãÑÍÈÇ", "", "été à Âge", "ÃÃÃ plain words of English around it, many of them"]
    repaired, changed = repair_array(pa.array(values, pa.large_string()))
    assert repaired.to_pylist() == ["مرحبا", "مرحبا", *values[2:]]
    assert changed.tolist() == [False, True, False, False, False]
    assert repaired.type == pa.large_string()
