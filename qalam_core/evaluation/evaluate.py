"""Evaluation: an exported package on the held-out documents, compared with count-based baselines."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qalam_core.arabic import Rules, normalise_array
from qalam_core.corpus.fingerprints import Fingerprints
from qalam_core.errors import CorpusError, PackageError
from qalam_core.evaluation.baselines import CHARACTER_ORDER, CHARACTERS, TOKEN_ORDER, KneserNey, Unigram, characters
from qalam_core.evaluation.contamination import UNKNOWN, contamination
from qalam_core.evaluation.generation import generation_statistics, no_generation, samples
from qalam_core.evaluation.integrity import check, hostile, one_line, transformer
from qalam_core.evaluation.model_tests.cases import Suite
from qalam_core.evaluation.model_tests.running import Subject, run
from qalam_core.evaluation.results import (
    Bits,
    Budgets,
    Counted,
    Integrity,
    Repetition,
    Report,
    Sample,
    Slice,
    TensorStatistics,
    rounded,
)
from qalam_core.evaluation.sampling import training_sample
from qalam_core.evaluation.scoring import HeldOut, digest_of, score
from qalam_core.package import read
from qalam_core.package.runtime.architecture import END, START
from qalam_core.package.runtime.numpy_model import NumpyTransformer
from qalam_core.package.statistics import statistics
from qalam_core.progress import Progress, no_progress

TEXTS = 8  # documents on which the package's own tokenizer is tested


def evaluate(
    package_folder: Path,
    checkpoint: Path | None,
    test: Sequence[tuple[str, str]],
    train_tokens: Sequence[NDArray[Any]],
    train_texts: Iterable[pa.RecordBatch],
    *,
    seen: Fingerprints | None,
    seed: int,
    prompts: Sequence[str],
    confidence: float,
    storage: str,
    normalisation: Rules,
    repetition: Repetition = UNKNOWN,
    split_documents: int | None = None,
    suites: Sequence[Suite] = (),
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> tuple[Report, Budgets]:
    """Measure a package; -> a report that is the same on every run, and budgets that depend on the machine.

    `checkpoint` is the safetensors file that the package was written from, None for one that was edited or imported.
    `test` are (slice, normalised text) pairs, all of the split or a sample of its `split_documents`. `train_tokens` are
    1-D id arrays, START ids END for each document, and `train_texts` the same documents in the same order, as record
    batches with the columns `id` and `text`; baselines count a sample of them. `seen` is what the model and its
    ancestors have read, and `repetition` how much that repeats itself; None where that is not known: contamination is
    not measured. `seed` is for samples, `confidence` for intervals, `storage` is the recipe's storage type of
    matrices, `normalisation` the corpus's rules. `suites` are model tests. Test documents and tests are scored
    on `device`. `progress` counts scored tokens.

    A package that cannot be read gives a report whose figures are NaN. Raises CorpusError when the test split is empty.
    docs/metrics.md defines every figure.
    """
    if not any(text for _, text in test):
        raise CorpusError("the test split holds no text; raise corpus.test, or add documents")
    package_mb = sum(path.stat().st_size for path in package_folder.rglob("*") if path.is_file()) / 1e6
    begun = time.perf_counter()
    try:
        package = read(package_folder)
    except PackageError as error:
        refused = _unreadable(test, split_documents, one_line(error, package_folder))
        return refused, Budgets(package_mb=round(package_mb, 6), load_seconds=math.inf)
    budgets = Budgets(package_mb=round(package_mb, 6), load_seconds=round(time.perf_counter() - begun, 6))
    model = transformer(package.config, {name: torch.from_numpy(array) for name, array in package.weights.items()})
    tokenizer = Tokenizer.from_str(package.tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells "<END>" is text
    documents = HeldOut.of(test, tokenizer, package.vocabulary)
    nats, hits = score(model.to(device), documents, progress)
    # generates several times faster than torch
    writer = NumpyTransformer(package.config, package.weights, package.vocabulary.specials)
    subject = Subject(model, writer, tokenizer, package.vocabulary, normalisation, seed)
    tested = tuple(run(suite, subject, progress) for suite in suites)
    model.to("cpu")
    shown: tuple[Sample, ...] = ()
    generation = no_generation()
    if np.isfinite(nats).all():
        with suppress(FloatingPointError):  # logits of other texts may not be finite
            shown = samples(writer, tokenizer, prompts, seed)
            generation = generation_statistics(writer, train_tokens, seed)
    vocab_size = model.vocab_size
    trained = training_sample(train_texts, train_tokens, TEXTS)
    unigram, ngram = Unigram.fit(trained.tokens, vocab_size), KneserNey.fit(trained.tokens, vocab_size, TOKEN_ORDER)
    per_document = [
        documents.sum(cost + documents.spelling)
        for cost in (nats, unigram.nats(documents.stream), ngram.nats(documents.stream))
    ]
    written = characters(pa.array([text for _, text in test], pa.large_string()))
    cost = KneserNey.fit([trained.characters], CHARACTERS, CHARACTER_ORDER).nats(written)
    per_document.append(np.add.reduceat(cost, np.flatnonzero(written == START)))
    correct = documents.sum(hits)
    everything = np.arange(len(test))
    names, slice_of = np.unique(np.array([name for name, _ in test]), return_inverse=True)
    probes = [*(text for _, text in test[:TEXTS]), *hostile([text for _, text in test[:TEXTS]])]
    report = Report(
        test_digest=digest_of([text for _, text in test]),
        overall=documents.figures(everything, per_document, correct, confidence),
        sources={
            str(name): documents.figures(everything[slice_of == number], per_document, correct, confidence)
            for number, name in enumerate(names)
        },
        samples=shown,
        generation=generation,
        integrity=check(
            package, checkpoint, model, documents.stream, _tokenized(tokenizer, probes),
            _same_ids(tokenizer, trained.head, train_tokens), storage, _same_texts(tokenizer, probes, normalisation),
        ),
        document_nats=tuple(rounded(value) for value in per_document[0]),
        document_bytes=tuple(int(size) for size in documents.bytes),
        document_ngram_nats=tuple(rounded(value) for value in per_document[2]),
        document_character_nats=tuple(rounded(value) for value in per_document[3]),
        document_digests=tuple(digest_of([text])[:12] for _, text in test),
        document_slices=tuple(slice_of.tolist()),
        contamination=contamination([text for _, text in test], seen, repetition) if seen else None,
        test=_counted(test, split_documents),
        baselines=trained.counted,
        tensors={name: _statistics(tensor) for name, tensor in package.weights.items()},
        tests=tested,
    )  # fmt: skip
    return report, budgets


def _statistics(tensor: NDArray[np.float32]) -> TensorStatistics:
    mean, std, low, high = (float(f"{figure:.6g}") for figure in statistics(tensor))
    return TensorStatistics(shape=tensor.shape, mean=mean, std=std, minimum=low, maximum=high)


def _counted(test: Sequence[tuple[str, str]], split_documents: int | None) -> Counted:
    size = sum(len(text.encode()) for _, text in test)
    return Counted(documents=len(test), of=len(test) if split_documents is None else split_documents, size=size)


def _tokenized(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
    """The ids of texts, by the text."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return {text: encoding.ids for text, encoding in zip(texts, encoded, strict=True)}


