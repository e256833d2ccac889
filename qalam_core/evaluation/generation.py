"""Generation: samples of a model, with prompts and without, and how much of them is copied from the training text.

The same seed gives the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qalam_core.evaluation.results import Generation, Piece, Sample, rounded
from qalam_core.package.inference import log_softmax
from qalam_core.package.runtime.numpy_model import NumpyTransformer

SAMPLES, SAMPLE_LENGTH = 16, 64


def samples(model: NumpyTransformer, tokenizer: Tokenizer, prompts: Sequence[str], seed: int) -> tuple[Sample, ...]:
    """A continuation of each prompt, at most SAMPLE_LENGTH tokens, with the probabilities of its pieces."""
    made = []
    for prompt in prompts:
        ids = [model.specials.start, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        out = model.generate([ids], SAMPLE_LENGTH, seed=seed)[0].tolist()
        text = tokenizer.decode(out[1:], skip_special_tokens=True)
        made.append(Sample(prompt=prompt, text=text, pieces=_pieces(model, tokenizer, out, len(ids))))
    return tuple(made)


def _pieces(model: NumpyTransformer, tokenizer: Tokenizer, ids: Sequence[int], begin: int) -> tuple[Piece, ...]:
    """ids[begin:] up to <END> as text; a piece is one token, or as many as form complete characters."""
    pieces = []
    text = shown = tokenizer.decode(list(ids[1:begin]), skip_special_tokens=True)
    chance = 1.0
    within = model(np.array([ids[: model.max_seq_len]]))[0][0]  # (T, V): of all places that the context reaches at once
    for place in range(begin, len(ids)):
        if ids[place] == model.end_id:
            break
        inside = place <= model.max_seq_len
        logits = within[place - 1] if inside else model(np.array([ids[place - model.max_seq_len : place]]))[0][0, -1]
        chance *= math.exp(log_softmax(logits)[ids[place]])
        text = tokenizer.decode(list(ids[1 : place + 1]), skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a token may be the first of a letter's two bytes
            pieces.append(Piece(text=text[len(shown) :], probability=float(f"{chance:.3g}")))
            shown, chance = text, 1.0
    if text != shown:
        pieces.append(Piece(text=text[len(shown) :], probability=float(f"{chance:.3g}")))
    return tuple(pieces)


def generation_statistics(model: NumpyTransformer, train_tokens: Sequence[NDArray[Any]], seed: int) -> Generation:
    """Statistics of samples without a prompt: how varied they are, and how much of them is copied.

    A share of n-grams is NaN where no sample is long enough to have any.
    """
    end = model.end_id
    rows = model.generate([[model.specials.start]] * SAMPLES, SAMPLE_LENGTH, seed=seed)[:, 1:].tolist()
    texts = [row[: row.index(end)] if end in row else row for row in rows]
    fours = [list(zip(*(text[i:] for i in range(4)), strict=False)) for text in texts]
    twos = [pair for text in texts for pair in pairwise(text)]
    total = sum(len(grams) for grams in fours)
    return Generation(
        samples=SAMPLES,
        length=SAMPLE_LENGTH,
        repeated_4grams=rounded(1 - sum(len(set(grams)) for grams in fours) / total) if total else math.nan,
        distinct_2grams=rounded(len(set(twos)) / len(twos)) if twos else math.nan,
        empty=sum(not text for text in texts) / SAMPLES,
        mean_length=sum(map(len, texts)) / SAMPLES,
        end_rate=sum(end in row for row in rows) / SAMPLES,
        longest_copy=longest_copy(texts, train_tokens, model.vocab_size),
    )


def no_generation() -> Generation:
    """For a model that cannot be sampled from, because its probabilities are not finite."""
    return Generation(
        samples=0, length=SAMPLE_LENGTH, repeated_4grams=math.nan, distinct_2grams=math.nan, empty=math.nan,
        mean_length=math.nan, end_rate=math.nan, longest_copy=0,
    )  # fmt: skip


def longest_copy(samples: Sequence[Sequence[int]], tokens: Sequence[NDArray[Any]], vocab_size: int) -> int:
    """Length of the longest span of tokens in any of `samples` that also occurs in `tokens`; exact.

    All matches grow together, one token per round. A candidate is a position in `tokens` where a span begins, with the
    number of that span. Few survive a round, so this costs about one pass over `tokens`.
    """
    longest = 0
    runs = [(sample, begin) for sample in samples for begin in range(len(sample))]
    for part in tokens:
        place = np.arange(len(part))
        number = np.zeros(len(part), np.int64)  # of the empty span
        numbers = dict.fromkeys(range(len(runs)), 0)
        for length in range(1, 1 + max((len(sample) for sample in samples), default=0)):
            known: dict[int, int] = {}
            for run, before in list(numbers.items()):
                sample, begin = runs[run]
                if begin + length > len(sample):
                    del numbers[run]
                    continue
                key = before * vocab_size + sample[begin + length - 1]
                numbers[run] = known.setdefault(key, len(known))
            if not known:
                break
            inside = place + length <= len(part)
            place, number = place[inside], number[inside]
            keys = number * vocab_size + part[place + length - 1]
            order = np.array(sorted(known), np.int64)
            at = np.minimum(np.searchsorted(order, keys), len(order) - 1)
            found = order[at] == keys
            place = place[found]
            number = np.array([known[key] for key in order.tolist()], np.int64)[at[found]]
            if not len(place):
                break
            longest = max(longest, length)
    return longest
