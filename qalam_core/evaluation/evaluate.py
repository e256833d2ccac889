"""Evaluation: what the exported package shows on the held-out documents, beside count-based baselines.
Takes the package, the checkpoint that it came from, the test documents and the training tokens; gives a
`Report`, the same on every run, and `Budgets`, which hold what depends on the machine.
It does not know what is good enough: the gate does.

Shapes: B batch, T time, C channels (dim), N scored positions, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from qalam_core.errors import CorpusError, PackageError
from qalam_core.evaluation.baselines import KneserNeyTrigram, Speller, Unigram
from qalam_core.evaluation.bootstrap import intervals
from qalam_core.evaluation.contamination import covered
from qalam_core.evaluation.gate import (
    COPIED,
    Bits,
    Budgets,
    Contamination,
    Generation,
    Integrity,
    Interval,
    Intervals,
    Piece,
    Report,
    Sample,
    Slice,
)
from qalam_core.evaluation.integrity import check, one_line, transformer
from qalam_core.model import PureDynamicTransformer
from qalam_core.package import Package, read
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.recipe import Gate, Storage
from qalam_core.store import Progress, silent

__all__ = ["Budgets", "Report", "evaluate"]

UNK, START, END = 1, 2, 3  # in every vocabulary of this project

SAMPLES, SAMPLE_LENGTH = 16, 64
TOKENS_PER_BATCH = 8192
LOGITS_PER_CHUNK = 1 << 23  # 32 MB of float32: the head is applied to this many values at a time
TEXTS = 8  # documents that the package's own tokenizer is tried on

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def evaluate(
    package_folder: Path,
    checkpoint: Path,
    test: Sequence[tuple[str, str]],
    train_tokens: Sequence[NDArray[Any]],
    train_texts: Iterable[pa.Array],
    seed: int,
    gate: Gate,
    storage: Storage = "f32",
    progress: Progress = silent,
) -> tuple[Report, Budgets]:
    """Measure a package.

    `checkpoint` is the safetensors file that the package was written from. `test` are (source name,
    normalised text) pairs. `train_tokens` are 1-D id arrays, START ids END for each document in a row;
    the baselines count the first 20 million ids. `train_texts` are the same documents as text, in the same
    order, and are read once. `storage` is how the recipe wants matrices stored. `progress` counts scored
    tokens. docs/metrics.md defines every figure.

    Bits per byte = the nats of all tokens after <START>, <END> included, / ln 2 / UTF-8 bytes of the
    text. An unknown word costs its <UNK> and its spelling (`Speller`), under the model and under the
    baselines alike. A word vocabulary never pays for white space, so its figure flatters it a little.
    A package that cannot be read gives a report whose figures are NaN. Raises CorpusError when there are
    no test documents.
    """
    if not any(text for _, text in test):
        raise CorpusError("the test split holds no text; raise corpus.test, or add documents")
    package_mb = sum(path.stat().st_size for path in package_folder.rglob("*") if path.is_file()) / 1e6
    begun = time.perf_counter()
    try:
        package = read(package_folder)
    except PackageError as error:
        refused = _unreadable(test, one_line(error, package_folder))
        return refused, Budgets(package_mb=round(package_mb, 6), load_seconds=math.inf)
    budgets = Budgets(package_mb=round(package_mb, 6), load_seconds=round(time.perf_counter() - begun, 6))
    model = transformer(package.config, {name: torch.from_numpy(array) for name, array in package.weights.items()})
    tokenizer = Tokenizer.from_str(package.vocabulary.tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells "<END>" is text
    documents = _Documents.of(test, tokenizer, package)
    nats, hits = _score(model, documents, progress)
    finite = bool(np.isfinite(nats).all())
    writer = NumpyTransformer(package.config, package.weights)  # its cache makes it several times faster here
    vocab_size = model.vocab_size
    baselines = (Unigram.fit(train_tokens, vocab_size), KneserNeyTrigram.fit(train_tokens, vocab_size))
    costs = [nats, *(baseline.nats(documents.stream) for baseline in baselines)]
    per_document = [documents.sum(cost + documents.spelling) for cost in costs]
    correct = documents.sum(hits)
    names, slice_of = np.unique(np.array([source for source, _ in test]), return_inverse=True)
    head, texts = _head(train_texts, TEXTS)
    shares = covered([text for _, text in test], texts)
    report = Report(
        test_digest=_digest(test),
        overall=documents.figures(np.arange(len(test)), per_document, correct, gate.confidence),
        sources={
            str(name): documents.figures(np.flatnonzero(slice_of == number), per_document, correct, gate.confidence)
            for number, name in enumerate(names)
        },
        samples=_samples(writer, tokenizer, gate.prompts, seed) if finite else (),
        generation=_generation(writer, train_tokens, seed) if finite else _no_generation(),
        integrity=check(
            package, package_folder, checkpoint, model, documents.stream, documents.tokenized(test[:TEXTS]),
            _same_ids(tokenizer, head, train_tokens), storage,
        ),
        document_nats=tuple(_rounded(value) for value in per_document[0]),
        document_bytes=tuple(int(size) for size in documents.bytes),
        document_digests=tuple(_digest([pair])[:12] for pair in test),
        document_slices=tuple(slice_of.tolist()),
        contamination=_contamination(shares, documents.words),
    )  # fmt: skip
    return report, budgets


def _head(texts: Iterable[pa.Array], count: int) -> tuple[list[str], Iterator[pa.Array]]:
    """The first `count` texts, and all of them again."""
    batches = iter(texts)
    taken: list[pa.Array] = []
    while sum(map(len, taken)) < count and (batch := next(batches, None)) is not None:
        taken.append(batch)
    return [text for batch in taken for text in batch.to_pylist()][:count], chain(taken, batches)


def _same_ids(tokenizer: Tokenizer, texts: Sequence[str], tokens: Sequence[NDArray[Any]]) -> bool:
    """Whether the tokenizer gives the first training documents the ids that were trained on."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = [token for encoding in encoded for token in (START, *encoding.ids, END)]
    # the first documents may lie in more than one shard
    trained = np.concatenate([part[: len(ids)] for part in tokens])[: len(ids)] if tokens else np.zeros(0)
    return trained.tolist() == ids


