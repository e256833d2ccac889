"""Repairing text that was decoded with the wrong encoding: damaged text is restored, other text is unchanged."""

from __future__ import annotations

import time
from random import Random

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


ENCODINGS = ("cp1252", "cp1254", "latin-1")
emoji = st.text(alphabet="🚀😀😁❌✅📝🎉💡⭐☁\ufe0f\u200d👍🏽🇸🇦→—│─┐", max_size=5)
mixed = st.tuples(texts, emoji, anything, emoji).map(" ".join)


def shown(data: bytes, encoding: str, lost: str | None = None) -> str:
    """Decode wrongly. The bytes that an encoding leaves undefined pass through, as in browsers; or they are lost, and
    the characters `lost` with them."""
    if lost is None:
        return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in data)
    return "".join(char for char in data.decode(encoding, "ignore") if char not in lost)


def as_cp1252(data: bytes) -> str:
    return shown(data, "cp1252")


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=mixed)
def test_utf8_that_was_read_otherwise_is_restored(encoding: str, text: str) -> None:
    once = shown(text.encode(), encoding)
    assert repair(once) == (text, "whole")
    assert repair(shown(once.encode(), encoding)) == (text, "whole")


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=texts)
def test_cp1256_that_was_read_otherwise_is_restored(encoding: str, text: str) -> None:
    data = text.encode("cp1256", "ignore")
    once = shown(data, encoding)
    assert repair(once) == (data.decode("cp1256"), "whole")
    assert repair(shown(once.encode(), encoding)) == (data.decode("cp1256"), "whole")


@pytest.mark.parametrize("encoding", ["cp1256", "mac_roman", "cp1251", "cp437", "cp850"])
@given(text=mixed, times=st.integers(1, 2))
def test_utf8_that_was_read_as_another_encoding_is_restored(encoding: str, text: str, times: int) -> None:
    damaged = shown(text.encode(), encoding)
    for _ in range(times - 1):
        damaged = as_cp1252(damaged.encode())
    assert repair(damaged) == (text, "whole")


@pytest.mark.parametrize("encoding", ["cp1256", "mac_roman", "cp1251", "cp437", "cp850"])
@given(
    words=st.lists(arabic_words, min_size=2, max_size=8),
    lost=st.sampled_from(["\u00ad", "\u00a0", "\u200c\u200d", "\u00a0\u00ad\u200c"]),
)
def test_of_another_encoding_what_is_lost_is_no_other_word(encoding: str, words: list[str], lost: str) -> None:
    """Words of which too little is left stay as they are."""
    text = " ".join(words)
    damaged = shown(text.encode(), encoding, lost)
    repaired, outcome = repair(damaged)
    assert repaired == (text if outcome == "whole" else repaired if outcome == "part" else damaged)


def test_what_is_not_damaged_in_a_damaged_text_stays() -> None:
    clean = "ما أسعد الحظ، وما أقل الوعظ؛ فهل انقطع؟ «لفظ»"
    assert repair(f"{clean} {shown('السلام عليكم'.encode(), 'cp1256')}") == (f"{clean} السلام عليكم", "whole")


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(
    words=st.lists(
        st.sampled_from(["قال", "فيه", "الذي", "هو", "على", "كتاب", "وقد", "كانت", "هذه", "له", "من", "أهل"]),
        min_size=8,
    )
)
def test_iso_8859_6_is_not_taken_for_cp1256(encoding: str, words: list[str]) -> None:
    text = " ".join(["وقال إنه", *words])
    damaged = shown(text.encode("iso8859-6"), encoding)
    assert repair(damaged) in ((text, "whole"), (damaged, ""))
    assert repair(shown("السلام عليكم ورحمة الله وبركاته".encode("iso8859-6"), encoding))[1] == "whole"


@pytest.mark.parametrize("text", ["Ã" + "\x83" * 3000, "Ã" + "\x83" * 3000 + "\x98Â§Ù„Ù…" * 9, "ط§ظ„ط§" * 3000])
def test_a_text_that_was_made_to_nest_takes_few_steps(text: str) -> None:
    since = time.process_time()
    repair(text)
    assert time.process_time() - since < 5


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=mixed, times=st.integers(3, 5))
def test_damage_that_happened_several_times_is_undone(encoding: str, text: str, times: int) -> None:
    damaged = text
    for _ in range(times):
        damaged = shown(damaged.encode(), encoding)
    assert repair(damaged) == (text, "whole")


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=mixed, lost=st.sampled_from(["", "\u00ad", "\u00ad\u00a0", "".join(map(chr, range(0x80, 0xA0)))]))
def test_where_bytes_are_lost_it_is_said(encoding: str, text: str, lost: str) -> None:
    for damaged in (once := shown(text.encode(), encoding, lost), shown(once.encode(), encoding, lost)):
        repaired, outcome = repair(damaged)
        assert repaired in (text, damaged) or outcome in ("part", "not")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_letters_that_are_lost_most_often(encoding: str) -> None:
    text = "الفرق في الحجم وحفظ الملفات \u274c"
    repaired, outcome = repair(shown(text.encode(), encoding, "\u0081\u008d\u008f\u0090\u009d\u00ad"))
    assert (outcome, repaired[:4]) == ("part", "الÙ\u0631")


