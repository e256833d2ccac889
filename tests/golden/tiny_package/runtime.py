"""The forward pass and generation of PureDynamicTransformer in numpy, with a KV cache.
Takes a config and its weights, gives logits and continued token ids, within 1e-4 of torch's.
It does not know files, tokenizers or training.

Shapes: B batch, T time, C channels (dim), H heads, D head dim, V vocabulary, P cached positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NumpyTransformer", "erf"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
END = 3  # the id of <END> in every vocabulary

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error| < 1.5e-7
_P = np.float32(0.3275911)
_A = [np.float32(a) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]


def erf(x: Floats) -> Floats:
    """The error function in float32, within 1e-6."""
    magnitude = np.abs(x)
    t = 1 / (1 + _P * magnitude)
    tail = _A[0] * t
    for a in _A[1:]:
        tail = (tail + a) * t
    tail *= np.exp(-magnitude * magnitude)
    result: Floats = np.copysign(1 - tail, x)
    return result


def _gelu(x: Floats) -> Floats:
    result: Floats = np.float32(0.5) * x * (1 + erf(x * np.float32(0.70710678)))
    return result


def _gelu_tanh(x: Floats) -> Floats:
    inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)  # sqrt(2 / pi)
    result: Floats = np.float32(0.5) * x * (1 + np.tanh(inner))
    return result


_GELUS = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}


class _Norm:
    def __init__(self, weights: Mapping[str, Floats], name: str) -> None:
        self.weight, self.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def __call__(self, x: Floats) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        result: Floats = centred / np.sqrt(variance + np.float32(1e-5)) * self.weight + self.bias
        return result


class _Linear:
    def __init__(self, weights: Mapping[str, Floats], name: str) -> None:
        self.weight_t, self.bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]

    def __call__(self, x: Floats) -> Floats:
        result: Floats = x @ self.weight_t + self.bias
        return result


class _Block:
    def __init__(self, weights: Mapping[str, Floats], index: int, num_heads: int, activation: str) -> None:
        self.num_heads = num_heads
        self.gelu = _GELUS[activation]
        self.ln1, self.ln2 = (_Norm(weights, f"blocks.{index}.{part}") for part in ("ln1", "ln2"))
        self.qkv, self.out, self.fc1, self.fc2 = (
            _Linear(weights, f"blocks.{index}.{part}") for part in ("qkv", "out", "fc1", "fc2")
        )

    def __call__(self, x_BTC: Floats, cache_2BHPD: Floats, start: int) -> Floats:
        """Positions start .. start + T; their keys and values go into the cache."""
        B, T, C = x_BTC.shape
        D = C // self.num_heads
        q_BHTD, k_BHTD, v_BHTD = self.qkv(self.ln1(x_BTC)).reshape(B, T, 3, self.num_heads, D).transpose(2, 0, 3, 1, 4)
        end = start + T
        cache_2BHPD[0, :, :, start:end], cache_2BHPD[1, :, :, start:end] = k_BHTD, v_BHTD
        scores_BHTP = (q_BHTD * np.float32(D**-0.5)) @ cache_2BHPD[0, :, :, :end].swapaxes(-1, -2)
        if T > 1:
            future_TP = np.arange(end) > np.arange(start, end)[:, None]
            scores_BHTP = np.where(future_TP, np.float32(-np.inf), scores_BHTP)
        scores_BHTP -= scores_BHTP.max(-1, keepdims=True)
        np.exp(scores_BHTP, out=scores_BHTP)
        scores_BHTP /= scores_BHTP.sum(-1, keepdims=True)
        mix_BHTD = scores_BHTP @ cache_2BHPD[1, :, :, :end]
        x_BTC = x_BTC + self.out(mix_BHTD.swapaxes(1, 2).reshape(B, T, C))
        result: Floats = x_BTC + self.fc2(self.gelu(self.fc1(self.ln2(x_BTC))))
        return result


class NumpyTransformer:
    """The model for inference: same attributes, call and `generate` as its torch counterpart."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Floats]) -> None:
        self.vocab_size = int(config["VOCAB_SIZE"])
        self.dim = int(config["DIM"])
        self.num_heads = int(config["NUM_HEADS"])
        self.num_layers = int(config["NUM_LAYERS"])
        self.max_seq_len = int(config["MAX_SEQ_LEN"])
        self.tied = bool(config["TIED"])
        self.activation = str(config["ACTIVATION"])
        self.weights = dict(weights)
        self._embedding_VC = weights["embedding.weight"]
        self._positions_TC = weights["pos_embedding"]
        self._blocks = [_Block(weights, index, self.num_heads, self.activation) for index in range(self.num_layers)]
        self._ln_out = _Norm(weights, "ln_out")
        self._head_CV = weights["embedding.weight" if self.tied else "lm_head.weight"].T

    def __call__(self, input_ids: Any) -> tuple[Floats, None]:
        """(B, T) ids -> (B, T, V) logits, and None where torch's forward gives a loss."""
        ids_BT = np.asarray(input_ids)
        logits_BTV: Floats = self._features(ids_BT, self._cache(*ids_BT.shape), 0) @ self._head_CV
        return logits_BTV, None

    def count_parameters(self) -> int:
        """Parameters; a tied head is counted once."""
        return sum(values.size for values in self.weights.values())

    def generate(
        self,
        prompt_ids: Any,
        max_new_tokens: int = 50,
        temperature: float = 0.8,
        top_k: int = 50,
        seed: int | None = None,
    ) -> Ids:
        """Continue a (B, T) batch of prompts, T >= 1, to (B, T + n), n <= `max_new_tokens`.

        As in torch: greedy at temperature 0, all of V at top_k 0, <END> fills finished rows, and beyond
        the context the last `max_seq_len` tokens are read anew. A seed repeats numpy's draws, not torch's.
        """
        ids_BT: Ids = np.array(prompt_ids, np.int64)
        if ids_BT.ndim != 2 or ids_BT.shape[1] == 0:
            raise ValueError("the prompt has no tokens; start from <START>, id 2")
        random = np.random.default_rng(seed)
        done_B = np.zeros(len(ids_BT), bool)
        cache, cached = None, 0
        for _ in range(max_new_tokens):
            window_BT = ids_BT[:, -self.max_seq_len :]
            if cache is None or ids_BT.shape[1] > self.max_seq_len:  # positions shifted: all is new
                last = min(self.max_seq_len, ids_BT.shape[1] + max_new_tokens)
                cache, cached = self._cache(len(ids_BT), last), 0
            features_BC = self._features(window_BT[:, cached:], cache, cached)[:, -1]
            cached = window_BT.shape[1]
            next_B = _sample(features_BC @ self._head_CV, temperature, top_k, random)
            next_B[done_B] = END
            ids_BT = np.concatenate([ids_BT, next_B[:, None]], axis=1)
            done_B |= next_B == END
            if done_B.all():
                break
        return ids_BT

    def _cache(self, batch: int, positions: int) -> Floats:
        return np.empty((self.num_layers, 2, batch, self.num_heads, positions, self.dim // self.num_heads), np.float32)

    def _features(self, ids_BT: NDArray[Any], cache: Floats, start: int) -> Floats:
        end = start + ids_BT.shape[1]
        if end > self.max_seq_len:
            raise ValueError(f"{end} tokens, but the model's context is {self.max_seq_len}")
        x_BTC = self._embedding_VC[ids_BT] + self._positions_TC[start:end]
        for block, cache_2BHPD in zip(self._blocks, cache, strict=True):
            x_BTC = block(x_BTC, cache_2BHPD, start)
        return self._ln_out(x_BTC)


def _sample(logits_BV: Floats, temperature: float, top_k: int, random: np.random.Generator) -> Ids:
    if temperature == 0:
        best_B: Ids = logits_BV.argmax(-1)
        return best_B
    if 0 < top_k < logits_BV.shape[-1]:
        kth_B1 = np.partition(logits_BV, -top_k, axis=-1)[:, -top_k, None]
        logits_BV = np.where(logits_BV < kth_B1, np.float32(-np.inf), logits_BV)
    scaled_BV = logits_BV.astype(np.float64) / temperature
    sums_BV = np.exp(scaled_BV - scaled_BV.max(-1, keepdims=True)).cumsum(-1)
    draw_B1 = random.random((len(sums_BV), 1)) * sums_BV[:, -1:]
    drawn_B: Ids = (sums_BV > draw_B1).argmax(-1)
    return drawn_B