def _contamination(shares: Floats, words: Ids) -> Contamination:
    long = ~np.isnan(shares)
    total = int(words[long].sum())
    return Contamination(
        documents=int(long.sum()),
        copied=_rounded((shares[long] > COPIED).mean()) if total else 0.0,
        covered=_rounded((shares[long] * words[long]).sum() / total) if total else 0.0,
    )


# -- the test documents as tokens -------------------------------------------------------------------


@dataclass(frozen=True)
class _Documents:
    """The test split as one stream, START ids END for each document in a row, and per-document sizes."""

    stream: Ids
    starts: Ids  # where each document begins in the stream
    spelling: Floats  # nats per position: what an unknown word's letters cost, else 0
    bytes: Ids
    words: Ids

    @classmethod
    def of(cls, test: Sequence[tuple[str, str]], tokenizer: Tokenizer, package: Package) -> _Documents:
        """Tokenize with the package's tokenizer.json, and price the words that it does not know."""
        texts = [text for _, text in test]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = [token for encoding in encoded for token in (START, *encoding.ids, END)]
        sizes = [len(encoding.ids) + 2 for encoding in encoded]
        spelling = np.zeros(len(ids))
        starts = np.cumsum([0, *sizes[:-1]])
        if package.vocabulary.algorithm == "word":
            speller = Speller.fit(package.vocabulary.words[END + 1 :])
            for start, text, encoding in zip(starts, texts, encoded, strict=True):
                for place in np.flatnonzero(np.array(encoding.ids) == UNK):
                    begin, end = encoding.offsets[place]
                    spelling[start + 1 + place] = speller.nats(text[begin:end])
        return cls(
            np.array(ids, np.int64), starts, spelling,
            np.array([len(text.encode()) for text in texts]), np.array([len(text.split()) for text in texts]),
        )  # fmt: skip

    def __iter__(self) -> Iterator[Ids]:
        """Each document's ids, START and END included."""
        return iter(np.split(self.stream, self.starts[1:]))

    def tokenized(self, test: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
        """The ids of the first documents, by their text."""
        return {text: ids[1:-1].tolist() for (_, text), ids in zip(test, self, strict=False)}

    def sum(self, per_position: NDArray[Any]) -> Floats:
        """Per document, the sum of what is given per position of the stream."""
        totals: Floats = np.add.reduceat(per_position.astype(np.float64), self.starts)
        return totals

    def figures(self, chosen: Ids, per_document: Sequence[Floats], correct: Floats, confidence: float) -> Slice:
        """Figures over the `chosen` documents; `per_document` are the nats of model, unigram, trigram."""
        size, words = int(self.bytes[chosen].sum()), int(self.words[chosen].sum())
        ids = int(self.sum(self.stream > END)[chosen].sum() + self.sum(self.stream == UNK)[chosen].sum())
        bits = [_rounded(nats[chosen].sum() / math.log(2) / max(size, 1)) for nats in per_document]
        nats, unigram, trigram = (cost[chosen] for cost in per_document)
        sure = intervals([nats, nats, nats], [self.bytes[chosen] * math.log(2), unigram, trigram], confidence)
        model, *against = (Interval(low=_rounded(low), high=_rounded(high)) for low, high in sure)
        changes = [Interval(low=_rounded(ratio.low - 1), high=_rounded(ratio.high - 1)) for ratio in against]
        return Slice(
            documents=len(chosen),
            bytes=size,
            tokens=ids + len(chosen),
            words=words,
            bits_per_byte=Bits(model=bits[0], unigram=bits[1], trigram=bits[2]),
            unknown_rate=_rounded(self.sum(self.stream == UNK)[chosen].sum() / max(ids, 1)),
            tokens_per_word=_rounded(ids / max(words, 1)),
            next_token_accuracy=_rounded(correct[chosen].sum() / (ids + len(chosen))),
            intervals=Intervals(model=model, unigram=changes[0], trigram=changes[1]),
        )


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _digest(test: Sequence[tuple[str, str]]) -> str:
    total = hashlib.sha256()
    for pair in test:
        for part in pair:
            data = part.encode()
            total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


# -- the model on the test documents ----------------------------------------------------------------


def _windows(length: int, context: int) -> Iterator[tuple[int, int]]:
    """(start, first scored position) of windows over a document of `length` inputs.

    Half a context apart, the last one flush with the end: every position is scored once, and after the
    first window with at least half a context before it.
    """
    start, scored = 0, 0
    while scored < length:
        yield start, scored
        scored = min(start + context, length)
        start = min(start + max(1, context // 2), max(0, length - context))


@torch.inference_mode()
def _score(model: PureDynamicTransformer, documents: _Documents, progress: Progress) -> tuple[Floats, Flags]:
    """Per position of the stream: the model's nats, and whether it ranks the token first (START: no)."""
    nats = np.zeros(len(documents.stream))
    hits = np.zeros(len(documents.stream), np.bool_)
    windows = []  # (length, place of its first input, how many positions at its head are not scored)
    for offset, document in zip(documents.starts, documents, strict=True):
        length = len(document) - 1
        for start, scored in _windows(length, model.max_seq_len):
            windows.append((min(model.max_seq_len, length - start), offset + start, scored - start))
    windows.sort(key=lambda window: (-window[0], window[1]))
    stream = torch.from_numpy(documents.stream)
    done, total = 0, len(documents.stream) - len(documents.starts)
    while windows:
        T = windows[0][0]
        rows = max(1, TOKENS_PER_BATCH // T)
        batch, windows = windows[:rows], windows[rows:]
        ids_BT = torch.zeros(len(batch), T, dtype=torch.int64)  # causal: the filling changes nothing before it
        scored_BT = torch.zeros(len(batch), T, dtype=torch.bool)
        places = []
        for row, (length, place, known) in enumerate(batch):
            ids_BT[row, :length] = stream[place : place + length]
            scored_BT[row, known:length] = True
            places.append(np.arange(place + known + 1, place + length + 1))
        features_NC = model.features(ids_BT)[scored_BT]
        place_N = np.concatenate(places)
        for chunk in range(0, len(place_N), max(1, LOGITS_PER_CHUNK // model.vocab_size)):
            part = slice(chunk, chunk + max(1, LOGITS_PER_CHUNK // model.vocab_size))
            logits_NV = model.lm_head(features_NC[part])
            target_N = stream[place_N[part]]
            nats[place_N[part]] = nn.functional.cross_entropy(logits_NV, target_N, reduction="none").double().numpy()
            hits[place_N[part]] = (logits_NV.argmax(-1) == target_N).numpy()
        done += len(place_N)
        progress(done, total)
    return nats, hits


# -- what the model writes --------------------------------------------------------------------------


def _samples(model: NumpyTransformer, tokenizer: Tokenizer, prompts: Sequence[str], seed: int) -> tuple[Sample, ...]:
    samples = []
    for prompt in prompts:
        ids = [START, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        out = model.generate([ids], SAMPLE_LENGTH, seed=seed)[0].tolist()
        text = tokenizer.decode(out[1:], skip_special_tokens=True)
        samples.append(Sample(prompt=prompt, text=text, pieces=_pieces(model, tokenizer, out, len(ids))))
    return tuple(samples)


def _pieces(model: NumpyTransformer, tokenizer: Tokenizer, ids: Sequence[int], begin: int) -> tuple[Piece, ...]:
    """ids[begin:] as text, a token or as many as make whole characters; <END> is left out."""
    pieces = []
    text = shown = tokenizer.decode(list(ids[1:begin]), skip_special_tokens=True)
    chance = 1.0
    for place in range(begin, len(ids)):
        if ids[place] == END:
            break
        window = ids[max(0, place - model.max_seq_len) : place]
        logits = model(np.array([window]))[0][0, -1].astype(np.float64)
        chance *= float(np.exp(logits[ids[place]] - logits.max()) / np.exp(logits - logits.max()).sum())
        text = tokenizer.decode(list(ids[1 : place + 1]), skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a letter is two bytes, and the token may be one of them
            pieces.append(Piece(text=text[len(shown) :], probability=float(f"{chance:.3g}")))
            shown, chance = text, 1.0
    if text != shown:
        pieces.append(Piece(text=text[len(shown) :], probability=float(f"{chance:.3g}")))
    return tuple(pieces)


def _generation(model: NumpyTransformer, train_tokens: Sequence[NDArray[Any]], seed: int) -> Generation:
    """Samples from <START> alone: how varied they are, and how much of them is copied."""
    rows = model.generate([[START]] * SAMPLES, SAMPLE_LENGTH, seed=seed)[:, 1:].tolist()
    texts = [row[: row.index(END)] if END in row else row for row in rows]
    fours = [list(zip(*(text[i:] for i in range(4)), strict=False)) for text in texts]
    twos = [pair for text in texts for pair in pairwise(text)]
    total = sum(len(grams) for grams in fours)
    return Generation(
        samples=SAMPLES,
        length=SAMPLE_LENGTH,
        repeated_4grams=_rounded(1 - sum(len(set(grams)) for grams in fours) / total) if total else 0.0,
        distinct_2grams=_rounded(len(set(twos)) / len(twos)) if twos else 0.0,
        end_rate=sum(END in row for row in rows) / SAMPLES,
        longest_copy=longest_copy(texts, train_tokens, model.vocab_size),
    )


def _no_generation() -> Generation:
    """For a model that gives no probabilities to sample from."""
    return Generation(
        samples=0, length=SAMPLE_LENGTH, repeated_4grams=math.nan, distinct_2grams=math.nan,
        end_rate=math.nan, longest_copy=0,
    )  # fmt: skip


def longest_copy(samples: Sequence[Sequence[int]], tokens: Sequence[NDArray[Any]], vocab_size: int) -> int:
    """Length of the longest run of tokens in any of `samples` that also stands in `tokens`; exact.

    All matches grow together, a token a round: a candidate is where a run begins in `tokens`, with a
    number for which run of that length it is. Few survive a round, so this is about one pass over `tokens`.
    """
    longest = 0
    runs = [(sample, begin) for sample in samples for begin in range(len(sample))]
    for part in tokens:
        place = np.arange(len(part))
        number = np.zeros(len(part), np.int64)  # of the empty run
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


def _unreadable(test: Sequence[tuple[str, str]], problem: str) -> Report:
    """The report of a package that the reader refuses: no figures, and why."""
    nan = math.nan
    sizes = tuple(len(text.encode()) for _, text in test)
    return Report(
        test_digest=_digest(test),
        overall=Slice(
            documents=len(test), bytes=sum(sizes), tokens=0, words=sum(len(text.split()) for _, text in test),
            bits_per_byte=Bits(model=nan, unigram=nan, trigram=nan),
            unknown_rate=nan, tokens_per_word=nan, next_token_accuracy=nan,
        ),
        sources={},
        samples=(),
        generation=_no_generation(),
        integrity=Integrity(
            verifies=False, loads_without_execution=False, tensors_agree=False, loads_by_import=False,
            checkpoint_difference=nan, checkpoint_limit=0.0, import_difference=nan, numpy_difference=nan,
            numpy_backend_agrees=False, tokenizer_agrees=False, problem=problem,
        ),
        document_nats=(nan,) * len(test),
        document_bytes=sizes,
    )  # fmt: skip