def test_every_letter_is_restored_among_others() -> None:
    for code in range(0x600, 0x700):
        text = f"سلام {chr(code)} سلام"
        assert repair(as_cp1252(text.encode())) == (text, "whole")


@pytest.mark.parametrize(
    ("damaged", "meant"),
    [
        ("ãÑÍÈÇ", "مرحبا"),
        ("Ù…Ø±Ø­Ø¨Ø§", "مرحبا"),
        (as_cp1252(as_cp1252("مرحبا بك".encode()).encode()), "مرحبا بك"),  # twice
        ("cafÃ© trÃ¨s bon", "café très bon"),
        ("نص سليم ðŸš€ وآخر", "نص سليم 🚀 وآخر"),
        ("نص سليم ğŸš€ وآخر", "نص سليم 🚀 وآخر"),
        (
            "ÕÍíÍ Ãä ãæÇÞÚ ÇáÊæÇÕá jQuery(document).ready(function(){})",
            "صحيح أن مواقع التواصل jQuery(document).ready(function(){})",
        ),
    ],
)  # fmt: skip
def test_known_damage_is_repaired(damaged: str, meant: str) -> None:
    assert repair(damaged) == (meant, "whole")


french_words = (
    "été « Où … » OÙ… créée ÉTÉ À côté l’œuvre Noël, ça naïve – «été» “déjà” Âge ÎLE PÂTÉ déçu; café? 5 £ © élève’"
)
french = st.lists(st.sampled_from(french_words.split()), max_size=30).map(" ".join)


CLEAN = {
    "French": "Où étiez-vous l’été dernier ? À côté… « ÇA DÉPEND », voilà “l’œuvre” où Noël a déçu l’élève 5 £ ©",
    "Turkish": "İŞÇİ üçü birden öğüt verdi, dağ’ın ÖĞLEN güneşi… ığıl ÜÇÜ bağımsız “ŞİİR” güçlü çığ İÇİN üçüncü",
    "German": "ÄÖÜ sind Umlaute; Übergröße „für Öl“ äöü Straße süß ÜBERÄÖÜ – Äöü",
    "Icelandic": "Þá óðýr æði ÍÞÆ greip hann áðan íþróttaáætlun til að þýða “öðrum” og ÞÓ úða Reykjavík ð… Æ",
    "Vietnamese": "Đã có người Việt Nam ở đây, “không” phải ÂU Á ÔÍ õng ẩn ÃÂ… ÊU ÚÝ ÒÀ",
    "Persian": "می\u200cخواهم کتاب‌های «گچ پژ» را ۱۲۳ بخوانم؛ چه؟",
    "Urdu": "یہ اُردو کا جملہ ہے، ٹھیک ڈاکٹر ڑ ں ہۂ ۓ ۴۵۶۔",
    "Sorani": "ئەم کتێبە بۆ خوێندکارانی کوردە، گەورە و بچووک؛ ژیان چۆنە؟ ڕێگا، «پەیڤ» ھێشتا",
    "Persian birds": "عکعک شغک، تکتک چکچک پچپچ غژغژ غ\u200cغ؛ ظ، ط؟ ع«غ» ظ… ط§",
    "Russian": "Щёки, ЩЁЛКА и Ёж: «Шёпот» № 5 — ЪЁ ШЁЩЁ щи",
    "tables": "┌──┬──┐│ ├─┼─┤ └┴┘ ║═╬ ░▒▓█▒█▒█░█▓█░ ┘│┘ ÿ Ÿ Ï Øre ØRE",
    "Arabic": "قال: «نعم» — ثم مضى… ١٢٣؟ × ÷ © 30° café 🚀",
    "code": 'for i in range(10): print(f"{x!r} ± {y} ¬ §3 «a» µ² Ÿ")  // été ÀÉÈ',
}


@pytest.mark.parametrize("language", CLEAN)
@given(random=st.randoms(use_true_random=False))
def test_undamaged_text_is_not_changed(language: str, random: Random) -> None:
    words = CLEAN[language].split()
    random.shuffle(words)
    for text in (CLEAN[language], " ".join(words), "\n".join(words)):
        assert repair(text) == (text, "")


@given(st.one_of(texts, mixed, st.text(alphabet="abcDEF .,'\n", max_size=40)))
def test_undamaged_arabic_is_not_changed(text: str) -> None:
    assert repair(text) == (text, "")


def test_each_text_has_an_outcome() -> None:
    values = ["مرحبا", "ãÑÍÈÇ", "", "été à Âge", "ÃÃÃ plain words of English around it, many of them", "Ø§Ù„Ùˆ ÙÙ"]
    repaired, outcomes = repair_array(pa.array(values, pa.large_string()))
    assert repaired.to_pylist() == ["مرحبا", "مرحبا", *values[2:5], "الو ÙÙ"]
    assert outcomes.tolist() == ["", "whole", "", "", "", "part"]
    assert repaired.type == pa.large_string()
