from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise, normalise_array
from qalam_core.tokens.tokenizer import ArabicTokenizer

ARABIC = st.text(
    st.one_of(
        st.characters(min_codepoint=0x600, max_codepoint=0x6FF),
        st.characters(min_codepoint=0xFB50, max_codepoint=0xFDFF),
        st.characters(min_codepoint=0xFE70, max_codepoint=0xFEFF),
        st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u200b\u200f\u202e\u0640\ufeffaB1é"),
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("standard", "كَتَبَ الطَّالِبُ الـــدَّرْسَ", "كتب الطالب الدرس"),
        ("vocalised", "كَتَبَ الـــطَّالِبُ", "كَتَبَ الطَّالِبُ"),
        ("search", "إلى المدرسةِ أوّلاً", "الي المدرسه اولا"),
        ("standard", "ﷺ ﻻ", "صلى الله عليه وسلم لا"),
        ("standard", "\u200fنص\u202e \ufeffآخر\u2066", "نص آخر"),
        ("standard", " سطر \r\n\r\n آخر\u2028ثالث ", "سطر\nآخر\nثالث"),
        ("standard", "أ\tب\u00a0\u00a0ج", "أ ب ج"),
        ("standard", "", ""),
    ],
)
def test_normalise(name: str, text: str, expected: str) -> None:
    assert normalise(text, NORMALISATIONS[name]) == expected


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(text=ARABIC)
def test_normalising_twice_changes_nothing(name: str, text: str) -> None:
    rules = NORMALISATIONS[name]
    once = normalise(text, rules)
    assert normalise(once, rules) == once


@pytest.mark.parametrize("name", NORMALISATIONS)
@given(text=ARABIC)
def test_the_tokenizer_normalises_equally(name: str, text: str) -> None:
    rules = NORMALISATIONS[name]
    tokenizer = ArabicTokenizer(rules=rules)
    assert tokenizer._tokenizer.normalizer.normalize_str(text) == normalise(text, rules)


def test_an_array_keeps_length_type_and_nulls() -> None:
    texts = pa.array(["كَتَبَ", None, ""], pa.large_string())
    result = normalise_array(texts, NORMALISATIONS["standard"])
    assert result.type == texts.type
    assert result.to_pylist() == ["كتب", None, ""]
