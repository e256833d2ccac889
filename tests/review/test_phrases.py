"""Phrases that recur in new documents."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from qalam_core.review.phrases import CHARACTERS, WORDS, recurring

PHRASE = "one two three four five six seven eight"


def documents(count: int, start: int = 0, ending: str = "") -> list[str]:
    """Documents that share no word."""
    return [" ".join(f"w{start + at}-{word}" for word in range(20)) + ending for at in range(count)]


def mixed(start: int, *counts: tuple[int, str]) -> list[str]:
    return [
        text for place, (count, ending) in enumerate(counts) for text in documents(count, start + 1000 * place, ending)
    ]


def test_a_phrase_is_found_wherever_it_is() -> None:
    assert len(PHRASE.split()) == WORDS
    found = recurring("news", documents(50), mixed(100, (10, f" {PHRASE}"), (30, "")))
    assert found and (found.text, found.new, found.of_new, found.old, found.of_old) == (PHRASE, 10, 40, 0, 50)
    assert found.message == f'"{PHRASE}" is in 25% of the new documents of news, and in 0% of those before.'
    long = [f"{PHRASE} {text}" for text in documents(20, 200, " x" * CHARACTERS)]
    assert (found := recurring("news", documents(50), long)) and found.new == 20
    ends = [" ".join([*(f"{at}-{word}" for word in range(2_000)), PHRASE]) for at in range(20)]
    assert (found := recurring("news", documents(50), ends)) and found.text == PHRASE


@pytest.mark.parametrize(
    ("old", "new", "there"), [(0, 8, True), (0, 7, False), (2, 8, True), (3, 8, False), (50, 40, False)]
)
def test_it_recurs_in_a_fifth_and_did_not_before(old: int, new: int, there: bool) -> None:
    before = mixed(0, (old, f" {PHRASE}"), (50 - old, ""))
    found = recurring("news", before, mixed(5000, (new, f" {PHRASE}"), (40 - new, "")))
    assert (found is not None) == there


def test_a_document_that_repeats_it_counts_once() -> None:
    assert recurring("news", documents(50), [f" {PHRASE}" * 30, *documents(30, 100)]) is None


@pytest.mark.parametrize("texts", [documents(20, 100), ["", *documents(20, 100)], ["short"] * 20, [""] * 20])
def test_texts_without_it(texts: Iterable[str]) -> None:
    assert recurring("news", documents(20), [*texts]) is None
    assert recurring("news", [*texts], documents(20)) is None
