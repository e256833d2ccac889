"""What happens in a model while it reads a text: what it would say after each layer, and where each head looks; and
the same model with other rows of its tokens.

Shapes: as in numpy_model.py, with L layers. Source of the first: nostalgebraist, "Interpreting GPT: the logit lens"
(2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from qalam_core.package.inference import log_softmax
from qalam_core.package.runtime.numpy_model import NOT_FINITE, Floats, NumpyTransformer, unchecked


class Inside(NamedTuple):
    """What was recorded of one text."""

    features: list[Floats]  # (T, C), before the head: of the embedding alone, and after each layer; L + 1
    attention: list[Floats]  # (H, T, T) of each layer: how much of its attention a token gives to each


def look_inside(model: NumpyTransformer, ids: Sequence[int]) -> Inside:
    """Read `ids`, which fit the model's context, and record it; the model is not changed."""
    streams, weights = list[Floats](), list[Floats]()

    def watched(block: Any, x_BTC: Floats, *rest: Any) -> Floats:
        streams.append(x_BTC)
        result: Floats = block(x_BTC, *rest)
        return result

    recorded = copy(model)
    recorded._blocks = [partial(watched, block) for block in model._blocks]  # type: ignore[misc]
    layers = [partial(_attention, weights)] * model.num_layers
    last_BTC = recorded.features(np.array([ids]), np.arange(len(ids)), layers)
    return Inside([*(model._ln_out(x_BTC)[0] for x_BTC in streams), last_BTC[0]], weights)


def with_rows(model: NumpyTransformer, rows: Mapping[str, Floats]) -> NumpyTransformer:
    """A model with these tensors of a row per token, perhaps of more tokens; all else is shared with `model`, which is
    not changed."""
    changed = copy(model)
    changed.weights = {**model.weights, **rows}
    changed._embedding_VC = changed.weights["embedding.weight"]
    changed.head_CV = changed.weights["embedding.weight" if model.tied else "lm_head.weight"].T
    changed.vocab_size = len(changed._embedding_VC)
    changed.config = replace(model.config, vocab_size=changed.vocab_size)
    return changed


def probabilities(model: NumpyTransformer, features_TC: Floats) -> Floats:
    """-> (T, V), of the next token. Raises FloatingPointError where logits are not finite."""
    with unchecked():
        logits_TV: Floats = features_TC @ model.head_CV
    if not np.isfinite(logits_TV.max(-1)).all():
        raise FloatingPointError(NOT_FINITE)
    return np.exp(log_softmax(logits_TV)).astype(np.float32)


def _attention(weights: list[Floats], q_BHTD: Floats, k_BKTD: Floats, v_BKTD: Floats) -> Floats:
    """`attention` of one whole text, which keeps the weights."""
    B, H, T, D = q_BHTD.shape
    k_BHTD, v_BHTD = (np.repeat(part, H // part.shape[1], axis=1) for part in (k_BKTD, v_BKTD))
    q_BHTD = q_BHTD * np.float32(D**-0.5)
    scores_BHTT: Floats = q_BHTD @ k_BHTD.swapaxes(-1, -2)
    scores_BHTT[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    scores_BHTT -= scores_BHTT.max(-1, keepdims=True)
    np.exp(scores_BHTT, out=scores_BHTT)
    scores_BHTT /= scores_BHTT.sum(-1, keepdims=True)
    weights.append(scores_BHTT[0])
    result: Floats = (scores_BHTT @ v_BHTD).swapaxes(1, 2).reshape(B, T, H * D)
    return result
