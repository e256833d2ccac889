"""Text of others beside our own: what is escaped, and that nothing else changes."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from qalam_core.display import printable
from qalam_core.package.write import card_error

ANY = st.text(st.characters(exclude_categories=[]))
EVERY = "".join(map(chr, (*range(0x20000), *range(0xE0000, 0xE1000))))  # the planes that have more than letters
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def test_nothing_that_is_obeyed_remains() -> None:
    """Controls, line ends, surrogates, and what sets a direction."""
    left = printable(EVERY)
    assert not [char for char in left if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert not [char for char in left if unicodedata.bidirectional(char) in DIRECTIONS]
    assert not set(left) & set("\u061c\u200e\u200f")  # the invisible letters that pull their neighbours along
    assert set(EVERY) - set(printable(EVERY, lines=True)) == set(EVERY) - set(left) - set("\n\t")
    left.encode()
    assert card_error(printable(EVERY, lines=True)) == ""  # a card may hold all that remains


def test_letters_stay() -> None:
    for text in ("قالَ: «السلام»", "می‌خواهم", "👨‍👩‍👧", "a\u00adb", "\\u001b", "汉字", "e\u0301", "\u0640", "ﷺ"):
        assert printable(text) == text


@given(ANY)
def test_json_stays_the_same_value(text: str) -> None:
    written = printable(json.dumps([text], ensure_ascii=False))
    assert json.loads(written) == json.loads(json.dumps([text]))
    written.encode()


@given(ANY)
def test_again_changes_nothing(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert len(printable(text, lines=True).splitlines()) <= 1 + text.count("\n")
    assert len(printable(text).splitlines()) <= 1
