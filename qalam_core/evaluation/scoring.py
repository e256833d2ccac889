"""Scoring: the cost of the held-out documents under a model, position by position, and figures over documents.

Shapes: B batch, T time, C channels (dim), N scored positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qalam_core.evaluation.baselines import Speller
from qalam_core.evaluation.intervals import intervals
from qalam_core.evaluation.results import Bits, Interval, Intervals, Slice, rounded
from qalam_core.model import Transformer
from qalam_core.package.runtime.tokenizer import Specials, Vocabulary
from qalam_core.progress import Progress

TOKENS_PER_BATCH = 8192
LOGITS_PER_CHUNK = 1 << 23  # 32 MB of float32: the head is applied to this many values at a time

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOut:
    """The test split as one stream of ids, START ids END for each document, and the sizes of documents."""

    stream: Ids
    starts: Ids  # the position of each document in the stream
    spelling: Floats  # nats per position: the cost of spelling an unknown word, else 0
    bytes: Ids
    words: Ids
    specials: Specials

    @classmethod
    def of(cls, test: Sequence[tuple[str, str]], tokenizer: Tokenizer, vocabulary: Vocabulary) -> HeldOut:
        """Tokenize (slice, text) pairs, and compute the cost of spelling their unknown words."""
        texts = [text for _, text in test]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        specials = vocabulary.specials
        ids = [token for encoding in encoded for token in (specials.start, *encoding.ids, specials.end)]
        sizes = [len(encoding.ids) + 2 for encoding in encoded]
        spelling = np.zeros(len(ids))
        starts = np.cumsum([0, *sizes[:-1]])
        if vocabulary.algorithm == "word":
            special = specials.ids()
            speller = Speller.fit(word for index, word in enumerate(vocabulary.words) if index not in special)
            for start, text, encoding in zip(starts, texts, encoded, strict=True):
                for place in np.flatnonzero(np.array(encoding.ids) == specials.unk):
                    begin, end = encoding.offsets[place]
                    spelling[start + 1 + place] = speller.nats(text[begin:end])
        return cls(
            np.array(ids, np.int64), starts, spelling,
            np.array([len(text.encode()) for text in texts]), np.array([len(text.split()) for text in texts]),
            specials,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Ids]:
        """Each document's ids, START and END included."""
        return iter(np.split(self.stream, self.starts[1:]))

    def sum(self, per_position: NDArray[Any]) -> Floats:
        """Per document, the sum of values given per position of the stream."""
        totals: Floats = np.add.reduceat(per_position.astype(np.float64), self.starts)
        return totals

    def figures(self, chosen: Ids, per_document: Sequence[Floats], correct: Floats, confidence: float) -> Slice:
        """Figures over the `chosen` documents; `per_document` are the nats under each model of Bits."""
        size, words = int(self.bytes[chosen].sum()), int(self.words[chosen].sum())
        unknown = int(self.sum(self.stream == self.specials.unk)[chosen].sum())
        ids = int(self.sum(~np.isin(self.stream, self.specials.ids()))[chosen].sum()) + unknown
        bits = [rounded(nats[chosen].sum() / math.log(2) / max(size, 1)) for nats in per_document]
        nats, *baselines = (cost[chosen] for cost in per_document)
        found = intervals([nats] * (1 + len(baselines)), [self.bytes[chosen] * math.log(2), *baselines], confidence)
        # changes against the baselines are ratios less 1
        ends = [
            Interval(low=rounded(low - (n > 0)), high=rounded(high - (n > 0))) for n, (low, high) in enumerate(found)
        ]
        return Slice(
            documents=len(chosen),
            bytes=size,
            tokens=ids + len(chosen),
            words=words,
            bits_per_byte=Bits(**dict(zip(Bits.model_fields, bits, strict=True))),
            unknown_rate=rounded(unknown / max(ids, 1)),
            tokens_per_word=rounded(ids / max(words, 1)),
            next_token_accuracy=rounded(correct[chosen].sum() / (ids + len(chosen))),
            intervals=Intervals(**dict(zip(Intervals.model_fields, ends, strict=True))) if len(chosen) > 1 else None,
        )


def digest_of(texts: Sequence[str]) -> str:
    """sha256 of texts, in order."""
    total = hashlib.sha256()
    for text in texts:
        data = text.encode()
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def _windows(length: int, context: int) -> Iterator[tuple[int, int]]:
    """(start, first scored position) of windows over a document of `length` inputs.

    Windows are half a context apart, and the last one ends with the document. Every position is scored once, after the
    first window with at least half a context before it.
    """
    start, scored = 0, 0
    while scored < length:
        yield start, scored
        scored = min(start + context, length)
        start = min(start + max(1, context // 2), max(0, length - context))


class Predictions(NamedTuple):
    """The logits of N scored positions."""

    places: Ids  # (N,) in the stream
    columns: Ids  # (N,) in the context: the row of the position embedding that the input before it had
    logits: Tensor  # (N, V) float32, on the model's device
    targets: Tensor  # (N,)


@torch.inference_mode()
def predictions(model: Transformer, documents: HeldOut, progress: Progress) -> Iterator[Predictions]:
    """The logits of every position of the stream except START, each once, at most LOGITS_PER_CHUNK at a time.

    Computed in float32 on the device that the model is on. `progress` counts scored positions.
    """
    windows = []  # (length, position of its first input, how many of its first positions are not scored)
    for offset, document in zip(documents.starts, documents, strict=True):
        length = len(document) - 1
        for start, scored in _windows(length, model.max_seq_len):
            windows.append((min(model.max_seq_len, length - start), offset + start, scored - start))
    windows.sort(key=lambda window: (-window[0], window[1]))
    device = model.embedding.weight.device
    stream = torch.from_numpy(documents.stream)
    done, total = 0, len(documents.stream) - len(documents.starts)
    while windows:
        T = windows[0][0]
        rows = max(1, TOKENS_PER_BATCH // T)
        batch, windows = windows[:rows], windows[rows:]
        ids_BT = torch.zeros(len(batch), T, dtype=torch.int64)  # causal: padding changes nothing before it
        scored_BT = torch.zeros(len(batch), T, dtype=torch.bool)
        places, columns = [], []
        for row, (length, place, known) in enumerate(batch):
            ids_BT[row, :length] = stream[place : place + length]
            scored_BT[row, known:length] = True
            places.append(np.arange(place + known + 1, place + length + 1))
            columns.append(np.arange(known, length))
        features_NC = model.features(ids_BT.to(device))[scored_BT.to(device)]
        place_N, column_N = np.concatenate(places), np.concatenate(columns)
        for chunk in range(0, len(place_N), max(1, LOGITS_PER_CHUNK // model.vocab_size)):
            part = slice(chunk, chunk + max(1, LOGITS_PER_CHUNK // model.vocab_size))
            target_N = stream[place_N[part]].to(device)
            yield Predictions(place_N[part], column_N[part], model.lm_head(features_NC[part]), target_N)
        done += len(place_N)
        progress(done, total)


def score(model: Transformer, documents: HeldOut, progress: Progress) -> tuple[Floats, Flags]:
    """Per position of the stream: nats, and whether the token has the largest logit (0 and False at START)."""
    nats = np.zeros(len(documents.stream))
    hits = np.zeros(len(documents.stream), np.bool_)
    for place_N, _, logits_NV, target_N in predictions(model, documents, progress):
        cost_N = nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
        nats[place_N] = cost_N.double().cpu().numpy()
        hits[place_N] = (logits_NV.argmax(-1) == target_N).cpu().numpy()
    return nats, hits
