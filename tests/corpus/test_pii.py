"""Masking of e-mail addresses, phone numbers and IBANs."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.arabic import normalise
from qalam_core.corpus.exclusion import Excluded
from qalam_core.corpus.filters import FilterSettings, filter_batch
from qalam_core.corpus.pii import mask, mask_array
from qalam_core.recipe import Corpus

ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
PERSIAN = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")


@pytest.mark.parametrize("digits", [{}, ARABIC, PERSIAN])
@pytest.mark.parametrize(("text", "masked"), [
    ("هاتف: 0501234567", "هاتف: [phone]"),
    ("للتواصل 23456789 مساء", "للتواصل [phone] مساء"),
    ("اتصل على 920012345 (تحويلة 8)", "اتصل على [phone] (تحويلة 8)"),
    ("+966 50 123 4567، و00966501234567", "[phone]، و[phone]"),
    ("ابنه خالد (0501234567) وماجد 0507654321.", "ابنه خالد ([phone]) وماجد [phone]."),
    ("(02) 234-5678", "[phone]"),
    ("+1 (202) 555-0123 و+44 (0) 20 7946 0958", "[phone] و[phone]"),
    ("+966 (0)50 123 4567، 00966(50)1234567", "[phone]، [phone]"),
    ("(+966) 50 123 4567 وهاتف (02) 2345678", "([phone]) وهاتف ([phone])"),
    ("+966\u201050\u2010123\u20104567 أو 050–123–4567", "[phone] أو [phone]"),
    ("0501234567/0501234568، 0501234567,920012345", "[phone]/[phone]، [phone],920012345"),
    ("https://wa.me/966501234567", "https://wa.me/[phone]"),
    ("SA03 8000 0000 6080 1016 7519", "[iban]"),
    ("حسابه GB82WEST12345698765432.", "حسابه [iban]."),
])  # fmt: skip
def test_numbers_are_masked_in_every_kind_of_digits(text: str, masked: str, digits: dict[int, int]) -> None:
    assert mask(text.translate(digits)) == masked.translate(digits)


@pytest.mark.parametrize("digits", [{}, ARABIC, PERSIAN])
@pytest.mark.parametrize("text", [
    "في 01-02-2024 و05/12/2024 و2024/05/12", "07/11/2023 05:30", "00:12:34", "عام 1438 هـ 2017", "سورة 2 آية 255",
    "المبلغ 1000000 ريال", "100 000 000", "0.123456789", "0501234.5", "0501234,5", "0501234/5",
    "12\u066b03456789", "0\u066b03456789", "01234567\u066b5", "1\u066c0234567", "موبايلي 636250", "هاتف 19123",
    "https://example.com/0123456789012", "ISBN 9780306406157", "هاتف بلا رقم", "في 05–10–2017", "(3) 2017 (4)",
])  # fmt: skip
def test_other_numbers_stay(text: str, digits: dict[int, int]) -> None:
    assert mask(text.translate(digits)) == text.translate(digits)


@pytest.mark.parametrize(("text", "masked"), [
    ("راسلنا على info@news.com.sa أو a.b+c@x-y.org.", "راسلنا على [email] أو [email]."),
    ("@user و# و a@b", "@user و# و a@b"),
    ("mail:a_b@sub.domain.co,c@d.ae", "mail:[email],[email]"),
])  # fmt: skip
def test_addresses_are_masked(text: str, masked: str) -> None:
    assert mask(text) == masked


@given(st.lists(st.text("0123456789٠٥٩۰۵+()-/:. ,@aZSAهاتف\n", max_size=40), max_size=8))
def test_an_array_is_masked_as_its_texts(texts: list[str]) -> None:
    found, changed = mask_array(pa.array(texts, pa.large_string()))
    assert found.to_pylist() == [mask(text) for text in texts]
    assert changed.tolist() == [mask(text) != text for text in texts]


@pytest.mark.parametrize("piece", [
    "0", "0 ", "05 ", "+", "(0", "0501234/", "0501234567,", "0) -", "a@", "a.", "@a.", "هاتف", "هاتف 0 ", "SA00",
    "SA00 A", "A1 ", "00 +", "0(",
])  # fmt: skip
def test_masking_takes_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text, since = piece * (size // len(piece)), time.process_time()
        mask(text)
        return time.process_time() - since

    assert seconds(200_000) < 1.0


def test_a_filter_masks_counts_and_excludes_by_what_was_written() -> None:
    texts = [
        "كتب خالد رسالة طويلة إلى صديقه القديم وقال فيها إن هاتفه 0501234567 في كل يوم",
        "كتب خالد رسالة طويلة إلى صديقه القديم وقال فيها إن هاتفه بلا رقم في كل يوم",
        "هاتف ٠٥٠١٢٣٤٥٦٧",  # rejected as too short
    ]
    plain, masking = (FilterSettings.of(Corpus.model_validate(
        {"sources": [{"path": "x"}], "mask_pii": on}), "none") for on in (False, True))  # fmt: skip
    columns = [pa.array(texts, pa.large_string()), pa.array(["a"] * 3), pa.array([False] * 3)]
    batch = pa.RecordBatch.from_arrays(columns, ["text", "source", "cut"])
    assert filter_batch(batch, plain).texts.to_pylist()[0].endswith("0501234567 في كل يوم")
    found = filter_batch(batch, masking)
    assert found.texts.to_pylist()[0].endswith("[phone] في كل يوم")
    assert found.masked.tolist() == [True, False, True]
    assert found.read.to_pylist()[2] == "هاتف [phone]", "rejected documents are kept, too"
    assert found.reasons.tolist() == ["", "", "too_short"]
    excluded = Excluded("0" * 64, (), (texts[0],))
    assert filter_batch(batch, masking, excluded).reasons[0] == "excluded"


@given(
    st.sampled_from(["0501234567", "+966 50 123 4567", "+1 (202) 555-0123", "SA0380000000608010167519", "me@site.org"]),
    st.sampled_from(["\u00a0", "\u200f", "\u00ad", "\u200b", "\u202c", "\u2009"]), st.integers(1, 6), st.booleans(),
)  # fmt: skip
def test_nothing_that_normalisation_shows_is_left_in_what_is_rejected(
    secret: str, control: str, place: int, wide: bool
) -> None:
    if control in "\u00a0\u2009":  # these become spaces
        place = secret.find(" ") if " " in secret else 0
        written = secret[:place] + control + secret[place + 1 :] if place else secret
    else:
        written = secret[:place] + control + secret[place:]
    if wide:
        written = written.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
    settings = FilterSettings.of(Corpus.model_validate({"sources": [{"path": "x"}], "mask_pii": True}), "none")
    columns = [pa.array([f"راسل {written} الآن"], pa.large_string()), pa.array(["a"]), pa.array([False])]
    found = filter_batch(pa.RecordBatch.from_arrays(columns, ["text", "source", "cut"]), settings)
    assert found.masked.tolist() == [True]
    [kept], [head] = found.texts.to_pylist(), found.read.to_pylist()
    for text in (kept, normalise(head)):
        assert text == mask(text), "nothing more can be found"
        assert "[" in text
