"""How probable continuations of a common beginning are, which the model then reads once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from qalam_core.package.inference import log_softmax
from qalam_core.package.runtime.numpy_model import Floats, NumpyTransformer, attention


def continuation_scores(
    model: NumpyTransformer, texts: Sequence[Sequence[int]], known: Sequence[int]
) -> list[tuple[float, bool]]:
    """ln P of ids[known:] of each text, 0 < known < len(ids), and whether each of these has the largest logit.

    The texts fit the model's context, but for their last id, which is not read. Memory: keys and values of all of them.
    """
    shared = min(*known, common(texts))
    assert shared > 0, "all begin with <START>"
    tails = [text[shared:] for text in texts]
    read = max(map(len, tails)) - 1
    config = model.config
    shape = (config.num_layers, 2, 1, config.kv_heads, shared + read, config.head_size)
    cache = np.empty(shape, np.float32)
    begin_1TC = model.features(np.array([texts[0][:shared]]), np.arange(shared), _layers(cache, 0))
    after_BTC = np.zeros((len(texts), 0, config.dim), np.float32)
    if read:
        ids_BT = np.zeros((len(texts), read), np.int64)  # padded at the end, which nothing before it sees
        for row, tail in zip(ids_BT, tails, strict=True):
            row[: len(tail) - 1] = tail[:-1]
        cache = np.repeat(cache, len(texts), axis=2)
        after_BTC = model.features(ids_BT, np.arange(shared, shared + read), _layers(cache, shared))
    found = []
    for tail, place, after_TC in zip(tails, known, after_BTC, strict=True):
        features_TC = np.concatenate([begin_1TC[0, -1:], after_TC[: len(tail) - 1]])[place - shared :]
        found.append(score(features_TC @ model.head_CV, tail[place - shared :]))
    return found


def score(logits_TV: Floats, targets: Sequence[int]) -> tuple[float, bool]:
    """ln P of T targets together, and whether each has the largest logit."""
    logs_TV = log_softmax(logits_TV)
    right = bool((logits_TV.argmax(-1) == targets).all())
    return float(logs_TV[np.arange(len(targets)), targets].sum()), right


def common(texts: Sequence[Sequence[int]]) -> int:
    """How many ids all begin with."""
    differs = (place for place, ids in enumerate(zip(*texts, strict=False)) if len({*ids}) > 1)
    return next(differs, min(map(len, texts)))


def _layers(cache: Floats, start: int) -> list[Any]:
    return [partial(attention, cache_2BKPD=layer, start=start) for layer in cache]
