"""Costs on the axis of characters, for models with equal and with other tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qalam_core.arabic import NORMALISATIONS
from qalam_core.errors import PackageError
from qalam_core.evaluation.scoring import HeldOut, score
from qalam_core.progress import no_progress
from qalam_core.review.reading import Model, Texts, read_texts
from qalam_core.tokens.tokenizer import ArabicTokenizer
from tests.review.small_models import LETTERS, package, pairs, texts

ANY = st.text(max_size=30)


def bpe(size: int) -> ArabicTokenizer:
    tokenizer = ArabicTokenizer(size, "bpe", NORMALISATIONS["standard"])
    tokenizer.build_vocab(texts(60))
    return tokenizer


@given(st.lists(ANY, max_size=6))
def test_bytes_are_counted_by_character(some: list[str]) -> None:
    found = Texts.of(pairs(a=some))
    assert np.diff(found.bytes_up_to[found.borders]).tolist() == [len(text.encode()) for text in some]
    assert len(found.bytes_up_to) == found.borders[-1] + 1


def test_costs_of_documents_are_those_of_the_evaluation() -> None:
    model, some = Model.of(package()), Texts.of(pairs(a=texts(5), b=["كلمة غريبة", "x" * 50]))
    reading = read_texts(model, some)
    held_out = HeldOut.of(list(zip(some.slices, some.texts, strict=True)), model.tokenizer, model.package.vocabulary)
    expected = held_out.sum(score(model.transformer, held_out, no_progress)[0] + held_out.spelling)
    np.testing.assert_allclose(reading.between(some.borders[:-1], some.borders[1:]), expected, rtol=1e-6)
    assert reading.mass.sum() == pytest.approx(reading.positions, rel=1e-5)
    assert reading.written.sum() == reading.positions


def test_pieces_of_another_tokenizer_tile_the_texts() -> None:
    some = Texts.of(pairs(a=[*texts(6), "😀 " + LETTERS[:3], "\ufdfa"]))
    words = read_texts(Model.of(package()), some)
    bytewise = read_texts(Model.of(package(1, bpe(300).vocabulary)), some)
    merged = read_texts(Model.of(package(2, bpe(700).vocabulary)), some)
    for one in (words, bytewise, merged):
        for other in (words, bytewise, merged):
            ends = other.ends[other.knots]
            assert one.between(ends[:-1], ends[1:]).sum() == pytest.approx(one.nats.sum())
            assert (one.between(ends[:-1], ends[1:]) >= -1e-9).all()
    # a document's costs stay within its borders
    sums = bytewise.between(some.borders[:-1], some.borders[1:])
    model = Model.of(package(1, bpe(300).vocabulary))
    alone = [read_texts(model, Texts.of([("a", text)])).nats.sum() for text in some.texts]
    np.testing.assert_allclose(sums, alone, rtol=1e-5)


def test_own_tokens_keep_their_costs() -> None:
    some = Texts.of(pairs(a=texts(4)))
    reading = read_texts(Model.of(package()), some)
    ends = reading.ends[reading.knots]
    np.testing.assert_allclose(reading.between(ends[:-1], ends[1:]), reading.nats[reading.columns >= 0], atol=1e-9)


def test_a_sample_is_bounded_repeatable_and_has_every_slice() -> None:
    given = pairs(large=texts(200), small=texts(2, seed=1), one=["ب " * 100_000])
    chosen, counted = Texts.sample(given, 20_000, 1)
    assert chosen == Texts.sample(given, 20_000, 1)[0]
    assert chosen != Texts.sample(given, 20_000, 2)[0]
    assert set(chosen.slices) == {"large", "small", "one"}
    assert chosen.slices.count("small") == 2
    assert counted.size == sum(len(text.encode()) for text in chosen.texts) <= 22_500
    assert counted.of == 203
    assert all(any(whole.startswith(text) for _, whole in given) for text in chosen.texts)


@pytest.mark.parametrize("given", [[], [("a", "")], [("a", "  \n")]])
def test_a_sample_of_nothing_is_empty(given: list[tuple[str, str]]) -> None:
    assert Texts.sample(given, 100, 0)[0].texts == ()


def test_probabilities_that_are_not_finite_are_an_error() -> None:
    broken = package(tensors={"pos_embedding": np.full((40, 32), np.nan, np.float32)})
    with pytest.raises(PackageError, match="not finite"):
        read_texts(Model.of(broken), Texts.of(pairs(a=texts(2))))
