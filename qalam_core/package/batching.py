"""Generation for several requests at once, which join and leave between two tokens (continuous batching), in numpy.

Shapes: as in numpy_model.py. Source: Yu et al., Orca (OSDI 2022), for batches that change after each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qalam_core.package.inference import log_softmax
from qalam_core.package.runtime.numpy_model import NOT_FINITE, Floats, Ids, NumpyTransformer, attention, draw, unchecked


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one text are drawn; as in `NumpyTransformer.generate`."""

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    logprobs: int | None = None  # report each token's, and those of so many of the most probable ones
    prompt: bool = False  # report them of the prompt as well


class Token(NamedTuple):
    """A token with its natural logarithm of probability, and the most probable ones with theirs; NaN where not asked
    for."""

    id: int
    logprob: float = float("nan")
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Text:
    """A text that is being generated."""

    ids: list[int]  # that the model has read, and the last one, which it has not
    sampling: Sampling
    random: np.random.Generator
    prompt: list[Token] = field(default_factory=list)  # of the prompt but its first, where logprobs are asked for


class Batch:
    """The texts that are generated together: at most `places`, each in a row of the cache of keys and values.

    For a text alone the tokens are those of `generate`; in company a logit may differ in its last bits, as products of
    other shapes are rounded in another order.
    """

    def __init__(self, model: NumpyTransformer, places: int) -> None:
        self.model, self.places = model, places
        self.texts: list[Text] = []  # by row
        config = model.config
        shape = (config.num_layers, 2, places, config.kv_heads, config.max_seq_len, config.head_size)
        self._cache = self._empty(shape)

    @unchecked()
    def join(self, ids: Sequence[int], sampling: Sampling, random: np.random.Generator) -> tuple[Text, Token | None]:
        """Add a text that begins with `ids`; -> it, and its first token. Needs a free place, one id or more, and room
        for all tokens in the model's context. Raises FloatingPointError where its logits are not finite."""
        assert len(self.texts) < self.places
        assert 0 < len(ids) <= self.model.max_seq_len - sampling.max_tokens
        text = Text(list(ids), sampling, random)
        count = sampling.logprobs if sampling.prompt else None
        logits_TV = self._read(len(self.texts), ids, len(ids) - 1 if count is None else 0)
        if count is not None:
            text.prompt = [_token(logits, id_, count) for logits, id_ in zip(logits_TV[:-1], ids[1:], strict=True)]
        if not sampling.max_tokens:
            return text, None
        token = _drawn(text, logits_TV[-1])
        self.texts.append(text)
        return text, token

    @unchecked()
    def step(self) -> list[tuple[Text, Token | FloatingPointError]]:
        """The next token of every text, or why it has none: its logits are not finite."""
        ids_B1 = np.array([[text.ids[-1]] for text in self.texts])
        positions_B = np.array([len(text.ids) - 1 for text in self.texts])
        found: list[tuple[Text, Token | FloatingPointError]] = []
        for text, logits_V in zip(self.texts, self._next(ids_B1, positions_B), strict=True):
            try:
                found.append((text, _drawn(text, logits_V)))
            except FloatingPointError as error:
                found.append((text, error))
        return found

    def leave(self, text: Text) -> None:
        """Remove a text; the last one takes its row."""
        row, last = self.texts.index(text), self.texts.pop()
        if last is not text:
            self.texts[row] = last
            used = len(last.ids)
            self._cache[:, :, row, :, :used] = self._cache[:, :, len(self.texts), :, :used]

    # -- what another library computes with

    def _empty(self, shape: tuple[int, ...]) -> Any:
        return np.zeros(shape, np.float32)  # memory is taken where it is written

    def _read(self, row: int, ids: Sequence[int], since: int) -> Floats:
        """-> (T - since, V) logits of a text that is read into a row of the cache."""
        layers = [partial(attention, cache_2BKPD=layer[:, row : row + 1], start=0) for layer in self._cache]
        features_TC = self.model.features(np.array([ids]), np.arange(len(ids)), layers)[0]
        logits_TV: Floats = features_TC[since:] @ self.model.head_CV
        return logits_TV

    def _next(self, ids_B1: Ids, positions_B: Ids) -> Floats:
        """-> (B, V) logits of the first B rows, after one more token each, at positions of their own."""
        caches = self._cache[:, :, : len(ids_B1)]
        if len(ids_B1) == 1:
            layers = [partial(attention, cache_2BKPD=cache, start=int(positions_B[0])) for cache in caches]
        else:
            layers = [partial(_ragged, cache_2BKPD=cache, positions_B=positions_B) for cache in caches]
        features_BC = self.model.features(ids_B1, positions_B[:, None], layers)[:, 0]
        logits_BV: Floats = features_BC @ self.model.head_CV
        return logits_BV


def _drawn(text: Text, logits_V: Floats) -> Token:
    chosen = text.sampling
    id_ = draw(logits_V, chosen.temperature, chosen.top_k, chosen.top_p, text.random)
    text.ids.append(id_)
    return Token(id_) if chosen.logprobs is None else _token(logits_V, id_, chosen.logprobs)


def _token(logits_V: Floats, id_: int, count: int) -> Token:
    logprobs = log_softmax(logits_V)
    if not np.isfinite(logprobs).all():
        raise FloatingPointError(NOT_FINITE)
    best = np.argpartition(-logprobs, min(count, len(logprobs) - 1))[:count]
    best = best[np.lexsort((best, -logprobs[best]))]
    return Token(id_, float(logprobs[id_]), tuple((int(index), float(logprobs[index])) for index in best))


def _ragged(
    q_BHTD: Floats, k_BKTD: Floats, v_BKTD: Floats, cache_2BKPD: Floats, positions_B: Ids
) -> Floats:  # fmt: skip
    """`attention` of one token of each text, T = 1, at positions of their own."""
    B, H, _, D = q_BHTD.shape
    K, end = k_BKTD.shape[1], int(positions_B.max()) + 1
    cache_2BKPD[0, np.arange(B), :, positions_B] = k_BKTD[:, :, 0]
    cache_2BKPD[1, np.arange(B), :, positions_B] = v_BKTD[:, :, 0]
    q_BKGD: Floats = (q_BHTD * np.float32(D**-0.5)).reshape(B, K, H // K, D)
    scores_BKGP: Floats = q_BKGD @ cache_2BKPD[0, :, :, :end].swapaxes(-1, -2)
    beyond_B11P: NDArray[np.bool_] = np.arange(end) > positions_B[:, None, None, None]
    scores_BKGP[np.broadcast_to(beyond_B11P, scores_BKGP.shape)] = -np.inf
    scores_BKGP -= scores_BKGP.max(-1, keepdims=True)
    np.exp(scores_BKGP, out=scores_BKGP)
    scores_BKGP /= scores_BKGP.sum(-1, keepdims=True)
    mix_BKGD: Floats = scores_BKGP @ cache_2BKPD[1, :, :, :end]
    result: Floats = mix_BKGD.reshape(B, 1, H * D)
    return result