def _same_texts(tokenizer: Tokenizer, texts: Sequence[str], rules: Rules) -> bool:
    """Whether the tokenizer normalises texts as the corpus was normalised."""
    expected: list[str] = normalise_array(pa.array(texts, pa.large_string()), rules).to_pylist()
    normaliser = tokenizer.normalizer
    found: list[str] = [normaliser.normalize_str(text) if normaliser else text for text in texts]
    return found == expected


def _same_ids(tokenizer: Tokenizer, texts: Sequence[str], tokens: Sequence[NDArray[Any]]) -> bool:
    """Whether the tokenizer gives the first training documents the ids that were trained on."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = [token for encoding in encoded for token in (START, *encoding.ids, END)]
    # the first documents may be in more than one shard
    return bool(ids) and [token for part in tokens for token in part[: len(ids)].tolist()][: len(ids)] == ids


def _unreadable(test: Sequence[tuple[str, str]], split_documents: int | None, problem: str) -> Report:
    """The report of a package that cannot be read: no figures, and the reason."""
    nan = math.nan
    sizes = tuple(len(text.encode()) for _, text in test)
    return Report(
        test_digest=digest_of([text for _, text in test]),
        overall=Slice(
            documents=len(test), bytes=sum(sizes), tokens=0, words=sum(len(text.split()) for _, text in test),
            bits_per_byte=Bits(model=nan, unigram=nan, ngram=nan, characters=nan),
            unknown_rate=nan, tokens_per_word=nan, next_token_accuracy=nan,
        ),
        sources={},
        samples=(),
        generation=no_generation(),
        integrity=Integrity(
            verifies=False, loads_without_execution=False, tensors_agree=False, loads_by_import=False,
            checkpoint_difference=nan, checkpoint_limit=0.0, import_difference=nan, numpy_difference=nan,
            numpy_backend_agrees=False, tokenizer_agrees=False, problem=problem,
        ),
        document_nats=(nan,) * len(test),
        document_bytes=sizes,
        document_digests=tuple(digest_of([text])[:12] for _, text in test),
        test=_counted(test, split_documents),
    )  # fmt: skip
