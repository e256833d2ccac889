"""Samples and statistics of them, by hand and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qalam_core.evaluation.generation import _pieces, generation_statistics, longest_copy
from qalam_core.evaluation.results import Report
from qalam_core.package import read
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.runtime.tokenizer import OURS
from qalam_core.package.vocabulary import tokenizer_json
from tests.evaluation.small_evaluation import Exported


def test_samples_continue_the_prompts(report: Report) -> None:
    assert [sample.prompt for sample in report.samples] == ["قال", ""]
    assert report.samples[0].text.startswith("قال")


def test_pieces_have_the_text_and_the_models_probabilities(exported: Exported, report: Report) -> None:
    for sample in report.samples:
        assert sample.prompt + "".join(piece.text for piece in sample.pieces) == sample.text
        assert all(0 < piece.probability <= 1 for piece in sample.pieces)
    ids = [START, *exported.tokenizer.encode("قال"), *exported.tokenizer.encode(" من")]
    begin = len(exported.tokenizer.encode("قال")) + 1
    writer = NumpyTransformer(read(exported.package).config, read(exported.package).weights)
    tokenizer = Tokenizer.from_str(tokenizer_json(exported.tokenizer.vocabulary))
    pieces = _pieces(writer, tokenizer, [*ids, END], begin)
    with torch.inference_mode():
        chances = torch.softmax(exported.model(torch.tensor([ids]))[0][0], -1)
    product = math.prod(chances[place - 1, ids[place]].item() for place in range(begin, len(ids)))
    assert math.prod(piece.probability for piece in pieces) == pytest.approx(product, rel=0.02)
    assert "".join(piece.text for piece in pieces) == "من"


def test_the_probabilities_of_pieces_beyond_the_context_are_those_of_the_last_window(exported: Exported) -> None:
    package = read(exported.package)
    writer = NumpyTransformer(package.config, package.weights)
    tokenizer = Tokenizer.from_str(tokenizer_json(exported.tokenizer.vocabulary))
    context = writer.max_seq_len
    words = np.random.default_rng(1).integers(4, writer.vocab_size, context + 9).tolist()
    ids = [START, *words]
    product = 0.0
    for place in range(2, len(ids)):
        logits = writer(np.array([ids[max(0, place - context) : place]]))[0][0, -1].astype(np.float64)
        product += logits[ids[place]] - np.logaddexp.reduce(logits)
    pieces = _pieces(writer, tokenizer, ids, 2)
    assert sum(math.log(piece.probability) for piece in pieces) == pytest.approx(product, rel=1e-3)


small = st.lists(st.integers(4, 7), max_size=12)


@given(st.lists(small, max_size=3), st.lists(small, max_size=3))
@settings(deadline=None)
def test_longest_copy_equals_brute_force(samples: list[list[int]], parts: list[list[int]]) -> None:
    def contains(part: list[int], span: list[int]) -> bool:
        return any(part[i : i + len(span)] == span for i in range(len(part)))

    spans = [s[i:j] for s in samples for i in range(len(s)) for j in range(i + 1, len(s) + 1)]
    expected = max((len(span) for span in spans if any(contains(part, span) for part in parts)), default=0)
    assert longest_copy(samples, [np.array(part, np.uint16) for part in parts], 8) == expected


class Parrot:
    """A model that generates given rows."""

    vocab_size = 20
    specials, end_id = OURS, END

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def generate(self, prompt: list[list[int]], length: int, seed: int) -> np.ndarray:
        rows = [self.rows[n % len(self.rows)] for n in range(len(prompt))]
        return np.array([[START, *row, *[END] * (length - len(row))] for row in rows])


def test_generation_figures_by_hand() -> None:
    loop, varied = [5] * 8, [5, 6, 7, 8, 9, 10, 11, 12]  # 5 4-grams each: 1 and 5 distinct
    found = generation_statistics(Parrot([loop, varied]), [np.array([START, 7, 8, 9, END])], 1)  # type: ignore[arg-type]
    assert found.repeated_4grams == pytest.approx(0.4)
    assert found.distinct_2grams == pytest.approx(8 / (16 * 7), abs=1e-6)
    assert found.end_rate == 1.0
    assert (found.empty, found.mean_length) == (0.0, 8.0)
    assert found.longest_copy == 3


def test_generation_without_any_token() -> None:
    found = generation_statistics(Parrot([[]]), [], 1)  # type: ignore[arg-type]
    assert math.isnan(found.repeated_4grams)  # not 0: nothing was looked at
    assert math.isnan(found.distinct_2grams)
    assert (found.empty, found.mean_length, found.longest_copy) == (1.0, 0.0, 0)


def test_samples_that_end_at_once_are_counted() -> None:
    found = generation_statistics(Parrot([[], [5, 6, 7, 8], [], [5]]), [], 1)  # type: ignore[arg-type]
    assert (found.empty, found.mean_length, found.repeated_4grams) == (0.5, 1.25, 0.0)
