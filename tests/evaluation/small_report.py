"""A report without faults, and variants of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qalam_core.evaluation.results import (
    Bits,
    Budgets,
    Contamination,
    Generation,
    Integrity,
    Overlap,
    Report,
    Sample,
    Slice,
)

INTACT = Integrity(
    verifies=True,
    loads_without_execution=True,
    tensors_agree=True,
    loads_by_import=True,
    checkpoint_difference=0.0,
    checkpoint_limit=0.0,
    import_difference=0.0,
    numpy_difference=1e-6,
    numpy_backend_agrees=True,
    tokenizer_agrees=True,
)
BUDGETS = Budgets(package_mb=4.2, load_seconds=0.3)


def divided(made: Report, names: Sequence[str]) -> Report:
    """The same documents in other slices: the name of each document's."""
    sources = sorted(set(names))
    return made.model_copy(
        update={
            "sources": dict.fromkeys(sources, made.overall),
            "document_slices": tuple(sources.index(name) for name in names),
        }
    )


def some(made: Report, places: Sequence[int]) -> Report:
    """A report of some of the documents, in this order."""
    keys = ("nats", "bytes", "digests", "slices")
    columns = {f"document_{key}": getattr(made, f"document_{key}") for key in keys}
    return made.model_copy(update={key: tuple(column[n] for n in places) for key, column in columns.items()})


def report(
    model: float = 1.5,
    unigram: float = 1.9,
    ngram: float = 1.6,
    characters: float = 1.55,
    unknown: float = 0.0,
    repeated: float = 0.05,
    empty: float = 0.0,
    copied: float = 0.0,
    test_digest: str = "a" * 64,
    spread: tuple[float, ...] = (),
    **integrity: Any,
) -> Report:
    overall = Slice(
        documents=2,
        bytes=100,
        tokens=40,
        words=20,
        bits_per_byte=Bits(model=model, unigram=unigram, ngram=ngram, characters=characters),
        unknown_rate=unknown,
        tokens_per_word=1.9,
        next_token_accuracy=0.12,
    )
    return Report(
        test_digest=test_digest,
        overall=overall,
        sources={"news": overall},
        samples=(Sample(prompt="في", text="البيت"),),
        generation=Generation(
            samples=16,
            length=64,
            repeated_4grams=repeated,
            distinct_2grams=0.8,
            empty=empty,
            mean_length=40.0,
            end_rate=0.25,
            longest_copy=7,
        ),
        integrity=INTACT.model_copy(update=integrity),
        document_nats=spread or (7 * model,) * 40,
        document_bytes=(10,) * (len(spread) or 40),
        document_digests=tuple(f"{n:012x}" for n in range(len(spread) or 40)),
        document_slices=(0,) * (len(spread) or 40),
        contamination=Contamination(
            documents=2, words_8=Overlap(copied=copied, covered=0.01), words_13=Overlap(copied=copied / 2, covered=0.01)
        ),
    )
