"""The most probable next words of a model, where a word may be several tokens: exact, by best-first search.

The probability of a word is that of its tokens, one after another, and of an end of the word after them: a token that
does not continue it, such as one that begins with a space. Tokens only lower a probability, so that a prefix less
probable than a word that is looked for need not be continued.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from qalam_core.evaluation.model_tests.cases import is_in_word
from qalam_core.model import Transformer
from qalam_core.package.runtime.tokenizer import Specials, Vocabulary, token_bytes

MAX_PREFIXES = 4096  # that are continued; beyond, a case is not decided, and fails
_BATCH, _LONGEST = 32, 32  # prefixes at once, and tokens of a word

Ids = tuple[int, ...]
Flags = NDArray[np.bool_]


class WordBorders(NamedTuple):
    """Which tokens begin a word after a space, and which are a word's beginning or go on with it."""

    begins: Flags
    continues: Flags
    spelled: list[bytes]  # each token's bytes
    whole: bool  # every token is a word
    specials: Specials

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> WordBorders:
        """Of a tokenizer's tokens."""
        whole = vocabulary.algorithm == "word"
        spelled = [word.encode() if whole else token_bytes(word) for word in vocabulary.words]
        inside = np.array([_goes_on(part.removeprefix(b" ")) for part in spelled])
        space = np.array([part.startswith(b" ") for part in spelled]) | whole
        inside[vocabulary.specials.ids()] = False
        return cls(inside & space, inside & ~space, spelled, whole, vocabulary.specials)


def _goes_on(part: bytes) -> bool:
    """Whether bytes begin with a character of a word, or with a part of a character that may be one."""
    text = part[:4].decode("utf-8", "replace")
    return not text or text[0] == "\ufffd" or is_in_word(text[0])


class Ranked(NamedTuple):
    """The best of the answers, and the words that are more probable."""

    probability: float
    above: list[tuple[str, float]]  # at most k
    decided: bool


@torch.inference_mode()
def _next(model: Transformer, start: int, prompt: Sequence[int], prefixes: Sequence[Ids]) -> NDArray[np.float64]:
    """(N, V) ln P of the token after the prompt and each prefix."""
    rows = [[start, *prompt, *prefix][-model.max_seq_len :] for prefix in prefixes]
    ids_NT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)  # causal: padding changes nothing before it
    for row, ids in enumerate(rows):
        ids_NT[row, : len(ids)] = torch.tensor(ids)
    device = model.embedding.weight.device
    last_N = torch.tensor([len(ids) - 1 for ids in rows])
    features_NC = model.features(ids_NT.to(device))[torch.arange(len(rows)), last_N]
    logits_NV: NDArray[np.float64] = torch.log_softmax(model.lm_head(features_NC).double(), -1).cpu().numpy()
    return logits_NV


def rank(
    model: Transformer, borders: WordBorders, prompt: Sequence[int],
    answers: Sequence[tuple[str, Ids]], k: int,
) -> Ranked:  # fmt: skip
    """The most probable of the answers (text and tokens after the prompt), and up to k other words above it."""
    best = max((_probability(model, borders, prompt, ids) for _, ids in answers), default=-math.inf)
    if not math.isfinite(best):
        return Ranked(0.0, [], math.isinf(best))
    known = {text for text, _ in answers}
    found: dict[str, float] = {}
    heap: list[tuple[float, Ids]] = [(0.0, ())]
    spent = 0
    while heap and len(found) < k and spent < MAX_PREFIXES:
        taken = [heapq.heappop(heap) for _ in range(min(_BATCH, len(heap)))]
        spent += len(taken)
        for (cost, prefix), logs_V in zip(
            taken, _next(model, borders.specials.start, prompt, [p for _, p in taken]), strict=True
        ):
            spelled = b"".join(borders.spelled[index] for index in prefix).strip(b" ")
            if spelled and (chance := _ended(borders, logs_V) - cost) > best:
                text = spelled.decode("utf-8", "replace")
                if text not in known and "\ufffd" not in text:
                    found[text] = max(chance, found.get(text, -math.inf))
            if (borders.whole and prefix) or len(prefix) >= _LONGEST:
                continue
            allowed = borders.continues if spelled or prefix or not (prompt or borders.whole) else borders.begins
            for index in np.flatnonzero(allowed & (logs_V - cost > best)).tolist():
                heapq.heappush(heap, (cost - float(logs_V[index]), (*prefix, index)))
    above = sorted(((word, math.exp(log)) for word, log in found.items()), key=lambda pair: (-pair[1], pair[0]))
    return Ranked(math.exp(best), above[:k], len(found) >= k or not heap)


def _probability(
    model: Transformer, borders: WordBorders, prompt: Sequence[int], ids: Ids
) -> float:  # fmt: skip
    """ln P of a word; -inf for one that the vocabulary does not have."""
    if not ids or borders.specials.unk in ids:
        return -math.inf
    logs = _next(model, borders.specials.start, prompt, [ids[:length] for length in range(len(ids) + 1)])
    return float(sum(logs[place, index] for place, index in enumerate(ids))) + _ended(borders, logs[-1])


def _ended(borders: WordBorders, logs_V: NDArray[np.float64]) -> float:
    """ln P of a token that does not continue a word; 0 where every token is one."""
    if borders.whole:
        return 0.0
    total = float(np.exp(logs_V[~borders.continues]).sum())
    return math.log(total) if total > 0 else -math.inf if total == 0 else math.nan
